"""UperNetForSemanticSegmentation with a Swin or ConvNeXt backbone: UPerHead and FCNHead.

Source: transformers 5.24 models/upernet/modeling_upernet.py (Apache-2.0).
"""

from __future__ import annotations

from jseg.convert.hf.convnext import convnext_backbone, convnext_rules
from jseg.convert.hf.facts import Facts
from jseg.convert.hf.plan import Plan, encoder_decoder
from jseg.convert.hf.swin import swin_backbone, swin_constants, swin_rules, swin_widths
from jseg.convert.hf.uper import uper_heads, uper_rules

__all__ = ["ARCHITECTURES", "PROCESSOR", "plan"]

ARCHITECTURES, PROCESSOR = ("UperNetForSemanticSegmentation",), "Segformer"


def plan(facts: Facts) -> Plan:
    """The model of a config."""
    found = facts.block("backbone_config")
    if found.choice("model_type", None, ["swin", "convnext"]) == "swin":
        block = swin_backbone(found)
        widths, constants = swin_widths(block), swin_constants(block)
        rules = swin_rules("backbone.", [f"backbone.hidden_states_norms.stage{i + 1}" for i in block["out_indices"]])
    else:
        block, constants = convnext_backbone(found), {}
        widths, rules = block["arch"]["channels"], convnext_rules(block, "backbone.")
    head, auxiliary = uper_heads(facts, widths, facts.integer("hidden_size", 512))
    return Plan(encoder_decoder(block, head, auxiliary=auxiliary, direct=False), rules + uper_rules("batch_norm"),
                constants)
