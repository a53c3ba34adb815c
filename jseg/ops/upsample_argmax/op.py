"""Bilinear resizing of logits to a label map: class of the largest resized logit,
without the (N, K, H, W) tensor in the kernels.

This is the last step of mmsegmentation's inference (`resize` to the picture's size, then `argmax`).
"""

from __future__ import annotations

import jittor as jt

from jseg.ops.common import check, device_op, pick
from jseg.ops.upsample_cross_entropy.bilinear import resize_bilinear

__all__ = ["upsample_argmax"]


def upsample_argmax(logits: jt.Var, size: tuple[int, int], *, align_corners: bool = False, with_prob: bool = False,
                    impl: str = "auto") -> jt.Var | tuple[jt.Var, jt.Var]:
    """Class of the largest bilinearly resized logit at every output pixel; the lowest class wins a tie. No gradient.

    Args:
        size: (H, W) of the output, each >= 1.
        with_prob: also return the softmax probability of the winning class, in (0, 1].
    Shape:
        logits: (N, K, h, w) float32 -> labels (N, H, W) int32 [, probability (N, H, W) float32]
    Raises:
        KernelError: `logits` has not four axes or `size` is not two positive numbers.
    """
    check("upsample_argmax", logits.ndim == 4, f"logits are {tuple(logits.shape)}; accepted: (N, K, h, w)")
    size = tuple(int(side) for side in size)
    check("upsample_argmax", len(size) == 2 and min(size) >= 1, f"size is {size}; accepted: (H, W), each at least 1")
    with jt.no_grad():
        impl = pick(impl, "upsample_argmax", logits)
        if impl == "jittor":
            return _composed(logits, size, align_corners, with_prob)
        outputs = [((logits.shape[0], *size), "int32"), ((logits.shape[0], *size) if with_prob else (1,), "float32")]
        labels, prob = device_op(impl)("jseg_upsample_argmax_run", [logits], outputs,
                                       [*logits.shape, *size, align_corners, with_prob])
        return (labels, prob) if with_prob else labels


def _composed(logits, size, align_corners, with_prob):
    """Plain framework operations; holds the (N, K, H, W) tensor."""
    full = resize_bilinear(logits, size, align_corners)
    labels, peak = jt.argmax(full, 1)
    if not with_prob:
        return labels
    return labels, 1.0 / jt.exp(full - peak.unsqueeze(1)).sum(1)
