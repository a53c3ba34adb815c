"""Values of ours that another release keeps in pieces, in another order, or not at all: what a `remap_keys` or the
layout of a release may give for a key.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Sequence

import numpy as np

__all__ = ["Made"]


@dataclasses.dataclass(frozen=True)
class Made:
    """Pieces joined along the first axis, with axes of length 1 before or behind; or what `change` makes of them.

    Args:
        parts: the pieces, as `remap_keys` got them; none where the release has no such value.
        ones: how many axes of length 1 follow: 2 makes a 1x1 convolution's weight of a linear layer's.
        arrange: puts the joined values into our order; it keeps their shape.
        value: the value itself, where it is made of no piece.
        change: from the pieces' arrays to the value, instead of joining them.
        size: the shape that `change` gives; None for that of the first piece.
        why: for values without pieces, what they are, for reports.
        before: how many axes of length 1 come first.
    """

    parts: tuple
    ones: int = 0
    arrange: Callable[[np.ndarray], np.ndarray] | None = None
    value: np.ndarray | None = None
    change: Callable[..., np.ndarray] | None = None
    size: tuple[int, ...] | None = None
    why: str = ""
    before: int = 0

    @classmethod
    def of(cls, value: Any) -> Made:
        """`value` itself, or a single piece."""
        return value if isinstance(value, Made) else cls((value,))

    @classmethod
    def filled(cls, size: Sequence[int], value: float | np.ndarray, why: str) -> Made:
        """A value that no piece holds: a number everywhere, or an array of that shape."""
        return cls((), value=np.broadcast_to(np.asarray(value, np.float32), size), why=why)

    @classmethod
    def constant(cls, value: np.ndarray) -> Made:
        """A value that the file need not hold, because it follows from the model's sizes."""
        return cls((), value=value, why="computed from the model's sizes")

    def shape(self, shape_of: Callable[[Any], Sequence[int]]) -> tuple[int, ...]:
        """The shape that the pieces give.

        Raises:
            ValueError: pieces that do not fit together.
        """
        if self.value is not None:
            return tuple(self.value.shape)
        if self.size is not None:
            return self.size
        shapes = [tuple(shape_of(part)) for part in self.parts]
        if len(shapes) > 1 and self.change is None:
            if any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
                raise ValueError(f"pieces of shapes {shapes} cannot be joined")
            shapes[0] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return (*[1] * self.before, *shapes[0], *[1] * self.ones)

    def array(self, array_of: Callable[[Any], np.ndarray]) -> np.ndarray:
        """The value, from what `array_of` gives for each piece."""
        if self.value is not None:
            return np.ascontiguousarray(self.value, np.float32)
        arrays = [array_of(part) for part in self.parts]
        if self.change is not None:
            return np.ascontiguousarray(self.change(*arrays), np.float32)
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        joined = joined if self.arrange is None else np.ascontiguousarray(self.arrange(joined))
        return joined.reshape(*[1] * self.before, *joined.shape, *[1] * self.ones)
