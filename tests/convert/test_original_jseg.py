"""Original JSeg's checkpoints and configs: files as its runner saves them with `jt.save`,
configs in the tree of its project/ folder.
"""

import pathlib

import jittor as jt
import numpy as np
import pytest

from jseg.cli import main
from jseg.config import load_config
from jseg.convert.checkpoint import convert_checkpoint
from jseg.convert.py_config import read_py_config
from jseg.convert.torch_file import read_torch_file
from jseg.engine.check import check_config
from jseg.engine.checkpoint import load_into, load_weights
from jseg.errors import ConvertError

MMSEG = pathlib.Path(__file__).resolve().parent / "golden" / "mini_mmseg.pth"
BASE = """
dataset_type = 'ADE20KDataset'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
                  dict(type='Resize', img_scale=(64, 32), ratio_range=(0.5, 2.0)),
                  dict(type='RandomCrop', crop_size=(32, 32)),
                  dict(type='Normalize', **img_norm_cfg), dict(type='Pad', size=(32, 32), pad_val=0, seg_pad_val=255),
                  dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_semantic_seg'])]
test_pipeline = [dict(type='LoadImageFromFile'), dict(
    type='MultiScaleFlipAug', img_scale=(64, 32), flip=False, transforms=[
    dict(type='Resize', keep_ratio=True), {multiple}dict(type='RandomFlip'), dict(type='Normalize', **img_norm_cfg),
    dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]
dataset = dict(
    train=dict(type=dataset_type, batch_size=4, num_workers=8, shuffle=True, drop_last=False,
               data_root='data/x', img_dir='images/training', ann_dir='annotations/training', pipeline=train_pipeline),
    val=dict(type=dataset_type, batch_size=1, num_workers=1, shuffle=False, drop_last=False,
             data_root='data/x', img_dir='images/validation', ann_dir='annotations/validation', pipeline=test_pipeline))
"""
CONFIG = """
_base_ = ['../_base_/x.py', '../_base_/default_runtime.py']
model = dict(
    type='EncoderDecoder', pretrained='jittorhub://mscan_t.pkl',
    backbone=dict(type='MSCAN', embed_dims=[8], depths=[1], mlp_ratios=[2], num_stages=1, drop_rate=0.0,
                  drop_path_rate=0.1),
    decode_head=dict(type='LightHamHead', in_channels=[8], in_index=[0], channels=32, ham_channels=32,
                     dropout_ratio=0.1, num_classes=3{norm}, align_corners=False,
                     loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
parameter_groups_generator = dict(type="CustomPrameterGroupsGenerator", custom_keys={{
    'norm': dict(decay_mult=0.), 'head': dict(lr_mult=10.)}})
optimizer = dict(type='CustomAdamW', lr=0.00006, betas=(0.9, 0.999), weight_decay=0.01)
max_iter = 160
eval_interval = 80
checkpoint_interval = 80
scheduler = dict(type='PolyLR', warmup='linear', warmup_iters=15, warmup_ratio=1e-6, max_steps=max_iter, power=1.0,
                 min_lr=0)
"""


def config_file(folder: pathlib.Path, *, norm: str = ", norm_cfg=dict(type='GN', num_groups=32)",
                multiple: str = "") -> pathlib.Path:
    """A config with its bases, as they lie in project/segnext."""
    for name, text in (("_base_/x.py", BASE.format(multiple=multiple)),
                       ("_base_/default_runtime.py", 'logger = dict(type="RunLogger")\nlog_interval = 50'),
                       ("segnext/mini.py", CONFIG.format(norm=norm))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "segnext" / "mini.py"


def state() -> dict[str, np.ndarray]:
    """The mini model with original JSeg's keys: no counters, `dwconv.dwconv`."""
    found = read_torch_file(MMSEG)["state_dict"]
    return {key.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv."): value.numpy()
            for key, value in found.items() if "tracked" not in key}


def as_vars(values: dict) -> dict:
    return {key: jt.array(value) for key, value in values.items()}


def saved_run(folder: pathlib.Path, config: pathlib.Path) -> pathlib.Path:
    """What its runner saves: Vars in model and optimizer, the config as plain dicts."""
    model = as_vars(state())
    settings = {**read_py_config(config), "name": "mini", "work_dir": "work_dirs/mini"}
    content = {"meta": {"jseg_version": "0.1.0.0", "epoch": 3, "iter": 160, "max_iter": 160, "max_epoch": None,
                        "save_time": "20220920", "config": settings},
               "model": model, "scheduler": {"base_lr": [6e-5], "max_steps": 160},
               "optimizer": {"param_groups": [{"lr": 6e-5, "m": list(model.values())[:3]}], "lr": 6e-5, "n_step": 160}}
    jt.save(content, str(folder / "ckpt_160.pkl"))
    return folder / "ckpt_160.pkl"


def check_weights(path: pathlib.Path) -> dict:
    """The file holds the saved weights, and its own model takes every one. Returns its meta."""
    from jseg.models import build_model
    found, meta = load_weights(path)
    wanted = {key.replace(".dwconv.dwconv.", ".dwconv."): value for key, value in state().items()}
    assert sorted(found) == sorted(wanted)
    for key, value in found.items():
        np.testing.assert_array_equal(value, wanted[key], err_msg=key)
    assert load_into(build_model(meta["config"]), found).complete
    return meta


@pytest.mark.parametrize("multiple, size", [
    ("", "kept as they are"), ("dict(type='ResizeToMultiple', size_divisor=32), ", "resized to a multiple of 32")])
def test_a_saved_run(tmp_path, multiple, size):
    done = convert_checkpoint(saved_run(tmp_path, config_file(tmp_path, multiple=multiple)), tmp_path / "x.safetensors")
    origin = check_weights(done.out)["origin"]
    assert (origin["family"] == "SegNeXt, original JSeg" and origin["config_from"] == "inside the file"
            and origin["weights"] == "model")
    # MD_R: its class's default
    assert (origin["md_r"], origin["test_size"], origin["gradient"]) == (64, size, "through the last step")
    assert set(done.loaded) | set(done.renamed) == set(state()) and not done.dropped
    assert not any("not built" in note for note in done.notes)


def test_bare_vars_and_a_config_beside_them(tmp_path):
    jt.save(as_vars(state()), str(tmp_path / "bare.pkl"))
    done = convert_checkpoint(tmp_path / "bare.pkl", tmp_path / "x.safetensors", config=config_file(tmp_path))
    assert check_weights(done.out)["origin"]["config_from"] == "mini.py"


def test_a_pretrained_backbone(tmp_path):
    backbone = {key.partition(".")[2]: value for key, value in state().items() if key.startswith("backbone.")}
    jt.save(as_vars({**backbone, "head.weight": np.zeros((10, 8), np.float32), "head.bias": np.zeros(10, np.float32)}),
            str(tmp_path / "mscan.pkl"))
    done = convert_checkpoint(tmp_path / "mscan.pkl", tmp_path / "x.safetensors")
    assert set(done.dropped) == {"head.weight", "head.bias"} and sorted(load_weights(done.out)[0]) == sorted(
        done.renamed.values())


def test_a_norm_that_an_early_config_leaves_out_comes_from_the_weights(tmp_path):
    done = convert_checkpoint(saved_run(tmp_path, config_file(tmp_path, norm="")), tmp_path / "x.safetensors")
    assert check_weights(done.out)["config"]["model"]["decode_head"]["norm_cfg"] == {"type": "GN", "num_groups": 32}
    assert any("norm_cfg" in note and "GN of 32 groups" in note for note in done.notes)


def test_a_config_alone(tmp_path, capsys):
    assert main(["convert", "--config", str(config_file(tmp_path)), str(tmp_path / "x.yaml")]) == 0
    config = load_config(tmp_path / "x.yaml")
    assert all("150 classes" in fault for fault in check_config(config))  # three are enough here
    assert config["model"]["decode_head"]["ham_kwargs"]["grad"] == "one_step"
    assert "jittorhub://mscan_t.pkl" in capsys.readouterr().out


def test_a_var_without_values_is_refused(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}X\x01\x00\x00\x00wcjittor\njittor_core.Var\n(K\x01tRs.")
    with pytest.raises(ConvertError, match="a Jittor Var without a NumPy array"):
        read_torch_file(tmp_path / "x.pkl")
