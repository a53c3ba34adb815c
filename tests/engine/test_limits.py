"""Numbers that nobody means are named with key, value and accepted range; all shipped configs and their like pass."""

import copy

import pytest

from jseg.config import apply_overrides, load_config
from jseg.engine.limits import MAX_DEPTH, absurd, model_values

CONFIG = "configs/segnext/segnext_tiny_camvid-240x320_cpu.yaml"


@pytest.fixture(scope="module")
def base(request):
    return load_config(request.config.rootpath / CONFIG)


ABSURD = [
    ("model.decode_head.num_classes=1000000000", "model.decode_head.num_classes: got 1e+09, accepted 1 to 65535"),
    ("model.test_cfg={mode: slide, crop_size: [512, 512], stride: [1, 1]}",
     "model.test_cfg.stride: got 1 with a crop_size of 512, accepted 32 to 512"),
    ("model.test_cfg={mode: slide, crop_size: [1, 1], stride: [1, 1]}", "model.test_cfg.stride: got 1 with a "
                                                                        "crop_size of 1"),
    ("model.backbone.depths=[1000000, 1, 1, 1]", "model.backbone.depths.0: got 1000000, accepted 0 to 1000"),
    ("model.backbone.depths=[1000, 1000, 1, 1]", "model.backbone.depths: got 2002 blocks"),
    ("model.backbone.embed_dims=[1000000000, 1, 1, 1]", "model.backbone.embed_dims.0: got 1e+09"),
    ("model.backbone={type: MSCAN, embed_dims: [8192, 8192, 8192, 8192], depths: [3, 3, 3, 3]}",
     "parameters, accepted are"),
    ("model.decode_head.ham_kwargs.MD_R=1000000000", "ham_kwargs.MD_R: got 1e+09, accepted 1 to 4096"),
    ("model.decode_head.in_index=[1, 2, 1000000000]", "model.decode_head.in_index.2: got 1e+09"),
    ("model.decode_head.ham_kwargs.eval_steps=1000000000", "eval_steps: got 1e+09, accepted 1 to 1000"),
    ("model.decode_head.ham_kwargs.eval_steps=.inf", "eval_steps: got inf"),
    ("train_dataloader.num_workers=100000", "train_dataloader.num_workers: got 100000, accepted 0 to 512"),
    ("train_dataloader.batch_size=1000000000000", "train_dataloader.batch_size: got 1e+12"),
    ("data_preprocessor.size=[65536, 65536]", "train_dataloader.batch_size: got 8 pictures of 65536 x 65536"),
    ("tta={scales: [1.0, 1.0e+9]}", "tta.scales.1: got 1e+09"),
    ("param_scheduler=[{type: StepLR, step_size: 1000000000000}]", "param_scheduler.0.step_size: got 1e+12"),
]


@pytest.mark.parametrize(("override", "message"), ABSURD, ids=[text[:50] for text, _ in ABSURD])
def test_a_number_that_nobody_means_is_named(base, override, message):
    faults = absurd(apply_overrides(base, [override]))
    assert any(message in line for line in faults), faults


def test_what_no_yaml_file_gets_in_is_named_in_a_checkpoint(base):
    """The reader of YAML refuses these first; a config inside a checkpoint comes another way."""
    deep: list = []
    for _ in range(80):
        deep = [deep]
    for head, message in (({"ham_kwargs": {"eval_steps": 10**300}}, "eval_steps: got a whole number of 997 bits"),
                          ({"extra": deep}, "grows too large here")):
        faults = absurd({**base, "model": {**base["model"], "decode_head": head}})
        assert any(message in line for line in faults), faults


def test_shipped_configs_and_unusual_ones_pass(base, request):
    for path in sorted(request.config.rootpath.glob("configs/**/*.yaml")):
        assert absurd(load_config(path)) == [], path
    for unusual in ("train_cfg.val_interval=1000000000", "model.decode_head.ignore_index=-100",
                    "train_dataloader.batch_size=4096", "train_dataloader.num_workers=128",
                    "model.decode_head.num_classes=65535", "model.backbone.depths=[3, 3, 200, 3]",
                    "model.decode_head.ham_kwargs.MD_R=512",
                    "model.test_cfg={mode: slide, crop_size: [64, 64], stride: [8, 8]}"):
        assert absurd(apply_overrides(base, [unusual])) == [], unusual


def test_mistakes_of_other_kinds_are_left_to_the_check(base):
    """Wrong types, missing blocks and values a little out of range have their own messages in `engine.check`."""
    for other in ("model.decode_head.num_classes=1", "train_dataloader.batch_size=0", "model.backbone.depths=many",
                  "model.test_cfg={mode: slide, crop_size: [64, 64], stride: [0, 0]}", "tta=[1]", "model.backbone=3",
                  "data_preprocessor.size=[a, b]", "train_dataloader.batch_size=true"):
        assert absurd(apply_overrides(base, [other])) == [], other
    assert absurd({}) == [] and absurd({"model": None, "tta": {"scales": None}}) == []
    deep = copy.deepcopy(base)
    for _ in range(5000):
        deep = {"model": deep}
    assert len(absurd(deep)) == 1 and str(MAX_DEPTH) in absurd(deep)[0]


def test_the_estimate_of_parameters_is_near_the_truth(base):
    from jseg.models import build_model
    backbone = "{type: MSCAN, embed_dims: [64, 128, 320, 512], depths: [3, 5, 27, 3], mlp_ratios: [8, 8, 4, 4]}"
    large = apply_overrides(base, [f"model.backbone={backbone}", "model.decode_head.in_channels=[128, 320, 512]",
                                   "model.decode_head.ham_channels=1024", "model.decode_head.channels=1024"])
    true = sum(int(value.numel()) for value in build_model(large).parameters())
    assert 0.9 * true <= model_values(large) <= 1.05 * true, (true, model_values(large))
