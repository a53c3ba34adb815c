"""Compare classifiers of mmsegmentation's and the authors' MSCAN, torchvision, timm and mmpretrain with jseg's, and the
pieces of pretraining with timm's.

    PYTHON tests/parity/classifiers_torch.py FOLDER     with torch, torchvision, timm, mmpretrain and mmsegmentation
    python tests/parity/classifiers.py FOLDER           prints a row for each; 0 when all agree

Each classifier has random weights; its checkpoint goes through `load_from` of a config with `ImageClassifier`, every
key accounted for. Logits must agree to LIMIT of their range.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import jseg  # noqa: E402,F401  (prepares the process before Jittor is imported)
from classifier_jobs import CLASSES, JOBS, LEVELS, OPERATIONS, pieces_inputs  # noqa: E402

LIMIT = 1e-4


def share_of_range(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference as a share of the range of `theirs`."""
    return float(np.abs(ours.astype(np.float64) - theirs).max() / max(np.ptp(theirs), 1e-12))


def logits_row(folder: pathlib.Path, name: str) -> tuple[float, str]:
    """(difference of the logits, what loading said)."""
    import jittor as jt

    from jseg.convert.checkpoint import starting_weights
    from jseg.engine.checkpoint import load_into
    from jseg.models import build_model
    job, reference = JOBS[name], np.load(folder / f"{name}.npz")
    block = {"type": "ImageClassifier", "backbone": job["ours"],
             "head": {"num_classes": CLASSES, "in_channels": job["width"]}}
    model = build_model(block)
    state, told = starting_weights(folder / f"{name}.pth", block)
    load_into(model, state, source=name)
    model.eval()
    with jt.no_grad(), jt.flag_scope(lazy_execution=0):  # one kernel per operation: few to compile
        logits = model(jt.array(reference["picture"])).numpy()
    return share_of_range(logits, reference["logits"]), told


def pieces(folder: pathlib.Path) -> dict[str, float]:
    """Name of each piece -> its difference from timm's."""
    import jittor as jt

    from jseg.data.transforms import RandAugment
    from jseg.data.transforms.rand_augment import _OPS
    from jseg.engine.optim import EMA, AdamW, ParamGroup
    from jseg.engine.schedules import LearningRate, build_schedules
    from jseg.models.image_classifier import cut_box, mix_batch, one_hot, smoothed, soft_cross_entropy
    given, found = pieces_inputs(), np.load(folder / "pieces.npz")
    order, rows = [0, 1, 3, 2], {}
    images, labels = given["images"][order], given["labels"][order].astype(np.int32)
    top, bottom, left, right = cut_box((12, 16), float(given["share"]), *given["centre"].tolist())
    weight = np.ones((12, 16), np.float32)
    weight[top:bottom, left:right] = 0
    for kind, values, share in (("mixup", np.full((12, 16), given["share"], np.float32), float(given["share"])),
                                ("cutmix", weight, 1 - (bottom - top) * (right - left) / (12 * 16))):
        mixed, targets = mix_batch(jt.array(images), one_hot(jt.array(labels), CLASSES), values, share)
        rows[f"{kind}, pictures"] = share_of_range(mixed.numpy(), found[f"{kind}_images"][order])
        rows[f"{kind}, targets"] = share_of_range(smoothed(targets, 0.1).numpy(), found[f"{kind}_targets"][order])
    loss = soft_cross_entropy(jt.array(given["logits"]), jt.array(found["cutmix_targets"])).item()
    rows["loss"] = abs(loss / float(found["loss"]) - 1)
    schedules = build_schedules([
        {"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": 21},
        {"type": "CosineAnnealingLR", "T_max": 80, "eta_min": 1e-6, "by_epoch": False, "begin": 20, "end": 100}])
    rates = LearningRate(schedules, [1e-3], 100, 100)
    rows["rates"] = max(abs(rates.at(i)[0] / wanted - 1) for i, wanted in enumerate(found["rates"]))
    param = jt.array(given["weights"][0])
    group = ParamGroup(1e-3, 0.0, ["w"], [param])
    group.lay_out()
    optimizer = AdamW([group])
    average = EMA(optimizer, decay=0.9)
    for value in given["weights"]:
        optimizer.weights[0].update(jt.array(group.pack([value])))
        average.update()
    rows["moving average"] = share_of_range(average.state_dict()["ema.w"], found["average"])
    transform = RandAugment(interpolation="bicubic")
    for name in OPERATIONS:
        worst = 0
        for level in LEVELS:
            for sign in (-1, 1):
                step = [name, _OPS[name][0](level / 10, float(sign)), "bicubic"]
                ours = transform.apply({"img": given["picture"]}, {"steps": [step]})["img"]
                worst = max(worst, int(np.abs(ours.astype(int) - found[f"{name} {level} {sign}"]).max()))
        rows[f"RandAugment {name}"] = float(worst)
    return rows


def main() -> int:
    """Print the rows; 0 when all agree."""
    folder, bad = pathlib.Path(sys.argv[1]), 0
    for name, value in pieces(folder).items():
        bad += value > 1e-6
        print(f"{name:<28}{value:.2g}")
    for name in JOBS:
        try:
            value, told = logits_row(folder, name)
        except Exception as error:  # told in its row
            value, told = float("inf"), f"{type(error).__name__}: {error}"[:700]
        bad += not value <= LIMIT
        print(f"{name:<28}{value:.2g}  {told.partition(': ')[2]}", flush=True)
    print("all agree" if not bad else f"{bad} differ")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
