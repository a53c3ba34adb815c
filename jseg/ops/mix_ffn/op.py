"""Feed-forward block of SegNeXt and PVTv2: 1x1 - depthwise 3x3 - GELU - 1x1, all with biases.

SegNeXt (NeurIPS 2022, arXiv 2209.08575), mmseg/models/backbones/mscan.py `Mlp`; its two dropouts have rate 0 in every
published config and are the caller's. The kernels never store the hidden tensor: the backward pass computes it again.
"""

from __future__ import annotations

import jittor as jt

from jseg.ops.common import check, check_shape, cpu_op, pick

__all__ = ["mix_ffn"]


class _MixFFN(jt.Function):
    """The CPU kernel; saves its inputs only."""

    def execute(self, *inputs):
        self.saved = inputs
        x, scalars = inputs[0], _sizes(*inputs)
        return cpu_op("jseg_mix_ffn_forward", list(inputs), [((x.shape[0], scalars[3], *x.shape[2:]), "float32")], scalars)[0]

    def grad(self, dy):
        return cpu_op("jseg_mix_ffn_backward", [*self.saved, dy], [(v.shape, "float32") for v in self.saved], _sizes(*self.saved))


def _sizes(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b) -> list[int]:
    """N, C, E, D, H, W."""
    return [*x.shape[:2], fc1_w.shape[0], fc2_w.shape[0], *x.shape[2:]]


def mix_ffn(x: jt.Var, fc1_w: jt.Var, fc1_b: jt.Var, dw_w: jt.Var, dw_b: jt.Var, fc2_w: jt.Var, fc2_b: jt.Var, *,
            impl: str = "auto") -> jt.Var:
    """fc2(gelu(depthwise3x3(fc1(x)))), zero padding of one pixel around the hidden tensor.

    Shape:
        x: (N, C, H, W) float32; fc1_w: (E, C, 1, 1); fc1_b: (E,); dw_w: (E, 1, 3, 3); dw_b: (E,); fc2_w: (D, E, 1, 1);
        fc2_b: (D,) -> (N, D, H, W)
    Raises:
        KernelError: a shape does not fit the others.
    """
    _check(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b)
    run = _composed if pick(impl, "mix_ffn", x, fc1_w, dw_w, fc2_w) == "jittor" else _MixFFN.apply
    return run(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b)


def _check(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b) -> None:
    """Raise KernelError unless the shapes fit."""
    check("mix_ffn", x.ndim == 4, f"x is {tuple(x.shape)}; accepted: (N, C, H, W)")
    check_shape("mix_ffn", "fc1_w", fc1_w, (None, x.shape[1], 1, 1))
    hidden = fc1_w.shape[0]
    check_shape("mix_ffn", "fc1_b", fc1_b, (hidden,))
    check_shape("mix_ffn", "dw_w", dw_w, (hidden, 1, 3, 3))
    check_shape("mix_ffn", "dw_b", dw_b, (hidden,))
    check_shape("mix_ffn", "fc2_w", fc2_w, (None, hidden, 1, 1))
    check_shape("mix_ffn", "fc2_b", fc2_b, (fc2_w.shape[0],))


def _composed(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b):
    """Plain framework operations."""
    y = jt.nn.conv2d(x, fc1_w, fc1_b)  # (N, E, H, W)
    y = jt.nn.gelu(jt.nn.conv2d(y, dw_w, dw_b, padding=1, groups=fc1_w.shape[0]))
    return jt.nn.conv2d(y, fc2_w, fc2_b)  # (N, D, H, W)
