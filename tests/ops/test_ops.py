"""Every folder of jseg/ops against its float64 reference: forward, every gradient, repeatability, central differences.

A new kernel folder is found by its `cases.py`; nothing here names a kernel. What a folder offers:
`jseg.ops.common.Case`.
"""

import importlib
import pathlib

import jittor as jt
import numpy as np
import pytest

import jseg.ops
from jseg.bench.kernel_tasks import gradients

pytestmark = pytest.mark.usefixtures("few_kernels")
FOLDER = pathlib.Path(jseg.ops.__file__).parent
KERNELS = sorted(path.parent.name for path in FOLDER.glob("*/cases.py") if (path.parent / "reference.py").exists())


def _parts(kernel):
    return importlib.import_module(f"jseg.ops.{kernel}.cases"), importlib.import_module(f"jseg.ops.{kernel}.reference")


def _small(kernel):
    return [case for case in _parts(kernel)[0].CASES if not case.bench]


PAIRS = [pytest.param(kernel, case, id=f"{kernel}-{case.name}") for kernel in KERNELS for case in _small(kernel)]
IMPLS = [pytest.param(*pair.values, impl, id=f"{pair.id}-{impl}") for pair in PAIRS
         for impl in (["jittor", "cpu"] if (FOLDER / pair.values[0] / "cpu.cc").exists() else ["jittor"])]


def _inputs(kernel, case):
    """The case's arguments in float64, rounded to float32 first so that every impl gets the reference's numbers."""
    inputs = _parts(kernel)[0].make(case, np.random.default_rng(7))
    return {k: v.astype(np.float32).astype(np.float64) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
            for k, v in inputs.items()}


def _vars(inputs):
    kinds = {"f": np.float32, "i": np.int32, "u": np.int32}
    return {k: jt.array(np.ascontiguousarray(v.astype(kinds[v.dtype.kind]))) if isinstance(v, np.ndarray) else v
            for k, v in inputs.items()}


def _outputs(result):
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _grad_names(kernel, inputs):
    return [name for name in getattr(_parts(kernel)[0], "GRADS", []) if isinstance(inputs.get(name), np.ndarray)]


def _dout(out):
    return np.random.default_rng(11).standard_normal(np.shape(out)).astype(np.float32)


def _run(kernel, case, impl):
    """name -> array: the outputs out0, out1... and the gradients d<input> of sum(dout * out0)."""
    cases, _ = _parts(kernel)
    inputs = _inputs(kernel, case)
    tensors, names = _vars(inputs), _grad_names(kernel, inputs)
    outs = _outputs(cases.call(tensors, impl))
    results = {f"out{i}": out.numpy() for i, out in enumerate(outs)}
    if names:
        slope = jt.array(_dout(results["out0"]).reshape(outs[0].shape))
        results.update((f"d{name}", g.numpy())
                       for name, g in zip(names, gradients(outs[0], slope, [tensors[name] for name in names])))
    return results


def _expected(kernel, case):
    _, reference = _parts(kernel)
    inputs = _inputs(kernel, case)
    outs = _outputs(reference.forward(**inputs))
    results = {f"out{i}": np.asarray(out) for i, out in enumerate(outs)}
    names = _grad_names(kernel, inputs)
    if names:
        grads = reference.backward(_dout(np.asarray(outs[0])).astype(np.float64).reshape(np.shape(outs[0])), **inputs)
        results.update((f"d{name}", grads[name]) for name in names)
    return results


_cache: dict = {}


def _cached(make, *key):
    if key not in _cache:
        _cache[key] = make(*key[1:])
    return _cache[key]


def _error(got, want):
    """Largest difference, as a share of the largest reference value (of 1 where all are zero); and where it is."""
    got = np.asarray(got, np.float64).reshape(np.shape(want))
    difference = np.abs(got - want)
    difference = np.where(np.isnan(difference), np.inf, difference)
    index = np.unravel_index(np.argmax(difference), difference.shape) if difference.ndim else ()
    return float(difference[index]) / (float(np.abs(want).max()) or 1.0), index


@pytest.mark.parametrize("kernel, case, impl", IMPLS)
def test_forward_and_gradients_match_the_reference(kernel, case, impl):
    want, got = _cached(_expected, "reference", kernel, case), _cached(_run, impl, kernel, case, impl)
    plain = _cached(_run, "jittor", kernel, case, "jittor")
    floor = _parts(kernel)[0].FLOOR
    assert set(got) == set(want), f"{kernel} {case.name}: {impl} gave {sorted(got)}, the reference {sorted(want)}"
    for name, expected in want.items():
        error, index = _error(got[name], expected)
        limit = max(floor, 2 * _error(plain[name], expected)[0]) if impl != "jittor" else 50 * floor
        value = np.asarray(got[name]).reshape(np.shape(expected))[index]
        assert error <= limit, (f"{kernel} {case.name} {impl} {name}: shape {np.shape(expected)}, relative error "
                                f"{error:.3e} > {limit:.3e} at {index}: got {value}, expected {expected[index]}")


@pytest.mark.parametrize("kernel, case", PAIRS)
def test_second_run_is_identical(kernel, case):
    impl = "cpu" if (FOLDER / kernel / "cpu.cc").exists() else "jittor"
    first, second = _cached(_run, impl, kernel, case, impl), _run(kernel, case, impl)
    for name in first:
        assert np.array_equal(first[name], second[name],
                              equal_nan=True), f"{kernel} {case.name} {name}: the second run differs"


@pytest.mark.parametrize("kernel, case", PAIRS)
def test_reference_gradients_match_central_differences(kernel, case):
    _, reference = _parts(kernel)
    inputs = _inputs(kernel, case)
    names = _grad_names(kernel, inputs)
    if not names:
        pytest.skip(f"{kernel} has no gradient")
    if inputs.get("grad") == "one_step":
        pytest.skip("this gradient leaves out the loop on purpose: it is not the derivative")
    out = np.asarray(_outputs(reference.forward(**inputs))[0])
    dout = _dout(out).astype(np.float64).reshape(out.shape)
    grads, rng, step = reference.backward(dout, **inputs), np.random.default_rng(3), 1e-6
    for name in names:
        direction = rng.standard_normal(inputs[name].shape) * (inputs[name] != 0)
        ends = [np.asarray(_outputs(reference.forward(**{**inputs, name: inputs[name] + s * direction}))[0])
                for s in (step, -step)]
        numeric, exact = float(((ends[0] - ends[1]) * dout).sum()) / (2 * step), float((grads[name] * direction).sum())
        scale = max(abs(exact), float(np.abs(grads[name] * direction).sum()), 1e-6)
        assert abs(numeric - exact) <= 1e-5 * scale, (f"{kernel} {case.name} d{name}: central difference {numeric}, "
                                                      f"reference {exact}")


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_in_gives_nan_out(kernel):
    if not (FOLDER / kernel / "cpu.cc").exists():
        pytest.skip("no kernel besides the plain path")
    cases, _ = _parts(kernel)
    inputs = _inputs(kernel, _small(kernel)[1])
    name = next(k for k, v in inputs.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f")
    inputs[name].flat[inputs[name].size // 2] = np.nan
    out = _outputs(cases.call(_vars(inputs), "cpu"))[0].numpy()
    if out.dtype.kind == "f":
        assert np.isnan(out).any(), f"{kernel}: a NaN in {name} left no trace in the output"


@pytest.mark.parametrize("kernel", KERNELS)
def test_unknown_impl_is_refused(kernel):
    cases, _ = _parts(kernel)
    tensors = _vars(_inputs(kernel, _small(kernel)[0]))
    with pytest.raises(jseg.errors.KernelError, match="impl is 'fast', accepted are auto, jittor, cpu, cuda"):
        cases.call(tensors, "fast")
    with pytest.raises(jseg.errors.KernelError, match=f"{kernel}: there is no CUDA kernel"):
        cases.call(tensors, "cuda")
