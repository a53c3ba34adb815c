"""Targets that are functions of the label map, for heads that learn something else than its classes.

Labels are those of the batch, so batches keep their form and every transform is already in them. Nothing here has a
gradient.
"""

from __future__ import annotations

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.layers import nearest_resize

__all__ = ["class_presence", "detail_map", "edge_map"]

# above, right, below right, below left: each pair of touching pixels marks one
_NEIGHBOURS = ((-1, 0), (0, 1), (1, 1), (1, -1))


def edge_map(labels: jt.Var, *, width: int = 3, ignore_index: int = 255) -> jt.Var:
    """Where two classes touch, thickened (CE2P, AAAI 2019; mmsegmentation 1.2.2's transform GenerateEdge, Apache-2.0).

    A pixel is an edge if it differs from its neighbour above, right, below right or below left and neither of the two
    is ignored; then each edge grows to a square of `width` pixels, which for an even width reaches one pixel further
    down and right.

    Deviation: GenerateEdge sees a picture before it is padded to the batch's size, and its padded pixels weigh nothing;
    here they are ignored pixels like others, which are no edges.

    Args:
        width: side of the square in pixels, >= 1.
        ignore_index: label of pixels without a class.
    Shape:
        labels: (N, H, W) int -> (N, H, W) int32, 1 on edges and 0 elsewhere
    Raises:
        ValueError: a width below 1.
    """
    if width < 1:
        raise ValueError(f"edge_map: width is {width}; accepted: 1 or more pixels")
    with jt.no_grad():
        _, height, breadth = labels.shape
        padded = _padded(labels.int32(), 1, 1, ignore_index)  # (N, H + 2, W + 2)
        edge = None
        for down, right in _NEIGHBOURS:
            other = padded[:, 1 + down:1 + down + height, 1 + right:1 + right + breadth]
            differs = ((labels != other) & (labels != ignore_index) & (other != ignore_index)).int32()
            edge = differs if edge is None else jt.maximum(edge, differs)
        before, behind = width // 2, width - 1 - width // 2
        padded = _padded(edge, before, behind, 0)
        rows = _largest([padded[:, i:i + height] for i in range(width)])  # (N, H, W + width - 1)
        return _largest([rows[:, :, i:i + breadth] for i in range(width)]).stop_grad()


def detail_map(labels: jt.Var, laplacian: jt.Var, fusion: jt.Var, *, threshold: float = 0.1) -> jt.Var:
    """Where label values change, seen at three scales (STDC, CVPR 2021, sec. 3.3;
    mmsegmentation 1.2.2's STDCHead, Apache-2.0).

    The labels are filtered at stride 1, 2 and 4, and each response resized to the label size (nearest) and cut at
    `threshold`. A pixel is a detail where the weighted sum of the three is above `threshold`: with the usual weights
    0.6, 0.3 and 0.1 the coarsest scale alone is not enough.

    Kept from upstream: labels are filtered as numbers, the ignore label among them, and beyond the border they are 0.

    Args:
        laplacian: (1, 1, 3, 3) filter.
        fusion: (1, 3, 1, 1) weights of the scales.
        threshold: as above.
    Shape:
        labels: (N, H, W) int -> (N, H, W) int32, 1 on details and 0 elsewhere
    """
    with jt.no_grad():
        response = ops.depthwise(labels.float32().unsqueeze(1), laplacian, padding=1)  # (N, 1, H, W)
        size, weights = tuple(labels.shape[1:]), fusion.reshape(-1)
        total = None
        for i, stride in enumerate((1, 2, 4)):
            # (N, 1, ceil(H / stride), ceil(W / stride))
            found = (response[:, :, ::stride, ::stride] > threshold).float32()
            found = nearest_resize(found, size) * weights[i]  # (N, 1, H, W)
            total = found if total is None else total + found
        return (total[:, 0] > threshold).int32().stop_grad()


def _padded(x: jt.Var, before: int, behind: int, value: int) -> jt.Var:
    """(N, H, W) with `before` rows and columns of `value` in front and `behind` at the end."""
    return nn.pad(x, [before, behind, before, behind], "constant", value)


def _largest(parts: list[jt.Var]) -> jt.Var:
    """Elementwise maximum."""
    result = parts[0]
    for part in parts[1:]:
        result = jt.maximum(result, part)
    return result


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
