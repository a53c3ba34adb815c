"""Hostile pictures and videos: huge sizes in a few bytes, tables that loop, missing parts, files that name other
files.
"""

from __future__ import annotations

import io
import pathlib
import struct
import zlib
from typing import Callable, Union

from PIL import Image

from fuzz_samples import photograph, samples, saved

__all__ = ["HOSTILE"]

Made = Union[bytes, Callable[[pathlib.Path], None]]  # the content, or what makes the file
MB = 1 << 20
PAGE = b"<html>404</html>" * 99


# ---- PNG -----------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int = 8, color: int = 0, *, raw: bytes | None = None, before: bytes = b"",
        after: bytes = b"", interlaced: int = 0,
        packed: bytes | None = None) -> bytes:
    """A PNG file of any header; `raw` are its filtered rows, by default zeros for a small picture."""
    if packed is None:
        packed = zlib.compress(raw if raw is not None else bytes(min(height * (1 + width * 4), 4 * MB)), 1)
    head = struct.pack(">IIBBBBB", width % 2 ** 32, height % 2 ** 32, depth, color, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", packed) + after + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """`count` zeros as zlib data, made piece by piece."""
    press = zlib.compressobj(1)
    return b"".join([press.compress(bytes(MB)) for _ in range(count // MB)] + [press.flush()])


def _png() -> dict[str, Made]:
    good = samples("png")[0][1]
    bomb = zlib.compress(bytes(100 * MB), 9)
    cases: dict[str, Made] = {f"{width} x {height}, {depth} bits, type {color}": png(width, height, depth, color,
        raw=bytes(9)) for width, height, depth, color in (
        (2 ** 31 - 1, 2 ** 31 - 1, 8, 2), (2 ** 31 - 1, 1, 8, 2), (1, 2 ** 31 - 1, 8, 2), (-1, -1, 8, 2), (0, 5, 8, 2),
        (5, 0, 8, 2), (60000, 60000, 1, 0), (60000, 60000, 8, 6),
        (30000, 30000, 16, 6), (5, 5, 3, 2), (5, 5, 8, 5), (5, 5, 64, 0), (5, 5, 8, 3))}
    cases |= {
        "empty": b"", "page": PAGE, "signature alone": good[:8], "cut in the header": good[:20],
        "cut in the pixels": good[:-300], "cut before the end": good[:-12],
        "wrong checksum": good[:40] + bytes([good[40] ^ 1]) + good[41:], "one bit, 32000 x 32000": png(32000, 32000, 1,
            0, packed=zeros(122 * MB)), "interlaced, 32000 x 32000": png(
            32000, 32000, 8, 0, raw=bytes(9), interlaced=1), "profile bomb": png(4, 4, before=chunk(b"iCCP",
                b"x\0\0" + bomb), packed=b"\0"), "text bomb": png(4, 4, before=chunk(b"zTXt", b"x\0\0" + bomb) * 20,
                                                                  packed=b"\0"),
        "text of a book": png(4, 4, before=chunk(b"iTXt", b"x\0\1\0\0\0" + bomb) * 8, packed=b"\0"),
        "pixels bomb": png(4, 4, packed=zeros(600 * MB)[:-9]), "no pixels": png(4, 4, packed=b""),
        "too few rows": png(400, 400, raw=bytes(500)), "palette missing": png(4, 4, 8, 3), "palette of 257": png(4, 4,
            8, 3, before=chunk(b"PLTE", bytes(771)), packed=b"\0"),
        "chunk of 2^31": good[:33] + struct.pack(">I", 2 ** 31) + b"tEXt" + bytes(50),
        "header twice": good[:33] + good[8:33] + good[33:60], "pixels before the header": good[:8] + good[33:90],
        "a billion frames": png(4, 4, before=chunk(b"acTL", struct.pack(">II", 10 ** 9, 0)), packed=b"\0"),
        "100,000 chunks": png(4, 4, before=chunk(b"tEXt", b"a\0b") * 100_000, packed=b"\0"),
        "filter 9": png(4, 4, raw=b"\x09" * 20), "no end of the stream": png(4, 4, packed=b"\x78\x9c"),
        "unknown critical chunk": png(4, 4, before=chunk(b"ABCD", b"x"), packed=b"\0"),
    }
    return cases


# ---- JPEG ----------------------------------------------------------------------------------------------------------


def sized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG file with another size in its frame header."""
    at = next(data.index(mark) for mark in (b"\xff\xc0\0\x11", b"\xff\xc2\0\x11", b"\xff\xc0\0\x0b") if mark in data)
    return data[:at + 5] + struct.pack(">HH", height, width) + data[at + 9:]


def _jpg() -> dict[str, Made]:
    good, progressive = (samples("jpg")[place][1] for place in (0, 1))
    start, frame, tables = good.index(b"\xff\xda"), good.index(b"\xff\xc0"), good.index(b"\xff\xdb")
    loop = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
    scans = progressive[progressive.index(b"\xff\xda"):-2]
    exif = b"\xff\xe1" + struct.pack(">H", len(loop) + 2) + loop
    return {
        "empty": b"", "page": PAGE, "start mark alone": good[:2], "cut in the header": good[:frame + 6],
        "cut in the pixels": good[:start + 200], "cut with an end mark": good[:start + 200] + b"\xff\xd9",
        "cut before the pixels": good[:start] + b"\xff\xd9", "no end mark": good[:-2] + b"",
        "65500 x 65500": sized(good, 65500, 65500), "65535 x 65535": sized(good, 65535, 65535), "0 x 40": sized(good, 0,
            40),
        "taller than its pixels": sized(good, 53, 4000), "progressive, 65500 x 65500": sized(progressive, 65500, 65500),
        "no tables": good[:tables] + good[frame:],
        "a thousand scans of a huge picture": sized(progressive[:-2], 20000, 20000) + scans * 1000 + b"\xff\xd9",
        "arithmetic coding": good[:frame + 1] + b"\xc9" + good[frame + 2:],
        "lossless": good[:frame + 1] + b"\xc3" + good[frame + 2:],
        "12 bits": good[:frame + 4] + b"\x0c" + good[frame + 5:],
        "two frames": good[:start] + good[frame:start] + good[start:-300],
        "no components": good[:frame + 9] + b"\0" + good[frame + 10:],
        "tables of length 0": good[:tables + 2] + b"\0\0" + good[tables + 4:],
        "sampling of 15": good[:frame + 11] + b"\xff" + good[frame + 12:],
        "orientation tables in a circle, cut": good[:2] + exif + good[2:-400],
        "segments without end": good[:2] + b"\xff\xe2\xff\xff" * 3000, "fill bytes": b"\xff" * MB,
        "Huffman garbage": good[:start - 40] + b"\xff" * 30 + good[start - 10:-200],
    }


# ---- GIF -----------------------------------------------------------------------------------------------------------


def gif(width: int, height: int, frames: list[tuple[int, int, int, int]], code: int = 8,
        pixels: bytes = b"\x02\x4c\x01\0", palette: bool = True, end: bytes = b";") -> bytes:
    """A GIF file; frames are (left, top, width, height)."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0 if palette else 0x70, 0,
                                   0) + (bytes(6) if palette else b"")
    return head + b"".join(b"," + struct.pack("<HHHHB", *frame, 0) + bytes([code]) + pixels for frame in frames) + end


def _gif() -> dict[str, Made]:
    good = samples("gif")[0][1]
    long = b"".join(bytes([255]) + b"\xff" * 255 for _ in range(2000)) + b"\0"
    return {
        "empty": b"", "page": PAGE, "header alone": good[:13], "cut in the pixels": good[:-200], "no frame": gif(5, 5,
            []), "0 x 0": gif(0, 0, [(0, 0, 0, 0)]), "65535 x 65535": gif(65535, 65535, [(0, 0, 4, 4)]),
        "frame of 65535 x 65535": gif(4, 4, [(0, 0, 65535, 65535)]), "frame far outside": gif(4, 4, [(65535, 65535,
            65535, 65535)]), "huge screen and frame": gif(30000, 30000, [(0, 0, 30000, 30000)], pixels=long),
        "10,000 huge frames": gif(9000, 9000, [(0, 0, 9000, 9000)] * 10_000), "code size 0": gif(4, 4, [(0, 0, 4, 4)],
            code=0), "code size 12": gif(4, 4, [(0, 0, 4, 4)], code=12), "code size 255": gif(4, 4, [(0, 0, 4, 4)],
                code=255),
        "no palette, no pixels": gif(4, 4, [(0, 0, 4, 4)], palette=False, pixels=b"\0"), "garbage codes": gif(400, 400,
            [(0, 0, 400, 400)], pixels=long), "no end of the blocks": gif(4, 4, [(0, 0, 4, 4)], pixels=b"\xff" * 200,
                end=b""),
        "comments without end": gif(4, 4, []) [:-1] + b"!\xfe" + b"\xff" * MB, "unknown blocks": gif(4, 4,
            [])[:-1] + b"\x99" * 500, "version 99": b"GIF99a" + good[6:60],
    }


# ---- TIFF ----------------------------------------------------------------------------------------------------------


def tif(tags: dict[int, tuple[str, tuple]], data: bytes = bytes(64), following: int = 0,
        entries: int | None = None) -> bytes:
    """A little-endian TIFF file: tag -> (letter of its type, values); pixels begin at byte 8."""
    kinds = {"H": 3, "I": 4, "B": 1, "s": 2}
    far = 8 + len(data) + 2 + 12 * len(tags) + 4
    rows, values = b"", b""
    for tag, (letter, numbers) in sorted(tags.items()):
        raw = struct.pack(f"<{len(numbers)}{letter}", *numbers)
        rows += struct.pack("<HHI", tag, kinds[letter], len(numbers)) + (raw.ljust(4,
            b"\0") if len(raw) <= 4 else struct.pack("<I", far + len(values)))
        values += raw if len(raw) > 4 else b""
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H",
        len(tags) if entries is None else entries) + rows + struct.pack("<I", following) + values


def plain(**changes: tuple[str, tuple]) -> bytes:
    """A grey 4 x 4 picture with some tags (t256 is the width) changed."""
    tags = {256: ("I", (4,)), 257: ("I", (4,)), 258: ("H", (8,)), 259: ("H", (1,)), 262: ("H", (1,)), 273: ("I", (8,)),
            277: ("H", (1,)), 278: ("I", (4,)), 279: ("I", (16,))}
    return tif({**tags, **{int(name[1:]): value for name, value in changes.items()}})


def _tif() -> dict[str, Made]:
    good = samples("tif")[0][1]
    side = ("I", (30000,))
    cases: dict[str, Made] = {f"tag {', '.join(f'{k[1:]} = {v[1][0]}' for k, v in changes.items())}": plain(**changes)
                              for changes in (
        {"t256": ("I", (2 ** 32 - 1,)), "t257": ("I", (2 ** 32 - 1,))}, {"t256": ("I", (0,))}, {"t257": ("I", (0,))},
        {"t258": ("H", (64,))}, {"t258": ("H", (0,))}, {"t259": ("H", (9999,))},
        {"t273": ("I", (2 ** 32 - 1,))}, {"t277": ("H", (65535,))}, {"t277": ("H", (0,))}, {"t279": ("I", (2 ** 32 - 1,
            ))}, {"t256": side, "t257": side}, {"t339": ("H", (3,))}, {"t284": ("H", (9,))},
        {"t322": ("I", (2 ** 31,)), "t323": ("I", (2 ** 31,)), "t324": ("I", (8,)), "t325": ("I", (16,))},
        {"t322": ("I", (0,)), "t323": ("I", (0,))}, {"t262": ("H", (999,))}, {"t259": ("H", (7,))})}
    packed = zlib.compress(bytes(100 * MB), 9)
    many = {256: ("I", (10000,)), 257: ("I", (10000,)), 258: ("H", (8,)), 259: ("H", (8,)), 262: ("H", (1,)), 273: ("I",
        (8,) * 10000), 277: ("H", (1,)), 278: ("I", (1,)), 279: ("I", (len(packed),) * 10000)}
    cases |= {
        "empty": b"", "page": PAGE, "magic alone": b"II*\0", "cut in the pixels": good[:len(good) // 2],
        "directory beyond the file": b"II*\0\xff\xff\xff\x7f" + bytes(64),
        "directory at itself": b"II*\0\0\0\0\0" + bytes(64),
        "directories in a circle": tif({256: ("I", (4,))}, following=72), "65535 entries": tif({256: ("I", (4,))},
            entries=65535), "big TIFF of absurd size": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2 ** 62) + bytes(64),
        "every strip a bomb": tif(many, packed), "missing strips": plain(t278=("I", (1,))),
        "LZW garbage": plain(t259=("H", (5,))), "a JPEG table missing": plain(t259=("H", (7,)), t347=("B",
            (255,) * 50)), "fax garbage": plain(t259=("H", (4,)), t258=("H", (1,))),
        "one strip of 4 GB": plain(t256=("I", (65000,)), t257=("I", (65000,)), t278=("I", (65000,))),
    }
    return cases


# ---- WebP and video ------------------------------------------------------------------------------------------------


def riff(*chunks: tuple[bytes, bytes], size: int | None = None, form: bytes = b"WEBP") -> bytes:
    """A RIFF file of chunks."""
    body = form + b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind,
                           data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """The extended header."""
    return b"VP8X", struct.pack("<I", flags) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]


def _webp() -> dict[str, Made]:
    lossy, lossless = (samples("webp")[place][1] for place in (0, 1))
    vp8, vp8l = lossy[20:], lossless[20:]
    huge = b"\x2f" + struct.pack("<I", (16383) | (16383 << 14)) + bytes(40)
    frame = struct.pack("<I", 0)[:3] * 2 + struct.pack("<I", 16382)[:3] * 2 + bytes(4) + b"VP8L" + struct.pack("<I",
        len(huge)) + huge
    return {
        "empty": b"", "page": PAGE, "RIFF alone": lossy[:12], "cut in the header": lossy[:25],
        "cut in the pixels": lossy[:len(lossy) // 2], "lossless, cut": lossless[:len(lossless) // 2],
        "no picture": riff(),
        "a sound": riff((b"fmt ", bytes(16)), (b"data", bytes(64)), form=b"WAVE"),
        "16384 x 16384 of nothing": riff((b"VP8L", huge)), "lossy, 16383 x 16383": riff((b"VP8 ",
            vp8[:6] + struct.pack("<HH", 16383, 16383) + vp8[10:])),
        "lossy, 0 x 0": riff((b"VP8 ", vp8[:6] + bytes(4) + vp8[10:])), "canvas of 2^24": riff(canvas(2 ** 24, 2 ** 24),
            (b"VP8 ", vp8)), "canvas alone": riff(canvas(9, 9)), "canvas of another size": riff(canvas(900, 900),
                (b"VP8 ", vp8)),
        "no key frame": riff((b"VP8 ", bytes([vp8[0] | 1]) + vp8[1:])),
        "size of 4 GB": lossy[:4] + b"\xff\xff\xff\xff" + lossy[8:60], "size of nothing": riff((b"VP8 ", vp8), size=0),
        "chunk of 4 GB": lossy[:16] + b"\xf0\xff\xff\xff" + lossy[20:80],
        "2,000 frames of 16383 x 16383": riff(canvas(16383, 16383, 2), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * 2000),
        "animation without frames": riff(canvas(64, 64, 2), (b"ANIM", bytes(6))),
        "alpha garbage": riff(canvas(53, 37, 16), (b"ALPH", b"\xff" * 60), (b"VP8 ", vp8[:-80])),
        "lossless garbage": riff((b"VP8L", vp8l[:5] + b"\xff" * 200)), "no signature": riff((b"VP8L",
            b"\0" + vp8l[1:])),
    }


def atom(kind: bytes, data: bytes, size: int | None = None) -> bytes:
    """A part of an MP4 file."""
    return struct.pack(">I", (8 + len(data)) if size is None else size) + kind + data


def _video() -> dict[str, Made | tuple[str, Made]]:
    good, avi = (samples("mp4")[place][1] for place in (0, 1))
    deep = b""
    for _ in range(20_000):
        deep = atom(b"moov", deep) if len(deep) < 2 * MB else deep
    where = good.index(b"stsz") + 4
    playlist = ("#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
                "#EXTINF:1,\nfile:///etc/passwd\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    stream = ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\n"
              "c=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n")
    return {
        "empty": b"", "page": PAGE, "no index": good[:good.index(b"moov") - 4],
        "index cut": good[:good.index(b"moov") + 200], "frames cut, index first": atom(b"ftyp",
            b"isom\0\0\0\0isom") + good[good.index(b"moov") - 4:],
        "part of size 0": atom(b"ftyp", b"isom", 0), "part of size 1": atom(b"ftyp", b"isom", 1),
        "part of size 2^63": atom(b"mdat", struct.pack(">Q", 2 ** 63), 1), "part of size 4": atom(b"moov", b"", 4) * 50,
        "parts in parts": deep, "four billion frames": good[:where + 8] + b"\xff\xff\xff\xff" + good[where + 12:],
        "frames of 4 GB": good[:where + 4] + b"\xff\xff\xff\xff" + good[where + 8:],
        "65535 x 65535": good.replace(struct.pack(">HH", 64, 48), b"\xff\xff\xff\xff").replace(struct.pack(">II",
            64 << 16, 48 << 16), b"\xff\xff\0\0\xff\xff\0\0"), "nothing but zeros": bytes(MB),
            "codec unknown": good.replace(b"mp4v", b"zzzz"),
        "playlist": playlist.encode(), "playlist named mp4 with a byte mark": b"\xef\xbb\xbf" + playlist.encode(),
        "list of files": b"ffconcat version 1.0\nfile '/etc/passwd'\nfile '/dev/zero'\n",
        "stream description": stream.encode(),
        "AVI cut in its header": ("avi", avi[:100]), "AVI without frames": ("avi", avi[:avi.index(b"movi") + 4]),
        "AVI of 2^31 x 2^31": ("avi", avi.replace(struct.pack("<II", 64, 48), b"\xff\xff\xff\x7f" * 2)),
        "picture of a text": b"P6 99999 99999 255\n" + bytes(300), "subtitles": b"1\n00:00:00,000 --> "
            b"00:00:01,000\nhello\n",
    }


HOSTILE = {"png": _png, "jpg": _jpg, "gif": _gif, "tif": _tif, "webp": _webp, "mp4": _video}
# Odd but whole: they may be read.
READABLE: dict[str, set[str]] = {**{kind: set() for kind in HOSTILE}, "tif": {"tag 284 = 9", "tag 322 = 0, 323 = 0",
    "every strip a bomb"},
                                "mp4": {"65535 x 65535", "codec unknown",
                                        "AVI of 2^31 x 2^31"}}  # the stream itself is whole
