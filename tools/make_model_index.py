"""Make jseg/convert/model_index.json from the wheel of MMSegmentation: facts about published models, slips repaired.

    pip download --no-deps mmsegmentation==1.2.2 -d wheels
    python tools/make_model_index.py wheels/mmsegmentation-1.2.2-py3-none-any.whl

Source: the wheel's mmseg/.mim (Apache-2.0): model-index.yml, the metafiles it lists, the configs they name, read as
data. Nothing is downloaded and nothing of the wheel is run. The same wheel gives the same bytes. Repaired, and printed:
    config    the weights file's name fits another config of the folder that no model has: that one (dead paths, two
              models with one config, a wrong backbone)
    host      an address whose host differs by a slip from that of all others: theirs
    dataset   another name than most models of the same data have (a heading that slipped into the field): theirs
`--check` writes nothing and fails where the shipped file differs.
"""
from __future__ import annotations

import argparse
import difflib
import json
import os
import pathlib
import re
import sys
import tempfile
import zipfile
from collections import Counter
from typing import Any

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])  # jseg from this checkout, installed or not

import yaml  # noqa: E402

from jseg.convert.mmseg_notes import cleaned  # noqa: E402
from jseg.convert.model_index import INDEX, LICENCE, file_stem, index_text, split_words  # noqa: E402
from jseg.convert.py_config import read_py_config  # noqa: E402
from jseg.errors import ConvertError, JsegError  # noqa: E402
from jseg.files import write_atomically  # noqa: E402

MIM = "mmseg/.mim"
NOT_MODEL = ("pretrained", "init_cfg")  # where training started, not what the model is
HOST_LIKENESS = 0.8  # difflib's ratio from which a host counts as a slip of the usual one


def main(words: list[str] | None = None) -> int:
    """Write the index, or compare with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python tools/make_model_index.py wheels/mmsegmentation-1.2.2-py3-none-any.whl")
    parser.add_argument("wheel", help="mmsegmentation-<version>-py3-none-any.whl")
    parser.add_argument("--out", default=str(INDEX), help="the file to write (default: the one in the package)")
    parser.add_argument("--check", action="store_true", help="compare with --out instead of writing it")
    args = parser.parse_args(words)
    try:
        content, repairs = make_index(args.wheel)
        text, out = index_text(content).encode(), pathlib.Path(args.out)
        if not args.check:
            write_atomically(out, text)
        elif not out.is_file() or out.read_bytes() != text:
            raise ConvertError(f"{out}: is not what this script makes from {args.wheel}; run it again without --check")
    except JsegError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join([*repairs, f"{out}: {len(content['models'])} models, {len(content['blocks'])} blocks, "
                               f"{len(text)} bytes, {len(repairs)} repairs"]))
    return 0


def make_index(wheel: str | os.PathLike) -> tuple[dict, list[str]]:
    """The content of the index and one line for each repair.

    Raises:
        ConvertError: the file is no such wheel, or a model in it lacks a fact or cannot be repaired.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, version = _unpacked(wheel, pathlib.Path(folder))
        leaves = sorted((root / "configs").glob("[!_]*/*.py"))
        configs = {path.relative_to(root).as_posix(): _config(root, path) for path in leaves}
        rows = [row for name in _yaml(root, "model-index.yml").get("Import", []) for row in _rows(root, name)]
    if not rows:
        raise ConvertError(f"{wheel}: its metafiles list no model")
    repairs = _repair_configs(rows, configs) + _repair_addresses(rows) + _repair_datasets(rows, configs)
    rows.sort(key=lambda row: _name_folder(row["config"]))
    address = os.path.commonprefix([row["url"] for row in rows]).rpartition("/")[0] + "/"
    blocks: dict[str, Any] = {}
    numbers: dict[str, str] = {}
    models = {}
    for row in rows:
        name, folder = _name_folder(row["config"])
        block = configs[row["config"]]["model"]
        models[name] = {
            "folder": folder, "family": row["family"], "architecture": row["architecture"], "dataset": row["dataset"],
            "crop": (block.get("data_preprocessor") or {}).get("size") or _size_in_name(name),
            "metrics": row["metrics"], "weights": row["url"][len(address):],
            "model": _with_references(_bare(block), blocks, numbers)}
    if not len(rows) == len(models) == len({model["weights"] for model in models.values()}):
        raise ConvertError(f"{wheel}: of its {len(rows)} models, two have one name or one address")
    datasets = {row["dataset"]: _data_of(configs[row["config"]])[0] for row in rows}
    about = {"source": f"mmsegmentation {version}", "licence": LICENCE, "address": address, "configs": len(configs),
             "made_by": "tools/make_model_index.py"}
    return {"about": about, "datasets": dict(sorted(datasets.items())), "blocks": blocks, "models": models}, repairs


# -- reading -----------------------------------------------------------------------------------------------------------


def _unpacked(wheel: str | os.PathLike, folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """(folder of the index and the configs, version of the package)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            archive.extractall(folder, [name for name in names if name.startswith(f"{MIM}/")])
    except (OSError, zipfile.BadZipFile) as error:
        raise ConvertError(f"{wheel}: cannot be read as a wheel ({error}); `--help` says how to get it") from error
    matches = [re.fullmatch(r"mmsegmentation-([^/]+)\.dist-info/METADATA", name) for name in names]
    version = next((match[1] for match in matches if match), None)
    if version is None or not (folder / MIM / "model-index.yml").is_file():
        raise ConvertError(f"{wheel}: no wheel of mmsegmentation with {MIM}/model-index.yml in it; 1.2.2 is needed")
    return folder / MIM, version


def _yaml(root: pathlib.Path, name: str) -> dict:
    try:
        return yaml.safe_load((root / name).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConvertError(f"{name}: cannot be read ({error})") from error


def _rows(root: pathlib.Path, metafile: str) -> list[dict]:
    """The facts of each model of a metafile."""
    rows = []
    for i, model in enumerate(_yaml(root, metafile).get("Models", [])):
        try:
            metrics = {key: float(value) for key, value in model["Results"]["Metrics"].items()}
            rows.append({"name": model["Name"], "config": model["Config"], "family": model["In Collection"],
                         "architecture": [str(word) for word in model["Metadata"]["Architecture"]],
                         "dataset": model["Results"]["Dataset"], "metrics": metrics, "url": model["Weights"]})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConvertError(f"{metafile}: Models.{i}: {type(error).__name__} {error}; a model needs the keys that "
                               "mmsegmentation 1.2.2's metafiles have") from error
    return rows


def _config(root: pathlib.Path, path: pathlib.Path) -> dict:
    """A config with its bases in plain dicts and lists; messages leave out the temporary folder."""
    try:
        settings = cleaned(read_py_config(path), path.name)
        if not isinstance(settings.get("model"), dict):
            raise ConvertError(f"{path}: no model in it")
        return settings
    except ConvertError as error:
        raise ConvertError(str(error).replace(f"{root}{os.sep}", "")) from error


def _name_folder(config: str) -> tuple[str, str]:
    """configs/ann/ann_r50.py -> (ann_r50, ann)."""
    path = pathlib.PurePosixPath(config)
    return path.stem, path.parent.name


def _size_in_name(name: str) -> list[int]:
    """The last HxW of a config's name, for the few whose preprocessor has no size."""
    found = re.findall(r"(\d+)x(\d+)", name)
    if not found:
        raise ConvertError(f"{name}: neither its data_preprocessor nor its name says the size of the pictures")
    return [int(side) for side in found[-1]]


def _data_of(settings: dict) -> tuple[str, str]:
    """(class, folder) of the data that a config trains on, wrappers opened."""
    dataset = settings.get("train_dataloader", {}).get("dataset", {})
    while "dataset" in dataset or "datasets" in dataset:
        dataset = dataset.get("dataset") or dataset["datasets"][0]
    return str(dataset.get("type")), str(dataset.get("data_root")).strip("/")


# -- repairs -----------------------------------------------------------------------------------------------------------


def _repair_configs(rows: list[dict], configs: dict[str, dict]) -> list[str]:
    """Give a model the config of its folder and data that its weights file names best, if no model has that one."""
    repairs, owned = [], Counter(row["config"] for row in rows)
    for row in rows:
        own, folder = row["config"], _name_folder(row["config"])[1]
        stem = set(split_words(re.sub(r"(\d)x(\d\d?)(?=_)", r"\1xb\2", file_stem(row["url"]))))  # older names: 4x2

        def likeness(config: str) -> float:
            words = set(split_words(_name_folder(config)[0]))
            return len(words & stem) / len(words | stem)

        free = [config for config in configs if not owned[config] and _name_folder(config)[1] == folder
                and (own not in configs or _data_of(configs[config]) == _data_of(configs[own]))]
        best = max(free, key=likeness, default=own)
        if own in configs and likeness(best) <= likeness(own):
            continue
        if best == own or [likeness(config) for config in free].count(likeness(best)) > 1:
            raise ConvertError(f"{row['name']}: of {len(free)} configs without a model in configs/{folder}, no single "
                               f"one fits {row['url']}")
        owned[own] -= 1
        owned[best] += 1
        row["config"] = best
        repairs.append(f"{row['name']}: config {own} -> {best}, which its weights file names")
    return repairs


def _repair_addresses(rows: list[dict]) -> list[str]:
    """One host serves them all."""
    repairs, hosts = [], Counter(row["url"].split("/")[2] for row in rows)
    usual = hosts.most_common(1)[0][0]
    for row in rows:
        host, name = row["url"].split("/")[2], _name_folder(row["config"])[0]
        if host == usual:
            continue
        if difflib.SequenceMatcher(None, host, usual).ratio() < HOST_LIKENESS:
            raise ConvertError(f"{name}: its weights are at {host}, all others at {usual}; look at {row['url']}")
        row["url"] = row["url"].replace(host, usual, 1)
        repairs.append(f"{name}: host {host} -> {usual}")
    return repairs


def _repair_datasets(rows: list[dict], configs: dict[str, dict]) -> list[str]:
    """A model's dataset is what most models of the same data say; "# ..." is a heading, no dataset."""
    repairs: list[str] = []
    named: dict[tuple, Counter] = {}
    for row in rows:
        if not row["dataset"].startswith("#"):
            named.setdefault(_data_of(configs[row["config"]]), Counter())[row["dataset"]] += 1
    for row in rows:
        data, name = _data_of(configs[row["config"]]), _name_folder(row["config"])[0]
        if data not in named:
            raise ConvertError(f"{name}: {row['dataset']!r} names no dataset, nor does any other model of {data[0]}")
        right = named[data].most_common(1)[0][0]
        if row["dataset"] != right:
            repairs.append(f"{name}: dataset {row['dataset']!r} -> {right!r}, the data of its config")
            row["dataset"] = right
    return repairs


# -- blocks ------------------------------------------------------------------------------------------------------------


def _with_references(model: dict, blocks: dict[str, Any], numbers: dict[str, str]) -> dict:
    """A `model` block whose inner blocks are "=NAME", each entered in `blocks` once.

    Args:
        numbers: a block's text -> its NAME.
    """
    short = {}
    for key, value in model.items():
        if not isinstance(value, (dict, list)) or not value:
            short[key] = value
            continue
        text = json.dumps(value, sort_keys=True)
        if text not in numbers:
            kind = value.get("type", key) if isinstance(value, dict) else key
            numbers[text] = f"{kind}-{sum(name.rpartition('-')[0] == kind for name in blocks) + 1}"
            blocks[numbers[text]] = value
        short[key] = f"={numbers[text]}"
    return short


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if key not in NOT_MODEL}
    return [_bare(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
