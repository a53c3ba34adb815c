"""Run an exported ONNX file as a model of jseg: the same pictures in, the same way from scores to labels.

The file's metadata hold config, classes and palette, so that `jseg predict`, `jseg val` and `InferenceSegmentor` treat
it as a checkpoint. Files of logits and of probabilities serve everything that a checkpoint does (windows, test-time
augmentation, probabilities): the logarithm of a probability differs from a logit by one number per pixel, which moves
neither the largest class nor the softmax. A file of labels gives labels: where the picture's own size is another than
the network's input, each pixel takes the label that has the largest share of it.

Deviation: a file that normalises inside gets uint8 pictures, so that what `data_preprocessor.test_cfg` pads with is the
nearest colour to `pad_val` on the normalised scale.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, NamedTuple

import jittor as jt
import numpy as np

from jseg.config import last_head
from jseg.data.build import build_preprocessor
from jseg.data.tta import test_transforms
from jseg.engine.limits import without_files
from jseg.engine.model_file import config_told, stored_classes, stored_config, stored_palette
from jseg.errors import ConfigError, ExportError
from jseg.export.onnx_model import FORMAT, ONNX_EXTRA, OUTPUTS
from jseg.files import read_regular
from jseg.models.segmentor import Segmentor
from jseg.text import cleaned_text

__all__ = ["RUNTIMES", "ExportedFile", "ExportedSegmentor", "metadata_of", "open_exported"]

RUNTIMES = ("onnxruntime", "openvino")
_METADATA = 14  # number of ModelProto's field of names and texts
_MOST_METADATA = 16 << 20


class ExportedFile(NamedTuple):
    """An opened file: `config`, K `classes`, `palette` (K, 3) uint8 RGB, `meta` as stored; the fields of a
    `model_file.ModelFile` that inference reads.
    """

    path: Path
    content: bytes
    runtime: str
    config: dict[str, Any]
    classes: list[str]
    palette: np.ndarray
    meta: dict[str, Any]

    def build(self, *, impl: str = "auto") -> tuple:
        """The segmentor, its preprocessor, the transforms of its test pipeline.

        Args:
            impl: means nothing here.
        """
        with config_told(self.path):
            config = without_files(self.config)
            preprocessor, transforms = build_preprocessor(config), test_transforms(config)
            model = ExportedSegmentor(self, self.config["model"].get("test_cfg"))
        return model, preprocessor, transforms

    def runner(self) -> Callable[[np.ndarray], np.ndarray]:
        """Open the file with its runtime: a function from pictures, as the file takes them, to its output.

        Raises:
            ExportError: the runtime is not installed or refuses the file.
        """
        return (_onnxruntime if self.runtime == "onnxruntime" else _openvino)(self)


def open_exported(path: str | os.PathLike, runtime: str = "onnxruntime") -> ExportedFile:
    """Read an ONNX file that jseg wrote.

    Args:
        runtime: what runs it, of `RUNTIMES`.
    Raises:
        ExportError: no ONNX file, or none of jseg's. CheckpointError: a config, classes or palette that cannot be
            meant. ConfigError: another runtime.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime is {runtime!r}; accepted: {', '.join(RUNTIMES)}")
    path = Path(path)
    try:
        content = read_regular(path, what="ONNX file", error=ExportError)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); give the path of an ONNX file") from error
    text = metadata_of(content, path).get("jseg")
    try:
        meta = json.loads(text) if text else None
    except ValueError:
        meta = None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or not _known(meta):
        raise ExportError(f"{path}: holds no metadata of 'jseg export', so its input and classes are unknown; make the "
                          f"file with 'jseg export CHECKPOINT {path.name}'")
    config = stored_config(meta, path)
    count = last_head(config["model"]).get("num_classes")
    meta["classes"] = [cleaned_text(str(name)) for name in meta.get("classes") or []]
    return ExportedFile(path, content, runtime, config, stored_classes(meta, count, path),
                        stored_palette(meta, count, path), meta)


def _known(meta: dict) -> bool:
    """Whether the blocks that are read later are there."""
    given, found = meta.get("input"), meta.get("output")
    return (isinstance(given, dict) and given.get("dtype") in ("uint8", "float32")
            and isinstance(found, dict) and found.get("name") in OUTPUTS
            and isinstance(meta.get("preprocessing"), dict))


def metadata_of(content: bytes, path: str | os.PathLike) -> dict[str, str]:
    """Names and texts of an ONNX file, read without any package.

    Raises:
        ExportError: it is no ONNX file.
    """
    found: dict[str, str] = {}
    try:
        for number, value in _fields(memoryview(content)):
            if number == _METADATA and isinstance(value, memoryview) and len(value) <= _MOST_METADATA:
                pair = {key: bytes(text).decode() for key, text in _fields(value) if isinstance(text, memoryview)}
                found[pair.get(1, "")] = pair.get(2, "")
    except (ValueError, IndexError) as error:
        raise ExportError(f"{path}: is no whole ONNX file ({error}); copy or export it again") from error
    return found


def _fields(data: memoryview):
    """The fields of a protobuf message: (number, whole number or bytes)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, length = key & 7, {1: 8, 5: 4}.get(key & 7)
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError(f"byte {at} belongs to no field")
        yield key >> 3, data[at:at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"byte {at} belongs to no number")


class ExportedSegmentor(Segmentor):
    """A segmentor whose scores an ONNX runtime computes.

    Args:
        file: the opened file.
        test_cfg: as in `Segmentor`.
        run: what runs the file, pictures as the file takes them -> its output; None for `file.runner()`.
    Raises:
        ExportError: the runtime is not installed or refuses the file; "slide" with a file of labels.
    """

    precisions = ("float32",)  # a file is computed as it was written

    def __init__(self, file: ExportedFile, test_cfg: dict | None = None, *,
                 run: Callable[[np.ndarray], np.ndarray] | None = None):
        super().__init__(test_cfg=test_cfg)
        self.num_classes = len(file.classes)
        self.align_corners = bool(file.meta["output"].get("align_corners"))
        self.ignore_index = last_head(file.config["model"]).get("ignore_index", 255)
        self._name, self._meta = str(file.path), file.meta
        self._run = run or file.runner()
        if self.test_cfg["mode"] == "slide" and self._gives == "labels":
            raise ExportError(self._labels_only("windows (test mode slide)"))

    @property
    def _gives(self) -> str:
        return self._meta["output"]["name"]

    def _labels_only(self, wish: str) -> str:
        return (f"{self._name}: gives labels, and {wish} need scores; export the checkpoint with --output logits, or "
                "use --mode whole")

    def class_scores(self, images: jt.Var) -> jt.Var:
        """(N, K, h, w) of normalised pictures; of a file of labels 1 for the class and 0 for the others."""
        found = self._outputs(images.numpy())
        if self._gives == "probabilities":
            found = np.log(np.maximum(found, np.float32(1e-37)))
        elif self._gives == "labels":
            found = (found[:, None] == np.arange(self.num_classes, dtype=found.dtype)[:, None, None]).astype(np.float32)
        return jt.array(np.ascontiguousarray(found, np.float32))

    def predict_augmented(self, inputs, *, with_prob: bool = False, thresholds: np.ndarray | None = None) -> list:
        """As `Segmentor.predict_augmented`.

        Raises:
            ExportError: several versions or probabilities from a file of labels; a picture of another size than the
                file takes.
        """
        if self._gives == "labels" and (with_prob or thresholds is not None or len(inputs) > 1):
            raise ExportError(self._labels_only("several versions of a picture" if len(inputs) > 1
                                                else "probabilities"))
        return super().predict_augmented(inputs, with_prob=with_prob, thresholds=thresholds)

    def scores_augmented(self, inputs, *, softmax: bool = True) -> list[np.ndarray]:
        """As `Segmentor.scores_augmented`.

        Raises:
            ExportError: a file of labels; a picture of another size than the file takes; logits, from a file of
                probabilities.
        """
        if self._gives == "labels":
            raise ExportError(self._labels_only("scores"))
        if not softmax and self._gives != "logits":
            raise ExportError(f"{self._name}: gives probabilities, which have no logits; export the checkpoint with "
                              "--output logits")
        return super().scores_augmented(inputs, softmax=softmax)

    def _outputs(self, images: np.ndarray) -> np.ndarray:
        size = self._meta["input"].get("size")
        if size and list(images.shape[2:]) != size:
            h, w = images.shape[2:]
            raise ExportError(f"{self._name}: takes pictures of {size[0]}x{size[1]}, after the config's transforms this"
                              f" one is {h}x{w}; export with --dynamic, or with --size {h} {w}")
        given = self._pictures(images) if self._meta["input"]["dtype"] == "uint8" else images
        if not size:
            return self._run(given)
        return np.concatenate([self._run(given[i:i + 1]) for i in range(len(given))])

    def _pictures(self, images: np.ndarray) -> np.ndarray:
        """Normalised (N, 3, H, W) back to the uint8 pictures (N, H, W, 3) they were made of."""
        facts = self._meta["preprocessing"]
        if facts.get("mean") is not None:
            mean, std = (np.asarray(facts[key], np.float32).reshape(1, 3, 1, 1) for key in ("mean", "std"))
            images = images * std + mean
        if facts.get("order") != facts.get("model_order"):
            images = images[:, ::-1]
        return np.ascontiguousarray(np.clip(np.rint(images), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def _onnxruntime(file: ExportedFile):
    """A function from the input to the output, run by onnxruntime on the CPU."""
    from jseg.export.verify import open_session
    session = open_session(file.content)
    if session is None:
        raise ExportError(f"{file.path}: running it needs onnxruntime: {ONNX_EXTRA}; or --runtime openvino")
    names = [file.meta["output"]["name"]]

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return session.run(names, {"image": images})[0]
        except Exception as error:  # onnxruntime's classes have no common base
            told = " ".join(str(error).split())[:300]
            raise ExportError(f"{file.path}: onnxruntime fails on pictures {images.shape}: {told}") from error
    return run


def _openvino(file: ExportedFile):
    """The same, run by OpenVINO in float32 on the CPU."""
    try:
        import openvino
    except ImportError as error:
        raise ExportError(f"{file.path}: --runtime openvino needs OpenVINO ({error}): "
                          "pip install 'jseg-jittor[openvino]'") from error
    core = openvino.Core()
    try:
        model = core.read_model(model=file.content)
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise ExportError(f"{file.path}: OpenVINO refuses it: {' '.join(str(error).split())[:300]}") from error

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return np.array(compiled([images])[0])
        except RuntimeError as error:
            raise ExportError(f"{file.path}: OpenVINO fails on pictures {images.shape}: {str(error)[:300]}") from error
    return run
