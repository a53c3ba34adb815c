"""LoveDA land cover: town and country pictures in one folder per split.

Source: zenodo.org/record/5706578, Train.zip, Val.zip, Test.zip (Wang et al., "LoveDA", NeurIPS datasets track 2021).
Licence: CC BY-NC-SA 4.0.
Expected raw tree (archives or folders):
    {Train,Val,Test}.zip: {Train,Val,Test}/{Rural,Urban}/{images_png,masks_png}/1366.png (the test split has no masks)
Command: python tools/convert_datasets/loveda.py LoveDA --out data/loveDA
Expected counts: 2522 train and 1669 val pairs, 1796 test pictures.
Masks keep 0 = no data and 1 to 7 for the classes (reduce_zero_label).
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import IndexTable, Job, Report, Settings, command, convert_pair, pair, pair_items

OUT = "data/loveDA"
EXPECTED = {"img_dir/train": 2522, "ann_dir/train": 2522, "img_dir/val": 1669, "ann_dir/val": 1669,
            "img_dir/test": 1796}
LABELS = IndexTable({label: label for label in range(8)})


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert LoveDA in `src` to `out`."""
    with Job("loveda", src, out, EXPECTED, settings, archives="Train|Val|Test") as job:
        pictures = job.source.find(r"(Train|Val|Test)/(?:Rural|Urban)/images_png/(\d+)\.png", "pictures")
        masks = job.source.find(r"(Train|Val)/(?:Rural|Urban)/masks_png/(\d+)\.png", "masks")
        job.need({split for split, _ in pictures}, ("Train", "Val", "Test"))
        labelled = pair({key: name for key, name in pictures.items() if key[0] != "Test"}, masks, job.source)
        todo = [(labelled.get((split, name), (picture,)),
                 tuple(f"{folder}/{split.lower()}/{name}.png" for folder in ("img_dir", "ann_dir")))
                for (split, name), picture in pictures.items()]
        return job.run(pair_items(todo, convert_pair, label=LABELS))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
