"""Is a JPEG file whole? Its markers are followed, and its decoder must not run out of data before the last block.

libjpeg fills what is missing with grey and only counts a warning, which neither OpenCV nor Pillow passes on, when an
end mark stands in the middle of the data. Without an end mark it has to wait for more instead, and that can be seen:

- a file of one scan (nearly all) is decoded by OpenCV without its end mark: no picture comes out where blocks are
  missing. OpenCV before 4.11 puts an end mark there by itself; with it, Pillow's decoder gets the file first, and must
  come to the last row;
- a file of several scans (progressive) is fed to Pillow's decoder, which holds bytes back as long as it is inside a
  block, and must name every bit of every coefficient in its scans.

Missing bytes are detected from 16 on. Bytes altered in the middle decode without complaint in every decoder.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from jseg.data.decode import imdecode, opened, upright

__all__ = ["JpegLayout", "decode_whole"]

_FILLER = bytes(16)  # a decoder reads ahead by 8 bytes at most
_END, _SCAN = 0xD9, 0xDA
_END_MARK = re.compile(b"\xff\xd9")
_NO_LENGTH = (0x01, *range(0xD0, 0xD8))
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)


class JpegLayout(NamedTuple):
    """What the markers say.

    Attributes:
        width, height: in pixels; 0 where the file has no frame.
        bits: of a sample.
        channels: 1, 3 or 4.
        one_scan: all channels in one scan.
        end: where the first picture's end mark stands; -1 without one.
        unsent: channels whose coefficients were not all sent to the last bit.
    """

    width: int = 0
    height: int = 0
    bits: int = 8
    channels: int = 0
    one_scan: bool = True
    end: int = -1
    unsent: int = 0

    @classmethod
    def of(cls, data: bytes) -> "JpegLayout":
        """Follow the markers of a JPEG file; what lies in application segments (a thumbnail) is skipped."""
        found, bit_left, progressive, marks = cls(), {}, False, None
        at = 2
        while at + 2 <= len(data) and data[at] == 0xFF:
            marker = data[at + 1]
            if marker == _END:
                return found._replace(end=at, one_scan=False, unsent=sum(bool(low.any()) for low in bit_left.values()))
            if marker == 0xFF or marker in _NO_LENGTH:
                at += 1 if marker == 0xFF else 2
                continue
            body = data[at + 4:at + 2 + int.from_bytes(data[at + 2:at + 4], "big")]
            at += 4 + len(body)
            if marker in _FRAMES and len(body) >= 6 and not found.channels:
                found = cls(int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"), body[0], body[5])
                progressive = marker in _PROGRESSIVE
                bit_left = {channel: np.full(64, -1) for channel in body[6:6 + 3 * found.channels:3]}
            if marker != _SCAN:
                continue
            if not progressive and body[:1] == bytes([found.channels]):
                end = _END_MARK.search(
                    data, at
                )  # within a scan 0xFF is followed by 0 or a restart; `find` is slower on such data
                return found._replace(end=end.start() if end else -1)
            _note_scan(bit_left, body, progressive)
            marks = _marks_after(data, at) if marks is None else marks
            later = marks[np.searchsorted(marks, at):]
            if not len(later):
                break
            at = int(later[0])
        return found._replace(one_scan=False)


def _note_scan(bit_left: dict[int, np.ndarray], body: bytes, progressive: bool) -> None:
    """Note for each coefficient of the channels of a scan down to which bit it has been sent."""
    count = body[0] if body else 0
    tail = body[1 + 2 * count:4 + 2 * count]
    if len(tail) < 3:
        return
    first, last, low = (tail[0], tail[1], tail[2] & 15) if progressive else (0, 63, 0)
    for channel in body[1:1 + 2 * count:2]:
        if channel in bit_left:
            bit_left[channel][first:last + 1] = low


def _marks_after(data: bytes, start: int) -> np.ndarray:
    """Places of all 0xFF after `start` that begin a marker if they lie in a scan."""
    content = np.frombuffer(data, np.uint8)[start:]
    places = np.flatnonzero(content[:-1] == 0xFF)
    following = content[places + 1]
    return places[(following != 0) & (following != 0xFF) & ((following < 0xD0) | (following > 0xD7))] + start


def decode_whole(data: bytes, layout: JpegLayout) -> tuple[np.ndarray | None, str]:
    """Decode a JPEG file unless something of it is missing.

    Returns:
        ((H, W, 3) uint8 BGR turned upright, "");
        (None, words) where data are missing; (None, "") where no decoder makes a picture of it.
    """
    if layout.end < 0:
        return None, f"it ends after {len(data)} bytes without its end mark"
    if layout.unsent:
        return (
            None,
            (
                f"it ends after {len(data)} bytes without the last scans of {layout.unsent} of its {layout.channels}"
                " channels"
            ),
        )
    if layout.one_scan and (_opencv_sees_cuts() or _ends_by_itself(data[:layout.end])):
        img = imdecode(b"".join((memoryview(data)[:layout.end], _FILLER)), cv2.IMREAD_COLOR)
        if img is not None:
            return img, ""
    complete, img = _fed_to_the_end(data[:layout.end])
    if complete is False:
        return None, f"its picture breaks off, though an end mark stands at byte {layout.end}"
    if img is None:
        return imdecode(data, cv2.IMREAD_COLOR) if complete else None, ""
    return upright(img, data), ""


@functools.cache
def _opencv_sees_cuts() -> bool:
    """Whether OpenCV makes no picture of a JPEG file whose blocks are not all there, as it does from 4.11 on."""
    whole = cv2.imencode(".jpg", np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))[1].tobytes()
    return imdecode(whole[:len(whole) // 2] + _FILLER, cv2.IMREAD_COLOR) is None


def _ends_by_itself(data: bytes) -> bool:
    """Whether Pillow's decoder comes to the last row of a file of one scan without its end mark."""
    try:
        used, fault = _decoder_of(data)[0].decode(data + _FILLER)
    except Exception:  # as below
        return False
    return used < 0 and not fault


def _decoder_of(data: bytes):
    """Pillow's decoder for a JPEG file, and the picture that it fills."""
    with opened(data) as picture:
        name, extents, _, options = picture.tile[0]
        decoder = Image._getdecoder(picture.mode, name, options, picture.decoderconfig)
        canvas = Image.new(picture.mode, picture.size)
        decoder.setimage(canvas.im, extents)
    return decoder, canvas


def _fed_to_the_end(data: bytes) -> tuple[bool | None, np.ndarray | None]:
    """Whether the decoder is between blocks after all data but the end mark, None where it breaks; and the picture,
    grey or RGB, as BGR.

    Inside a block it keeps the bytes that it has seen; after the last one it skips whatever comes, looking for a
    marker. Single bytes are fed, as a decoder inside a block may for once have used up all it got.
    """
    try:
        decoder, canvas = _decoder_of(data)
        kept = data
        for i, more in enumerate((_FILLER, *[b"\0"] * 8)):
            kept += more
            used, fault = decoder.decode(kept)
            if used < 0:
                return None, None
            kept = kept[used:]
            if kept and i:
                return False, None
        used, fault = decoder.decode(kept + b"\xff\xd9")
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError and more
        return None, None
    if used >= 0 or fault or canvas.mode not in ("RGB", "L"):
        return (True, None) if not fault else (None, None)
    return True, cv2.cvtColor(np.asarray(canvas), cv2.COLOR_RGB2BGR if canvas.mode == "RGB" else cv2.COLOR_GRAY2BGR)
