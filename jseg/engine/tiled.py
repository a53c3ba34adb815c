"""Predict rasters larger than memory: read, segment and write block after block.

A slide over a raster is cut into blocks such that each block's windows are the raster's own: every pixel gets its
scores from the same windows with the same pixels as in a slide over the whole, so the labels are the same. Windows at
the borders of blocks are computed for both.
"""

from __future__ import annotations

import contextlib
import os
from typing import Callable, Mapping, NamedTuple

import numpy as np

from jseg.data.bands import percentile_limits, sample_step
from jseg.data.geo import Raster, opened_raster, raster_writer
from jseg.data.transforms import LoadBands
from jseg.errors import ConfigError, DataError
from jseg.models.readout import windows

__all__ = ["Block", "blocks", "predict_tiled", "slide_of"]

BLOCK_PIXELS = 1 << 21  # about as many pixels of the raster are in memory at once
_ROWS = 256  # read at once where percentiles are taken


class Block(NamedTuple):
    """A part of one axis: labels of [begin, end) come from the picture's [first, last)."""

    begin: int
    end: int
    first: int
    last: int


def blocks(length: int, crop: int, stride: int, divisor: int, most: int) -> list[Block]:
    """Cut an axis of a slide so that each part has the windows of the whole.

    Args:
        length: of the picture, in pixels.
        crop, stride: of the slide; multiples of `divisor`, to which pictures are padded.
        most: pixels of a part that is read, at least the windows that one stride needs.
    """
    spans = windows(-(-length // divisor) * divisor, crop, stride)
    before = (-(-crop // stride) - 1) * stride  # windows that begin there reach into a part, too
    step = max(1, (most - before - crop) // stride + 1)  # windows whose begins share a part
    found = []
    for i in range(0, len(spans), step):
        begin, end = spans[i][0], spans[i + step][0] if i + step < len(spans) else length
        touching = [span for span in spans if span[1] > begin and span[0] < end]
        if begin < end:
            found.append(Block(begin, end, touching[0][0], min(touching[-1][1], length)))
    return found


def predict_tiled(segmentor, path: str | os.PathLike, outs: Mapping[str, str | os.PathLike], *,
                  tell: Callable[[int, int], None] = lambda done, count: None) -> np.ndarray:
    """Segment a raster in blocks and write GeoTIFF files.

    Args:
        segmentor: an `InferenceSegmentor` of mode "slide" with `resize=False`, without `tta`.
        path: of the raster, anything that GDAL reads; its further files as LoadBands.files says.
        outs: the files for "labels" and, if wanted, "probability" (float32).
        tell: called with the blocks done and their number.
    Returns:
        pixels per class, (K,) int64.
    Raises:
        ConfigError: windows that do not fit `size_divisor`; rasterio is not installed.
        DataError, WriteError: files that cannot be read or written.
    """
    bands = segmentor.bands
    crop, stride, divisor = segmentor.slide()
    counts = np.zeros(len(segmentor.classes), np.int64)
    with contextlib.ExitStack() as stack:
        raster = stack.enter_context(opened_raster(bands.files_of(path) if bands else [path]))
        limits = _limits(raster, bands) if bands and bands.scale == "percentile" else None
        side = int(BLOCK_PIXELS ** 0.5)
        parts = [blocks(raster.size[axis], crop[axis], stride[axis], divisor, max(side, 3 * crop[axis]))
                 for axis in (0, 1)]
        dtype = np.uint8 if len(counts) < 257 else np.uint16
        files = {kind: stack.enter_context(raster_writer(
            out, raster.sources[0], raster.size, dtype if kind == "labels" else np.float32,
            palette=segmentor.palette if kind == "labels" else None)) for kind, out in outs.items()}
        total = len(parts[0]) * len(parts[1])
        for done, (rows, columns) in enumerate((r, c) for r in parts[0] for c in parts[1]):
            picture = _read(raster, segmentor, (rows.first, rows.last), (columns.first, columns.last))
            found = segmentor.infer_stored(picture, limits=limits, with_prob="probability" in files)
            found = found if isinstance(found, tuple) else (found,)
            own = (slice(rows.begin - rows.first, rows.end - rows.first),
                   slice(columns.begin - columns.first, columns.end - columns.first))
            window = ((rows.begin, rows.end), (columns.begin, columns.end))
            for kind, values in zip(("labels", "probability"), found):
                files[kind].write(np.ascontiguousarray(values[own]), 1, window=window)
            counts += np.bincount(found[0][own].ravel(), minlength=len(counts))[:len(counts)]
            tell(done + 1, total)
    return counts


def _read(raster: Raster, segmentor, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """A window as `infer_stored` takes it: bands as stored, or BGR uint8."""
    if segmentor.bands:
        return raster.read(rows, columns, segmentor.bands.bands)
    count = sum(source.count for source in raster.sources)
    found = raster.read(rows, columns, (2, 1, 0) if count >= 3 else (0, 0, 0))
    if found.dtype == np.uint16 and segmentor.scale == "bits":
        return (found >> 8).astype(np.uint8)
    if found.dtype != np.uint8:
        raise DataError(f"{raster.name}: {found.dtype} samples of LoadImageFromFile (scale: {segmentor.scale}); "
                        "windows take 8 bits, and 16 with scale: bits: train with LoadBands, which states its scale",
                        kind="samples", path=raster.name)
    return found


def _limits(raster: Raster, bands: LoadBands) -> list[tuple[float, float]]:
    """Percentiles of the pixels that the whole picture would be judged by."""
    (height, width), step = raster.size, sample_step(raster.size)
    rows = max(1, _ROWS // step) * step
    parts = [raster.read((top, min(top + rows, height)), (0, width), bands.bands)[::step, ::step]
             for top in range(0, height, rows)]
    return percentile_limits(np.concatenate(parts), bands.percentiles, bands.nodata, step=1)


def slide_of(test_cfg: Mapping, padding: Mapping) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(window, stride, size divisor) of a model's slide.

    Raises:
        ConfigError: no slide, or one whose windows are not whole multiples of the divisor.
    """
    if test_cfg.get("mode") != "slide":
        raise ConfigError("blocks need a slide, but the mode is whole: give mode='slide' and a crop_size, on "
                          "the command line --crop-size HxW")
    if padding.get("size") or padding.get("resize_divisor"):
        raise ConfigError("prediction in blocks: data_preprocessor.test_cfg takes size_divisor only")
    if test_cfg.get("even"):
        raise ConfigError("prediction in blocks: windows at equal distances (model.test_cfg.even) depend on the whole "
                          "picture: give mode='slide' and a stride, on the command line --crop-size HxW --stride HxW")
    divisor = padding.get("size_divisor") or 1
    crop, stride = tuple(test_cfg["crop_size"]), tuple(test_cfg["stride"])
    if any(side % divisor for side in (*crop, *stride)):
        raise ConfigError(f"prediction in blocks: the window {list(crop)} and its stride {list(stride)} must be "
                          f"multiples of data_preprocessor.test_cfg.size_divisor, {divisor}: give --crop-size and "
                          "--stride")
    return crop, stride, divisor

