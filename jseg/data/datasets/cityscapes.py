"""Cityscapes, 19 evaluation classes (Cordts et al., CVPR 2016).

Layout: `leftImg8bit/{train,val}/<city>/*_leftImg8bit.png` and `gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png`;
the `labelTrainIds` masks are made from the published `labelIds` or polygons by the converter of this dataset.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/cityscapes.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["CityscapesDataset"]


@DATASETS.register()
class CityscapesDataset(SegDataset):
    """Cityscapes fine annotations as train ids 0..18, 255 = void."""

    METAINFO = named_colours(
        ("road", 128, 64, 128), ("sidewalk", 244, 35, 232), ("building", 70, 70, 70), ("wall", 102, 102, 156),
        ("fence", 190, 153, 153), ("pole", 153, 153, 153), ("traffic light", 250, 170, 30),
        ("traffic sign", 220, 220, 0), ("vegetation", 107, 142, 35), ("terrain", 152, 251, 152), ("sky", 70, 130, 180),
        ("person", 220, 20, 60), ("rider", 255, 0, 0), ("car", 0, 0, 142), ("truck", 0, 0, 70), ("bus", 0, 60, 100),
        ("train", 0, 80, 100), ("motorcycle", 0, 0, 230), ("bicycle", 119, 11, 32))
    IMG_SUFFIX = "_leftImg8bit.png"
    SEG_MAP_SUFFIX = "_gtFine_labelTrainIds.png"
