"""Transposed convolution whose windows touch and do not overlap.

Upstream facts: torch.nn.ConvTranspose2d with kernel_size = stride, no padding; its keys and weight layout.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers.init import normal, zeros

__all__ = ["ConvTranspose2d"]


class ConvTranspose2d(nn.Module):
    """Each pixel becomes a window of kernel_size x kernel_size: a product over channels, then a change of layout.

    Args:
        in_channels, out_channels: widths.
        kernel_size: side of the windows, which is the stride too.
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
