"""REFUGE retina pictures, optic disc and cup, 3 classes (Orlando et al., Medical Image Analysis 2020).

Layout: `{images,annotations}/{training,validation,test}/*.png`.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/refuge.py (Apache-2.0); the keyword arguments are
SegDataset's. The blank at the start of " Optic Cup" is published so.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["REFUGEDataset"]


@DATASETS.register()
class REFUGEDataset(SegDataset):
    """REFUGE: masks hold 0 = background, 1 = cup, 2 = disc."""

    METAINFO = named_colours(
        ("background", 120, 120, 120), (" Optic Cup", 6, 230, 230), ("Optic Disc", 56, 59, 120))
    IMG_SUFFIX = ".png"
