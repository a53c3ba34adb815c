"""A small SegNeXt with random weights, and its weights file: for the tests that predict, export and read files."""

from __future__ import annotations

import pathlib

from jseg.config import load_config
from jseg.engine.checkpoint import model_state, save_weights

CLASSES, PALETTE = ["sky", "road", "car"], [[10, 120, 240], [90, 90, 90], [220, 30, 30]]


def small_segnext() -> dict:
    """The demo's config with a backbone and a head of a few channels."""
    config = load_config("configs/segnext/segnext_tiny_demo-128x160_cpu.yaml")
    config["model"]["backbone"] = {"type": "MSCAN", "embed_dims": [8, 16, 32, 32], "depths": [1, 1, 1, 1],
                                   "mlp_ratios": [2, 2, 2, 2]}
    config["model"]["decode_head"].update(in_channels=[16, 32, 32], channels=32, ham_channels=32, num_classes=3,
                                          norm_cfg={"type": "GN", "num_groups": 4})
    return config


def save_small_segnext(path: pathlib.Path) -> pathlib.Path:
    """Write a weights file of three classes whose head separates pictures by their content; returns its path.

    Pictures are resized to 96 x 64 at most and not padded.
    """
    import jittor as jt

    from jseg.models import build_model
    jt.set_global_seed(3)
    config = small_segnext()
    config["val_dataloader"]["dataset"]["pipeline"].insert(1, {"type": "Resize", "scale": [96, 64], "keep_ratio": True})
    model = build_model(config)
    model.decode_head.conv_seg.weight.assign(model.decode_head.conv_seg.weight * 100)
    save_weights(path, model_state(model), {"config": config, "classes": CLASSES, "palette": PALETTE})
    return path
