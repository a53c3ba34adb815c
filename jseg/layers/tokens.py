"""Tokens (N, L, C) and channel-last maps (N, H, W, C):
the linear layer, the ways to and from (N, C, H, W), and patch embedding.

Papers: Vaswani et al., "Attention Is All You Need", NeurIPS 2017; Dosovitskiy et al., "An Image is Worth 16x16 Words",
ICLR 2021, sec. 3.1 (patches). State keys follow mmsegmentation 1.2.2 (mmseg/models/utils/embed.py, Apache-2.0).

Deviations: a convolution whose windows touch without overlapping runs as a product of tokens with a matrix (same
values); a map smaller than one window is filled up with zeros, where upstream stops.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers.conv import Conv2d, pair
from jseg.layers.drop import Dropout
from jseg.layers.init import trunc_normal, zeros
from jseg.layers.norms import build_norm

__all__ = ["Linear", "PatchEmbed", "PatchMerging", "pad_corner", "project_patches", "to_map", "to_tokens"]


class Linear(nn.Module):
    """x weight^T + bias on the last axis; initial weights N(0, 0.02^2) cut at 2, bias zero.

    Args:
        in_channels, out_channels: widths.
        bias: whether a bias is added.
    Shape:
        x: (N, ..., in_channels) -> (N, ..., out_channels)
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True):
        super().__init__()
        self.weight = trunc_normal((out_channels, in_channels))
        self.bias = zeros(out_channels) if bias else None

    def execute(self, x: jt.Var, *, activation: str | None = None) -> jt.Var:
        """`activation`: None or "gelu", in the same operation."""
        return ops.linear(x, self.weight, self.bias, activation=activation)

    def close_branch(self, x: jt.Var, drop: Dropout, *, scale: jt.Var | None = None, factor: jt.Var | None = None,
                     shortcut: jt.Var | None = None) -> jt.Var:
        """shortcut + factor * scale * drop(this layer of x): the end of a residual branch,
        in one operation where nothing is dropped.

        Shape:
            scale: (out_channels,); factor: (N,), see `DropPath.factor`; shortcut: (N, ..., out_channels)
        """
        weight, bias = self.weight, self.bias
        if scale is not None:
            weight, bias = weight * scale.reshape(-1, 1), None if bias is None else bias * scale
        if drop.drop_prob == 0.0 or not drop.is_train:
            return ops.linear(x, weight, bias, factor=factor, shortcut=shortcut)
        y = drop(ops.linear(x, weight, bias))
        y = y if factor is None else y * factor.reshape(-1, *[1] * (y.ndim - 1))
        return y if shortcut is None else shortcut + y


def to_tokens(x: jt.Var) -> jt.Var:
    """(N, C, H, W) -> (N, H * W, C)."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).transpose(0, 2, 1)


def to_map(x: jt.Var, size: tuple[int, int]) -> jt.Var:
    """(N, H * W, C) -> (N, C, H, W) for size (H, W)."""
    n, _, c = x.shape
    return x.transpose(0, 2, 1).reshape(n, c, *size)


def pad_corner(x: jt.Var, multiple: tuple[int, int], *, split: bool = False) -> jt.Var:
    """Zeros below and to the right, up to multiples of `multiple` (vertical, horizontal);
    with `split` half of them above and left.

    Shape:
        x: (N, H, W, C) -> (N, H', W', C)
    """
    for axis, step in zip((1, 2), multiple):
        missing = -x.shape[axis] % step
        before = missing // 2 if split else 0
        parts = [_zeros(x, axis, before), x, _zeros(x, axis, missing - before)]
        x = jt.concat([part for part in parts if part is not None], axis) if missing else x
    return x


def _zeros(x: jt.Var, axis: int, count: int) -> jt.Var | None:
    """Zeros of the shape of `x`, but `count` along `axis`; None for 0."""
    return jt.zeros(tuple(count if i == axis else side for i, side in enumerate(x.shape)), x.dtype) if count else None


def project_patches(x: jt.Var, conv: Conv2d) -> jt.Var:
    """A convolution without padding whose stride is its kernel, as a product with the values of each window.

    A side shorter than the kernel is filled up with zeros.

    Shape:
        x: (N, H, W, C) -> tokens (N, h * w, D), h = max(H // kernel, 1) and w alike
    """
    (kh, kw), out = conv.kernel_size, conv.out_channels
    if x.shape[1] < kh or x.shape[2] < kw:
        x = pad_corner(x, (kh if x.shape[1] < kh else 1, kw if x.shape[2] < kw else 1))
    n, h, w, c = x.shape
    rows, columns = h // kh, w // kw
    if (rows * kh, columns * kw) != (h, w):
        x = x[:, :rows * kh, :columns * kw]
    x = x.reshape(n, rows, kh, columns, kw, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * columns, kh * kw * c)
    return ops.linear(x, conv.weight.transpose(0, 2, 3, 1).reshape(out, kh * kw * c), conv.bias)


class PatchEmbed(nn.Module):
    """Windows that touch become tokens: a strided convolution, and a norm if wished. Keys: `projection`, `norm`.

    Args:
        in_channels, embed_dims: widths of the map and of the tokens.
        kernel_size: side of the windows, which is their stride too.
        padding: "corner" (zeros below and right, so that every pixel is in a window), "same" (on all sides) or 0 (none;
            what is left over is cut).
        bias: of the convolution.
        norm_cfg: norm of the tokens, or None.
        init_std: standard deviation of the initial weights; None for sqrt(2 / fan_out).
    Shape:
        x: (N, H, W, in_channels) -> tokens (N, h * w, embed_dims) and (h, w)
    Raises:
        ValueError: another padding.
    """

    def __init__(self, in_channels: int, embed_dims: int, kernel_size: int, *, padding: str | int = "corner",
                 bias: bool = True, norm_cfg: dict | None = None, init_std: float | None = None):
        super().__init__()
        if padding not in ("corner", "same", 0):
            raise ValueError(f"patch embedding: padding is {padding!r}; accepted: 'corner', 'same', 0")
        self.padding = padding
        self.projection = Conv2d(in_channels, embed_dims, pair(kernel_size), stride=pair(kernel_size), bias=bias,
                                 init_std=init_std)
        self.norm = None if norm_cfg is None else build_norm(norm_cfg, embed_dims, channel_first=False)[1]

    def execute(self, x: jt.Var) -> tuple[jt.Var, tuple[int, int]]:
        kernel = self.projection.kernel_size
        if self.padding:
            x = pad_corner(x, kernel, split=self.padding == "same")
        size = max(x.shape[1] // kernel[0], 1), max(x.shape[2] // kernel[1], 1)
        x = project_patches(x, self.projection)
        return x if self.norm is None else self.norm(x), size


class PatchMerging(nn.Module):
    """Windows of tokens become tokens (Liu et al., "Swin Transformer", ICCV 2021, sec. 3.1). Keys: `norm`, `reduction`.

    Args:
        in_channels, out_channels: widths before and after.
        kernel_size: side of the windows, which is their stride too; zeros below and right fill the last ones.
        norm_cfg: norm of the joined tokens, or None.
    Shape:
        x: (N, H * W, in_channels) and (H, W) -> (N, h * w, out_channels) and (h, w)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 2, *, norm_cfg: dict | None):
        super().__init__()
        self.kernel_size, width = kernel_size, in_channels * kernel_size**2
        self.norm = None if norm_cfg is None else build_norm(norm_cfg, width, channel_first=False)[1]
        self.reduction = Linear(width, out_channels, bias=False)

    def execute(self, x: jt.Var, size: tuple[int, int]) -> tuple[jt.Var, tuple[int, int]]:
        k, (n, _, c) = self.kernel_size, x.shape
        x = pad_corner(x.reshape(n, *size, c), (k, k))
        h, w = x.shape[1] // k, x.shape[2] // k
        x = x.reshape(n, h, k, w, k, c).transpose(0, 1, 3, 5, 2, 4).reshape(n, h * w, c * k * k)  # channel, row, column
        return self.reduction(x if self.norm is None else self.norm(x)), (h, w)
