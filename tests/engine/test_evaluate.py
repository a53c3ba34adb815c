"""Evaluation: counts, table, JSON, kept pictures and the model's mode,
with a model that reads its answers from a list.
"""

import datetime
import json

import cv2
import jittor as jt
import numpy as np
import pytest

from jseg.cli.val import chosen_config
from jseg.data.preprocess import Batch, SegDataPreProcessor
from jseg.engine.evaluate import evaluate, evaluation_mode, evaluator_faults, format_table, save_result
from jseg.errors import ConfigError, DataError
from jseg.metrics import SmallTargets


class FakeData:
    """Class names and colours, as a dataset has them."""

    classes, palette, ignore_index = ("road", "sky", "bird"), ((90, 90, 90), (80, 160, 240), (240, 60, 60)), 255


class FakeLoader:
    """Pictures one by one; label maps padded with 255 as batches pad them."""

    def __init__(self, labels, folder=None):
        self.labels, self.folder, self.dataset, self.preprocessor = labels, folder, FakeData(), None

    def __len__(self):
        return len(self.labels)

    def __iter__(self):
        for i, label in enumerate(self.labels):
            padded = np.pad(label.astype(np.int32), ((0, 2), (0, 3)), constant_values=255)[None]
            path = f"{self.folder}/{i}.png" if self.folder else f"{i}.png"
            yield Batch(np.zeros((1, 3, 8, 8), np.float32), padded, [{"img_path": path, "label_shape": label.shape}])


class FakeModel(jt.nn.Module):
    """Returns prepared label maps in order."""

    num_classes = 3

    def __init__(self, answers):
        super().__init__()
        self.frozen, self.free = jt.nn.BatchNorm(2), jt.nn.BatchNorm(2)
        self.answers, self.seen = list(answers), []

    def predict(self, images, metas):
        self.seen.append((self.is_training(), self.frozen.is_training(), self.free.is_training()))
        return [self.answers.pop(0) for _ in metas]


@pytest.fixture
def maps(rng):
    """Six label maps with void and predictions that get worse from picture to picture; class 2 never occurs."""
    labels = [rng.integers(0, 2, (10, 12 + i)) for i in range(6)]
    preds = []
    for i, label in enumerate(labels):
        label[0, :3] = 255
        wrong = rng.random(label.shape) < 0.12 * i
        preds.append(np.where(wrong, 1 - np.minimum(label, 1), np.minimum(label, 1)).astype(np.uint8))
    return labels, preds


def test_scores_and_records(maps):
    labels, preds = maps
    result = evaluate(FakeModel(preds), FakeLoader(labels),
                      {"metrics": ["mIoU", "mFscore"], "boundary": {"dilation_ratio": 0.1}},
                      progress=False, keep_count=2)
    t, p = np.concatenate([x.ravel() for x in labels]), np.concatenate([x.ravel() for x in preds])
    keep = t != 255
    assert result["confusion"] == [[int(((t == a) & (p == b) & keep).sum()) for b in range(3)] for a in range(3)]
    iou = [((t == k) & (p == k)).sum() / (((t == k) | (p == k)) & keep).sum() for k in range(2)]
    assert result["metrics"]["mIoU"] == pytest.approx(np.mean(iou))
    assert result["per_class"][2] == {"name": "bird", "IoU": None, "Acc": None, "Fscore": None, "Precision": None,
                                      "Recall": None, "BoundaryIoU": None}
    assert 0 < result["metrics"]["mBoundaryIoU"] < 1 and result["images"] == 6
    assert [r["index"] for r in result["worst"]] == [5, 4] and [r["index"] for r in result["best"]] == [0, 1]
    assert result["best"][0]["mIoU"] == 1.0
    json.loads(json.dumps(result, allow_nan=False))


def test_few_pictures_are_not_shown_twice(maps):
    labels, preds = maps
    result = evaluate(FakeModel(preds[:3]), FakeLoader(labels[:3]), progress=False, keep_count=4)
    assert [r["index"] for r in result["worst"]] == [2, 1] and [r["index"] for r in result["best"]] == [0]


def test_table_is_aligned(maps):
    labels, preds = maps
    lines = format_table(evaluate(FakeModel(preds), FakeLoader(labels), progress=False)).splitlines()
    assert lines[0].split() == ["class", "IoU", "Acc", "Dice", "Fscore", "Precision", "Recall"]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[4].split() == ["bird", "-", "-", "-", "-", "-", "-"]
    assert lines[-1].startswith("aAcc ") and "6 pictures in" in lines[-1]


def test_table_names_miou_also_when_not_asked_for(maps):
    labels, preds = maps
    asked = evaluate(FakeModel(preds), FakeLoader(labels), {"metrics": ["mDice"]}, progress=False)
    full = evaluate(FakeModel(preds), FakeLoader(labels), progress=False)
    assert f"mIoU {100 * full['metrics']['mIoU']:.2f} %" in format_table(asked)


def test_modes_come_back(maps):
    labels, preds = maps
    model = FakeModel(preds)
    model.train()
    model.frozen.is_train = False
    evaluate(model, FakeLoader(labels), progress=False)
    assert set(model.seen) == {(False, False, False)}
    assert model.is_training() and model.free.is_training() and not model.frozen.is_training()
    assert not model.free.weight.is_stop_grad()
    with pytest.raises(RuntimeError, match="inside"):
        with evaluation_mode(model):
            raise RuntimeError("inside")
    assert model.free.is_training() and not model.frozen.is_training()


def test_kept_pictures_read_back(maps, tmp_path, rng):
    labels, preds = maps
    for i, label in enumerate(labels):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 255, (*label.shape, 3)).astype(np.uint8))
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "worst_9_truth.png").write_bytes(b"old")
    result = evaluate(FakeModel(preds), FakeLoader(labels, tmp_path), progress=False,
                      keep=tmp_path / "eval", keep_count=2)
    from jseg.data.io import read_mask
    files = result["worst"][0]["files"]
    np.testing.assert_array_equal(read_mask(tmp_path / "eval" / files["truth"]), labels[5])
    np.testing.assert_array_equal(read_mask(tmp_path / "eval" / files["prediction"]), preds[5])
    assert len(list((tmp_path / "eval").iterdir())) == 12
    save_result(result, tmp_path / "deep" / "metrics.json")
    assert json.loads((tmp_path / "deep" / "metrics.json").read_text())["images"] == 6


def test_augmented_views_are_made_from_the_file(maps, tmp_path):
    labels, preds = maps
    for i, label in enumerate(labels):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((*label.shape, 3), np.uint8))
    sizes = []

    class Augmented(FakeModel):
        def predict_augmented(self, views):
            sizes.append([(images.shape, metas[0]["flip"]) for images, metas in views])
            return [self.answers.pop(0)]

    loader = FakeLoader(labels, tmp_path)
    loader.preprocessor = SegDataPreProcessor()
    result = evaluate(Augmented(preds), loader, tta={"scales": [1.0, 2.0], "flip": True}, progress=False)
    assert sizes[0] == [((1, 3, 10, 12), False), ((1, 3, 10, 12), True), ((1, 3, 20, 24), False),
                        ((1, 3, 20, 24), True)]
    assert result["tta"] == {"scales": [1.0, 2.0], "flip": True} and "test-time augmentation" in format_table(result)


def test_config_comes_from_file_or_checkpoint():
    model = {"backbone": {"type": "MSCAN"}, "decode_head": [{"type": "LightHamHead"}]}
    inside = {"config": {"model": model, "evaluator": {"beta": 1.0}}}
    assert chosen_config(None, ["evaluator.beta=2.0"], inside, "w.safetensors") == {
        "model": model, "evaluator": {"beta": 2.0}}
    with pytest.raises(ConfigError, match="w.safetensors: carries no config"):
        chosen_config(None, [], {}, "w.safetensors")


def test_faults(maps):
    labels, preds = maps
    with pytest.raises(ConfigError, match="unknown metric 'mIOU'; did you mean 'mIoU'"):
        evaluate(FakeModel(preds), FakeLoader(labels), {"metrics": ["mIOU"]}, progress=False)
    with pytest.raises(DataError, match="no pictures"):
        evaluate(FakeModel([]), FakeLoader([]), progress=False)
    with pytest.raises(DataError, match="0.png: label 7"):
        evaluate(FakeModel(preds), FakeLoader([np.full_like(labels[0], 7)]), progress=False)
    model = FakeModel(preds)
    model.num_classes = 4
    with pytest.raises(ConfigError, match="num_classes is 4, the dataset has 3 classes"):
        evaluate(model, FakeLoader(labels), progress=False)
    assert evaluator_faults({"metric": ["mIoU"]}) == [
        "evaluator.metric: unknown key 'metric' in an evaluator; did you mean 'metrics'? (known: metrics, beta, "
        "boundary, small_targets)"]
    assert len(evaluator_faults({"beta": 0, "boundary": {"ratio": 1}, "metrics": [],
                                 "small_targets": {"distance_px": 0}})) == 4
    assert evaluator_faults(None) == evaluator_faults({"boundary": {}, "small_targets": {}}) == []
    with pytest.raises(ConfigError, match="evaluator.small_targets: .*background 3"):
        evaluate(FakeModel(preds), FakeLoader(labels), {"small_targets": {"background": 3}}, progress=False)


def test_small_targets_stand_in_the_result_and_under_the_table(maps):
    labels, preds = maps
    result = evaluate(FakeModel(preds), FakeLoader(labels), {"small_targets": {"distance_px": 2}}, progress=False)
    counts = SmallTargets(3, distance_px=2)
    for pred, label in zip(preds, labels):
        counts.update(pred, label)
    expected = counts.compute()["metrics"]
    assert {key: result["metrics"][key] for key in ("Pd", "Fa")} == expected
    assert [row["Pd"] for row in result["per_class"]] == [None, expected["Pd"], None]
    lines = format_table(result).splitlines()
    assert lines[0].endswith("Pd  Fa (1e-6)")
    assert f"Pd {100 * expected['Pd']:.2f} %, Fa {1e6 * expected['Fa']:.2f}e-6, 6 pictures" in lines[-1]


def test_a_result_says_what_was_scored_and_when(maps):
    labels, preds = maps
    loader = FakeLoader(labels)
    loader.split, loader.dataset.data_root = "val", "data/streets"
    result = evaluate(FakeModel(preds), loader, progress=False)
    assert result["data"] == {"type": "FakeData", "folders": ["data/streets"], "split": "val"}
    age = datetime.datetime.now().astimezone() - datetime.datetime.fromisoformat(result["date"])
    assert 0 <= age.total_seconds() < 3600
