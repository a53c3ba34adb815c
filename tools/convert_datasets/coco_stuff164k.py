"""COCO-Stuff 164k: the 182 published ids become train ids 0 to 170, 255 = unlabelled.

Source: github.com/nightrome/cocostuff, train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip (Caesar et al.,
CVPR 2018). Licence: annotations CC BY 4.0, pictures under the terms of Flickr.
Expected raw tree (the three archives in one folder, or unpacked in any folders named so):
    {train2017,val2017}/000000000009.jpg     {train2017,val2017}/000000000009.png
Command: python tools/convert_datasets/coco_stuff164k.py train2017.zip val2017.zip stuffthingmaps_trainval2017.zip --out
data/coco_stuff164k Expected counts: 118287 training and 5000 validation pictures.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import IndexTable, Job, Report, Settings, command, convert_pair, pair, pair_items

OUT = "data/coco_stuff164k"
COUNTS = {"train2017": 118287, "val2017": 5000}
EXPECTED = {f"{kind}/{split}": count for split, count in COUNTS.items() for kind in ("images", "annotations")}
# of the published ids 0..181: classes of which COCO has no picture
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
USED = [number for number in range(182) if number not in UNUSED]
LABELS = IndexTable({255: 255, **{number: index for index, number in enumerate(USED)}})


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert COCO-Stuff 164k in `src` to `out`."""
    with Job("coco_stuff164k", src, out, EXPECTED, settings, archives="train2017|val2017|coco") as job:
        pictures = job.source.find(r"(train2017|val2017)/(\d{12})\.jpg", "pictures")
        masks = job.source.find(r"(train2017|val2017)/(\d{12})\.png", "masks")
        job.need({split for split, _ in pictures}, list(COUNTS))
        todo = [(files, (f"images/{split}/{name}.jpg", f"annotations/{split}/{name}_labelTrainIds.png"))
                for (split, name), files in pair(pictures, masks, job.source).items()]
        return job.run(pair_items(todo, convert_pair, label=LABELS))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
