"""What PyTorch's eager operators would do for the same work as a call of jseg's kernels: an operator a line, each
reading its inputs and writing its result, convolutions and matrix products on tensor cores at the same precision."""

from __future__ import annotations

from typing import Callable

from jseg.bench.gpu_launches import Call, Launch

__all__ = ["operators_of", "convolution", "SYMBOLS"]

MANY = 1 << 20   # blocks of an operator that fills any device


def operators_of(call: Call) -> list[Launch]:
    """The operators, in order; kernel is an operator's name.

    Raises:
        KeyError: no rule for this symbol.
    """
    return SYMBOLS[call.symbol](call)


def _pass(name: str, size: float) -> Launch:
    return Launch(name, MANY, 256, size)


def _product(name: str, size: float, products: float, item: int) -> Launch:
    return Launch(name, MANY, 256, size, products=products, rounded="tf32" if item == 4 else "half")


def convolution(item: int, maps_in: float, maps_out: float, weights: float, adds: float, *, backward: bool,
                bias: bool = True, first: bool = False, depthwise: bool = False) -> list[Launch]:
    """A convolution and its bias, or their gradients.

    Args:
        item: bytes of a value of the maps; weights are taken to be cast to them once.
        maps_in, maps_out, weights: how many values.
        adds: multiply-adds of one pass.
        first: the input needs no gradient.
    """
    size = item * (maps_in + maps_out + weights)

    def one(name: str) -> Launch:
        if depthwise:
            return Launch(name, MANY, 256, size, adds=adds)
        return _product(name, size, adds, item)

    kind = "depthwise convolution" if depthwise else "convolution"
    if backward:
        found = [] if first else [one(f"{kind}, input gradient")]
        return [*found, one(f"{kind}, weight gradient"), *([_pass("sum for a bias", item * maps_out)] if bias else [])]
    # PyTorch's own depthwise kernel adds the bias itself, cuDNN's convolutions leave it to a pass of their own
    return [one(kind), *([_pass("add bias", 2 * item * maps_out)] if bias and not depthwise else [])]


def _norm(item: int, count: float, backward: bool, inference: bool = False) -> list[Launch]:
    passes = 2 if inference else 5 if backward else 3   # training reads the map twice, its backward pass both twice
    return [_pass("batch norm" + ", gradient" * backward, passes * item * count)]


def _pointwise(call: Call) -> list[Launch]:
    n, c, d, p, act = map(int, call.scalars[:5])
    e, backward = call.item, call.symbol.endswith("backward")
    maps_in, maps_out = float(n * c * p), float(n * d * p)
    whole = e * maps_out
    if not backward:
        found = _norm(e, maps_in, False, True) if call.given(9) else []
        found += convolution(e, maps_in, maps_out, c * d, maps_in * d, backward=False, bias=call.given(2))
        found += [_pass("gelu" if act == 1 else "activation", 2 * whole)] if act else []
        found += [_pass("multiply", 3 * whole)] if call.given(3) else []
        found += [_pass("add", 3 * whole)] if call.given(4) else []
        found += [_pass("multiply by layer scale", 2 * whole)] if call.given(6) else []
        found += [_pass("multiply by drop path", 2 * whole)] if call.given(7) else []
        return found + ([_pass("add", 3 * whole)] if call.given(8) else [])
    found = [_pass("multiply by drop path", 2 * whole)] if call.given(7) else []
    if call.given(6):
        found += [_pass("multiply by layer scale", 2 * whole), _pass("multiply", 3 * whole), _pass("sum", whole)]
    if call.given(4):
        found += [_pass("multiply", 3 * whole), _pass("multiply", 3 * whole)]
    found += [_pass("gelu, gradient", 3 * whole)] if act else []
    if call.given(5) or call.given(6):   # the residual's and the shortcut's gradients meet that of the branch
        found += [_pass("add gradients", 3 * whole)] * 2
    return found + convolution(e, maps_in, maps_out, c * d, maps_in * d, backward=True, bias=call.given(2))


def _pointwise_fold(call: Call) -> list[Launch]:
    """A norm for each, of maps like the first input."""
    count = 1.0
    for side in call.inputs[0][0]:
        count *= side
    return [one for _ in range(int(call.scalars[0])) for one in _norm(call.item, count, False, True)]


def _msca(call: Call) -> list[Launch]:
    n, c, h, w = map(int, call.scalars[:4])
    count, e, backward = float(n * c * h * w), call.item, call.symbol.endswith("backward")
    found: list[Launch] = []
    for taps in (25, 7, 7, 11, 11, 21, 21):
        found += convolution(e, count, count, c * taps, count * taps, backward=backward, depthwise=True)
    return found + [_pass("add gradients" if backward else "add", 3 * e * count)] * 3


def _mix_ffn(call: Call) -> list[Launch]:
    n, c, hidden, d, h, w = map(int, call.scalars[:6])
    e, p, backward = call.item, h * w, call.symbol.endswith("backward")
    outer, inner, out = float(n * c * p), float(n * hidden * p), float(n * d * p)
    first = convolution(e, outer, inner, c * hidden, outer * hidden, backward=backward)
    middle = convolution(e, inner, inner, 9 * hidden, 9 * inner, backward=backward, depthwise=True)
    last = convolution(e, inner, out, d * hidden, inner * d, backward=backward)
    if backward:
        found = [_pass("multiply by drop path", 2 * e * out)] if call.given(9) else []
        if call.given(8):
            found += [_pass("multiply by layer scale", 2 * e * out), _pass("multiply", 3 * e * out),
                      _pass("sum", e * out)]
        return [*found, *last, _pass("gelu, gradient", 3 * e * inner), *middle, *first,
                _pass("add gradients", 3 * e * outer)]
    found = _norm(e, outer, False, True) if call.given(10) else []
    found += [*first, *middle, _pass("gelu", 2 * e * inner), *last]
    found += [_pass("multiply by layer scale", 2 * e * out)] if call.given(7) else []
    found += [_pass("multiply by drop path", 2 * e * out)] if call.given(8) else []
    return found + ([_pass("add", 3 * e * out)] if call.given(9) else [])


def _nmf(call: Call) -> list[Launch]:
    n, d, length, r, steps = map(int, call.scalars[:5])
    e, backward = call.item, call.symbol.endswith("backward")
    x, bases, coefs, gram = (float(n * v) for v in (d * length, d * r, length * r, r * r))

    def bmm(size: float, count: float) -> Launch:
        return _product("batched product", e * size, count, e)

    def update(rows: float, inner: float) -> list[Launch]:
        return [bmm(x + rows + inner, x * r), bmm(inner + gram, inner * r), bmm(2 * rows + gram, rows * r),
                _pass("multiply", 3 * e * rows), _pass("add", 2 * e * rows), _pass("divide", 3 * e * rows)]

    last = [*update(coefs, bases), bmm(x + bases + coefs, x * r)]
    loop = [*update(coefs, bases), *update(bases, coefs)] * steps
    if not backward:
        return [bmm(x + bases + coefs, x * r), _pass("multiply", 2 * e * coefs), _pass("softmax", 2 * e * coefs),
                *loop, *last]
    forward = last if call.scalars[7] else [*loop, *last]
    return [one for step in forward for one in (step, step)]   # two gradients for each operator of two inputs


def _normalise(call: Call) -> list[Launch]:
    n, c, p, _, act = map(int, call.scalars[:5])
    count, e, backward = float(n * c * p), call.item, call.symbol.endswith("backward")
    found = _norm(e, count, backward)
    found += [_pass("add", 3 * e * count)] if call.given(3) and not backward else []
    if act:
        found.append(_pass("activation, gradient" if backward else "activation", (3 if backward else 2) * e * count))
    return found + [_pass("add gradients", 3 * e * count)] * (backward * sum(call.given(i) for i in (7, 8)))


def _resize(call: Call) -> list[Launch]:
    planes, h, w, height, width = map(int, call.scalars[:5])
    found = [_pass("interpolate", float(call.item * planes * (h * w + height * width)))]
    return found + ([_pass("add", 3.0 * call.item * planes * height * width)] if call.given(1) else [])


def _readout(call: Call) -> list[Launch]:
    n, k, h, w, height, width = map(int, call.scalars[:6])
    large = float(call.item * n * k * height * width)
    return [_pass("interpolate", call.item * n * k * h * w + large), _pass("argmax", large + 8 * n * height * width)]


def _cross_entropy(call: Call) -> list[Launch]:
    n, k, h, w, height, width = map(int, call.scalars[:6])
    small, pixels = float(n * k * h * w), float(n * height * width)
    large = 4 * pixels * k
    found = [_pass("interpolate", call.item * small + large), _pass("log softmax", 2 * large),
             _pass("negative log likelihood", 16 * pixels)]
    if not call.scalars[10]:
        return found
    return [*found, _pass("negative log likelihood, gradient", large + 8 * pixels),
            _pass("log softmax, gradient", 3 * large), _pass("interpolate, gradient", large + call.item * small)]


def _adamw(call: Call) -> list[Launch]:
    """torch.optim.AdamW's default, foreach: nine passes over vectors of its kind."""
    count = 0.0
    for shape, _ in call.inputs[3:]:
        values = 1
        for side in shape:
            values *= side
        count += values
    return [_pass("foreach pass of AdamW", 12 * count)] * 9


SYMBOLS: dict[str, Callable[[Call], list[Launch]]] = {
    **{f"jseg_{name}_{way}": rule for name, rule in (("pointwise", _pointwise), ("msca", _msca), ("mix_ffn", _mix_ffn),
                                                     ("nmf", _nmf), ("norm", _normalise), ("norm_position", _normalise),
                                                     ("bilinear_resize", _resize)) for way in ("forward", "backward")},
    "jseg_pointwise_fold": _pointwise_fold, "jseg_readout_run": _readout,
    "jseg_upsample_cross_entropy_run": _cross_entropy, "jseg_adamw_run": _adamw,
}
