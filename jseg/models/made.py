"""Values of ours that another release keeps in pieces or with fewer axes: what a `remap_keys` may give for a key."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Sequence

import numpy as np

__all__ = ["Made"]


@dataclasses.dataclass(frozen=True)
class Made:
    """Pieces joined along the first axis, with axes of length 1 behind.

    Args:
        parts: the pieces, as `remap_keys` got them.
        ones: how many axes of length 1 follow: 2 makes a 1x1 convolution's weight of a linear layer's.
    """

    parts: tuple
    ones: int = 0

    @classmethod
    def of(cls, value: Any) -> Made:
        """`value` itself, or a single piece."""
        return value if isinstance(value, Made) else cls((value,))

    def shape(self, shape_of: Callable[[Any], Sequence[int]]) -> tuple[int, ...]:
        """The shape that the pieces give.

        Raises:
            ValueError: pieces that do not fit together.
        """
        shapes = [tuple(shape_of(part)) for part in self.parts]
        if len(shapes) > 1:
            if any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
                raise ValueError(f"pieces of shapes {shapes} cannot be joined")
            shapes[0] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return (*shapes[0], *[1] * self.ones)

    def array(self, array_of: Callable[[Any], np.ndarray]) -> np.ndarray:
        """The value, from what `array_of` gives for each piece."""
        arrays = [array_of(part) for part in self.parts]
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return joined.reshape(*joined.shape, *[1] * self.ones)
