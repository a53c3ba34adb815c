"""ISPRS Potsdam aerial pictures, 6 classes (ISPRS 2D semantic labelling contest).

Layout after tiling: `img_dir/{train,val}/2_10_0_0_512_512.png` and the same names in `ann_dir/`.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/potsdam.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["PotsdamDataset"]


@DATASETS.register()
class PotsdamDataset(SegDataset):
    """Potsdam tiles: masks hold 0 = boundary and 1..6; `reduce_zero_label` makes them 255 and 0..5."""

    METAINFO = named_colours(
        ("impervious_surface", 255, 255, 255), ("building", 0, 0, 255), ("low_vegetation", 0, 255, 255),
        ("tree", 0, 255, 0), ("car", 255, 255, 0), ("clutter", 255, 0, 0))
    IMG_SUFFIX = ".png"
    REDUCE_ZERO_LABEL = True
