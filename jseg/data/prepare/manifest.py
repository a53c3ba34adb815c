"""What a conversion has written: resumable runs, atomic files, checked counts, a report.

Every finished item is one line of `.prepare-<dataset>.jsonl` in the output folder: its name, a digest of its inputs and
options, its files with their sizes. A later run skips items whose line still holds and whose files are all there in
full size.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

import numpy as np

from jseg.data.datasets.files import list_files
from jseg.data.io import write_image, write_mask
from jseg.data.prepare.archives import Source
from jseg.data.prepare.members import MOST_BYTES
from jseg.data.prepare.parallel import default_workers, map_items
from jseg.errors import ConvertError
from jseg.files import write_atomically

__all__ = ["Item", "Job", "Remarks", "Report", "Settings", "Writer"]


@dataclass(frozen=True)
class Settings:
    """How to run a conversion; the same for all datasets.

    Args:
        workers: processes; 0 takes one per core.
        overwrite: do everything again, also what is finished.
        partial: accept counts that differ from the published ones.
        link: link pictures that need no change to the source instead of copying them (folders only).
        progress: show a progress bar.
        most_mb: size of one file of the source, decompressed, in MB; larger ones are refused.
    """

    workers: int = 0
    overwrite: bool = False
    partial: bool = False
    link: bool = False
    progress: bool = True
    most_mb: int = MOST_BYTES >> 20


class Remarks(NamedTuple):
    """What an item has to say: counted remarks, and what of the source it left out: kind -> names."""

    notes: Mapping[str, int] = {}
    left_out: Mapping[str, Sequence[str]] = {}


@dataclass(frozen=True)
class Item:
    """One unit of work: `work(item, source, writer)` reads `inputs` from the source and writes files.

    `work` is a function at module level, or a `functools.partial` of one; it may return `Remarks` for the report.
    """

    name: str
    work: Callable
    inputs: tuple[str, ...] = ()
    values: tuple = ()

    def digest(self, source: Source) -> str:
        """Hash of inputs (their sizes and stamps) and options."""
        state = [(name, source.entry(name).size, source.entry(name).stamp) for name in self.inputs if name]
        work, options = (self.work.func, self.work.keywords) if isinstance(self.work, functools.partial) else (
            self.work, {})
        return hashlib.sha256(pickle.dumps((state, work.__qualname__, options, self.values),
                                           protocol=4)).hexdigest()[:16]


@dataclass
class Report:
    """What a conversion did.

    Attributes:
        counts: files now below each folder of `expected`.
        written, kept: items done now and items found finished.
        notes: counted remarks of the converter.
        left_out: what of the source is in no file written: kind -> names. The command ends with status 2 unless that
        is accepted.
    """

    dataset: str
    out: str
    expected: Mapping[str, int | None]
    counts: dict[str, int] = field(default_factory=dict)
    written: int = 0
    kept: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    def differences(self) -> list[str]:
        """Folders whose count is not the published one, spelled."""
        return [f"{folder} {self.counts[folder]} of {count}" for folder, count in self.expected.items()
                if count is not None and self.counts[folder] != count]

    def __str__(self) -> str:
        lines = [f"{self.dataset}: {self.written} items converted, {self.kept} were there already, {self.seconds:.1f} "
                 f"s -> {self.out}"]
        lines += [f"  {folder}: {self.counts[folder]}"
                  + ("" if count in (None, self.counts[folder]) else f" (published: {count})")
                  for folder, count in self.expected.items()]
        lines += [f"  {note}: {count}" for note, count in sorted(self.notes.items())]
        lines += [f"  left out, {kind}: {len(names)} ({_first(names)})"
                  for kind, names in sorted(self.left_out.items())]
        return "\n".join([*lines, f"{self.written + self.kept} done, {self.lost} left out"])

    @property
    def lost(self) -> int:
        """Number of things left out."""
        return sum(map(len, self.left_out.values()))


class Writer:
    """Writes the files of one item below the output folder, atomically, and keeps book."""

    def __init__(self, out: str, link: bool = False):
        self.out, self._link = Path(out), link
        self.files: dict[str, int] = {}

    def mask(self, name: str, mask: np.ndarray, palette: Sequence | None = None) -> None:
        """Write an (H, W) index mask as PNG, with colours for viewers if a palette is given."""
        if palette is None and mask.dtype == np.uint8:
            # the same pixels in a third of the time, the file a third larger
            write_image(self.out / name, np.ascontiguousarray(mask))
        else:
            write_mask(self.out / name, mask, palette)
        self._book(name)

    def image(self, name: str, img: np.ndarray) -> None:
        """Write an (H, W, 3) uint8 BGR picture; the suffix chooses the format."""
        write_image(self.out / name, img)
        self._book(name)

    def data(self, name: str, data: bytes) -> None:
        """Write bytes."""
        write_atomically(self.out / name, data, durable=False)
        self._book(name)

    def copy(self, name: str, source: Source, member: str, data: bytes) -> None:
        """Write `data`, the bytes of a member of the source, unchanged;
        or link to the member if links are wanted and it is a file.
        """
        original = source.path(member) if self._link else None
        if original is None:
            return self.data(name, data)
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        os.symlink(os.path.realpath(original), temporary)
        os.replace(temporary, path)
        self._book(name)

    def _book(self, name: str) -> None:
        self.files[name] = os.stat(self.out / name).st_size


class Job:
    """One conversion: opens the source, runs items, keeps the manifest; removes its scratch folder at the end.

    Args:
        dataset: short name, used for the manifest's file.
        src: a folder or archive, or several.
        out: output folder; never one of the source's.
        expected: folder below `out` -> published number of files; None counts without a check.
        settings: how to run.
        archives: regular expression of the archives to look into.
    Raises:
        ConvertError: source missing or damaged; output and source are the same folder.
    """

    def __init__(self, dataset: str, src: str | os.PathLike | Sequence, out: str | os.PathLike,
                 expected: Mapping[str, int | None], settings: Settings = Settings(), *, archives: str = ""):
        self.dataset, self.settings, self.expected = dataset, settings, dict(expected)
        self.out = os.path.abspath(os.path.expanduser(os.fspath(out)))
        roots = [src] if isinstance(src, (str, os.PathLike)) else list(src)
        roots = [os.path.expanduser(os.fspath(root)) for root in roots]
        for root in roots:
            if os.path.realpath(root) == os.path.realpath(self.out):
                raise ConvertError(f"{root}: source and output are the same folder; the source is never changed: give "
                                   "another --out")
        if os.path.exists(self.out) and not os.path.isdir(self.out):
            raise ConvertError(f"{self.out}: the output must be a folder, this is a file")
        self._scratch = os.path.join(self.out, f".scratch-{dataset}")
        self._book = os.path.join(self.out, f".prepare-{dataset}.jsonl")
        self._started = time.monotonic()
        self._left_out: dict[str, list[str]] = {}
        try:
            self.source = Source(roots, self._scratch, archives=archives, leave_out=[self.out],
                                 most_bytes=settings.most_mb << 20)
        except BaseException:
            self._tidy()
            raise

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *exc) -> None:
        self._tidy()

    def _tidy(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def need(self, found: Iterable[str], wanted: Sequence[str], what: str = "split") -> None:
        """Raise a ConvertError if some of the wanted splits were not found; with `partial` one of them is enough."""
        found = set(found)
        missing = [name for name in wanted if name not in found]
        if missing and (not self.settings.partial or len(missing) == len(wanted)):
            some = ", ".join(self.source.names[:4]) or "no files at all"
            raise ConvertError(f"{self.source.where}: no files of {what} {', '.join(missing)} (there: {some}); give "
                               "all of the download, see the expected tree in --help, or add --partial to convert what "
                               "is there")

    def leave_out(self, kind: str, names: Sequence[str]) -> None:
        """Say in the report that these things of the source are in no file written."""
        if names:
            self._left_out.setdefault(kind, []).extend(names)

    def run(self, items: Iterable[Item], texts: Mapping[str, Sequence[str]] | None = None) -> Report:
        """Do all items that are not finished, write the text files, check the counts.

        Args:
            items: in the order wanted; names are unique.
            texts: file name -> lines, written at the end.
        Raises:
            ConvertError: an item failed (what is finished is kept), two items write one file, or the counts are not the
            published ones.
        """
        items = list(items)
        left_out = {kind: list(names) for kind, names in self._left_out.items()}
        report = Report(self.dataset, self.out, self.expected, left_out=left_out)
        digests = {item.name: item.digest(self.source) for item in items}
        if len(digests) < len(items):
            twice = next(item.name for i, item in enumerate(items) if item.name in {other.name for other in items[:i]})
            raise ConvertError(f"{self.source.where}: {twice} is there twice; leave one of them out of the source")
        done = {} if self.settings.overwrite else self._finished(digests)
        owners = {file: name for name, record in done.items() for file in record["files"]}
        self._guard_source()
        os.makedirs(self.out, exist_ok=True)
        todo = [item for item in items if item.name not in done]
        report.kept = len(items) - len(todo)
        for record in done.values():
            _add_remarks(report, Remarks(record["notes"], record.get("left_out", {})))
        workers = self.settings.workers or default_workers()
        with open(self._book, "a", encoding="utf-8") as book:
            for item, (files, remarks) in map_items(_do, (self.source, self.out, self.settings.link), todo,
                                                    workers=workers,
                                                  title=self.dataset, progress=self.settings.progress):
                for file in files:
                    if owners.setdefault(file, item.name) != item.name:
                        raise ConvertError(f"{item.name} and {owners[file]} both make {file}; leave one of them out of "
                                           "the source")
                book.write(json.dumps({"item": item.name, "digest": digests[item.name], "files": files,
                                       **remarks._asdict()}) + "\n")
                book.flush()
                _add_remarks(report, remarks)
                report.written += 1
        writer = Writer(self.out)
        for name, lines in (texts or {}).items():
            writer.data(name, "".join(f"{line}\n" for line in lines).encode())
        return self._counted(report)

    def _guard_source(self) -> None:
        """Raise if the output folder's own files would overwrite the source's:
        when the source lies in a folder we write into.
        """
        tops = {os.path.join(os.path.realpath(self.out), folder.split("/")[0]) for folder in self.expected}
        for root in self.source.roots:
            place = os.path.realpath(root) + os.sep
            if any(place.startswith(top + os.sep) for top in tops):
                raise ConvertError(f"{root}: the output would be written into the source; the source is never changed: "
                                   "give another --out")

    def _finished(self, digests: Mapping[str, str]) -> dict[str, dict]:
        """Records of items that need not be done; files of outdated records are removed."""
        records: dict[str, dict] = {}
        if os.path.isfile(self._book):
            with open(self._book, encoding="utf-8", errors="replace") as book:
                for line in book:
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError):  # a line cut off by a crash
                        continue
                    if _trusted(record):
                        records[record["item"]] = record
        done = {}
        for name, record in records.items():
            if digests.get(name) == record["digest"] and all(_size(os.path.join(self.out, f)) == n
                                                             for f, n in record["files"].items()):
                done[name] = record
            elif name in digests:
                for file in record["files"]:
                    Path(self.out, file).unlink(missing_ok=True)
        return done

    def _counted(self, report: Report) -> Report:
        report.counts = {folder: _count(os.path.join(self.out, folder)) for folder in self.expected}
        report.seconds = time.monotonic() - self._started
        if report.differences() and not self.settings.partial:
            raise ConvertError(f"{self.out}: counts are not the published ones: {', '.join(report.differences())}. Is "
                               "the download complete, and was the folder empty before? If this is what you have, add "
                               "--partial")
        return report


def _do(context: tuple[Source, str, bool], item: Item) -> tuple[dict[str, int], Remarks]:
    source, out, link = context
    writer = Writer(out, link)
    try:
        remarks = item.work(item, source, writer)
    except BaseException:  # tiles above a damaged row: no part of an item stays
        for file in writer.files:
            Path(out, file).unlink(missing_ok=True)
        raise
    return writer.files, remarks or Remarks()


def _add_remarks(report: Report, remarks: Remarks) -> None:
    for note, count in remarks.notes.items():
        report.notes[note] = report.notes.get(note, 0) + count
    for kind, names in remarks.left_out.items():
        report.left_out.setdefault(kind, []).extend(names)


def _first(names: Sequence[str]) -> str:
    """The first three names."""
    return ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")


def _trusted(record: Any) -> bool:
    """Whether a line of the book is one that a run wrote: its files are removed when they are outdated, and lie below
    the output.
    """
    kinds = {"item": str, "digest": str, "files": dict, "notes": dict}
    return (isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in kinds.items())
            and all(file and not os.path.isabs(file) and os.pardir not in file.split("/") for file in record["files"]))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _count(path: str) -> int:
    return len(list_files(path, "")) if os.path.isdir(path) else int(os.path.isfile(path))
