"""The reference side of `jseg verify`. Runs under the user's own Python with PyTorch and mmsegmentation 1.x;
never imports jseg.

    python mmseg_side.py FOLDER    reads FOLDER/request.json, bases.npy and perhaps state.npz; writes FOLDER/answer.npz

mmsegmentation does everything: its config (the one given, the one inside the checkpoint, or jseg's settings in its
vocabulary), its `init_model` and `inference_model`, its TTA pipeline and merge. Two things are changed: the
factorisation starts from the given bases instead of random ones, and keys of the SegNeXt authors' release get
mmsegmentation's spelling.
"""

from __future__ import annotations

import json
import pathlib
import sys
import types
import warnings

import numpy as np


def import_mmseg():
    """Import mmsegmentation, also where mmcv has no compiled operators: SegNeXt uses none."""
    warnings.filterwarnings("ignore")
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType("mmcv.ops")

        def missing(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        stand_in.__getattr__ = missing
        sys.modules["mmcv.ops"] = stand_in
    import mmseg
    from mmseg.utils import register_all_modules
    register_all_modules()
    return mmseg


def read_checkpoint(request: dict, folder: pathlib.Path) -> tuple[dict, dict]:
    """(state, meta): from the checkpoint by PyTorch, or from the arrays that jseg read."""
    import torch
    if request["checkpoint"] is None:
        with np.load(folder / "state.npz") as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}, {}
    content = torch.load(request["checkpoint"], map_location="cpu", weights_only=False)
    state = content.get("state_dict", content.get("model", content))
    state = {key[7:] if key.startswith("module.") else key: value for key, value in state.items()}
    return state, content.get("meta") or {}


def with_tuples(step: dict) -> dict:
    """A transform's block with tuples for lists: JSON has no tuples, and mmcv takes no lists of sizes."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in step.items()}


def find_config(request: dict, meta: dict):
    """(mmsegmentation config, where it came from)."""
    from mmengine.config import Config
    if request["config"]:
        return Config.fromfile(request["config"]), "the config given"
    if "mmengine_version" in meta and isinstance(meta.get("cfg"), str):
        return Config.fromstring(meta["cfg"], ".py"), "inside the checkpoint"
    settings = {**request["settings"],
                "test_pipeline": [with_tuples(step) for step in request["settings"]["test_pipeline"]]}
    return Config(settings), "jseg's settings in mmsegmentation's vocabulary"


def build(request: dict, folder: pathlib.Path):
    """(model in evaluation mode, where its config came from)."""
    import torch
    from mmseg.apis import init_model
    from mmseg.models.decode_heads.ham_head import NMF2D
    state, meta = read_checkpoint(request, folder)
    config, came_from = find_config(request, meta)
    bases = torch.from_numpy(np.load(folder / "bases.npy"))
    NMF2D._build_bases = lambda self, b, s, d, r, device=None: bases.repeat(b, 1, 1)
    model = init_model(config, device="cpu")
    model.load_state_dict({key.replace(".mlp.dwconv.dwconv.", ".mlp.dwconv."): value for key, value in state.items()},
                          strict=not any(key.startswith(("auxiliary_head.", "data_preprocessor.")) for key in state))
    return model, came_from


def margins(scores) -> np.ndarray:
    """How far the best class is ahead of the second, (h, w) float32."""
    best = scores.topk(2, dim=0).values
    return (best[0] - best[1]).numpy().astype(np.float32)


def labels_and_margins(model, path: str):
    """Label map (h, w), margins and range of scores of one picture by `inference_model`."""
    from mmseg.apis import inference_model
    result = inference_model(model, path)
    scores = result.seg_logits.data
    return result.pred_sem_seg.data[0].numpy().astype(np.uint16), margins(scores), float(scores.max() - scores.min())


def augmented(model, path: str, tta: dict):
    """Label map and margins (of mean probabilities) by the config's TTA pipeline and SegTTAModel."""
    import torch
    from mmengine.dataset import Compose
    from mmseg.models.segmentors.seg_tta import SegTTAModel
    flips = [{"type": "RandomFlip", "prob": p, "direction": "horizontal"}
             for p in ([0.0, 1.0] if tta["flip"] else [0.0])]
    pipeline = Compose([{"type": "LoadImageFromFile"}, {"type": "TestTimeAug", "transforms": [
        [{"type": "Resize", "scale_factor": scale, "keep_ratio": True} for scale in tta["scales"]], flips,
        [{"type": "PackSegInputs"}]]}])
    views = pipeline({"img_path": path})
    found = []
    with torch.no_grad():
        for image, sample in zip(views["inputs"], views["data_samples"]):
            found.append(model.test_step({"inputs": [image], "data_samples": [sample]})[0])
    mean = sum(sample.seg_logits.data.softmax(dim=0) for sample in found) / len(found)
    merged = SegTTAModel.merge_preds(types.SimpleNamespace(module=model), [found])[0]
    return merged.pred_sem_seg.data.reshape(mean.shape[1:]).numpy().astype(np.uint16), margins(mean), 1.0


def network_io(model, path: str) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees of a picture in whole mode, (1, 3, H, W), and its logits (1, K, h, w)."""
    import torch
    from mmseg.apis.utils import _preprare_data
    data, _ = _preprare_data(path, model)
    data = model.data_preprocessor(data, False)
    with torch.no_grad():
        return data["inputs"].numpy(), model(data["inputs"], mode="tensor").numpy()


def main(folder: pathlib.Path) -> None:
    """Answer the request."""
    request = json.loads((folder / "request.json").read_text())
    mmseg = import_mmseg()
    import torch
    model, came_from = build(request, folder)
    out = {}
    for i, path in enumerate(request["pictures"]):
        if i == 0 or request["every_input"]:
            out[f"input/{i}"], out[f"logits/{i}"] = network_io(model, path)
        for mode in request["modes"]:
            if mode == "tta":
                model.test_cfg = type(model.test_cfg)({"mode": "whole"})
                found = augmented(model, path, request["tta"])
            else:
                model.test_cfg = type(model.test_cfg)({"mode": mode, **(request["slide"] if mode == "slide" else {})})
                found = labels_and_margins(model, path)
            out[f"{mode}/{i}/labels"], out[f"{mode}/{i}/margins"], out[f"{mode}/{i}/range"] = found
    facts = {"versions": f"mmseg {mmseg.__version__}, torch {torch.__version__.partition('+')[0]}", "config": came_from}
    np.savez(folder / "answer.npz", facts=np.array(json.dumps(facts)), **out)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
