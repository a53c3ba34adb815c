"""`jseg verify` without PyTorch: what it asks the other side, how it judges the answer, and its errors.
`make parity` runs it in earnest.
"""

import json
import pathlib
import pickle
import sys
import types

import jittor as jt
import numpy as np
import pytest

from jseg.cli import main, verify
from jseg.convert.torch_file import read_torch_file
from jseg.engine.checkpoint import load_into, load_weights
from jseg.engine.predict import InferenceSegmentor
from jseg.models import build_model
from jseg.models.backbones.mscan import VARIANTS

MINI = pathlib.Path(__file__).parent / "convert" / "golden" / "mini_mmseg.pth"


@pytest.fixture
def other_side(monkeypatch):
    """Answers as MMSegmentation would if it agreed, but for what `spoil(answer)` does; keeps the request in `seen`."""
    seen = {}

    def answer(python, folder, timeout):
        request = json.loads((folder / "request.json").read_text())
        seen.update(request, bases=np.load(folder / "bases.npy"), python=python)
        out = {"facts": np.array(json.dumps({"versions": "mmseg 1.2.2, torch 9", "config": "inside the checkpoint"}))}
        state, meta = load_weights(folder / "ours.safetensors")
        model = build_model(meta["config"])
        load_into(model, state)
        model.eval()
        for i, path in enumerate(request["pictures"]):
            out[f"input/{i}"] = np.zeros((1, 3, 32, 64), np.float32)
            with jt.no_grad():
                out[f"logits/{i}"] = model(jt.array(out[f"input/{i}"])).numpy()
            for mode in request["modes"]:
                labels = InferenceSegmentor(folder / "ours.safetensors", mode=mode).infer(path)
                out.update({f"{mode}/{i}/labels": labels.astype(np.uint16),
                            f"{mode}/{i}/margins": np.ones(labels.shape, np.float32), f"{mode}/{i}/range": 4.0})
        seen.get("spoil", lambda answer: None)(out)
        return out

    monkeypatch.setattr(verify, "ask", answer)
    return seen


def run_verify(*words: str) -> int:
    return main(["verify", str(MINI), "--against-torch", "python-of-theirs", "--modes", "whole", *words])


def test_agreement(other_side, capsys):
    assert run_verify("--slide", "64", "48") == 0
    out = capsys.readouterr().out
    assert "mini_mmseg.pth against mmseg 1.2.2, torch 9; its config: inside the checkpoint" in out
    assert "generated_320x200.png      320x200  whole    100.0000%         0" in out and "they agree" in out
    assert (other_side["checkpoint"] == str(MINI) and other_side["modes"] == ["whole"]
            and len(other_side["pictures"]) == 2)
    assert (other_side["slide"] == {"crop_size": [64, 64], "stride": [48, 48]}
            and other_side["bases"].shape == (1, 32, 16))


def test_disagreement_is_exit_1_and_names_its_cause(other_side, capsys):
    def spoil(answer):
        answer["whole/1/labels"][:30] += 1
        answer["whole/1/margins"][:10] = 1e-5

    other_side["spoil"] = spoil
    assert run_verify() == 1
    out = capsys.readouterr().out
    assert (f"{30 * 173:>8}  {10 * 173:>8}\n" in out
            and f"{10 * 173} of {30 * 173} unequal pixels: the reference's best two classes lie within" in out)
    assert "they DISAGREE" in out


def test_logits_that_differ_are_exit_1(other_side, capsys):
    other_side["spoil"] = lambda answer: answer["logits/0"].__iadd__(np.ptp(answer["logits/0"]) * 0.01)
    assert run_verify() == 1 and "logits: largest error 0.01" in capsys.readouterr().out


def test_label_maps_of_other_sizes_do_not_agree():
    row = verify.label_row("a.png", "whole", np.zeros((4, 5), np.uint8), np.zeros((5, 4)), np.zeros((5, 4)), 1.0)
    assert row.equal == 0 and row.size == "4x5, ours 5x4"


def test_settings_in_mmsegmentations_words():
    settings = {"model": {"backbone": {"type": "MSCAN", "variant": "base", "impl": "auto"},
                          "test_cfg": {"mode": "whole"},
                          "decode_head": {"type": "LightHamHead", "ham_kwargs": {"MD_R": 64, "grad": "one_step"},
                                          "loss_decode": {"type": "Odd"}}},
                "data_preprocessor": {"type": "SegDataPreProcessor", "test_cfg": {"resize_divisor": 32}},
                "val_dataloader": {"dataset": {"pipeline": [{"type": "LoadImageFromFile"}, {"type": "Resize"},
                                                            {"type": "LoadAnnotations"}]}}}
    found = verify.to_mmseg(settings)
    backbone, head = found["model"]["backbone"], found["model"]["decode_head"]
    assert backbone["depths"] == VARIANTS["base"]["depths"] and not {"variant", "impl"} & set(backbone)
    assert head["ham_kwargs"]["MD_R"] == 64 and "grad" not in head["ham_kwargs"] and "loss_decode" not in head
    assert [step["type"] for step in found["test_pipeline"]] == ["LoadImageFromFile", "Resize", "ResizeToMultiple",
                                                                 "PackSegInputs"]
    assert found["data_preprocessor"]["test_cfg"] is None and settings["data_preprocessor"]["test_cfg"] == {
        "resize_divisor": 32}


def test_settings_reach_mmsegmentation_with_tuples(monkeypatch):
    from jseg.convert import mmseg_side
    stand_in = types.ModuleType("mmengine.config")
    stand_in.Config = dict
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.config", stand_in)
    settings = {"test_pipeline": [{"type": "LoadImageFromFile"},
                                  {"type": "Resize", "scale": [2048, 512], "keep_ratio": True}]}
    found, came_from = mmseg_side.find_config({"config": None, "settings": settings}, {})
    assert (found["test_pipeline"][1] == {"type": "Resize", "scale": (2048, 512), "keep_ratio": True}
            and "jseg's settings" in came_from)


@pytest.mark.parametrize("content, words", [
    ({"block1.0.attn.q.weight": np.zeros((2, 2), np.float32)}, "'patch_embed1.proj.weight' is missing"),
    ({"decode_head.block1.0.attn.q.weight": np.zeros((2, 2), np.float32)}, "its keys are those of SegFormer"),
    ({key[9:]: value.numpy() for key, value in read_torch_file(MINI)["state_dict"].items()
      if key.startswith("backbone.")},
     "verify compares whole SegNeXt models (MSCAN with LightHamHead); this is MSCAN with no head")])
def test_what_cannot_be_compared_is_said_in_one_line(tmp_path, capsys, content, words):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, 4))
    assert main(["verify", str(tmp_path / "x.pkl"), "--against-torch", "no-python"]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_errors_of_the_other_python(tmp_path, capsys):
    assert main(["verify", str(MINI), "--against-torch", str(tmp_path / "no-python")]) == 2
    assert ("no-python: cannot be run (No such file or directory); give a Python that has PyTorch"
            in capsys.readouterr().err)
    broken = tmp_path / "python"
    broken.write_text(f"#!{sys.executable}\nraise SystemExit('no module named torch')\n")
    broken.chmod(0o755)
    assert main(["verify", str(MINI), "--against-torch", str(broken)]) == 2
    assert "MMSegmentation's side failed" in (err := capsys.readouterr().err) and err.endswith(
        "no module named torch\n")
    assert main(["verify", str(MINI), "--pictures", str(tmp_path / "gone.png"), "--against-torch", str(broken)]) == 2
    assert "gone.png: no such file or folder" in capsys.readouterr().err
