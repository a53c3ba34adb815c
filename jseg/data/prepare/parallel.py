"""Map a function over many items with processes: results in order, a progress bar, the first error stops the run."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Callable, Iterator, Sequence

from tqdm import tqdm

from jseg.errors import ConvertError, JsegError

__all__ = ["claim", "map_items", "default_workers", "disk_full"]

DEPTH = 3  # items a worker has in hand; bounds the memory of waiting results
SHARE = 400 << 20  # bytes a worker may claim on average: two stay below 1 GB with what Python and the libraries take
_task: tuple[Callable, Any] | None = None  # what this worker process does
_memory: "_Memory | None" = None  # what the worker processes share; None in a process that works alone


def default_workers() -> int:
    """One process per core this process may use."""
    try:
        return max(len(os.sched_getaffinity(0)), 1)
    except AttributeError:
        return os.cpu_count() or 1


def map_items(function: Callable[[Any, Any], Any], context: Any, items: Sequence, *, workers: int, title: str = "",
              progress: bool = True) -> Iterator[tuple[Any, Any]]:
    """Yield (item, function(context, item)) in the order of `items`.

    Args:
        function: a function at module level.
        context: sent once to every worker.
        items: each has an attribute `name` for messages.
        workers: processes; 1 works in this process.
    Raises:
        ConvertError: the first error of a worker in the order of the items; it names the item. Items after it may have
        been done.
    """
    bar = tqdm(total=len(items), desc=title, unit="file", disable=not progress, file=sys.stderr, mininterval=0.5)
    workers = min(workers, len(items))
    with bar:
        if workers <= 1:
            for item in items:
                yield item, _guarded(function, context, item)
                bar.update()
            return
        spawn = get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start,
                                   initargs=(function, context, _Memory(spawn, workers * SHARE)))
        waiting: deque = deque()
        todo = iter(items)
        try:
            while True:
                with _without_ctrl_c():  # `submit` starts the processes
                    while len(waiting) < DEPTH * workers and (item := next(todo, None)) is not None:
                        waiting.append((item, pool.submit(_run, item)))
                if not waiting:
                    break
                item, future = waiting.popleft()
                yield item, future.result()
                bar.update()
        except BrokenProcessPool:
            names = ", ".join(item.name for item, _ in ((item, future), *waiting))
            raise ConvertError(f"a worker process was killed while it had in hand: {names}; the system does so when "
                               "memory runs out: use fewer --workers, then run the same command again") from None
        except KeyboardInterrupt:
            for process in list((pool._processes or {}).values()):
                process.terminate()  # it leaves no part of a file behind
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Start processes within this: the terminal's SIGINT never reaches them, and this one after the body."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Memory:
    """Bytes that some processes share; taken and given back."""

    def __init__(self, context, size: int):
        self._size, self._free, self._turn = size, context.Value("q", size, lock=False), context.Condition()

    @contextlib.contextmanager
    def claim(self, size: int) -> Iterator[None]:
        size = min(size, self._size)
        with self._turn:
            self._turn.wait_for(lambda: self._free.value >= size)
            self._free.value -= size
        try:
            yield
        finally:
            with self._turn:
                self._free.value += size
                self._turn.notify_all()


def claim(size: int) -> contextlib.AbstractContextManager:
    """Wait until `size` bytes are free among the workers of this run, and hold them;
    what is too large for all waits to be alone.

    Claims must not be nested.
    """
    return contextlib.nullcontext() if _memory is None else _memory.claim(size)


def disk_full(error: BaseException) -> bool:
    """True for "no space left" and "quota exceeded"."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1))


def _start(function: Callable, context: Any, memory: _Memory) -> None:
    global _task, _memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _end)
    import cv2
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module="PIL")  # about damage that an error is going to name
    _task, _memory = (function, context), memory


def _end(number: int, frame) -> None:
    sys.exit(128 + number)  # through `finally`: files that are being written are removed


def _run(item: Any) -> Any:
    try:
        return _guarded(*_task, item)
    except SystemExit as end:  # the pool would send it to the parent and go on
        os._exit(end.code)


def _guarded(function: Callable, context: Any, item: Any) -> Any:
    """Call the function; whatever goes wrong becomes a JsegError that names
    the item and can be sent between processes.
    """
    try:
        return function(context, item)
    except JsegError as error:
        text = str(error)
    except Exception as error:
        if disk_full(error):
            text = (f"no space left on the target while writing {item.name}: free some, then run the same command "
                    "again (what is finished is kept)")
        elif isinstance(error, MemoryError):
            text = f"{item.name}: not enough memory; use fewer --workers"
        elif isinstance(error, OSError):
            text = f"{item.name}: {error}"
        else:
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = (f"{item.name}: {type(error).__name__}: {error} ({os.path.basename(last.filename)}, line "
                    f"{last.lineno})")
    raise ConvertError(text)
