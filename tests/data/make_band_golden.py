"""Write tests/data/band_golden: small TIFF files of rasterio (GDAL) and tifffile, and what GDAL reads from them.

Needs rasterio and tifffile. Versions of the last run: rasterio 1.4.4, tifffile 2026.3.3.
"""

import pathlib

import numpy as np
import rasterio
import tifffile
from rasterio.transform import from_origin

HERE = pathlib.Path(__file__).parent / "band_golden"
FILES = {  # name: (type, bands, options of GDAL)
    "float_predictor3_tiles": ("float32", 5, {"compress": "deflate", "predictor": 3, "tiled": True, "blockxsize": 16,
                                              "blockysize": 16}),
    "float_big_endian_planes": ("float32", 2, {"interleave": "band", "ENDIANNESS": "BIG"}),
    "uint16_lzw_predictor2": ("uint16", 6, {"compress": "lzw", "predictor": 2}),
    "int16_bigtiff": ("int16", 4, {"compress": "deflate", "BIGTIFF": "YES"}),
}


def main() -> None:
    """Write all files and expected.npz."""
    rng, expected = np.random.default_rng(0), {}
    for name, (dtype, bands, options) in FILES.items():
        values = (rng.normal(0, 900, (bands, 19, 23)) if dtype != "uint16" else rng.integers(0, 65536, (bands, 19, 23)))
        with rasterio.open(HERE / f"{name}.tif", "w", driver="GTiff", height=19, width=23, count=bands, dtype=dtype,
                           crs="EPSG:32632", transform=from_origin(500000, 5e6, 10, 10), **options) as file:
            file.write(values.astype(dtype))
        with rasterio.open(HERE / f"{name}.tif") as file:
            expected[name] = np.moveaxis(file.read(), 0, 2)
    pages = rng.integers(0, 65536, (7, 11, 13)).astype(np.uint16)
    tifffile.imwrite(HERE / "pages.tif", pages, photometric="minisblack")
    expected["pages"] = np.moveaxis(tifffile.imread(HERE / "pages.tif"), 0, 2)
    tifffile.imwrite(HERE / "imagej.tif", pages, imagej=True)
    expected["imagej"] = np.moveaxis(tifffile.imread(HERE / "imagej.tif"), 0, 2)
    np.savez_compressed(HERE / "expected.npz", **expected)


if __name__ == "__main__":
    main()
