"""One reader over folders, zip and tar files, also nested: a publisher's download is read as it lies on disk.

Every file has a name with "/" in it. A file inside an archive is named like a file in a folder:
`Train.zip/Train/Rural/1.png`. Nothing is unpacked: zip members are read one by one, tar members by their offset. Only
what has no random access, a compressed tar or an archive inside an archive, is first expanded into a scratch folder.
`.gz` files are read decompressed, under their own names.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Mapping, NamedTuple, Sequence

from jseg.data.datasets.files import describe_missing
from jseg.data.prepare.members import (AGAIN, FREE_BYTES, MOST_BYTES, MOST_NESTED, MOST_RATIO, damage_named,
                                       decompressing, read_stream, tar_files,
                                       zip_files)
from jseg.errors import ConvertError
from jseg.files import open_regular, regular_file
from jseg.text import decode_text

__all__ = ["Source", "Entry", "pair"]

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DEPTH = 3  # an archive in an archive in an archive
_JUNK = re.compile(r"(^|/)(__MACOSX(/|$)|\.|Thumbs\.db$|desktop\.ini$)")


class Entry(NamedTuple):
    """Where the bytes of one file are: kind "file", "zip" or "tar"; the container's path;
    the member; size and a stamp of its state.
    """

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
        most_bytes: of one file, decompressed; a larger one is refused when it is read.
    Raises:
        ConvertError: a root is missing or no regular file, an archive is damaged, a bomb or encrypted, or a member is
            a link or its name leaves the archive.
    """

    def __init__(self, roots: Sequence[str | os.PathLike], scratch: str | os.PathLike, *, archives: str = "",
                 leave_out: Sequence[str | os.PathLike] = (), most_bytes: int = MOST_BYTES):
        self.roots = [os.fspath(root) for root in roots]
        self._scratch, self._wanted = os.fspath(scratch), re.compile(archives, re.IGNORECASE)
        self._left_out = {os.path.realpath(folder) for folder in (*leave_out, scratch)}
        self._entries: dict[str, Entry] = {}
        self._open: dict[str, zipfile.ZipFile] = {}
        self._most_bytes, self._nested, self._room = most_bytes, 0, 0
        for root in self.roots:
            if os.path.isdir(root):
                self._add_folder(root)
            elif os.path.exists(root):
                regular_file(root, what="folder or archive", error=ConvertError)
                if not root.lower().endswith(ARCHIVES):
                    self._add_entry(os.path.basename(root), _file_entry(root))
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

    # ---- finding -----------------------------------------------------------------------------------------------------

    def find(self, pattern: str, what: str | None = None, *, case: bool = True) -> dict[tuple[str, ...], str]:
        """Map the groups of `pattern` to the name of the file it finds at the end of a name.

        Args:
            pattern: regular expression for the last parts of a name; it starts at the beginning or after a "/".
            what: if given, finding nothing is an error that uses these words.
            case: False ignores upper and lower case.
        Raises:
            ConvertError: nothing found, or two files with the same groups at the same depth (a plain file wins over an
            archived one).
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
            raise ConvertError(f"{self.where}: no {what} found; expected names like {spell(pattern)} (there: {some}); "
                               "the expected tree is in --help")
        return dict(sorted(found.items()))

    def _better(self, one: str, two: str) -> str:
        kinds = [self._entries[name].kind for name in (one, two)]
        if kinds[0] != kinds[1] and "file" in kinds:
            return (one, two)[kinds.index("file")]
        raise ConvertError(f"{self.label(one)} and {self.label(two)} are the same picture by name; leave one of them "
                           "out of the source")

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """Return the bytes of one file; a `.gz` file is decompressed.

        Raises:
            ConvertError: the archive is damaged there, or the file cannot be read or is larger than the limit.
        """
        entry = self._entries[name]
        with damage_named(self.label(name), "truncated or damaged"), self._stream(entry) as stream:
            data = read_stream(stream, self._most_bytes, self.label(name))
            if len(data) < entry.size:
                raise EOFError(f"{len(data)} of {entry.size} bytes")
            if not name.endswith(".gz"):
                return data
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as plain:
                return read_stream(plain, self._most_bytes, self.label(name))

    def head(self, name: str, size: int = 1 << 16) -> bytes:
        """Return the first bytes of one file, to learn its size in pixels; b"" where it is damaged (`read` says so)."""
        try:
            with damage_named(name), self._stream(self._entries[name]) as stream:
                return stream.read(size)
        except ConvertError:
            return b""

    def text(self, name: str) -> str:
        """Return one file as text; a ConvertError says which line is not UTF-8."""
        return decode_text(self.read(name), self.label(name), error=ConvertError)

    def json(self, name: str) -> Any:
        """Return one JSON file's value; a ConvertError names the place that is no JSON, or the nesting that is too
        deep.
        """
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise ConvertError(f"{self.label(name)}: not a JSON file ({error}); {AGAIN}") from error

    def lines(self, name: str) -> list[str]:
        """Return the non-empty lines of a text file, stripped."""
        return [line.strip() for line in self.text(name).splitlines() if line.strip()]

    def _stream(self, entry: Entry) -> BinaryIO:
        """The bytes of one file, from its first to its last."""
        if entry.kind == "zip":
            return self._zip(entry.container).open(entry.member)
        file = open_regular(entry.container, error=ConvertError)
        return file if entry.kind == "file" else _Slice(file, entry.offset, entry.size)

    def _zip(self, path: str) -> zipfile.ZipFile:
        """An archive, opened once in each process."""
        if path not in self._open:
            self._open[path] = zipfile.ZipFile(path)
        return self._open[path]

    # ---- listing -----------------------------------------------------------------------------------------------------

    def _add_entry(self, name: str, entry: Entry) -> None:
        if not _JUNK.search(name):
            if name in self._entries:
                raise ConvertError(f"{entry.container}: holds {name} twice; download it again, or give the roots "
                                   "separately")
            self._entries[name] = entry

    def _add_folder(self, root: str) -> None:
        seen = {os.path.realpath(root)}  # links may go round in circles
        for place, folders, files in os.walk(root, followlinks=True):
            real = {f: os.path.realpath(os.path.join(place, f)) for f in sorted(folders)}
            folders[:] = [f for f in real if real[f] not in self._left_out and real[f] not in seen
                          and not seen.add(real[f])]
            inside = os.path.relpath(place, root)
            prefix = "" if inside == os.curdir else inside.replace(os.sep, "/") + "/"
            for file in sorted(files):
                path, name = os.path.join(place, file), prefix + file
                if not os.path.isfile(path):
                    continue
                if file.lower().endswith(ARCHIVES) and not _JUNK.search(name):
                    self._add_archive(name, path)
                else:
                    self._add_entry(name, _file_entry(path))

    def _add_archive(self, name: str, path: str, depth: int = 1) -> None:
        if not self._wanted.search(os.path.basename(name)):
            return
        if depth == 1:
            self._room = max(FREE_BYTES, MOST_RATIO * os.path.getsize(path))
        where = self._shown(name, path)
        if depth > DEPTH:
            raise ConvertError(f"{where}: an archive inside of {depth - 1} others; accepted are {DEPTH - 1}: unpack "
                               "them yourself and give the folder")
        with damage_named(where):
            (self._add_zip if name.lower().endswith(".zip") else self._add_tar)(name, path, where, depth)

    def _add_zip(self, name: str, path: str, where: str, depth: int) -> None:
        with zipfile.ZipFile(path) as archive:
            for member, info in zip_files(archive, where):
                full = f"{name}/{member}"
                if _JUNK.search(member):
                    continue
                if not member.lower().endswith(ARCHIVES):
                    self._add_entry(full, Entry("zip", path, info.filename, 0, info.file_size, info.CRC))
                elif self._wanted.search(os.path.basename(member)):
                    with archive.open(info) as stream:
                        self._add_archive(full, self._expand(stream, full), depth + 1)

    def _add_tar(self, name: str, path: str, where: str, depth: int) -> None:
        stamp = 0 if path.startswith(self._scratch) else os.stat(path).st_mtime_ns
        if not name.lower().endswith(".tar"):
            with decompressing(path) as stream:
                path = self._expand(stream, name, ".tar")
        with open_regular(path, error=ConvertError) as file:
            for member, info, stream in tar_files(file, where):
                full = f"{name}/{member}"
                if _JUNK.search(member):
                    continue
                if not member.lower().endswith(ARCHIVES):
                    self._add_entry(full, Entry("tar", path, info.name, info.offset_data, info.size, stamp))
                elif self._wanted.search(os.path.basename(member)):
                    self._add_archive(full, self._expand(stream, full), depth + 1)

    def _expand(self, stream: BinaryIO, name: str, suffix: str = "") -> str:
        """Copy a stream into the scratch folder and return the path, which ends in `suffix` or as `name` does."""
        self._nested += 1
        if self._nested > MOST_NESTED:
            raise ConvertError(f"{self.where}!{name}: more than {MOST_NESTED} archives inside of archives; unpack "
                               "them yourself and give the folder")
        os.makedirs(self._scratch, exist_ok=True)
        path = os.path.join(self._scratch, f"{self._nested}{suffix or os.path.splitext(name)[1]}")
        with open(path, "wb") as file:
            while piece := stream.read(1 << 20):
                self._room -= len(piece)
                if self._room < 0:
                    raise ConvertError(f"{self.where}!{name}: expands to more than {MOST_RATIO} times the size of its "
                                       "archive, as only a bomb should; "
                                       "if it is none, unpack it yourself and give the folder")
                file.write(piece)
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
            raise ConvertError(f"{source.where}: {len(lone)} of {len(here)} files have {lacks}: "
                               f"{', '.join(lone[:5])}{more}; the download is incomplete, or a split is missing")
    return {key: (name, masks[key]) for key, name in pictures.items()}


def spell(pattern: str) -> str:
    """Turn a regular expression of `find` into something people read."""
    text = re.sub(r"\(\?[P:]?(<\w+>)?", "(", pattern)
    text = re.sub(r"\[[^\]]*\][+*]?|\\[dw][+*]?(\{\d+\})?|\.[*+]\??", "*", text)
    return re.sub(r"\\(.)", r"\1", re.sub(r"\(\*\)", "*", text))


class _Slice(io.RawIOBase):
    """Some bytes of an open file; closes it."""

    def __init__(self, file: BinaryIO, offset: int, size: int):
        self._file, self._left = file, size
        file.seek(offset)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def _file_entry(path: str) -> Entry:
    status = os.stat(path)
    return Entry("file", path, "", 0, status.st_size, status.st_mtime_ns)


def natural(names: Iterable[str]) -> list[str]:
    """Sort names with their numbers by value: area2 before area10."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def stem(name: str) -> str:
    """File name without folders and suffix."""
    return Path(name).stem
