"""PIDNet's and DDRNet's releases by their authors: whole models (Cityscapes, CamVid) and ImageNet weights; no config.

    ours, PIDNet                  ours, DDRNet                       theirs
    stem.0, stem.1                the same                           conv1.0 + .1, conv1.3 + .4
    stem.2, stem.4                the same                           layer1, layer2
    i_branch_layers.<n>           context_branch_layers.<n>          layer<n + 3>
    p_branch_layers.<n>           spatial_branch_layers.<n>          layer<n + 3>_
    d_branch_layers.<n>           -                                  layer<n + 3>_d
    compression_1, _2             the same                           compression3, compression4
    pag_<n>.f_p, f_i              -                                  pag<n + 2>.f_x, f_y
    diff_1, _2                    down_1, down_2.0 and .1            diff3, diff4; down3, down4.0 + .1 and .3 + .4
    spp.scales, processes         the same                           spp.scale<n>, process<n> (PAPPM: scale_process)
    dfm.f_p, f_i or dfm.conv      -                                  dfm.conv_p, conv_i or dfm.conv
    i_head, p_head, d_head        head, aux_head                     final_layer, seghead_p, seghead_d; seghead_extra

Sources: XuJiacong/PIDNet models/pidnet.py and model_utils.py, ydhongHIT/DDRNet segmentation/DDRNet_23_slim.py and
DDRNet_23.py (MIT). The stem's convolutions have a bias there, which the running mean of the norm behind takes in. A
file for inference without the heads that serve training gets new ones. What the ImageNet network has not (pooling,
fusions) stays as new. Pictures are RGB; maps are resized with align_corners false, PIDNet's scores with true, as its
evaluation. DDRNet-39, whose third layer is in two parts, is not here and is refused.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

import numpy as np

from jseg.convert.guess import Guess, Shapes, rgb_note, usual_scale, whole_config
from jseg.convert.layout import CLASSIFIER, LEAF, Layout, Moved, count_indices, fold_bias
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["NEAREST", "complete", "guess", "recognise"]

NEAREST = "PIDNet and DDRNet, the authors' releases"
_PAIR = {"0": "conv", "1": "bn", "3": "conv", "4": "bn"}
_HEADS = {"final_layer": "decode_head", "seghead_p": "p", "seghead_d": "d", "seghead_extra": "aux"}
_DROPS = ((r"(last_layer|linear|fc|down5)\..*", CLASSIFIER),
          (r"(sem_loss|bd_loss|loss|criterion)\..*", "class weights of the training's loss"))
_FRESH = "a head that serves training alone, made new"


def _pair(place: str, new: str) -> tuple:
    """Rules of a convolution and its norm in a sequence, "0" and "1"."""
    return (rf"{place}\.([01])\.{LEAF}", lambda found: f"{found.expand(new)}.{_PAIR[found[found.re.groups - 1]]}."
                                                        f"{found[found.re.groups]}")


def _branch(found: re.Match, pid: bool) -> str:
    """A residual block: `layer<n>`, with `_` or `_d` behind for the other branches."""
    number, kind, rest = int(found[1]), found[2], found[3]
    if number < 3:
        place = f"stem.{2 * number}"
    else:
        names = {"": "i", "_": "p", "_d": "d"} if pid else {"": "context", "_": "spatial"}
        place = f"{names[kind]}_branch_layers.{number - 3}"
    inner = re.sub(r"\bconv([123])\.", r"conv\1.conv.", rest)
    inner = re.sub(r"\bbn([123])\.", r"conv\1.bn.", inner)
    if pid:
        inner = re.sub(r"\bdownsample\.([01])\.", lambda m: f"downsample.{_PAIR[m[1]]}.", inner)
    return f"backbone.{place}.{inner}"


def _pooling(found: re.Match) -> str:
    """A block of the pyramid: norm, ReLU and convolution, behind the pooling of scales 1 to 4."""
    name, place, leaf = found.groups()
    part = "conv" if place in "23" else "bn"
    if name.startswith("scale") and name != "scale_process":
        number = int(name[5:])
        new = f"scales.{number}.1" if number else "scales.0"
    elif name.startswith("process"):
        new = f"processes.{int(name[7:]) - 1}"
    else:
        new = {"scale_process": "processes"}.get(name, name)
    return f"backbone.spp.{new}.{part}.{leaf}"


def _head(found: re.Match, pid: bool) -> str:
    """A head: norm, convolution, norm, classifier."""
    name, part, leaf = _HEADS[found[1]], found[2], found[3]
    if pid:
        prefix = "i" if name == "decode_head" else name
        block, norm, last = f"{prefix}_head.conv", f"{prefix}_head.norm", f"{prefix}_cls_seg"
    else:
        block, norm, last = ("aux_head.0", "aux_head.1", "aux_cls_seg") if name == "aux" else ("head.0", "head.1", "")
    last = "conv_seg" if name == "decode_head" else last
    new = {"bn1": f"{block}.bn", "conv1": f"{block}.conv", "bn2": norm, "conv2": last}[part]
    return f"decode_head.{new}.{leaf}"


def _layout(pid: bool) -> Layout:
    """The table above."""
    ends = "(|_|_d)" if pid else "(|_)"
    rules = [(rf"conv1\.([0134])\.{LEAF}", lambda found: f"backbone.stem.{0 if found[1] in '01' else 1}."
                                                         f"{_PAIR[found[1]]}.{found[2]}"),
             (rf"layer([1-5]){ends}\.(.*)", lambda found: _branch(found, pid)),
             _pair("compression3", "backbone.compression_1"), _pair("compression4", "backbone.compression_2"),
             (rf"spp\.(scale[0-4]|process[1-4]|scale_process|compression|shortcut)\.([0-3])\.{LEAF}", _pooling),
             (rf"(final_layer|seghead_p|seghead_d|seghead_extra)\.(bn1|conv1|bn2|conv2)\.{LEAF}",
              lambda found: _head(found, pid))]
    if pid:
        rules += [_pair(rf"pag{n + 2}\.f_{theirs}", f"backbone.pag_{n}.f_{ours}") for n in (1, 2)
                  for theirs, ours in (("x", "p"), ("y", "i"))]
        rules += [_pair("diff3", "backbone.diff_1"), _pair("diff4", "backbone.diff_2"),
                  _pair(r"dfm\.conv_([pi])", r"backbone.dfm.f_\1"),
                  (rf"dfm\.conv\.([02])\.{LEAF}", lambda found: f"backbone.dfm.conv."
                                                                 f"{'bn' if found[1] == '0' else 'conv'}.{found[2]}")]
    else:
        rules += [_pair("down3", "backbone.down_1"),
                  (rf"down4\.([0134])\.{LEAF}", lambda found: f"backbone.down_2.{0 if found[1] in '01' else 1}."
                                                               f"{_PAIR[found[1]]}.{found[2]}")]
    return Layout("PIDNet" if pid else "DDRNet-23", rules, _DROPS)


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether it is one of these networks."""
    return "compression3.0.weight" in shapes and "layer3_.0.conv1.weight" in shapes


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The config of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    pid = "pag3.f_x.0.weight" in shapes or "layer3_d.conv1.weight" in shapes
    whole = "final_layer.conv2.weight" in shapes
    try:
        backbone = _backbone(shapes, pid)
        head = _head_block(shapes, backbone, pid) if whole else None
    except (KeyError, IndexError, ValueError) as error:
        raise ConvertError(f"{where}: an incomplete or other {'PIDNet' if pid else 'DDRNet'}: {error} is missing or "
                           "has an odd shape") from error
    config = {"model": {"backbone": backbone}} if head is None else whole_config(
        backbone, head, usual_scale(head["num_classes"]))
    return Guess(f"{'PIDNet' if pid else 'DDRNet'}, the authors' release", config, backbone_only=not whole,
                 notes=(rgb_note(),), translate=lambda found, model: _translate(found, model, pid, whole))


def _backbone(shapes: Shapes, pid: bool) -> dict[str, Any]:
    """Constructor arguments that shapes tell."""
    first = shapes["conv1.0.weight"]
    block: dict[str, Any] = {"type": "PIDNet" if pid else "DDRNet", "in_channels": first[1], "channels": first[0]}
    if "spp.scale0.2.weight" in shapes:
        block["ppm_channels"] = shapes["spp.scale0.2.weight"][0]
    if pid:
        stem = count_indices(shapes, r"layer1\.(\d+)\.conv1\.")
        block.update(num_stem_blocks=stem, num_branch_blocks=count_indices(shapes, r"layer3\.(\d+)\.conv1\."))
        block.setdefault("ppm_channels", 96 if stem == 2 else 112)
    return {**block, "align_corners": False, "norm_cfg": {"type": "BN"}}


def _head_block(shapes: Shapes, backbone: Mapping[str, Any], pid: bool) -> dict[str, Any]:
    """The head's arguments; losses as MMSegmentation's configs have them, without weights of classes."""
    hard = {"type": "OhemCrossEntropy", "thres": 0.9, "min_kept": 131072}
    losses = [{"type": "CrossEntropyLoss", "loss_weight": 0.4}, {**hard, "loss_weight": 1.0},
              {"type": "BoundaryLoss", "loss_weight": 20.0}, {**hard, "loss_weight": 1.0}] if pid else [
        {**hard, "loss_weight": 1.0}, {**hard, "loss_weight": 0.4}]
    return {"type": "PIDHead" if pid else "DDRHead", "in_channels": 4 * backbone["channels"],
            "channels": shapes["final_layer.conv1.weight"][0], "num_classes": shapes["final_layer.conv2.weight"][0],
            "norm_cfg": {"type": "BN"}, "align_corners": pid, "ignore_index": 255, "loss_decode": losses}


def _translate(shapes: Shapes, model: Mapping[str, Any], pid: bool, whole: bool) -> Moved:
    """Where each key goes."""
    moved = _layout(pid).apply(shapes)
    for i in (0, 1):
        fold_bias(moved.made, f"backbone.stem.{i}.conv.bias", f"backbone.stem.{i}.bn.running_mean")
    if whole:
        _new_heads(moved.made, model["decode_head"], pid)
        return moved
    for name in ("spp", "dfm", "pag_1", "pag_2", "diff_1", "diff_2"):
        if not any(key.startswith(f"backbone.{name}.") for key in moved.made):
            moved.absent[f"{name}."] = "not in ImageNet's network"
    moved.made = {key.removeprefix("backbone."): made for key, made in moved.made.items()}
    return moved


def _new_heads(made: dict[str, Made], head: Mapping[str, Any], pid: bool) -> None:
    """Heads for training that a file for inference lacks, as a new model has them, always the same."""
    width, channels, classes = head["in_channels"] // 2, head["channels"], head["num_classes"]
    heads = [("p_head.conv", "p_head.norm", "p_cls_seg", channels, classes),
             ("d_head.conv", "d_head.norm", "d_cls_seg", width // 2, 1)] if pid else [
        ("aux_head.0", "aux_head.1", "aux_cls_seg", channels, classes)]
    rng = np.random.default_rng(0)
    for block, norm, last, inner, out in heads:
        if any(key.startswith(f"decode_head.{last}.") for key in made):
            continue
        values = {f"{last}.weight": rng.normal(0, 0.01, (out, inner, 1, 1)), f"{last}.bias": np.zeros(out),
                  f"{block}.conv.weight": rng.normal(0, (2 / (9 * inner))**0.5, (inner, width, 3, 3))}
        for name, size in ((f"{block}.bn", width), (norm, inner)):
            values.update({f"{name}.{leaf}": np.full(size, float(leaf in ("weight", "running_var")))
                           for leaf in ("weight", "bias", "running_mean", "running_var")})
        made.update({f"decode_head.{key}": Made.filled(value.shape, value, _FRESH) for key, value in values.items()})


def complete(settings: dict, found: Guess, *, origin: str, where: str, notes: list[str]) -> dict:
    """A stated config as it is; the account of the keys compares it with the weights."""
    return settings
