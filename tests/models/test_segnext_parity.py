"""SegNeXt against mmsegmentation 1.2.2: the golden file, and (with JSEG_REFEREE_PYTHON) every size live.

Limits: logits within 1e-4 of the reference's range, gradients within 1e-3 relative by norm, at least 99.9 % equal
labels. A bias before BatchNorm has a zero gradient in theory and noise in practice: a bias is measured by at least a
hundredth of the gradient of its own layer's weight.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jittor as jt
import numpy as np
import pytest

from jseg.layers import count_parameters, named_parameters
from jseg.models import build_model
from jseg.models.heads.ham_head import NMF2D

PARITY = pathlib.Path(__file__).resolve().parents[1] / "parity"
sys.path.insert(0, str(PARITY))
import segnext_cases as shared  # noqa: E402

pytestmark = pytest.mark.usefixtures("few_kernels")
REFEREE = os.environ.get("JSEG_REFEREE_PYTHON")
NAMES = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
# of the reference's norm; another processor's rounding may send a value that is 0 to seven digits through a ReLU
GRADIENT_LIMIT = float(os.environ.get("JSEG_TEST_GRADIENT_LIMIT", 1e-3))


@pytest.fixture(scope="module")
def golden() -> dict:
    with np.load(shared.GOLDEN) as file:
        return dict(file)


def build(name: str):
    """The case's jseg model with the shared weights, loaded strictly."""
    case = shared.CASES[name]
    head = {"type": "LightHamHead", "in_index": [1, 2, 3], "num_classes": case["classes"], "dropout_ratio": 0.0,
            "norm_cfg": {"type": "GN", "num_groups": 32}, **case["head"]}
    head["ham_kwargs"] = {"MD_S": 1, "MD_R": 16, "train_steps": 6, "eval_steps": 7,
                          **case["head"].get("ham_kwargs", {})}
    backbone = {"type": "MSCAN", "variant": NAMES[case["variant"]], **case.get("backbone", {})}
    model = build_model({"type": "EncoderDecoder", "backbone": backbone, "decode_head": head})
    load(model)
    return model


def load(model) -> None:
    """Give every entry of the state the value that the reference gave it."""
    for key, value in model.state_dict().items():
        value.assign(shared.weight(key, value.shape))


def close(name: str, ours: np.ndarray, theirs: np.ndarray, limit: float) -> float:
    """Fail with place and values unless the largest difference is within `limit`; return it."""
    ours, theirs = np.asarray(ours, np.float64).reshape(-1), np.asarray(theirs, np.float64).reshape(-1)
    assert ours.shape == theirs.shape, f"{name}: {ours.shape} values, reference {theirs.shape}"
    assert np.isfinite(ours).all(), f"{name}: {np.count_nonzero(~np.isfinite(ours))} values are not finite"
    worst = int(np.abs(ours - theirs).argmax())
    error = float(abs(ours[worst] - theirs[worst]))
    assert error <= limit, (f"{name}: error {error:.3g} > {limit:.3g} at {worst}: ours {ours[worst]!r}, reference "
                            f"{theirs[worst]!r}")
    return error


def same_labels(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    theirs = theirs.reshape(theirs.shape[-2:])
    assert ours.shape == theirs.shape, f"{name}: {ours.shape}, reference {theirs.shape}"
    share = float((ours == theirs).mean())
    assert share >= 0.999, f"{name}: {share:.4%} of the labels agree, 99.9 % are needed"


def check_training(name: str, model, expected: dict, keep) -> dict[str, float]:
    """Loss, gradients and running statistics of one training-mode step."""
    model.train()
    images, labels = jt.array(shared.pictures(name)), jt.array(shared.labels(name))
    values = model.loss(images, labels)
    parameters = named_parameters(model)
    keys = sorted(parameters)
    gradients = dict(zip(keys, [g.numpy() for g in jt.grad(values["loss"], [parameters[key] for key in keys])]))
    state = model.state_dict()
    running = np.concatenate([state[key].numpy().ravel() for key in sorted(state) if key not in parameters])
    errors = {"loss": close("loss", values["decode.loss_ce"].numpy(), expected["loss"], 1e-5 * float(expected["loss"]))}
    close("accuracy", values["decode.acc_seg"].numpy(), expected["accuracy"], 0.02)
    norms, theirs = np.array([np.linalg.norm(gradients[key]) for key in keys]), expected["gradient_norms"]
    floors = gradient_floors(keys, theirs)
    relative = np.abs(norms - theirs) / np.maximum(theirs, floors)
    worst = int(relative.argmax())
    assert relative[worst] <= GRADIENT_LIMIT, (f"gradient of {keys[worst]}: norm {norms[worst]:.6g}, reference "
                                               f"{theirs[worst]:.6g}")
    errors["gradient norms"] = float(relative[worst])
    errors["running statistics"] = close("running statistics", keep(running), expected["running"], 1e-5)
    if "gradients" in expected:
        errors["gradients"] = check_gradients(gradients, expected["gradients"], dict(zip(keys, floors)))
    return errors


def gradient_floors(keys: list[str], norms: np.ndarray) -> np.ndarray:
    """The smallest norm each gradient's error is related to."""
    by_key = dict(zip(keys, norms.tolist()))
    return np.array([1e-2 * by_key.get(key.removesuffix("bias") + "weight", 0.0) if key.endswith("bias")
                     else 1e-6 * norms.max()
                     for key in keys])


def check_gradients(gradients: dict[str, np.ndarray], theirs: np.ndarray, floors: dict[str, float]) -> float:
    """Every gradient tensor: norm of the difference over norm of the reference."""
    largest, start = 0.0, 0
    for key in sorted(gradients):
        ours = gradients[key].ravel()
        reference = theirs[start:start + ours.size]
        start += ours.size
        error = np.linalg.norm(ours - reference) / max(np.linalg.norm(reference), floors[key])
        assert error <= GRADIENT_LIMIT, f"gradient of {key} {gradients[key].shape}: relative error {error:.3g}"
        largest = max(largest, float(error))
    assert start == theirs.size
    return largest


def check_inference(name: str, model, expected: dict, keep) -> dict[str, float]:
    """Logits, whole and slide label maps with padding, flip and resize, and test-time augmentation."""
    model.eval()
    pictures, metas = shared.pictures(name), shared.metas(name)
    low, high = (float(v) for v in expected["logits_range"])
    error = close("logits", keep(model(jt.array(pictures)).numpy()), expected["logits"], 1e-4 * (high - low))
    for i, labels in enumerate(model.predict(pictures, metas)):
        same_labels(f"whole {i}", labels, expected[f"whole{i}"])
    for i, labels in enumerate(model.predict_augmented(shared.augmented(name))):
        same_labels(f"augmented {i}", labels, expected[f"augmented{i}"])
    model.test_cfg = shared.SLIDE
    for i, labels in enumerate(model.predict(pictures, metas)):
        same_labels(f"slide {i}", labels, expected[f"slide{i}"])
    return {"logits / range": error / (high - low)}


def check_case(name: str, expected: dict, keep, monkeypatch) -> dict[str, float]:
    def bases(self, batch):
        return jt.array(shared.bases((batch * self.spatial, self.dimension, self.rank))).stop_grad()

    monkeypatch.setattr(NMF2D, "starting_bases", bases)
    expected = {key.partition("/")[2]: value for key, value in expected.items() if key.startswith(f"{name}/")}
    model = build(name)
    assert count_parameters(model) == int(expected["parameters"])
    errors = check_training(name, model, expected, keep)
    load(model)
    errors.update(check_inference(name, model, expected, keep))
    print(f"{name}: " + ", ".join(f"{key} {value:.2g}" for key, value in errors.items()))
    return errors


def test_golden_file_is_current(golden):
    assert str(golden["hash"]) == shared.script_hash(), (
        f"{shared.GOLDEN.name} was made by other versions of {', '.join(shared.SCRIPTS)}: run make_segnext.py again "
        "under a Python with PyTorch and mmsegmentation 1.2.2")


@pytest.mark.parametrize("name", shared.IN_GOLDEN)
def test_equals_mmseg(name, golden, monkeypatch):
    check_case(name, golden, shared.some, monkeypatch)


@pytest.mark.skipif(not REFEREE, reason="set JSEG_REFEREE_PYTHON to a Python with PyTorch and mmsegmentation 1.2.2")
@pytest.mark.parametrize("name", list(shared.CASES))
def test_equals_mmseg_live(name, tmp_path, monkeypatch):
    path = tmp_path / "full.npz"
    subprocess.run([REFEREE, str(PARITY / "make_segnext.py"), "--full", "--cases", name, "--out", str(path)],
                   check=True, timeout=900)
    with np.load(path) as file:
        check_case(name, dict(file), np.asarray, monkeypatch)
