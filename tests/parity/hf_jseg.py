"""jseg's side of `hf.py`: convert each folder, run on the same JPEG, compare.

    python tests/parity/hf_jseg.py FOLDER      after hf_transformers.py; writes FOLDER/<name>/result.json
"""

from __future__ import annotations

import json
import pathlib
import sys
from unittest import mock

import numpy as np
from gradients import gradient_errors, uniform

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
    step = training_step(folder, model, done, pixels) if (folder / "step.npz").exists() else {}
    return {**step, "keys": total, "unaccounted": total - keys, "dropped": len(done.dropped), "logits": error,
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
    reference = np.load(folder / "out.npz")
    if "patch_offsets" in reference.files:  # windows of the longer side
        ours = np.concatenate([ours[:, :, begin:end] if ours.shape[2] > ours.shape[3] else ours[:, :, :, begin:end]
                               for _, begin, end in reference["patch_offsets"]])
    return error_of(ours, theirs) if ours.shape == theirs.shape else 1.0


def training_step(folder: pathlib.Path, model, done, pixels: np.ndarray) -> dict:
    """Largest relative error of a term of the loss, and of a gradient by norm, with where it is."""
    import jittor as jt

    from jseg.layers import named_parameters
    from jseg.ops import ranks
    reference, parts, names = np.load(folder / "step.npz"), {}, {"loss_cross_entropy": "loss_cls"}
    model.train()
    model.decode_head.attn_mask_probs.update(jt.array(reference["probs"].astype(np.float32)))
    with mock.patch.object(ranks, "rand", lambda shape: jt.array(uniform(*shape))):
        found = model.loss(jt.array(pixels), jt.array(reference["labels"]))
    terms = [key.split("/")[1:] for key in reference.files if key.startswith("losses/")]
    last, errors = max(int(i) for i, _ in terms), []
    for i, name in terms:
        ours = found[f"decode.{'' if int(i) == last else f'd{i}.'}{names.get(name, name)}"].item()
        theirs = float(reference[f"losses/{i}/{name}"])
        errors.append(abs(ours - theirs) / abs(theirs))
    parameters = named_parameters(model)
    found_gradients = jt.grad(found["loss"], list(parameters.values()))
    gradients = {key: value.numpy() for key, value in zip(parameters, found_gradients)}
    for source, key in {**{key: key for key in done.loaded}, **done.renamed}.items():
        if f"gradient/{source}" in reference.files:
            parts.setdefault(key, []).append(reference[f"gradient/{source}"])
    theirs = {key: np.concatenate(pieces).reshape(gradients[key].shape) if len(pieces) > 1
              else pieces[0].reshape(gradients[key].shape) for key, pieces in parts.items()}
    apart = gradient_errors(gradients, theirs)
    worst = max(apart, key=apart.get)
    return {"losses": max(errors), "terms": len(errors), "gradients": apart[worst], "worst gradient": worst,
            "gradients compared": len(apart), "gradients without partner": sorted(set(gradients) - set(theirs))}


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
