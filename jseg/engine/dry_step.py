"""A first training step without computing: shapes flow through model and losses, and what does not fit together is
named.

Jittor builds its graph before it computes; here the graph is built and dropped. That takes a tenth of a second whatever
the model's size, compiles nothing and holds no feature map, yet passes every check of shapes that a real first step
would. A model that reads its values (to choose hard pixels, say) reads zeros.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, Mapping

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.engine.channels import model_channels, picture_channels
from jseg.errors import ConfigError, JsegError
from jseg.layers.init import without_values
from jseg.models import build_model
from jseg.ops import ranks
from jseg.rules import is_integer, is_pair

__all__ = ["dry_step", "first_step", "place_of", "training_size"]

_CROPS = {"RandomCrop": "crop_size", "RandomResizedCrop": "scale"}  # type -> its key for (height, width)
_SIDE, _MOST_SIDE, _MOST_PICTURES = 64, 2048, 2  # a side that nothing names; and what no check needs more of


def dry_step(cfg: Mapping) -> list[str]:
    """Put one batch of the config's form through model and losses: what does not fit, one line, or nothing.

    Args:
        cfg: a config whose blocks are right by themselves.
    """
    if ranks.world_size() > 1:
        return []  # norms would ask the other ranks; `first_step` tells there
    pictures, size = _form(cfg)
    state = np.random.get_state()
    model = None
    try:
        with ops.use("jittor"), without_values(), _zeros_where_values_are_read():
            model = build_model(cfg)
            model.train()
            channels = next(iter(picture_channels(cfg).values()), model_channels(cfg["model"]))
            images = jt.zeros((pictures, channels, *size))
            losses = model.loss(images, jt.array(model.blank_labels(pictures, size)))
            odd = [f"{name} is {tuple(value.shape)}" for name, value in losses.items() if value.numel() != 1]
        return [f"model: a training step gives losses that are no single numbers: {', '.join(odd)}"] if odd else []
    except Exception as error:  # whatever a block says, and what Jittor says where nobody looked
        return [f"{place_of(error, model)}: a training batch of {pictures} x {size[0]} x {size[1]} pixels does not go "
                f"through: "
                f"{_words(error)}"]
    finally:
        np.random.set_state(state)


@contextlib.contextmanager
def _zeros_where_values_are_read() -> Iterator[None]:
    """Within it the values of a Var are zeros to whoever asks, and nothing is computed for them."""
    own = [(place, name, getattr(place, name)) for place, name in ((jt.Var, "numpy"), (jt.Var, "item"), (jt, "sync"))]
    jt.Var.numpy = lambda var: np.zeros(tuple(var.shape), str(var.dtype))
    jt.Var.item = lambda var: np.zeros((), str(var.dtype)).item()
    jt.sync = lambda *_: None
    try:
        yield
    finally:
        for place, name, value in own:
            setattr(place, name, value)


def place_of(error: BaseException, model: nn.Module | None) -> str:
    """The block of a model in which an error arose, as a config names it: "model.backbone (patch_embed1.proj.0)"."""
    names = {id(module): name for name, module in model.named_modules()} if model is not None else {}
    found, step = "", error.__traceback__
    while step is not None:
        found = names.get(id(step.tb_frame.f_locals.get("self")), "") or found
        step = step.tb_next
    block, _, inner = found.partition(".")
    return ".".join(filter(None, ("model", block))) + (f" ({inner})" if inner else "")


def _words(error: Exception) -> str:
    """An error in one line; Jittor's own are long, and their first lines tell."""
    text = str(error) if isinstance(error, (JsegError, ValueError)) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]


def _form(cfg: Mapping) -> tuple[int, tuple[int, int]]:
    """Pictures and (height, width) of a training batch, no more than the checks of shapes need."""
    batch = (cfg.get("train_dataloader") or {}).get("batch_size", 1)
    return (min(batch, _MOST_PICTURES) if is_integer(batch) else _MOST_PICTURES,
            tuple(min(side, _MOST_SIDE) for side in training_size(cfg)))


def training_size(cfg: Mapping) -> tuple[int, int]:
    """(height, width) of the pictures of a training batch, from the preprocessor or the last crop."""
    loader = cfg.get("train_dataloader") or {}
    size = (cfg.get("data_preprocessor") or {}).get("size") or _crop(loader.get("dataset"))
    return tuple(size) if is_pair(size) else (_SIDE, _SIDE)


def _crop(dataset: Any) -> Any:
    """Size of the last random crop of a dataset, or of the first part of a wrapper."""
    while isinstance(dataset, Mapping) and ("dataset" in dataset or dataset.get("datasets")):
        dataset = dataset.get("dataset") or dataset["datasets"][0]
    steps = dataset.get("pipeline") if isinstance(dataset, Mapping) else None
    crops = [step.get(_CROPS[step["type"]]) for step in steps or ()
             if isinstance(step, Mapping) and step.get("type") in _CROPS]
    return [crops[-1]] * 2 if crops and is_integer(crops[-1]) else crops[-1] if crops else None


def first_step(model: nn.Module, images: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
    """`model.loss` of a run's first batch; what a block does not take becomes a ConfigError that names the block."""
    try:
        return model.loss(images, labels)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise ConfigError(f"{place_of(error, model)}: the first training batch of {tuple(images.shape)} does not go "
                          f"through: "
                          f"{_words(error)}") from error
