"""What every kernel folder shares: the choice of implementation, argument checks, and the CPU call.

How a kernel uses it (`jseg/ops/<kernel>/op.py`):

    from jseg.ops.common import check, check_shape, cpu_op, pick

    class _Scale(jt.Function):
        def execute(self, x, factor):
            self.saved = x, factor
            return cpu_op("jseg_scale_forward", [x, factor], [(x.shape, "float32")], [x.shape[0], x.shape[1]])[0]
        def grad(self, dy):
            x, factor = self.saved
            return cpu_op("jseg_scale_backward", [x, factor, dy], [(x.shape, "float32"), (factor.shape, "float32")],
            [...])

    def scale(x, factor, *, impl="auto"):
        check_shape("scale", "factor", factor, (x.shape[1],))
        return _composed(x, factor) if pick(impl, "scale", x) == "jittor" else _Scale.apply(x, factor)

and in `jseg/ops/scale/cpu.cc` (headers in `jseg/ops/include`: call.h, vec.h):

    #include "call.h"
    JSEG_KERNEL(jseg_scale_forward) {            // -> extern "C" void jseg_scale_forward(const jseg::Call& call)
        const float* x = call.in<float>(0);      // null if None was passed
        float* y = call.out<float>(0);           // every element must be written
        int64_t n = call.integer(0), c = call.integer(1);   // the scalars, in order; call.real(i) for a double
        ...
    }

`impl`: "auto" takes the CPU kernel where there is one, the device is the CPU and the tensors are float32; the CUDA
kernel where there is one, the device is a GPU and the tensors are float32, float16 or bfloat16; else the plain path.
What "auto" means can be said for a stretch of code, `with ops.use("jittor"): ...`, as the segmentor does for its model,
and for a process by the environment variable JSEG_IMPL; the nearer word wins. A named implementation is never replaced
by another. `precision` says the same way what the factors of products are rounded to at inference (`rounds_factors`).
An operation with both kernels gives them the same symbols, tensors and scalars: `device_op(impl)` is
`cpu_op` or its CUDA twin.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import pathlib

import jittor as jt

from jseg.errors import KernelError
from jseg.ops import cuda_library
from jseg.ops.cpu_library import cpu_op

__all__ = ["PRECISIONS", "as_parameters", "check", "check_dtype", "check_same", "check_shape", "cpu_op", "device_op",
           "like", "per_channel", "pick", "rounds_factors", "takes_cpu_kernels",
           "use", "uses_plain"]

IMPLS = ("auto", "jittor", "cpu", "cuda")
PRECISIONS = ("float32", "bf16")
OPS = pathlib.Path(__file__).resolve().parent
_scope: contextvars.ContextVar[str] = contextvars.ContextVar("jseg_impl", default="auto")
_precision: contextvars.ContextVar[str] = contextvars.ContextVar("jseg_precision", default="float32")


@contextlib.contextmanager
def use(impl: str, precision: str | None = None):
    """Let every operator called inside take this implementation, unless its call names one;
    "auto" leaves the choice as it is.

    Args:
        impl: "auto", "jittor", "cpu" or "cuda".
        precision: "float32", or "bf16": where no gradient is wanted, the CPU kernels of `pointwise`, `mix_ffn`,
            `linear` and of 1x1 filters in `conv` round the factors of their products to bfloat16 and sum in float32,
            everything else stays float32.
            Quicker on a CPU with AVX512_BF16, slower on others. None leaves it as it is.
    Raises:
        KernelError: another word.
    """
    if impl not in IMPLS:
        raise KernelError(f"ops.use: impl is {impl!r}, accepted are {', '.join(IMPLS)}")
    if precision not in (None, *PRECISIONS):
        raise KernelError(f"ops.use: precision is {precision!r}, accepted are {', '.join(PRECISIONS)}")
    token, held = _scope.set(_scope.get() if impl == "auto" else impl), _precision.set(precision or _precision.get())
    try:
        yield
    finally:
        _precision.reset(held)
        _scope.reset(token)


def rounds_factors() -> bool:
    """Whether the CPU kernels of products round their factors to bfloat16 now, see `use`."""
    return _precision.get() == "bf16" and bool(jt.flags.no_grad)


def uses_plain() -> bool:
    """Whether the plain operators are wanted here: layers then compute step by step too,
    without merging steps into operators.
    """
    return _scope.get() == "jittor"


def takes_cpu_kernels() -> bool:
    """Whether "auto" means the CPU kernels here, of operators that have no CUDA kernel and leave a GPU to Jittor's."""
    return not jt.flags.use_cuda and _scope.get() in ("auto", "cpu")


def pick(impl: str, kernel: str, *tensors) -> str:
    """Which implementation runs: "jittor", "cpu" or "cuda".

    Args:
        impl: what the caller asked for, one of `IMPLS`.
        kernel: name of the folder under jseg/ops.
        tensors: the floating-point Vars the kernel reads; "auto" takes a CPU kernel only if all are float32, a CUDA
            kernel only if each is float32, float16 or bfloat16.
    Raises:
        KernelError: unknown `impl`, or a named implementation that does not exist, is for another device or dtype.
    """
    if impl not in IMPLS:
        raise KernelError(f"{kernel}: impl is {impl!r}, accepted are {', '.join(IMPLS)}")
    if impl == "auto":
        impl = _scope.get()
    if impl == "auto":
        impl = os.environ.get("JSEG_IMPL", "auto")
        if impl not in IMPLS:
            raise KernelError(f"{kernel}: the environment says JSEG_IMPL={impl!r}, accepted are {', '.join(IMPLS)}")
    dtypes = sorted({str(t.dtype) for t in tensors})
    (has_cpu, has_cuda), on_gpu = _kernels_of(kernel), bool(jt.flags.use_cuda)
    cuda_types = all(name in cuda_library.DTYPES for name in dtypes)
    if impl == "auto":
        if on_gpu:
            return "cuda" if has_cuda and cuda_types else "jittor"
        return "cpu" if has_cpu and dtypes in ([], ["float32"]) else "jittor"
    if impl == "cuda":
        if not has_cuda or not cuda_library.ready():
            here = "" if not has_cuda else f" that could run here, jt.flags.use_cuda is {jt.flags.use_cuda}"
            raise KernelError(f"{kernel}: there is no CUDA kernel{here}; use impl='auto' or 'jittor'")
        if not cuda_types:
            raise KernelError(f"{kernel}: impl='cuda' takes {', '.join(cuda_library.DTYPES)}, got {', '.join(dtypes)}; "
                              "use impl='jittor'")
    if impl == "cpu":
        if not has_cpu:
            raise KernelError(f"{kernel}: there is no CPU kernel; use impl='auto' or 'jittor'")
        if on_gpu:
            raise KernelError(f"{kernel}: impl='cpu' but jt.flags.use_cuda is {jt.flags.use_cuda}; set it to 0 or use "
                              "impl='auto'")
        if dtypes not in ([], ["float32"]):
            raise KernelError(f"{kernel}: impl='cpu' takes float32, got {', '.join(dtypes)}; use impl='jittor'")
    return impl


@functools.lru_cache(maxsize=None)
def _kernels_of(kernel: str) -> tuple[bool, bool]:
    """Whether the folder has a CPU kernel, and a CUDA kernel."""
    return (OPS / kernel / "cpu.cc").is_file(), (OPS / kernel / "cuda.cuh").is_file()


def device_op(impl: str):
    """The caller of the kernels that `pick` chose: `cpu_op`, or `cuda_op` with the same arguments."""
    return cuda_library.cuda_op if impl == "cuda" else cpu_op


def as_parameters(*tensors) -> list:
    """Weights and biases as the kernels read them: float32, also beside half-precision maps. None stays None."""
    return [v if v is None or str(v.dtype) == "float32" else v.float32() for v in tensors]


def like(gradient, tensor):
    """A gradient in the dtype of the tensor it belongs to: mixed products can widen it on its way back."""
    return gradient if str(gradient.dtype) == str(tensor.dtype) else gradient.cast(str(tensor.dtype))


def per_channel(values):
    """(C,) -> (1, C, 1, 1), which goes with maps."""
    return values.reshape(1, -1, 1, 1)


def check(kernel: str, condition: bool, message: str) -> None:
    """Raise KernelError("<kernel>: <message>") unless `condition` holds.
    Compose `message` cheaply: it is built each call.
    """
    if not condition:
        raise KernelError(f"{kernel}: {message}")


def check_shape(kernel: str, name: str, tensor, expected: tuple) -> None:
    """Raise KernelError unless `tensor.shape` is `expected`; None in `expected` accepts any side."""
    shape = tuple(tensor.shape)
    if shape == expected:  # a model asks some thousand times per second
        return
    if len(shape) != len(expected) or any(e is not None and e != s for s, e in zip(shape, expected)):
        wanted = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
        raise KernelError(f"{kernel}: {name} is {shape}, expected {wanted}")


def check_same(kernel: str, **tensors) -> None:
    """Raise KernelError unless all tensors have one shape, naming the first two that differ."""
    (first, reference), *rest = tensors.items()
    for name, tensor in rest:
        if tuple(tensor.shape) != tuple(reference.shape):
            raise KernelError(f"{kernel}: {name} is {tuple(tensor.shape)}, {first} is {tuple(reference.shape)}; they "
                              "must be equal")


def check_dtype(kernel: str, accepted: tuple, **tensors) -> None:
    """Raise KernelError unless every tensor's dtype is one of `accepted`."""
    for name, tensor in tensors.items():
        if str(tensor.dtype) not in accepted:
            raise KernelError(f"{kernel}: {name} is {tensor.dtype}, accepted are {', '.join(accepted)}")
