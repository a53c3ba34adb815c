"""Exporters of jseg's operators and layers whose plain code counts with sizes or gathers, or that ONNX has itself.

`STANDINS` maps the function itself to what runs in its place while a model is traced; an operator of `jseg.ops` that is
not here is traced through its plain path (`_composed`), which is its definition. Tables that depend on the size of a
map are in `jseg.export.tables`.
"""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np
from jittor import nn

from jseg.export import framework
from jseg.export.arithmetic import binary, product, where
from jseg.export.framework import concat, gelu, positions, softmax
from jseg.export.graph import Tensor
from jseg.export.sizes import Number, Size, floor, smallest
from jseg.layers import pool, products, resize
from jseg.layers.conv import conv_norm
from jseg.layers.norms import BatchNorm2d, activated
from jseg.ops.attention.op import attention
from jseg.ops.bilinear_resize.op import bilinear_resize
from jseg.ops.conv.op import conv
from jseg.ops.criss_cross.op import _NEVER, criss_cross
from jseg.ops.deformable_attention.op import deformable_attention
from jseg.ops.depthwise.op import depthwise
from jseg.ops.layer_norm.op import layer_norm
from jseg.ops.linear.op import linear
from jseg.ops.point_sample.op import point_sample
from jseg.ops.psa_mask.op import psa_mask

__all__ = ["STANDINS", "stands_for"]

STANDINS: dict[Callable, Callable] = {}


def stands_for(function: Callable):
    """Enter a function's exporter, which takes its arguments, into `STANDINS`."""
    def entered(standin: Callable) -> Callable:
        STANDINS[function] = standin
        return standin
    return entered


@stands_for(linear)
def _linear(x, weight, bias=None, *, activation=None, factor=None, shortcut=None, impl="auto"):
    y = product(x, weight.transpose(1, 0))
    y = y if bias is None else y + bias
    y = gelu(y) if activation == "gelu" else y
    y = y if factor is None else y * factor.reshape(-1, *[1] * (x.ndim - 1))
    return y if shortcut is None else y + shortcut


@stands_for(layer_norm)
def _layer_norm(x, weight, bias, *, eps=1e-5, impl="auto"):
    return x.graph.add("LayerNormalization", [x, weight, bias], axis=-1, epsilon=float(eps))


@stands_for(attention)
def _attention(q, k=None, v=None, *, bias=None, mask=None, scale=None, impl="auto"):
    if k is None:
        q, k, v = q[:, :, 0], q[:, :, 1], q[:, :, 2]
    elif v is None:
        k, v = k[:, :, 0], k[:, :, 1]
    n, rows, heads, width = q.shape
    scale = width**-0.5 if scale is None else float(scale)
    q, k, v = (q * scale).transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    scores = product(q, k)  # (N, G, L, M)
    scores = scores if bias is None else scores + bias
    if mask is not None and mask.shape[0] in (1, n):
        scores = scores + mask.unsqueeze(1)
    elif mask is not None:
        images, keys = mask.shape[0], mask.shape[2]
        scores = scores.reshape(n // images, images, heads, rows, keys) + mask.unsqueeze(1)
        scores = scores.reshape(n, heads, rows, keys)
    shares, keys = softmax(scores, -1), k.shape[3]
    if isinstance(keys, Size) and min(keys.values) == 1:
        # OpenVINO 2026.4 fuses softmax and product, and keeps what it made for the first picture's one key for all
        # pictures after it; a flat view in between, which costs nothing, prevents the fusion.
        shares = shares.reshape(-1).reshape(n, heads, rows, keys)
    return product(shares, v).transpose(0, 2, 1, 3)  # (N, L, G, E)


@stands_for(depthwise)
def _depthwise(x, weight, bias=None, *, stride=1, padding=0, dilation=1, activation=None, impl="auto"):
    if isinstance(weight.shape[0], Size):
        y = _by_own_filters(x, weight, padding)
    else:
        y = framework.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0])
    return gelu(y) if activation == "gelu" else y


@stands_for(conv)
def _conv(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, residual=None, layer=None):
    y = framework.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y if residual is None else y + residual


def _by_own_filters(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Filters that are made from the picture, as many as pictures times channels:
    a sum of shifted maps, since ONNX's convolution has a fixed number of groups.
    """
    kh, kw = weight.shape[2:]
    x = framework.pad(x, (padding,) * 4) if padding else x
    h, w, total = x.shape[2] - kh + 1, x.shape[3] - kw + 1, None
    for i in range(kh):
        for j in range(kw):
            part = x[:, :, i:i + h, j:j + w] * weight[:, 0, i, j].reshape(1, weight.shape[0], 1, 1)
            total = part if total is None else total + part
    return total


@stands_for(bilinear_resize)
def _bilinear_resize(x, size, *, align_corners=False, add=None, impl="auto"):
    size = tuple(size)
    if size != x.shape[2:]:
        if isinstance(align_corners, Tensor):
            x = _resized_either_way(x, size, align_corners)
        else:
            x = resized(x, size, mode="linear",
                        coordinate_transformation_mode="align_corners" if align_corners else "half_pixel")
    return x if add is None else x + add


def resized(x: Tensor, size: Sequence[Number], **words) -> Tensor:
    """ONNX's Resize of maps (N, C, h, w) to `size`."""
    graph, shape = x.graph, (*x.shape[:2], *size)
    if x.value is not None and not any(isinstance(side, Size) for side in size):
        return graph.add("Resize", [x, None, None, graph.constant(np.array(shape), "int64")], shape, **words)
    whole = [graph.append("Slice", [graph.append("Shape", [x.named()]), graph.sizes([0]), graph.sizes([2])]),
             graph.sizes(size)]
    name = graph.append("Resize", [x.named(), None, None, graph.append("Concat", whole, axis=0)], **words)
    return Tensor(graph, name, shape, x.dtype)


def _resized_either_way(x: Tensor, size: Sequence[Number], align_corners: Tensor) -> Tensor:
    """A bilinear resize whose rule the input's size decides: two products with matrices."""
    for axis, side in ((3, size[1]), (2, size[0])):
        length = x.shape[axis]
        place, source = positions(side).float32(), positions(length).float32()
        by_corners = place * (x.graph.size_tensor(length - 1, "float32") / _above_zero(x, side - 1))
        by_edges = ((place + 0.5) * (x.graph.size_tensor(length, "float32")
                                     / x.graph.size_tensor(side, "float32")) - 0.5)
        place = where(align_corners, by_corners, by_edges).maximum(0.0).minimum(
            x.graph.size_tensor(length - 1, "float32"))
        distance = framework.TABLE["jt.abs"](place.unsqueeze(1) - source.unsqueeze(0))  # (side, length)
        matrix = (1.0 - distance).maximum(0.0)
        x = product(x, matrix.transpose(1, 0)) if axis == 3 else product(matrix, x)
    return x


def _above_zero(x: Tensor, number: Number) -> Tensor:
    return x.graph.size_tensor(number, "float32").maximum(1.0)


@stands_for(resize.nearest_resize)
def _nearest_resize(x, size):
    for axis, side in ((2, size[0]), (3, size[1])):
        length = x.shape[axis]
        if side == length:
            continue
        step = x.graph.size_tensor(length, "float32") / x.graph.size_tensor(side, "float32")
        place = framework.TABLE["jt.floor"](positions(side).float32() * step)
        place = place.minimum(x.graph.size_tensor(length - 1, "float32")).cast("int64")
        x = x.graph.add("Gather", [x, place], (*x.shape[:axis], side, *x.shape[axis + 1:]), axis=axis)
    return x


@stands_for(pool.adaptive_avg_pool)
def _adaptive_avg_pool(x, size):
    rows, columns = (size, size) if isinstance(size, int) else size
    if (rows, columns) == (1, 1):
        return x.mean([2, 3], keepdims=True)
    if (rows, columns) == x.shape[2:]:
        return x
    down, across = (_shares(side, *_cell_edges(side, count)) for side, count in zip(x.shape[2:], (rows, columns)))
    return product(down, product(x, across.transpose(1, 0)))


def _cell_edges(length: Number, cells: int) -> tuple[Tensor, Tensor]:
    """Where the cells of a grid begin and end (without that place), along one axis."""
    cell = positions(cells).cast("int64")
    return cell * length // cells, ((cell + 1) * length + (cells - 1)) // cells


@stands_for(pool.window_means)
def _window_means(x, kernel_size, stride):
    matrices = []
    for side, kernel, step in zip(x.shape[2:], kernel_size, stride):
        kernel = smallest(kernel, side)
        begin = positions((side - kernel) // step + 1).cast("int64") * step
        matrices.append(_shares(side, begin, begin + kernel))
    return product(matrices[0], product(x, matrices[1].transpose(1, 0)))


def _shares(length: Number, begin: Tensor, end: Tensor) -> Tensor:
    """(cells, length): the share of each position in the mean from `begin` to `end` (without it)."""
    return _inside(length, begin, end).float32() / (end - begin).unsqueeze(1).float32()


def _inside(length: Number, begin: Tensor, end: Tensor) -> Tensor:
    """(cells, length): whether each position is from `begin` to `end` (without it)."""
    place = positions(length).cast("int64").unsqueeze(0)
    return (place >= begin.unsqueeze(1)) & (place < end.unsqueeze(1))


@stands_for(pool.max_pool)
def _max_pool(x, kernel_size, *, stride=None, padding=0, ceil_mode=False):
    return _pool_windows(x, "MaxPool", kernel_size, stride, padding, ceil_mode)


@stands_for(pool.avg_pool)
def _avg_pool(x, kernel_size, *, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    return _pool_windows(x, "AveragePool", kernel_size, stride, padding, ceil_mode,
                         count_include_pad=int(count_include_pad))


def _pool_windows(x: Tensor, kind: str, kernel_size: int, stride: int | None, padding: int, ceil_mode: bool,
                  **words) -> Tensor:
    """ONNX's MaxPool or AveragePool (`kind`) of maps (N, C, h, w), with PyTorch's windows."""
    step = stride or kernel_size
    sides = []
    for side in x.shape[2:]:
        reach = side + 2 * padding - kernel_size
        count = (ceiling_division(reach, step) if ceil_mode else reach // step) + 1
        if ceil_mode:  # a window may not begin in the padding behind
            count = smallest(count, (side + padding - 1) // step + 1)
        sides.append(count)
    return x.graph.add(kind, [x], (*x.shape[:2], *sides), kernel_shape=[kernel_size] * 2, strides=[step] * 2,
                       pads=[padding] * 4, ceil_mode=int(ceil_mode), **words)


@stands_for(pool.adaptive_max_pool)
def _adaptive_max_pool(x, size):
    for axis, cells in zip((2, 3), size):
        length = x.shape[axis]
        if cells == length:
            continue
        inside = _inside(length, *_cell_edges(length, cells))
        inside = inside.unsqueeze(2) if axis == 2 else inside
        x = where(inside, x.unsqueeze(axis), -np.inf).max(axis + 1)
    return x


@stands_for(pool.pool_to_size)
def _pool_to_size(x, size):
    kernels = [ceiling_division(side, cells) for side, cells in zip(x.shape[2:], size)]
    missing = [kernel * cells - side for kernel, cells, side in zip(kernels, size, x.shape[2:])]
    if not any(isinstance(kernel, Size) for kernel in kernels):
        (top, left), (down, right) = (m // 2 for m in missing), (m - m // 2 for m in missing)
        x = framework.pad(x, (left, right, top, down))
        return x.graph.add("MaxPool", [x], (*x.shape[:2], *size), kernel_shape=kernels, strides=kernels)
    for axis, cells, kernel, lost in zip((2, 3), size, kernels, missing):  # windows whose side depends on the picture
        length = x.shape[axis]
        begin = positions(cells).cast("int64") * kernel - lost // 2
        inside, reaches = _inside(length, begin, begin + kernel), (begin < 0) | (begin + kernel > length)
        inside, reaches = (inside.unsqueeze(2), reaches.unsqueeze(1)) if axis == 2 else (inside, reaches)
        x = where(inside, x.unsqueeze(axis), -np.inf).max(axis + 1)
        x = where(reaches & (x < 0), x.graph.constant(0.0, "float32"), x)
    return x


@stands_for(resize.resize_by_factor)
def _scaled(x, factor):
    size = tuple(floor(side * factor) if isinstance(side, Size) else max(int(side * factor), 1) for side in x.shape[2:])
    graph, scales = x.graph, x.graph.initializer(np.array([1, 1, factor, factor], np.float32))
    name = graph.append("Resize", [x.named(), None, scales], mode="linear", coordinate_transformation_mode="half_pixel")
    return Tensor(graph, name, (*x.shape[:2], *size), x.dtype)


def ceiling_division(a: Number, b: int) -> Number:
    """a / b rounded up."""
    return -(-a // b)


@stands_for(conv_norm)
def _conv_norm(x, convolution, norm, *, activation=None, residual=None):
    if not isinstance(norm, BatchNorm2d):
        return norm(convolution(x), activation=activation, residual=residual)
    scale, shift = norm.affine()
    weight = convolution.weight * scale.reshape(-1, *[1] * (convolution.weight.ndim - 1))
    bias = shift if convolution.bias is None else shift + convolution.bias * scale
    return activated(convolution.run(x, weight, bias, shortcut=residual), activation)


@stands_for(products.pair_products)
def _pair_products(x, y):
    return product(x, y.transpose(0, 2, 1))


@stands_for(products.mix_maps)
def _mix_maps(weights, maps):
    n, c, h, w = maps.shape
    return product(weights, maps.reshape(n, c, h * w)).reshape(n, weights.shape[1], h, w)


@stands_for(point_sample)
def _point_sample(x, points, *, mode="bilinear", align_corners=False, impl="auto"):
    found = grid_sample(x, points.unsqueeze(2), nearest=mode == "nearest", align_corners=align_corners)
    return found.squeeze(3)  # (N, C, P)


def grid_sample(x: Tensor, points: Tensor, *, nearest: bool = False, align_corners: bool = False) -> Tensor:
    """Maps (N, C, H, W) at points (N, P, Q, 2), shares of width and height from 0 to 1 -> (N, C, P, Q); 0 outside."""
    linear_name = "bilinear" if x.graph.opset < 20 else "linear"
    return x.graph.add("GridSample", [x, points * 2.0 - 1.0], (*x.shape[:2], *points.shape[1:3]),
                       mode="nearest" if nearest else linear_name, padding_mode="zeros",
                       align_corners=int(align_corners))


@stands_for(deformable_attention)
def _deformable_attention(value, points, weights, *, sizes, impl="auto"):
    n, _, heads, width = value.shape
    queries, count = points.shape[1], points.shape[4]
    value = value.transpose(0, 2, 3, 1)  # (N, G, D, S)
    points = points.transpose(0, 2, 3, 1, 4, 5)  # (N, G, maps, Q, P, 2)
    weights = weights.transpose(0, 2, 3, 1, 4)
    first, y = 0, None
    for i, (h, w) in enumerate(sizes):
        level = value[:, :, :, first:first + h * w].reshape(n * heads, width, h, w)
        taken = grid_sample(level, points[:, :, i].reshape(n * heads, queries, count, 2))  # (N * G, D, Q, P)
        part = (taken * weights[:, :, i].reshape(n * heads, 1, queries, count)).sum(3)
        y = part if y is None else y + part
        first = first + h * w
    return y.reshape(n, heads, width, queries).transpose(0, 3, 1, 2)  # (N, Q, G, D)


@stands_for(criss_cross)
def _criss_cross(query, key, value, *, impl="auto"):
    h = query.shape[2]
    place = positions(h)
    itself = where(place.unsqueeze(1) == place.unsqueeze(0), query.graph.constant(_NEVER, "float32"), 0.0)
    by_row, by_column = query.transpose(0, 2, 3, 1), query.transpose(0, 3, 2, 1)  # (N, H, W, C), (N, W, H, C)
    down = product(by_column, key.transpose(0, 3, 1, 2)) + itself  # (N, W, H, H)
    across = product(by_row, key.transpose(0, 2, 1, 3))  # (N, H, W, W)
    weights = softmax(concat([down.transpose(0, 2, 1, 3), across], 3), 3)
    down = product(weights[:, :, :, :h].transpose(0, 2, 1, 3), value.transpose(0, 3, 2, 1))  # (N, W, H, D)
    across = product(weights[:, :, :, h:], value.transpose(0, 2, 3, 1))  # (N, H, W, D)
    return down.transpose(0, 3, 2, 1) + across.transpose(0, 3, 1, 2)


@stands_for(psa_mask)
def _psa_mask(x, mask_size, kind, *, impl="auto"):
    n, _, h, w = x.shape
    rows, columns = mask_size
    place = positions(h * w).cast("int64")
    row, column = binary("Div", place, w), place % w

    def offset(at: Tensor, middle: int) -> Tensor:  # (other position, centre)
        return at.unsqueeze(1) - at.unsqueeze(0) + middle
    down, right = offset(row, (rows - 1) // 2), offset(column, (columns - 1) // 2)
    inside = (down >= 0) & (down < rows) & (right >= 0) & (right < columns)
    index = where(inside, down * columns + right, 0).unsqueeze(0).broadcast((n, h * w, h * w))
    found = x.reshape(n, rows * columns, h * w).gather(1, index)  # (N, other, centre)
    found = where(inside.unsqueeze(0), found, 0.0)
    found = found if kind == "collect" else found.transpose(0, 2, 1)
    return found.reshape(n, h * w, h, w)


CLASSES: dict[type, Callable] = {nn.ReLU: lambda self, x: framework.relu(x), nn.GELU: lambda self, x: gelu(x)}
