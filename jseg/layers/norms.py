"""Normalisation layers whose values, gradients and running statistics are PyTorch's; the work is done by `ops.norm`.

Why not Jittor's own: its BatchNorm keeps the biased variance in the running estimate, and all of its norms compute the
variance as E[x^2] - E[x]^2, which cancels in float32 when the mean is large against the spread. Here the mean comes
first. `num_batches_tracked` is not kept: PyTorch reads it only when momentum is None, which no supported model uses.

Every layer takes, besides x, `activation` (None, "relu", "gelu") and `residual`: y = activation(norm(x) + residual);
and has `fork_output(x)` -> (norm(x), norm(x), x) for blocks that use result and input twice: the gradients are then
added up in one pass.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers.activation import relu
from jseg.layers.init import ones, zeros
from jseg.ops import ranks
from jseg.ops.common import per_channel
from jseg.ops.norm.op import moments
from jseg.registry import nearest

__all__ = ["NORMS", "BatchNorm2d", "GroupNorm", "LayerNorm", "activated", "build_norm", "moments"]


class BatchNorm2d(nn.Module):
    """Batch normalisation over N, H and W (Ioffe & Szegedy, ICML 2015).

    Training normalises by the batch's biased variance and moves the running estimate towards the unbiased one, as
    PyTorch does; evaluation uses the running estimates.

    Args:
        channels: C.
        eps: added to the variance.
        momentum: weight of the newest batch in the running estimates, in (0, 1].
        sync: under MPI, take the statistics over the pictures of all ranks: what one process does with the whole batch.
    Shape:
        x: (N, C, H, W) -> same
    Raises:
        ValueError: one value per channel in training (N*H*W = 1), whose variance is undefined.
    """

    BUFFERS = ("running_mean", "running_var")

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, sync: bool = True):
        super().__init__()
        self.channels, self.eps, self.momentum, self.sync = channels, eps, momentum, sync
        self.is_train = True
        self.weight, self.bias = ones(channels), zeros(channels)
        self.running_mean = zeros(channels).stop_grad()
        self.running_var = ones(channels).stop_grad()

    def execute(self, x: jt.Var, *, activation: str | None = None, residual: jt.Var | None = None) -> jt.Var:
        if self.is_train:
            return self._by_batch(x, activation=activation, residual=residual)[0]
        _check_channels(self, x, 1)
        if ops.folds_norms(x) and x.ndim == 4:  # all in one launch, where scale and shift would be one of their own
            weight, bias, mean, variance = (v.broadcast(x.shape, [0, 2, 3]) for v in self.parts)
            y = (x - mean) / jt.sqrt(variance + self.eps) * weight + bias
        else:
            scale, shift = self.affine()
            y = x * per_channel(scale) + per_channel(shift)
        return activated(y if residual is None else y + _same_shape(residual, y), activation)

    def fork_output(self, x: jt.Var) -> tuple:
        """(y, y, x) for use in several places."""
        if self.is_train:
            y, _, _, again, x = self._by_batch(x, fork=True)
            return y, again, x
        y = self(x)
        return y, y, x

    def affine(self) -> tuple[jt.Var, jt.Var]:
        """What evaluation does, as scale and shift (C,): operators that follow can take them over."""
        scale = self.weight / jt.sqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    @property
    def parts(self) -> tuple[jt.Var, jt.Var, jt.Var, jt.Var]:
        """Weight, bias and running estimates, (C,) each, which `affine` is made of."""
        return self.weight, self.bias, self.running_mean, self.running_var

    def _by_batch(self, x: jt.Var, **options) -> tuple:
        """`ops.norm` by the batch's statistics, which also go into the running estimates."""
        count = (ranks.pictures(x.shape[0]) if self.sync else x.shape[0]) * x.shape[2] * x.shape[3]
        if count == 1:
            raise ValueError(f"BatchNorm2d({self.channels}): one value per channel in training; use a batch above 1 or "
                             "a larger input")
        found = ops.norm(x, self.weight, self.bias, over="batch", eps=self.eps, sync=self.sync, **options)
        self._update_running(found[1], found[2], count)
        return found

    def _update_running(self, mean: jt.Var, variance: jt.Var, count: int) -> None:
        """Move the running estimates by one batch."""
        with jt.no_grad():
            unbiased = variance * (count / (count - 1))
            self.running_mean.update(self.running_mean * (1 - self.momentum) + mean * self.momentum)
            self.running_var.update(self.running_var * (1 - self.momentum) + unbiased * self.momentum)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He, ECCV 2018).

    Args:
        num_groups: groups of consecutive channels that share statistics; divides `channels`.
        channels: C.
        eps: added to the variance.
    Shape:
        x: (N, C, H, W) -> same
    Raises:
        ValueError: `num_groups` does not divide `channels`.
    """

    def __init__(self, num_groups: int, channels: int, *, eps: float = 1e-5):
        super().__init__()
        if num_groups < 1 or channels % num_groups:
            raise ValueError(f"GroupNorm: num_groups={num_groups} must divide the channel count {channels}")
        self.num_groups, self.channels, self.eps = num_groups, channels, eps
        self.weight, self.bias = ones(channels), zeros(channels)

    def execute(self, x: jt.Var, *, activation: str | None = None, residual: jt.Var | None = None) -> jt.Var:
        return self._run(x, activation=activation, residual=residual)[0]

    def fork_output(self, x: jt.Var) -> tuple:
        """(y, y, x) for use in several places."""
        if jt.flags.no_grad:
            y = self(x)
            return y, y, x
        y, _, _, again, x = self._run(x, fork=True)
        return y, again, x

    def _run(self, x: jt.Var, **options) -> tuple:
        return ops.norm(x, self.weight, self.bias, over="group", groups=self.num_groups, eps=self.eps, **options)


class LayerNorm(nn.Module):
    """Layer normalisation of one axis (Ba et al., 2016), for channel-last tokens or channel-first maps.

    Args:
        channels: length of the normalised axis.
        eps: added to the variance.
        axis: -1 for (..., C), 1 for (N, C, H, W).
    Shape:
        x: any shape with `channels` values on `axis` -> same
    Raises:
        ValueError: another axis.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, axis: int = -1):
        super().__init__()
        if axis not in (-1, 1):
            raise ValueError(f"LayerNorm: axis must be -1 (channel-last) or 1 (channel-first), got {axis}")
        self.channels, self.eps, self.axis = channels, eps, axis
        self.weight, self.bias = ones(channels), zeros(channels)

    def execute(self, x: jt.Var, *, activation: str | None = None, residual: jt.Var | None = None) -> jt.Var:
        if self.axis == 1 and x.ndim == 4:
            return self._by_position(x, activation=activation, residual=residual)[0]
        axis = self.axis % x.ndim
        _check_channels(self, x, axis)
        if axis == x.ndim - 1 and x.ndim > 1:
            y = ops.layer_norm(x, self.weight, self.bias, eps=self.eps)
        else:
            shape = [1] * x.ndim
            shape[axis] = self.channels
            mean, variance, _ = moments(x, [axis])
            y = (x - mean) / jt.sqrt(variance + self.eps) * self.weight.reshape(shape) + self.bias.reshape(shape)
        return activated(y if residual is None else y + _same_shape(residual, y), activation)

    def fork_output(self, x: jt.Var) -> tuple:
        """(y, y, x) for use in several places."""
        if self.axis == 1 and x.ndim == 4 and not jt.flags.no_grad:
            y, _, _, again, x = self._by_position(x, fork=True)
            return y, again, x
        y = self(x)
        return y, y, x

    def _by_position(self, x: jt.Var, **options) -> tuple:
        return ops.norm(x, self.weight, self.bias, over="position", eps=self.eps, **options)


NORMS = (BatchNorm2d, GroupNorm, LayerNorm)  # what rules for norms apply to
_NORM_KEYS = {"BN": ("bn", ("eps", "momentum", "sync")), "SyncBN": ("bn", ("eps", "momentum")),
              "GN": ("gn", ("num_groups", "eps")), "LN": ("ln", ("eps",)), "LN2d": ("ln", ("eps",))}


def build_norm(cfg: dict, channels: int, *, channel_first: bool = True) -> tuple[str, nn.Module]:
    """Build the layer that a `norm_cfg` block names.

    Args:
        cfg: `{type: BN | SyncBN | GN | LN, requires_grad: true, eps, momentum, num_groups}`. LN2d, mmpretrain's word,
            is LN. BN and SyncBN are the same here, so that a job of many ranks equals one process;
            `{type: BN, sync: false}` normalises by each rank's own pictures.
        channels: C.
        channel_first: for LN, whether the input is (N, C, H, W).
    Returns:
        MMCV's attribute name for such a norm ("bn", "gn", "ln") and the layer.
    Raises:
        ConfigError: unknown type, unknown key, or GN without `num_groups`.
    """
    kind = cfg.get("type")
    if kind not in _NORM_KEYS:
        raise ConfigError(
            f"norm_cfg: unknown norm {kind!r}{nearest(kind, _NORM_KEYS)} (known: {', '.join(_NORM_KEYS)})")
    name, accepted = _NORM_KEYS[kind]
    for key in cfg:
        if key not in ("type", "requires_grad", *accepted):
            raise ConfigError(f"norm_cfg: unknown key {key!r} for {kind}{nearest(key, accepted)} (known: "
                              f"{', '.join(accepted)})")
    if kind == "GN" and "num_groups" not in cfg:
        raise ConfigError("norm_cfg: GN needs 'num_groups'")
    options = {key: cfg[key] for key in accepted if key in cfg}
    if kind == "GN":
        layer = GroupNorm(options.pop("num_groups"), channels, **options)
    elif kind in ("LN", "LN2d"):
        layer = LayerNorm(channels, axis=1 if channel_first else -1, **options)
    else:
        layer = BatchNorm2d(channels, **options)
    if not cfg.get("requires_grad", True):
        layer.weight.stop_grad()
        layer.bias.stop_grad()
    return name, layer


def _same_shape(residual: jt.Var, y: jt.Var) -> jt.Var:
    if tuple(residual.shape) != tuple(y.shape):
        raise ValueError(f"norm: residual is {tuple(residual.shape)}, x is {tuple(y.shape)}; they must be equal")
    return residual


def _check_channels(norm: nn.Module, x: jt.Var, axis: int) -> None:
    """ValueError unless x has the norm's channels: an axis of length 1 would be broadcast without a word."""
    if x.shape[axis] != norm.channels:
        raise ValueError(f"{type(norm).__name__}: x is {tuple(x.shape)}, but channels is {norm.channels}")


def activated(x: jt.Var, activation: str | None) -> jt.Var:
    """x after "relu" or "gelu", or as it is for None."""
    return relu(x) if activation == "relu" else nn.gelu(x) if activation == "gelu" else x
