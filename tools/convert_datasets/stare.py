"""STARE retina vessels: pictures and the masks of both observers as PNG.

Source: cecas.clemson.edu/~ahoover/stare, stare-images.tar, labels-ah.tar, labels-vk.tar (Hoover et al., IEEE TMI 2000).
Licence: research; see the publisher's page.
Expected raw tree (archives or folders): im0001.ppm.gz, im0001.ah.ppm.gz, im0001.vk.ppm.gz, ... (20 pictures; .gz may be
unpacked) Command: python tools/convert_datasets/stare.py STARE --out data/STARE
Expected counts: 10 training pictures (im0001 to im0139), 10 validation (im0162 to im0324); two masks each.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import Job, Report, Settings, Threshold, command, convert_pair, pair, pair_items

OUT = "data/STARE"
EXPECTED = {"images/training": 10, "annotations/training": 20, "images/validation": 10, "annotations/validation": 20}
LAST_TRAINING = 139  # the ten lowest of the twenty numbers
OBSERVERS = ("ah", "vk")


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert STARE in `src` to `out`."""
    with Job("stare", src, out, EXPECTED, settings, archives="stare|labels") as job:
        pictures = job.source.find(r"im(\d{4})\.ppm(?:\.gz)?", "pictures")
        masks = [pair(pictures, job.source.find(rf"im(\d{{4}})\.{who}\.ppm(?:\.gz)?"), job.source, f"mask {who}")
                 for who in OBSERVERS]
        split = {key: "training" if int(key[0]) <= LAST_TRAINING else "validation" for key in pictures}
        job.need(split.values(), ("training", "validation"))
        todo = [((picture, *(found[key][1] for found in masks)),
                 (f"images/{split[key]}/im{key[0]}.png",
                  *(f"annotations/{split[key]}/im{key[0]}.{who}.png" for who in OBSERVERS)))
                for key, picture in pictures.items()]
        return job.run(pair_items(todo, convert_pair, label=Threshold()))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
