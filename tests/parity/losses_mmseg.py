"""Golden losses, gradients, pixel weights and scores from mmsegmentation 1.2.2 (needs PyTorch;
run it with an environment that has both):

    python tests/parity/losses_mmseg.py

writes losses_mmseg.npz beside itself. tests/test_losses.py and tests/test_metrics.py read it and fail when this script
has changed since. `INPUTS` and `CASES` say what is computed; importing this file needs NumPy only.
"""

import hashlib
import pathlib
import sys
import types

import numpy as np

SCRIPT = pathlib.Path(__file__)
GOLDEN = SCRIPT.with_suffix(".npz")
K = 5
WEIGHT = [0.5, 1.0, 2.0, 0.25, 1.5]


def inputs() -> dict[str, np.ndarray]:
    """Return logits (2, 5, 3, 4), one-channel logits,
    labels (2, 7, 9) with and without ignored pixels, pixel weights.
    """
    rng = np.random.default_rng(20240607)
    labels = rng.integers(0, K, (2, 7, 9)).astype(np.int32)
    labels[labels == 3] = 1  # class 3 never occurs
    void = labels.copy()
    void[rng.random(labels.shape) < 0.2] = 255
    return {"logits": (2 * rng.standard_normal((2, K, 3, 4))).astype(np.float32),
            "one": rng.standard_normal((2, 1, 3, 4)).astype(np.float32), "labels": labels, "void": void,
            "binary": np.where(void == 255, 255, void % 2).astype(np.int32), "nothing": np.full_like(labels, 255),
            "weight": rng.random(labels.shape).astype(np.float32)}


# name: (class, constructor arguments, call arguments); call arguments default to logits=logits labels=void.
CASES = {
    "ce": ("CrossEntropyLoss", {}, {}),
    "ce_corners": ("CrossEntropyLoss", {"loss_weight": 0.4}, {"align_corners": True}),
    "ce_non_ignored": ("CrossEntropyLoss", {"avg_non_ignore": True}, {}),
    "ce_class_weight": ("CrossEntropyLoss", {"class_weight": WEIGHT}, {"labels": "labels"}),
    "ce_class_weight_ignore": ("CrossEntropyLoss", {"class_weight": WEIGHT, "avg_non_ignore": True},
                               {"labels": "labels", "ignore_index": 2}),
    "ce_pixel_weight": ("CrossEntropyLoss", {}, {"pixel_weight": True}),
    "ce_sum": ("CrossEntropyLoss", {"reduction": "sum"}, {}),
    "ce_nothing": ("CrossEntropyLoss", {}, {"labels": "nothing"}),
    "ce_nothing_non_ignored": ("CrossEntropyLoss", {"avg_non_ignore": True}, {"labels": "nothing"}),
    "bce": ("CrossEntropyLoss", {"use_sigmoid": True}, {}),
    "bce_non_ignored": ("CrossEntropyLoss", {"use_sigmoid": True, "avg_non_ignore": True}, {}),
    "bce_one": ("CrossEntropyLoss", {"use_sigmoid": True, "class_weight": [3.0]},
                {"logits": "one", "labels": "binary"}),
    "dice": ("DiceLoss", {}, {}),
    "dice_softmax": ("DiceLoss", {"use_sigmoid": False, "loss_weight": 3.0}, {}),
    "dice_naive_sum": ("DiceLoss", {"use_sigmoid": False, "naive_dice": True, "reduction": "sum"}, {}),
    "dice_without_class": ("DiceLoss", {"use_sigmoid": False, "ignore_index": 1}, {}),
    "dice_nothing": ("DiceLoss", {}, {"labels": "nothing"}),
    "focal": ("FocalLoss", {}, {}),
    "focal_lists": ("FocalLoss", {"gamma": 1.5, "alpha": [0.1, 0.3, 0.5, 0.7, 0.9], "class_weight": WEIGHT}, {}),
    "focal_nothing": ("FocalLoss", {}, {"labels": "nothing"}),
    "lovasz": ("LovaszLoss", {"reduction": "none"}, {}),
    "lovasz_all": ("LovaszLoss", {"reduction": "none", "classes": "all", "class_weight": WEIGHT}, {}),
    "lovasz_list": ("LovaszLoss", {"reduction": "none", "classes": [0, 3]}, {}),
    "lovasz_image": ("LovaszLoss", {"per_image": True}, {}),
    "lovasz_binary": ("LovaszLoss", {"reduction": "none", "loss_type": "binary"},
                      {"logits": "one", "labels": "binary"}),
    "tversky": ("TverskyLoss", {}, {}),
    "tversky_weights": ("TverskyLoss",
                        {"alpha": 0.7, "beta": 0.3, "smooth": 0.5, "class_weight": WEIGHT, "ignore_index": 1}, {}),
    "tversky_nothing": ("TverskyLoss", {}, {"labels": "nothing"}),
}

SAMPLERS = {"ohem_thresh": {"thresh": 0.3, "min_kept": 10}, "ohem_raised": {"thresh": 0.01, "min_kept": 20},
            "ohem_loss": {"min_kept": 15}}


def script_hash() -> str:
    """Return the SHA-256 of this file, kept in the golden file."""
    return hashlib.sha256(SCRIPT.read_bytes()).hexdigest()


def _import_mmseg():
    sys.path.append(str(SCRIPT.resolve().parents[2] / "jseg" / "convert"))
    from mmseg_side import import_mmseg  # imports nothing of jseg
    import_mmseg()
    import torch
    from mmseg.evaluation.metrics import IoUMetric
    from mmseg.models import losses
    from mmseg.structures.sampler import OHEMPixelSampler
    return torch, losses, OHEMPixelSampler, IoUMetric


def _focal(torch, losses, loss, logits, labels, ignore_index):
    """What FocalLoss does on CUDA, through mmseg's own CPU formula (its CPU branch takes the wrong one-hot column)."""
    from mmseg.models.losses.focal_loss import py_sigmoid_focal_loss
    k = logits.shape[1]
    flat, target = logits.permute(0, 2, 3, 1).reshape(-1, k), labels.reshape(-1)
    valid = (target != ignore_index).view(-1, 1)
    hot = torch.nn.functional.one_hot(torch.where(target == ignore_index, 0, target), k + 1)[:, :k]
    return loss.loss_weight * py_sigmoid_focal_loss(flat, hot, gamma=loss.gamma, alpha=loss.alpha,
                                                    class_weight=loss.class_weight,
                                                    valid_mask=valid, reduction=loss.reduction)


def _one(torch, losses, data, kind, arguments, call):
    logits = torch.tensor(data[call.get("logits", "logits")], requires_grad=True)
    labels = torch.tensor(data[call.get("labels", "void")]).long()
    full = torch.nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear",
                                           align_corners=call.get("align_corners", False))
    loss, ignore = getattr(losses, kind)(**arguments), call.get("ignore_index", 255)
    if kind == "FocalLoss":
        value = _focal(torch, losses, loss, full, labels, ignore)
    elif kind == "TverskyLoss":
        value = loss(full, labels)
    else:
        weight = torch.tensor(data["weight"]) if call.get("pixel_weight") else None
        value = loss(full, labels, weight=weight, ignore_index=ignore)
    value.backward()
    return np.concatenate([value.detach().numpy().reshape(1), logits.grad.numpy().ravel()])  # loss, then its gradient


def _scores(torch, metric, rng):
    pred, label = rng.integers(0, 7, (4, 11, 13)), rng.integers(0, 7, (4, 11, 13))
    pred[pred == 5], label[label == 5] = 1, 2  # class 5 never occurs
    label[label == 6] = 0  # class 6 is only predicted
    label[rng.random(label.shape) < 0.1] = 255
    areas = [sum(part) for part in zip(*[metric.intersect_and_union(torch.tensor(p), torch.tensor(t), 7, 255)
                                         for p, t in zip(pred, label)])]
    result = metric.total_area_to_metrics(*areas, metrics=["mIoU", "mDice", "mFscore"], beta=2)
    return {"metric.pred": pred.astype(np.uint8), "metric.label": label.astype(np.uint8),
            **{f"metric.{key}": np.asarray(value) for key, value in result.items()}}


def main() -> None:
    """Write the golden file."""
    torch, losses, sampler, metric = _import_mmseg()
    data = inputs()
    out = {"hash": script_hash(), **{f"input.{key}": value for key, value in data.items()}}
    for name, (kind, arguments, call) in CASES.items():
        out[name] = _one(torch, losses, data, kind, arguments, call)
    full = torch.nn.functional.interpolate(torch.tensor(data["logits"]), data["void"].shape[1:], mode="bilinear")
    for name, arguments in SAMPLERS.items():
        context = types.SimpleNamespace(ignore_index=255, loss_decode=losses.CrossEntropyLoss())
        labels = torch.tensor(data["void"]).long().unsqueeze(1)
        out[f"{name}.weight"] = sampler(context, **arguments).sample(full, labels).numpy().astype(np.uint8)
    out.update(_scores(torch, metric, np.random.default_rng(7)))
    np.savez_compressed(GOLDEN, **out)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes, {len(CASES)} losses, {len(SAMPLERS)} samplers")


if __name__ == "__main__":
    main()
