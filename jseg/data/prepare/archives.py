"""One reader over folders, zip and tar files, also nested: a publisher's download is read as it lies on disk.

Every file has a name with "/" in it. A file inside an archive is named like a file in a folder: `Train.zip/Train/Rural/1.png`.
Nothing is unpacked: zip members are read one by one, tar members by their offset. Only what has no random access, a compressed tar or
an archive inside an archive, is first expanded into a scratch folder. `.gz` files are read decompressed, under their own names.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple, Sequence

from jseg.data.datasets.files import describe_missing
from jseg.errors import ConvertError

__all__ = ["Source", "Entry", "pair"]

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, NotImplementedError)
_JUNK = re.compile(r"(^|/)(__MACOSX(/|$)|\.|Thumbs\.db$|desktop\.ini$)")
_AGAIN = "download it again"


class Entry(NamedTuple):
    """Where the bytes of one file are: kind "file", "zip" or "tar"; the container's path; the member; size and a stamp of its state."""

    kind: str
    container: str
    member: str
    offset: int
    size: int
    stamp: int


class Source:
    """All files below some folders and archives, by name, in sorted order. Can be sent to worker processes.

    Args:
        roots: folders and archives.
        scratch: folder for what must be expanded; made when needed. The caller removes it.
        archives: regular expression; archives whose file name it does not match are left closed.
        leave_out: folders not to look into (the output).
    Raises:
        ConvertError: a root is missing, an archive is damaged, or a member's name leaves its archive.
    """

    def __init__(self, roots: Sequence[str | os.PathLike], scratch: str | os.PathLike, *, archives: str = "",
                 leave_out: Sequence[str | os.PathLike] = ()):
        self.roots = [os.fspath(root) for root in roots]
        self._scratch, self._wanted = os.fspath(scratch), re.compile(archives, re.IGNORECASE)
        self._left_out = {os.path.realpath(folder) for folder in (*leave_out, scratch)}
        self._entries: dict[str, Entry] = {}
        self._open: dict[str, zipfile.ZipFile] = {}
        for root in self.roots:
            if os.path.isdir(root):
                self._add_folder(root)
            elif os.path.isfile(root):
                if not root.lower().endswith(ARCHIVES):
                    self._add(os.path.basename(root), _file_entry(root))
                else:
                    self._add_archive(os.path.basename(root), root)
            else:
                raise ConvertError(describe_missing("source", root))
        self._entries = dict(sorted(self._entries.items()))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}

    @property
    def where(self) -> str:
        """The roots, for messages."""
        return ", ".join(self.roots)

    @property
    def names(self) -> list[str]:
        """Names of all files, sorted."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def entry(self, name: str) -> Entry:
        """Where the bytes of `name` are."""
        return self._entries[name]

    def label(self, name: str) -> str:
        """`name` as messages show it: a path on disk, or the archive's path, "!" and the member."""
        entry = self._entries[name]
        if entry.kind == "file":
            return entry.container
        inside = entry.container.startswith(self._scratch)
        return f"{self.where}!{name}" if inside else f"{entry.container}!{entry.member}"

    def path(self, name: str) -> str | None:
        """The file's own path if it lies in a folder, else None."""
        entry = self._entries[name]
        return entry.container if entry.kind == "file" else None

    # ---- finding ----------------------------------------------------------------------------------------------------------

    def find(self, pattern: str, what: str | None = None, *, case: bool = True) -> dict[tuple[str, ...], str]:
        """Map the groups of `pattern` to the name of the file it finds at the end of a name.

        Args:
            pattern: regular expression for the last parts of a name; it starts at the beginning or after a "/".
            what: if given, finding nothing is an error that uses these words.
            case: False ignores upper and lower case.
        Raises:
            ConvertError: nothing found, or two files with the same groups at the same depth (a plain file wins over an archived one).
        """
        regex = re.compile(f"(?:^|/){pattern}$", 0 if case else re.IGNORECASE)
        found: dict[tuple[str, ...], str] = {}
        for name in self._entries:
            match = regex.search(name)
            if match is None:
                continue
            key = match.groups(default="")
            other = found.setdefault(key, name)
            if other != name:
                found[key] = self._better(other, name)
        if what is not None and not found:
            some = ", ".join(list(self._entries)[:4]) or "no files at all"
            raise ConvertError(f"{self.where}: no {what} found; expected names like {spell(pattern)} (there: {some}); the expected tree "
                               "is in --help")
        return dict(sorted(found.items()))

    def _better(self, one: str, two: str) -> str:
        kinds = [self._entries[name].kind for name in (one, two)]
        if kinds[0] != kinds[1] and "file" in kinds:
            return (one, two)[kinds.index("file")]
        raise ConvertError(f"{self.label(one)} and {self.label(two)} are the same picture by name; leave one of them out of the source")

    # ---- reading ----------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """Return the bytes of one file; a `.gz` file is decompressed.

        Raises:
            ConvertError: the archive is damaged there, or the file cannot be read.
        """
        entry = self._entries[name]
        try:
            data = self._bytes(entry)
            return gzip.decompress(data) if name.endswith(".gz") else data
        except _BROKEN as error:
            raise ConvertError(f"{self.label(name)}: truncated or damaged ({error}); {_AGAIN}") from error
        except OSError as error:
            raise ConvertError(f"{self.label(name)}: cannot be read: {error.strerror or error}") from error

    def head(self, name: str, size: int = 1 << 16) -> bytes:
        """Return the first bytes of one file, to learn its size in pixels; b"" where it is damaged (`read` says so)."""
        entry = self._entries[name]
        try:
            if entry.kind == "zip":
                with self._zip(entry.container).open(entry.member) as file:
                    return file.read(size)
            with open(entry.container, "rb") as file:
                file.seek(entry.offset)
                return file.read(min(size, entry.size))
        except (*_BROKEN, OSError):
            return b""

    def text(self, name: str) -> str:
        """Return one file as text."""
        return self.read(name).decode("utf-8-sig", errors="replace")

    def lines(self, name: str) -> list[str]:
        """Return the non-empty lines of a text file, stripped."""
        return [line.strip() for line in self.text(name).splitlines() if line.strip()]

    def _bytes(self, entry: Entry) -> bytes:
        if entry.kind == "zip":
            return self._zip(entry.container).read(entry.member)
        with open(entry.container, "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size) if entry.kind == "tar" else file.read()
        if len(data) < entry.size:
            raise EOFError(f"{len(data)} of {entry.size} bytes")
        return data

    def _zip(self, path: str) -> zipfile.ZipFile:
        """An archive, opened once in each process."""
        if path not in self._open:
            self._open[path] = zipfile.ZipFile(path)
        return self._open[path]

    # ---- listing ----------------------------------------------------------------------------------------------------------

    def _add(self, name: str, entry: Entry) -> None:
        if not _JUNK.search(name):
            if name in self._entries:
                raise ConvertError(f"{entry.container}: holds {name} twice; {_AGAIN}, or give the roots separately")
            self._entries[name] = entry

    def _add_folder(self, root: str) -> None:
        for place, folders, files in os.walk(root, followlinks=True):
            folders[:] = sorted(f for f in folders if os.path.realpath(os.path.join(place, f)) not in self._left_out)
            inside = os.path.relpath(place, root)
            prefix = "" if inside == os.curdir else inside.replace(os.sep, "/") + "/"
            for file in sorted(files):
                path, name = os.path.join(place, file), prefix + file
                if file.lower().endswith(ARCHIVES) and not _JUNK.search(name):
                    self._add_archive(name, path)
                elif os.path.isfile(path):
                    self._add(name, _file_entry(path))

    def _add_archive(self, name: str, path: str) -> None:
        if not self._wanted.search(os.path.basename(name)):
            return
        try:
            if name.lower().endswith(".zip"):
                self._add_zip(name, path)
            else:
                self._add_tar(name, path)
        except _BROKEN as error:
            raise ConvertError(f"{self._shown(name, path)}: truncated or damaged archive ({error}); {_AGAIN}") from error

    def _add_zip(self, name: str, path: str) -> None:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                member = safe_member(info.filename, self._shown(name, path))
                if info.is_dir() or _JUNK.search(member):
                    continue
                full = f"{name}/{member}"
                if info.flag_bits & 1:
                    raise ConvertError(f"{self._shown(name, path)}: {member} is encrypted; unpack the archive with its password and give the folder")
                if member.lower().endswith(ARCHIVES):
                    if self._wanted.search(os.path.basename(member)):
                        with archive.open(info) as stream:
                            self._add_archive(full, self._expand(stream, full))
                else:
                    self._add(full, Entry("zip", path, info.filename, 0, info.file_size, info.CRC))

    def _add_tar(self, name: str, path: str) -> None:
        stamp = 0 if path.startswith(self._scratch) else os.stat(path).st_mtime_ns
        if not name.lower().endswith(".tar"):
            with tarfile_stream(path) as stream:
                path = self._expand(stream, name + ".tar")
        with tarfile.open(path, "r:") as archive:
            end = 0
            for info in archive:
                member = safe_member(info.name, self._shown(name, path))
                end = info.offset_data + -(-info.size // 512) * 512 if info.isreg() else info.offset_data
                if info.issym() or info.islnk():
                    raise ConvertError(f"{self._shown(name, path)}: {member} is a link; unpack the archive yourself and give the folder")
                if not info.isreg() or _JUNK.search(member):
                    continue
                full = f"{name}/{member}"
                if member.lower().endswith(ARCHIVES):
                    if self._wanted.search(os.path.basename(member)):
                        self._add_archive(full, self._expand(archive.extractfile(info), full))
                else:
                    self._add(full, Entry("tar", path, info.name, info.offset_data, info.size, stamp))
        if os.path.getsize(path) < end + 512:
            raise ConvertError(f"{self._shown(name, path)}: truncated archive (it ends without its end mark); {_AGAIN}")

    def _expand(self, stream: io.IOBase, name: str) -> str:
        """Copy a stream into the scratch folder and return the path."""
        os.makedirs(self._scratch, exist_ok=True)
        path = os.path.join(self._scratch, f"{zlib.crc32(name.encode()):08x}-{os.path.basename(name)}")
        with open(path, "wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        return path

    def _shown(self, name: str, path: str) -> str:
        return f"{self.where}!{name}" if path.startswith(self._scratch) else path


def pair(pictures: Mapping, masks: Mapping, source: Source, what: str = "mask") -> dict[tuple, tuple[str, str]]:
    """Join two results of `find` by their keys.

    Raises:
        ConvertError: a picture without mask or a mask without picture; names up to five.
    """
    for here, there, lacks in ((pictures, masks, f"no {what}"), (masks, pictures, "no picture")):
        lone = [source.label(name) for key, name in here.items() if key not in there]
        if lone:
            more = f" and {len(lone) - 5} more" if len(lone) > 5 else ""
            raise ConvertError(f"{source.where}: {len(lone)} of {len(here)} files have {lacks}: {', '.join(lone[:5])}{more}; the download is "
                               "incomplete, or a split is missing")
    return {key: (name, masks[key]) for key, name in pictures.items()}


def spell(pattern: str) -> str:
    """Turn a regular expression of `find` into something people read."""
    text = re.sub(r"\(\?[P:]?(<\w+>)?", "(", pattern)
    text = re.sub(r"\[[^\]]*\][+*]?|\\[dw][+*]?(\{\d+\})?|\.[*+]\??", "*", text)
    return re.sub(r"\\(.)", r"\1", re.sub(r"\(\*\)", "*", text))


def safe_member(name: str, archive: str) -> str:
    """Return a member's name with "/"; raise a ConvertError if it would leave its archive."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or ".." in parts or (parts and re.match(r"[A-Za-z]:", parts[0])) or "\0" in plain:
        raise ConvertError(f"{archive}: refused: its member {name!r} points outside of the archive")
    return "/".join(parts)


def tarfile_stream(path: str) -> io.IOBase:
    """Open the decompressed bytes of a .tgz, .tar.bz2 or .tar.xz."""
    import bz2
    import lzma
    opened = {"gz": gzip.open, "bz": bz2.open, "xz": lzma.open}
    return opened[{"tgz": "gz", ".gz": "gz", "bz2": "bz", ".xz": "xz"}[path.lower()[-3:]]](path, "rb")


def _file_entry(path: str) -> Entry:
    status = os.stat(path)
    return Entry("file", path, "", 0, status.st_size, status.st_mtime_ns)


def natural(names: Iterable[str]) -> list[str]:
    """Sort names with their numbers by value: area2 before area10."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def stem(name: str) -> str:
    """File name without folders and suffix."""
    return Path(name).stem
