"""What every registered model promises: it builds, its shapes, any picture size,
a gradient for every parameter, save and load.

A new model is found here through the registry, by the `TINY` block of its class. `make test` runs one class of each
kind (`PROBES`), `make test-zoo` all of them.
"""

from __future__ import annotations

import copy

import jittor as jt
import numpy as np
import pytest

from jseg.bench.jseg_side import no_randomness
from jseg.cli.flops import count_operations
from jseg.errors import ConfigError
from jseg.layers import named_parameters
from jseg.layers.init import without_values
from jseg.losses.base import is_loss
from jseg.models import build_model, remap_keys, segmentor
from jseg.models.backbones.mscan import MSCAN
from jseg.models.backbones.vision_transformer import VisionTransformer
from jseg.models.heads.fcn_head import FCNHead
from jseg.models.heads.ham_head import LightHamHead, evaluation_bases, ham_options
from jseg.models.text_encoders.clip_text_encoder import CLIPTextEncoder
from jseg.registry import MODELS, accepted

pytestmark = pytest.mark.usefixtures("few_kernels")
# their backbones' patches or poolings leave out what does not fill one: floor(H / stride) rows
CUT = {"BEiT", "ConvNeXt", "GoogLeNet", "MAE", "PoolFormer", "SideAdapterCLIPHead", "VGG"}
ROUGH = {"ERFNet", "ICNet", "ICNeck"}  # their backbones double maps, or halve them by resizing: sides near strides
FLAT = {"DPTHead", "Feature2Pyramid", "MLANeck", "SETRMLAHead"}  # they read maps of one size and width, from a ViT


def whole_model(name: str) -> dict:
    """A small model around the `TINY` block of one class: backbones and necks under SegNeXt's head, heads and necks
    over SegNeXt's backbone, or over the one whose block they name in `TINY_BACKBONE`.
    """
    entry = MODELS.get(name)
    block = dict(entry.TINY)
    if name == "SideAdapterCLIPHead":  # it reads pictures and names too
        vision = {**VisionTransformer.TINY, "patch_pad": 0, "num_layers": 2, "out_origin": True, "out_indices": [1],
                  "output_cls_token": True, "pre_norm": True, "final_norm": False, "act_cfg": {"type": "QuickGELU"},
                  "frozen_exclude": ["pos_embed"]}
        return {"type": "MultimodalEncoderDecoder", "backbone": vision, "text_encoder": dict(CLIPTextEncoder.TINY),
                "decode_head": {"num_classes": 5, **block}, "encoder_resolution": 0.7}
    kind = entry.__module__.split(".")[2]
    backbone = block if kind == "backbones" else dict(getattr(entry, "TINY_BACKBONE", MSCAN.TINY))
    if name in FLAT:
        backbone = {**VisionTransformer.TINY, "num_layers": 4, "out_indices": [0, 1, 2, 3],
                    "output_cls_token": name == "DPTHead"}
    widths, neck = MODELS.build(copy.deepcopy(backbone)).out_channels, None
    if kind == "necks":
        neck = block if name == "Feature2Pyramid" else {"in_channels": widths, **block}
        widths = MODELS.build(copy.deepcopy(neck)).out_channels
    first = 1 if name in ("MSCAN", "LightHamHead") else 0

    def whole_head(head):
        inner = "kernel_generate_head"  # a head in a head, which reads the maps
        if inner in head:
            return {**head, inner: whole_head(head[inner])}
        words = accepted(MODELS.get(head["type"]))
        if "input_transform" not in words:  # no HeadOptions: it reads every map
            return {"in_channels": widths, "num_classes": 5, **head}
        several = head.get("input_transform", words["input_transform"].default) is not None
        index = head.get("in_index", list(range(first, len(widths))))
        given = {"in_channels": [widths[i] for i in index], "in_index": index} if several else {
            "in_channels": widths[-1]}
        return {**given, "num_classes": 5, "dropout_ratio": 0.0, **head}

    head = whole_head(block if kind == "heads" else dict(LightHamHead.TINY))
    if kind == "heads" and entry.needs_previous:
        head = [whole_head({**FCNHead.TINY, "in_index": -1}), head]
    return {"type": "EncoderDecoder", "backbone": backbone, "neck": neck, "decode_head": head}


NOT_NETWORKS = {"EncoderDecoder", "CascadeEncoderDecoder", "MultimodalEncoderDecoder", "ImageClassifier",
                "CLIPTextEncoder"}  # the last two stand in the model of SideAdapterCLIPHead
SPECIMENS = {name: whole_model(name) for name in MODELS.names() if name not in NOT_NETWORKS}


PROBES = {
    "MSCAN", "LightHamHead", "ResNetV1c", "FCNHead", "PSPHead", "DepthwiseSeparableASPPHead", "SwinTransformer",
    "UPerHead",
    "MixVisionTransformer", "SegformerHead", "HRNet", "OCRHead", "PointHead", "PIDNet", "PIDHead", "STDCContextPathNet",
    "STDCHead", "BiSeNetV1", "KernelUpdateHead", "IterativeDecodeHead", "EncHead", "MaskFormerHead", "FPN"}
CHOSEN = [pytest.param(name, marks=[] if name in PROBES else [pytest.mark.zoo]) for name in SPECIMENS]


@pytest.fixture(params=CHOSEN)
def specimen(request):
    """(name, model) with fixed weights; training mode. What starts at 0, such as the factor of a branch, is opened."""
    jt.set_global_seed(0)
    model, rng = build_model(copy.deepcopy(SPECIMENS[request.param])), np.random.default_rng(5)
    for value in named_parameters(model).values():
        if not value.numpy().any():
            value.assign(jt.array(rng.uniform(0.1, 0.3, value.shape).astype(np.float32)))
    return request.param, model


def pictures(rng, n: int, h: int, w: int) -> np.ndarray:
    return rng.standard_normal((n, 3, h, w)).astype(np.float32)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_backbone_makes_what_it_declares(name, rng):
    model = build_model(copy.deepcopy(SPECIMENS[name]))
    for training in (True, False):
        model.train() if training else model.eval()
        maps = [m[0] if isinstance(m, tuple) else m
                for m in model.backbone(jt.array(pictures(rng, 2, 65, 97)))]  # (map, class token)
        assert [m.shape[1] for m in maps] == list(model.backbone.out_channels)
        assert len(maps) == len(model.backbone.strides)
        if name not in ROUGH:
            assert [tuple(m.shape[2:]) for m in maps] == [(65 // s, 97 // s) if name in CUT
                                                          else (-(-65 // s), -(-97 // s))
                                                          for s in model.backbone.strides]
        if model.neck is not None:
            assert [m.shape[1] for m in model.neck(maps)] == list(model.neck.out_channels)


@pytest.mark.parametrize(("h", "w"), [(64, 64), (65, 97), (33, 40)])
def test_one_picture_of_any_size(specimen, h, w, rng):
    name, model = specimen
    model.eval()
    x = pictures(rng, 1, h, w)
    logits = model(jt.array(x)).numpy()
    assert logits.shape[:2] == (1, model.num_classes) and np.isfinite(logits).all()
    first, second = (model.predict(x, [{"ori_shape": (h, w)}])[0] for _ in range(2))
    assert first.shape == (h, w) and first.dtype == np.uint8 and (first == second).all()
    other = model.predict(x, [{"ori_shape": (h // 2, 2 * w)}], with_prob=True)[0]
    assert other[0].shape == other[1].shape == (h // 2, 2 * w) and 0 < other[1].min() <= other[1].max() <= 1


def test_a_gradient_reaches_every_parameter(specimen, rng):
    _, model = specimen
    for value in named_parameters(model).values():
        if value.ndim > 1 and not value.numpy().any():  # a matrix that starts at zero hides what is before it
            value.assign(jt.array(0.1 * rng.standard_normal(tuple(value.shape)).astype(np.float32)))
    labels = rng.integers(0, model.num_classes, (2, 65, 97)).astype(np.int32)
    losses = model.loss(jt.array(pictures(rng, 2, 65, 97)), jt.array(labels))
    assert losses["loss"].item() == pytest.approx(sum(v.item() for k, v in losses.items() if k != "loss"
                                                      and is_loss(k)))
    parameters = {key: value for key, value in named_parameters(model).items() if not value.is_stop_grad()}
    for (key, value), gradient in zip(parameters.items(), jt.grad(losses["loss"], list(parameters.values()))):
        gradient = gradient.numpy()
        assert gradient.shape == tuple(value.shape) and np.isfinite(gradient).all() and np.abs(gradient).max() > 0, key


def test_a_picture_twice_has_the_gradients_of_once(specimen, rng):
    _, model = specimen
    model.train()
    x, labels = pictures(rng, 1, 48, 40), rng.integers(0, 5, (1, 48, 40)).astype(np.int32)
    parameters, found, state = named_parameters(model), [], model.state_dict("numpy")
    with no_randomness(model):
        for count in (1, 2):
            model.load_state_dict(state)  # buffers that a step reads and moves
            loss = model.loss(jt.array(np.repeat(x, count, 0)), jt.array(np.repeat(labels, count, 0)))["loss"]
            found.append([loss.numpy()] + [g.numpy() for g in jt.grad(loss, list(parameters.values()))])
    largest = max(np.abs(g).max() for g in found[0][1:])
    for once, twice in zip(*found):
        np.testing.assert_allclose(once, twice, rtol=1e-3, atol=1e-4 * largest)


def test_saving_and_loading_gives_the_same_masks(specimen, rng):
    name, model = specimen
    # moves running statistics
    model.loss(jt.array(pictures(rng, 2, 64, 64)), jt.zeros((2, 64, 64), "int32"))["loss"].sync()
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    assert remap_keys(state, SPECIMENS[name]).keys() == state.keys()
    jt.set_global_seed(1)
    twin = build_model(copy.deepcopy(SPECIMENS[name]))
    assert twin.state_dict().keys() == state.keys()
    twin.load_state_dict(state)
    x = pictures(rng, 1, 40, 56)
    still = [key for key, value in named_parameters(model).items() if value.is_stop_grad()]
    a, b = (m.predict(x, [{}], with_prob=True)[0] for m in (model, twin))
    assert (a[0] == b[0]).all() and (a[1] == b[1]).all()
    assert model.is_training() and still == [key for key, p in named_parameters(model).items() if p.is_stop_grad()]


def test_kernels_and_plain_path_agree(specimen, rng):
    name, model = specimen
    plain = build_model({**copy.deepcopy(SPECIMENS[name]), "impl": "jittor"})
    plain.load_state_dict(model.state_dict("numpy"))
    model.eval(), plain.eval()
    x = jt.array(pictures(rng, 1, 48, 40))
    np.testing.assert_allclose(model(x).numpy(), plain(x).numpy(), atol=1e-5)


def test_slide_and_whole_agree_on_one_window(specimen, rng):
    _, model = specimen
    x, metas = pictures(rng, 2, 48, 40), [{"ori_shape": (30, 50), "padding_size": (0, 4, 0, 2)}] * 2
    whole = model.predict(x, metas)
    model.test_cfg = {"mode": "slide", "crop_size": (64, 64), "stride": (32, 32)}
    assert all((a == b).all() for a, b in zip(whole, model.predict(x, metas)))


@pytest.mark.parametrize("test_cfg", [{"mode": "whole"}, {"mode": "slide", "crop_size": (32, 32), "stride": (16, 16)}],
                         ids=["whole", "slide"])
@pytest.mark.parametrize("own_size", [(48, 40), (30, 50)])
def test_a_batch_run_in_groups_gives_the_same(specimen, test_cfg, own_size, rng, monkeypatch):
    _, model = specimen
    model.test_cfg = test_cfg
    flips = [{}, {"flip": True, "flip_direction": "horizontal"}, {"flip": True, "flip_direction": "vertical"}]
    x, metas = pictures(rng, 3, 48, 40), [{"ori_shape": own_size, "img_shape": (48, 40), **flip} for flip in flips]
    at_once = model.predict(x, metas, with_prob=True)
    sizes, run = [], type(model).class_scores
    monkeypatch.setattr(type(model), "class_scores", lambda self, images: sizes.append(images.shape[0])
                        or run(self, images))
    monkeypatch.setattr(segmentor, "GROUP_PIXELS", 2 * 48 * 40 if test_cfg["mode"] == "whole" else 2 * 32 * 32)
    grouped = model.predict(x, metas, with_prob=True)
    assert set(sizes) == {1, 2} and len(grouped) == 3
    for (labels, prob), (expected, expected_prob) in zip(grouped, at_once):
        assert (labels == expected).mean() > 0.999
        np.testing.assert_allclose(prob, expected_prob, atol=1e-5)


def test_segnext_keys():
    """Spot checks; the parity test proves every key, because each value there depends on its key."""
    keys = build_model(SPECIMENS["LightHamHead"]).state_dict()
    for key in ("backbone.patch_embed1.proj.4.running_var", "backbone.patch_embed2.norm.weight",
                "backbone.block3.1.mlp.dwconv.weight", "backbone.block1.0.attn.spatial_gating_unit.conv2_2.bias",
                "backbone.block4.0.layer_scale_2", "backbone.norm4.bias", "decode_head.squeeze.gn.weight",
                "decode_head.hamburger.ham_in.conv.bias", "decode_head.hamburger.ham_out.gn.bias",
                "decode_head.align.conv.weight", "decode_head.conv_seg.bias"):
        assert key in keys
    old = {"module.backbone.block1.0.mlp.dwconv.dwconv.weight": 1,
           "module.backbone.block1.0.norm1.num_batches_tracked": 2, "norm1.weight": 3}
    assert remap_keys(old, SPECIMENS["LightHamHead"]) == {"backbone.block1.0.mlp.dwconv.weight": 1, "norm1.weight": 3}
    other = {"backbone": {"type": "Another"}, "decode_head": {"type": "LightHamHead"}}
    assert remap_keys({"backbone.block1.0.mlp.dwconv.dwconv.weight": 1}, other) == {
        "backbone.block1.0.mlp.dwconv.dwconv.weight": 1}


def test_fixed_bases_travel_with_the_weights():
    block = copy.deepcopy(SPECIMENS["LightHamHead"])
    block["decode_head"]["ham_kwargs"] = {"RAND_INIT": False, "MD_R": 4, "MD_S": 2}
    model = build_model(block)
    assert tuple(model.state_dict()["decode_head.hamburger.ham.bases"].shape) == (2, 8, 4)
    assert "decode_head.hamburger.ham.bases" not in named_parameters(model)
    np.testing.assert_allclose(np.linalg.norm(evaluation_bases(2, 8, 4), axis=1), 1, rtol=1e-5)


def test_ham_kwargs_of_both_families():
    authors = {"SPATIAL": True, "MD_S": 1, "MD_D": 512, "MD_R": 64, "TRAIN_STEPS": 5, "EVAL_STEPS": 6, "INV_T": 1,
               "RAND_INIT": True}
    mmseg = {"MD_S": 1, "MD_R": 64, "train_steps": 5, "eval_steps": 6, "inv_t": 1, "rand_init": True}
    assert ham_options(authors) == ham_options(mmseg)
    with pytest.raises(ConfigError, match="unknown key 'train_step'; did you mean 'train_steps'"):
        ham_options({"train_step": 3})
    with pytest.raises(ConfigError, match="one setting"):
        ham_options({"train_steps": 3, "TRAIN_STEPS": 3})
    with pytest.raises(ConfigError, match="grad must be 'full' or 'one_step'"):
        ham_options({"grad": "none"})


def test_one_step_gradient_differs_and_is_finite(rng):
    gradients = {}
    for grad in ("full", "one_step"):
        jt.set_global_seed(0)
        block = copy.deepcopy(SPECIMENS["LightHamHead"])
        block["decode_head"]["ham_kwargs"] = {"MD_R": 4, "grad": grad, "rand_init": False}
        model = build_model(block)
        loss = model.loss(jt.array(pictures(np.random.default_rng(0), 2, 64, 64)),
                          jt.ones((2, 64, 64), "int32"))["loss"]
        gradients[grad] = jt.grad(loss, model.decode_head.hamburger.ham_in.conv.weight).numpy()
    assert np.isfinite(gradients["one_step"]).all() and np.abs(gradients["full"] - gradients["one_step"]).max() > 0


def test_mscan_defaults_are_those_of_mmsegmentation():
    with without_values():
        model = MSCAN()
    assert model.out_channels == [64, 128, 256, 512] and len(list(model.block3)) == 6
    assert model.block1[0].mlp.fc1.weight.shape[0] == 4 * 64


def test_mscan_mistakes():
    with pytest.raises(ConfigError, match="unknown variant 'tinny'; did you mean 'tiny'"):
        MSCAN(variant="tinny")
    with pytest.raises(ConfigError, match="depths needs 4 values"):
        MSCAN(embed_dims=[8, 8, 8, 8], depths=[1, 1])
    with pytest.raises(ValueError, match="do not keep the size"):
        MSCAN(variant="tiny", attention_kernel_sizes=[5, [1, 7]], attention_kernel_paddings=[2, [0, 2]])
    with pytest.raises(ConfigError, match="stride .* is larger than crop_size"):
        build_model({**SPECIMENS["LightHamHead"],
                     "test_cfg": {"mode": "slide", "crop_size": [32, 32], "stride": [48, 32]}})


def test_other_activations_and_dropout_take_the_long_way(rng):
    block = copy.deepcopy(SPECIMENS["LightHamHead"])
    block["backbone"].update(act_cfg={"type": "ReLU"}, drop_rate=0.1, drop_path_rate=0.2,
                             attention_kernel_sizes=[3, [1, 5]], attention_kernel_paddings=[1, [0, 2]])
    model = build_model(block)
    assert "backbone.block1.0.attn.spatial_gating_unit.conv1_1.weight" not in model.state_dict()
    assert np.isfinite(model.loss(jt.array(pictures(rng, 2, 32, 32)), jt.zeros((2, 32, 32), "int32"))["loss"].item())


@pytest.mark.parametrize(("variant", "widths", "ham", "rank", "published"), [
    ("tiny", [64, 160, 256], 256, 16, 6.6), ("small", [128, 320, 512], 256, 16, 15.9),
    ("base", [128, 320, 512], 512, 64, 34.9), ("large", [128, 320, 512], 1024, 64, 70.0)])
def test_operation_counts_are_the_published_ones(variant, widths, ham, rank, published):
    model = build_model({"type": "EncoderDecoder", "backbone": {"type": "MSCAN", "variant": variant}, "decode_head": {
        **SPECIMENS["LightHamHead"]["decode_head"], "in_channels": widths, "channels": ham, "ham_channels": ham,
        "num_classes": 150, "norm_cfg": {"type": "GN", "num_groups": 32}, "ham_kwargs": {"MD_R": rank}}})
    counts, logits = count_operations(model, (512, 512))
    assert logits == (1, 150, 64, 64)
    assert round(sum(counts.values()) / 1e9, 1) == published
