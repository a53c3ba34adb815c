"""PyTorch's side of a comparison: mmsegmentation's SegNeXt and PyTorch's operators, run on request by another Python.

    PYTHON tests/parity/torch_side.py        speaks `protocol` on standard input and output

That Python has PyTorch and, if possible, mmsegmentation 1.2.2, whose shipped configs (mmseg/.mim/configs/segnext) give
the model; without it `torch_segnext` stands in. This file never imports jseg or Jittor. Timed is what jseg's side does
too: for inference from pictures in memory to label maps in memory (logits resized once to the picture's size, argmax),
for training loss, gradients, AdamW.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import sys

import numpy as np
import torch
from torch.nn import functional as F

import torch_kernels  # the folder of a script is on its path
import torch_segnext

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARY = os.path.join(os.path.dirname(os.path.dirname(HERE)), "jseg")
sys.path[:] = [p for p in sys.path if p != HERE] + [os.path.join(LIBRARY, room) for room in ("bench", "convert")]
import mmseg_side  # noqa: E402  (these two are plain files that import nothing of jseg)
import protocol  # noqa: E402

HEAD_WORDS = ("in_channels", "in_index", "channels", "ham_channels", "num_classes", "dropout_ratio", "align_corners")
HAM_WORDS = ("MD_S", "MD_R", "train_steps", "eval_steps", "rand_init")


def import_mmseg():
    """mmsegmentation, as `mmseg_side` imports it; None where it is not installed."""
    try:
        return mmseg_side.import_mmseg()
    except ImportError:
        return None


def build(config: dict):
    """(network, what built it) for a jseg config.

    Raises:
        ValueError: a model other than SegNeXt.
    """
    model = config["model"]
    backbone, head = model["backbone"], model["decode_head"]
    if (backbone["type"], head["type"]) != ("MSCAN", "LightHamHead") or "variant" not in backbone:
        raise ValueError(
            f"this side knows MSCAN variants with LightHamHead, got {backbone['type']} with {head['type']}")
    mmseg = import_mmseg()
    if mmseg is None:
        return torch_segnext.SegNeXt(model), f"plain PyTorch {torch.__version__} (no mmsegmentation)"
    from mmengine.config import Config
    from mmseg.registry import MODELS
    pattern = os.path.join(os.path.dirname(mmseg.__file__), ".mim", "configs", "segnext",
                           f"segnext_mscan-{backbone['variant'][0]}_*.py")
    cfg = Config.fromfile(sorted(glob.glob(pattern))[0]).model
    cfg.data_preprocessor, cfg.backbone.init_cfg = None, None
    cfg.backbone.drop_path_rate = backbone.get("drop_path_rate", 0.0)
    cfg.decode_head.update({k: head[k] for k in HEAD_WORDS if k in head})
    cfg.decode_head.ham_kwargs.update({k: v for k, v in (head.get("ham_kwargs") or {}).items() if k in HAM_WORDS})
    return MODELS.build(cfg), f"mmsegmentation {mmseg.__version__}, PyTorch {torch.__version__}"


class NetworkTask:
    """A whole model that infers or trains; calling it does one inference or one training step and waits for the result.

    Args:
        request: config, inputs and weights (paths), mode, and the options device, channels_last, compile, mixed.
    """

    def __init__(self, request: dict):
        with open(request["config"], encoding="utf-8") as file:
            self.config = json.load(file)
        inputs, weights = np.load(request["inputs"]), dict(np.load(request["weights"]))
        self.images, self.labels = inputs["images"], inputs["labels"].astype(np.int64)
        self.bases = torch.from_numpy(weights.pop("bases/"))
        self.mode, self.device, self.mixed = request["mode"], request.get("device", "cpu"), request.get("mixed", False)
        self.format = torch.channels_last if request.get("channels_last") else torch.contiguous_format
        torch.manual_seed(0)
        network, self.built_by = build(self.config)
        load(network, weights)
        self.network = network.to(self.device, memory_format=self.format)
        self.network.train(self.mode == "train")
        if request.get("compile"):
            self.network.backbone.compile()
            self.network.decode_head.forward = torch.compile(self.network.decode_head.forward)
        if self.mode == "train":
            words = self.config["optimizer"]
            self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=words.get("lr", 6e-5),
                                               betas=tuple(words.get("betas", (0.9, 0.999))),
                                               weight_decay=words.get("weight_decay", 0.01))

    def _pictures(self):
        return torch.from_numpy(self.images).to(self.device).contiguous(memory_format=self.format)

    def _logits(self):
        with torch.autocast(self.device, dtype=torch.float16, enabled=self.mixed):
            return self.network(self._pictures())

    def _full(self, logits):
        return F.interpolate(logits, size=self.labels.shape[1:], mode="bilinear",
                             align_corners=self.config["model"]["decode_head"].get(
                                 "align_corners", False))

    def _label_maps(self, logits) -> np.ndarray:
        return self._full(logits).argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int32).cpu().numpy()

    def _loss(self):
        """Cross entropy averaged over all pixels, as mmsegmentation's default, and the accuracy it logs."""
        labels = torch.from_numpy(self.labels).to(self.device)
        logits = self._full(self._logits().float())
        losses = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
        valid = labels != 255
        self.accuracy = ((logits.argmax(1) == labels) & valid).sum() * 100.0 / valid.sum().clamp(min=1)
        loss_cfg = self.config["model"]["decode_head"].get("loss_decode") or {}
        return losses.sum() / (valid.sum() if loss_cfg.get("avg_non_ignore") else labels.numel())

    def __call__(self) -> None:
        if self.mode == "infer":
            with torch.inference_mode():
                self._label_maps(self._logits())
            return
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        self.optimizer.step()
        loss.item()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def results(self) -> dict[str, np.ndarray]:
        """What other sides must agree with: logits and label maps,
        or loss and gradient norms of a step without randomness.
        """
        with no_randomness(self.network, self.bases):
            if self.mode == "infer":
                with torch.inference_mode():
                    logits = self._logits()
                    return {"logits": logits.float().cpu().numpy(), "label_maps": self._label_maps(logits)}
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss()
            loss.backward()
            norms = {f"gradient/{name}": np.float64(p.grad.double().norm().item())
                     for name, p in self.network.named_parameters()}
            return {"loss": np.float32(loss.item()), **norms}


def load(network, weights: dict) -> None:
    """Load weights strictly; the norms' step counters, which jseg does not keep, stay."""
    state = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    state.update({key: torch.from_numpy(np.ascontiguousarray(value))
                  for key, value in weights.items() if not key.endswith("bases")})
    network.load_state_dict(state)


@contextlib.contextmanager
def no_randomness(network, bases):
    """No dropout, no dropped paths, the given starting bases."""
    before = []
    for module in network.modules():
        changes = {name: 0.0 for name in ("drop_prob", "p") if isinstance(getattr(module, name, None), float)}
        if isinstance(module, torch_segnext.Bases):
            changes["fixed"] = bases
        elif type(module).__name__ == "NMF2D" and module.rand_init:
            changes["_build_bases"] = lambda b, s, d, r, device=None: bases.to(device).repeat(b, 1, 1)
        for name, value in changes.items():
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def main() -> None:
    """Answer requests until the input closes."""
    tasks: dict = {}

    def hello(request: dict) -> dict:
        return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.cuda.is_available(),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                "mmseg": import_mmseg() is not None}

    def open_model(request: dict) -> dict:
        task = tasks[request.get("task", "main")] = NetworkTask(request)
        return {"built_by": task.built_by, "seconds": protocol.run_task(task, request.get("warm", 2))}

    def open_kernel(request: dict) -> dict:
        task = tasks[request.get("task", "main")] = torch_kernels.OperatorTask(request)
        return {"seconds": protocol.run_task(task, 2)}

    def results(request: dict) -> dict:
        np.savez(request["out"], **tasks[request.get("task", "main")].results())
        return {}

    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
    protocol.serve({"hello": hello, "open": open_model, "open_kernel": open_kernel, "results": results}, tasks,
                   {"side": "torch"})


if __name__ == "__main__":
    main()
