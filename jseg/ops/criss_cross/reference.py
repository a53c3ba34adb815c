"""Criss-cross attention in NumPy float64, forward and backward. See op.py for the meaning."""

import numpy as np


def forward(query, key, value):
    """y (N, D, H, W)."""
    down, across = _weights(query, key)
    return np.einsum("nhwi,ndiw->ndhw", down, value) + np.einsum("nhwj,ndhj->ndhw", across, value)


def backward(dout, query, key, value) -> dict:
    """Gradients of sum(dout * y)."""
    down, across = _weights(query, key)
    ddown, dacross = np.einsum("ndhw,ndiw->nhwi", dout, value), np.einsum("ndhw,ndhj->nhwj", dout, value)
    mean = (ddown * down).sum(3, keepdims=True) + (dacross * across).sum(3, keepdims=True)
    sdown, sacross = down * (ddown - mean), across * (dacross - mean)
    return {"query": np.einsum("nhwi,nciw->nchw", sdown, key) + np.einsum("nhwj,nchj->nchw", sacross, key),
            "key": np.einsum("nhwi,nchw->nciw", sdown, query) + np.einsum("nhwj,nchw->nchj", sacross, query),
            "value": np.einsum("nhwi,ndhw->ndiw", down, dout) + np.einsum("nhwj,ndhw->ndhj", across, dout)}


def _weights(query, key):
    """Weights of column (N, H, W, H) and row (N, H, W, W); a position counts with its row."""
    height = query.shape[2]
    down, across = np.einsum("nchw,nciw->nhwi", query, key), np.einsum("nchw,nchj->nhwj", query, key)
    down = np.where(np.eye(height, dtype=bool)[:, None], -np.inf, down)
    top = np.maximum(down.max(3, keepdims=True), across.max(3, keepdims=True))
    down, across = np.exp(down - top), np.exp(across - top)
    total = down.sum(3, keepdims=True) + across.sum(3, keepdims=True)
    return down / total, across / total
