"""NYU Depth v2 (for depth estimation): pictures and 16-bit depth maps of the published lists in one folder per split.

Source: cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; the prepared nyu.zip of the BTS authors (Silberman et al.,
ECCV 2012). Licence: see the publisher's page.
Expected raw tree (zip or folder):
    nyu/{nyu_train.txt,nyu_test.txt}: lines "kitchen_0028b/rgb_00045.jpg kitchen_0028b/sync_depth_00045.png 518.8579"
    nyu/kitchen_0028b/{rgb_00045.jpg,sync_depth_00045.png}
Command: python tools/convert_datasets/nyu.py nyu.zip --out data/nyu
Expected counts: 24231 train and 654 test pairs.
Depth maps are copied as they are (millimetres, 16 bits).
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.io import check_pair, read_image, read_mask
from jseg.data.prepare import Item, Job, Report, Settings, Source, Writer, command, decode, pair_items
from jseg.errors import ConvertError

OUT = "data/nyu"
COUNTS = {"train": 24231, "test": 654}
EXPECTED = {f"{kind}/{split}": count for split, count in COUNTS.items() for kind in ("images", "annotations")}


def copy_pair(item: Item, source: Source, writer: Writer) -> None:
    """Copy picture and depth map after both were decoded and their sizes compared."""
    contents = [source.read(name) for name in item.inputs]
    check_pair(*(decode(reader, data, source.label(name))
                 for reader, data, name in zip((read_image, read_mask), contents, item.inputs)),
               *map(source.label, item.inputs))
    for data, member, name in zip(contents, item.inputs, item.values):
        writer.copy(name, source, member, data)


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert NYU Depth v2 in `src` to `out`."""
    with Job("nyu", src, out, EXPECTED, settings, archives="nyu") as job:
        lists = job.source.find(r"nyu_(train|test)\.txt", "lists (nyu_train.txt, nyu_test.txt)")
        job.need([split for split, in lists], list(COUNTS))
        todo = []
        for (split,), listing in lists.items():
            folder = listing.rsplit("/", 1)[0] + "/" if "/" in listing else ""
            for line in job.source.lines(listing):
                rgb, depth = (part.strip("/") for part in (line.split() + ["", ""])[:2])
                if folder + rgb not in job.source or folder + depth not in job.source:
                    raise ConvertError(f"{job.source.label(listing)}: {line!r}: no such files beside the list; the "
                                       "download is incomplete")
                outputs = (f"images/{split}/{rgb.replace('/rgb', '')}",
                           f"annotations/{split}/{depth.replace('/sync_depth', '')}")
                todo.append(((folder + rgb, folder + depth), outputs))
        return job.run(pair_items(todo, copy_pair))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
