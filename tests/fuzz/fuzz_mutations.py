"""Damage files: flipped bits, cuts, splices, repeated pieces, altered length fields, words of the format; checksums
are often mended afterwards.

All choices come from one `random.Random`, so that a number gives a damaged file again.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
import zlib

__all__ = ["mutated"]

LIMIT = 2 << 20  # bytes of a damaged file
NUMBERS = (0, 1, 2, 4, 7, 8, 16, 64, 127, 128, 255, 256, 1024, 32767, 32768, 65535, 65536, 1 << 20, 1 << 24,
           (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
           1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
WORDS = {
    "py": ["_base_", "dict(", "[", "]", "(", ")", "{", "}", "*", "**", "9**9", "'a' * 99999999", "for x in",
           "range(10**12)", "lambda x: x", "import os\n",
           "__import__", "eval(", "+= ", "re.compile(", "f'{", "\\\n", "\x00", "\t", "\ufeff", "\u2028", "del ",
           "while 1: pass", "_delete_=True", "1e999",
           "%s", ".format(", ".join(", "\n    ", "if 1:", "else:", "with read_base():", "\x1b[31m", "0x", "1_0", "not ",
           " if a else b", "@", "class A: pass"],
    "yaml": ["_base_: ", "&a ", "*a", "<<: *a", "!!python/object:os.system ", "!!binary ", "- ", "? ", ": ", "{", "}",
             "[", "]", "|\n", ">\n", "---\n", "...\n",
             "%YAML 9.9\n", "\t", "\x07", "\ufeff", "'", '"', "_delete_: true", "1e999", ".nan", "2026-99-99",
             "!!timestamp ", "!!set ", "\\x1b", "#", "~",
             "\x1b[31m", "\u2028", "!!int ", "0b", "1:2:3", "!!float ", "12:99:99", "\x85"],
}
TEXTS = ("py", "yaml")


def mutated(kind: str, files: list[tuple[str, bytes]], rng: random.Random) -> tuple[str, bytes]:
    """Return (suffix, content) of one damaged file.

    Args:
        kind: of the reader.
        files: (suffix, content) to begin with.
        rng: makes all choices.
    """
    suffix, data = rng.choice(files)
    opened, closed = _envelope(kind, suffix) if rng.random() < 0.7 else (bytes, bytes)
    data = opened(data)
    other = opened(rng.choice([content for name, content in files if name == suffix]))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = (_text if kind in TEXTS and rng.random() < 0.7 else _binary)(data, other, kind, rng)[:LIMIT]
    mend = {"png": _mend_png, "zip": _mend_zip, "pth": _mend_zip}.get(kind)
    if mend is not None and rng.random() < 0.6:
        data = mend(data)
    return suffix, closed(data)


def _binary(data: bytes, other: bytes, kind: str, rng: random.Random) -> bytes:
    size = len(data)
    at, end = sorted((rng.randint(0, size), rng.randint(0, size)))
    if rng.random() < 0.4:  # most of what matters lies at the beginning, or at the end of archives
        at = min(int(rng.expovariate(1 / 64)), size)
        at = size - at if kind in ("zip", "pth") and rng.random() < 0.5 else at
        end = min(at + int(rng.expovariate(1 / 16)), size)
    step = rng.randrange(9)
    if step == 0:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8, 32))):
            if changed:
                place = at if rng.random() < 0.3 and at < size else rng.randrange(len(changed))
                changed[place] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if step == 1:
        return data[:at]
    if step == 2:
        return data[:at] + data[end:]
    if step == 3:
        return data[:at] + other[rng.randint(0, len(other)):]
    if step == 4:
        return data[:end] + data[at:end] * rng.choice((1, 1, 2, 10, 300)) + data[end:]
    if step == 5:
        return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 16, 300))) + data[end if rng.random() < 0.5 else at:]
    if step == 6:
        middle = rng.randint(at, end)
        return data[:at] + data[middle:end] + data[at:middle] + data[end:]
    form = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    width = struct.calcsize(form)
    value = rng.choice(NUMBERS) + (rng.randint(-2, 2) if step == 7 else 0)
    if step == 8 and at + width <= size:  # a length field a little off
        value = struct.unpack_from(form, data, at)[0] + rng.choice((-256, -8, -2, -1, 1, 2, 8, 256))
    return data[:at] + struct.pack(form, value % (1 << 8 * width)) + data[at + width:]


def _text(data: bytes, other: bytes, kind: str, rng: random.Random) -> bytes:
    lines = data.decode("utf-8", "replace").splitlines(keepends=True) or [""]
    row = rng.randrange(len(lines))
    step = rng.randrange(6)
    if step == 0:
        lines[row:row] = lines[rng.randrange(len(lines)):][:rng.choice((1, 5, 40))]
    elif step == 1:
        del lines[row:row + rng.choice((1, 1, 3, 20))]
    elif step == 2:
        lines[row] = " " * rng.choice((1, 2, 4, 4000)) + lines[row]
    elif step == 3:
        word = rng.choice(WORDS[kind])
        lines[row] = lines[row][:-1] + word * rng.choice((1, 1, 1, 3, 100, 5000)) + "\n"
    elif step == 4:
        column = rng.randint(0, len(lines[row]))
        lines[row] = lines[row][:column] + rng.choice(WORDS[kind]) + lines[row][column:]
    else:
        words = lines[row].split(" ")
        place = rng.randrange(len(words))
        words[place] = rng.choice((str(rng.choice(NUMBERS)), "-1", "1e308", rng.choice(WORDS[kind]),
                                   rng.choice(lines).strip()))
        lines[row] = " ".join(words)
    return "".join(lines).encode("utf-8", "replace")


def _envelope(kind: str, suffix: str):
    """How to look into a compressed file and to close it again."""
    if suffix in ("nii.gz", "tgz", "tar.gz"):
        return gzip.decompress, lambda data: gzip.compress(data, 1, mtime=0)
    if suffix == "tar.bz2":
        return bz2.decompress, lambda data: bz2.compress(data, 1)
    if suffix == "tar.xz":
        return lzma.decompress, lambda data: lzma.compress(data, preset=0)
    if kind == "mat":
        return _mat_opened, _mat_closed
    return bytes, bytes


def _mat_opened(data: bytes) -> bytes:
    """A MATLAB file with its compressed elements inflated."""
    at, out = 128, data[:128]
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        body = data[at + 8:at + 8 + size]
        if kind != 15:
            return data
        out, at = out + zlib.decompress(body), at + 8 + size
    return out


def _mat_closed(data: bytes) -> bytes:
    """A MATLAB file as one compressed element."""
    packed = zlib.compress(data[128:], 1)
    return data[:128] + struct.pack("<II", 15, len(packed)) + packed


def _mend_png(data: bytes) -> bytes:
    """Put right the checksums of a PNG file's chunks."""
    at, out = 8, bytearray(data[:8])
    while at + 12 <= len(data):
        size = int.from_bytes(data[at:at + 4], "big")
        body = data[at + 4:at + 8 + size]
        out += data[at:at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(out + data[at:])


def _mend_zip(data: bytes) -> bytes:
    """Put right the checksums in a zip archive's directory, for members that are stored."""
    out, at = bytearray(data), 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0 and at + 46 <= len(data):
        method, = struct.unpack_from("<H", data, at + 10)
        size, = struct.unpack_from("<I", data, at + 20)
        local, = struct.unpack_from("<I", data, at + 42)
        if method == 0 and local + 30 <= len(data):
            start = local + 30 + sum(struct.unpack_from("<HH", data, local + 26))
            checksum = struct.pack("<I", zlib.crc32(data[start:start + size]))
            out[at + 16:at + 20] = out[local + 14:local + 18] = checksum
        at += 4
    return bytes(out)
