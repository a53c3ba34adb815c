"""Non-local blocks: each position adds a weighted mean of all positions.

Papers: Wang et al., "Non-local Neural Networks", CVPR 2018, sec. 3; Yin et al., "Disentangled Non-Local Neural
Networks", ECCV 2020, sec. 3.3. State keys follow MMCV 2.x (mmcv/cnn/bricks/non_local.py, Apache-2.0) and
mmsegmentation 1.2.2 (mmseg/models/decode_heads/dnl_head.py, Apache-2.0): `g`, `theta`, `phi`, `conv_out`, `conv_mask`.

Deviations: the weights of all pairs are never in memory, for `dot_product` because the products are taken in another
order; mode "concatenation" is refused.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers.conv import Conv2d, ConvNormAct
from jseg.layers.init import normal, zeros
from jseg.layers.tokens import to_map, to_tokens

__all__ = ["DisentangledNonLocal2d", "NonLocal2d"]

_START = 0.01  # standard deviation of the initial weights of the projections


class NonLocal2d(nn.Module):
    """x + conv_out(mean of g(x) over all positions, weighted by theta(x) and phi(x)).

    Args:
        channels: C.
        reduction: the projections have max(C // reduction, 1) channels.
        use_scale: divide the scores of "embedded_gaussian" by the root of the projections' width.
        mode: "embedded_gaussian" (softmax of theta phi^T), "gaussian" (of x x^T) or "dot_product" (theta phi^T / L).
        norm_cfg: norm of the last convolution, or None; either starts at 0.
    Shape:
        x: (N, C, H, W) -> same
    Raises:
        ConfigError: another mode.
    """

    MODES = ("embedded_gaussian", "gaussian", "dot_product")

    def __init__(self, channels: int, *, reduction: int = 2, use_scale: bool = True, mode: str = "embedded_gaussian",
                 norm_cfg: dict | None = None):
        super().__init__()
        if mode not in self.MODES:
            raise ConfigError(f"mode is {mode!r}; accepted: {', '.join(self.MODES)}")
        width = max(channels // reduction, 1)
        self.mode, self.scale = mode, width ** -0.5 if use_scale and mode == "embedded_gaussian" else 1.0
        for name in ("g", "theta", "phi")[:1 if mode == "gaussian" else 3]:
            projection = ConvNormAct(channels, width, 1)
            projection.conv.weight = normal(projection.conv.weight.shape, _START)
            setattr(self, name, projection)
        self.conv_out = ConvNormAct(width, channels, 1, norm_cfg=norm_cfg)
        last = self.conv_out.conv if norm_cfg is None else self.conv_out.norm
        last.weight = zeros(last.weight.shape)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.conv_out(self.mixed(x, to_tokens(self.g(x))), residual=x)

    def pairs(self, x: jt.Var) -> tuple[jt.Var, jt.Var]:
        """What is compared: tokens (N, L, D) of queries and of keys."""
        if self.mode == "gaussian":
            return to_tokens(x), to_tokens(x)
        return to_tokens(self.theta(x)), to_tokens(self.phi(x))

    def mixed(self, x: jt.Var, values: jt.Var) -> jt.Var:
        """The weighted means of `values` (N, L, D), as a map (N, D, H, W)."""
        queries, keys = self.pairs(x)
        if self.mode == "dot_product":
            found = jt.matmul(queries, jt.matmul(keys.transpose(0, 2, 1), values)) / keys.shape[1]
        else:
            queries, keys, tokens = (t.unsqueeze(2) for t in (queries, keys, values))
            found = ops.attention(queries, keys, tokens, scale=self.scale).squeeze(2)
        return to_map(found, tuple(x.shape[2:]))


class DisentangledNonLocal2d(NonLocal2d):
    """A non-local block whose queries and keys have mean 0, and which adds one mean of g(x) for all positions.

    Args:
        temperature: the scores of "embedded_gaussian" are divided by it.
        others: see `NonLocal2d`.
    Shape:
        x: (N, C, H, W) -> same
    """

    MODES = ("embedded_gaussian", "dot_product")

    def __init__(self, channels: int, *, temperature: float, reduction: int = 2, use_scale: bool = True,
                 mode: str = "embedded_gaussian", norm_cfg: dict | None = None):
        super().__init__(channels, reduction=reduction, use_scale=use_scale, mode=mode, norm_cfg=norm_cfg)
        self.scale = self.scale / temperature
        self.conv_mask = Conv2d(channels, 1, 1)

    def execute(self, x: jt.Var) -> jt.Var:
        values = to_tokens(self.g(x))  # (N, L, D)
        weights = nn.softmax(self.conv_mask(x).reshape(x.shape[0], 1, -1), dim=2)  # (N, 1, L)
        whole = jt.matmul(weights, values).transpose(0, 2, 1).unsqueeze(3)  # (N, D, 1, 1)
        return self.conv_out(self.mixed(x, values) + whole, residual=x)

    def pairs(self, x: jt.Var) -> tuple[jt.Var, jt.Var]:
        """Queries and keys, less their means over all positions."""
        queries, keys = super().pairs(x)
        return queries - queries.mean(1, keepdims=True), keys - keys.mean(1, keepdims=True)
