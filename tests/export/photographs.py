"""Whether an exported SegNeXt gives the labels of its checkpoint on whole photographs, through jseg's own transforms.

    python tests/export/photographs.py PICTURE... [--sizes tiny small base large]

Weights are random (seed 0), with a classifier wide enough that all 150 classes compete. Prints the share of equal
pixels over all pictures and the classes that occur; 1 where a share is below 99.9 %.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

import numpy as np

from jseg import InferenceSegmentor
from jseg.cli import main as jseg
from jseg.config import load_config
from jseg.engine.checkpoint import model_state, save_weights

SIZES = ("tiny", "small", "base", "large")


def random_checkpoint(config_file: str, path: pathlib.Path) -> None:
    """Write random weights with the config and 150 made-up classes."""
    import jittor as jt

    from jseg.models import build_model
    jt.set_global_seed(0)
    config = load_config(config_file)
    model = build_model(config)
    model.decode_head.conv_seg.weight.assign(model.decode_head.conv_seg.weight * 100)
    count = model.num_classes
    save_weights(path, model_state(model), {"config": config, "classes": [f"class {k}" for k in range(count)],
                                            "palette": [[k, 255 - k, k] for k in range(count)]})


def main() -> int:
    """Export and compare, one size of SegNeXt after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    args = parser.parse_args()
    worst = 1.0
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            weights, exported = pathlib.Path(folder, "model.safetensors"), pathlib.Path(folder, "model.onnx")
            random_checkpoint(f"segnext/segnext_{size}_ade20k-512x512_160k.yaml", weights)
            jseg(["export", str(weights), str(exported), "--output", "logits", "--no-verify"])
            ours, theirs = InferenceSegmentor(weights), InferenceSegmentor(exported)
            pairs = [(ours.infer(picture), theirs.infer(picture)) for picture in args.pictures]
        share = sum(int((a == b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)
        seen = np.unique(np.concatenate([np.unique(a) for a, _ in pairs]))
        print(f"segnext {size}: {100 * share:.4f} % of the pixels of {len(pairs)} pictures equal, {len(seen)} classes",
              flush=True)
        worst = min(worst, share)
    return int(worst < 0.999)


if __name__ == "__main__":
    sys.exit(main())
