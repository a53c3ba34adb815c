"""What a picture file is, before anything of it is decoded: its format, size and samples, and whether decoding it stays
in bounds.

A file of some kilobytes can describe a picture of gigabytes. The bound is on pixels, 2^28 (16,384 x 16,384) unless the
environment variable
JSEG_MAX_PIXELS says otherwise, and on decoded bytes, four for each of these pixels: 1 GiB. Reading an allowed picture
takes at most `PEAK_RATIO` times its decoded bytes beyond its file.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Iterator, NamedTuple

from jseg.data.decode import opened, picture_kind
from jseg.data.jpeg import JpegLayout
from jseg.data.tiff import TiffLayout
from jseg.errors import ConfigError, DataError

__all__ = [
    "MAX_PIXELS_VARIABLE",
    "PEAK_RATIO",
    "PictureHeader",
    "check_size",
    "foreign_word",
    "max_file_bytes",
    "max_pixels",
    "pixel_limit",
]

MAX_PIXELS_VARIABLE = "JSEG_MAX_PIXELS"
PEAK_RATIO = 7  # measured: JPEG 2000 6.5, WebP as a mask 4.6, all others at most 3.4
_DEFAULT_PIXELS, _MOST_PIXELS = 1 << 28, 1 << 30  # OpenCV's own limit is the latter
_BYTES_PER_PIXEL = 4
_METADATA_BYTES = 1 << 28
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_MODE_BITS = {"1": 1, "I": 32, "F": 32}

_FOREIGN = ((b"\x93NUMPY", "a NumPy array (.npy); pictures and masks are picture files: save a mask as 8-bit grey PNG"),
            (b"\x89HDF", "an HDF5 file; export its pictures as PNG or TIFF"),
            (b"PK\x03\x04", "a ZIP archive (or .npz); unpack it, and save arrays as PNG"),
            (b"\x1f\x8b", "a gzip archive; unpack it"),
            (b"%PDF", "a PDF document; export its pages as PNG"),
            (b"MATLAB 5.0", "a MATLAB file; save the matrix as 8-bit grey PNG"),
            (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with 'git lfs pull'"),
            (b"\x00\x05\x16\x07", "what macOS notes beside a file (._name), not the picture; delete it"),
            (b"<!doctype html", "a web page: the download went wrong; download it again"),
            (b"<html", "a web page: the download went wrong; download it again"),
            (b"<?xml", "an XML text; pictures and masks are picture files"),
            (b"<svg", "an SVG drawing; export it as PNG"))


class PictureHeader(NamedTuple):
    """What a file says of its picture.

    Attributes:
        kind: see `picture_kind`.
        width, height: in pixels, as stored; 0 where the header cannot be read.
        channels: samples of a pixel.
        bits: of a sample.
        jpeg, tiff: the layout of such a file.
    """

    kind: str
    width: int = 0
    height: int = 0
    channels: int = 1
    bits: int = 8
    jpeg: JpegLayout | None = None
    tiff: TiffLayout | None = None

    @classmethod
    def of(cls, data: bytes) -> "PictureHeader":
        """Read the header of a picture file; damage is left to the decoder, which names it better.

        Raises:
            the exceptions of Pillow, for a format that only Pillow knows.
        """
        kind = picture_kind(data)
        if kind == "jpeg":
            jpeg = JpegLayout.of(data)
            return cls(kind, jpeg.width, jpeg.height, jpeg.channels, jpeg.bits, jpeg=jpeg)
        if kind == "tiff":
            tiff = TiffLayout.of(data)
            return (
                cls(kind) if tiff is None else cls(kind, tiff.size[1], tiff.size[0], tiff.bands, tiff.bits, tiff=tiff)
            )
        if kind == "png":
            width, height, bits, color = struct.unpack(">IIBB", data[16:26].ljust(10, b"\0"))
            return cls(kind, width, height, _PNG_CHANNELS.get(color, 4), bits)
        if kind == "webp":
            return cls(kind, *_webp_size(data), channels=4)
        with opened(data) as picture:
            bits = _MODE_BITS.get(picture.mode, 16 if picture.mode.startswith("I;16") else 8)
            return cls(kind, *picture.size, len(picture.getbands()), bits)

    @property
    def decoded_bytes(self) -> int:
        """Of the picture in memory: three channels, or as many as are stored, of whole bytes."""
        return self.width * self.height * max(3, self.channels) * max(1, -(-self.bits // 8))


def max_pixels() -> int:
    """How many pixels a picture may have.

    Raises:
        ConfigError: JSEG_MAX_PIXELS is no number from 1 to 2^30.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if not text:
        return _DEFAULT_PIXELS
    if not (text.isascii() and text.isdigit() and len(text) < 12 and 1 <= int(text) <= _MOST_PIXELS):
        raise ConfigError(
            f"{MAX_PIXELS_VARIABLE} (--max-pixels) is {text!r}; accepted: a whole number of pixels from 1 to"
            f" {_MOST_PIXELS}"
        )
    return int(text)


@contextlib.contextmanager
def pixel_limit(pixels: int | None) -> Iterator[None]:
    """Let pictures have up to so many pixels in the body, worker processes included; None leaves the limit as it is.

    Raises:
        ConfigError: as `max_pixels`, before the body.
    """
    before = os.environ.get(MAX_PIXELS_VARIABLE)
    try:
        if pixels is not None:
            os.environ[MAX_PIXELS_VARIABLE] = str(pixels)
        max_pixels()
        yield
    finally:
        if pixels is not None:
            os.environ.pop(MAX_PIXELS_VARIABLE)
            os.environ.update({} if before is None else {MAX_PIXELS_VARIABLE: before})


def max_file_bytes() -> int:
    """How long a picture file may be: its pixels without any compression, and metadata."""
    return _BYTES_PER_PIXEL * max_pixels() + _METADATA_BYTES


def check_size(header: PictureHeader, name: str) -> None:
    """Raise a DataError that names the limit and how to raise it, where decoding would go beyond `max_pixels`."""
    most = max_pixels()
    pixels = header.width * header.height
    tile = header.tiff.tile_pixels if header.tiff else 0
    if pixels <= most and header.decoded_bytes <= _BYTES_PER_PIXEL * most and tile <= max(most, 1 << 24):
        return
    if tile > most:
        raise DataError(
            f"{name}: the TIFF file has tiles of {tile:,} pixels; at most {most:,} are read; save it with tiles of 512"
            " x 512",
            kind="limit",
            path=name,
        )
    needed = max(pixels, -(-header.decoded_bytes // _BYTES_PER_PIXEL))
    cure = (f"raise the limit if it is meant to be so large: --max-pixels {needed} or {MAX_PIXELS_VARIABLE}={needed}"
            if needed <= _MOST_PIXELS else "that is more than the decoders take at all")
    raise DataError(
        f"{name}: the picture has {header.width:,} x {header.height:,} pixels and {header.decoded_bytes / 1e9:.1f} GB"
        f" when decoded; at most {most:,} pixels and {_BYTES_PER_PIXEL * most / 1e9:.1f} GB are read; cut it into"
        f" tiles, or {cure}",
        kind="limit",
        path=name,
    )


def foreign_word(data: bytes) -> str:
    """What a file that is no picture is instead, and the cure; empty if unknown."""
    head = data[:64].lstrip()
    for start, words in _FOREIGN:
        if head.startswith(start) or head.lower().startswith(start):
            return words
    return ""


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) by the first chunk; zeros where it is cut or unknown."""
    chunk, body = data[12:16], data[20:30].ljust(10, b"\0")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return 0, 0
