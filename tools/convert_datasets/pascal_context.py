"""Pascal Context: masks 0 to 59 (0 = background) for the 60-class and, with reduce_zero_label, the 59-class form.

Source: cs.stanford.edu/~roozbeh/pascal-context, trainval.tar.gz (MATLAB masks of 459 ids), or "PASCAL in Detail",
trainval_merged.json (Mottaghi et al., CVPR 2014); pictures from VOC 2010, VOCtrainval_03-May-2010.tar.
Licence: pictures under the terms of Flickr, annotations for research.
Expected raw tree (archives, or a folder with them unpacked); one of the two kinds of annotation:
    VOCdevkit/VOC2010/{JPEGImages/2008_000002.jpg,ImageSets/Main/{train,val}.txt}
    trainval/2008_000002.mat     or     trainval_merged.json
Command: python tools/convert_datasets/pascal_context.py VOCtrainval_03-May-2010.tar trainval_merged.json --out
data/VOCdevkit/VOC2010 Expected counts: 4998 train and 5105 val masks in SegmentationContext.
The split is that of VOC 2010's lists in both kinds; the json repeats it. Ids outside of the 59 classes become
background in MATLAB masks, which know 459; in the json they are an error, as in MMSegmentation's script.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

import numpy as np

from jseg.data.io import check_pair, read_image
from jseg.data.prepare import (IndexTable, Item, Job, Report, Settings, Source, Writer, command, convert_pair,
                               decode, pair_items)
from jseg.data.prepare.matfile import matrix
from jseg.data.prepare.shapes import checked_size, decode_rle
from jseg.errors import ConvertError

OUT = "data/VOCdevkit/VOC2010"
COUNTS = {"train": 4998, "val": 5105}
EXPECTED = {"SegmentationClassContext": sum(COUNTS.values())}
# Ids of the 59 classes among the 459, in the order of the class names; their place is the label, 0 is background.
IDS = (2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
       162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368,
       397, 415, 416, 420, 424, 427, 440, 445, 454, 458)


def label_map(data: bytes) -> np.ndarray:
    """Read LabelMap of a MATLAB file: (H, W) ids 1 to 459."""
    return matrix(data, "LabelMap")


FROM_JSON = IndexTable({0: 0, **{number: label for label, number in enumerate(IDS, 1)}})
FROM_MAT = IndexTable({**dict.fromkeys(range(460), 0), **FROM_JSON.ids}, reader=label_map)


def convert_json(item: Item, source: Source, writer: Writer) -> None:
    """Draw the segments of one picture, given in `item.values` after the two names,
    and check them against the picture.
    """
    picture_name, mask_name, (height, width), segments = item.values
    ids = np.zeros((height, width), np.int32)
    for number, segment in segments:
        ids[decode_rle(segment, (height, width), item.name)] = number
    mask, picture = FROM_JSON.indices(ids, item.name), item.inputs[0]
    data = source.read(picture)
    check_pair(decode(read_image, data, source.label(picture)), mask, source.label(picture), item.name)
    writer.copy(picture_name, source, picture, data)
    writer.mask(mask_name, mask)


def json_items(job: Job, name: str) -> tuple[list[Item], dict[str, list[str]]]:
    """Items and split lists from the json of PASCAL in Detail."""
    where = job.source.label(name)
    try:
        notes = job.source.json(name)
        segments: dict[int, list] = {picture["image_id"]: [] for picture in notes["images"]}
        for segment in notes["annos_segmentation"]:
            segments[segment["image_id"]].append((segment["category_id"], segment["segmentation"]))
        rows = [(p["file_name"].rsplit(".", 1)[0], p["phase"], checked_size(p["height"], p["width"], where),
                 tuple(segments[p["image_id"]])) for p in notes["images"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConvertError(f"{job.source.label(name)}: not the json of PASCAL in Detail ({type(error).__name__}: "
                           f"{error}); download it again") from error
    pictures = found_pictures(job, [row[0] for row in rows if row[1] in COUNTS])
    items = [Item(f"{stem} ({job.source.label(name)})", convert_json, (pictures[stem],), (*names_of(stem), size, parts))
             for stem, phase, size, parts in rows if phase in COUNTS]
    return items, {split: sorted(row[0] for row in rows if row[1] == split) for split in COUNTS}


def mat_items(job: Job) -> tuple[list[Item], dict[str, list[str]]]:
    """Items and split lists from the MATLAB masks and the lists of VOC 2010."""
    masks = {key[0]: name for key, name in job.source.find(r"(\d{4}_\d{6})\.mat",
                                                           "masks (trainval_merged.json or trainval/*.mat)").items()}
    lists = {key[0]: job.source.lines(name)
             for key, name in job.source.find(r"ImageSets/Main/(train|val)\.txt", "lists of VOC 2010").items()}
    splits = {split: sorted(set(names) & set(masks)) for split, names in lists.items()}
    pictures = found_pictures(job, [name for names in splits.values() for name in names])
    return pair_items([((pictures[name], masks[name]), names_of(name)) for names in splits.values() for name in names],
                      convert_pair, label=FROM_MAT), splits


def names_of(stem: str) -> tuple[str, str]:
    """Where picture and mask go."""
    return f"JPEGImages/{stem}.jpg", f"SegmentationClassContext/{stem}.png"


def found_pictures(job: Job, names: list[str]) -> dict[str, str]:
    """Names in the source of the pictures; raise a ConvertError if some are missing."""
    pictures = {key[0]: name for key, name in job.source.find(r"JPEGImages/(\w+)\.jpg", "pictures of VOC 2010").items()}
    lacking = [name for name in names if name not in pictures]
    if lacking:
        raise ConvertError(f"{job.source.where}: {len(lacking)} of {len(names)} annotated pictures are missing: "
                           f"{', '.join(lacking[:5])}; give VOC 2010 as well (a later VOC lacks some)")
    return pictures


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert Pascal Context in `src` to `out`."""
    with Job("pascal_context", src, out, EXPECTED, settings, archives="VOC|trainval|context") as job:
        found = job.source.find(r"(\w*trainval\w*)\.json")
        items, lists = json_items(job, next(iter(found.values()))) if found else mat_items(job)
        job.need([split for split, names in lists.items() if names], list(COUNTS))
        return job.run(items, {f"ImageSets/SegmentationContext/{split}.txt": names for split, names in lists.items()})


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
