"""Compiles a `cuda.cuh` for the CPU (cuda_emu.h) and stands in for `cuda_op`, with guard zones around every tensor."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
import pathlib
import re
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import jittor as jt
import numpy as np

from jseg.ops.cuda_library import OPS, make_call

HERE = pathlib.Path(__file__).resolve().parent
RESIDENT = 5       # blocks that the emulated device has at once in a cooperative launch
GUARD = 1 << 16   # bytes before and after every tensor; NaN where a kernel reads them as floating point
STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int32": np.int32,
           "uint16": np.uint16, "uint8": np.uint8}


class EmulationError(AssertionError):
    """The emulator or a guard zone found a fault in a kernel."""


def build(kernel: str, *, source: str | None = None) -> ctypes.CDLL:
    """The emulated library of one kernel, from a cache in Jittor's folder;
    `source` replaces its cuda.cuh and all headers.

    Args:
        source: text of a complete translation unit.
    """
    text = source or f'#include "{OPS / kernel / "cuda.cuh"}"\n'
    # Ubuntu's g++ checks longjmp between stacks unless told not to, and the emulator's threads are such jumps
    command = [jt.flags.cc_path, "-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-shared", "-fPIC",
               "-fvisibility=hidden", "-I", str(HERE), "-I", str(OPS / "include")]
    digest = hashlib.sha256(" ".join([text, *command]).encode())
    for path in [*sorted(HERE.glob("cuda_emu*.h")), *HERE.glob("*.cuh"), OPS / kernel / "cuda.cuh",
                 *sorted(OPS.glob("include/c*"))]:
        if path.exists():   # a kernel of the tests alone has no folder
            digest.update(path.read_bytes())
    folder = pathlib.Path(jt.flags.cache_path) / "jseg_cuda_emulated"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{kernel}_{digest.hexdigest()[:16]}.so"
    with _building.setdefault(target, threading.Lock()):  # whoever comes second finds it
        if not target.exists():
            _compile(command, text, target)
    library = ctypes.CDLL(str(target))
    library.emu_error.restype = library.emu_launch.restype = ctypes.c_char_p
    library.emu_launches.restype = library.emu_products.restype = library.emu_barriers.restype = ctypes.c_int64
    return library


_building: dict[pathlib.Path, threading.Lock] = {}


def _compile(command: list[str], text: str, target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        unit = pathlib.Path(place, "unit.cc")
        unit.write_text(text)
        done = subprocess.run([*command, str(unit), "-o", f"{place}/out.so"], capture_output=True, text=True,
                              timeout=1200)
        assert done.returncode == 0, done.stderr[-4000:]
        os.replace(f"{place}/out.so", target)


@contextlib.contextmanager
def building(sources: list[tuple[str, str]]):
    """Build (kernel, source) in the background, in this order, while the tests that need no library yet run."""
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as pool:
        for kernel, source in sources:
            pool.submit(build, kernel, source=source)
        yield
        pool.shutdown(cancel_futures=True)


def spliced(path: pathlib.Path) -> str:
    """A kernel's source for float32 with its jseg headers pasted in once each; `//@ name` says which file the text
    after it comes from."""
    seen: set = set()

    def paste(name, text):
        def one(match):
            inner = match.group(1)
            if inner == "cuda_emu.h":
                return match.group(0)
            if inner in seen:
                return ""
            seen.add(inner)
            return paste(inner, (OPS / "include" / inner).read_text()) + f"//@ {name}\n"
        body = re.sub(r'^#include "([^"]+)"\n', one, text, flags=re.M).replace("#pragma once", "")
        return f"//@ {name}\n{body}"
    return float_only(paste(path.parent.name, path.read_text()))


def float_only(text: str) -> str:
    """A source without its half-precision entry points, which take most of the compiler's time."""
    lines = [line for line in text.splitlines(keepends=True)
             if not re.match(r"    JSEG_CUDA_EXPORT\(name, b?float16,", line)]
    assert len(lines) == text.count("\n") - 2, "the entry points are written otherwise"
    return "".join(lines)


class Guarded:
    """A tensor's memory between two guard zones of 0xff bytes."""

    def __init__(self, dtype: str, count: int, values: np.ndarray | None = None):
        kind = np.dtype(STORAGE[dtype])
        self.raw = np.full(count * kind.itemsize + 2 * GUARD, 0xFF, np.uint8)   # outputs start as NaN
        self.inside = self.raw[GUARD:self.raw.size - GUARD].view(kind)
        if values is not None:
            self.inside[:] = values.reshape(-1)
        self.address, self.count = self.raw.ctypes.data + GUARD, count

    def check(self, what: str) -> None:
        """Raise EmulationError where a guard zone was written."""
        if (self.raw[:GUARD] != 0xFF).any() or (self.raw[-GUARD:] != 0xFF).any():
            raise EmulationError(f"{what}: a write outside the tensor")


class Emulator:
    """Callable with the arguments of `cuda_op`; runs the kernels of one library under one schedule."""

    def __init__(self, library: ctypes.CDLL, schedule: int = 0, *, tf32: bool = False, capability: int = 80,
                 resident: int = RESIDENT):
        self.library, self.schedule, self.tf32, self.capability = library, schedule, tf32, capability
        self.resident = resident                              # blocks of a cooperative launch; negative: it is refused
        self.launches: list[tuple[str, int, int, int]] = []   # kernel, blocks, threads, shared bytes
        self.products = 0                                     # of tiles on tensor cores
        self.barriers = 0                                     # of whole grids

    def __call__(self, symbol: str, inputs: list, outputs: list, scalars: list = ()) -> list:
        dtype = str(inputs[0].dtype)
        ins = [None if v is None else Guarded(str(v.dtype), v.numel(), _stored(v)) for v in inputs]
        outs = [Guarded(str(kind), math.prod(shape)) for shape, kind in outputs]
        self.call(f"{symbol}_{'tf32' if self.tf32 and dtype == 'float32' else dtype}", ins, outs, scalars)
        return [_from_memory(o, str(kind)).reshape(tuple(shape)) for o, (shape, kind) in zip(outs, outputs)]

    def call(self, name: str, ins: list, outs: list, scalars: list) -> None:
        """Run an entry point on guarded memory."""
        function = getattr(self.library, name)
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_void_p]
        call = make_call([(None, 0) if v is None else (v.address, v.count) for v in ins],
                         [(o.address, o.count) for o in outs], scalars)
        work = Guarded("float32", -(-function(ctypes.byref(call), None) // 4))
        self.library.emu_capability(self.capability)
        self.library.emu_resident(ctypes.c_int64(self.resident))
        self.library.emu_set(self.schedule, 0)
        function(ctypes.byref(call), work.address)
        self._read_launches()
        if self.library.emu_error():
            raise EmulationError(self.library.emu_error().decode())
        for i, tensor in enumerate([*ins, *outs, work]):
            if tensor is not None:
                tensor.check(f"{name}: " + ("workspace" if tensor is work else f"tensor {i}"))

    def dry(self, name: str, scalars: list, inputs: list | None = None,
            outputs: list | None = None) -> tuple[list, str]:
        """The launches of a call with these scalars, and the emulator's complaint; nothing runs, no tensor is needed.

        Args:
            inputs, outputs: (address, elements) of each tensor, (0, 0) for an absent one; by default all are there.
        """
        function = getattr(self.library, name)
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_void_p]
        call = make_call(inputs or [(GUARD, 1)] * 52, outputs or [(GUARD, 1)] * 52, scalars)
        self.launches = []
        self.library.emu_resident(ctypes.c_int64(1 << 40))
        self.library.emu_set(0, 1)
        function(ctypes.byref(call), 256)
        self._read_launches()
        error = self.library.emu_error().decode()
        self.library.emu_set(0, 0)
        return self.launches, error

    def _read_launches(self) -> None:
        numbers = (ctypes.c_int64 * 3)()
        self.products += self.library.emu_products()
        self.barriers += self.library.emu_barriers()
        for i in range(self.library.emu_launches()):
            name = self.library.emu_launch(ctypes.c_int64(i), numbers).decode()
            self.launches.append((name, *numbers))


def values(v: jt.Var) -> np.ndarray:
    """A Var's values, bfloat16 as float32. Conversions are of vectors: Jittor compiles one per number of axes."""
    return v.numpy() if str(v.dtype) != "bfloat16" else v.reshape(-1).float32().numpy().reshape(v.shape)


def loaded(numbers: np.ndarray, dtype: str) -> jt.Var:
    """A Var of these numbers, rounded to its type."""
    if dtype != "bfloat16":
        return jt.array(np.ascontiguousarray(numbers.astype(dtype)))
    return jt.array(numbers.astype(np.float32).reshape(-1)).bfloat16().reshape(numbers.shape)


def _stored(v: jt.Var) -> np.ndarray:
    """A Var's values as they lie in memory."""
    return v.numpy() if str(v.dtype) != "bfloat16" else to_bfloat16(values(v))


def _from_memory(g: Guarded, dtype: str) -> jt.Var:
    if dtype != "bfloat16":
        return jt.array(g.inside.copy())
    return loaded((g.inside.astype(np.uint32) << 16).view(np.float32), dtype)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 -> what a tensor core takes of it: TF32 for float32, halves away from zero."""
    single = np.ascontiguousarray(values, np.float32)
    if dtype == "float16":
        return single.astype(np.float16).astype(np.float64)
    if dtype == "bfloat16":
        return (to_bfloat16(single).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    _, exponent = np.frexp(single.astype(np.float64))
    last = np.maximum(exponent - 11, -136)   # the place of the last bit kept; that of denormals does not move
    return np.ldexp(np.copysign(np.floor(np.ldexp(np.abs(single, dtype=np.float64), -last) + 0.5), single), last)


class PlainProducts(np.ndarray):
    """float64 numbers whose matrix products round their factors first, as a plain product on tensor cores does; made by
    `plain_products`."""

    dtype_of_factors = "float32"

    def __array_ufunc__(self, ufunc, method, *inputs, **words):
        inputs = [_bare(v) for v in inputs]
        if ufunc is np.matmul:
            inputs = [rounded(v, self.dtype_of_factors) for v in inputs]
        words = {name: tuple(_bare(v) for v in value) if name == "out" else _bare(value)
                 for name, value in words.items()}
        return self._like(getattr(ufunc, method)(*inputs, **words))

    def __array_function__(self, function, types, inputs, words):
        inputs = [type(v)(map(_bare, v)) if isinstance(v, (tuple, list)) else _bare(v) for v in inputs]
        if function is np.einsum:
            inputs[1:] = [rounded(v, self.dtype_of_factors) for v in inputs[1:]]
        return self._like(function(*inputs, **{name: _bare(value) for name, value in words.items()}))

    def _like(self, result):
        return result.view(type(self)) if isinstance(result, np.ndarray) else result


def plain_products(values: np.ndarray, dtype: str) -> np.ndarray:
    """The same numbers; products that they or results of theirs take part in have factors rounded to `dtype`, TF32 for
    float32."""
    kind = type(f"Plain_{dtype}", (PlainProducts,), {"dtype_of_factors": dtype})
    return values.view(_kinds.setdefault(dtype, kind))


_kinds: dict = {}


def _bare(value):
    return value.view(np.ndarray) if isinstance(value, PlainProducts) else value
