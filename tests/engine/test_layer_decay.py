"""Rates and decays by depth, against the table that mmsegmentation 1.2.2's constructor gives for the same names."""

from __future__ import annotations

import pytest

from jseg.engine.layer_decay import layer_decay
from jseg.engine.optim import param_groups
from jseg.errors import ConfigError
from jseg.models import build_model
from jseg.models.backbones.beit import BEiT
from jseg.models.backbones.convnext import ConvNeXt
from jseg.models.backbones.dinov2 import DINOv2
from jseg.models.backbones.mae import MAE
from jseg.models.backbones.mscan import MSCAN


def model_of(backbone: dict):
    return build_model({"type": "EncoderDecoder", "backbone": dict(backbone), "decode_head": {
        "type": "FCNHead", "in_channels": 32 if backbone["type"] in ("ConvNeXt", "MSCAN") else 16, "channels": 8,
        "num_classes": 5}})


@pytest.mark.parametrize(("backbone", "rules", "depths"), [
    (BEiT.TINY, {"num_layers": 3, "decay_rate": 0.5}, {
        "backbone.cls_token": 0, "backbone.patch_embed.projection.weight": 0, "backbone.layers.0.attn.qkv.weight": 1,
        "backbone.layers.2.ffn.layers.1.weight": 3, "backbone.layers.1.attn.relative_position_bias_table": 2,
        "decode_head.conv_seg.weight": 4}),
    (MAE.TINY, {"num_layers": 3, "decay_rate": 0.5, "decay_type": "layer_wise"},
     {"backbone.pos_embed": 0, "backbone.ln1.weight": 4}),
    (DINOv2.TINY, {"num_layers": 2, "decay_rate": 0.5, "flat_decay_mult": 1.0}, {  # tokens go with the first block
        "backbone.cls_token": 1, "backbone.register_tokens": 1, "backbone.pos_embed": 1,
        "backbone.patch_embed.projection.weight": 1, "backbone.layers.0.gamma_1": 1,
        "backbone.layers.2.ffn.layers.1.weight": 3, "backbone.ln1.weight": 3, "decode_head.conv_seg.weight": 3}),
    (ConvNeXt.TINY, {"num_layers": 6, "decay_rate": 0.5, "decay_type": "stage_wise"}, {
        "backbone.downsample_layers.3.1.weight": 0, "backbone.stages.0.0.pointwise_conv1.weight": 1,
        "backbone.norm2.weight": 7, "backbone.stages.3.0.depthwise_conv.weight": 4}),
    (ConvNeXt.TINY, {"num_layers": 6, "decay_rate": 0.5}, {
        "backbone.downsample_layers.0.0.weight": 0, "backbone.downsample_layers.2.1.weight": 3,
        "backbone.downsample_layers.3.1.weight": 6, "backbone.stages.1.0.pointwise_conv1.weight": 2,
        "backbone.stages.2.1.pointwise_conv1.weight": 3,
        "backbone.stages.3.0.pointwise_conv1.weight": 6, "decode_head.conv_seg.weight": 7})])
def test_rates_by_depth(backbone, rules, depths):
    model = model_of(backbone)
    found = {name: group for group in param_groups(model, lr=1.0, weight_decay=0.1, paramwise_cfg=rules)
             for name in group.names}
    assert found.keys() == {name for name, _ in model.named_parameters() if "position_index" not in name}
    for name, depth in depths.items():
        assert found[name].lr == pytest.approx(0.5 ** (rules["num_layers"] + 1 - depth)), name
    for name, param in model.named_parameters():
        if name in found:
            flat = len(param.shape) == 1 or name.endswith(".bias")
            assert found[name].weight_decay == 0.1 * (rules.get("flat_decay_mult", 0.0) if flat else 1.0), name


def test_words_that_do_not_go_together():
    model = model_of(BEiT.TINY)
    with pytest.raises(ConfigError, match="takes num_layers, decay_rate and decay_type"):
        param_groups(model, lr=1.0, paramwise_cfg={"decay_rate": 0.9})
    with pytest.raises(ConfigError, match="and nothing else"):
        param_groups(model, lr=1.0, paramwise_cfg={"num_layers": 3, "decay_rate": 0.9, "norm_decay_mult": 0})
    with pytest.raises(ConfigError, match="without stages takes layer_wise"):
        param_groups(model, lr=1.0, paramwise_cfg={"num_layers": 3, "decay_rate": 0.9, "decay_type": "stage_wise"})
    with pytest.raises(ConfigError, match="MSCAN does not say how deep its layers are"):
        layer_decay(model_of(MSCAN.TINY), {"num_layers": 3, "decay_rate": 0.9})
