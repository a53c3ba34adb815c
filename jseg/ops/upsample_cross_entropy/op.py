"""Bilinear upsampling and softmax cross-entropy in one step; the (N, K, H, W) tensor never exists in the kernels.

Averages follow mmsegmentation 1.2.2's `cross_entropy` (mmseg/models/losses/cross_entropy_loss.py) and `accuracy`
(mmseg/models/losses/accuracy.py), Apache-2.0. Deviation: with `class_weight` and ignored pixels but without
`avg_non_ignore` mmseg indexes its weights with the ignore index and fails; here an ignored pixel then counts as one, so
that weights of all ones change nothing.
"""

from __future__ import annotations

import jittor as jt
import numpy as np

from jseg.ops.bilinear_resize.op import bilinear_resize
from jseg.ops.common import check, check_same, device_op, like, pick
from jseg.ops.labels import check_label_range

__all__ = ["upsample_cross_entropy"]

_EPS = float(np.finfo(np.float32).eps)


class _UpsampleCrossEntropy(jt.Function):
    """The kernels. A mean loss makes its gradient on the way forward: it is as small as the logits,
    and a second pass over the pixels is saved.
    """

    def execute(self, logits, labels, class_weight, pixel_weight, options, per_pixel, wants_grad, run):
        self.saved, self.run = (logits, labels, class_weight, pixel_weight, options, per_pixel), run
        with_grad = wants_grad and not per_pixel
        summary, losses, self.d_logits = _run(run, logits, labels, class_weight, pixel_weight, None, options,
                                              per_pixel, with_grad)
        return (losses if per_pixel else summary[0:1]), summary[1:2].stop_grad()

    def grad(self, d_loss, d_accuracy):
        *tensors, options, per_pixel = self.saved
        if not per_pixel:
            return (like(self.d_logits * d_loss, tensors[0]),) + (None,) * 7
        return (like(_run(self.run, *tensors, d_loss.float32(), options, True, True)[2], tensors[0]),) + (None,) * 7


def _run(run, logits, labels, class_weight, pixel_weight, slope, options, per_pixel, with_grad) -> list:
    """One kernel call -> summary (2,) of loss and accuracy, per-pixel losses, gradient of the logits;
    unwanted ones have one element.
    """
    outputs = [((2,), "float32"), (labels.shape if per_pixel else (1,), "float32"),
               (logits.shape if with_grad else (1,), "float32")]
    align_corners, ignore_index, avg_non_ignore = options
    scalars = [*logits.shape, *labels.shape[1:], align_corners, ignore_index, avg_non_ignore, per_pixel, with_grad]
    return run("jseg_upsample_cross_entropy_run", [logits, labels, class_weight, pixel_weight, slope], outputs, scalars)


def upsample_cross_entropy(logits: jt.Var, labels: jt.Var, *, align_corners: bool = False, ignore_index: int = 255,
                           class_weight=None, avg_non_ignore: bool = False, pixel_weight: jt.Var | None = None,
                           reduction: str = "mean", impl: str = "auto") -> tuple[jt.Var, jt.Var]:
    """Cross-entropy of bilinearly resized logits against a label map, and the pixel accuracy.

    Args:
        align_corners: as in `F.interpolate`.
        ignore_index: label of pixels without loss, gradient or accuracy.
        class_weight: None or K floats; multiplies each pixel's loss by its class's weight and, for "mean", makes the
            average one over weights.
        avg_non_ignore: for "mean", divide by the non-ignored pixels (their weights) instead of by all pixels.
        pixel_weight: multiplies each pixel's loss; does not enter the denominator; receives no gradient.
        reduction: "mean" -> scalar; "none" -> (N, H, W) losses, 0 at ignored pixels.
    Shape:
        logits: (N, K, h, w) float32; labels: (N, H, W) int32 in [0, K) or ignore_index; pixel_weight: (N, H, W) float32
        -> loss () or (N, H, W); accuracy () in percent over non-ignored pixels (100 where there are none)
    Raises:
        KernelError: shapes disagree, `reduction` is unknown, or a label is outside [0, K) and not `ignore_index`.
    """
    class_weight = _check(logits, labels, class_weight, pixel_weight, reduction)
    check_label_range("upsample_cross_entropy", labels, logits.shape[1], ignore_index)
    labels = labels.int32()
    impl = pick(impl, "upsample_cross_entropy", logits)
    if impl == "jittor":
        return _composed(logits, labels, align_corners, ignore_index, class_weight, avg_non_ignore,
                         pixel_weight, reduction)
    class_weight = None if class_weight is None else jt.array(class_weight)
    pixel_weight = None if pixel_weight is None else pixel_weight.float32().stop_grad()
    wants_grad = not (jt.flags.no_grad or logits.is_stop_grad())
    return tuple(_UpsampleCrossEntropy.apply(logits, labels, class_weight, pixel_weight,
                                             (align_corners, ignore_index, avg_non_ignore),
                                             reduction == "none", wants_grad, device_op(impl)))


def _check(logits, labels, class_weight, pixel_weight, reduction) -> np.ndarray | None:
    """Validate the arguments; the class weights come back as (K,) float32 or None."""
    name = "upsample_cross_entropy"
    check(name, logits.ndim == 4 and labels.ndim == 3 and logits.shape[0] == labels.shape[0],
          f"logits are {tuple(logits.shape)}, labels {tuple(labels.shape)}; accepted: (N, K, h, w) and (N, H, W) with "
          "the same N")
    check(name, reduction in ("mean", "none"), f"reduction is {reduction!r}; accepted: 'mean', 'none'")
    if pixel_weight is not None:
        check_same(name, labels=labels, pixel_weight=pixel_weight)
    if class_weight is None:
        return None
    weight = np.asarray(class_weight.numpy() if isinstance(class_weight, jt.Var) else class_weight, np.float32)
    check(name, weight.shape == (logits.shape[1],),
          f"class_weight has shape {weight.shape}, the logits have {logits.shape[1]} classes; give one weight "
          "per class")
    return weight


def _composed(logits, labels, align_corners, ignore_index, class_weight, avg_non_ignore, pixel_weight, reduction):
    """Plain framework operations; holds several (N, K, H, W) tensors."""
    full = bilinear_resize(logits, labels.shape[1:], align_corners=align_corners, impl="jittor")  # (N, K, H, W)
    valid = labels != ignore_index
    target = jt.ternary(valid, labels, jt.zeros_like(labels))
    peak = full.max(1, keepdims=True).stop_grad()
    log_sum = jt.log(jt.exp(full - peak).sum(1)) + peak[:, 0]  # (N, H, W)
    picked = jt.gather(full, 1, target.unsqueeze(1))[:, 0]  # (N, H, W)
    loss = log_sum - picked
    share = None
    if class_weight is not None:
        share = jt.array(class_weight)[target]
        loss = loss * share
    if pixel_weight is not None:
        loss = loss * pixel_weight.stop_grad()
    loss = jt.ternary(valid, loss, jt.zeros_like(loss))
    accuracy = _accuracy(full, labels, valid)
    if reduction == "none":
        return loss, accuracy
    if share is None:
        count = valid.float32().sum() if avg_non_ignore else float(valid.numel())
    else:
        count = _total(jt.ternary(valid, share, jt.full_like(share, 0.0 if avg_non_ignore else 1.0)))
    return _total(loss) / (count + _EPS), accuracy


def _total(pixels: jt.Var) -> jt.Var:
    """Sum of (N, H, W), rows first: one long float32 sum is off by 0.05 % at 240 x 320."""
    return pixels.sum(2).sum()


def _accuracy(full: jt.Var, labels: jt.Var, valid: jt.Var) -> jt.Var:
    """Percent of the valid pixels whose largest logit (lowest class on ties) is the label's."""
    with jt.no_grad():
        best = jt.argmax(full, 1)[0]
        correct = jt.logical_and(best == labels, valid).float32().sum()
        return (correct + _EPS) * 100.0 / (valid.float32().sum() + _EPS)
