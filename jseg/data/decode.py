"""The decoders that pictures go through: OpenCV without its own lines on stderr, Pillow for its raster formats only."""

from __future__ import annotations

import contextlib
import io
import threading
from typing import Iterator

import cv2
import numpy as np
from PIL import Image

__all__ = ["imdecode", "opened", "picture_kind", "quiet_opencv", "upright"]

_EXIF_ORIENTATION = 0x0112
# No format that runs a program (EPS), calls a loader of the system (WMF) or holds no pixels.
_PILLOW_FORMATS = (
    "AVIF",
    "BMP",
    "DDS",
    "DIB",
    "GIF",
    "ICO",
    "IM",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PCX",
    "PNG",
    "PPM",
    "PSD",
    "QOI",
    "SGI",
    "SUN",
    "TGA",
    "TIFF",
    "WEBP",
    "XBM",
    "XPM",
)
_OF_KIND = {
    "png": ("PNG",),
    "jpeg": ("JPEG", "MPO"),
    "gif": ("GIF",),
    "tiff": ("TIFF",),
    "webp": ("WEBP",),
    "bmp": ("BMP",),
}
_MAGIC = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"GIF8": "gif",
    b"BM": "bmp",
}
_pillow_limit = threading.Lock()


def picture_kind(data: bytes) -> str:
    """Name the format by its first bytes: jpeg, png, tiff, gif, bmp, webp or other."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((kind for start, kind in _MAGIC.items() if data.startswith(start)), "other")


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's own lines off stderr in the body: our errors say all."""
    set_level = getattr(cv2, "setLogLevel", None) or getattr(
        getattr(getattr(cv2, "utils", None), "logging", None), "setLogLevel", None
    )
    level = set_level(0) if set_level else None
    try:
        yield
    finally:
        if set_level:
            set_level(level)


def imdecode(data: bytes, flags: int) -> np.ndarray | None:
    """OpenCV's decoder, quiet; None where it makes no picture."""
    with quiet_opencv():
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def opened(data: bytes) -> Image.Image:
    """Open with Pillow, which reads the header only; its own limit on pixels is lifted, `jseg.data.header` has looked
    before.

    Raises:
        PIL.UnidentifiedImageError, OSError, SyntaxError, ValueError and others: not a picture that Pillow knows.
    """
    formats = _OF_KIND.get(picture_kind(data))
    if formats is None:
        Image.init()
        formats = tuple(name for name in _PILLOW_FORMATS if name in Image.OPEN)
    with _pillow_limit:  # the limit is a variable of the module
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def upright(img: np.ndarray, data: bytes) -> np.ndarray:
    """Turn a decoded picture (H, W, 3) by the EXIF orientation in its file, where the decoder did not."""
    with opened(data) as picture:
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in (5, 6, 7, 8):
        img = img.transpose(1, 0, 2)  # (W, H, 3)
    if orientation in (3, 4, 7, 8):
        img = img[::-1]
    if orientation in (2, 3, 6, 7):
        img = img[:, ::-1]
    return np.ascontiguousarray(img)
