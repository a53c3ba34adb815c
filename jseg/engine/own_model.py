"""The model of a config for a user's own classes: found by words, and given another number of classes."""

from __future__ import annotations

import re
from typing import Any, Mapping, NamedTuple, Sequence

from jseg.config import OWN_BASE, base_names, last_head, load_config, merge
from jseg.errors import ConfigError

__all__ = ["OwnModel", "changes", "find_model", "model_of_weights", "wanted_crop", "with_classes"]

BLOCKS = "models/"


class OwnModel(NamedTuple):
    """A model block: what a config calls it (`jseg::models/segnext_tiny`, or "" where it is written out), a title for
    people, the block."""

    base: str
    title: str
    block: dict


def find_model(asked: str) -> OwnModel | None:
    """The model that words mean: a block of `_base_/models`, else that of a config that comes with jseg.

    Args:
        asked: `segnext_tiny`, `segformer-b0`, `pspnet r50`, or a config's name; case and separators do not count, and
            the beginning of a word stands for it.
    Returns:
        None where no name has all the words.
    Raises:
        ConfigError: several names fit equally well.
    """
    known = base_names()
    blocks = [name for name in known if name.startswith(BLOCKS)]
    configs = [name for name in known if not name.startswith((BLOCKS, "datasets/", "schedules/"))]
    for names in (blocks, configs):
        best = _best_names(asked, names)
        if len(best) > 1 and names is blocks:
            raise ConfigError(f"--model {asked}: fits {', '.join(name.rpartition('/')[2] for name in best[:8])}; "
                              "say which")
        if best:
            block = load_config(known[best[0]])["model"]
            return OwnModel(OWN_BASE + best[0] if names is blocks else "", best[0].rpartition("/")[2], block)
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("+", "plus").removesuffix(".yaml"))


def _best_names(asked: str, names: Sequence[str]) -> list[str]:
    wanted, ranks = _words(asked), {}
    for name in names:
        own = _words(name.rpartition("/")[2])
        if wanted and all(any(word.startswith(part) for word in own) for part in wanted):
            ranks[name] = (sum(part in own for part in wanted), -len(own))
    best = max(ranks.values(), default=None)
    return [name for name, rank in ranks.items() if rank == best]


def with_classes(model: Mapping, count: int) -> dict:
    """A copy of a model block for `count` classes.

    Every head that had the model's number of classes gets the new one; losses weighted by the old classes lose their
    weights, and those with a further weight, for "no object", keep that. Models that take pictures of any size are
    evaluated on whole ones.
    """
    old = last_head(model).get("num_classes")

    def changed(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: changed(item, name) for name, item in value.items()}
        if key == "num_classes" and value == old:
            return count
        if key == "class_weight" and isinstance(value, list) and len(value) in (old, (old or 0) + 1):
            return None if len(value) == old else [value[0]] * count + [value[-1]]
        return [changed(item, "") for item in value] if isinstance(value, list) else value

    made = changed(model, "model")
    if (made.get("backbone") or {}).get("img_size") is None and (made.get("test_cfg") or {}).get("mode") == "slide":
        made["test_cfg"] = {"mode": "whole"}  # windows as large as the published crops fit no other pictures
    return made


def changes(old: Any, new: Any) -> Any:
    """What a child of `old` must state to become `new`: blocks key by key, everything else whole; {} for equal ones. A
    block that lost keys is written whole, with `_delete_`."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    if set(old) - set(new):
        return {"_delete_": True, **new}
    return {key: changes(old.get(key), value) for key, value in new.items() if old.get(key) != value or key not in old}


def model_of_weights(meta: Mapping, source: str) -> OwnModel:
    """The model that a weights file carries in its config; as few changes of one of jseg's blocks where it is one.

    Raises:
        CheckpointError: the file carries no model.
    """
    from jseg.engine.model_file import stored_config
    block = stored_config(meta, source)["model"]
    known = base_names()
    for name in (name for name in known if name.startswith(BLOCKS)):
        base = load_config(known[name])["model"]
        same = all(_kind(base.get(part)) == _kind(block.get(part)) for part in ("backbone", "neck", "decode_head"))
        if same and merge(base, changes(base, block)) == block:
            return OwnModel(OWN_BASE + name, name.rpartition("/")[2], block)
    return OwnModel("", f"the model of {source}", block)


def _kind(block: Any) -> Any:
    return (block.get("type"), block.get("variant")) if isinstance(block, Mapping) else block


def wanted_crop(model: Mapping) -> tuple[int, int] | None:
    """(h, w) of the pictures that a model is made for, where it is made for one size."""
    size = (model.get("backbone") or {}).get("img_size")
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else tuple(size)
