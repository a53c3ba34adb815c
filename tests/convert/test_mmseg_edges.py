"""GenerateEdge is a transform in MMSegmentation and a word of the head here."""

from __future__ import annotations

from jseg.convert.mmseg_config import translate_config
from jseg.registry import MODELS

LOSSES = [{"type": "CrossEntropyLoss"}, {"type": "OhemCrossEntropy", "thres": 0.9},
          {"type": "BoundaryLoss", "loss_weight": 20.0}, {"type": "OhemCrossEntropy", "thres": 0.9}]


def source(head: dict, step: dict | None) -> dict:
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, *([step] if step else []),
                {"type": "PackSegInputs"}]
    return {"model": {"type": "EncoderDecoder",
                      "backbone": {"type": "PIDNet", "channels": 32, "norm_cfg": {"type": "SyncBN"}},
                      "decode_head": {"num_classes": 19, "channels": 8, "norm_cfg": {"type": "SyncBN"}, **head}},
            "train_dataloader": {"batch_size": 2,
                                 "dataset": {"type": "CityscapesDataset", "data_root": "data", "pipeline": pipeline}}}


def pid_head(**words) -> dict:
    return {"type": "PIDHead", "in_channels": 128, "loss_decode": LOSSES, **words}


def test_its_width_goes_to_the_head():
    for step, width in (({"edge_width": 6}, 6), ({}, 3)):  # 3: the transform's own default
        found = translate_config(source(pid_head(), {"type": "GenerateEdge", **step}), source="a.py")
        assert found.config["model"]["decode_head"]["edge_width"] == width
        pipeline = found.config["train_dataloader"]["dataset"]["pipeline"]
        assert [item["type"] for item in pipeline] == ["LoadImageFromFile", "LoadAnnotations", "PackSegInputs"]
        assert not [line for line in found.notes if "Edge" in line]
        MODELS.build(found.config["model"]["decode_head"])


def test_without_it_nothing_is_said():
    assert "edge_width" not in translate_config(source(pid_head(), None), source="a.py").config["model"]["decode_head"]


def test_what_cannot_be_handed_over_is_said():
    other = {"type": "FCNHead", "in_channels": 128, "in_index": 1}
    found = translate_config(source(other, {"type": "GenerateEdge"}), source="a.py")
    assert any("no head of this model learns edges" in line for line in found.notes)
    found = translate_config(source(pid_head(), {"type": "GenerateEdge", "ignore_index": 7}), source="a.py")
    assert any(line.startswith("GenerateEdge.ignore_index: 7") for line in found.notes)
