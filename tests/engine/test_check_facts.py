"""`jseg check` compares what several blocks say, and puts one batch through the model without computing."""

import copy
import os
import pathlib
import time
import types

import jittor as jt
import numpy as np
import pytest

from jseg.config import apply_overrides, load_config
from jseg.engine.check import check_config
from jseg.engine.dry_step import dry_step, first_step
from jseg.errors import ConfigError, KernelError
from jseg.layers import BatchNorm2d, Conv2d, LayerNorm
from jseg.losses import CrossEntropyLoss, DiceLoss, FocalLoss, LovaszLoss, TverskyLoss
from jseg.models import build_model
from jseg.ops import labels as label_range
from small_run import small_config

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
HEAD, TRAIN, PIPE = "model.decode_head", "train_dataloader.dataset", "train_dataloader.dataset.pipeline"
VOID = ["data_preprocessor.seg_pad_val=3", f"{HEAD}.ignore_index=3", f"{TRAIN}.ignore_index=3",
        "val_dataloader.dataset.ignore_index=3"]
BN = [f"{HEAD}.norm_cfg={{type: BN}}"]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict:
    cfg = small_config(tmp_path_factory.mktemp("none"))
    assert check_config(cfg) == []
    return cfg


def faults(cfg, *overrides) -> list[str]:
    return check_config(apply_overrides(copy.deepcopy(cfg), overrides))


@pytest.mark.parametrize("overrides, place, words", [
    (VOID[:2], f"{TRAIN}.ignore_index", "got 255, but model.decode_head.ignore_index is 3: ignored pixels would be "
                                        "trained on"),
    (VOID[2:], f"{TRAIN}.ignore_index", "got 3, but model.decode_head.ignore_index is 255"),
    (VOID[2:], f"{TRAIN}.ignore_index", "or map the label away with label_map: {3: 255} on the dataset"),
    (VOID[1:], "data_preprocessor.seg_pad_val", "got 255, but model.decode_head.ignore_index is 3: padding"),
    ([*VOID, f"{PIPE}.2={{type: RandomRotate, prob: 1, degree: 9}}"], f"{PIPE}.2.seg_pad_val", "got 255"),
    ([*VOID, f"{PIPE}.2={{type: Pad, size: [64, 64]}}"], f"{PIPE}.2.pad_val.seg", "got 255"),
    ([*VOID, f"{PIPE}.2={{type: RandomMosaic, prob: 1}}"], f"{PIPE}.2.seg_pad_val", "got 255"),
    ([*VOID, f"{PIPE}.2={{type: RandomCrop, crop_size: 32, cat_max_ratio: 0.75}}"], f"{PIPE}.2.ignore_index",
     "got 255"),
    ([f"{PIPE}.2={{type: RandomCutOut, prob: 1, n_holes: 1, cutout_shape: [4, 4], seg_fill_in: 7}}"],
     f"{PIPE}.2.seg_fill_in", "got 7"),
    ([f"{HEAD}.loss_decode={{type: TverskyLoss, ignore_index: 9}}"], f"{HEAD}.loss_decode.ignore_index", "got 9"),
    (["model.auxiliary_head={type: LightHamHead, in_channels: [32], in_index: [2], channels: 8, num_classes: 3, "
      "ham_channels: 8, "
      "ham_kwargs: {MD_R: 4}, ignore_index: 4}"], "model.auxiliary_head.ignore_index", "got 4"),
    ([f"{HEAD}.num_classes=300"], f"{HEAD}.ignore_index", "the default 255 is one of the 300 classes"),
    ([f"{TRAIN}={{type: RepeatDataset, times: 2, dataset: {{type: FolderDataset, ignore_index: 3, pipeline: [], "
      f"metainfo: {{classes: [a, b, c]}}}}}}"], f"{TRAIN}.dataset.ignore_index", "got 3"),
])
def test_values_that_mean_ignore_must_be_one(good, overrides, place, words):
    if "300" in overrides[0]:
        good = copy.deepcopy(good)
        del good["model"]["decode_head"]["ignore_index"]
    found = [fault for fault in faults(good, *overrides) if fault.startswith(f"{place}: ")]
    assert len(found) == 1 and words in found[0], faults(good, *overrides)


def test_values_that_agree_pass(good):
    assert faults(good, *VOID) == []
    # corners are class 0
    assert faults(good, *VOID, f"{PIPE}.2={{type: RandomRotate, prob: 1, degree: 9, seg_pad_val: 0}}") == []
    assert faults(good, *VOID, f"{PIPE}.2={{type: RandomCrop, crop_size: 32}}") == []  # counts no classes
    assert faults(good, f"{HEAD}.loss_decode={{type: DiceLoss, ignore_index: 0}}") == []  # leaves a class out


@pytest.mark.parametrize("overrides, place, words", [
    ([f"{HEAD}.loss_decode={{type: CrossEntropyLoss, class_weight: [1, 2]}}"], HEAD, "class_weight has 2 values, the "
     "model has 3 classes"),
    ([f"{HEAD}.loss_decode={{type: FocalLoss, class_weight: [1, 2]}}"], HEAD, "FocalLoss: class_weight has 2 values"),
    ([f"{HEAD}.loss_decode={{type: FocalLoss, alpha: [0.1, 0.2]}}"], HEAD, "FocalLoss: alpha has 2 values"),
    ([f"{HEAD}.loss_decode={{type: LovaszLoss, loss_type: binary}}"], HEAD, "'binary' got 3 channels"),
    ([f"{HEAD}.loss_decode={{type: LovaszLoss, classes: [0, 5]}}"], HEAD, "classes names class 5, the model has 0..2"),
    ([f"{HEAD}.loss_decode=[{{type: CrossEntropyLoss}}, {{type: TverskyLoss, class_weight: [1]}}]"], HEAD,
     "TverskyLoss: class_weight has 1"),
    ([f"{HEAD}.loss_decode={{type: DiceLoss}}", f"{HEAD}.sampler={{type: OHEMPixelSampler}}"], HEAD,
     "one loss of the head must be"),
    ([f"{HEAD}.loss_decode={{type: DiceLoss}}", f"{HEAD}.sampler={{type: OHEMPixelSampler, thresh: 0.7, min_kept: 9}}"],
     HEAD,
     "DiceLoss: a ratio of areas takes no pixel_weight"),
    ([*BN, "train_dataloader.batch_size=1", "data_preprocessor.size=[32, 32]"], "model.backbone (patch_embed4.norm)",
     "1 x 32 x 32 pixels does not go through: BatchNorm2d(32): one value per channel in training"),
    (["model.backbone.in_channels=1"], "model.backbone.in_channels",
     "got 1, but train_dataloader.dataset.pipeline.0 gives 3 channels"),
    (["model.backbone.in_channels=4"], "model.backbone.in_channels",
     "got 4, but train_dataloader.dataset.pipeline.0 gives 3 channels"),
    ([f"{HEAD}.loss_decode={{type: CrossEntropyLoss, class_weight: {{ground: 1.0}}}}"], f"{HEAD}.loss_decode",
     "must be a list of numbers >= 0, one for each class"),
    ([f"{HEAD}.loss_decode={{type: CrossEntropyLoss, class_weight: [1, .nan, 1]}}"], f"{HEAD}.loss_decode",
     "class_weight"),
    ([f"{HEAD}.loss_decode={{type: CrossEntropyLoss, class_weight: gone.json}}"], f"{HEAD}.loss_decode",
     "cannot be read"),
    (["model.backbone.init_cfg={}"], "model.backbone", "named once, at the top of the config: load_from:"),
    (["model.backbone.frozen_stages=5"], "model.backbone", "frozen_stages is 5; -1 freezes nothing"),
    ([f"{HEAD}.num_classes=1"], HEAD, "name two classes ([background, ...]) and set num_classes: 2"),
    (["train_cfg.early_stop={}"], "train_cfg.early_stop needs 'patience', a number of evaluations", ""),
    (["train_cfg.early_stop={patience: 2, monitor: mDice}", "evaluator={metrics: [mIoU]}"],
     "train_cfg.early_stop.monitor", "got 'mDice'"),
    (["train_cfg.early_stop={patience: 0}"], "train_cfg.early_stop.patience", "got 0"),
    (["train_dataloader.num_workers=100000"], "train_dataloader.num_workers", "accepted"),
    (["train_dataloader.batch_size=1000000000000"], "train_dataloader.batch_size", "accepted"),
    (["model.backbone.depths=[1000000, 1, 1, 1]"], "model.backbone.depths", "accepted"),
])
def test_blocks_that_do_not_fit_are_one_line(good, overrides, place, words):
    found = [fault for fault in faults(good, *overrides) if fault.startswith(place) and words in fault]
    assert len(found) == 1 and "\n" not in found[0], faults(good, *overrides)


def test_the_dry_step_is_quick_and_leaves_nothing(good):
    state, began = np.random.get_state()[1].copy(), time.process_time()
    live = jt.liveness_info()["lived_vars"]
    assert faults(good, "model.backbone.variant=large", "model.backbone.embed_dims=null", "model.backbone.depths=null",
                  "model.backbone.mlp_ratios=[8, 8, 4, 4]", f"{HEAD}.in_channels=[128, 320, 512]",
                  "data_preprocessor.size=[1024, 1024]") == []
    assert time.process_time() - began < 10  # 0.5 s on a free machine
    assert (np.random.get_state()[1] == state).all() and jt.liveness_info()["lived_vars"] <= live + 50


@pytest.mark.parametrize("name", [
    "ddrnet/ddrnet_23-slim_cityscapes-1024x1024_120k", "pidnet/pidnet-s_cityscapes-1024x1024_120k",
    "point_rend/pointrend_r50_cityscapes-512x1024_80k", "fastscnn/fast_scnn_cityscapes-512x1024_160k"])
def test_a_model_that_reads_its_values_is_not_computed(name):
    """Hard pixels, undecided points, accuracy: each of these took 5 to 40 s."""
    config, began = load_config(CONFIGS / f"{name}.yaml"), os.times()
    assert dry_step(config) == []
    assert sum(os.times()[:4]) - sum(began[:4]) < 2  # 0.2 s on a free machine
    assert jt.ones((2,)).sum().item() == 2.0  # what was stood in for is back


def test_a_first_step_that_fails_names_its_block(good):
    """Where `check` saw a larger batch than the one that came."""
    cfg = apply_overrides(good, [*BN, "model.backbone.drop_path_rate=0.0"])
    model = build_model(cfg)
    model.train()
    with pytest.raises(ConfigError, match=r"model.backbone \(patch_embed4.norm\): the first training batch of \(1, 3, "
                                          r"32, 32\) does not go"):
        first_step(model, jt.zeros((1, 3, 32, 32)), jt.array(np.zeros((1, 32, 32), np.int32)))


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), CrossEntropyLoss(use_sigmoid=True), DiceLoss(), FocalLoss(),
                                  LovaszLoss(), TverskyLoss()],
                         ids=lambda loss: loss.loss_name)
def test_every_loss_looks_at_its_labels(loss):
    logits, labels = jt.zeros((1, 3, 4, 4)), np.zeros((1, 4, 4), np.int32)
    labels[0, 1, 2] = 255
    assert np.isfinite(loss(logits, jt.array(labels)).item())
    for value in (3, -1):
        labels[0, 0, 0] = value
        with pytest.raises(KernelError, match=f"1 labels are outside the 3 classes, the first is {value}"):
            loss(logits, jt.array(labels))
    labels[0, 1, 2] = 0
    assert np.isfinite(loss(logits, jt.array(labels), ignore_index=-1).item())


def test_layers_compare_channels():
    x = jt.zeros((2, 3, 8, 8))
    for layer in (Conv2d(1, 16, 3), Conv2d(4, 16, 3), Conv2d(1, 16, 1), BatchNorm2d(1), LayerNorm(1, axis=1),
                  LayerNorm(8, axis=1)):
        for mode in (layer.train, layer.eval):
            mode()
            with pytest.raises((ValueError, KernelError)):
                layer(x)
    with pytest.raises(ValueError, match="LayerNorm: x is"):
        LayerNorm(1)(jt.zeros((2, 3, 8)))
    norm = BatchNorm2d(3)
    norm.eval()
    with pytest.raises(ValueError, match="residual is"):
        norm(x, residual=jt.zeros((2, 1, 8, 8)))


def test_on_cuda_the_first_batches_are_looked_at(monkeypatch):
    """A look waits for the device, so only a run's first batches pay for it."""
    monkeypatch.setattr(label_range, "jt", types.SimpleNamespace(flags=types.SimpleNamespace(use_cuda=1)))
    monkeypatch.setattr(label_range, "_looked", 0)
    odd = types.SimpleNamespace(numpy=lambda: np.full((1, 2, 2), 7))
    for _ in range(label_range.FIRST_ON_GPU):
        with pytest.raises(KernelError, match="4 labels are outside the 3 classes, the first is 7"):
            label_range.check_label_range("x", odd, 3, 255)
    label_range.check_label_range("x", odd, 3, 255)
