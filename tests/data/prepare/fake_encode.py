"""Encoders for faked raw data: pictures, MATLAB files, NIfTI volumes, run lengths, and trees with archives in them."""

from __future__ import annotations

import gzip
import io
import pathlib
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")


def encode(array: np.ndarray, kind: str) -> bytes:
    """(H, W) or (H, W, 3) RGB uint8 -> bytes of a PNG, JPEG, TIFF, BMP, GIF or PPM file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, {"jpg": "JPEG", "tif": "TIFF", "ppm": "PPM"}.get(kind, kind.upper()))
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Bytes of a picture -> array as stored: indices, grey or RGB."""
    return np.array(Image.open(io.BytesIO(data)))


def mat(variables: dict, compress: bool = True) -> bytes:
    """A MATLAB 5 file of 2-D uint8, uint16 or float64 arrays, cells (lists) and structs (dicts)."""
    body = b"".join(_compressed(_matrix(name, value)) if compress else _matrix(name, value)
                    for name, value in variables.items())
    return b"MATLAB 5.0 MAT-file, fake".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + body


def _compressed(element: bytes) -> bytes:
    packed = zlib.compress(element)
    return struct.pack("<II", 15, len(packed)) + packed


def _element(kind: int, data: bytes) -> bytes:
    if 0 < len(data) <= 4:  # MATLAB packs short data into the tag
        return struct.pack("<I", kind | len(data) << 16) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def _matrix(name: str, value) -> bytes:
    if isinstance(value, dict):
        shape, code = (1, 1), 2
        content = _element(5, struct.pack("<i", 32)) + _element(
            1, b"".join(key.encode().ljust(32, b"\0") for key in value))
        content += b"".join(_matrix("", part) for part in value.values())
    elif isinstance(value, list):
        shape, code = (len(value), 1), 1
        content = b"".join(_matrix("", part) for part in value)
    else:
        code, stored = {"uint8": (9, 2), "uint16": (11, 4), "float64": (6, 9)}[value.dtype.name]
        shape, content = value.shape, _element(stored, value.tobytes(order="F"))
    head = _element(6, struct.pack("<II", code, 0)) + _element(5, struct.pack("<2i", *shape)) + _element(
        1, name.encode())
    return struct.pack("<II", 14, len(head + content)) + head + content


def nifti(volume: np.ndarray) -> bytes:
    """A gzipped NIfTI-1 file of an int16 volume."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *volume.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 4, 16)
    struct.pack_into("<8f", head, 76, *[1.0] * 8)
    struct.pack_into("<3f", head, 108, 352.0, 1.0, 0.0)
    head[344:348] = b"n+1\0"
    return gzip.compress(bytes(head) + volume.astype("<i2").tobytes(order="F"), mtime=0)


def rle(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths of an (H, W) bool mask."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *([0] if flat[0] else []), *edges, flat.size]).tolist() if flat.size else []
    text = ""
    for place, run in enumerate(runs):
        value = run - (runs[place - 2] if place > 2 else 0)
        while True:
            group, value = value & 31, value >> 5
            last = value == (-1 if group & 16 else 0)
            text += chr(48 + (group if last else group | 32))
            if last:
                break
    return {"size": list(mask.shape), "counts": text}


def write_tree(files: dict[str, bytes], folder: pathlib.Path) -> pathlib.Path:
    """Write files; a part of a path that ends like an archive becomes one, also inside of another."""
    inside: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        parts = name.split("/")
        place = next((i for i, part in enumerate(parts[:-1]) if part.endswith(ARCHIVES)), None)
        if place is None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            inside.setdefault("/".join(parts[:place + 1]), {})["/".join(parts[place + 1:])] = data
    for name, members in inside.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(members, name))
    return folder


def pack(members: dict[str, bytes], name: str) -> bytes:
    """The bytes of one archive, of the kind its name says."""
    flat: dict[str, bytes] = {}
    nested: dict[str, dict[str, bytes]] = {}
    for member, data in members.items():
        parts = member.split("/")
        place = next((i for i, part in enumerate(parts[:-1]) if part.endswith(ARCHIVES)), None)
        if place is None:
            flat[member] = data
        else:
            nested.setdefault("/".join(parts[:place + 1]), {})["/".join(parts[place + 1:])] = data
    flat.update({member: pack(content, member) for member, content in nested.items()})
    buffer = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in flat.items():
                archive.writestr(zipfile.ZipInfo(member), data)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, data in flat.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue() if name.endswith(".tar") else gzip.compress(buffer.getvalue(), mtime=0)
