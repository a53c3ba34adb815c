"""Pictures are decoded and resized in worker threads while the network runs.

Jittor holds Python's lock as long as the network computes; decoders do not need it. So a thread can decode during a
pass if it was inside its decoder when the pass began: `PreparedPictures.settle` waits, a millisecond mostly, until
every thread is, or is done. Before the first pass, whose operations Jittor compiles in processes that it forks, no
thread is started.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable

from jseg.data.decode import told_of_decoding

__all__ = ["Prepared", "PreparedPictures"]


@dataclass(frozen=True)
class Prepared:
    """A picture on its way: `views` are what the network gets of it, `source` is what they were made from."""

    source: Any
    views: list[dict]


class PreparedPictures:
    """Results of `prepare` by place, made a few places ahead of the last one that was asked for.

    Used as a context, whose end waits for the threads and drops what nobody asked for.

    Args:
        prepare: called with a place, in a thread; what it raises is raised where the place is asked for.
        count: places; None where `prepare` says by its results that they end.
        threads: places that are prepared ahead, each in a thread of its own; with one they come in order.
    """

    def __init__(self, prepare: Callable[[int], Any], count: int | None = None, *, threads: int = 2):
        self._prepare, self._count, self._threads = prepare, count, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="jseg-pictures")
        self._started: dict[int, Future] = {}
        self._busy: set[int] = set()  # started, and neither in a decoder nor done
        self._changed = threading.Condition()
        self._passed = False

    def get(self, place: int) -> Any:
        """What `prepare` returns for a place, mostly the one after the last."""
        future = self._started.pop(place, None)
        for other in [other for other in self._started if other < place]:
            del self._started[other]
        if self._passed and (future is not None or self._count is not None):
            self._start_after(place)
        result = self._prepare(place) if future is None else future.result()
        if self._passed:
            self._start_after(place)
        return result

    def settle(self) -> None:
        """Wait until the threads can go on while the network runs; to be called before each pass."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
        self._passed = True

    def _start_after(self, place: int) -> None:
        last = place + self._threads if self._count is None else min(place + self._threads, self._count - 1)
        for ahead in range(place + 1, last + 1):
            if ahead not in self._started:
                self._busy.add(ahead)
                self._started[ahead] = self._pool.submit(self._work, ahead)

    def _work(self, place: int) -> Any:
        try:
            with told_of_decoding(lambda: self._leave(place)):
                return self._prepare(place)
        finally:
            self._leave(place)

    def _leave(self, place: int) -> None:
        with self._changed:
            self._busy.discard(place)
            self._changed.notify_all()

    def __enter__(self) -> "PreparedPictures":
        return self

    def __exit__(self, *exc_info) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
