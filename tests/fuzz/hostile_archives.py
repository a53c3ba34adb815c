"""Hostile archives, MATLAB files and NIfTI volumes: bombs, lying sizes, names that climb out, links, loops, cut-off
files.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pathlib
import struct
import tarfile
import zipfile
import zlib
from typing import Callable, Union

import numpy as np

from fuzz_samples import fake_encode

__all__ = ["HOSTILE"]

Made = Union[bytes, Callable[[pathlib.Path], None]]  # the content, or what makes the file
MB = 1 << 20


# ---- zip -----------------------------------------------------------------------------------------------------------


def zipped(members: dict, method: int = zipfile.ZIP_DEFLATED, **fields) -> bytes:
    """A zip archive of name -> bytes; `fields` are set in every ZipInfo."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for key, value in fields.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return buffer.getvalue()


def patched(data: bytes, mark: bytes, at: int, form: str, *values) -> bytes:
    """Overwrite fields after every occurrence of a mark."""
    out, place = bytearray(data), data.find(mark)
    while place >= 0:
        struct.pack_into(form, out, place + at, *values)
        place = data.find(mark, place + 4)
    return bytes(out)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def zip_bomb(path: pathlib.Path) -> None:
    """A member of zeros, 700 MB decompressed."""
    with zipfile.ZipFile(path, "w", compresslevel=1) as archive:
        info = zipfile.ZipInfo("a.png")
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, "w") as member:
            for _ in range(70):
                member.write(bytes(10 * MB))


def nested_zip(depth: int, copies: int) -> bytes:
    """Archives in archives, each `copies` times in the next."""
    data = zipped({"a.png": b"x" * 100})
    for _ in range(depth):
        data = zipped({f"{place}.zip": data for place in range(copies)})
    return data


def overlapping() -> bytes:
    """Twenty entries of the directory that stand for one member's bytes."""
    data = zipped({"a.png": bytes(9 * MB)})
    start = data.index(CENTRAL)
    entry, end = data[start:data.index(END)], bytearray(data[data.index(END):])
    struct.pack_into("<HHI", end, 8, 20, 20, 20 * len(entry))
    return data[:start] + b"".join(entry.replace(b"a.png", b"%c.png" % (97 + place))
                                   for place in range(20)) + bytes(end)


def _zip() -> dict[str, Made]:
    plain = zipped({"a.png": b"picture" * 40})
    stored = zipped({"a.png": b"picture" * 40}, zipfile.ZIP_STORED)
    cases: dict[str, Made] = {"deflate bomb": zip_bomb, **{f"{name} bomb": zipped({"a.png": bytes(80 * MB)},
        method) for name, method in (
        ("bzip2", zipfile.ZIP_BZIP2), ("lzma", zipfile.ZIP_LZMA))}}
    cases |= {f"member {name!r}": zipped({name: b"x"}) for name in (
        "../up.png", "/absolute.png", "..\\up.png", "\\\\host\\share.png", "C:\\windows.png", "a/../../up.png",
        "c:up.png")}
    cases |= {
        "NUL in a name": zipped({"aX.png": b"x"}).replace(b"aX.png", b"a\0.png"),
        "empty": b"", "page": b"<html>404</html>" * 50, "end mark alone": END + bytes(18),
        "cut in the directory": plain[:-30], "cut in a member": plain[:60],
        "symbolic link": zipped({"a.png": b"/etc/passwd"}, external_attr=0o120777 << 16),
        "device": zipped({"a.png": b""}, external_attr=0o060666 << 16),
        "named pipe": zipped({"a.png": b""}, external_attr=0o010666 << 16),
        "the same name twice": zipped({"a.png": b"1", "b.png": b"2"}).replace(b"b.png", b"a.png"),
        "quotes 4 GB": patched(plain, CENTRAL, 20, "<II", 0xFFFFFFFE, 0xFFFFFFFE), "quotes too much": patched(plain,
            CENTRAL, 24, "<I", 999999),
        "quotes too little": patched(plain, CENTRAL, 24, "<I", 3), "quotes nothing": patched(plain, CENTRAL, 24, "<I",
            0),
        "encrypted": patched(patched(plain, CENTRAL, 8, "<H", 1), LOCAL, 6, "<H", 1), "masked directory": patched(plain,
            CENTRAL, 8, "<H", 0x2000),
        "method 99": patched(plain, CENTRAL, 10, "<H", 99), "deflate64": patched(plain, CENTRAL, 10, "<H", 9),
        "names that differ": patched(stored, LOCAL, 30, "5s", b"b.png"), "wrong checksum": patched(plain, CENTRAL, 16,
            "<I", 1),
        "member before the file": patched(plain, CENTRAL, 42, "<I", 0xFFFFFFF0),
        "member in the directory": patched(plain, CENTRAL, 42, "<I", len(plain) - 60),
        "65535 entries said": patched(plain, END, 8, "<HH", 65535, 65535), "directory before the file": patched(plain,
            END, 16, "<I", 0xFFFFFF00),
        "zip64 without its end": patched(plain, END, 8, "<HHII", 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        "zip64 extra cut off": patched(zipped({"a.png": b"x" * 50}, extra=struct.pack("<HHI", 1, 4, 7)), CENTRAL, 20,
                                       "<II", 0xFFFFFFFF, 0xFFFFFFFF),
        "zip64 negative": patched(zipped({"a.png": b"x"}, extra=struct.pack("<HHQQ", 1, 16, 2 ** 63, 2 ** 63)), CENTRAL,
                                  20, "<II", 0xFFFFFFFF, 0xFFFFFFFF),
        "overlapping": overlapping(), "archives five deep": nested_zip(5, 1), "16 in each of 4": nested_zip(4, 16),
        "2000 archives": nested_zip(1, 2000),
        "nested bomb": zipped({"a.zip": zipped({"b.tar": bytes(200 * MB)})}),
        "nested page": zipped({"a.zip": b"<html>" * 9}),
        "escapes in a name": zipped({"\x1b[2J\x1b]0;owned\x07.tar": b"x"}),
        "name of 60,000 letters": zipped({"a" * 60000 + ".zip": b"x"}),
        "not UTF-8 name": patched(patched(plain, CENTRAL, 8, "<H", 0x800), CENTRAL, 46, "5s", b"\xff\xfe\xff\xfe\xff"),
        "comment that lies": plain[:-2] + b"\xff\xff", "lzma properties": patched(zipped({"a.png": b"x" * 99},
            zipfile.ZIP_LZMA), LOCAL, 35, "<HHBI", 9, 5, 255, 0xFFFFFFFF),
    }
    return cases


# ---- tar -----------------------------------------------------------------------------------------------------------


def tarred(*members: tuple[str, dict, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive of (name, fields of TarInfo, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, fields, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def raw_header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header with any text as its size, and a right checksum."""
    head = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12,
        b"\0") + b"0" * 11 + b"\0" + b" " * 8 + kind)
    head = head.ljust(257, b"\0") + b"ustar\x0000"
    head = bytearray(head.ljust(512, b"\0"))
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    """A PAX header of records, and a small member after it."""
    blocks = records + b"\0" * (-len(records) % 512)
    return raw_header(b"pax", b"%011o" % len(records), kind) + blocks + raw_header(b"a.png",
        b"%011o" % 5) + b"hello".ljust(512, b"\0") + bytes(1024)


def record(key: str, value: str) -> bytes:
    """One PAX record with its own length in front."""
    size = len(key) + len(value) + 3
    while len(f"{size} {key}={value}\n") != size:
        size = len(f"{size} {key}={value}\n")
    return f"{size} {key}={value}\n".encode()


def zeros_packed(compress: Callable[[bytes], bytes], head: bytes, size: int = 2000 * MB) -> bytes:
    """`head` and `size` zeros, compressed piece by piece: these formats allow streams behind each other."""
    return compress(head) + compress(bytes(40 * MB)) * (size // (40 * MB))


def _tar() -> dict[str, Made | tuple[str, Made]]:
    plain = tarred(("a.png", {}, b"picture" * 200), ("b.png", {}, b"x"))
    damaged, big = bytearray(plain), raw_header(b"a.png", b"%011o" % (2000 * MB))
    damaged[4 * 512:4 * 512 + 8] = b"garbage!"
    kinds = {"symbolic link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "character device": tarfile.CHRTYPE,
             "block device": tarfile.BLKTYPE,
             "named pipe": tarfile.FIFOTYPE}
    cases: dict = {name: tarred(("a.png", {"type": kind, "linkname": "/etc/passwd"}, b"")) for name,
                   kind in kinds.items()}
    cases |= {f"member {name!r}": tarred((name, {}, b"x")) for name in ("../up.png", "/absolute.png", "a/../../up.png",
                                                                        "..\\up.png", "C:\\up.png")}
    cases |= {f"PAX size {value[:12]}": pax(record("size", value)) for value in ("99999999999999999", "-1", "-513",
        "1e9", "9" * 5000, "")}
    cases |= {f"size {value!r}": raw_header(b"a.png", value) + bytes(2048) for value in (
        b"77777777777", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xff" + b"\0" * 11, b"-1", b"9z")}
    cases |= {
        "empty": b"", "zeros": bytes(10240), "page": b"<html>404</html>" * 100, "cut in a member": plain[:900],
        "cut in a header": plain[:2000],
        "cut after a member": plain[:2048], "damaged header in the middle": bytes(damaged),
        "PAX header of 4 GB": raw_header(b"p", b"40000000000", b"x") + bytes(4096),
        "long name of 2 GB": raw_header(b"././@LongLink", b"20000000000", b"L") + bytes(4096),
        "PAX records that lie": pax(b"99999 path=x\n"),
        "PAX without an equals sign": pax(b"9 path\n"), "PAX path that climbs": pax(record("path", "../up.png")),
        "PAX path of NUL": pax(record("path", "a\0b")),
        "PAX endless chain": b"".join(pax(record("comment", "x"))[:1024] for _ in range(3000)),
        "global PAX size": pax(record("size", "-512"), b"g"),
        "PAX sparse map": pax(record("GNU.sparse.major", "1") + record("GNU.sparse.minor",
                                                                       "0") + record("GNU.sparse.realsize", "9" * 15)),
        "PAX sparse 0.1": pax(record("GNU.sparse.map", "0,1," * 2000 + "9" * 12 + ",1") + record("GNU.sparse.size",
            "9" * 12)),
        "old GNU sparse": raw_header(b"a.png", b"00000000005", b"S")[:482] + b"\1" + b"77777777777\0".ljust(29,
            b"7") + bytes(2048),
        "the same name twice": tarred(("a.png", {}, b"1"), ("a.png", {}, b"2")),
        "escapes in a name": tarred(("\x1b[2Ja.tar", {}, b"x")),
        "nested bomb": ("tar", tarred(("a.tgz", {}, gzip.compress(raw_header(b"a.png",
            b"%011o" % (200 * MB)) + bytes(200 * MB), 1)))),
        "gz bomb": ("tgz", zeros_packed(lambda data: gzip.compress(data, 1), big)), "bz2 bomb": ("tar.bz2",
            zeros_packed(lambda data: bz2.compress(data, 1), big)), "xz bomb": ("tar.xz",
                zeros_packed(lambda data: lzma.compress(data, preset=0), big)),
        "gz of a page": ("tgz", gzip.compress(b"<html>" * 99)), "gz cut off": ("tgz", gzip.compress(plain)[:-20]),
        "gz of nothing": ("tar.gz", b""),
        "many empty gz members": ("tgz", gzip.compress(b"", mtime=0) * 100_000), "bz2 cut off": ("tar.bz2",
            bz2.compress(plain)[:-9]),
        "xz garbage": ("tar.xz", b"\xfd7zXZ\0" + b"\xff" * 400), "xz cut off": ("tar.xz", lzma.compress(plain)[:-9]),
        "gz named bz2": ("tar.bz2", gzip.compress(plain)),
        "wrong gz checksum": ("tgz", gzip.compress(plain)[:-8] + bytes(8)),
    }
    return cases


# ---- MATLAB and NIfTI ----------------------------------------------------------------------------------------------


def element(kind: int, data: bytes) -> bytes:
    """A MATLAB element with its tag."""
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def mat_file(*elements: bytes) -> bytes:
    """A version 5 header and elements."""
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + b"".join(elements)


def matrix(kind: int, dims: tuple, *parts: bytes, name: bytes = b"S") -> bytes:
    """A matrix element: class, dimensions, name, content."""
    return element(14, element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(dims)}i",
        *dims)) + element(1, name) + b"".join(parts))


def packed(data: bytes) -> bytes:
    """A compressed element."""
    body = zlib.compress(data, 1)
    return struct.pack("<II", 15, len(body)) + body


def nested_cells(depth: int) -> bytes:
    """Cells in cells."""
    data = b""
    for _ in range(depth):
        data = matrix(1, (1, 1), data, name=b"")
    return data


def _mat() -> dict[str, Made]:
    small = element(2, bytes(4))
    good = mat_file(matrix(9, (2, 2), small))
    cases: dict[str, Made] = {f"dimensions {dims}": mat_file(matrix(9, dims, small)) for dims in (
        (2 ** 31 - 1, 2 ** 31 - 1), (-1, 4), (-2, -2), (0, 4), (65536, 65536), (4,), (1,) * 40, (2 ** 30, 4))}
    cases |= {
        "empty": b"", "page": b"<html>404</html>" * 50, "header alone": mat_file(),
        "version 7.3": b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF\r\n\x1a\n" * 9,
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(600), "cut in the tag": good[:131], "cut in the dimensions": good[:170],
        "cut in the numbers": good[:-3],
        "big-endian header, little content": good[:126] + b"MI" + good[128:], "quotes 4 GB": mat_file(struct.pack("<II",
            14, 0xFFFFFFF0), bytes(64)),
        "compressed bomb": mat_file(packed(bytes(300 * MB))), "compressed garbage": mat_file(struct.pack("<II", 15, 64),
            b"\x78\x9c" + b"\xff" * 62),
        "compressed cut off": mat_file(packed(matrix(9, (2, 2), small)))[:-6],
        "compressed nothing": mat_file(packed(b"")),
        "bytes that mean doubles": mat_file(packed(matrix(6, (11000, 11000), element(2, bytes(121_000_000))))),
        "cells 100,000 deep": mat_file(nested_cells(500)),
        "a million cells": mat_file(matrix(1, (1000, 1000), element(14, b"") * 300_000)),
        "two billion structs": mat_file(matrix(2, (2 ** 31 - 1, 1), element(5, b"\1\0\0\0"), element(1, b"a"))),
        "field names of no length": mat_file(matrix(2, (1, 1), element(5, b"\0\0\0\0"), element(1, b"abcd"))),
        "field names of negative length": mat_file(
            matrix(2, (1, 1), element(5, struct.pack("<i", -8)), element(1, b"abcd"))), "no parts": mat_file(element(14,
                b"\0" * 8)), "stored type 200": mat_file(
            matrix(9, (2, 2), element(200, bytes(4)))), "sparse": mat_file(matrix(5, (9, 9), small)),
            "text": mat_file(matrix(4, (2, 2), small)),
        "numbers that are not whole": mat_file(matrix(6, (1, 2), element(9, struct.pack("<2d", 0.5, float("nan"))))),
        "infinite numbers": mat_file(
            matrix(6, (1, 2), element(9, struct.pack("<2d", float("inf"), 1e300)))),
            "escapes in a name": mat_file(matrix(9, (2, 2), small, name=b"\x1b[2J\x07")),
        "many bombs": mat_file(*[packed(bytes(120 * MB))] * 12), "scipy's garbage": mat_file(b"\xff" * 256),
    }
    return cases


def nii(dims: tuple = (3, 2, 2, 2), kind: int = 2, offset: float = 352.0, scale: tuple = (1.0, 0.0),
        data: bytes = bytes(8), magic: bytes = b"n+1\0") -> bytes:
    """A NIfTI-1 file of any numbers."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, *dims, *[1] * (8 - len(dims)))
    struct.pack_into("<h", head, 70, kind)
    struct.pack_into("<3f", head, 108, offset, *scale)
    head[344:348] = magic
    return bytes(head) + data


def _nii() -> dict[str, Made | tuple[str, Made]]:
    inf, nan = float("inf"), float("nan")
    cases: dict = {f"axes {dims}": nii(dims) for dims in ((3, 32767, 32767, 32767), (7,) + (32767,) * 7, (3, -1, 2, 2),
                                                          (3, 0, 2, 2), (0,), (-3, 2, 2, 2), (99, 2), (3, -2, -2, 2))}
    cases |= {f"sample type {kind}": nii(kind=kind) for kind in (0, 1, 32, 128, 1536, 9999, -4)}
    cases |= {f"values at {offset}": nii(offset=offset) for offset in (nan, inf, -inf, -352.0, 1e30, 0.0, 353.5)}
    cases |= {
        "empty": b"", "page": b"<html>404</html>" * 50, "header cut off": nii()[:200], "values cut off": nii()[:-1],
        "two-file magic": nii(magic=b"ni1\0"),
        "NIfTI-2": struct.pack("<i", 540) + nii()[4:] + bytes(400), "scaled by nan": nii(scale=(nan, nan)),
        "scaled to infinity": nii(scale=(3e38, inf)),
        "wide slice": nii((3, 30000, 30000, 1), data=bytes(64)), "gz bomb": ("nii.gz", zeros_packed(gzip.compress,
            nii())), "gz bomb of one volume": ("nii.gz", zeros_packed(gzip.compress, nii((3, 4096, 4096, 120)))),
        "gz cut off": ("nii.gz", gzip.compress(nii())[:-12]), "gz of a page": ("nii.gz", gzip.compress(b"<html>" * 99)),
        "not gz": ("nii.gz", nii()),
        "gz of nothing": ("nii.gz", b""), "wrong checksum": ("nii.gz", gzip.compress(nii())[:-8] + bytes(8)),
    }
    return cases


HOSTILE = {"zip": _zip, "tar": _tar, "mat": _mat, "nii": _nii}
# Files that are odd but whole: they may be read.
READABLE = {"zip": {"65535 entries said", "comment that lies", "end mark alone", "folder"},
            "tar": {"zeros", "PAX without an equals sign", "folder"},
            "mat": set(), "nii": set()}
