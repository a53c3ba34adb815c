"""Compare the dataset converters with MMSegmentation 1.2.2's own scripts: both run on the same faked download.

Run by hand where mmsegmentation, SciPy, nibabel and cityscapesscripts are installed (no Jittor, no mmcv ops needed):

    python tests/parity/converters_mmseg.py [NAME ...]

Each script must give the same files with the same pixels; the deliberate differences are listed in `EXCUSED` with their
reasons, and in docs/datasets.md. Exit status 1 if anything else differs. The fakes are those of tests/data/prepare.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import pathlib
import re
import sys
import tempfile
import time
import types

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data" / "prepare"), str(ROOT / "tools" / "convert_datasets")]

import fake_more
import fake_raw
import fake_tiles
from fake_encode import write_tree

from jseg.data.prepare import Settings

FAKES = {**fake_raw.FAKES, **fake_tiles.FAKES, **fake_more.FAKES}
SHARED = pathlib.Path(os.environ.get("JSEG_TEST_DATA", ROOT.parent / "shared" / "data")) / "raw"
# asserted in the scripts
LENGTHS = {"coco_stuff10k": {"COCO_LEN": 4}, "coco_stuff164k": {"COCO_LEN": 5}, "voc_aug": {"AUG_LEN": 4}}
# How the faked tree must be renamed to be what MMSegmentation's script reads: (pattern, replacement); "" drops a file.
LAYOUT = {
    "cityscapes": [(r"^[^/]+\.zip/", "")],
    "coco_stuff10k": [(r"^[^/]+\.zip/", "")],
    "coco_stuff164k": [(r"^(train|val)2017\.zip/", "images/"), (r"^stuffthingmaps\w+\.zip/", "annotations/")],
    "voc_aug": [(r"^VOC[^/]+\.tar/", ""), (r"^benchmark\.tgz/", "")],
    "pascal_context": [(r"^VOC[^/]+\.tar/", "")],
    "levircd": [(r"^\w+\.zip/", "")],
}
# Words of the script's command line; {raw} and {out} are folders.
WORDS = {
    "cityscapes": "{raw} -o {out}", "coco_stuff10k": "{raw} -o {out} --nproc 1",
    "coco_stuff164k": "{raw} -o {out} --nproc 1", "voc_aug": "{raw}/VOCdevkit {raw}/benchmark_RELEASE -o {out}",
    "isaid": "{raw} -o {out} --patch_width 16 --patch_height 16 --overlap_area 4",
    "pascal_context": "{raw}/VOCdevkit {raw}/trainval_merged.json -o {out}", "loveda": "{raw} -o {out}",
    "potsdam": "{raw} -o {out} --clip_size 16 --stride_size 8",
    "vaihingen": "{raw} -o {out} --clip_size 16 --stride_size 8",
    "levircd": "--dataset_path {raw} -o {out} --clip_size 16 --stride_size 16",
    "chase_db1": "{raw}/CHASEDB1.zip -o {out}", "drive": "{raw}/training.zip {raw}/test.zip -o {out}",
    "nyu": "{raw}/nyu.zip -o {out}", "refuge": "--raw_data_root {raw} -o {out}",
    "stare": "{raw}/stare-images.tar {raw}/labels-ah.tar {raw}/labels-vk.tar -o {out}",
    "synapse": "--dataset-path {raw} --save-path {out}", "real_isaid": "{raw} -o {out}",
    "hrf": "{raw}/healthy.zip {raw}/healthy_manualsegm.zip {raw}/glaucoma.zip {raw}/glaucoma_manualsegm.zip "
           "{raw}/diabetic_retinopathy.zip {raw}/diabetic_retinopathy_manualsegm.zip -o {out}"}
# Files that differ on purpose: (pattern, reason).
EXCUSED = {
    "cityscapes": [(r"^leftImg8bit/", "ours copies (or links) the pictures, upstream leaves them in the raw tree")],
    "voc_aug": [(r"^(JPEGImages|SegmentationClass)/", "ours makes a complete folder, upstream adds to the raw tree"),
                (r"^SegmentationClassAug/2007_000039", "a VOC train mask that SBD lacks but trainaug.txt names: "
                                                       "upstream leaves it out"),
                (r"^ImageSets/Segmentation/(train|val)\.txt", "ours copies the lists")],
    "pascal_context": [(r"^JPEGImages/", "ours makes a complete folder, upstream adds to the raw tree")],
    "isaid_odd": [(r"^(img|ann)_dir/train/P0001_", "a picture as wide as a tile and lower: upstream compares with < "
                   "and >, so it is not filled up and the tile is cut from a negative row")],
}


def isaid_odd() -> fake_raw.Raw:
    """iSAID with a picture exactly as wide as a tile, but lower: where upstream's comparisons have a gap."""
    raw = fake_tiles.isaid()
    img, mask = fake_raw.photo(5, 9, 16), fake_raw.labels(5, range(16), 9, 16)
    from fake_encode import encode
    raw.files["train/images/images.zip/images/P0001.png"] = encode(img, "png")
    raw.files["train/Semantic_masks/images.zip/images/P0001_instance_color_RGB.png"] = encode(
        fake_raw.painted(mask, fake_tiles.ISAID), "png")
    return raw


def real_isaid() -> fake_raw.Raw:
    """Real pictures as iSAID publishes them, cut at the default size; one of them stands in for the test split."""
    raw = fake_raw.Raw()
    for path in SHARED.glob("isaid/*/images/P*.png"):
        split = path.parent.parent.name
        if path.stem.endswith("_instance_color_RGB"):
            raw.files[f"{split}/Semantic_masks/images.zip/images/{path.name}"] = path.read_bytes()
        elif "_" not in path.stem:
            raw.files[f"{split}/images/part1.zip/images/{path.name}"] = path.read_bytes()
            raw.files.setdefault("test/images/part1.zip/images/P9999.png", path.read_bytes())
    return raw


def real_drive() -> fake_raw.Raw:
    """Real pictures in DRIVE's two archives."""
    files = {path.relative_to(SHARED / "drive") for path in SHARED.glob("drive/*/*/*.*")}
    return fake_raw.Raw({f"{path.parts[0]}.zip/{path}": (SHARED / "drive" / path).read_bytes()
                         for path in sorted(files)})


def real_coco_stuff164k() -> fake_raw.Raw:
    """Real pictures in the three archives of COCO-Stuff 164k."""
    raw = fake_raw.Raw()
    for path in SHARED.glob("coco_stuff/*/*/*.*"):
        archive = "stuffthingmaps_trainval2017.zip" if path.suffix == ".png" else f"{path.parent.name}.zip"
        raw.files[f"{archive}/{path.parent.name}/{path.name}"] = path.read_bytes()
    return raw


REAL = {"real_isaid": real_isaid, "real_drive": real_drive, "real_coco_stuff164k": real_coco_stuff164k}


def detail_stub() -> types.ModuleType:
    """Stands in for the PASCAL in Detail API: the two calls the script makes;
    run lengths are decoded by counting, not by our decoder.
    """
    import json

    class Detail:
        def __init__(self, path, folder, phase):
            notes = json.load(open(path))
            self.images = [image for image in notes["images"] if image["phase"] == phase]
            self.segments = notes["annos_segmentation"]

        def getImgs(self):
            return self.images

        def getMask(self, image):
            mask = np.zeros((image["height"], image["width"]))
            for segment in self.segments:
                if segment["image_id"] == image["image_id"]:
                    mask[plain_rle(segment["segmentation"])] = segment["category_id"]
            return mask

    module = types.ModuleType("detail")
    module.Detail = Detail
    return module


def plain_rle(segment: dict) -> np.ndarray:
    """Decode COCO's compressed run lengths by the letter of its format."""
    counts, numbers, bits, value = segment["counts"], [], 0, 0
    for letter in counts:
        code = ord(letter) - 48
        value += (code & 31) << bits
        bits += 5
        if not code & 32:
            numbers.append(value - ((1 << bits) if code & 16 else 0))
            bits = value = 0
    for place in range(3, len(numbers)):
        numbers[place] += numbers[place - 2]
    flat, ink = [], False
    for number in numbers:
        flat += [ink] * number
        ink = not ink
    height, width = segment["size"]
    return np.array(flat).reshape(width, height).T


def run_theirs(name: str, script: str, raw: pathlib.Path, out: pathlib.Path) -> None:
    """Run MMSegmentation's script in this process, with the asserted lengths of its datasets set to the fake's."""
    import mmseg
    path = pathlib.Path(mmseg.__file__).parent / ".mim" / "tools" / "dataset_converters" / f"{script}.py"
    if script == "pascal_context":
        sys.modules["detail"] = detail_stub()
    spec = importlib.util.spec_from_file_location(f"theirs_{script}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for key, value in ({"COCO_LEN": 12} if name == "real_coco_stuff164k" else LENGTHS.get(script, {})).items():
        setattr(module, key, value)
    # it saves mode P without a palette, of which newer Pillow makes 1-bit files: give it the older Pillow's meaning
    if script == "isaid":
        module.Image = types.SimpleNamespace(open=Image.open, fromarray=lambda array, mode=None: Image.fromarray(array))
    words, sys.argv = sys.argv, [str(path), *WORDS.get(name, WORDS[script]).format(raw=raw, out=out).split()]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if script == "vaihingen":
                module.args = module.parse_args()  # upstream sets it under its main guard
            module.main()
    finally:
        sys.argv = words


def their_files(name: str, raw: pathlib.Path, out: pathlib.Path) -> dict[str, pathlib.Path]:
    """Where the script left its results, under the names ours gives them."""
    found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    if name == "cityscapes":  # masks go into the raw tree
        found.update({str(path.relative_to(raw)): path for path in raw.rglob("*_labelTrainIds.png")})
    if name in ("voc_aug", "pascal_context"):  # the output folder holds masks only, lists go into the raw tree
        folder = {"voc_aug": "SegmentationClassAug", "pascal_context": "SegmentationClassContext"}[name]
        found = {f"{folder}/{key}": path for key, path in found.items()}
        lists = raw / "VOCdevkit" / ("VOC2012" if name == "voc_aug" else "VOC2010") / "ImageSets"
        found.update({f"ImageSets/{path.relative_to(lists)}": path for path in lists.rglob("*.txt")
                      if path.parent.name != "Main" and path.stem != "trainval"})
    return found


def same(ours: pathlib.Path, theirs: pathlib.Path) -> bool:
    """Same content: lines in any order for lists, values for pictures."""
    if ours.suffix == ".txt":
        return sorted(ours.read_text().split()) == sorted(theirs.read_text().split())
    one, two = np.array(Image.open(ours)), np.array(Image.open(theirs))
    return one.shape == two.shape and np.array_equal(one, two)


def compare(name: str) -> list[str]:
    """Run both on one download and return what differs without excuse; print both times."""
    script = "isaid" if name == "isaid_odd" else name.replace("real_", "")
    made = {"isaid_odd": isaid_odd, "pascal_context": FAKES["pascal_context_json"], **REAL}
    raw = (made.get(name) or FAKES[name])()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        write_tree(raw.files, place / "raw")
        files = {}
        for path, data in raw.files.items():
            for pattern, replacement in LAYOUT.get(script, []):
                path = re.sub(pattern, replacement, path)
            files[path] = data
        write_tree(files, place / "raw_theirs")
        start = time.perf_counter()
        run_theirs(name, script, place / "raw_theirs", place / "theirs")
        middle = time.perf_counter()
        options = {**raw.options, **({"labels": "polygons"} if name == "cityscapes" else {})}
        importlib.import_module(script).convert(place / "raw", place / "ours",
                                                Settings(1, partial=True, progress=False), **options)
        seconds = f"{time.perf_counter() - middle:.1f} s (one process), theirs {middle - start:.1f} s"
        ours = {str(path.relative_to(place / "ours")): path for path in (place / "ours").rglob("*") if path.is_file()
                and not path.name.startswith(".")}
        theirs = their_files(name, place / "raw_theirs", place / "theirs")
        faults = [f"only ours: {key}" for key in sorted(set(ours) - set(theirs))]
        faults += [f"only theirs: {key}" for key in sorted(set(theirs) - set(ours))]
        faults += [f"differs: {key}" for key in sorted(set(ours) & set(theirs)) if not same(ours[key], theirs[key])]
        bare = [fault for fault in faults if not any(re.search(pattern, fault.split(": ", 1)[1])
                                                     for pattern, _ in EXCUSED.get(name, []))]
        print(f"{name}: {len(ours)} files of ours, {len(theirs)} of theirs, {len(faults) - len(bare)} differ as "
              f"stated, {len(bare)} otherwise; {seconds}")
        for pattern, reason in EXCUSED.get(name, []):
            print(f"    stated: {pattern}: {reason} "
                  f"({sum(bool(re.search(pattern, f.split(': ', 1)[1])) for f in faults)} files)")
        return bare


def main(names: list[str]) -> int:
    """Compare the named scripts, or all."""
    wrong = 0
    everything = [name for name in WORDS if not name.startswith("real_")] + [
        "isaid_odd", *(REAL if SHARED.is_dir() else ())]
    for name in names or everything:
        for fault in compare(name)[:10]:
            print(f"    {fault}")
            wrong += 1
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
