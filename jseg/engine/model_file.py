"""A weights file as a model: its config, classes and palette checked before anything is built from them.

Whoever opens a checkpoint (predict, val, verify, `InferenceSegmentor`) reads it here. The file may be of another tool,
or made to harm: what it says is compared with what may be (`engine.limits`) and with the weights it holds, no path in
its config is opened, and its texts are made fit to print. Each fault is one CheckpointError that names the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jseg.data.build import build_preprocessor
from jseg.data.colours import spread_colours
from jseg.data.preprocess import SegDataPreProcessor
from jseg.data.transforms import Compose
from jseg.data.tta import test_transforms
from jseg.config import is_classifier, last_head
from jseg.engine.check_rules import TTA
from jseg.engine.checkpoint import load_into, load_weights, model_state, save_weights, weights_path
from jseg.engine.limits import absurd, model_values, without_files
from jseg.errors import CheckpointError, ConfigError, DataError, JsegError
from jseg.layers.init import without_values
from jseg.models import build_model
from jseg.rules import fields, is_integer

__all__ = ["ModelFile", "build_any", "open_model_file", "checked_model_file", "stored_config", "stored_classes",
           "stored_palette", "own_data", "config_told", "meta_of", "save_model"]

_COUNTS = ("MD_R", "MD_S", "train_steps", "eval_steps", "num_groups", "size", "size_divisor", "resize_divisor",
           "crop_size", "stride", "embed_dims", "depths", "channels", "ham_channels", "in_channels", "in_index")
MAX_NAME = 200      # characters of a class name
SPARE_VALUES = 10_000_000  # by which a model may be larger than its weights before it is built and compared in full


class ModelFile(NamedTuple):
    """A checked checkpoint: `state` by name, `config`, K `classes`, `palette` (K, 3) uint8 RGB, `meta` as stored."""

    path: Path
    state: dict[str, np.ndarray]
    config: dict[str, Any]
    classes: list[str]
    palette: np.ndarray
    meta: dict[str, Any]

    def build(self, *, impl: str = "auto", mode: str | None = None) -> tuple[Any, SegDataPreProcessor, Compose]:
        """The model in evaluation mode with its weights, its preprocessor, the transforms of its test pipeline.

        Args:
            impl: operator implementation of the model.
            mode: "whole" or "slide" instead of what `model.test_cfg` says.
        Raises:
            CheckpointError, ConfigError: the config cannot be built, or describes another model than the weights'.
        """
        with config_told(self.path):
            block = {**without_files(self.config["model"]), "impl": impl}
            if mode is not None:
                block["test_cfg"] = {**(block.get("test_cfg") or {}), "mode": mode}
            with without_values():  # all of them come from the file
                model = build_model(block)
            _compare_maps(model, block)
            preprocessor, transforms = build_preprocessor(self.config), test_transforms(self.config)
        load_into(model, self.state, source=str(self.path), allow_nonfinite=True)  # they were looked at when read
        model.eval()
        return model, preprocessor, transforms


def open_model_file(path: str | os.PathLike, *, allow_nonfinite: bool = False) -> ModelFile:
    """Read a checkpoint with all that inference needs.

    Args:
        path: a `.safetensors` file, or a folder of a run that holds one (see `checkpoint.weights_path`).
        allow_nonfinite: accept weights of NaN or inf.
    Raises:
        CheckpointError: missing, damaged, without config or classes, or with values in them that cannot be meant.
    """
    path = weights_path(path)
    return checked_model_file(path, *load_weights(path, allow_nonfinite=allow_nonfinite))


def build_any(path: str | os.PathLike) -> tuple[Any, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and its config: a segmentor, or a classifier.

    Raises:
        CheckpointError, ConfigError: as `open_model_file` and `ModelFile.build`.
    """
    path = weights_path(path)
    state, meta = load_weights(path)
    if not is_classifier(meta.get("config") or {}):
        file = checked_model_file(path, state, meta)
        return file.build()[0], file.config
    config = stored_config(meta, path, blocks=("backbone", "head"))
    with config_told(path), without_values():
        model = build_model(without_files(config["model"]))
    load_into(model, state, source=str(path), allow_nonfinite=True)  # they were looked at when read
    model.eval()
    return model, config


def save_model(path: str | os.PathLike, model: Any, config: Mapping[str, Any], dataset: Any) -> None:
    """Write a model with all that inference needs, as `jseg.train` does: `InferenceSegmentor(path)` reads it.

    Args:
        path: a `.safetensors` file, replaced only when the new one is complete.
        model: from `build_model(config)`.
        config: what it was built from.
        dataset: names classes and palette, such as `loader.dataset`.
    Raises:
        CheckpointError: it cannot be written, or the weights hold NaN or inf.
    """
    save_weights(path, model_state(model), meta_of(config, dataset, {"made_by": "jseg.save_model"}))


def meta_of(config: Mapping[str, Any], dataset: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What a weights file carries beside the weights: config, names and colours of the classes, where it comes from."""
    palette = np.asarray(dataset.palette).tolist() if dataset.palette is not None else None
    return {"config": dict(config), "classes": list(dataset.classes), "palette": palette, "origin": dict(origin)}


def checked_model_file(path: Path, state: dict[str, np.ndarray], meta: dict[str, Any]) -> ModelFile:
    """The `ModelFile` of what `load_weights` returned; errors as `open_model_file`."""
    config = stored_config(meta, path)
    count = last_head(config["model"]).get("num_classes")
    if not is_integer(count) or count < 2:
        raise CheckpointError(f"{path}: the config inside: model.decode_head.num_classes is {count!r}; expected a "
                              f"whole number, 2 or more")
    planned, held = model_values(config), sum(array.size for array in state.values())
    if planned > 2 * held + SPARE_VALUES:
        raise CheckpointError(f"{path}: the config inside describes a model of about {planned:.2g} values, the file "
                              f"holds {held:.2g}: they do not belong together")
    classes = stored_classes(meta, count, path)
    return ModelFile(path, state, config, classes, stored_palette(meta, count, path), meta)


def stored_config(meta: Mapping[str, Any], path: str | os.PathLike, *,
                  blocks: tuple[str, ...] = ("backbone", "decode_head")) -> dict[str, Any]:
    """The config that a weights file carries, with the `blocks` named in its model.

    Raises:
        CheckpointError: there is none, it is not of blocks, or it holds numbers that nobody can mean.
    """
    config = meta.get("config")
    if not isinstance(config, dict) or not config:
        found = ("no config," if config is None
                 or config == {} else f"a config that is {type(config).__name__}, not blocks of settings,")
        if Path(path).name == "state.safetensors":
            raise CheckpointError(f"{path}: holds what the optimizer of a run remembers, not weights; give the "
                                  f"weights.safetensors beside it")
        if Path(path).with_name("config.json").is_file():
            raise CheckpointError(f"{path}: carries {found} but a config.json lies beside it; translate a model of "
                                  f"Hugging Face once with 'jseg convert {Path(path).parent} OUT.safetensors'")
        raise CheckpointError(f"{path}: carries {found} so its model is unknown; give it one with "
                              f"'jseg export {path} OUT.safetensors --config CONFIG.yaml'")
    if is_classifier(config) and "decode_head" in blocks:
        raise CheckpointError(f"{path}: holds a classifier of whole pictures; 'jseg val --checkpoint {path}' scores "
                              f"it, 'jseg train CONFIG --weights {path}' starts a segmentor from its backbone")
    for keys in (("model",), *(("model", name) for name in blocks)):
        block: Any = config
        for key in keys:
            block = block.get(key)
        if not isinstance(block, dict) and not (keys[-1] == "decode_head" and isinstance(block, list) and block):
            alone = " (a backbone alone serves load_from in training)" if keys[-1] == "decode_head" else ""
            raise CheckpointError(f"{path}: the config inside has no {'.'.join(keys)} block, but "
                                  f"{str(block)[:60]!r}{alone}; give the file "
                                  f"another config with 'jseg export {path} OUT.safetensors --config CONFIG.yaml'")
    faults = absurd(config)
    faults += _fractions({key: config[key] for key in ("model", "data_preprocessor") if key in config}, "")
    if "_base_" in config:
        faults.append("_base_: inherits from files, which a checkpoint's config may not open")
    tta = config.get("tta") or {}
    faults += fields(tta, TTA, "tta", "tta") if isinstance(tta, dict) else [f"tta: got {tta!r:.60}, expected a block"]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(f"{path}: the config inside: {'; '.join(faults[:3])}{more}")
    return config


def _fractions(value: Any, place: str, counts: bool = False) -> list[str]:
    """Counts that are no whole numbers: constructors keep some of them, and the first picture would meet them."""
    if isinstance(value, dict):
        return [line for key, item in value.items()
                for line in _fractions(item, f"{place}.{key}" if place else key, key in _COUNTS)]
    if isinstance(value, list):
        return [line for item in value for line in _fractions(item, place, counts)]
    wrong = counts and isinstance(value, (float, bool))
    return [f"{place}: got {value!r}, expected a whole number"] if wrong else []


def own_data(config: dict[str, Any], path: str | os.PathLike) -> dict[str, Any]:
    """The config inside a checkpoint, to read the data that it names.

    Raises:
        ConfigError: it names a file to write (`cache_file`), which a checkpoint may not.
    """
    if _names_cache(config):
        raise ConfigError(f"{path}: the config inside names a cache_file, and a checkpoint does not say which files "
                          f"are written; name a config: jseg val CONFIG --checkpoint {path}")
    return config


def _names_cache(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("cache_file")) or any(map(_names_cache, value.values()))
    return isinstance(value, list) and any(map(_names_cache, value))


def stored_classes(meta: Mapping[str, Any], count: int, path: str | os.PathLike) -> list[str]:
    """The names of the K classes, fit to print.

    Raises:
        CheckpointError: they are missing, no list of texts, or not as many as the model has classes.
    """
    names = meta.get("classes")
    cure = f"give the file names with 'jseg export {path} OUT.safetensors --config CONFIG.yaml'"
    if names is None or names == []:
        raise CheckpointError(f"{path}: names no classes, its model has {count}; {cure}")
    if not isinstance(names, list) or not all(isinstance(name, str) and len(name) <= MAX_NAME for name in names):
        raise CheckpointError(f"{path}: classes is {str(names)[:60]!r}; expected a list of names of at most "
                              f"{MAX_NAME} characters: {cure}")
    if len(names) != count:
        raise CheckpointError(f"{path}: names {len(names)} classes, its model has {count}; {cure}")
    return list(names)


def stored_palette(meta: Mapping[str, Any], count: int, path: str | os.PathLike) -> np.ndarray:
    """The colours of K classes, (K, 3) uint8 RGB: as stored, or made where none are.

    Made colours depend on K alone and differ from each other: those of `spread_colours`, which datasets without a
    palette get, and where two of those agree (beyond some 900 classes) the second is moved to the nearest free one.

    Raises:
        CheckpointError: the stored palette is not K times three whole numbers from 0 to 255.
    """
    stored = meta.get("palette")
    if stored is None or stored == []:
        return _distinct(spread_colours(count))
    rows = stored if isinstance(stored, list) else [stored]
    fits = len(rows) == count and all(isinstance(row, list) and len(row) == 3
                                      and all(is_integer(v) and 0 <= v <= 255 for v in row)
                                      for row in rows)
    if not fits:
        raise CheckpointError(f"{path}: palette is {str(stored)[:60]!r}...; expected {count} colours [red, green, "
                              f"blue] of 0 to 255, or null")
    return np.asarray(rows, np.uint8)


def _distinct(colours: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """The colours as (K, 3) uint8, each that was there before replaced by the next free one."""
    taken: dict[int, None] = {}
    for red, green, blue in colours:
        value = red << 16 | green << 8 | blue
        while value in taken:
            value = (value + 1) % (1 << 24)
        taken[value] = None
    packed = np.fromiter(taken, np.uint32, len(taken))
    return np.stack([packed >> shift & 255 for shift in (16, 8, 0)], axis=1).astype(np.uint8)


@contextlib.contextmanager
def config_told(path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever a constructor says to values of a checkpoint's own config into one error with the file's name."""
    try:
        yield
    except DataError:  # of files that the user named
        raise
    except JsegError as error:
        raise type(error)(f"{path}: the config inside: {'; '.join(str(error).splitlines()[:3])}") from error
    except Exception as error:  # a value that no constructor thought of
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"{path}: the config inside cannot be built: {text}; give the file another one with "
                              f"'jseg export {path} OUT.safetensors --config CONFIG.yaml'") from error


def _compare_maps(model: Any, block: Mapping[str, Any]) -> None:
    """The maps that the head takes are made by the backbone:
    an index beyond them would be met with the first picture only.
    """
    widths = getattr(model.backbone, "out_channels", None) or getattr(model.backbone, "embed_dims", None)
    index, channels = (last_head(block).get(key) for key in ("in_index", "in_channels"))
    if not isinstance(widths, (list, tuple)) or not isinstance(index, list) or block.get("neck"):
        return
    if not all(is_integer(i) and -len(widths) <= i < len(widths) for i in index):
        raise CheckpointError(f"model.decode_head.in_index is {str(index)[:60]}; the backbone makes {len(widths)} maps")
    if list(channels) != [widths[i] for i in index]:
        raise CheckpointError(f"model.decode_head.in_channels is {str(channels)[:60]}; maps {index} have "
                              f"{[widths[i] for i in index]} channels")
