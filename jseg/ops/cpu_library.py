"""Build, cache and call the C++ kernels of `ops/*/cpu.cc`.

The `cpu.cc` files of a group (those over maps, those over tokens) are compiled when one of them is first called, in
parallel, by the compiler Jittor uses, and linked into one shared library in Jittor's cache folder: who runs a
convolutional network does not wait for attention. The name of every object file is a hash of its source, the headers,
the flags, the compiler and the CPU, so a second process only opens the file, and an edited kernel recompiles alone. A
file that does not compile takes down its own kernel only: calling that kernel raises the compiler's words, the others
keep working.

Calls go through the stub of `library.py`; `stub_key` says which calls share one.
"""

import ctypes
import hashlib
import os
import pathlib
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jittor as jt

from jseg.errors import KernelError
from jseg.ops.library import INPUT_BUCKETS, bucket, call_stub, check_call, run_compiler

__all__ = ["cpu_op", "cpu_kernels", "kernel_address", "stub_key", "compile_flags"]

OPS = pathlib.Path(__file__).resolve().parent
OUTPUT_BUCKETS = (1, 4, 16, 32, 64)   # counts are padded to these, so that few stubs are compiled
TOKENS = ("attention", "layer_norm", "linear")  # the group over tokens (N, L, C); all others are over maps
# 5 to 1 s each, the others less: a long one started last would run alone
SLOWEST_FIRST = ("pointwise", "conv", "attention", "mix_ffn", "linear", "msca", "nmf")


def cpu_op(symbol: str, inputs: list, outputs: list, scalars: list = ()) -> list:
    """Run `extern "C" void <symbol>(const jseg::Call&)` of the CPU library as one Jittor operation.

    Args:
        symbol: the function, `jseg_<kernel>_<name>`; it lives in `ops/<kernel>/cpu.cc`.
        inputs: Vars of any shape, or None for an absent one (the kernel sees a null pointer); the first must be a Var.
        outputs: one (shape, dtype) each. The kernel must write every element (memory arrives uninitialised).
        scalars: numbers; they reach the kernel as doubles (integers up to 2**53 are exact), at most 64.
    Returns:
        list of Vars with the given shapes. No gradient flows through: call it inside a `jt.Function`.
    Raises:
        KernelError: the library or this kernel cannot be built, or it has no such function.
    """
    check_call(symbol, inputs, scalars)
    return call_stub("cpu", symbol, kernel_address(symbol), inputs, outputs, scalars, buckets=OUTPUT_BUCKETS)


def stub_key(inputs: list, outputs: list) -> tuple:
    """What decides which compiled stub a call shares: padded counts and dtypes. Same arguments as `cpu_op`."""
    kinds = tuple(str((v if v is not None else inputs[0]).dtype) for v in inputs)
    pads = bucket(len(inputs), INPUT_BUCKETS, "") - len(inputs), bucket(len(outputs), OUTPUT_BUCKETS, "") - len(outputs)
    return kinds + kinds[:1] * pads[0], tuple(str(d) for _, d in outputs) + ("float32",) * pads[1]


# ---- the library ----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_libraries: dict = {}    # group -> ctypes.CDLL once opened
_failed: dict = {}       # kernel name -> compiler output
_addresses: dict = {}    # symbol -> address


def cpu_kernels() -> list[str]:
    """Names of the kernels that have a `cpu.cc`."""
    return sorted(path.parent.name for path in OPS.glob("*/cpu.cc"))


def kernel_address(symbol: str) -> int:
    """Address of an exported function; builds or opens the library on the first call. Raises KernelError."""
    address = _addresses.get(symbol)
    if address is not None:
        return address
    with _lock:
        library = _open(any(symbol.startswith(f"jseg_{kernel}_") for kernel in TOKENS))
    for kernel, log in _failed.items():
        if symbol.startswith(f"jseg_{kernel}_"):
            raise KernelError(f"{kernel}: jseg/ops/{kernel}/cpu.cc does not compile here; use impl='jittor', or cure "
                              f"this:\n{log}")
    try:
        address = ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
    except AttributeError:
        raise KernelError(
            f"the CPU library has no function '{symbol}'; kernels with a cpu.cc: {cpu_kernels()}") from None
    _addresses[symbol] = address
    return address


def compile_flags() -> list[str]:
    """Flags of every kernel file; the environment variable JSEG_CPU_FLAGS adds
    to them (`-march=haswell` tries another CPU).

    `-ffast-math` stays out: it drops NaN and, when linking, changes the denormals of the whole process.
    """
    flags = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math",
             "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-ignored-attributes"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append("-mprefer-vector-width=512")
    return flags + os.environ.get("JSEG_CPU_FLAGS", "").split()


def _open(tokens: bool) -> ctypes.CDLL:
    """The library of the group over tokens, or of the one over maps."""
    if tokens not in _libraries:
        folder = pathlib.Path(jt.flags.cache_path) / "jseg_cpu_kernels"
        folder.mkdir(parents=True, exist_ok=True)
        objects = {kernel: path for kernel, path in _object_names(folder).items() if (kernel in TOKENS) == tokens}
        path = _library_path(folder, objects)
        if not path.exists():
            path = _build_locked(folder, objects)
        _libraries[tokens] = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return _libraries[tokens]


def _object_names(folder: pathlib.Path) -> dict:
    """kernel -> path of its object file, whose name is the hash of everything that goes into it."""
    compiler = jt.flags.cc_path
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    common = hashlib.sha256("\0".join([version, " ".join(compile_flags()), _cpu_identity()]).encode())
    for header in sorted(OPS.glob("include/*.h")):
        common.update(header.read_bytes())
    names = {}
    for kernel in cpu_kernels():
        digest = common.copy()
        for source in sorted((OPS / kernel).glob("*.h")) + [OPS / kernel / "cpu.cc"]:
            digest.update(source.read_bytes())
        names[kernel] = folder / f"{kernel}_{digest.hexdigest()[:16]}.o"
    return names


def _cpu_identity() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
    except OSError:
        return platform.processor() + platform.machine()


def _library_path(folder: pathlib.Path, objects: dict) -> pathlib.Path:
    digest = hashlib.sha256(" ".join(path.name for path in objects.values()).encode()).hexdigest()[:16]
    return folder / f"libjseg_{digest}.so"


def _build_locked(folder: pathlib.Path, objects: dict) -> pathlib.Path:
    """Compile what is missing and link, one process at a time; the others find the files when the lock opens."""
    import fcntl
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # of a process that was killed: whoever holds the lock is the only one that writes
        for left in folder.glob("tmp*"):
            left.unlink(missing_ok=True)
        missing = sorted((kernel for kernel, path in objects.items() if not path.exists()), key=_start_order)
        if missing:
            print(f"jseg: compiling CPU kernels, once per machine: {', '.join(missing)}", file=sys.stderr, flush=True)
        with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
            _failed.update((k, log) for k, log in zip(missing, pool.map(lambda k: _compile(k, objects[k]), missing))
                           if log)
        good = {kernel: path for kernel, path in objects.items() if kernel not in _failed}
        path = _library_path(folder, good)
        if not path.exists():
            log = run_compiler([jt.flags.cc_path, *compile_flags(), "-shared", *map(str, good.values())], path)
            if log:
                raise KernelError(f"the CPU kernel library does not link; use impl='jittor', or cure this:\n{log}")
        return path


def _start_order(kernel: str) -> tuple[int, str]:
    return SLOWEST_FIRST.index(kernel) if kernel in SLOWEST_FIRST else len(SLOWEST_FIRST), kernel


def _compile(kernel: str, target: pathlib.Path) -> str:
    return run_compiler([jt.flags.cc_path, *compile_flags(), "-I", str(OPS / "include"), "-c",
                         str(OPS / kernel / "cpu.cc")], target)
