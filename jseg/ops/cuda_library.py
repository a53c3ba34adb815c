"""Build, cache and call the CUDA kernels of `ops/*/cuda.cuh`.

The twin of `cpu_library.py`: every `cuda.cuh` is compiled by the nvcc that Jittor uses, for the GPUs that Jittor sees,
and all are linked into one shared library in Jittor's cache folder; the name of an object file is a hash of everything
that went into it. A file that does not compile takes down its own kernel only. Calls go through the stub of
`library.py`.

An entry point `<symbol>_<dtype>` (macro JSEG_CUDA_KERNEL in include/cuda_base.cuh) launches kernels on the default
stream, as Jittor does. `<symbol>_tf32` is float32 with its matrix products on tensor cores, where the GPU has them:
factors are rounded to 10 bits behind the point, as PyTorch's convolutions do, sums are float32. Called without memory
it only says how many bytes of workspace it wants; that workspace is one more output of the stub, so it comes from
Jittor's allocator and goes back when the operation is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import math
import os
import pathlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jittor as jt

from jseg.errors import KernelError
from jseg.ops.library import call_stub, check_call, run_compiler

__all__ = ["DTYPES", "WITH_PRODUCTS", "Call", "allow_tf32", "cuda_kernels", "cuda_op", "make_call", "nvcc_command",
           "ready", "tf32", "tf32_allowed"]

OPS = pathlib.Path(__file__).resolve().parent
DTYPES = ("float32", "float16", "bfloat16")   # of the large tensors; parameters and their gradients are float32
WITH_PRODUCTS = ("attention", "criss_cross", "linear", "mix_ffn", "nmf", "pointwise")   # kernels that TF32 changes
OUTPUT_BUCKETS = (2, 4, 16, 40)   # with the workspace; counts are padded to these, so that few stubs are compiled


class Call(ctypes.Structure):
    """`jseg::Call` of include/call.h."""

    _fields_ = [("inputs", ctypes.c_void_p), ("input_sizes", ctypes.c_void_p), ("input_count", ctypes.c_int64),
                ("outputs", ctypes.c_void_p), ("output_sizes", ctypes.c_void_p), ("output_count", ctypes.c_int64),
                ("scalars", ctypes.c_void_p), ("scalar_count", ctypes.c_int64)]


def make_call(inputs: list, outputs: list, scalars: list) -> Call:
    """A call from (address, elements) pairs; the arrays behind it live as long as the result."""
    def both(pairs):
        return (ctypes.c_void_p * 64)(*(p for p, _ in pairs)), (ctypes.c_int64 * 64)(*(n for _, n in pairs))

    arrays = [*both(inputs), *both(outputs), (ctypes.c_double * 64)(*map(float, scalars))]
    a = [ctypes.addressof(array) for array in arrays]
    call = Call(a[0], a[1], len(inputs), a[2], a[3], len(outputs), a[4], len(scalars))
    call.keep = arrays
    return call


def ready() -> bool:
    """Whether Jittor computes on a GPU in this process now."""
    return bool(jt.flags.use_cuda)


def allow_tf32(wanted: bool) -> None:
    """Whether products of float32 maps may be rounded to TF32 in this process; the environment's JSEG_TF32 wins."""
    global _tf32
    _tf32 = wanted


@contextlib.contextmanager
def tf32(wanted: bool):
    """`allow_tf32` for a stretch of code."""
    before = _tf32
    allow_tf32(wanted)
    try:
        yield
    finally:
        allow_tf32(before)


def tf32_allowed() -> bool:
    """What JSEG_TF32 says, 0 or 1, or else the last `allow_tf32`; by default they may.

    Raises:
        KernelError: JSEG_TF32 says something else.
    """
    said = os.environ.get("JSEG_TF32", "")
    if said not in ("", "0", "1"):
        raise KernelError(f"the environment says JSEG_TF32={said!r}, accepted are 0 (products of float32 in full) and "
                          "1 (in TF32 where the GPU has tensor cores)")
    return _tf32 if not said else said == "1"


def cuda_kernels() -> list[str]:
    """Names of the kernels that have a `cuda.cuh`."""
    return sorted(path.parent.name for path in OPS.glob("*/cuda.cuh"))


def cuda_op(symbol: str, inputs: list, outputs: list, scalars: list = ()) -> list:
    """Run a function of the CUDA library as one Jittor operation; arguments and result as `cpu_library.cpu_op`.

    The dtype of the first input picks the entry point: float32 (or, by `tf32_allowed`, tf32), float16 or bfloat16.
    """
    check_call(symbol, inputs, scalars)
    dtype = str(inputs[0].dtype)
    function = _function(f"{symbol}_{'tf32' if dtype == 'float32' and tf32_allowed() else dtype}")
    sizes = [(None, 0 if v is None else v.numel()) for v in inputs]
    wanted = function(ctypes.byref(make_call(sizes, [(None, math.prod(shape)) for shape, _ in outputs], scalars)), None)
    address = ctypes.cast(function, ctypes.c_void_p).value
    return call_stub("cuda", symbol, address, inputs, outputs, scalars, buckets=OUTPUT_BUCKETS, workspace=wanted)


# ---- the library ----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_library = None          # ctypes.CDLL once opened
_failed: dict = {}       # kernel name -> compiler output
_functions: dict = {}    # entry point -> ctypes function
_tf32 = True


def nvcc_command(nvcc: str, archs: list, *, compiler: str | None = None) -> list[str]:
    """The start of every nvcc call: flags, one machine code per entry of `archs` (75, 80, ...),
    PTX of the last for later GPUs.
    """
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    return [nvcc, "-std=c++17", "-O3", "--cudart=shared", "-Xcompiler=-fPIC,-fvisibility=hidden", *codes,
            *(["-ccbin", compiler] if compiler else []), "-I", str(OPS / "include")]


def _function(name: str):
    """The ctypes function of an entry point; builds or opens the library at the first call. Raises KernelError."""
    function = _functions.get(name)
    if function is not None:
        return function
    with _lock:
        library = _open()
    for kernel, log in _failed.items():
        if name.startswith(f"jseg_{kernel}_"):
            raise KernelError(f"{kernel}: jseg/ops/{kernel}/cuda.cuh does not compile here; use impl='jittor', or cure "
                              f"this:\n{log}")
    try:
        function = getattr(library, name)
    except AttributeError:
        raise KernelError(f"the CUDA library has no function '{name}'; kernels with a cuda.cuh: {cuda_kernels()}; "
                          f"types: {DTYPES}") from None
    function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_void_p]
    _functions[name] = function
    return function


def _open():
    global _library
    if _library is None:
        folder = pathlib.Path(jt.flags.cache_path) / "jseg_cuda_kernels"
        folder.mkdir(parents=True, exist_ok=True)
        command = nvcc_command(jt.flags.nvcc_path, sorted(jt.flags.cuda_archs), compiler=jt.flags.cc_path)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)   # one process builds, the others find the files
            _library = ctypes.CDLL(str(_build(folder, command)))
    return _library


def _build(folder: pathlib.Path, command: list) -> pathlib.Path:
    """Compile what is missing, in parallel, and link. Returns the library's path."""
    common = hashlib.sha256(" ".join(command).encode())
    common.update(subprocess.run([command[0], "--version"], capture_output=True).stdout)
    for header in sorted(OPS.glob("include/cuda_*.cuh")) + [OPS / "include" / "call.h"]:
        common.update(header.read_bytes())
    objects = {}
    for kernel in cuda_kernels():
        digest = common.copy()
        digest.update((OPS / kernel / "cuda.cuh").read_bytes())
        objects[kernel] = folder / f"{kernel}_{digest.hexdigest()[:16]}.o"
    missing = [kernel for kernel, path in objects.items() if not path.exists()]
    if missing:
        print(f"jseg: compiling CUDA kernels, once per machine: {', '.join(missing)}", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        logs = pool.map(lambda k: run_compiler([*command, "-c", "-x", "cu", str(OPS / k / "cuda.cuh")], objects[k]),
                        missing)
        _failed.update((kernel, log) for kernel, log in zip(missing, logs) if log)
    good = [str(path) for kernel, path in objects.items() if kernel not in _failed]
    if not good:
        raise KernelError("no CUDA kernel compiles here; use impl='jittor', or cure "
                          f"this:\n{next(iter(_failed.values()))}")
    path = folder / f"libjseg_cuda_{hashlib.sha256(' '.join(good).encode()).hexdigest()[:16]}.so"
    log = "" if path.exists() else run_compiler([*command, "-shared", *good], path)
    if log:
        raise KernelError(f"the CUDA kernel library does not link; use impl='jittor', or cure this:\n{log}")
    return path
