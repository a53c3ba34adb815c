"""upsample_cross_entropy in NumPy float64, forward and backward."""

import numpy as np

from jseg.ops.bilinear import resize_matrix

EPS = float(np.finfo(np.float32).eps)


def _parts(logits, labels, align_corners, ignore_index, class_weight, avg_non_ignore, pixel_weight):
    """Resizing matrices, resized logits, softmax, per-pixel losses, their weights, and the denominator of the mean."""
    rows = resize_matrix(logits.shape[2], labels.shape[1], align_corners)
    columns = resize_matrix(logits.shape[3], labels.shape[2], align_corners)
    full = np.einsum("Yy,nkyx,Xx->nkYX", rows, logits, columns)
    shifted = full - full.max(1, keepdims=True)
    log_prob = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    valid = labels != ignore_index
    target = np.where(valid, labels, 0)
    share = np.ones(labels.shape) if class_weight is None else np.asarray(class_weight)[target]
    weight = share * valid if pixel_weight is None else share * valid * pixel_weight
    losses = -np.take_along_axis(log_prob, target[:, None], 1)[:, 0] * weight
    count = np.where(valid, share, 0.0 if avg_non_ignore else 1.0).sum() + EPS
    return rows, columns, full, log_prob, target, valid, weight, losses, count


def forward(logits, labels, *, align_corners=False, ignore_index=255, class_weight=None, avg_non_ignore=False,
            pixel_weight=None, reduction="mean"):
    """Loss and accuracy, as `op.upsample_cross_entropy`."""
    _, _, full, _, target, valid, _, losses, count = _parts(logits, labels, align_corners, ignore_index, class_weight,
                                                            avg_non_ignore, pixel_weight)
    correct = ((full.argmax(1) == target) & valid).sum()
    accuracy = (correct + EPS) * 100.0 / (valid.sum() + EPS)
    return (losses if reduction == "none" else losses.sum() / count), accuracy


def backward(dout, logits, labels, *, align_corners=False, ignore_index=255, class_weight=None, avg_non_ignore=False,
             pixel_weight=None, reduction="mean"):
    """Gradient of sum(dout * loss) for the logits."""
    rows, columns, _, log_prob, target, _, weight, _, count = _parts(logits, labels, align_corners, ignore_index,
                                                                     class_weight, avg_non_ignore, pixel_weight)
    slope = weight * (dout if reduction == "none" else np.asarray(dout).reshape(()) / count)
    d_full = np.exp(log_prob)
    d_full -= np.arange(logits.shape[1])[None, :, None, None] == target[:, None]
    d_full *= slope[:, None]
    return {"logits": np.einsum("Yy,nkYX,Xx->nkyx", rows, d_full, columns)}
