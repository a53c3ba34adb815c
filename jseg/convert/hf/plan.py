"""What a family says of a model: jseg's block and the table of its keys, and words that several families share."""

from __future__ import annotations

import dataclasses
from typing import Any, Sequence

import numpy as np

from jseg.convert.hf.facts import LAYERS, Facts
from jseg.convert.hf.keys import Rule

__all__ = ["Plan", "classifier", "conv_block", "encoder_decoder", "gelu", "group_block", "joined", "linear", "norm",
           "stage_depths"]


@dataclasses.dataclass
class Plan:
    """What a family gives.

    Args:
        model: jseg's model block.
        rules: rows for every key of the file.
        constants: our key -> value that the file may lack, because it follows from the sizes.
    """

    model: dict[str, Any]
    rules: list[Rule]
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def encoder_decoder(backbone: dict, head: dict, *, neck: dict | None = None, auxiliary: dict | None = None,
                    direct: bool) -> dict[str, Any]:
    """A model block; `direct`: scores are resized straight to the picture's own size."""
    test = {"mode": "whole", **({"direct": True} if direct else {})}
    return {"type": "EncoderDecoder", "backbone": backbone, "neck": neck, "decode_head": head,
            "auxiliary_head": auxiliary, "test_cfg": test}


def gelu(facts: Facts, key: str = "hidden_act") -> dict[str, str]:
    """The activation block; the exact GELU is all that these families were published with."""
    facts.choice(key, "gelu", ["gelu"])
    return {"type": "GELU"}


def stage_depths(facts: Facts, usual: list[int]) -> list[int]:
    """Blocks of each stage of a backbone, `usual` where its config does not say; all stages give a map.

    Raises:
        ConvertError: numbers out of range, or `out_features` that leave a stage out.
    """
    depths = facts.integers("depths", usual, high=LAYERS)
    wanted = [f"stage{i + 1}" for i in range(len(depths))]
    if (facts.values.get("out_features") or wanted) != wanted:
        raise facts.fault("out_features", str(wanted))
    return depths


def linear(source: str, target: str) -> Rule:
    """Weight and bias under other names."""
    return Rule(f"{source}.{{p}}", f"{target}.{{p}}")


norm = linear


def joined(source: str, pieces: Sequence[str], target: str) -> list[Rule]:
    """Queries, keys and values, three layers in the file, one tensor for each of weight and bias here."""
    return [Rule(f"{source}[{'|'.join(pieces)}].{{p}}", f"{target}{{p}}")]


def conv_block(source: str, target: str, bn: str) -> list[Rule]:
    """A convolution and its batch norm, which the file calls `bn`."""
    return [Rule(f"{source}.conv.weight", f"{target}.conv.weight"), Rule(f"{source}.{bn}.{{s}}", f"{target}.bn.{{s}}")]


def group_block(source: str, target: str) -> list[Rule]:
    """A convolution and its group norm, which the file numbers."""
    return [Rule(f"{source}.0.{{p}}", f"{target}.conv.{{p}}"), Rule(f"{source}.1.{{p}}", f"{target}.gn.{{p}}")]


def classifier(facts: Facts) -> int:
    """Number of classes."""
    return len(facts.class_names())
