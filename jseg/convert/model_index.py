"""The models that MMSegmentation publishes weights of: facts from its metafiles, and whether jseg can build each.

`model_index.json` beside this file is made by `tools/make_model_index.py` from MMSegmentation 1.2.2's wheel
(Apache-2.0), never by hand. Each model brings the `model` block of its config, so that what it needs is known before
anything is fetched:

    models = read_models()
    models["segformer_mit-b0_8xb2-160k_ade20k-512x512"].missing_types()   # [] once jseg has them all
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jseg.convert.weights_index import INDEX as WEIGHTS_INDEX
from jseg.convert.weights_index import Published, read_index
from jseg.errors import ConfigError, ConvertError
from jseg.registry import LOSSES, MODELS

__all__ = ["PublishedModel", "INDEX", "LICENCE", "MIOU", "MIOU_AUGMENTED", "read_models", "find_model", "read_weights",
           "refuse_unbuildable", "index_text", "file_stem", "split_words"]

INDEX = pathlib.Path(__file__).with_suffix(".json")
SOURCE, LICENCE = "mmsegmentation 1.x", "Apache-2.0"
MIOU, MIOU_AUGMENTED = "mIoU", "mIoU(ms+flip)"
_MODEL_KEYS = ("backbone", "backbone_cfg", "neck", "decode_head", "auxiliary_head", "kernel_generate_head",
               "image_encoder", "text_encoder")
_LOSS_KEYS = re.compile(r"loss_\w+|sampler")
_STAMP = re.compile(r"(_\d{8}(_\d{6})?)?[-_]([0-9a-f]{8})\.pth$")  # date, time and hash that end a file's name


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """One model with published weights.

    Attributes:
        name: the stem of its config.
        config: path of the config inside MMSegmentation.
        family: the method ("PSPNet"); `architecture` begins with the backbone (("R-50-D8", "PSPNet")).
        dataset: as MMSegmentation calls it ("ADE20K"); `dataset_type` is the class in configs ("ADE20KDataset").
        crop: (h, w) in pixels of a training picture.
        metrics: published on the validation split: "mIoU", "mIoU(ms+flip)" (multi-scale and flip), "Dice" and "mDice"
            in percent, "RMSE" in metres.
        url: address of the weights file.
        block: the `model` block of its config, without where training started; shared, not to be changed.
    """

    name: str
    config: str
    family: str
    architecture: tuple[str, ...]
    dataset: str
    dataset_type: str
    crop: tuple[int, int]
    metrics: Mapping[str, float]
    url: str
    block: Mapping[str, Any]

    @property
    def file(self) -> str:
        """Name of the weights file."""
        return self.url.rpartition("/")[2]

    @property
    def hash_digits(self) -> str:
        """The 8 digits in the file's name; equal digits prove the file, others prove nothing."""
        return _STAMP.search(self.url)[3]

    def missing_types(self) -> list[str]:
        """Names of models and losses in its config that jseg does not have, in the order of the config."""
        import jseg.models  # noqa: F401  (fills the registries; needs Jittor)
        missing = [kind for kind, registry in _types(self.block, "model") if kind not in registry]
        return list(dict.fromkeys(missing))

    def jseg_config(self) -> dict:
        """The config's model in jseg's words, for `jseg.models.build_model`."""
        from jseg.convert.mmseg_config import translate_config
        return translate_config({"model": self.block}, source=self.config).config

    def weights(self) -> Published:
        """The entry by which the file is fetched."""
        values = tuple(self.metrics[key] for key in (MIOU, MIOU_AUGMENTED) if key in self.metrics)
        return Published(self.name, self.file, self.url, SOURCE, sha256=self.hash_digits, licence=LICENCE,
                         miou=values or None)


def read_models(path: str | os.PathLike = INDEX) -> dict[str, PublishedModel]:
    """The models of the index by name, in alphabetical order."""
    content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    address, blocks, found = content["about"]["address"], content["blocks"], {}
    for name, facts in content["models"].items():
        block = {key: blocks[value[1:]] if isinstance(value, str) and value.startswith("=") else value
                 for key, value in facts["model"].items()}
        found[name] = PublishedModel(
            name=name, config=f"configs/{facts['folder']}/{name}.py", family=facts["family"],
            architecture=tuple(facts["architecture"]), dataset=facts["dataset"],
            dataset_type=content["datasets"][facts["dataset"]], crop=tuple(facts["crop"]), metrics=facts["metrics"],
            url=address + facts["weights"], block=block)
    return found


def find_model(name: str, models: Mapping[str, PublishedModel]) -> PublishedModel | None:
    """The model of that name, or whose file has that name in `weights_index.yaml`; None where there is none."""
    published = read_index(WEIGHTS_INDEX).get(name)
    if name in models or published is None:
        return models.get(name)
    return next((model for model in models.values() if model.url == published.url), None)


def read_weights() -> dict[str, Published]:
    """Every file that `jseg weights get` knows by name: those of `weights_index.yaml`, then those of the models."""
    return {**read_index(WEIGHTS_INDEX), **{name: model.weights() for name, model in read_models().items()}}


def refuse_unbuildable(entry: Published) -> None:
    """Say before a download that its file would be of no use yet.

    Args:
        entry: any file; one that is not a model of this index is let through.
    Raises:
        ConvertError: the model of the file needs types or options that jseg does not have; names them and the address.
    """
    model = next((model for model in read_models().values() if model.url == entry.url), None)
    if model is None:
        return
    missing = model.missing_types()
    if missing:
        reason = f"jseg has no {', '.join(missing)} yet"
    else:
        from jseg.models import build_model
        try:
            build_model(model.jseg_config())
            return
        except (ConfigError, ConvertError) as error:
            reason = f"jseg cannot build it yet ({str(error).splitlines()[0]})"
    raise ConvertError(f"{entry.name}: {reason}, so its weights could not be used; nothing was fetched. "
                       f"By hand: {entry.url}")


def _types(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(name, registry) of each block that a config builds from one; the training rules in a head are not asked for."""
    if isinstance(value, list):
        for item in value:
            yield from _types(item, key)
    elif isinstance(value, Mapping):
        registry = MODELS if key in ("model", *_MODEL_KEYS) else LOSSES if _LOSS_KEYS.fullmatch(key) else None
        if registry is not None and isinstance(value.get("type"), str):
            yield value["type"], registry
        for inner, item in value.items():
            if inner != "train_cfg":
                yield from _types(item, inner)


def file_stem(url: str) -> str:
    """A weights file's name without date, time and hash."""
    return _STAMP.sub("", url.rpartition("/")[2])


def split_words(text: str) -> list[str]:
    """`DeepLabV3+ R-50-D8` -> ["deeplabv3plus", "r", "50", "d8"]."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("+", "plus"))


def index_text(content: dict) -> str:
    """The index as its file holds it: one line for each block and each model."""
    def line(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    groups = []
    for key, value in content.items():
        inner = ",\n".join(f"{line(name)}:{line(item)}" for name, item in value.items())
        groups.append(f"{line(key)}:{{\n{inner}\n}}")
    return "{\n" + ",\n".join(groups) + "\n}\n"
