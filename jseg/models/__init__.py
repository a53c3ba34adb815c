"""Models: backbones, necks, heads and the segmentors that join them. One paper, one file;
importing this registers all of them.

Every file of this folder's folders is found by itself: adding a model is adding its file.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Iterator, Mapping

from jseg.config import stating_block
from jseg.models import (encoder_decoder, image_classifier,  # noqa: F401  (they register themselves)
                         multimodal_encoder_decoder)
from jseg.models.segmentor import Segmentor
from jseg.registry import MODELS

__all__ = ["Segmentor", "build_model", "derived_parts", "remap_keys"]

for _room in ("backbones", "necks", "heads", "text_encoders"):
    _package = importlib.import_module(f"{__name__}.{_room}")
    for _file in pkgutil.iter_modules(_package.__path__):
        importlib.import_module(f"{_package.__name__}.{_file.name}")


def build_model(cfg: Mapping) -> Segmentor:
    """Build a segmentor, or an image classifier.

    Args:
        cfg: a whole config (its `model` block is used) or a model block.
    Raises:
        ConfigError: unknown types or arguments, with their place and the nearest known name.
    """
    return MODELS.build(cfg.get("model", cfg), "model")


def remap_keys(state: Mapping, cfg: Mapping) -> dict:
    """Rename a state dict of another release to the keys of the model that a config describes.

    Strips `module.` (data-parallel wrappers), drops `num_batches_tracked` (which nothing reads), and lets each class
    that the config names, if it has a `remap_keys`, rename the keys below its own prefix; a state dict that needs none
    of this comes back equal. A value may become a `Made` of several.

    Args:
        state: keys to anything.
        cfg: as for `build_model`.
    """
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        if not key.endswith("num_batches_tracked"):
            renamed[key] = value
    for prefix, block in _parts(cfg.get("model", cfg)):
        remap = getattr(MODELS.get(block["type"]), "remap_keys", None) if block.get("type") in MODELS else None
        if remap is not None:
            own = {key[len(prefix):]: value for key, value in renamed.items() if key.startswith(prefix)}
            others = {key: value for key, value in renamed.items() if not key.startswith(prefix)}
            renamed = {**others, **{f"{prefix}{key}": value for key, value in remap(own).items()}}
    return renamed


def derived_parts(cfg: Mapping) -> dict[str, tuple[Mapping, tuple[str, ...]]]:
    """The parts of a model that hold values which follow from their other weights: prefix of the keys -> (block, names
    of these values). Files of other releases lack them; the part's `derive` computes them.
    """
    found = {prefix: (block, getattr(MODELS.get(block["type"]), "DERIVED", ()))
             for prefix, block in _parts(cfg.get("model", cfg)) if block.get("type") in MODELS}
    return {prefix: part for prefix, part in found.items() if part[1]}


def _parts(model: Mapping) -> Iterator[tuple[str, Mapping]]:
    """The model and its blocks with the prefixes of their keys."""
    yield "", model
    for name in ("backbone", "neck", "text_encoder", "decode_head", "auxiliary_head"):
        block = model.get(name)
        if isinstance(block, Mapping):
            yield f"{name}.", block
            below, inner = stating_block(block)
            if below:
                yield f"{name}{below}.", inner
        elif isinstance(block, (list, tuple)):
            yield from ((f"{name}.{i}.", part) for i, part in enumerate(block))
