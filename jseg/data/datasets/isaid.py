"""iSAID aerial pictures, 16 classes with background (Waqas Zamir et al., CVPR workshops 2019).

Layout after tiling: `img_dir/{train,val}/*.png` and `ann_dir/{train,val}/*_instance_color_RGB.png` (class indices,
despite the name). Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/isaid.py (Apache-2.0); the keyword
arguments are SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["iSAIDDataset"]


@DATASETS.register()
class iSAIDDataset(SegDataset):
    """iSAID tiles: masks 0..15 with background 0, 255 = ignored."""

    METAINFO = named_colours(
        ("background", 0, 0, 0), ("ship", 0, 0, 63), ("store_tank", 0, 63, 63), ("baseball_diamond", 0, 63, 0),
        ("tennis_court", 0, 63, 127), ("basketball_court", 0, 63, 191), ("Ground_Track_Field", 0, 63, 255),
        ("Bridge", 0, 127, 63), ("Large_Vehicle", 0, 127, 127), ("Small_Vehicle", 0, 0, 127), ("Helicopter", 0, 0, 191),
        ("Swimming_pool", 0, 0, 255), ("Roundabout", 0, 191, 127), ("Soccer_ball_field", 0, 127, 191),
        ("plane", 0, 127, 255), ("Harbor", 0, 100, 155))
    IMG_SUFFIX = ".png"
    SEG_MAP_SUFFIX = "_instance_color_RGB.png"
