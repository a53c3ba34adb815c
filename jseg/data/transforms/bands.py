"""LoadBands, BandDistortion: pictures of any number of channels, as stored or on a stated scale.

Not of MMSegmentation, whose LoadSingleRSImageFromFile and LoadImageFromNpyFile read floats with GDAL and NumPy; here
one step reads files of all kinds, from one or several files per picture, and says in the config how many channels come
out and what their values mean.
"""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import Any, Mapping, Sequence

import numpy as np

from jseg.data.bands import LAYOUTS, MAX_BANDS, partner, percentile_limits, read_bands, shown_bands, stretched
from jseg.data.transforms.base import INTERPOLATIONS, Transform, number_pair, probability, resize_to
from jseg.errors import DataError
from jseg.registry import TRANSFORMS, nearest

__all__ = ["BAND_SCALES", "LoadBands", "BandDistortion"]

BAND_SCALES = ("none", "fixed", "percentile")


@TRANSFORMS.register()
class LoadBands(Transform):
    """Read a picture with `channels` channels into `img` (H, W, C), from one file or several.

    uint8 files stay uint8 with `scale: none`; everything else becomes float32.

    Args:
        channels: how many come out, 1 to 32; `model.backbone.in_channels` has the same number.
        files: where a picture lies in several files, how their names follow from the picture's: `{}` is the file
            itself, `{images: depth, .jpg: .png}` replaces the folder "images" by "depth" and the end of the name. Their
            bands follow each other. Default: the one file.
        bands: which bands of all files, in the order wanted, from 0; default: all.
        layout: of .npy arrays: "hwc", "chw" or "auto".
        scale: "none" keeps the values; "fixed" makes `range` 0..255; "percentile" makes `percentiles` of each channel
            of each picture 0..255. Values beyond are cut.
        range: (low, high) of "fixed", or one such pair per channel.
        percentiles: (low, high) of "percentile", 0..100.
        nodata: samples of this value (or ".nan") and NaN, inf have no data: they become `fill` after scaling. Without
            it NaN and inf are errors.
        fill: see `nodata`.
        resize: how files of another size than the first are brought to it: nearest, bilinear, ...; default: an error.
        view: three channels to show as red, green, blue (or one, as grey), from 0; default: the first three, or one.
    Raises:
        ValueError: arguments that cannot be.
        DataError: a file that cannot be read, or has other bands than stated.
    """

    on_bare_pictures, reads_pictures = False, True

    def __init__(self, channels: int, *, files: Sequence[Mapping[str, str]] = ({},), bands: Sequence[int] | None = None,
                 layout: str = "auto", scale: str = "none", range: Sequence | None = None,
                 percentiles: Sequence[float] = (2, 98), nodata: float | None = None, fill: float = 0.0,
                 resize: str | None = None, view: Sequence[int] | None = None):
        self.channels = _channel_count(channels)
        self.files = [_checked_changes(changes) for changes in files]
        if not self.files or self.files[0]:
            raise ValueError(f"files begins with {{}}, the picture itself; got {files!r}")
        self.bands = None if bands is None else _indices(bands, "bands", 10 * MAX_BANDS)
        if self.bands is not None and len(self.bands) != channels:
            raise ValueError(f"bands names {len(self.bands)} bands, but channels is {channels}")
        for name, value, known in (("layout", layout, LAYOUTS), ("scale", scale, BAND_SCALES),
                                   ("resize", resize or "bilinear", INTERPOLATIONS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}{nearest(str(value), known)}; accepted: {', '.join(known)}")
        self.layout, self.scale, self.resize = layout, scale, resize
        if (scale == "fixed") != (range is not None):
            raise ValueError(f"range, (low, high), belongs to scale: fixed; got scale: {scale} and range {range!r}")
        self.range = None if range is None else _ranges(range, channels)
        self.percentiles = number_pair(percentiles, "percentiles", integer=False, positive=False)
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles must be (low, high) within 0..100, got {percentiles!r}")
        self.nodata, self.fill = None if nodata is None else float(nodata), float(fill)
        self.view = _indices(view if view is not None else [0, 1, 2][:3 if channels >= 3 else 1], "view", channels)
        if len(self.view) not in (1, 3):
            raise ValueError(f"view names three channels, or one, got {view!r}")

    def files_of(self, path: str | os.PathLike) -> list[str]:
        """The files of a picture, its own first."""
        return [partner(os.fspath(path), changes) if changes else os.fspath(path) for changes in self.files]

    def stored(self, source: Any, name: str = "picture") -> np.ndarray:
        """The chosen bands as they are stored.

        Args:
            source: the path of a picture, or an array (H, W, C) or (H, W) of the bands of all files, or just the
                chosen.
            name: what messages call an array.
        Returns:
            (H, W, channels) uint8, uint16, int16 or float32.
        """
        if isinstance(source, (str, os.PathLike)):
            paths = self.files_of(source)
            name, img = paths[0], self._joined([read_bands(path, layout=self.layout) for path in paths], paths)
        else:
            img = np.asarray(source)
            img = img[..., None] if img.ndim == 2 else img
            if img.ndim != 3 or 0 in img.shape or img.dtype.kind not in "uif":
                raise DataError(f"{name}: an array of shape {img.shape} and type {img.dtype} came; accepted: (H, W, "
                                f"{self.channels}) of numbers")
        if self.bands is not None and (isinstance(source, (str, os.PathLike)) or img.shape[2] != self.channels):
            if max(self.bands) >= img.shape[2]:
                raise DataError(f"{name}: has {img.shape[2]} bands, and LoadBands.bands asks for number "
                                f"{max(self.bands)} (the first is 0)", kind="samples", path=name)
            img = img[..., list(self.bands)]
        if img.shape[2] != self.channels:
            raise DataError(f"{name}: has {img.shape[2]} bands, but LoadBands.channels is {self.channels}; change it, "
                            "or choose with bands: [...]", kind="samples", path=name)
        return np.ascontiguousarray(img)

    def _joined(self, parts: list[np.ndarray], paths: list[str]) -> np.ndarray:
        size = parts[0].shape[:2]
        for i, (part, path) in enumerate(zip(parts, paths)):
            if part.shape[:2] != size and self.resize is None:
                (h, w), (other_h, other_w) = size, part.shape[:2]
                raise DataError(f"{path} is {other_w}x{other_h} (width x height) but {paths[0]} is {w}x{h}; say "
                                "LoadBands.resize: bilinear to bring it to that size", kind="size", path=path)
            parts[i] = part if part.shape[:2] == size else resize_to(part, size[::-1], self.resize)
        if len(parts) == 1:
            return parts[0]
        alike = len({part.dtype for part in parts}) == 1
        return np.concatenate([part if alike else part.astype(np.float32) for part in parts], axis=2)

    def absent(self, img: np.ndarray) -> np.ndarray | None:
        """Which samples of `stored` have no data, (H, W, C) bool: `nodata`, NaN, inf; None where there can be none."""
        absent = ~np.isfinite(img) if img.dtype.kind == "f" else None
        if self.nodata is not None and not np.isnan(self.nodata):
            absent = (img == self.nodata) if absent is None else absent | (img == self.nodata)
        return absent

    def scaled(self, img: np.ndarray, limits: Sequence | None = None, name: str = "picture") -> np.ndarray:
        """What `stored` gave on the config's scale: uint8 where nothing changes, else float32.

        Args:
            limits: (low, high) per channel instead of this picture's own percentiles, for parts of a picture.
        """
        absent = self.absent(img)
        if self.nodata is None and absent is not None and absent.any():
            row, column, band = (int(places[0]) for places in np.nonzero(absent))
            raise DataError(f"{name}: {int(absent.sum())} samples are NaN or infinite, the first in row {row}, column "
                            f"{column}, channel {band}; LoadBands.nodata: .nan makes them `fill`", kind="samples",
                            path=name)
        if self.scale != "none":
            if limits is None:
                limits = self.range or percentile_limits(img, self.percentiles, self.nodata)
            out = stretched(img, limits)
        else:
            out = img if img.dtype == np.uint8 else img.astype(np.float32)
        if absent is not None and absent.any():
            out = out.copy() if out is img else out
            out[absent] = self.fill
        return out

    def read(self, source: Any, name: str = "picture") -> np.ndarray:
        """`scaled(stored(source))`."""
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else name
        return self.scaled(self.stored(source, name), name=name)

    def shown(self, source: Any, view: Sequence[int] | None = None) -> np.ndarray:
        """The channels of `view` as a picture for eyes, (H, W, 3) uint8 BGR; `source` as in `stored`."""
        return shown_bands(self.stored(source), self.view if view is None else _indices(view, "view", self.channels))

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        img = self.read(sample["img_path"])
        return {**sample, "img": img, "img_shape": img.shape[:2], "ori_shape": img.shape[:2], "view": self.view}


def _channel_count(value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= value <= MAX_BANDS:
        raise ValueError(f"channels is {value!r}; accepted: 1 to {MAX_BANDS}")
    return int(value)


def _indices(values: Sequence[int], name: str, end: int) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or not values or not all(
            isinstance(v, Integral) and not isinstance(v, bool) and 0 <= v < end for v in values):
        raise ValueError(f"{name} is {values!r}; accepted: numbers from 0 to {end - 1}")
    return tuple(int(v) for v in values)


def _checked_changes(changes: Any) -> dict[str, str]:
    """Names of files follow from the picture's, and lead nowhere else: a config may come with a checkpoint."""
    good = isinstance(changes, Mapping) and all(
        isinstance(text, str) and text and not set(text) & set("/\\") and text != ".."
        for pair in changes.items() for text in pair)
    if not good:
        raise ValueError(f"files: {changes!r}; accepted: {{old: new}} with names of folders or ends of names, without "
                         "slashes")
    return dict(changes)


def _ranges(given: Sequence, channels: int) -> list[tuple[float, float]]:
    pairs = [given] * channels if len(given) == 2 and all(isinstance(v, Real) for v in given) else list(given)
    found = [number_pair(pair, "each pair of range", integer=False, positive=False) for pair in pairs]
    if len(found) != channels or any(low >= high for low, high in found):
        raise ValueError(f"range must be (low, high), or one such pair for each of {channels} channels, got {given!r}")
    return found


@TRANSFORMS.register()
class BandDistortion(Transform):
    """Change contrast and brightness of every channel by itself: (value - mean) * gain + mean + offset * deviation.

    Mean and standard deviation are those of the channel in this picture. uint8 pictures stay uint8.

    Args:
        prob: of changing a picture, 0..1.
        gain_range: (least, largest) gain.
        offset: largest shift, in standard deviations.
        per_channel: draw for each channel; otherwise once for all.
    """

    def __init__(self, prob: float = 0.5, gain_range: Sequence[float] = (0.75, 1.25), offset: float = 0.25,
                 per_channel: bool = True):
        self.prob, self.per_channel = probability(prob), per_channel
        self.gain_range = number_pair(gain_range, "gain_range", integer=False)
        if not isinstance(offset, Real) or offset < 0:
            raise ValueError(f"offset must be a number of at least 0, got {offset!r}")
        self.offset = float(offset)

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"gains": per channel, "offsets": per channel}, or None for no change."""
        if rng.random() >= self.prob:
            return {"gains": None, "offsets": None}
        channels = sample["img"].shape[2]
        count = channels if self.per_channel else 1
        gains, offsets = rng.uniform(*self.gain_range, count), rng.uniform(-self.offset, self.offset, count)
        return {"gains": np.broadcast_to(gains, channels).tolist(),
                "offsets": np.broadcast_to(offsets, channels).tolist()}

    def apply(self, sample: dict, params: dict) -> dict:
        """Change by `params`."""
        if params["gains"] is None:
            return dict(sample)
        img = sample["img"].astype(np.float32)
        mean, deviation = (np.float32(f(img, axis=(0, 1), dtype=np.float64)) for f in (np.mean, np.std))
        img = (img - mean) * np.float32(params["gains"]) + (mean + deviation * np.float32(params["offsets"]))
        if sample["img"].dtype == np.uint8:
            img = np.clip(np.round(img), 0, 255).astype(np.uint8)
        return {**sample, "img": img}
