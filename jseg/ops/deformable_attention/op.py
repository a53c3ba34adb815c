"""Weighted sums of values at points of several maps: the core of multi-scale deformable attention.

Zhu et al., "Deformable DETR", ICLR 2021, sec. 4.1. Meaning: MMCV 2.x's `multi_scale_deformable_attn_pytorch`, which is
PyTorch's `F.grid_sample` (bilinear, zeros outside the map, align_corners=False) of each map, weighted and summed.

The kernel reads the few pixels of a point as rows of one head's width and never holds the sampled values; its gradient
computes them again and adds up in a fixed order, so it is the same in every run.
"""

from __future__ import annotations

from typing import Sequence

import jittor as jt

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, pick

__all__ = ["deformable_attention"]

MAPS = 16  # as many sizes go through one call


class _Attend(jt.Function):
    """The kernels; they save their arguments only."""

    def execute(self, value, points, weights, sizes, run):
        n, cells, heads, width = value.shape
        _, queries, _, maps, count, _ = points.shape
        self.run, self.saved = run, (value, points, weights)
        self.scalars = [n, cells, heads, width, queries, maps, count, *(side for size in sizes for side in size)]
        return run("jseg_deformable_attention_forward", [value, points, weights],
                   [((n, queries, heads, width), value.dtype)], self.scalars)[0]

    def grad(self, dy):
        outputs, dy = [(t.shape, t.dtype) for t in self.saved], like(dy, self.saved[0])
        return (*self.run("jseg_deformable_attention_backward", [*self.saved, dy], outputs, self.scalars), None, None)


def deformable_attention(value: jt.Var, points: jt.Var, weights: jt.Var, *, sizes: Sequence[tuple[int, int]],
                         impl: str = "auto") -> jt.Var:
    """y = sum over maps and points of weight * (the map's value at the point), for each query and head.

    Args:
        value: the cells of all maps, one map after the other, row by row.
        points: (x, y) as shares of the map's width and height, 0 to 1 from edge to edge; beyond the edge values are 0.
        weights: of the points; they are used as they are.
        sizes: (H, W) of each map, at most 16 maps.
    Shape:
        value: (N, S, G, D), S the sum of H * W; points: (N, Q, G, maps, P, 2); weights: (N, Q, G, maps, P) -> (N, Q, G,
        D) All float32; all three have gradients. The CUDA kernel also takes float16 and bfloat16 values; points,
        weights and sums are float32 all the same.
    Raises:
        KernelError: shapes do not fit.
    """
    name, sizes = "deformable_attention", [tuple(int(side) for side in size) for size in sizes]
    check_shape(name, "value", value, (None,) * 4)
    n, cells, heads, _ = value.shape
    check(name, 1 <= len(sizes) <= MAPS and all(len(size) == 2 and min(size) >= 1 for size in sizes),
          f"sizes is {sizes}; accepted: 1 to {MAPS} times (H, W), each at least 1")
    check(name, cells == sum(h * w for h, w in sizes),
          f"value is {tuple(value.shape)}, but maps of {sizes} have {sum(h * w for h, w in sizes)} cells")
    check_shape(name, "points", points, (n, None, heads, len(sizes), None, 2))
    check_shape(name, "weights", weights, tuple(points.shape[:5]))
    check(name, min(points.shape) >= 1 and min(value.shape) >= 1,
          f"value {tuple(value.shape)} or points {tuple(points.shape)} is empty")
    impl = pick(impl, name, value, points, weights)
    if impl == "jittor":
        return _composed(value, points, weights, sizes)
    return _Attend.apply(value, *as_parameters(points, weights), sizes, device_op(impl))


def _composed(value, points, weights, sizes):
    """Plain framework operations; one map's sampled values are in memory at once."""
    n, queries, heads, _, count, _ = points.shape
    width, first, y = value.shape[3], 0, None
    for i, (h, w) in enumerate(sizes):
        column, row = points[:, :, :, i, :, 0] * w - 0.5, points[:, :, :, i, :, 1] * h - 0.5  # (N, Q, G, P)
        # beyond that all is 0
        column, row = (jt.minimum(jt.maximum(place, -2.0), side + 1.0) for place, side in ((column, w), (row, h)))
        left, top = jt.floor(column).stop_grad(), jt.floor(row).stop_grad()
        right, down = column - left, row - top
        for r, share in ((top, 1 - down), (top + 1, down)):
            for c, other in ((left, 1 - right), (left + 1, right)):
                inside = (r >= 0) & (r < h) & (c >= 0) & (c < w)
                place = jt.ternary(inside, r * w + c + first, jt.full_like(r, -1.0)).int32().stop_grad()
                taken = value.reindex([n, queries, heads, count, width], ["i0", "@e0(i0,i1,i2,i3)", "i2", "i4"],
                                      extras=[place], overflow_value=0)
                part = (taken * like(share * other * weights[:, :, :, i], value).unsqueeze(4)).sum(3)  # (N, Q, G, D)
                y = part if y is None else y + part
        first += h * w
    return y
