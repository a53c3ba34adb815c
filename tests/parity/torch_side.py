"""PyTorch's side of a comparison: MMSegmentation's models and PyTorch's operators, run on request by another Python.

    PYTHON tests/parity/torch_side.py        speaks `protocol` on standard input and output

That Python has PyTorch and, if possible, mmsegmentation 1.2.2, which builds the model from what jseg's side wrote
beside the weights: upstream.py (the model in MMSegmentation's words) and upstream.npz. Without it `torch_segnext`
stands in for SegNeXt. This file never imports jseg or Jittor. Timed is what jseg's side does too: for inference from
pictures in memory to label maps in memory (logits resized once to the picture's size, argmax), for training loss,
gradients, the config's optimizer.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

import numpy as np

try:
    import torch
except ImportError as error:
    sys.exit(f"PyTorch is not installed in this Python ({error}): {sys.executable} -m pip install torch")
from torch.nn import functional as F

import torch_kernels  # the folder of a script is on its path
import torch_segnext
import zoo_mmseg
import zoo_operators

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARY = os.path.join(os.path.dirname(os.path.dirname(HERE)), "jseg")
sys.path[:] = [p for p in sys.path if p != HERE] + [os.path.join(LIBRARY, room) for room in ("bench", "convert")]
import mmseg_side  # noqa: E402  (these two are plain files that import nothing of jseg)
import protocol  # noqa: E402

NEEDED = "mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 mmpretrain==1.2.0 ftfy regex"
EDGE_WIDTH = 4  # jseg's default for PIDHead, which draws the edges itself


def import_mmseg():
    """mmsegmentation, with stand-ins for compiled operators that are not here; None where it is not installed."""
    try:
        compiled = zoo_operators.allow_mmcv_operators()
        zoo_operators.allow_mmpretrain()
        mmseg = mmseg_side.import_mmseg()
    except ImportError:
        return None
    if not compiled:
        zoo_operators.add_psa_mask()
    return mmseg


def build(request: dict, config: dict):
    """(network with its weights, the starting bases of Hamburger, what built it) for an `open` request.

    Raises:
        ValueError: a model other than SegNeXt, and mmsegmentation is not installed.
    """
    weights, mmseg = dict(np.load(request["weights"])), import_mmseg()
    bases = torch.from_numpy(weights.pop("bases/"))
    if mmseg is None:
        model = config["model"]
        if model["backbone"]["type"] != "MSCAN" or "variant" not in model["backbone"]:
            raise ValueError(f"mmsegmentation is not installed in this Python: {sys.executable} -m pip install "
                             f"{NEEDED}")
        network, built_by = torch_segnext.SegNeXt(model), f"plain PyTorch {torch.__version__} (no mmsegmentation)"
    else:
        from mmengine.config import Config
        from mmseg.registry import MODELS
        place = os.path.dirname(request["weights"])
        with open(os.path.join(place, "upstream.py"), encoding="utf-8") as file:
            block = zoo_mmseg.without_start(Config.fromstring(file.read(), ".py").model)
        block["data_preprocessor"], weights = None, np.load(os.path.join(place, "upstream.npz"))
        network = MODELS.build(block)
        built_by = f"mmsegmentation {mmseg.__version__}, PyTorch {torch.__version__}"
    load(network, weights)
    return network, bases, built_by


class NetworkTask:
    """A whole model that infers or trains; calling it does one inference or one training step and waits for the result.

    Args:
        request: config, inputs and weights (paths), mode, and the options device, channels_last, compile, mixed.
    """

    def __init__(self, request: dict):
        with open(request["config"], encoding="utf-8") as file:
            self.config = json.load(file)
        inputs = np.load(request["inputs"])
        self.images, self.labels = inputs["images"], inputs["labels"].astype(np.int64)
        self.mode, self.device, self.mixed = request["mode"], request.get("device", "cpu"), request.get("mixed", False)
        self.format = torch.channels_last if request.get("channels_last") else torch.contiguous_format
        torch.manual_seed(0)
        network, self.bases, self.built_by = build(request, self.config)
        self.network = network.to(self.device, memory_format=self.format)
        self.network.train(self.mode == "train")
        self.size = tuple(self.images.shape[2:])
        self.metas = [{"ori_shape": self.size, "img_shape": self.size, "pad_shape": self.size,
                       "padding_size": [0, 0, 0, 0]} for _ in self.images]
        self.plain = isinstance(network, torch_segnext.SegNeXt)
        self.labels_of = self._labels_of
        if self.mode == "train":
            self._prepare_training()
        else:  # the same bases for every picture: otherwise each check would compile anew
            for module in self.network.modules():
                for name, value in fixed_bases(module, self.bases).items():
                    setattr(module, name, value)
        if request.get("compile"):
            self._compile()

    def _prepare_training(self) -> None:
        words = {key: tuple(value) if isinstance(value, list) else value
                 for key, value in self.config["optimizer"].items() if key not in ("type", "clip_grad")}
        self.optimizer = getattr(torch.optim, self.config["optimizer"]["type"])(self.network.parameters(), **words)
        if not self.plain:
            edges, heads = None, self.config["model"]["decode_head"]
            if any(head["type"] == "PIDHead" for head in (heads if isinstance(heads, list) else [heads])):
                from mmseg.registry import TRANSFORMS
                edges = TRANSFORMS.build({"type": "GenerateEdge", "edge_width": heads.get("edge_width", EDGE_WIDTH)})
            self.samples = zoo_mmseg.labelled_samples(self.metas, self.labels, edges)
            self.samples = [sample.to(self.device) for sample in self.samples]

    def _compile(self) -> None:
        """Inference as one function with frozen weights; for training, backbone and heads."""
        if self.mode == "infer":
            import torch._inductor.config
            torch._inductor.config.freezing = True
            self.labels_of = torch.compile(self._labels_of)
            return
        self.network.backbone.compile()
        heads = [self.network.decode_head, getattr(self.network, "auxiliary_head", None)]
        for head in (one for found in heads for one in (found if hasattr(found, "__iter__") else [found])):
            if head is not None:
                head.forward = torch.compile(head.forward)

    def _pictures(self):
        return torch.from_numpy(self.images).to(self.device).contiguous(memory_format=self.format)

    def _logits(self):
        """Scores as the head gives them, or None of a model that gives other things before they are resized."""
        with torch.autocast(self.device, dtype=torch.float16, enabled=self.mixed):
            try:
                found = self.network(self._pictures())
            except (NotImplementedError, TypeError, ValueError):
                return None
        return found if isinstance(found, torch.Tensor) and found.dim() == 4 else None

    def _full(self, logits):
        return F.interpolate(logits, size=self.size, mode="bilinear",
                             align_corners=self.config["model"]["decode_head"].get("align_corners", False))

    def _labels_of(self, pictures):
        """Label maps of pictures, both tensors."""
        with torch.autocast(self.device, dtype=torch.float16, enabled=self.mixed):
            scores = (self._full(self.network(pictures)) if self.plain
                      else self.network.encode_decode(pictures, self.metas))
        return scores.argmax(1).to(torch.uint8 if scores.shape[1] <= 256 else torch.int32)

    def _label_maps(self) -> np.ndarray:
        return self.labels_of(self._pictures()).cpu().numpy()

    def _loss(self):
        """The sum of all losses; MMSegmentation also computes the accuracy that it logs, as this does without it."""
        if not self.plain:
            with torch.autocast(self.device, dtype=torch.float16, enabled=self.mixed):
                return zoo_mmseg.total_of(self.network.loss(self._pictures(), self.samples))
        labels = torch.from_numpy(self.labels).to(self.device)
        logits = self._full(self.network(self._pictures()).float())
        losses = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
        valid = labels != 255
        self.accuracy = ((logits.argmax(1) == labels) & valid).sum() * 100.0 / valid.sum().clamp(min=1)
        loss_cfg = self.config["model"]["decode_head"].get("loss_decode") or {}
        return losses.sum() / (valid.sum() if loss_cfg.get("avg_non_ignore") else labels.numel())

    def __call__(self) -> None:
        if self.mode == "infer":
            with torch.inference_mode():
                self._label_maps()
            return
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        self.optimizer.step()
        loss.item()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def results(self) -> dict[str, np.ndarray]:
        """What other sides must agree with: logits (where the model gives some) and label maps,
        or loss and gradient norms of a step without randomness.
        """
        if self.mode == "infer":
            with torch.inference_mode():  # nothing is random here
                logits, label_maps = self._logits(), self._label_maps()
            scores = {} if logits is None else {"logits": logits.float().cpu().numpy()}
            return {"label_maps": label_maps, **scores}
        with no_randomness(self.network, self.bases):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss()
            loss.backward()
            norms = {f"gradient/{name}": np.float64(p.grad.double().norm().item())
                     for name, p in self.network.named_parameters() if p.grad is not None}
            return {"loss": np.float32(loss.item()), **norms}


def load(network, weights) -> None:
    """Load weights strictly; the norms' step counters, which jseg does not keep, stay."""
    state = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    state.update({key: torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
                  for key, value in weights.items()})
    network.load_state_dict(state)


def fixed_bases(module, bases) -> dict:
    """Attributes of a module with which Hamburger starts from the given bases; none of other modules."""
    if isinstance(module, torch_segnext.Bases):
        return {"fixed": bases}
    if type(module).__name__ == "NMF2D" and module.rand_init:
        return {"_build_bases": lambda b, s, d, r, device=None: bases.to(device).repeat(b, 1, 1)}
    return {}


@contextlib.contextmanager
def no_randomness(network, bases):
    """No dropout, no dropped paths, the given starting bases; what else is drawn is the same for every picture and
    every time.
    """
    before, rand = [], torch.rand

    def drawn(*shape, **words):
        shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        row = np.random.RandomState(0).random_sample(shape[1:]).astype(np.float32)
        return torch.from_numpy(np.broadcast_to(row, shape).copy()).to(words.get("device") or "cpu")

    torch.rand = drawn
    for module in network.modules():
        changes = {name: 0.0 for name in ("drop_prob", "p", "dropout")
                   if isinstance(getattr(module, name, None), float)}
        for name, value in {**changes, **fixed_bases(module, bases)}.items():
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
    try:
        yield
    finally:
        torch.rand = rand
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
        import_mmseg()
        began = time.perf_counter()
        task = tasks[request.get("task", "main")] = NetworkTask(request)
        built_s = time.perf_counter() - began
        return {"built_by": task.built_by, "built_s": built_s,
                "seconds": protocol.run_task(task, request.get("warm", 2))}

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
