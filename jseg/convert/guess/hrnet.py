"""HRNet's ImageNet weights (HRNet-Image-Classification, OpenMMLab, timm) and the backbone of the authors' segmentation
releases, which carry no config.

Sources: HRNet/HRNet-Image-Classification lib/models/cls_hrnet.py, HRNet/HRNet-Semantic-Segmentation
lib/models/seg_hrnet.py and seg_hrnet_ocr.py (MIT), timm 1.0 timm/models/hrnet.py. The backbone's keys are ours as they
stand (`conv1`, `layer1`, `transition<i>`, `stage<i>`); what classifies or segments behind it is left out:
`incre_modules`, `downsamp_modules`, `final_layer`, `classifier`; `last_layer`; `ocr_*`, `conv3x3_ocr`, `aux_head`,
`cls_head`.

What no key shows: the classification network resizes maps to the nearest value, the segmentation network bilinearly
with align_corners true; HRNet here, as MMSegmentation's, bilinearly with align_corners false.
"""

from __future__ import annotations

from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, read_block, rgb_note
from jseg.convert.layout import CLASSIFIER, Layout, count_indices, without_prefix

__all__ = ["NEAREST", "guess", "recognise", "stage_sizes"]

NEAREST = "HRNet backbone (the authors, OpenMMLab, timm)"
LAYOUT = Layout("an HRNet", ((r"((conv|bn)[12]|layer1|transition[123]|stage[234])\..*", r"\g<0>"),), (
    (r"(incre_modules|downsamp_modules|final_layer|classifier)\..*", CLASSIFIER),
    (r"(last_layer|aux_head|cls_head|conv3x3_ocr|ocr_[a-z_]+)\..*", "the head of a segmentation release")))


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether an HRNet stands alone, or under a head of its authors'."""
    keys = without_prefix(shapes)
    return "stage4.0.branches.3.0.conv1.weight" in keys and "transition1.0.0.weight" in keys and not any(
        key.startswith("decode_head.") for key in keys)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    extra = read_block(stage_sizes, without_prefix(shapes), where, "HRNet")
    return Guess(NEAREST, {"model": {"backbone": {"type": "HRNet", "extra": extra}}}, backbone_only=True, notes=(
        rgb_note(), "maps are resized bilinearly, where the classifier takes the nearest value"),
        translate=lambda found, model: LAYOUT.apply(found))


def stage_sizes(keys: Shapes, part: str = "conv1") -> dict[str, dict]:
    """`extra`: modules, branches, blocks and widths of each stage.

    Args:
        part: a module that every block of the stages from the second on has, as wide as the block.
    """
    thick = "layer1.0.conv3.weight" in keys
    stages = {"stage1": {"num_modules": 1, "num_branches": 1, "block": "BOTTLENECK" if thick else "BASIC",
                         "num_blocks": [count_indices(keys, r"layer1\.(\d+)\.conv1\.")],
                         "num_channels": [keys["layer1.0.conv1.weight"][0]]}}
    for i in (2, 3, 4):
        branches = count_indices(keys, rf"stage{i}\.0\.branches\.(\d+)\.")
        first = [f"stage{i}.0.branches.{j}" for j in range(branches)]
        thick = f"{first[0]}.0.conv3.weight" in keys
        stages[f"stage{i}"] = {
            "num_modules": count_indices(keys, rf"stage{i}\.(\d+)\.branches\."), "num_branches": branches,
            "block": "BOTTLENECK" if thick else "BASIC",
            "num_blocks": [count_indices(keys, rf"{name}\.(\d+)\.{part}\.") for name in first],
            "num_channels": [keys[f"{name}.0.{part}.weight"][0] for name in first]}
    return stages
