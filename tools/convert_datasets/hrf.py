"""HRF retina vessels (healthy, glaucoma, diabetic retinopathy): pictures and masks as PNG.

Source: www5.cs.fau.de/research/data/fundus-images, six archives (Budai et al., 2013).
Licence: CC BY 4.0.
Expected raw tree (the six archives in one folder, or unpacked):
    healthy.zip: 01_h.jpg      glaucoma.zip: 01_g.jpg      diabetic_retinopathy.zip: 01_dr.JPG
    healthy_manualsegm.zip: 01_h.tif      glaucoma_manualsegm.zip: 01_g.tif
    diabetic_retinopathy_manualsegm.zip: 01_dr.tif
Command: python tools/convert_datasets/hrf.py HRF --out data/HRF
Expected counts: 15 training pictures (numbers 01 to 05 of each kind), 30 validation.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import Job, Report, Settings, Threshold, command, convert_pair, pair, pair_items

OUT = "data/HRF"
EXPECTED = {"images/training": 15, "annotations/training": 15, "images/validation": 30, "annotations/validation": 30}
LAST_TRAINING = 5


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert HRF in `src` to `out`."""
    with Job("hrf", src, out, EXPECTED, settings, archives="healthy|glaucoma|diabetic|HRF|all") as job:
        pictures = job.source.find(r"(\d\d)_(h|g|dr)\.(?:jpg|JPG)", "pictures")
        masks = job.source.find(r"(\d\d)_(h|g|dr)\.tif", "masks")
        job.need({kind for _, kind in pictures}, ("h", "g", "dr"), "kind")
        split = {key: "training" if int(key[0]) <= LAST_TRAINING else "validation" for key in pictures}
        todo = [(files, tuple(f"{folder}/{split[key]}/{key[0]}_{key[1]}.png" for folder in ("images", "annotations")))
                for key, files in pair(pictures, masks, job.source).items()]
        return job.run(pair_items(todo, convert_pair, label=Threshold()))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
