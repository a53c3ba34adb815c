"""Layer-wise decay of the learning rate: the deeper in the backbone, counted from the head, the slower.

Clark et al., "ELECTRA", ICLR 2020; Bao et al., "BEiT", ICLR 2022; the words are those of mmsegmentation 1.2.2's
LearningRateDecayOptimizerConstructor (mmseg/engine/optimizers, Apache-2.0):
`paramwise_cfg: {num_layers, decay_rate, decay_type}`. How deep a parameter is, its backbone's class says:
`depth_of(key, num_layers, decay_type)`, 0 for the first layer, None beside the layers.

Not MMSegmentation's: `decay_type: in_order` goes by the order of the parts that a backbone is made of (`layer1`,
`block2.0` or `layers.5`: a name up to its first number) and so holds for every backbone; it takes no `num_layers`, and
multiplies the rates that the other keys of `paramwise_cfg` give. With `layer_wise` and `stage_wise` goes
`flat_decay_mult`, the weight decay of biases and other vectors, 0 where it is not said.
"""

from __future__ import annotations

import re
from typing import Callable, Mapping

import jittor as jt

from jseg.errors import ConfigError
from jseg.rules import COUNT, FACTOR, Rule

__all__ = ["IN_ORDER", "RULES", "backbone_scale", "decides_alone", "layer_decay", "layer_decay_faults"]

TYPES, IN_ORDER = ("layer_wise", "stage_wise"), "in_order"
RULES = {"num_layers": COUNT, "decay_rate": FACTOR,
         "decay_type": Rule(lambda v: v in (*TYPES, IN_ORDER), f"{', '.join(TYPES)} or {IN_ORDER}")}
_PART = re.compile(r"[^0-9]*[0-9]+|.*?\.|.*")  # of a parameter's name: to its first number, else its first word
_STEM = re.compile(r"stem\.|(conv|bn)[0-9]+$")  # convolutions and norms before the first stage are one part


def decides_alone(rules: Mapping) -> bool:
    """Whether MMSegmentation's layer-wise decay is asked for, which takes no other key."""
    return any(key in rules for key in RULES) and rules.get("decay_type") != IN_ORDER


def layer_decay_faults(rules: Mapping) -> list[str]:
    """List what is wrong with the decay that a `paramwise_cfg` asks for, if it does: `layer_wise` and `stage_wise` need
    `num_layers` and `decay_rate` and none beside, `in_order` needs `decay_rate`."""
    if rules.get("decay_type") == IN_ORDER:
        wrong = rules.get("decay_rate") is None or "num_layers" in rules
        return [f"paramwise_cfg: decay_type in_order takes decay_rate and no num_layers; got {dict(rules)}"] * wrong
    if not decides_alone(rules):
        return []
    missing = [key for key in ("num_layers", "decay_rate") if rules.get(key) is None]
    if missing or set(rules) - {*RULES, "flat_decay_mult"}:
        return ["paramwise_cfg: layer-wise decay takes num_layers, decay_rate and decay_type "
                f"({' or '.join(TYPES)}), perhaps flat_decay_mult, and nothing else; got {dict(rules)}"]
    return []


def layer_decay(model, rules: Mapping) -> Callable[[str, jt.Var], tuple[float, float]]:
    """The rule that gives a parameter's (lr_mult, decay_mult) by its name.

    The learning rate of depth d is multiplied by decay_rate ** (num_layers + 1 - d), that of everything else by 1;
    biases and other vectors decay `flat_decay_mult` times, by default not.

    Args:
        model: a segmentor with a `backbone` whose class has `depth_of`.
        rules: `{num_layers, decay_rate, decay_type, flat_decay_mult}` that `layer_decay_faults` has nothing against;
            `decay_type` is "layer_wise" where it is not said.
    Raises:
        ConfigError: a backbone without `depth_of`.
    """
    kind = rules.get("decay_type") or TYPES[0]
    backbone = getattr(model, "backbone", None)
    depth_of = getattr(type(backbone), "depth_of", None)
    if depth_of is None:
        raise ConfigError(f"paramwise_cfg.decay_rate: {type(backbone).__name__} does not say how deep its layers are; "
                          "accepted: BEiT, ConvNeXt, DINOv2, MAE. Use decay_type: in_order, without num_layers, for "
                          "other backbones")
    count, rate, flat = rules["num_layers"], rules["decay_rate"], rules.get("flat_decay_mult") or 0.0

    def multipliers(name: str, param: jt.Var) -> tuple[float, float]:
        inside = name.startswith("backbone.")
        depth = depth_of(name[len("backbone."):], count, kind) if inside else None
        keeps = len(param.shape) == 1 or name.endswith(".bias")
        return 1.0 if depth is None else rate ** (count + 1 - depth), flat if keeps else 1.0

    return multipliers


def backbone_scale(model, rules: Mapping) -> Callable[[str], float]:
    """The factor on a parameter's rate by its name, from `backbone_lr_mult` and the decay `in_order`; 1 beside the
    backbone.

    Of n parts of the backbone, in the order in which its class makes them, part i (from 0) gets decay_rate ** (n - i).
    """
    base = rules.get("backbone_lr_mult", 1.0)
    names = [name for name, _ in model.named_parameters() if name.startswith("backbone.")]
    parts = list(dict.fromkeys(map(_part_of, names))) if rules.get("decay_type") == IN_ORDER else []
    factors = {part: rules["decay_rate"] ** (len(parts) - i) for i, part in enumerate(parts)}
    return lambda name: base * factors.get(_part_of(name), 1.0) if name.startswith("backbone.") else 1.0


def _part_of(name: str) -> str:
    part = _PART.match(name, len("backbone."))[0]
    return "stem" if _STEM.match(part) else part
