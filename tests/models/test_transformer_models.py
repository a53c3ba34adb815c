"""What is particular to one transformer: tables beyond their grid, masks of filled windows, rescaling necks, published
sizes."""

from __future__ import annotations

import copy
import pathlib

import jittor as jt
import numpy as np
import pytest

from jseg.cli.flops import count_operations
from jseg.config import load_config
from jseg.errors import ConfigError
from jseg.layers import named_parameters
from jseg.layers.conv_transpose import PatchConvTranspose2d
from jseg.models import build_model
from jseg.models.backbones.beit import token_index
from jseg.models.backbones.svt import filling_mask
from jseg.models.backbones.swin_transformer import SwinTransformer
from jseg.models.backbones.vision_transformer import VisionTransformer, chosen_blocks
from jseg.models.necks.multilevel_neck import rescale
from jseg.registry import MODELS

pytestmark = pytest.mark.usefixtures("few_kernels")
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def built(block: dict, **words):
    return MODELS.build({**copy.deepcopy(dict(block)), **words})


def pictures(rng, h: int, w: int) -> jt.Var:
    return jt.array(rng.standard_normal((2, 3, h, w)).astype(np.float32))


def test_relative_positions_beyond_the_table_take_its_edge():
    index = token_index((2, 3), (2, 3))
    assert index.shape == (7, 7) and (index[0, 1:] == 15).all() and (index[1:, 0] == 16).all() and index[0, 0] == 17
    wide = token_index((2, 6), (2, 3))
    assert wide[1, 6] == wide[1, 3] and wide[1, 2] == index[1, 2]  # tokens (0, 5), (0, 2) and (0, 1), seen from (0, 0)
    small = token_index((1, 2), (2, 3))
    assert small[1, 2] == index[1, 2] and small[2, 1] == index[2, 1]


def test_filled_tokens_are_masked_where_both_sides_need_them():
    assert filling_mask(4, 6, 2) is None and filling_mask(4, 5, 2) is None and filling_mask(5, 4, 2) is None
    mask = filling_mask(3, 3, 2)  # of four windows, the last holds one token of the map
    assert mask.shape == (4, 4, 4) and not mask[0].any()
    assert (mask[3, 0] == [0, -1000, -1000, -1000]).all() and (mask[3, 1] == [-1000, 0, 0, 0]).all()


def test_transposed_convolution(rng):
    layer, x = PatchConvTranspose2d(3, 2, 2), rng.standard_normal((1, 3, 2, 3))
    layer.bias.assign(rng.standard_normal(2).astype(np.float32))
    exact = np.einsum("nchw,coij->nohiwj", x, layer.weight.numpy().astype(np.float64)).reshape(1, 2, 4, 6)
    np.testing.assert_allclose(
        layer(jt.array(x.astype(np.float32))).numpy(), exact + layer.bias.numpy()[:, None, None], atol=1e-5)


@pytest.mark.parametrize(("scale", "line", "expected"), [
    (0.5, [0, 2, 4, 6, 9], [1, 5]), (2, [0, 4], [0, 1, 3, 4]), (1, [3, 1], [3, 1]), (0.5, [7], [7])])
def test_rescaling_goes_by_the_factor(scale, line, expected):
    """PyTorch's F.interpolate(scale_factor=...): the odd pixel at the end has no part in half the size."""
    x = jt.array(np.tile(np.array(line, np.float32), (1, 1, 2, 1)))
    np.testing.assert_allclose(rescale(x, scale).numpy()[0, 0, 0], expected, atol=1e-6)


def test_class_tokens_and_original_tokens(rng):
    vit = built(VisionTransformer.TINY, out_origin=True, output_cls_token=True, pre_norm=True, patch_norm=True,
                drop_rate=0.1)
    found = vit(pictures(rng, 32, 48))
    assert [(tuple(m.shape), tuple(t.shape)) for m, t in found] == [((2, 16, 2, 3), (2, 16))] * 3
    alone = built(VisionTransformer.TINY, with_cls_token=False)
    assert [tuple(m.shape) for m in alone(pictures(rng, 32, 48))] == [(2, 16, 2, 3)] * 2
    with pytest.raises(ConfigError, match="output_cls_token needs with_cls_token"):
        built(VisionTransformer.TINY, with_cls_token=False, output_cls_token=True)
    with pytest.raises(ConfigError, match=r"out_indices is \[3\]; accepted: 0 to 2"):
        chosen_blocks([3], 3)


def test_only_excepted_parameters_are_trained():
    vit = built(VisionTransformer.TINY, frozen_exclude=["pos_embed"])
    assert [key for key, value in named_parameters(vit).items() if not value.is_stop_grad()] == ["pos_embed"]


@pytest.mark.parametrize("frozen_stages", [0, 2])
def test_frozen_stages_of_swin(frozen_stages, rng):
    swin = built(SwinTransformer.TINY, frozen_stages=frozen_stages, drop_rate=0.5, drop_path_rate=0.2)
    swin.train()
    free = {key for key, value in named_parameters(swin).items() if not value.is_stop_grad()}
    frozen = {key for key in named_parameters(swin) if key not in free}
    expected = ("patch_embed.", "absolute_pos_embed", *(name for i in range(frozen_stages)
                                                        for name in (f"stages.{i}.", f"norm{i}.")))
    assert frozen == {key for key in named_parameters(swin) if key.startswith(expected)}
    x = pictures(rng, 24, 32)
    first, second = (swin(x)[0].numpy() for _ in range(2))
    assert np.array_equal(first, second) == (frozen_stages > 0)  # nothing is dropped in what is frozen


@pytest.mark.parametrize(("name", "published"), [
    ("swin/swin-tiny-patch4-window7_upernet_ade20k-512x512_160k", 945),  # Swin, ICCV 2021, table 3
    ("van/upernet_van-b2_ade20k-512x512_160k", 948),  # the README of VAN-Segmentation
    ("convnext/convnext-tiny_upernet_ade20k-512x512_160k", 940)])  # ConvNeXt, CVPR 2022, table 4: 939, without norms
def test_operation_counts(name, published):
    config = load_config(CONFIGS / f"{name}.yaml")
    counts, logits = count_operations(build_model(config), (512, 2048))
    assert logits == (1, 150, 128, 512) and round(sum(counts.values()) / 1e9) == published
