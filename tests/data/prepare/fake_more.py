"""Fakes of the retina sets, NYU, REFUGE, Synapse, CamVid and of people's own annotations. See fake_raw.py."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
from fake_encode import decode, encode, nifti, rle
from fake_raw import H, W, Raw, changed, labels, painted, photo, vessels
from PIL import Image


def binary(mask: np.ndarray) -> np.ndarray:
    """What a black-and-white mask means."""
    return (mask >= 128).astype(np.uint8)


def chase_db1() -> Raw:
    raw = Raw(whole=True)
    for number in range(1, 15):
        for place, eye in enumerate("LR"):
            name, split, seed = (f"Image_{number:02d}{eye}", "training" if number <= 10 else "validation",
                                 10 * number + place)
            raw.files[f"CHASEDB1.zip/{name}.jpg"] = jpg = encode(photo(seed), "jpg")
            raw.want[f"images/{split}/{name}.png"] = decode(jpg)
            for observer in ("1stHO", "2ndHO"):
                mask = vessels(seed + len(raw.files))
                raw.files[f"CHASEDB1.zip/{name}_{observer}.png"] = encode(mask, "png")
                raw.want[f"annotations/{split}/{name}_{observer}.png"] = binary(mask)
    raw.picture, raw.mask = "CHASEDB1.zip/Image_02L.jpg", "CHASEDB1.zip/Image_02L_1stHO.png"
    raw.resized, raw.split = encode(vessels(0)[1:], "png"), "Image_1"
    return raw


def drive() -> Raw:
    raw = Raw()
    for split, out, numbers, observers in (("training", "training", (21, 22), "1"),
                                           ("test", "validation", (1, 2), "12")):
        for number in numbers:
            tif = encode(photo(number), "tif")
            raw.files[f"{split}.zip/{split}/images/{number:02d}_{split}.tif"] = tif
            raw.files[f"{split}.zip/{split}/mask/{number:02d}_{split}_mask.gif"] = encode(vessels(0), "gif")
            raw.want[f"images/{out}/{number:02d}.png"] = decode(tif)
            for observer in observers:
                mask = labels(number + int(observer), (0, 255))
                place = f"{split}.zip/{split}/{'1st' if observer == '1' else '2nd'}_manual"
                raw.files[f"{place}/{number:02d}_manual{observer}.gif"] = encode(mask, "gif")
                raw.want[f"annotations/{out}/{number:02d}_manual{observer}.png"] = binary(mask)
    raw.picture, raw.mask = ("training.zip/training/images/21_training.tif",
                             "training.zip/training/1st_manual/21_manual1.gif")
    raw.resized, raw.split = encode(vessels(0)[:, 1:], "gif"), "test.zip"
    return raw


def hrf() -> Raw:
    raw = Raw(whole=True)
    for kind, archive, end in (("h", "healthy", "jpg"), ("g", "glaucoma", "jpg"),
                               ("dr", "diabetic_retinopathy", "JPG")):
        for number in range(1, 16):
            name, split, mask = (f"{number:02d}_{kind}", "training" if number <= 5 else "validation",
                                 vessels(number + len(kind)))
            raw.files[f"{archive}.zip/{name}.{end}"] = jpg = encode(photo(number), "jpg")
            raw.files[f"{archive}_manualsegm.zip/{name}.tif"] = encode(mask, "tif")
            raw.want.update({f"images/{split}/{name}.png": decode(jpg),
                             f"annotations/{split}/{name}.png": binary(mask)})
    raw.picture, raw.mask = "healthy.zip/02_h.jpg", "healthy_manualsegm.zip/02_h.tif"
    raw.resized, raw.split = encode(vessels(0)[2:], "tif"), "glaucoma"
    return raw


def stare() -> Raw:
    raw = Raw(whole=True)
    numbers = [1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324]
    for place, number in enumerate(numbers):
        name, split, img = f"im{number:04d}", "training" if place < 10 else "validation", photo(number)
        raw.files[f"stare-images.tar/{name}.ppm.gz"] = gzip.compress(encode(img, "ppm"), mtime=0)
        raw.want[f"images/{split}/{name}.png"] = img
        for observer in ("ah", "vk"):
            mask = vessels(number + len(raw.files))
            raw.files[f"labels-{observer}.tar/{name}.{observer}.ppm.gz"] = gzip.compress(
                encode(np.dstack([mask] * 3), "ppm"), mtime=0)
            raw.want[f"annotations/{split}/{name}.{observer}.png"] = binary(mask)
    raw.picture, raw.mask = "stare-images.tar/im0002.ppm.gz", "labels-ah.tar/im0002.ah.ppm.gz"
    raw.resized, raw.split = gzip.compress(encode(photo(0)[1:], "ppm"), mtime=0), "labels-vk"
    return raw


def nyu() -> Raw:
    raw = Raw()
    for split, scenes in (("train", ("kitchen_0028b", "office_0003")), ("test", ("bathroom_0001",))):
        lines = []
        for seed, scene in enumerate(scenes):
            rgb, depth = f"{scene}/rgb_00045.jpg", f"{scene}/sync_depth_00045.png"
            jpg, buffer = encode(photo(seed), "jpg"), io.BytesIO()
            Image.fromarray(np.arange(H * W, dtype=np.uint16).reshape(H, W) * 40).save(buffer, "PNG")
            raw.files.update({f"nyu.zip/nyu/{rgb}": jpg, f"nyu.zip/nyu/{depth}": buffer.getvalue()})
            raw.want.update({f"images/{split}/{scene}_00045.jpg": jpg,
                             f"annotations/{split}/{scene}_00045.png": buffer.getvalue()})
            lines.append(f"/{rgb} /{depth} 518.8579")
        raw.files[f"nyu.zip/nyu/nyu_{split}.txt"] = "\n".join([*lines, ""]).encode()
    raw.picture, raw.mask = "nyu.zip/nyu/office_0003/rgb_00045.jpg", "nyu.zip/nyu/office_0003/sync_depth_00045.png"
    raw.resized, raw.split = encode(labels(0, (1,), 3, 3), "png"), "nyu_test"
    return raw


def refuge() -> Raw:
    raw = Raw()
    grey, train = (255, 0, 128), "Annotation-Training400.zip/Annotation-Training400/Disc_Cup_Masks"
    trees = {"training": [("REFUGE-Training400.zip/Training400/Glaucoma/g0001", f"{train}/Glaucoma/g0001"),
                          ("REFUGE-Training400.zip/Training400/Non-Glaucoma/n0001", f"{train}/Non-Glaucoma/n0001")],
             "validation": [("REFUGE-Validation400.zip/REFUGE-Validation400/V0001",
                             "REFUGE-Validation400-GT.zip/Disc_Cup_Masks/V0001")],
             "test": [("REFUGE-Test400.zip/Test400/T0001", "REFUGE-Test-GT.zip/Disc_Cup_Masks/G/T0001")]}
    for split, entries in trees.items():
        for seed, (picture, where) in enumerate(entries):
            name, mask, jpg = (picture.rsplit("/", 1)[1], labels(seed + len(split), (0, 1, 2)),
                               encode(photo(seed), "jpg"))
            raw.files.update({f"{picture}.jpg": jpg, f"{where}.bmp": encode(np.array(grey, np.uint8)[mask], "bmp")})
            raw.want.update({f"images/{split}/{name}.png": decode(jpg), f"annotations/{split}/{name}.png": mask})
    raw.picture, raw.mask = "REFUGE-Training400.zip/Training400/Glaucoma/g0001.jpg", f"{train}/Glaucoma/g0001.bmp"
    mask = np.array(grey, np.uint8)[labels(8, (0, 1, 2))]
    raw.unknown, raw.resized, raw.split = encode(changed(mask, 127), "bmp"), encode(mask[1:], "bmp"), "Test"
    return raw


def synapse() -> Raw:
    """Scans of 6 x 5 x 3 voxels; numbers of the organs as in BTCV."""
    raw = Raw()
    organs = {0: 0, 1: 7, 2: 4, 3: 3, 4: 2, 5: 0, 6: 5, 7: 8, 8: 1, 11: 6, 13: 0}
    for split, numbers in (("train", ("0005", "0006")), ("val", ("0001",))):
        raw.files[f"{split}.txt"] = "".join(f"img{number}.nii.gz\n" for number in numbers).encode()
        for number in numbers:
            rng = np.random.default_rng(int(number))
            scan, mask = (rng.integers(-400, 500, (6, 5, 3)).astype(np.int16),
                          rng.choice(list(organs), (6, 5, 3)).astype(np.int16))
            raw.files.update({f"img/img{number}.nii.gz": nifti(scan), f"label/label{number}.nii.gz": nifti(mask)})
            for z in range(3):
                grey = ((np.clip(scan[:, ::-1, z], -125, 275) + 125) / 400 * 255).astype(np.float32).astype(
                    np.uint8)  # (6, 5)
                buffer = io.BytesIO()
                Image.fromarray(np.dstack([grey] * 3)).save(buffer, "JPEG")
                raw.want[f"img_dir/{split}/case{number}_slice{z:03d}.jpg"] = buffer.getvalue()
                raw.want[f"ann_dir/{split}/case{number}_slice{z:03d}.png"] = np.vectorize(organs.get)(
                    mask[:, ::-1, z]).astype(np.uint8)
    raw.picture, raw.mask, raw.split = "img/img0006.nii.gz", "label/label0006.nii.gz", "val.txt"
    raw.unknown, raw.resized = nifti(np.full((6, 5, 3), 14)), nifti(np.zeros((6, 4, 3)))
    return raw


CAMVID = {"Sky": ((128, 128, 128), 0), "Wall": ((64, 192, 0), 1), "Column_Pole": ((192, 192, 128), 2),
          "LaneMkgsDriv": ((128, 0, 192), 3), "Child": ((192, 128, 64), 9), "Void": ((0, 0, 0), 11),
          "MotorcycleScooter": ((192, 0, 192), 10)}


def camvid() -> Raw:
    raw = Raw()
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    frames = (("0001TP_006690", "train"), ("0001TP_008550", "test"), ("0006R0_f00930", "train"),
              ("0016E5_07957", "train"), ("0016E5_07959", "val"), ("Seq05VD_f00000", "test"))
    for seed, (name, split) in enumerate(frames):
        mask, png = labels(seed, range(len(CAMVID))), encode(photo(seed), "png")
        raw.files[f"701_StillsRaw_full.zip/701_StillsRaw_full/{name}.png"] = png
        raw.files[f"LabeledApproved_full.zip/{name}_L.png"] = encode(
            painted(mask, [color for color, _ in CAMVID.values()]), "png")
        raw.want[f"{split}/{name}.png"] = png
        raw.want[f"{split}annot/{name}.png"] = np.array([label for _, label in CAMVID.values()], np.uint8)[mask]
        lists[split].append(f"{split}/{name}.png {split}annot/{name}.png")
    raw.want.update({f"{split}.txt": lines for split, lines in lists.items()})
    raw.picture, raw.mask = ("701_StillsRaw_full.zip/701_StillsRaw_full/0016E5_07957.png",
                             "LabeledApproved_full.zip/0016E5_07957_L.png")
    mask = painted(labels(3, (0, 1)), [(128, 128, 128), (64, 192, 0)])
    raw.unknown, raw.resized, raw.split = (encode(changed(mask, (1, 1, 1)), "png"), encode(mask[:5], "png"),
                                           "0016E5_07959")
    return raw


def labelme() -> Raw:
    raw = Raw()
    shapes = [{"label": "roof", "points": [[2, 1], [9, 1], [9, 6], [2, 6]], "shape_type": "polygon"},
              {"label": "tree", "points": [[5, 4], [12, 9]], "shape_type": "rectangle"},
              {"label": "__ignore__", "points": [[15, 10], [17, 11]], "shape_type": "rectangle"}]
    mask = np.zeros((H, W), np.uint8)
    mask[1:7, 2:10], mask[4:10, 5:13], mask[10:12, 15:18] = 1, 2, 255
    for seed, name in enumerate(("a", "town/b")):
        jpg = encode(photo(seed), "jpg")
        raw.files[f"{name}.jpg"] = jpg
        raw.files[f"{name}.json"] = json.dumps({"imagePath": "x.jpg", "imageData": None, "imageHeight": H,
                                                "imageWidth": W, "shapes": shapes}).encode()
        raw.want.update({f"images/{name}.jpg": jpg, f"masks/{name}.png": mask})
    raw.want["classes.txt"] = ["background", "roof", "tree"]
    raw.options = {"classes": ("background", "roof", "tree")}
    raw.picture, raw.mask = "town/b.jpg", "town/b.json"
    notes = json.loads(raw.files["town/b.json"])
    raw.resized = json.dumps({**notes, "imageHeight": H + 1}).encode()
    notes["shapes"][0]["label"] = "roofs"
    raw.unknown, raw.split = json.dumps(notes).encode(), "a.jpg"
    return raw


def coco_json() -> Raw:
    raw = Raw()
    big, small = np.zeros((H, W), bool), np.zeros((H, W), bool)
    big[1:9, 2:12], small[3:5, 4:7] = True, True
    mask = np.where(small, 1, np.where(big, 2, 0)).astype(np.uint8)
    notes = {"categories": [{"id": 7, "name": "tree"}, {"id": 3, "name": "roof"}], "images": [], "annotations": []}
    for number, name in enumerate(("a.jpg", "b.jpg")):
        raw.files[f"pictures/{name}"] = raw.want[f"images/{name}"] = encode(photo(number), "jpg")
        notes["images"].append({"id": number, "file_name": name, "height": H, "width": W})
        notes["annotations"] += [{"id": 2 * number, "image_id": number, "category_id": 3,
                                  "segmentation": rle(small), "area": 0},
                                 {"id": 2 * number + 1, "image_id": number, "category_id": 7,
                                  "segmentation": [[2, 1, 11, 1, 11, 8, 2, 8]]}]
        raw.want[f"masks/{name[0]}.png"] = mask
    raw.files["instances.json"] = json.dumps(notes).encode()
    raw.want["classes.txt"] = ["background", "roof", "tree"]
    raw.picture, raw.mask = "pictures/b.jpg", "instances.json"
    raw.resized = json.dumps({**notes, "images": [{**image, "width": W + 1} for image in notes["images"]]}).encode()
    notes["annotations"][0]["category_id"] = 8
    raw.unknown, raw.split = json.dumps(notes).encode(), "a.jpg"
    return raw


FAKES = {fake.__name__: fake for fake in (chase_db1, drive, hrf, stare, nyu, refuge, synapse, camvid,
                                          labelme, coco_json)}
