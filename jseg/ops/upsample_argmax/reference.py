"""upsample_argmax in NumPy float64; there is no backward."""

import numpy as np

from jseg.ops.upsample_cross_entropy.reference import resize_matrix


def forward(logits, size, *, align_corners=False, with_prob=False):
    """Labels [and probability], as `op.upsample_argmax`."""
    rows = resize_matrix(logits.shape[2], size[0], align_corners)
    columns = resize_matrix(logits.shape[3], size[1], align_corners)
    full = np.einsum("Yy,nkyx,Xx->nkYX", rows, logits, columns)
    labels = full.argmax(1)
    return (labels, 1 / np.exp(full - full.max(1, keepdims=True)).sum(1)) if with_prob else labels


def backward(dout, logits, size, *, align_corners=False, with_prob=False):
    """Labels have no gradient."""
    return {}
