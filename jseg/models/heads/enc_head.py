"""EncHead: the map as a whole, encoded by its distances to learned codewords, decides what each channel counts.

Paper: Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/enc_head.py and mmseg/models/utils/encoding.py (Apache-2.0),
whose keys and arithmetic these are.

Deviations: squared distances are expanded into products of matrices, so that no tensor of positions times codewords
times channels is in memory; a label equal to `ignore_index` counts as absent even where it lies below K.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers import ConvNormAct, Linear, build_norm, relu, to_tokens
from jseg.layers.init import uniform
from jseg.losses.criterion import Criterion
from jseg.losses.targets import class_presence
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["EncHead", "Encoding"]

SE_LOSS = MappingProxyType({"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 0.2})


class Encoding(nn.Module):
    """Residuals of all positions to each codeword, weighted by how near the codeword is, and added up.

    Args:
        channels: C.
        num_codes: number of codewords.
    Shape:
        x: (N, C, H, W) -> (N, num_codes, C)
    """

    def __init__(self, channels: int, num_codes: int):
        super().__init__()
        limit = (num_codes * channels) ** -0.5
        self.codewords = uniform((num_codes, channels), -limit, limit)
        self.scale = uniform((num_codes,), -1.0, 0.0)

    def execute(self, x: jt.Var) -> jt.Var:
        x = to_tokens(x)  # (N, L, C)
        lengths = (x * x).sum(2, keepdims=True)  # (N, L, 1)
        code_lengths = (self.codewords * self.codewords).sum(1)
        distances = lengths - 2.0 * ops.linear(x, self.codewords) + code_lengths  # (N, L, codes), squared
        weights = nn.softmax(distances * self.scale, dim=2)
        gathered = jt.matmul(weights.transpose(0, 2, 1), x)  # (N, codes, C)
        return gathered - weights.sum(1).unsqueeze(2) * self.codewords


class EncModule(nn.Module):
    """Encode a map and weigh its channels by the code.

    Args:
        channels, num_codes: see `Encoding`.
        blocks: norm_cfg and act_cfg of the projection; the code's norm is of the same type, BN where that is None.
    Shape:
        x: (N, C, H, W) -> code (N, C), map (N, C, H, W)
    """

    def __init__(self, channels: int, num_codes: int, blocks: dict):
        super().__init__()
        self.encoding_project = ConvNormAct(channels, channels, 1, **blocks)
        norm = build_norm(blocks["norm_cfg"] or {"type": "BN"}, num_codes)[1]
        self.encoding = nn.Sequential(Encoding(channels, num_codes), norm)
        self.fc = nn.Sequential(Linear(channels, channels))

    def execute(self, x: jt.Var) -> tuple[jt.Var, jt.Var]:
        encode, norm = self.encoding
        codes = encode(self.encoding_project(x)).unsqueeze(3)  # (N, codes, C, 1)
        code = norm(codes, activation="relu").mean([1, 3])  # (N, C)
        weights = jt.sigmoid(self.fc(code)).unsqueeze(2).unsqueeze(3)  # (N, C, 1, 1)
        return code, relu(x + x * weights)


@MODELS.register()
class EncHead(SegmentationHead):
    """A 3x3 block, channels weighed by the code of the map, a classifier; the code also says which classes are present.

    Args:
        options: see `HeadOptions`; the last map is read, with `add_lateral` the others too.
        num_codes: number of codewords, >= 1.
        use_se_loss: learn the presence of classes too.
        add_lateral: join the other maps, resized to the last one.
        loss_se_decode: block of that loss, which needs a sigmoid form.
    Shape:
        features: list of maps -> logits (N, K, h, w) of the last map's size, presence (N, K) or None
    """

    DEFAULTS = MappingProxyType({"input_transform": "multiple_select"})
    TINY = MappingProxyType(
        {"type": "EncHead", "channels": 8, "num_codes": 4, "add_lateral": True, "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, num_codes: int = 32, use_se_loss: bool = True,
                 add_lateral: bool = False, loss_se_decode: dict | Sequence[dict] = SE_LOSS):
        super().__init__(options)
        channels, blocks = options.channels, options.blocks
        *others, last = options.in_channels
        self.bottleneck = ConvNormAct(last, channels, 3, padding=1, **blocks)
        self.lateral_convs = self.fusion = None
        if add_lateral:
            self.lateral_convs = nn.Sequential(*[ConvNormAct(width, channels, 1, **blocks) for width in others])
            self.fusion = ConvNormAct((len(others) + 1) * channels, channels, 3, padding=1, **blocks)
        self.enc_module = EncModule(channels, num_codes, blocks)
        self.se_layer, self.presence = None, None
        if use_se_loss:
            self.se_layer = Linear(channels, options.num_classes)
            self.presence = Criterion(loss_se_decode, ignore_index=options.ignore_index)

    def execute(self, features: list, previous: jt.Var | None = None) -> tuple[jt.Var, jt.Var | None]:
        maps = self.select(features)
        x = self.bottleneck(maps[-1])
        if self.fusion is not None:
            size, options = tuple(x.shape[2:]), {"align_corners": self.align_corners}
            laterals = [ops.bilinear_resize(conv(m), size, **options) for conv, m in zip(self.lateral_convs, maps)]
            x = self.fusion(jt.concat([x, *laterals], 1))
        code, x = self.enc_module(x)
        return self.classify(x), None if self.se_layer is None else self.se_layer(code)

    def loss(self, outputs: tuple[jt.Var, jt.Var | None], labels: jt.Var) -> dict[str, jt.Var]:
        logits, presence = outputs
        losses = super().loss(logits, labels)
        if presence is not None:
            goal = class_presence(labels.numpy(), self.num_classes, self.ignore_index)
            losses["loss_se"] = self.presence.elements(presence, goal)
        return losses

    def scores(self, outputs: tuple[jt.Var, jt.Var | None], size: tuple[int, int]) -> jt.Var:
        return super().scores(outputs[0], size)
