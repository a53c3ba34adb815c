"""UPerNet's heads, which two families of transformers have: UPerHead, and FCNHead for training.

Source: transformers 5.24 models/upernet/modeling_upernet.py and models/beit/modeling_beit.py (Apache-2.0). Only the
batch norm has another name in each.
"""

from __future__ import annotations

from jseg.convert.hf.facts import Facts
from jseg.convert.hf.keys import Rule
from jseg.convert.hf.plan import classifier, conv_block, linear

__all__ = ["uper_heads", "uper_rules"]


def uper_heads(facts: Facts, widths: list[int], channels: int) -> tuple[dict, dict | None]:
    """The decode head's block, and the auxiliary head's where the config has one."""
    words = {"num_classes": classifier(facts), "norm_cfg": {"type": "BN"}, "align_corners": False,
             "dropout_ratio": 0.1}
    head = {"type": "UPerHead", "in_channels": widths, "in_index": list(range(len(widths))), "channels": channels,
            "pool_scales": facts.integers("pool_scales", [1, 2, 3, 6]), **words}
    if not facts.flag("use_auxiliary_head", True):
        return head, None
    convs = facts.integer("auxiliary_num_convs", 1, low=0)
    if len(widths) < 3:
        raise facts.fault("use_auxiliary_head", "false, where the backbone gives fewer than three maps")
    auxiliary = {"type": "FCNHead", "in_channels": facts.integer("auxiliary_in_channels", widths[2]), "in_index": 2,
                 "channels": facts.integer("auxiliary_channels", 256), "num_convs": convs,
                 "concat_input": facts.flag("auxiliary_concat_input", False), **words,
                 "loss_decode": {"type": "CrossEntropyLoss",
                                 "loss_weight": facts.number("auxiliary_loss_weight", 0.4)}}
    return head, auxiliary


def uper_rules(bn: str) -> list[Rule]:
    """Rows of both heads; the file calls its batch norms `bn`."""
    heads = {"decode_head": ("psp_modules.{i}.1", "bottleneck", "lateral_convs.{i}", "fpn_convs.{i}", "fpn_bottleneck"),
             "auxiliary_head": ("convs.{i}", "conv_cat")}
    return [row for head, blocks in heads.items()
            for row in [*(row for block in blocks for row in conv_block(f"{head}.{block}", f"{head}.{block}", bn)),
                        linear(f"{head}.classifier", f"{head}.conv_seg")]]
