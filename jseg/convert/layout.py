"""The layout of a foreign release: where each of its keys goes, as a table of patterns.

A guesser (`jseg.convert.guess`) has one `Layout` per release: rules from keys to ours, and keys that are left out with
the reason. Whatever no rule and no reason covers is an error that names it, so that nothing is lost in silence. What a
release has in another order or size, or not at all, the guesser then says with `Made`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Callable, Iterable, Mapping, Sequence, Union

import numpy as np

from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["CLASSIFIER", "LEAF", "Layout", "Moved", "Shapes", "count_indices", "fill_norms", "fold_bias",
           "resized_grid", "square_side", "without_prefix"]

Shapes = Mapping[str, tuple]
Target = Union[str, Callable[[re.Match], str]]
CLASSIFIER = "the ImageNet classifier"
LEAF = r"(weight|bias|running_mean|running_var)"  # a convolution's, a linear layer's or a norm's, in a pattern
_FRESH = "norms of the maps, which the release lacks: weight 1, bias 0"


@dataclasses.dataclass
class Moved:
    """Where keys went.

    `made`: our key -> what it is made of; `dropped`: key of the release -> why it is left out; `absent`: beginning of
    our keys that the release has nothing of -> why; they stay as a new model has them.
    """

    made: dict[str, Made]
    dropped: dict[str, str]
    absent: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Rules of a release.

    Args:
        release: its name, for messages.
        rules: (pattern of a whole key, our key as `re.Match.expand` takes it or a function of the match); the first
            that fits counts.
        drops: (pattern of a whole key, why it is left out), looked at first.
    """

    release: str
    rules: Sequence[tuple[str, Target]]
    drops: Sequence[tuple[str, str]] = ()

    def apply(self, shapes: Shapes) -> Moved:
        """Move every key; a leading `backbone.` is not part of a key.

        Raises:
            ConvertError: keys without a rule, or two that become one.
        """
        moved, lost = Moved({}, {}), []
        for key in shapes:
            name = key.removeprefix("backbone.")
            reason = next((reason for pattern, reason in self.drops if re.fullmatch(pattern, name)), None)
            if reason is not None:
                moved.dropped[key] = reason
                continue
            new = next((target(found) if callable(target) else found.expand(target)
                        for pattern, target in self.rules if (found := re.fullmatch(pattern, name))), None)
            if new is None:
                lost.append(key)
            elif new in moved.made:
                raise ConvertError(f"{key} and {moved.made[new].parts[0]} both become {new}; the file mixes two "
                                   "releases")
            else:
                moved.made[new] = Made((key,))
        if lost:
            raise ConvertError(f"{len(lost)} keys are none of {self.release}: {', '.join(lost[:4])}"
                               f"{'...' if len(lost) > 4 else ''}; jseg has no network with them")
        return moved


def without_prefix(shapes: Shapes) -> dict[str, tuple]:
    """Shapes by key without a leading `backbone.`."""
    return {key.removeprefix("backbone."): shape for key, shape in shapes.items()}


def count_indices(shapes: Iterable[str], pattern: str) -> int:
    """How many different numbers stand in the first group of keys that begin with `pattern`."""
    return len({found[1] for key in shapes if (found := re.match(pattern, key))})


def square_side(cells: int, what: str) -> int:
    """The side of a square of `cells`.

    Raises:
        ValueError: it is no square.
    """
    side = math.isqrt(max(cells, 0))
    if side < 1 or side * side != cells:
        raise ValueError(f"{what} of {cells} places, which is no square,")
    return side


def fill_norms(made: dict[str, Made], widths: Mapping[str, int]) -> None:
    """Norms that the release lacks start as new ones do. `widths`: our key without its leaf -> channels."""
    for name, width in widths.items():
        made.setdefault(f"{name}.weight", Made.filled((width,), 1.0, _FRESH))
        made.setdefault(f"{name}.bias", Made.filled((width,), 0.0, _FRESH))


def fold_bias(made: dict[str, Made], bias: str, mean: str) -> None:
    """Take a convolution's bias into the running mean of the norm behind it: (y + b - mean) = y - (mean - b).

    Args:
        bias, mean: our keys; the first goes.
    """
    if bias in made and mean in made:
        parts = (*made[mean].parts, *made.pop(bias).parts)
        made[mean] = Made(parts, change=lambda mean, bias: mean - bias)


def resized_grid(x: np.ndarray, size: int, new_size: int) -> np.ndarray:
    """Values of a square grid on another one, bicubic as PyTorch's `interpolate(align_corners=False)`.

    Shape:
        x: (size * size, C) -> (new_size * new_size, C)
    """
    from jseg.layers.positions import cubic_matrix
    if size == new_size:
        return x
    matrix = cubic_matrix(size, new_size)  # (new_size, size)
    grid = np.einsum("ih,jw,hwc->ijc", matrix, matrix, x.reshape(size, size, -1).astype(np.float64))
    return grid.reshape(new_size * new_size, -1).astype(np.float32)
