"""The reference side of `make parity-zoo`: models of MMSegmentation's own configs,
under a Python with PyTorch and without jseg.

    python tests/parity/zoo_mmseg.py FOLDER

FOLDER/jobs.json: [{"name", "config", "size": [H, W], "train": true}, ...]. For each job MMSegmentation builds the model
from its own config, every parameter and buffer gets values that depend on its key alone, and FOLDER/<name>/ receives
checkpoint.pth (as the runner saves it) and reference.npz: inputs, evaluation logits, label maps of whole and slide
inference and, with "train", losses term by term, every gradient and the running statistics of one step in float64,
dropout and drop path off; and the gradients of the same step with smooth activations (see `smooth_relu`), and
how far PyTorch's own float32 strays from both. A job that fails leaves error.txt. Where a cross entropy has class
weights no pixel is ignored: MMSegmentation's own fails on ignored ones.
"""

from __future__ import annotations

import contextlib
import copy
import json
import pathlib
import sys
import traceback
import zlib
from unittest import mock

import numpy as np
from gradients import gradient_errors, uniform
from make_segnext import import_mmseg, samples
from zoo_operators import add_psa_mask, allow_mmcv_operators, allow_mmpretrain

RESIDUAL = 0.2  # scale of the last norm in residual branches: rounding then grows less from block to block
CLASS_SPREAD = 3.0  # classifiers are scaled up, so that random weights give maps of many classes
QUERY_SPREAD = 5.0  # MaskFormer's queries start at zero and see few cells: narrower, they hardly differ
MASK_SPREAD = 0.2  # a mask's scores are sums over 256 channels: wider, float32's sigmoid of most is 0 or 1
SLIDE = {"mode": "slide", "crop_size": [96, 96], "stride": [64, 64]}


def numbers(key: str, shape) -> np.ndarray:
    """Standard normal numbers that depend on the key only."""
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))


def value_of(key: str, shape) -> np.ndarray:
    """The random value of one state-dict entry, float32; activations stay near 1 in deep residual networks too."""
    values, leaf = numbers(key, shape), key.rpartition(".")[2]
    if leaf == "running_var":
        values = 1.0 + 0.5 * np.tanh(values)
    elif leaf == "logit_scale":
        values = CLASS_SPREAD + 0.1 * values  # CLIP's is 2.7 at first
    elif leaf in ("running_mean", "bias") or leaf.endswith("_bias"):
        values = 0.1 * values
    elif (leaf.startswith(("layer_scale", "gamma")) or ".gamma." in key) and len(shape) <= 1:
        values = 0.05 + 0.02 * values
    elif len(shape) <= 1:
        values = 1.0 + 0.2 * values
    elif key.endswith("query_embed.weight"):
        values = QUERY_SPREAD * values
    elif key.endswith("token_embedding.weight"):
        pass  # of words: narrower, the sentences of all classes look alike
    elif "embed" in leaf or "token" in leaf or "relative_position_bias" in leaf or "query_feat" in key:
        values = 0.2 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
        if "conv_seg" in key or "cls_seg" in key:
            values = values * CLASS_SPREAD
        elif "mask_embed.4" in key or "query_mlp.layers.2" in key:
            values = values * MASK_SPREAD
    return np.asarray(values, np.float32)  # an array for a scalar too


def load(network) -> None:
    """Give every floating-point parameter and buffer its random value; index tables and counters stay."""
    import torch
    state = {key: torch.from_numpy(value_of(key, value.shape)).reshape(value.shape).to(value.dtype)
             if value.is_floating_point() else value
             for key, value in network.state_dict().items()}
    for name, module in network.named_modules():
        last = getattr(module, "norm3_name", None) or getattr(module, "norm2_name", None)
        if isinstance(last, str) and f"{name}.{last}.weight" in state:
            state[f"{name}.{last}.weight"] *= RESIDUAL
    for key in state:  # of CLIP: otherwise all patches become alike
        if key.startswith("image_encoder.") and key.endswith(("out_proj.weight", ".layers.1.weight")):
            state[key] *= RESIDUAL
    network.load_state_dict(state)


def without_start(block):
    """A config block without pretrained weights, and with BN for SyncBN, which runs on the CPU in evaluation only."""
    if isinstance(block, dict):
        if block.get("type") == "SyncBN":
            block["type"] = "BN"
        for key in list(block):
            if key == "pretrained" or (key == "init_cfg" and isinstance(block[key], dict)
                                       and block[key].get("type") == "Pretrained"):
                block[key] = None
            else:
                without_start(block[key])
    elif isinstance(block, (list, tuple)):
        for item in block:
            without_start(item)
    return block


def still(network) -> None:
    """Switch off everything random in training."""
    from torch import nn
    for module in network.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
        elif type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0


def run_once(head) -> None:
    """Let a head of a cascade keep its first result: MMSegmentation runs it twice per step,
    and its running statistics move twice.
    """
    forward, kept = head.forward, []

    def kept_forward(*given):
        if not kept:
            kept.append(forward(*given))
        return kept[0]

    head.forward = kept_forward


def inputs(size, classes: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(two normalised pictures, their labels with a tenth ignored)."""
    height, width = size
    rows, columns = np.meshgrid(np.linspace(0, 5, height), np.linspace(0, 7, width), indexing="ij")
    phase = numbers("phase", (2, channels))[..., None, None]
    pictures = np.sin(2 * rows * (1 + phase)) + np.cos(columns * (1 - phase)) + 0.3 * numbers(
        "noise", (2, channels, height, width))
    blocks = np.abs(numbers("labels", (2, -(-height // 16), -(-width // 16))) * 1000).astype(np.int64) % classes
    labels = np.kron(blocks, np.ones((16, 16), np.int64))[:, :height, :width]
    return pictures.astype(np.float32), np.where(numbers("ignored", (2, height, width)) > 1.3, 255,
                                                 labels).astype(np.int32)


def run(job: dict, folder: pathlib.Path, configs: pathlib.Path) -> None:
    """One job."""
    import mmengine
    import torch
    from mmengine.config import Config
    from mmseg.registry import DATASETS, MODELS
    config = Config.fromfile(configs / job["config"])
    if job.get("img_size"):
        config.model.backbone.img_size = tuple(job["size"])
    kind = config.get("test_dataloader", {}).get("dataset", {}).get("type")
    info = {**(DATASETS.get(kind).METAINFO if kind and DATASETS.get(kind) else {}),
            **config.get("test_dataloader", {}).get("dataset", {}).get("metainfo", {})}
    block = without_start(copy.deepcopy(config.model))
    block["data_preprocessor"] = None
    network = MODELS.build(block)
    load(network)
    network.eval()
    meta = {"mmengine_version": mmengine.__version__, "cfg": config.pretty_text, "dataset_meta": info, "iter": 7,
            "epoch": 0, "seed": 0}
    torch.save({"meta": meta, "state_dict": network.state_dict()}, folder / "checkpoint.pth")
    head = network.decode_head[-1] if hasattr(network.decode_head, "__len__") else network.decode_head
    pictures, labels = inputs(job["size"], head.num_classes, block.get("backbone", {}).get("in_channels", 3))
    if weighs_classes(config.model.to_dict()):
        labels = np.where(labels == 255, 0, labels).astype(np.int32)
    height, width = job["size"]
    metas = [{"ori_shape": (height, width), "img_shape": (height, width), "pad_shape": (height, width),
              "padding_size": [0, 0, 0, 0]}] * 2
    out = {"pictures": pictures, "labels": labels}
    of_heads = dict(network.test_cfg or {})  # words of single heads stay
    network.test_cfg = Config({**of_heads, "mode": "whole"})
    with torch.no_grad():
        logits = network.encode_decode(torch.from_numpy(pictures), metas)
        out["logits"] = logits.numpy().copy()
        out["whole"] = label_maps(network.postprocess_result(logits, samples([dict(m) for m in metas])))
        if slide := job.get("slide", SLIDE):
            network.test_cfg = Config({**of_heads, **slide})
            # without pad_shape, which Mask2FormerHead would take for the size of every window
            windows = [{key: value for key, value in meta.items() if key != "pad_shape"} for meta in metas]
            out["slide"] = label_maps(network.predict(torch.from_numpy(pictures), samples(windows)))
    if job.get("train"):
        data_samples = labelled_samples(metas, labels, edge_step(config))
        exact = training_step(network.double(), pictures, data_samples)
        out.update(exact)
        out["stray"] = stray_of(network.float(), pictures, data_samples, gradients_of(exact))
        with smooth_relu() if job.get("smooth", True) else contextlib.nullcontext():
            smooth = gradients_of(training_step(network.double(), pictures, data_samples))
            out["smooth_stray"] = stray_of(network.float(), pictures, data_samples, smooth)
        out.update({f"smooth/{key}": value for key, value in smooth.items()})
    facts = {"keys": {key: list(value.shape) for key, value in network.state_dict().items()
                      if not key.endswith("num_batches_tracked")},
             "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad), "slide": slide,
             "metas": metas}
    np.savez(folder / "reference.npz", facts=np.array(json.dumps(facts)), **out)


@contextlib.contextmanager
def smooth_relu():
    """ReLU and ReLU6 become GELU, in place where they were; HSwish becomes Swish and HSigmoid a sigmoid.

    Rounding moves values across a ReLU's edge and flips their whole gradient, so in a deep network float32 gradients
    stray by percents from exact ones, whoever computes them. Without edges, what differs is a fault.
    """
    import torch
    from mmcv.cnn.bricks.hsigmoid import HSigmoid
    from torch.nn import functional
    before = (functional.relu, functional.hardtanh, torch.relu, functional.relu_, functional.hardswish,
              HSigmoid.forward)

    def gelu(x, *_, inplace: bool = False, **__):
        y = functional.gelu(x.clone())  # it saves its input, which sums in place may change behind a ReLU
        return x.copy_(y) if inplace else y

    functional.relu, functional.hardtanh, torch.relu, functional.relu_ = gelu, gelu, gelu, gelu
    functional.hardswish, HSigmoid.forward = lambda x, inplace=False: functional.silu(x), lambda self, x: x.sigmoid()
    try:
        yield
    finally:
        (functional.relu, functional.hardtanh, torch.relu, functional.relu_, functional.hardswish,
         HSigmoid.forward) = before


def edge_step(config):
    """The transform of the training pipeline that draws edges, or None."""
    from mmseg.registry import TRANSFORMS
    steps = config.get("train_dataloader", {}).get("dataset", {}).get("pipeline") or []
    return next((TRANSFORMS.build(step) for step in steps if step["type"] == "GenerateEdge"), None)


def labelled_samples(metas: list[dict], labels: np.ndarray, edges) -> list:
    """Data samples with label maps, and edge maps where the pipeline draws them."""
    import torch
    from mmengine.structures import PixelData
    found = samples([dict(m) for m in metas], labels)
    for sample, label in zip(found, labels if edges is not None else ()):
        drawn = edges({"img_shape": label.shape, "gt_seg_map": label})["gt_edge_map"]
        sample.gt_edge_map = PixelData(data=torch.from_numpy(drawn.astype(np.int64))[None])
    return found


def gradients_of(step: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gradients alone."""
    return {key: value for key, value in step.items() if key.startswith("gradient/")}


def stray_of(network, pictures: np.ndarray, data_samples: list, exact: dict[str, np.ndarray]) -> np.ndarray:
    """How far the gradients of the same step in float32 are from exact ones, at worst."""
    single = gradients_of(training_step(network, pictures, data_samples, single=True))
    return np.array(max(gradient_errors(single, exact).values()))


def weighs_classes(block) -> bool:
    """Whether a cross entropy in a config block has class weights: MMSegmentation's then fails on ignored pixels."""
    if isinstance(block, dict):
        weighted = block.get("type") == "CrossEntropyLoss" and block.get("class_weight") is not None
        return weighted or any(weighs_classes(value) for value in block.values())
    return isinstance(block, (list, tuple)) and any(weighs_classes(item) for item in block)


@contextlib.contextmanager
def shared_draws(network, *, single: bool):
    """For one step: heads of a cascade run once, training draws the numbers that jseg's draws, and new tensors have
    float64 unless `single`.
    """
    import torch
    torch.set_default_dtype(torch.float32 if single else torch.float64)
    stages = list(network.decode_head)[:-1] if hasattr(network.decode_head, "__len__") else []
    for stage in stages:
        run_once(stage)
    rand, torch.rand = torch.rand, lambda *shape, **_: torch.from_numpy(uniform(*shape)).to(torch.get_default_dtype())
    to_float = torch.Tensor.float
    if not single:  # some losses write .float(), which is float32 whatever else is
        torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.rand, torch.Tensor.float = rand, to_float
        for stage in stages:
            del stage.forward


def total_of(losses: dict):
    """The sum of all terms of a loss, lists of them too."""
    return sum(value if not isinstance(value, list) else sum(value) for key, value in losses.items() if "loss" in key)


def training_step(network, pictures: np.ndarray, data_samples: list, *, single: bool = False) -> dict[str, np.ndarray]:
    """Losses, gradients and running statistics of one step from the random weights, in float64 unless `single`."""
    import torch
    load(network)
    still(network)
    network.train()
    with shared_draws(network, single=single):
        losses = network.loss(torch.from_numpy(pictures).to(torch.get_default_dtype()), data_samples)
        network.zero_grad()
        total_of(losses).backward()
    found = {f"losses/{key}": value.detach().numpy() for key, value in losses.items()}
    # kept in float32: rounding of exact values, and half the memory
    found.update({f"gradient/{key}": p.grad.numpy().astype(np.float32) for key, p in network.named_parameters()
                  if p.grad is not None})
    found.update({f"running/{key}": v.numpy().copy() for key, v in network.state_dict().items() if ".running_" in key})
    return found


def label_maps(found: list) -> np.ndarray:
    """(N, H, W) from what MMSegmentation's own post-processing gives."""
    return np.stack([sample.pred_sem_seg.data.numpy()[0].astype(np.uint8) for sample in found])


def fix_bases() -> None:
    """Let Hamburger start from the bases that jseg's evaluation has: MMSegmentation draws them for each picture."""
    import torch
    from mmseg.models.decode_heads.ham_head import NMF2D

    def bases(self, batch, spatial, dimension, rank, device=None):
        generator = np.random.RandomState(np.array([spatial, dimension, rank], np.uint32))
        found = generator.random_sample((spatial, dimension, rank))
        found = np.tile(found / np.linalg.norm(found, axis=1, keepdims=True), (batch, 1, 1))
        return torch.from_numpy(found.astype(np.float32)).to(torch.get_default_dtype())

    NMF2D._build_bases = bases


def shorten_texts() -> None:
    """Let CLIP's text transformer stop behind the longest sentence: no token looks behind itself, and zeros up to 77
    tokens take most of the time.
    """
    from mmseg.models.text_encoder import CLIPTextEncoder
    whole = CLIPTextEncoder.encode_text

    def encode_text(self, text, normalize=False):
        length = int(text.argmax(-1).max()) + 1
        with mock.patch.dict(self._parameters, positional_embedding=self.positional_embedding[:length]), \
                mock.patch.dict(self._buffers, attn_mask=self.attn_mask[:length, :length]):
            return whole(self, text[:, :length], normalize)

    CLIPTextEncoder.encode_text = encode_text


def prepare() -> pathlib.Path:
    """Import MMSegmentation, with stand-ins for what the models do not need; returns the folder of its configs."""
    compiled = allow_mmcv_operators()
    allow_mmpretrain()
    mmseg = import_mmseg()
    fix_bases()
    shorten_texts()
    if not compiled:
        add_psa_mask()
    return pathlib.Path(mmseg.__file__).parent / ".mim" / "configs"


def main(folder: pathlib.Path) -> None:
    """Every job of jobs.json."""
    configs = prepare()
    for job in json.loads((folder / "jobs.json").read_text()):
        own = folder / job["name"]
        own.mkdir(exist_ok=True)
        try:
            run(job, own, configs)
        except Exception:
            (own / "error.txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
