"""Non-negative matrix factorisation in NumPy float64, forward and backward. See op.py for the meaning.

The backward pass undoes the updates one by one. With c' = c n / m, n = x^T b, m = c b^T b + eps and q = dc' / m:
dn = q c, dc = q n + dm b^T b, dm = -q c', dx += b dn^T, db += x dn + b (s + s^T) where s = c^T dm. The bases' update is
the same with the roles changed.
"""

import numpy as np


def forward(x, bases, *, steps, inv_t=1.0, eps=1e-6, grad="full"):
    """x (N, D, L), bases (N, D, R) -> (N, D, L)."""
    return np.stack([_forward(xi, bi, steps, inv_t, eps)[0] for xi, bi in zip(x, bases)])


def backward(dout, x, bases, *, steps, inv_t=1.0, eps=1e-6, grad="full") -> dict:
    """Gradients of sum(dout * forward(...)) by input name; "one_step" holds what the loop made as constants."""
    pairs = [_backward(*sample, steps, inv_t, eps, grad) for sample in zip(dout, x, bases)]
    return {"x": np.stack([dx for dx, _ in pairs]), "bases": np.stack([db for _, db in pairs])}


def _forward(x, bases, steps, inv_t, eps):
    z = inv_t * (x.T @ bases)  # (L, R)
    coef = np.exp(z - z.max(1, keepdims=True))
    coef /= coef.sum(1, keepdims=True)
    all_bases, all_coef = [bases], [coef]
    for _ in range(steps):
        coef = _update(x.T, bases, coef, eps)
        bases = _update(x, coef, bases, eps)
        all_bases.append(bases)
        all_coef.append(coef)
    coef = _update(x.T, bases, coef, eps)
    return bases @ coef.T, all_bases, all_coef, coef


def _update(x, other, old, eps):
    """Multiplicative update of `old` so that x comes nearer to old @ other^T."""
    return old * (x @ other) / (old @ (other.T @ other) + eps)


def _update_back(dnew, x, other, old, eps):
    """Gradients of `_update` for x, other, old."""
    gram = other.T @ other
    top, bottom = x @ other, old @ gram + eps
    q = dnew / bottom
    dtop, dbottom = q * old, -q * old * top / bottom
    dgram = old.T @ dbottom
    return dtop @ other.T, x.T @ dtop + other @ (dgram + dgram.T), q * top + dbottom @ gram


def _backward(dout, x, first_bases, steps, inv_t, eps, grad):
    _, all_bases, all_coef, last = _forward(x, first_bases, steps, inv_t, eps)
    dbases = dout @ last
    dxt, more, dcoef = _update_back(dout.T @ all_bases[-1], x.T, all_bases[-1], all_coef[-1], eps)
    dx = dxt.T
    if grad == "one_step":
        return dx, np.zeros_like(first_bases)
    dbases = dbases + more
    for t in range(steps, 0, -1):
        part, more, dbases = _update_back(dbases, x, all_coef[t], all_bases[t - 1], eps)
        dx, dcoef = dx + part, dcoef + more
        part, more, dcoef = _update_back(dcoef, x.T, all_bases[t - 1], all_coef[t - 1], eps)
        dx, dbases = dx + part.T, dbases + more
    start = all_coef[0]
    dz = inv_t * start * (dcoef - (dcoef * start).sum(1, keepdims=True))
    return dx + first_bases @ dz.T, dbases + x @ dz
