"""What several losses need: upsampling to the label size, one-hot targets, class weights, argument checks."""

from __future__ import annotations

import io
import json
import pathlib
from typing import Sequence

import jittor as jt
import numpy as np

from jseg import ops
from jseg.errors import DataError
from jseg.files import read_regular
from jseg.text import read_text

__all__ = ["upsample", "one_hot", "class_weights", "check_shapes", "check_choice", "binary_cross_entropy", "sum_of_map",
           "EPS"]

EPS = float(np.finfo(np.float32).eps)  # keeps 0 / 0 at 0 when every pixel is ignored, as mmseg does


def upsample(logits: jt.Var, labels: jt.Var, align_corners: bool) -> jt.Var:
    """Bring logits (N, K, h, w) to the label size: (N, K, H, W), bilinear; unchanged when the sizes agree."""
    return ops.bilinear_resize(logits, labels.shape[-2:], align_corners=align_corners)  # (N, K, H, W)


def one_hot(labels: jt.Var, num_classes: int, valid: jt.Var) -> jt.Var:
    """Return (N, K, H, W) float32: 1 where the label is the channel's class and the pixel is valid.

    One channel is the binary form: it is 1 where the label is 1.
    """
    n, h, w = labels.shape
    first = 1 if num_classes == 1 else 0
    classes = jt.array(np.arange(first, first + num_classes, dtype=np.int32)).reshape(1, num_classes, 1, 1)
    hit = (labels.reshape(n, 1, h, w) == classes).float32()  # (N, K, H, W)
    return hit * valid.float32().reshape(n, 1, h, w)


def class_weights(value: Sequence[float] | str | None, loss: str) -> np.ndarray | None:
    """Read class weights: a list, or a .npy or .json file that holds one.

    Returns:
        (K,) float32 or None.
    Raises:
        ValueError: a file of another kind, not one-dimensional, or negative values.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = _weights_of_file(value, loss)
    try:
        weights = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        weights = np.zeros((0, 0), np.float32)  # names, a block, lists of several lengths: said below
    if weights.ndim != 1 or not np.all(weights >= 0) or not np.isfinite(weights).all():
        raise ValueError(f"{loss}: class_weight must be a list of numbers >= 0, one for each class in their order, "
                         f"got {value!r:.200}")
    return weights


def _weights_of_file(name: str, loss: str):
    path = pathlib.Path(name)
    if path.suffix not in (".npy", ".json"):
        raise ValueError(f"{loss}: class_weight file {name!r} is neither .npy nor .json")
    try:
        if path.suffix == ".json":
            return json.loads(read_text(path, what="class_weight file"))
        return np.load(io.BytesIO(read_regular(path, what="class_weight file", most_bytes=1 << 20)), allow_pickle=False)
    except (OSError, EOFError, ValueError, RecursionError, DataError) as error:
        raise ValueError(f"{loss}: class_weight file {name!r} cannot be read: "
                         f"{getattr(error, 'strerror', None) or error}") from error


def check_shapes(loss: str, logits: jt.Var, labels: jt.Var, pixel_weight: jt.Var | None = None,
                 weights: np.ndarray | None = None) -> None:
    """Raise ValueError unless logits are (N, K, h, w), labels and pixel weights (N, H, W), class weights (K,)."""
    if len(logits.shape) != 4 or len(labels.shape) != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(f"{loss}: logits are {tuple(logits.shape)}, labels {tuple(labels.shape)}; "
                         "accepted (N, K, h, w) and (N, H, W)")
    if pixel_weight is not None and tuple(pixel_weight.shape) != tuple(labels.shape):
        raise ValueError(f"{loss}: pixel_weight is {tuple(pixel_weight.shape)}, it must have the labels' shape "
                         f"{tuple(labels.shape)}")
    if weights is not None and len(weights) != logits.shape[1]:
        raise ValueError(f"{loss}: class_weight has {len(weights)} values, the model has {logits.shape[1]} classes")


def check_choice(loss: str, name: str, value, accepted: Sequence) -> None:
    """Raise ValueError unless `value` is one of `accepted`."""
    if value not in accepted:
        raise ValueError(f"{loss}: {name} is {value!r}, accepted: {', '.join(repr(a) for a in accepted)}")


def sum_of_map(values: jt.Var) -> jt.Var:
    """The sum of (N, K, H, W), axis by axis.

    Jittor's sum over all axes keeps one running float32 on the CPU: over 20 million values it loses 1e-4, and a mean
    2 %.
    """
    return values.sum(3).sum(2).sum()


def binary_cross_entropy(logits: jt.Var, target: jt.Var, positive_weight: jt.Var | float = 1.0) -> jt.Var:
    """Return -(w t log s(x) + (1 - t) log(1 - s(x))) elementwise,
    in the form that neither overflows nor loses digits.
    """
    soft = jt.log(1.0 + jt.exp(-jt.abs(logits))) + jt.maximum(-logits, jt.zeros_like(logits))  # -log s(x)
    return (1.0 - target) * logits + (1.0 + (positive_weight - 1.0) * target) * soft
