"""Compile ahead what a config needs for inference, and with --train for a training step.

Jittor compiles each operation at its first use, and jseg its kernels, for this very machine; both are kept, so the wait
comes once. Run this where waiting does no harm (while building an image, say). What is compiled depends on the model,
not on the size of pictures or batches, so small pictures do; --size is for those who want to be sure.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import threading
import time
from typing import Callable, Iterator

from jseg.cli import add_config_arguments
from jseg.errors import ConfigError

EXAMPLE = "jseg warmup configs/segnext/segnext_tiny_ade20k-512x512_160k.yaml --train"
DEFAULT_SIZE = (128, 128)


def add_arguments(parser) -> None:
    """Options of `jseg warmup`."""
    add_config_arguments(parser)
    parser.add_argument("--train", action="store_true", help="also what a training step needs")
    parser.add_argument("--size", nargs=2, type=int, default=list(DEFAULT_SIZE), metavar=("H", "W"),
                        help="picture size in pixels (default: %(default)s)")


def run(args) -> int:
    """Run each part of the model once, with a bar, and say what was compiled."""
    from jseg import runtime
    from jseg.config import load_config

    if min(args.size) < 32:
        raise ConfigError(f"--size is {args.size[0]} {args.size[1]}; height and width must be at least 32 pixels")
    config = load_config(args.config, args.overrides)
    print("Compiling for this machine; later runs find it done. Jittor's core takes 2 to 4 minutes where it is not "
          f"built yet, a model's operations from seconds to minutes.\ncomputing on {runtime.describe()}",
          file=sys.stderr)
    began, core = time.perf_counter(), not runtime.core_is_built()
    import jittor as jt  # the first part of the wait
    core_s = time.perf_counter() - began
    cache = pathlib.Path(str(jt.flags.cache_path))
    before = compiled(cache)
    _run_parts(steps(config, (args.size[0], args.size[1]), train=args.train), cache)
    after = compiled(cache)
    counts = {kind: after[kind] - before[kind] for kind in after}
    what = (f"{counts['operations']} operations and {counts['kernels']} files of kernels" if any(counts.values())
            else "nothing: all was there")
    what += f", and Jittor's core ({core_s:.0f} s)" * core
    print(f"warmup: compiled {what}, in {time.perf_counter() - began:.1f} s; ready for "
          f"inference{' and training' * args.train}")
    return 0


def steps(config: dict, size: tuple[int, int], *, train: bool) -> list[tuple[str, Callable[[], None]]]:
    """What to run, in order, as (name, function).

    Args:
        config: a whole config.
        size: (H, W) of the pictures in pixels.
        train: also two training steps: the second is the first whose parameters come from an optimizer.
    """
    import numpy as np

    from jseg.engine.channels import model_channels

    state: dict = {}
    pictures = np.random.default_rng(0).standard_normal((2, model_channels(config["model"]), *size)).astype(np.float32)

    def build() -> None:
        from jseg.models import build_model
        state["model"] = build_model(config)
        state["model"].eval()

    def predict(number: int, own_size: tuple[int, int]) -> Callable[[], None]:
        meta = {"ori_shape": own_size, "img_shape": size}
        return lambda: state["model"].predict(pictures[:number], [meta] * number)

    found = [("build the model", build), ("inference", predict(1, size)), ("inference, batch", predict(2, size)),
             ("inference, pictures of another size", predict(1, (size[0] + 7, size[1] + 5)))]
    return found + ([("training step", lambda: _train(config, state, pictures)),
                     ("second training step", lambda: _train(config, state, pictures))]
                    if train else [])


def _train(config: dict, state: dict, pictures) -> None:
    import jittor as jt
    import numpy as np

    from jseg.engine.optim import build_optimizer
    from jseg.engine.train_cfg import TrainCfg

    model = state["model"]
    if "optimizer" not in state:
        model.train()
        state["optimizer"] = build_optimizer(model, config["optimizer"], config.get("paramwise_cfg"))
    labels = np.random.default_rng(1).integers(0, model.num_classes,
                                               (len(pictures), *pictures.shape[2:])).astype(np.int32)
    losses = model.loss(jt.array(pictures), jt.array(labels))
    state["optimizer"].accumulate(losses["loss"])
    clip = TrainCfg.read(config.get("train_cfg")).clip_grad
    state["optimizer"].step(state["optimizer"].lrs, max_norm=clip.max_norm)
    jt.sync_all(True)
    for value in losses.values():
        value.item()


def _run_parts(parts: list[tuple[str, Callable[[], None]]], cache: pathlib.Path) -> None:
    from tqdm import tqdm

    with tqdm(total=len(parts), unit="part", file=sys.stderr,
              bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}]{postfix}") as bar:
        with _counting(bar, cache):
            for name, part in parts:
                bar.set_description(name)
                part()
                bar.update()


@contextlib.contextmanager
def _counting(bar, cache: pathlib.Path) -> Iterator[None]:
    """Show, while a part runs, how much has been compiled so far: the sign that something moves."""
    start, done = compiled(cache), threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            now = compiled(cache)
            bar.set_postfix_str(" compiled: " + ", ".join(f"{now[kind] - start[kind]} {kind}" for kind in now))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def compiled(cache: pathlib.Path) -> dict[str, int]:
    """How many compiled operations of Jittor and object files of jseg's kernels a cache folder holds."""
    return {"operations": sum(1 for _ in cache.glob("jit/*.so")),
            "kernels": sum(1 for _ in cache.glob("jseg_*_kernels/*.o"))}
