"""An exported file becomes an int8 file that was evaluated beside it before it got its name.

Both files go through the same `evaluate` over the same pictures. Where int8 costs more than is allowed, each layer is
set to int8 alone on a few of the calibration pictures (`int8.layer_costs`): the costliest are named, or left in float
until the loss fits.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import pathlib
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from jseg.data.build import build_dataset, build_loader, build_preprocessor, with_first_pictures
from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.wrappers import leaves
from jseg.data.transforms import LoadBands
from jseg.data.tta import picture_reader, plain_view, test_transforms
from jseg.engine.evaluate import evaluate
from jseg.engine.predict import as_bgr
from jseg.errors import ConfigError, DataError, ExportError
from jseg.export.exported import ExportedFile, ExportedSegmentor, metadata_of
from jseg.export.int8 import calibrated, in_int8, layer_costs, prepared
from jseg.export.layers import layers_of
from jseg.files import write_atomically
from jseg.registry import nearest
from jseg.text import cleaned_text, printable

__all__ = ["CALIBRATE", "JUDGED", "QuantizeOptions", "quantize_file"]

CALIBRATE = 32  # pictures
JUDGED, JUDGED_PX = 4, 256  # calibration pictures that costs of layers are measured on, and the largest side of each
NAMED = 8  # layers in a refusal


@dataclass(frozen=True)
class QuantizeOptions:
    """How a file is quantised.

    Args:
        calibrate: pictures that ranges are taken from, evenly spread over the split; None for `CALIBRATE`, or all where
            there are fewer.
        split: "train", "val" or "test": where they come from.
        images: evaluate on the first so many pictures of the validation set; None for all.
        max_drop: largest loss of mIoU, in points (percent).
        keep: names of layers that stay float32, or patterns such as "backbone.block1.*".
        automatic: leave the costliest layers in float until the loss fits, instead of refusing.
        costs: measure and tell what each layer costs in any case.
    """

    calibrate: int | None = None
    split: str = "train"
    images: int | None = None
    max_drop: float = 1.0
    keep: tuple[str, ...] = ()
    automatic: bool = False
    costs: bool = False


def quantize_file(file: ExportedFile, config: Mapping[str, Any], out: pathlib.Path,
                  options: QuantizeOptions) -> Iterator[str]:
    """Calibrate, quantise, evaluate both files, write; yields lines for the screen.

    Args:
        file: from `open_exported`; its runtime evaluates.
        config: names the data.
        out: the file; what was there before is replaced at the end, or left alone where anything fails.
    Raises:
        ExportError: the file is quantised already, onnx or onnxruntime is missing, a pattern of `keep` fits no layer,
            or int8 costs more than `max_drop`. ConfigError: the data have other classes, or fewer pictures than asked
            for. DataError: a picture or a mask cannot be used.
    """
    proto = prepared(file.content)
    loader, paths = _loader(file, config, options.images), _chosen(config, options)
    names = list(layers_of(proto))
    kept = _matched(names, options.keep, file.path)
    judged: list[np.ndarray] = []
    ranges = calibrated(proto, _inputs(file, config, paths, judged))
    yield f"calibrated on {len(paths)} of the pictures of the {options.split} split"
    before = _evaluated(file, config, loader)
    trial = _Trial(file, config, loader, proto, ranges, before)
    trial.run(names, kept)
    costs: dict[str, float] = {}
    if options.costs or trial.drop > options.max_drop:
        costs = layer_costs(proto, trial.proto, judged, file.meta["output"]["name"], len(file.classes))
    if options.costs:
        yield "what each layer costs alone in int8, in points of mIoU against the float file's labels:"
        yield from (f"  {cost:6.3f}  {name}" for name, cost in costs.items())
    count = 1
    while options.automatic and trial.drop > options.max_drop and count < len(costs):
        yield f"{len(kept)} of {len(names)} layers in float: int8 costs {trial.drop:.2f} points of mIoU"
        kept = [*_matched(names, options.keep, file.path), *list(costs)[:count]]
        trial.run(names, kept)
        count *= 2
    yield from trial.table(options.images is not None)
    if trial.drop > options.max_drop:
        raise ExportError(_refusal(trial.drop, costs, options, out))
    content = _finished(trial, kept, options, len(paths))
    write_atomically(out, content)
    if kept:
        yield f"in float: {', '.join(kept)}"
    yield (f"{out}: {len(names) - len(kept)} of {len(names)} layers in int8, {len(content) / 1e6:.1f} MB (from "
           f"{len(file.content) / 1e6:.1f} MB)")


class _Trial:
    """An int8 file in memory beside its float one: `proto`, result `after`, loss `drop` in points of mIoU."""

    def __init__(self, file: ExportedFile, config: Mapping, loader, proto, ranges, before: dict):
        self.file, self.config, self.loader, self.float, self.ranges = file, config, loader, proto, ranges
        self.before, self.after, self.proto, self.drop = before, before, proto, 0.0

    def run(self, names: Sequence[str], kept: Sequence[str]) -> None:
        """Quantise all but `kept`, and evaluate."""
        self.proto = in_int8(self.float, self.ranges, [name for name in names if name not in kept])
        file = self.file._replace(content=self.proto.SerializeToString())
        self.after = _evaluated(file, self.config, self.loader)
        self.drop = 100 * (self.before["metrics"]["mIoU"] - self.after["metrics"]["mIoU"])

    def table(self, is_part: bool) -> list[str]:
        """IoU of each class before and after, in percent."""
        rows = [(printable(row["name"]), row["IoU"], other["IoU"])
                for row, other in zip(self.before["per_class"], self.after["per_class"])]
        rows.append(("mean", self.before["metrics"]["mIoU"], self.after["metrics"]["mIoU"]))
        width = max(len("class"), *(len(name) for name, _, _ in rows))
        lines = [f"{'class':<{width}}  float32     int8   change"]
        for name, x, y in rows:
            lines += ["-" * len(lines[0])] * (name is rows[-1][0])
            lines.append(f"{name:<{width}}" + ("        -        -        -" if x is None or y is None else
                                               f"  {100 * x:7.2f}  {100 * y:7.2f}  {100 * (y - x):+7.2f}"))
        part = "the first " if is_part else ""
        return [*lines, f"IoU in percent on {part}{self.before['images']} pictures of the validation set, by "
                        f"{self.file.runtime}"]


def _evaluated(file: ExportedFile, config: Mapping, loader) -> dict:
    model = ExportedSegmentor(file, (config.get("model") or {}).get("test_cfg"))
    result = evaluate(model, loader, {"metrics": ["mIoU"]})
    if result["metrics"]["mIoU"] is None:
        raise DataError("no pixel of the pictures has a label that counts; evaluate on other pictures or more of them")
    return result


def _loader(file: ExportedFile, config: Mapping, images: int | None):
    """The validation set, or its first pictures."""
    loader = build_loader(config, "val")
    dataset = loader.dataset
    found = [cleaned_text(str(name)) for name in dataset.classes]
    if found != list(file.classes):
        raise ConfigError(f"{file.path}: gives the {len(file.classes)} classes {_few(file.classes)}, the data have the "
                          f"{len(found)} classes {_few(found)}; name the config of the data it was trained on")
    if images is None or images == len(dataset):
        return loader
    if images > len(dataset):
        raise ConfigError(f"--images is {images}; the validation set has {len(dataset)} pictures")
    if not isinstance(dataset, SegDataset):
        raise ConfigError(f"--images takes the first pictures of one dataset, val_dataloader names a "
                          f"{type(dataset).__name__}; leave --images out")
    return build_loader(with_first_pictures(config, "val", images), "val")


def _few(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:5]) + ", ..." * (len(names) > 5)


def _chosen(config: Mapping, options: QuantizeOptions) -> list[str]:
    """The calibration pictures: evenly spread over the split, each dataset of it once."""
    paths = [part.info(i)["img_path"] for part in leaves(build_dataset(config, options.split))
             for i in range(len(part))]
    count = min(CALIBRATE, len(paths)) if options.calibrate is None else options.calibrate
    if not 1 <= count <= len(paths):
        raise ConfigError(f"--calibrate is {count}; the {options.split} split has {len(paths)} pictures: accepted: 1 to"
                          f" {len(paths)}")
    return [paths[i * len(paths) // count] for i in range(count)]


def _inputs(file: ExportedFile, config: Mapping, paths: Sequence[str], judged: list[np.ndarray]) -> Iterator[
        np.ndarray]:
    """What the network gets for each picture: the whole of it, or its windows.

    Args:
        judged: gets the first input of `JUDGED` pictures, cut to `JUDGED_PX` where the file takes any size.
    """
    preprocessor, transforms, reader = build_preprocessor(config), test_transforms(config), picture_reader(config)
    given: list[np.ndarray] = []
    run = file.runner()

    def noted(images: np.ndarray) -> np.ndarray:
        given.append(images)
        return run(images)
    model = ExportedSegmentor(file, (config.get("model") or {}).get("test_cfg"), run=noted)
    count = min(JUDGED, len(paths))
    places = {i * len(paths) // count for i in range(count)}
    for place, path in enumerate(tqdm(paths, desc="calibrate", unit="picture", disable=None, leave=False)):
        picture = reader.read(path) if isinstance(reader, LoadBands) else as_bgr(path, scale=reader.scale)
        batch = preprocessor.batch([plain_view(picture, transforms, name=str(path))], training=False)
        model.predict(batch.images, batch.metas)
        if place in places:
            judged.append(_centre(given[0], file.meta["input"]))
        yield from given
        given.clear()


def _centre(images: np.ndarray, facts: Mapping) -> np.ndarray:
    """The middle of pictures, at most `JUDGED_PX` a side; all of it for a file of one size."""
    if facts.get("size"):
        return images
    axis, places = 1 if facts["dtype"] == "uint8" else 2, [slice(None)] * 4
    for k in (axis, axis + 1):
        begin = max(0, images.shape[k] - JUDGED_PX) // 2
        places[k] = slice(begin, begin + JUDGED_PX)
    return np.ascontiguousarray(images[tuple(places)])


def _matched(names: Sequence[str], patterns: Sequence[str], path: pathlib.Path) -> list[str]:
    """The layers that patterns name, in the file's order."""
    if not names:
        raise ExportError(f"{path}: has no convolution or product with weights that could be quantised")
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ExportError(f"{path}: --keep {pattern}: no layer of that name{nearest(pattern, names)}; "
                              "--costs prints all names")
    kept = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if len(kept) == len(names):
        raise ExportError(f"{path}: --keep leaves all {len(names)} layers in float; nothing is to be quantised")
    return kept


def _refusal(drop: float, costs: Mapping[str, float], options: QuantizeOptions, out: pathlib.Path) -> str:
    worst = list(costs.items())[:NAMED]
    advice = ("no number of layers in float helps; calibrate on more pictures" if options.automatic else
              f"leave them in float with --keep {' '.join(name for name, _ in worst[:3])}, or let --auto choose")
    return (f"int8 costs {drop:.2f} points of mIoU, more than --max-drop {options.max_drop:g}: {out} was not written. "
            f"The layers that cost most, each alone in int8, in points of mIoU against the float file's labels: "
            f"{', '.join(f'{name} {cost:.2f}' for name, cost in worst)}; {advice}")


def _finished(trial: _Trial, kept: Sequence[str], options: QuantizeOptions, pictures: int) -> bytes:
    """The int8 file with the float file's metadata and how it was made."""
    import onnxruntime
    file, proto = trial.file, trial.proto
    texts = metadata_of(file.content, file.path)
    facts = {"source": {"name": file.path.name, "sha256": hashlib.sha256(file.content).hexdigest()},
             "by": f"onnxruntime {onnxruntime.__version__}", "split": options.split, "pictures": pictures,
             "float": list(kept), "runtime": file.runtime, "images": trial.before["images"],
             "mIoU": {"before": trial.before["metrics"]["mIoU"], "after": trial.after["metrics"]["mIoU"]}}
    texts["jseg"] = json.dumps({**json.loads(texts["jseg"]), "quantized": facts})
    del proto.metadata_props[:]
    for key, value in texts.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "jseg"
    return proto.SerializeToString()
