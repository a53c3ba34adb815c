"""COCO-Stuff 10k, version 1.1: MATLAB masks become PNG with 0 = unlabelled and 1 to 171.

Source: github.com/nightrome/cocostuff10k, cocostuff-10k-v1.1.zip (Caesar, Uijlings, Ferrari, CVPR 2018).
Licence: annotations CC BY 4.0, pictures under the terms of Flickr.
Expected raw tree (zip or folder):
    images/COCO_train2014_000000000077.jpg   annotations/COCO_train2014_000000000077.mat   imageLists/{train,test}.txt
Command: python tools/convert_datasets/coco_stuff10k.py cocostuff-10k-v1.1.zip --out data/coco_stuff10k
Expected counts: 9000 training and 1000 test pictures.
The 171 used of the ids 1 to 182 are numbered without gaps; 0 stays 0, so the dataset class reduces the zero label
(reduce_zero_label).
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

import numpy as np

from jseg.data.prepare import IndexTable, Job, Report, Settings, command, convert_pair, pair, pair_items
from jseg.data.prepare.matfile import matrix
from jseg.errors import ConvertError

OUT = "data/coco_stuff10k"
COUNTS = {"train2014": 9000, "test2014": 1000}
EXPECTED = {f"{kind}/{split}": count for split, count in COUNTS.items() for kind in ("images", "annotations")}
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # of the published ids 1..182
USED = [number for number in range(1, 183) if number not in UNUSED]


def ids(data: bytes) -> np.ndarray:
    """Read the matrix S of a MATLAB file: (H, W) published ids."""
    return matrix(data, "S")


LABELS = IndexTable({0: 0, **{number: index for index, number in enumerate(USED, 1)}}, reader=ids)


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert COCO-Stuff 10k in `src` to `out`."""
    with Job("coco_stuff10k", src, out, EXPECTED, settings) as job:
        source = job.source
        lists = {f"{key[0]}2014": source.lines(name)
                 for key, name in source.find(r"imageLists/(train|test)\.txt", "lists").items()}
        job.need(lists, list(COUNTS))
        pairs = pair(source.find(r"images/(\w+)\.jpg", "pictures"), source.find(r"annotations/(\w+)\.mat", "masks"),
                     source)
        lacking = [name for names in lists.values() for name in names if (name,) not in pairs]
        if lacking:
            raise ConvertError(f"{source.where}: {len(lacking)} listed pictures are not there: "
                               f"{', '.join(lacking[:5])}; download it again")
        todo = [(pairs[name,], (f"images/{split}/{name}.jpg", f"annotations/{split}/{name}_labelTrainIds.png"))
                for split, names in lists.items() for name in names]
        return job.run(pair_items(todo, convert_pair, label=LABELS))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
