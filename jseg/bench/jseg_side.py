"""jseg's side of a comparison: a process with Jittor that builds models and kernels and runs them on request.

    python -m jseg.bench.jseg_side        speaks `protocol` on standard input and output
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
import zlib

import jittor as jt
import numpy as np

from jseg import runtime
from jseg.bench import handover, kernel_tasks
from jseg.bench.protocol import run_task, serve
from jseg.engine.checkpoint import load_into
from jseg.engine.optim import build_optimizer
from jseg.layers import named_parameters
from jseg.models import build_model
from jseg.models.heads.ham_head import NMF2D, evaluation_bases
from jseg.ops import cuda_library, ranks

__all__ = ["ModelTask", "main", "no_randomness"]

MIXED_LEVEL = 3  # as train_cfg.amp
CLASSIFIERS = ("conv_seg.weight", "cls_seg.weight", "fc_seg.weight", "cls_embed.weight")


class ModelTask:
    """A whole model that infers or trains; calling it does one inference or one training step and waits for the result.

    Args:
        config: a whole config.
        inputs: images (N, 3, H, W) float32, labels (N, H, W) int32.
        mode: "infer" (pictures in memory to label maps in memory) or "train" (loss, gradients, the config's optimizer).
        weights: state by name, or None for `varied_weights`.
        mixed: float16 where it is safe.
    """

    def __init__(self, config: dict, inputs: dict, mode: str, weights: dict | None, mixed: bool):
        jt.set_seed(0)
        np.random.seed(0)
        self.level, self.images, self.labels = MIXED_LEVEL if mixed else 0, inputs["images"], inputs["labels"]
        self.model, self.mode = build_model(config), mode
        load_into(self.model, varied_weights(self.model) if weights is None else weights,
                  source="the benchmark's weights")
        height, width = self.images.shape[2:]
        self.metas = [{"ori_shape": (height, width), "img_shape": (height, width)}] * len(self.images)
        self.optimizer = None
        self.model.eval()
        if mode == "train":
            self.model.train()
            self.optimizer = build_optimizer(self.model, config["optimizer"], config.get("paramwise_cfg"))

    def __call__(self) -> None:
        with jt.flag_scope(auto_mixed_precision_level=self.level):
            self._train() if self.mode == "train" else self.model.predict(self.images, self.metas)

    def _train(self) -> None:
        losses = self.model.loss(jt.array(self.images), jt.array(self.labels))
        self.optimizer.accumulate(losses["loss"])
        self.optimizer.step(self.optimizer.lrs)
        jt.sync_all(True)
        losses["loss"].item()

    def results(self) -> dict[str, np.ndarray]:
        """What other sides must agree with: logits and label maps,
        or loss and gradient norms of a step without randomness.
        """
        with jt.flag_scope(auto_mixed_precision_level=self.level):
            if self.mode == "infer":
                with jt.no_grad():  # one by one: the peak of memory shall be that of `predict`
                    logits = [self.model(jt.array(self.images[i:i + 1])).float32().numpy()
                              for i in range(len(self.images))]
                return {"logits": np.concatenate(logits),
                        "label_maps": np.stack(self.model.predict(self.images, self.metas))}
            with no_randomness(self.model):
                loss = self.model.loss(jt.array(self.images), jt.array(self.labels))["loss"]
                params = named_parameters(self.model)
                grads = dict(zip(params, jt.grad(loss, list(params.values()))))
                found = {f"gradient/{handover.upstream_key(self.model, name)}":
                         np.linalg.norm(g.float32().numpy().astype(np.float64)) for name, g in grads.items()}
                return {"loss": loss.float32().numpy().reshape(()), **found}


def varied_weights(model) -> dict[str, np.ndarray]:
    """The model's initial state made less special, so that a wrong bias, statistic or scale shows:
    the same for a given key.
    """
    state = {}
    for key, value in model.state_dict().items():
        array = value.numpy().astype(np.float32)
        rng, last = np.random.default_rng(zlib.crc32(key.encode())), key.rpartition(".")[2]
        if last in ("bias", "running_mean"):
            array = array + 0.1 * rng.standard_normal(array.shape).astype(np.float32)
        elif last == "running_var" or last.startswith("layer_scale"):
            array = array * rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
        elif last == "weight" and array.ndim == 1 and not array.any():  # a residual branch would compute nothing
            array = rng.uniform(0.1, 0.3, array.shape).astype(np.float32)
        elif key.endswith(CLASSIFIERS):  # maps of many classes
            array = array * np.float32(10)
        state[key] = array
    return state


def starting_bases(model) -> np.ndarray:
    """The factorisation's bases (S, D, R) that jseg takes at evaluation, or nothing where the model has none."""
    for module in model.modules():
        if isinstance(module, NMF2D):
            return np.array(evaluation_bases(module.spatial, module.dimension, module.rank))
    return np.zeros((0,), np.float32)


@contextlib.contextmanager
def no_randomness(model):
    """No dropout, no dropped paths, the evaluation's bases; what else is drawn is the same for every picture and every
    time.
    """
    before, rand = [], ranks.rand
    ranks.rand = lambda shape: jt.array(
        np.broadcast_to(np.random.RandomState(0).random_sample(shape[1:]).astype(np.float32), shape).copy())
    for module in model.modules():
        changes = {"drop_prob": 0.0} if hasattr(module, "drop_prob") else {}
        if isinstance(module, NMF2D):
            changes["starting_bases"] = module.fixed_bases
        for name, value in changes.items():
            before.append((module, name, module.__dict__.get(name)))
            module.__dict__[name] = value
    try:
        yield
    finally:
        ranks.rand = rand
        for module, name, value in before:
            if value is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = value


class _Commands:
    """The requests this side answers, beside those of `protocol`."""

    def __init__(self):
        self.tasks: dict = {}

    def hello(self, request: dict) -> dict:
        """Where this process computes and keeps what it compiled."""
        if request.get("device") == "cuda":
            jt.flags.use_cuda = 1
        # several sides compile at once; sources that are there are not written again under another's compiler
        if request.get("unlocked"):
            jt.flags.disable_lock, jt.flags.rewrite_op = 1, 0
        return {"device": runtime.describe(), "cache": str(jt.flags.cache_path), "jittor": jt.__version__,
                "cuda": bool(jt.flags.use_cuda)}

    def open(self, request: dict) -> dict:
        """Build a model task and run it `warm` times; seconds of building and of each run."""
        with open(request["config"], encoding="utf-8") as file:
            config = json.load(file)
        weights = dict(np.load(request["weights"])) if request.get("weights") else None
        if weights is not None:
            weights.pop("bases/", None)
        began = time.perf_counter()
        task = ModelTask(config, dict(np.load(request["inputs"])), request["mode"], weights,
                         request.get("mixed", False))
        if request.get("save_weights"):
            out = pathlib.Path(request["save_weights"])
            np.savez(out, **handover.arrays_of(task.model), **{"bases/": starting_bases(task.model)})
            handover.write_upstream(task.model, config, out.parent)
        built_s = time.perf_counter() - began
        self.tasks[request.get("task", "main")] = task
        return {"built_s": built_s, "seconds": run_task(task, request.get("warm", 2))}

    def write_onnx(self, request: dict) -> dict:
        """Write a task's model to request["out"]: label maps from normalised pictures of `size`, of any where None."""
        with open(request["config"], encoding="utf-8") as file:
            config = json.load(file)
        handover.write_labels_file(self.tasks[request.get("task", "main")].model, config, request["out"],
                                   request["size"])
        return {}

    def results(self, request: dict) -> dict:
        """Write a task's results to request["out"], an .npz."""
        np.savez(request["out"], **self.tasks[request.get("task", "main")].results())
        return {}

    def open_kernel(self, request: dict) -> dict:
        """Build a kernel task; where asked, write its arguments for other sides."""
        task = kernel_tasks.KernelTask(request["kernel"], request["case"], request["impl"], grad=request["grad"])
        if request.get("save_inputs"):
            np.savez(request["save_inputs"], **task.arrays)
        self.tasks[request.get("task", "main")] = task
        return {"seconds": run_task(task, 2), **task.facts()}


def main() -> None:
    """Answer requests until the input closes."""
    commands = _Commands()
    known = {name: getattr(commands, name) for name in ("hello", "open", "write_onnx", "results", "open_kernel")}
    serve({**known, "kernels": lambda r: {"kernels": kernel_tasks.kernels(),
                                              "with_products": list(cuda_library.WITH_PRODUCTS)},
           "check_kernel": lambda r: kernel_tasks.check(r["kernel"], r["impl"], r.get("dtype", "float32"),
                                                        plain_always=r.get("plain_always", True)),
           "limits": lambda r: kernel_tasks.device_limits(**{k: r[k] for k in ("values", "side") if k in r})},
          commands.tasks, {"side": "jseg"})


if __name__ == "__main__":
    main()
