"""CamVid: 32 colours as indices, or the 11 classes that papers report.

Source: mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid, 701_StillsRaw_full.zip and LabeledApproved_full.zip (Brostow
et al., 2009). Licence: research; see the publisher's page.
Expected raw tree (archives or folders):
    701_StillsRaw_full/0001TP_006690.png     LabeledApproved_full/0001TP_006690_L.png
Command: python tools/convert_datasets/camvid.py CamVid --out data/camvid --size 480x360
Expected counts: 367 train, 101 val and 233 test pictures (the split of SegNet's tutorial, which goes by sequence and
frame number). `--classes 11` (default) writes the form that CamVidDataset reads: train/, trainannot/, ... with 0 to 10
and 11 = void. `--classes 32` writes the index of the original class list, 0 to 31, void being 30. `--size` resizes;
default: 960x720 as published.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import ColorTable, Job, Report, Settings, command, convert_pair, pair, pair_items

OUT = "data/camvid"
COUNTS = {"train": 367, "val": 101, "test": 233}
EXPECTED = {f"{split}{kind}": count for split, count in COUNTS.items() for kind in ("", "annot")}
VOID = 11
# class, its colour, its index among the 11; the 32 in the order of the published list
CLASSES = (
    ("Animal", (64, 128, 64), 9), ("Archway", (192, 0, 128), 1), ("Bicyclist", (0, 128, 192), 10),
    ("Bridge", (0, 128, 64), 1), ("Building", (128, 0, 0), 1), ("Car", (64, 0, 128), 8),
    ("CartLuggagePram", (64, 0, 192), 9), ("Child", (192, 128, 64), 9), ("Column_Pole", (192, 192, 128), 2),
    ("Fence", (64, 64, 128), 7), ("LaneMkgsDriv", (128, 0, 192), 3), ("LaneMkgsNonDriv", (192, 0, 64), 3),
    ("Misc_Text", (128, 128, 64), 6), ("MotorcycleScooter", (192, 0, 192), 10),
    ("OtherMoving", (128, 64, 64), 8), ("ParkingBlock", (64, 192, 128), 4), ("Pedestrian", (64, 64, 0), 9),
    ("Road", (128, 64, 128), 3), ("RoadShoulder", (128, 128, 192), 4), ("Sidewalk", (0, 0, 192), 4),
    ("SignSymbol", (192, 128, 128), 6), ("Sky", (128, 128, 128), 0), ("SUVPickupTruck", (64, 128, 192), 8),
    ("TrafficCone", (0, 0, 64), 2), ("TrafficLight", (0, 64, 64), 6), ("Train", (192, 64, 128), 8),
    ("Tree", (128, 128, 0), 5), ("Truck_Bus", (192, 128, 192), 8), ("Tunnel", (64, 0, 64), 1),
    ("VegetationMisc", (192, 192, 0), 5), ("Void", (0, 0, 0), VOID), ("Wall", (64, 192, 0), 1))


def split_of(sequence: str, frame: int) -> str:
    """The split of a picture by its sequence and frame number."""
    if sequence == "0016E5":
        return "val" if 7959 <= frame <= 8159 else "train"
    if sequence == "0001TP":
        return "train" if frame <= 8520 else "test"
    return "test" if sequence == "Seq05VD" else "train"


def convert(src, out, settings: Settings = Settings(), *, classes: int = 11,
            size: tuple[int, int] | None = None) -> Report:
    """Convert CamVid in `src` to `out`.

    Args:
        classes: 11 or 32.
        size: (height, width) to resize to; None keeps the pictures as they are.
    """
    with Job("camvid", src, out, EXPECTED, settings, archives="701|label|camvid") as job:
        pictures = job.source.find(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)\.png", "pictures")
        masks = job.source.find(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)_L\.png", "masks")
        pairs = pair(pictures, masks, job.source)
        split = {key: split_of(key[0], int(key[1])) for key in pairs}
        job.need(split.values(), list(COUNTS))
        stems = {key: files[0].rsplit("/", 1)[-1] for key, files in pairs.items()}
        todo = [(files, (f"{split[key]}/{stems[key]}", f"{split[key]}annot/{stems[key]}"))
                for key, files in pairs.items()]
        colors = {color: place if classes == 32 else label for place, (_, color, label) in enumerate(CLASSES)}
        texts = {f"{name}.txt": [f"{name}/{stems[key]} {name}annot/{stems[key]}" for key in pairs if split[key] == name]
                 for name in COUNTS}
        if classes == 32:
            texts["classes.txt"] = [name for name, _, _ in CLASSES]
        return job.run(pair_items(todo, convert_pair, label=ColorTable(colors), size=size), texts)


def wide_by_high(text: str) -> tuple[int, int]:
    """Turn "480x360" (width x height) into (height, width)."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 480x360") from None
    if min(width, height) < 1:
        raise argparse.ArgumentTypeError("width and height must be at least 1")
    return height, width


def add_arguments(parser) -> None:
    """The options of this converter."""
    parser.add_argument("--classes", type=int, choices=(11, 32), default=11, help="which form to write (default: 11)")
    parser.add_argument("--size", type=wide_by_high, metavar="WxH",
                        help="resize, for example to SegNet's 480x360 (default: keep)")


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
