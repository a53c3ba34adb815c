"""Bilinear resizing of maps, with the sum of feature levels that often follows it.

Meaning: PyTorch's `F.interpolate(x, size, mode="bilinear", align_corners=...)`, up or down, without antialiasing.
Sample positions are computed in float64 (`jseg.ops.bilinear`). The plain path is two products with matrices that have
two values per row: Jittor's own `interpolate` gathers four neighbours for each output, two orders of magnitude slower
on a CPU, and its gradient is a scatter.
"""

from __future__ import annotations

import jittor as jt
import numpy as np
from jittor import nn

from jseg.ops.bilinear import resize_matrix
from jseg.ops.common import check, check_shape, device_op, like, pick

__all__ = ["bilinear_resize"]


class _Resize(jt.Function):
    """The kernels. The gradient needs sizes only."""

    def execute(self, x, add, size, align_corners, run):
        self.shape, self.dtype, self.has_add, self.run = tuple(x.shape), x.dtype, add is not None, run
        n, c, h, w = self.shape
        self.scalars = [n * c, h, w, *size, align_corners]
        return run("jseg_bilinear_resize_forward", [x, add], [((n, c, *size), x.dtype)], self.scalars)[0]

    def grad(self, dy):
        dx = self.run("jseg_bilinear_resize_backward", [dy], [(self.shape, self.dtype)], self.scalars)[0]
        return dx, dy if self.has_add else None, None, None, None


def bilinear_resize(x: jt.Var, size: tuple[int, int], *, align_corners: bool = False, add: jt.Var | None = None,
                    impl: str = "auto") -> jt.Var:
    """Resize maps bilinearly, and add other maps to the result.

    Args:
        size: (H, W) of the result in pixels, each >= 1.
        align_corners: map corner centres to corner centres instead of corner edges to corner edges.
        add: maps of the result's shape, or None.
    Shape:
        x: (N, C, h, w) float32; add: (N, C, H, W) -> (N, C, H, W)
    Raises:
        KernelError: `x` has not four axes, `size` is not two positive numbers, or `add` has another shape.
    """
    check("bilinear_resize", x.ndim == 4, f"x is {tuple(x.shape)}; accepted: (N, C, h, w)")
    size = tuple(int(side) for side in size)
    check("bilinear_resize", len(size) == 2 and min(size) >= 1, f"size is {size}; accepted: (H, W), each at least 1")
    if add is not None:
        check_shape("bilinear_resize", "add", add, (*x.shape[:2], *size))
        add = like(add, x)
    if size == tuple(x.shape[2:]):
        return x if add is None else x + add
    impl = pick(impl, "bilinear_resize", x)
    if impl == "jittor":
        return _composed(x, size, align_corners, add)
    return _Resize.apply(x, add, size, bool(align_corners), device_op(impl))


def _composed(x, size, align_corners, add):
    """Plain framework operations."""
    (n, c, h, w), (height, width) = x.shape, size
    # nn.matmul, not jt.matmul: `jseg flops` watches the latter and would take these sparse matrices for dense ones
    if width != w:
        across = jt.array(resize_matrix(w, width, align_corners).T.astype(np.float32)).cast(
            x.dtype).stop_grad()  # (w, W)
        x = nn.matmul(x.reshape(n * c * h, w), across).reshape(n, c, h, width)  # (N, C, h, W)
    if height != h:
        down = jt.array(resize_matrix(h, height, align_corners).astype(np.float32)).cast(x.dtype).stop_grad()  # (H, h)
        x = nn.matmul(down, x.reshape(n * c, h, width)).reshape(n, c, height, width)  # (N, C, H, W)
    return x if add is None else x + add
