"""What `classifiers.py` and `classifiers_torch.py` share: the classifiers, and inputs of the pieces. NumPy alone."""

from __future__ import annotations

import numpy as np

CLASSES, SIZE = 20, 224
_MSCAN = {"type": "MSCAN", "embed_dims": [32, 64, 160, 256], "depths": [3, 3, 5, 2], "mlp_ratios": [8, 8, 4, 4],
          "drop_rate": 0.0, "drop_path_rate": 0.1, "attention_kernel_sizes": [5, [1, 7], [1, 11], [1, 21]],
          "attention_kernel_paddings": [2, [0, 3], [0, 5], [0, 10]], "act_cfg": {"type": "GELU"},
          "norm_cfg": {"type": "BN"}}


def _mmpretrain(backbone: dict, channels: int, neck: bool = True) -> dict:
    block = {"type": "mmpretrain.ImageClassifier", "backbone": backbone,
             "head": {"type": "mmpretrain.LinearClsHead", "num_classes": CLASSES, "in_channels": channels}}
    return {**block, "neck": {"type": "mmpretrain.GlobalAveragePooling"}} if neck else block


_SWIN = {"type": "SwinTransformer", "embed_dims": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24],
         "out_indices": [3], "pad_small_map": False}
_CONVNEXT = {"type": "ConvNeXt", "arch": "atto", "out_indices": [3], "gap_before_final_norm": True}
# library, name or model of the referee; our backbone and the width of its last map
JOBS = {
    "mscan-mmseg": {"library": "mscan", "model": _MSCAN, "ours": {"type": "MSCAN", "variant": "tiny"}, "width": 256},
    "mscan-authors": {"library": "mscan", "model": _MSCAN, "ours": {"type": "MSCAN", "variant": "tiny"}, "width": 256,
                      "authors": True},
    "torchvision-resnet18": {"library": "torchvision", "name": "resnet18", "ours": {"type": "ResNet", "depth": 18},
                             "width": 512},
    "timm-resnet18": {"library": "timm", "name": "resnet18", "ours": {"type": "ResNet", "depth": 18}, "width": 512},
    "timm-resnet50d": {"library": "timm", "name": "resnet50d", "ours": {"type": "ResNetV1d", "depth": 50},
                       "width": 2048},
    "mmpretrain-resnet50": {"library": "mmpretrain", "width": 2048, "ours": {"type": "ResNet", "depth": 50},
                            "model": _mmpretrain({"type": "mmpretrain.ResNet", "depth": 50}, 2048)},
    "timm-swin_tiny": {"library": "timm", "name": "swin_tiny_patch4_window7_224", "ours": _SWIN, "width": 768},
    "mmpretrain-swin_tiny": {"library": "mmpretrain", "width": 768, "ours": _SWIN,
                             "model": _mmpretrain({"type": "mmpretrain.SwinTransformer", "arch": "tiny"}, 768)},
    "timm-convnext_atto": {"library": "timm", "name": "convnext_atto", "width": 320,
                           "ours": {**_CONVNEXT, "linear_pw_conv": False}},
    "mmpretrain-convnext_atto": {"library": "mmpretrain", "width": 320, "ours": _CONVNEXT,
                                 "model": _mmpretrain({"type": "mmpretrain.ConvNeXt", "arch": "atto"}, 320,
                                                      neck=False)},
    "torchvision-convnext_tiny": {"library": "torchvision", "name": "convnext_tiny", "width": 768,
                                  "ours": {**_CONVNEXT, "arch": "tiny"}},
}
# ours -> timm's
OPERATIONS = {"AutoContrast": "AutoContrast", "Equalize": "Equalize", "Invert": "Invert", "Rotate": "Rotate",
              "Posterize": "PosterizeIncreasing", "Solarize": "SolarizeIncreasing", "SolarizeAdd": "SolarizeAdd",
              "Color": "ColorIncreasing", "Contrast": "ContrastIncreasing", "Brightness": "BrightnessIncreasing",
              "Sharpness": "SharpnessIncreasing", "Shear x": "ShearX", "Shear y": "ShearY",
              "Translate x": "TranslateXRel", "Translate y": "TranslateYRel"}
LEVELS = (0.0, 3.3, 9.0, 10.0)


def pieces_inputs() -> dict[str, np.ndarray]:
    """Fixed inputs of mixing, loss, average and RandAugment. For mixing, our partner is half a batch away and timm's is
    the batch in reverse: pictures 0, 1 | 2, 3 of ours are 0, 1 | 3, 2 of timm's."""
    rng = np.random.default_rng(0)
    return {"images": rng.standard_normal((4, 3, 12, 16)).astype(np.float32), "labels": np.array([3, 7, 1, 19]),
            "share": np.float64(0.37), "centre": np.array([2, 13]),
            "logits": rng.standard_normal((4, CLASSES)).astype(np.float32) * 3,
            "weights": rng.standard_normal((7, 3, 4)).astype(np.float32),
            "picture": rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)}
