"""Pascal Context, 60 classes with background or 59 without (Mottaghi et al., CVPR 2014).

Layout: `VOC2010/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext/{train,val}.txt}`; masks 0..59, 0 =
background. Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/pascal_context.py (Apache-2.0); the keyword
arguments are SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["PascalContextDataset", "PascalContextDataset59"]


@DATASETS.register()
class PascalContextDataset(SegDataset):
    """Pascal Context with background as class 0 of 60."""

    METAINFO = named_colours(
        ("background", 120, 120, 120), ("aeroplane", 180, 120, 120), ("bag", 6, 230, 230), ("bed", 80, 50, 50),
        ("bedclothes", 4, 200, 3), ("bench", 120, 120, 80), ("bicycle", 140, 140, 140), ("bird", 204, 5, 255),
        ("boat", 230, 230, 230), ("book", 4, 250, 7), ("bottle", 224, 5, 255), ("building", 235, 255, 7),
        ("bus", 150, 5, 61), ("cabinet", 120, 120, 70), ("car", 8, 255, 51), ("cat", 255, 6, 82),
        ("ceiling", 143, 255, 140), ("chair", 204, 255, 4), ("cloth", 255, 51, 7),
        ("computer", 204, 70, 3), ("cow", 0, 102, 200), ("cup", 61, 230, 250), ("curtain", 255, 6, 51),
        ("dog", 11, 102, 255), ("door", 255, 7, 71), ("fence", 255, 9, 224), ("floor", 9, 7, 230),
        ("flower", 220, 220, 220), ("food", 255, 9, 92), ("grass", 112, 9, 255), ("ground", 8, 255, 214),
        ("horse", 7, 255, 224), ("keyboard", 255, 184, 6), ("light", 10, 255, 71),
        ("motorbike", 255, 41, 10), ("mountain", 7, 255, 255), ("mouse", 224, 255, 8), ("person", 102, 8, 255),
        ("plate", 255, 61, 6), ("platform", 255, 194, 7), ("pottedplant", 255, 122, 8), ("road", 0, 255, 20),
        ("rock", 255, 8, 41), ("sheep", 255, 5, 153), ("shelves", 6, 51, 255), ("sidewalk", 235, 12, 255),
        ("sign", 160, 150, 20), ("sky", 0, 163, 255), ("snow", 140, 140, 140),
        ("sofa", 250, 10, 15), ("table", 20, 255, 0), ("track", 31, 255, 0), ("train", 255, 31, 0),
        ("tree", 255, 224, 0), ("truck", 153, 255, 0), ("tvmonitor", 0, 0, 255), ("wall", 255, 71, 0),
        ("water", 0, 235, 255), ("window", 0, 173, 255), ("wood", 31, 0, 255))
    NEEDS_ANN_FILE = True


@DATASETS.register()
class PascalContextDataset59(SegDataset):
    """Pascal Context without background: `reduce_zero_label` makes 0 ignored and 1..59 the classes 0..58."""

    METAINFO = {key: entries[1:] for key, entries in PascalContextDataset.METAINFO.items()}
    NEEDS_ANN_FILE = True
    REDUCE_ZERO_LABEL = True
