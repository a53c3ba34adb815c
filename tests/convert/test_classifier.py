"""Classifiers of other libraries keep their layer to classes where the config is a classifier's."""

from __future__ import annotations

import pickle
import re

import jittor as jt
import numpy as np
import pytest

from jseg.config import dump_config
from jseg.convert.checkpoint import convert_checkpoint, starting_weights
from jseg.engine.checkpoint import load_into, load_weights
from jseg.engine.start import starting_state
from jseg.errors import ConvertError
from jseg.models import build_model
from jseg.models.backbones.mscan import MSCAN
from jseg.models.backbones.swin_transformer import SwinTransformer

pytestmark = pytest.mark.usefixtures("few_kernels")
RESNET = {"type": "ResNet", "depth": 18, "stem_channels": 8, "base_channels": 8}
SWIN = {**SwinTransformer.TINY, "out_indices": [3], "use_abs_pos_embed": False}
MSCAN_TINY = dict(MSCAN.TINY)


def block(backbone: dict, width: int, classes: int = 4) -> dict:
    return {"type": "ImageClassifier", "backbone": backbone, "head": {"num_classes": classes, "in_channels": width}}


def random_state(model) -> dict:
    rng = np.random.default_rng(0)
    return {key: value.numpy() if "index" in key else rng.uniform(0.2, 1, tuple(value.shape)).astype(np.float32)
            for key, value in model.state_dict().items()}


def as_torchvision(state: dict) -> dict:
    return {key.removeprefix("backbone.").replace("head.fc.", "fc."): value for key, value in state.items()}


def as_mmpretrain(state: dict) -> dict:
    return {**state, "backbone.bn1.num_batches_tracked": np.zeros(1, np.float32)}


def as_authors_swin(state: dict) -> dict:
    """microsoft/Swin-Transformer: `norm` before the mean, `head` behind it."""
    found = {}
    for key, value in state.items():
        key = key.removeprefix("backbone.").replace("stages.", "layers.").replace("w_msa.", "")
        key = key.replace("ffn.layers.0.0", "mlp.fc1").replace("ffn.layers.1", "mlp.fc2")
        key = key.replace("patch_embed.projection", "patch_embed.proj")
        if re.search(r"downsample\.(norm|reduction)", key):  # ours goes by channels, theirs by columns of neighbours
            value = value.reshape(*value.shape[:-1], -1, 2, 2)
            value = np.moveaxis(value, (-3, -2, -1), (-1, -2, -3)).reshape(*value.shape[:-3], -1)
        found[key.replace("norm3.", "norm.") if key.startswith("norm3.") else key.replace("head.fc.", "head.")] = value
    return found


def as_mscan(state: dict) -> dict:
    """The authors' ImageNet files of MSCAN."""
    return {key.removeprefix("backbone.").replace(".mlp.dwconv.", ".mlp.dwconv.dwconv.").replace("head.fc.", "head."):
            value for key, value in state.items()}


@pytest.mark.parametrize(("backbone", "width", "form"), [
    (RESNET, 64, as_torchvision), (RESNET, 64, as_mmpretrain), (SWIN, 64, as_authors_swin), (MSCAN_TINY, 32, as_mscan)],
    ids=["torchvision", "mmpretrain", "swin", "mscan"])
def test_logits_are_those_of_the_release(backbone, width, form, tmp_path, rng):
    model = build_model(block(dict(backbone), width))
    state = random_state(model)
    load_into(model, state)
    (tmp_path / "in.pth").write_bytes(pickle.dumps({"state_dict": form(state)}, 4))
    found, told, _ = starting_state({"model": block(dict(backbone), width), "load_from": str(tmp_path / "in.pth")})
    twin = build_model(block(dict(backbone), width))
    load_into(twin, found)
    model.eval(), twin.eval()
    x = jt.array(rng.standard_normal((2, 3, 48, 48)).astype(np.float32))
    np.testing.assert_array_equal(twin(x).numpy(), model(x).numpy())


def test_another_number_of_classes_leaves_the_head_new(tmp_path):
    state = random_state(build_model(block(dict(RESNET), 64, 7)))
    (tmp_path / "in.pth").write_bytes(pickle.dumps(as_torchvision(state), 4))
    found, told = starting_weights(tmp_path / "in.pth", block(dict(RESNET), 64, 4))
    assert not any(key.startswith("head.") for key in found) and "backbone.layer4.1.bn2.weight" in found
    with pytest.raises(ConvertError, match="which fit ResNet.*the config's backbone is 'MSCAN'"):
        starting_weights(tmp_path / "in.pth", block(MSCAN_TINY, 32))


def test_a_config_makes_a_whole_classifier_of_a_file(tmp_path):
    model = build_model(block(dict(RESNET), 64))
    state = random_state(model)
    (tmp_path / "in.pth").write_bytes(pickle.dumps({"state_dict": as_torchvision(state)}, 4))
    (tmp_path / "c.yaml").write_text(dump_config({"model": block(dict(RESNET), 64)}))
    done = convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.safetensors", config=tmp_path / "c.yaml")
    found, meta = load_weights(done.out)
    assert meta["classes"] == [f"class {i}" for i in range(4)] and meta["config"]["model"]["type"] == "ImageClassifier"
    np.testing.assert_array_equal(found["head.fc.weight"], state["head.fc.weight"])
    alone = convert_checkpoint(tmp_path / "in.pth", tmp_path / "alone.safetensors")
    assert sorted(alone.dropped) == ["fc.bias", "fc.weight"]  # without a config: the backbone, as before
