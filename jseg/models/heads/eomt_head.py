"""EoMTHead: queries join the tokens of a plain vision transformer in its last blocks; each is read as class and mask.

Paper: Kerssies et al., "Your ViT is Secretly an Image Segmentation Model" (EoMT), CVPR 2025.
Upstream: tue-mps/eomt models/{eomt,scale_block}.py (MIT), and transformers 5.x models/eomt (Apache-2.0), whose
arithmetic this is; the losses are Mask2Former's (`SetCriterion`). State keys: those of `MaskHead`, `upscale.<i>` and
the buffer `attn_mask_probs`.

Deviation: in evaluation a block masks all queries where its probability is at least one half, and none below; upstream
draws there too, so that a picture's result changes from run to run while the masks are being taken away.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, build_norm, gelu, to_map
from jseg.layers.conv_transpose import PatchConvTranspose2d
from jseg.layers.init import ones
from jseg.losses.set_criterion import SetCriterion
from jseg.models.backbones.dinov2 import DINOv2, JointBlocks
from jseg.models.heads.mask_head import DICE_LOSS, MASK_LOSS, MATCHING, MaskHead, default_class_loss
from jseg.ops import ranks
from jseg.registry import MODELS, construct

__all__ = ["EoMTHead"]


class UpscaleBlock(nn.Module):
    """Twice the size: transposed convolution, GELU, depthwise convolution, norm. Keys: `conv1`, `conv2`, `norm`.

    Shape:
        x: (N, channels, H, W) -> (N, channels, 2 H, 2 W)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = PatchConvTranspose2d(channels, channels, 2)
        self.conv2 = Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = build_norm({"type": "LN2d", "eps": 1e-6}, channels)[1]

    def execute(self, x: jt.Var) -> jt.Var:
        return self.norm(self.conv2(gelu(self.conv1(x))))


class MaskAnnealing:
    """How the masks are taken away in training: a block masks each query with a probability that falls from 1 at its
    `begin` to 0 at its `end`, as (1 - progress) ** power.

    Args:
        begin, end: iterations, one pair for each joint block, begin < end.
        power: exponent, above 0.
    Raises:
        ConfigError: lists of different lengths, or numbers out of range.
    """

    def __init__(self, begin: Sequence[int], end: Sequence[int], power: float = 0.9):
        if len(begin) != len(end) or not all(0 <= b < e for b, e in zip(begin, end)) or power <= 0:
            raise ConfigError(f"mask_annealing: begin is {list(begin)}, end {list(end)}, power {power}; accepted: as "
                              "many numbers in both, 0 <= begin < end, and a power above 0")
        self.begin, self.end, self.power = np.array(begin, float), np.array(end, float), power

    def at(self, iteration: int) -> np.ndarray:
        """The probability of each block, float32."""
        progress = np.clip((iteration - self.begin) / (self.end - self.begin), 0.0, 1.0)
        return ((1.0 - progress) ** self.power).astype(np.float32)


@MODELS.register()
class EoMTHead(MaskHead):
    """Queries in the last blocks of a backbone with `joint_blocks`, read before each of them and behind the last.

    Args:
        in_channels: [width of the tokens].
        num_classes: K.
        num_queries: Q.
        num_blocks: the backbone's `joint_blocks`.
        num_upscale_blocks: how many times the map that masks are read from is doubled.
        mask_annealing: words of `MaskAnnealing`; None: masks stay as `attn_mask_probs` says, at 1 for a new model.
        loss_cls, loss_mask, loss_dice, train_cfg: see `SetCriterion`; `loss_cls` null: class weights 1, and 0.1 of no
            class.
        align_corners, ignore_index, readout_size: see `MaskHead`.
    Shape:
        features: [..., (map, `JointBlocks`)] -> num_blocks + 1 readings, see `MaskHead`; in evaluation those alone that
        a mask is made of, and the last
    Raises:
        ConfigError: numbers that do not fit.
    """

    BUFFERS = ("attn_mask_probs",)
    TINY = MappingProxyType({"type": "EoMTHead", "num_queries": 9, "num_blocks": 2, "num_upscale_blocks": 1,
                             "train_cfg": {"num_points": 50, "assigner": MATCHING}})
    TINY_BACKBONE = MappingProxyType({key: value for key, value in {**DINOv2.TINY, "joint_blocks": 2}.items()
                                      if key != "out_indices"})

    def __init__(self, in_channels: Sequence[int], num_classes: int, num_queries: int = 100, num_blocks: int = 4,
                 num_upscale_blocks: int = 2, mask_annealing: Mapping | None = None, loss_cls: Mapping | None = None,
                 loss_mask: Mapping = MASK_LOSS, loss_dice: Mapping = DICE_LOSS, train_cfg: Mapping | None = None,
                 align_corners: bool = False, ignore_index: int = 255,
                 readout_size: str | Sequence[int] | None = None):
        width = in_channels[-1]
        super().__init__(num_classes, in_index=None, channels=width, out_channels=width, num_queries=num_queries,
                         query_channels=width, align_corners=align_corners, ignore_index=ignore_index,
                         readout_size=readout_size, has_gelu=True)
        self.upscale = nn.Sequential(*[UpscaleBlock(width) for _ in range(num_upscale_blocks)])
        self.attn_mask_probs = ones(num_blocks).stop_grad()
        self.annealing = None if mask_annealing is None else construct(MaskAnnealing, mask_annealing, "mask_annealing")
        if self.annealing is not None and len(self.annealing.begin) != num_blocks:
            raise ConfigError(f"mask_annealing names {len(self.annealing.begin)} blocks, num_blocks is {num_blocks}")
        self.num_blocks = num_blocks
        self.criterion = SetCriterion(num_classes, loss_cls=loss_cls or default_class_loss(num_classes, 2.0),
                                      loss_mask=loss_mask, loss_dice=loss_dice, train_cfg=train_cfg,
                                      ignore_index=ignore_index, at_points=True)

    def begin_step(self, iteration: int) -> None:
        if self.annealing is not None:
            self.attn_mask_probs.update(jt.array(self.annealing.at(iteration)).stop_grad())

    def execute(self, features: list, previous: jt.Var | None = None) -> list[tuple[jt.Var, jt.Var]]:
        joint = features[-1][1] if isinstance(features[-1], tuple) else None
        if not isinstance(joint, JointBlocks) or len(joint.blocks) != self.num_blocks:
            raise ConfigError("EoMTHead needs a backbone that leaves its last blocks to the head: DINOv2 or DINOv3 "
                              f"with joint_blocks: {self.num_blocks}, as num_blocks says")
        queries = self.query_embed.weight.unsqueeze(0)
        x = jt.concat([queries.broadcast((joint.tokens.shape[0], *queries.shape[1:])), joint.tokens], 1)
        readings, probs = [], self.attn_mask_probs.numpy()
        for block, prob in zip(joint.blocks, probs if self.is_training() else probs >= 0.5):
            mask = None
            if prob or self.is_training():
                readings.append(self.read_tokens(x, joint))
                mask = self.mask_tokens(readings[-1][1], joint, float(prob)) if prob else None
            x = block(x, mask)
        return [*readings, self.read_tokens(x, joint)]

    def read_tokens(self, x: jt.Var, joint: JointBlocks) -> tuple[jt.Var, jt.Var]:
        """A reading of tokens (N, Q + prefix + h * w, C)."""
        x, count = joint.norm(x), self.query_embed.weight.shape[0]
        return self.read(x[:, :count], self.upscale(to_map(x[:, count + joint.prefix:], joint.size)))

    def mask_tokens(self, masks: jt.Var, joint: JointBlocks, prob: float) -> jt.Var:
        """What is added to the scores of all tokens: -inf where a query would look at patches outside its own mask,
        with probability `prob` for each query, else 0. Shape: masks (N, Q, ., .) logits -> (N, L, L), without gradient.
        """
        with jt.no_grad():
            n, count, before = *masks.shape[:2], masks.shape[1] + joint.prefix
            outside = ops.bilinear_resize(masks, joint.size).reshape(n, count, -1) <= 0
            if prob < 1:
                outside = outside.logical_and(ranks.rand((n, count)).unsqueeze(2) <= prob)
            hidden = jt.ternary(outside, jt.full(outside.shape, float("-inf")), jt.zeros(outside.shape))
            rows = jt.concat([jt.zeros((n, count, before)), hidden], 2)
            return jt.concat([rows, jt.zeros((n, rows.shape[2] - count, rows.shape[2]))], 1).stop_grad()
