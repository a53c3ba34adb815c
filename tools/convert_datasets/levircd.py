"""LEVIR-CD building changes: pairs of pictures (A before, B after) and the change mask, cut into tiles.

Source: chenhao.in/LEVIR, train.zip, val.zip, test.zip (Chen and Shi, Remote Sensing 2020).
Licence: academic use only.
Expected raw tree (archives or folders): {train,val,test}/{A,B,label}/train_1.png
Command: python tools/convert_datasets/levircd.py LEVIR-CD --out data/LEVIRCD
Expected counts: 7120 train, 1024 val and 2048 test tiles of 256x256 in each of A, B and label; masks 0 and 1.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import (ColorTable, Item, Job, Report, Settings, Source, Tiling, Writer, command, cut_pair,
                               pair, pair_items)

OUT = "data/LEVIRCD"
TILES = {"train": 7120, "val": 1024, "test": 2048}
LABELS = ColorTable({(0, 0, 0): 0, (255, 255, 255): 1})


def cut_three(item: Item, source: Source, writer: Writer, *, tiling: Tiling) -> None:
    """Cut A with the mask, then B, whose size is checked against the mask as well."""
    (before, after, mask), (a, b, label) = item.inputs, item.values
    cut_pair(Item(item.name, None, (before, mask), (a, label)), source, writer, tiling=tiling, label=LABELS)
    cut_pair(Item(item.name, None, (after, mask), (b, label)), source, writer, tiling=tiling, label=LABELS)


def convert(src, out, settings: Settings = Settings(), *, size: int = 256, overlap: int = 0) -> Report:
    """Convert LEVIR-CD in `src` to `out`; `size` and `overlap` of the tiles in pixels."""
    expected = {f"{split}/{part}": count if (size, overlap) == (256, 0) else None for split, count in TILES.items()
                for part in ("A", "B", "label")}
    with Job("levircd", src, out, expected, settings, archives="train|val|test|levir") as job:
        find = job.source.find
        before = find(r"(train|val|test)/A/(\w+)\.png", "pictures (A)")
        after = pair(before, find(r"(train|val|test)/B/(\w+)\.png"), job.source, "second picture (B)")
        masks = pair(before, find(r"(train|val|test)/label/(\w+)\.png"), job.source)
        job.need({split for split, _ in before}, list(TILES))
        tile = "{box.left}_{box.top}_{box.right}_{box.bottom}.png"
        todo = [((a, after[key][1], masks[key][1]),
                 tuple(f"{key[0]}/{part}/{key[1]}_{tile}" for part in ("A", "B", "label")))
                for key, a in before.items()]
        return job.run(pair_items(todo, cut_three, tiling=Tiling.overlapping(size, size, overlap)))


def add_arguments(parser) -> None:
    """The options of this converter."""
    parser.add_argument("--size", type=int, default=256, help="side of a tile in pixels (default: 256)")
    parser.add_argument("--overlap", type=int, default=0,
                        help="pixels that neighbouring tiles share (default: 0, as published)")


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
