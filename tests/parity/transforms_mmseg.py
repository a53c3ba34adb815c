"""What MMSegmentation 1.2.2's own transforms make of the pictures in transforms_cases.py,
with the parameters they drew.

Runs under a Python that has mmsegmentation and mmcv (never jseg):
    python tests/parity/transforms_mmseg.py                            writes transforms_mmseg.json beside this file
    python tests/parity/transforms_mmseg.py --photos LIST --out FILE   the same on photographs, for a live comparison
LIST is a JSON file: [[picture path, mask path], ...].
"""

import argparse
import base64
import copy
import hashlib
import io
import json
import pathlib
import sys
import types

import cv2
import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from transforms_cases import CASES, NAMES, fingerprint, opencv_identity, others, scene  # noqa: E402


class _Anything(types.ModuleType):
    """Stands in for mmcv's compiled operators, which no transform needs."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


sys.modules.setdefault("mmcv.ops", _Anything("mmcv.ops"))

import mmcv  # noqa: E402
import mmseg  # noqa: E402
import mmseg.datasets.transforms.transforms as upstream  # noqa: E402
from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmseg.datasets.transforms import LoadAnnotations  # noqa: E402
from mmseg.registry import TRANSFORMS  # noqa: E402


def tuples(value):
    """Lists as upstream's constructors want them: pairs become tuples."""
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value


def build(block: dict):
    """Upstream's transform for a block."""
    arguments = {key: tuples(value) for key, value in block.items()}
    for key in ("scales", "prob", "direction", "swap_seg_labels"):  # these upstream wants as lists
        if isinstance(block.get(key), list):
            arguments[key] = [tuples(v) for v in block[key]]
    for key in ("cutout_ratio", "cutout_shape", "scale"):  # and these where they hold several pairs
        if isinstance(block.get(key), list) and isinstance(block[key][0], list):
            arguments[key] = [tuples(v) for v in block[key]]
    return TRANSFORMS.build(arguments)


class Recorder:
    """Calls through to a random function and keeps what it gave."""

    def __init__(self, owner, *names):
        self.values = []
        for name in names:
            setattr(owner, name, self._wrap(getattr(owner, name)))

    def _wrap(self, function):
        def call(*args, **kwargs):
            value = function(*args, **kwargs)
            self.values.append(value)
            return value
        return call


def photometric(values) -> dict:
    """Sort the numbers PhotoMetricDistortion drew, in its order, into jseg's parameters."""
    values = iter(values)

    def half():
        return next(values) if next(values) else None

    params = {"brightness": half(), "contrast": None}
    params["contrast_first"] = bool(next(values))
    if params["contrast_first"]:
        params["contrast"] = half()
    params["saturation"], params["hue"] = half(), half()
    if not params["contrast_first"]:
        params["contrast"] = half()
    return {key: value if value is None or isinstance(value, (bool, float)) else int(value)
            for key, value in params.items()}


def run(block: dict, sample: dict, mixed: list) -> tuple[dict, dict]:
    """Apply upstream's transform; returns the result and the drawn parameters in jseg's words."""
    kind, transform = block["type"], build(block)
    results = copy.deepcopy(sample)
    results["seg_fields"] = ["gt_seg_map"]
    method = {"RandomCrop": "crop_bbox", "RandomRotate": "generate_degree", "RandomCutOut": "generate_patches",
              "RandomMosaic": "generate_mosaic_center"}.get(kind)
    recorder = Recorder(transform, method) if method else None
    if kind == "RandomMosaic":
        results["mix_results"] = [copy.deepcopy(other) for other in mixed]
    original = upstream.random
    if kind == "PhotoMetricDistortion":
        upstream.random = types.SimpleNamespace(randint=original.randint, uniform=original.uniform)
        recorder = Recorder(upstream.random, "randint", "uniform")
    out = transform.transform(results)
    upstream.random = original
    first = recorder.values[0] if recorder and recorder.values else None
    if kind == "RandomCrop":
        params = {"box": [int(v) for v in first]}
    elif kind == "RandomRotate":
        params = {"degree": float(first[1]) if first[0] else None}
    elif kind == "RandomCutOut":
        params = {"holes": [[int(v) for v in hole] for hole in zip(*first[2:])]}
    elif kind == "RandomMosaic":
        params = {"center": [int(v) for v in first]}
    elif kind == "PhotoMetricDistortion":
        params = photometric(recorder.values)
    elif kind == "RandomFlip":
        params = {"direction": out["flip_direction"] and str(out["flip_direction"])}
    elif kind == "RandomChoiceResize":
        scale = block["scales"][int(out["scale_idx"])]
        params = {"scale_idx": int(out["scale_idx"]), "scale": [scale, scale] if isinstance(scale, int) else scale}
    elif kind == "RandomResize":
        params = {"scale": [int(v) for v in transform.resize.scale]}
    else:
        params = {}
    return out, params


def compare_cases(make_sample, make_others) -> list[dict]:
    """Run every case; `make_sample(i)` gives the picture of draw i."""
    rows = []
    np.random.seed(20)
    for block, draws in CASES:
        for draw in range(draws):
            out, params = run(block, make_sample(draw), make_others(draw))
            row = {"block": block, "draw": draw, "params": params, **{name: fingerprint(out[name]) for name in NAMES}}
            if "scale_factor" in out:
                row["scale_factor"] = [float(v) for v in out["scale_factor"]]
            rows.append(row)
    return rows


def encoded_files() -> dict[str, bytes]:
    """Small picture and mask files of many kinds."""
    rng = np.random.default_rng(3)
    sample = scene(3, 21, 30)
    rgb, mask = np.ascontiguousarray(sample["img"][..., ::-1]), sample["gt_seg_map"]
    alpha = rng.integers(0, 256, (*mask.shape, 1)).astype(np.uint8)
    palette = Image.fromarray(mask, "P")
    palette.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
    turned = Image.Exif()
    turned[0x0112] = 6

    def save(picture, kind, **options):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    deep = rng.integers(0, 65536, (9, 11, 3)).astype(np.uint16)
    return {
        "color.jpg": save(Image.fromarray(rgb), "JPEG", quality=80),
        "progressive.jpg": save(Image.fromarray(rgb), "JPEG", quality=60, progressive=True),
        "grey.jpg": save(Image.fromarray(rgb[..., 0]), "JPEG", quality=80),
        "turned.jpg": save(Image.fromarray(rgb), "JPEG", quality=60, exif=turned),
        "palette.png": save(palette, "PNG"),
        "alpha.png": save(Image.fromarray(np.concatenate([rgb, alpha], 2)[:9, :11]), "PNG"),
        "deep.png": cv2.imencode(".png", deep)[1].tobytes(),
        "deep_grey.png": cv2.imencode(".png", deep[..., 0])[1].tobytes(),
        "lossy.webp": save(Image.fromarray(rgb), "WEBP", quality=60),
        "grey.bmp": save(Image.fromarray(rgb[:9, :11, 0]), "BMP"),
        "packed.tif": save(Image.fromarray(rgb), "TIFF", compression="tiff_lzw"),
        "mask_index.png": save(Image.fromarray(mask), "PNG"),
        "mask_palette.png": save(palette, "PNG"),
    }


def read_files(folder: pathlib.Path) -> list[dict]:
    """How upstream reads each file: masks twice, without and with the zero label reduced."""
    rows = []
    for name, data in encoded_files().items():
        path = folder / name
        path.write_bytes(data)
        row = {"name": name, "data": base64.b64encode(data).decode()}
        if name.startswith("mask"):
            for flag in (False, True):
                sample = {"seg_map_path": str(path), "reduce_zero_label": flag, "seg_fields": []}
                row[f"reduced_{flag}"] = fingerprint(LoadAnnotations().transform(sample)["gt_seg_map"])
        else:
            row["img"] = fingerprint(LoadImageFromFile().transform({"img_path": str(path)})["img"])
        rows.append(row)
        path.unlink()
    return rows


def script_hash() -> str:
    """sha256 over this file and the cases."""
    return hashlib.sha256(b"".join((HERE / name).read_bytes()
                                   for name in ("transforms_mmseg.py", "transforms_cases.py"))).hexdigest()


def photographs(pairs: list) -> dict:
    """Read real pictures with upstream's loaders and run every case on them."""
    samples = []
    for img_path, mask_path in pairs:
        sample = LoadImageFromFile().transform({"img_path": img_path, "seg_map_path": mask_path,
                                                "reduce_zero_label": False, "seg_fields": []})
        samples.append(LoadAnnotations().transform(sample))
    n = len(samples)
    return {"inputs": [{name: fingerprint(s[name]) for name in NAMES} for s in samples],
            "cases": compare_cases(lambda i: samples[i % n], lambda i: [samples[(i + k) % n] for k in (1, 2, 3)])}


def main() -> None:
    """Write the JSON file that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=pathlib.Path, help="JSON list of [picture, mask] paths")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "transforms_mmseg.json")
    args = parser.parse_args()
    init_default_scope("mmseg")  # the random resizes look their Resize up by name
    record = {"versions": {"mmseg": mmseg.__version__, "mmcv": mmcv.__version__, "opencv": cv2.__version__,
                           "numpy": np.__version__, "pillow": Image.__version__},
              "opencv_identity": opencv_identity(), "script_hash": script_hash()}
    if args.photos:
        record.update(photographs(json.loads(args.photos.read_text())))
    else:
        record["inputs"] = [{name: fingerprint(scene(seed)[name]) for name in NAMES} for seed in range(3)]
        record["cases"] = compare_cases(scene, others)
        record["files"] = read_files(args.out.parent)
    lists = {key: value for key, value in record.items() if isinstance(value, list)}
    head = json.dumps({key: value for key, value in record.items() if key not in lists})[:-1]
    body = [f'"{key}": [\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]"
            for key, rows in lists.items()]
    args.out.write_text(",\n".join([head, *body]) + "\n}\n")


if __name__ == "__main__":
    main()
