"""Scaled dot-product attention with bias and mask, and never a tensor of queries times keys.

Vaswani et al., NeurIPS 2017, sec. 3.2.1; the kernels take keys block by block with a running maximum and sum (Milakov &
Gimelshein, arXiv 1805.02867; FlashAttention, NeurIPS 2022) and compute the weights again in the backward pass. One
operation for the attention of Swin (windows, a bias per head, a mask per shifted window), of SegFormer, PVT and Twins
(fewer keys than queries) and of ViT.

Layout: tokens as a linear layer leaves them, (N, L, heads, width), not (N, heads, L, width). The kernels read them
through their strides, so that neither the split into heads nor the way back moves memory; queries, keys and values of
one projection may stay together as (N, L, 3, heads, width), keys and values as (N, M, 2, heads, width), and the
gradient comes back as one tensor too.
"""

from __future__ import annotations

import jittor as jt

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, pick

__all__ = ["attention"]

_LOWEST = -3.4028235e38  # of float32


def attention(q: jt.Var, k: jt.Var | None = None, v: jt.Var | None = None, *, bias: jt.Var | None = None,
              mask: jt.Var | None = None, scale: float | None = None, impl: str = "auto") -> jt.Var:
    """y = softmax(scale * q k^T + bias + mask) v, for each picture (or window) and head.

    Args:
        q: queries; without `k` and `v` queries, keys and values in one tensor.
        k: keys; without `v` keys and values in one tensor.
        bias: added to every picture's scores, or one for each picture. It has a gradient, summed over the pictures it
            is shared by, which costs time: give constants as `mask`.
        mask: added to the scores of all heads, without a gradient: 0 where a query may look, -inf (or -100, as Swin)
            where not. Picture n takes mask n modulo P. A query whose keys are all at -inf gets zeros.
        scale: factor of the scores; default 1 / sqrt(D).
    Shape:
        q: (N, L, G, D); k: (N, M, G, D); v: (N, M, G, E),
        or q: (N, L, G, D); k: (N, M, 2, G, D), or q: (N, L, 3, G, D) with M = L;
        bias: (G, L, M) or (N, G, L, M); mask: (P, L, M) or (P, 1, M), P divides N -> (N, L, G, E)
        All float32; the CUDA kernel also takes q, k, v in float16 and bfloat16, sums are float32 all the same.
    Raises:
        KernelError: shapes do not fit, or there is no such impl.
    """
    n, rows, keys, heads, width = _check(q, k, v)
    _check_added(n, rows, keys, heads, bias, mask)
    scale = width ** -0.5 if scale is None else float(scale)
    tensors = [t for t in (q, k, v) if t is not None]
    impl = pick(impl, "attention", *tensors)
    mask = None if mask is None else mask.stop_grad()
    if impl == "jittor":
        return _composed(*_separate(q, k, v), bias, mask, scale)
    tensors = [tensors[0], *(like(t, q) for t in tensors[1:])]
    return _Attention.apply(*tensors, *[None] * (3 - len(tensors)), *as_parameters(bias, mask), scale, device_op(impl))


class _Attention(jt.Function):
    """The kernels; they save arguments, result and the logarithm of the sum of exponentials per query and head."""

    def execute(self, q, k, v, bias, mask, scale, run):
        save = not jt.flags.no_grad
        n, rows, keys, heads, width = _sizes(q, k, v)
        out = width if v is None else v.shape[3]
        packed = 0 if v is not None else 2 if k is not None else 3
        biases = 0 if bias is None else 1 if len(bias.shape) == 3 else n
        masks = (0, 0) if mask is None else mask.shape[:2]
        self.scalars = [n, rows, keys, heads, width, out, packed, scale, biases, *masks]
        outputs = [((n, rows, heads, out), q.dtype)] + [((n, heads, rows), "float32")] * save
        y, *logsum = run("jseg_attention_forward", [q, k, v, bias, mask], outputs, self.scalars)
        self.run, self.saved = run, (q, k, v, bias, mask, y, *logsum)
        return y

    def grad(self, dy):
        q, bias = self.saved[0], self.saved[3]
        tensors = [t for t in self.saved[:3] if t is not None]
        outputs = [(t.shape, t.dtype) for t in tensors] + ([] if bias is None else [(bias.shape, "float32")])
        grads = self.run("jseg_attention_backward", [*self.saved, like(dy, q)], outputs, self.scalars)
        dbias = None if bias is None else grads.pop()
        return (*grads, *[None] * (3 - len(grads)), dbias, None, None, None)


def _sizes(q, k, v) -> tuple[int, ...]:
    """N, L, M, heads and D of arguments in any of the three forms."""
    n, rows, heads, width = q.shape[0], q.shape[1], q.shape[-2], q.shape[-1]
    return n, rows, rows if k is None else k.shape[1], heads, width


def _check(q, k, v) -> tuple[int, ...]:
    """`_sizes`, or KernelError unless q, k and v fit."""
    if k is None:
        check("attention", v is None,
              "v is given without k; give q, k and v, or q and (N, M, 2, G, D) as k, or (N, L, 3, G, D) as q alone")
        check_shape("attention", "q (no k and v are given)", q, (None, None, 3, None, None))
    else:
        check_shape("attention", "q", q, (None,) * 4)
        n, _, heads, width = q.shape
        if v is None:
            check_shape("attention", "k (no v is given)", k, (n, None, 2, heads, width))
        else:
            check_shape("attention", "k", k, (n, None, heads, width))
            check_shape("attention", "v", v, (n, k.shape[1], heads, None))
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor is not None:
            check("attention", min(tensor.shape) >= 1, f"{name} is {tuple(tensor.shape)}: a side is empty")
    return _sizes(q, k, v)


def _check_added(n, rows, keys, heads, bias, mask) -> None:
    """Raise KernelError unless bias and mask fit."""
    if bias is not None:
        check_shape("attention", "bias", bias, (heads, rows, keys) if len(bias.shape) == 3 else (n, heads, rows, keys))
    if mask is not None:
        check_shape("attention", "mask", mask, (None, 1 if len(mask.shape) == 3 and mask.shape[1] == 1 else rows, keys))
        check("attention", n % mask.shape[0] == 0,
              f"mask is {tuple(mask.shape)}: {mask.shape[0]} masks do not divide {n} pictures")


def _separate(q, k, v):
    """Queries, keys and values as three tensors."""
    if k is None:
        return q[:, :, 0], q[:, :, 1], q[:, :, 2]
    return (q, k[:, :, 0], k[:, :, 1]) if v is None else (q, k, v)


def _composed(q, k, v, bias, mask, scale):
    """Plain framework operations, with the tensor of queries times keys in memory."""
    n, rows, heads, width = q.shape
    keys = k.shape[1]
    q = (q * scale).transpose(0, 2, 1, 3).reshape(n * heads, rows, width)
    k = k.transpose(0, 2, 1, 3).reshape(n * heads, keys, width)
    scores = jt.bmm_transpose(q, k).reshape(n, heads, rows, keys)
    scores = scores if bias is None else scores + bias
    if mask is not None:
        images = mask.shape[0]
        scores = scores.reshape(n // images, images, heads, rows, keys) + mask.reshape(images, 1, mask.shape[1], keys)
        scores = scores.reshape(n, heads, rows, keys)
    top = jt.maximum(scores.max(-1, keepdims=True), _LOWEST).stop_grad()  # -inf - -inf would be no number
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdims=True)
    weights = weights / jt.ternary(total == 0, jt.ones_like(total), total)
    v = v.transpose(0, 2, 1, 3).reshape(n * heads, keys, -1)
    y = jt.bmm(weights.cast(str(v.dtype)).reshape(n * heads, rows, keys), v)
    return y.reshape(n, heads, rows, -1).transpose(0, 2, 1, 3)  # (N, L, G, E)
