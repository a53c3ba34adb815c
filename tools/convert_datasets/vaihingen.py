"""ISPRS Vaihingen: infrared orthophotos and coloured masks become tiles with indices.

Source: www.isprs.org (2D semantic labelling contest), ISPRS_semantic_labeling_Vaihingen.zip and
ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip.
Licence: research, by registration.
Expected raw tree (archives or folders):
    top/top_mosaic_09cm_area1.tif     top_mosaic_09cm_area1_noBoundary.tif
Command: python tools/convert_datasets/vaihingen.py Vaihingen --out data/vaihingen
Expected counts: 344 train and 398 val tiles of 512x512.
Tiles stand side by side by default, as published; `--overlap 256` is a true stride (see potsdam.py). The mask of area9
has no picture and is left out, as upstream. Masks: 0 = boundary (black), 1 to 6 the classes (reduce_zero_label).
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from potsdam import COLORS, add_arguments

from jseg.data.prepare import ColorTable, Job, Report, Settings, Tiling, command, cut_pair, pair, pair_items

OUT = "data/vaihingen"
SPLITS = {"train": (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37),
          "val": (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)}
COUNTS = {(512, 0): (344, 398)}  # (tile size, overlap) -> train, val


def convert(src, out, settings: Settings = Settings(), *, size: int = 512, overlap: int = 0,
            unknown: int | None = None) -> Report:
    """Convert Vaihingen in `src` to `out`.

    Args:
        size, overlap: of the tiles in pixels; an overlap of 0 is the published placement.
        unknown: index of colours that are none of the seven; None makes them an error.
    """
    train, val = COUNTS.get((size, overlap), (None, None))
    expected = {"img_dir/train": train, "ann_dir/train": train, "img_dir/val": val, "ann_dir/val": val}
    with Job("vaihingen", src, out, expected, settings, archives="vaihingen") as job:
        pictures = job.source.find(r"top/top_mosaic_09cm_area(\d+)\.tif", "orthophotos (top)")
        masks = job.source.find(r"top_mosaic_09cm_area(\d+)_noBoundary\.tif", "masks (ground_truth_eroded_COMPLETE)")
        listed = {(str(area),): split for split, areas in SPLITS.items() for area in areas}
        pairs = pair({key: pictures[key] for key in pictures if key in listed},
                     {key: masks[key] for key in masks if key in listed}, job.source)
        job.need({listed[key] for key in pairs}, list(SPLITS))
        job.leave_out("orthophotos of neither split", [pictures[key] for key in pictures if key not in listed])
        tile = "{box.left}_{box.top}_{box.right}_{box.bottom}.png"
        todo = [(files, tuple(f"{folder}/{listed[key]}/area{key[0]}_{tile}" for folder in ("img_dir", "ann_dir")))
                for key, files in pairs.items()]
        return job.run(pair_items(todo, cut_pair, tiling=Tiling.overlapping(size, size, overlap),
                                  label=ColorTable(COLORS, unknown)))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
