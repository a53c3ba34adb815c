"""CLIPTextEncoder: each class as the mean vector of sentences that name it, by CLIP's frozen text transformer.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), ICML 2021; Gu et
al., "Open-vocabulary Object Detection via Vision and Language Knowledge Distillation" (ViLD), ICLR 2022 (sentences).
Upstream: mmsegmentation 1.2.2 mmseg/models/text_encoder/clip_text_encoder.py (Apache-2.0; after MendelXu/SAN, MIT),
whose words, keys and arithmetic these are.

Deviations: the vectors of the classes are computed once, when a checkpoint is converted or training starts from one,
and travel with the weights as `class_embeds`; upstream computes them in every process. Sentences end at the longest one
instead of at 77 tokens, which changes nothing: no token looks behind itself. `jseg convert` writes the classes of
`dataset_name` out as `vocabulary`; `cache_feature` is not here.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import build_norm
from jseg.layers.clip import CLIPLayer
from jseg.layers.init import constant, normal
from jseg.layers.parameters import Table
from jseg.models.text_encoders.clip_tokenizer import END, tokenize
from jseg.registry import MODELS, nearest

__all__ = ["CLIPTextEncoder", "TEMPLATES", "unit"]

_SIZES = ("small", "medium", "large")
TEMPLATES = MappingProxyType({"vild": (
    "a photo of a {}.", "This is a photo of a {}", "There is a {} in the scene", "There is the {} in the scene",
    "a photo of a {} in the scene", *(f"a photo of a {size} {{}}." for size in _SIZES),
    *(f"This is a photo of a {size} {{}}." for size in _SIZES),
    *(f"There is a {size} {{}} in the scene." for size in _SIZES))})
_GROUP = 256  # sentences per pass


def unit(x: jt.Var) -> jt.Var:
    """Vectors of the last axis at length 1, as PyTorch's `normalize`."""
    return x / jt.maximum(jt.sqrt((x * x).sum(-1, keepdims=True)), 1e-12)


@MODELS.register()
class CLIPTextEncoder(nn.Module):
    """Vectors of the classes, and of "no class".

    Args:
        vocabulary: names of the K classes, background left out where it is a class.
        templates: sentences with {} for the name, or "vild", the 14 of ViLD.
        total_vocab_size, context_length: tokens known, and most tokens of a sentence.
        embed_dims, num_layers, num_heads, mlp_ratio: width, blocks, heads, and width of the feed-forward blocks over
            `embed_dims`.
        output_dims: D, width of the vectors.
        cat_bg: add the learned vector of "no class".
        norm_cfg: of every norm.
    Shape:
        -> (K + cat_bg, D), of equal length
    Raises:
        ConfigError: no names, or templates that are unknown or have no place for a name.
    """

    BUFFERS = DERIVED = ("class_embeds",)
    TINY = MappingProxyType({"type": "CLIPTextEncoder", "vocabulary": ["road", "traffic light", "tree", "sky", "car"],
                             "templates": ["a {}."], "embed_dims": 8, "num_layers": 1, "num_heads": 2, "mlp_ratio": 2,
                             "output_dims": 8})

    def __init__(self, vocabulary: Sequence[str], templates: str | Sequence[str] = "vild",
                 total_vocab_size: int = 49408, context_length: int = 77, embed_dims: int = 512, num_layers: int = 12,
                 num_heads: int = 8, mlp_ratio: int = 4, output_dims: int = 512, cat_bg: bool = True,
                 norm_cfg: dict = MappingProxyType({"type": "LN"})):
        super().__init__()
        if not vocabulary or not all(isinstance(name, str) and name.strip() for name in vocabulary):
            raise ConfigError(f"vocabulary is {vocabulary!r}; accepted: a list of names of classes")
        if isinstance(templates, str) and templates not in TEMPLATES:
            raise ConfigError(f"templates is {templates!r}{nearest(templates, TEMPLATES)}; accepted: "
                              f"{', '.join(TEMPLATES)}, or a list of sentences with {{}} for the name")
        self.templates = TEMPLATES[templates] if isinstance(templates, str) else tuple(templates)
        if not self.templates or not all("{}" in str(template) for template in self.templates):
            raise ConfigError(f"templates is {list(self.templates)}; every sentence has {{}} where the name goes")
        self.vocabulary, self.context_length, self.cat_bg = tuple(vocabulary), context_length, cat_bg
        self.token_embedding = Table(total_vocab_size, embed_dims)
        self.positional_embedding = normal((context_length, embed_dims), 0.01)
        self.text_projection = normal((embed_dims, output_dims), embed_dims**-0.5)
        self.logit_scale = constant(1, math.log(1 / 0.07))
        self.transformer = nn.Sequential(*[
            CLIPLayer(embed_dims, num_heads, mlp_ratio * embed_dims, act_cfg={"type": "QuickGELU"}, norm_cfg={
                "type": "LN"}) for _ in range(num_layers)])
        self.ln_final = build_norm(norm_cfg, embed_dims, channel_first=False)[1]
        for value in self.parameters():
            value.stop_grad()
        if cat_bg:
            self.bg_embed = normal((1, output_dims), output_dims**-0.5)
        self.class_embeds = normal((len(self.vocabulary), output_dims), output_dims**-0.5).stop_grad()

    def execute(self) -> jt.Var:
        found = unit(jt.concat([self.class_embeds, self.bg_embed], 0)) if self.cat_bg else self.class_embeds
        return jt.exp(self.logit_scale) * found

    def derive(self) -> None:
        """Compute `class_embeds` from the weights and the names: some teraflops for 171 classes."""
        texts = [template.format(name) for template in self.templates for name in self.vocabulary]
        with jt.no_grad():
            found = np.concatenate([self._encode(texts[i:i + _GROUP]) for i in range(0, len(texts), _GROUP)])
        found = found.reshape(len(self.templates), len(self.vocabulary), -1).mean(0)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        self.class_embeds.update(jt.array(found.astype(np.float32)))

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), D), of length 1: each text's last token, projected."""
        tokens = tokenize(texts, self.context_length)
        count, length = tokens.shape
        x = self.token_embedding.weight[jt.array(tokens.reshape(-1))].reshape(count, length, -1)
        x = x + self.positional_embedding[:length]
        mask = jt.array(np.triu(np.full((1, length, length), -np.inf, np.float32), 1))
        for block in self.transformer:
            x = block(x, mask)
        ends = jt.array(((tokens == END).argmax(1) + np.arange(count) * length).astype(np.int32))
        x = self.ln_final(x.reshape(count * length, -1)[ends])
        return unit(jt.matmul(x, self.text_projection)).numpy()
