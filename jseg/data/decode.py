"""The decoders that pictures go through: OpenCV without its own lines on stderr, Pillow for its raster formats only."""

from __future__ import annotations

import contextlib
import io
import threading
from typing import Callable, Iterator

import cv2
import numpy as np
from PIL import Image

__all__ = ["imdecode", "opened", "picture_kind", "quiet_opencv", "tell_of_decoding", "told_of_decoding", "upright"]

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
_quiet = threading.Lock()
_quiet_bodies: list[int] = []  # the log level before the first of the bodies that run now, in any thread, then theirs
_listener = threading.local()


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
    if not set_level:
        yield
        return
    with _quiet:
        _quiet_bodies.append(0 if _quiet_bodies else set_level(0))
    try:
        yield
    finally:
        with _quiet:
            if len(_quiet_bodies) == 1:
                set_level(_quiet_bodies[0])
                _quiet_bodies.clear()
            else:
                _quiet_bodies.pop()


@contextlib.contextmanager
def told_of_decoding(tell: Callable[[], None]) -> Iterator[None]:
    """Let `tell` be called in the body, in this thread, when a decoder is about to run that needs no interpreter."""
    _listener.tell = tell
    try:
        yield
    finally:
        del _listener.tell


def tell_of_decoding() -> None:
    """Call what `told_of_decoding` names, if anything: the next step of this thread is a decoder's."""
    tell = getattr(_listener, "tell", None)
    if tell is not None:
        tell()


def imdecode(data: bytes, flags: int) -> np.ndarray | None:
    """OpenCV's decoder, quiet; None where it makes no picture."""
    with quiet_opencv():
        content = np.frombuffer(data, np.uint8)
        tell_of_decoding()
        return cv2.imdecode(content, flags)


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
