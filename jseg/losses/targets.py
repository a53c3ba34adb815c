"""Targets that are functions of the label map."""

from __future__ import annotations

import numpy as np

__all__ = ["class_presence"]


def class_presence(labels: np.ndarray, num_classes: int, ignore_index: int = 255) -> np.ndarray:
    """Which classes a picture shows (Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018, sec. 3.1).

    Args:
        labels: (N, H, W) int; values outside [0, num_classes) and `ignore_index` count as no class.
        num_classes: K.
        ignore_index: label value without a class.
    Returns:
        (N, K) float32, 1 where at least one pixel has the class, else 0.
    """
    found = np.zeros((len(labels), num_classes), np.float32)
    for present, picture in zip(found, labels):
        values = np.unique(picture)
        present[values[(values >= 0) & (values < num_classes) & (values != ignore_index)]] = 1.0
    return found
