"""The model and data_preprocessor blocks of foreign configs in jseg's words.

Where a block leaves an argument to its class, upstream's default is written out if jseg's differs. SegNeXt's three
families differ in ways no key shows; `ham_kwargs` therefore always names MD_R and the gradient rule.
"""

from __future__ import annotations

import inspect
from typing import Any

from jseg.config import stating_block
from jseg.convert.mmseg_notes import Notes, as_pair, brief
from jseg.convert.mmseg_segformer import segformer_words
from jseg.registry import LOSSES, MODELS, SAMPLERS, Registry, accepted, nearest

__all__ = ["translate_model", "translate_preprocessor", "PREPROCESSOR_KEYS"]

PREPROCESSOR_KEYS = ("mean", "std", "bgr_to_rgb", "rgb_to_bgr", "size", "size_divisor", "pad_val",
                     "seg_pad_val", "test_cfg")
# mmsegmentation's names of the datasets that vocabularies come from (mmseg/utils/class_names.py)
_VOCABULARIES = {
    "CityscapesDataset": ("cityscapes",), "ADE20KDataset": ("ade", "ade20k"), "LoveDADataset": ("loveda",),
    "PascalVOCDataset": ("voc", "pascal_voc", "voc12", "voc12aug"), "PotsdamDataset": ("potsdam",),
    "PascalContextDataset59": ("pcontext", "pascal_context", "voc2010"), "ISPRSDataset": ("vaihingen",),
    "COCOStuffDataset": tuple(f"coco{dash}stuff{size}" for dash in ("", "-", "_") for size in ("", "10k", "164k")),
    "iSAIDDataset": ("isaid", "iSAID"), "STAREDataset": ("stare", "STARE"), "LIPDataset": ("LIP", "lip"),
    "MapillaryDataset_v1": ("mapillary_v1",), "MapillaryDataset_v2": ("mapillary_v2",), "BDD100KDataset": ("bdd100k",)}
_PADDING_KEYS = ("size", "size_divisor", "resize_divisor")
# all three families
_HAM_SPELLINGS = {"TRAIN_STEPS": "train_steps", "EVAL_STEPS": "eval_steps", "INV_T": "inv_t", "RAND_INIT": "rand_init"}
_HAM_UPSTREAM = {"MD_S": 1, "MD_R": 64, "train_steps": 6, "eval_steps": 7, "rand_init": True}  # all three families
# words of a head that stay unsaid where usual
_SCOPES = ("mmseg", "mmpretrain", "mmcls", "mmdet", "mmpose")  # before a dot: the library whose class is meant
_SELDOM = ("input_transform", "out_channels", "threshold", "conv_cfg", "sampler")
_NEUTRAL = {"conv_cfg": (None,), "threshold": (None,), "init_cfg": (None,), "pretrained": (None,),
            "decoder_params": (None,), "norm_eval": (False,), "with_cp": (False,), "out_channels": (None,)}


def translate_model(model: dict, notes: Notes) -> dict:
    """The whole `model` block."""
    import jseg.models  # noqa: F401  (fills the registries; needs Jittor)

    model = _with_words_in_heads(segformer_words(model))
    if "image_encoder" in model:  # MultimodalEncoderDecoder's name for it
        model["backbone"] = model.pop("image_encoder")
    kind = model.get("type", "EncoderDecoder")
    if kind not in MODELS:
        notes.add("model.type",
                  f"jseg has no {kind}{nearest(kind, MODELS.names())}; the block was kept for you to change")
    translated = {"type": kind, "backbone": _backbone(notes.block(model.get("backbone"), "model.backbone"), notes)}
    translated["neck"] = _known(MODELS, model["neck"], "model.neck", notes) if model.get("neck") else None
    translated["decode_head"] = _heads(model.get("decode_head"), "model.decode_head", notes)
    translated["auxiliary_head"] = _heads(model.get("auxiliary_head"), "model.auxiliary_head", notes)
    translated["test_cfg"] = _test_cfg(notes.block(model.get("test_cfg"), "model.test_cfg"), notes)
    for key in ("pretrained", "init_cfg"):
        _weights_note(model.get(key), f"model.{key}", notes)
    handled = (*translated, "data_preprocessor", "pretrained", "init_cfg")
    rest = {key: value for key, value in model.items() if key not in handled}
    if kind not in MODELS:
        return translated | rest
    words = accepted(MODELS.get(kind))
    translated = {key: value for key, value in translated.items() if key in words or key == "type" or value is not None}
    if rest.get("text_encoder"):
        rest["text_encoder"] = _text_encoder(notes.block(rest["text_encoder"], "model.text_encoder"), notes)
    return translated | notes.take(rest, [key for key in words if key not in translated], "model",
                                   {"train_cfg": (None, {})})


def _text_encoder(block: dict, notes: Notes) -> Any:
    """A text encoder with the names of its classes, which upstream looks up by the name of a dataset."""
    from jseg.registry import DATASETS
    where, name = "model.text_encoder", block.get("dataset_name")
    block = {key: value for key, value in block.items() if key not in ("dataset_name", "cache_feature")}
    kind = next((kind for kind, names in _VOCABULARIES.items() if name in names), None)
    if kind in DATASETS and block.get("vocabulary") is None:
        classes = DATASETS.get(kind).METAINFO["classes"]
        block["vocabulary"] = list(classes[1:] if classes[0] == "background" else classes)
    elif name is not None:
        notes.add(f"{where}.dataset_name", f"{brief(name)} is no dataset whose classes are known here; write their "
                                           "names as vocabulary")
    return _known(MODELS, block, where, notes)


def _with_words_in_heads(model: dict) -> dict:
    """The model with what its `train_cfg` and `test_cfg` say of single heads said in these heads' own blocks: see
    `MODEL_WORDS`.
    """
    model, taken = dict(model), {}

    def head(block):
        if isinstance(block, list):
            return [head(part) for part in block]
        kind = block.get("type") if isinstance(block, dict) else None
        for part, words in (getattr(MODELS.get(kind), "MODEL_WORDS", {}) if kind in MODELS else {}).items():
            given = model.get(part) if isinstance(model.get(part), dict) else {}
            block = {**block, **{word: given[word] for word in words if word in given}}
            taken.setdefault(part, set()).update(words)
        return block

    for name in ("decode_head", "auxiliary_head"):
        model[name] = head(model.get(name))
    for part, words in taken.items():
        if isinstance(model.get(part), dict):
            model[part] = {key: value for key, value in model[part].items() if key not in words}
    return model


def _weights_note(value: Any, where: str, notes: Notes) -> None:
    """Say which weights the source started training from."""
    start = value.get("checkpoint") if isinstance(value, dict) else value
    if isinstance(start, str):
        notes.add(where, f"training started from {start}; convert that file and name the result in load_from")
    elif value:
        notes.add(where, f"{brief(value)}: jseg initialises its models itself; left out")


def _known(registry: Registry, block: Any, where: str, notes: Notes, *, terse: bool = False) -> Any:
    """A block for a class of ours: its arguments in the constructor's order.
    Unknown types stay as they are, with a note.

    Args:
        terse: leave out arguments that equal the constructor's defaults.
    """
    block = notes.block(block, where)
    kind = block.get("type")
    scope, _, bare = kind.rpartition(".") if isinstance(kind, str) else ("", "", "")
    if scope in _SCOPES and bare in registry:
        block, kind = {**block, "type": bare}, bare
    if not isinstance(kind, str) or kind not in registry:
        notes.add(f"{where}.type", f"jseg has no {registry.kind} {kind!r}{nearest(str(kind), registry.names())}; the "
                                   "block was kept for you to change")
        return block
    _weights_note(block.get("pretrained") or block.get("init_cfg"), where, notes)
    block = {key: value for key, value in block.items()
             if key not in ("pretrained", "init_cfg") and not (key == "norm_eval" and value is False)}
    parameters = accepted(registry.get(kind))
    kept = notes.take(block, parameters, where, _NEUTRAL)
    if terse:
        kept = {key: value for key, value in kept.items() if key == "type" or not _is_default(parameters[key], value)}
    for key in ("norm_cfg", "act_cfg"):
        if isinstance(kept.get(key), dict):
            kept[key] = _plain_cfg(kept[key])
    if isinstance(kept.get("backbone_cfg"), dict):
        kept["backbone_cfg"] = _known(MODELS, kept["backbone_cfg"], f"{where}.backbone_cfg", notes)
    return kept


def _is_default(parameter: inspect.Parameter, value: Any) -> bool:
    return parameter.default is not parameter.empty and _lists(parameter.default) == value \
        and isinstance(value, bool) == isinstance(parameter.default, bool)


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain_cfg(cfg: dict) -> dict:
    """A norm or activation block without what is usual."""
    usual = {"requires_grad": True, "inplace": True}
    return {key: value for key, value in cfg.items() if key not in usual or value is not usual[key]}


def _backbone(block: dict, notes: Notes) -> Any:
    where = "model.backbone"
    if block.get("type") in ("MSCAN", "VAN") and "in_chans" in block:  # the authors' and original JSeg's word
        block = {**{key: value for key, value in block.items() if key != "in_chans"},
                 "in_channels": block["in_chans"]}
    if block.get("type") != "MSCAN":
        return _known(MODELS, block, where, notes)
    from jseg.models.backbones.mscan import SIZES, VARIANTS

    block = {**SIZES, **block}
    if "norm_cfg" not in block and notes.style != "original JSeg":
        block["norm_cfg"] = {"type": "SyncBN"}  # upstream's default
    sizes = {name: block[name] for name in SIZES}
    variant = next((name for name, known in VARIANTS.items() if known == sizes), None)
    if variant is not None:
        block = {key: value for key, value in block.items() if key not in sizes}
    kept = _known(MODELS, block, where, notes, terse=True)
    for key, usual in (("norm_cfg", {"type": "BN"}), ("act_cfg", {"type": "GELU"})):
        if kept.get(key) == usual:
            del kept[key]
    kind = {"type": kept.pop("type")} | ({"variant": variant} if variant is not None else {})
    return kind | kept


def _heads(block: Any, where: str, notes: Notes) -> Any:
    """One head, a list of heads, or none."""
    if isinstance(block, list):
        return [_heads(part, f"{where}.{i}", notes) for i, part in enumerate(block)]
    if not block:
        return None
    block = notes.block(block, where)
    if block.get("out_channels") == block.get("num_classes"):
        block = {key: value for key, value in block.items() if key != "out_channels"}
    init = block.get("init_cfg")
    if isinstance(init, dict) and init.get("type") == "Normal":  # conv_seg, std 0.01: jseg's too
        block.pop("init_cfg")
    kept = _known(MODELS, {key: _without_start(value) for key, value in block.items()}, where, notes)
    if kept.get("type") not in MODELS:
        return kept
    words = accepted(MODELS.get(kept["type"]))
    kept = {key: value for key, value in kept.items() if key not in _SELDOM or not _is_default(words[key], value)}
    below, inner = stating_block(kept)
    if below:
        kept[below[1:]] = _heads(inner, f"{where}{below}", notes)
    if kept.get("type") == "LightHamHead":
        kept["ham_kwargs"] = _ham_kwargs(notes.block(kept.get("ham_kwargs"), f"{where}.ham_kwargs"),
                                         f"{where}.ham_kwargs", notes)
    if isinstance(kept.get("loss_decode"), list):
        kept["loss_decode"] = [_loss(loss, f"{where}.loss_decode.{i}", notes)
                               for i, loss in enumerate(kept["loss_decode"])]
        if kept["type"] == "SideAdapterCLIPHead":
            kept["loss_decode"] = [_with_fitting_weights(loss, kept.get("num_classes"), f"{where}.loss_decode.{i}",
                                                         notes) for i, loss in enumerate(kept["loss_decode"])]
    elif kept.get("loss_decode") is not None:
        kept["loss_decode"] = _loss(kept["loss_decode"], f"{where}.loss_decode", notes)
    if kept.get("sampler") is not None:
        kept["sampler"] = _known(SAMPLERS, kept["sampler"], f"{where}.sampler", notes)
    return kept


def _without_start(value: Any) -> Any:
    """The parts of a head without `init_cfg: null`, which says nothing."""
    if isinstance(value, list):
        return [_without_start(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_start(item) for key, item in value.items() if key != "init_cfg" or item is not None}


def _loss(block: Any, where: str, notes: Notes) -> Any:
    kept = _known(LOSSES, block, where, notes, terse=True)
    if isinstance(kept.get("class_weight"), str):
        notes.add(f"{where}.class_weight",
                  f"names the file {kept['class_weight']!r}; left out, write its numbers here to train on")
        kept.pop("class_weight")
    if "loss_weight" not in kept and kept.get("type") in LOSSES:
        kept["loss_weight"] = 1.0  # every loss says its weight, as in the shipped configs
    return kept


def _with_fitting_weights(loss: dict, classes: Any, where: str, notes: Notes) -> dict:
    """A loss whose class weights are one per class and one of "nothing": upstream's configs of SAN on VOC and Pascal
    Context keep those of COCO-Stuff's 171 classes, and stop at the first training step.
    """
    weights = loss.get("class_weight")
    if not isinstance(weights, list) or not isinstance(classes, int) or len(weights) in (0, classes + 1) \
            or len(set(weights[:-1])) != 1:
        return loss
    notes.add(f"{where}.class_weight", f"{len(weights)} values for {classes} classes; written are {classes} times "
                                       f"{weights[0]:g}, and {weights[-1]:g} of queries without a class")
    return {**loss, "class_weight": [weights[0]] * classes + [weights[-1]]}


def _ham_kwargs(given: dict, where: str, notes: Notes) -> dict:
    """mmseg's or the authors' spelling, upstream's defaults, and the gradient rule of the source."""
    given = {_HAM_SPELLINGS.get(key, key): value for key, value in given.items()}
    rest = {key: value for key, value in given.items() if key not in _HAM_UPSTREAM and key != "grad"}
    options = {key: given.get(key, value) for key, value in _HAM_UPSTREAM.items()}
    if not rest.pop("SPATIAL", True):
        notes.add(f"{where}.SPATIAL", "false is not supported; SegNeXt factorises over positions. It was kept, so that "
                                      "check stops on it")
        options["SPATIAL"] = False
    if "inv_t" in rest:
        notes.add(f"{where}.inv_t",
                  f"{brief(rest.pop('inv_t'))} was left out: NMF uses 1 whatever is given, there as here")
    if "MD_D" in rest:
        notes.add(f"{where}.MD_D", f"{brief(rest.pop('MD_D'))} was left out: the width follows from ham_channels, "
                                   "there as here")
    notes.take(rest, (), where)
    options["grad"] = given.get("grad", "one_step" if notes.style == "original JSeg" else "full")
    return options


def _test_cfg(block: dict, notes: Notes) -> dict:
    kept = notes.take(block, ("mode", "crop_size", "stride"), "model.test_cfg")
    kept = {"mode": kept.pop("mode", "whole"), **kept}
    return {key: as_pair(value) if key != "mode" else value for key, value in kept.items()}


def translate_preprocessor(cfg: dict, notes: Notes) -> tuple[dict, set[str]]:
    """mmseg 1.x's data_preprocessor: the model's own wins over the top-level one, as in MMEngine's Runner."""
    where = "data_preprocessor"
    inner = notes.block(cfg["model"].get(where), f"model.{where}")
    outer = notes.block(cfg.get(where), where)
    block = inner or outer
    for key in sorted(set(inner) & set(outer)):
        if inner[key] != outer[key]:
            notes.add(where, f"model.data_preprocessor has {key} {brief(inner[key])}, the top level "
                             f"{brief(outer[key])}; the model's counts")
    if not block:
        notes.add(where, "the source has none: pictures are neither normalised nor padded")
    if block.get("type", "SegDataPreProcessor") != "SegDataPreProcessor":
        notes.add(f"{where}.type", f"jseg has no {block['type']}; read as SegDataPreProcessor")
    kept = notes.take({**block, "type": "SegDataPreProcessor"}, PREPROCESSOR_KEYS, where,
                      {"non_blocking": (), "batch_augments": (None,)})
    for key in ("size", "size_divisor", "test_cfg"):
        if key in kept and kept[key] in (None, {}):
            del kept[key]
    if "size" in kept:
        kept["size"] = as_pair(kept["size"])
    if "test_cfg" in kept:
        kept["test_cfg"] = notes.take(kept["test_cfg"], _PADDING_KEYS, f"{where}.test_cfg")
        kept["test_cfg"] = {key: as_pair(value) if key == "size" else value for key, value in kept["test_cfg"].items()
                            if value is not None}
    return {where: kept}, {where}
