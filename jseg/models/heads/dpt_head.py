"""DPTHead: maps of a vision transformer become a pyramid, which residual blocks fuse from coarse to fine.

Paper: Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/dpt_head.py (Apache-2.0), whose words, keys and arithmetic
these are.

Deviations: `expand_channels` must be false (upstream's own shapes do not fit with it); `patch_size` means nothing,
there as here; `unit_norm` and `upsample_scores`, which upstream does not know, are of the authors' own head
(isl-org/DPT) and of that in Hugging Face's transformers.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, ConvNormAct, Linear, to_map, to_tokens
from jseg.layers.conv_transpose import PatchConvTranspose2d
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["DPTHead"]

_READOUTS = ("ignore", "add", "project")


class ReassembleBlocks(nn.Module):
    """What the class token says goes into each map; maps get widths and sizes of a pyramid.

    Args:
        in_channels: width of the maps.
        out_channels: widths of the four results, which have 4, 2, 1 and 1/2 times the size.
        readout_type: "ignore" the class token, "add" it to every position, or "project" both to one width.
    Shape:
        features: four of (map (N, in_channels, H, W), token (N, in_channels)) -> four maps
    """

    def __init__(self, in_channels: int, out_channels: Sequence[int], readout_type: str):
        super().__init__()
        first, second, _, last = out_channels
        self.readout_type = readout_type
        self.projects = nn.Sequential(*[ConvNormAct(in_channels, width, 1) for width in out_channels])
        self.resize_layers = nn.Sequential(
            PatchConvTranspose2d(first, first, 4), PatchConvTranspose2d(second, second, 2), nn.Identity(),
            Conv2d(last, last, 3, stride=2, padding=1))
        if readout_type == "project":
            self.readout_projects = nn.Sequential(*[nn.Sequential(Linear(2 * in_channels, in_channels))
                                                    for _ in out_channels])

    def execute(self, features: list[tuple[jt.Var, jt.Var]]) -> list[jt.Var]:
        read = [self._read(i, *feature) for i, feature in enumerate(features)]
        return [resize(project(x)) for x, project, resize in zip(read, self.projects, self.resize_layers)]

    def _read(self, i: int, x: jt.Var, token: jt.Var) -> jt.Var:
        """A map with what its class token says."""
        n, c, h, w = x.shape
        if self.readout_type == "add":
            return x + token.reshape(n, c, 1, 1)
        if self.readout_type == "project":
            joined = jt.concat([to_tokens(x), token.reshape(n, 1, c).broadcast((n, h * w, c))], 2)  # (N, H * W, 2 C)
            return to_map(self.readout_projects[i][0](joined, activation="gelu"), (h, w))
        return x


class ResidualUnit(nn.Module):
    """Two 3x3 blocks, activation first, and the input; convolutions without a norm (`has_norm`) have a bias.
    Shape: (N, C, H, W) -> same.
    """

    def __init__(self, channels: int, blocks: dict, has_norm: bool):
        super().__init__()
        words = {"padding": 1, "bias": not has_norm, "order": ("act", "conv", "norm"), **blocks}
        words["norm_cfg"] = words.get("norm_cfg") if has_norm else None
        self.conv1 = ConvNormAct(channels, channels, 3, **words)
        self.conv2 = ConvNormAct(channels, channels, 3, **words)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.conv2(self.conv1(x)) + x


class FeatureFusionBlock(nn.Module):
    """A finer map joins, then a residual unit, an upsampling by 2 and a 1x1 convolution.

    Args:
        has_finer: whether another map joins.
        has_norm: see `ResidualUnit`.
    Shape:
        x: (N, C, H, W); finer: (N, C, h, w) -> (N, C, 2 H, 2 W)
    """

    def __init__(self, channels: int, blocks: dict, *, has_finer: bool, has_norm: bool):
        super().__init__()
        self.project = ConvNormAct(channels, channels, 1, bias=True)
        self.res_conv_unit1 = ResidualUnit(channels, blocks, has_norm) if has_finer else None
        self.res_conv_unit2 = ResidualUnit(channels, blocks, has_norm)

    def execute(self, x: jt.Var, finer: jt.Var | None = None) -> jt.Var:
        if finer is not None:
            x = x + self.res_conv_unit1(ops.bilinear_resize(finer, tuple(x.shape[2:])))
        x = self.res_conv_unit2(x)
        return self.project(ops.bilinear_resize(x, (2 * x.shape[2], 2 * x.shape[3]), align_corners=True))


@MODELS.register()
class DPTHead(SegmentationHead):
    """Dense prediction transformer's head; the backbone gives class tokens too (`output_cls_token`).

    Args:
        options: see `HeadOptions`; four maps.
        embed_dims: width of the backbone's tokens.
        post_process_channels: widths of the pyramid, finest first.
        readout_type: "ignore", "add" or "project", see `ReassembleBlocks`.
        patch_size: means nothing.
        expand_channels: false.
        unit_norm: norms in the residual units; false: biases instead.
        upsample_scores: enlarge the scores twice, corners aligned.
    Shape:
        features: four of (map (N, embed_dims, H, W), token (N, embed_dims)) -> (N, K, 8 H, 8 W), 16 H and 16 W with
        `upsample_scores`
    Raises:
        ConfigError: not four maps, another readout, or `expand_channels`.
    """

    DEFAULTS = MappingProxyType({"norm_cfg": {"type": "BN"}})
    TINY = MappingProxyType({"type": "DPTHead", "channels": 8, "embed_dims": 16, "post_process_channels": [4, 4, 8, 8],
                             "readout_type": "project", "input_transform": "multiple_select",
                             "in_channels": [16, 16, 16, 16], "in_index": [0, 1, 2, 3]})

    def __init__(self, options: HeadOptions, *, embed_dims: int = 768,
                 post_process_channels: Sequence[int] = (96, 192, 384, 768),
                 readout_type: str = "ignore", patch_size: int = 16, expand_channels: bool = False,
                 unit_norm: bool = True, upsample_scores: bool = False):
        super().__init__(options)
        self.upsample_scores = upsample_scores
        if options.input_transform != "multiple_select" or not len(options.in_index) == len(post_process_channels) == 4:
            raise ConfigError("DPT reads four maps: input_transform multiple_select, four in_index, four "
                              "post_process_channels")
        if readout_type not in _READOUTS or expand_channels:
            raise ConfigError(f"readout_type {readout_type!r}, expand_channels {expand_channels}; accepted: "
                              f"{', '.join(_READOUTS)}; false")
        channels, blocks = options.channels, options.blocks
        self.reassemble_blocks = ReassembleBlocks(embed_dims, post_process_channels, readout_type)
        self.convs = nn.Sequential(*[ConvNormAct(width, channels, 3, padding=1, bias=False)
                                     for width in post_process_channels])
        self.fusion_blocks = nn.Sequential(*[FeatureFusionBlock(channels, blocks, has_finer=i > 0, has_norm=unit_norm)
                                             for i in range(4)])
        self.project = ConvNormAct(channels, channels, 3, padding=1, norm_cfg=options.norm_cfg,
                                   act_cfg={"type": "ReLU"})

    def decode(self, features: list) -> jt.Var:
        """(N, channels, 8 H, 8 W) from the selected maps and tokens."""
        *finer, x = [conv(x) for conv, x in zip(self.convs, self.reassemble_blocks(features))]
        first, *others = self.fusion_blocks
        x = first(x)
        for block, more in zip(others, reversed(finer)):
            x = block(x, more)
        return self.project(x)

    def classify(self, x: jt.Var) -> jt.Var:
        """Scores of each position. Shape: (N, channels, h, w) -> (N, K, h, w), or twice that size."""
        x = super().classify(x)
        if not self.upsample_scores:
            return x
        return ops.bilinear_resize(x, (2 * x.shape[2], 2 * x.shape[3]), align_corners=True)
