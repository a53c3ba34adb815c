"""jseg's side of `make parity-zoo`: convert each checkpoint, load it strictly, run the same, compare.

    python tests/parity/zoo_jseg.py FOLDER       after zoo_mmseg.py; writes FOLDER/<name>/result.json

The weights reach jseg through the converted file alone. A result says at which step a model failed: referee, translate
and convert, run.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import time
from unittest import mock

import numpy as np
from compare_jseg import error_of
from gradients import gradient_errors, uniform

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import jseg  # noqa: E402,F401  (prepares the process before Jittor is imported)


def still(model) -> None:
    """Switch off everything random in training."""
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


def compare(folder: pathlib.Path, job: dict) -> dict:
    """The result of one job; a ValueError or JsegError names the step that failed."""
    import jittor as jt

    from jseg.convert.checkpoint import convert_checkpoint
    from jseg.engine.checkpoint import load_into, load_weights
    from jseg.layers import named_parameters
    from jseg.layers.init import without_values
    from jseg.models import build_model, derived_parts, remap_keys
    reference = np.load(folder / "reference.npz")
    facts = json.loads(str(reference["facts"]))
    conversion = convert_checkpoint(folder / "checkpoint.pth", folder / "converted.safetensors")
    state, meta = load_weights(conversion.out)
    with without_values():
        model = build_model(meta["config"]["model"])
    load_into(model, state)
    trainable = sum(value.numel() for value in named_parameters(model).values() if not value.is_stop_grad())
    model.eval()
    derived = {prefix + name for prefix, (_, names) in derived_parts(meta["config"]).items() for name in names}
    ours = {key: list(value.shape) for key, value in model.state_dict().items() if key not in derived}
    # Jittor has no scalars; a class may name its weights otherwise than MMSegmentation
    theirs = remap_keys({key: shape or [1] for key, shape in facts["keys"].items()}, meta["config"])
    result = {"parameters": trainable, "keys equal": ours == theirs and trainable == facts["parameters"],
              "notes": conversion.notes}
    pictures, metas = reference["pictures"], facts["metas"]
    size = tuple(pictures.shape[2:])
    with jt.no_grad():
        scores = model(jt.array(pictures))
        scores = (jt.nn.interpolate(scores, size, mode="bilinear", align_corners=model.align_corners)
                  if tuple(scores.shape[2:]) != size else scores)
        theirs = reference["logits"]
        result["logits"] = (error_of(scores.numpy() if theirs.shape[1] > 1 else scores.numpy()[:, 1:], theirs)
                            if job.get("logits", True) else 0.0)
    model.test_cfg = {"mode": "whole"}
    result["whole"] = equal_share(model.predict(pictures, metas), reference["whole"])
    if "slide" in reference.files:
        model.test_cfg = {**facts["slide"], "crop_size": tuple(facts["slide"]["crop_size"]),
                          "stride": tuple(facts["slide"]["stride"])}
        result["slide"] = equal_share(model.predict(pictures, metas), reference["slide"])
    result["classes seen"] = len(np.unique(reference["whole"]))
    if job.get("train"):
        result.update(training(meta["config"]["model"], state, reference, job))
    return result


def training(config: dict, state: dict, reference, job: dict) -> dict:
    """Losses term by term, gradients and running statistics of one step; and the gradients with smooth activations."""
    from jseg.models import remap_keys
    model = build_still(config, state)
    found, gradients = training_step(model, reference)
    terms = {key: float(value.mean()) for key, value in reference_group(reference, "losses/").items()}
    losses = {key: abs(found[key].item() - value) / max(abs(value), 1e-6)
              for key, value in terms.items() if "acc" not in key and key in found}
    state_after = model.state_dict()
    expected = remap_keys(reference_group(reference, "running/"), config)
    running = {key: error_of(state_after[key].numpy(), value) for key, value in expected.items()}
    result = {"loss terms": sorted(terms) == sorted(key for key in found if key != "loss"),
              "losses": max(losses.values(), default=float("inf")),
              "running statistics": max(running.values(), default=0.0)}
    result.update(gradient_facts("gradients", gradients, remap_keys(reference_group(reference, "gradient/"), config)))
    with smooth_relu() if job.get("smooth", True) else contextlib.nullcontext():
        _, gradients = training_step(build_still(config, state), reference)
    result.update(gradient_facts("smooth gradients", gradients,
                                 remap_keys(reference_group(reference, "smooth/gradient/"), config)))
    result["gradients of torch"] = float(reference["stray"])
    result["smooth gradients of torch"] = float(reference["smooth_stray"])
    return result


def build_still(config: dict, state: dict):
    """The model in training mode with these weights and nothing random."""
    from jseg.engine.checkpoint import load_into
    from jseg.models import build_model
    model = build_model(config)
    load_into(model, state)
    still(model)
    model.train()
    return model


def training_step(model, reference) -> tuple[dict, dict[str, np.ndarray]]:
    """(terms of the loss, gradients by parameter name)."""
    import jittor as jt

    from jseg.layers import named_parameters
    with shared_draws():
        found = model.loss(jt.array(reference["pictures"]), jt.array(reference["labels"]))
    parameters = named_parameters(model)
    return found, {key: g.numpy() for key, g in zip(parameters, jt.grad(found["loss"], list(parameters.values())))}


@contextlib.contextmanager
def shared_draws():
    """Training draws the numbers that MMSegmentation's does (zoo_mmseg.shared_draws)."""
    import jittor as jt

    from jseg.models.heads.ham_head import NMF2D
    from jseg.ops import ranks
    with mock.patch.object(ranks, "rand", lambda shape: jt.array(uniform(*shape))), \
            mock.patch.object(NMF2D, "starting_bases", NMF2D.fixed_bases):
        yield


def gradient_facts(name: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict:
    """The worst error by norm, where it is, and what has a gradient on this side alone."""
    errors = gradient_errors(ours, theirs)
    worst = max(errors, key=errors.get)
    untouched = [key for key in ours if key not in theirs and np.abs(ours[key]).max() > 0]
    return {name: errors[worst], f"worst of {name}": worst, f"{name} compared": len(errors),
            f"{name} without partner": untouched}


def reference_group(reference, prefix: str) -> dict[str, np.ndarray]:
    """Entries of reference.npz under a prefix, by the rest of their names."""
    return {key[len(prefix):]: reference[key] for key in reference.files if key.startswith(prefix)}


@contextlib.contextmanager
def smooth_relu():
    """ReLU and ReLU6 become GELU in all of jseg, fused into norms too, HSwish Swish and HSigmoid a sigmoid
    (why: zoo_mmseg.smooth_relu).
    """
    from jseg import ops
    from jseg.layers import activation
    norm, relu, plain, hard_sigmoid = ops.norm, activation.relu, dict(activation._PLAIN), activation.hard_sigmoid
    holders = [module for name, module in list(sys.modules.items())
               if name.startswith("jseg.") and getattr(module, "relu", None) is relu]

    def smooth_norm(*args, **words):
        return norm(*args,
                    **{**words, "activation": "gelu" if words.get("activation") == "relu" else words.get("activation")})

    activation._PLAIN.update(ReLU=activation.gelu, ReLU6=activation.gelu, HSwish=activation.swish,
                             Hardswish=activation.swish)
    activation.hard_sigmoid = lambda x, **_: activation.jt.sigmoid(x)
    ops.norm = smooth_norm
    for module in holders:
        module.relu = activation.gelu
    try:
        yield
    finally:
        activation._PLAIN.update(plain)
        activation.hard_sigmoid = hard_sigmoid
        ops.norm = norm
        for module in holders:
            module.relu = relu


def equal_share(ours: list, theirs: np.ndarray) -> float:
    """Share of equal pixels."""
    return float(np.mean([np.mean(a == b) for a, b in zip(ours, theirs)]))


def main(folder: pathlib.Path) -> None:
    """Write result.json for every job."""
    import jittor as jt

    import jseg.data.datasets  # noqa: F401
    for job in json.loads((folder / "jobs.json").read_text()):
        own, began = folder / job["name"], time.time()
        if not (own / "reference.npz").exists():
            text = (own / "error.txt").read_text().strip().splitlines() if (own / "error.txt").exists() else [
                "nothing written"]
            result = {"failed": f"referee: {text[-1]}"}
        else:
            try:
                with jt.flag_scope(lazy_execution=0):
                    result = compare(own, job)
            except Exception as error:
                result = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        result["seconds"] = round(time.time() - began, 1)
        (own / "result.json").write_text(json.dumps(result))
        jt.gc()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
