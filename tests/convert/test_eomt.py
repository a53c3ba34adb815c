"""EoMT and DINOv2 of Hugging Face, timm and Meta against what these libraries computed: label map, one training step,
maps of the backbone; and the parts of its recipe.

golden/eomt.npz is written by `make_eomt.py` under PyTorch; the weights are made again from their names.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import pickle
import re
import sys
from unittest import mock

import jittor as jt
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jseg.data.datasets  # noqa: F401  (registers the datasets, whose class names are compared)
from jseg.convert.checkpoint import convert_checkpoint, starting_weights
from jseg.convert.hf.facts import Facts
from jseg.convert.hf.processor import inference_of, pipeline_of
from jseg.engine.checkpoint import load_into, load_weights
from jseg.engine.predict import InferenceSegmentor
from jseg.errors import ConfigError, ConvertError
from jseg.layers import named_parameters
from jseg.models import build_model
from jseg.models.backbones.dinov2 import DINOv2
from jseg.models.backbones.dinov3 import DINOv3
from jseg.models.heads.eomt_head import EoMTHead
from jseg.models.heads.segmenter_mask_transformer_head import SegmenterMaskTransformerHead
from jseg.models.readout import windows
from jseg.ops import ranks
from jseg.registry import MODELS

pytestmark = pytest.mark.usefixtures("few_kernels")
HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = np.load(HERE / "golden" / "eomt.npz")


def _module(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules.setdefault(path.stem, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


cases, gradients = _module(HERE / "release_cases.py"), _module(HERE.parent / "parity" / "gradients.py")


def tensors_of(name: str) -> dict[str, np.ndarray]:
    """The state of a network, as its library would save it."""
    return {key: cases.spread_weight(key, tuple(shape)) for key, shape in json.loads(str(GOLDEN[name])).items()}


@pytest.fixture(scope="module", params=["learned", "rotary"])
def converted(request, tmp_path_factory):
    """A golden EoMT as transformers saves it: its conversion, its keys, and what transformers computed."""
    folder, start = tmp_path_factory.mktemp("eomt"), f"{request.param}/"
    golden = {key[len(start):]: GOLDEN[key] for key in GOLDEN.files if key.startswith(start)}
    for name in ("config", "preprocessor_config"):
        (folder / f"{name}.json").write_text(str(golden[name]))
    tensors = tensors_of(f"{start}keys")
    tensors["attn_mask_probs"] = np.ones(2, np.float32)
    save_file(tensors, folder / "model.safetensors")
    return convert_checkpoint(folder, folder / "out.safetensors"), sorted(tensors), golden


def test_the_label_map_is_that_of_windows_at_equal_distances(converted, tmp_path):
    done, keys, golden = converted
    assert sorted([*done.loaded, *done.renamed, *done.dropped]) == keys and len(done.dropped) == 1
    Image.fromarray(cases.street_pixels()).save(tmp_path / "street.png")
    segmentor = InferenceSegmentor(done.out)
    assert len(windows(80, 32, 32, even=True)) == len(golden["pixels"]) == 3
    labels = segmentor.infer(tmp_path / "street.png")
    assert len(np.unique(labels)) > 1 and (labels == golden["label map"]).mean() >= 0.999
    model = segmentor._model
    with jt.no_grad():
        readings = model.stages[-1](model.features(jt.array(golden["pixels"])))
    assert len(readings) == 3
    for ours, theirs in zip(readings[-1], (golden["classes"], golden["masks"])):
        assert np.abs(ours.numpy() - theirs).max() <= 1e-5 * np.ptp(theirs)


def test_a_training_step_has_their_losses_and_gradients(converted):
    done, _, golden = converted
    model = InferenceSegmentor(done.out)._model
    model.train()
    model.decode_head.attn_mask_probs.update(jt.array(golden["probs"]))
    with mock.patch.object(ranks, "rand", lambda shape: jt.array(gradients.uniform(*shape))):
        found = model.loss(jt.array(golden["pixels"]), jt.array(golden["labels"]))
    names, terms = {"cross_entropy": "cls"}, [key for key in golden if key.startswith("losses/")]
    assert len(terms) == 9
    for key in terms:
        _, reading, name = key.split("/")
        name = name.partition("_")[2]
        ours = found[f"decode.{'' if reading == '2' else f'd{reading}.'}loss_{names.get(name, name)}"]
        assert ours.item() == pytest.approx(float(golden[key]), rel=1e-5)
    parameters = named_parameters(model)
    ours = dict(zip(parameters, (g.numpy() for g in jt.grad(found["loss"], list(parameters.values())))))
    sources = {**{key: key for key in done.loaded}, **done.renamed}
    compared = [key for key in golden if key.startswith("gradient/")]
    largest = max(golden[key][0] for key in compared)
    for key in compared:
        source = key.partition("/")[2]
        value, parts = ours[sources[source]], [name for name in sources if sources[name] == sources[source]]
        value = np.split(value, len(parts))[parts.index(source)]
        apart = np.abs(cases.summary(key, value) - golden[key]).max()
        # keys' biases have no gradient but rounding
        assert apart <= 1e-4 * max(golden[key][0], 1e-3 * largest), source
    assert {sources[key.partition("/")[2]] for key in compared} == set(ours)


_AUTHORS = ((r"^(embeddings|layers|layernorm)", r"network.encoder.backbone.\1"),
            (r"embeddings\.register_tokens", "reg_token"),
            (r"embeddings\.position_embeddings\.weight", "pos_embed"), (r"embeddings\.patch_embeddings\.projection",
                                                                       "patch_embed.proj"),
            (r"embeddings\.", ""), (r"\.layers\.", ".blocks."), (r"backbone\.layernorm", "backbone.norm"),
            (r"attention\.out_proj", "attn.proj"), (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
            (r"^query\.", "network.q."), (r"^class_predictor", "network.class_head"),
            (r"^mask_head\.fc(\d)", lambda found: f"network.mask_head.{2 * int(found[1]) - 2}"),
            (r"^upscale_block\.block", "network.upscale"), (r"layernorm2d", "norm"),
            (r"^attn_mask", "network.attn_mask"))


def _as_authors(state: dict) -> dict:
    """transformers' keys as the authors' release has them."""
    found = {"network.encoder.pixel_mean": np.zeros((1, 3, 1, 1), np.float32)}
    for key, value in state.items():
        piece = re.search(r"attention\.([qkv])_proj", key)
        if piece is not None and piece[1] != "q":
            continue
        if piece is not None:
            value = np.concatenate([state[key.replace("q_proj", f"{name}_proj")] for name in "qkv"])
            key = key.replace("attention.q_proj", "attn.qkv")
        for theirs, ours in _AUTHORS:
            key = re.sub(theirs, ours, key)
        found[key] = value[None] if key.endswith("pos_embed") else value
    return found


@pytest.mark.parametrize("converted", ["learned"], indirect=True)
def test_the_authors_file_holds_the_same_weights(converted, tmp_path):
    state = {**tensors_of("learned/keys"), "attn_mask_probs": np.ones(2, np.float32)}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps(_as_authors(state), 4))
    done = convert_checkpoint(tmp_path / "in.pkl", tmp_path / "out.safetensors")
    ours, meta = load_weights(done.out)
    theirs, _ = load_weights(converted[0].out)
    assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)
    assert len(done.dropped) == 2 and meta["config"]["model"]["test_cfg"]["crop_size"] == [32, 32]


def _as_meta(state: dict) -> dict:
    """timm's keys as Meta's release has them."""
    return {**{"register_tokens" if key == "reg_token" else key: value for key, value in state.items()},
            "mask_token": np.zeros((1, 64), np.float32)}


@pytest.mark.parametrize("name", ["transformers", "timm", "meta"])
def test_dinov2_alone(name, tmp_path):
    library = "timm" if name == "meta" else name
    state = tensors_of(f"dinov2.{library}.keys")
    if name == "transformers":
        (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Dinov2Model"], "model_type": "dinov2"}))
        save_file(state, tmp_path / "model.safetensors")
        done = convert_checkpoint(tmp_path, tmp_path / "out.safetensors")
        found, meta = load_weights(done.out)
        block, pixels = meta["config"]["model"]["backbone"], cases.noise(64)[..., :56, :56]
        assert len(done.loaded) + len(done.renamed) + len(done.dropped) == len(state) and block["patch_size"] == 14
    else:  # filters of 14 pixels and a grid of 5 x 5 fitted to 16 and 4 x 4
        (tmp_path / "in.pkl").write_bytes(pickle.dumps(_as_meta(state) if name == "meta" else state, 4))
        block, pixels = {"type": "DINOv2", "img_size": 64, "patch_size": 16, "embed_dims": 64, "num_layers": 2,
                         "num_heads": 1, "mlp_ratio": 2, "num_registers": 3}, cases.noise(64)
        found, told = starting_weights(tmp_path / "in.pkl", {"backbone": block})
        assert "DINOv2 backbone" in told
    model = MODELS.build(dict(block))
    load_into(model, {key.removeprefix("backbone."): value for key, value in found.items()})
    model.eval()
    with jt.no_grad():
        ours = cases.sample(model(jt.array(np.ascontiguousarray(pixels)))[-1].numpy())
    theirs = GOLDEN[f"dinov2.{library}.map"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.ptp(theirs), rtol=0)


def test_a_dinov2_without_registers_fits_a_vision_transformer_too(tmp_path):
    state = {key: value for key, value in tensors_of("dinov2.timm.keys").items() if key != "reg_token"}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps(state, 4))
    block = {"type": "VisionTransformer", "img_size": 70, "patch_size": 14, "embed_dims": 64, "num_layers": 2,
             "num_heads": 1, "mlp_ratio": 2, "patch_bias": True, "final_norm": True}
    found, _ = starting_weights(tmp_path / "in.pkl", {"backbone": block})
    assert not any("gamma" in key for key in found)
    with pytest.raises(ConvertError, match="fit DINOv2 or VisionTransformer or MAE"):
        starting_weights(tmp_path / "in.pkl", {"backbone": {"type": "BEiT"}})


def test_masks_are_taken_away_block_by_block():
    words = {"begin": [0, 10, 20], "end": [10, 20, 30], "power": 0.9}
    head = EoMTHead([8], 3, num_queries=2, num_blocks=3, mask_annealing=words)
    for iteration, wanted in ((0, [1, 1, 1]), (5, [0.5**0.9, 1, 1]), (10, [0, 1, 1]), (24, [0, 0, 0.6**0.9]),
                              (30, [0, 0, 0]), (99, [0, 0, 0])):
        head.begin_step(iteration)
        np.testing.assert_allclose(head.attn_mask_probs.numpy(), wanted, rtol=1e-6)
    still = EoMTHead([8], 3, num_queries=2, num_blocks=3)
    still.begin_step(99)
    assert still.attn_mask_probs.numpy().tolist() == [1, 1, 1]
    for wrong in ({"begin": [0], "end": [1]}, {"begin": [0, 5, 9], "end": [5, 5, 10]}):
        with pytest.raises(ConfigError, match="mask_annealing"):
            EoMTHead([8], 3, num_queries=2, num_blocks=3, mask_annealing=wrong)


def test_blocks_that_nobody_left_to_the_head():
    head = EoMTHead([16], 3, num_queries=2, num_blocks=2)
    with pytest.raises(ConfigError, match="joint_blocks: 2"):
        head([jt.zeros((1, 16, 4, 4))])
    with pytest.raises(ConfigError, match="joint_blocks is 3; accepted: 0 to 2"):
        MODELS.build({**EoMTHead.TINY_BACKBONE, "joint_blocks": 3})


@pytest.mark.parametrize(("length", "wanted"), [(30, [(0, 30)]), (32, [(0, 32)]), (33, [(0, 32), (1, 33)]),
                                                (80, [(0, 32), (24, 56), (48, 80)])])
def test_windows_at_equal_distances(length, wanted):
    assert windows(length, 32, 32, even=True) == wanted


def test_what_the_image_processor_says_of_windows():
    split = {"image_processor_type": "EomtImageProcessorFast", "do_split_image": True,
             "size": {"shortest_edge": 512, "longest_edge": None}}
    assert inference_of(Facts(split, "p.json"), "Eomt") == {"mode": "slide", "crop_size": [512, 512],
                                                            "stride": [512, 512], "even": True}
    assert inference_of(None, "Eomt") == inference_of(Facts({}, "p.json"), "Segformer") == {}
    with pytest.raises(ConvertError, match="p.json: size is .*shortest_edge alone"):
        inference_of(Facts({"do_split_image": True}, "p.json"), "Eomt")
    notes = []
    steps, block = pipeline_of(Facts({"do_pad": True, "ignore_index": 255}, "p.json"), "Eomt", notes)
    assert block["test_cfg"] == {"size": [640, 640]} and "cut off" in notes[0]
    assert steps[1]["longest_edge"] == 640 and steps[2]["reduce_zero_label"]


@pytest.mark.parametrize(("neck", "head"), [
    ({"type": "Feature2Pyramid", "embed_dim": 16, "rescales": [4, 2, 1, 0.5]},
     {"type": "UPerHead", "in_channels": [16] * 4, "in_index": [0, 1, 2, 3], "channels": 8, "pool_scales": [1, 2]}),
    (None, {**SegmenterMaskTransformerHead.TINY, "in_channels": 16, "in_index": -1})], ids=["UPerNet", "Segmenter"])
@pytest.mark.parametrize("backbone", [DINOv2.TINY, DINOv3.TINY], ids=["DINOv2", "DINOv3"])
def test_other_heads_over_its_backbones(backbone, neck, head):
    backbone = {**backbone, "num_layers": 4, "out_indices": [0, 1, 2, 3]}
    model = build_model({"type": "EncoderDecoder", "backbone": backbone, "neck": neck,
                         "decode_head": {"num_classes": 5, **head}})
    labels = model.predict(cases.noise(64), [{"ori_shape": (50, 70)}])[0]
    assert labels.shape == (50, 70) and labels.max() < 5
