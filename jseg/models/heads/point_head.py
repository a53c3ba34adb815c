"""PointHead: classify single points anew from fine features, where the scores of the head before are undecided
(PointRend).

Paper: Kirillov et al., "PointRend: Image Segmentation as Rendering", CVPR 2020, sec. 3 and 5.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/point_head.py (Apache-2.0), whose keys and arithmetic these
are.

Deviations: the words that upstream reads from the model's `train_cfg` and `test_cfg` are the head's own (`MODEL_WORDS`;
`jseg convert` moves them); a cascade runs the head before once per step (see `EncoderDecoder`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv1d, ConvNormAct, Dropout, choose_points, lead_of_best, top_places
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.ops import ranks
from jseg.registry import MODELS

__all__ = ["PointHead", "PointOptions"]


@dataclass(frozen=True)
class PointOptions(HeadOptions):
    """`HeadOptions` of a head whose convolutions run over points."""

    CONVOLUTIONS: ClassVar[tuple] = ("Conv1d",)


@MODELS.register()
class PointHead(SegmentationHead):
    """A perceptron over points, given fine features and the scores of the head before. Only behind another head.

    In training it classifies random points, most of them undecided ones. In evaluation it enlarges the scores in steps,
    and in each step classifies the most undecided positions anew.

    Args:
        options: see `HeadOptions`.
        num_fcs: layers before the classifier, >= 1.
        coarse_pred_each_layer: join the scores before to the input of every layer, not of the first alone.
        num_points: points of a picture in training.
        oversample_ratio: points drawn for each that is kept, >= 1.
        importance_sample_ratio: share of the points, 0 to 1, that are the most undecided of those drawn; the others are
            random.
        subdivision_steps, scale_factor: steps in evaluation, and by how much each enlarges the scores.
        subdivision_num_points: positions classified anew in a step.
    Shape:
        features: list of maps; previous: (N, K, h, w) -> in evaluation scores (N, K, h * f, w * f) with
        f = scale_factor ** subdivision_steps; in training scores of points (N, K, num_points) and the points
        (N, num_points, 2), (x, y) as shares of width and height
    Raises:
        ConfigError: a number out of range.
    """

    TINY = MappingProxyType(
        {"type": "PointHead", "channels": 8, "num_fcs": 2, "num_points": 64, "subdivision_num_points": 200})
    OPTIONS = PointOptions
    DEFAULTS = MappingProxyType(
        {"input_transform": "multiple_select", "conv_cfg": MappingProxyType({"type": "Conv1d"})})
    MODEL_WORDS = MappingProxyType({"train_cfg": ("num_points", "oversample_ratio", "importance_sample_ratio"),
                                    "test_cfg": ("subdivision_steps", "subdivision_num_points", "scale_factor")})
    needs_previous = True

    def __init__(self,
                 options: PointOptions,
                 *,
                 num_fcs: int = 3,
                 coarse_pred_each_layer: bool = True,
                 num_points: int = 2048,
                 oversample_ratio: float = 3,
                 importance_sample_ratio: float = 0.75,
                 subdivision_steps: int = 2,
                 subdivision_num_points: int = 8196,
                 scale_factor: int = 2):
        super().__init__(options)
        counts = {"num_fcs": num_fcs, "num_points": num_points, "oversample_ratio": oversample_ratio,
                  "subdivision_num_points": subdivision_num_points, "scale_factor": scale_factor}
        for name, value in counts.items():
            if value < 1 or (name != "oversample_ratio" and value != int(value)):
                kind = "a number" if name == "oversample_ratio" else "a whole number"
                raise ConfigError(f"{name} is {value}; accepted: {kind}, 1 or more")
        if subdivision_steps < 0 or not 0 <= importance_sample_ratio <= 1:
            raise ConfigError(f"subdivision_steps is {subdivision_steps}, importance_sample_ratio "
                              f"{importance_sample_ratio}; accepted: 0 or more, 0 to 1")
        del self.conv_seg  # `fc_seg` classifies
        self.coarse_pred_each_layer = coarse_pred_each_layer
        self.num_points, self.drawn_points = num_points, int(num_points * oversample_ratio)
        self.undecided_points = int(importance_sample_ratio * num_points)
        self.subdivision_steps, self.scale_factor = subdivision_steps, int(scale_factor)
        self.subdivision_num_points = subdivision_num_points
        width, classes = sum(options.in_channels) + options.num_classes, options.num_classes
        layers = []
        for _ in range(num_fcs):
            layers.append(ConvNormAct(width, options.channels, 1, conv_cfg=options.conv_cfg, **options.blocks))
            width = options.channels + (classes if coarse_pred_each_layer else 0)
        self.fcs = nn.Sequential(*layers)
        self.fc_seg = Conv1d(width, classes, init_std=0.01)
        self.dropout = Dropout(max(options.dropout_ratio, 0.0))

    def execute(self, features: list, previous: jt.Var | None = None):
        maps = self.select(features)
        if self.is_training():
            points = self.draw_points(previous)
            return self.classify_points(maps, previous, points), points
        return self.refine(maps, previous)

    def classify_points(self, maps: list, previous: jt.Var, points: jt.Var) -> jt.Var:
        """Scores (N, K, P) of points (N, P, 2) of the maps and of the scores before."""
        sampled = [ops.point_sample(m, points, align_corners=self.align_corners) for m in (*maps, previous)]
        x, coarse = jt.concat(sampled, 1).unsqueeze(3), sampled[-1].unsqueeze(3)  # (N, C, P, 1)
        for layer in self.fcs:
            x = layer(x)
            if self.coarse_pred_each_layer:
                x = jt.concat([x, coarse], 1)
        return self.fc_seg(self.dropout(x)).squeeze(3)

    def draw_points(self, previous: jt.Var) -> jt.Var:
        """Points (N, num_points, 2) to learn from: the most undecided of many random ones, and more random ones."""
        return choose_points(lambda count: ranks.rand((previous.shape[0], count, 2)),
                             lambda points: -lead_of_best(ops.point_sample(previous, points)),
                             drawn=self.drawn_points, undecided=self.undecided_points, kept=self.num_points)

    def refine(self, maps: list, previous: jt.Var) -> jt.Var:
        """The scores before, enlarged, with the most undecided positions classified anew in each step."""
        scores = previous
        for _ in range(self.subdivision_steps):
            n, k, h, w = scores.shape
            h, w = h * self.scale_factor, w * self.scale_factor
            scores = ops.bilinear_resize(scores, (h, w), align_corners=self.align_corners)
            count = min(self.subdivision_num_points, h * w)
            places = top_places(-lead_of_best(scores).reshape(n, h * w), count)  # (N, P)
            points = jt.stack([((places % w).float32() + 0.5) / w, ((places // w).float32() + 0.5) / h], 2)  # (N, P, 2)
            found = self.classify_points(maps, previous, points)
            everywhere = places.unsqueeze(1).broadcast((n, k, count))
            scores = scores.reshape(n, k, h * w).scatter(2, everywhere, found).reshape(n, k, h, w)
        return scores

    def loss(self, outputs: tuple, labels: jt.Var) -> dict[str, jt.Var]:
        logits, points = outputs
        found = ops.point_sample(labels.float32().unsqueeze(1), points, mode="nearest",
                                 align_corners=self.align_corners)  # (N, 1, P)
        terms = self.criterion(logits.unsqueeze(3), found.int32().transpose(0, 2, 1))
        return {"acc_point" if name == "acc_seg" else f"point{name}": value for name, value in terms.items()}

    def scores(self, outputs: jt.Var, size: tuple[int, int]) -> jt.Var:
        if isinstance(outputs, tuple):
            raise ValueError("PointHead: in training it classifies single points and gives no maps; call eval() first")
        return outputs
