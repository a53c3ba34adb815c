"""PhotoMetricDistortion, CLAHE, AdjustGamma, Normalize: what changes the picture's values and leaves its mask alone.

Upstream: mmseg/datasets/transforms/transforms.py (MMSegmentation 1.2.2), mmcv/image/photometric.py (MMCV 2.1). The
photometric distortion is SSD's (ECCV 2016); CLAHE is Zuiderveld's, Graphics Gems IV, 1994.
Deviations: brightness, contrast, saturation and hue are done with tables of the 256 values (same pixels, less time);
pictures that are not uint8 are refused where upstream casts them to uint8.
"""

from __future__ import annotations

from numbers import Real
from typing import Sequence

import cv2
import numpy as np

from jseg.data.transforms.base import Transform, by_fours, channel_values, check_uint8, number_pair
from jseg.registry import TRANSFORMS

__all__ = ["PhotoMetricDistortion", "CLAHE", "AdjustGamma", "Normalize"]

_VALUES = np.arange(256)


def _linear_table(gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """(256,) uint8: value * gain + offset in float32, clipped to 0..255, fraction dropped."""
    return np.clip(_VALUES.astype(np.float32) * np.float32(gain) + np.float32(offset), 0, 255).astype(np.uint8)


@TRANSFORMS.register()
class PhotoMetricDistortion(Transform):
    """Change brightness, contrast, saturation and hue, each with probability one half; contrast comes second or last.

    Args:
        brightness_delta: largest amount added to or taken from all channels, 0..255.
        contrast_range: (least, largest) gain of all channels.
        saturation_range: (least, largest) gain of the saturation.
        hue_delta: bound d of the shift of the hue, in OpenCV's half degrees: integers -d..d-1, as upstream.
    """

    def __init__(self, brightness_delta: float = 32, contrast_range: Sequence[float] = (0.5, 1.5),
                 saturation_range: Sequence[float] = (0.5, 1.5), hue_delta: int = 18):
        self.brightness_delta = brightness_delta
        self.contrast_range = number_pair(contrast_range, "contrast_range", integer=False, positive=False)
        self.saturation_range = number_pair(saturation_range, "saturation_range", integer=False, positive=False)
        if hue_delta < 1:
            raise ValueError(f"hue_delta must be at least 1, got {hue_delta!r}")
        self.hue_delta = hue_delta

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw brightness, contrast, saturation, hue (None for those left out) and contrast_first."""

        def half(low: float, high: float) -> float | None:
            chosen, value = rng.integers(2), float(rng.uniform(low, high))
            return value if chosen else None

        params = {"brightness": half(-self.brightness_delta, self.brightness_delta),
                  "contrast_first": bool(rng.integers(2)),
                  "contrast": half(*self.contrast_range),
                  "saturation": half(*self.saturation_range)}
        shift = int(rng.integers(-self.hue_delta, self.hue_delta))
        return {**params, "hue": shift if rng.integers(2) else None}

    def apply(self, sample: dict, params: dict) -> dict:
        """Distort by `params`."""
        img = check_uint8(sample, "PhotoMetricDistortion")
        if img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(f"saturation and hue belong to 3 channels of colour, and the picture has {img.shape[2:]}; "
                             "use BandDistortion, which changes every channel by itself")
        contrast = None if params["contrast"] is None else _linear_table(gain=params["contrast"])
        if params["brightness"] is not None:
            img = cv2.LUT(img, _linear_table(offset=params["brightness"]))
        if contrast is not None and params["contrast_first"]:
            img = cv2.LUT(img, contrast)
        if params["saturation"] is not None:
            img = _change_hsv(img, 1, _linear_table(gain=params["saturation"]))
        if params["hue"] is not None:
            img = _change_hsv(img, 0, ((_VALUES + params["hue"]) % 180).astype(np.uint8))
        if contrast is not None and not params["contrast_first"]:
            img = cv2.LUT(img, contrast)
        return {**sample, "img": img}


def _change_hsv(img: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
    hsv[..., channel] = cv2.LUT(hsv[..., channel], table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


@TRANSFORMS.register()
class CLAHE(Transform):
    """Equalise the histogram of each channel tile by tile, with limited contrast.

    Args:
        clip_limit: bound on the contrast.
        tile_grid_size: (columns, rows) of tiles.
    """

    def __init__(self, clip_limit: float = 40.0, tile_grid_size: Sequence[int] = (8, 8)):
        if not isinstance(clip_limit, Real):
            raise ValueError(f"clip_limit must be a number, got {clip_limit!r}")
        self.clip_limit = clip_limit
        self.tile_grid_size = number_pair(tile_grid_size, "tile_grid_size")

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        img = check_uint8(sample, "CLAHE")
        clahe = cv2.createCLAHE(self.clip_limit, self.tile_grid_size)
        return {**sample, "img": np.stack([clahe.apply(channel) for channel in cv2.split(img)], axis=2)}


@TRANSFORMS.register()
class AdjustGamma(Transform):
    """Brighten (gamma above 1) or darken the picture: 255 * (value / 255) ** (1 / gamma), fraction dropped.

    Args:
        gamma: above 0.
    """

    def __init__(self, gamma: float = 1.0):
        if not isinstance(gamma, Real) or gamma <= 0:
            raise ValueError(f"gamma must be a number above 0, got {gamma!r}")
        self.gamma = gamma
        self.table = ((_VALUES / 255.0) ** (1.0 / gamma) * 255).astype(np.uint8)

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        img = check_uint8(sample, "AdjustGamma")
        return {**sample, "img": cv2.LUT(img, self.table).reshape(img.shape)}


@TRANSFORMS.register()
class Normalize(Transform):
    """Turn the picture into float32, (value - mean) / std; notes `img_norm_cfg`.

    The data preprocessor does this for whole batches; put it into a pipeline only if the preprocessor has no mean and
    std.

    Args:
        mean, std: per channel, on the picture's own scale (0..255), in the order of the result.
        to_rgb: exchange blue and red first; only with three channels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_rgb: bool = True):
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or (self.std <= 0).any():
            raise ValueError(f"mean and std must be one number per channel each, std above 0, got {mean!r} and {std!r}")
        if to_rgb and len(mean) != 3:
            raise ValueError(f"to_rgb exchanges blue and red of 3 channels, mean has {len(mean)}; set to_rgb: false")
        self.to_rgb = to_rgb

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        img = sample["img"].astype(np.float32)
        if self.to_rgb:
            img = cv2.cvtColor(img, cv2.COLOR_BGR2RGB)
        mean, factor = (channel_values(list(values), img, "mean") for values in (
            self.mean.astype(np.float64), 1 / self.std.astype(np.float64)))
        img = by_fours(img, lambda part, own: cv2.multiply(cv2.subtract(part, np.reshape(mean[own], (1, -1))),
                                                           np.reshape(factor[own], (1, -1))))
        notes = {"mean": self.mean, "std": self.std, "to_rgb": self.to_rgb}
        return {**sample, "img": img, "img_norm_cfg": notes}
