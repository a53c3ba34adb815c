"""Folders of classes, the transforms of classifiers, and batches of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jseg.data.build import build_loader
from jseg.data.datasets import ImageFolder
from jseg.data.preprocess import ClsDataPreprocessor
from jseg.data.transforms import CenterCrop, RandAugment, RandomErasing, RandomResizedCrop
from jseg.data.transforms.rand_augment import POLICIES
from jseg.errors import ConfigError, DataError

LOAD = [{"type": "LoadImageFromFile"}]


@pytest.fixture
def pictures(tmp_path, rng):
    """train/ and val/ with cat (3, one in a folder below), dog (2) and owl (2), 20 x 30 to 24 x 30."""
    for part in ("train", "val"):
        for name, files in (("cat", ["a.png", "deep/b.jpg", "c.png"]), ("dog", ["d.png", "e.png"]),
                            ("owl", ["f.png", "g.png"])):
            for i, file in enumerate(files):
                path = tmp_path / part / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), rng.integers(0, 256, (20 + 2 * i, 30, 3), dtype=np.uint8))
        (tmp_path / part / ".hidden").mkdir()
        (tmp_path / part / "notes.txt").write_text("no class")
    return tmp_path


def test_folders_are_classes(pictures):
    data = ImageFolder(data_root=str(pictures), data_prefix="train", pipeline=LOAD)
    assert data.classes == ("cat", "dog", "owl") and len(data.palette) == 3
    assert [label for _, label in data.samples] == [0, 0, 0, 1, 1, 2, 2]
    assert data.samples[2][0].endswith("cat/deep/b.jpg")
    sample = data.get(3, np.random.default_rng(0))
    assert sample["gt_label"] == 1 and sample["img"].shape == (20, 30, 3)
    (pictures / "names.txt").write_text("owl\ncat\n")
    some = ImageFolder(data_root=str(pictures), data_prefix="val", classes="names.txt", indices=3)
    assert some.classes == ("owl", "cat") and [label for _, label in some.samples] == [0, 0, 1]
    assert [i["gt_label"] for i in map(ImageFolder(data_root=str(pictures), data_prefix="val",
                                                   indices=[-1, 0]).info, range(2))] == [2, 0]


def test_faults_of_folders_are_told(pictures):
    with pytest.raises(DataError, match="no folder for the class 'horse'"):
        ImageFolder(data_root=str(pictures), data_prefix="train", classes=["cat", "horse"]).samples
    with pytest.raises(DataError, match="0 folders in it; expected one for each class"):
        ImageFolder(data_root=str(pictures), data_prefix="train/owl").classes
    with pytest.raises(DataError, match="trian"):
        ImageFolder(data_root=str(pictures), data_prefix="trian").classes
    with pytest.raises(ConfigError, match="two or more, each once"):
        ImageFolder(classes=["cat", "cat"])
    with pytest.raises(DataError, match="outside the 7 pictures"):
        ImageFolder(data_root=str(pictures), data_prefix="train", indices=[7]).samples
    (pictures / "train" / "dog" / "d.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="dog/d.png"):
        ImageFolder(data_root=str(pictures), data_prefix="train", pipeline=LOAD).get(3, np.random.default_rng(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_classes(pictures, workers):
    steps = [*LOAD, {"type": "RandomResizedCrop", "scale": [16, 24], "backend": "pillow"},
             {"type": "RandAugment"}, {"type": "RandomErasing", "erase_prob": 0.5, "mode": "rand", "fill_std": 50}]
    config = {"data_preprocessor": {"type": "ClsDataPreprocessor", "mean": [100, 110, 120], "std": [50, 60, 70],
                                    "to_rgb": True}, "seed": 3, "model": {"type": "ImageClassifier",
                                                                          "head": {"num_classes": 3}},
              "train_dataloader": {"batch_size": 4, "num_workers": workers, "dataset": {
                  "type": "ImageFolder", "data_root": str(pictures), "data_prefix": "train", "pipeline": steps}}}
    loader = build_loader(config, "train")
    batch = next(iter(loader))
    assert batch.images.shape == (4, 3, 16, 24) and batch.labels.shape == (4,) and batch.labels.dtype == np.int32
    assert batch.labels.tolist() == [loader.dataset.info(meta["index"])["gt_label"] for meta in batch.metas]
    first = loader.dataset.get(batch.metas[0]["index"], np.random.default_rng([3, 0, batch.metas[0]["index"]]))
    wanted = (first["img"][..., ::-1].astype(np.float64) - [100, 110, 120]) / [50, 60, 70]
    np.testing.assert_allclose(batch.images[0], wanted.transpose(2, 0, 1), atol=1e-5)
    with pytest.raises(ConfigError, match="model.head.num_classes is 5, but ImageFolder .* has 3 classes"):
        build_loader({**config, "model": {"type": "ImageClassifier", "head": {"num_classes": 5}}}, "train")


def test_pictures_of_two_sizes_are_no_batch():
    samples = [{"img": np.zeros((8, side, 3), np.uint8), "img_path": f"{side}.png", "gt_label": 0} for side in (8, 9)]
    with pytest.raises(DataError, match="9.png: after the pipeline .* end the pipeline with RandomResizedCrop"):
        ClsDataPreprocessor().batch(samples, True)


def test_a_crop_is_cut_and_resized_by_pillow(rng):
    img = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    crop = RandomResizedCrop(scale=[16, 24], interpolation=["bilinear", "bicubic"], backend="pillow")
    areas, ratios = [], []
    for i in range(300):
        params = crop.draw({"img": img}, np.random.default_rng(i))
        top, left, tall, wide = params["box"]
        assert 0 <= top <= 40 - tall and 0 <= left <= 60 - wide
        areas.append(tall * wide / 2400)
        ratios.append(wide / tall)
    assert 0.06 < min(areas) < 0.12 and max(areas) > 0.8 and min(ratios) > 0.6 and max(ratios) < 1.6
    out = crop.apply({"img": img}, {"box": [3, 5, 20, 30], "interpolation": "bicubic"})["img"]
    np.testing.assert_array_equal(out, np.asarray(Image.fromarray(img).crop((5, 3, 35, 23)).resize(
        (24, 16), Image.Resampling.BICUBIC)))
    slim = RandomResizedCrop(scale=8, crop_ratio_range=(0.9, 1.0))
    box = slim.draw({"img": np.zeros((10, 200, 3), np.uint8)}, np.random.default_rng(0))["box"]
    assert box == [0, 93, 10, 13]  # no draw fits: the middle, as wide as 4 : 3 allows
    assert slim(({"img": img}), np.random.default_rng(0))["img"].shape == (8, 8, 3)


def test_the_middle_is_cut_and_small_pictures_are_padded(rng):
    img = rng.integers(1, 256, (21, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(CenterCrop(10)({"img": img})["img"], img[6:16, 10:20])
    wide = CenterCrop([21, 36])({"img": img})["img"]
    assert wide.shape == (21, 36, 3) and not wide[:, :3].any() and not wide[:, -3:].any()
    np.testing.assert_array_equal(wide[:, 3:33], img)


def test_erasing_writes_noise_into_one_box(rng):
    img = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    step = RandomErasing(erase_prob=0.25, mode="rand", fill_color=[10, 20, 30], fill_std=[5, 6, 7])
    drawn = [step.draw({"img": img}, np.random.default_rng(i)) for i in range(400)]
    done = [params for params in drawn if params["box"]]
    assert 0.18 < len(done) / 400 < 0.32
    shares = [tall * wide / (64 * 48) for _, _, tall, wide in (params["box"] for params in done)]
    assert 0.015 < min(shares) and max(shares) < 0.35
    large = max(done, key=lambda params: params["box"][2] * params["box"][3])
    out = step.apply({"img": img}, large)["img"]
    top, left, tall, wide = large["box"]
    inside = out[top:top + tall, left:left + wide].reshape(-1, 3)
    np.testing.assert_allclose(inside.mean(0), [10, 20, 30], atol=1)
    np.testing.assert_allclose(inside.std(0), [5, 6, 7], atol=1)
    outside = np.ones((64, 48), bool)
    outside[top:top + tall, left:left + wide] = False
    np.testing.assert_array_equal(out[outside], img[outside])
    np.testing.assert_array_equal(step.apply({"img": img}, large)["img"], out)
    assert step.apply({"img": img}, {"box": None, "seed": 0})["img"] is img


def test_rand_augment_is_what_pillow_does(rng):
    """On RGB, in the order drawn; blue and red come back exchanged."""
    img = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    rgb = Image.fromarray(np.ascontiguousarray(img[..., ::-1]))
    step = RandAugment()
    fill = {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BICUBIC}
    for name, argument, wanted in (
            ("Rotate", -27.0, rgb.rotate(-27.0, **fill)), ("Color", 1.81, ImageEnhance.Color(rgb).enhance(1.81)),
            ("Equalize", None, ImageOps.equalize(rgb)), ("Posterize", 1, ImageOps.posterize(rgb, 1)),
            ("Shear x", 0.27, rgb.transform(rgb.size, Image.Transform.AFFINE, (1, 0.27, 0, 0, 1, 0), **fill))):
        out = step.apply({"img": img}, {"steps": [[name, argument, "bicubic"]]})["img"]
        np.testing.assert_array_equal(out, np.asarray(wanted)[..., ::-1], err_msg=name)
    assert step.apply({"img": img}, {"steps": [["Posterize", 0, "bicubic"]]})["img"].max() == 0
    drawn = [part for i in range(500) for part in step.draw({"img": img}, np.random.default_rng(i))["steps"]]
    assert {part[0] for part in drawn} == set(POLICIES["timm_increasing"]) and 440 < len(drawn) < 560
    turns = [part[1] for part in drawn if part[0] == "Rotate"]
    assert min(turns) < 0 < max(turns) and 20 < np.abs(turns).mean() <= 30
    for i in range(60):
        assert step({"img": img}, np.random.default_rng(i))["img"].shape == img.shape
