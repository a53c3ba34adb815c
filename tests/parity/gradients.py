"""What both sides of a comparison share: how far two sets of gradients are apart, and random numbers. It needs NumPy
alone.
"""

from __future__ import annotations

import numpy as np


def gradient_errors(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Norm of the difference over the reference's norm, for each parameter.

    A bias before a norm has a zero gradient in theory and rounding in practice, so a bias is measured by at least a
    hundredth of the gradient of its own layer's weight, and anything by at least a millionth of the largest gradient.
    """
    norms = {key: float(np.linalg.norm(value)) for key, value in theirs.items()}
    largest, found = max(norms.values()), {}
    for key, value in theirs.items():
        floor = 1e-2 * norms.get(key[:-len("bias")] + "weight", 0.0) if key.endswith("bias") else 0.0
        apart = np.linalg.norm(ours[key].astype(np.float64) - value)
        found[key] = float(apart / max(norms[key], floor, 1e-6 * largest))
    return found


def uniform(*shape) -> np.ndarray:
    """Numbers in [0, 1), float32: what a model draws in training, alike on both sides.

    Every row of the first axis is the same and depends on the rest of the shape alone, so that it does not matter
    whether a side draws for all pictures at once or for one after the other.
    """
    shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    row = np.random.RandomState(int(np.prod(shape[1:])) % 2**32).random_sample(shape[1:]).astype(np.float32)
    return np.broadcast_to(row, shape).copy()
