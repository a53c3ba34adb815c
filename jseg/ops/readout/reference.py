"""readout in NumPy float64; there is no backward."""

import numpy as np

from jseg.ops.bilinear import resize_matrix


def forward(logits, size, *, through=None, align_corners=False, with_prob=False):
    """Labels [and probability], as `op.readout`; `through`: resized to that size first."""
    rows, columns = (resize_matrix(middle, side, align_corners) @ resize_matrix(source, middle, align_corners)
                     for source, middle, side in zip(logits.shape[2:], through or logits.shape[2:], size))
    full = np.einsum("Yy,nkyx,Xx->nkYX", rows, logits, columns)
    labels = full.argmax(1)
    return (labels, 1 / np.exp(full - full.max(1, keepdims=True)).sum(1)) if with_prob else labels


def backward(dout, logits, size, *, through=None, align_corners=False, with_prob=False):
    """Labels have no gradient."""
    return {}
