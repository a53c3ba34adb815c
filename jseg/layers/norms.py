"""Normalisation layers whose values, gradients and running statistics are PyTorch's.

Why not Jittor's own: its BatchNorm keeps the biased variance in the running estimate, and all of its norms compute the
variance as E[x^2] - E[x]^2, which cancels in float32 when the mean is large against the spread. Here the mean comes first.
`num_batches_tracked` is not kept: PyTorch reads it only when momentum is None, which no supported model uses.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers.init import ones, zeros
from jseg.registry import nearest

__all__ = ["BatchNorm2d", "GroupNorm", "LayerNorm", "build_norm", "moments"]


def moments(x: jt.Var, dims: list[int], *, sync: bool = False) -> tuple[jt.Var, jt.Var, int]:
    """Mean and biased variance over `dims`, kept as size-1 axes, and the number of values each is taken over.

    The one place where batch statistics are computed. With `sync` under MPI they span the batches of all ranks: the mean is
    averaged first, then the squared distances from that common mean.
    """
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    shared = sync and jt.in_mpi
    mean = x.mean(dims, keepdims=True)
    if shared:
        mean = mean.mpi_all_reduce("mean")
    centred = x - mean
    variance = (centred * centred).mean(dims, keepdims=True)
    if shared:
        variance = variance.mpi_all_reduce("mean")
        count *= jt.world_size
    return mean, variance, count


class BatchNorm2d(nn.Module):
    """Batch normalisation over N, H and W (Ioffe & Szegedy, ICML 2015).

    Training normalises by the batch's biased variance and moves the running estimate towards the unbiased one, as PyTorch
    does; evaluation uses the running estimates.

    Args:
        channels: C.
        eps: added to the variance.
        momentum: weight of the newest batch in the running estimates, in (0, 1].
        sync: share the statistics between MPI ranks (`SyncBN`).
    Shape:
        x: (N, C, H, W) -> same
    Raises:
        ValueError: one value per channel in training (N*H*W = 1), whose variance is undefined.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, sync: bool = True):
        super().__init__()
        self.channels, self.eps, self.momentum, self.sync = channels, eps, momentum, sync
        self.is_train = True
        self.weight, self.bias = ones(channels), zeros(channels)
        self.running_mean = zeros(channels).stop_grad()
        self.running_var = ones(channels).stop_grad()

    def execute(self, x: jt.Var) -> jt.Var:
        if self.is_train:
            mean, variance, count = moments(x, [0, 2, 3], sync=self.sync)  # (1, C, 1, 1)
            self._track(mean, variance, count)
        else:
            mean, variance = _per_channel(self.running_mean), _per_channel(self.running_var)
        scale = _per_channel(self.weight) / jt.sqrt(variance + self.eps)
        shift = _per_channel(self.bias) - mean * scale
        return x * scale + shift

    def _track(self, mean: jt.Var, variance: jt.Var, count: int) -> None:
        """Move the running estimates by one batch."""
        if count == 1:
            raise ValueError(f"BatchNorm2d({self.channels}): one value per channel in training; use a batch above 1 or a larger input")
        with jt.no_grad():
            unbiased = variance.reshape(-1) * (count / (count - 1))
            self.running_mean.update(self.running_mean * (1 - self.momentum) + mean.reshape(-1) * self.momentum)
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

    def execute(self, x: jt.Var) -> jt.Var:
        n, c, h, w = x.shape
        groups = x.reshape(n, self.num_groups, -1)  # (N, G, C/G*H*W)
        mean, variance, _ = moments(groups, [2])  # (N, G, 1)
        per_group = (1, self.num_groups, c // self.num_groups)
        scale = self.weight.reshape(per_group) / jt.sqrt(variance + self.eps)  # (N, G, C/G)
        shift = self.bias.reshape(per_group) - mean * scale
        return x * scale.reshape(n, c, 1, 1) + shift.reshape(n, c, 1, 1)


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

    def execute(self, x: jt.Var) -> jt.Var:
        axis = self.axis % x.ndim
        shape = [1] * x.ndim
        shape[axis] = self.channels
        mean, variance, _ = moments(x, [axis])
        return (x - mean) / jt.sqrt(variance + self.eps) * self.weight.reshape(shape) + self.bias.reshape(shape)


_NORM_KEYS = {"BN": ("bn", ("eps", "momentum")), "SyncBN": ("bn", ("eps", "momentum")),
              "GN": ("gn", ("num_groups", "eps")), "LN": ("ln", ("eps",))}


def build_norm(cfg: dict, channels: int, *, channel_first: bool = True) -> tuple[str, nn.Module]:
    """Build the layer that a `norm_cfg` block names.

    Args:
        cfg: `{type: BN | SyncBN | GN | LN, requires_grad: true, eps, momentum, num_groups}`.
        channels: C.
        channel_first: for LN, whether the input is (N, C, H, W).
    Returns:
        MMCV's attribute name for such a norm ("bn", "gn", "ln") and the layer.
    Raises:
        ConfigError: unknown type, unknown key, or GN without `num_groups`.
    """
    kind = cfg.get("type")
    if kind not in _NORM_KEYS:
        raise ConfigError(f"norm_cfg: unknown norm {kind!r}{nearest(kind, _NORM_KEYS)} (known: {', '.join(_NORM_KEYS)})")
    name, accepted = _NORM_KEYS[kind]
    for key in cfg:
        if key not in ("type", "requires_grad", *accepted):
            raise ConfigError(f"norm_cfg: unknown key {key!r} for {kind}{nearest(key, accepted)} (known: {', '.join(accepted)})")
    if kind == "GN" and "num_groups" not in cfg:
        raise ConfigError("norm_cfg: GN needs 'num_groups'")
    options = {key: cfg[key] for key in accepted if key in cfg}
    if kind == "GN":
        layer = GroupNorm(options.pop("num_groups"), channels, **options)
    elif kind == "LN":
        layer = LayerNorm(channels, axis=1 if channel_first else -1, **options)
    else:
        layer = BatchNorm2d(channels, sync=kind == "SyncBN", **options)
    if not cfg.get("requires_grad", True):
        layer.weight.stop_grad()
        layer.bias.stop_grad()
    return name, layer


def _per_channel(values: jt.Var) -> jt.Var:
    return values.reshape(1, -1, 1, 1)
