"""A small SegNeXt of random weights, shared by the tests of this folder."""

from __future__ import annotations

import pathlib

import jittor as jt

from jseg.config import load_config
from jseg.engine.checkpoint import model_state, save_weights
from jseg.models import build_model

CLASSES, PALETTE = ["sky", "road", "car"], [[10, 120, 240], [90, 90, 90], [220, 30, 30]]


def make_checkpoint(path: pathlib.Path) -> pathlib.Path:
    """Write the checkpoint; its masks have several classes, pictures are resized to 96x64 at most and not padded."""
    jt.set_global_seed(3)
    config = load_config("configs/segnext/segnext_tiny_demo-128x160_cpu.yaml")
    config["model"]["backbone"] = {"type": "MSCAN", "embed_dims": [8, 16, 32, 32], "depths": [1, 1, 1, 1],
                                   "mlp_ratios": [2, 2, 2, 2]}
    config["model"]["decode_head"].update(in_channels=[16, 32, 32], channels=32, ham_channels=32, num_classes=3,
                                          norm_cfg={"type": "GN", "num_groups": 4})
    config["val_dataloader"]["dataset"]["pipeline"].insert(1, {"type": "Resize", "scale": [96, 64], "keep_ratio": True})
    model = build_model(config)
    model.decode_head.conv_seg.weight.assign(model.decode_head.conv_seg.weight * 100)
    save_weights(path, model_state(model), {"config": config, "classes": CLASSES, "palette": PALETTE})
    return path
