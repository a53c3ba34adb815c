"""1x1 convolution as a matrix product over pixels,
fused with what surrounds it in attention blocks and residual branches.

Fused before it: a per-channel affine map of the input (a BatchNorm at inference). Fused behind it: GELU, a gate, a
residual, a per-channel scale, a per-picture factor (stochastic depth), a shortcut. The plain path runs them as
operations of their own.
"""

from __future__ import annotations

import jittor as jt

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, per_channel, pick, rounds_factors

__all__ = ["pointwise"]

_ACTIVATIONS = (None, "gelu", "relu")


class _Pointwise(jt.Function):
    """The kernels; with GELU or gate, the backward pass computes the value before them again instead of saving it."""

    def execute(self, x, weight, bias, gate, residual, scale, factor, shortcut, activation, constants, begin, run):
        residual_scale, input_scale, input_shift = constants
        self.saved = x, weight, bias, gate, residual, scale, factor
        self.has_shortcut, self.run = shortcut is not None, run
        n, c, h, w = x.shape
        self.scalars = [n, c, weight.shape[0], h * w, _ACTIVATIONS.index(activation), rounds_factors(), begin,
                        weight.shape[1]]
        more = [gate, residual, residual_scale, scale, factor, shortcut, input_scale, input_shift]
        inputs = [x, weight, bias] + (more if any(v is not None for v in more) else [])
        return run("jseg_pointwise_forward", inputs, [((n, weight.shape[0], h, w), x.dtype)], self.scalars)[0]

    def grad(self, dy):
        x, weight, bias, gate, residual, scale, factor = self.saved
        dy = like(dy, x)
        inputs = [x, weight, bias, dy]
        outputs = [(x.shape, x.dtype), (weight.shape, "float32"), ((weight.shape[0],), "float32")]
        same = residual is not None and scale is None and factor is None  # then the residual's gradient is dy itself
        if any(v is not None for v in (gate, None if same else residual, scale, factor)):
            inputs += [gate, None if same else residual, scale, factor]
            outputs += [(dy.shape if gate is not None or not (same or residual is None) else (1,), x.dtype),
                        ((weight.shape[0],), "float32")]
        dx, dweight, dbias, dextra, dscale = (self.run("jseg_pointwise_backward", inputs, outputs, self.scalars)
                                              + [None, None])[:5]
        return (dx, dweight, None if bias is None else dbias, None if gate is None else dextra,
                None if residual is None else dy if same else dextra, None if scale is None else dscale, None,
                dy if self.has_shortcut else None, None, None, None, None)


def pointwise(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None, *, activation: str | None = None,
              gate: jt.Var | None = None, residual: jt.Var | None = None, residual_scale: jt.Var | None = None,
              scale: jt.Var | None = None, factor: jt.Var | None = None, shortcut: jt.Var | None = None,
              input_scale: jt.Var | None = None, input_shift: jt.Var | None = None,
              columns: tuple[int, int] | None = None, impl: str = "auto") -> jt.Var:
    """y = shortcut + factor * scale * (gate * activation(weight * (input_scale * x +
    input_shift) + bias) + residual_scale * residual).

    Everything after `bias` is optional. `activation` and `gate` do not go together with the other endings.

    Args:
        activation: None, "gelu" (exact, by erf) or, without a gate, "relu".
        factor: one number per picture, taken as constant in the gradient.
        columns: first and last + 1 of a wider weight's columns, those that are for x.
    Shape:
        x: (N, C, H, W) float32; weight: (D, C, 1, 1) or (D, C); bias, scale, residual_scale: (D,); factor: (N,);
        input_scale, input_shift: (C,), both or none; gate, residual, shortcut: (N, D, H, W) -> (N, D, H, W)
    Raises:
        KernelError: shapes disagree, `activation` is unknown, or endings that do not go together.
    """
    impl = pick(impl, "pointwise", x, weight)
    reads_whole = jt.flags.no_grad and impl == "cuda"
    begin = 0
    if columns is not None:
        check("pointwise", 0 <= columns[0] and columns[1] - columns[0] == x.shape[1] and columns[1] <= weight.shape[1],
              f"columns is {columns}, weight is {tuple(weight.shape)}, x is {tuple(x.shape)}")
        check("pointwise", input_scale is None, "columns and input_scale do not go together")
        begin, weight = (columns[0], weight) if reads_whole else (0, weight[:, columns[0]:columns[1]])
    maps = {"gate": gate, "residual": residual, "shortcut": shortcut}
    vectors = {"bias": bias, "scale": scale, "residual_scale": residual_scale}
    _check(x, weight, columns and weight.shape[1], activation, maps, vectors,
           {"input_scale": input_scale, "input_shift": input_shift}, factor)
    if activation == "relu" and not reads_whole:  # the other kernels, and the way back, know no ReLU
        return jt.maximum(pointwise(x, weight, bias, input_scale=input_scale, input_shift=input_shift, impl=impl), 0.0)
    factor = None if factor is None else factor.detach()
    plain = impl == "jittor"
    if plain or not jt.flags.no_grad:  # the kernel has no gradient for these three: they are for inference
        x = x if input_scale is None else x * per_channel(input_scale) + per_channel(input_shift)
        residual = residual if residual_scale is None else residual * per_channel(residual_scale)
        residual_scale = input_scale = input_shift = None
    if plain:
        return _composed(x, weight.reshape(*weight.shape[:2], 1, 1), bias, activation, gate, residual, scale,
                         factor, shortcut)
    gate, residual, shortcut = (v if v is None else like(v, x) for v in (gate, residual, shortcut))
    weight, bias, scale, factor, *constants = as_parameters(weight, bias, scale, factor, residual_scale,
                                                            input_scale, input_shift)
    return _Pointwise.apply(x, weight, bias, gate, residual, scale, factor, shortcut, activation, tuple(constants),
                            begin, device_op(impl))


def _check(x, weight, wider, activation, maps: dict, vectors: dict, affine: dict, factor) -> None:
    """Raise KernelError unless the arguments fit."""
    check("pointwise", x.ndim == 4, f"x is {tuple(x.shape)}; accepted: (N, C, H, W)")
    taken = wider or x.shape[1]
    check_shape("pointwise", "weight", weight, (None, taken) if weight.ndim == 2 else (None, taken, 1, 1))
    out = weight.shape[0]
    for names, shape in ((vectors, (out,)), (affine, (x.shape[1],)), (maps, (x.shape[0], out, *x.shape[2:])),
                         ({"factor": factor}, (x.shape[0],))):
        for name, value in names.items():
            if value is not None:
                check_shape("pointwise", name, value, shape)
    check("pointwise", activation in _ACTIVATIONS, f"activation is {activation!r}; accepted: None, 'gelu', 'relu'")
    check("pointwise", activation != "relu" or maps["gate"] is None, "ReLU goes without a gate")
    check("pointwise", (affine["input_scale"] is None) == (affine["input_shift"] is None),
          "input_scale and input_shift go together; give both")
    check("pointwise", vectors["residual_scale"] is None or maps["residual"] is not None,
          "residual_scale needs a residual")
    others = [maps["residual"], maps["shortcut"], vectors["scale"], factor]
    check("pointwise", all(v is None for v in others) or (activation is None and maps["gate"] is None),
          "activation and gate do not go together with residual, scale, factor and shortcut; use two calls")


def _composed(x, weight, bias, activation, gate, residual, scale, factor, shortcut):
    """Plain framework operations."""
    y = jt.nn.conv2d(x, weight, bias)  # (N, D, H, W); jt.matmul is as fast forward, but its backward pass is not
    y = jt.nn.gelu(y) if activation == "gelu" else y
    y = y if gate is None else y * gate
    y = y if residual is None else y + residual
    y = y if scale is None else y * per_channel(scale)
    y = y if factor is None else y * factor.reshape(-1, 1, 1, 1)
    return y if shortcut is None else y + shortcut
