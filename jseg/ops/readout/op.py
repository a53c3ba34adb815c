"""From logits to a label map: class of the largest bilinearly resized logit, without the (N, K, H, W) tensor in the
kernels, which compare few classes at most pixels.

This is the last step of mmsegmentation's inference (`resize` to the network's input, or to the windows of a slide and
their sum; cut, `resize` to the picture's size, `argmax`).
"""

from __future__ import annotations

import functools
import math

import jittor as jt
from jittor import nn

from jseg.ops.bilinear import Resampling, resampling
from jseg.ops.common import check, device_op, pick

__all__ = ["readout"]

MAX_TAPS = 32  # sources per output and axis that the kernels know
TILE_VALUES = 16_000_000  # scores that the plain path holds at once


def readout(logits: jt.Var, size: tuple, *, align_corners: bool = False, with_prob: bool = False,
            impl: str = "auto") -> jt.Var | tuple[jt.Var, jt.Var]:
    """Class of the largest bilinearly resized logit at every output pixel; the lowest class wins a tie. No gradient.

    Args:
        size: for rows and for columns of the output, a length >= 1 in pixels, or a `Resampling` where it is more than
            one resize.
        align_corners: as in `F.interpolate`, for lengths.
        with_prob: also return the softmax probability of the winning class, in (0, 1].
    Shape:
        logits: (N, K, h, w) float32 -> labels (N, H, W) [, probability (N, H, W) float32]; labels are uint8, beyond 256
        classes uint16, beyond 65536 int32
    Raises:
        KernelError: `logits` has not four axes, `size` is not two positive numbers or `Resampling`s of h and w sources.
    """
    check("readout", logits.ndim == 4, f"logits are {tuple(logits.shape)}; accepted: (N, K, h, w)")
    rows, columns = _resamplings(logits, size, align_corners)
    taps = max(rows.index.shape[1], columns.index.shape[1])
    dtype, label_bytes = _label_type(logits.shape[1])
    with jt.no_grad():
        chosen = pick(impl, "readout", logits)
        if chosen == "jittor" or (taps > MAX_TAPS and impl == "auto"):
            return _composed(logits, rows, columns, with_prob, dtype)
        check("readout", taps <= MAX_TAPS,
              f"{taps} sources per output; the kernels take {MAX_TAPS}, impl='jittor' any number")
        shape = (logits.shape[0], rows.size_out, columns.size_out)
        tables = [*_tables(rows, taps), *_tables(columns, taps)]
        outputs = [(shape, dtype), (shape if with_prob else (1,), "float32")]
        scalars = [*logits.shape, *shape[1:], with_prob, taps, label_bytes]
        labels, prob = device_op(chosen)("jseg_readout_run", [logits, *tables], outputs, scalars)
        return (labels, prob) if with_prob else labels


def _label_type(classes: int) -> tuple[str, int]:
    """The smallest type for labels below K, and its bytes."""
    return ("uint8", 1) if classes <= 256 else ("uint16", 2) if classes <= 65536 else ("int32", 4)


@functools.lru_cache(maxsize=32)
def _tables(axis: Resampling, taps: int) -> tuple[jt.Var, jt.Var]:
    """Sources and weights as the kernels read them; the same picture sizes come again and again."""
    return tuple(jt.array(values).stop_grad() for values in axis.with_taps(taps))


def _resamplings(logits: jt.Var, size: tuple, align_corners: bool) -> list[Resampling]:
    """What happens along rows and along columns."""
    check("readout", len(size) == 2, f"size is {size}; accepted: one entry for rows and one for columns")
    axes = []
    for source, side in zip(logits.shape[2:], size):
        if not isinstance(side, Resampling):
            check("readout", int(side) >= 1, f"size is {tuple(size)}; accepted: (H, W), each at least 1")
            side = resampling(source, int(side), bool(align_corners))
        check("readout", side.size_in == source,
              f"a Resampling of {side.size_in} sources, the logits have {source}")
        axes.append(side)
    return axes


def _composed(logits, rows, columns, with_prob, dtype):
    """Plain framework operations; holds (N, K, some rows, W)."""
    n, k, h, w = logits.shape
    across = jt.array(columns.matrix().T).cast(logits.dtype)  # (w, W)
    wide = nn.matmul(logits.reshape(n * k * h, w), across).reshape(n * k, h, columns.size_out)
    matrix, step = rows.matrix(), max(1, math.floor(TILE_VALUES / (n * k * columns.size_out)))
    labels, probs = [], []
    for top in range(0, rows.size_out, step):
        full = nn.matmul(jt.array(matrix[top:top + step]).cast(logits.dtype), wide).reshape(n, k, -1, columns.size_out)
        found, peak = jt.argmax(full, 1)  # (N, some rows, W)
        labels.append(found.cast(dtype))
        if with_prob:
            probs.append(1.0 / jt.exp(full - peak.unsqueeze(1)).sum(1))
        if rows.size_out > step:
            jt.sync([labels[-1], *probs[-1:]])
    labels, probs = (parts[0] if len(parts) == 1 else jt.concat(parts, 1) if parts else None
                     for parts in (labels, probs))
    return (labels, probs) if with_prob else labels
