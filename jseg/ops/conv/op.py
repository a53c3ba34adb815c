"""Convolution for inference, fused with the norm, the residual and the activation behind it.

On the CPU a 3x3 convolution of stride 1 runs by Winograd's minimal filtering (Lavin & Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016), with dilation on each of the interleaved lattices: F(4x4, 3x3) needs a
quarter, F(2x2, 3x3) 4/9 of the multiplications. Other convolutions run as implicit matrix products, and those for which
neither is faster by Jittor's own operator: `choose_way` is the rule. With gradients the plain path runs.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import weakref

import jittor as jt
import numpy as np

from jseg.errors import KernelError
from jseg.ops.common import (as_parameters, check, check_shape, cpu_op, per_channel, pick, rounds_factors,
                             takes_cpu_kernels)
from jseg.ops.cpu_library import kernel_address

__all__ = ["WAYS", "choose_way", "conv"]

WAYS = ("auto", "winograd4", "winograd2", "product", "plain")
_CODES = {"product": 0, "winograd2": 2, "winograd4": 4}
_ACTIVATIONS = (None, "relu")


def conv(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None, *, stride=1, padding=0, dilation=1, groups: int = 1,
         scale: jt.Var | None = None, residual: jt.Var | None = None, activation: str | None = None,
         layer: object = None, way: str = "auto", impl: str = "auto") -> jt.Var:
    """y = activation(scale * conv2d(x, weight) + bias + residual).

    Args:
        stride, padding, dilation: one integer or (vertical, horizontal), in pixels.
        scale: of each output channel, as a norm at inference has it.
        activation: None or "relu".
        layer: whose weight this is; its transformed filters are kept while it lives, and made again when the weight
            has changed. None: they are made at each call.
        way: "auto" (`choose_way`), "winograd4" (F(4x4, 3x3)), "winograd2" (F(2x2, 3x3)), "product", or "plain", which
            is Jittor's operator. The environment variable JSEG_CONV says what "auto" is.
        impl: as everywhere; "jittor" is the plain path, which has gradients.
    Shape:
        x: (N, C, H, W) float32; weight: (D, C / groups, KH, KW); scale, bias: (D,); residual: as y -> (N, D, H', W')
            with H' = (H + 2*padding - dilation*(KH-1) - 1) // stride + 1
    Raises:
        KernelError: shapes disagree, there is no output, or a way that this convolution cannot go.
    """
    sides = [_pair(v) for v in (stride, padding, dilation)]
    size = _check(x, weight, bias, sides, groups, scale, residual, activation)
    impl = "jittor" if impl == "auto" and not takes_cpu_kernels() else pick(impl, "conv", x, weight)
    if impl == "cpu" and jt.flags.no_grad:
        way = _find_way(way, x, weight, sides, groups, size)
        if way != "plain":
            weight, scale, bias, residual = as_parameters(weight, scale, bias, residual)
            numbers = [*x.shape, weight.shape[0], *weight.shape[2:], *sides[0], *sides[1], *sides[2], groups, *size,
                       activation == "relu", _CODES[way], 0 if layer is None or way == "product" else _number_of(layer),
                       rounds_factors()]
            return cpu_op("jseg_conv_forward", [x, weight, scale, bias, residual],
                          [((x.shape[0], weight.shape[0], *size), "float32")], numbers)[0]
    return _composed(x, weight, bias, sides, groups, scale, residual, activation)


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _check(x, weight, bias, sides, groups, scale, residual, activation) -> tuple[int, int]:
    """The output's height and width. Raises KernelError unless the arguments fit."""
    check("conv", x.ndim == 4, f"x is {tuple(x.shape)}; accepted: (N, C, H, W)")
    check("conv", groups >= 1 and x.shape[1] % groups == 0 and weight.shape[0] % groups == 0,
          f"groups is {groups}; it must divide the {x.shape[1]} channels of x and the {weight.shape[0]} of weight")
    check_shape("conv", "weight", weight, (None, x.shape[1] // groups, None, None))
    check("conv", activation in _ACTIVATIONS, f"activation is {activation!r}; accepted: None, 'relu'")
    stride, padding, dilation = sides
    size = tuple((x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
                 for i in range(2))
    check("conv", min(size) > 0, f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}, padding {padding}, dilation "
                                 f"{dilation}: there is no output")
    for name, value in (("bias", bias), ("scale", scale)):
        if value is not None:
            check_shape("conv", name, value, (weight.shape[0],))
    if residual is not None:
        check_shape("conv", "residual", residual, (x.shape[0], weight.shape[0], *size))
    return size


def _composed(x, weight, bias, sides, groups, scale, residual, activation):
    """Plain framework operations."""
    y = jt.nn.conv2d(x, weight, bias if scale is None else None, *sides, groups)
    if scale is not None:
        y = y * per_channel(scale)
        y = y if bias is None else y + per_channel(bias)
    y = y if residual is None else y + residual
    return jt.maximum(y, 0.0) if activation == "relu" else y


# ---- which way ------------------------------------------------------------------------------------------------------

_LANES, _ROWS = 16, 8  # of the tiles that the costs were measured with; narrower vectors change them all alike
# Cycles beside the products, measured on Zen 4: to transform a vector of patches of one channel and a vector of results
# of one channel, where tiles are read in whole vectors and where they are not.
_TRANSFORMS = {2: ((350, 300), (1700, 900)), 4: ((700, 600), (3400, 1800))}
_FILTER = 0.4           # to read one transformed weight
_PRODUCT, _PLAIN = 1.1, 1.05   # to multiply and add a vector
_REORDER = 5            # Jittor's operator only: to bring one value into another layout
_LARGE = 512            # depth from which on Jittor's operator is faster for filters larger than 3x3


@functools.lru_cache(maxsize=4096)
def choose_way(shape: tuple, filters: tuple, size: tuple, *, stride: tuple, dilation: tuple, groups: int) -> str:
    """The fastest of `WAYS` for a convolution, by what was measured (docs/performance.md): estimated cycles for 3x3
    filters of stride 1, a rule for the others.

    Args:
        shape: of x, (N, C, H, W).
        filters: of the weight, (D, C / groups, KH, KW).
        size: (H', W') of the result.
    """
    d, c, kh, kw = filters
    if stride != (1, 1) or groups > 1 or kh * kw == 1:
        return "product"
    if (kh, kw) != (3, 3):
        return "plain" if c * kh * kw >= _LARGE else "product"
    vectors = shape[0] * size[0] * size[1] / _LANES
    costs = {"product": _PRODUCT * vectors * 9 * c * _up(d, _ROWS),
             "plain": _PLAIN * vectors * 9 * _up(c, 16) * _up(d, 16) * _inside(size, dilation)
             + _REORDER * _LANES * vectors * (c + d)}
    for out in (2, 4):
        costs[f"winograd{out}"] = _cycles_by_tiles(out, shape[0], c, d, size, dilation)
    return min(costs, key=costs.get)


def _cycles_by_tiles(out: int, n: int, c: int, d: int, size: tuple, dilation: tuple) -> float:
    """Estimated cost of Winograd's way with tiles of `out` x `out` results."""
    down, right = (-(-(-(-side // step)) // out) for side, step in zip(size, dilation))
    vectors = _up(n * dilation[0] * dilation[1] * down * right, _LANES) / _LANES
    patch, result = _TRANSFORMS[out][dilation[1] not in (1, 2, 4, 8)]
    weights = (out + 2) ** 2 * c * _up(d, _ROWS)
    return vectors * (weights + patch * c + result * d) + _FILTER * weights


def _inside(size: tuple, dilation: tuple) -> float:
    """Share of taps that do not fall outside, of a 3x3 filter whose output is about as large as its input: Jittor's
    operator leaves those out.
    """
    return float(np.prod([(1 + 2 * max(side - step, 0) / side) / 3 for side, step in zip(size, dilation)]))


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _find_way(way, x, weight, sides, groups, size) -> str:
    """The way to go. Raises KernelError for a word that does not exist, or that does not go here."""
    wanted = way
    if way == "auto":
        wanted = os.environ.get("JSEG_CONV", "auto")
    if wanted not in WAYS:
        source = "way is" if way != "auto" else "the environment says JSEG_CONV ="
        raise KernelError(f"conv: {source} {wanted!r}; accepted are {', '.join(WAYS)}")
    (stride, _, dilation), filters = sides, tuple(weight.shape)
    tiles = (filters[2:], stride, groups) == ((3, 3), (1, 1), 1)
    if wanted.startswith("winograd") and not tiles:
        check("conv", way == "auto", f"way is {way!r}, but filters are {filters[2]}x{filters[3]}, stride {stride}, "
                                     f"groups {groups}; Winograd's way takes 3x3, stride 1, groups 1")
        wanted = "auto"
    if wanted != "auto":
        return wanted
    return choose_way(tuple(x.shape), filters, size, stride=stride, dilation=dilation, groups=groups)


# ---- kept filters ---------------------------------------------------------------------------------------------------

_numbers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_next_number = itertools.count(1)


def _number_of(layer: object) -> int:
    """The number under which this layer's filters are kept; they go when it goes."""
    number = _numbers.get(layer)
    if number is None:
        number = _numbers[layer] = next(_next_number)
        function = ctypes.CFUNCTYPE(None, ctypes.c_int64)
        function(kernel_address("jseg_conv_open"))(number)
        weakref.finalize(layer, function(kernel_address("jseg_conv_close")), number).atexit = False
    return number
