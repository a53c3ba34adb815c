"""Write the reference results of the SegNeXt parity check.
Runs under a Python with PyTorch and mmsegmentation 1.2.2, without jseg.

    python tests/parity/make_segnext.py                                     # rewrites segnext.npz beside it, a few kB
    python tests/parity/make_segnext.py --full --cases large --out all.npz  # every element, for the live comparison

mmsegmentation builds each model from its own config; weights, pictures and starting bases come from segnext_cases.py;
dropout and drop path are off. Results, for each case: logits and loss in training mode, gradient norms, running
statistics after that step; then, on a fresh state, evaluation logits, label maps of whole and slide inference and of
test-time augmentation.
"""

from __future__ import annotations

import argparse
import copy
import glob
import os
import pathlib
import sys
import types

import numpy as np
import segnext_cases as shared

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "jseg" / "convert"))
from mmseg_side import import_mmseg  # noqa: E402  (imports nothing of jseg)


def build(name: str):
    """The case's model from mmsegmentation's own config, with our weights and bases."""
    import torch
    from mmengine.config import Config
    from mmseg.models.decode_heads.ham_head import NMF2D
    from mmseg.registry import MODELS
    mmseg, case = import_mmseg(), shared.CASES[name]
    pattern = os.path.join(os.path.dirname(mmseg.__file__), ".mim", "configs", "segnext",
                           f"segnext_mscan-{case['variant']}_*.py")
    model = Config.fromfile(glob.glob(pattern)[0]).model
    model.data_preprocessor, model.backbone.init_cfg, model.backbone.drop_path_rate = None, None, 0.0
    model.backbone.update(case.get("backbone", {}))
    head = copy.deepcopy(case["head"])
    model.decode_head.ham_kwargs.update(head.pop("ham_kwargs", {}))
    model.decode_head.update(head, dropout_ratio=0.0, num_classes=case["classes"])
    NMF2D._build_bases = lambda self, b, s, d, r, device=None: torch.from_numpy(shared.bases((b * s, d, r)).copy())
    network = MODELS.build(model)
    load(network)
    return network


def load(network) -> None:
    """Give every parameter and buffer its value (the norms' step counters keep theirs)."""
    import torch
    state = network.state_dict()
    network.load_state_dict({key: value if key.endswith("num_batches_tracked")
                             else torch.from_numpy(shared.weight(key, value.shape))
                             for key, value in state.items()})


def samples(metas: list[dict], labels=None) -> list:
    """mmsegmentation's data samples for a batch."""
    import torch
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    found = []
    for i, meta in enumerate(metas):
        sample = SegDataSample(metainfo=copy.deepcopy(meta))
        if labels is not None:
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels[i].astype(np.int64))[None])
        found.append(sample)
    return found


def label_maps(network, pictures, metas) -> list[np.ndarray]:
    """Predicted label maps, (h, w) uint8 each."""
    import torch
    with torch.no_grad():
        found = network.predict(torch.from_numpy(pictures), samples(metas))
    return [sample.pred_sem_seg.data[0].numpy().astype(np.uint8) for sample in found]


def augmented_maps(network, name: str) -> list[np.ndarray]:
    """Label maps by mmsegmentation's SegTTAModel."""
    import torch
    from mmseg.models.segmentors.seg_tta import SegTTAModel
    views = []
    with torch.no_grad():
        for pictures, metas in shared.augmented(name):
            metas = [{**meta, "img_path": ""} for meta in metas]
            views.append(network.predict(torch.from_numpy(pictures), samples(metas)))
    holder = types.SimpleNamespace(module=network)
    merged = SegTTAModel.merge_preds(holder, [list(view) for view in zip(*views)])
    return [sample.pred_sem_seg.data.numpy().astype(np.uint8) for sample in merged]


def results(name: str, full: bool) -> dict[str, np.ndarray]:
    """All reference results of one case; without `full` only some elements of the large ones."""
    import torch
    network, metas = build(name), shared.metas(name)
    pictures, labels = shared.pictures(name), shared.labels(name)
    keep = (lambda values: np.asarray(values)) if full else shared.some
    out: dict[str, np.ndarray] = {}
    network.train()
    losses = network.loss(torch.from_numpy(pictures), samples(metas, labels))
    losses["decode.loss_ce"].backward()
    gradients = {key: p.grad.numpy() for key, p in network.named_parameters()}
    out["loss"] = losses["decode.loss_ce"].detach().numpy()
    out["accuracy"] = losses["decode.acc_seg"].numpy()
    out["gradient_norms"] = np.array([np.linalg.norm(gradients[key]) for key in sorted(gradients)], np.float32)
    running = {k: v.numpy().copy() for k, v in network.state_dict().items()
               if k.rpartition(".")[2].startswith("running")}
    out["running"] = keep(np.concatenate([running[key].ravel() for key in sorted(running)]))
    out["parameters"] = np.array(sum(p.numel() for p in network.parameters()))
    if full:
        out["gradients"] = np.concatenate([gradients[key].ravel() for key in sorted(gradients)])
    load(network)
    network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(pictures), mode="tensor").numpy()
    out["logits"], out["logits_range"] = keep(logits), np.array([logits.min(), logits.max()])
    for i, labels in enumerate(label_maps(network, pictures, metas)):
        out[f"whole{i}"] = labels
    for i, labels in enumerate(augmented_maps(network, name)):
        out[f"augmented{i}"] = labels
    network.test_cfg.update(shared.SLIDE)
    for i, labels in enumerate(label_maps(network, pictures, metas)):
        out[f"slide{i}"] = labels
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(shared.IN_GOLDEN), choices=list(shared.CASES))
    parser.add_argument("--full", action="store_true", help="keep every element")
    parser.add_argument("--out", default=str(shared.GOLDEN))
    args = parser.parse_args()
    import torch
    torch.use_deterministic_algorithms(True)
    mmseg = import_mmseg()
    found = {"hash": np.array(shared.script_hash()),
             "versions": np.array(f"mmseg {mmseg.__version__}, torch {torch.__version__}")}
    for name in args.cases:
        found.update({f"{name}/{key}": value for key, value in results(name, args.full).items()})
    np.savez_compressed(args.out, **found)
    print(f"{args.out}: {os.path.getsize(args.out)} bytes, {len(found)} arrays")


if __name__ == "__main__":
    main()
