"""A progress bar for work that tells how much of it is done."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator

__all__ = ["told_progress"]


@contextlib.contextmanager
def told_progress(**options: Any) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr while the block runs; it gives the function `tell(done, total)` that moves it.

    Args:
        options: of tqdm, such as `unit` and `desc`.
    """
    from tqdm import tqdm
    with tqdm(**options) as bar:
        def tell(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell
