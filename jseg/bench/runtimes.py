"""One checkpoint over runtimes: the same pictures through jseg, ONNX Runtime, OpenVINO and PyTorch, each in a process.

Every runtime's label maps are compared with jseg's before it is timed; one that is wrong shows that instead. Those that
are right are timed in turn (A B C A B C), with the same number of threads. Peak memory is that of the process after the
timing; then each gives mIoU on a validation set, as `jseg val` counts it for the same file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import Any, Callable

import cv2
import jittor as jt
import numpy as np

from jseg.bench.jseg_side import starting_bases
from jseg.bench.opponents import BF16_LABELS, not_installed
from jseg.bench.pairing import interleave, ratio, summary
from jseg.bench.side import HERE, Side, SideError, jseg_command
from jseg.data import io
from jseg.data.loader import Loader
from jseg.data.render import render_scene
from jseg.engine.evaluate import evaluate
from jseg.engine.limits import without_files
from jseg.engine.model_file import ModelFile
from jseg.errors import ConfigError, ExportError, JsegError
from jseg.export.exported import ExportedFile, ExportedSegmentor, open_exported
from jseg.export.mmseg_file import write_mmseg_file
from jseg.export.onnx_model import OnnxOptions
from jseg.export.verify import normalised
from jseg.export.write_onnx import write_onnx

__all__ = ["ACCEPTED", "Comparison", "Entry", "compare_runtimes", "planned_entries"]

# share of pixels with jseg's label that a result needs
ACCEPTED = {"float32": 0.995, "bf16": 1 - BF16_LABELS, "int8": 0.9}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared.

    Args:
        file: the checkpoint.
        size: (height, width) in pixels of the pictures that are timed, one at a time.
        threads: of every process.
        repeat: turns.
        loader: evaluation pictures with labels, for mIoU; None leaves it unmeasured.
        int8: an int8 ONNX file of this checkpoint.
        torch: a Python with PyTorch and MMSegmentation.
    """

    file: ModelFile
    size: tuple[int, int]
    threads: int
    repeat: int = 5
    loader: Loader | None = None
    int8: pathlib.Path | None = None
    torch: str | None = None


@dataclasses.dataclass
class Entry:
    """One row: a runtime and a precision. `row` is JSON-able and is filled as the figures come."""

    kind: str  # "jseg", "onnxruntime", "openvino" or "torch"
    precision: str
    file: Any = None  # ExportedFile; None for jseg
    row: dict = dataclasses.field(default_factory=dict)
    side: Side | None = None

    def __post_init__(self):
        names = {"jseg": "jseg", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}
        self.row = {"runtime": names[self.kind], "precision": self.precision}

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"{self.row['runtime']} {self.precision}"

    @property
    def runs(self) -> bool:
        """Whether nothing has gone wrong so far."""
        return "failed" not in self.row


def planned_entries(job: Comparison) -> list[Entry]:
    """The rows in order; those whose packages are missing have "failed" already."""
    found = [Entry("jseg", "float32"), *[Entry("torch", "float32")] * bool(job.torch), Entry("onnxruntime", "float32"),
             *[Entry("onnxruntime", "int8")] * bool(job.int8), Entry("openvino", "float32"), Entry("openvino", "bf16"),
             *[Entry("openvino", "int8")] * bool(job.int8)]
    for entry in found:
        if entry.kind in ("onnxruntime", "openvino"):
            needed = [entry.kind] if entry.precision == "int8" else [entry.kind, "onnx"]
            if missing := not_installed(needed):
                entry.row["failed"] = missing
    return found


def compare_runtimes(job: Comparison, *, say: Callable[[str], None] = print) -> list[dict]:
    """Check, time and evaluate every runtime that is here.

    Args:
        say: takes lines that tell of progress.
    Returns:
        the rows, jseg's first: "runtime", "precision", and as far as it came "version", "file_bytes", "import_s" (start
        of the process and import), "open_s", "first_s", "equal" (share of pixels with jseg's label), "median_ms" and
        its quartiles, "ratio" (how many times jseg's time), "peak_bytes", "miou" (0 to 1) or "miou_failed";
        "failed" says why a runtime has no time.
    Raises:
        ConfigError: `int8` is no file of labels. ExportError: it is no ONNX file of jseg's. SideError: jseg's own side
            fails.
    """
    int8 = _int8_file(job)
    entries = planned_entries(job)
    with tempfile.TemporaryDirectory(prefix="jseg-benchmark-") as name, contextlib.ExitStack() as sides:
        folder = pathlib.Path(name)
        model, preprocessor, _ = job.file.build(mode="whole")
        bgr = _timed_picture(job)
        images = normalised(bgr, preprocessor)
        _write_files(job, entries, int8, model, folder, say)
        expected = None
        for number, entry in enumerate(entry for entry in entries if entry.runs):
            say(f"{entry.name}: starts")
            try:
                labels = _started(job, entry, bgr, images, model, folder, number, sides)
            except SideError as error:
                if entry.kind == "jseg":
                    raise
                entry.row["failed"] = str(error).partition(": ")[2] or str(error)
                continue
            expected = labels if expected is None else expected
            _judge(entry, labels, expected)
        _time(entries, job.repeat, say)
        if job.loader is not None:
            for entry in entries:
                if entry.runs:
                    _evaluate(job, entry, model, folder)
                    say(f"{entry.name}: mIoU {entry.row.get('miou', 'not known')}")
    return [entry.row for entry in entries]


def _int8_file(job: Comparison) -> ExportedFile | None:
    """The int8 file, opened; it has to give labels of pictures of the size that is timed."""
    if job.int8 is None:
        return None
    file = open_exported(job.int8)
    given, size = file.meta["output"]["name"], file.meta["input"].get("size")
    if given != "labels":
        raise ConfigError(f"--int8 {job.int8}: gives {given}, and what is timed are label maps; make it with --output "
                          "labels")
    if size and tuple(size) != job.size:
        raise ConfigError(f"--int8 {job.int8}: takes pictures of {size[0]}x{size[1]}; give --size {size[0]} {size[1]}")
    return file


def _timed_picture(job: Comparison) -> np.ndarray:
    """The picture (1, H, W, 3) uint8 BGR: the first of the data, else a rendered scene."""
    h, w = job.size
    if job.loader is None:
        return render_scene(job.size, np.random.default_rng(0))[0][None]
    picture = io.read_image(job.loader.dataset.info(0)["img_path"])
    return np.ascontiguousarray(cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA)[None])


def _write_files(job: Comparison, entries: list[Entry], int8: ExportedFile | None, model, folder: pathlib.Path,
                 say: Callable[[str], None]) -> None:
    """Export what the entries run, and fill in their files; an entry whose file cannot be written has failed."""
    made: dict[str, ExportedFile | JsegError] = {}

    def onnx_file() -> ExportedFile:
        say("writing the ONNX file: float32, any size, labels")
        for _ in write_onnx(job.file, folder / "model.onnx", OnnxOptions(), verify=False):
            pass  # compared with jseg's results later
        return open_exported(folder / "model.onnx")

    def torch_file() -> ExportedFile:
        for _ in write_mmseg_file(job.file, folder / "model.pth"):
            pass
        meta = {"input": {"dtype": "float32"}, "output": {"name": "logits"}, "preprocessing": {}}
        bases = starting_bases(model)
        if bases.size:
            np.save(folder / "bases.npy", bases)
        return ExportedFile(folder / "model.pth", b"", "torch", job.file.config, job.file.classes, job.file.palette,
                            meta)

    for entry in (entry for entry in entries if entry.runs and entry.kind != "jseg"):
        kind = "int8" if entry.precision == "int8" else "torch" if entry.kind == "torch" else "onnx"
        if kind not in made:
            try:
                made[kind] = int8 if kind == "int8" else torch_file() if kind == "torch" else onnx_file()
            except ExportError as error:
                made[kind] = error
        if isinstance(made[kind], JsegError):
            entry.row["failed"] = str(made[kind])
        else:
            entry.file = made[kind]


def _started(job: Comparison, entry: Entry, bgr: np.ndarray, images: np.ndarray, model, folder: pathlib.Path,
             number: int, sides: contextlib.ExitStack) -> np.ndarray:
    """Start a side, open its file, run it once; its label maps (1, H, W)."""
    began = time.perf_counter()
    command = (jseg_command() if entry.kind == "jseg"
               else [job.torch if entry.kind == "torch" else sys.executable, str(HERE / "runtime_side.py"), entry.kind])
    entry.side = sides.enter_context(Side(entry.name, command, threads=job.threads))
    entry.row.update(import_s=time.perf_counter() - began, version=entry.side.ready["side"])
    if entry.kind == "jseg":
        words = {**_jseg_inputs(job, images, folder), "mode": "infer", "warm": 1}
        path = job.file.path
    else:
        place, path = folder / f"images_{number}.npy", entry.file.path
        np.save(place, _given(entry.file, bgr, images))
        bases = folder / "bases.npy"
        words = {"file": str(path.absolute()), "images": str(place), "threads": job.threads,
                 "precision": entry.precision, "bases": str(bases) if bases.exists() else None}
    opened = entry.side.ask("open", **words)
    entry.row.update(file_bytes=path.stat().st_size, open_s=opened["built_s"], first_s=opened["seconds"][0])
    out = folder / f"labels_{number}.npz"
    entry.side.ask("results", out=str(out))
    with np.load(out) as found:
        return found["label_maps"]


def _jseg_inputs(job: Comparison, images: np.ndarray, folder: pathlib.Path) -> dict[str, str]:
    """Config, weights and pictures as `jseg_side` takes them."""
    config = {**job.file.config, "model": {**without_files(job.file.config["model"]), "test_cfg": _whole(job)}}
    words = {name: str(folder / f"jseg_{name}") for name in ("config", "weights.npz", "inputs.npz")}
    pathlib.Path(words["config"]).write_text(json.dumps(config), encoding="utf-8")
    np.savez(words["weights.npz"], **job.file.state)
    np.savez(words["inputs.npz"], images=images, labels=np.zeros((len(images), *images.shape[2:]), np.int32))
    return {name.partition(".")[0]: path for name, path in words.items()}


def _whole(job: Comparison) -> dict:
    """The checkpoint's `test_cfg` for whole pictures."""
    return {**(job.file.config["model"].get("test_cfg") or {}), "mode": "whole"}


def _given(file: ExportedFile, bgr: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The picture as the file takes it."""
    if file.meta["input"]["dtype"] == "float32":
        return images
    return bgr if file.meta["preprocessing"].get("order") == "bgr" else np.ascontiguousarray(bgr[..., ::-1])


def _judge(entry: Entry, labels: np.ndarray, expected: np.ndarray) -> None:
    """Compare label maps with jseg's; a wrong result is told under "failed"."""
    if labels.shape != expected.shape:
        entry.row.update(equal=0.0, failed=f"wrong: label maps {labels.shape}, jseg's are {expected.shape}")
        return
    equal, least = float((labels == expected).mean()), ACCEPTED[entry.precision]
    entry.row["equal"] = equal
    if equal < least:
        entry.row["failed"] = f"wrong: {100 * equal:.1f} % of the pixels equal jseg's, {100 * least:.1f} % are asked"


def _time(entries: list[Entry], repeat: int, say: Callable[[str], None]) -> None:
    """Time those that are right in turn; one that fails on the way is left out."""
    chosen = {entry.name: entry for entry in entries if entry.runs}

    def runner(entry: Entry):
        def run(count: int) -> list[float]:
            if entry.runs:
                try:
                    return entry.side.run(count)
                except SideError as error:
                    if entry.kind == "jseg":
                        raise
                    entry.row["failed"] = str(error)
            return [float("inf")] * count  # keeps its place in the turns
        return run

    say(f"timing {len(chosen)} runtimes in turn, {repeat} times")
    visits = interleave({name: runner(entry) for name, entry in chosen.items()}, repeat)
    ours = next(iter(chosen))
    for name, entry in chosen.items():
        if entry.runs:
            entry.row.update(**summary(visits[name]), ratio=ratio(visits[ours], visits[name]))
            entry.row["peak_bytes"] = entry.side.ask("peak")["bytes"]


def _evaluate(job: Comparison, entry: Entry, model, folder: pathlib.Path) -> None:
    """mIoU of a side on the validation set, jseg's own by the model in this process."""
    place = {name: str(folder / f"evaluated_{name}.npy") for name in ("images", "out")}

    def run(images: np.ndarray) -> np.ndarray:
        np.save(place["images"], images)
        entry.side.ask("infer", **place)
        return np.load(place["out"])

    try:
        if entry.kind != "jseg":
            model = ExportedSegmentor(entry.file, _whole(job), run=run)
        with jt.no_grad():
            result = evaluate(model, job.loader, {"metrics": ["mIoU"]}, progress=False)
        entry.row.update(miou=result["metrics"]["mIoU"], images=result["images"])
    except (ExportError, SideError) as error:  # a picture of another size than the file takes, or too large a one
        entry.row["miou_failed"] = str(error)
