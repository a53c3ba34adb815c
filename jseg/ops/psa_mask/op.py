"""Maps of weights by relative position become weights by absolute position: the mask operator of PSANet.

Zhao et al., "PSANet: Point-wise Spatial Attention Network for Scene Parsing", ECCV 2018, sec. 3.3; the meaning is MMCV
2.x's `psa_mask` (mmcv/ops/psa_mask.py, Apache-2.0). Every value moves to one place at most; the way back moves it back.
"""

from __future__ import annotations

from typing import Sequence

import jittor as jt

from jseg.ops.common import check, check_shape, device_op, like, pick

__all__ = ["psa_mask"]

KINDS = ("collect", "distribute")


def psa_mask(x: jt.Var, mask_size: Sequence[int], kind: str, *, impl: str = "auto") -> jt.Var:
    """Weights between all pairs of positions from a window of weights around each.

    Channel r * mw + c of `x` at position q is the weight between q and the position p that lies (r - (mh - 1) // 2,
    c - (mw - 1) // 2) further down and right. It becomes
    y[n, p, q] for "collect" and y[n, q, p] for "distribute". Pairs
    further apart than the window reaches get 0.

    Args:
        mask_size: (mh, mw), the window in cells.
        kind: "collect" or "distribute".
    Shape:
        x: (N, mh * mw, H, W) float32 -> (N, H * W, H, W); the CUDA kernel also takes float16 and bfloat16.
    Raises:
        KernelError: shapes that do not fit, an unknown kind or impl.
    """
    check("psa_mask", x.ndim == 4 and min(x.shape) >= 1,
          f"x is {tuple(x.shape)}, expected (N, C, H, W) with no empty side")
    check("psa_mask", kind in KINDS, f"kind is {kind!r}, accepted are {', '.join(KINDS)}")
    rows, columns = (int(side) for side in mask_size)
    check_shape("psa_mask", "x", x, (None, rows * columns, None, None))
    impl = pick(impl, "psa_mask", x)
    if impl == "jittor":
        return _composed(x, rows, columns, kind)
    return _PsaMask.apply(x, rows, columns, kind, device_op(impl))


class _PsaMask(jt.Function):
    """The kernels. The gradient needs sizes only."""

    def execute(self, x, rows, columns, kind, run):
        n, _, h, w = x.shape
        self.like, self.run, self.scalars = x, run, [n, h, w, rows, columns, kind == "distribute"]
        return run("jseg_psa_mask_forward", [x], [((n, h * w, h, w), x.dtype)], self.scalars)[0]

    def grad(self, dy):
        x = self.like
        dx = self.run("jseg_psa_mask_backward", [like(dy, x)], [(x.shape, x.dtype)], self.scalars)[0]
        return dx, None, None, None, None


def _composed(x, rows, columns, kind):
    """Plain framework operations."""
    n, _, h, w = x.shape
    there, here = (f"i1/{w}", f"i1%{w}"), ("i2", "i3")  # indices of the result: i1 is a position, (i2, i3) another
    centre, other = (here, there) if kind == "collect" else (there, here)
    down, right = (f"({other[i]})-({centre[i]})+{(side - 1) // 2}" for i, side in enumerate((rows, columns)))
    outside = [f"({offset}){test}" for offset, side in ((down, rows), (right, columns)) for test in ("<0", f">={side}")]
    return x.reindex([n, h * w, h, w], ["i0", f"({down})*{columns}+({right})", *centre], 0, outside)
