"""attention in NumPy float64, forward and backward. See op.py for the meaning."""

import numpy as np


def _separate(q, k, v):
    if k is None:
        return q[:, :, 0], q[:, :, 1], q[:, :, 2]
    return (q, k[:, :, 0], k[:, :, 1]) if v is None else (q, k, v)


def _weights(q, k, bias, mask, scale):
    """softmax(scale q k^T + bias + mask), (N, G, L, M), zero in rows where everything is -inf."""
    n = q.shape[0]
    scores = scale * np.einsum("nlgd,nmgd->nglm", q, k)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores + mask[np.arange(n) % mask.shape[0]][:, None]
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(top == -np.inf, 0.0, top))
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total == 0, 1.0, total)


def forward(q, k=None, v=None, *, bias=None, mask=None, scale=None):
    """y (N, L, G, E), as `op.attention`."""
    q, k, v = _separate(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return np.einsum("nglm,nmge->nlge", _weights(q, k, bias, mask, scale), v)


def backward(dout, q, k=None, v=None, *, bias=None, mask=None, scale=None) -> dict:
    """Gradients of sum(dout * y) for q, k, v in the form they were given, and bias."""
    packed = 3 if k is None else 2 if v is None else 0
    q, k, v = _separate(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = _weights(q, k, bias, mask, scale)
    dweights = np.einsum("nlge,nmge->nglm", dout, v)
    dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True))
    dq, dk = scale * np.einsum("nglm,nmgd->nlgd", dscores, k), scale * np.einsum("nglm,nlgd->nmgd", dscores, q)
    dv = np.einsum("nglm,nlge->nmge", weights, dout)
    grads = {3: {"q": (dq, dk, dv)}, 2: {"q": (dq,), "k": (dk, dv)}, 0: {"q": (dq,), "k": (dk,), "v": (dv,)}}[packed]
    grads = {name: parts[0] if len(parts) == 1 else np.stack(parts, 2) for name, parts in grads.items()}
    if bias is not None:
        grads["bias"] = dscores.sum(0) if bias.ndim == 3 else dscores
    return grads
