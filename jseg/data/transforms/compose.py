"""Compose: a pipeline, the list of transforms that a dataset's config names."""

from __future__ import annotations

from typing import Mapping, Sequence

import cv2
import numpy as np

from jseg.data.transforms.base import Transform
from jseg.data.transforms.loading import LoadImageFromFile
from jseg.errors import DataError
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
            DataError: a step failed with a ValueError, TypeError or OpenCV error; the message names picture and step.
        """
        for i, step in enumerate(self.transforms):
            try:
                sample = step(sample, rng)
            except (ValueError, TypeError, cv2.error) as error:
                raise DataError(
                    f"{sample.get('img_path', 'sample')}: {self.where}[{i}] {type(step).__name__}: {error}") from error
        return sample
