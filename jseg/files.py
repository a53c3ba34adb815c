"""Write files so that their name always leads to the old or the new content, never to a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from jseg.errors import WriteError

__all__ = ["write_atomically", "sync_folder"]


def write_atomically(path: str | os.PathLike, content: bytes, *, durable: bool = True) -> None:
    """Write a file through a temporary one in the same folder, on the disk before its name changes.

    Args:
        path: the folder is made where it is missing.
        content: the bytes.
        durable: wait until the disk has them; without it a power cut (not a kill) may lose the new content.
    Raises:
        WriteError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise WriteError(f"{path}: cannot be written ({error.strerror}); free disk space or allow writing there. "
                         "What was there before is untouched") from error
    except BaseException:  # a signal: leave no part behind
        _remove(temporary)
        raise


def sync_folder(folder: str | os.PathLike) -> None:
    """Make the names in a folder durable, as fsync does for the content of a file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        pass  # the first error is the one to report
