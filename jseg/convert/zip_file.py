"""Views of the entries of an uncompressed zip archive, from untrusted bytes.

`torch.save` writes archives whose entries are stored, not packed, so each is a run of bytes of the file and needs no
copy. Python's zipfile is not used: it makes a large object for each of possibly millions of forged directory entries,
and trusts sizes that contradict each other. Written from PKWARE's APPNOTE.TXT 6.3.10 (sections 4.3.7, 4.3.12 to 4.3.16,
4.5.3).

Refused: packed or encrypted entries, several disks, two entries of one name, entries that overlap or leave the file,
names that are absolute or climb out of a folder.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import Mapping

from jseg.errors import ConvertError

__all__ = ["StoredEntry", "zip_entries"]

MAX_ENTRIES = 65_536  # a checkpoint has one entry per tensor
MAX_EXTRA = 512        # bytes of a directory entry's extra fields; torch writes 32 at most
_END, _END64, _LOCATOR, _CENTRAL, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"


@dataclasses.dataclass(eq=False)
class StoredEntry:
    """One stored file: its bytes as a view, and the CRC-32 that the directory promises."""

    __slots__ = ("data", "crc")
    data: memoryview
    crc: int

    def check(self, where: str, name: str) -> None:
        """Compare the bytes with their CRC-32; ConvertError when bits have changed.
        0 says torch was told to compute none.
        """
        if self.crc != 0 and zlib.crc32(self.data) != self.crc:
            raise ConvertError(f"{where}: entry {name} differs from its checksum, so the file is damaged; copy or "
                               "download it again")


def zip_entries(data: memoryview, where: str) -> Mapping[str, StoredEntry]:
    """Name -> entry, in the directory's order.

    Args:
        data: the whole file.
        where: names the file in messages.
    Raises:
        ConvertError: truncated, damaged, or one of the refusals above.
    """
    try:
        return _entries(data, where)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise ConvertError(
            f"{where}: a damaged or truncated zip archive ({error}); download or copy it again") from error


def _entries(data: memoryview, where: str) -> dict[str, StoredEntry]:
    count, start, size = _directory(data, where)
    if count > MAX_ENTRIES:
        raise ConvertError(f"{where}: an archive of {count} entries; at most {MAX_ENTRIES} are read")
    if start < 0 or size < 46 * count or start + size > len(data):
        raise ConvertError(f"{where}: a damaged zip archive: its directory ({count} entries, {size} bytes at {start}) "
                           f"does not fit a file of {len(data)} bytes; download or copy it again")
    entries: dict[str, StoredEntry] = {}
    spans: list[tuple[int, int]] = []
    at = start
    for _ in range(count):
        if bytes(data[at:at + 4]) != _CENTRAL or at + 46 > start + size:
            raise ConvertError(f"{where}: a damaged zip archive: no directory entry at byte {at}; download or copy it "
                               "again")
        flags, method, crc, packed, full, name_size, extra_size, note_size, local = struct.unpack(
            "<8xHH4xIIIHHH8xI", data[at:at + 46])
        if extra_size > MAX_EXTRA:
            raise ConvertError(f"{where}: a directory entry with {extra_size} bytes of extra fields; at most "
                               f"{MAX_EXTRA} are read")
        name = _checked_name(bytes(data[at + 46:at + 46 + name_size]), where)
        packed, full, local = _wide(bytes(data[at + 46 + name_size:at + 46 + name_size + extra_size]),
                                    packed, full, local)
        at += 46 + name_size + extra_size + note_size
        if flags & 0x41:
            raise ConvertError(f"{where}: entry {name} is encrypted; save the checkpoint again without a password")
        if method != 0 or packed != full:
            raise ConvertError(f"{where}: entry {name} is compressed, which torch.save never does. From a TorchScript "
                               "archive, save the model's state_dict() instead; any other, repack without compression")
        if name in entries:
            raise ConvertError(f"{where}: entry {name} stands twice in the archive; no program of good faith writes "
                               "that")
        first = _content(data, local, name, where)
        if first + full > start:
            raise ConvertError(f"{where}: truncated or damaged: entry {name} says {full} bytes at {first}, which reach "
                               f"beyond byte {start}")
        entries[name] = StoredEntry(data[first:first + full], crc)
        spans.append((local, first + full))
    spans.sort()
    if any(left[1] > right[0] for left, right in zip(spans, spans[1:])):
        raise ConvertError(f"{where}: entries of the archive overlap; no program of good faith writes that")
    return entries


def _directory(data: memoryview, where: str) -> tuple[int, int, int]:
    """(entries, first byte, bytes) of the central directory."""
    tail_start = max(0, len(data) - 22 - 65535)
    tail = bytes(data[tail_start:])
    found = tail.rfind(_END)
    if found < 0 or found + 22 > len(tail):
        raise ConvertError(f"{where}: truncated: the archive's directory at its end is missing ({len(data)} bytes are "
                           "here); download or copy it again")
    end = tail_start + found
    disk, first_disk, _, count, size, start = struct.unpack("<HHHHII", data[end + 4:end + 20])
    if 0xFFFF in (count, disk) or 0xFFFFFFFF in (size, start):  # zip64, for archives beyond 4 GiB
        signature, _, end64 = struct.unpack("<4sIQ", data[end - 20:end - 4])
        if signature == _LOCATOR:
            if bytes(data[end64:end64 + 4]) != _END64:
                raise ConvertError(f"{where}: a damaged zip archive: no zip64 directory at byte {end64}; download or "
                                   "copy it again")
            disk, first_disk, _, count, size, start = struct.unpack("<IIQQQQ", data[end64 + 16:end64 + 56])
    if disk or first_disk:
        raise ConvertError(f"{where}: one part of an archive split over several files; join them first")
    return count, start, size


def _wide(extra: bytes, packed: int, full: int, local: int) -> tuple[int, int, int]:
    """Replace sizes and offset that do not fit 32 bits by those of the zip64 extra field."""
    values, at = [packed, full, local], 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack("<HH", extra[at:at + 4])
        if kind == 1:
            field = extra[at + 4:at + 4 + size]
            for place in (1, 0, 2):  # the field's order: full size, packed size, offset
                if values[place] == 0xFFFFFFFF:
                    values[place], field = struct.unpack("<Q", field[:8])[0], field[8:]
        at += 4 + size
    return values[0], values[1], values[2]


def _checked_name(raw: bytes, where: str) -> str:
    name = raw.decode("utf-8", "replace")
    parts = name.replace("\\", "/").split("/")
    if (not name.isprintable() or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]
        or len(raw) > 1000 or not name):
        raise ConvertError(f"{where}: an entry is named {name[:60]!a}, which tries to leave its folder; no torch file "
                           "has such a name")
    return name


def _content(data: memoryview, local: int, name: str, where: str) -> int:
    """Where an entry's bytes begin, from its local header."""
    if bytes(data[local:local + 4]) != _LOCAL:
        raise ConvertError(f"{where}: a damaged zip archive: no header of entry {name} at byte {local}; download or "
                           "copy it again")
    name_size, extra_size = struct.unpack("<HH", data[local + 26:local + 30])
    if bytes(data[local + 30:local + 30 + name_size]) != name.encode("utf-8"):
        raise ConvertError(f"{where}: entry {name} has another name in its own header; the file is damaged or forged")
    return local + 30 + name_size + extra_size
