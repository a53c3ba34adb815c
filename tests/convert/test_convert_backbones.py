"""ImageNet weights without a config: the guessed block, the renamed and joined values, equal maps afterwards."""

from __future__ import annotations

import pickle
import re

import jittor as jt
import numpy as np
import pytest

from jseg.convert.checkpoint import convert_checkpoint
from jseg.engine.checkpoint import load_weights
from jseg.errors import ConvertError
from jseg.models.backbones.mix_vision_transformer import MixVisionTransformer
from jseg.models.made import Made
from jseg.registry import MODELS

pytestmark = pytest.mark.usefixtures("few_kernels")
MIT = {
    "type": "MixVisionTransformer", "embed_dims": 8, "num_layers": [1, 2, 1, 1], "num_heads": [1, 2, 5, 8],
    "sr_ratios": [4, 2, 2, 1], "mlp_ratio": 2}
SWIN = {
    "type": "SwinTransformer", "embed_dims": 8, "window_size": 3, "mlp_ratio": 2, "depths": [2, 1, 1, 2],
    "num_heads": [1, 2, 2, 4]}


def built(block: dict):
    """(model with random values, its state)."""
    model, rng = MODELS.build(block), np.random.default_rng(0)
    state = {key: rng.standard_normal(value.shape).astype(np.float32) / 4 if "index" not in key else value.numpy()
             for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    model.eval()
    return model, state


def authors_form(state: dict) -> dict:
    """The keys of NVlabs/SegFormer."""
    found = {"head.weight": np.zeros((10, 64), np.float32), "head.bias": np.zeros(10, np.float32)}
    for key, value in state.items():
        stage, part, rest = re.match(r"layers\.(\d)\.(\d)\.(.*)", key).groups()
        stage = int(stage) + 1
        if part == "0":
            found[f"patch_embed{stage}.{rest.replace('projection', 'proj')}"] = value
        elif part == "2":
            found[f"norm{stage}.{rest}"] = value
        elif ".in_proj_" in rest:
            block, leaf = rest.partition(".")[0], rest.rpartition("_")[2]
            width = len(value) // 3
            found[f"block{stage}.{block}.attn.q.{leaf}"] = value[:width]
            found[f"block{stage}.{block}.attn.kv.{leaf}"] = value[width:]
        else:
            for ours, theirs in (("attn.attn.out_proj", "attn.proj"), ("ffn.layers.0", "mlp.fc1"),
                                 ("ffn.layers.1", "mlp.dwconv.dwconv"), ("ffn.layers.4", "mlp.fc2")):
                rest = rest.replace(ours, theirs)
            found[f"block{stage}.{rest}"] = value[:, :, 0, 0] if re.search(r"fc[12]\.weight", rest) else value
    return found


def converted(folder, state: dict):
    """(weights by key, meta) of a pickled state after conversion."""
    (folder / "in.pkl").write_bytes(pickle.dumps({"state_dict": state}, 4))
    return load_weights(convert_checkpoint(folder / "in.pkl", folder / "out.safetensors").out)


@pytest.mark.parametrize("form", [dict, authors_form], ids=["mmsegmentation", "authors"])
def test_mit(form, tmp_path):
    model, state = built(MIT)
    found, meta = converted(tmp_path, form(state))
    block = meta["config"]["model"]["backbone"]
    assert {key: block[key] for key in MIT} == MIT
    found = {key.removeprefix("backbone."): value for key, value in found.items()}
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in state.items()}
    twin = MODELS.build(block)
    twin.load_state_dict(found)
    twin.eval()
    x = jt.array(np.random.default_rng(1).standard_normal((1, 3, 40, 48)).astype(np.float32))
    for ours, theirs in zip(twin(x), model(x)):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_swin(tmp_path):
    _, state = built(SWIN)
    found, meta = converted(tmp_path, state)
    block = meta["config"]["model"]["backbone"]
    assert {key: block[key] for key in SWIN} == SWIN
    for key, value in state.items():
        np.testing.assert_array_equal(found[f"backbone.{key}"], value, err_msg=key)


def test_pieces_that_are_missing_or_do_not_fit(tmp_path):
    _, state = built(MIT)
    authors = authors_form(state)
    with pytest.raises(ConvertError, match="of another shape: backbone.layers.0.1.0.attn.attn.in_proj_weight"):
        converted(tmp_path, {key: value for key, value in authors.items() if key != "block1.0.attn.kv.weight"})
    with pytest.raises(ConvertError, match="cannot be joined"):
        converted(tmp_path, {**authors, "block1.0.attn.kv.weight": np.zeros((16, 4), np.float32)})
    with pytest.raises(ConvertError, match="an incomplete MiT backbone"):
        converted(tmp_path, {key: value for key, value in authors.items() if key != "block1.0.mlp.fc1.weight"})


def test_remapping_leaves_other_keys_alone():
    other = {"layers.0.0.norm.weight": 1, "block1.x": 2}
    assert MixVisionTransformer.remap_keys(other) == other
    assert MixVisionTransformer.remap_keys({"block2.3.attn.kv.bias": 1, "block2.3.attn.q.bias": 2}) == {
        "layers.1.1.3.attn.attn.in_proj_bias": Made((2, 1))}
