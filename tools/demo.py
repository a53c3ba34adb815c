"""The main job from start to end on rendered pictures: train SegNeXt-T, evaluate, segment new pictures, write a report.

`make demo` runs it. Everything it makes lies under runs/demo, which it empties first.
"""

import argparse
import functools
import pathlib
import shutil
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # jseg from this checkout, installed or not

from jseg.config import load_config  # noqa: E402
from jseg.data.render import render_dataset, render_scene  # noqa: E402
from jseg.report.page import write_report  # noqa: E402

print = functools.partial(print, flush=True)  # in order with the progress on stderr, also into a file
CONFIG = ROOT / "configs/segnext/segnext_tiny_demo-128x160_cpu.yaml"
WANTED_MIOU = 0.80


def main() -> int:
    """Run the demo; 0 when the trained model reaches the expected quality."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/demo",
                        help="folder to fill (default: runs/demo)")
    args = parser.parse_args()
    started = time.time()
    shutil.rmtree(args.out, ignore_errors=True)
    data = args.out / "data"
    render_dataset(data, count_train=160, count_val=32, size=(128, 160), seed=0)
    print(f"[1/4] rendered 160 + 32 labelled pictures under {data}")

    config = load_config(CONFIG,
                         [f"train_dataloader.dataset.data_root={data}", f"val_dataloader.dataset.data_root={data}"])
    from jseg.engine.train import train  # imports Jittor, which takes minutes on a machine that never ran it
    result = train(config, work_dir=args.out)
    if result["signal"] is not None:
        return 128 + result["signal"]
    miou = result["best"]["score"]
    print(f"[2/4] trained and evaluated: mIoU {miou:.3f} (expected above {WANTED_MIOU:.2f})")

    from jseg import InferenceSegmentor
    segmentor = InferenceSegmentor(args.out / "best.safetensors")
    (args.out / "pictures").mkdir(exist_ok=True)
    for seed in range(1000, 1004):  # scenes neither trained nor evaluated on
        picture, _ = render_scene((128, 160), np.random.default_rng(seed))
        segmentor.save_overlay(picture, segmentor.infer(picture), args.out / "pictures" / f"new_{seed}.png")
    print(f"[3/4] segmented four new pictures: {args.out / 'pictures'}")
    print(f"[4/4] report: {write_report(args.out)}   ({time.time() - started:.0f} s in all)")
    return 0 if miou > WANTED_MIOU else 1


if __name__ == "__main__":
    sys.exit(main())
