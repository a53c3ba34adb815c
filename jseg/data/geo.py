"""GeoTIFF files of predictions: the picture's place on earth, whole or written window by window.

rasterio (`pip install 'jseg-jittor[geo]'`) reads and writes them: coordinate system, transform of pixels, ground
control points and rational polynomials of the picture are those of the result.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import warnings
from typing import Any, Iterator, Sequence

import numpy as np

from jseg import runtime_signals
from jseg.data.bands import rasterio
from jseg.errors import DataError, WriteError
from jseg.files import drop_drafts

__all__ = ["Raster", "opened_raster", "raster_writer", "write_raster"]

CACHE_MB = 64  # of GDAL, for blocks of files
_BLOCK = 512  # side of the tiles of results, in pixels


class Raster:
    """Picture files of one size, read in windows.

    Args:
        sources: datasets of rasterio; their bands follow each other.
        name: of the first file.
    """

    def __init__(self, sources: Sequence, name: str):
        self.sources, self.name = list(sources), name
        self.size = sources[0].height, sources[0].width

    def read(self, rows: tuple[int, int], columns: tuple[int, int], bands: Sequence[int] | None = None) -> np.ndarray:
        """(rows, columns, C) of a window, begin and end in pixels: all bands, or some by number from 0.

        Raises:
            DataError: the file is damaged there, or has no such band.
        """
        window = ((rows[0], rows[1]), (columns[0], columns[1]))
        places = [(source, i + 1) for source in self.sources for i in range(source.count)]
        if bands is not None and max(bands) >= len(places):
            raise DataError(f"{self.name}: has {len(places)} bands, and number {max(bands)} is asked for (the first is "
                            "0)", kind="samples", path=self.name)
        chosen = places if bands is None else [places[i] for i in bands]
        try:
            parts = [source.read(number, window=window) for source, number in chosen]
        except rasterio("rasters").errors.RasterioError as error:
            raise DataError(f"{self.name}: GDAL cannot read rows {rows}, columns {columns} ({error})",
                            kind="unreadable", path=self.name) from error
        return np.stack(parts, axis=2)


@contextlib.contextmanager
def opened_raster(paths: Sequence[str | os.PathLike]) -> Iterator[Raster]:
    """Open the files of a picture within the body.

    Raises:
        DataError: a file that GDAL does not read, or of another size than the first.
        ConfigError: rasterio is not installed.
    """
    module = rasterio(f"{paths[0]}: reading rasters in windows")
    with contextlib.ExitStack() as stack:
        stack.enter_context(module.Env(GDAL_CACHEMAX=CACHE_MB, GDAL_PAM_ENABLED="NO"))
        stack.enter_context(_unplaced_is_fine(module))
        sources = []
        for path in map(os.fspath, paths):
            if not os.path.isfile(path):
                raise DataError(f"{path}: no such picture", kind="missing", path=path)
            try:
                sources.append(stack.enter_context(module.open(path)))
            except module.errors.RasterioError as error:
                raise DataError(f"{path}: GDAL cannot read it ({error})", kind="unreadable", path=path) from error
            first, last = sources[0], sources[-1]
            if (first.height, first.width) != (last.height, last.width):
                raise DataError(f"{path} is {last.width}x{last.height} (width x height) but {paths[0]} is "
                                f"{first.width}x{first.height}; windows need files of one size", kind="size", path=path)
        yield Raster(sources, os.fspath(paths[0]))


@contextlib.contextmanager
def _unplaced_is_fine(module) -> Iterator[None]:
    """Pictures without a place on earth are no reason for a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", module.errors.NotGeoreferencedWarning)
        yield


def _place(source) -> dict[str, Any]:
    """Where a dataset lies, as arguments for a new one."""
    gcps, system = source.gcps
    if gcps:
        return {"gcps": gcps, "crs": system}
    return {"crs": source.crs, **({} if source.transform.is_identity else {"transform": source.transform})}


@contextlib.contextmanager
def raster_writer(path: str | os.PathLike, like: Any, size: tuple[int, int], dtype: Any, *, count: int = 1,
                  palette: np.ndarray | None = None) -> Iterator[Any]:
    """A GeoTIFF file to write windows to in the body, as `write(window)` of rasterio; it gets its name when complete.

    Args:
        path: of the result.
        like: a dataset of rasterio whose place the result has.
        size: (rows, columns).
        dtype: of samples.
        count: of bands.
        palette: (K, 3) uint8 RGB of uint8 labels, for viewers.
    Raises:
        WriteError: the disk is full or the folder cannot be written.
    """
    module, path = rasterio(f"{path}: writing a GeoTIFF"), pathlib.Path(path)
    draft = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    options = {"driver": "GTiff", "height": size[0], "width": size[1], "count": count, "dtype": np.dtype(dtype).name,
               "compress": "deflate", "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "BIGTIFF": "IF_SAFER"}
    try:
        drop_drafts(path.parent, path.name)
        with runtime_signals.temporary_file(draft):
            with _unplaced_is_fine(module), module.open(draft, "w", **options, **_place(like)) as file:
                if like.rpcs:
                    file.rpcs = like.rpcs
                if palette is not None and np.dtype(dtype) == np.uint8 and count == 1:
                    file.write_colormap(1, {k: (*map(int, colour), 255) for k, colour in enumerate(palette[:256])})
                yield file
            os.replace(draft, path)
    except (OSError, module.errors.RasterioError) as error:
        raise WriteError(f"{path}: cannot be written ({error}); free disk space or allow writing there. What was there "
                         "before is untouched") from error


def write_raster(path: str | os.PathLike, array: np.ndarray, like: str | os.PathLike,
                 palette: np.ndarray | None = None) -> None:
    """Write (H, W) or (K, H, W) as a GeoTIFF at the place of the picture file `like`; errors as `raster_writer`.

    Raises:
        DataError: `like` has another size as it is stored (it is turned by its EXIF orientation).
    """
    bands = array if array.ndim == 3 else array[None]
    with opened_raster([like]) as raster:
        if raster.size != bands.shape[1:]:
            raise DataError(f"{like}: is turned when shown, so it has no place; write a .png", path=like)
        with raster_writer(path, raster.sources[0], raster.size, bands.dtype, count=len(bands),
                           palette=palette) as file:
            file.write(bands)

