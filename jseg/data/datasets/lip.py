"""LIP (Look into Person) human parsing, 20 classes with background (Gong et al., CVPR 2017).

Layout as published: `{train,val}_images/*.jpg` and `{train,val}_segmentations/*.png`; nothing is converted. Left and
right limbs are classes of their own, so a horizontal flip makes wrong labels.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/lip.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["LIPDataset"]


@DATASETS.register()
class LIPDataset(SegDataset):
    """LIP: masks 0..19 with background 0."""

    METAINFO = named_colours(
        ("Background", 0, 0, 0), ("Hat", 128, 0, 0), ("Hair", 255, 0, 0), ("Glove", 0, 85, 0),
        ("Sunglasses", 170, 0, 51), ("UpperClothes", 255, 85, 0), ("Dress", 0, 0, 85), ("Coat", 0, 119, 221),
        ("Socks", 85, 85, 0), ("Pants", 0, 85, 85), ("Jumpsuits", 85, 51, 0), ("Scarf", 52, 86, 128),
        ("Skirt", 0, 128, 0), ("Face", 0, 0, 255), ("Left-arm", 51, 170, 221),
        ("Right-arm", 0, 255, 255), ("Left-leg", 85, 255, 170), ("Right-leg", 170, 255, 85), ("Left-shoe", 255, 255, 0),
        ("Right-shoe", 255, 170, 0))
