"""Releases of other homes: keys recognised, every key accounted for, maps equal to what their own library computed.

golden/releases.npz is written by `make_releases.py` under PyTorch; the weights are made again from their names.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import pickle

import jittor as jt
import numpy as np
import pytest

from jseg.cli import main
from jseg.convert.checkpoint import convert_checkpoint, starting_weights
from jseg.convert.guess.vit import resized_table
from jseg.convert.layout import resized_grid
from jseg.engine.checkpoint import load_into, load_weights
from jseg.engine.start import starting_state
from jseg.errors import ConvertError
from jseg.layers.init import without_values
from jseg.models import build_model
from jseg.registry import MODELS
from jseg.weights_file import write_weights_file

pytestmark = pytest.mark.usefixtures("few_kernels")
HERE = pathlib.Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location("release_cases", HERE / "release_cases.py")
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)
GOLDEN = np.load(HERE / "golden" / "releases.npz")
NAMES = sorted(name.partition(".")[0] for name in GOLDEN.files if name.endswith(".keys"))
WHOLE = ("pidnet", "ddrnet_for_inference", "segformer", "mask2former")


def weights_of(name: str) -> dict[str, np.ndarray]:
    """A release's state, as its library would save it."""
    shapes = json.loads(str(GOLDEN[f"{name}.keys"]))
    return {key: cases.weight(key, tuple(shape)) if kind.startswith("float") else np.zeros(shape, kind)
            for key, (kind, *shape) in shapes.items()}


def saved(folder: pathlib.Path, state: dict, name: str = "in.pkl") -> pathlib.Path:
    (folder / name).write_bytes(pickle.dumps({"model": state}, 4))
    return folder / name


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_the_librarys(name, tmp_path):
    state = weights_of(name)
    done = convert_checkpoint(saved(tmp_path, state), tmp_path / "out.safetensors")
    assert len(done.loaded) + len(done.renamed) + len(done.dropped) == len(state)
    found, meta = load_weights(done.out)
    block = meta["config"]["model"]
    with without_values():
        model = build_model(block) if name in WHOLE else MODELS.build(block["backbone"])
    load_into(model, found if name in WHOLE else {key.removeprefix("backbone."): value for key, value in found.items()})
    model.eval()
    with jt.no_grad():
        maps = model(jt.array(cases.picture(name)))
    maps = maps if isinstance(maps, list) else [maps]
    wanted = [GOLDEN[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in GOLDEN.files) - 1)]
    assert len(maps) == len(wanted)
    for i, (ours, theirs) in enumerate(zip(maps, wanted)):
        np.testing.assert_allclose(cases.sample(ours.numpy()), theirs, atol=2e-5 * max(np.ptp(theirs), 1),
                                   rtol=0, err_msg=f"{name}: map {i}")


def test_what_is_left_out_is_told(tmp_path, capsys):
    saved(tmp_path, weights_of("resnet_d"), "resnet.pkl")
    assert main(["convert", str(tmp_path / "resnet.pkl")]) == 0
    text = capsys.readouterr().out
    assert "dropped, the ImageNet classifier: fc.weight, fc.bias" in text and "bgr_to_rgb: true" in text
    assert "dropped, counts of batches, which nothing reads: " in text and (tmp_path / "resnet.safetensors").is_file()


@pytest.mark.parametrize(("change", "message"), [
    ({"layer1.0.se.fc1.weight": (4, 8, 1, 1)}, "1 keys are none of a ResNet with a deep stem: layer1.0.se.fc1.weight"),
    ({"layer3.1.conv2.weight": (32, 16, 3, 3)}, r"of another shape: backbone.layer3.1.conv2.weight \(file"),
    ({"layer2.1.bn2.weight": None}, "1 missing in the file: backbone.layer2.1.bn2.weight"),
    ({"layer1.2.conv1.weight": (8, 8, 3, 3)}, r"a depth with stages of \(3, 2, 2, 2\) basic blocks"),
])
def test_other_networks_are_refused_with_names(change, message, tmp_path):
    state = weights_of("resnet_d")
    state.update({key: np.zeros(shape or (), np.float32) for key, shape in change.items()})
    state = {key: value for key, value in state.items() if change.get(key, 1) is not None}
    with pytest.raises(ConvertError, match=message):
        convert_checkpoint(saved(tmp_path, state), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_config_decides_the_block_and_the_grid(tmp_path):
    source = saved(tmp_path, weights_of("beit_shared"))
    guessed = convert_checkpoint(source, tmp_path / "a.safetensors")
    block = load_weights(guessed.out)[1]["config"]["model"]["backbone"]
    state, told = starting_weights(source, {"backbone": {**block, "img_size": 48}})
    old = cases.weight("rel_pos_bias.relative_position_bias_table", (7 * 7 + 3, 2))
    table = state["backbone.layers.2.attn.relative_position_bias_table"]
    np.testing.assert_array_equal(table, resized_table(old, 4, 6))
    assert table.shape == (11 * 11 + 3, 2) and "BEiT backbone" in told
    with pytest.raises(ConvertError, match="which fit BEiT; the config's backbone is 'ResNet'"):
        starting_weights(source, {"backbone": {"type": "ResNet", "depth": 18}})


def test_tables_on_another_grid_are_scipys_and_torchs():
    table = cases.weight("table", cases.TABLE)
    resized = resized_table(table, 4, 6)
    np.testing.assert_allclose(resized[:-3], GOLDEN["geometric"], atol=1e-5)
    np.testing.assert_array_equal(resized[-3:], table[-3:])
    np.testing.assert_allclose(resized_grid(table[:-3], 7, 11), GOLDEN["bicubic"], atol=1e-5)


def test_safetensors_of_another_library(tmp_path):
    state = weights_of("swin_timm")
    source = tmp_path / "model.safetensors"
    write_weights_file(source, state, state.__getitem__, {})
    done = convert_checkpoint(source, tmp_path / "out.safetensors")
    assert done.origin["family"].startswith("Swin")
    with pytest.raises(ConvertError, match="of jseg already"):
        convert_checkpoint(done.out, tmp_path / "again.safetensors")
    with pytest.raises(ConvertError, match="would replace what it is made of"):
        convert_checkpoint(source, source)


def test_training_starts_from_a_release(tmp_path):
    state = weights_of("swin_authors")
    block = {"type": "SwinTransformer", "pretrain_img_size": 64, "embed_dims": 8, "depths": [2, 1, 1],
             "num_heads": [1, 2, 2], "strides": [4, 2, 2], "out_indices": [0, 1, 2], "window_size": 4, "mlp_ratio": 2,
             "use_abs_pos_embed": True}
    found, _, told = starting_state({"load_from": str(saved(tmp_path, state)), "model": {"backbone": block}})
    model = MODELS.build(block)
    load_into(model, {key.removeprefix("backbone."): value for key, value in found.items()})
    table = "stages.0.blocks.0.attn.w_msa.relative_position_bias_table"
    np.testing.assert_array_equal(model.state_dict()[table].numpy(), resized_grid(
        state["layers.0.blocks.0.attn.relative_position_bias_table"], 3, 7))
    assert "Swin backbone" in told[0] and "trained on RGB" in told[0]
    ours = tmp_path / "ours.safetensors"
    write_weights_file(ours, found, found.__getitem__, {"config": {"model": {}}})
    again, _, told = starting_state({"load_from": str(ours), "model": {"backbone": block}})
    assert told == [] and set(again) == set(found)


def test_nvidias_config_in_its_own_words():
    from jseg.convert.mmseg_segformer import segformer_words
    model = segformer_words({
        "backbone": {"type": "mit_b2", "style": "pytorch"},
        "decode_head": {"type": "SegFormerHead", "feature_strides": [4, 8, 16, 32], "channels": 128,
                        "decoder_params": {"embed_dim": 768}, "num_classes": 19}})
    assert model["backbone"]["num_layers"] == [3, 4, 6, 3] and model["backbone"]["embed_dims"] == 64
    assert model["decode_head"] == {"type": "SegformerHead", "channels": 768, "num_classes": 19, "plain_convs": True}
