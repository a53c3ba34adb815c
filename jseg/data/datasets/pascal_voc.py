"""Pascal VOC 2012 segmentation, 21 classes with background (Everingham et al., IJCV 2010).

Layout: `VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation/{train,val,aug}.txt}`; the masks are palette PNG
files whose indices are the classes, 255 = object borders. The folder holds more pictures than masks, so `ann_file` is
needed. Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/voc.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["PascalVOCDataset"]


@DATASETS.register()
class PascalVOCDataset(SegDataset):
    """Pascal VOC: masks 0..20 with background 0, 255 = border."""

    METAINFO = named_colours(
        ("background", 0, 0, 0), ("aeroplane", 128, 0, 0), ("bicycle", 0, 128, 0), ("bird", 128, 128, 0),
        ("boat", 0, 0, 128), ("bottle", 128, 0, 128), ("bus", 0, 128, 128), ("car", 128, 128, 128), ("cat", 64, 0, 0),
        ("chair", 192, 0, 0), ("cow", 64, 128, 0), ("diningtable", 192, 128, 0), ("dog", 64, 0, 128),
        ("horse", 192, 0, 128), ("motorbike", 64, 128, 128), ("person", 192, 128, 128), ("pottedplant", 0, 64, 0),
        ("sheep", 128, 64, 0), ("sofa", 0, 192, 0), ("train", 128, 192, 0), ("tvmonitor", 0, 64, 128))
    NEEDS_ANN_FILE = True
