"""Multi-scale convolutional attention: the depthwise part of SegNeXt's attention in one read and one write.

SegNeXt (NeurIPS 2022), sec. 3.1, equation 1; MMSegmentation `mscan.py@v1.2.2`, `MSCAAttention` (Apache-2.0), without
its final 1x1 convolution and the product with the input, which belong to the caller:

    a = conv0(x);  y = a + sum over strips of column(row(a))

The plain path runs seven convolutions over the whole tensor. The CPU kernel works plane by plane in cache; its backward
pass computes `a` and the row strips again and saves nothing but the inputs.
"""

import jittor as jt
from jittor import nn

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, pick

__all__ = ["msca"]


def msca(x, w0, b0, strips, *, impl: str = "auto"):
    """conv0 plus the sum of row-column strip pairs applied to conv0's output, all depthwise, stride 1, "same" padding.

    Args:
        strips: list of (w_row (C, 1, 1, k), b_row (C,), w_col (C, 1, k, 1), b_col (C,)); k odd, 1 to 127; up to 8
            pairs.
        impl: see `jseg.ops.common`.
    Shape:
        x (N, C, H, W); w0 (C, 1, k0, k0) with k0 odd, 1 to 31; b0 (C,) -> (N, C, H, W)
    Raises:
        KernelError: shapes that do not fit, even kernel sizes, an unknown impl.
    """
    check("msca", len(x.shape) == 4 and min(x.shape) >= 1,
          f"x is {tuple(x.shape)}, expected (N, C, H, W) with no empty side")
    c, k0 = x.shape[1], w0.shape[-1]
    check_shape("msca", "w0", w0, (c, 1, k0, k0))
    check_shape("msca", "b0", b0, (c,))
    check("msca", k0 % 2 == 1 and k0 <= 31, f"w0 is {tuple(w0.shape)}, its kernel size must be odd and at most 31")
    check("msca", len(strips) <= 8, f"{len(strips)} strip pairs, at most 8 are accepted")
    for i, (w_row, b_row, w_col, b_col) in enumerate(strips):
        k = w_row.shape[-1]
        check("msca", k % 2 == 1 and k <= 127, f"strips[{i}] has kernel size {k}, it must be odd and at most 127")
        check_shape("msca", f"strips[{i}] w_row", w_row, (c, 1, 1, k))
        check_shape("msca", f"strips[{i}] w_col", w_col, (c, 1, k, 1))
        check_shape("msca", f"strips[{i}] b_row", b_row, (c,))
        check_shape("msca", f"strips[{i}] b_col", b_col, (c,))
    weights = [w0, b0, *(tensor for strip in strips for tensor in strip)]
    impl = pick(impl, "msca", x, *weights)
    if impl == "jittor":
        return _composed(x, w0, b0, strips)
    return _Msca.apply(device_op(impl), x, *as_parameters(*weights))


def _composed(x, w0, b0, strips):
    c = x.shape[1]
    a = nn.conv2d(x, w0, b0, 1, w0.shape[-1] // 2, 1, groups=c)
    y = a
    for w_row, b_row, w_col, b_col in strips:
        half = w_row.shape[-1] // 2
        row = nn.conv2d(a, w_row, b_row, 1, (0, half), 1, groups=c)
        y = y + nn.conv2d(row, w_col, b_col, 1, (half, 0), 1, groups=c)
    return y


class _Msca(jt.Function):
    def execute(self, run, x, *weights):
        self.saved, self.run = (x, weights), run
        sizes = [weights[0].shape[-1]] + [w.shape[-1] for w in weights[2::4]]
        self.scalars = [*x.shape, len(sizes) - 1, *sizes]
        return run("jseg_msca_forward", [x, *weights], [(x.shape, x.dtype)], self.scalars)[0]

    def grad(self, dy):
        x, weights = self.saved
        outputs = [(v.shape, v.dtype) for v in (x, *weights)]
        return [None, *self.run("jseg_msca_backward", [x, *weights, like(dy, x)], outputs, self.scalars)]
