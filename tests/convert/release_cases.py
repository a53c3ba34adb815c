"""What `make_releases.py`, `make_eomt.py` and their tests share: weights by name, pictures, what is kept of a map."""

from __future__ import annotations

import zlib

import numpy as np

__all__ = ["TABLE", "noise", "picture", "sample", "spread_weight", "street_pixels", "summary", "weight"]

TABLE = (7 * 7 + 3, 2)  # of relative positions in a grid of 4 x 4, two heads


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that depend on name and shape alone and keep maps near one, float32."""
    rng, leaf = np.random.default_rng(zlib.crc32(key.encode())), key.rpartition(".")[2]
    if leaf == "running_var" or (len(shape) == 1 and leaf in ("weight", "gamma", "gamma_1", "gamma_2")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) >= 2 and leaf == "weight":
        return rng.normal(0, (1.5 / np.prod(shape[1:]))**0.5, shape).astype(np.float32)
    return rng.normal(0, 0.3, shape).astype(np.float32)


_SPREAD = {"query.weight": 10, "class_predictor.weight": 4, "class_predictor.bias": 3,
           "upscale_block.block.0.layernorm2d.weight": 3}


def spread_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The same for EoMT, whose queries, classes and masks would hardly differ."""
    return weight(key, shape) * np.float32(_SPREAD.get(key, 1))


def picture(name: str) -> np.ndarray:
    """(1, 3, 32, 32), for Mask2Former, whose groups need more than one place, (1, 3, 64, 64)."""
    return noise(64 if name == "mask2former" else 32)


def noise(side: int) -> np.ndarray:
    """(1, 3, side, side) of N(0, 1), float32."""
    return np.random.default_rng(3).normal(0, 1, (1, 3, side, side)).astype(np.float32)


def sample(x: np.ndarray) -> np.ndarray:
    """Every third channel of a map, a few of its places. Shape: (1, C, H, W) -> (ceil(C / 3), h, w)."""
    step = max(x.shape[2] // 4, 1)
    return x[0, ::3, ::step, ::step]


def street_pixels() -> np.ndarray:
    """A picture of smooth colours, (40, 100, 3) uint8."""
    rows, columns = np.meshgrid(np.linspace(0, 5, 40), np.linspace(0, 9, 100), indexing="ij")
    planes = [np.sin(rows * (1 + i) / 2) + np.cos(columns * (3 - i) / 2) for i in range(3)]
    return (np.stack(planes, -1) * 60 + 127).astype(np.uint8)


def summary(key: str, x: np.ndarray) -> np.ndarray:
    """Three numbers of an array: its norm, and its products with two directions that follow from the key."""
    directions = np.random.default_rng(zlib.crc32(key.encode())).normal(0, x.size**-0.5, (2, x.size))
    return np.array([np.linalg.norm(x), *(directions @ x.reshape(-1).astype(np.float64))])
