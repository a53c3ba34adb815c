"""`norm` with `fork`: what goes back through its second y and through x is added up inside the operation."""

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
