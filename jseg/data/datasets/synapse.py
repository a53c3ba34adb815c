"""Synapse multi-organ slices, 9 classes with background (BTCV, MICCAI 2015; split of TransUNet, Chen et al. 2021).

Layout: `img_dir/{train,val}/case0005_slice000.jpg` and `ann_dir/{train,val}/case0005_slice000.png`.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/synapse.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["SynapseDataset"]


@DATASETS.register()
class SynapseDataset(SegDataset):
    """Synapse slices: masks hold 0 = background and 8 organs; the other 5 organs of the raw volumes are background."""

    METAINFO = named_colours(
        ("background", 0, 0, 0), ("aorta", 0, 0, 255), ("gallbladder", 0, 255, 0), ("left_kidney", 255, 0, 0),
        ("right_kidney", 0, 255, 255), ("liver", 255, 0, 255), ("pancreas", 255, 255, 0), ("spleen", 60, 255, 255),
        ("stomach", 240, 240, 240))
