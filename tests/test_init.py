"""`jseg init`: from two folders to a config that trains, without a line edited by hand."""

import hashlib
import json
import pathlib
import re
import shlex

import cv2
import numpy as np
import pytest

from jseg import cli
from jseg.config import load_config
from jseg.data.build import build_dataset
from jseg.data.datasets.camvid import CamVidDataset

GOLDEN = pathlib.Path(__file__).parent / "data" / "own_golden"
PALETTE = np.array([*CamVidDataset.METAINFO["palette"], (0, 0, 0)], np.uint8)


def tree(folder) -> dict:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scenes(here):
    """data/images and data/masks: eight pictures with masks of three classes, 0 to 2, and 255."""
    rng = np.random.default_rng(0)
    for i in range(8):
        mask = np.zeros((72, 96), np.uint8)
        mask[10:40, 10:50], mask[30:60, 40:90], mask[:4] = 1, 2, 255
        for kind, array in (("images", (mask[..., None] % 100 * 80 + rng.integers(0, 40, (72, 96, 3)))),
                            ("masks", mask)):
            path = here / "data" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array.astype(np.uint8))
    return here / "data"


def init(*words) -> int:
    return cli.main(["init", *map(str, words)])


def test_the_data_are_left_alone_and_nothing_is_overwritten(scenes, here, capsys):
    before = tree(scenes)
    assert init("data/images", "data/masks") == 0
    out = capsys.readouterr().out
    assert "8 pictures with masks of class numbers, 6 to train on; 3 classes" in out
    assert re.search(r"class_1 +\d+\.\d\d % +8\n", out) and "the names are made up" in out
    assert "next:\n  jseg check mine.yaml\n  jseg train mine.yaml" in out and "jseg report runs/mine" in out
    kept = (here / "mine.yaml").read_text()
    assert init("data/images", "data/masks") == 2
    assert "mine.yaml: exists and is not overwritten" in capsys.readouterr().err
    assert init("data/images", "data/masks", "--out", "data/images/mine.yaml") == 2
    assert "where nothing is written; give --out elsewhere" in capsys.readouterr().err
    assert init("data/images", "data/masks", "--out", "b.yaml", "--model", "segnext-giant") == 2
    assert tree(scenes) == before and (here / "mine.yaml").read_text() == kept
    assert sorted(path.name for path in here.iterdir()) == ["data", "mine.yaml"]


def test_the_config_says_what_the_data_are(scenes, here, monkeypatch):
    assert init("data/images", "data/masks", "--classes", "ground,roof,tree", "--balance", "--kfold", "4") == 0
    monkeypatch.chdir("/")  # from any folder
    cfg = load_config(here / "mine.yaml")
    train, val = build_dataset(cfg, "train"), build_dataset(cfg, "val")
    assert (len(train), len(val), train.classes) == (6, 2, ("ground", "roof", "tree"))
    assert cfg["train_dataloader"]["dataset"]["split"]["folds"] == 4
    masks = [cv2.imread(str(path), 0) for path in (here / "data/masks").iterdir()]
    share = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256)[:3]
    weights = cfg["model"]["decode_head"]["loss_decode"]["class_weight"]
    assert weights == pytest.approx(np.sqrt(np.median(share) / share), abs=0.006)
    text = (here / "mine.yaml").read_text()
    assert re.search(rf"- ground +# +{100 * share[0] / share.sum():.2f} %, 8 pictures", text)


@pytest.mark.parametrize("model, place", [("segformer-b0", "jseg::models/segformer_mit-b0"),
                                          ("ocrnet hr18", "jseg::models/ocrnet_hr18"), ("stdc1", "jseg::models/stdc1"),
                                          ("vit-b16_mln", None), ("segformer-b5", None)])
def test_any_model_gets_the_classes(scenes, here, model, place):
    """The config is checked before it is written, so it is enough that one is."""
    assert init("data/images", "data/masks", "--model", model) == 0
    text, cfg = (here / "mine.yaml").read_text(), load_config("mine.yaml")
    assert (f"_base_: {place} " in text) if place else "_base_" not in text
    counts = set(re.findall(r"'num_classes': (\d+)", str(cfg["model"])))
    assert "3" in counts and counts <= {"2", "3"}  # STDC's head for details has two of its own
    if model == "vit-b16_mln":
        assert cfg["data_preprocessor"]["size"] == [512, 512]  # the side it is made for
    if model == "segformer-b5":  # MMSegmentation's own, made for windows of 1024 x 1024
        assert cfg["data_preprocessor"]["size"] == [64, 96] and cfg["model"]["test_cfg"] == {"mode": "whole"}


@pytest.mark.parametrize("masks, classes", [("coco.json", ["background", "sky", "road", "car"]),
                                            ("labelme", ["background", "car", "road", "sky"]),
                                            ("yolo", ["background", "sky", "road", "car"])])
def test_outlines_are_drawn_beside_the_config(here, masks, classes, capsys):
    images = here / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for stem in "ab":
        cv2.imwrite(str(images / f"{stem}.png"), rng.integers(0, 255, (96, 128, 3)).astype(np.uint8))
    second(here, masks)
    before = tree(images), tree(here / "labels")
    assert init("images", here / "labels" / ("" if masks != "coco.json" else masks), "--val-ratio", "0.5") == 0
    dataset = build_dataset(load_config("mine.yaml"), "train")
    assert list(dataset.classes) == classes and "the outlines are drawn as masks into mine_masks" in (
        capsys.readouterr().out)
    mask = cv2.imread(dataset.info(0)["seg_map_path"], cv2.IMREAD_UNCHANGED)
    assert mask is not None and (tree(images), tree(here / "labels")) == before
    assert sorted(path.name for path in (here / "mine_masks").iterdir()) == ["a.png", "b.png"]
    (here / "mine.yaml").unlink()
    assert init("images", here / "labels" / ("" if masks != "coco.json" else masks)) == 2
    assert "mine_masks: the masks that are drawn from the outlines go there, but it exists" in capsys.readouterr().err


def second(here, masks) -> None:
    """Annotations as in own_golden for two pictures, a and b."""
    labels = here / "labels"
    labels.mkdir()
    if masks == "coco.json":
        content = json.loads((GOLDEN / masks).read_text())
        content["images"].append({**content["images"][0], "id": 8, "file_name": "b.png"})
        content["annotations"] += [{**row, "id": 50 + row["id"], "image_id": 8} for row in content["annotations"]]
        (labels / masks).write_text(json.dumps(content))
        return
    for path in (GOLDEN / masks).iterdir():
        for stem in "ab" if path.stem == "a" else [path.stem]:
            (labels / f"{stem}{path.suffix}").write_bytes(path.read_bytes())


def painted_camvid(source, folder, count=30) -> None:
    """Two folders as a user has them: photographs, and masks painted in colours."""
    files = sorted((source / "train").glob("*.png"))
    for file in files[::len(files) // count][:count]:
        for kind, array in (("images", cv2.imread(str(file))),
                            ("masks", PALETTE[cv2.imread(str(source / "trainannot" / file.name), 0)][..., ::-1])):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / file.name), array)


def test_from_two_folders_to_a_report_in_four_commands(shared_data, here, capsys):
    """The commands are those that init prints; the run is cut short by its own option, and its crops are small."""
    if not (shared_data / "camvid" / "train").is_dir():
        pytest.skip(f"{shared_data}/camvid is absent")
    painted_camvid(shared_data / "camvid", here / "photos")
    weights = pathlib.Path(__file__).parents[1] / "weights" / "segnext_tiny_camvid.safetensors"
    assert init("photos/images", "photos/masks", "--iters", "6", "--crop", "96", "128", "--batch-size", "2") == 0
    out = capsys.readouterr().out
    commands = [shlex.split(line, comments=True) for line in out.partition("next:\n")[2].splitlines()]
    assert [words[:2] for words in commands] == [["jseg", "check"], ["jseg", "train"], ["jseg", "report"]]
    assert "11 classes, names: the colours of CamVidDataset" in out and "(0, 0, 0) is none of these colours" in out
    commands[1] += ["--weights", str(weights)]
    for words in commands:
        assert cli.main(words[1:]) == 0, words
    metrics = json.loads(pathlib.Path("runs/mine/metrics.json").read_text())
    assert metrics["images"] == 6 and metrics["metrics"]["mIoU"] > 0.55
    assert "mIoU" in pathlib.Path("runs/mine/report.html").read_text()
