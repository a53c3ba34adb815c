"""LEVIR-CD building changes, 2 classes (Chen and Shi, Remote Sensing 2020): two pictures of a place and one mask.

Layout after tiling: `{train,val,test}/{A,B,label}/*.png`, A before and B after.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/levir.py (Apache-2.0); the keyword arguments are
SegDataset's. Deviation: upstream's pipeline joins A and B to six channels for models that take six. The preprocessor
and the models here take three, so a sample carries B's path (`img_path2`) beside picture A, for a transform of your own
that joins them.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["LEVIRCDDataset"]


@DATASETS.register()
class LEVIRCDDataset(SegDataset):
    """LEVIR-CD tiles: masks hold 0 and 1 = changed; `data_prefix: {img_path: train/A, img_path2: train/B, seg_map_path:
    train/label}`.
    """

    METAINFO = named_colours(("background", 0, 0, 0), ("changed", 255, 255, 255))
    IMG_SUFFIX = ".png"
    EXTRA_FILES = {"img_path2": ""}
