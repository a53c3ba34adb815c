"""What the CPU and the CUDA library share: the one `jt.code` stub through which a kernel is called,
and running a compiler.

Jittor knows nothing of the kernels. The stub fills a `jseg::Call` (include/call.h) with the pointers of its tensors and
the scalars and jumps to the address that travels in `data`; numbers in `data` are no part of Jittor's compile key.
Tensors travel as flat 1-D views and their counts are padded to a few buckets, so a whole model needs a handful of
stubs.
"""

from __future__ import annotations

import math
import os
import pathlib
import subprocess
import tempfile

import jittor as jt

from jseg import runtime_signals
from jseg.errors import KernelError

__all__ = ["INPUT_BUCKETS", "bucket", "call_stub", "check_call", "run_compiler"]

INPUT_BUCKETS = (4, 16, 32, 52)   # 52: the mask of absent inputs travels in a double
SCALARS = 64
_reshape = jt.ops.reshape         # without the checks of `Var.reshape`: a training step calls it two thousand times

_HEADER = """
#include <cstdint>
#include <stdexcept>
#include <string>
namespace jseg_stub {
struct Call { void* const* in; const int64_t* in_size; int64_t n_in; void* const* out; const int64_t* out_size;
              int64_t n_out; const double* scalar; int64_t n_scalar; };
}
"""
_FILL = """
    void* ins[64]; void* outs[64]; int64_t in_sizes[64], out_sizes[64]; double scalars[64];
    int64_t n_in = (int64_t)data["inputs"], n_out = (int64_t)data["outputs"], n_scalar = (int64_t)data["scalars"];
    int64_t absent = (int64_t)data["absent"];
    for (int64_t i = 0; i < n_in; i++) {
        bool gone = (absent >> i) & 1;
        ins[i] = gone ? nullptr : (void*)_inputs[i]->mem_ptr; in_sizes[i] = gone ? 0 : _inputs[i]->num;
    }
    for (int64_t i = 0; i < n_out; i++) { outs[i] = (void*)_outputs[i]->mem_ptr; out_sizes[i] = _outputs[i]->num; }
    for (int64_t i = 0; i < n_scalar; i++) scalars[i] = data["s" + std::to_string(i)];
    jseg_stub::Call call{ins, in_sizes, n_in, outs, out_sizes, n_out, scalars, n_scalar};
"""
_JUMP = {
    "cpu": """
    ((void (*)(const jseg_stub::Call&))(intptr_t)data["address"])(call);
""",
    "cuda": """
    auto kernel = (int64_t (*)(const jseg_stub::Call&, void*))(intptr_t)data["address"];
    int64_t status = kernel(call, (void*)_outputs[n_out]->mem_ptr);
    if (status < 0)
        throw std::runtime_error("jseg: a CUDA kernel was not launched, CUDA error " + std::to_string(-status));
"""}


def check_call(symbol: str, inputs: list, scalars: list) -> None:
    """Raise KernelError unless a call fits the stub."""
    if len(scalars) > SCALARS or not inputs or inputs[0] is None:
        raise KernelError(f"{symbol}: needs a first input and at most {SCALARS} scalars, got {len(inputs)} inputs, "
                          f"{len(scalars)} scalars")


def bucket(count: int, buckets: tuple, symbol: str) -> int:
    """`count` rounded up to one of `buckets`. Raises KernelError beyond the last."""
    for size in buckets:
        if count <= size:
            return size
    raise KernelError(f"{symbol}: {count} tensors, at most {buckets[-1]} fit through one call")


def call_stub(device: str, symbol: str, address: int, inputs: list, outputs: list, scalars: list, *, buckets: tuple,
              workspace: int | None = None) -> list:
    """Run the function at `address` as one Jittor operation; arguments and result as `cpu_library.cpu_op`.

    Args:
        device: "cpu" or "cuda", whose memory the tensors are in.
        buckets: the counts of outputs, workspace included, that stubs are compiled for.
        workspace: bytes of temporary memory, passed behind the call; None for none.
    """
    data = {"address": float(address), "inputs": float(len(inputs)), "outputs": float(len(outputs)),
            "scalars": float(len(scalars)), "absent": float(sum(1 << i for i, v in enumerate(inputs) if v is None))}
    data.update((f"s{i}", float(v)) for i, v in enumerate(scalars))
    flat = [v if v is None or len(v.shape) == 1 else _reshape(v, (-1,)) for v in inputs]
    flat = [flat[0] if v is None else v for v in flat]
    flat += [flat[0]] * (bucket(len(flat), INPUT_BUCKETS, symbol) - len(flat))
    shapes, dtypes = [[math.prod(map(int, shape))] for shape, _ in outputs], [str(dtype) for _, dtype in outputs]
    if workspace is not None:   # as float32, so that Jittor's allocator gives and takes it
        shapes.append([max(64, -(-workspace // 4))])
    shapes += [[1]] * (bucket(len(shapes), buckets, symbol) - len(shapes))
    dtypes += ["float32"] * (len(shapes) - len(dtypes))
    results = jt.code(shapes, dtypes, flat, data=data,
                      **{f"{device}_header": _HEADER, f"{device}_src": _FILL + _JUMP[device]})
    return [r if len(shape) == 1 else _reshape(r, tuple(shape)) for r, (shape, _) in zip(results, outputs)]


def run_compiler(command: list, target: pathlib.Path) -> str:
    """Run a compiler command that writes `target`, atomically. Returns "" or the compiler's errors."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
    os.close(handle)
    with runtime_signals.temporary_file(temporary):
        done = subprocess.run([*command, "-o", temporary], capture_output=True, text=True)
        if done.returncode:
            return done.stderr[-4000:] or f"{command[0]} ended with status {done.returncode}"
        os.replace(temporary, target)
    return ""
