"""EoMT trained for real: from DINOv2's file, masks taken away on the way, the same weights after an interruption."""

from __future__ import annotations

import copy
import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest

from jseg.engine.checkpoint import load_weights
from jseg.engine.train import steps, train
from jseg.models.heads.eomt_head import EoMTHead
from jseg.registry import MODELS
from jseg.weights_file import write_weights_file

pytestmark = pytest.mark.usefixtures("few_kernels")
_spec = importlib.util.spec_from_file_location("small_run", pathlib.Path(__file__).with_name("small_run.py"))
small_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small_run)


_TIMM = ((r"^ln1\.", "norm."), (r"^layers\.(\d+)\.ln", r"blocks.\1.norm"), (r"^layers\.", "blocks."),
         (r"attn\.attn\.in_proj_", "attn.qkv."), (r"attn\.attn\.out_proj", "attn.proj"),
         (r"gamma_(\d)", r"ls\1.gamma"), (r"ffn\.layers\.0\.0", "mlp.fc1"), (r"ffn\.layers\.1", "mlp.fc2"),
         (r"patch_embed\.projection", "patch_embed.proj"), (r"register_tokens", "reg_token"))


def released(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Weights of the small backbone under timm's keys, for patches of 14 pixels and a grid of 5 x 5."""
    rng, state = np.random.default_rng(0), {}
    model = MODELS.build({**EoMTHead.TINY_BACKBONE, "patch_size": 14, "img_size": 70})
    for key, value in model.state_dict().items():
        for ours, theirs in _TIMM:
            key = re.sub(ours, theirs, key)
        state[key] = (value.numpy() + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
    write_weights_file(path, state, state.__getitem__, {})
    return state


def config_of(folder: pathlib.Path) -> dict:
    """Eight steps of the small EoMT."""
    config = small_run.small_config(small_run.make_datasets(folder / "pictures"))
    head = {**copy.deepcopy(dict(EoMTHead.TINY)), "in_channels": [16], "num_classes": 3,
            "mask_annealing": {"begin": [0, 2], "end": [4, 7]}}
    config["model"].update(backbone=dict(EoMTHead.TINY_BACKBONE), decode_head=head, test_cfg={
        "mode": "slide", "crop_size": [48, 48], "stride": [48, 48], "even": True})
    config["data_preprocessor"]["test_cfg"] = None
    config["paramwise_cfg"] = {"num_layers": 2, "decay_rate": 0.8, "flat_decay_mult": 1.0}
    config["param_scheduler"] = [
        {"type": "LinearLR", "part": "others", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 3},
        {"type": "ConstantLR", "part": "backbone", "factor": 1e-9, "by_epoch": False, "begin": 0, "end": 3},
        {"type": "PolyLR", "power": 0.9, "by_epoch": False, "begin": 3, "end": 9}]
    config["train_cfg"].update(max_iters=8, val_interval=8, ckpt_interval=4, accumulative_counts=1, ema=None)
    config["load_from"] = str(folder / "dinov2.safetensors")
    return config


def test_a_run_from_dinov2_goes_on_as_if_unbroken(tmp_path):
    state = released(tmp_path / "dinov2.safetensors")
    config, first, probs = config_of(tmp_path), None, []
    for step in steps(config, work_dir=tmp_path / "whole"):
        if step.iter == 2:  # the backbone still waits
            first = step.model.backbone.layers[0].ln1.weight.numpy().copy()
        probs.append(step.model.decode_head.attn_mask_probs.numpy().tolist())
    np.testing.assert_allclose(first, state["blocks.0.norm1.weight"], atol=1e-5)
    assert probs[0] == [1, 1] and probs[4][0] == 0 and 0 < probs[4][1] < 1 and probs[-1] == [0, 0]
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert 0 <= metrics["metrics"]["mIoU"] <= 1
    for step in steps(config, work_dir=tmp_path / "broken"):
        if step.iter == 5:
            break
    train(config, work_dir=tmp_path / "broken", resume=True)
    whole, broken = (load_weights(tmp_path / name / "best.safetensors")[0] for name in ("whole", "broken"))
    assert whole.keys() == broken.keys() and "decode_head.attn_mask_probs" in whole
    assert all((whole[key] == broken[key]).all() for key in whole)
    assert np.abs(whole["backbone.layers.0.ln1.weight"] - first).max() > 0
