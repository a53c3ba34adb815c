"""TIFF files of 8- or 16-bit integers, read band by band: bands beside each other or apart, in strips or tiles, classic
or BigTIFF.

OpenCV hands anything but plain grey and RGB to libtiff's viewer, which takes planes of 16 bits for noise, three bands
that are not called RGB for one, and multiplies a fourth one into the others. Here each run of strips (or row of tiles)
becomes a small grey TIFF in memory, as wide as all its samples, which every release of libtiff decodes alike; bands are
then told apart, and differences (predictor 2) summed, in NumPy. Palette, YCbCr, CMYK and JPEG-compressed files are left
to the decoders.
"""

from __future__ import annotations

import struct
from typing import Callable, Iterator, NamedTuple

import cv2
import numpy as np

from jseg.data.decode import imdecode

__all__ = ["TiffLayout", "decode_bands", "decode_page", "tiff_pages"]

# bytes of a value by its type
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MOST_TAGS, _MOST_VALUES, _MOST_PAGES = 4096, 1 << 22, 4096
_NEXT = -1  # in the tags of a layout: where the next directory begins, 0 for none
_KIND = 254  # bit 0: a smaller copy, bit 2: a mask
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_PLACES, _BANDS, _STRIP_ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_PLACES, _TILE_BYTES, _EXTRA, _FORMAT = 322, 323, 324, 325, 338, 339
_COMPRESSIONS = (1, 5, 8, 32773, 32946)  # none, LZW, deflate, packed bits, old deflate: pieces that stand alone
_CHUNK_BYTES = 1 << 24  # decoded at once


class TiffLayout(NamedTuple):
    """What the first directory says.

    Attributes:
        order: "<" or ">".
        tags: number -> values, integers only.
    """

    order: str
    tags: dict[int, tuple[int, ...]]

    @classmethod
    def of(cls, data: bytes, at: int = 0) -> "TiffLayout | None":
        """Read the first directory, or the one that begins at `at`; None where it is not to be found."""
        order = {b"II": "<", b"MM": ">"}.get(data[:2])
        if order is None:
            return None
        try:
            big = struct.unpack_from(order + "H", data, 2)[0] == 43
            at = at or struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
            count = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
            first, step = at + (8 if big else 2), 20 if big else 12
            tags = {}
            for place in range(first, first + step * min(count, _MOST_TAGS), step):
                tag, kind = struct.unpack_from(order + "HH", data, place)
                values = _values(data, place + 4, order, kind, big)
                if values:
                    tags.setdefault(tag, values)
            after = data[first + step * count:][:8 if big else 4]
            tags[_NEXT] = (int.from_bytes(after, "little" if order == "<" else "big"),)
            return cls(order, tags)
        except struct.error:
            return None

    def first(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return self.tags.get(tag, (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.first(_HEIGHT), self.first(_WIDTH)

    @property
    def bands(self) -> int:
        """Samples of a pixel."""
        return self.first(_BANDS, 1)

    @property
    def bits(self) -> int:
        """Bits of a sample, the largest of all bands."""
        return max(self.tags.get(_BITS, (1,)))

    @property
    def has_floats(self) -> bool:
        """Whether the samples are floating-point numbers (or complex ones)."""
        return self.first(_FORMAT, 1) in (3, 5, 6)

    @property
    def has_alpha(self) -> bool:
        """Whether the last band is said to be opacity."""
        return self.tags.get(_EXTRA, (0,))[-1] in (1, 2)

    @property
    def tile_pixels(self) -> int:
        """Pixels of a tile, which may be larger than the picture; 0 where there are strips."""
        return self.first(_TILE_WIDTH) * self.first(_TILE_HEIGHT)

    @property
    def is_usual(self) -> bool:
        """Whether it is what OpenCV reads well and fast itself:
        8-bit RGB, bands beside each other, compressed strips.
        """
        return (self.first(_PHOTOMETRIC, -1) == 2 and self.bands == 3 and self.bits == 8 and self.first(_PLANAR, 1) == 1
                and not self.tile_pixels and _EXTRA not in self.tags and self.first(_COMPRESSION, 1) != 1)

    @property
    def is_plain(self) -> bool:
        """Whether `decode_bands` reads it: grey or RGB, unsigned, 8 or 16 bits, pieces that stand alone."""
        colour = self.first(_PHOTOMETRIC, -1)
        known = (
            colour in (1, 2)
            and set(self.tags.get(_BITS, (1,))) in ({8}, {16})
            and set(self.tags.get(_FORMAT, (1,))) == {1}
            and self.first(_COMPRESSION, 1) in _COMPRESSIONS
            and self.first(_PREDICTOR, 1) in (1, 2)
            and min(*self.size, self.bands) > 0
        )
        places, counts = self._pieces()
        return known and len(places) == len(counts) == self._planes * self._across * self._down

    @property
    def sample(self) -> np.dtype | None:
        """The type of all samples, in the byte order of the file; None for others than whole bytes of one type."""
        bits, formats = set(self.tags.get(_BITS, (1,))), set(self.tags.get(_FORMAT, (1,)))
        kind = {1: "u", 2: "i", 3: "f"}.get(next(iter(formats))) if len(formats) == len(bits) == 1 else None
        name = f"{kind}{self.bits // 8}"
        return np.dtype(self.order + name) if name in ("u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8") and (
            self.bits % 8 == 0) else None

    @property
    def is_stack(self) -> bool:
        """Whether `decode_page` reads it: any number of bands of one type, pieces that stand alone."""
        known = (self.sample is not None and self.first(_PHOTOMETRIC, 1) in (1, 2)
                 and self.first(_COMPRESSION, 1) in _COMPRESSIONS
                 and self.first(_PREDICTOR, 1) in ((1, 2, 3) if self.has_floats else (1, 2))
                 and min(*self.size, self.bands) > 0)
        places, counts = self._pieces()
        return known and len(places) == len(counts) == self._planes * self._across * self._down

    @property
    def _planes(self) -> int:
        return self.bands if self.first(_PLANAR, 1) == 2 else 1

    @property
    def _piece_size(self) -> tuple[int, int]:
        height, width = self.size
        if self.tile_pixels:
            return self.first(_TILE_HEIGHT), self.first(_TILE_WIDTH)
        return min(self.first(_STRIP_ROWS, height) or height, height), width

    @property
    def _across(self) -> int:
        return -(-self.size[1] // max(self._piece_size[1], 1))

    @property
    def _down(self) -> int:
        return -(-self.size[0] // max(self._piece_size[0], 1))

    def _pieces(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tags = (_TILE_PLACES, _TILE_BYTES) if self.tile_pixels else (_STRIP_PLACES, _STRIP_BYTES)
        return self.tags.get(tags[0], ()), self.tags.get(tags[1], ())


def _values(data: bytes, at: int, order: str, kind: int, big: bool) -> tuple[int, ...]:
    """The integers of a directory entry whose count stands at `at`; nothing for other types."""
    count = struct.unpack_from(order + ("Q" if big else "I"), data, at)[0]
    at += 8 if big else 4
    if kind not in _INTEGERS or not 0 < count <= _MOST_VALUES:
        return ()
    if count * _SIZES[kind] > (8 if big else 4):
        at = struct.unpack_from(order + ("Q" if big else "I"), data, at)[0]
    return struct.unpack_from(f"{order}{count}{_INTEGERS[kind]}", data, at)


def tiff_pages(data: bytes) -> list[TiffLayout]:
    """The directories of a file in their order, without smaller copies and masks."""
    found, seen, layout = [], set(), TiffLayout.of(data)
    while layout is not None and len(found) < _MOST_PAGES:
        if not layout.first(_KIND) & 5:
            found.append(layout)
        at = layout.first(_NEXT)
        if at in seen or not at:
            break
        seen.add(at)
        layout = TiffLayout.of(data, at)
    return found


def decode_page(data: bytes, layout: TiffLayout) -> np.ndarray | None:
    """Decode all bands of a page with `is_stack`: (H, W, bands) of the file's type; None where data are missing.

    The pieces are decompressed as bytes, which become numbers here.
    """
    sample, (height, width), planes = layout.sample, layout.size, layout._planes
    bands, (places, counts) = layout.bands // planes, layout._pieces()
    out = np.empty((height, width, layout.bands), sample.newbyteorder("="))
    tags = (_TILE_PLACES, _TILE_BYTES) if layout.tile_pixels else (_STRIP_PLACES, _STRIP_BYTES)
    size = layout._across * layout._down
    for plane in range(planes):
        own = slice(plane * size, (plane + 1) * size)
        pieces = layout._replace(tags={**layout.tags, _PLANAR: (1,), _BANDS: (bands * sample.itemsize,), _BITS: (8,),
                                       _FORMAT: (1,), tags[0]: places[own], tags[1]: counts[own]})
        row = 0
        for part in _parts(data, pieces, 0, lambda part: _numbers(part, sample, layout.first(_PREDICTOR, 1))):
            if part is None:
                return None
            out[row:row + len(part), :, plane * bands:(plane + 1) * bands] = part
            row += len(part)
    return out


def _numbers(part: np.ndarray, sample: np.dtype, predictor: int) -> np.ndarray:
    """Bytes (rows, across, width, bands * itemsize) -> numbers (rows, across, width, bands); differences are summed."""
    rows, across, width, length = part.shape
    bands = length // sample.itemsize
    if predictor == 3:  # bytes of one significance beside each other, highest first, as differences
        part = np.cumsum(part.reshape(rows, across, -1, bands), axis=2, dtype=np.uint8)
        part = part.reshape(rows, across, sample.itemsize, width * bands).transpose(0, 1, 3, 2)
        return np.ascontiguousarray(part).view(sample.newbyteorder(">")).reshape(rows, across, width, bands)
    part = np.ascontiguousarray(part)
    if predictor == 2:
        words = _native(part.view(sample.str[0] + f"u{sample.itemsize}"))
        return np.cumsum(words, axis=2, dtype=words.dtype).view(sample.newbyteorder("="))  # wraps around
    return part.view(sample)


def decode_bands(data: bytes, layout: TiffLayout) -> np.ndarray | None:
    """Decode the first bands of a plain TIFF file, at most three.

    Returns:
        (H, W, 1) or (H, W, 3) uint8 or uint16, the bands in the file's order; None where data are missing or damaged.
    """
    height, width = layout.size
    wanted = 3 if layout.bands >= 3 else 1
    planes = layout._planes
    out = np.empty((height, width, wanted), np.uint8 if layout.bits == 8 else np.uint16)
    for plane in range(min(planes, wanted)):
        row = 0
        for part in _parts(data, layout, plane):  # (rows, W, bands of a pixel here)
            if part is None:
                return None
            if planes > 1:
                out[row:row + len(part), :, plane] = part[..., 0]
            else:
                out[row:row + len(part)] = part[..., :wanted]
            row += len(part)
        if row != height:
            return None
    return out


def _parts(data: bytes, layout: TiffLayout, plane: int,
           change: Callable[[np.ndarray], np.ndarray] | None = None) -> Iterator[np.ndarray | None]:
    """Rows of one plane from top to bottom, (rows, W, bands), some pieces at once; None where none come out.

    `change` makes other numbers of the samples of some pieces, (rows, across, width of a piece, bands).
    """
    (height, width), (piece_height, piece_width) = layout.size, layout._piece_size
    bands = 1 if layout._planes > 1 else layout.bands
    places, counts = layout._pieces()
    tiled, across, down = bool(layout.tile_pixels), layout._across, layout._down
    sample_bytes = layout.bits // 8
    step = (
        1 if tiled else max(1, _CHUNK_BYTES // (piece_height * width * bands * sample_bytes))
    )  # rows of pieces at once
    for first in range(0, down, step):
        last = min(first + step, down)
        numbers = range((plane * down + first) * across, (plane * down + last) * across)
        rows = (last - first) * piece_height if tiled else min(last * piece_height, height) - first * piece_height
        pieces = [data[places[i]:places[i] + counts[i]] for i in numbers]
        if any(not counts[i] or len(piece) < counts[i] for i, piece in zip(numbers, pieces)):
            yield None
            return
        if layout.first(_COMPRESSION, 1) == 1 and layout.first(_FILL_ORDER, 1) == 1:
            part = _stored(layout, pieces, rows, (piece_height, piece_width * bands))
        else:
            part = _decoded(
                _grey_file(layout, pieces, (rows, across * piece_width * bands), (piece_height, piece_width * bands))
            )
        if part is None or part.size != rows * across * piece_width * bands:
            yield None
            return
        part = part.reshape(rows, across, piece_width, bands)
        if change is not None:
            part = change(part)
        elif layout.first(_PREDICTOR, 1) == 2:
            part = np.cumsum(part, axis=2, dtype=part.dtype)  # wraps around, as the differences did
        part = part.reshape(rows, across * piece_width, -1)
        yield part[:height - first * piece_height, :width]


def _stored(layout: TiffLayout, pieces: list[bytes], rows: int, piece_size: tuple[int, int]) -> np.ndarray | None:
    """Samples stored as they are, strips below each other or tiles beside each other; None where some are missing."""
    sample, (piece_rows, samples) = np.dtype(f"{layout.order}u{layout.bits // 8}"), piece_size
    length = piece_rows * samples * sample.itemsize
    if layout.tile_pixels:
        if min(map(len, pieces)) < length:
            return None
        tiles = [np.frombuffer(piece, sample, piece_rows * samples).reshape(piece_rows, samples) for piece in pieces]
        return _native(np.concatenate(tiles, axis=1))
    content = b"".join(piece[:length] for piece in pieces)
    return _native(np.frombuffer(content, sample)) if len(content) == rows * samples * sample.itemsize else None


def _decoded(file: bytes) -> np.ndarray | None:
    try:
        return imdecode(file, cv2.IMREAD_UNCHANGED)
    except cv2.error:  # wider than OpenCV allows, or a compression that it was built without
        return None


def _native(samples: np.ndarray) -> np.ndarray:
    return samples.astype(samples.dtype.newbyteorder("="), copy=False)


def _grey_file(layout: TiffLayout, pieces: list[bytes], size: tuple[int, int], piece_size: tuple[int, int]) -> bytes:
    """A small classic TIFF file with one band of `size` samples, made of these pieces as they are."""
    at, places = 8, []
    for piece in pieces:
        places.append(at)
        at += len(piece)
    lengths = tuple(map(len, pieces))
    tags = {
        _WIDTH: (size[1],),
        _HEIGHT: (size[0],),
        _BITS: (layout.bits,),
        _COMPRESSION: (layout.first(_COMPRESSION, 1),),
        _PHOTOMETRIC: (1,),
        _FILL_ORDER: (layout.first(_FILL_ORDER, 1),),
        _BANDS: (1,),
        _PLANAR: (1,),
        _FORMAT: (1,),
    }
    if layout.tile_pixels:
        tags.update({
            _TILE_WIDTH: (piece_size[1],),
            _TILE_HEIGHT: (piece_size[0],),
            _TILE_PLACES: tuple(places),
            _TILE_BYTES: lengths,
        })
    else:
        tags.update({_STRIP_PLACES: tuple(places), _STRIP_ROWS: (piece_size[0],), _STRIP_BYTES: lengths})
    order = layout.order
    start, outside, entries = at + at % 2, b"", []
    beyond = start + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            outside += packed
            packed = struct.pack(order + "I", beyond + len(outside) - len(packed))
        entries.append(struct.pack(order + "HHI", tag, 4, len(values)) + packed)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return b"".join([head, *pieces, b"\0" * (at % 2), struct.pack(order + "H", len(tags)), *entries, bytes(4), outside])
