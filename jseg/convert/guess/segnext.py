"""SegNeXt without a config: its release, what its shapes say, and the rules that no key or shape shows.

SegNeXt exists in three releases with nearly equal keys whose masks differ when one is run by another's rules:

    release                 mlp.dwconv keys   rank MD_R           test pictures are   gradient through the factorisation
    mmsegmentation 1.x      .dwconv.          16                  padded to x32       all steps
    authors' PyTorch        .dwconv.dwconv.   16 T, S; 64 B, L    resized to x32      all steps
    original JSeg (.pkl)    .dwconv.dwconv.   16 T, S; 64 B, L    resized to x32      the last step

Sources: mmsegmentation 1.2.2 mmseg/models/backbones/mscan.py and decode_heads/ham_head.py (Apache-2.0), the authors'
repository (Visual-Attention-Network/SegNeXt, mmseg 0.x), original JSeg's configs. A config that states a rule wins over
this table.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, whole_config
from jseg.convert.pickle_data import brief
from jseg.errors import ConfigError, ConvertError

__all__ = ["FAMILIES", "NEAREST", "Family", "complete", "guess", "recognise"]


@dataclasses.dataclass(frozen=True)
class Family:
    """A release: its name in reports and the rules of the table above."""

    name: str
    large_rank: int = 16      # MD_R of B and L
    test_size: str = "pad"    # or "resize"
    grad: str = "full"        # or "one_step"
    backbone_only: bool = False


FAMILIES = {
    "mmseg-1.x": Family("SegNeXt, mmsegmentation 1.x"),
    "mmseg-0.x": Family("SegNeXt, mmsegmentation 0.x"),
    "authors": Family("SegNeXt, the authors' release", large_rank=64, test_size="resize"),
    "jseg": Family("SegNeXt, original JSeg", large_rank=64, test_size="resize", grad="one_step"),
    "mscan": Family("MSCAN backbone, ImageNet", backbone_only=True),
}
_MSCAN = re.compile(r"(backbone\.)?block\d+\.\d+\.attn\.spatial_gating_unit\.conv0\.weight")
NEAREST = ", ".join(family.name for family in FAMILIES.values())


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether an MSCAN backbone stands alone or under a LightHamHead."""
    heads = [key for key in shapes if key.startswith("decode_head.")]
    if any(".spatial_gating_unit.conv_spatial." in key for key in shapes):
        return False  # VAN, whose blocks are MSCAN's but for this convolution
    return any(_MSCAN.match(key) for key in shapes) and (not heads or any(key.startswith("decode_head.squeeze.")
                                                                          for key in heads))


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """Release and config of a state dict that `recognise` accepts.

    Args:
        shapes: keys without wrapper prefixes.
        numpy_values: the file is a pickle of NumPy arrays, as Jittor writes.
        meta: the file's `meta` block, or {}.
    Raises:
        ConvertError: keys are missing, or shapes contradict each other.
    """
    family = FAMILIES[_family_name(shapes, numpy_values, meta)]
    shapes = {re.sub(r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv.", key): shape for key, shape in shapes.items()}
    if family.backbone_only:
        shapes = {key.removeprefix("backbone."): shape for key, shape in shapes.items()}
    return Guess(family.name, default_config(shapes, family, where), family.backbone_only)


def _family_name(shapes: Shapes, numpy_values: bool, meta: Mapping[str, Any]) -> str:
    if not any(key.startswith("decode_head.") for key in shapes):
        return "mscan"
    if numpy_values:
        return "jseg"
    if any(key in meta for key in ("mmengine_version", "dataset_meta", "cfg")):
        return "mmseg-1.x"
    if any(".mlp.dwconv.dwconv." in key for key in shapes):
        return "authors"
    return "mmseg-0.x" if "mmseg_version" in meta or "mmcv_version" in meta else "mmseg-1.x"


def backbone_facts(shapes: Shapes, where: str, prefix: str = "backbone.") -> dict:
    """Constructor arguments of MSCAN that shapes tell: a named variant where they are its, else sizes.

    Raises:
        ConvertError: keys of a stage are missing.
    """
    from jseg.models.backbones.mscan import KERNEL_SIZES, VARIANTS
    try:
        stages = max(int(m[1]) for key in shapes if (m := re.match(rf"{re.escape(prefix)}block(\d)\.", key)))
        dims = [shapes[f"{prefix}norm{i}.weight"][0] for i in range(1, stages + 1)]
        depths = [len({key.split(".")[prefix.count(".") + 1] for key in shapes if key.startswith(f"{prefix}block{i}.")})
                  for i in range(1, stages + 1)]
        ratios = [shapes[f"{prefix}block{i}.0.mlp.fc1.weight"][0] / dims[i - 1] for i in range(1, stages + 1)]
        unit = f"{prefix}block1.0.attn.spatial_gating_unit."
        strips = sorted(int(m[1]) for key in shapes if key.startswith(unit)
                        and (m := re.match(r"conv(\d)_1\.weight", key[len(unit):])))
        kernels = [shapes[f"{unit}conv0.weight"][-1], *([1, shapes[f"{unit}conv{i}_1.weight"][-1]] for i in strips)]
        in_channels = shapes[f"{prefix}patch_embed1.proj.0.weight"][1]
        # no size is believed that the file does not hold
        for i, (dim, depth, ratio) in enumerate(zip(dims, depths, ratios), 1):
            for j in range(depth):
                for key, size in (("attn.proj_1", (dim, dim)), ("mlp.fc2", (dim, int(dim * ratio)))):
                    if tuple(shapes[f"{prefix}block{i}.{j}.{key}.weight"][:2]) != size:
                        raise ValueError(f"{prefix}block{i}.{j}.{key}.weight of shape {size}")
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ConvertError(f"{where}: an incomplete MSCAN backbone: {error} is missing or has an odd shape") from error
    sizes = {"embed_dims": dims, "depths": depths, "mlp_ratios": [int(r) if r == int(r) else r for r in ratios]}
    variant = next((name for name, known in VARIANTS.items() if known == sizes), None)
    facts: dict[str, Any] = {"variant": variant} if variant else {**sizes, "num_stages": stages}
    if kernels != [list(k) if isinstance(k, tuple) else k for k in KERNEL_SIZES]:
        facts["attention_kernel_sizes"] = kernels
        facts["attention_kernel_paddings"] = [kernels[0] // 2, *([0, k[1] // 2] for k in kernels[1:])]
    if in_channels != 3:
        facts["in_channels"] = in_channels
    return facts


def head_facts(shapes: Shapes, widths: list[int], where: str) -> dict:
    """Constructor arguments of LightHamHead that shapes tell.

    Args:
        widths: of the backbone's maps.
    """
    try:
        ham, joined = shapes["decode_head.squeeze.conv.weight"][:2]
        channels, classes = shapes["decode_head.align.conv.weight"][0], shapes["decode_head.conv_seg.weight"][0]
        for key, size in (("hamburger.ham_in", (ham, ham)), ("hamburger.ham_out", (ham, ham)),
                          ("align", (channels, ham))):
            if tuple(shapes[f"decode_head.{key}.conv.weight"][:2]) != size:
                raise ValueError(f"decode_head.{key}.conv.weight of shape {size}")
    except (KeyError, ValueError, IndexError) as error:
        raise ConvertError(f"{where}: an incomplete LightHamHead: {error} is missing or has an odd shape") from error
    index = next((list(range(k, len(widths))) for k in range(len(widths)) if sum(widths[k:]) == joined), None)
    if index is None:
        raise ConvertError(f"{where}: decode_head.squeeze takes {joined} channels, which are no last maps of a "
                           f"backbone of widths {widths}")
    norm = {"type": "GN", "num_groups": 32} if "decode_head.squeeze.gn.weight" in shapes else \
        {"type": "BN"} if "decode_head.squeeze.bn.weight" in shapes else None
    return {"in_channels": [widths[i] for i in index], "in_index": index, "channels": channels, "ham_channels": ham,
            "num_classes": classes, "norm_cfg": norm}


def rank_by_rule(family: Family, variant: str | None) -> int:
    """MD_R that the release uses for a size."""
    return family.large_rank if variant in ("base", "large") else 16


def default_config(shapes: Shapes, family: Family, where: str) -> dict:
    """A config from shapes and the release's rules, for files that carry none: what prediction and fine-tuning need."""
    prefix = "" if family.backbone_only else "backbone."
    backbone = {"type": "MSCAN", **backbone_facts(shapes, where, prefix)}
    variant = backbone.get("variant")
    backbone["drop_path_rate"] = 0.3 if variant == "large" else 0.1
    if family.backbone_only:
        return {"model": {"backbone": backbone}}
    widths = backbone_widths(backbone)
    ham = {"MD_S": 1, "MD_R": rank_by_rule(family, variant), "train_steps": 6, "eval_steps": 7,
           "rand_init": "decode_head.hamburger.ham.bases" not in shapes, "grad": family.grad}
    head = {"type": "LightHamHead", **head_facts(shapes, widths, where), "dropout_ratio": 0.1, "align_corners": False,
            "ham_kwargs": ham, "ignore_index": 255, "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0}}
    resized = family.test_size == "resize"
    config = whole_config(backbone, head, size_divisor=None if resized else 32)
    if resized:
        config["test_dataloader"]["dataset"]["pipeline"].insert(2, {"type": "ResizeToMultiple", "size_divisor": 32})
    return config


def backbone_widths(block: Mapping[str, Any]) -> list[int]:
    """Widths of an MSCAN block's maps."""
    from jseg.models.backbones.mscan import SIZES, VARIANTS
    return list(block.get("embed_dims") or VARIANTS.get(block.get("variant"), SIZES)["embed_dims"])


def complete(settings: dict, found: Guess, *, origin: str, where: str, notes: list[str]) -> dict:
    """Check a stated config's model against the weights and write down the rules it leaves to its release;
    changes go to `notes`.

    Raises:
        ConvertError: the config is of another model, or of other sizes.
    """
    from jseg.models.heads.ham_head import ham_options
    settings = copy.deepcopy(settings)
    model = settings.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("backbone"), dict) or not isinstance(
        model.get("decode_head"), dict):
        raise ConvertError(f"{where}: config ({origin}): no model with backbone and decode_head in it")
    known, faults = found.config["model"], []
    _drop_unknown_auxiliary(model, notes)
    if model.get("neck"):
        raise ConvertError(f"{where}: config ({origin}): model.neck {brief(model['neck'].get('type'))}; SegNeXt has "
                           "none")
    for block in ("backbone", "decode_head"):
        said, real = model[block], known[block]
        if said.get("type") != real["type"]:
            raise ConvertError(f"{where}: config ({origin}): model.{block} is {brief(said.get('type'))}, the weights "
                               f"are of {real['type']}; give the right config with --config")
        said_sizes, real_sizes = _sizes(block, said), _sizes(block, real)
        faults += [f"{block}.{key} {brief(said_sizes[key])} (weights: {brief(real_sizes[key])})"
                   for key in real_sizes if said_sizes[key] != real_sizes[key]]
    norm = known["decode_head"]["norm_cfg"]
    # early configs of original JSeg left it to the class
    if norm is not None and model["decode_head"].get("norm_cfg") is None:
        model["decode_head"]["norm_cfg"] = norm
        notes.append(f"model.decode_head.norm_cfg: the config names none, the weights have one: {norm['type']}"
                     + (f" of {norm['num_groups']} groups, SegNeXt's, is taken" if "num_groups" in norm
                        else " is taken"))
    if faults:
        raise ConvertError(f"{where}: the config ({origin}) does not fit the weights: {', '.join(faults)}; give the "
                           "right one with --config")
    ham, rules = dict(model["decode_head"].get("ham_kwargs") or {}), known["decode_head"]["ham_kwargs"]
    for key in ("MD_R", "grad"):
        if not any(key in (k, k.upper()) for k in ham) and not (key == "grad" and "GRAD" in ham):
            ham[key] = rules[key]
    try:
        options = ham_options(ham)
    except (ConfigError, TypeError, ValueError) as error:
        raise ConvertError(f"{where}: config ({origin}): model.decode_head.{error}") from error
    if (not isinstance(options["MD_R"], int) or not 1 <= options["MD_R"] <= 4096
        or bool(options["rand_init"]) != rules["rand_init"]):
        raise ConvertError(f"{where}: config ({origin}): ham_kwargs MD_R {brief(options['MD_R'])}, rand_init "
                           f"{brief(options['rand_init'])} do not fit weights "
                           + ("without" if rules["rand_init"] else "with") + " stored bases")
    model["decode_head"]["ham_kwargs"] = ham
    return settings


def _drop_unknown_auxiliary(model: dict, notes: list[str]) -> None:
    """Auxiliary heads serve training only: one that jseg lacks is left out with its weights,
    and so are the lines that say so.
    """
    from jseg.registry import MODELS
    heads = model.get("auxiliary_head")
    kinds = [head.get("type") for head in (heads if isinstance(heads, list) else [heads]) if isinstance(head, dict)]
    if heads and not all(isinstance(kind, str) and kind in MODELS for kind in kinds):
        model["auxiliary_head"] = None
        notes[:] = [note for note in notes if not note.startswith("model.auxiliary_head")]
        notes.append(f"model.auxiliary_head: {', '.join(map(brief, kinds))} left out with its weights: used in "
                     "training only, and jseg has none such")


def _sizes(block: str, said: Mapping) -> dict[str, Any]:
    """The arguments of a block that decide shapes, defaults filled in, comparable."""
    if block == "backbone":
        from jseg.models.backbones.mscan import KERNEL_SIZES, SIZES, VARIANTS
        defaults = {**VARIANTS.get(said.get("variant") or "", SIZES), "num_stages": 4, "in_channels": 3,
                    "attention_kernel_sizes": KERNEL_SIZES}
    else:
        defaults = {"in_channels": None, "in_index": None, "channels": None, "ham_channels": 512, "num_classes": None}
    return {key: _lists(default if said.get(key) is None else said[key]) for key, default in defaults.items()}


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
