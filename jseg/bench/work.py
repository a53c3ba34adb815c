"""How much a kernel has to do at least: bytes it must read and write,
operations it must compute (a multiply-add counts 2).

Bytes are each input once and each output once, whatever the implementation reads again. Kernels that are not listed
move data and are judged by bytes alone.
"""

from __future__ import annotations

import math

__all__ = ["operations", "traffic", "share_of_limit"]


def _conv(shapes: dict, outputs: list, options: dict) -> float:
    return 2.0 * math.prod(outputs[0]) * math.prod(shapes["weight"][1:])


def _depthwise(shapes: dict, outputs: list, options: dict) -> float:
    return 2.0 * math.prod(outputs[0]) * math.prod(shapes["weight"][2:])


def _linear(shapes: dict, outputs: list, options: dict) -> float:
    return 2.0 * math.prod(outputs[0]) * shapes["weight"][1]


def _msca(shapes: dict, outputs: list, options: dict) -> float:
    taps = sum(math.prod(shape[2:]) for name, shape in shapes.items() if name != "x" and len(shape) == 4)
    return 2.0 * math.prod(shapes["x"]) * taps


def _pointwise(shapes: dict, outputs: list, options: dict) -> float:
    return 2.0 * math.prod(outputs[0]) * shapes["weight"][1]


def _mix_ffn(shapes: dict, outputs: list, options: dict) -> float:
    n, c, h, w = shapes["x"]
    hidden = shapes["fc1_w"][0]
    return 2.0 * n * h * w * hidden * (c + 9 + shapes["fc2_w"][0])


def _nmf(shapes: dict, outputs: list, options: dict) -> float:
    (n, d, length), r = shapes["x"], shapes["bases"][2]
    # one of coefficients or bases: a tall product and two small ones
    update = 2.0 * r * (d * length + r * (d + length))
    return n * ((2 * options["steps"] + 1) * update + 2 * 2.0 * d * length * r)


def _attention(shapes: dict, outputs: list, options: dict) -> float:
    n, rows, heads, out = outputs[0]
    keys = shapes["k"][1] if "k" in shapes else rows
    return 2.0 * n * heads * rows * keys * (shapes["q"][-1] + out)


def _criss_cross(shapes: dict, outputs: list, options: dict) -> float:
    n, d, h, w = outputs[0]
    return 2.0 * n * h * w * (h + w) * (shapes["query"][1] + d)


_RULES = {"attention": _attention, "conv": _conv, "criss_cross": _criss_cross, "depthwise": _depthwise,
          "linear": _linear, "msca": _msca, "pointwise": _pointwise, "mix_ffn": _mix_ffn, "nmf": _nmf}


def operations(kernel: str, shapes: dict, outputs: list, options: dict) -> float | None:
    """Operations of one forward call, or None for a kernel that mostly moves data.

    Args:
        kernel: folder name under jseg/ops.
        shapes: name -> shape of each tensor argument.
        outputs: shapes of the results.
        options: the other arguments.
    """
    rule = _RULES.get(kernel)
    return None if rule is None else rule(shapes, outputs, options)


def traffic(shapes: list, itemsize: int = 4) -> int:
    """Bytes of tensors of these shapes."""
    return itemsize * sum(math.prod(shape) for shape in shapes)


def share_of_limit(seconds: float, size: int, count: float | None, limits: dict) -> dict:
    """Rates of a kernel and its share of the limit that binds it.

    Args:
        seconds: one forward call.
        size, count: from `traffic` and `operations`.
        limits: {"copy_gb_s", "sgemm_gflop_s"}.
    Returns:
        {"gb_s", "gflop_s" or None, "share", "bound"}: share of the copy bandwidth or of the matrix rate, whichever is
        larger. Above 1 where the tensors fit in cache, which copies faster than memory.
    """
    gb_s = size / seconds / 1e9
    gflop_s = None if count is None else count / seconds / 1e9
    by_memory, by_arithmetic = gb_s / limits["copy_gb_s"], (gflop_s or 0.0) / limits["sgemm_gflop_s"]
    bound = "arithmetic" if by_arithmetic > by_memory else "memory"
    return {"gb_s": gb_s, "gflop_s": gflop_s, "share": max(by_memory, by_arithmetic), "bound": bound}
