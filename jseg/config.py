"""Configs are YAML files: read, inherit, override, write back.

A file may name parents with `_base_` (one path or a list, relative to the file, two levels deep at most). A child's
blocks merge into its parents' blocks key by key, lists and scalars replace, and `_delete_: true` inside a block
replaces the whole block. Where there is no file of the name given, a config that comes with jseg is meant. In a
`_base_`, `jseg::models/segnext_tiny` is the block of that name in jseg's own `_base_` folder, and
`jseg::segnext/segnext_tiny_ade20k-512x512_160k` a whole config of jseg, from any folder and from an installed wheel.
Unlike PyYAML, this loader reads `6e-5` and `1E5` as numbers and refuses a key given twice.
"""

from __future__ import annotations

import copy
import difflib
import os
import pathlib
from typing import Any, Iterable, Iterator, Mapping, Sequence

import yaml

from jseg.errors import ConfigError
from jseg.registry import nearest
from jseg.text import read_text
from jseg.yaml_reader import MOST_BYTES, Allowance, add_exponents, parse_yaml

__all__ = ["load_config", "find_config", "find_base", "base_names", "configs_folder", "shipped_configs", "dump_config",
           "merge", "apply_overrides", "MAX_DEPTH", "OWN_BASE", "inner_datasets", "plain_datasets", "last_head",
           "stating_block", "is_classifier"]

MAX_DEPTH = 2  # a config, its _base_ files, and their _base_ files
OWN_BASE = "jseg::"  # begins the name of a base that comes with jseg
TOP_LEVEL = ("model", "data_preprocessor", "train_dataloader", "val_dataloader", "test_dataloader", "optimizer",
             "paramwise_cfg", "param_scheduler", "train_cfg", "evaluator", "tta", "seed", "work_dir", "load_from",
             "load_only", "load_first_conv")
_FILE_COST = 100  # values that reading one more file counts for: thousands of empty files take time, too


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper without anchors; quotes what the reader would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)


add_exponents(_Dumper)
_Dumper.add_representer(tuple, lambda dumper, data: dumper.represent_list(list(data)))


def load_config(path: str | os.PathLike, overrides: Iterable[str] = ()) -> dict:
    """Read a config with everything it inherits, then apply overrides.

    Args:
        path: a `.yaml` or `.yml` file, or the name of a config that comes with jseg (see `find_config`).
        overrides: `key.sub.key=value` texts as `--set` takes them, applied in order (see `apply_overrides`).
    Returns:
        Plain nested dicts, lists and scalars; `_base_` and `_delete_` are resolved.
    Raises:
        ConfigError: a file is missing (the text names the nearest), is not YAML, repeats a key, inherits from itself or
            too deeply, or an override does not fit. The text starts with the file and, where one is known, the line.
    """
    return _with_one_start(apply_overrides(_load(find_config(path), (), Allowance()), overrides))


def _with_one_start(cfg: dict) -> dict:
    """`model.backbone.init_cfg: {type: Pretrained, checkpoint: FILE}`, MMSegmentation's words, as `load_from: FILE` and
    `load_only: backbone`; any other `init_cfg` stays, and is refused where the model is built."""
    backbone = (cfg.get("model") or {}).get("backbone") if isinstance(cfg.get("model"), dict) else None
    start = backbone.get("init_cfg") if isinstance(backbone, dict) else None
    known = {"type", "checkpoint", "prefix"}
    if not isinstance(start, dict) or start.get("type") != "Pretrained" or set(start) - known:
        return cfg
    if cfg.get("load_from") is not None:
        raise ConfigError(f"model.backbone.init_cfg names {start.get('checkpoint')!r:.200} and load_from names "
                          f"{cfg['load_from']!r:.200}; keep one of them")
    kept = {key: value for key, value in backbone.items() if key != "init_cfg"}
    return {**cfg, "model": {**cfg["model"], "backbone": kept}, "load_from": start.get("checkpoint"),
            "load_only": "backbone"}


def find_config(path: str | os.PathLike) -> str:
    """The file that `path` means: itself, or, where nothing has that path, jseg's own config of that name.

    Args:
        path: a path, or a name as in `segnext/segnext_tiny_ade20k-512x512_160k.yaml`, also with `configs/` before it,
            without the folder or without `.yaml`.
    Returns:
        the path of a file; `path` itself where neither a file nor a shipped config has that name.
    Raises:
        ConfigError: several shipped configs have that name.
    """
    given = os.fspath(path)
    if os.path.lexists(given):
        return given
    wanted = _shipped_name(given)
    found = {name: file for name, file in shipped_configs().items() if name == wanted or name.endswith(f"/{wanted}")}
    if len(found) > 1:
        raise ConfigError(f"{given}: several configs that come with jseg have this name: {', '.join(sorted(found))}; "
                          "name one with its folder")
    return next(iter(found.values()), given)


def configs_folder() -> pathlib.Path:
    """The folder of the configs that come with jseg: the checkout's `configs/`, or its copy in an installed wheel."""
    package = pathlib.Path(__file__).resolve().parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def shipped_configs() -> dict[str, str]:
    """The configs that come with jseg, without those in `_base_`: name, as `segnext/segnext_tiny_ade20k-512x512_160k`,
    -> file."""
    folder = configs_folder()
    files = sorted(file for file in folder.rglob("*.yaml") if "_base_" not in file.parts)
    return {file.relative_to(folder).with_suffix("").as_posix(): str(file) for file in files}


def base_names() -> dict[str, str]:
    """What `_base_: jseg::NAME` may name: blocks as `models/segnext_tiny`, whole configs as
    `segnext/segnext_tiny_ade20k-512x512_160k`; name -> file."""
    folder = configs_folder() / "_base_"
    blocks = {file.relative_to(folder).with_suffix("").as_posix(): str(file) for file in sorted(folder.rglob("*.yaml"))}
    return {**blocks, **shipped_configs()}


def find_base(name: str, child: str) -> str:
    """The file of a base that comes with jseg.

    Args:
        name: begins with `jseg::`; `.yaml`, `_base_/` and `configs/` may stand or be left out.
        child: the file that names it, for the message.
    Raises:
        ConfigError: no base has that name; the text has the nearest.
    """
    wanted, known = _shipped_name(name[len(OWN_BASE):]).removeprefix("_base_/"), base_names()
    if wanted in known:
        return known[wanted]
    inside = [other for other in known if other.startswith(f"{wanted}/") or other.rpartition("/")[2] == wanted]
    hint = f"; there are {', '.join(OWN_BASE + other for other in inside[:6])}" if inside else nearest(
        name, [OWN_BASE + other for other in known])
    raise ConfigError(f"{child}: _base_: jseg has no base {name!r:.200}{hint}; blocks are called "
                      f"{OWN_BASE}models/NAME, {OWN_BASE}datasets/NAME and {OWN_BASE}schedules/NAME")


def _shipped_name(path: str) -> str:
    name = os.path.normpath(path).replace(os.sep, "/").removeprefix("configs/")
    return name.removesuffix(".yaml").removesuffix(".yml")


def merge(base: Mapping, child: Mapping) -> dict:
    """Lay `child` over `base` and return a new dict; neither argument changes.

    Two blocks under one key merge; anything else replaces. A block that holds `_delete_: true` replaces its
    counterpart.
    """
    merged = copy.deepcopy(dict(base))
    for key, value in child.items():
        if not isinstance(value, Mapping):
            merged[key] = copy.deepcopy(value)
        elif value.get("_delete_", False):
            merged[key] = merge({}, {k: v for k, v in value.items() if k != "_delete_"})
        else:
            parent = merged.get(key)
            block = {k: v for k, v in value.items() if k != "_delete_"}
            merged[key] = merge(parent if isinstance(parent, Mapping) else {}, block)
    return merged


def apply_overrides(cfg: Mapping, overrides: Iterable[str]) -> dict:
    """Return a copy of `cfg` with each `a.b.0.c=value` applied.

    The value is read as YAML and replaces what was there (a block is not merged). Every parent on the way must exist;
    the last key may be new. A number steps into a list.

    Raises:
        ConfigError: no `=`, a parent that does not exist or is not a block, an index out of range, an unreadable value,
            or a bare name that only stands inside a block (`lr` for `optimizer.lr`). The text has the nearest keys.
    """
    result = copy.deepcopy(dict(cfg))
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {text}: expected key.sub.key=value, for example optimizer.lr=6e-5")
        keys = name.strip().split(".")
        where = f"--set {name.strip()}"
        inner = [] if len(keys) > 1 or keys[0] in result or keys[0] in TOP_LEVEL else _near_paths(keys, result)
        if inner and inner[0].rpartition(".")[2] == keys[0]:
            raise ConfigError(f"{where}: the config has no {keys[0]!r} at the top{_meant(inner)}")
        parent = _descend(result, keys[:-1], where)
        _assign(parent, keys, parse_yaml(value, where), where)
    return result


def inner_datasets(dataset: Mapping, where: str) -> list[tuple[str, Any]]:
    """The datasets right inside a wrapper's block, each with its place; none for a plain one."""
    parts = dataset.get("datasets") if isinstance(dataset.get("datasets"), list) else []
    inner = [(f"{where}.datasets.{i}", part) for i, part in enumerate(parts)]
    return inner + ([(f"{where}.dataset", dataset["dataset"])] if isinstance(dataset.get("dataset"), Mapping) else [])


def plain_datasets(cfg: Mapping) -> Iterator[tuple[str, Mapping]]:
    """The block of every dataset that the loaders of a config name, with its place; of a wrapper those inside it."""
    for where in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if isinstance(cfg.get(where), Mapping):
            yield from _plain_parts(cfg[where].get("dataset"), f"{where}.dataset")


def _plain_parts(dataset: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    if isinstance(dataset, Mapping):
        inner = inner_datasets(dataset, where)
        for place, part in inner:
            yield from _plain_parts(part, place)
        if not inner:
            yield where, dataset


def last_head(model: Mapping) -> Mapping:
    """The block that states the classes of the labels: the last one of a cascade, a classifier's head; empty where
    there is none."""
    head = model.get("decode_head", model.get("head"))
    head = head[-1] if isinstance(head, (list, tuple)) and head else head
    return stating_block(head)[1] if isinstance(head, Mapping) else {}


def is_classifier(cfg: Any) -> bool:
    """Whether a config is of a network that classifies whole pictures."""
    model = cfg.get("model") if isinstance(cfg, Mapping) else None
    return isinstance(model, Mapping) and model.get("type") == "ImageClassifier"


def stating_block(head: Mapping) -> tuple[str, Mapping]:
    """Where a head states inputs, classes and losses, and the block: its own ("") or that of a head inside (K-Net)."""
    inner = head.get("kernel_generate_head")
    return (".kernel_generate_head", inner) if isinstance(inner, Mapping) else ("", head)


def dump_config(cfg: Mapping) -> str:
    """Write a config as YAML text that `load_config` reads back to an equal dict (tuples return as lists)."""
    return yaml.dump(dict(cfg), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def _load(path: str, ancestors: tuple[str, ...], allowance: Allowance) -> dict:
    """Read one file and its bases; `ancestors` are the files that led here, outermost first. All share one
    allowance."""
    trail = ancestors + (path,)
    if os.path.realpath(path) in {os.path.realpath(p) for p in ancestors}:
        raise ConfigError(f"{ancestors[-1]}: _base_ goes in a circle: {' -> '.join(trail)}; remove one of the links")
    if len(ancestors) > MAX_DEPTH:
        raise ConfigError(f"{ancestors[-1]}: _base_ is nested {len(ancestors)} deep ({' -> '.join(trail)}); "
                          f"at most {MAX_DEPTH} levels are allowed, move the shared blocks up")
    own = _read(path, ancestors[-1] if ancestors else "", allowance)
    bases = own.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise ConfigError(f"{path}: _base_: expected a file name or a list of file names, got {bases!r:.200}")
    inherited: dict = {}
    for base in bases:
        if base.startswith(OWN_BASE):  # jseg's own files are no deeper than they may be, and name no files of a user
            content = _load(find_base(base, path), (), allowance)
        else:
            content = _load(os.path.normpath(os.path.join(os.path.dirname(path), base)), trail, allowance)
        inherited = merge(inherited, content)
    return merge(inherited, own)


def _read(path: str, child: str, allowance: Allowance) -> dict:
    """Read one file as a mapping; `child` is the file whose `_base_` named it, for the message."""
    if not path.endswith((".yaml", ".yml")):
        if child or os.path.lexists(path):
            raise ConfigError(f"{path}: expected a config in YAML, a file that ends in .yaml or .yml")
        raise ConfigError(f"{path}: no config has this name; expected a file that ends in .yaml or .yml, or one of "
                          f"those that come with jseg{_similar_configs(path)}")
    allowance.charge(_FILE_COST, child or path)
    try:
        text = read_text(path, what="config", error=ConfigError, most_bytes=MOST_BYTES)
    except ConfigError as error:
        hint = "" if os.path.lexists(path) else _similar_file(path)
        if not hint and not child and not os.path.lexists(path):
            hint = f", and none of the configs that come with jseg has this name{_similar_configs(path)}"
        raise ConfigError(f"{f'{child}: _base_: ' if child else ''}{error}{hint}") from error
    content = parse_yaml(text, path, allowance)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level, got "
                          f"{'an empty file' if content is None else type(content).__name__}")
    return content


def _similar_file(path: str) -> str:
    folder = os.path.dirname(path) or "."
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return nearest(os.path.basename(path), names)


def _similar_configs(path: str) -> str:
    """The configs that come with jseg whose names are nearest; all of a folder where `path` is its name."""
    wanted, shipped = _shipped_name(path), shipped_configs()
    inside = [name for name in shipped if name.startswith(f"{wanted}/")]
    if inside:
        return f": {', '.join(f'{name}.yaml' for name in inside)}"
    if len(wanted) > 200:
        return ""

    def likeness(name: str) -> float:
        pairs = (wanted, name), (wanted.rpartition("/")[2], name.rpartition("/")[2])
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    found = [name for name in sorted(shipped, key=likeness, reverse=True)[:3] if likeness(name) > 0.6]
    return f"; the nearest of them: {', '.join(f'{name}.yaml' for name in found)}" if found else ""


def _near_paths(keys: Sequence[str], block: Any) -> list[str]:
    """Dotted keys of a config that somebody who wrote `keys` may mean, at most 3: those that end so, else similar."""
    known = list(_paths(block, ""))
    text = ".".join(keys)
    ending = sorted((path for path in known if path.endswith(f".{text}")), key=lambda path: path.count("."))
    return ending[:3] or difflib.get_close_matches(text, known, n=3, cutoff=0.75) if len(text) < 100 else []


def _paths(block: Any, before: str) -> Iterator[str]:
    items = block.items() if isinstance(block, Mapping) else enumerate(block) if isinstance(block, list) else ()
    for key, value in items:
        yield f"{before}{key}"
        yield from _paths(value, f"{before}{key}.")


def _meant(paths: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, paths))}?" if paths else ""


def _descend(top: Any, keys: Sequence[str], where: str) -> Any:
    """Follow `keys` into nested blocks and lists; ConfigError names the first step that does not exist."""
    block = top
    for depth, key in enumerate(keys):
        here = ".".join(keys[:depth + 1])
        if isinstance(block, list):
            block = block[_index(block, key, where)]
        elif key in block:
            block = block[key]
        else:
            whole = _near_paths(where.rpartition(" ")[2].split("."), top)
            raise ConfigError(f"{where}: the config has no {here!r}{nearest(key, block) or _meant(whole)} "
                              f"(known: {', '.join(map(str, block)) or 'none'})")
        if not isinstance(block, (dict, list)):
            raise ConfigError(f"{where}: {here} is {block!r}, not a block with keys; "
                              f"set it whole, for example --set '{here}={{key: value}}'")
    return block


def _assign(parent: Any, keys: Sequence[str], value: Any, where: str) -> None:
    """Put `value` at the last of `keys` in `parent`, a dict or a list."""
    if isinstance(parent, list):
        parent[_index(parent, keys[-1], where)] = value
    else:
        parent[keys[-1]] = value


def _index(items: list, key: str, where: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"{where}: {key!r} does not index a list of {len(items)}; "
                          + (f"use 0 to {len(items) - 1}" if items else "the list is empty"))
    return int(key)
