"""Published checkpoints: the index `weights_index.yaml`, and having one of its files.

The index is beside this file, so that it is installed with it; in the repository `weights/index.yaml` leads to it.

    <folder>/<file>            a finished file; used when it is there and is a checkpoint
    <folder>/<file>.json       its SHA-256, written when it was converted for the first time and compared from then on
    <folder>/<file>.part       what an interrupted download left; the next one goes on from its end (see `download`)
    <folder>/<file>.rejected   a download that was no such checkpoint; nobody reads it, remove it when you like

Nothing is trusted because of its address: a file is looked at before it gets its name. One whose SHA-256 begins as the
index says is proven. Eight digits that differ prove nothing: mmsegmentation takes those of its file names before it
publishes, and has published SegNeXt's files again since; that is said, and then the length and MD5 that the server
states, the reader and the conversion of every key decide. More than eight digits are a hash that the index vouches for:
a file that differs is refused. No file of yours is ever removed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib

from jseg.config import load_config
from jseg.convert.download import MAX_BYTES, Arrived, Progress, download
from jseg.convert.torch_file import read_torch_file
from jseg.errors import CheckpointError, ConvertError, WriteError
from jseg.files import regular_file, write_atomically
from jseg.registry import nearest
from jseg.weights_header import foreign_kind, read_header

__all__ = ["Published", "Fetched", "INDEX", "read_index", "find_entry", "fetch", "record_hash", "reject"]

INDEX = pathlib.Path(__file__).with_suffix(".yaml")


@dataclasses.dataclass(frozen=True)
class Published:
    """One published checkpoint; None marks what is not known. The fields are told in `weights_index.yaml`."""

    name: str
    file: str
    url: str
    source: str
    sha256: str | None = None
    licence: str | None = None
    config: str | None = None
    classes: str | None = None
    miou: tuple[float | None, float | None] | None = None

    def by_hand(self, folder: pathlib.Path) -> str:
        """What to do without a connection."""
        check = f", whose SHA-256 may begin with {self.sha256}," if self.sha256 else ""
        return (f"Fetch {self.url}{check} by hand, put it at {folder / self.file}, and run the same command again, or "
                "wherever it is 'jseg convert FILE'")


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A file that is there: `path`, its `sha256`, `came_from` ("already there" or the address), `proof` in words.

    `proven` tells whether its hash is one that was published or recorded; `fresh` whether this call fetched it.
    """

    path: pathlib.Path
    sha256: str
    came_from: str
    proof: str
    proven: bool
    fresh: bool


def read_index(path: str | os.PathLike = INDEX) -> dict[str, Published]:
    """The entries of an index file by name.

    Raises:
        ConvertError: the file is missing or an entry is not of the form that `weights_index.yaml` explains.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConvertError(f"{path}: no index of weights there; jseg brings one (leave --index out), or name the file "
                           "of your own")
    found, known = {}, [field.name for field in dataclasses.fields(Published)][1:]
    for name, block in load_config(path).items():
        where = f"{path}: {name}"
        if not isinstance(block, dict):
            raise ConvertError(f"{where}: {block!r} is not a block of {', '.join(known)}")
        for key in block:
            if key not in known:
                raise ConvertError(f"{where}: unknown key {key!r}{nearest(key, known)} (known: {', '.join(known)})")
        for key in ("file", "url", "source"):
            if not isinstance(block.get(key), str):
                raise ConvertError(f"{where}: {key} is {block.get(key)!r}; a text is needed")
        if pathlib.PurePath(block["file"]).name != block["file"] or not block["url"].startswith(
            ("http://", "https://")):
            raise ConvertError(f"{where}: file {block['file']!r}, url {block['url']!r}; accepted: a bare file name, "
                               "and an http or https address")
        prefix = block.get("sha256")
        if prefix is not None and (not isinstance(prefix, str) or not 8 <= len(prefix) <= 64
                                   or set(prefix) - set("0123456789abcdef")):
            raise ConvertError(f"{where}: sha256 is {prefix!r}; accepted: 8 to 64 lower-case hexadecimal digits in "
                               "quotes, or null")
        found[str(name)] = Published(str(name),
                                     **{**block, "miou": tuple(block["miou"]) if block.get("miou") else None})
    return found


def find_entry(name: str, index: dict[str, Published]) -> Published:
    """The entry of that name, or ConvertError with the nearest one."""
    if name not in index:
        raise ConvertError(f"no weights are called {name!r}{nearest(name, index)}; `jseg weights list` shows all "
                           f"{len(index)}")
    return index[name]


def fetch(entry: Published, folder: str | os.PathLike, *, progress: Progress | None = None, pause_s: float = 1.0,
          max_bytes: int = MAX_BYTES) -> Fetched:
    """Have the file of an entry in a folder: the one that is there, or a download.

    Args:
        entry: what to have.
        folder: made where it is missing.
        progress: called while bytes arrive.
        pause_s: wait before going on after a broken connection, in seconds; doubled each time.
        max_bytes: the largest file that is fetched.
    Raises:
        ConvertError: no connection, an answer other than the file, a file that is no checkpoint or not the one
            recorded; says what to do by hand.
        WriteError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    path, part = folder / entry.file, folder / f"{entry.file}.part"
    if os.path.lexists(path):
        return _already_there(entry, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            arrived = download(entry.url, part, progress=progress, pause_s=pause_s, max_bytes=max_bytes)
        except ConvertError as error:
            size = part.stat().st_size if part.exists() else 0
            kept = (f"{size} bytes are kept in {part}; the same command goes on from there where it can. Or: "
                    if size else "")
            raise ConvertError(f"{entry.name}: cannot be fetched from {entry.url}: {error}. "
                               f"{kept}{entry.by_hand(folder)}") from error
        digest, md5 = _hashes(part)
        fault = _fault(entry, part, digest, md5, arrived)
        if fault:
            aside = reject(part, path)
            raise ConvertError(f"{entry.name}: {entry.url} gave {aside.stat().st_size} bytes that are not its file: "
                               f"{fault}; they are kept as {aside}. {entry.by_hand(folder)}")
        os.replace(part, path)
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error}); free disk space or allow writing "
                         "there") from error
    proof, proven = _proof(entry, digest)
    if not proven and arrived.md5 == md5:
        proof += ", and its MD5 is the one that the server states"
    return Fetched(path, digest, entry.url, proof, proven, True)


def _already_there(entry: Published, path: pathlib.Path) -> Fetched:
    """The file under an entry's name, compared with its record and looked at."""
    if not path.exists():
        raise ConvertError(f"{path}: a link that leads nowhere; remove it and run the same command again")
    regular_file(path, what="checkpoint", error=ConvertError)
    digest, md5 = _hashes(path)
    recorded = _recorded(path)
    fault = _fault(entry, path, digest, md5, Arrived())
    if not fault and recorded not in (None, digest):
        fault = (f"its SHA-256 {digest[:16]}... is not {recorded[:16]}..., which was recorded when it was first "
                 f"converted ({path.name}.json)")
    if fault:
        raise ConvertError(f"{path}: is not the file of {entry.name}: {fault}. Move it away and run the same command "
                           f"again, or 'jseg convert {path}'")
    proof, proven = _proof(entry, digest)
    if recorded and not proven:
        proof, proven = "is the one recorded at its first conversion", True
    return Fetched(path, digest, "already there", proof, proven, False)


def _fault(entry: Published, path: pathlib.Path, digest: str, md5: str, arrived: Arrived) -> str:
    """What speaks against a file, in words; empty when nothing does."""
    if entry.sha256 and digest.startswith(entry.sha256):
        return ""
    if entry.sha256 and len(entry.sha256) > 8:
        return f"its SHA-256 begins with {digest[:len(entry.sha256)]}, not with {entry.sha256}"
    if arrived.length is not None and path.stat().st_size != arrived.length:
        return f"it has {path.stat().st_size} bytes, the server said {arrived.length}"
    if arrived.md5_is_sure and arrived.md5 != md5:
        return f"its MD5 is {md5}, the server said {arrived.md5}"
    with open(path, "rb") as file:
        kind = foreign_kind(file.read(512))
    if path.stat().st_size == 0 or "HTML" in kind or "LFS" in kind:
        return f"it is {kind or 'empty'}"
    try:
        read_header(path) if entry.file.endswith(".safetensors") else read_torch_file(path)
    except (ConvertError, CheckpointError) as error:
        return str(error).replace(f"{path}: ", "", 1)
    return ""


def _proof(entry: Published, digest: str) -> tuple[str, bool]:
    """(what speaks for a file, whether it is proof)."""
    if entry.sha256 is None:
        return "its publisher gives none to compare with", False
    if digest.startswith(entry.sha256):
        return f"begins with {entry.sha256} as published", True
    return (f"does not begin with {entry.sha256} as its name says, which proves nothing: those digits were taken "
            "before the file was published"), False


def record_hash(found: Fetched, entry: Published) -> None:
    """Keep the whole SHA-256 of a file that was converted, to be compared at every later use."""
    if _recorded(found.path) is None:
        facts = {"name": entry.name, "url": entry.url, "bytes": found.path.stat().st_size, "sha256": found.sha256}
        write_atomically(_record(found.path), json.dumps(facts, indent=1).encode() + b"\n")


def _record(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.json")


def _recorded(path: pathlib.Path) -> str | None:
    """The SHA-256 kept beside a file, where there is a readable one."""
    try:
        digest = json.loads(_record(path).read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def reject(fetched: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """Put a download that is not what was asked for aside, as `<path>.rejected`; an older one is replaced."""
    aside = path.with_name(f"{path.name}.rejected")
    os.replace(fetched, aside)
    fetched.with_name(f"{fetched.name}.json").unlink(missing_ok=True)
    return aside


def _hashes(path: pathlib.Path) -> tuple[str, str]:
    """(SHA-256, MD5) of a file."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()
