"""DRIVE retina vessels: pictures and manual masks as PNG.

Source: drive.grand-challenge.org, training.zip and test.zip (Staal et al., IEEE TMI 2004).
Licence: research and education, by registration.
Expected raw tree (archives or folders):
    training/{images/21_training.tif,1st_manual/21_manual1.gif}
    test/{images/01_test.tif,1st_manual/01_manual1.gif,2nd_manual/01_manual2.gif}
Command: python tools/convert_datasets/drive.py DRIVE --out data/DRIVE
Expected counts: 20 training and 20 validation pictures (the test part, whose masks newer downloads lack); 20 and 40
masks.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import Job, Report, Settings, Threshold, command, convert_pair, pair_items
from jseg.errors import ConvertError

OUT = "data/DRIVE"
SPLITS = {"training": "training", "test": "validation"}
EXPECTED = {"images/training": 20, "annotations/training": 20, "images/validation": 20, "annotations/validation": 40}


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert DRIVE in `src` to `out`."""
    with Job("drive", src, out, EXPECTED, settings, archives="training|test|DRIVE") as job:
        pictures = job.source.find(r"(training|test)/images/(\d\d)_\w+\.tif", "pictures")
        masks = job.source.find(r"(training|test)/(?:1st|2nd)_manual/(\d\d)_manual([12])\.gif", "masks")
        job.need({split for split, _ in pictures}, list(SPLITS))
        if not any(split == "test" for split, _, _ in masks):
            job.expected["annotations/validation"] = 0
        lacking = [name for key, name in pictures.items() if (*key, "1") not in masks and
                   (key[0] == "training" or job.expected["annotations/validation"])]
        lone = [name for key, name in masks.items() if key[:2] not in pictures]
        if lacking or lone:
            raise ConvertError(f"{job.source.where}: {', '.join((lacking or lone)[:5])}: no "
                               f"{'mask' if lacking else 'picture'} for it; the download is incomplete")
        todo = []
        for (split, number), picture in pictures.items():
            drawn = {who: masks[split, number, who] for who in "12" if (split, number, who) in masks}
            todo.append(((picture, *drawn.values()), (f"images/{SPLITS[split]}/{number}.png",
                                                      *(f"annotations/{SPLITS[split]}/{number}_manual{who}.png"
                                                        for who in drawn))))
        return job.run(pair_items(todo, convert_pair, label=Threshold()))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
