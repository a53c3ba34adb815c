"""Cityscapes fine annotations: train ids (0 to 18, 255 = void) from the published label ids or from the polygons.

Source: www.cityscapes-dataset.com, leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (Cordts et al., CVPR 2016).
Licence: non-commercial research, by registration.
Expected raw tree (both archives, or a folder with both unpacked):
    leftImg8bit/{train,val,test}/<city>/<city>_000000_000019_leftImg8bit.png
    gtFine/{train,val,test}/<city>/<city>_000000_000019_gtFine_{labelIds.png,polygons.json}
Command: python tools/convert_datasets/cityscapes.py leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip --out
data/cityscapes Expected counts: 2975 train, 500 val, 1525 test (whose masks hold only void).
`--labels auto` (default) takes the label ids as published, which the official evaluation uses, and the polygons where
they are missing; `--labels polygons` draws always, as MMSegmentation's script does. Both give the same but for rounding
in the drawing library's versions.
"""

from __future__ import annotations

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

import numpy as np
from PIL import Image, ImageDraw

from jseg.data.prepare import IndexTable, Job, Report, Settings, command, convert_pair, pair, pair_items
from jseg.data.prepare.shapes import checked_points, checked_size
from jseg.errors import ConvertError
from jseg.text import decode_text

OUT = "data/cityscapes"
COUNTS = {"train": 2975, "val": 500, "test": 1525}
EXPECTED = {f"{kind}/{split}": count for split, count in COUNTS.items() for kind in ("leftImg8bit", "gtFine")}
# name -> (id, train id), as in the publisher's label table; a negative id is not drawn.
LABELS = {
    "unlabeled": (0, 255), "ego vehicle": (1, 255), "rectification border": (2, 255), "out of roi": (3, 255),
    "static": (4, 255), "dynamic": (5, 255), "ground": (6, 255), "road": (7, 0), "sidewalk": (8, 1),
    "parking": (9, 255), "rail track": (10, 255), "building": (11, 2), "wall": (12, 3), "fence": (13, 4),
    "guard rail": (14, 255), "bridge": (15, 255), "tunnel": (16, 255), "pole": (17, 5), "polegroup": (18, 255),
    "traffic light": (19, 6), "traffic sign": (20, 7), "vegetation": (21, 8), "terrain": (22, 9),
    "sky": (23, 10), "person": (24, 11), "rider": (25, 12), "car": (26, 13), "truck": (27, 14), "bus": (28, 15),
    "caravan": (29, 255), "trailer": (30, 255), "train": (31, 16), "motorcycle": (32, 17), "bicycle": (33, 18),
    "license plate": (-1, 255)}
FROM_IDS = IndexTable({number: train for number, train in LABELS.values() if number >= 0})


def train_ids(data: bytes, name: str) -> np.ndarray:
    """Read either kind of annotation as (H, W) uint8 train ids."""
    return draw(data, name) if name.endswith(".json") else FROM_IDS(data, name)


def draw(data: bytes, name: str) -> np.ndarray:
    """Draw the polygons of one file in their order, the later over the earlier, as the publisher's tools do;
    (H, W) uint8 train ids.
    """
    try:
        notes = json.loads(decode_text(data, name, error=ConvertError))
        size = checked_size(notes["imgHeight"], notes["imgWidth"], name)
        picture = Image.new("L", size[::-1], 255)
        canvas = ImageDraw.Draw(picture)
        for shape in notes["objects"]:
            label = shape["label"]
            if label not in LABELS and label.endswith("group"):
                label = label[:-len("group")]
            if label not in LABELS:
                raise ConvertError(f"{name}: label {shape['label']!r} is not one of the {len(LABELS)} of Cityscapes; "
                                   "is it another dataset?")
            if not shape.get("deleted") and LABELS[label][0] >= 0:
                canvas.polygon(checked_points(shape["polygon"], name), fill=LABELS[label][1])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertError(f"{name}: not a polygon file of Cityscapes ({type(error).__name__}: {error}); download it "
                           "again") from error
    return np.asarray(picture)


def convert(src, out, settings: Settings = Settings(), *, labels: str = "auto") -> Report:
    """Convert Cityscapes in `src` to `out`; `labels` is auto, labelIds or polygons."""
    with Job("cityscapes", src, out, EXPECTED, settings, archives="leftImg8bit_trainvaltest|gtFine|leftImg8bit") as job:
        pictures = job.source.find(r"leftImg8bit/(train|val|test)/(\w[\w-]*)/(\w[\w-]*)_leftImg8bit\.png", "pictures")
        ids = job.source.find(r"gtFine/(train|val|test)/(\w[\w-]*)/(\w[\w-]*)_gtFine_labelIds\.png")
        polygons = job.source.find(r"gtFine/(train|val|test)/(\w[\w-]*)/(\w[\w-]*)_gtFine_polygons\.json")
        masks = {"labelIds": ids, "polygons": polygons, "auto": {**polygons, **ids}}[labels]
        job.need({key[0] for key in masks}, list(COUNTS), f"gtFine ({labels})")
        pairs = pair(pictures, masks, job.source)
        todo = [(files, (f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png",
                         f"gtFine/{split}/{city}/{name}_gtFine_labelTrainIds.png"))
                for (split, city, name), files in pairs.items()]
        texts = {f"{split}.txt": [f"{city}/{name}" for s, city, name in pairs if s == split] for split in COUNTS}
        return job.run(pair_items(todo, convert_pair, label=train_ids), texts)


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=lambda parser: parser.add_argument(
        "--labels", choices=("auto", "labelIds", "polygons"), default="auto",
        help="what to make the train ids from (default: auto)")))
