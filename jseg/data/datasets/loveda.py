"""LoveDA land cover, 7 classes with background (Wang et al., NeurIPS 2021 datasets and benchmarks).

Layout: `img_dir/{train,val,test}/*.png` and `ann_dir/{train,val}/*.png`; the test pictures have no published masks.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/loveda.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["LoveDADataset"]


@DATASETS.register()
class LoveDADataset(SegDataset):
    """LoveDA: masks hold 0 = no data and 1..7; `reduce_zero_label` makes them 255 and 0..6."""

    METAINFO = named_colours(
        ("background", 255, 255, 255), ("building", 255, 0, 0), ("road", 255, 255, 0), ("water", 0, 0, 255),
        ("barren", 159, 129, 183), ("forest", 0, 255, 0), ("agricultural", 255, 195, 128))
    IMG_SUFFIX = ".png"
    REDUCE_ZERO_LABEL = True
