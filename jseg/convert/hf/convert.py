"""Convert a model folder of Hugging Face: see the package."""

from __future__ import annotations

import importlib
import os
import pathlib
import pkgutil
import re
from types import ModuleType

from jseg.convert.checkpoint import Conversion, checked_shapes, output_file, write_conversion
from jseg.convert.checkpoint_meta import class_list, files_hash, test_size
from jseg.convert.hf import models
from jseg.convert.hf.facts import Facts
from jseg.convert.hf.folder import open_folder
from jseg.convert.hf.keys import translate
from jseg.convert.hf.processor import inference_of, pipeline_of
from jseg.convert.pickle_data import brief
from jseg.convert.state import Contents
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["convert_folder", "families"]


def convert_folder(folder: str | os.PathLike, out: str | os.PathLike, *, weights_file: str | None = None,
                   classes: str | None = None, allow_nonfinite: bool = False) -> Conversion:
    """Convert one model.

    Args:
        folder: holds config.json and weights, see `folder.find_folder`.
        out: the .safetensors file to write.
        weights_file: name of the weights file in the folder, where it has several.
        classes, allow_nonfinite: as in `checkpoint.convert_checkpoint`.
    Returns:
        the account of every key.
    Raises:
        ConvertError: a file is missing, damaged or hostile, the architecture is not known, or keys do not fit it; no
            file is written then.
    """
    folder, out = pathlib.Path(folder), output_file(out)
    found, where = open_folder(folder, weights_file), str(folder)
    if out.resolve() in [file.resolve() for file in found.files]:
        raise ConvertError(f"{out}: is the file to convert; give the result another name")
    name, family = _family(found.config)
    notes: list[str] = []
    plan = family.plan(found.config)
    steps, preprocessor = pipeline_of(found.processor, family.PROCESSOR, notes)
    plan.model["test_cfg"].update(inference_of(found.processor, family.PROCESSOR))
    settings = {"model": plan.model, "data_preprocessor": preprocessor,
                "test_dataloader": {"batch_size": 1, "dataset": {"pipeline": steps}}}
    renames, dropped = translate(found.tensors, plan.rules, where)
    renames.update({key: Made.constant(value) for key, value in plan.constants.items() if key not in renames})
    state = {key: tensor for key, tensor in found.tensors.items() if key not in dropped}
    contents = Contents(state, {key: key for key in state}, dropped, ", ".join(file.name for file in found.files[:3]),
                        _class_names(found.config), notes)
    shapes = checked_shapes(contents, renames, settings, file_bytes=found.bytes, config_from="config.json", where=where,
                            allow_nonfinite=allow_nonfinite)
    names, palette, classes_from = class_list(settings, contents, classes, where, notes)
    origin = {"file": folder.resolve().name, "sha256": files_hash(found.files), "bytes": found.bytes,
              "family": f"{name} (transformers)", "weights": contents.place, "config_from": "config.json",
              "test_size": test_size(settings), "classes_from": classes_from, "num_classes": len(names)}
    return write_conversion(out, contents, renames, shapes, {}, {"config": settings, "classes": names,
                                                                 "palette": palette, "origin": origin}, notes, where)


def families() -> dict[str, ModuleType]:
    """Every family by the class of transformers."""
    modules = [importlib.import_module(f"{models.__name__}.{file.name}")
               for file in pkgutil.iter_modules(models.__path__)]
    return {name: module for module in modules for name in module.ARCHITECTURES}


def _family(config: Facts) -> tuple[str, ModuleType]:
    known = families()
    said = config.values.get("architectures")
    name = said[0] if isinstance(said, list) and len(said) == 1 and isinstance(said[0], str) else None
    if name not in known:
        raise ConvertError(f"{config.where}: architectures is {brief(said)}; converted are {', '.join(known)}")
    return name, known[name]


def _class_names(config: Facts) -> dict:
    """The class names as a checkpoint's meta would say them, with the colours of the dataset that has the same;
    nothing where transformers numbered the labels.
    """
    names = config.class_names()
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return {}
    return {"dataset_meta": {"classes": names, "palette": _known_palette(names)}}


def _known_palette(names: list[str]) -> list | None:
    """Colours of the one dataset whose class names are these, most of them in the same spelling."""
    from jseg.registry import DATASETS
    words = [_plain(name) for name in names]
    for name in DATASETS.names():
        known = getattr(DATASETS.get(name), "METAINFO", {})
        classes = [_plain(text) for text in known.get("classes", ())]
        if len(classes) == len(words) and sum(a == b for a, b in zip(classes, words)) >= 0.7 * len(words):
            return known.get("palette")
    return None


def _plain(name: str) -> str:
    """A class name as words: the first of several spellings, small letters."""
    return re.split(r"[,;]", name.lower())[0].strip()
