"""MultimodalEncoderDecoder: a picture and the names of the classes, seen by the two halves of CLIP, and a head that
joins them.

Paper: Xu et al., "Side Adapter Network for Open-Vocabulary Semantic Segmentation" (SAN), CVPR 2023.
Upstream: mmsegmentation 1.2.2 mmseg/models/segmentors/multimodal_encoder_decoder.py (Apache-2.0), whose words, keys and
arithmetic these are.

Deviation: the picture's half is called `backbone`, in configs and in keys, as in every other model (upstream:
`image_encoder`; `jseg convert` renames both).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Mapping

import jittor as jt

from jseg.errors import ConfigError
from jseg.layers.resize import resize_by_factor
from jseg.models.encoder_decoder import EncoderDecoder
from jseg.registry import MODELS

__all__ = ["MultimodalEncoderDecoder"]


@MODELS.register()
class MultimodalEncoderDecoder(EncoderDecoder):
    """Features for the head are [pictures, maps of the backbone, vectors of the classes (K + 1, D)].

    Args:
        backbone: CLIP's half for pictures.
        text_encoder: its half for names; one name per class of the head.
        decode_head: the head.
        asymetric_input, encoder_resolution: whether the backbone sees the pictures resized by a factor, and the factor.
        test_cfg, impl: see `Segmentor`.
    Raises:
        ConfigError: a block that does not fit its constructor, no factor where one is needed, or names that are not one
            per class.
    """

    UPSTREAM_NAMES = MappingProxyType({"backbone": "image_encoder"})  # of its parts, in configs and keys

    def __init__(self, backbone: dict, text_encoder: dict, decode_head: dict, *, asymetric_input: bool = True,
                 encoder_resolution: float | None = None, test_cfg: dict | None = None, impl: str = "auto"):
        super().__init__(backbone, decode_head, test_cfg=test_cfg, impl=impl)
        if asymetric_input and not (encoder_resolution and encoder_resolution > 0):
            raise ConfigError(f"encoder_resolution is {encoder_resolution}; with asymetric_input it is the factor, "
                              "above 0, by which the backbone's pictures are resized")
        self.factor = encoder_resolution if asymetric_input else 1
        self.text_encoder = MODELS.build(text_encoder, "model.text_encoder")
        names = len(self.text_encoder.vocabulary)
        if names != self.num_classes or not self.text_encoder.cat_bg:
            raise ConfigError(f"text_encoder: vocabulary has {names} names and cat_bg is {self.text_encoder.cat_bg}; "
                              f"accepted: one name per class of the head ({self.num_classes}), and true: queries "
                              "without a class have a vector too")

    def features(self, images: jt.Var) -> list:
        small = images if self.factor == 1 else resize_by_factor(images, self.factor)
        return [images, self.backbone(small), self.text_encoder()]

    def derive(self) -> None:
        self.text_encoder.derive()

    @staticmethod
    def remap_keys(state: Mapping[str, Any]) -> dict[str, Any]:
        """Upstream's keys of the picture's half."""
        old, new = "image_encoder.", "backbone."
        return {new + key[len(old):] if key.startswith(old) else key: value for key, value in state.items()}
