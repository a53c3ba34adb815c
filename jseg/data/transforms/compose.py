"""Compose: a pipeline, the list of transforms that a dataset's config names."""

from __future__ import annotations

import contextlib
from typing import Iterator, Mapping, Sequence

import numpy as np

from jseg.data.transforms.base import Transform
from jseg.data.transforms.loading import LoadImageFromFile
from jseg.errors import DataError, JsegError
from jseg.registry import TRANSFORMS

__all__ = ["Compose"]


class Compose:
    """Run transforms one after the other, all with the same random generator.

    Args:
        transforms: blocks `{type: ..., ...}` or transforms already built.
        where: the list's place in the config, for messages.
    Raises:
        ConfigError: a block names an unknown transform or argument (all faults of the list at once are `jseg check`'s
        work).
    """

    def __init__(self, transforms: Sequence[Mapping | Transform], where: str = "pipeline"):
        self.where = where
        self.transforms = [step if isinstance(step, Transform) else TRANSFORMS.build(step, f"{where}[{i}]")
                           for i, step in enumerate(transforms)]

    @property
    def reader(self) -> Transform:
        """The step that reads the pictures; LoadImageFromFile where none is named."""
        return next((step for step in self.transforms if step.reads_pictures), LoadImageFromFile())

    def __call__(self, sample: dict, rng: np.random.Generator | None = None) -> dict:
        """Return the sample after all steps.

        Raises:
            DataError: a step failed; the message names picture and step.
        """
        for place in range(len(self.transforms)):
            with self.named_errors(place, sample) as step:
                sample = step(sample, rng)
        return sample

    @contextlib.contextmanager
    def named_errors(self, place: int, sample: Mapping) -> Iterator[Transform]:
        """Give the step at `place` to do; what fails in it becomes a DataError that names picture and step."""
        step = self.transforms[place]
        try:
            yield step
        except JsegError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "  # a step's own words
            raise DataError(f"{sample.get('img_path', 'sample')}: {self.where}[{place}] {type(step).__name__}: "
                            f"{kind}{error}") from error
