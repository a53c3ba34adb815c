"""STARE retina vessels, 2 classes (Hoover et al., IEEE TMI 2000).

Layout: `{images,annotations}/{training,validation}/`: `im0001.png` with `im0001.ah.png` and `.vk.png`.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/stare.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["STAREDataset"]


@DATASETS.register()
class STAREDataset(SegDataset):
    """Masks hold 0 = background and 1 = vessel of the first observer; `seg_map_suffix: .vk.png` takes the second."""

    METAINFO = named_colours(
        ("background", 120, 120, 120), ("vessel", 6, 230, 230))
    IMG_SUFFIX = ".png"
    SEG_MAP_SUFFIX = ".ah.png"
