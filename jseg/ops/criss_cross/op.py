"""Criss-cross attention: every position attends to those of its own row and column.

Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019, sec. 3.2; the meaning is MMCV 2.x's
`CrissCrossAttention` (mmcv/ops/cc_attention.py, Apache-2.0) between its projections. Memory is H + W weights for each
position, never H * W; the kernels read rows and columns where they lie, without a turned copy of any map.
"""

from __future__ import annotations

import jittor as jt
import numpy as np
from jittor import nn

from jseg.ops.common import check, check_same, check_shape, device_op, like, pick

__all__ = ["criss_cross"]

_NEVER = -1e9  # added to a score whose weight is to be 0
_ALIGN = 16  # weights of a row or column come in so many, as in the kernels


def criss_cross(query: jt.Var, key: jt.Var, value: jt.Var, *, impl: str = "auto") -> jt.Var:
    """y = softmax of query . key over the row and the column of each position, itself counted once, times value.

    Shape:
        query, key: (N, C, H, W); value: (N, D, H, W), float32 -> (N, D, H, W)
        The CUDA kernel also takes float16 and bfloat16 maps; scores, weights and sums are float32 all the same.
    Raises:
        KernelError: shapes that do not fit, or an unknown impl.
    """
    check("criss_cross", query.ndim == 4 and min(query.shape) >= 1,
          f"query is {tuple(query.shape)}, expected (N, C, H, W) with no empty side")
    check_same("criss_cross", query=query, key=key)
    check_shape("criss_cross", "value", value, (query.shape[0], None, *query.shape[2:]))
    impl = pick(impl, "criss_cross", query, key, value)
    if impl == "jittor":
        return _composed(query, key, value)
    return _CrissCross.apply(query, like(key, query), like(value, query), device_op(impl))


class _CrissCross(jt.Function):
    """The kernels; they save their inputs and the weights."""

    def execute(self, query, key, value, run):
        (n, c, h, w), d = query.shape, value.shape[1]
        self.scalars = [n, c, d, h, w]
        places = -(-h // _ALIGN) * _ALIGN + -(-w // _ALIGN) * _ALIGN
        outputs = [(value.shape, value.dtype), ((n, h, w, places), "float32")]
        y, weights = run("jseg_criss_cross_forward", [query, key, value], outputs, self.scalars)
        self.run, self.saved = run, (query, key, value, weights)
        return y

    def grad(self, dy):
        value = self.saved[2]
        outputs = [(v.shape, v.dtype) for v in self.saved]
        *grads, _ = self.run("jseg_criss_cross_backward", [*self.saved, like(dy, value)], outputs, self.scalars)
        return (*grads, None)


def _composed(query, key, value):
    """Plain framework operations."""
    n, c, h, w = query.shape
    d = value.shape[1]
    itself = jt.array(np.eye(h, dtype=np.float32) * _NEVER).cast(query.dtype).stop_grad()  # counted with its row
    by_column = query.transpose(0, 3, 2, 1).reshape(n * w, h, c), key.transpose(0, 3, 1, 2).reshape(n * w, c, h)
    by_row = query.transpose(0, 2, 3, 1).reshape(n * h, w, c), key.transpose(0, 2, 1, 3).reshape(n * h, c, w)
    down = (jt.bmm(*by_column) + itself).reshape(n, w, h, h).transpose(0, 2, 1, 3)  # (N, H, W, H)
    across = jt.bmm(*by_row).reshape(n, h, w, w)  # (N, H, W, W)
    weights = nn.softmax(jt.concat([down, across], 3), dim=3)
    down = weights[:, :, :, :h].transpose(0, 2, 1, 3).reshape(n * w, h, h)
    across = weights[:, :, :, h:].reshape(n * h, w, w)
    down = jt.bmm(down, value.transpose(0, 3, 2, 1).reshape(n * w, h, d)).reshape(n, w, h, d).transpose(0, 3, 2, 1)
    across = jt.bmm(across, value.transpose(0, 2, 3, 1).reshape(n * h, w, d)).reshape(n, h, w, d).transpose(0, 3, 1, 2)
    return down + across
