"""EncoderDecoder: backbone, optional neck, one decode head or a cascade of them, optional auxiliary heads.

Upstream: mmsegmentation 1.2.2, mmseg/models/segmentors/{encoder_decoder,cascade_encoder_decoder}.py (Apache-2.0).

Deviation: in training each stage of a cascade runs once and its scores go to the next; upstream runs every stage but
the last twice (with two draws of dropout, and running statistics that move twice).
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.models.heads.base import Head
from jseg.models.segmentor import Segmentor
from jseg.registry import MODELS

__all__ = ["EncoderDecoder", "CascadeEncoderDecoder"]


@MODELS.register()
class EncoderDecoder(Segmentor):
    """Backbone -> neck -> decode head, or a cascade of decode heads.

    Args:
        backbone, neck: config blocks; `neck` may be None.
        decode_head: a block, or a list of blocks: a cascade, in which each head is given the scores of the one before.
        auxiliary_head: a block, a list of blocks, or None; used by `loss` only.
        test_cfg, impl: see `Segmentor`.
    Raises:
        ConfigError: a block that does not fit its constructor, or a cascade whose first head needs one before it.
    """

    def __init__(self, backbone: dict, decode_head, *, neck: dict | None = None, auxiliary_head=None,
                 test_cfg: dict | None = None, impl: str = "auto"):
        super().__init__(test_cfg=test_cfg, impl=impl)
        self.backbone = MODELS.build(backbone, "model.backbone")
        if getattr(self.backbone, "gives_vectors", False):
            raise ConfigError("model.backbone: gap_before_final_norm: true gives one vector a picture (it is for "
                              "classification); set it to false")
        self.neck = MODELS.build(neck, "model.neck") if neck else None
        self.decode_head = _build_heads(decode_head, "model.decode_head", cascade=True)
        self.auxiliary_head = _build_heads(auxiliary_head, "model.auxiliary_head") if auxiliary_head else None

    @property
    def stages(self) -> list[Head]:
        """The decode heads, first to last."""
        return list(self.decode_head) if isinstance(self.decode_head, nn.Sequential) else [self.decode_head]

    @property
    def num_classes(self) -> int:
        """K, from the last decode head."""
        return self.stages[-1].num_classes

    @property
    def align_corners(self) -> bool:
        """How scores are resized, from the last decode head."""
        return self.stages[-1].align_corners

    @property
    def ignore_index(self) -> int:
        """Label value that counts nowhere, from the last decode head."""
        return self.stages[-1].ignore_index

    def begin_step(self, iteration: int) -> None:
        """See `Head.begin_step`."""
        for head in self.stages:
            head.begin_step(iteration)

    def features(self, images: jt.Var) -> list:
        """Maps of the backbone, after the neck if there is one."""
        maps = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)

    def class_scores(self, images: jt.Var) -> jt.Var:
        """Scores of the last stage."""
        size = tuple(images.shape[2:])
        return self.stages[-1].scores(self._outputs(self.features(images), size)[-1], size)

    def batch_losses(self, images: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        """"decode.<name>" ("decode_<i>.<name>" in a cascade), and "aux.<name>" or "aux_<i>.<name>"."""
        maps, stages = self.features(images), self.stages
        outputs = self._outputs(maps, tuple(images.shape[2:]))
        named = [("decode" if len(stages) == 1 else f"decode_{i}", head, outputs[i]) for i, head in enumerate(stages)]
        if isinstance(self.auxiliary_head, nn.Sequential):
            named += [(f"aux_{i}", head, head(maps)) for i, head in enumerate(self.auxiliary_head)]
        elif self.auxiliary_head is not None:
            named.append(("aux", self.auxiliary_head, self.auxiliary_head(maps)))
        return {f"{name}.{key}": value for name, head, found in named
                for key, value in head.loss(found, labels).items()}

    def _outputs(self, maps: list, size: tuple[int, int]) -> list[Any]:
        """What each stage gives for maps of pictures of `size`;
        each but the first sees the scores of the one before.
        """
        outputs = [self.stages[0](maps)]
        for before, head in zip(self.stages, self.stages[1:]):
            outputs.append(head(maps, before.scores(outputs[-1], size)))
        return outputs


@MODELS.register()
class CascadeEncoderDecoder(EncoderDecoder):
    """MMSegmentation's name for an EncoderDecoder with a list of decode heads.

    Args:
        num_stages: length of `decode_head`.
        others: see `EncoderDecoder`.
    """

    def __init__(self, num_stages: int, backbone: dict, decode_head, *, neck: dict | None = None, auxiliary_head=None,
                 test_cfg: dict | None = None, impl: str = "auto"):
        if not isinstance(decode_head, (list, tuple)) or len(decode_head) != num_stages:
            raise ConfigError(f"num_stages is {num_stages}, and decode_head must be a list of as many blocks")
        super().__init__(backbone, decode_head, neck=neck, auxiliary_head=auxiliary_head, test_cfg=test_cfg, impl=impl)


def _build_heads(block: Mapping | Sequence[Mapping], where: str, *, cascade: bool = False) -> nn.Module:
    """One head, or a Sequential of several, of which only those behind another in a cascade are given its scores."""
    listed = isinstance(block, (list, tuple))
    heads = [
        MODELS.build(part, f"{where}[{i}]" if listed else where) for i, part in enumerate(block if listed else [block])
    ]
    for head in heads[:1] if cascade else heads:
        if head.needs_previous:
            raise ConfigError(
                f"{where}: {type(head).__name__} refines the scores of a head before it; give decode_head as a list "
                "(CascadeEncoderDecoder) with this one behind another")
    return nn.Sequential(*heads) if listed else heads[0]
