"""bilinear_resize in NumPy float64, forward and backward."""

import numpy as np

from jseg.ops.bilinear import resize_matrix


def _matrices(x, size, align_corners):
    return resize_matrix(x.shape[2], size[0], align_corners), resize_matrix(x.shape[3], size[1], align_corners)


def forward(x, size, *, align_corners=False, add=None):
    """Resized maps, as `op.bilinear_resize`."""
    rows, columns = _matrices(x, size, align_corners)
    y = np.einsum("Yy,ncyx,Xx->ncYX", rows, x, columns)
    return y if add is None else y + add


def backward(dy, x, size, *, align_corners=False, add=None):
    """Gradients by name."""
    rows, columns = _matrices(x, size, align_corners)
    found = {"x": np.einsum("Yy,ncYX,Xx->ncyx", rows, dy, columns)}
    return found if add is None else {**found, "add": dy}
