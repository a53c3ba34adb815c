"""ISPRS Vaihingen aerial pictures, 6 classes (ISPRS 2D semantic labelling contest);
upstream calls the class ISPRSDataset.

Layout after tiling: `img_dir/{train,val}/area1_0_0_512_512.png` and the same names in `ann_dir/`.
The pictures show near infrared, red and green.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/isprs.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.potsdam import PotsdamDataset
from jseg.registry import DATASETS

__all__ = ["ISPRSDataset"]


@DATASETS.register()
class ISPRSDataset(SegDataset):
    """Vaihingen tiles: masks hold 0 = boundary and 1..6; `reduce_zero_label` makes them 255 and 0..5."""

    METAINFO = PotsdamDataset.METAINFO
    IMG_SUFFIX = ".png"
    REDUCE_ZERO_LABEL = True
