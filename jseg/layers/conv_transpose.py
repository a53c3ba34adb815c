"""Transposed convolution, as an ordinary convolution, or a product over channels, and a rearrangement.

Output pixels whose positions leave the same remainder by the stride see the same part of the filter. So a convolution
with a filter for each remainder computes all of them on the small map, and they are then put side by side. Where
windows touch and do not overlap, every filter is one pixel. Jittor's own operator is a scatter.
"""

from __future__ import annotations

import functools
import math

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.layers.init import normal, zeros
from jseg.ops.common import per_channel

__all__ = ["ConvTranspose2d", "PatchConvTranspose2d"]


class ConvTranspose2d(nn.Module):
    """PyTorch's ConvTranspose2d with square filters and one group, with its keys.

    Args:
        in_channels, out_channels: widths.
        kernel_size, stride, padding, output_padding: as there, in pixels; `output_padding` is below `stride`.
        bias: whether a bias is added.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H', W') with H' = (H - 1) stride - 2 padding + kernel_size +
            output_padding
    Raises:
        ValueError: a size out of range.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0,
                 output_padding: int = 0, bias: bool = True):
        super().__init__()
        if min(kernel_size, stride) < 1 or padding < 0 or not 0 <= output_padding < stride:
            raise ValueError(f"ConvTranspose2d: kernel_size {kernel_size} and stride {stride} must be at least 1, "
                             f"padding {padding} at least 0, output_padding {output_padding} below stride")
        self.kernel_size, self.stride, self.padding, self.output_padding = kernel_size, stride, padding, output_padding
        fan_out = kernel_size * kernel_size * out_channels
        self.weight = normal((in_channels, out_channels, kernel_size, kernel_size), math.sqrt(2.0 / fan_out))
        self.bias = zeros(out_channels) if bias else None

    def execute(self, x: jt.Var) -> jt.Var:
        n, _, h, w = x.shape
        stride = self.stride
        size = [(side - 1) * stride - 2 * self.padding + self.kernel_size + self.output_padding for side in (h, w)]
        choice, first = _filter_phases(self.kernel_size, stride, self.padding)
        width = choice.shape[0] // stride  # pixels of the small map that one output pixel sees, along one axis
        counts = [-(-side // stride) for side in size]  # output pixels of each remainder
        ends = [count - 1 + first + width - side for count, side in zip(counts, (h, w))]
        x = nn.pad(x, [-first, ends[1], -first, ends[0]])
        y = nn.conv2d(x, self._filters(choice, width))  # (N, D * stride^2, ., .)
        y = y.reshape(n, -1, stride, stride, *counts).transpose(0, 1, 4, 2, 5, 3)  # (N, D, ., stride, ., stride)
        y = y.reshape(n, -1, counts[0] * stride, counts[1] * stride)[:, :, :size[0], :size[1]]  # (N, D, H', W')
        return y if self.bias is None else y + per_channel(self.bias)

    def _filters(self, choice: np.ndarray, width: int) -> jt.Var:
        """One filter for each output channel and pair of remainders: (D * stride^2, C, width, width)."""
        (c, d, k, _), stride = self.weight.shape, self.stride
        choices = jt.array(choice.T.copy()).stop_grad()  # (k, stride * width)
        columns = nn.matmul(self.weight.reshape(c * d * k, k), choices).reshape(c * d, k, -1)
        rows = columns.transpose(0, 2, 1).reshape(-1, k)  # (C * D * stride * width, k)
        chosen = nn.matmul(rows, choices).reshape(c, d, stride, width, stride, width)
        return chosen.transpose(1, 4, 2, 0, 5, 3).reshape(d * stride * stride, c, width, width)


class PatchConvTranspose2d(nn.Module):
    """PyTorch's ConvTranspose2d with kernel_size = stride and no padding, with its keys: each pixel becomes a patch.

    Args:
        in_channels, out_channels: widths.
        kernel_size: side of the patches, which is the stride too.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, kernel_size * H, kernel_size * W)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.kernel_size, self.out_channels = kernel_size, out_channels
        self.weight = normal((in_channels, out_channels, kernel_size, kernel_size), in_channels**-0.5)
        self.bias = zeros(out_channels)

    def execute(self, x: jt.Var) -> jt.Var:
        (n, c, h, w), k, out = x.shape, self.kernel_size, self.out_channels
        weight = self.weight.reshape(c, out * k * k).transpose(1, 0)  # (D * k * k, C)
        bias = self.bias.reshape(out, 1).broadcast((out, k * k)).reshape(out * k * k)
        y = ops.pointwise(x, weight, bias).reshape(n, out, k, k, h, w)
        return y.transpose(0, 1, 4, 2, 5, 3).reshape(n, out, k * h, k * w)


@functools.lru_cache(maxsize=32)
def _filter_phases(kernel_size: int, stride: int, padding: int) -> tuple[np.ndarray, int]:
    """Which filter value each remainder uses at each offset on the small map, along one axis.

    The output pixel stride * m + r gets the input pixel m + j times the filter's value at r + padding - stride * j.

    Returns:
        (stride * offsets, kernel_size) float32 with at most one 1 a row, remainders outside; the first offset j, at
        most 0.
    """
    first = min(0, -((kernel_size - 1 - padding) // stride))
    last = (stride - 1 + padding) // stride
    rows = [[float(r + padding - stride * j == k) for k in range(kernel_size)] for r in range(stride)
            for j in range(first, last + 1)]
    return np.array(rows, np.float32), first
