"""What is inside an archive, as far as it can be trusted: safe names, plain files, sizes within limits; everything
else is refused in one line.

Nothing here believes a number that an archive quotes about itself: streams are read in pieces and stopped at a limit.
What a zip or tar parser raises on damaged input (many kinds of exception) becomes a ConvertError that names the
archive.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import re
import stat
import tarfile
import zipfile
from typing import BinaryIO, Iterator

from jseg.errors import ConvertError, JsegError

__all__ = ["AGAIN", "FREE_BYTES", "MOST_BYTES", "MOST_NESTED", "MOST_RATIO", "damage_named", "decompressing",
           "read_stream", "safe_member", "tar_files",
           "zip_files"]

MOST_BYTES = 512 << 20   # of one file, decompressed; an orthophoto of 10,000 x 10,000 pixels has 300 MB
MOST_NESTED = 1000       # archives inside of archives
MOST_FILES = 1_000_000   # of one archive
MOST_RATIO = 100         # what is expanded into the scratch folder in all, to the size of the archive on the disk ...
FREE_BYTES = 64 << 20    # ... from this many bytes on
HEADER_BYTES = 1 << 20   # of the names and attributes before a member of a tar file
AGAIN = "download it again"
_PIECE = 1 << 20
_UNPACK = "unpack it yourself and give the folder"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses the others without a limit


def safe_member(name: str, archive: str) -> str:
    """Return a member's name with "/"; raise a ConvertError if it would leave its archive, or no file can have it."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if not plain.isprintable() or any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts):
        raise ConvertError(f"{archive}: refused: its member {name[:80]!r} has control characters in its name, or more "
                           "than 255 bytes; unpack it yourself "
                           "under another name")
    if plain.startswith("/") or ".." in parts or (parts and re.match(r"[A-Za-z]:", parts[0])):
        raise ConvertError(f"{archive}: refused: its member {name!r} points outside of the archive")
    return "/".join(parts)


@contextlib.contextmanager
def damage_named(where: str, what: str = "truncated or damaged archive") -> Iterator[None]:
    """Turn whatever a parser raises into a ConvertError that names the file; jseg's own errors pass."""
    try:
        yield
    except JsegError:
        raise
    except MemoryError:
        raise ConvertError(f"{where}: not enough memory to read it; {_UNPACK}") from None
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno == errno.EINVAL):  # of bz2; a place below 0
            raise ConvertError(f"{where}: {what} ({error}); {AGAIN}") from error
        raise ConvertError(f"{where}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile, tarfile and the decompressors raise some fifteen kinds
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConvertError(f"{where}: {what} ({text}); {AGAIN}") from error


def read_stream(stream: BinaryIO, most_bytes: int, where: str) -> bytes:
    """Read to the end, or to one byte more than `most_bytes`: then a ConvertError says what to do. No second copy is
    held.
    """
    buffer = io.BytesIO()
    while piece := stream.read(_PIECE):
        buffer.write(piece)
        if buffer.tell() > most_bytes:
            raise ConvertError(f"{where}: has more than {most_bytes >> 20} MB when decompressed; raise the limit with "
                               "--max-file-mb if the file is meant "
                               "to be so large")
    return buffer.getvalue()


def decompressing(path: str) -> BinaryIO:
    """Open the decompressed bytes of a .tgz, .tar.gz, .tar.bz2 or .tar.xz."""
    import bz2
    import lzma
    opened = {"gz": gzip.open, "bz": bz2.open, "xz": lzma.open}
    return opened[{"tgz": "gz", ".gz": "gz", "bz2": "bz", ".xz": "xz"}[path.lower()[-3:]]](path, "rb")


def zip_files(archive: zipfile.ZipFile, where: str) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Yield (safe name, entry) of the files.

    Raises:
        ConvertError: a name leaves the archive; a link, device or encrypted member; members that share their bytes; a
        method of compression that
            cannot be read; too many members.
    """
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise ConvertError(f"{where}: {len(entries)} members; accepted are up to {MOST_FILES}: {_UNPACK}")
    _refuse_overlap(entries, archive.start_dir, where)
    for info in entries:
        member = safe_member(info.orig_filename, where)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() or not member:
            continue
        if kind == stat.S_IFLNK:
            raise ConvertError(f"{where}: {member} is a link; {_UNPACK}")
        if kind not in (0, stat.S_IFREG):
            raise ConvertError(f"{where}: {member} is no regular file; {_UNPACK}")
        if info.flag_bits & 0x2041:
            raise ConvertError(f"{where}: {member} is encrypted; unpack the archive with its password and give the "
                               "folder")
        if info.compress_type not in _METHODS:
            name = zipfile.compressor_names.get(info.compress_type, "unknown")
            raise ConvertError(f"{where}: {member} is compressed by method {info.compress_type} ({name}), which is "
                               f"not read here; {_UNPACK}")
        yield member, info


def _refuse_overlap(entries: list[zipfile.ZipInfo], directory: int, where: str) -> None:
    """Raise if the bytes of a member reach into the next one or into the directory: a few bytes would stand for many
    files.
    """
    ordered = sorted(entries, key=lambda info: info.header_offset)
    for info, end in zip(ordered, [info.header_offset for info in ordered[1:]] + [directory]):
        if info.header_offset + 30 + info.compress_size > end:
            raise ConvertError(f"{where}: truncated or damaged archive (its member {info.filename!r} overlaps what "
                               f"follows); {AGAIN}")


class _Headers:
    """A file for tarfile that refuses long headers: what a header quotes as its length is read at once."""

    def __init__(self, file: BinaryIO):
        self._file, self.name = file, file.name
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def tar_files(file: BinaryIO, where: str) -> Iterator[tuple[str, tarfile.TarInfo, BinaryIO | None]]:
    """Yield (safe name, entry, its content as a stream) of the files of an uncompressed tar archive.

    Raises:
        ConvertError: a name leaves the archive; a link, device or pipe; a member stored as sparse; too many members;
        the archive has no end mark,
            or a damaged header that tarfile would take for the end.
    """
    end, count = 0, 0
    with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # tarfile keeps them all
            count += 1
            if info.size < 0 or info.offset_data <= end - 512 or count > MOST_FILES:
                raise ConvertError(f"{where}: truncated or damaged archive (a member of {info.size} bytes, number "
                                   f"{count}); {AGAIN}")
            member = safe_member(info.name, where)
            end = info.offset_data + -(-info.size // 512) * 512 if info.isreg() else info.offset_data
            if info.issym() or info.islnk():
                raise ConvertError(f"{where}: {member} is a link; {_UNPACK}")
            if info.issparse():
                raise ConvertError(f"{where}: {member} is stored with holes (sparse); {_UNPACK}")
            if not info.isreg() and not info.isdir():
                raise ConvertError(f"{where}: {member} is no regular file; {_UNPACK}")
            if info.isreg() and member:
                yield member, info, archive.extractfile(info)
    if os.fstat(file.fileno()).st_size < end + 512:
        raise ConvertError(f"{where}: truncated archive (it ends without its end mark); {AGAIN}")
    file.seek(end)
    if file.read(512).strip(b"\0"):
        raise ConvertError(f"{where}: truncated or damaged archive (no header at byte {end}); {AGAIN}")
