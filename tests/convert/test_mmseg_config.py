"""Foreign configs keep their meaning: SegNeXt's four sizes against the shipped configs,
and the three families' differences.
"""

import copy
import inspect
import pathlib

import pytest
from config_samples import AUTHORS_BASE, JSEG, TREE_1X, plant

from jseg.config import dump_config, load_config
from jseg.convert.mmseg_config import config_style, translate_config
from jseg.convert.mmseg_data import DATASET_KEYS, DATASETS_HERE
from jseg.convert.mmseg_model import PREPROCESSOR_KEYS
from jseg.convert.mmseg_pipeline import TRANSFORM_KEYS
from jseg.convert.mmseg_schedule import OPTIMIZER_KEYS, SCHEDULE_KEYS
from jseg.convert.py_config import parse_py_config, read_py_config
from jseg.engine.check import check_config
from jseg.engine.schedules import LearningRate, build_schedules
from jseg.errors import ConvertError
from jseg.models.heads.ham_head import ham_options
from jseg.registry import DATASETS, OPTIMIZERS, SCHEDULES, TRANSFORMS

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs" / "segnext"


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """The 1.x configs of the four sizes."""
    return plant(tmp_path, TREE_1X)


def translated(text: str, **changes):
    """Translate config text; `changes` replace top-level entries."""
    return translate_config({**parse_py_config(text, "x.py"), **changes}, source="x.py")


def said(translation, *parts: str) -> bool:
    """Whether one note holds all these words."""
    return any(all(part in note for part in parts) for note in translation.notes)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_four_sizes_mean_what_the_shipped_configs_mean(folder, size):
    got = translate_config(read_py_config(folder / f"{size}.py"), source=size).config
    want = load_config(CONFIGS / f"segnext_{size}_ade20k-512x512_160k.yaml")
    assert check_config(got) == []
    for cfg in (got, want):
        head = cfg["model"]["decode_head"]
        head["ham_kwargs"] = ham_options(head["ham_kwargs"])
        head.setdefault("ignore_index", 255), head.setdefault("sampler", None)
        for split in ("train", "val"):
            cfg[f"{split}_dataloader"].pop("num_workers")
    for key in ("model", "data_preprocessor", "train_dataloader", "val_dataloader", "optimizer", "paramwise_cfg",
                "param_scheduler", "tta"):
        assert got[key] == want[key], key
    assert "test_dataloader" not in got  # equal to val
    same = ("max_iters", "val_interval", "log_interval", "keep", "save_best", "accumulative_counts",
            "clip_grad", "ema", "amp")
    assert {key: got["train_cfg"][key] for key in same} == {key: want["train_cfg"][key] for key in same}
    assert got["train_cfg"]["ckpt_interval"] == 16000 and got["evaluator"] == {"metrics": ["mIoU"]}


def test_text_is_stable_and_reads_back(folder, tmp_path):
    cfg = read_py_config(folder / "tiny.py")
    before = copy.deepcopy(cfg)
    texts = [dump_config(translate_config(cfg, source="x").config) for _ in range(2)]
    shuffled = {key: cfg[key] for key in sorted(cfg, reverse=True)}
    assert texts[0] == texts[1] == dump_config(translate_config(shuffled, source="x").config) and cfg == before
    (tmp_path / "out.yaml").write_text(texts[0])
    assert load_config(tmp_path / "out.yaml") == translate_config(cfg, source="x").config


def test_notes_of_a_plain_1x_config(folder):
    result = translate_config(read_py_config(folder / "tiny.py"), source="x")
    assert said(result, "model.backbone", "https://example.invalid/mscan_t.pth") and said(result, "inv_t: 100")
    assert (said(result, "run environment", "default_scope", "visualizer")
            and said(result, "other names", "ham_norm", "train_steps"))
    assert len(result.notes) == 5, result.notes


def test_authors_release():
    result = translated(AUTHORS_BASE)
    cfg = result.config
    assert config_style(parse_py_config(AUTHORS_BASE, "x")) == "mmseg 0.x" and check_config(cfg) == []
    assert cfg["model"]["backbone"] == {"type": "MSCAN", "variant": "base", "drop_path_rate": 0.1,
                                        "norm_cfg": {"type": "SyncBN"}}
    assert cfg["model"]["decode_head"]["ham_kwargs"] == {"MD_S": 1, "MD_R": 64, "train_steps": 6, "eval_steps": 7,
                                                         "rand_init": True, "grad": "full"}
    assert cfg["data_preprocessor"] == {
        "type": "SegDataPreProcessor", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375],
        "bgr_to_rgb": True, "size": [512, 512], "pad_val": 0, "seg_pad_val": 255, "test_cfg": {"resize_divisor": 32}}
    want = load_config(CONFIGS / "segnext_base_ade20k-512x512_160k.yaml")
    train = cfg["train_dataloader"]["dataset"]
    assert (train["type"], train["times"]) == ("RepeatDataset", 50) and cfg["train_dataloader"]["batch_size"] == 4
    for got, expected in ((train["dataset"], want["train_dataloader"]["dataset"]),
                          (cfg["val_dataloader"]["dataset"], want["val_dataloader"]["dataset"])):
        assert {**got, "data_root": ""} == {**expected, "data_root": ""}
    assert cfg["optimizer"] == want["optimizer"] and cfg["paramwise_cfg"] == want["paramwise_cfg"]
    assert (cfg["train_cfg"]["max_iters"], cfg["train_cfg"]["val_interval"]) == (160000, 8000) and "tta" not in cfg
    assert said(result, "samples_per_gpu: 4 pictures on each device") and said(result, "pretrained/mscan_b.pth")
    assert said(result, "run environment", "find_unused_parameters")


def test_old_warm_up_gives_the_old_numbers():
    blocks = translated(AUTHORS_BASE, runner={"type": "IterBasedRunner", "max_iters": 400},
                        lr_config={"policy": "poly", "warmup": "linear", "warmup_iters": 15,
                                   "warmup_ratio": 1e-6, "power": 0.9,
                                   "min_lr": 0.0, "by_epoch": False}).config["param_scheduler"]
    rates = LearningRate(build_schedules(blocks), [6e-5, 6e-4], 400, 10)
    for i in range(400):
        factor = (1 - i / 400) ** 0.9 * (1 - (1 - i / 15) * (1 - 1e-6) if i < 15 else 1)
        assert rates.at(i) == pytest.approx([6e-5 * factor, 6e-4 * factor], rel=1e-9), i


def test_old_warm_up_with_a_lowest_rate_is_said():
    result = translated(AUTHORS_BASE, lr_config={"policy": "poly", "warmup": "linear", "warmup_iters": 100,
                                                 "warmup_ratio": 0.1, "power": 0.9, "min_lr": 1e-4, "by_epoch": False})
    assert result.config["param_scheduler"] == [
        {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 100},
        {"type": "PolyLR", "power": 0.9, "eta_min": 1e-4, "by_epoch": False, "begin": 100, "end": 160000}]
    assert said(result, "warmup", "lowest rate above 0")


def test_original_jseg():
    result = translated(JSEG)
    cfg = result.config
    assert config_style(parse_py_config(JSEG, "x")) == "original JSeg" and check_config(cfg) == []
    assert cfg["model"]["backbone"] == {"type": "MSCAN", "variant": "base", "drop_path_rate": 0.2}
    assert cfg["model"]["decode_head"]["ham_kwargs"] == {"MD_S": 1, "MD_R": 64, "train_steps": 5, "eval_steps": 7,
                                                         "rand_init": True, "grad": "one_step"}
    assert cfg["model"]["test_cfg"] == {"mode": "slide", "crop_size": [1024, 1024], "stride": [768, 768]}
    assert "test_cfg" not in cfg["data_preprocessor"]  # this config neither pads nor resizes to a multiple
    assert (cfg["train_dataloader"]["batch_size"] == 8
            and cfg["train_dataloader"]["dataset"]["type"] == "CityscapesDataset")
    assert [step["type"] for step in cfg["val_dataloader"]["dataset"]["pipeline"]] == [
        "LoadImageFromFile", "Resize", "LoadAnnotations", "PackSegInputs"]
    assert cfg["optimizer"]["type"] == "AdamW" and cfg["paramwise_cfg"]["custom_keys"]["head"] == {"lr_mult": 10.0}
    assert cfg["param_scheduler"][1] == {"type": "PolyLR", "power": 1.0, "eta_min": 0.0, "by_epoch": False, "begin": 0,
                                         "end": 160001}
    assert cfg["train_cfg"]["ckpt_interval"] == 8000
    assert (said(result, "jittorhub://mscan_b.pkl") and said(result, "MD_D: 512")
            and said(result, "custom_keys", "the longest"))


def test_old_resize_in_all_its_forms():
    def steps(**resize) -> list:
        data = parse_py_config(AUTHORS_BASE, "x")["data"]
        data["train"]["dataset"]["pipeline"][2] = {"type": "Resize", **resize}
        return translated(AUTHORS_BASE, data=data).config["train_dataloader"]["dataset"]["dataset"]["pipeline"][2]

    assert steps(img_scale=(64, 32), keep_ratio=False) == {"type": "Resize", "scale": [64, 32], "keep_ratio": False}
    assert steps(img_scale=[(64, 32), (96, 48)], multiscale_mode="value") == {
        "type": "RandomChoiceResize", "scales": [[64, 32], [96, 48]], "keep_ratio": True}
    assert steps(img_scale=[(64, 32), (48, 96)]) == {"type": "RandomResize", "scale": [[64, 32], [96, 48]],
                                                     "keep_ratio": True}
    assert steps(ratio_range=(0.5, 2.0))["type"] == "RandomCrop"  # left out, and said


def test_old_test_time_views_and_lists_of_folders():
    data = parse_py_config(AUTHORS_BASE, "x")["data"]
    data["test"]["pipeline"][1].update(flip=True, img_ratios=[0.5, 1.0])
    data["train"] = {**data["train"]["dataset"], "type": "PascalVOCDataset", "img_dir": "JPEGImages",
                     "ann_dir": ["A", "B"], "split": ["a.txt", "b.txt"], "data_root": "voc"}
    result = translated(AUTHORS_BASE, data=data)
    assert (result.config["tta"] == {"scales": [0.5, 1.0], "flip": True}
            and said(result, "MultiScaleFlipAug", "own size"))
    train = result.config["train_dataloader"]["dataset"]
    assert train["type"] == "ConcatDataset" and [part["data_prefix"] for part in train["datasets"]] == [
        {"img_path": "JPEGImages", "seg_map_path": "A"}, {"img_path": "JPEGImages", "seg_map_path": "B"}]
    assert [part["ann_file"] for part in train["datasets"]] == ["a.txt", "b.txt"]


def test_what_jseg_lacks_is_kept_and_said(folder):
    cfg = read_py_config(folder / "tiny.py")
    cfg["model"]["auxiliary_head"] = {"type": "mmseg.FooHead", "in_channels": 3, "in_index": 1, "k": 2}
    cfg["model"]["decode_head"]["strange"] = 1
    cfg["train_dataloader"]["dataset"]["pipeline"].insert(4, {"type": "Albu", "p": 1})
    cfg["optim_wrapper"].update(type="AmpOptimWrapper", constructor="LayerDecay", accumulative_counts=2,
                                clip_grad={"max_norm": 1.0})
    cfg["custom_hooks"] = [{"type": "EMAHook", "momentum": 0.001}, {"type": "OtherHook"}]
    cfg["param_scheduler"].append({"type": "StrangeLR"})
    result = translate_config(cfg, source="x")
    got = result.config
    assert got["model"]["auxiliary_head"] == {"type": "FooHead", "in_channels": 3, "in_index": 1, "k": 2}
    assert "strange" not in got["model"]["decode_head"] and got["param_scheduler"][2] == {"type": "StrangeLR"}
    assert (got["train_cfg"]["amp"], got["train_cfg"]["accumulative_counts"], got["train_cfg"]["clip_grad"],
            got["train_cfg"]["ema"]) == (
                True, 2, {"max_norm": 1.0}, {"decay": 0.999})
    for words in (("auxiliary_head.type", "FooHead"), ("decode_head.strange", "1"), ("Albu",),
                  ("optim_wrapper.constructor",), ("custom_hooks.1", "OtherHook"), ("StrangeLR",)):
        assert said(result, *words), words
    faults = check_config(got)
    assert [any(word in fault for fault in faults) for word in ("FooHead", "Albu", "StrangeLR")] == [True] * 3


def test_a_dataset_without_a_class_becomes_a_folder(folder):
    cfg = read_py_config(folder / "tiny.py")
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"]["dataset"].update(type="BaseSegDataset", reduce_zero_label=True)
    cfg["model"]["decode_head"]["num_classes"] = 2
    assert said(translate_config(cfg, source="x"), "jseg has no BaseSegDataset", "kept")
    result = translate_config(cfg, source="x",
                              metainfo={"classes": ("road", "water"), "palette": [[1, 2, 3], [4, 5, 6]], "more": 1})
    dataset = result.config["val_dataloader"]["dataset"]
    assert dataset["type"] == "FolderDataset" and dataset["metainfo"]["classes"] == ["road", "water"]
    assert (dataset["img_suffix"], dataset["reduce_zero_label"]) == (".jpg", True) and check_config(result.config) == []


@pytest.mark.parametrize("kind, reduces", [("LoveDADataset", True), ("ISPRSDataset", True), ("LIPDataset", False),
                                           ("MapillaryDataset_v2", False)])
def test_every_dataset_class_is_known(folder, kind, reduces):
    """Upstream's name stays, and the zero label means what upstream's default means, also when it is switched off."""
    cfg = read_py_config(folder / "tiny.py")
    blocks = [cfg[f"{split}_dataloader"]["dataset"] for split in ("train", "val", "test")]
    for block in blocks:
        block["type"] = kind
        block.pop("reduce_zero_label", None)
        for step in block["pipeline"]:
            step.pop("reduce_zero_label", None)
    classes = DATASETS.get(kind).METAINFO["classes"]
    cfg["model"]["decode_head"]["num_classes"] = len(classes)
    result = translate_config(cfg, source="x")
    dataset = result.config["val_dataloader"]["dataset"]
    assert dataset["type"] == kind and not said(result, "jseg has no") and check_config(result.config) == []
    assert DATASETS.build({**dataset, "test_mode": True}).reduce_zero_label is reduces
    for block in blocks:
        block["reduce_zero_label"] = False
    dataset = translate_config(cfg, source="x").config["val_dataloader"]["dataset"]
    assert DATASETS.build({**dataset, "test_mode": True}).reduce_zero_label is False


def test_datasets_that_convert_are_those_registered():
    from jseg.data.datasets import ClassBalancedDataset, ConcatDataset, ImageFolder, RepeatDataset
    wrappers = {entry.__name__ for entry in (ClassBalancedDataset, ConcatDataset, RepeatDataset)}
    assert set(DATASETS_HERE) == set(DATASETS.names()) - wrappers - {ImageFolder.__name__}  # no segmentation


def test_sizes_that_are_no_variant_stay_explicit(folder):
    cfg = read_py_config(folder / "tiny.py")
    del cfg["model"]["backbone"]["depths"], cfg["model"]["backbone"]["mlp_ratios"]
    backbone = translate_config(cfg, source="x").config["model"]["backbone"]
    # upstream's defaults
    assert backbone["depths"] == [3, 4, 6, 3] and backbone["mlp_ratios"] == [4, 4, 4, 4] and "variant" not in backbone


@pytest.mark.parametrize("cfg, text", [
    ({}, "no model"), ({"model": {"type": "X"}}, "no model"), ({"model": 3}, "model: expected a block"),
    ([], "expected a config's settings"),
    ({"model": {"backbone": {"type": "MSCAN"}, "decode_head": object()}}, r"model\.decode_head: object is no setting"),
    ({"model": {"backbone": "MSCAN", "decode_head": {}}}, r"model\.backbone: expected a block"),
])
def test_what_is_no_config_is_refused(cfg, text):
    with pytest.raises(ConvertError, match=f"^w.pth: .*{text}|^w.pth: {text}"):
        translate_config(cfg, source="w.pth")


def test_a_block_that_holds_itself_is_refused():
    model: dict = {"backbone": {"type": "MSCAN"}}
    model["decode_head"] = model
    with pytest.raises(ConvertError, match="levels; this is no config"):
        translate_config({"model": model}, source="w.pth")


def test_tables_agree_with_the_classes_they_stand_for():
    from jseg.data.preprocess import SegDataPreProcessor

    def parameters(entry) -> set[str]:
        return set(inspect.signature(entry).parameters) - {"groups", "backend_args", "meta_keys", "test_mode"}

    for registry, table in ((TRANSFORMS, TRANSFORM_KEYS), (OPTIMIZERS, OPTIMIZER_KEYS), (SCHEDULES, SCHEDULE_KEYS)):
        for name, keys in table.items():
            assert set(keys) == parameters(registry.get(name)), name
    assert set(PREPROCESSOR_KEYS) == parameters(SegDataPreProcessor)
    for name in DATASETS_HERE:
        assert set(DATASET_KEYS) <= parameters(DATASETS.get(name)), name
