"""Decode a large picture in strips of rows, so that 10,000 x 10,000 pixels take some megabytes instead of hundreds.

A PNG file is one zlib stream of rows, each stored as differences to the row above. The stream is inflated piece by
piece; a strip of its rows becomes a small PNG file of its own, behind the last decoded row of the strip before, and
OpenCV decodes that. A TIFF file is strips already: some of them become a small TIFF file. The pixels are those of
`read_image`, which keeps two copies of the whole picture (OpenCV does). Other formats, TIFF files in tiles, and all but
8-bit grey or RGB samples are decoded whole.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Iterator, NamedTuple

import cv2
import numpy as np
from PIL import Image

from jseg.data.io import imdecode, read_image
from jseg.errors import DataError

__all__ = ["Strips", "decode", "needs"]

STRIP_PX = 1 << 20  # pixels decoded at once; smaller pictures are decoded whole
# pixels of a picture in strips, whose mask takes a byte per pixel; published ones have up to 20,000²
MOST_PX = 1 << 29
MOST_WIDTH = 1 << 24
_MAGIC = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 6: 4}  # of PNG's colour types without a palette
_WHOLE = (b"acTL", b"eXIf", b"tRNS")  # animations, turned pictures, transparent colours: `read_image` knows what to do
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}  # magic and byte order
# and defaults
_TIFF_TAGS = {256: 0, 257: 0, 258: 1, 259: 1, 262: 0, 273: 0, 274: 1, 277: 1, 278: 0, 279: 0, 284: 1, 317: 1,
              322: 0, 339: 1}
_COMPRESSIONS = (1, 5, 8, 32773, 32946)  # none, LZW, deflate, packed bits, old deflate: strips that stand alone
_AGAIN = "copy or download it again"


class Strips(NamedTuple):
    """A picture: height and width in pixels, and an iterator over its rows as (rows,
    W, 3) uint8 BGR strips, from top to bottom.

    Iterating raises a DataError where the file is damaged.
    """

    height: int
    width: int
    strips: Iterator[np.ndarray]

    @classmethod
    def read(cls, data: bytes, name: str) -> "Strips":
        """Open the bytes of a picture; `name` is for messages.

        Raises:
            DataError: not a picture; other damage is found while iterating.
        """
        layout = _Png.of(data) or _Tiff.of(data)
        if layout is not None and (layout.height * layout.width > MOST_PX or layout.width > MOST_WIDTH):
            raise DataError(f"{name}: a picture of {layout.width}x{layout.height} (width x height); accepted are up "
                            f"to {MOST_PX} pixels: cut it into "
                            "smaller files first")
        if layout is not None and layout.height * layout.width > STRIP_PX:
            return cls(layout.height, layout.width, layout.strips(data, name))
        img = decode(read_image, data, name)
        return cls(*img.shape[:2], iter((img,)))


def needs(head: bytes, size: int) -> tuple[int, int]:
    """Estimate a picture's pixels and the bytes that decoding it takes beyond its file.

    Args:
        head: the first bytes of the file, at least its header.
        size: of the file in bytes. A TIFF file whose directory lies elsewhere is taken for one of `size` pixels in
            strips.
    """
    layout = _Png.of(head) or _Tiff.of(head)
    if layout is not None:
        return layout.height * layout.width, 32 * STRIP_PX
    if head[:4] in _TIFF:
        return size, 32 * STRIP_PX
    try:
        with Image.open(io.BytesIO(head)) as picture:
            pixels = picture.size[0] * picture.size[1]
        return pixels, 6 * pixels  # OpenCV holds two copies
    except Exception:  # damaged, or of a rare kind: whoever decodes it says so
        return size, 32 * STRIP_PX


def decode(reader, data: bytes, name: str) -> np.ndarray:
    """Decode bytes; a DataError of the decoder names the file instead of "<n bytes>"."""
    try:
        return reader(data)
    except DataError as error:
        raise DataError(str(error).replace(f"<{len(data)} bytes>", name, 1)) from error.__cause__


# ---- PNG -------------------------------------------------------------------------------------------------------------


class _Png(NamedTuple):
    """What the header of an 8-bit PNG file says: size in pixels and colour type."""

    height: int
    width: int
    color: int

    @classmethod
    def of(cls, data: bytes) -> "_Png | None":
        """Read the header; None for every file that must be decoded whole."""
        if data[:8] != _MAGIC or data[12:16] != b"IHDR" or len(data) < 33:
            return None
        width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
        if depth != 8 or color not in _CHANNELS or interlaced or not width or not height:
            return None
        at = 33
        while data[at + 4:at + 8] not in (b"", b"IDAT"):
            if data[at + 4:at + 8] in _WHOLE:
                return None
            at += 12 + int.from_bytes(data[at:at + 4], "big")
        return cls(height, width, color)

    def strips(self, data: bytes, name: str) -> Iterator[np.ndarray]:
        """Yield the rows; see Strips."""
        channels = _CHANNELS[self.color]
        stride = 1 + self.width * channels  # bytes of a stored row: its filter, then the differences
        rows = max(STRIP_PX // self.width, 1)
        done, above = 0, b""
        try:
            for raw in _inflated(_pieces(data), rows * stride):
                count = min(len(raw) // stride, self.height - done)
                if not count:
                    break
                strip = self._decoded(above + raw[:count * stride], name)[1 if above else 0:]
                done += count
                above = b"\0" + (strip[-1] if channels == 1 else strip[-1][:, [2, 1, 0, 3][:channels]]).tobytes()
                yield strip if channels == 3 else cv2.cvtColor(strip, cv2.COLOR_GRAY2BGR if channels == 1
                                                               else cv2.COLOR_BGRA2BGR)
        except zlib.error as error:
            raise DataError(
                f"{name}: truncated or damaged ({error}, after row {done} of {self.height}); {_AGAIN}") from error
        if done < self.height:
            raise DataError(f"{name}: truncated: it holds {done} of {self.height} rows; {_AGAIN}")

    def _decoded(self, raw: bytes, name: str) -> np.ndarray:
        """Decode stored rows as a picture of their own: (rows, W[, channels]) uint8."""
        head = struct.pack(">IIBBBBB", self.width, len(raw) // (1 + self.width * _CHANNELS[self.color]), 8,
                           self.color, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(raw, 0)), (b"IEND", b""))
        file = b"".join((_MAGIC, *(part for kind, content in chunks for part in _chunk(kind, content))))
        return _by_opencv(file, cv2.IMREAD_UNCHANGED, name)


def _by_opencv(file: bytes, flags: int, name: str) -> np.ndarray:
    strip = imdecode(file, flags)
    if strip is None:
        raise DataError(f"{name}: truncated or damaged (its rows cannot be decoded); {_AGAIN}")
    return strip


def _pieces(data: bytes) -> Iterator[bytes]:
    """The compressed bytes of all IDAT chunks, in pieces; zlib.error if the file ends early or a checksum is wrong."""
    at = 33
    while data[at + 4:at + 8] != b"IEND":
        size = int.from_bytes(data[at:at + 4], "big")
        if at + 12 + size > len(data):
            raise zlib.error("the file ends early")
        if data[at + 4:at + 8] == b"IDAT":
            chunk = memoryview(data)[at + 4:at + 8 + size]
            if zlib.crc32(chunk) != int.from_bytes(data[at + 8 + size:at + 12 + size], "big"):
                raise zlib.error("a checksum is wrong")
            for start in range(4, len(chunk), 1 << 16):
                yield bytes(chunk[start:start + (1 << 16)])
        at += 12 + size


def _inflated(pieces: Iterator[bytes], step: int) -> Iterator[bytes]:
    """Inflate a zlib stream into blocks of `step` bytes; the last may be shorter."""
    stream, block = zlib.decompressobj(), bytearray()
    for piece in pieces:
        while piece or len(block) == step:
            if len(block) == step:
                yield bytes(block)
                block = bytearray()
            block += stream.decompress(piece, step - len(block))
            piece = stream.unconsumed_tail
    while block:
        yield bytes(block)
        block = bytearray(stream.decompress(b"", step))


def _chunk(kind: bytes, content: bytes) -> tuple[bytes, ...]:
    return struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


# ---- TIFF ------------------------------------------------------------------------------------------------------------


class _Tiff(NamedTuple):
    """What the directory of an 8-bit RGB TIFF file in strips says; offsets and sizes in bytes."""

    height: int
    width: int
    rows: int  # of a strip
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    compression: int
    predictor: int

    @classmethod
    def of(cls, data: bytes) -> "_Tiff | None":
        """Read the first directory; None for every file that must be decoded whole."""
        order = _TIFF.get(data[:4])
        try:
            tags = _tiff_tags(data, order) if order else None
            if tags is None:
                return None
            (width,), (height,), (compression,) = tags[256], tags[257], tags[259]
            (predictor,), (rows,) = tags[317], tags[278]
        except (struct.error, KeyError, ValueError):
            return None
        # bits, RGB, upright, samples, together, no tiles
        wanted = {258: (8, 8, 8), 262: (2,), 274: (1,), 277: (3,), 284: (1,), 322: (0,)}
        if any(tags[tag] != value for tag, value in wanted.items()) or set(tags[339]) != {1}:
            return None
        rows = min(rows or height, height)
        if (compression not in _COMPRESSIONS or not rows or not width or len(tags[273]) != -(-height // rows)
            or len(tags[279]) != len(tags[273])):
            return None
        if compression != 1 and rows * width > 4 * STRIP_PX:  # one piece, so to say
            return None
        return cls(height, width, rows, tags[273], tags[279], compression, predictor)

    def strips(self, data: bytes, name: str) -> Iterator[np.ndarray]:
        """Yield the rows; see Strips."""
        if any(offset + size > len(data) for offset, size in zip(self.offsets, self.sizes)):
            raise DataError(f"{name}: truncated: its strips end beyond its {len(data)} bytes; {_AGAIN}")
        together = max(STRIP_PX // (self.rows * self.width), 1)
        for first in range(0, len(self.offsets), together):
            count = min(together, len(self.offsets) - first)
            height = min(count * self.rows, self.height - first * self.rows)
            if self.compression != 1:
                yield _by_opencv(self._file(data, first, count, height), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, name)
                continue
            raw = b"".join(data[offset:offset + size]
                           for offset, size in list(zip(self.offsets, self.sizes))[first:first + count])
            if len(raw) < height * self.width * 3:
                raise DataError(f"{name}: truncated or damaged (a strip lacks rows); {_AGAIN}")
            yield np.frombuffer(raw, np.uint8, height * self.width * 3).reshape(height, self.width, 3)[..., ::-1]

    def _file(self, data: bytes, first: int, count: int, height: int) -> bytes:
        """Some strips as a TIFF file of their own."""
        sizes = self.sizes[first:first + count]
        body = b"".join(data[offset:offset + size] for offset, size in zip(self.offsets[first:first + count], sizes))
        body += b"\0" * (len(body) % 2)
        starts = [8 + sum(sizes[:i]) for i in range(count)]
        tags = {256: (self.width,), 257: (height,), 258: (8, 8, 8), 259: (self.compression,), 262: (2,),
                273: starts, 277: (3,), 278: (self.rows,), 279: sizes, 284: (1,), 317: (self.predictor,)}
        far = 8 + len(body) + 2 + 12 * len(tags) + 4  # where values go that do not fit into an entry
        entries, values = b"", b""
        for tag, numbers in tags.items():
            packed = struct.pack(f"<{len(numbers)}I", *numbers)
            entries += struct.pack("<HHI", tag, 4, len(numbers))
            entries += packed if len(packed) == 4 else struct.pack("<I", far + len(values))
            values += packed if len(packed) > 4 else b""
        return (struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries
                + b"\0\0\0\0" + values)


def _tiff_tags(data: bytes, order: str) -> dict[int, tuple[int, ...]]:
    """The numbers of the tags we look at, or their defaults; struct.error or KeyError for what is no plain TIFF."""
    start, = struct.unpack_from(order + "I", data, 4)
    count, = struct.unpack_from(order + "H", data, start)
    tags = {tag: (default,) for tag, default in _TIFF_TAGS.items()}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, at)
        if tag in tags:
            letter, size = {3: ("H", 2), 4: ("I", 4)}[kind]
            place = at + 8 if length * size <= 4 else struct.unpack_from(order + "I", data, at + 8)[0]
            tags[tag] = struct.unpack_from(f"{order}{length}{letter}", data, place)
    return tags
