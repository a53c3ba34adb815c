"""REFUGE optic disc and cup: pictures and masks as PNG, 0 = background, 1 = cup, 2 = disc.

Source: refuge.grand-challenge.org, six archives (Orlando et al., Medical Image Analysis 2020).
Licence: research, by registration.
Expected raw tree (archives in one folder, or unpacked into folders of the same names):
    REFUGE-Training400.zip: Training400/{Glaucoma,Non-Glaucoma}/g0001.jpg
    Annotation-Training400.zip: Annotation-Training400/Disc_Cup_Masks/{Glaucoma,Non-Glaucoma}/g0001.bmp
    REFUGE-Validation400.zip: V0001.jpg      REFUGE-Validation400-GT.zip: Disc_Cup_Masks/V0001.bmp
    REFUGE-Test400.zip: Test400/T0001.jpg    REFUGE-Test-GT.zip: Disc_Cup_Masks/{G,N}/T0001.bmp
Command: python tools/convert_datasets/refuge.py REFUGE --out data/REFUGE
Expected counts: 400 training, 400 validation and 400 test pairs.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

from jseg.data.prepare import ColorTable, Job, Report, Settings, command, convert_pair, pair, pair_items

OUT = "data/REFUGE"
SPLITS = ("training", "validation", "test")
EXPECTED = {f"{kind}/{split}": 400 for split in SPLITS for kind in ("images", "annotations")}
LABELS = ColorTable({(0, 0, 0): 1, (128, 128, 128): 2, (255, 255, 255): 0})


def by_split(found: dict) -> dict[tuple[str, str], str]:
    """Key what was found by (split, stem): the split is named somewhere in the path; illustrations are left out."""
    return {(key[0].lower(), key[1]): name for key, name in found.items() if "illustration" not in name.lower()}


def convert(src, out, settings: Settings = Settings()) -> Report:
    """Convert REFUGE in `src` to `out`."""
    with Job("refuge", src, out, EXPECTED, settings, archives="refuge|training|validation|test") as job:
        pictures = by_split(job.source.find(r"[^/]*(training|validation|test)[^/]*/(?:.+/)?([^/]+)\.jpg",
                                            "pictures", case=False))
        masks = by_split(job.source.find(r"[^/]*(training|validation|test)[^/]*/(?:.+/)?([^/]+)\.bmp",
                                         "masks", case=False))
        job.need({split for split, _ in pictures}, SPLITS)
        todo = [(files, (f"images/{split}/{stem}.png", f"annotations/{split}/{stem}.png"))
                for (split, stem), files in pair(pictures, masks, job.source).items()]
        return job.run(pair_items(todo, convert_pair, label=LABELS))


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT))
