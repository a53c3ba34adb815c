"""ISPRS Potsdam: orthophotos and coloured masks become tiles with indices.

Source: www.isprs.org (2D semantic labelling contest), Potsdam.zip or its parts 2_Ortho_RGB.zip and
5_Labels_all_noBoundary.zip. Licence: research, by registration.
Expected raw tree (archives, also inside Potsdam.zip, or folders):
    2_Ortho_RGB/top_potsdam_2_10_RGB.tif     5_Labels_all_noBoundary/top_potsdam_2_10_label_noBoundary.tif
Command: python tools/convert_datasets/potsdam.py Potsdam.zip --out data/potsdam
Expected counts: 3456 train and 2016 val tiles of 512x512.
Tiles stand side by side by default: with those the published numbers were made (the scripts of MMSegmentation and of
original JSeg take a stride of 256 and do not use it). `--overlap 256` is a true stride: 12696 and 7406 tiles.
Masks: 0 = boundary (black), 1 to 6 the classes (reduce_zero_label). If only masks with boundaries (`*_label.tif`) are
there, those are taken.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import ColorTable, Job, Report, Settings, Tiling, command, cut_pair, pair, pair_items

OUT = "data/potsdam"
SPLITS = {"train": ("2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_10 6_11 6_12 6_7 6_8 6_9 7_10 7_11 "
                    "7_12 7_7 7_8 7_9").split(),
          "val": "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split()}
COUNTS = {(512, 0): (3456, 2016), (512, 256): (12696, 7406)}  # (tile size, overlap) -> train, val
# impervious surfaces, building, low vegetation, tree, car, clutter
COLORS = {(0, 0, 0): 0, (255, 255, 255): 1, (0, 0, 255): 2, (0, 255, 255): 3, (0, 255, 0): 4, (255, 255, 0): 5,
          (255, 0, 0): 6}


def convert(src, out, settings: Settings = Settings(), *, size: int = 512, overlap: int = 0,
            unknown: int | None = None) -> Report:
    """Convert Potsdam in `src` to `out`.

    Args:
        size, overlap: of the tiles in pixels; an overlap of 0 is the published placement.
        unknown: index of colours that are none of the seven; None makes them an error.
    """
    train, val = COUNTS.get((size, overlap), (None, None))
    expected = {"img_dir/train": train, "ann_dir/train": train, "img_dir/val": val, "ann_dir/val": val}
    with Job("potsdam", src, out, expected, settings, archives="potsdam|RGB|label") as job:
        pictures = job.source.find(r"top_potsdam_(\d+_\d+)_RGB\.tif", "orthophotos (2_Ortho_RGB)")
        masks = (job.source.find(r"top_potsdam_(\d+_\d+)_label_noBoundary\.tif")
                 or job.source.find(r"top_potsdam_(\d+_\d+)_label\.tif", "masks (5_Labels_all_noBoundary)"))
        listed = {(name,): split for split, names in SPLITS.items() for name in names}
        pairs = pair({key: pictures[key] for key in pictures if key in listed},
                     {key: masks[key] for key in masks if key in listed}, job.source)
        job.need({listed[key] for key in pairs}, list(SPLITS))
        job.leave_out("orthophotos of neither split", [pictures[key] for key in pictures if key not in listed])
        tile = "{box.left}_{box.top}_{box.right}_{box.bottom}.png"
        todo = [(files, tuple(f"{folder}/{listed[key]}/{key[0]}_{tile}" for folder in ("img_dir", "ann_dir")))
                for key, files in pairs.items()]
        return job.run(pair_items(todo, cut_pair, tiling=Tiling.overlapping(size, size, overlap),
                                  label=ColorTable(COLORS, unknown)))


def add_arguments(parser) -> None:
    """The options of this converter."""
    parser.add_argument("--size", type=int, default=512, help="side of a tile in pixels (default: 512)")
    parser.add_argument("--overlap", type=int, default=0,
                        help="pixels that neighbouring tiles share (default: 0, as published)")
    parser.add_argument("--unknown", type=int, choices=range(256), metavar="INDEX",
                        help="index for unknown colours (default: an error)")


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
