"""Worker processes for the loader: tasks go out over a socket, batches come back in shared memory.

A worker is a fresh interpreter that imports `jseg.data` only. It is started directly, not by `multiprocessing`, so the
user's main script (which may import Jittor, or lack a main guard) never runs in it. The shared memory has no name in
the file system: it vanishes with the processes, however they end, and a container's small /dev/shm does not limit it. A
closed socket tells either side within milliseconds that the other is gone.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Iterator

import numpy as np

from jseg.data.preprocess import Batch, SegDataPreProcessor
from jseg.errors import ConfigError, DataError, JsegError

__all__ = ["Slot", "WorkerPool", "make_batch", "main"]

DEPTH = 2           # batches a worker has in hand: one in work, one waiting
LENT = 2            # batches the consumer may hold as views: the one in use and the one just asked for; more are copied
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def make_batch(dataset, preprocessor: SegDataPreProcessor, seed: int, training: bool, picks: list[tuple[int, int]],
               allocate=None) -> Batch:
    """Load the samples named by (epoch, index) and stack them; metas gain `index` and `epoch`."""
    samples = [dataset.get(index, np.random.default_rng([seed, epoch, index])) for epoch, index in picks]
    batch = preprocessor.batch(samples, training, allocate)
    if training and batch.labels is None:
        raise DataError(f"{samples[0]['img_path']}: no mask to learn from; set data_prefix.seg_map_path and put "
                        "LoadAnnotations into the pipeline")
    for meta, (epoch, index) in zip(batch.metas, picks):
        meta.update(index=index, epoch=epoch)
    return batch


class Slot:
    """Memory for one batch behind a file descriptor that parent and workers share;
    it grows to the largest batch seen.
    """

    def __init__(self, fd: int | None = None):
        if fd is None and hasattr(os, "memfd_create"):
            fd = os.memfd_create("jseg-batch")
        elif fd is None:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        self.fd, self._map = fd, None

    def arrays(self, images_shape: tuple, labels_shape: tuple | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a float32 and an int32 array (None without `labels_shape`) that lie in this memory.

        Raises:
            DataError: the machine has not enough memory left.
        """
        image_bytes = 4 * int(np.prod(images_shape))
        label_bytes = 4 * int(np.prod(labels_shape)) if labels_shape is not None else 0
        flat = self._bytes(image_bytes + label_bytes)
        images = flat[:image_bytes].view(np.float32).reshape(images_shape)
        if labels_shape is None:
            return images, None
        return images, flat[image_bytes:image_bytes + label_bytes].view(np.int32).reshape(labels_shape)

    def close(self) -> None:
        """Give the descriptor back; arrays handed out stay valid."""
        os.close(self.fd)
        self._map = None

    def _bytes(self, need: int) -> np.ndarray:
        if self._map is None or len(self._map) < need:
            if os.fstat(self.fd).st_size < need:
                try:
                    # fails here and now, where ftruncate would let a later write crash
                    os.posix_fallocate(self.fd, 0, need)
                except OSError as error:
                    raise DataError(f"no memory for a batch of {need / 2**20:.0f} MiB ({error}); lower batch_size, "
                                    "num_workers or the crop size") from error
            self._map = mmap.mmap(self.fd, need)
        return np.frombuffer(self._map, np.uint8)


class _Worker:
    """The parent's end of one process."""

    def __init__(self, number: int, job: bytes, slots: list[Slot]):
        ours, theirs = socket.socketpair()
        code = (f"import sys; sys.path[:] = {sys.path!r}; from jseg.data.workers import main; "
                f"main({theirs.fileno()}, {os.getpid()}, {[slot.fd for slot in slots]})")
        try:
            self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL,
                                            pass_fds=[theirs.fileno(), *(slot.fd for slot in slots)],
                                            env={**os.environ, **dict.fromkeys(THREAD_LIMITS, "1")},
                                            start_new_session=True)  # mpirun signals a rank's whole process group
        finally:
            theirs.close()
        self.number, self.tasks = number, {}
        self.connection = Connection(ours.detach())
        self._job = job

    def send(self, message) -> None:
        """Send a task; the first one goes after the job, so that all workers start before any is waited for."""
        if self._job is not None:
            job, self._job = self._job, None
            self.connection.send_bytes(job)
        self.connection.send(message)

    def last_words(self) -> str:
        """Say how the process ended."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code >= 0:
            return f"ended with exit status {code} (its own message is above)"
        cause = ("; the kernel does so when memory runs out: lower num_workers or batch_size"
                 if -code == signal.SIGKILL else "")
        return f"was killed by {signal.Signals(-code).name}{cause}"


class WorkerPool:
    """Processes that prepare numbered batches; results are taken by number.

    Args:
        dataset, preprocessor, seed, training: as for `make_batch`; sent to every worker once.
        count: number of processes, >= 1.
    Attributes:
        busy: batches given out and not taken yet.
    Raises:
        ConfigError: dataset or pipeline cannot be sent to another process.
    """

    def __init__(self, dataset, preprocessor: SegDataPreProcessor, seed: int, training: bool, count: int):
        len(dataset)  # look the files up once, here
        job = _packed((dataset, preprocessor, seed, training))
        self._dataset, self._capacity = dataset, DEPTH * count
        self._slots = [Slot() for _ in range(self._capacity + LENT)]
        self._free: deque[int] = deque(range(len(self._slots)))
        self.busy, self._ready, self._workers = 0, {}, []
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self._slots, os.getpid())
        for number in range(count):
            self._workers.append(_Worker(number, job, self._slots))

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and wait for them; batches already taken stay valid."""
        self._finalizer()

    def fill(self, tasks: Iterator[tuple[int, list]]) -> None:
        """Give out tasks (batch number, picks) until every worker has enough in hand or there are none left."""
        while self.busy < self._capacity and (task := next(tasks, None)) is not None:
            self._submit(*task)

    def _submit(self, number: int, picks: list[tuple[int, int]]) -> None:
        worker = min(self._workers, key=lambda w: len(w.tasks))
        slot = self._free.popleft()
        worker.tasks[number] = picks
        self.busy += 1
        try:
            worker.send((number, slot, picks))
        except (BrokenPipeError, ConnectionResetError):
            self._fail(worker)

    def take(self, number: int) -> Batch:
        """Wait for batch `number`.

        Raises:
            DataError: a sample of it cannot be loaded, or a worker died.
        """
        while number not in self._ready:
            self._collect()
        slot, content = self._ready.pop(number)
        self.busy -= 1
        if isinstance(content, Exception):
            self._free.append(slot)
            raise content
        images_shape, labels_shape, metas = content
        images, labels = self._slots[slot].arrays(images_shape, labels_shape)
        if len(self._slots) - len(self._free) - self.busy > LENT:
            batch = Batch(images.copy(), None if labels is None else labels.copy(), metas)
            self._free.append(slot)
            return batch
        owner = images.base  # every view of the batch refers to it
        weakref.finalize(owner, self._free.append, slot).atexit = False
        return Batch(images, labels, metas)

    def _collect(self) -> None:
        """Read the results that have come; wait for at least one or for a second."""
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(by_connection, timeout=1.0):
            worker = by_connection[connection]
            try:
                number, slot, content = connection.recv()
            except (EOFError, ConnectionResetError):
                self._fail(worker)
            del worker.tasks[number]
            self._ready[number] = slot, content
        for worker in self._workers:
            if worker.process.poll() is not None and not worker.connection.poll():
                self._fail(worker)

    def _fail(self, worker: _Worker) -> None:
        words, task = worker.last_words(), next(iter(worker.tasks.items()), None)
        self.close()
        at = ""
        if task is not None:
            names = [self._dataset.info(index)["img_path"] for _, index in task[1]]
            at = f" while it prepared batch {task[0]} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        raise DataError(f"data worker {worker.number} (process {worker.process.pid}) {words}{at}")


class _Packer(pickle.Pickler):
    """Refuses what only the main script defines: a worker does not run that script."""

    def reducer_override(self, thing):
        """Raise for a class or function of `__main__`; everything else is pickled as usual."""
        if isinstance(thing, type) or callable(thing):
            if getattr(thing, "__module__", None) == "__main__" and hasattr(thing, "__qualname__"):
                raise ConfigError(f"{thing.__qualname__} is defined in the main script, which data workers do not run; "
                                  "move it to a module and import it, or set num_workers: 0")
        return NotImplemented


def _packed(job: tuple) -> bytes:
    buffer = io.BytesIO()
    try:
        _Packer(buffer, pickle.HIGHEST_PROTOCOL).dump(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f"the dataset cannot be sent to data workers: {error}; keep classes and functions at module "
                          "level, or set num_workers: 0") from error
    return buffer.getvalue()


def _shut_down(workers: list[_Worker], slots: list[Slot], owner: int) -> None:
    """End the processes; does nothing in a fork of the process that started them."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
    for slot in slots:
        slot.close()


def main(connection_fd: int, parent: int, slot_fds: list[int]) -> None:
    """A worker's life: read the job, then prepare one batch a task until
    the parent closes the connection or is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    import cv2
    cv2.setNumThreads(0)
    connection, slots = Connection(connection_fd), [Slot(fd) for fd in slot_fds]
    try:
        dataset, preprocessor, seed, training = pickle.loads(connection.recv_bytes())
        while _has_news(connection, parent):
            number, slot, picks = connection.recv()
            connection.send((number, slot, _answer(dataset, preprocessor, seed, training, picks, slots[slot])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def _has_news(connection: Connection, parent: int) -> bool:
    while not connection.poll(2.0):
        if os.getppid() != parent:
            return False
    return True


def _answer(dataset, preprocessor, seed: int, training: bool, picks: list, slot: Slot):
    """Return (images shape, labels shape, metas), or the exception to raise in the parent."""
    try:
        batch = make_batch(dataset, preprocessor, seed, training, picks, slot.arrays)
    except JsegError as error:
        return error.with_traceback(None)
    except Exception:
        names = ", ".join(str(dataset.info(index)["img_path"]) for _, index in picks)
        return DataError(f"preparing the batch of {names} failed in a data worker:\n{traceback.format_exc()}")
    return batch.images.shape, None if batch.labels is None else batch.labels.shape, batch.metas
