"""Files: only regular ones are opened, and a name always leads to the old or the new content, never to a part."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from jseg import runtime_signals
from jseg.errors import DataError, JsegError, WriteError

__all__ = ["open_regular", "read_regular", "regular_file", "write_atomically", "sync_folder", "drop_drafts"]

_ODD_FILES = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
              (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def regular_file(path: str | os.PathLike, *, what: str = "file", error: type[JsegError] = DataError) -> os.stat_result:
    """Make sure that opening and reading `path` cannot hang: it is a regular file or a link to one.

    Args:
        what: the noun of the message, such as "picture" or "list".
        error: the class to raise.
    Returns:
        what `os.stat` says of it.
    Raises:
        error: it is a folder, a named pipe, a socket or a device, or the name holds a zero byte.
        OSError: it is missing or out of reach; the caller knows what to advise.
    """
    try:
        found = os.stat(path)
    except ValueError:
        raise error(f"{os.fspath(path)!r}: no file can have this name (it holds a zero byte)") from None
    _refuse_odd_file(found.st_mode, path, what, error)
    return found


def open_regular(path: str | os.PathLike, *, what: str = "file", error: type[JsegError] = DataError) -> BinaryIO:
    """Open a regular file (or a link to one) for reading bytes;
    errors as `regular_file`, and never waits for a writer.
    """
    regular_file(path, what=what, error=error)  # looked at before opening: opening alone moves some devices
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)), "rb")
    try:
        # the name may have got another file meanwhile
        _refuse_odd_file(os.fstat(file.fileno()).st_mode, path, what, error)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: str | os.PathLike, *, what: str = "file", error: type[JsegError] = DataError,
                 most_bytes: int | None = None) -> bytes:
    """Read a regular file whole; errors as `regular_file`, and `error` where it has more than `most_bytes`."""
    with open_regular(path, what=what, error=error) as file:
        if most_bytes is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        content = file.read(most_bytes + 1) if size <= most_bytes else b""  # it may grow, and /proc tells no sizes
    if max(size, len(content)) > most_bytes:
        raise error(f"{path}: this {what} has {max(size, len(content)):,} bytes; at most {most_bytes:,} are accepted")
    return content


def _refuse_odd_file(mode: int, path: str | os.PathLike, what: str, error: type[JsegError]) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((words for test, words in _ODD_FILES if test(mode)), "no regular file")
    raise error(f"{path}: is {kind}; expected a {what}: give a regular file or a link to one")


def write_atomically(path: str | os.PathLike, content: bytes | Iterable, *, durable: bool = True) -> None:
    """Write a file through a draft in the same folder, on the disk before its name changes.

    Args:
        path: the folder is made where it is missing. Drafts of this file that killed writers left are removed.
        content: the bytes, or pieces of bytes, of which only one is in memory at a time.
        durable: wait until the disk has them; without it a power cut (not a kill) may lose the new content.
    Raises:
        WriteError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_drafts(path.parent, path.name)
        with runtime_signals.temporary_file(draft):
            with open(draft, "wb") as file:
                for piece in [content] if isinstance(content, bytes) else content:
                    file.write(piece)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(draft, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror}); free disk space or allow writing there. "
                         "What was there before is untouched") from error


def sync_folder(folder: str | os.PathLike) -> None:
    """Make the names in a folder durable, as fsync does for the content of a file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def drop_drafts(folder: str | os.PathLike, name: str | None = None) -> None:
    """Remove drafts in a folder whose writers are gone; of the file `name` only, where one is given."""
    for draft in Path(folder).glob(".*.tmp-*"):
        target, _, writer = draft.name[1:].rpartition(".tmp-")
        if name in (None, target) and not _lives(writer.partition("-")[0]):
            _remove(draft)


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        return True  # not a name of ours, or another user's process
    return True


def _remove(draft: Path) -> None:
    try:
        draft.unlink(missing_ok=True)
    except OSError:
        pass  # the first error is the one to report
