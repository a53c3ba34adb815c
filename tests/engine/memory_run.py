"""Measure that training and evaluation hold their memory:
500 iterations with evaluations in between, then 2,000 pictures of many sizes.

    python tests/engine/memory_run.py --iterations 500 --pictures 2000

Prints the resident set in ten windows of each part and exits with status 1 when the last three windows (their median)
lie more than 2 % above the first one after a warm-up of two: a leak raises them all, a buffer that comes and goes does
not. `--leak KB` plants a leak of so many KB per step and picture, to see that it is found.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from small_run import make_pictures, small_config  # noqa: E402

from jseg.data.build import build_loader  # noqa: E402
from jseg.engine.evaluate import evaluate  # noqa: E402
from jseg.engine.train import train  # noqa: E402
from jseg.losses.cross_entropy import CrossEntropyLoss  # noqa: E402
from jseg.models import build_model  # noqa: E402
from jseg.registry import LOSSES  # noqa: E402

WINDOWS, WARM_UP, LIMIT = 10, 2, 0.02
samples: list[float] = []  # resident MiB, one per step or picture
planted: list[np.ndarray] = []
leak_kb = 0


def sample():
    """Note the resident set, after leaking what was asked for."""
    if leak_kb:
        planted.append(np.ones(leak_kb * 1024, np.uint8))
    with open("/proc/self/statm") as file:
        samples.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20)


class SampledLoss(CrossEntropyLoss):
    """Cross entropy that notes the memory at every step."""

    def with_accuracy(self, logits, labels, **options):
        sample()
        return super().with_accuracy(logits, labels, **options)


class SampledLoader:
    """A loader that notes the memory at every batch."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        for batch in self._loader:
            yield batch
            sample()


def windows(values, count=WINDOWS):
    """Medians of `count` equal stretches."""
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return [statistics.median(values[a:b]) for a, b in zip(edges, edges[1:])]


def growth(values, warm_up):
    """Median of the last three windows over the first one after the warm-up, minus 1."""
    held = windows(values)[warm_up:]
    return statistics.median(held[-3:]) / held[0] - 1


def many_sizes(folder, pictures, largest, few):
    """Training pictures, and validation pictures of many sizes:
    `few` to evaluate during training, `pictures` after it.
    """
    rng = np.random.default_rng(0)
    make_pictures(folder / "train", 10, rng)
    make_pictures(folder / "few", few, rng, largest=largest)
    make_pictures(folder / "val", pictures, rng, largest=largest)
    return folder


def configured(folder, iterations, *, real=False):
    """The small run, or SegNeXt-T with `real`; an evaluation after every tenth of it."""
    config = small_config(folder)
    config["train_cfg"].update(max_iters=iterations, val_interval=iterations // 10, ckpt_interval=iterations // 10)
    config["param_scheduler"] = []
    config["model"]["decode_head"]["loss_decode"]["type"] = "SampledLoss"
    config["val_dataloader"]["dataset"]["data_root"] = str(folder / "few")
    config["train_dataloader"]["num_workers"] = config["val_dataloader"]["num_workers"] = 1
    if real:
        config["model"]["backbone"] = {"type": "MSCAN", "variant": "tiny", "drop_path_rate": 0.1}
        config["model"]["decode_head"].update(in_channels=[64, 160, 256], channels=256, ham_channels=256,
                                              norm_cfg={"type": "GN", "num_groups": 32}, ham_kwargs={"MD_R": 16})
    return config


def measure_training(config, work_dir):
    """Resident MiB after every step."""
    samples.clear()
    LOSSES.register()(SampledLoss)
    try:
        train(config, work_dir=str(work_dir))
    finally:
        LOSSES._entries.pop("SampledLoss")  # other tests list what the registry holds
    return samples[-config["train_cfg"]["max_iters"]:]  # the check before the run asks the loss once, too


def measure_evaluation(config, folder):
    """Resident MiB after every picture."""
    config["val_dataloader"]["dataset"]["data_root"] = str(folder)
    config["model"]["decode_head"]["loss_decode"]["type"] = "CrossEntropyLoss"
    model = build_model(config)
    samples.clear()
    evaluate(model, SampledLoader(build_loader(config, "val")), progress=False)
    return list(samples)


def report(name, values, warm_up):
    """Print one part; True when it is flat."""
    grown = growth(values, warm_up)
    print(f"{name}: {len(values)} samples, resident MiB in {WINDOWS} windows: "
          f"{' '.join(f'{v:.1f}' for v in windows(values))}; growth after warm-up {grown:+.2%} "
          f"({'flat' if grown <= LIMIT else f'NOT FLAT: more than {LIMIT:.0%}'})", flush=True)
    return grown <= LIMIT


def main(argv=None):
    """0 when both parts are flat."""
    global leak_kb
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--largest", type=int, default=256, help="longest side of the pictures to evaluate, in pixels")
    parser.add_argument("--few", type=int, default=40, help="pictures of each evaluation during training")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="windows that do not count")
    parser.add_argument("--real", action="store_true",
                        help="SegNeXt-T instead of a model of its kind with narrow layers")
    parser.add_argument("--leak", type=int, default=0, metavar="KB", help="plant a leak")
    args = parser.parse_args(argv)
    leak_kb = args.leak
    with tempfile.TemporaryDirectory() as scratch:
        folder = many_sizes(pathlib.Path(scratch), args.pictures, args.largest, args.few)
        config = configured(folder, args.iterations, real=args.real)
        flat = [report("training", measure_training(config, folder / "run"), args.warm_up)]
        flat.append(report("evaluation", measure_evaluation(config, folder / "val"), args.warm_up))
    return 0 if all(flat) else 1


if __name__ == "__main__":
    sys.exit(main())
