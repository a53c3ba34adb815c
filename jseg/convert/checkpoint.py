"""A checkpoint of MMSegmentation, the SegNeXt authors or original JSeg becomes a jseg weights file.

    .pth/.pkl -> torch_file (data, no code) -> state (which weights, which config) -> families (whose rules) -> remap_keys of the models
    -> the model built from the config, every key accounted for -> .safetensors with config, classes, palette, origin

Every key of the source ends as loaded, renamed or dropped with its reason; anything else stops the conversion before a file is
written. The result depends on the source file, the config and jseg's version alone: converting twice gives equal bytes.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import pathlib
from typing import Any, Mapping

import numpy as np

from jseg.convert import families
from jseg.convert.pickle_data import brief
from jseg.convert.state import Contents, find_contents
from jseg.convert.torch_file import SPARE_BYTES, Tensor, read_torch_file
from jseg.convert.weights_file import write_weights_file, write_whole
from jseg.errors import ConfigError, ConvertError

__all__ = ["Conversion", "convert_checkpoint", "convert_config"]


@dataclasses.dataclass
class Conversion:
    """What a conversion did; `text()` tells it.

    `loaded`: keys taken as they are; `renamed`: source key -> ours; `dropped`: source key -> why.
    """

    out: pathlib.Path
    origin: dict[str, Any]
    loaded: list[str]
    renamed: dict[str, str]
    dropped: dict[str, str]
    notes: list[str]
    sha256: str

    def text(self) -> str:
        """The account in words."""
        o = self.origin
        lines = [f"{o['file']} ({o['family']}, sha256 {o['sha256'][:8]}) -> {self.out}",
                 f"  {len(self.loaded)} keys loaded, {len(self.renamed)} renamed, {len(self.dropped)} dropped; weights from {o['weights']}, config from {o['config_from']}"]
        if "md_r" in o:
            lines.append(f"  rules: MD_R {o['md_r']}, test pictures {o['test_size']}, gradient {o['gradient']}; "
                         f"{o['num_classes']} classes from {o['classes_from']}")
        reasons: dict[str, list[str]] = {}
        for key, reason in self.dropped.items():
            reasons.setdefault(reason, []).append(key)
        lines += [f"  dropped, {reason}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}" for reason, keys in reasons.items()]
        if self.renamed:
            old, new = next(iter(self.renamed.items()))
            lines.append(f"  renamed, for example: {old} -> {new}")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def convert_checkpoint(source: str | os.PathLike, out: str | os.PathLike, *, config: str | os.PathLike | None = None,
                       weights: str = "default", classes: str | None = None) -> Conversion:
    """Convert one checkpoint.

    Args:
        source: a .pth, .pt or .pkl file.
        out: the .safetensors file to write; its folder is made.
        config: an mmsegmentation or JSeg config (.py) or a jseg config (.yaml) to use instead of the one inside the file.
        weights: "default", "averaged" or "raw", see `state.find_contents`.
        classes: name of a dataset type (`CityscapesDataset`) whose class names to use. Names come from the registry, so the caller
            imports `jseg.data.datasets` first; without it files that carry no class names get numbers.
    Returns:
        the account.
    Raises:
        ConvertError: the file cannot be read, is of another family, or does not fit its config; no file is written then.
        ConfigError: the config names what jseg does not have.
    """
    source, out = pathlib.Path(source), pathlib.Path(out)
    if out.suffix != ".safetensors":
        raise ConvertError(f"{out}: the result is a .safetensors file; give a name that ends so")
    if out.is_dir():
        raise ConvertError(f"{out}: is a folder; give the name of a file")
    where = str(source)
    contents = find_contents(read_torch_file(source), where, weights)
    _check_sizes(contents, source.stat().st_size, where)
    sizes = contents.shapes
    name = families.find_family(sizes, numpy_values=all(isinstance(v, np.ndarray) for v in contents.state.values()),
                                meta=contents.meta, where=where)
    family = families.FAMILIES[name]
    renames, dropped = _renames(contents, family)
    shapes = {new: sizes[old] for new, old in renames.items()}
    settings, config_from, notes = _config(contents, shapes, family, config, where)
    wanted = _model_shapes(settings, family, where)
    _account(shapes, wanted, where)
    names, palette, classes_from = _class_list(settings, contents, classes, where, notes) if not family.backbone_only else ([], [], "")
    origin = _origin(source, contents, family, settings, config_from, classes_from)
    digest = write_weights_file(out, shapes, lambda key: _array(contents.state[renames[key]], f"{where}: {key}"),
                                {"config": settings, "classes": names, "palette": palette, "origin": origin, "jseg_version": _jseg_version()})
    sources = {new: contents.source_keys[old] for new, old in renames.items()}
    return Conversion(out, origin, [new for new, old in sources.items() if new == old], {old: new for new, old in sources.items() if new != old},
                      {**contents.dropped, **dropped}, contents.notes + notes, digest)


def convert_config(source: str | os.PathLike, out: str | os.PathLike) -> list[str]:
    """Translate a config alone: `.py` of mmsegmentation or original JSeg to jseg's YAML. Returns what has no counterpart.

    Raises:
        ConvertError: it cannot be read, or `out` is no .yaml file.
    """
    from jseg.config import dump_config
    out = pathlib.Path(out)
    if out.suffix not in (".yaml", ".yml"):
        raise ConvertError(f"{out}: the result is a .yaml file; give a name that ends so")
    settings, notes = _translated(source)
    write_whole(out, [dump_config(settings).encode()])
    return notes


# -- keys --------------------------------------------------------------------------------------------------------------


def _check_sizes(contents: Contents, file_bytes: int, where: str) -> None:
    """Tied tensors count twice; a file that unfolds beyond that is forged."""
    total = sum(value.nbytes for value in contents.state.values())
    if total > 4 * file_bytes + SPARE_BYTES:
        raise ConvertError(f"{where}: its tensors unfold to {total} bytes, the file has {file_bytes}; it is damaged or forged")


def _renames(contents: Contents, family: families.Family) -> tuple[dict[str, str], dict[str, str]]:
    """(our key -> key of `contents`, key of the file -> why it is dropped)."""
    from jseg.models import remap_keys
    kept, dropped = {}, {}
    for key in contents.state:
        if key.endswith("num_batches_tracked"):
            dropped[contents.source_keys[key]] = "counts of batches, which nothing reads"
        elif family.backbone_only and key.startswith("head."):
            dropped[contents.source_keys[key]] = "the ImageNet classifier"
        elif key.startswith("auxiliary_head."):
            dropped[contents.source_keys[key]] = "an auxiliary head, used in training only; SegNeXt has none"
        elif key.startswith("data_preprocessor."):
            dropped[contents.source_keys[key]] = "mean and std, which stand in the config"
        else:
            kept[key] = key
    known = {"backbone": {"type": "MSCAN"}}
    renamed = remap_keys({key if not family.backbone_only or key.startswith("backbone.") else f"backbone.{key}": old for key, old in kept.items()}, known)
    if len(renamed) != len(kept):
        raise ConvertError(f"two keys become one when renamed: {sorted(set(kept) - set(renamed.values()))[:4]}; the file mixes two releases")
    return renamed, dropped


def _model_shapes(settings: Mapping, family: families.Family, where: str) -> dict[str, tuple]:
    """Shape of each parameter and statistic of the model that the config describes."""
    import jittor as jt

    from jseg.models import build_model
    from jseg.registry import MODELS
    try:
        model = MODELS.build(settings["model"]["backbone"], "model.backbone") if family.backbone_only else build_model(settings)
    except (TypeError, ValueError) as error:
        raise ConvertError(f"{where}: its config does not describe a model jseg can build: {error}") from error
    prefix = "backbone." if family.backbone_only else ""
    shapes = {f"{prefix}{key}": tuple(value.shape) for key, value in model.state_dict().items()}
    del model
    jt.gc()  # its initial values are as large as the file, whose turn comes next
    return shapes


def _account(shapes: Mapping[str, tuple], wanted: Mapping[str, tuple], where: str) -> None:
    """Every key on both sides has a partner of its shape, or ConvertError."""
    faults = [("missing in the file", [key for key in wanted if key not in shapes]),
              ("unknown to the model", [key for key in shapes if key not in wanted]),
              ("of another shape", [f"{key} (file {shapes[key]}, model {wanted[key]})" for key in shapes if key in wanted and shapes[key] != wanted[key]])]
    if any(keys for _, keys in faults):
        words = [f"{len(keys)} {title}: {', '.join(keys[:4])}{'...' if len(keys) > 4 else ''}" for title, keys in faults if keys]
        raise ConvertError(f"{where}: does not fit the model its config describes; {'; '.join(words)}. Give the right config with --config")


def _array(value: Tensor | np.ndarray, where: str) -> np.ndarray:
    """A weight as contiguous float32."""
    array = value.numpy() if isinstance(value, Tensor) else value
    if array.dtype.kind not in "biuf":
        raise ConvertError(f"{where}: values of type {array.dtype}; weights are numbers")
    return np.ascontiguousarray(array, np.float32).reshape(array.shape)


# -- config ------------------------------------------------------------------------------------------------------------


def _config(contents: Contents, shapes: dict, family: families.Family, given, where: str) -> tuple[dict, str, list[str]]:
    """(config, where it came from, notes): the one given, else the one in the file, else one made from shapes and rules."""
    notes: list[str] = []
    prefix_shapes = {key.removeprefix("backbone."): shape for key, shape in shapes.items()} if family.backbone_only else shapes
    facts = families.default_config(prefix_shapes, family, where)
    inside = contents.meta.get("cfg") or contents.meta.get("config")
    if family.backbone_only:
        return facts, "the shapes of the weights", notes
    stored = contents.meta.get("dataset_meta") if isinstance(contents.meta.get("dataset_meta"), dict) else \
        {"classes": contents.meta.get("CLASSES"), "palette": contents.meta.get("PALETTE")}
    metainfo = {key: value for key, value in stored.items() if key in ("classes", "palette") and value is not None} or None
    if given is not None:
        settings, found = _translated(given, metainfo=metainfo)
        origin = pathlib.Path(given).name
    elif inside:
        settings, found = _translated(inside, f"{where}: the config inside", metainfo)
        origin = "inside the file"
    else:
        notes.append(f"the file carries no config: model from the shapes of its weights, rules of {family.name}; mean, std and the test size "
                     "(2048, 512) are the usual ones. --config gives the real one")
        return facts, "the shapes of the weights", notes
    settings = _completed(settings, facts, origin, where, found)
    return settings, origin, notes + found


def _completed(settings: dict, facts: dict, origin: str, where: str, notes: list[str]) -> dict:
    """Check a config's model against the weights and write down the rules it leaves to its release; what is changed goes to `notes`."""
    from jseg.models.heads.ham_head import ham_options
    settings = copy.deepcopy(settings)
    model = settings.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("backbone"), dict) or not isinstance(model.get("decode_head"), dict):
        raise ConvertError(f"{where}: config ({origin}): no model with backbone and decode_head in it")
    known, faults = facts["model"], []
    _drop_training_heads(model, notes)
    if model.get("neck"):
        raise ConvertError(f"{where}: config ({origin}): model.neck {brief(model['neck'].get('type'))}; SegNeXt has none")
    for block in ("backbone", "decode_head"):
        said, real = model[block], known[block]
        if said.get("type") != real["type"]:
            raise ConvertError(f"{where}: config ({origin}): model.{block} is {brief(said.get('type'))}, the weights are of {real['type']}; "
                               "give the right config with --config")
        said_sizes, real_sizes = _sizes(block, said), _sizes(block, real)
        faults += [f"{block}.{key} {brief(said_sizes[key])} (weights: {brief(real_sizes[key])})" for key in real_sizes if said_sizes[key] != real_sizes[key]]
    norm = known["decode_head"]["norm_cfg"]
    if norm is not None and model["decode_head"].get("norm_cfg") is None:  # early configs of original JSeg left it to the class
        model["decode_head"]["norm_cfg"] = norm
        notes.append(f"model.decode_head.norm_cfg: the config names none, the weights have one: {norm['type']}"
                     + (f" of {norm['num_groups']} groups, SegNeXt's, is taken" if "num_groups" in norm else " is taken"))
    if faults:
        raise ConvertError(f"{where}: the config ({origin}) does not fit the weights: {', '.join(faults)}; give the right one with --config")
    ham, rules = dict(model["decode_head"].get("ham_kwargs") or {}), known["decode_head"]["ham_kwargs"]
    for key in ("MD_R", "grad"):
        if not any(key in (k, k.upper()) for k in ham) and not (key == "grad" and "GRAD" in ham):
            ham[key] = rules[key]
    try:
        options = ham_options(ham)
    except (ConfigError, TypeError, ValueError) as error:
        raise ConvertError(f"{where}: config ({origin}): model.decode_head.{error}") from error
    if not isinstance(options["MD_R"], int) or not 1 <= options["MD_R"] <= 4096 or bool(options["rand_init"]) != rules["rand_init"]:
        raise ConvertError(f"{where}: config ({origin}): ham_kwargs MD_R {brief(options['MD_R'])}, rand_init {brief(options['rand_init'])} do not fit "
                           "weights " + ("without" if rules["rand_init"] else "with") + " stored bases")
    model["decode_head"]["ham_kwargs"] = ham
    return settings


def _drop_training_heads(model: dict, notes: list[str]) -> None:
    """Auxiliary heads serve training only and their weights are dropped; so are the lines that say what jseg lacks of them."""
    heads = model.get("auxiliary_head")
    model["auxiliary_head"] = None
    if heads:
        notes[:] = [note for note in notes if not note.startswith("model.auxiliary_head")]
        kinds = [brief(head.get("type")) for head in (heads if isinstance(heads, list) else [heads]) if isinstance(head, dict)]
        notes.append(f"model.auxiliary_head: {', '.join(kinds)} left out with its weights: used in training only, and jseg trains SegNeXt without one")


def _sizes(block: str, said: Mapping) -> dict[str, Any]:
    """The arguments of a block that decide shapes, defaults filled in, comparable."""
    if block == "backbone":
        from jseg.models.backbones.mscan import KERNEL_SIZES, VARIANTS
        variant = VARIANTS.get(said.get("variant") or "", {})
        defaults = {"embed_dims": variant.get("embed_dims"), "depths": variant.get("depths"), "mlp_ratios": (8, 8, 4, 4), "num_stages": 4,
                    "in_channels": 3, "attention_kernel_sizes": KERNEL_SIZES}
    else:
        defaults = {"in_channels": None, "in_index": None, "channels": None, "ham_channels": 512, "num_classes": None}
    return {key: _lists(default if said.get(key) is None else said[key]) for key, default in defaults.items()}


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _translated(source: Any, name: str | None = None, metainfo: Mapping | None = None) -> tuple[dict, list[str]]:
    """(jseg config, what has no counterpart) of a config file; with a `name` for messages, of config text or settings as a dict."""
    from jseg.config import load_config
    from jseg.convert.mmseg_config import translate_config
    from jseg.convert.py_config import parse_py_config, read_py_config
    if name is None:
        name = os.fspath(source)
        if name.endswith((".yaml", ".yml")):
            return load_config(name), []
        settings = read_py_config(name)
    elif isinstance(source, str):
        settings = parse_py_config(source, name)
    elif isinstance(source, dict):
        settings = source
    else:
        raise ConvertError(f"{name} is {brief(source)}, neither text nor settings; give the config with --config")
    found = translate_config(settings, source=name, metainfo=metainfo)
    return found.config, list(found.notes)


# -- classes and origin --------------------------------------------------------------------------------------------------


def _class_list(settings: Mapping, contents: Contents, asked: str | None, where: str, notes: list[str]) -> tuple[list[str], list, str]:
    """(names, palette, where they came from), as many as the head has classes."""
    from jseg.registry import DATASETS
    count = settings["model"]["decode_head"]["num_classes"]
    meta = contents.meta
    inside = meta.get("dataset_meta") if isinstance(meta.get("dataset_meta"), dict) else {}
    candidates = [] if asked else [("the file's dataset_meta", inside.get("classes") or inside.get("CLASSES"), inside.get("palette") or inside.get("PALETTE")),
                                   ("the file's meta", meta.get("CLASSES"), meta.get("PALETTE"))]
    types = [asked] if asked else [((settings.get(f"{split}_dataloader") or {}).get("dataset") or {}).get("type") for split in ("test", "val", "train")]
    for kind in types:
        if isinstance(kind, str) and (asked or kind in DATASETS):
            known = DATASETS.get(kind, "--classes").METAINFO
            candidates.append((kind, known.get("classes"), known.get("palette")))
    for origin, names, palette in candidates:
        names = _names(names)
        if names and len(names) == count:
            return names, _palette(palette, count), origin
        if names and asked:
            raise ConvertError(f"{where}: {asked} has {len(names)} classes, the weights have {count}")
        if names:
            notes.append(f"{origin} names {len(names)} classes, the head has {count}; not used")
    fitting = [name for name in DATASETS.names() if len(getattr(DATASETS.get(name), "METAINFO", {}).get("classes", ())) == count]
    if len(fitting) == 1:
        known = DATASETS.get(fitting[0]).METAINFO
        notes.append(f"no class names in the file: those of {fitting[0]} are taken, the one known dataset of {count} classes (--classes changes it)")
        return _names(known["classes"]), _palette(known["palette"], count), f"{fitting[0]}, by their number"
    notes.append(f"no class names in the file and no single dataset of {count} classes: they are numbered (--classes names a dataset)")
    return [f"class {i}" for i in range(count)], _palette(None, count), "numbers"


def _names(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)) and 0 < len(value) <= 10_000 and all(isinstance(v, str) and len(v) <= 200 for v in value):
        return list(value)
    return []


def _palette(value: Any, count: int) -> list[list[int]]:
    """Colours as the file gives them, or `count` distinct ones made by PASCAL VOC's rule of bits."""
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == count:
        rows = [list(row) for row in value if isinstance(row, (list, tuple, np.ndarray)) and len(row) == 3]
        if len(rows) == count and all(isinstance(v, (int, np.integer)) and 0 <= v <= 255 for row in rows for v in row):
            return [[int(v) for v in row] for row in rows]
    return [[sum((k >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(6)) for channel in range(3)] for k in range(1, count + 1)]


def _origin(source: pathlib.Path, contents: Contents, family: families.Family, settings: dict, config_from: str, classes_from: str) -> dict:
    """What the weights file says of where it came from; nothing that differs between two runs."""
    meta = contents.meta
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    origin: dict[str, Any] = {"file": source.name, "sha256": digest.hexdigest(), "bytes": source.stat().st_size, "family": family.name,
                              "weights": contents.place, "config_from": config_from}
    for key in ("mmengine_version", "mmcv_version", "mmseg_version", "jseg_version", "pytorch_version"):
        if isinstance(meta.get(key), str) and meta[key].isprintable():
            origin[key] = meta[key][:100]
    for key in ("iter", "epoch"):
        if isinstance(meta.get(key), int) and 0 <= meta[key] < 1 << 53:
            origin[key] = meta[key]
    if not family.backbone_only:
        from jseg.models.heads.ham_head import ham_options
        options = ham_options(settings["model"]["decode_head"].get("ham_kwargs"))
        origin.update(md_r=options["MD_R"], gradient={"full": "through all steps", "one_step": "through the last step"}[options["grad"]],
                      test_size=_test_size(settings), classes_from=classes_from, num_classes=settings["model"]["decode_head"]["num_classes"])
    return origin


def _test_size(settings: Mapping) -> str:
    """How the config brings test pictures to the network's stride, in words."""
    block = settings.get("test_dataloader") or settings.get("val_dataloader") or {}
    pipeline = (block.get("dataset") or {}).get("pipeline") or []
    if any(step.get("type") == "ResizeToMultiple" for step in pipeline if isinstance(step, dict)):
        return "resized to a multiple of 32"
    test = (settings.get("data_preprocessor") or {}).get("test_cfg") or {}
    for key, word in (("resize_divisor", "resized"), ("size_divisor", "padded")):
        if test.get(key):
            return f"{word} to a multiple of {test[key]}"
    return "kept as they are"


def _jseg_version() -> str:
    import jseg
    return jseg.__version__
