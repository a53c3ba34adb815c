"""Models of Hugging Face: layouts that transformers wrote, a whole model against its label map, and folders that lie.

The files under golden/ were written by transformers (make_hf_files.py); no PyTorch is needed to read them.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import shutil

import jittor as jt
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jseg.data.datasets  # noqa: F401  (registers the datasets, whose class names are compared)
from jseg.cli import main
from jseg.convert.checkpoint import convert_checkpoint
from jseg.convert.guess.swin import merging_order
from jseg.convert.hf.facts import Facts
from jseg.convert.hf.processor import pipeline_of
from jseg.data.transforms import PillowResize
from jseg.engine.model_file import open_model_file
from jseg.engine.predict import InferenceSegmentor
from jseg.errors import CheckpointError, ConvertError

pytestmark = pytest.mark.usefixtures("few_kernels")
GOLDEN = pathlib.Path(__file__).parent / "golden"
LAYOUTS = json.loads(gzip.decompress((GOLDEN / "hf_layouts.json.gz").read_bytes()))


@pytest.fixture
def folder(tmp_path):
    """The golden SegFormer, to be spoilt."""
    return pathlib.Path(shutil.copytree(GOLDEN / "hf_segformer", tmp_path / "model"))


def saved(layout: dict, folder: pathlib.Path) -> dict:
    """A folder with random tensors of a layout; the tensors."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {key: np.asarray(rng.standard_normal(shape), np.float32) if shape else np.zeros((), np.int64)
               for key, shape in layout["keys"].items()}
    (folder / "config.json").write_text(json.dumps(layout["config"]))
    (folder / "preprocessor_config.json").write_text(json.dumps(layout["processor"]))
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_key_of_a_layout_is_accounted_for(name, tmp_path):
    tensors = saved(LAYOUTS[name], tmp_path / "model")
    done = convert_checkpoint(tmp_path / "model", tmp_path / "out.safetensors")
    assert sorted([*done.loaded, *done.renamed, *done.dropped]) == sorted(tensors)
    assert all(key.endswith("num_batches_tracked") or key.startswith("auxiliary_head") or "residual_layer1" in key
               or "layernorm" in key or "empty_weight" in key or "position_index" in key
               or key == "embeddings.register_tokens" for key in done.dropped)
    file = open_model_file(done.out)
    file.build()
    assert file.classes == [f"thing {i}" for i in range(7)]
    read = sum(np.prod(shape) for key, shape in LAYOUTS[name]["keys"].items() if key not in done.dropped)
    assert read == sum(v.size for key, v in file.state.items() if "position_index" not in key)


def test_a_whole_model_gives_its_label_map(folder, tmp_path):
    done = convert_checkpoint(folder, tmp_path / "out.safetensors")
    segmentor, reference = InferenceSegmentor(done.out), np.load(folder / "out.npz")
    labels = segmentor.infer(folder / "street.jpg")
    assert (labels == reference["labels"]).mean() >= 0.999
    assert segmentor.classes == ["road", "sky", "tree"]
    view = segmentor._transforms({"img": jseg.data.io.read_image(folder / "street.jpg"), "img_path": ""},
                                 np.random.default_rng(0))
    logits = segmentor._model(jt.array(segmentor._preprocessor.batch([view], training=False).images)).numpy()
    theirs = reference["logits"]
    assert np.abs(logits - theirs).max() <= 1e-4 * np.ptp(theirs)


def test_shards_and_half_precision_read_alike(folder, tmp_path):
    whole = convert_checkpoint(folder, tmp_path / "whole.safetensors")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}))
    assert convert_checkpoint(folder, tmp_path / "sharded.safetensors").sha256 == whole.sha256
    assert convert_checkpoint(index, tmp_path / "index.safetensors").sha256 == whole.sha256
    save_file({key: tensors[key].astype(np.float16) for key in shards["model-00001-of-00002.safetensors"]
               if tensors[key].dtype == np.float32} | {key: tensors[key] for key in names[::2]
                                                       if tensors[key].dtype != np.float32},
              folder / "model-00001-of-00002.safetensors")
    convert_checkpoint(folder, tmp_path / "half.safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConvertError, match="model-00002-of-00002.safetensors is not there; fetch all 2 files"):
        convert_checkpoint(folder, tmp_path / "missing.safetensors")


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "", 3, "a/b.safetensors", "x.pkl"])
def test_an_index_names_files_of_its_folder_only(folder, tmp_path, shard):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": shard}}))
    with pytest.raises(ConvertError, match="accepted are names of .safetensors and .bin files of the same folder"):
        convert_checkpoint(index, tmp_path / "out.safetensors")


def test_an_index_that_lists_other_tensors_is_refused(folder, tmp_path):
    index = folder / "model.safetensors.index.json"
    keys = list(load_file(folder / "model.safetensors"))
    index.write_text(json.dumps({"weight_map": {key: "model.safetensors" for key in keys[1:]}}))
    with pytest.raises(ConvertError, match="they differ in"):
        convert_checkpoint(index, tmp_path / "out.safetensors")


def _spoilt(tensors: dict) -> dict[str, tuple[dict, str]]:
    some = "segformer.encoder.block.0.0.attention.self.key.weight"
    return {"missing": ({k: v for k, v in tensors.items() if k != "decode_head.classifier.bias"},
                        "1 missing in the file: decode_head.conv_seg.bias"),
            "a piece missing": ({k: v for k, v in tensors.items() if k != some}, "without its key; the file is incom"),
            "unknown": ({**tensors, "decode_head.extra.weight": np.zeros(2, np.float32)},
                        "1 keys unknown to this family: decode_head.extra.weight"),
            "another shape": ({**tensors, "decode_head.classifier.bias": np.zeros(4, np.float32)},
                              "decode_head.conv_seg.bias (file (4,), model (3,))"),
            "pieces that do not fit": ({**tensors, some: np.zeros((4, 5), np.float32)}, "cannot be joined"),
            "not finite": ({**tensors, "decode_head.classifier.bias": np.full(3, np.nan, np.float32)}, "NaN or inf in")}


@pytest.mark.parametrize("what", _spoilt({}))
def test_keys_that_do_not_fit_stop_the_conversion(folder, tmp_path, what):
    tensors, words = _spoilt(load_file(folder / "model.safetensors"))[what]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConvertError) as caught:
        convert_checkpoint(folder, tmp_path / "out.safetensors")
    assert words in str(caught.value) and str(folder) in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


BAD = {"architectures": [[], ["BertModel"], "SegformerForSemanticSegmentation", [3], None, ["A", "B"]],
       "depths": [[1, 1, 1], [1, 1, 1, 10**9], "2", [1, 1, 1, True], {}, [], [-1, 1, 1, 1]],
       "hidden_sizes": [[4, 8, 12, 10**12], [4, 8, 12, 17], [4, 8, 12, 16.0]], "mlp_ratios": [[2, 2, 2, 4]],
       "hidden_act": ["relu", 3], "num_encoder_blocks": [0, 9, 10**30], "decoder_hidden_size": [-1, "8", [8]],
       "id2label": [{"0": "a"}, {"0": "a", "2": "b"}, ["a", "b"], {"0": "a", "1": 5}, {"0": "a", "1": "x" * 1000}]}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in BAD.items() for value in values])
def test_a_config_that_nobody_means_is_refused(folder, tmp_path, key, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ConvertError, match="config.json"):
        convert_checkpoint(folder, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": NaN}', "\xff", '{"architectures": 1e999}'])
def test_a_config_that_is_no_json_is_refused(folder, tmp_path, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConvertError, match="config.json"):
        convert_checkpoint(folder, tmp_path / "out.safetensors")


def test_what_the_command_says(folder, tmp_path, capsys):
    assert main(["convert", str(folder)]) == 0  # beside the folder
    assert (tmp_path / "model.safetensors").exists() and "SegformerForSemanticSegmentation" in capsys.readouterr().out
    for source in (folder, folder / "model.safetensors"):
        assert main(["predict", str(source), str(folder / "street.jpg"), "--out", str(tmp_path / "masks")]) == 2
        assert f"jseg convert {folder} OUT.safetensors" in capsys.readouterr().err
        with pytest.raises(CheckpointError, match="jseg convert"):
            InferenceSegmentor(source)
    assert main(["convert", str(folder), str(folder / "model.safetensors")]) == 2
    assert "is the file to convert" in capsys.readouterr().err
    assert main(["convert", str(folder), str(tmp_path / "x.safetensors"), "--config", "a.py"]) == 2
    (folder / "model.safetensors").unlink()
    assert main(["convert", str(folder), str(tmp_path / "x.safetensors")]) == 2
    assert "no weights in it" in capsys.readouterr().err
    assert main(["convert", str(tmp_path), str(tmp_path / "x.safetensors")]) == 2
    assert "a folder without config.json" in capsys.readouterr().err


def test_merged_patches_change_their_order(rng):
    """The file joins patches column by column, each with all its channels; jseg has the channels outside."""
    patch, weight = rng.standard_normal((2, 2, 3)), rng.standard_normal((5, 12))  # rows, columns, channels
    theirs = np.concatenate([patch[row, column] for column in range(2) for row in range(2)])
    ours = patch.transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(merging_order(weight) @ ours, weight @ theirs)


# picture (height, width), words, result: transformers 5.24
SIZES = [((333, 500), {"shortest_edge": 512, "longest_edge": 2048, "size_divisor": 32}, (512, 768)),
         ((333, 500), {"shortest_edge": 640, "longest_edge": 640}, (426, 640)),
         ((1024, 2048), {"shortest_edge": 800, "longest_edge": 1333, "size_divisor": 32}, (672, 1344)),
         ((2047, 1023), {"shortest_edge": 640, "longest_edge": 640}, (640, 320)),
         ((37, 1000), {"shortest_edge": 800, "longest_edge": 1333, "size_divisor": 32}, (64, 1344)),
         ((37, 1000), {"shortest_edge": 640, "longest_edge": 640}, (24, 640)),
         ((480, 640), {"shortest_edge": 640, "longest_edge": 640}, (480, 640)),
         ((333, 500), {"size": [384, 384], "keep_ratio": True, "multiple_of": 32}, (384, 576)),
         ((333, 500), {"size": [384, 384], "keep_ratio": True}, (384, 577)),
         ((37, 1000), {"size": [384, 384], "keep_ratio": True}, (14, 384)),
         ((333, 500), {"size": [100, 90], "size_divisor": 32}, (128, 96)),
         ((2047, 1023), {"size": [384, 384], "multiple_of": 32}, (384, 384))]


@pytest.mark.parametrize("size, words, wanted", SIZES)
def test_sizes_of_image_processors(size, words, wanted):
    assert PillowResize(**words).target(size) == wanted


def test_pipelines_of_image_processors():
    notes = []
    steps, block = pipeline_of(None, "Segformer", notes)
    assert steps[1] == {"type": "PillowResize", "size": [512, 512], "interpolation": "bilinear"}
    assert "the defaults of transformers' SegformerImageProcessor" in notes[0]
    np.testing.assert_allclose(block["mean"], [123.675, 116.28, 103.53])
    np.testing.assert_allclose(block["std"], [58.395, 57.12, 57.375])
    old = {"feature_extractor_type": "MaskFormerFeatureExtractor", "size": 640, "max_size": 2560,
           "reduce_labels": True, "size_divisibility": 64, "resample": 3, "image_mean": [0.5, 0.5, 0.5]}
    steps, block = pipeline_of(Facts(old, "p.json"), "Mask2Former", [])
    assert steps[1] == {"type": "PillowResize", "shortest_edge": 640, "longest_edge": 2560, "size_divisor": 64,
                        "interpolation": "bicubic"}
    assert steps[2] == {"type": "LoadAnnotations", "reduce_zero_label": True} and block["mean"] == [127.5] * 3
    for words in ({"size": {"edge": 3}}, {"do_center_crop": True, "crop_size": 200}, {"image_std": [0, 1, 1]},
                  {"image_processor_type": "CLIPImageProcessor"}, {"resample": 9}, {"rescale_factor": 0},
                  {"image_mean": [1, 2]}, {"size": 10**9}, {"do_resize": "no"}):
        with pytest.raises(ConvertError, match="p.json"):
            pipeline_of(Facts(words, "p.json"), "Segformer", [])


def test_class_names_bring_the_colours_of_their_dataset(folder, tmp_path):
    from jseg.registry import DATASETS
    known = DATASETS.get("CityscapesDataset").METAINFO
    path, tensors = folder / "config.json", load_file(folder / "model.safetensors")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "id2label": {str(i): name for i, name in enumerate(known["classes"])}}))
    for key in ("decode_head.classifier.weight", "decode_head.classifier.bias"):
        tensors[key] = np.zeros((19, *tensors[key].shape[1:]), np.float32)
    save_file(tensors, folder / "model.safetensors")
    file = open_model_file(convert_checkpoint(folder, tmp_path / "out.safetensors").out)
    assert file.classes == list(known["classes"]) and file.palette.tolist() == [list(row) for row in known["palette"]]
