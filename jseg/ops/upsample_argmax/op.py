"""Bilinear resizing of logits to a label map: class of the largest resized logit,
without the (N, K, H, W) tensor in the kernels.

This is the last step of mmsegmentation's inference (`resize` to the network's input, cut, `resize` to the picture's
size, `argmax`).
"""

from __future__ import annotations

import functools
import math

import jittor as jt
from jittor import nn

from jseg.ops.bilinear import Resampling, resampling
from jseg.ops.common import check, device_op, pick

__all__ = ["upsample_argmax"]

MAX_TAPS = 4  # sources per output and axis that the kernels know
TILE_VALUES = 16_000_000  # scores that the plain path holds at once


def upsample_argmax(logits: jt.Var, size: tuple, *, align_corners: bool = False, with_prob: bool = False,
                    impl: str = "auto") -> jt.Var | tuple[jt.Var, jt.Var]:
    """Class of the largest bilinearly resized logit at every output pixel; the lowest class wins a tie. No gradient.

    Args:
        size: for rows and for columns of the output, a length >= 1 in pixels, or a `Resampling` where it is more than
            one resize.
        align_corners: as in `F.interpolate`, for lengths.
        with_prob: also return the softmax probability of the winning class, in (0, 1].
    Shape:
        logits: (N, K, h, w) float32 -> labels (N, H, W) int32 [, probability (N, H, W) float32]
    Raises:
        KernelError: `logits` has not four axes, `size` is not two positive numbers or `Resampling`s of h and w sources.
    """
    check("upsample_argmax", logits.ndim == 4, f"logits are {tuple(logits.shape)}; accepted: (N, K, h, w)")
    rows, columns = _resamplings(logits, size, align_corners)
    taps = max(rows.weights.shape[1], columns.weights.shape[1])
    with jt.no_grad():
        chosen = pick(impl, "upsample_argmax", logits)
        if chosen == "jittor" or (taps > MAX_TAPS and impl == "auto"):
            return _composed(logits, rows, columns, with_prob)
        check("upsample_argmax", taps <= MAX_TAPS,
              f"{taps} sources per output; the kernels take {MAX_TAPS}, impl='jittor' any number")
        shape = (logits.shape[0], rows.size_out, columns.size_out)
        tables = [*_tables(rows, taps), *_tables(columns, taps)]
        outputs = [(shape, "int32"), (shape if with_prob else (1,), "float32")]
        scalars = [*logits.shape, *shape[1:], with_prob, taps]
        labels, prob = device_op(chosen)("jseg_upsample_argmax_run", [logits, *tables], outputs, scalars)
        return (labels, prob) if with_prob else labels


@functools.lru_cache(maxsize=32)
def _tables(axis: Resampling, taps: int) -> tuple[jt.Var, jt.Var]:
    """First sources and weights as the kernels read them; the same picture sizes come again and again."""
    return jt.array(axis.first).stop_grad(), jt.array(axis.with_taps(taps)).stop_grad()


def _resamplings(logits: jt.Var, size: tuple, align_corners: bool) -> list[Resampling]:
    """What happens along rows and along columns."""
    check("upsample_argmax", len(size) == 2, f"size is {size}; accepted: one entry for rows and one for columns")
    axes = []
    for source, side in zip(logits.shape[2:], size):
        if not isinstance(side, Resampling):
            check("upsample_argmax", int(side) >= 1, f"size is {tuple(size)}; accepted: (H, W), each at least 1")
            side = resampling(source, int(side), bool(align_corners))
        check("upsample_argmax", side.size_in == source,
              f"a Resampling of {side.size_in} sources, the logits have {source}")
        axes.append(side)
    return axes


def _composed(logits, rows, columns, with_prob):
    """Plain framework operations; holds (N, K, some rows, W)."""
    n, k, h, w = logits.shape
    across = jt.array(columns.matrix().T).cast(logits.dtype)  # (w, W)
    wide = nn.matmul(logits.reshape(n * k * h, w), across).reshape(n * k, h, columns.size_out)
    matrix, step = rows.matrix(), max(1, math.floor(TILE_VALUES / (n * k * columns.size_out)))
    labels, probs = [], []
    for top in range(0, rows.size_out, step):
        full = nn.matmul(jt.array(matrix[top:top + step]).cast(logits.dtype), wide).reshape(n, k, -1, columns.size_out)
        found, peak = jt.argmax(full, 1)  # (N, some rows, W)
        labels.append(found)
        if with_prob:
            probs.append(1.0 / jt.exp(full - peak.unsqueeze(1)).sum(1))
        if rows.size_out > step:
            jt.sync([labels[-1], *probs[-1:]])
    labels, probs = (parts[0] if len(parts) == 1 else jt.concat(parts, 1) if parts else None
                     for parts in (labels, probs))
    return (labels, probs) if with_prob else labels
