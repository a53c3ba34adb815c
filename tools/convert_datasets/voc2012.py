"""Pascal VOC 2012 segmentation: the pictures that have masks, the masks and the lists.

Source: host.robots.ox.ac.uk/pascal/VOC/voc2012, VOCtrainval_11-May-2012.tar (Everingham et al., IJCV 2015).
Licence: pictures under the terms of Flickr.
Expected raw tree (tar or folder):
    VOCdevkit/VOC2012/{JPEGImages/2007_000032.jpg,SegmentationClass/2007_000032.png}
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt
Command: python tools/convert_datasets/voc2012.py VOCtrainval_11-May-2012.tar --out data/VOCdevkit/VOC2012
Expected counts: 2913 masks, of which 1464 train and 1449 val.
Masks hold 0 = background, 1 to 20 and 255 = border, with the published colours for viewers. MMSegmentation trains from
the raw tree.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Collection

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import IndexTable, Item, Job, Report, Settings, command, convert_pair, pair_items
from jseg.errors import ConvertError

OUT = "data/VOCdevkit/VOC2012"
EXPECTED = {"SegmentationClass": 2913}
COUNTS = {"train": 1464, "val": 1449}
LABELS = IndexTable({255: 255, **{label: label for label in range(21)}})


def voc_colours() -> list[tuple[int, int, int]]:
    """The 256 colours of VOC: bit i of a channel, from the top, is bit 3 * i + channel of the index."""
    return [tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))
            for index in range(256)]


def read_lists(job: Job) -> dict[str, list[str]]:
    """The picture names of train and val.

    Raises:
        ConvertError: a list is missing, or has another length than published (unless partial).
    """
    found = job.source.find(r"VOC2012/ImageSets/Segmentation/(train|val)\.txt", "picture lists")
    lists = {key[0]: job.source.lines(name) for key, name in found.items()}
    job.need(lists, list(COUNTS))
    for split, names in lists.items():
        if len(names) != COUNTS[split] and not job.settings.partial:
            raise ConvertError(f"{job.source.label(found[split,])}: {len(names)} pictures, {COUNTS[split]} were "
                               "published; download it again, or add --partial if this is what you have")
    return lists


def mask_items(job: Job, names: list[str], also_aug: Collection[str] = ()) -> list[Item]:
    """One item for each of the named pictures with its mask;
    masks named in `also_aug` go to SegmentationClassAug too.
    """
    pictures = job.source.find(r"JPEGImages/(\w+)\.jpg", "pictures")
    masks = job.source.find(r"SegmentationClass/(\w+)\.png", "masks")
    lacking = [name for name in names if (name,) not in pictures or (name,) not in masks]
    if lacking:
        raise ConvertError(f"{job.source.where}: {len(lacking)} of {len(names)} listed pictures lack picture or mask: "
                           f"{', '.join(lacking[:5])}; download it again")
    folders = {name: ["SegmentationClass"] + ["SegmentationClassAug"] * (name in also_aug) for name in names}
    todo = [((pictures[name,], *[masks[name,]] * len(folders[name])),
             (f"JPEGImages/{name}.jpg", *(f"{f}/{name}.png" for f in folders[name])))
            for name in names]
    return pair_items(todo, convert_pair, label=LABELS, palette=voc_colours())


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert VOC 2012 in `src` to `out`."""
    with Job("voc2012", src, out, EXPECTED, settings, archives="VOC") as job:
        lists = read_lists(job)
        names = sorted({name for names in lists.values() for name in names})
        texts = {f"ImageSets/Segmentation/{split}.txt": names for split, names in lists.items()}
        return job.run(mask_items(job, names), {**texts, "ImageSets/Segmentation/trainval.txt": names})


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
