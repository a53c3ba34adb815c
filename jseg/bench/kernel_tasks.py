"""Kernels of jseg.ops as things to check and to time. Found by their `cases.py`; nothing here names a kernel."""

from __future__ import annotations

import importlib
import pathlib
import time

import jittor as jt
import numpy as np

import jseg.ops
from jseg.bench.work import operations, traffic
from jseg.errors import KernelError
from jseg.ops import cuda_library

__all__ = ["KernelTask", "kernels", "check", "device_limits", "gradients"]

# largest error, as a share of the largest value, that is always accepted
HALF_FLOORS = {"tf32": 4e-3, "float16": 4e-3, "bfloat16": 3.2e-2}
# an error above it is a fault even where the plain path has the same
CEILINGS = {"float32": 1e-3, "tf32": 5e-2, "float16": 5e-2, "bfloat16": 2e-1}
DTYPES = {"f": np.float32, "i": np.int32, "u": np.int32}


def kernels() -> dict[str, list[str]]:
    """Kernel name -> names of the cases to time."""
    folder = pathlib.Path(jseg.ops.__file__).parent
    names = sorted(path.parent.name for path in folder.glob("*/cases.py"))
    return {name: [case.name for case in _part(name, "cases").CASES if case.bench] for name in names}


def _part(kernel: str, part: str):
    return importlib.import_module(f"jseg.ops.{kernel}.{part}")


def _vars(arrays: dict, dtype: str = "float32") -> dict:
    found = {}
    for name, value in arrays.items():
        if isinstance(value, np.ndarray):
            kind, shape = value.dtype.kind, value.shape
            value = _as_type(value.astype(DTYPES[kind]), dtype if kind == "f" else "int32").reshape(shape)
            value.sync()
        found[name] = value
    return found


def _as_type(values: np.ndarray, dtype: str) -> jt.Var:
    """Values as a vector of this type; Jittor compiles a conversion for each number of axes."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return jt.array(flat).bfloat16() if dtype == "bfloat16" else jt.array(flat.astype(dtype))


def _values(tensor: jt.Var) -> np.ndarray:
    """Its values; bfloat16, which NumPy does not know, as float32."""
    if str(tensor.dtype) != "bfloat16":
        return tensor.numpy()
    return tensor.reshape(-1).float32().numpy().reshape(tensor.shape)


def _outputs(result) -> list:
    return list(result) if isinstance(result, (tuple, list)) else [result]


class _Slope(jt.Function):
    """A loss whose gradient is given: nothing beside an operator is computed, or compiled."""

    def execute(self, out, slope):
        self.slope = slope
        return jt.array(np.zeros(1, np.float32))

    def grad(self, _):
        return self.slope, None


def gradients(out: jt.Var, slope: jt.Var, tensors: list[jt.Var]) -> list[jt.Var]:
    """Gradients of sum(slope * out) for `tensors`; `slope` has the shape and the dtype of `out`."""
    return jt.grad(_Slope.apply(out, slope), tensors)


def _call(kernel: str, tensors: dict, impl: str, names: list[str], dout) -> tuple[list, list]:
    """Outputs, and the gradients of sum(dout * first output) for the named inputs."""
    outs = _outputs(_part(kernel, "cases").call(tensors, impl))
    if not names:
        return outs, []
    return outs, gradients(outs[0], dout(outs[0]), [tensors[name] for name in names])


class KernelTask:
    """One case of a kernel; calling it runs it and waits.

    Args:
        kernel, case: folder under jseg/ops and a name from its `CASES`.
        impl: "auto", "jittor", "cpu" or "cuda".
        grad: also compute the gradient of every input that has one.
    Raises:
        KernelError: the kernel has no such implementation here, no such case, or (with `grad`) no gradient.
    """

    def __init__(self, kernel: str, case: str, impl: str, *, grad: bool):
        part = _part(kernel, "cases")
        chosen = next((c for c in part.CASES if c.name == case), None)
        if chosen is None:
            raise KernelError(f"{kernel}: there is no case {case!r}; there are {', '.join(c.name for c in part.CASES)}")
        self.kernel, self.impl, self.floor = kernel, impl, float(part.FLOOR)
        inputs = part.make(chosen, np.random.default_rng(7))
        self.arrays = {k: v.astype(DTYPES[v.dtype.kind]) for k, v in inputs.items() if isinstance(v, np.ndarray)}
        self.options = {k: v for k, v in inputs.items() if not isinstance(v, np.ndarray)}
        self.tensors = {**_vars(self.arrays), **self.options}
        self.names = [name for name in part.GRADS if name in self.arrays] if grad else []
        if grad and not self.names:
            raise KernelError(f"{kernel} has no gradient")
        outs = _outputs(part.call(self.tensors, impl))
        self.shapes = [list(out.shape) for out in outs]
        dout = np.random.default_rng(11).standard_normal(tuple(outs[0].shape) or (1,)).astype(np.float32)
        self.arrays["dout/"] = dout
        self.dout = jt.array(dout)
        jt.sync_all(True)

    def _run(self) -> list:
        outs, grads = _call(self.kernel, self.tensors, self.impl, self.names, lambda out: self.dout.reshape(out.shape))
        return outs + list(grads)

    def __call__(self) -> None:
        jt.sync(self._run(), True)

    def results(self) -> dict[str, np.ndarray]:
        """out0, out1... and d<input> for each gradient."""
        values = [value.numpy() for value in self._run()]
        count = len(values) - len(self.names)
        return {**{f"out{i}": v for i, v in enumerate(values[:count])},
                **{f"d{n}": v for n, v in zip(self.names, values[count:])}}

    def facts(self) -> dict:
        """Options, floor, bytes and operations of a forward call."""
        shapes = {name: value.shape for name, value in self.arrays.items() if name != "dout/"}
        return {"options": self.options, "names": self.names, "floor": self.floor,
                "bytes": traffic([*shapes.values(), *self.shapes]),
                "operations": operations(self.kernel, shapes, self.shapes, self.options)}


def check(kernel: str, impl: str, dtype: str, *, plain_always: bool = True) -> dict:
    """Compare a kernel and the plain path with the float64 reference on every small case, forward and each gradient.

    Args:
        dtype: "float32" in full, "tf32" for float32 with products in TF32, "float16" or "bfloat16".
        plain_always: False runs the plain path for those cases alone where a result is above the floor: on a GPU its
            many operations take minutes to compile.
    Returns:
        {"cases", "error", "plain_error", "failures"}: worst relative errors (0 where the plain path was not needed),
        and one line for each result whose error is above both the floor and twice the plain path's, or above the
        dtype's ceiling.
    Raises:
        KernelError: the kernel has no such implementation here.
    """
    part, worst, worst_plain, failures, count = _part(kernel, "cases"), 0.0, 0.0, [], 0
    floor = part.FLOOR if dtype == "float32" else HALF_FLOORS[dtype]
    stored = "float32" if dtype == "tf32" else dtype
    with jt.flag_scope(lazy_execution=0), cuda_library.tf32(dtype == "tf32"):
        for case in (c for c in part.CASES if not c.bench):
            inputs = part.make(case, np.random.default_rng(7))
            errors = _errors(kernel, inputs, impl, stored)
            needed = plain_always or any(not error <= floor for error in errors.values())
            plain = _errors(kernel, inputs, "jittor", stored) if needed else dict.fromkeys(errors, 0.0)
            count += 1
            worst, worst_plain = max(worst, *errors.values()), max(worst_plain, *plain.values())
            failures += [f"{case.name} {name}: relative error {error:.2e}, the plain path's {plain[name]:.2e}, "
                         f"accepted {floor:.0e}"
                         for name, error in errors.items()
                         if not error <= min(max(floor, 2 * plain[name]), CEILINGS[dtype])]
    return {"cases": count, "error": worst, "plain_error": worst_plain, "failures": failures}


def _errors(kernel: str, inputs: dict, impl: str, dtype: str) -> dict[str, float]:
    """Largest error of each result against the reference, as a share of the largest reference value."""
    reference, tensors = _part(kernel, "reference"), _vars(inputs, dtype)
    exact = {k: _values(tensors[k]).astype(np.float64) if isinstance(v, np.ndarray)
             and v.dtype.kind == "f" else v
             for k, v in inputs.items()}
    wanted = {f"out{i}": np.asarray(v) for i, v in enumerate(_outputs(reference.forward(**exact)))}
    names = [n for n in _part(kernel, "cases").GRADS if isinstance(inputs.get(n), np.ndarray)]
    dout = np.random.default_rng(11).standard_normal(wanted["out0"].shape).astype(np.float32)
    outs, grads = _call(kernel, tensors, impl, names,
                        lambda out: _as_type(dout, str(out.dtype)).reshape(out.shape))
    if names:
        wanted.update((f"d{k}", v) for k, v in reference.backward(dout.astype(np.float64), **exact).items()
                      if k in names)
    got = {**{f"out{i}": v for i, v in enumerate(outs)}, **{f"d{n}": g for n, g in zip(names, grads)}}
    return {name: _error(_values(got[name]), value) for name, value in wanted.items()}


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    difference = np.abs(np.asarray(got, np.float64).reshape(wanted.shape) - wanted)
    if not difference.size:
        return 0.0
    return float(np.where(np.isnan(difference), np.inf, difference).max() / max(np.abs(wanted).max(), 1e-30))


def device_limits(*, values: int = 2**28, side: int = 4096) -> dict:
    """Copy bandwidth and float32 matrix rate of the device Jittor computes on, measured through Jittor.

    Args:
        values: length of the vector that is copied; 0 leaves the bandwidth out.
        side: rows and columns of the matrices.
    """
    matrix, found = jt.rand((side, side)), {}
    matrix.sync(True)
    if values:
        big = jt.zeros((values,), "float32")
        big.sync(True)
        found["copy_gb_s"] = 2 * 4 * values / _best(lambda: big + 1.0) / 1e9
    return {**found, "sgemm_gflop_s": 2 * side**3 / _best(lambda: jt.matmul(matrix, matrix)) / 1e9}


def _best(make) -> float:
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        jt.sync([make()], True)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
