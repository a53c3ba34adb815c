"""readout in NumPy float64; there is no backward."""

import numpy as np

from jseg.ops.bilinear import resize_matrix


def axis_matrix(source, middle, side, windows=1, align_corners=False):
    """One axis, (side, source): to `middle` first, from so many windows that overlap by half and are averaged there."""
    crop = 2 * middle // (windows + 1)
    inner, counts = np.zeros((middle, source)), np.zeros((middle, 1))
    for i in range(windows):
        begin = 0 if windows == 1 else i * (middle - crop) // (windows - 1)
        here = slice(begin, begin + crop)
        inner[here, i * (source // windows):(i + 1) * (source // windows)] = resize_matrix(source // windows, crop,
                                                                                           align_corners)
        counts[here] += 1
    return resize_matrix(middle, side, align_corners) @ (inner / counts)


def forward(logits, size, *, through=None, windows=(1, 1), align_corners=False, with_prob=False):
    """Labels [and probability], as `op.readout`; `through`: resized to that size first, from `windows` (rows, columns)
    that lie one after the other in `logits`."""
    rows, columns = (axis_matrix(source, middle, side, count, align_corners) for source, middle, side, count
                     in zip(logits.shape[2:], through or logits.shape[2:], size, windows))
    full = np.einsum("Yy,nkyx,Xx->nkYX", rows, logits, columns, optimize=True)
    labels = full.argmax(1)
    return (labels, 1 / np.exp(full - full.max(1, keepdims=True)).sum(1)) if with_prob else labels


def backward(dout, logits, size, **options):
    """Labels have no gradient."""
    return {}
