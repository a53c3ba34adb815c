"""BDD100K street pictures, the 19 classes of Cityscapes (Yu et al., CVPR 2020).

Layout as published: `images/10k/{train,val}/*.jpg` and `labels/sem_seg/masks/{train,val}/*.png` (train ids); nothing is
converted. Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/bdd100k.py (Apache-2.0); the keyword arguments
are SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.cityscapes import CityscapesDataset
from jseg.registry import DATASETS

__all__ = ["BDD100KDataset"]


@DATASETS.register()
class BDD100KDataset(SegDataset):
    """BDD100K: masks 0..18, 255 = void."""

    METAINFO = CityscapesDataset.METAINFO
