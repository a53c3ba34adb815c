"""iSAID aerial pictures: masks by colour become indices, everything is cut into tiles.

Source: captain-whu.github.io/iSAID, pictures from DOTA 1.0 (Waqas Zamir et al., "iSAID", CVPR workshops 2019).
Licence: CC BY-NC-SA 4.0 for annotations; pictures for academic use only.
Expected raw tree (the archives may stay closed):
    train/images/{part1.zip,...} or train/images/P0000.png
    train/Semantic_masks/{images.zip or *.png}: P0000_instance_color_RGB.png
    val/...      test/images/...
Command: python tools/convert_datasets/isaid.py iSAID --out data/iSAID
Expected counts: 1411 train, 458 val and 937 test pictures; 33978 train and 11644 val tiles of 896x896 with 384 pixels
of overlap; test pictures are not cut. Original JSeg uses `--width 800 --height 800 --overlap 200`; its documented 28029
and 9512 files leave P1527 and P1530 out and count a picture that is not larger than a tile in both directions once: the
report counts the same way and compares. `--width` and `--height` mean what they say (MMSegmentation and original JSeg
swap them). No picture is skipped in silence (original JSeg skips P1527 and P1530): one whose mask does not fit is an
error, and `--skip P1527` leaves it out and says so.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.datasets import iSAIDDataset
from collections import Counter

from jseg.data.prepare import (ColorTable, Item, Job, Remarks, Report, Settings, Source, Tiling, Writer, command,
                               copy_picture, cut_pair, pair,
                               pair_items, stem)
from jseg.errors import ConvertError

OUT = "data/iSAID"
PICTURES = {"train": 1411, "val": 458}
COUNTS = {(896, 896, 384): (33978, 11644)}  # (width, height, overlap) -> train, val
COLORS = {color: label for label, color in enumerate(iSAIDDataset.METAINFO["palette"])}
IGNORED = 255  # mask value where a picture is smaller than a tile
DEVKIT = {"train": 28029, "val": 9512}  # files that original JSeg documents for 800x800 with an overlap of 200
DEVKIT_TILES, DEVKIT_SKIPS = (800, 800, 200), ("P1527", "P1530")


def expected(width: int, height: int, overlap: int, skips: bool) -> dict[str, int | None]:
    """Numbers of tiles below the output's folders, where they are known."""
    train, val = (None, None) if skips else COUNTS.get((width, height, overlap), (None, None))
    return {"img_dir/train": train, "ann_dir/train": train, "img_dir/val": val, "ann_dir/val": val, "img_dir/test": 937}


def cut(item: Item, source: Source, writer: Writer, **options) -> Remarks:
    """Cut a picture and its mask; return how many pictures original JSeg would make of it."""
    cut_pair(item, source, writer, **options)
    tiles = [stem(file).split("_") for file in writer.files if file.startswith("img_dir")]
    name, tops, lefts = tiles[0][0], {tile[1] for tile in tiles}, {tile[3] for tile in tiles}
    count = len(tiles) if min(len(tops), len(lefts)) > 1 else 1
    return Remarks({item.values[0].split("/")[1]: 0 if name in DEVKIT_SKIPS else count})


def check_pictures(pairs, skip: tuple, where: str) -> None:
    """Raise a ConvertError unless all published pictures are there, but for those to be left out."""
    left_out = sum(name not in {key[1] for key in pairs} for name in skip)
    counts = Counter(split for split, _ in pairs)
    for split, count in PICTURES.items():
        if not count - left_out <= counts[split] <= count:
            raise ConvertError(f"{where}: {counts[split]} {split} pictures, but {count} are published; is the download "
                               "complete? If this is what you have, add --partial")


def convert(src, out, settings: Settings = Settings(), *, width: int = 896, height: int = 896, overlap: int = 384,
            skip: tuple = (), unknown: int | None = None) -> Report:
    """Convert iSAID in `src` to `out`.

    Args:
        width, height, overlap: of the tiles, in pixels.
        skip: names of pictures to leave out, such as P1527.
        unknown: index of colours that are none of iSAID's; None makes them an error.
    """
    tiling = Tiling.overlapping(height, width, overlap)
    with Job("isaid", src, out, expected(width, height, overlap, bool(skip)), settings) as job:
        pictures = job.source.find(r"(train|val)/(?:.+/)?(P\d+)\.png", "pictures")
        masks = job.source.find(r"(train|val)/(?:.+/)?(P\d+)_instance_color_RGB\.png", "masks")
        job.need({split for split, _ in pictures} & {split for split, _ in masks}, ("train", "val"))
        pictures, masks = ({key: name for key, name in found.items() if key[1] not in skip}
                           for found in (pictures, masks))
        pairs = pair(pictures, masks, job.source)
        if not settings.partial:
            check_pictures(pairs, skip, job.source.where)
        label = ColorTable(COLORS, unknown)
        tile = "{box.top}_{box.bottom}_{box.left}_{box.right}"
        items = pair_items([(files, (f"img_dir/{split}/{name}_{tile}.png",
                                     f"ann_dir/{split}/{name}_{tile}_instance_color_RGB.png"))
                            for (split, name), files in pairs.items()], cut, tiling=tiling, label=label,
                           pad=(0, IGNORED))
        tests = job.source.find(r"test/(?:.+/)?(P\d+)\.png")
        items += [Item(name, copy_picture, (name,), (f"img_dir/test/{key[0]}.png",)) for key, name in tests.items()]
        if not tests:
            job.expected.pop("img_dir/test")
        report = job.run(items)
        made = {split: report.notes.pop(split, 0) for split in PICTURES}
        if (width, height, overlap) == DEVKIT_TILES:
            report.notes.update({f"{split} files as original JSeg counts them (documented: {DEVKIT[split]})": made[
                split] for split in made})
        report.notes.update({f"left out as asked: {name}": 1 for name in skip})
        return report


def add_arguments(parser) -> None:
    """The options of this converter."""
    parser.add_argument("--width", type=int, default=896, help="of a tile in pixels (default: 896)")
    parser.add_argument("--height", type=int, default=896, help="of a tile in pixels (default: 896)")
    parser.add_argument("--overlap", type=int, default=384, help="pixels that neighbouring tiles share (default: 384)")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME",
                        help="leave a picture out, for example P1527; repeatable")
    parser.add_argument("--unknown", type=int, choices=range(256), metavar="INDEX",
                        help="index for unknown colours (default: an error)")


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
