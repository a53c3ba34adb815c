"""ADE20K scene parsing (SceneParse150): checks the masks and puts the pictures where training reads them.

Source: sceneparsing.csail.mit.edu, ADEChallengeData2016.zip (Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR
2017). Licence: annotations BSD-3-Clause, pictures for research only.
Expected raw tree (zip or folder):
    ADEChallengeData2016/{images,annotations}/{training,validation}/ADE_{train,val}_00000001.{jpg,png}
The sample of the release (all files of a split in one folder) works too: the split is read from the file's name.
Command: python tools/convert_datasets/ade20k.py ADEChallengeData2016.zip --out data/ade/ADEChallengeData2016
Expected counts: 20210 training and 2000 validation pairs.
Masks keep 0 for "no class" and 1 to 150 for the classes: the dataset class alone reduces the zero label
(reduce_zero_label). MMSegmentation has no script for it.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import IndexTable, Job, Report, Settings, command, convert_pair, pair, pair_items

OUT = "data/ade/ADEChallengeData2016"
SPLITS = {"train": "training", "val": "validation"}
EXPECTED = {"images/training": 20210, "annotations/training": 20210, "images/validation": 2000,
            "annotations/validation": 2000}
LABELS = IndexTable({label: label for label in range(151)})


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Check ADE20K in `src` and copy it to `out`."""
    with Job("ade20k", src, out, EXPECTED, settings) as job:
        pictures = job.source.find(r"images/(?:\w+/)?ADE_(train|val)_(\d{8})\.jpg", "pictures")
        masks = job.source.find(r"annotations/(?:\w+/)?ADE_(train|val)_(\d{8})\.png", "masks")
        job.need({split for split, _ in pictures}, list(SPLITS))
        todo = [(files, (f"images/{SPLITS[split]}/ADE_{split}_{number}.jpg",
                         f"annotations/{SPLITS[split]}/ADE_{split}_{number}.png"))
                for (split, number), files in pair(pictures, masks, job.source).items()]
        return job.run(pair_items(todo, convert_pair, label=LABELS))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
