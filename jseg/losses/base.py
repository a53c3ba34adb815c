"""What a loss answers besides its value; every loss class begins here."""

from __future__ import annotations

import jittor as jt
import numpy as np

__all__ = ["Loss", "is_loss", "total"]


class Loss:
    """Base of the losses over label maps.

    A subclass writes `__call__`, and sets `loss_name` and `loss_weight`; the rest it overrides where it can say more.
    """

    loss_name: str
    loss_weight: float
    ranks_pixels = False  # True: `pixels` gives one value per pixel, by which a sampler can rank

    def __call__(self, logits: jt.Var, labels: jt.Var, *, pixel_weight: jt.Var | None = None, ignore_index: int = 255,
                 align_corners: bool = False) -> jt.Var:
        """The weighted, reduced loss, a scalar.

        Args:
            logits: (N, K, h, w) at any resolution; upsampled inside.
            labels: (N, H, W) int32.
            pixel_weight: (N, H, W), or None.
            ignore_index: label value without a target.
            align_corners: how the logits are upsampled.
        """
        raise NotImplementedError

    def with_accuracy(self, logits: jt.Var, labels: jt.Var, *, pixel_weight: jt.Var | None = None,
                      ignore_index: int = 255, align_corners: bool = False) -> tuple[jt.Var, jt.Var | None]:
        """(the loss, pixel accuracy in percent where it comes at no cost, else None)."""
        return self(logits, labels, pixel_weight=pixel_weight, ignore_index=ignore_index,
                    align_corners=align_corners), None

    def pixels(self, logits: jt.Var, labels: jt.Var, *, ignore_index: int = 255, align_corners: bool = False) -> jt.Var:
        """The unreduced loss (N, H, W), where `ranks_pixels`."""
        raise NotImplementedError

    def elements(self, logits: jt.Var, targets: jt.Var) -> jt.Var:
        """The weighted, reduced loss of values that lie on no label map: classes of a picture, queries, points.

        Args:
            logits: any shape.
            targets: the same shape, each value from 0 to 1.
        Raises:
            ValueError: a loss that has no such form.
        """
        raise ValueError(f"{type(self).__name__} takes label maps only; accepted here: CrossEntropyLoss with "
                         "use_sigmoid: true")

    def divisor(self, labels: np.ndarray, ignore_index: int) -> float | None:
        """What the mean over these labels (N, H, W) divides by, up to a constant factor;
        None for a sum. Here: pictures.
        """
        return len(labels)


def total(terms: dict[str, jt.Var]) -> jt.Var:
    """The sum to differentiate: every term but the accuracies, which have a word "acc_<...>" in their name."""
    return sum(value for key, value in terms.items() if is_loss(key))


def is_loss(key: str) -> bool:
    """Whether a logged name is a loss rather than an accuracy."""
    return not any(part.startswith("acc_") for part in key.split("."))
