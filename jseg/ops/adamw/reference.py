"""adamw in NumPy float64; there is no backward."""

import numpy as np


def forward(weights, exp_avg, exp_avg_sq, *, lr, weight_decay, betas, eps, step, **gradients):
    """(weights, exp_avg, exp_avg_sq, sum of squares), as `op.adamw`; the gradients are named g0, g1, ..."""
    g, start = np.zeros_like(weights), 0
    for i in range(len(gradients)):
        part = gradients[f"g{i}"].reshape(-1)
        g[start:start + part.size] = part
        start += -(-part.size // 16) * 16
    exp_avg = betas[0] * exp_avg + (1 - betas[0]) * g
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * g**2
    update = exp_avg / (1 - betas[0]**step) / (np.sqrt(exp_avg_sq / (1 - betas[1]**step)) + eps)
    return weights - lr * weight_decay * weights - lr * update, exp_avg, exp_avg_sq, (g**2).sum()


def backward(dout, **inputs):
    """A step of the optimizer has no gradient."""
    return {}
