"""The tests of the CPU kernels on CPUs that this machine is not:
`make test-cpus`, or `python tests/ops/other_cpu.py aarch64 haswell`.

For each CPU the kernels are compiled with its flags (for Arm by Debian's cross compiler) and linked into a program
that answers calls (other_cpu.cc), run by qemu-user where it is of another kind than this machine. Then pytest runs the
tests of the kernels and of SegNeXt's numbers with this file as a plugin, under which each call of a CPU kernel goes to
that program: same Python code, same cases, same float64 references, other instructions.
    apt-get install -y g++-aarch64-linux-gnu qemu-user
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import os
import pathlib
import platform
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jseg  # noqa: F401  (prepares the process before Jittor)

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# name -> compilers in order of preference, flags, what runs the program; lanes of float32: 4, 4, 8, 8, then 16
CPUS = {
    "aarch64": (("aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12"), ("-march=armv8-a",),
                ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")),
    "x86-64": (("g++",), ("-march=x86-64",), ()),
    "sandybridge": (("g++",), ("-march=sandybridge",), ()),
    "haswell": (("g++",), ("-march=haswell",), ()),
    "skylake-avx512": (("g++",), ("-march=skylake-avx512",), ()),
    "cooperlake": (("g++",), ("-march=cooperlake",), ()),
    # its tile unit: emulated, and as it is
    "emulated-amx": (("g++",), ("-march=cooperlake", "-DJSEG_EMULATE_AMX"), ()),
    "sapphirerapids": (("g++",), ("-march=sapphirerapids",), ()),
}
# a flag of /proc/cpuinfo without which the program dies here
NEEDS = {"sandybridge": "avx", "haswell": "avx2", "skylake-avx512": "avx512vl", "cooperlake": "avx512_bf16",
         "emulated-amx": "avx512_bf16", "sapphirerapids": "amx_bf16"}
FILES = ("tests/ops/test_ops.py", "tests/ops/test_conv.py", "tests/ops/test_attention.py", "tests/ops/test_norm.py",
         "tests/ops/test_precision.py", "tests/models/test_segnext_parity.py")
# what asks for this process's own library, or emulates CUDA
LEFT_OUT = "not emulat and not cuda and not library and not compile"
RUNNER = "JSEG_TEST_CPU_RUNNER"


def main() -> int:
    """1 when the tests of a CPU fail or none could run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cpus", nargs="*", metavar="CPU", help=f"of {', '.join(CPUS)} (default: all)")
    parser.add_argument("--files", nargs="+", default=FILES, help="tests to run")
    parser.add_argument("-k", default=LEFT_OUT, help="pytest's -k")
    args = parser.parse_args()
    unknown = set(args.cpus) - set(CPUS)
    if unknown:
        parser.error(f"unknown CPU {', '.join(sorted(unknown))}; there are {', '.join(CPUS)}")
    ends = {}
    for name in args.cpus or CPUS:
        missing = _missing(name)
        if missing:
            print(f"{name}: left out, {missing}", flush=True)
            continue
        program = build(name)
        if NEEDS.get(name, "") not in pathlib.Path("/proc/cpuinfo").read_text().split() + [""]:
            print(f"{name}: compiled, not run: this machine's CPU lacks {NEEDS[name]}", flush=True)
            continue
        env = {**os.environ, RUNNER: "\n".join([*CPUS[name][2], str(program)]),
               "JSEG_TEST_GRADIENT_LIMIT": "5e-3",
               "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])}
        print(f"{name}: {' '.join(map(str, args.files))}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "other_cpu", "-k", args.k, *args.files]
        ends[name] = subprocess.run(command, cwd=ROOT, env=env).returncode
    for name, status in ends.items():
        print(f"{name}: {'passed' if status == 0 else f'FAILED (pytest ended with {status})'}")
    return int(not ends or any(ends.values()))


def _missing(name: str) -> str:
    """What this machine lacks for a CPU; "" for nothing."""
    compilers, _, run_by = CPUS[name]
    if not any(map(shutil.which, compilers)):
        return f"no {compilers[0]} here (apt-get install -y g++-aarch64-linux-gnu)"
    if run_by and not shutil.which(run_by[0]):
        return f"no {run_by[0]} here (apt-get install -y qemu-user)"
    if name != "aarch64" and platform.machine() not in ("x86_64", "AMD64"):
        return f"this machine is {platform.machine()}"
    return ""


def build(name: str) -> pathlib.Path:
    """The program with all kernels for a CPU; what is compiled stays in Jittor's folder.

    Raises:
        SystemExit: a kernel does not compile, with the compiler's words.
    """
    import jittor as jt

    from jseg.ops.cpu_library import OPS, compile_flags, cpu_kernels
    from jseg.ops.library import run_compiler
    compilers, flags, _ = CPUS[name]
    compiler = next(filter(shutil.which, compilers))
    own = {"-march=native", *(["-mprefer-vector-width=512"] if name == "aarch64" else [])}
    command = [compiler, *(flag for flag in compile_flags() if flag not in own), *flags, "-Werror",
               "-Wno-unused-function", "-Wno-maybe-uninitialized", "-I", str(OPS / "include")]
    digest = hashlib.sha256(" ".join(command).encode())
    for path in sorted([HERE / "other_cpu.cc", *OPS.glob("*/*.h"), *OPS.glob("*/cpu.cc")]):
        digest.update(path.read_bytes())
    folder = pathlib.Path(jt.flags.cache_path) / "jseg_other_cpus" / f"{name}_{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "kernels"
    if program.exists():
        return program
    sources = {HERE / "other_cpu.cc": folder / "main.o",
               **{OPS / kernel / "cpu.cc": folder / f"{kernel}.o" for kernel in cpu_kernels()}}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logs = list(pool.map(lambda pair: run_compiler([*command, "-c", str(pair[0])], pair[1]), sources.items()))
    log = "".join(logs) or run_compiler([*command, "-rdynamic", *map(str, sources.values()), "-ldl"], program)
    if log:
        raise SystemExit(f"{name}: {log}")
    program.chmod(0o755)
    return program


# ---- the plugin: calls of CPU kernels go to the program -------------------------------------------------------------

class Runner:
    """The program, started with the first call."""

    def __init__(self, command: list[str]):
        self.command, self.process, self.calls = command, None, 0

    def call(self, symbol: str, inputs: list, outputs: list, scalars: list) -> list:
        """Arrays of the outputs' shapes and dtypes; inputs are arrays or None."""
        import numpy as np
        arrays = [None if value is None else np.ascontiguousarray(value) for value in inputs]
        parts = [self._head(0, symbol), struct.pack("<q", len(arrays))]
        parts += [struct.pack("<qq", *((0, -1) if a is None else (a.size, a.nbytes))) for a in arrays]
        parts += [a.tobytes() for a in arrays if a is not None]
        empty = [np.empty(tuple(map(int, shape)), str(dtype)) for shape, dtype in outputs]
        parts += [struct.pack("<q", len(empty)), *(struct.pack("<qq", a.size, a.nbytes) for a in empty)]
        parts += [struct.pack(f"<q{len(scalars)}d", len(scalars), *map(float, scalars))]
        self._send(parts)
        status = struct.unpack("<q", self._receive(8))[0]
        for array in empty:
            array[...] = np.frombuffer(self._receive(array.nbytes), array.dtype).reshape(array.shape)
        assert status == 0, f"{symbol} wrote beside a tensor: shapes {list(map(np.shape, arrays))}, scalars {scalars}"
        self.calls += 1
        return empty

    def number(self, symbol: str, number: int) -> None:
        """Call a function that takes one integer."""
        self._send([self._head(1, symbol), struct.pack("<q", number)])

    @staticmethod
    def _head(kind: int, symbol: str) -> bytes:
        return struct.pack("<qq", kind, len(symbol)) + symbol.encode()

    def _send(self, parts: list) -> None:
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdin.write(b"".join(parts))
        self.process.stdin.flush()

    def _receive(self, count: int) -> bytes:
        data = self.process.stdout.read(count)
        assert len(data) == count, f"the kernels' program ended with {self.process.wait()}"
        return data


def pytest_configure(config) -> None:
    """Redirect the CPU kernels to the program that the environment names."""
    import jittor as jt

    from jseg.ops import cpu_library
    from jseg.ops.conv import op
    runner = config.jseg_runner = Runner(os.environ[RUNNER].split("\n"))

    def call_stub(device, symbol, _address, inputs, outputs, scalars, **_):
        assert device == "cpu"
        arrays = runner.call(symbol, [None if v is None else v.numpy() for v in inputs], outputs, list(scalars))
        return [jt.array(array, dtype=str(array.dtype)) for array in arrays]

    kept = {}

    def address_of(symbol):
        if symbol not in kept:  # a function of one number, which conv calls by its address
            kept[symbol] = ctypes.CFUNCTYPE(None, ctypes.c_int64)(lambda number: runner.number(symbol, number))
        return ctypes.cast(kept[symbol], ctypes.c_void_p).value

    cpu_library.call_stub, cpu_library.kernel_address, op.kernel_address = call_stub, address_of, address_of


def pytest_sessionfinish(session) -> None:
    """End the program, and say how much it had to do: without a call nothing was tested, which is a failure."""
    runner = session.config.jseg_runner
    print(f"\n{runner.calls} calls of kernels by {' '.join(runner.command)}")
    session.exitstatus = session.exitstatus or int(not runner.calls)
    if runner.process is not None:
        with contextlib.suppress(OSError):
            runner.process.stdin.close()
        runner.process.wait()


if __name__ == "__main__":
    sys.exit(main())
