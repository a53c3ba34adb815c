"""Hold a long run's memory flat: what Jittor 1.3.11 and the C library keep, and when it goes back.

Jittor takes memory in blocks of 1 MiB and more, splits them, and keeps what is freed. glibc gets blocks of at least 128
KiB from the kernel, one by one, at first; but every such block that is freed raises that bound, up to 32 MiB, and later
blocks come from the heap, between small objects that stay. `jt.gc()` hands Jittor's unused blocks to glibc. An
evaluation that called it every 32 pictures therefore moved the blocks of training into the heap, where each following
gc left holes that fitted nothing: the resident set rose with every evaluation (308 to 354 MiB over ten of them with
SegNeXt-T on 64 x 85 crops). So the bound is fixed, and within an evaluation a gc is asked for only where it gives much
back. Each save leaves holes, too: in Jittor's blocks, which the arrays on their way to the disk share, and in the heap.
`give_back` after it returns both; either alone did not help (SegNeXt-T, 120 steps, 10 saves: 274 to 324 to 346 MiB with
neither, 323 with gc, 268 with both).
"""

from __future__ import annotations

import ctypes
import os

import jittor as jt

__all__ = ["fix_heap", "give_back", "Pool"]

_M_MMAP_THRESHOLD = -3  # malloc.h
_BOUND = 128 * 1024     # glibc's own first value
_SPARE, _RATIO = 64 << 20, 1.25


def fix_heap() -> None:
    """Keep glibc's bound where it starts, for this process. MALLOC_MMAP_THRESHOLD_ of the user stays;
    other C libraries have no such bound.

    A training step of SegNeXt-T (4 crops of 240 x 320) costs 1 to 3 % more CPU time, for pages that are mapped anew.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BOUND)


def give_back() -> None:
    """Return what Jittor and the C heap hold and do not use to the kernel:
    after a save, at the price of mapping it anew in the next step.
    """
    jt.gc()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


class Pool:
    """Jittor's memory over a loop: given back when it has outgrown the first `check` by a quarter and 64 MiB.

    Pictures of many sizes leave blocks that fit no later one; pictures of one size use theirs again and again.
    """

    def __init__(self):
        self._first: int | None = None

    def check(self) -> bool:
        """Look, and give back if need be; call it every few batches. True when memory was given back."""
        held = self._held()
        if self._first is None:
            self._first = held
        outgrown = held > _RATIO * self._first + _SPARE
        if outgrown:
            jt.gc()
        return outgrown

    @staticmethod
    def _held() -> int:
        memory = jt.get_mem_info()
        return memory.total_cuda_used if jt.flags.use_cuda else memory.total_cpu_used
