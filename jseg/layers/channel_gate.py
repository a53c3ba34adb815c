"""Gates that a map puts on its own channels, from its mean over positions."""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.layers.conv import ConvNormAct
from jseg.layers.pool import adaptive_avg_pool

__all__ = ["AttentionRefinement", "ChannelGate", "GatedFusion"]


class ChannelGate(nn.Module):
    """sigmoid(blocks(mean over positions)): squeeze and excitation (Hu et al., CVPR 2018) with any blocks inside.

    Args:
        blocks: modules from (N, C, 1, 1) to (N, D, 1, 1), one after the other.
        first_key: state key of the first, counted on from there; upstream's count depends on whether pooling was a part
            of its list.
    Shape:
        x: (N, C, H, W) -> (N, D, 1, 1), in 0 to 1
    """

    def __init__(self, *blocks: nn.Module, first_key: int = 1):
        super().__init__()
        self.keys = [str(first_key + i) for i in range(len(blocks))]
        for key, block in zip(self.keys, blocks):
            setattr(self, key, block)

    def execute(self, x: jt.Var) -> jt.Var:
        x = adaptive_avg_pool(x, 1)
        for key in self.keys:
            x = getattr(self, key)(x)
        return jt.sigmoid(x)


class AttentionRefinement(nn.Module):
    """A 3x3 block whose channels are gated (Yu et al., "BiSeNet", ECCV 2018, sec. 3.2); keys as in mmsegmentation.

    Args:
        in_channels, out_channels: widths of input and output.
        norm_cfg, act_cfg: norm of both convolutions, activation of the first.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm_cfg: dict, act_cfg: dict):
        super().__init__()
        self.conv_layer = ConvNormAct(in_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.atten_conv_layer = ChannelGate(ConvNormAct(out_channels, out_channels, 1, bias=False, norm_cfg=norm_cfg))

    def execute(self, x: jt.Var) -> jt.Var:
        x = self.conv_layer(x)
        return x * self.atten_conv_layer(x)


class GatedFusion(nn.Module):
    """Two maps of one size, joined, through a 1x1 block whose channels are gated and added to themselves (BiSeNet, sec.
    3.3).

    Args:
        in_channels, out_channels: widths of both maps together and of the result.
        gate: the gate, for maps of `out_channels`.
        keys: state keys of the block and of the gate.
        norm_cfg, act_cfg: of the block.
    Shape:
        fine, coarse: (N, C_i, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, gate: ChannelGate, *, keys: tuple[str, str], norm_cfg: dict,
                 act_cfg: dict):
        super().__init__()
        self.keys = keys
        setattr(self, keys[0], ConvNormAct(in_channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=act_cfg))
        setattr(self, keys[1], gate)

    def execute(self, fine: jt.Var, coarse: jt.Var) -> jt.Var:
        block, gate = (getattr(self, key) for key in self.keys)
        x = block(jt.concat([fine, coarse], 1))
        return x * gate(x) + x
