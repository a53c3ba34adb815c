"""What both sides of the SegNeXt parity check share: cases, weights, pictures. NumPy only; neither PyTorch nor Jittor.

Weights are a function of (state key, shape), so neither side stores them. A golden file holds some elements of each
result.
"""

from __future__ import annotations

import hashlib
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE / "segnext.npz"
SCRIPTS = ("make_segnext.py", "segnext_cases.py")

T, B = [64, 160, 256], [128, 320, 512]
CASES = {  # published size, picture size, batch, and what replaces the published backbone and head settings
    "mini": {"variant": "t", "size": (65, 97), "batch": 2, "classes": 7,
             "backbone": {"embed_dims": [16, 32, 32, 64], "depths": [2, 1, 2, 1], "mlp_ratios": [4, 4, 2, 2]},
             "head": {"in_channels": [32, 32, 64], "channels": 32, "ham_channels": 64,
                      "ham_kwargs": {"MD_S": 2, "MD_R": 8}}},
    "tiny": {"variant": "t", "size": (64, 64), "batch": 2, "classes": 150,
             "head": {"in_channels": T, "channels": 256, "ham_channels": 256}},
    "small": {"variant": "s", "size": (64, 64), "batch": 2, "classes": 150,
              "head": {"in_channels": B, "channels": 256, "ham_channels": 256}},
    "base": {"variant": "b", "size": (64, 64), "batch": 2, "classes": 150,
             "head": {"in_channels": B, "channels": 512, "ham_channels": 512}},
    "large": {"variant": "l", "size": (64, 64), "batch": 2, "classes": 150,
              "head": {"in_channels": B, "channels": 1024, "ham_channels": 1024}},
}
IN_GOLDEN = ("mini", "tiny")
SLIDE = {"mode": "slide", "crop_size": [48, 48], "stride": [32, 32]}


def numbers(key: str, shape) -> np.ndarray:
    """Standard normal numbers that depend on the key only (the legacy generator's stream is frozen by NumPy)."""
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)


def weight(key: str, shape) -> np.ndarray:
    """The value of one state-dict entry, float32; scaled so that activations stay near 1 without trained statistics."""
    shape, last = tuple(shape), key.rpartition(".")[2]
    values = numbers(key, shape)
    if last == "running_var":
        values = 1.0 + 0.5 * np.tanh(values)
    elif last == "running_mean" or last == "bias":
        values = 0.1 * values
    elif last.startswith("layer_scale"):
        values = 0.05 + 0.02 * values
    elif len(shape) == 1:
        values = 1.0 + 0.2 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def bases(shape) -> np.ndarray:
    """Starting bases of the factorisation, (pictures, dimension, rank) float32:
    alike for all pictures, columns of length 1.
    """
    values = np.abs(numbers(f"bases{tuple(shape[1:])}", shape[1:])) + 0.05
    values = values / np.linalg.norm(values, axis=0, keepdims=True)
    return np.broadcast_to(values, shape).astype(np.float32)


def pictures(name: str) -> np.ndarray:
    """Input batch of a case, (N, 3, H, W) float32: smooth blobs and noise, about normalised."""
    case = CASES[name]
    shape = (case["batch"], 3, *case["size"])
    rows, columns = np.meshgrid(*(np.linspace(0, 3, side) for side in case["size"]), indexing="ij")
    phase = numbers("phase", shape[:2])[..., None, None]
    return (np.sin(2 * rows + phase) + np.cos(3 * columns * (1 + phase)) + 0.3 * numbers("noise", shape)).astype(
        np.float32)


def labels(name: str) -> np.ndarray:
    """Labels of a case, (N, H, W) int32, about one pixel in ten ignored."""
    case = CASES[name]
    shape = (case["batch"], *case["size"])
    values = np.abs(numbers("labels", shape) * 1000).astype(np.int64) % case["classes"]
    return np.where(numbers("ignored", shape) > 1.3, 255, values).astype(np.int32)


def metas(name: str) -> list[dict]:
    """Where the pictures lie: padding right and below, own sizes that differ from the input's, the last one flipped."""
    h, w = CASES[name]["size"]
    padding = (0, 5, 0, 3)
    found = {"img_shape": (h - 3, w - 5), "pad_shape": (h, w), "padding_size": list(padding)}
    return [{**found, "ori_shape": (40, 70)},
            {**found, "ori_shape": (83, 60), "flip": True, "flip_direction": "horizontal"}]


def augmented(name: str) -> list[tuple[np.ndarray, list[dict]]]:
    """Three versions of the batch for test-time augmentation, of different sizes, the second one mirrored."""
    first = pictures(name)
    plain = [{"ori_shape": (50, 66), "img_shape": first.shape[2:], "pad_shape": first.shape[2:],
              "padding_size": [0, 0, 0, 0]}
             for _ in first]
    mirrored = [{**meta, "flip": True, "flip_direction": "horizontal"} for meta in plain]
    cut = np.ascontiguousarray(first[:, :, 8:56, 4:60])
    smaller = [{**meta, "img_shape": cut.shape[2:], "pad_shape": cut.shape[2:]} for meta in plain]
    return [(first, plain), (np.ascontiguousarray(first[..., ::-1]), mirrored), (cut, smaller)]


def some(values: np.ndarray, count: int = 160) -> np.ndarray:
    """Evenly spaced elements of a flattened array, always with the first and the last."""
    flat = np.asarray(values).reshape(-1)
    return flat[np.unique(np.linspace(0, flat.size - 1, min(count, flat.size)).round().astype(int))]


def script_hash() -> str:
    """SHA-256 of the files that decide what a golden file holds."""
    digest = hashlib.sha256()
    for script in SCRIPTS:
        digest.update((HERE / script).read_bytes())
    return digest.hexdigest()
