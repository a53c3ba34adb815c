"""Read pictures with all their bands as they are stored: any number, 8- or 16-bit integers or floats.

NumPy arrays (.npy), TIFF files of one or several pages (bands beside each other, apart, or a page each, in strips or
tiles, with or without differences), and every picture that `jseg.data.io` reads, with its alpha where it is asked for.
TIFF files of other kinds (zstd, LERC, ...) and the formats of GDAL are left to rasterio where it is installed
(`pip install 'jseg-jittor[geo]'`). A picture may lie in several files; `partner` names them from the first.
"""

from __future__ import annotations

import io as memory
import os
import pathlib
from typing import Mapping, Sequence

import cv2
import numpy as np

from jseg.data.decode import imdecode, picture_kind, upright
from jseg.data.header import max_pixels
from jseg.data.io import damaged_tiff, file_content, picture_header, stored_samples
from jseg.data.tiff import decode_page, tiff_pages
from jseg.errors import ConfigError, DataError

__all__ = ["LAYOUTS", "MAX_BANDS", "partner", "percentile_limits", "rasterio", "read_bands", "sample_step",
           "shown_bands", "stretched"]

LAYOUTS = ("auto", "hwc", "chw")
MAX_BANDS = 32
TYPES = ("uint8", "uint16", "int16", "float16", "float32", "float64")
_NPY = b"\x93NUMPY"
_RGBA = 6  # colour type of PNG
_SAMPLE_PIXELS = 1 << 20  # of which percentiles are taken


def rasterio(what: str):
    """The module, for `what`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import rasterio as module
        import rasterio.windows  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{what} needs rasterio, which is not installed ({error}): pip install 'jseg-jittor[geo]'"
                          ) from error
    return module


def read_bands(source: str | os.PathLike | bytes, *, layout: str = "auto") -> np.ndarray:
    """Read all bands of one file.

    Args:
        source: a path, or the bytes of a file.
        layout: of three-dimensional arrays in .npy files: "hwc", "chw", or "auto": the axis of at most 32.
    Returns:
        (H, W, C) of uint8, uint16, int16 or float32 in the file's order (colours: red first, then alpha if stored).
        The EXIF orientation is applied.
    Raises:
        DataError: the file is missing, damaged, too large, has samples of another type, or more than 32 bands.
    """
    data, name = file_content(source, "picture")
    if data.startswith(_NPY):
        found = _of_array(data, layout, name)
    elif picture_kind(data) == "tiff":
        found = _of_tiff(data, name)
    else:
        found = _of_picture(data, name)
    if found.dtype.name not in TYPES:
        raise DataError(f"{name}: the picture has {found.dtype} samples; accepted: {', '.join(TYPES)}", kind="samples",
                        path=name)
    if found.shape[2] > MAX_BANDS:
        raise DataError(f"{name}: {found.shape[2]} bands; at most {MAX_BANDS} are read: write those of the model "
                        "to a file of their own", kind="samples", path=name)
    return found.astype(np.float32) if found.dtype.name in ("float16", "float64") else found


def _of_array(data: bytes, layout: str, name: str) -> np.ndarray:
    try:
        array = np.load(memory.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise DataError(f"{name}: not a readable .npy file ({error}); write it with numpy.save", kind="unreadable",
                        path=name) from error
    if array.ndim == 2 and array.size:
        return array[..., None]
    if array.ndim != 3 or not array.size:
        raise DataError(f"{name}: an array of shape {array.shape}; accepted: (H, W), (H, W, C), (C, H, W)",
                        kind="samples", path=name)
    first = layout == "chw"
    if layout == "auto":
        first, last = (array.shape[axis] <= MAX_BANDS for axis in (0, 2))
        if first == last:
            raise DataError(f"{name}: an array of shape {array.shape}: which axis holds the channels (at most "
                            f"{MAX_BANDS}) cannot be told; say layout: hwc or layout: chw", kind="samples", path=name)
    return np.ascontiguousarray(np.moveaxis(array, 0, 2)) if first else array


def _of_tiff(data: bytes, name: str) -> np.ndarray:
    pages = tiff_pages(data)
    pages = [page for page in pages if (page.size, page.sample) == (pages[0].size, pages[0].sample)]
    if not pages:
        raise damaged_tiff(name)
    if all(page.is_stack for page in pages):
        height, width = pages[0].size
        _check_bytes(height * width * sum(page.bands for page in pages) * pages[0].sample.itemsize, name)
        parts = [decode_page(data, page) for page in pages]
        if any(part is None for part in parts):
            raise damaged_tiff(name)
        found = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        return upright(found, data) if 0x0112 in pages[0].tags else found
    if len(pages) == 1 and pages[0].bands <= 3:  # palettes, JPEG inside, ...
        return _of_picture(data, name)
    return _by_rasterio(data, name)


def _check_bytes(count: int, name: str) -> None:
    most = 4 * max_pixels()
    if count > most:
        raise DataError(f"{name}: the picture has {count / 1e9:.1f} GB when decoded; at most {most / 1e9:.1f} GB are "
                        "read at once: predict large rasters with 'jseg predict --tiled', or raise --max-pixels",
                        kind="limit", path=name)


def _by_rasterio(data: bytes, name: str) -> np.ndarray:
    try:
        module = rasterio(f"{name}: a TIFF file of this kind (compression, or pages that differ)")
    except ConfigError as error:
        raise DataError(str(error), kind="samples", path=name) from error
    try:
        with module.MemoryFile(data) as file, file.open() as source:
            _check_bytes(source.width * source.height * source.count * np.dtype(source.dtypes[0]).itemsize, name)
            return np.ascontiguousarray(np.moveaxis(source.read(), 0, 2))
    except module.errors.RasterioError as error:
        raise DataError(f"{name}: GDAL cannot read it ({error})", kind="unreadable", path=name) from error


def _of_picture(data: bytes, name: str) -> np.ndarray:
    """A picture file: one channel if it is grey, else RGB, or RGB and alpha of a PNG."""
    header, is_png = picture_header(data, name), data.startswith(b"\x89PNG")
    found = stored_samples(data, name)  # with all its checks
    if is_png and data[25] == _RGBA:
        whole = imdecode(data, cv2.IMREAD_UNCHANGED)
        return upright(cv2.cvtColor(whole, cv2.COLOR_BGRA2RGBA), data)
    if header.channels <= 2 and not (is_png and data[25] == 3) and _is_grey(found):
        return np.ascontiguousarray(found[..., :1])
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def _is_grey(img: np.ndarray) -> bool:
    return bool(np.array_equal(img[..., 0], img[..., 1]) and np.array_equal(img[..., 0], img[..., 2]))


def partner(path: str, changes: Mapping[str, str]) -> str:
    """The file that belongs to a picture: each key is the end of its name or a folder of its path, and is replaced.

    Args:
        path: of the picture, "set/images/a_B02.tif".
        changes: `{_B02.tif: _B03.tif}` gives "set/images/a_B03.tif", `{images: depth, .tif: .png}` "set/depth/...".
    Raises:
        DataError: neither the name ends so nor is a folder called so.
    """
    parts = list(pathlib.PurePath(os.path.abspath(path) if not os.path.dirname(path) else path).parts)
    for old, new in changes.items():
        places = [i for i, part in enumerate(parts[:-1]) if part == old]
        if parts[-1].endswith(old):
            parts[-1] = parts[-1][:len(parts[-1]) - len(old)] + new
        elif places:
            parts[places[-1]] = new
        else:
            raise DataError(f"{path}: LoadBands.files looks for another file of this picture by replacing {old!r} by "
                            f"{new!r}, but the name does not end so and no folder of the path is called so", path=path)
    return str(pathlib.PurePath(*parts))


def stretched(img: np.ndarray, limits: Sequence[tuple[float, float]]) -> np.ndarray:
    """(H, W, C) -> float32: each channel's limits (low, high) become 0 and 255; beyond them it is cut."""
    out = np.empty(img.shape, np.float32)
    for channel, (low, high) in enumerate(limits):
        plane = (img[..., channel].astype(np.float32) - np.float32(low)) * np.float32(255 / max(high - low, 1e-12))
        np.clip(plane, 0, 255, out=out[..., channel])
    return out


def sample_step(size: tuple[int, int], most: int = _SAMPLE_PIXELS) -> int:
    """Every how many rows and columns a pixel is taken for about `most` of a picture of this size;
    by default as `percentile_limits` does.
    """
    return max(1, int(np.ceil(np.sqrt(size[0] * size[1] / most))))


def percentile_limits(img: np.ndarray, percentiles: Sequence[float], nodata: float | None = None, *,
                      step: int | None = None) -> list[tuple[float, float]]:
    """(low, high) of each channel of (H, W, C), of every `step`-th row and column; without absent samples."""
    step = sample_step(img.shape[:2]) if step is None else step
    found = []
    for channel in range(img.shape[2]):
        values = img[::step, ::step, channel]
        values = values[np.isfinite(values)] if img.dtype.kind == "f" else values.ravel()
        values = values if nodata is None or np.isnan(nodata) else values[values != nodata]
        found.append(tuple(np.percentile(values, percentiles).tolist()) if values.size else (0.0, 1.0))
    return found


def shown_bands(img: np.ndarray, view: Sequence[int]) -> np.ndarray:
    """Three bands (red, green, blue), or one, of (H, W, C) as a picture for eyes: (H, W, 3) uint8 BGR.

    8-bit samples stay; others are stretched from the 2nd to the 98th percentile of each band.
    """
    chosen = np.stack([img[..., band] for band in (view if len(view) == 3 else [view[0]] * 3)][::-1], axis=2)
    if img.dtype == np.uint8:
        return chosen
    chosen = np.nan_to_num(chosen.astype(np.float32), nan=np.nan, posinf=np.nan, neginf=np.nan)
    return np.nan_to_num(stretched(chosen, percentile_limits(chosen, (2, 98)))).round().astype(np.uint8)
