"""One rank of a small job that checks the exchanges themselves: `mpirun -np 2 python tests/engine/rank_probe.py`.
Silent when all is well.
"""

import sys

import numpy as np

import jseg  # noqa: F401  (prepares the process)
import jittor as jt

from jseg.engine import distributed
from jseg.layers.norms import BatchNorm2d
from jseg import ops
from jseg.ops import ranks

TOTAL = 7  # pictures: 4 + 3 on two ranks


def exchanges():
    """Counts are exact beyond float64, objects and the batch's random numbers arrive."""
    size, me = ranks.world_size(), ranks.rank()
    counts = distributed.sum_counts(np.array([[2**60 + me, me]]))
    assert counts.tolist() == [[size * 2**60 + sum(range(size)), sum(range(size))]], counts
    assert distributed.gather_objects({"rank": me, "bytes": b"x" * (10 * me)}) == [{"rank": r, "bytes": b"x" * (10 * r)}
                                                                                   for r in range(size)]
    assert (distributed.from_main(lambda: me) == 0 and distributed.any_rank(me == size - 1)
            and not distributed.any_rank(False))
    assert abs(sum(ranks.gather(np.array([ranks.share_of(me + 1.0)])))[0] - 1) < 1e-12 and ranks.share_of(0.0) == 0.0
    rows = len(range(me, TOTAL, size))
    with ranks.step(TOTAL):
        jt.set_seed(5)
        mine = ranks.rand((2 * rows, 3)).numpy()
    jt.set_seed(5)
    whole = jt.rand((TOTAL, 2, 3)).numpy()
    np.testing.assert_array_equal(mine, whole[me::size].reshape(-1, 3))


def norm(impl: str, shared: bool):
    """Outputs, gradients and running statistics of a norm on its rows of a batch."""
    rng = np.random.default_rng(0)
    x, residual, slope = (rng.normal(m, s, (TOTAL, 5, 9, 11)).astype(np.float32) for m, s in ((30, 2), (0, 1), (0, 1)))
    rows = slice(ranks.rank(), None, ranks.world_size()) if shared else slice(None)
    layer = BatchNorm2d(5, sync=shared)
    layer.weight.update(jt.array(np.linspace(0.5, 2, 5).astype(np.float32)))
    x, residual, slope = (jt.array(v[rows]) for v in (x, residual, slope))
    with ops.use(impl), ranks.step(TOTAL):
        twice, again, more = layer.fork_output(x)
        y = layer(twice, activation="gelu", residual=residual)
    grads = jt.grad((y * slope + again * again * slope + more * slope).sum(), [x, residual, layer.weight, layer.bias])
    found = dict(zip(("y", "dx", "dresidual", "dweight", "dbias"), (v.numpy() for v in (y, *grads))))
    if shared:
        found.update({key: sum(ranks.gather(found[key])) for key in ("dweight", "dbias")})
    found.update(mean=layer.running_mean.numpy(), variance=layer.running_var.numpy())
    return found, rows


def norms():
    """A batch split 4 + 3 is normalised as one process does it, forward and backward."""
    expected, _ = norm("cpu", False)
    for impl in ("cpu", "jittor"):
        found, rows = norm(impl, True)
        for key, value in found.items():
            want = expected[key][rows] if key in ("y", "dx", "dresidual") else expected[key]
            error = np.abs(value - want).max() / np.abs(want).max()
            assert error < 5e-6, f"{impl} {key}: {error}"


if __name__ == "__main__":
    jt.flags.lazy_execution = 0  # fewer kernels to compile
    sys.exit(distributed.as_rank(lambda: exchanges() or norms() or 0))
