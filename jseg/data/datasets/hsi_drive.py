"""HSI-Drive v2.0 street pictures of a hyperspectral camera, 11 classes (Basterretxea et al., IEEE IV 2021).

Layout as published upstream: `images/{training,validation,test}/*.npy`, arrays of 25 channels, and
`annotations/.../*.png`. The pipeline here reads pictures of three channels and refuses .npy files; with three bands
written as pictures, say `img_suffix: .png`. Names and colours as in mmsegmentation's main branch (after 1.2.2),
mmseg/datasets/hsi_drive.py (Apache-2.0); the keyword arguments are SegDataset's. Upstream evaluates with class 0
ignored: here, name classes 1 to 10 in `metainfo.classes`.
"""

from __future__ import annotations

from jseg.data.datasets.base import SegDataset, named_colours
from jseg.registry import DATASETS

__all__ = ["HSIDrive20Dataset"]


@DATASETS.register()
class HSIDrive20Dataset(SegDataset):
    """HSI-Drive v2.0: masks 0..10 with 0 = unlabelled."""

    METAINFO = named_colours(
        ("unlabelled", 0, 0, 0), ("road", 77, 77, 77), ("road marks", 255, 255, 255), ("vegetation", 0, 255, 0),
        ("painted metal", 255, 0, 0), ("sky", 0, 0, 255), ("concrete", 102, 51, 0), ("pedestrian", 255, 255, 0),
        ("water", 0, 207, 250), ("unpainted metal", 255, 166, 0), ("glass", 0, 204, 204))
    IMG_SUFFIX = ".npy"
