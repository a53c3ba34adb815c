"""Nighttime Driving test pictures, the 19 classes of Cityscapes (Dai and Van Gool, ITSC 2018); for evaluation only.

Layout as published: `leftImg8bit/test/night/*_leftImg8bit.png` and
`gtCoarse_daytime_trainvaltest/test/night/*_gtCoarse_labelTrainIds.png`; nothing is converted.
Suffixes as in mmsegmentation 1.2.2, mmseg/datasets/night_driving.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.cityscapes import CityscapesDataset
from jseg.registry import DATASETS

__all__ = ["NightDrivingDataset"]


@DATASETS.register()
class NightDrivingDataset(SegDataset):
    """Nighttime Driving: masks 0..18, 255 = void."""

    METAINFO = CityscapesDataset.METAINFO
    IMG_SUFFIX = "_leftImg8bit.png"
    SEG_MAP_SUFFIX = "_gtCoarse_labelTrainIds.png"
