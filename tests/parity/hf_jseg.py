"""jseg's side of `hf.py`: convert each folder, run on the same JPEG, compare.

    python tests/parity/hf_jseg.py FOLDER      after hf_transformers.py; writes FOLDER/<name>/result.json
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import jseg  # noqa: E402,F401  (prepares the process before Jittor is imported)


def compare(folder: pathlib.Path) -> dict:
    """The result of one job."""
    import jittor as jt

    import jseg.data.datasets  # noqa: F401
    from jseg.convert.checkpoint import convert_checkpoint
    from jseg.engine.predict import InferenceSegmentor
    done = convert_checkpoint(folder / "model", folder / "converted.safetensors")
    keys = len(done.loaded) + len(done.renamed) + len(done.dropped)
    segmentor = InferenceSegmentor(done.out)
    reference = np.load(folder / "out.npz")
    labels = segmentor.infer(folder / "street.jpg")
    pixels = reference["pixels"]
    with jt.no_grad():
        model = segmentor._model
        if "logits" in reference.files:
            theirs = reference["logits"]
            ours = model(jt.array(pixels))
            if tuple(ours.shape) != theirs.shape:  # UPerNet's are given at the input's size there
                ours = jt.nn.interpolate(ours, theirs.shape[2:], mode="bilinear", align_corners=False)
            error = error_of(ours.numpy(), theirs)
        else:
            readings = model.stages[-1](model.features(jt.array(pixels)))[-1]
            error = max(error_of(ours.numpy(), reference[name]) for ours, name in
                        zip(readings, ("class_queries_logits", "masks_queries_logits")))
    total = keys_of(folder / "model")
    return {"keys": total, "unaccounted": total - keys, "dropped": len(done.dropped), "logits": error,
            "labels": float((labels == reference["labels"]).mean()),
            "classes seen": len(np.unique(reference["labels"])), "pixels": pixels_error(segmentor, folder, pixels),
            "referee": (folder.parent / "referee.txt").read_text()}


def error_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the range of values."""
    return float(np.abs(ours - theirs).max() / (theirs.max() - theirs.min()))


def pixels_error(segmentor, folder: pathlib.Path, theirs: np.ndarray) -> float:
    """Largest difference between what the two networks see, over the range; 1 where the sizes differ."""
    from jseg.data import io
    from jseg.data.tta import plain_view
    view = plain_view(io.read_image(folder / "street.jpg"), segmentor._transforms)
    ours = segmentor._preprocessor.batch([view], training=False).images
    return error_of(ours, theirs) if ours.shape == theirs.shape else 1.0


def keys_of(folder: pathlib.Path) -> int:
    """How many tensors the files of a folder hold."""
    from safetensors import safe_open
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            count += len(file.keys())
    for path in folder.glob("*.bin"):
        from jseg.convert.torch_file import read_torch_file
        count += len(read_torch_file(path))
    return count


def main() -> None:
    """Run every job of a folder."""
    root = pathlib.Path(sys.argv[1])
    for job in json.loads((root / "jobs.json").read_text()):
        folder = root / job["name"]
        failed = folder / "failed.txt"
        try:
            result = {"failed": f"referee: {failed.read_text()}"} if failed.exists() else compare(folder)
        except (jseg.errors.JsegError, ValueError) as error:
            result = {"failed": f"jseg: {type(error).__name__}: {error}"[:300]}
        (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
