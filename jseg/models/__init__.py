"""Models: backbones, necks, heads and the segmentor that joins them. One paper, one file; importing this registers all."""

from __future__ import annotations

from typing import Mapping

from jseg.models.backbones import mscan
from jseg.models.backbones.mscan import MSCAN
from jseg.models.heads.ham_head import LightHamHead
from jseg.models.segmentor import EncoderDecoder
from jseg.registry import MODELS

__all__ = ["EncoderDecoder", "LightHamHead", "MSCAN", "build_model", "remap_keys"]

_REMAPS = (mscan.remap_keys,)


def build_model(cfg: Mapping) -> EncoderDecoder:
    """Build a segmentor.

    Args:
        cfg: a whole config (its `model` block is used) or a model block.
    Raises:
        ConfigError: unknown types or arguments, with their place and the nearest known name.
    """
    return MODELS.build(cfg.get("model", cfg), "model")


def remap_keys(state: Mapping) -> dict:
    """Rename a state dict of another release to jseg's keys.

    Strips `module.` (data-parallel wrappers), drops `num_batches_tracked` (which nothing reads), and applies every model's own
    `remap_keys`; a state dict that needs none of this comes back equal.
    """
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        if not key.endswith("num_batches_tracked"):
            renamed[key] = value
    for remap in _REMAPS:
        renamed = remap(renamed)
    return renamed
