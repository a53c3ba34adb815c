"""VAN's ImageNet weights, the authors' and mmpretrain's, which carry no config.

    ours (the authors' VAN-Segmentation)           the authors           mmpretrain
    patch_embed<i>.proj, .norm                     the same              patch_embed<i>.projection, .norm
    block<i>.<j>.                                  the same              blocks<i>.<j>.
      attn.spatial_gating_unit.conv0, conv_spatial the same              DW_conv, DW_D_conv
      mlp.dwconv                                   mlp.dwconv.dwconv     mlp.dwconv
    norm<i>, layer_scale_1, layer_scale_2          the same              the same

Sources: Visual-Attention-Network/VAN-Classification models/van.py and VAN-Segmentation van.py (Apache-2.0), mmpretrain
1.2 mmpretrain/models/backbones/van.py. `VAN.remap_keys` renames; the classifier (`head`) is left out. The authors'
segmentation models carry their config, so `jseg convert` takes them whole.
"""

from __future__ import annotations

from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, read_block, rgb_note
from jseg.convert.layout import count_indices

__all__ = ["NEAREST", "guess", "recognise"]

NEAREST = "VAN backbone, ImageNet (the authors, mmpretrain)"
_GATE = "block1.0.attn.spatial_gating_unit"
_RATES = {"b3": 0.3, "b4": 0.4, "b5": 0.4, "b6": 0.5}  # as their segmentation models; 0.1 for the others


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a VAN stands alone."""
    return f"{_GATE}.conv_spatial.weight" in _renamed(shapes) and not any(
        key.startswith("decode_head.") for key in shapes)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    keys = {ours: shapes[theirs] for ours, theirs in _renamed(shapes).items()}
    block = read_block(_block, keys, where, "VAN")
    return Guess(NEAREST, {"model": {"backbone": block}}, backbone_only=True, notes=(rgb_note(),))


def _renamed(shapes: Shapes) -> dict[str, str]:
    """Our keys -> those of the file."""
    from jseg.models.backbones.van import VAN
    return VAN.remap_keys({key.removeprefix("backbone."): key for key in shapes})


def _block(keys: Shapes) -> dict[str, Any]:
    """Constructor arguments that shapes tell."""
    from jseg.models.backbones.van import VARIANTS
    stages = range(1, 1 + count_indices(keys, r"patch_embed(\d)\."))
    sizes = {"embed_dims": tuple(keys[f"patch_embed{i}.proj.weight"][0] for i in stages),
             "depths": tuple(count_indices(keys, rf"block{i}\.(\d+)\.") for i in stages)}
    sizes["mlp_ratios"] = tuple(keys[f"block{i}.0.mlp.fc1.weight"][0] // width
                                for i, width in zip(stages, sizes["embed_dims"]))
    arch = next((name for name, variant in VARIANTS.items() if dict(variant) == sizes), None)
    block = {"type": "VAN", "arch": arch} if arch else {
        "type": "VAN", "num_stages": len(stages), **{word: list(values) for word, values in sizes.items()}}
    channels = keys["patch_embed1.proj.weight"][1]
    return {**block, "drop_path_rate": _RATES.get(arch, 0.1), **({} if channels == 3 else {"in_channels": channels})}
