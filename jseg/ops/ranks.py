"""The ranks of an MPI job as operations see them: sums over all, and random numbers of the whole batch.

Under `mpirun` a training step works on one batch that is split over the ranks: picture k lies on rank k % world_size().
Inside `with step(total)` the parts add up to what one process computes from the whole batch: norms count the pictures
of all ranks, masks and bases are rows of the draw that one process makes, and `share_of` says what a mean over local
pictures weighs. Without MPI, or outside of a step, everything here is the plain local operation.

Exchanges of host arrays call Open MPI, the only MPI that Jittor 1.3.11 knows, through ctypes: they do not depend on the
state of Jittor's lazy graph, take any type and add in the order of the ranks, so that every rank gets the same bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Iterator, Sequence

import jittor as jt
import numpy as np

__all__ = ["rank", "world_size", "step", "in_step", "pictures", "rand", "rand_each", "total", "summed", "share_of",
           "gather", "broadcast", "barrier"]

_CHUNK = 1 << 30  # bytes of one message: counts are C ints
_step_total: int | None = None  # pictures of the present step over all ranks


def rank() -> int:
    """This process's number in the job, 0 without MPI."""
    return jt.rank if jt.in_mpi else 0


def world_size() -> int:
    """Processes of the job, 1 without MPI."""
    return jt.world_size if jt.in_mpi else 1


@contextlib.contextmanager
def step(total_pictures: int) -> Iterator[None]:
    """Within it this rank holds the pictures k % world_size() == rank() of a batch of `total_pictures`."""
    global _step_total
    _step_total = total_pictures
    try:
        yield
    finally:
        _step_total = None


def in_step() -> bool:
    """Whether a batch is split over several ranks now."""
    return _step_total is not None and world_size() > 1


def _own_pictures() -> int:
    """Pictures of the present step on this rank."""
    return len(range(rank(), _step_total, world_size()))


def pictures(here: int) -> int:
    """Pictures over all ranks when this one holds `here`; outside of a step all are taken to hold as many."""
    return here * world_size() if not in_step() else _step_total * here // _own_pictures()


def rand(shape: Sequence[int]) -> jt.Var:
    """Uniform numbers in [0, 1) whose first axis goes over pictures (or over as many rows for each picture).

    In a split step every rank draws for the whole batch from the common seed and takes its own rows: the numbers are
    those that one process would use.

    Raises:
        ValueError: the first axis is no multiple of this rank's pictures.
    """
    if not in_step():
        return jt.rand(tuple(shape))
    rows, rest = divmod(shape[0], _own_pictures())
    if rest:
        raise ValueError(f"rand: the first axis is {shape[0]}, this rank holds {_own_pictures()} pictures; draw a "
                         "multiple of that")
    whole = jt.rand((_step_total, rows, *shape[1:]))
    return whole[rank()::world_size()].reshape(tuple(shape))


def rand_each(counts: Sequence[int], shape: Sequence[int]) -> jt.Var:
    """Uniform numbers in [0, 1) for pictures that have several rows each, (sum of counts, *shape).

    In a split step the numbers are those that one process would use, as with `rand`.

    Args:
        counts: rows of each of this rank's pictures.
        shape: of a row.
    """
    counts = [int(count) for count in counts]
    if not in_step():
        return rand((sum(counts), *shape))
    padded = np.zeros(-(-_step_total // world_size()), np.int64)
    padded[:len(counts)] = counts
    every = np.stack(gather(padded), 1).reshape(-1)  # of picture k, wherever it is
    ends, whole = np.cumsum(every), jt.rand((int(every.sum()), *shape))
    rows = [np.arange(ends[k] - every[k], ends[k]) for k in range(rank(), _step_total, world_size())]
    return whole[jt.array(np.concatenate(rows).astype(np.int32))]


def total(x: jt.Var) -> jt.Var:
    """Sum over ranks, elementwise, float32 or float64; the gradient is summed the same way."""
    return x if world_size() == 1 else x.mpi_all_reduce("add")


def summed(value: float) -> float:
    """The sum of a number over ranks, in float64."""
    return sum(float(part[0]) for part in gather(np.array([value], np.float64)))


def share_of(divisor: float) -> float:
    """This rank's share of a common divisor, 0 to 1: local mean x share, added over ranks, is the mean over all."""
    every = summed(divisor)
    return divisor / every if every else 0.0


def gather(array: np.ndarray) -> list[np.ndarray]:
    """The arrays of all ranks in their order; shape and type must be the same on each."""
    if world_size() == 1:
        return [array]
    array = np.ascontiguousarray(array)
    found = np.empty((world_size(), *array.shape), array.dtype)
    if array.nbytes * world_size() > _CHUNK:
        raise ValueError(f"gather: {array.nbytes} bytes per rank are too many for one message")
    mpi, byte, world = _open_mpi()
    _check_code(mpi.MPI_Allgather(array.ctypes.data_as(ctypes.c_void_p), array.nbytes, byte,
                                  found.ctypes.data_as(ctypes.c_void_p), array.nbytes, byte, world))
    return list(found)


def broadcast(array: np.ndarray, root: int = 0) -> None:
    """Overwrite a contiguous array with that of rank `root`."""
    if world_size() == 1:
        return
    mpi, byte, world = _open_mpi()
    for start in range(0, array.nbytes, _CHUNK):
        _check_code(mpi.MPI_Bcast(ctypes.c_void_p(array.ctypes.data + start), min(_CHUNK, array.nbytes - start),
                                  byte, root, world))


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        _check_code(_open_mpi()[0].MPI_Barrier(_open_mpi()[2]))


@functools.lru_cache(maxsize=None)
def _open_mpi() -> tuple:
    """(library, MPI_BYTE, MPI_COMM_WORLD); Jittor has loaded and initialised the library."""
    try:
        mpi = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        mpi = ctypes.CDLL("libmpi.so", mode=ctypes.RTLD_GLOBAL)
    handle = lambda name: ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(mpi, name)))  # noqa: E731
    return mpi, handle("ompi_mpi_byte"), handle("ompi_mpi_comm_world")


def _check_code(code: int) -> None:
    """RuntimeError unless MPI reports success."""
    if code:
        raise RuntimeError(f"MPI ended an exchange with error {code}; another rank has probably gone")
