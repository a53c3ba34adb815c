"""Training losses. Every one is called as

    loss(logits (N, K, h, w), labels (N, H, W) int32, *, pixel_weight=None (N, H, W), ignore_index=255,
    align_corners=False)

and returns a scalar; logits smaller than the labels are upsampled bilinearly inside. Names, arguments, defaults and
numbers are mmsegmentation 1.2.2's; each file lists where it differs.
"""

from jseg.losses.boundary import BoundaryLoss
from jseg.losses.cross_entropy import CrossEntropyLoss
from jseg.losses.dice import DiceLoss
from jseg.losses.focal import FocalLoss
from jseg.losses.huasdorff import HuasdorffDisstanceLoss
from jseg.losses.lovasz import LovaszLoss
from jseg.losses.ohem import OHEMPixelSampler
from jseg.losses.ohem_cross_entropy import OhemCrossEntropy
from jseg.losses.tversky import TverskyLoss

__all__ = ["BoundaryLoss", "CrossEntropyLoss", "DiceLoss", "FocalLoss", "HuasdorffDisstanceLoss", "LovaszLoss",
           "OHEMPixelSampler", "OhemCrossEntropy", "TverskyLoss"]
