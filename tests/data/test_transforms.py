"""Transforms: pixel for pixel against MMSegmentation 1.2.2 on the same pictures and drawn parameters,
and their contract.

tests/parity/transforms_mmseg.json holds what MMSegmentation gave on made-up pictures. Set JSEG_REFEREE_PYTHON to a
Python with mmsegmentation to also compare on real photographs (`test_photographs`).
"""

from __future__ import annotations

import base64
import copy
import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess

import cv2
import numpy as np
import pytest

from jseg.data import transforms as T
from jseg.data.io import read_image
from jseg.data.transforms.loading import reduce_zero
from jseg.errors import ConfigError, DataError
from jseg.registry import TRANSFORMS

PARITY = pathlib.Path(__file__).resolve().parents[1] / "parity"
_spec = importlib.util.spec_from_file_location("transforms_cases", PARITY / "transforms_cases.py")
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)
GOLDEN = json.loads((PARITY / "transforms_mmseg.json").read_text())
RANDOM = [block for block, _ in cases.CASES if block["type"].startswith(("Random", "Photo"))]


def name_of(value) -> str | None:
    """A test id for a block or a golden row."""
    if not isinstance(value, dict):
        return None
    block = value.get("block", value)
    return (value["name"] if "data" in value
            else f"{block['type']}-{cases.CASES.index(next(c for c in cases.CASES if c[0] == block))}")


EXACT = GOLDEN["opencv_identity"] == cases.opencv_identity()
# nothing is interpolated: exact everywhere
COPYING = ("RandomCrop", "RandomFlip", "RandomCutOut", "Pad", "AdjustGamma")


def same(got: np.ndarray, want: list, what: str, exact: bool = True) -> None:
    """Compare with a fingerprint: by the hash of all bytes, or, where OpenCV itself rounds differently, nearly."""
    have = cases.fingerprint(got)
    if exact:
        assert have == want, f"{what}: jseg {have}, mmseg {want}"
    else:
        assert have[:2] == want[:2], f"{what}: jseg {have[:2]}, mmseg {want[:2]}"
        assert abs(have[3] - want[3]) < 0.5, f"{what}: mean {have[3]}, mmseg {want[3]}"
        np.testing.assert_allclose(have[4], want[4], atol=8, err_msg=what)


def replay(row: dict, sample: dict, mixed: list, exact: bool = EXACT) -> None:
    """Build the transform, apply the parameters that mmseg drew, compare picture, mask and scale factor."""
    transform = TRANSFORMS.build(row["block"])
    if row["block"]["type"] == "RandomMosaic":
        sample = {**sample, "mix_results": mixed}
    out = transform.apply(sample, row["params"])
    for name in cases.NAMES:
        same(out[name], row[name], f"{row['block']} draw {row['draw']} {row['params']} {name}",
             exact or name == "gt_seg_map" or row["block"]["type"] in COPYING)
    if "scale_factor" in row:
        assert list(out["scale_factor"]) == row["scale_factor"]
    assert tuple(out["img_shape"]) == out["img"].shape[:2] == out["gt_seg_map"].shape


def test_golden_file_is_fresh():
    names = ("transforms_mmseg.py", "transforms_cases.py")
    found = hashlib.sha256(b"".join((PARITY / name).read_bytes() for name in names)).hexdigest()
    assert found == GOLDEN["script_hash"], ("run tests/parity/transforms_mmseg.py again under a Python with "
                                            "mmsegmentation")
    assert len(GOLDEN["cases"]) == sum(draws for _, draws in cases.CASES)


@pytest.mark.parametrize("seed", range(3))
def test_golden_inputs(seed):
    for name in cases.NAMES:
        same(cases.scene(seed)[name], GOLDEN["inputs"][seed][name], f"scene({seed}) {name}")


@pytest.mark.parametrize("row", GOLDEN["cases"], ids=name_of)
def test_same_pixels_as_mmseg(row):
    replay(row, cases.scene(row["draw"]), cases.others(row["draw"]))


@pytest.mark.parametrize("row", GOLDEN["files"], ids=name_of)
def test_same_file_contents_as_mmseg(row, tmp_path):
    path = tmp_path / row["name"]
    path.write_bytes(base64.b64decode(row["data"]))
    if "img" in row:
        out = T.LoadImageFromFile()({"img_path": str(path)})
        same(out["img"], row["img"], row["name"], EXACT)
        assert out["img_shape"] == out["ori_shape"] == out["img"].shape[:2]
    else:
        for flag in (False, True):
            out = T.LoadAnnotations()({"seg_map_path": str(path), "reduce_zero_label": flag})
            same(out["gt_seg_map"], row[f"reduced_{flag}"], row["name"])


def test_photographs(shared_data, tmp_path):
    python = os.environ.get("JSEG_REFEREE_PYTHON")
    if not python:
        pytest.skip("JSEG_REFEREE_PYTHON does not name a Python with mmsegmentation")
    folder = shared_data / "camvid"
    names = sorted(path.name for path in (folder / "val").glob("*.png"))[::30]
    pairs = [[str(folder / "val" / name), str(folder / "valannot" / name)] for name in names]
    (tmp_path / "list.json").write_text(json.dumps(pairs))
    command = [python, "-W", "ignore", PARITY / "transforms_mmseg.py", "--photos", tmp_path / "list.json",
               "--out", tmp_path / "out.json"]
    subprocess.run(command, check=True, timeout=300)
    theirs = json.loads((tmp_path / "out.json").read_text())
    load = T.Compose([{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}])
    samples = [load({"img_path": img, "seg_map_path": mask}) for img, mask in pairs]
    for sample, row in zip(samples, theirs["inputs"]):
        for name in cases.NAMES:
            same(sample[name], row[name], sample["img_path"])
    exact = theirs["opencv_identity"] == cases.opencv_identity()
    for row in theirs["cases"]:
        at = row["draw"]
        replay(row, samples[at % len(samples)], [samples[(at + k) % len(samples)] for k in (1, 2, 3)], exact)


def prepared(block: dict, seed: int = 0) -> dict:
    """A sample for a block, with what a mosaic needs."""
    sample = cases.scene(seed)
    return {**sample, "mix_results": cases.others(seed)} if block["type"] == "RandomMosaic" else sample


@pytest.mark.parametrize("block", [block for block, _ in cases.CASES], ids=name_of)
def test_input_is_not_changed(block):
    transform, sample = TRANSFORMS.build(block), prepared(block)
    before = copy.deepcopy(sample)
    for seed in range(4):
        out = transform(sample, np.random.default_rng(seed))
        for name in cases.NAMES:  # and writing into the result must not reach back
            if out[name] is not sample[name]:
                out[name][...] = 77
    assert sample.keys() == before.keys()
    np.testing.assert_equal(sample, before)


@pytest.mark.parametrize("block", RANDOM, ids=name_of)
def test_draw_depends_on_rng_only(block):
    transform = TRANSFORMS.build(block)
    np.random.seed(0)
    first = [transform.draw(prepared(block), np.random.default_rng(seed)) for seed in range(8)]
    again = [TRANSFORMS.build(block).draw(prepared(block), np.random.default_rng(seed))
             for seed in reversed(range(8))][::-1]
    assert first == again
    assert json.loads(json.dumps(first)) == first, "parameters must survive JSON"
    assert any(params != first[0] for params in first), f"eight generators drew the same: {first[0]}"


ALIGNED = [b for b, _ in cases.CASES if b["type"] in ("RandomCrop", "RandomFlip", "Pad", "RandomRotate")
           and "swap_seg_labels" not in b or b.get("seg_fill_in")]


@pytest.mark.parametrize("block", ALIGNED, ids=name_of)
def test_picture_and_mask_stay_aligned(block):
    """The picture shows the mask: after the transform both must still say the
    same (a rotation blurs the picture's edges).
    """
    mask = np.repeat(np.repeat(cases.scene(5)["gt_seg_map"][:20, :24] % 12, 4, axis=0), 4, axis=1)
    transform = TRANSFORMS.build(block)
    for seed in range(6):
        out = transform({"img": np.dstack([mask * 20] * 3), "gt_seg_map": mask}, np.random.default_rng(seed))
        got, want = out["img"][..., 0].astype(int), out["gt_seg_map"].astype(int) * 20
        agree = np.abs(got - want) <= 6
        agree |= out["gt_seg_map"] > 11  # padding has its own value in each
        assert agree.mean() > (0.8 if block["type"] == "RandomRotate" else 0.999)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_cat_max_ratio_is_honoured(dtype):
    mask = np.zeros((80, 80), dtype)
    mask[:, 40:] = 1
    mask[60:] = 255
    crop = T.RandomCrop(crop_size=[20, 20], cat_max_ratio=0.75)
    sample = {"img": np.zeros((80, 80, 3), np.uint8), "gt_seg_map": mask}
    shares = []
    for seed in range(200):
        top, bottom, left, right = crop.draw(sample, np.random.default_rng(seed))["box"]
        values, counts = np.unique(mask[top:bottom, left:right], return_counts=True)
        counts = counts[values != 255]
        shares.append(counts.max() / counts.sum() if len(counts) > 1 else 1.0)
    assert np.mean(np.array(shares) < 0.75) > 0.7, "11 tries of about 1 in 6 each"
    free = T.RandomCrop(crop_size=[20, 20])
    boxes = {tuple(free.draw(sample, np.random.default_rng(seed))["box"]) for seed in range(300)}
    assert {0, 60} <= {box[0] for box in boxes} and {0, 60} <= {box[2] for box in boxes}, "both borders can be reached"


def test_ranges_of_the_draws(rng):
    distort, sample = T.PhotoMetricDistortion(), cases.scene(0)
    drawn = [distort.draw(sample, rng) for _ in range(2000)]
    for key, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5), ("hue", -18, 17)):
        values = [p[key] for p in drawn if p[key] is not None]
        assert 900 < len(values) < 1100, f"{key} is changed in {len(values)} of 2000 draws"
        assert (low <= min(values) < low + 0.02 * (high - low) + 1e-9
                and high >= max(values) > high - 0.02 * (high - low) - 1e-9)
    flips = [T.RandomFlip(prob=[0.2, 0.5], direction=["horizontal", "vertical"]).draw(sample, rng)["direction"]
             for _ in range(2000)]
    assert 330 < flips.count("horizontal") < 470 and 920 < flips.count("vertical") < 1080 and None in flips
    mosaic = T.RandomMosaic(prob=0.25)
    asked = [mosaic.extra_indices(7, rng) for _ in range(2000)]
    assert 420 < sum(len(a) == 3 for a in asked) < 580 and {i for a in asked for i in a} == set(range(7))


def test_wide_masks_keep_their_labels(rng):
    sample = {"img": cases.scene(0)["img"], "gt_seg_map": rng.integers(0, 900, (61, 83)).astype(np.int32)}
    blocks = [{"type": "Resize", "scale": [40, 40]}, {"type": "RandomRotate", "prob": 1.0, "degree": 30},
              {"type": "Pad", "size_divisor": 32}, {"type": "RandomFlip", "prob": 1}]
    out = T.Compose(blocks)(sample, rng)["gt_seg_map"]
    assert out.dtype == np.int32 and out.max() > 255 and set(np.unique(out)) <= {*np.unique(sample["gt_seg_map"]), 255}


def test_prediction_needs_no_mask(rng):
    for block, _ in cases.CASES:
        sample = {"img": cases.scene(0)["img"]}
        if block["type"] == "RandomMosaic":
            sample["mix_results"] = [{"img": other["img"]} for other in cases.others(0)]
        assert "gt_seg_map" not in TRANSFORMS.build(block)(sample, rng)


def test_single_pad_value_of_rotate_fills_all_channels():
    out = T.RandomRotate(prob=1, degree=45, pad_val=128).apply({"img": np.zeros((9, 9, 3), np.uint8)}, {"degree": 45.0})
    assert out["img"][0, 0].tolist() == [128, 128, 128]


def test_auto_bound_keeps_every_pixel():
    sample = cases.scene(1)
    out = T.RandomRotate(prob=1, degree=90, auto_bound=True).apply(sample, {"degree": 90.0})
    assert out["img_shape"] == (83, 61)
    np.testing.assert_array_equal(out["gt_seg_map"], np.rot90(sample["gt_seg_map"], -1))


def test_mosaic_without_partners_passes_the_sample(rng):
    sample = {**cases.scene(0), "mix_results": []}
    out = T.RandomMosaic(prob=1.0)(sample, rng)
    assert "mix_results" not in out and out["img"] is sample["img"]


def test_reduce_zero():
    assert reduce_zero(np.array([0, 1, 2, 150, 254, 255], np.uint8)).tolist() == [255, 0, 1, 149, 253, 255]
    wide = reduce_zero(np.array([0, 1, 255], np.int32))
    assert wide.tolist() == [255, 0, 255] and wide.dtype == np.int32
    with pytest.raises(DataError, match="a.png: reduce_zero_label with label 300"):
        reduce_zero(np.array([0, 300], np.int32), "a.png")


def test_annotation_maps_and_flags(tmp_path):
    path = str(tmp_path / "m.png")
    cv2.imwrite(path, np.array([[0, 1, 2], [3, 255, 1]], np.uint8))
    sample = {"seg_map_path": path, "reduce_zero_label": False, "label_map": {1: 2, 2: 1}}
    assert T.LoadAnnotations()(sample)["gt_seg_map"].tolist() == [[0, 2, 1], [3, 255, 2]]
    assert T.LoadAnnotations(reduce_zero_label=True)({"seg_map_path": path})["gt_seg_map"].tolist() == [
        [255, 0, 1], [2, 255, 0]]
    with pytest.raises(DataError, match="the dataset says False"):
        T.LoadAnnotations(reduce_zero_label=True)(sample)


@pytest.mark.parametrize("block, message", [
    ({"type": "RandomCrop", "crop_sise": 3}, "did you mean 'crop_size'"),
    ({"type": "RandomCrop", "crop_size": [0, 4]}, "crop_size must be two positive integers"),
    ({"type": "Resize"}, "one of scale"),
    ({"type": "Resize", "scale": [8, 8], "interpolation": "bilinaer"}, "did you mean 'bilinear'"),
    ({"type": "RandomResize", "scale": [64, 64]}, "needs ratio_range"),
    ({"type": "RandomResize", "scale": [64, 64], "ratio_range": [2.0, 0.5]}, "least, largest"),
    ({"type": "RandomChoiceResize", "scales": [64], "resize_type": "ResizeShortestEdge"}, "needs max_size"),
    ({"type": "RandomFlip", "prob": 1.5}, r"0\.\.1"),
    ({"type": "RandomFlip", "prob": 0.5, "direction": "horizontl"}, "did you mean 'horizontal'"),
    ({"type": "RandomRotate", "prob": 1.0, "degree": -3}, "above 0"),
    ({"type": "RandomCutOut", "prob": 1.0, "n_holes": 1}, "exactly one of cutout_shape"),
    ({"type": "Pad"}, "one of size"),
    ({"type": "Normalize", "mean": [0, 0], "std": [1, 1]}, "exchanges blue and red of 3 channels"),
    ({"type": "LoadImageFromFile", "imdecode_backend": "tifffile"}, "accepts 'cv2' only"),
    ({"type": "AdjustGama"}, "did you mean 'AdjustGamma'"),
], ids=str)
def test_wrong_arguments(block, message):
    with pytest.raises(ConfigError, match=message):
        T.Compose([{"type": "PackSegInputs"}, block], "train_dataloader.dataset.pipeline")


def test_failing_step_names_picture_and_place(rng):
    pipeline = T.Compose([{"type": "Normalize", "mean": [0, 0, 0], "std": [1, 1, 1]},
                          {"type": "PhotoMetricDistortion"}])
    with pytest.raises(DataError,
                       match=r"street\.png: pipeline\[1\] PhotoMetricDistortion: .* uint8 pictures, got float32"):
        pipeline({**cases.scene(0), "img_path": "street.png"}, rng)


def test_whole_training_pipeline(shared_data):
    folder = shared_data / "camvid"
    name = sorted(path.name for path in (folder / "train").glob("*.png"))[0]
    pipeline = T.Compose([
        {"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": [480, 360], "ratio_range": [0.5, 2.0], "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": [256, 256], "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5}, {"type": "PhotoMetricDistortion"}, {"type": "PackSegInputs"}])
    sample = {"img_path": str(folder / "train" / name), "seg_map_path": str(folder / "trainannot" / name),
              "reduce_zero_label": False}
    one, two = (pipeline(sample, np.random.default_rng([0, 1, 2])) for _ in range(2))
    np.testing.assert_array_equal(one["img"], two["img"])
    np.testing.assert_array_equal(one["gt_seg_map"], two["gt_seg_map"])
    assert one["ori_shape"] == read_image(sample["img_path"]).shape[:2] and one["img"].dtype == np.uint8
