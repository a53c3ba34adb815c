"""Conversion of whole checkpoints: a small SegNeXt from mmsegmentation's own builder, in the forms of its releases."""

import hashlib
import importlib.util
import json
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from jseg.cli import main
from jseg.convert.checkpoint import convert_checkpoint
from jseg.convert.state import find_contents
from jseg.convert.torch_file import read_torch_file
from jseg.engine.checkpoint import load_into, load_weights
from jseg.errors import ConvertError

HERE = pathlib.Path(__file__).resolve().parent
MMSEG, AUTHORS = HERE / "golden" / "mini_mmseg.pth", HERE / "golden" / "mini_authors.pth"
_spec = importlib.util.spec_from_file_location("segnext_cases", HERE.parent / "parity" / "segnext_cases.py")
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)


def arrays(path=MMSEG) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in read_torch_file(path)["state_dict"].items()}


def pickled(folder: pathlib.Path, content, name="in.pkl") -> pathlib.Path:
    (folder / name).write_bytes(pickle.dumps(content, 4))
    return folder / name


def authors_form(state: dict) -> dict:
    return {key.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv."): value
            for key, value in state.items() if "tracked" not in key}


def check_loads(path: pathlib.Path, *, half: bool = False) -> dict:
    """The file holds the right weights, and a model built from its own config takes every one. Returns its meta."""
    from jseg.models import build_model
    state, meta = load_weights(path)
    for key, value in state.items():
        want = cases.weight(key, value.shape)
        np.testing.assert_array_equal(value, want.astype(np.float16).astype(np.float32) if half else want, err_msg=key)
    report = load_into(build_model(meta["config"]), state)
    assert report.complete and len(report.loaded) == len(state)
    return meta


def test_mmseg_file_with_its_config_inside(tmp_path):
    done = convert_checkpoint(MMSEG, tmp_path / "new" / "x.safetensors")
    meta = check_loads(done.out)
    origin = meta["origin"]
    assert meta["classes"] == ["sky", "tree", "road"] and meta["palette"] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert (origin["family"] == "SegNeXt, mmsegmentation 1.x"
            and origin["sha256"] == hashlib.sha256(MMSEG.read_bytes()).hexdigest())
    assert (origin["md_r"], origin["test_size"], origin["gradient"]) == (16, "padded to a multiple of 32",
                                                                         "through all steps")
    assert origin["mmengine_version"] == "0.10.7" and origin["iter"] == 160000 and str(tmp_path) not in str(meta)
    keys = set(arrays())
    assert set(done.loaded) | set(done.renamed) | set(done.dropped) == keys
    assert not done.renamed and all(key.endswith("num_batches_tracked") for key in done.dropped)


def test_authors_form_in_half_precision_without_config(tmp_path):
    done = convert_checkpoint(AUTHORS, tmp_path / "x.safetensors")
    meta = check_loads(done.out, half=True)
    assert (done.renamed["backbone.block1.0.mlp.dwconv.dwconv.weight"] == "backbone.block1.0.mlp.dwconv.weight"
            and len(done.renamed) == 2)
    assert meta["origin"]["test_size"] == "resized to a multiple of 32" and meta["classes"] == ["a", "b", "c"]
    assert any("carries no config" in note for note in done.notes)


def test_original_jseg_pickle(tmp_path):
    body = pickle.dumps({"meta": {"jseg_version": "0.1", "iter": 9}, "model": authors_form(arrays())}, 4)
    (tmp_path / "in.pkl").write_bytes(body + hashlib.sha1(body).digest() + b"HCAJSLHD")
    done = convert_checkpoint(tmp_path / "in.pkl", tmp_path / "x.safetensors")
    meta = check_loads(done.out)
    assert (meta["origin"]["gradient"] == "through the last step"
            and meta["config"]["model"]["decode_head"]["ham_kwargs"]["grad"] == "one_step")


def test_imagenet_backbone_loses_its_classifier_and_says_so(tmp_path):
    state = {key.removeprefix("backbone."): value for key, value in authors_form(arrays()).items()
             if key.startswith("backbone.")}
    state.update({"head.weight": np.zeros((10, 8), np.float32), "head.bias": np.zeros(10, np.float32)})
    done = convert_checkpoint(pickled(tmp_path, {"state_dict": state}), tmp_path / "x.safetensors")
    found, meta = load_weights(done.out)
    assert done.dropped == {"head.weight": "the ImageNet classifier", "head.bias": "the ImageNet classifier"}
    assert sorted(found) == sorted(key for key in arrays() if key.startswith("backbone.") and "tracked" not in key)
    assert meta["config"]["model"]["backbone"]["embed_dims"] == [8] and "MSCAN backbone" in meta["origin"]["family"]


@pytest.mark.parametrize("size, family, rank", [("base", "authors", 64), ("large", "jseg", 64),
                                                ("large", "mmseg-1.x", 16), ("tiny", "authors", 16)])
def test_rank_rule(size, family, rank):
    from jseg.convert.guess.segnext import FAMILIES, rank_by_rule
    assert rank_by_rule(FAMILIES[family], size) == rank


@pytest.mark.parametrize("wrap", [
    lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    lambda s: {"state_dict": {f"module.model.{k}": v for k, v in s.items()}},
    lambda s: {"state_dict": {f"_orig_mod.{k}": v for k, v in s.items()}},
    lambda s: {"state_dict": {root: {k.partition(".")[2]: v for k, v in s.items() if k.startswith(root)}
                              for root in ("backbone", "decode_head")}}])
def test_containers_and_wrappers(wrap, tmp_path):
    contents = find_contents(read_torch_file(pickled(tmp_path, wrap(arrays()))), "x")
    assert sorted(contents.state) == sorted(arrays())


def test_moving_averages_are_chosen_openly(tmp_path):
    state, other = arrays(), {key: value + 1 for key, value in arrays().items()}
    key = "decode_head.conv_seg.bias"
    engine = {"state_dict": state,
              "ema_state_dict": {"steps": np.array(5), **{f"module.{k}": v for k, v in other.items()}}}
    timm = {"state_dict": other, "state_dict_ema": state}
    mmcv = {"state_dict": {**state, **{"ema_" + k.replace(".", "_"): v for k, v in other.items()}}}
    for content, choice, want in ((engine, "default", state), (engine, "averaged", state), (engine, "raw", other),
                                  (timm, "default", other), (timm, "averaged", state), (timm, "raw", other),
                                  (mmcv, "default", state), (mmcv, "raw", other)):
        contents = find_contents(read_torch_file(pickled(tmp_path, content)), "x", choice)
        np.testing.assert_array_equal(contents.state[key], want[key])
        assert contents.notes
    with pytest.raises(ConvertError, match="no averaged weights"):
        find_contents({"state_dict": state}, "x", "averaged")


def test_message_hub_is_data():
    hub = read_torch_file(MMSEG)["message_hub"]["log_scalars"]["train/loss"]
    np.testing.assert_allclose(hub["values"][:5], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])


class Odd:
    """A class that no reader of weights knows."""

    def __init__(self):
        self.inner = {"x": [Odder()]}


class Odder:
    pass


def test_objects_that_are_not_built_are_said(tmp_path):
    content = {"meta": {"a": Odd(), "b": [Odd()]}, "optimizer": {"state": Odder()}, "model": arrays()}
    done = convert_checkpoint(pickled(tmp_path, content), tmp_path / "x.safetensors")
    (note,) = [note for note in done.notes if "not built" in note]
    assert ("nothing of it run" in note and f"{__name__}.Odd (2 in meta)" in note
            and f"{__name__}.Odder (3 in meta, optimizer)" in note)
    assert f"  note: {note}" in done.text().splitlines()
    plain = convert_checkpoint(MMSEG, tmp_path / "y.safetensors")  # HistoryBuffers are read, so nothing is left to say
    assert not any("not built" in note for note in plain.notes)


def test_an_auxiliary_head_is_left_out_and_said(tmp_path):
    text = (read_torch_file(MMSEG)["meta"]["cfg"] + "\nmodel.update(auxiliary_head=dict(type='ForeignHead', "
                                                    "in_channels=8, in_index=0, channels=4, num_classes=3))\n")
    extra = {"auxiliary_head.conv_seg.weight": np.zeros((3, 4, 1, 1), np.float32),
             "auxiliary_head.conv_seg.bias": np.zeros(3, np.float32)}
    done = convert_checkpoint(pickled(tmp_path, {"meta": {"mmengine_version": "0.10.7", "cfg": text},
                                                 "state_dict": {**arrays(), **extra}}),
                              tmp_path / "x.safetensors")
    assert check_loads(done.out)["config"]["model"]["auxiliary_head"] is None
    assert {done.dropped[key] for key in extra} == {"an auxiliary head, used in training only; the config has none"}
    assert [note for note in done.notes if "auxiliary" in note] == [
        "model.auxiliary_head: 'ForeignHead' left out with its weights: used in training only, and jseg has none such"]


def converted_head(folder: pathlib.Path, head: dict, change) -> tuple:
    """(conversion of a small ResNet under `head` after `change` of its weights, its weights in the file, its own)."""
    from jseg.models import build_model
    model = {"type": "EncoderDecoder",
             "backbone": {"type": "ResNet", "depth": 18, "stem_channels": 8, "base_channels": 8},
             "decode_head": {"channels": 8, "num_classes": 3, "norm_cfg": {"type": "BN"}, **head}}
    state = {key: value.numpy() for key, value in build_model(model).state_dict().items()}
    content = {"meta": {"mmengine_version": "0.10.7", "cfg": f"model = {model!r}"}, "state_dict": change(dict(state))}
    done = convert_checkpoint(pickled(folder, content), folder / "x.safetensors")
    return done, load_weights(done.out)[0], state


def test_a_weight_that_is_there_twice_is_converted_once(tmp_path):
    head = {"type": "ANNHead", "in_channels": [32, 64], "in_index": [2, 3], "project_channels": 4}
    name, copy = (f"decode_head.context.stages.0.{part}_project.conv.weight" for part in ("key", "query"))

    def doubled(state, factor=1.0):
        shared = {key: value * factor for key, value in state.items() if ".context." in key and "key_project" in key}
        return {**state, **{key.replace("key_project", "query_project"): value for key, value in shared.items()}}

    done, found, state = converted_head(tmp_path, head, doubled)
    assert found.keys() == state.keys() and done.dropped[copy] == f"a copy of {name}"
    with pytest.raises(ConvertError, match="two keys become one when renamed"):
        converted_head(tmp_path, head, lambda state: doubled(state, 2.0))


def test_a_scalar_becomes_one_value(tmp_path):
    name = "decode_head.pam.gamma.scale"
    _, found, _ = converted_head(tmp_path, {"type": "DAHead", "in_channels": 64, "pam_channels": 4},
                                 lambda state: {**state, name: np.array(0.25, np.float32)})
    assert found[name].shape == (1,) and found[name][0] == 0.25


def test_a_config_that_does_not_fit_is_named(tmp_path):
    from jseg.config import dump_config
    config = load_weights(convert_checkpoint(MMSEG, tmp_path / "x.safetensors").out)[1]["config"]
    config["model"]["decode_head"]["channels"] = 64
    (tmp_path / "c.yaml").write_text(dump_config(config))
    with pytest.raises(ConvertError, match=r"decode_head.channels 64 \(weights: 32\)"):
        convert_checkpoint(MMSEG, tmp_path / "y.safetensors", config=tmp_path / "c.yaml")
    assert not (tmp_path / "y.safetensors").exists()


def test_command_line_forms(tmp_path, capsys):
    assert main(["convert", str(AUTHORS), str(tmp_path / "a.safetensors"), "--classes", "CityscapesDataset"]) == 2
    assert "CityscapesDataset has 19 classes, the weights have 3" in capsys.readouterr().err
    (tmp_path / "c.py").write_text(read_torch_file(MMSEG)["meta"]["cfg"])
    assert main(["convert", "--config", str(tmp_path / "c.py"), str(tmp_path / "c.yaml")]) == 0
    assert main(["convert", str(AUTHORS), str(tmp_path / "a.safetensors"), "--config", str(tmp_path / "c.py")]) == 0
    assert load_weights(tmp_path / "a.safetensors")[1]["origin"]["config_from"] == "c.py"
    assert main(["convert", str(AUTHORS), str(tmp_path / "b.pth")]) == 2
    assert "give a name that ends so" in capsys.readouterr().err


def test_two_processes_write_equal_bytes(tmp_path):
    done = convert_checkpoint(MMSEG, tmp_path / "a.safetensors")
    program = "import sys; from jseg.convert.checkpoint import convert_checkpoint; convert_checkpoint(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", program, str(MMSEG), str(tmp_path / "b.safetensors")],
                   check=True, timeout=120, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert (tmp_path / "b.safetensors").read_bytes() == done.out.read_bytes()


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_file(tmp_path):
    done = subprocess.run([sys.executable, str(HERE / "kill_everywhere.py"), str(MMSEG), str(AUTHORS), str(tmp_path)],
                          capture_output=True, text=True, timeout=900, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == [] and found["left"] == ["x.safetensors"], found
    assert found["kills"] == 2 * found["moments"] and found["moments"] > 40, found
