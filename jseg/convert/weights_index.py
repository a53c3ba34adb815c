"""Published checkpoints: the index `weights_index.yaml`, and fetching one of its files with resume and a check of its hash.

The index is beside this file, so that it is installed with it; in the repository `weights/index.yaml` leads to it.

    <folder>/<file>        a finished file; used when it is there and its hash fits
    <folder>/<file>.part   what an interrupted download left; the next one goes on from its end (HTTP Range)

Nothing is trusted because of its address: a file whose SHA-256 does not begin as the index says is never given its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import pathlib
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Callable

from jseg.config import load_config
from jseg.errors import ConvertError, WriteError
from jseg.registry import nearest

__all__ = ["Published", "INDEX", "read_index", "find_entry", "fetch"]

INDEX = pathlib.Path(__file__).with_suffix(".yaml")
CHUNK, TIMEOUT_S, TRIES = 1 << 18, 30, 4
Progress = Callable[[int, "int | None"], None]  # (bytes on disk, bytes in all or None)


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
    miou: tuple[float, float] | None = None

    def by_hand(self, folder: pathlib.Path) -> str:
        """What to do without a connection."""
        check = f", whose SHA-256 begins with {self.sha256}," if self.sha256 else ""
        return f"Fetch {self.url}{check} by hand, put it at {folder / self.file}, and run the same command again"


def read_index(path: str | os.PathLike = INDEX) -> dict[str, Published]:
    """The entries of an index file by name.

    Raises:
        ConvertError: the file is missing or an entry is not of the form that `weights_index.yaml` explains.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConvertError(f"{path}: no index of weights there; jseg brings one (leave --index out), or name the file of your own")
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
        if pathlib.PurePath(block["file"]).name != block["file"] or not block["url"].startswith(("http://", "https://")):
            raise ConvertError(f"{where}: file {block['file']!r}, url {block['url']!r}; accepted: a bare file name, and an http or https address")
        prefix = block.get("sha256")
        if prefix is not None and (not isinstance(prefix, str) or not 8 <= len(prefix) <= 64 or set(prefix) - set("0123456789abcdef")):
            raise ConvertError(f"{where}: sha256 is {prefix!r}; accepted: 8 to 64 lower-case hexadecimal digits in quotes, or null")
        found[str(name)] = Published(str(name), **{**block, "miou": tuple(block["miou"]) if block.get("miou") else None})
    return found


def find_entry(name: str, index: dict[str, Published]) -> Published:
    """The entry of that name, or ConvertError with the nearest one."""
    if name not in index:
        raise ConvertError(f"no weights are called {name!r}{nearest(name, index)}; `jseg weights list` shows all {len(index)}")
    return index[name]


def fetch(entry: Published, folder: str | os.PathLike, *, progress: Progress | None = None, pause_s: float = 1.0) -> tuple[pathlib.Path, str, str]:
    """Have the file of an entry in a folder: the one that is there, or a download.

    Args:
        entry: what to have.
        folder: made where it is missing.
        progress: called while bytes arrive.
        pause_s: wait before going on after a broken connection, in seconds; doubled each time.
    Returns:
        (path, its SHA-256, "already there" or the address it came from).
    Raises:
        ConvertError: no connection, an answer other than the file, or a wrong hash; says what to fetch by hand and where to put it.
        WriteError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    path, part = folder / entry.file, folder / f"{entry.file}.part"
    if path.exists():
        digest = _sha256(path)
        if entry.sha256 and not digest.startswith(entry.sha256):
            raise ConvertError(f"{path}: its SHA-256 begins with {digest[:len(entry.sha256)]}, that of {entry.name} with {entry.sha256}; it is damaged "
                               f"or another file: move it away and run the same command again")
        return path, digest, "already there"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        _download(entry, part, folder, progress, pause_s)
        digest = _sha256(part)
        if resumed and not _fits(entry, digest):  # the rest may have come from a newer file than the beginning
            part.unlink()
            _download(entry, part, folder, progress, pause_s)
            digest = _sha256(part)
        if not _fits(entry, digest):
            size = part.stat().st_size
            part.unlink()
            raise ConvertError(f"{entry.name}: {entry.url} gave {size} bytes whose SHA-256 begins with {digest[:8]}, not with {entry.sha256}; "
                               f"the file there is another one or was changed on its way. Nothing was kept. {entry.by_hand(folder)}")
        os.replace(part, path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error}); free disk space or allow writing there") from error
    return path, digest, entry.url


def _fits(entry: Published, digest: str) -> bool:
    return entry.sha256 is None or digest.startswith(entry.sha256)


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _download(entry: Published, part: pathlib.Path, folder: pathlib.Path, progress: Progress | None, pause_s: float) -> None:
    """Fill the .part file; a connection that breaks is taken up again where it broke, some times."""
    for attempt in range(TRIES):
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(entry.url, part, progress):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing lies behind our end: the part is whole, or of another file
                if _total(error.headers.get("Content-Range")) == before:
                    return
                part.unlink()
                continue
            if error.code < 500:
                raise ConvertError(f"{entry.name}: {entry.url} answers {error.code} {error.reason}; the file has moved or is closed to us. "
                                   f"{entry.by_hand(folder)}") from error
            reason = f"it answers {error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = f"no connection ({error.reason})"
            if attempt == 0 and not isinstance(error.reason, TimeoutError):  # offline: no use in waiting
                break
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = f"the connection broke ({error or type(error).__name__})"
        if attempt + 1 < TRIES:
            time.sleep(pause_s * 2 ** attempt)
    size = part.stat().st_size if part.exists() else 0
    kept = f"{size} bytes are kept in {part}; the same command goes on from there. Or: " if size else ""
    raise ConvertError(f"{entry.name}: cannot be fetched: {reason}. {kept}{entry.by_hand(folder)}")


def _receive(url: str, part: pathlib.Path, progress: Progress | None) -> bool:
    """One request, from the end of the .part file on. True when the whole file is there."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "jseg", "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
        goes_on = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {start}-")
        if not goes_on:
            if answer.status == 206:
                raise http.client.HTTPException(f"asked for bytes from {start} on, got {answer.headers.get('Content-Range')!r}")
            start = 0  # the server does not go on: from the beginning
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        with _writable(part, "ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                start += len(chunk)
                if progress:
                    progress(start, total)
    return total is None or start >= total


def _writable(path: pathlib.Path, mode: str) -> Any:
    """Open, so that a fault of the disk is not taken for one of the connection."""
    try:
        return open(path, mode)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror}); free disk space or allow writing there") from error


def _total(content_range: str | None) -> int | None:
    """`bytes */1234` -> 1234."""
    total = (content_range or "").rpartition("/")[2]
    return int(total) if total.isdigit() else None
