"""DRIVE retina vessels, 2 classes (Staal et al., IEEE TMI 2004).

Layout: `{images,annotations}/{training,validation}/`: `21.png` with `21_manual1.png`.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/drive.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["DRIVEDataset"]


@DATASETS.register()
class DRIVEDataset(SegDataset):
    """Masks hold 0 = background and 1 = vessel."""

    METAINFO = named_colours(
        ("background", 120, 120, 120), ("vessel", 6, 230, 230))
    IMG_SUFFIX = ".png"
    SEG_MAP_SUFFIX = "_manual1.png"
