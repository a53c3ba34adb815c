"""`norm` with `fork`: what goes back through its second y and through x is added up inside the operation; and the
gradient of sets of few values, which nearly cancels.
"""

import jittor as jt
import numpy as np
import pytest

from jseg.ops import cuda_library, norm
from jseg.ops.norm import reference
import cuda_emulator as emulation

USES = [("y",), ("again",), ("more",), ("y", "again", "more")]


@pytest.mark.parametrize("uses", USES, ids="+".join)
@pytest.mark.parametrize("options", [{"over": "batch"}, {"over": "group", "groups": 2, "activation": "gelu"},
                                     {"over": "position", "activation": "relu"}],
                         ids=lambda options: options["over"])
@pytest.mark.parametrize("impl", ["jittor", "cpu", "cuda"])
def test_gradients_of_every_use_are_added_up(impl, options, uses, monkeypatch, rng):
    if impl == "cuda":
        monkeypatch.setattr(cuda_library, "ready", lambda: True)
        monkeypatch.setattr(cuda_library, "cuda_op", emulation.Emulator(emulation.build("norm")))
    monkeypatch.setattr(jt.flags, "lazy_execution", 0)
    shape = (2, 4, 3, 5)
    arrays = {"x": rng.standard_normal(shape), "weight": rng.uniform(0.5, 1.5, 4), "bias": rng.standard_normal(4),
              "residual": rng.standard_normal(shape)}
    slopes = {use: rng.standard_normal(shape) for use in uses}
    tensors = {name: jt.array(a.astype(np.float32)) for name, a in arrays.items()}
    y, _, _, again, more = norm(**tensors, **options, fork=True, impl=impl)
    outputs = {"y": y, "again": again, "more": more}
    loss = sum((outputs[use] * jt.array(slopes[use].astype(np.float32))).sum() for use in uses)
    got = {name: g.numpy() for name, g in zip(tensors, jt.grad(loss, list(tensors.values())))}
    want = reference.backward(sum(slopes[use] for use in uses if use != "more") + np.zeros(shape), **arrays, **options)
    want["x"] = want["x"] + slopes.get("more", 0)
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=2e-6 * max(1.0, np.abs(expected).max()),
                                   err_msg=f"{impl} {options} {uses} d{name}")


@pytest.mark.parametrize("shape", [(2, 16, 1, 1), (2, 16, 1, 2)], ids=["two values", "four"])
def test_the_small_rest_of_a_cancelling_gradient_is_exact(shape, rng):
    """Two values become -1 and 1 whatever they are: what is left of their gradient is a few millionths of dy."""
    arrays = {"x": rng.standard_normal(shape) + 3, "weight": rng.uniform(0.5, 1.5, 16), "bias": np.zeros(16)}
    arrays = {name: a.astype(np.float32) for name, a in arrays.items()}
    slope, tensors = rng.standard_normal(shape).astype(np.float32), {name: jt.array(a) for name, a in arrays.items()}
    got = jt.grad((norm(**tensors, over="batch", impl="cpu")[0] * jt.array(slope)).sum(), tensors["x"]).numpy()
    exact = {name: a.astype(np.float64) for name, a in arrays.items()}
    want = reference.backward(slope.astype(np.float64), **exact, over="batch")["x"]
    assert np.linalg.norm(got - want) < 1e-6 * np.linalg.norm(want)
    assert np.abs(got.sum((0, 2, 3))).max() < 1e-6 * np.abs(want).max()
