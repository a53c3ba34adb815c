"""CHASE_DB1 retina vessels, 2 classes (Fraz et al., IEEE TBME 2012).

Layout: `{images,annotations}/{training,validation}/`: `Image_01L.png` with `Image_01L_1stHO.png` and `_2ndHO.png`.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/chase_db1.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["ChaseDB1Dataset"]


@DATASETS.register()
class ChaseDB1Dataset(SegDataset):
    """Masks hold 0 = background and 1 = vessel of the first observer; `seg_map_suffix: _2ndHO.png` takes the second."""

    METAINFO = named_colours(
        ("background", 120, 120, 120), ("vessel", 6, 230, 230))
    IMG_SUFFIX = ".png"
    SEG_MAP_SUFFIX = "_1stHO.png"
