"""Checkpoints of other tools, with odd metadata, or made to harm: one line with the file's name, status 2."""

import json
import os
import struct
import sys

import numpy as np
import pytest
from small_model import small_segnext

from jseg.cli import main
from jseg.engine.checkpoint import load_into, load_weights, model_state, save_weights
from jseg.engine.limits import without_files
from jseg.engine.model_file import open_model_file, stored_palette
from jseg.engine.predict import InferenceSegmentor
from jseg.errors import CheckpointError
from jseg.weights_file import nonfinite_text

CLASSES, PALETTE = ["sky", "road", "tree"], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.fixture(scope="module")
def small():
    """(weights, config) of a small model that infers well."""
    import jittor as jt

    from jseg.models import build_model
    jt.set_global_seed(3)
    config = small_segnext()
    return model_state(build_model(config)), config


def header(entries, data=b"", *, length=None, tail=b"") -> bytes:
    """A .safetensors file with this header, given as text or as what becomes JSON."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data + tail


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EIGHT = b"\0" * 8
RAW = {
    "empty": (b"", "it is empty"), "seven bytes": (b"1234567", "should have 0 bytes, the file has 7"),
    "no header": (struct.pack("<Q", 0), "should have 0 bytes"),
    "header beyond the end": (header({"a": entry()}, EIGHT, length=1 << 40), "truncated"),
    "header of 2 ** 64": (b"\xff" * 64, "truncated, damaged"),
    "large header": (struct.pack("<Q", 17 << 20) + b" " * (18 << 20), "at most 16777216 are read"),
    "no JSON": (header(b"{{{{"), "Expecting"), "no text": (header(b"\xff\xfe{}"), "can't decode"),
    "a list": (header(b"[]"), "its header is a list"),
    "deep": (header(b"[" * 100_000 + b"]" * 100_000), "header is a list|nested too deeply"),
    "double name": (header(b'{"a":{},"a":{}}'), "'a' stands twice"),
    "no fields": (header({"a": {}}), "has no dtype, shape"), "a number": (header({"a": 3}), "has no dtype"),
    "8-bit floats": (header({"a": entry("F8_E4M3", (8,))}, EIGHT), "has the type 'F8_E4M3'; read are F64"),
    "dtype list": (header({"a": entry([])}, EIGHT), "type '\\[\\]'"),
    "negative shape": (header({"a": entry(shape=(-2,))}, EIGHT), "has the shape"),
    "shape of floats": (header({"a": entry(shape=(2.0,))}, EIGHT), "shape"),
    "shape of text": (header({"a": {**entry(), "shape": "2"}}, EIGHT), "shape"),
    "huge count": (header({"a": entry(shape=(1 << 60,))}, EIGHT), "needs"),
    "overflowing count": (header({"a": entry(shape=(1 << 61, 1 << 61, 16))}, EIGHT), "needs"),
    "many dimensions": (header({"a": entry(shape=(1,) * 40)}, EIGHT), "shape"),
    "offsets back": (header({"a": entry(offsets=(8, 0))}, EIGHT), "data_offsets"),
    "offsets beyond": (header({"a": entry(offsets=(0, 8))}), "truncated"),
    "one offset": (header({"a": entry(offsets=(0,))}, EIGHT), "data_offsets"),
    "same offsets": (header({"a": entry(), "b": entry()}, EIGHT), "'b' overlaps 'a'"),
    "a gap": (header({"a": entry(offsets=(8, 16))}, EIGHT * 2), "leaves 8 bytes before it unused"),
    "longer": (header({"a": entry()}, EIGHT, tail=b"x"), "longer than written"),
    "metadata list": (header({"__metadata__": [], "a": entry()}, EIGHT), "not texts"),
    "metadata numbers": (header({"__metadata__": {"a": 1}}), "not texts"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
    "zip": (b"PK\3\4" + b"\x14\0\0\x08" * 20, "jseg convert"),
    "pickle": (b"\x80\x02}q\0." + b"\xff" * 20, "jseg convert"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "no tensors": (header({"__metadata__": {}}), "carries no config"),
    "other tool": (header({"a": entry()}, EIGHT), "jseg export .* --config"),
    "escape in a name": (header({"\x1b[31m": entry("F8", (8,))}, EIGHT), "x1b"),
    "scalar": (header({"a": entry(shape=(), offsets=(0, 4))}, EIGHT[:4]), "carries no config"),
}


@pytest.mark.parametrize("name", RAW)
def test_a_file_of_another_tool_ends_in_one_line(name, tmp_path, capsys):
    content, words = RAW[name]
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    (tmp_path / "p.png").write_bytes(b"never read")
    assert main(["predict", str(path), str(tmp_path / "p.png"), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(str(path)) and len(err) < 800 and err[:-1].isprintable(), err
    with pytest.raises(CheckpointError, match=words):
        InferenceSegmentor(path)
    assert sorted(os.listdir(tmp_path)) == ["odd.safetensors", "p.png"]


def changed(config: dict, place: str, value) -> dict:
    config = json.loads(json.dumps(config))
    block = config
    *above, last = place.split(".")
    for key in above:
        block = block[key]
    block[last] = value
    return config


CONFIGS = [
    ("model.decode_head.num_classes", 10 ** 9, "num_classes: got 1e"),
    ("model.backbone.depths", [10 ** 6] * 4, "depths.0: got 1000000"),
    ("model.backbone.embed_dims", [10 ** 9] * 4, "embed_dims.0"),
    ("model.decode_head.ham_kwargs.MD_R", 10 ** 9, "MD_R: got"),
    ("model.backbone.embed_dims", [2048] * 4, "about .* values, the file holds"),
    ("model.decode_head.in_index", [1, 2, 10 ** 9], "in_index.2"),
    ("model.decode_head.in_index", [1, 2, 9], "the backbone makes 4 maps"),
    ("model.decode_head.in_index", [0, 1, 2], r"have \[8, 16, 32\] channels"),
    ("model.decode_head.ham_kwargs.eval_steps", 10 ** 9, "eval_steps"),
    ("model.decode_head.ham_kwargs.eval_steps", float("inf"), "got inf"),
    ("model.test_cfg", {"mode": "slide", "crop_size": [512, 512], "stride": [1, 1]}, "stride: got 1"),
    ("tta", {"scales": [1e9]}, "tta.scales.0"),
    ("tta", [1], "tta: got"), ("tta", {"flip": 3}, "tta.flip"), ("model", 3, "no model block"),
    ("model.decode_head", None, "no model.decode_head block"),
    ("model.backbone", "MSCAN", "no model.backbone block"),
    ("model.backbone.type", "Nothing", "unknown model 'Nothing'"), ("model.backbone.type", [], "config inside"),
    ("model.backbone.depths", 3, "config inside"), ("model.backbone.depths", ["a", 1, 1, 1], "config inside"),
    ("model.backbone.norm_cfg", 3, "config inside"),
    ("model.decode_head.in_channels", "abc", "config inside"),
    ("model.decode_head.num_classes", "3", "num_classes is '3'"), ("data_preprocessor", None, "data_preprocessor"),
    ("data_preprocessor.mean", "x", "config inside"), ("val_dataloader.dataset.pipeline", [3], "config inside"),
    ("_base_", "/etc/passwd", "_base_: inherits"),
    ("model.decode_head.ham_kwargs.MD_R", 1.5, "MD_R: got 1.5, expected a whole number"),
    ("data_preprocessor.test_cfg.size_divisor", 1.5, "size_divisor: got 1.5"),
    ("model.decode_head.loss_decode", "x.json", "config inside"),
    ("model.decode_head.act_cfg", {"type": "\x1b[2J"}, "x1b"), ("model.extra", [[[0] * 70_000]], "too large"),
]


@pytest.mark.parametrize("place, value, words", CONFIGS,
                         ids=[f"{place}-{str(value)[:20]}" for place, value, _ in CONFIGS])
def test_a_config_that_cannot_be_meant_is_refused_before_anything_is_built(small, tmp_path, place, value, words,
                                                                           capsys):
    path = tmp_path / "odd.safetensors"
    config = changed(small[1], place, value)
    config["test_dataloader"] = None
    save_weights(path, small[0], {"config": config, "classes": CLASSES, "palette": PALETTE})
    with pytest.raises(Exception, match=words) as caught:
        InferenceSegmentor(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable(), str(caught.value)
    (tmp_path / "p.png").write_bytes(b"")
    assert main(["predict", str(path), str(tmp_path / "p.png")]) == 2 and capsys.readouterr().err.count("\n") == 1


def deep_list(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


METAS = [({"classes": None}, "names no classes"), ({"classes": "sky"}, "expected a list of names"),
({"classes": ["a", 3, "b"]}, "list of names"),
         ({"classes": ["a"]}, "names 1 classes, its model has 3"),
         ({"classes": ["a" * 300] * 3}, "at most 200 characters"), ({"palette": 3}, "palette is"),
         ({"palette": [[1, 2, 3]]}, "expected 3 colours"), ({"palette": [[1, 2, 300]] * 3}, "0 to 255"),
         ({"palette": [[1, 2, 0.5]] * 3}, "palette"),
         ({"config": None}, "carries no config"), ({"config": "text"}, "a config that is str"),
         ({"config": []}, "a config that is list"),
         ({"classes": deep_list(200)}, "classes in its metadata is nested too deeply")]


@pytest.mark.parametrize("meta, words", METAS, ids=[str(meta)[:40] for meta, _ in METAS])
def test_odd_metadata_are_told(small, tmp_path, meta, words):
    path = tmp_path / "odd.safetensors"
    save_weights(path, small[0], {"config": small[1], "classes": CLASSES, "palette": PALETTE, **meta})
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors: .*{words}"):
        InferenceSegmentor(path)


def test_every_way_in_reads_checkpoints_alike(small, tmp_path, capsys):
    """A file without config, one with NaN, and one whose header lies, at each command that takes weights."""
    state, config = small
    bare, bad, lie = (tmp_path / f"{name}.safetensors" for name in ("bare", "bad", "lie"))
    save_weights(bare, state, {})
    meta = {"config": config, "classes": CLASSES, "palette": None}
    save_weights(bad, {**state, "decode_head.conv_seg.bias": np.array([0, np.nan, np.inf], np.float32)}, meta)
    lie.write_bytes(RAW["same offsets"][0])
    ways = {"predict": lambda p: ["predict", p, str(bare)], "val": lambda p: ["val", "--checkpoint", p],
            "export": lambda p: ["export", p, str(tmp_path / "o.safetensors")],
            "verify": lambda p: ["verify", p, "--against-torch", "no-python"],
            "convert": lambda p: ["convert", p, str(tmp_path / "o.safetensors")]}
    for name, way in ways.items():
        named = "decode_head.conv_seg.bias (1 NaN and 1 inf of 3 values)"
        for path, words in ((bare, "--config|jseg val CONFIG"), (bad, named), (lie, "overlaps")):
            if (name, path) in (("export", bare), ("convert", bare), ("convert", bad)):
                continue  # export writes what is there; convert knows the keys, and refuses a file of jseg
            assert main(way(str(path))) == 2, (name, path)
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and str(path) in err, (name, err)
            assert any(word in err for word in words.split("|")), (name, err)
    assert not (tmp_path / "o.safetensors").exists()


def test_weights_that_are_not_finite_are_named(small, tmp_path):
    state, config = small
    for dtype, count in ((np.float16, "1 of 5"), (np.float32, "1 of 5"), (np.float64, "1 of 5")):
        for value in (np.nan, np.inf, -np.inf):
            found = {"ok": np.full(70_000, 65504, dtype), "count": np.array([2 ** 62]), "bits": np.array([True]),
                     "none": np.zeros((0, 3), dtype),
                     "bad": np.r_[np.zeros(69_999), value].astype(dtype)}
            assert nonfinite_text(found).startswith(f"{count} tensors: bad ("), (dtype, value)
            assert nonfinite_text({**found, "bad": found["ok"]}) == ""
    path, key = tmp_path / "bad.safetensors", "backbone.norm1.weight"
    meta = {"config": config, "classes": CLASSES, "palette": PALETTE}
    save_weights(path, {**state, key: np.full_like(state[key], np.nan)}, meta)
    for refused in (lambda: load_weights(path), lambda: InferenceSegmentor(path),
                    lambda: load_into(object(), {key: np.array([np.nan])})):
        with pytest.raises(CheckpointError, match=rf"{key} \(\d+ NaN and 0 inf of \d+ values\).*--allow-nonfinite"):
            refused()
    assert np.isnan(load_weights(path, allow_nonfinite=True)[0][key]).all()
    assert InferenceSegmentor(path, allow_nonfinite=True).infer(np.zeros((32, 32, 3), np.uint8)).shape == (32, 32)


def test_bfloat16_of_another_tool_is_read(tmp_path):
    values = np.array([1.0, -2.5, 3e38], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    (tmp_path / "b.safetensors").write_bytes(header({"a": entry("BF16", (3,), (0, 6))}, halves.tobytes()))
    found = load_weights(tmp_path / "b.safetensors")[0]["a"]
    assert found.dtype == np.float32 and np.allclose(found, values, rtol=1e-2)
    (tmp_path / "b.safetensors").write_bytes(header({"a": entry("BF16", (1,), (0, 2))}, b"\x80\x7f"))
    with pytest.raises(CheckpointError, match="a .0 NaN and 1 inf"):
        load_weights(tmp_path / "b.safetensors")


def test_colours_are_made_where_a_file_has_none(small, tmp_path):
    state, config = small
    for number, palette in enumerate((None, [], PALETTE)):
        path = tmp_path / f"{number}.safetensors"
        save_weights(path, state, {"config": config, "classes": CLASSES, "palette": palette})
        found = InferenceSegmentor(path).palette
        assert found.shape == (3, 3) and found.dtype == np.uint8 and len(set(map(tuple, found.tolist()))) == 3
        assert (found.tolist() == PALETTE) == (palette == PALETTE)
    for count in (2, 256, 1000, 20_000):
        made = stored_palette({"palette": None}, count, "x")
        assert len(set(map(tuple, made.tolist()))) == count and np.array_equal(made, stored_palette({}, count, "x"))


def test_names_that_command_a_terminal_are_written_out(small, tmp_path, capsys):
    from PIL import Image
    path, names = tmp_path / "x.safetensors", ["sky\x1b[31m\x07", "r\u202eoad\n\r", "Straße 道路"]
    meta = {"config": small[1], "classes": names, "palette": PALETTE, "origin": "two\nlines\x1b]0;x\x07"}
    save_weights(path, small[0], meta)
    segmentor = InferenceSegmentor(path)
    assert segmentor.classes == ["sky\\x1b[31m\\x07", "r\\u202eoad\\n\\r", "Straße 道路"]
    assert segmentor.origin == "two\nlines\\x1b]0;x\\x07"
    Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
    assert main(["predict", str(path), str(tmp_path / "p.png"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\u202e" not in said.out


def test_no_file_is_opened_because_a_checkpoint_names_it(small, tmp_path, capsys):
    """Every loss that takes a file of class weights, and the cache of a data set wrapper."""
    bait = tmp_path / "weights.json"
    bait.write_text("[1, 1, 1]")
    config = json.loads(json.dumps(small[1]))
    config["model"]["decode_head"]["loss_decode"] = [{"type": name, "class_weight": str(bait)} for name in
                                                     ("CrossEntropyLoss", "DiceLoss", "FocalLoss", "TverskyLoss",
                                                      "LovaszLoss")]
    config["model"]["decode_head"]["loss_decode"][1].pop("class_weight")
    path, opened = tmp_path / "x.safetensors", []
    save_weights(path, small[0], {"config": config, "classes": CLASSES, "palette": PALETTE})
    watching = [True]
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    InferenceSegmentor(path)
    watching.clear()
    assert str(path) in opened and str(bait) not in opened
    assert without_files({"class_weight": [1, 2]}) == {"class_weight": [1, 2]}
    config["val_dataloader"]["dataset"] = {"type": "ClassBalancedDataset", "oversample_thr": 0.1,
                                           "cache_file": str(tmp_path / "cache"),
                                           "dataset": config["val_dataloader"]["dataset"]}
    save_weights(path, small[0], {"config": config, "classes": CLASSES, "palette": PALETTE})
    assert main(["val", "--checkpoint", str(path)]) == 2 and "cache_file" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_export_gives_a_file_its_config(small, tmp_path, capsys):
    import yaml
    state, config = small
    config = {**config, "train_dataloader": None, "test_dataloader": None,
              "val_dataloader": {"batch_size": 1, "dataset": {"type": "FolderDataset", "data_root": "nowhere",
                                                              "metainfo": {"classes": CLASSES}}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    bare, whole = tmp_path / "bare.safetensors", tmp_path / "whole.safetensors"
    save_weights(bare, state, {})
    assert main(["export", str(bare), str(whole), "--full", "--config", str(tmp_path / "c.yaml")]) == 0
    found = open_model_file(whole)
    assert found.classes == CLASSES and all(np.array_equal(found.state[key], state[key]) for key in state)
    capsys.readouterr()
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(changed(config, "model.decode_head.num_classes", 4)))
    assert main(["export", str(bare), str(tmp_path / "no.safetensors"), "--config", str(tmp_path / "c.yaml")]) == 2
    assert "2 of another shape" in capsys.readouterr().err and not (tmp_path / "no.safetensors").exists()


def test_a_runs_folder_is_its_weights(small, tmp_path):
    state, config = small
    (tmp_path / "run" / "best").mkdir(parents=True)
    meta = {"config": config, "classes": CLASSES, "palette": None}
    save_weights(tmp_path / "run" / "best" / "weights.safetensors", state, meta)
    for folder in ("run", "run/best"):
        assert InferenceSegmentor(tmp_path / folder).classes == CLASSES
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: a folder without weights"):
        InferenceSegmentor(tmp_path / "empty")
    save_weights(tmp_path / "state.safetensors", state, {})
    with pytest.raises(CheckpointError, match="optimizer of a run"):
        InferenceSegmentor(tmp_path / "state.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="a named pipe"):
        InferenceSegmentor(tmp_path / "pipe.safetensors")


def test_init_cfg_names_load_from():
    from jseg.registry import MODELS
    for key in ("init_cfg", "pretrained"):
        assert "load_from: FILE.safetensors" in MODELS.faults({"type": "MSCAN", "variant": "tiny", key: "x.pth"})[0]
