"""`jseg export` to MMSegmentation's format: the way back by `jseg convert`, byte for byte, and the config inside."""

from __future__ import annotations

import copy
import pickletools
import zipfile

import jittor as jt
import numpy as np
import pytest

import jseg.data.datasets  # noqa: F401  (registers them)
from jseg.cli import main
from jseg.config import load_config
from jseg.convert.torch_file import read_torch_file
from jseg.engine.checkpoint import load_weights, model_state, save_weights
from jseg.export.mmseg_settings import mmseg_settings
from jseg.export.torch_pickle import torch_archive
from jseg.models import build_model
from jseg.models.backbones.poolformer import PoolFormer
from jseg.models.backbones.stdc_net import STDCNet
from jseg.models.heads.ann_head import ANNHead
from jseg.models.heads.fcn_head import FCNHead
from jseg.models.heads.mask2former_head import Mask2FormerHead

CLASSES = ["sky", "road", "car"]


def head(block: dict, widths, **words) -> dict:
    return {"in_channels": widths, "num_classes": 3, **block, **words}


MODELS = {
    "segnext": {"backbone": {"type": "MSCAN", "embed_dims": [8, 16, 32, 32], "depths": [1, 1, 1, 1],
                             "mlp_ratios": [2, 2, 2, 2]},
                "decode_head": {"type": "LightHamHead", "in_channels": [16, 32, 32], "in_index": [1, 2, 3],
                                "channels": 16, "ham_channels": 16, "num_classes": 3, "ham_kwargs": {"MD_R": 4},
                                "norm_cfg": {"type": "GN", "num_groups": 4}}},
    "shared projections": {"backbone": {"type": "ResNetV1c", "depth": 18, "base_channels": 8, "stem_channels": 8,
                                        "norm_cfg": {"type": "SyncBN"}},
                           "decode_head": head(ANNHead.TINY, [32, 64], in_index=[2, 3])},
    "a convolution twice": {"backbone": dict(STDCNet.TINY),
                            "decode_head": head(FCNHead.TINY, 32, in_index=2)},
    "windows": {"backbone": {"type": "SwinTransformer", "embed_dims": 8, "window_size": 3, "depths": [1, 1, 1, 2],
                             "num_heads": [1, 2, 2, 4]},
                "decode_head": {"type": "FCNHead", "in_channels": 64, "in_index": 3, "channels": 8, "num_classes": 3}},
    "masks": {"backbone": dict(PoolFormer.TINY), "decode_head": head(Mask2FormerHead.TINY, [8, 12, 16, 24])},
}


@pytest.fixture(params=MODELS)
def checkpoint(request, tmp_path):
    """(name, file) of a model with random weights, in single precision."""
    jt.set_global_seed(1)
    block = copy.deepcopy(MODELS[request.param])
    config = {**load_config("configs/segnext/segnext_tiny_demo-128x160_cpu.yaml"),
              "model": {"type": "EncoderDecoder", **block, "test_cfg": {"mode": "whole"}}}
    path = tmp_path / "small.safetensors"
    save_weights(path, model_state(build_model(config)),
                 {"config": config, "classes": CLASSES, "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]})
    return request.param, path


def test_converting_it_back_gives_the_same_weights(checkpoint, tmp_path):
    name, path = checkpoint
    assert main(["export", str(path), str(tmp_path / "model.pth")]) == 0
    content = read_torch_file(tmp_path / "model.pth")
    state, keys = content["state_dict"], set(load_weights(path)[0])
    more = {key for key in set(state) - keys if not key.endswith("num_batches_tracked")}
    assert keys <= set(state) and bool(more) == (name in ("shared projections", "a convolution twice")), more
    indices = [value for key, value in state.items() if key.endswith("relative_position_index")]
    assert bool(indices) == (name == "windows") and all(value.numpy().dtype == np.int64 for value in indices)
    assert content["meta"]["dataset_meta"]["classes"] == CLASSES
    assert main(["convert", str(tmp_path / "model.pth"), str(tmp_path / "back.safetensors")]) == 0
    (ours, meta), (back, meta_back) = load_weights(path), load_weights(tmp_path / "back.safetensors")
    assert ours.keys() == back.keys() and meta["palette"] == meta_back["palette"]
    for key, value in ours.items():
        assert value.tobytes() == back[key].tobytes(), key


def test_the_archive_is_plain_data(tmp_path):
    content = {"state_dict": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int64)},
               "meta": {"text": "Füße", "number": 1 << 40, "none": None, "yes": True, "pair": (1, -2.5), "list": []}}
    (tmp_path / "a.pth").write_bytes(b"".join(torch_archive(content)))
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        assert file.testzip() is None and file.read("archive/byteorder") == b"little"
        names = {arg for op, arg, _ in pickletools.genops(file.read("archive/data.pkl")) if op.name == "GLOBAL"}
    assert names == {"torch FloatStorage", "torch LongStorage", "torch._utils _rebuild_tensor_v2",
                     "collections OrderedDict"}
    found = read_torch_file(tmp_path / "a.pth")
    assert found["meta"] == content["meta"]
    for key, value in content["state_dict"].items():
        np.testing.assert_array_equal(found["state_dict"][key].numpy(), value)
    with pytest.raises(ValueError, match="set has no place"):
        list(torch_archive({"meta": {1}}))


def test_classes_of_other_packages_are_named_with_them():
    found = mmseg_settings({"model": {"type": "EncoderDecoder", **copy.deepcopy(MODELS["masks"])}})
    head, assigner = found["model"]["decode_head"], found["model"]["decode_head"]["train_cfg"]["assigner"]
    assert found["model"]["backbone"]["type"] == "mmpretrain.PoolFormer"
    assert found["custom_imports"]["imports"] == ["mmpretrain.models"]
    assert (head["type"], head["pixel_decoder"]["type"]) == ("Mask2FormerHead", "mmdet.MSDeformAttnPixelDecoder")
    assert head["loss_cls"]["type"] == "mmdet.CrossEntropyLoss" and head["loss_cls"]["class_weight"] == [1, 1, 1, 0.1]
    assert assigner["type"] == "mmdet.HungarianAssigner" and head["train_cfg"]["sampler"]
    assert all(cost["type"].startswith("mmdet.") for cost in assigner["match_costs"])
    cgnet = {"type": "CGNet", "num_channels": [8, 8, 8], "norm_cfg": {"type": "BN"}}
    found = mmseg_settings({"model": {"type": "EncoderDecoder", "backbone": cgnet, "decode_head": None}})
    assert found["model"]["backbone"]["num_channels"] == (8, 8, 8) and "custom_imports" not in found


def test_settings_in_mmsegmentations_words():
    config = {"model": {"type": "EncoderDecoder", "impl": "auto", "backbone": {"type": "MSCAN", "variant": "base"},
                        "decode_head": [{"type": "FCNHead", "norm_cfg": {"type": "BN", "sync": False}},
                                        {"type": "PointHead", "subdivision_steps": 3, "num_points": 100}],
                        "neck": None, "test_cfg": {"mode": "slide", "crop_size": [8, 8], "stride": [4, 4]}},
              "data_preprocessor": {"type": "SegDataPreProcessor", "test_cfg": {"resize_divisor": 32}},
              "val_dataloader": {"dataset": {"type": "ADE20KDataset", "pipeline": [
                  {"type": "LoadImageFromFile"}, {"type": "Resize", "scale": [2048, 512]}, {"type": "LoadAnnotations"},
                  {"type": "PackSegInputs"}]}}}
    found = mmseg_settings(config)
    model = found["model"]
    assert model["backbone"]["depths"] == [3, 3, 12, 3] and not {"variant", "impl", "neck"} & {*model["backbone"],
                                                                                              *model}
    assert "sync" not in model["decode_head"][0]["norm_cfg"]
    assert model["train_cfg"] == {"num_points": 100} and model["test_cfg"] == {
        "mode": "slide", "crop_size": (8, 8), "stride": (4, 4), "subdivision_steps": 3}
    assert [step["type"] for step in found["test_pipeline"]] == ["LoadImageFromFile", "Resize", "ResizeToMultiple",
                                                                 "PackSegInputs"]
    assert found["test_pipeline"][1]["scale"] == (2048, 512)
    assert [step["type"] for step in found["val_dataloader"]["dataset"]["pipeline"]][2:4] == ["ResizeToMultiple",
                                                                                              "LoadAnnotations"]
    assert found["data_preprocessor"]["test_cfg"] is None
