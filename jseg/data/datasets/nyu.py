"""NYU Depth v2: pictures with depth, in 27 kinds of rooms (Silberman et al., ECCV 2012). It has no label masks.

Layout: `images/{train,test}/<scene>_00045.jpg` and `annotations/{train,test}/<scene>_00045.png`, 16-bit depth in
millimetres. Names as in mmsegmentation 1.2.2, mmseg/datasets/nyu.py (Apache-2.0); the keyword arguments are
SegDataset's. Deviation: upstream loads depth for its depth estimation model; there is none here, so `depth` reads it on
demand, and the classes, kinds of rooms, are known by file name only. Upstream has no colours; they are
`spread_colours`.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from jseg.data.colours import spread_colours
from jseg.data.datasets.base import SegDataset
from jseg.data.io import read_mask
from jseg.registry import DATASETS

__all__ = ["NYUDataset"]

_ROOMS = ("printer_room", "bathroom", "living_room", "study", "conference_room", "study_room", "kitchen",
          "home_office", "bedroom", "dinette", "playroom", "indoor_balcony", "laundry_room", "basement",
          "excercise_room", "foyer", "home_storage", "cafe", "furniture_store", "office_kitchen", "student_lounge",
          "dining_room", "reception_room", "computer_lab", "classroom", "office", "bookstore")


@DATASETS.register()
class NYUDataset(SegDataset):
    """NYU Depth v2: `data_prefix: {img_path: images/train, depth_map_path: annotations/train}`;
    `seg_map_path` is None.
    """

    METAINFO = {"classes": _ROOMS, "palette": spread_colours(len(_ROOMS))}
    EXTRA_FILES = {"depth_map_path": ".png"}

    def info(self, index: int) -> dict[str, Any]:
        """See SegDataset.info; and `category_id`, the kind of room by the file's name, -1 for an unknown one."""
        paths = super().info(index)
        # bedroom_0001_00045.jpg: bedroom
        room = re.split(r".(?=\d)", os.path.basename(paths["img_path"]), maxsplit=1)[0]
        return {**paths, "category_id": self.classes.index(room) if room in self.classes else -1}

    def depth(self, index: int) -> np.ndarray:
        """Read one depth map: (H, W) float32 in metres, 0 where nothing was measured.

        Raises:
            DataError: the file is unreadable.
            KeyError: `data_prefix` has no depth_map_path.
        """
        return read_mask(self.info(index)["depth_map_path"]).astype(np.float32) / 1000
