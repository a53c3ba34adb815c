"""`check_config` finds every mistake at once and names its place and the nearest valid word."""

import copy
import pathlib

import numpy as np
import pytest

from jseg.config import apply_overrides, load_config, merge
from jseg.engine.check import check_config, class_names, summary

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs" / "segnext"


@pytest.fixture(scope="module")
def good() -> dict:
    """A valid config; tests change copies of it."""
    return load_config(CONFIGS / "segnext_tiny_ade20k-512x512_160k.yaml")


def faults(cfg: dict, *overrides: str) -> list[str]:
    """Faults of a config after overrides."""
    return check_config(apply_overrides(copy.deepcopy(cfg), overrides))


def test_a_valid_config_has_no_faults_and_stays_unchanged(good):
    before = copy.deepcopy(good)
    assert check_config(good) == [] and good == before
    assert summary(good) == "MSCAN tiny + LightHamHead on ADE20KDataset (150 classes), 160000 iterations of 16 pictures"


def test_the_random_generator_is_left_alone(good):
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    check_config(good)
    np.testing.assert_array_equal(np.random.random(4), expected)


HEAD = "model.decode_head"
PIPE = "train_dataloader.dataset.pipeline"


@pytest.mark.parametrize("override, words", [
    ("modle={}", "modle: unknown key 'modle' in the top level of a config; did you mean 'model'?"),
    ("seed=-1", "seed: got -1, expected a whole number, 0 or more"),
    ("seed=true", "seed: got True, expected a whole number"),
    ("model.type=EncoderDecodr", "model: unknown model 'EncoderDecodr'; did you mean 'EncoderDecoder'?"),
    ("model.type=[a]", "model.type: got ['a'], expected the name of a model"),
    ("model.bakbone={}", "model: unknown key 'bakbone' for EncoderDecoder; did you mean 'backbone'?"),
    ("model.backbone.type=MSCA", "model.backbone: unknown model 'MSCA'; did you mean 'MSCAN'?"),
    ("model.backbone.varient=tiny", "model.backbone: unknown key 'varient' for MSCAN; did you mean 'variant'?"),
    ("model.backbone.variant=tinny", "did you mean 'tiny'?"),
    ("model.backbone=null", "model.backbone: got null, expected a block with a 'type:'"),
    ("model.backbone.norm_cfg={type: BNN}", "model.backbone"),
    ("model.backbone.act_cfg={typ: GELU}", "model.backbone"),
    ("model.backbone.variant=base", f"{HEAD}.in_channels: got [64, 160, 256], but maps [1, 2, 3] of this MSCAN have "
                                    "[128, 320, 512]"),
    (f"{HEAD}.in_index=[1, 2, 4]", f"{HEAD}.in_index: got [1, 2, 4], but the backbone makes 4 maps (0 to 3)"),
    (f"{HEAD}.chanels=1", f"{HEAD}: unknown key 'chanels' for LightHamHead; did you mean 'channels'?"),
    (f"{HEAD}.ham_kwargs.MD_Q=3", HEAD),
    (f"{HEAD}.num_classes=151", f"{HEAD}.num_classes: got 151, but train_dataloader.dataset (ADE20KDataset) has 150 "
                                "classes"),
    (f"{HEAD}.loss_decode.type=CrossEntropy", f"{HEAD}.loss_decode: unknown loss 'CrossEntropy'; did you mean "
                                              "'CrossEntropyLoss'?"),
    (f"{HEAD}.loss_decode=[{{type: DiceLoss}}, {{type: FocalLoss, gama: 2}}]",
     f"{HEAD}.loss_decode.1: unknown key 'gama' for FocalLoss"),
    (f"{HEAD}.sampler={{type: OHEMPixelSampler, tresh: 0.7}}",
     f"{HEAD}.sampler: unknown key 'tresh' for OHEMPixelSampler"),
    (f"{HEAD}.ignore_index=254", f"data_preprocessor.seg_pad_val: got 255, but {HEAD}.ignore_index is 254"),
    ("model.auxiliary_head=[{type: FCNHed}]", "model.auxiliary_head.0: unknown model 'FCNHed'"),
    ("model.test_cfg.mode=slid", "model.test_cfg.mode: got 'slid', expected whole or slide"),
    ("model.test_cfg={mode: slide, crop_size: [64, 64]}", "model.test_cfg: mode slide needs 'stride'"),
    ("model.test_cfg={mode: slide, crop_size: [64, 64], stride: [96, 64]}",
     "stride [96, 64] is larger than crop_size [64, 64]"),
    ("model.test_cfg.crop=3", "model.test_cfg.crop: unknown key 'crop' in test_cfg; did you mean 'crop_size'?"),
    ("data_preprocessor.maen=[1, 2, 3]", "data_preprocessor: unknown key 'maen' for SegDataPreProcessor; did you mean "
                                         "'mean'?"),
    ("data_preprocessor.std=[1, 0, 1]", "data_preprocessor: SegDataPreProcessor: std must be positive"),
    ("data_preprocessor.type=SegDataPreprocessor", "did you mean 'SegDataPreProcessor'?"),
    ("train_dataloader.batchsize=3", "train_dataloader.batchsize: unknown key 'batchsize' in a dataloader; did you "
                                     "mean 'batch_size'?"),
    ("train_dataloader.batch_size=0", "train_dataloader.batch_size: got 0, expected a whole number above 0"),
    ("val_dataloader.dataset.type=ADE20K", "val_dataloader.dataset: unknown dataset 'ADE20K'"),
    ("val_dataloader.dataset.dataroot=x", "val_dataloader.dataset: unknown key 'dataroot' for ADE20KDataset; did you "
                                          "mean 'data_root'?"),
    ("val_dataloader.dataset.metainfo={classes: [wall, sky]}",
     f"{HEAD}.num_classes: got 150, but val_dataloader.dataset"),
    (f"{PIPE}.2.ratio_rang=[1, 2]",
     f"{PIPE}.2: unknown key 'ratio_rang' for RandomResize; did you mean 'ratio_range'?"),
    (f"{PIPE}.3.cat_max_ratio=75", f"{PIPE}.3: RandomCrop: "),
    (f"{PIPE}.4.type=RandomFlop", f"{PIPE}.4: unknown transform 'RandomFlop'; did you mean 'RandomFlip'?"),
    (f"{PIPE}.3.crop_size=[640, 512]", f"{PIPE}: RandomCrop cuts [640, 512], larger than data_preprocessor.size [512, "
                                       "512]"),
    (f"{PIPE}=[{{type: LoadImageFromFile}}]", f"{PIPE}: no LoadAnnotations"),
    ("val_dataloader.dataset.pipeline=[]", "val_dataloader.dataset.pipeline: no LoadImageFromFile"),
    ("data_preprocessor.mean=[1, 2]", "mean and std need one value per channel each, got [1, 2]"),
    ("data_preprocessor.bgr_to_rgb='no'", "data_preprocessor.bgr_to_rgb: got 'no', expected true or false"),
    ("data_preprocessor.test_cfg.size_divisor=0", "data_preprocessor.test_cfg.size_divisor: got 0, expected a whole "
                                                  "number above 0"),
    (f"{HEAD}.align_corners=maybe", f"{HEAD}.align_corners: got 'maybe', expected true or false"),
    (f"{HEAD}.channels=256.0", f"{HEAD}.channels: got 256.0, expected a whole number"),
    ("val_dataloader.dataset.data_root=7", "val_dataloader.dataset.data_root: got 7, expected text or null"),
    ("param_scheduler.1.by_epoch='false'", "param_scheduler.1.by_epoch: got 'false', expected true or false"),
    (f"{PIPE}=null", f"{PIPE}: got None, expected a list of transforms"),
    (f"{PIPE}.5={{type: Normalize, mean: [0, 0, 0], std: [1, 1, 1]}}",
     f"{PIPE}: Normalize comes on top of data_preprocessor.mean"),
    ("optimizer.type=AdamX", "optimizer: unknown optimizer 'AdamX'; did you mean 'Adam'?"),
    ("optimizer.beta=[0.9, 0.99]", "optimizer: unknown key 'beta' for AdamW; did you mean 'betas'?"),
    ("optimizer.lr='6e-5'", "optimizer.lr: got '6e-5', expected a number above 0"),
    ("optimizer.betas=[0.9, 1.0]", "optimizer.betas: got [0.9, 1.0], expected two numbers"),
    ("paramwise_cfg.custom_key={}", "paramwise_cfg.custom_key: unknown key 'custom_key' in paramwise_cfg; did you mean "
                                    "'custom_keys'?"),
    ("paramwise_cfg.custom_keys.head.lr_mul=3", "paramwise_cfg.custom_keys.head.lr_mul: unknown key 'lr_mul'"),
    ("paramwise_cfg.custom_keys.head=10", "paramwise_cfg.custom_keys.head: got 10, expected lr_mult and/or decay_mult"),
    ("param_scheduler.1.powr=1", "param_scheduler.1: unknown key 'powr' for PolyLR; did you mean 'power'?"),
    ("param_scheduler.0.end=0", "param_scheduler.0: "),
    ("train_cfg.max_iters=1e5", "train_cfg.max_iters: got 100000.0, expected a whole number above 0"),
    ("train_cfg.max_epochs=3", "train_cfg: got max_iters and max_epochs, expected exactly one"),
    ("train_cfg.max_iters=null", "train_cfg: got neither max_iters nor max_epochs, expected exactly one"),
    ("train_cfg.val_intervall=3", "train_cfg.val_intervall: unknown key 'val_intervall' in train_cfg; did you mean "
                                  "'val_interval'?"),
    ("train_cfg.save_best=mIOU", "train_cfg.save_best: got 'mIOU', expected one of"),
    ("train_cfg.save_best=mBoundaryIoU", "train_cfg.save_best: got 'mBoundaryIoU', but the evaluator computes aAcc, "),
    ("evaluator.metrics=[mDice]", "train_cfg.save_best: got 'mIoU', but the evaluator computes aAcc, mAcc, mDice"),
    ("train_cfg.clip_grad={max_nrom: 1}", "train_cfg.clip_grad.max_nrom: unknown key"),
    ("train_cfg.ema={decay: 2}", "train_cfg.ema.decay: got 2, expected a number between 0 and 1"),
    ("evaluator.metrics=[mIou]", "evaluator.metrics: unknown metric 'mIou'; did you mean 'mIoU'?"),
    ("evaluator.boundary={dilation: 0.02}", "evaluator.boundary.dilation: unknown key"),
    ("evaluator.small_targets={background: 500}", "evaluator.small_targets.background: got 500, expected a class of"),
    ("tta.scales=[]", "tta.scales: got [], expected a list of numbers above 0"),
    ("tta.flip=1", "tta.flip: got 1, expected true or false"),
    ("work_dir=3", "work_dir: got 3, expected text"),
    ("model=3", "model: got 3, expected a block of keys")])
def test_each_mistake_is_named(good, override, words):
    found = faults(good, override)
    assert any(words in fault for fault in found), "\n".join(found)


def test_one_mistake_makes_one_line(good):
    """No mistake is reported twice, whichever check sees it first."""
    for override in (f"{PIPE}.2.ratio_rang=[1, 2]", f"{HEAD}.loss_decode.type=CrossEntropy", f"{HEAD}.chanels=1",
                     "optimizer.type=AdamX", "val_dataloader.dataset.dataroot=x", "model.backbone.varient=tiny",
                     "param_scheduler.1.powr=1", "data_preprocessor.maen=[1, 2, 3]", "model.test_cfg.mode=slid"):
        assert len(faults(good, override)) == 1, faults(good, override)


def test_all_mistakes_come_at_once(good):
    found = faults(good, "sead=1", "model.backbone.varient=tiny", f"{HEAD}.num_classes=19", f"{PIPE}.3.crop=1",
                   "optimizer.lr=-1", "train_cfg.keeep=2", "tta.scale=[1]")
    for word in ("'sead'", "'varient'", "got 19", "'crop'", "got -1", "'keeep'", "'scale'"):
        assert any(word in fault for fault in found), word


def test_missing_blocks_are_named():
    found = check_config({"optimizer": None}, where="x.yaml")
    assert found == [f"x.yaml: the config needs a {key!r} block"
                     for key in ("model", "data_preprocessor", "train_dataloader", "optimizer", "train_cfg")]


def test_validation_needs_a_loader(good):
    cfg = {key: value for key, value in good.items() if key != "val_dataloader"}
    assert check_config(cfg) == ["train_cfg.val_interval is set, but there is no val_dataloader; add one or set "
                                 "val_interval to null"]
    assert faults(cfg, "train_cfg.val_interval=null") == []


def test_optional_blocks_may_be_null_or_absent(good):
    small = {key: good[key] for key in ("model", "data_preprocessor", "train_dataloader", "val_dataloader",
                                        "optimizer", "train_cfg")}
    assert check_config(small) == []
    assert faults(good, "paramwise_cfg=null", "tta=null", "test_dataloader=null", "param_scheduler=null",
                  "evaluator=null") == []


def test_wrapped_datasets_are_searched(good):
    part = good["train_dataloader"]["dataset"]
    bad = merge(part, {"pipeline": [{"type": "LoadImageFromFile", "colour": 1}, {"type": "LoadAnnotations"}]})
    for wrapper, place in (({"type": "ConcatDataset", "datasets": [part, bad]}, "datasets.1"),
                           ({"type": "RepeatDataset", "times": 2, "dataset": bad}, "dataset")):
        cfg = merge(good, {"train_dataloader": {"dataset": {"_delete_": True, **wrapper}}})
        assert [f.partition(" for ")[0] for f in check_config(cfg)] == [
            f"train_dataloader.dataset.{place}.pipeline.0: unknown key 'colour'"]
    cfg = merge(good, {"train_dataloader": {"dataset": {"_delete_": True, "type": "RepeatDataset", "times": 0,
                                                        "dataset": part}}})
    assert [f for f in check_config(cfg) if "times must be at least 1" in f]


def test_class_names_come_from_the_block():
    names = class_names({"type": "FolderDataset", "metainfo": {"classes": ["a", "b"]}})
    assert names == ["a", "b"] and len(class_names({"type": "CamVidDataset"})) == 11
    assert class_names({"type": "Unknown"}) is None


def places(block, trail=()):
    """The way to every value inside nested blocks and lists."""
    for key, value in block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else ():
        yield (*trail, key)
        yield from places(value, (*trail, key))


@pytest.mark.parametrize("value", ["x", None, [[1]], {"type": [1]}], ids=repr)
def test_no_value_anywhere_makes_the_check_itself_fail(good, value):
    """Whatever stands wherever: a list of faults comes back, never an exception."""
    small = merge(good, {"model": {"backbone": {"embed_dims": [8] * 4, "depths": [1] * 4},
                                   "decode_head": {"in_channels": [8] * 3, "channels": 32, "ham_channels": 32}}})
    assert check_config(small) == []
    for *parents, last in places(small):
        if parents[:1] == ["val_dataloader"]:  # the same code as for train_dataloader
            continue
        cfg = copy.deepcopy(small)
        block = cfg
        for key in parents:
            block = block[key]
        block[last] = value
        assert isinstance(check_config(cfg), list)
