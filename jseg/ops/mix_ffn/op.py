"""Feed-forward block of SegNeXt and PVTv2: 1x1 - depthwise 3x3 - GELU - 1x1,
all with biases, and the residual branch around it.

SegNeXt (NeurIPS 2022, arXiv 2209.08575), mmseg/models/backbones/mscan.py `Mlp`; its two dropouts have rate 0 in every
published config and are the caller's. The kernels never store the hidden tensor: the backward pass computes it again.
"""

from __future__ import annotations

import jittor as jt

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, per_channel, pick, rounds_factors

__all__ = ["mix_ffn"]


class _MixFFN(jt.Function):
    """The kernels; they save their inputs only."""

    def execute(self, run, *inputs):
        *tensors, scale, factor, shortcut, input_scale, input_shift = inputs
        self.saved, self.run = (tensors, scale, factor, shortcut is not None), run
        x, self.scalars = tensors[0], [*_sizes(*tensors), rounds_factors()]
        return run("jseg_mix_ffn_forward", list(inputs), [((x.shape[0], self.scalars[3], *x.shape[2:]), x.dtype)],
                   self.scalars)[0]

    def grad(self, dy):
        tensors, scale, factor, has_shortcut = self.saved
        dy = like(dy, tensors[0])
        outputs = [(v.shape, v.dtype) for v in tensors] + ([] if scale is None else [(scale.shape, "float32")])
        grads = self.run("jseg_mix_ffn_backward", [*tensors, dy, scale, factor], outputs, self.scalars)
        return [None, *grads[:7], None if scale is None else grads[7], None, dy if has_shortcut else None, None, None]


def _sizes(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b) -> list[int]:
    """N, C, E, D, H, W."""
    return [*x.shape[:2], fc1_w.shape[0], fc2_w.shape[0], *x.shape[2:]]


def mix_ffn(x: jt.Var, fc1_w: jt.Var, fc1_b: jt.Var, dw_w: jt.Var, dw_b: jt.Var, fc2_w: jt.Var, fc2_b: jt.Var, *,
            scale: jt.Var | None = None, factor: jt.Var | None = None, shortcut: jt.Var | None = None,
            input_scale: jt.Var | None = None, input_shift: jt.Var | None = None, impl: str = "auto") -> jt.Var:
    """shortcut + factor * scale * fc2(gelu(depthwise3x3(fc1(input_scale * x + input_shift)))),
    zero padding of the hidden tensor by 1.

    Everything after `fc2_b` is optional.

    Args:
        scale: one number per channel (layer scale).
        factor: one number per picture (stochastic depth), taken as constant in the gradient.
    Shape:
        x: (N, C, H, W) float32; fc1_w: (E, C, 1, 1); fc1_b: (E,); dw_w: (E, 1, 3, 3); dw_b: (E,); fc2_w: (D, E, 1, 1);
        fc2_b, scale: (D,); factor: (N,); input_scale, input_shift: (C,), both or none; shortcut: (N, D, H, W) -> (N, D,
            H, W)
    Raises:
        KernelError: a shape does not fit the others.
    """
    tensors = x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b
    _check(*tensors, scale, factor, shortcut, input_scale, input_shift)
    factor = None if factor is None else factor.detach()
    impl = pick(impl, "mix_ffn", x, fc1_w, dw_w, fc2_w)
    plain = impl == "jittor"
    # the kernel has no gradient for these: they are for inference
    if input_scale is not None and (plain or not jt.flags.no_grad):
        tensors = x * per_channel(input_scale) + per_channel(input_shift), *tensors[1:]
        input_scale = input_shift = None
    if plain:
        return _composed(*tensors, scale, factor, shortcut)
    x, *parameters = tensors
    shortcut = shortcut if shortcut is None else like(shortcut, x)
    scale, factor, input_scale, input_shift = as_parameters(scale, factor, input_scale, input_shift)
    return _MixFFN.apply(device_op(impl), x, *as_parameters(*parameters), scale, factor, shortcut,
                         input_scale, input_shift)


def _check(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b, scale, factor, shortcut, input_scale, input_shift) -> None:
    """Raise KernelError unless the shapes fit."""
    check("mix_ffn", x.ndim == 4, f"x is {tuple(x.shape)}; accepted: (N, C, H, W)")
    check_shape("mix_ffn", "fc1_w", fc1_w, (None, x.shape[1], 1, 1))
    hidden = fc1_w.shape[0]
    check_shape("mix_ffn", "fc1_b", fc1_b, (hidden,))
    check_shape("mix_ffn", "dw_w", dw_w, (hidden, 1, 3, 3))
    check_shape("mix_ffn", "dw_b", dw_b, (hidden,))
    check_shape("mix_ffn", "fc2_w", fc2_w, (None, hidden, 1, 1))
    out = fc2_w.shape[0]
    check_shape("mix_ffn", "fc2_b", fc2_b, (out,))
    check("mix_ffn", (input_scale is None) == (input_shift is None),
          "input_scale and input_shift go together; give both")
    for name, value, shape in (("scale", scale, (out,)), ("factor", factor, (x.shape[0],)),
                               ("shortcut", shortcut, (x.shape[0], out, *x.shape[2:])),
                               ("input_scale", input_scale, (x.shape[1],)),
                               ("input_shift", input_shift, (x.shape[1],))):
        if value is not None:
            check_shape("mix_ffn", name, value, shape)


def _composed(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b, scale, factor, shortcut):
    """Plain framework operations."""
    y = jt.nn.conv2d(x, fc1_w, fc1_b)  # (N, E, H, W)
    y = jt.nn.gelu(jt.nn.conv2d(y, dw_w, dw_b, padding=1, groups=fc1_w.shape[0]))
    y = jt.nn.conv2d(y, fc2_w, fc2_b)  # (N, D, H, W)
    y = y if scale is None else y * per_channel(scale)
    y = y if factor is None else y * factor.reshape(-1, 1, 1, 1)
    return y if shortcut is None else y + shortcut
