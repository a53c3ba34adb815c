"""Dark Zurich night pictures, the 19 classes of Cityscapes (Sakaridis et al., ICCV 2019); for evaluation only.

Layout as published: `rgb_anon/val/night/GOPR0356/*_rgb_anon.png` and `gt/val/night/GOPR0356/*_gt_labelTrainIds.png`;
nothing is converted. Suffixes as in mmsegmentation 1.2.2, mmseg/datasets/dark_zurich.py (Apache-2.0); the keyword
arguments are SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.cityscapes import CityscapesDataset
from jseg.registry import DATASETS

__all__ = ["DarkZurichDataset"]


@DATASETS.register()
class DarkZurichDataset(SegDataset):
    """Dark Zurich: masks 0..18, 255 = void."""

    METAINFO = CityscapesDataset.METAINFO
    IMG_SUFFIX = "_rgb_anon.png"
    SEG_MAP_SUFFIX = "_gt_labelTrainIds.png"
