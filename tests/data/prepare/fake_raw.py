"""Small fakes of every publisher's download: one function per dataset, which also says what conversion must give.

A path component that ends like an archive becomes one. `FAKES[name]()` returns a `Raw`; nothing here imports the code
under test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
from fake_encode import decode, encode, mat, rle

H, W = 12, 18


@dataclass
class Raw:
    """A faked download.

    Attributes:
        files: path -> bytes.
        want: output path -> exact bytes, an array of indices or RGB, or the lines of a text file.
        picture, mask: path of one picture and of one mask.
        unknown: another mask in place of `mask`, with a value nobody knows; None where every value means something.
        resized: another in its place, of another size.
        split: paths that hold this are missing when a split is missing.
        options: keywords of the converter.
        whole: the counts are the published ones.
        without_split: files that take the place of others when a split is missing, where it stands inside of a file.
    """

    files: dict = field(default_factory=dict)
    want: dict = field(default_factory=dict)
    picture: str = ""
    mask: str = ""
    unknown: bytes | None = None
    resized: bytes = b""
    split: str = ""
    options: dict = field(default_factory=dict)
    whole: bool = False
    without_split: dict = field(default_factory=dict)


def photo(seed: int, h: int = H, w: int = W) -> np.ndarray:
    """(h, w, 3) RGB noise."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def labels(seed: int, values, h: int = H, w: int = W) -> np.ndarray:
    """(h, w) uint8 drawn from `values`, each of which occurs if there is room."""
    values = np.asarray(list(values), np.uint8)
    flat = np.resize(values, h * w)
    return np.random.default_rng(seed).permutation(flat).reshape(h, w)


def painted(mask: np.ndarray, colors) -> np.ndarray:
    """Indices -> RGB."""
    return np.array(colors, np.uint8)[mask]


def vessels(seed: int) -> np.ndarray:
    """(H, W) uint8 with 0, 255 and two values near the threshold."""
    return labels(seed, (0, 0, 255, 127, 128))


def changed(mask: np.ndarray, value) -> np.ndarray:
    """The mask with one pixel changed: row 3, column 5."""
    mask = mask.copy()
    mask[3, 5] = value
    return mask


def ade20k() -> Raw:
    raw, root = Raw(), "ADEChallengeData2016.zip/ADEChallengeData2016"
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(1, count + 1):
            name, mask = f"ADE_{short}_{i:08d}", labels(i, (0, 1, 7, 150))
            jpg = encode(photo(i), "jpg")
            raw.files.update({f"{root}/images/{split}/{name}.jpg": jpg,
                              f"{root}/annotations/{split}/{name}.png": encode(mask, "png")})
            raw.want.update({f"images/{split}/{name}.jpg": jpg, f"annotations/{split}/{name}.png": mask})
    raw.files[f"{root}/objectInfo150.txt"] = b"Idx\n"
    raw.picture, raw.mask = (f"{root}/images/training/ADE_train_00000002.jpg",
                             f"{root}/annotations/training/ADE_train_00000002.png")
    raw.unknown, raw.resized = encode(changed(labels(2, (0, 1, 7, 150)), 151),
                                      "png"), encode(labels(2, (0, 1), H + 1), "png")
    raw.split = "/validation/"
    return raw


CITY_IDS = {0: 255, 3: 255, 7: 0, 8: 1, 11: 2, 23: 10, 26: 13, 33: 18}
CITY_NAMES = {"road": 0, "sky": 10, "cargroup": 13, "static": 255, "license plate": None, "bicycle": 18}


def cityscapes() -> Raw:
    """Label ids and polygons that say the same: rectangles, whose pixels every drawing library agrees on."""
    raw = Raw()
    numbers = {0: 7, 10: 23, 13: 26, 255: 4, 18: 33}
    for split, city, count in (("train", "aachen", 2), ("val", "frankfurt", 1), ("test", "berlin", 1)):
        for i in range(count):
            name, ids, train, objects = (f"{city}_{i:06d}_000019", np.zeros((H, W), np.uint8),
                                         np.full((H, W), 255, np.uint8), [])
            for place, (label, number) in enumerate(CITY_NAMES.items()):
                top, left = place + i, 2 * place
                corners = [[left, top], [left + 6, top], [left + 6, top + 4], [left, top + 4]]
                objects.append({"label": label, "polygon": corners})
                if number is not None:
                    ids[top:top + 5, left:left + 7], train[top:top + 5, left:left + 7] = numbers[number], number
            objects.append({"label": "road", "deleted": 1, "polygon": [[0, 0], [17, 0], [17, 11]]})
            png, base = encode(photo(i + len(city)),
                               "png"), f"gtFine_trainvaltest.zip/gtFine/{split}/{city}/{name}_gtFine"
            raw.files[f"leftImg8bit_trainvaltest.zip/leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"] = png
            raw.files[f"{base}_labelIds.png"] = encode(ids, "png")
            raw.files[f"{base}_instanceIds.png"] = encode(ids, "png")
            raw.files[f"{base}_polygons.json"] = json.dumps({"imgHeight": H, "imgWidth": W,
                                                             "objects": objects}).encode()
            raw.want[f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"] = png
            raw.want[f"gtFine/{split}/{city}/{name}_gtFine_labelTrainIds.png"] = train
        raw.want[f"{split}.txt"] = [f"{city}/{city}_{i:06d}_000019" for i in range(count)]
    raw.picture = "leftImg8bit_trainvaltest.zip/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    raw.mask = "gtFine_trainvaltest.zip/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    mask = decode(raw.files[raw.mask])
    raw.unknown, raw.resized, raw.split = encode(changed(mask, 77), "png"), encode(mask[:-1], "png"), "/val/"
    return raw


def coco_stuff10k() -> Raw:
    raw, root = Raw(), "cocostuff-10k-v1.1.zip"
    lists: dict[str, list[str]] = {"train": [], "test": []}
    ids = {0: 0, 1: 1, 13: 12, 92: 81, 182: 171}
    for i in range(4):
        name, split = f"COCO_train2014_{i:012d}", "train" if i < 3 else "test"
        lists[split].append(name)
        mask, jpg = labels(i, ids), encode(photo(i), "jpg")
        raw.files[f"{root}/images/{name}.jpg"] = jpg
        raw.files[f"{root}/annotations/{name}.mat"] = coco_mat(mask)
        raw.want[f"images/{split}2014/{name}.jpg"] = jpg
        raw.want[f"annotations/{split}2014/{name}_labelTrainIds.png"] = np.vectorize(ids.get)(mask).astype(np.uint8)
    for split, names in lists.items():
        raw.files[f"{root}/imageLists/{split}.txt"] = "\n".join(names).encode()
    raw.picture, raw.mask = (f"{root}/{part}/COCO_train2014_000000000001.{end}"
                             for part, end in (("images", "jpg"), ("annotations", "mat")))
    raw.unknown, raw.resized = coco_mat(changed(labels(1, ids), 12)), coco_mat(labels(1, ids, H, W + 2))
    raw.split = "imageLists/test"
    return raw


def coco_mat(mask: np.ndarray) -> bytes:
    """A mask file of COCO-Stuff 10k: the ids, the names of all classes, captions."""
    return mat({"S": mask.astype(np.uint16), "regionLabelsStuff": np.array([[1.0], [92.0]]),
                "captions": [np.zeros((1, 2), np.uint8)]})


def coco_stuff164k() -> Raw:
    raw = Raw()
    ids = {0: 0, 10: 10, 12: 11, 91: 80, 181: 170, 255: 255}
    for split, count in (("train2017", 3), ("val2017", 2)):
        for i in range(count):
            name, mask, jpg = f"{i:012d}", labels(i + count, ids), encode(photo(i + count), "jpg")
            raw.files[f"{split}.zip/{split}/{name}.jpg"] = jpg
            raw.files[f"stuffthingmaps_trainval2017.zip/{split}/{name}.png"] = encode(mask, "png")
            raw.want[f"images/{split}/{name}.jpg"] = jpg
            raw.want[f"annotations/{split}/{name}_labelTrainIds.png"] = np.vectorize(ids.get)(mask).astype(np.uint8)
    raw.picture, raw.mask = ("train2017.zip/train2017/000000000000.jpg",
                             "stuffthingmaps_trainval2017.zip/train2017/000000000000.png")
    raw.unknown, raw.resized = encode(changed(labels(3, ids), 11), "png"), encode(labels(3, ids, H, W - 3), "png")
    raw.split = "val2017/"
    return raw


def indexed(mask: np.ndarray) -> bytes:
    """A palette PNG as VOC has them."""
    import io

    from PIL import Image
    picture, buffer = Image.fromarray(mask), io.BytesIO()
    picture.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def voc2012() -> Raw:
    raw, root = Raw(), "VOCtrainval_11-May-2012.tar/VOCdevkit/VOC2012"
    lists = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    for i, name in enumerate([*lists["train"], *lists["val"], "2008_000099"]):
        jpg = encode(photo(i), "jpg")
        raw.files[f"{root}/JPEGImages/{name}.jpg"] = jpg
        if i < 3:
            mask = labels(i, (0, 1, 20, 255))
            raw.files[f"{root}/SegmentationClass/{name}.png"] = indexed(mask)
            raw.want.update({f"JPEGImages/{name}.jpg": jpg, f"SegmentationClass/{name}.png": mask})
    for split, names in lists.items():
        raw.files[f"{root}/ImageSets/Segmentation/{split}.txt"] = "\n".join(names).encode()
        raw.want[f"ImageSets/Segmentation/{split}.txt"] = names
    raw.want["ImageSets/Segmentation/trainval.txt"] = sorted(lists["train"] + lists["val"])
    raw.picture, raw.mask = f"{root}/JPEGImages/2007_000039.jpg", f"{root}/SegmentationClass/2007_000039.png"
    raw.unknown, raw.resized, raw.split = (indexed(changed(labels(1, (0, 1)), 21)), indexed(labels(1, (0, 1), H - 1)),
                                           "Segmentation/val")
    return raw


def sbd_mat(mask: np.ndarray) -> bytes:
    """A mask file of SBD."""
    return mat({"GTcls": {"Boundaries": [np.zeros((2, 2), np.uint8)], "Segmentation": mask,
                          "CategoriesPresent": np.array([[1.0]])}})


def voc_aug() -> Raw:
    """SBD has one VOC train picture, one VOC val picture and two of its own; one VOC train picture is missing in it."""
    raw, root, sbd = (voc2012(), "VOCtrainval_11-May-2012.tar/VOCdevkit/VOC2012",
                      "benchmark.tgz/benchmark_RELEASE/dataset")
    jpg = encode(photo(77), "jpg")
    raw.files[f"{root}/JPEGImages/2008_000002.jpg"] = jpg
    raw.want.update({"JPEGImages/2008_000002.jpg": jpg,
                     "JPEGImages/2008_000099.jpg": raw.files[f"{root}/JPEGImages/2008_000099.jpg"]})
    for i, name in enumerate(("2007_000032", "2007_000033", "2008_000099", "2008_000002")):
        mask = labels(40 + i, (0, 5, 20))
        raw.files[f"{sbd}/cls/{name}.mat"] = sbd_mat(mask)
        raw.want[f"SegmentationClassAug/{name}.png"] = mask
    raw.files.update({f"{sbd}/train.txt": b"2007_000032\n2008_000099\n",
                      f"{sbd}/val.txt": b"2007_000033\n2008_000002\n"})
    raw.want["SegmentationClassAug/2007_000039.png"] = raw.want["SegmentationClass/2007_000039.png"]
    raw.want["ImageSets/Segmentation/trainaug.txt"] = ["2007_000032", "2007_000039", "2008_000002", "2008_000099"]
    raw.want["ImageSets/Segmentation/aug.txt"] = ["2008_000002", "2008_000099"]
    del raw.want["ImageSets/Segmentation/trainval.txt"]
    raw.picture, raw.mask = f"{root}/JPEGImages/2008_000002.jpg", f"{sbd}/cls/2008_000002.mat"
    raw.unknown, raw.resized = sbd_mat(changed(labels(43, (0, 5, 20)), 21)), sbd_mat(labels(43, (0, 5), H, W - 1))
    return raw


def pascal_context(kind: str = "mat") -> Raw:
    raw, root = Raw(), "VOCtrainval_03-May-2010.tar/VOCdevkit/VOC2010"
    ids = {2: 1, 9: 2, 259: 35, 284: 37, 458: 59, **({1: 0, 459: 0} if kind == "mat" else {0: 0})}
    lists = {"train": ["2008_000002", "2008_000007"], "val": ["2008_000003"]}
    notes: dict[str, list] = {"images": [], "annos_segmentation": [], "annos_occlusion": [],
                              "annos_boundary": [], "parts": [],
                              "categories": [{"category_id": number, "name": str(number), "onlysemantic": 1}
                                             for number in ids if number]}
    for i, (split, name) in enumerate((split, name) for split, names in lists.items() for name in names):
        mask = np.random.default_rng(i).choice(list(ids), (H, W)).astype(np.uint16)
        jpg = encode(photo(i), "jpg")
        raw.files[f"{root}/JPEGImages/{name}.jpg"] = jpg
        if kind == "mat":
            raw.files[f"trainval.tar.gz/trainval/{name}.mat"] = mat({"LabelMap": mask})
        number = int(name.replace("_", ""))
        notes["images"].append({"image_id": number, "file_name": f"{name}.jpg", "phase": split,
                                "height": H, "width": W})
        for key in ids:
            if key and (mask == key).any():
                notes["annos_segmentation"].append({"id": len(notes["annos_segmentation"]), "image_id": number,
                                                    "category_id": key, "iscrowd": 0, "area": 1,
                                                    "segmentation": rle(mask == key)})
        raw.want.update({f"JPEGImages/{name}.jpg": jpg,
                         f"SegmentationClassContext/{name}.png": np.vectorize(ids.get)(mask).astype(np.uint8)})
    for split, names in lists.items():
        raw.files[f"{root}/ImageSets/Main/{split}.txt"] = "\n".join([*names, "2009_111111"]).encode()
        raw.want[f"ImageSets/SegmentationContext/{split}.txt"] = names
    raw.picture, raw.mask, raw.split = (f"{root}/JPEGImages/2008_000007.jpg",
                                        "trainval.tar.gz/trainval/2008_000007.mat", "Main/val")
    raw.unknown, raw.resized = (mat({"LabelMap": np.full((H, W), 460, np.uint16)}),
                                mat({"LabelMap": np.full((H + 1, W), 2, np.uint16)}))
    if kind == "json":
        raw.mask = "trainval_merged.json"
        raw.files[raw.mask] = json.dumps(notes).encode()
        raw.without_split = {
            raw.mask: json.dumps({**notes, "images": [i for i in notes["images"] if i["phase"] == "train"],
                                  "annos_segmentation": [a for a in notes["annos_segmentation"]
                                                         if a["image_id"] != 2008000003]}).encode()}
        first, *rest = notes["annos_segmentation"]
        raw.unknown = json.dumps({**notes, "annos_segmentation": [{**first, "category_id": 3}, *rest]}).encode()
        larger = [{**a, "segmentation": rle(np.ones((H + 1, W), bool))} if a["image_id"] == first["image_id"] else a
                  for a in notes["annos_segmentation"]]
        raw.resized = json.dumps({**notes, "annos_segmentation": larger,
                                  "images": [{**i, "height": H + (i["image_id"] == first["image_id"])}
                                             for i in notes["images"]]}).encode()
    return raw


def pascal_context_json() -> Raw:
    return pascal_context("json")


def loveda() -> Raw:
    raw = Raw()
    for place, (split, area) in enumerate((s, a) for s in ("Train", "Val", "Test") for a in ("Rural", "Urban")):
        name, png, mask = f"{2500 + place}", encode(photo(place), "png"), labels(place, range(8))
        raw.files[f"{split}.zip/{split}/{area}/images_png/{name}.png"] = png
        raw.want[f"img_dir/{split.lower()}/{name}.png"] = png
        if split != "Test":
            raw.files[f"{split}.zip/{split}/{area}/masks_png/{name}.png"] = encode(mask, "png")
            raw.want[f"ann_dir/{split.lower()}/{name}.png"] = mask
    raw.picture, raw.mask = "Train.zip/Train/Urban/images_png/2501.png", "Train.zip/Train/Urban/masks_png/2501.png"
    raw.unknown, raw.resized, raw.split = encode(changed(labels(1, range(8)), 8),
                                                 "png"), encode(labels(1, (1,), 5, 5), "png"), "Val.zip"
    return raw


FAKES = {fake.__name__: fake for fake in (ade20k, cityscapes, coco_stuff10k, coco_stuff164k, voc2012, voc_aug,
                                          pascal_context, pascal_context_json, loveda)}
