"""Training from other weights and by options: classes by name, frozen parts, rates of the backbone, limits, repeats."""

import json
import pathlib

import numpy as np
import pytest
from small_run import lasting, make_datasets, small_config

from jseg import cli
from jseg.config import dump_config, load_config
from jseg.engine import auto_batch
from jseg.engine.checkpoint import load_weights, model_state
from jseg.engine.fine_tune import class_axes, match_classes, start_from
from jseg.engine.optim import param_groups
from jseg.engine.own_model import find_model, with_classes
from jseg.engine.train import train
from jseg.errors import CheckpointError, ConfigError
from jseg.models import build_model

ROOT = pathlib.Path(__file__).parents[2]
CAMVID = ROOT / "weights" / "segnext_tiny_camvid.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_datasets(tmp_path_factory.mktemp("fine") / "pictures")


@pytest.fixture
def config(pictures):
    """Four steps, scored once."""
    made = small_config(pictures)
    made["train_cfg"].update(max_iters=4, val_interval=4, ema=None)
    return made


def named(config, classes):
    """The config with other names for its classes."""
    made = json.loads(json.dumps(config))
    for loader in ("train_dataloader", "val_dataloader"):
        made[loader]["dataset"]["metainfo"]["classes"] = list(classes)
    return made


@pytest.mark.parametrize("asked, tensors", [
    ("mask2former", {"decode_head.cls_embed.weight": (0, 1), "decode_head.cls_embed.bias": (0, 1)}),
    ("ocrnet hr18", {f"decode_head.{i}.conv_seg.{end}": (0, 0) for i in (0, 1) for end in ("weight", "bias")}),
    ("segmenter_vit-s_mask", {"decode_head.cls_emb": (1, 0), "decode_head.mask_norm.weight": (0, 0),
                              "decode_head.mask_norm.bias": (0, 0)})])
def test_tensors_with_rows_of_classes_are_found_in_any_model(asked, tensors):
    assert class_axes(find_model(asked).block) == tensors


def test_names_are_matched():
    assert match_classes(["Sky", "Traffic Light", "car"], ["traffic_light", "sky", "CAR", "bus"]) == {0: 1, 1: 0, 2: 2}
    assert match_classes(["a", "A"], ["A", "a", "b"]) == {0: 1, 1: 0}


def test_rows_go_to_the_classes_of_their_names():
    """CamVid's weights for other classes: an order of the same number, fewer, and new ones."""
    state, meta = load_weights(CAMVID)
    block, old = meta["config"]["model"], meta["classes"]
    key = "decode_head.conv_seg.weight"
    for classes in ([*reversed(old)], ["car", "Road", "snow"], old):
        made = with_classes(block, len(classes))
        model = build_model(made)
        before = model_state(model)
        text = start_from(model, made, classes, state, old, source="camvid")
        after = model_state(model)
        for number, name in enumerate(classes):
            same = next((i for i, other in enumerate(old) if other.lower() == name.lower()), None)
            wanted = before[key][number] if same is None else state[key][same].astype(np.float32)
            assert np.array_equal(after[key][number], wanted), name
        assert all(np.array_equal(after[name], state[name].astype(np.float32)) for name in after if "conv_seg" not in
                   name)
        assert f"{len(after)} loaded, 0 missing, 0 unexpected, 0 of another shape" in text
    assert "weights of the same 11 classes" in text


def test_the_account_says_what_became_of_each_class():
    state, meta = load_weights(CAMVID)
    made = with_classes(meta["config"]["model"], 3)
    text = start_from(build_model(made), made, ["car", "Road", "snow"], state, meta["classes"], source="camvid")
    assert "weights of 11 classes for 3; by name: car, Road; new: snow; not used: Sky, Building" in text
    assert "decode_head.conv_seg.weight (11, 256, 1, 1) -> (3, 256, 1, 1): 2 rows taken, 1 new" in text
    text = start_from(build_model(made), made, ["a", "b", "c"], state, None, source="camvid")
    assert "decode_head.conv_seg.weight: file (11, 256, 1, 1), model (3, 256, 1, 1)" in text
    with pytest.raises(CheckpointError, match="none of its 1 keys fits"):
        start_from(build_model(made), made, ["a", "b", "c"], {"x": np.zeros(1)}, None, source="camvid")


def rates(config, **paramwise):
    model = build_model(config)
    cfg = {**config["paramwise_cfg"], **paramwise}
    return {name: (group.lr, group.weight_decay) for group in param_groups(model, lr=1.0, weight_decay=0.1,
                                                                           paramwise_cfg=cfg) for name in group.names}


def test_rates_of_the_backbone(config):
    plain, slow = rates(config), rates(config, backbone_lr_mult=0.25)
    for name, (lr, decay) in plain.items():
        assert slow[name] == ((0.25 if name.startswith("backbone.") else 1.0) * lr, decay), name
    deep = rates(config, decay_rate=0.5, decay_type="in_order")
    parts = [f"{part}{stage}" for stage in (1, 2, 3, 4) for part in ("patch_embed", "block", "norm")]
    for name, (lr, decay) in plain.items():
        words = name.split(".")
        factor = 0.5 ** (len(parts) - parts.index(words[1])) if words[0] == "backbone" else 1.0
        assert deep[name] == (pytest.approx(factor * lr), decay), name
    with pytest.raises(ConfigError, match="in_order takes decay_rate and no num_layers"):
        rates(config, decay_type="in_order")


def test_frozen_parts_stand_still_and_the_head_learns(config, tmp_path):
    first = train(config, work_dir=str(tmp_path / "first"))
    config = named(config, ["box", "ground", "thing"])
    config.update(load_from=str(tmp_path / "first" / "best.safetensors"))
    config["train_cfg"]["freeze"] = ["backbone"]
    train(config, work_dir=str(tmp_path / "second"))
    old, new = (load_weights(tmp_path / run / "best.safetensors")[0] for run in ("first", "second"))
    moved = {name for name in old if not np.array_equal(old[name], new[name])}
    assert moved and not [name for name in moved if name.startswith("backbone.")]
    assert "decode_head.conv_seg.weight" in moved and first["iter"] == 4
    assert sum(name.endswith("running_mean") and name.startswith("backbone.") for name in old) > 4
    config["train_cfg"]["freeze"] = "bakbone"
    with pytest.raises(ConfigError, match="no part 'bakbone'; did you mean 'backbone'"):
        train(config, work_dir=str(tmp_path / "third"))


def test_a_time_limit_ends_a_run_with_a_score(config, tmp_path):
    config["train_cfg"].update(max_iters=100_000, val_interval=50_000, max_seconds=0.5)
    result = train(config, work_dir=str(tmp_path / "run"))
    assert 0 < result["iter"] < 100_000 and result["best"]["iter"] == result["iter"] and result["metrics"]["mIoU"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"] == result["metrics"]
    scored = [entry for entry in lasting(tmp_path / "run") if "val" in entry]
    again = train(config, resume=True, work_dir=str(tmp_path / "run"))
    assert again["iter"] == result["iter"] and [e for e in lasting(tmp_path / "run") if "val" in e] == scored


def test_options_are_keys_of_the_config(config, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(dump_config(config))
    parser = cli.build_parser("train")
    args = parser.parse_args([str(path), "--freeze", "backbone", "--backbone-lr", "0.1", "--layer-decay", "0.9",
                              "--patience", "2", "--time", "1.5h", "--batch-size", "auto", "--weights", str(CAMVID)])
    from jseg.cli.train import chosen
    made = chosen(args, load_config(path))
    assert made["train_cfg"] == {**config["train_cfg"], "freeze": ["backbone"], "early_stop": {"patience": 2},
                                 "max_seconds": 5400.0}
    assert made["paramwise_cfg"] == {**config["paramwise_cfg"], "backbone_lr_mult": 0.1, "decay_rate": 0.9,
                                     "decay_type": "in_order"}
    assert made["train_dataloader"]["batch_size"] == "auto" and made["load_from"] == str(CAMVID)
    from jseg.engine.check import check_config
    assert check_config(made) == []
    made["val_dataloader"]["batch_size"] = "auto"
    assert len(check_config(made)) == 1 and "val_dataloader.batch_size: got 'auto'" in check_config(made)[0]


@pytest.mark.parametrize("words, text", [
    (["--time", "soon"], "write 90s, 30m or 2h"), (["--patience", "0"], "not a whole number above 0"),
    (["--weights", "segnext_tiny_camvd"], "did you mean 'segnext_tiny_camvid'")])
def test_wrong_options_say_what_is_right(config, tmp_path, capsys, words, text):
    path = tmp_path / "small.yaml"
    path.write_text(dump_config(config))
    assert cli.main(["train", str(path), "--work-dir", str(tmp_path / "run"), *words]) == 2
    assert text in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_repeated_runs_are_summed_up(config, tmp_path, capsys):
    path, folder = tmp_path / "small.yaml", tmp_path / "runs"
    path.write_text(dump_config(config))
    assert cli.main(["train", str(path), "--work-dir", str(folder), "--repeat", "2"]) == 0
    scores = [json.loads((folder / f"seed_{seed}" / "metrics.json").read_text())["metrics"]["mIoU"] for seed in (3, 4)]
    assert scores[0] != scores[1]
    kept = json.loads((folder / "repeat.json").read_text())
    assert kept["metrics"]["mIoU"] == pytest.approx({"mean": np.mean(scores), "sd": np.std(scores, ddof=1),
                                                     "min": min(scores), "max": max(scores)})
    assert f"mIoU{'':<20}{np.mean(scores):>8.4f}" in capsys.readouterr().out
    result = json.loads((folder / "seed_4" / "metrics.json").read_text())
    assert result["checkpoint"] == "best.safetensors" and result["date"] and result["data"] == {
        "type": "FolderDataset", "folders": [config["val_dataloader"]["dataset"]["data_root"]], "split": "val"}
    assert cli.main(["report", str(folder)]) == 0
    assert f"{100 * np.mean(scores):.2f}" in (folder / "report.html").read_text()
    assert cli.main(["train", str(path), "--work-dir", str(folder), "--repeat", "2", "--resume"]) == 0  # nothing to do
    assert cli.main(["train", str(path), "--work-dir", str(folder), "--repeat", "2"]) == 2
    assert "holds a run" in capsys.readouterr().err


def test_a_batch_that_fits_is_measured(config, tmp_path, monkeypatch):
    assert auto_batch.fitting_batch(100, 50, 1000, 999) == 10
    assert auto_batch.fitting_batch(0, 1, 1 << 40, 999) == auto_batch.MOST
    assert auto_batch.fitting_batch(0, 1, 1 << 40, 17) == 4
    with pytest.raises(ConfigError, match="one picture takes about 64 MiB"):
        auto_batch.fitting_batch(0, 64 << 20, 100 << 20, 999)
    config["data_preprocessor"]["size"] = [160, 160]
    base, each = auto_batch._measured(config)
    monkeypatch.setattr(auto_batch, "TRIED", (1, 9))
    whole = sum(np.array(auto_batch._measured(config)) * (1, 9))
    assert base + 9 * each == pytest.approx(whole, rel=0.3)
    config["data_preprocessor"]["size"] = [32, 64]
    config["train_dataloader"]["batch_size"] = "auto"
    train(config, work_dir=str(tmp_path / "run"))
    assert load_config(tmp_path / "run" / "config.yaml")["train_dataloader"]["batch_size"] == 2  # a quarter of ten
