"""CHASE_DB1 retina vessels: pictures and the masks of both observers as PNG.

Source: blogs.kingston.ac.uk/retinal/chasedb1, CHASEDB1.zip (Fraz et al., IEEE TBME 2012).
Licence: research; see the publisher's page.
Expected raw tree (zip or folder): Image_01L.jpg, Image_01L_1stHO.png, Image_01L_2ndHO.png, ... Image_14R_2ndHO.png
Command: python tools/convert_datasets/chase_db1.py CHASEDB1.zip --out data/CHASE_DB1
Expected counts: 20 training pictures (numbers 01 to 10), 8 validation; two masks each, 0 = background, 1 = vessel.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import Job, Report, Settings, Threshold, command, convert_pair, pair_items
from jseg.data.prepare.archives import pair

OUT = "data/CHASE_DB1"
EXPECTED = {"images/training": 20, "annotations/training": 40, "images/validation": 8, "annotations/validation": 16}
LAST_TRAINING = 10  # number of a child; both eyes go to the same split
OBSERVERS = ("1stHO", "2ndHO")


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert CHASE_DB1 in `src` to `out`."""
    with Job("chase_db1", src, out, EXPECTED, settings, archives="CHASE") as job:
        pictures = job.source.find(r"Image_(\d\d)([LR])\.jpg", "pictures")
        masks = [pair(pictures, job.source.find(rf"Image_(\d\d)([LR])_{who}\.png"), job.source, f"mask {who}")
                 for who in OBSERVERS]
        split = {key: "training" if int(key[0]) <= LAST_TRAINING else "validation" for key in pictures}
        job.need(split.values(), ("training", "validation"))
        todo = [((picture, *(found[key][1] for found in masks)),
                 (f"images/{split[key]}/Image_{''.join(key)}.png",
                  *(f"annotations/{split[key]}/Image_{''.join(key)}_{who}.png" for who in OBSERVERS)))
                for key, picture in pictures.items()]
        return job.run(pair_items(todo, convert_pair, label=Threshold()))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
