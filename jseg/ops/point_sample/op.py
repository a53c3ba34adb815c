"""Values of maps at points between their pixels.

Meaning: MMCV 2.x's `mmcv.ops.point_sample`, which is PyTorch's `F.grid_sample` with zeros outside the map, for points
in [0, 1]. The kernel finds the four pixels and weights of every point once and uses them for several channels; its
gradient adds up in a fixed order, so it is the same in every run.
"""

from __future__ import annotations

import jittor as jt

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, pick

__all__ = ["point_sample"]

_MODES = ("bilinear", "nearest")


class _Sample(jt.Function):
    """The kernels. The gradient needs points and sizes only."""

    def execute(self, x, points, nearest, align_corners, run):
        self.points, self.like, self.run = points, x, run
        self.scalars = [*x.shape, points.shape[1], nearest, align_corners]
        return run("jseg_point_sample_forward", [x, points], [((*x.shape[:2], points.shape[1]), x.dtype)],
                   self.scalars)[0]

    def grad(self, dy):
        x = self.like
        dx = self.run("jseg_point_sample_backward", [like(dy, x), self.points], [(x.shape, x.dtype)], self.scalars)[0]
        return dx, None, None, None, None


def point_sample(x: jt.Var,
                 points: jt.Var,
                 *,
                 mode: str = "bilinear",
                 align_corners: bool = False,
                 impl: str = "auto") -> jt.Var:
    """Sample every map of a picture at that picture's points. Pixels beyond the edge count as 0.

    Args:
        points: (x, y) as shares of the width and height, 0 to 1 from edge to edge; they get no gradient.
        mode: "bilinear", or "nearest" (halfway the even index).
        align_corners: 0 and 1 are the centres of the first and last pixel instead of the map's edges.
    Shape:
        x: (N, C, H, W) float32; points: (N, P, 2) float32 -> (N, C, P)
        The CUDA kernel also takes float16 and bfloat16 maps; points and sums are float32 all the same.
    Raises:
        KernelError: shapes do not fit, or an unknown `mode`.
    """
    check("point_sample", x.ndim == 4 and min(x.shape) >= 1,
          f"x is {tuple(x.shape)}; accepted: (N, C, H, W) with no empty side")
    check_shape("point_sample", "points", points, (x.shape[0], None, 2))
    check("point_sample", points.shape[1] >= 1, "points has none")
    check("point_sample", mode in _MODES, f"mode is {mode!r}; accepted: {', '.join(map(repr, _MODES))}")
    impl = pick(impl, "point_sample", x, points)
    points = points.stop_grad()
    if impl == "jittor":
        return _composed(x, points, mode, align_corners)
    return _Sample.apply(x, *as_parameters(points), mode == "nearest", bool(align_corners), device_op(impl))


def _composed(x, points, mode, align_corners):
    """Plain framework operations."""
    n, c, h, w = x.shape
    positions = []  # rows, columns: (N, P) each, in pixels
    for axis, length in ((1, h), (0, w)):
        share = points[:, :, axis].float32()
        position = share * (length - 1) if align_corners else share * length - 0.5
        positions.append(jt.minimum(jt.maximum(position, -2.0), length + 1.0))  # beyond that all is 0

    def taken(rows, columns):
        return x.reindex([n, c, points.shape[1]], ["i0", "i1", "@e0(i0,i2)", "@e1(i0,i2)"],
                         extras=[rows.int32(), columns.int32()],
                         overflow_value=0)

    if mode == "nearest":
        rows, columns = (_half_even(position) for position in positions)
        return taken(rows, columns)
    (top, left), y = (jt.floor(position) for position in positions), None
    down, right = positions[0] - top, positions[1] - left
    for rows, share in ((top, 1 - down), (top + 1, down)):
        for columns, other in ((left, 1 - right), (left + 1, right)):
            part = taken(rows, columns) * like(share * other, x).unsqueeze(1)  # (N, C, P)
            y = part if y is None else y + part
    return y


def _half_even(x):
    """The nearest whole number, of two the even one."""
    low = jt.floor(x)
    up = jt.logical_or(x - low > 0.5, jt.logical_and(x - low == 0.5, low - 2 * jt.floor(low / 2) == 1))
    return low + up.float32()
