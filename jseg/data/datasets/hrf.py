"""HRF high-resolution retina vessels, 2 classes (Budai et al., International Journal of Biomedical Imaging 2013).

Layout: `{images,annotations}/{training,validation}/`: `01_h.png` with `01_h.png`.
Names and colours as in mmsegmentation 1.2.2, mmseg/datasets/hrf.py (Apache-2.0); the keyword arguments are
SegDataset's.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["HRFDataset"]


@DATASETS.register()
class HRFDataset(SegDataset):
    """Masks hold 0 = background and 1 = vessel."""

    METAINFO = named_colours(
        ("background", 120, 120, 120), ("vessel", 6, 230, 230))
    IMG_SUFFIX = ".png"
