"""The referee's side of `backbones.py`: builds each release's network with random weights, saves its checkpoint as the
release does, and runs it on a picture.

    python tests/parity/backbones_torch.py FOLDER      FOLDER/jobs.json -> <name>/checkpoint.*, <name>/reference.npz

Runs under a Python with torch, torchvision and timm, without jseg. Networks without a package come from checkouts of
their authors' repositories (`sources` of jobs.json), which run as they are; a job whose checkout is missing says so.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import pickle
import sys

import backbones_authors as authors
import backbones_encoders as encoders
import numpy as np
import torch
from backbones_tools import (PLACE, as_map, next_norms, plain_norms, randomise, resize_bilinearly, smooth_relu,
                             step_gradients, still, tapped)
from gradients import gradient_errors
from torch import nn
from torch.nn import functional as F

try:
    import torchvision  # noqa: F401
except RuntimeError:  # built for another PyTorch: its models need none of its operators, its import two of their names
    _OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # known already
            _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except ImportError:
    pass  # jobs that need it say so


# -- networks of packages: each gives (model, maps of a picture) -------------------------------------------------------


def torchvision_resnet(name: str, **words):
    from torchvision import models
    model = getattr(models, name)(**words)
    return model, lambda x: tapped(model, [model.layer1, model.layer2, model.layer3, model.layer4], lambda m: m(x))


def timm_resnet(name: str):
    import timm
    model = timm.create_model(name)
    return model, lambda x: tapped(model, [model.layer1, model.layer2, model.layer3, model.layer4], lambda m: m(x))


def torchvision_mobilenet_v2():
    from torchvision import models
    model = models.mobilenet_v2()
    return model, lambda x: tapped(model, [model.features[i] for i in (3, 6, 13, 17)], lambda m: m(x))


def timm_mobilenet_v2(name: str):
    import timm
    model = timm.create_model(name)
    return model, lambda x: tapped(model, [model.blocks[i] for i in (1, 2, 4, 6)], lambda m: m(x))


def _as_segmentation(convs: list[nn.Conv2d], dilated: list[tuple[int, int]]) -> None:
    """Strides, dilations and padding of MMSegmentation's MobileNetV3 on another one's depthwise convolutions."""
    for conv, (stride, dilation) in zip(convs, dilated):
        kernel = conv.kernel_size[0]
        conv.stride, conv.dilation, conv.padding = (stride, stride), (dilation, dilation), (0, 0)
        if stride == 1:
            conv.padding = (dilation * (kernel // 2),) * 2
        else:
            def forward(x, conv=conv, kernel=kernel):
                pads = []
                for side in reversed(x.shape[2:]):
                    total = max((-(-side // 2) - 1) * 2 + kernel - side, 0)
                    pads += [total // 2, total - total // 2]
                return F.conv2d(F.pad(x, pads), conv.weight, conv.bias, 2, 0, 1, conv.groups)
            conv.forward = forward


_STRIDES = {"small": [2, 2, 2, 1] + [1] * 8, "large": [2, 1, 2, 1, 2] + [1] * 11}
_DILATIONS = {"small": [1, 1, 1, 1] + [2] * 5 + [4] * 3, "large": [1] * 7 + [2] * 6 + [4] * 3}


def mobilenet_v3(library: str, arch: str):
    if library == "torchvision":
        from torchvision import models
        model = getattr(models, f"mobilenet_v3_{arch}")()
        layers = list(model.features)
    else:
        import timm
        model = timm.create_model(f"mobilenetv3_{arch}_100")
        layers = [model.bn1, *[block for stage in model.blocks for block in stage]]
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)
             and (module.groups > 1 or module.in_channels == 3)]
    _as_segmentation(convs, list(zip(_STRIDES[arch], _DILATIONS[arch])))
    taps = [layers[i] for i in ((0, 1, 12) if arch == "small" else (1, 3, 16))]
    return model, lambda x: tapped(model, taps, lambda m: m(x))


def timm_vit(name: str, skip: int = 1, **words):
    import timm
    model = timm.create_model(name, **words)
    blocks = len(model.blocks)
    taps = [model.blocks[blocks * i // 4 - 1] for i in (1, 2, 3, 4)]
    if "dinov2" in name:  # every map behind the last norm, as its authors give them
        return model, lambda x: [as_map(model.norm(t), skip)
                                 for t in tapped(model, taps, lambda m: m.forward_features(x))]
    taps[-1] = model.norm
    return model, lambda x: [as_map(t, skip) for t in tapped(model, taps, lambda m: m.forward_features(x))]


def timm_beit(**words):
    from timm.models.beit import Beit
    model = Beit(**words)
    taps = [model.blocks[len(model.blocks) * i // 4 - 1] for i in (1, 2, 3)] + [model.norm]
    return model, lambda x: [as_map(t, 1) for t in tapped(model, taps, lambda m: m.forward_features(x))]


def timm_swin(name: str, **words):
    import timm
    model = timm.create_model(name, **words)
    return model, lambda x: plain_norms(tapped(model, [layer.blocks for layer in model.layers], lambda m: m(x)))


def timm_convnext(name: str):
    import timm
    model = timm.create_model(name)
    return model, lambda x: next_norms(tapped(model, list(model.stages), lambda m: m(x)), model.head.norm)


def torchvision_convnext():
    from torchvision import models
    model = models.convnext_tiny()
    return model, lambda x: next_norms(tapped(model, [model.features[i] for i in (1, 3, 5, 7)], lambda m: m(x)),
                                        model.classifier[0])


def timm_hrnet(name: str):
    import timm
    model = timm.create_model(name)
    resize_bilinearly(model)
    return model, lambda x: model.stages(F.relu(model.bn2(model.conv2(F.relu(model.bn1(model.conv1(x)))))))


# -- the run -----------------------------------------------------------------------------------------------------------


def save(model: nn.Module, path: pathlib.Path, job: dict, values: dict | None = None) -> None:
    """The checkpoint as the release has it, with `values` in the place of the model's."""
    state = {f"{job.get('prefix', '')}{key}": value for key, value in (values or model.state_dict()).items()}
    if job.get("numpy"):
        content = {"model": {key: value.numpy() for key, value in state.items()}, "__author__": "a referee"}
        path.with_suffix(".pkl").write_bytes(pickle.dumps(content))
    elif hasattr(model, "meta"):
        torch.save({"meta": model.meta, "state_dict": state}, path.with_suffix(".pth"))
    else:
        torch.save({job["container"]: state} if job.get("container") else state, path.with_suffix(".pth"))


def save_gradients(model: nn.Module, maps, job: dict, out: pathlib.Path) -> None:
    """One training step in float64: gradients and running statistics under the release's keys, as a checkpoint of
    their own; the weights of the maps, and how far float32 strays, in step.npz.
    """
    rng = np.random.default_rng(2)
    pictures = rng.normal(0, 1, (2, 3, *job["size"])).astype(np.float32)
    still(model)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        shapes = [tuple(value.shape) for value in maps(torch.from_numpy(pictures))]
    weights = [rng.normal(0, 1, shape).astype(np.float32) for shape in shapes]
    with smooth_relu():
        model.double()
        exact = step_gradients(model, maps, torch.from_numpy(pictures).double(), weights)
        after = {key: value.float() if value.is_floating_point() else value for key, value in
                 model.state_dict().items()}
        model.float()
        model.load_state_dict(start)
        rough = step_gradients(model, maps, torch.from_numpy(pictures), weights)
    stray = max(gradient_errors(rough, exact).values())
    save(model, out / "gradients", job, {**after, **{key: torch.from_numpy(value.astype(np.float32))
                                                     for key, value in exact.items()}})
    np.savez(out / "step.npz", pictures=pictures, stray=stray, **{f"weight{i}": w for i, w in enumerate(weights)})


def main() -> None:
    """Run every job of a folder; what fails is told in its reference."""
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1])
    task = json.loads((folder / "jobs.json").read_text())
    if task["sources"]:
        PLACE["sources"] = pathlib.Path(task["sources"])
    for job in task["jobs"]:
        out = folder / job["name"]
        out.mkdir()
        try:
            places = [globals(), vars(encoders), vars(authors)]
            builder = next(place[job["build"]] for place in places if job["build"] in place)
            model, maps = builder(*job.get("args", []), **job.get("words", {}))
            randomise(model, job.get("seed", 0), job.get("calm"))
            save(model, out / "checkpoint", job)
            picture = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (1, 3, *job["size"])).astype(np.float32))
            with torch.no_grad():
                found = maps(picture)
            keys = len([key for key in model.state_dict()])
            np.savez(out / "reference.npz", picture=picture.numpy(), keys=keys,
                     **{f"map{i}": value.numpy() for i, value in enumerate(found)})
            if job.get("step"):
                save_gradients(model, maps, job, out)
        except Exception as error:  # one referee that fails is told in its row
            (out / "failed.txt").write_text(f"referee: {type(error).__name__}: {error}"[:300])
        print(job["name"], flush=True)


if __name__ == "__main__":
    main()
