"""Find the weights, the config and the class names inside a checkpoint, whichever program wrote it.

Containers known: a bare state dict; `state_dict`, `model` and their like; mmcv's `meta` with `config`, `CLASSES`,
`PALETTE`; mmengine's `meta` with `cfg`, `dataset_meta`, and `message_hub`; wrapper prefixes (`module.`); state dicts
split into blocks; moving averages of mmengine's and mmcv's EMAHook and of timm.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping

import numpy as np

from jseg.convert.pickle_data import Inert, brief
from jseg.convert.torch_file import Tensor
from jseg.errors import ConvertError

__all__ = ["CHOICES", "Contents", "find_contents"]

CHOICES = ("default", "averaged", "raw")
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "segmentor", "params", "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_model", "ema", "params_ema", "teacher")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "segmentor.", "net.", "_fsdp_wrapped_module.")
_ROOTS = ("backbone.", "decode_head.", "neck.", "auxiliary_head.", "patch_embed1.")


@dataclasses.dataclass
class Contents:
    """What a checkpoint holds.

    `state`: wrapper prefixes stripped, key -> tensor; `source_keys`: key -> key as the file has it; `dropped`: key of
    the file -> why it is not a weight; `place`: where the weights stood; `meta`: the file's own; `notes`: choices made,
    in words.
    """

    state: dict[str, Tensor | np.ndarray]
    source_keys: dict[str, str]
    dropped: dict[str, str]
    place: str
    meta: Mapping[str, Any]
    notes: list[str]

    @property
    def shapes(self) -> dict[str, tuple]:
        """Shape of each tensor by key; made anew at each use."""
        return {key: tuple(value.shape) for key, value in self.state.items()}


def find_contents(value: Any, where: str, weights: str = "default") -> Contents:
    """Pick the state dict of a checkpoint.

    Args:
        value: what `read_torch_file` returned.
        weights: "default" takes the set the writing program would load; "averaged" or "raw" insists on one where the
            file holds both a moving average and the weights that were trained.
    Raises:
        ConvertError: no state dict, or not the set asked for; says what is there.
    """
    if isinstance(value, Inert):
        raise ConvertError(f"{where}: holds a whole object ({brief(value.kind)}), not weights; save model.state_dict() "
                           "instead")
    if not isinstance(value, dict):
        raise ConvertError(f"{where}: holds {brief(value)}, not a checkpoint; expected a dict of tensors or one with "
                           "'state_dict'")
    meta = value.get("meta") if isinstance(value.get("meta"), dict) else {}
    sets, notes = _sets(value, where)
    if not sets:
        raise ConvertError(f"{where}: no weights in it; its keys are "
                           f"{', '.join(brief(key, 30) for key in list(value)[:8])}; expected tensors or one of "
                           f"{', '.join(_CONTAINERS)}")
    kind = _chosen(sets, weights, where, notes)
    place, tree = sets[kind]
    flat, dropped = _flatten(tree, where)
    keys = _unwrapped(list(flat))
    state = {key: flat[source] for key, source in keys.items()}
    if kind == "default":
        state, extra = _without_mmcv_copies(state, keys, weights, where, notes)
        dropped.update(extra)
    notes += _left_inert(value)
    return Contents(state, {key: keys[key] for key in state}, dropped, place,
                    {**meta, **_jittor_meta(value, meta)}, notes)


def _sets(value: dict, where: str) -> tuple[dict[str, tuple[str, dict]], list[str]]:
    """The sets of weights in a file: "default", "averaged", "raw" -> (where it stands, the dict)."""
    sets: dict[str, tuple[str, dict]] = {}
    notes: list[str] = []
    for name in _CONTAINERS:
        found = value.get(name)
        if isinstance(found, Inert):
            raise ConvertError(f"{where}: '{name}' holds a whole object ({brief(found.kind)}), not weights; save "
                               "model.state_dict() instead")
        if isinstance(found, dict) and _holds_tensors(found):
            sets["default"] = (name, found)
            break
    if not sets and _holds_tensors(value) and not any(isinstance(value.get(name), dict) for name in _AVERAGED):
        sets["default"] = ("the file itself", value)
    if isinstance(value.get("ema_state_dict"), dict) and "default" in sets:  # mmengine swaps the two before saving
        sets["averaged"], sets["raw"] = sets["default"], ("ema_state_dict", value["ema_state_dict"])
        notes.append("the file holds a moving average (in state_dict, where mmengine puts it) and the weights as "
                     "trained (in ema_state_dict)")
        return sets, notes
    for name in _AVERAGED:
        if isinstance(value.get(name), dict) and _holds_tensors(value[name]):
            sets["averaged"] = (name, value[name])
            if "default" in sets:
                sets["raw"] = sets["default"]
                notes.append(f"the file holds the weights as trained (in {sets['default'][0]}) and a moving average "
                             f"(in {name})")
            else:
                sets["default"] = sets["averaged"]
            break
    return sets, notes


def _chosen(sets: dict, weights: str, where: str, notes: list[str]) -> str:
    if weights not in CHOICES:
        raise ValueError(f"weights is {weights!r}; accepted: {', '.join(CHOICES)}")
    if weights != "default" and weights not in sets and not _mmcv_pairs(sets["default"][1]):
        raise ConvertError(f"{where}: no {weights} weights apart from the one set in {sets['default'][0]}; leave "
                           "--weights out")
    kind = weights if weights in sets else "default"
    if len(sets) > 1:
        notes.append(f"taken: {sets[kind][0]}"
                     + ("" if weights != "default" else " (choose with --weights averaged or --weights raw)"))
    return kind


def _holds_tensors(tree: dict) -> bool:
    """Whether a dict, or a dict right inside it, has a tensor among its values."""
    return any(isinstance(value, (Tensor, np.ndarray))
               or (isinstance(value, dict) and any(isinstance(v, (Tensor, np.ndarray)) for v in value.values()))
               for value in tree.values())


def _flatten(tree: dict, where: str) -> tuple[dict, dict[str, str]]:
    """Join the keys of blocks in blocks with dots; (key -> tensor, key -> why it is none)."""
    flat: dict[str, Any] = {}
    dropped: dict[str, str] = {}
    todo = [("", tree, 0)]
    while todo:
        prefix, block, depth = todo.pop()
        for key, value in block.items():
            name = f"{prefix}{key}" if isinstance(key, (str, int)) else ""
            if not name or len(name) > 300 or not name.isprintable():
                raise ConvertError(f"{where}: {brief(key)} is no name of a weight")
            if isinstance(value, (Tensor, np.ndarray)):
                if name in flat:
                    raise ConvertError(f"{where}: the weight {name} stands in it twice")
                flat[name] = value
            elif isinstance(value, dict) and depth < 4 and len(todo) < 1000:
                todo.append((f"{name}.", value, depth + 1))
            elif value is None or isinstance(value, (int, float, str, bytes)):
                dropped[name] = f"no tensor: {brief(value, 30)}"
            else:
                raise ConvertError(f"{where}: the weight {name} is {brief(value)}, not a tensor; save "
                                   "model.state_dict() with plain tensors")
    return flat, dropped


def _unwrapped(keys: list[str]) -> dict[str, str]:
    """New key -> key, after stripping wrapper prefixes that hide the model's own names."""
    names = {key: key for key in keys}
    for _ in range(4):
        if any(key.startswith(_ROOTS) for key in names):
            shared = [p for p in _WRAPPERS[:2] if any(key.startswith(p) for key in names)]
        else:
            shared = [p for p in _WRAPPERS if any(key.startswith(p) for key in names)]
        if not shared:
            return names
        stripped = {key.removeprefix(shared[0]): source for key, source in names.items()}
        if len(stripped) < len(names):  # two keys would become one
            return names
        names = stripped
    return names


def _mmcv_pairs(tree: dict) -> bool:
    return any(isinstance(key, str) and key.startswith("ema_backbone_") for key in tree)


def _without_mmcv_copies(state: dict, keys: dict, weights: str, where: str, notes: list[str]) -> tuple[
    dict, dict[str, str]]:
    """mmcv 0.x's EMAHook keeps a second set beside the first, as `ema_` and the key with underscores for dots."""
    copies = {key for key in state if key.startswith("ema_") and "." not in key}
    if not copies:
        return state, {}
    partners = {"ema_" + key.replace(".", "_"): key for key in state if key not in copies}
    notes.append(f"{len(copies)} copies named ema_* by mmcv's EMAHook, which swaps them with the weights around every "
                 "epoch: a file saved after an epoch has the moving average under the plain names")
    if weights == "raw":
        swapped = {partners.get(key, key): state[key] for key in copies}
        return {key: swapped.get(key, value) for key, value in state.items() if key not in copies}, \
            {keys[key]: "moving average's partner, taken in its place" for key in copies}
    return {key: value for key, value in state.items() if key not in copies}, {keys[key]: "partner of a moving average"
                                                                               for key in copies}


def _left_inert(value: dict) -> list[str]:
    """A note that names the objects of a file that were not built, with the top-level entries that hold them;
    each is visited once.
    """
    found: dict[str, list] = {}  # class -> [how many, where]
    seen: set[int] = set()
    todo = [(value, "")]
    while todo:
        item, place = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Inert):
            count_places = found.setdefault(brief(item.kind, 100), [0, set()])
            count_places[0] += 1
            count_places[1].add(place)
            todo += [(part, place) for part in (item.args, item.state, item.items, item.kind)]
        elif isinstance(item, dict):
            todo += [(part, place or brief(key, 30).strip("'"))
                     for key, part in item.items() if isinstance(part, (dict, list, tuple, Inert))]
        elif isinstance(item, (list, tuple)):
            todo += [(part, place) for part in item if isinstance(part, (dict, list, tuple, Inert))]
    if not found:
        return []
    names = [f"{kind} ({count} in {', '.join(sorted(places)[:3])})" for kind, (count, places) in sorted(found.items())]
    return [f"not built, and nothing of it run: objects of classes that weights do not need: {', '.join(names[:8])}"
            + (f" and {len(names) - 8} more classes" if len(names) > 8 else "")]


def _jittor_meta(value: dict, meta: dict) -> dict:
    """Original JSeg and bare files put some facts beside the weights."""
    return {key: value[key] for key in ("config", "cfg", "CLASSES", "PALETTE", "dataset_meta") if key not in meta
            and key in value}
