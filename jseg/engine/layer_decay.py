"""Layer-wise decay of the learning rate: the deeper in the backbone, counted from the head, the slower.

Clark et al., "ELECTRA", ICLR 2020; Bao et al., "BEiT", ICLR 2022; the words are those of mmsegmentation 1.2.2's
LearningRateDecayOptimizerConstructor (mmseg/engine/optimizers, Apache-2.0):
`paramwise_cfg: {num_layers, decay_rate, decay_type}`. How deep a parameter is, its backbone's class says:
`depth_of(key, num_layers, decay_type)`, 0 for the first layer, None beside the layers.
"""

from __future__ import annotations

from typing import Callable, Mapping

import jittor as jt

from jseg.errors import ConfigError
from jseg.rules import COUNT, FACTOR, Rule

__all__ = ["RULES", "layer_decay", "layer_decay_faults"]

TYPES = ("layer_wise", "stage_wise")
RULES = {"num_layers": COUNT, "decay_rate": FACTOR, "decay_type": Rule(lambda v: v in TYPES, " or ".join(TYPES))}


def layer_decay_faults(rules: Mapping) -> list[str]:
    """List what is wrong with a `paramwise_cfg` that names one of these keys: it needs the others and none beside."""
    missing = [key for key in ("num_layers", "decay_rate") if rules.get(key) is None]
    if missing or set(rules) - set(RULES):
        return ["paramwise_cfg: layer-wise decay takes num_layers, decay_rate and decay_type "
                f"({' or '.join(TYPES)}) and nothing else; got {dict(rules)}"]
    return []


def layer_decay(model, rules: Mapping) -> Callable[[str, jt.Var], tuple[float, float]]:
    """The rule that gives a parameter's (lr_mult, decay_mult) by its name.

    The learning rate of depth d is multiplied by decay_rate ** (num_layers + 1 - d), that of everything else by 1;
    biases and other vectors do not decay.

    Args:
        model: a segmentor with a `backbone` whose class has `depth_of`.
        rules: `{num_layers, decay_rate, decay_type}` that `layer_decay_faults` has nothing against; `decay_type` is
            "layer_wise" where it is not said.
    Raises:
        ConfigError: a backbone without `depth_of`.
    """
    kind = rules.get("decay_type") or TYPES[0]
    backbone = getattr(model, "backbone", None)
    depth_of = getattr(type(backbone), "depth_of", None)
    if depth_of is None:
        raise ConfigError(f"paramwise_cfg.decay_rate: {type(backbone).__name__} does not say how deep its layers are; "
                          "accepted: BEiT, ConvNeXt, MAE. Use custom_keys with lr_mult for other backbones")
    count, rate = rules["num_layers"], rules["decay_rate"]

    def multipliers(name: str, param: jt.Var) -> tuple[float, float]:
        inside = name.startswith("backbone.")
        depth = depth_of(name[len("backbone."):], count, kind) if inside else None
        keeps = len(param.shape) == 1 or name.endswith(".bias")
        return 1.0 if depth is None else rate ** (count + 1 - depth), 0.0 if keeps else 1.0

    return multipliers
