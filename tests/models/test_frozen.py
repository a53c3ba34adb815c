"""frozen_stages: what is frozen computes as in evaluation and does not move, whatever is called around it."""

import jittor as jt
import numpy as np
import pytest

from jseg.engine.checkpoint import load_into, model_state
from jseg.engine.optim import build_optimizer
from jseg.models import build_model
from jseg.models.backbones.mscan import MSCAN
from jseg.models.backbones.resnet import ResNet
from jseg.registry import MODELS

BACKBONES = {"MSCAN": {**MSCAN.TINY, "drop_path_rate": 0.3, "drop_rate": 0.1},
             "ResNet": {**ResNet.TINY, "base_channels": 4},
             "deep stem": {**ResNet.TINY, "base_channels": 4, "deep_stem": True}}
STEMS = ("patch_embed1", "stem", "conv1", "bn1")
MODEL = {"type": "EncoderDecoder", "decode_head": {
    "type": "LightHamHead", "in_index": [1, 2, 3], "channels": 8, "ham_channels": 8,
        "num_classes": 3,
    "ham_kwargs": {"MD_R": 4, "train_steps": 2}, "norm_cfg": {"type": "BN"}}}


def frozen_part(stages: int, name: str) -> bool:
    """Whether a state key belongs to the first stages."""
    if not name.startswith("backbone."):
        return False
    part = name.split(".")[1]
    return part in STEMS or part[-1].isdigit() and int(part[-1]) <= stages


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("stages", [0, 2])
def test_frozen_stages_stand_still(stages, kind, rng):
    jt.set_global_seed(0)
    with jt.flag_scope(lazy_execution=0):
        backbone = {**BACKBONES[kind], "frozen_stages": stages}
        widths = MODELS.build(backbone).out_channels[1:]
        model = build_model({**MODEL, "backbone": backbone,
                             "decode_head": {**MODEL["decode_head"], "in_channels": widths}})
        load_into(model, model_state(model))  # as load_from and --resume do
        model.eval()
        model.train()
        optimizer = build_optimizer(model, {"type": "AdamW", "lr": 0.1, "weight_decay": 0.1})
        names = {name for group in optimizer.groups for name in group.names}
        assert names and not [name for name in names if frozen_part(stages, name)]
        before = model_state(model)
        images, labels = jt.array(rng.standard_normal((2, 3, 32, 32)).astype(np.float32)), jt.array(np.zeros((2, 32,
            32), np.int32))
        for _ in range(2):
            model.train()
            optimizer.accumulate(model.loss(images, labels)["loss"])
            optimizer.step([0.1] * len(optimizer.groups))
        after = model_state(model)
        moved = {name for name in before if not np.array_equal(before[name], after[name])}
        still = {name for name in before if frozen_part(stages, name)}
        assert not moved & still and any(name.endswith("running_mean") for name in still | moved)
        assert {name for name in before if name.endswith("running_mean")} - still <= moved
        model.train()
        first = model.backbone(images)[0].numpy()
        model.eval()
        with jt.no_grad():
            evaluated = model.backbone(images)[0].numpy()
    if stages:
        np.testing.assert_allclose(first, evaluated, rtol=1e-5, atol=1e-6)
    else:
        assert not np.allclose(first, evaluated)
