"""Write files so that their name always leads to the old or the new content, never to a part."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from jseg import runtime_signals
from jseg.errors import WriteError

__all__ = ["write_atomically", "sync_folder", "drop_drafts"]


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
        with runtime_signals.part(draft):
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
