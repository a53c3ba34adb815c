"""Fakes of the datasets that are cut into tiles: iSAID, Potsdam, Vaihingen, LEVIR-CD. See fake_raw.py."""

from __future__ import annotations

import numpy as np
from fake_encode import encode
from fake_raw import Raw, changed, labels, painted, photo

ISPRS = ((0, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
ISAID = ((0, 0, 0), (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191), (0, 63, 255), (0, 127, 63),
         (0, 127, 127), (0, 0, 127), (0, 0, 191), (0, 0, 255), (0, 191, 127), (0, 127, 191), (0, 127, 255),
         (0, 100, 155))


def isaid() -> Raw:
    """Tiles of 16x16 with an overlap of 4: a picture larger than a tile, one smaller,
    and one of a tile's height but smaller in width.
    """
    raw = Raw(options={"width": 16, "height": 16, "overlap": 4})
    sizes = {("train", "P0000"): (20, 41, (0, 4), (0, 12, 24, 25)), ("train", "P0001"): (10, 12, (0,), (0,)),
             ("val", "P0003"): (33, 16, (0, 12, 17), (0,)), ("val", "P0004"): (40, 9, (0, 12, 24), (0,))}
    for seed, ((split, name), (h, w, tops, lefts)) in enumerate(sizes.items()):
        img, mask = photo(seed, h, w), labels(seed, range(16), h, w)
        raw.files[f"{split}/images/images.zip/images/{name}.png"] = encode(img, "png")
        raw.files[f"{split}/Semantic_masks/images.zip/images/{name}_instance_color_RGB.png"] = encode(
            painted(mask, ISAID), "png")
        img = np.pad(img, [(0, max(16 - h, 0)), (0, max(16 - w, 0)), (0, 0)])
        mask = np.pad(mask, [(0, max(16 - h, 0)), (0, max(16 - w, 0))], constant_values=255)
        for y in tops:
            for x in lefts:
                tile = f"{name}_{y}_{y + 16}_{x}_{x + 16}"
                raw.want[f"img_dir/{split}/{tile}.png"] = img[y:y + 16, x:x + 16]
                raw.want[f"ann_dir/{split}/{tile}_instance_color_RGB.png"] = mask[y:y + 16, x:x + 16]
    test = encode(photo(9), "png")
    raw.files["test/images/images.zip/images/P0006.png"] = raw.want["img_dir/test/P0006.png"] = test
    raw.picture, raw.mask = ("train/images/images.zip/images/P0000.png",
                             "train/Semantic_masks/images.zip/images/P0000_instance_color_RGB.png")
    mask = painted(labels(0, range(16), 20, 41), ISAID)
    raw.unknown, raw.resized, raw.split = encode(changed(mask, (1, 2, 3)), "png"), encode(mask[:, :-1], "png"), "val/"
    return raw


def _isprs(raw: Raw, folder: str, name: str, img: np.ndarray, mask: np.ndarray) -> None:
    """Tiles of 16x16 side by side, the last moved back to the border; sizes are 40 x 52."""
    for y in (0, 16, 24):
        for x in (0, 16, 32, 36):
            tile = f"{name}_{x}_{y}_{x + 16}_{y + 16}.png"
            raw.want[f"img_dir/{folder}/{tile}"] = img[y:y + 16, x:x + 16]
            raw.want[f"ann_dir/{folder}/{tile}"] = mask[y:y + 16, x:x + 16]


def potsdam() -> Raw:
    raw = Raw(options={"size": 16})
    for seed, (split, name) in enumerate((("train", "2_10"), ("train", "6_7"), ("val", "5_15"))):
        img, mask = photo(seed, 40, 52), labels(seed, range(7), 40, 52)
        raw.files[f"2_Ortho_RGB.zip/2_Ortho_RGB/top_potsdam_{name}_RGB.tif"] = encode(img, "tif")
        raw.files[f"5_Labels_all_noBoundary.zip/top_potsdam_{name}_label_noBoundary.tif"] = encode(
            painted(mask, ISPRS), "tif")
        _isprs(raw, split, name, img, mask)
    raw.picture = "2_Ortho_RGB.zip/2_Ortho_RGB/top_potsdam_2_10_RGB.tif"
    raw.mask = "5_Labels_all_noBoundary.zip/top_potsdam_2_10_label_noBoundary.tif"
    mask = painted(labels(0, range(7), 40, 52), ISPRS)
    raw.unknown, raw.resized, raw.split = encode(changed(mask, (252, 255, 0)), "tif"), encode(mask[1:], "tif"), "5_15"
    return raw


def vaihingen() -> Raw:
    raw = Raw(options={"size": 16})
    gt = "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip"
    for seed, (split, name) in enumerate((("train", "area1"), ("train", "area11"), ("val", "area2"), ("", "area9"))):
        img, mask = photo(seed, 40, 52), labels(seed, range(7), 40, 52)
        raw.files[f"{gt}/top_mosaic_09cm_{name}_noBoundary.tif"] = encode(painted(mask, ISPRS), "tif")
        if split:  # the published ground truth has an area9 whose picture does not exist
            raw.files[f"ISPRS_semantic_labeling_Vaihingen.zip/top/top_mosaic_09cm_{name}.tif"] = encode(img, "tif")
            raw.files[f"ISPRS_semantic_labeling_Vaihingen.zip/gts_for_participants/top_mosaic_09cm_{name}.tif"] = (
                encode(painted(mask, ISPRS), "tif"))
            _isprs(raw, split, name, img, mask)
    raw.picture = "ISPRS_semantic_labeling_Vaihingen.zip/top/top_mosaic_09cm_area1.tif"
    raw.mask = f"{gt}/top_mosaic_09cm_area1_noBoundary.tif"
    mask = painted(labels(0, range(7), 40, 52), ISPRS)
    raw.unknown, raw.resized, raw.split = encode(changed(mask, (9, 9, 9)), "tif"), encode(mask[:, 2:], "tif"), "area2"
    return raw


def levircd() -> Raw:
    raw = Raw(options={"size": 16})
    for seed, split in enumerate(("train", "val", "test")):
        name, mask = f"{split}_1", labels(seed, (0, 1), 32, 40)
        parts = {"A": photo(seed, 32, 40), "B": photo(seed + 50, 32, 40), "label": mask * np.uint8(255)}
        for part, array in parts.items():
            raw.files[f"{split}.zip/{split}/{part}/{name}.png"] = encode(array, "png")
            for y in (0, 16):
                for x in (0, 16, 24):
                    raw.want[f"{split}/{part}/{name}_{x}_{y}_{x + 16}_{y + 16}.png"] = (
                        mask if part == "label" else array)[y:y + 16, x:x + 16]
    raw.picture, raw.mask = "train.zip/train/B/train_1.png", "train.zip/train/label/train_1.png"
    mask = labels(0, (0, 1), 32, 40) * np.uint8(255)
    raw.unknown, raw.resized, raw.split = encode(changed(mask, 254), "png"), encode(mask[3:], "png"), "val.zip"
    return raw


FAKES = {fake.__name__: fake for fake in (isaid, potsdam, vaihingen, levircd)}
