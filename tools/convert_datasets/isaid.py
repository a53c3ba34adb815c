"""iSAID aerial pictures: masks by colour become indices, everything is cut into tiles.

Source: captain-whu.github.io/iSAID, pictures from DOTA 1.0 (Waqas Zamir et al., "iSAID", CVPR workshops 2019).
Licence: CC BY-NC-SA 4.0 for annotations; pictures for academic use only.
Expected raw tree (the archives may stay closed):
    train/images/{part1.zip,...} or train/images/P0000.png      train/Semantic_masks/{images.zip or *.png}: P0000_instance_color_RGB.png
    val/...                                                     test/images/...
Command: python tools/convert_datasets/isaid.py iSAID --out data/iSAID
Expected counts: 33978 train and 11644 val tiles of 896x896 with 384 pixels of overlap; 937 test pictures, not cut.
Original JSeg uses `--width 800 --height 800 --overlap 200`: 28029 and 9512 tiles, not checked here, for it leaves pictures out.
`--width` and `--height` mean what they say (MMSegmentation and original JSeg swap them). No picture is skipped in silence (original JSeg
skips P1527 and P1530): one whose mask does not fit is an error, and `--skip P1527` leaves it out and says so.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.datasets import iSAIDDataset
from jseg.data.prepare import ColorTable, Item, Job, Report, Settings, Tiling, command, copy_file, cut_pair, pair, pair_items

OUT = "data/iSAID"
COUNTS = {(896, 896, 384): (33978, 11644)}  # (width, height, overlap) -> train, val
COLORS = {color: label for label, color in enumerate(iSAIDDataset.METAINFO["palette"])}
IGNORED = 255  # mask value where a picture is smaller than a tile


def expected(width: int, height: int, overlap: int, skips: bool) -> dict[str, int | None]:
    """Numbers of tiles below the output's folders, where they are known."""
    train, val = (None, None) if skips else COUNTS.get((width, height, overlap), (None, None))
    return {"img_dir/train": train, "ann_dir/train": train, "img_dir/val": val, "ann_dir/val": val, "img_dir/test": 937}


def convert(src, out, settings: Settings = Settings(), *, width: int = 896, height: int = 896, overlap: int = 384, skip: tuple = (),
            unknown: int | None = None) -> Report:
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
        pictures, masks = ({key: name for key, name in found.items() if key[1] not in skip} for found in (pictures, masks))
        pairs = pair(pictures, masks, job.source)
        label = ColorTable(COLORS, unknown)
        tile = "{box.top}_{box.bottom}_{box.left}_{box.right}"
        items = pair_items([(files, (f"img_dir/{split}/{name}_{tile}.png", f"ann_dir/{split}/{name}_{tile}_instance_color_RGB.png"))
                            for (split, name), files in pairs.items()], cut_pair, tiling=tiling, label=label, pad=(0, IGNORED))
        tests = job.source.find(r"test/(?:.+/)?(P\d+)\.png")
        items += [Item(name, copy_file, (name,), (f"img_dir/test/{key[0]}.png",)) for key, name in tests.items()]
        if not tests:
            job.expected.pop("img_dir/test")
        report = job.run(items)
        report.notes.update({f"left out as asked: {name}": 1 for name in skip})
        return report


def add_arguments(parser) -> None:
    """The options of this converter."""
    parser.add_argument("--width", type=int, default=896, help="of a tile in pixels (default: 896)")
    parser.add_argument("--height", type=int, default=896, help="of a tile in pixels (default: 896)")
    parser.add_argument("--overlap", type=int, default=384, help="pixels that neighbouring tiles share (default: 384)")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="leave a picture out, for example P1527; repeatable")
    parser.add_argument("--unknown", type=int, choices=range(256), metavar="INDEX", help="index for unknown colours (default: an error)")


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
