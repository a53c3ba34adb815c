"""Networks past MMSegmentation for `backbones_torch.py`: VAN, VGG, GoogLeNet, EfficientNet, HRFormer, and a model with
NAS-FPN.

Each builder gives (network, maps of pictures). VAN and HRFormer run from checkouts of their authors, mmpose's HRFormer
from its package unpacked there; the others are packages'.
"""

from __future__ import annotations

import copy
import importlib
import sys

import torch
from backbones_tools import PLACE, source, stand_ins
from torch import nn
from torch.nn import functional as F


def hooked(model: nn.Module, modules: list[nn.Module], run) -> list[torch.Tensor]:
    """What `modules` give while `run(model)` goes, with its gradient."""
    found: dict[int, torch.Tensor] = {}
    hooks = [module.register_forward_hook(lambda _, __, out, i=i: found.__setitem__(i, out))
             for i, module in enumerate(modules)]
    run(model)
    for hook in hooks:
        hook.remove()
    return [found[i] for i in range(len(modules))]


def authors_van(name: str, **words):
    """VAN-Classification: a name of its factories, or "VAN" with words."""
    module = source("VAN-Classification", "models.van")
    model = getattr(module, name)(**words)

    def maps(x):
        sizes = [[-(-side // 2**(i + 2)) for side in x.shape[2:]] for i in range(4)]
        tokens = hooked(model, [model.norm1, model.norm2, model.norm3, model.norm4], lambda m: m(x))
        return [t.transpose(1, 2).reshape(len(x), -1, *size) for t, size in zip(tokens, sizes)]

    return model, maps


def mmpretrain_model(kind: str, *args, **words):
    """A backbone of mmpretrain, as its classifier's checkpoint has it."""
    from zoo_operators import allow_mmcv_operators, allow_mmpretrain
    allow_mmcv_operators(), allow_mmpretrain()
    import mmpretrain.models.backbones as backbones
    model = nn.Module()
    model.backbone = getattr(backbones, kind)(*args, **words)
    return model, lambda x: list(model.backbone(x))


def torchvision_vgg(name: str):
    from torchvision import models
    model = getattr(models, name)(weights=None)
    for i in (0, 3, 6):  # keys count, not their 120 million values
        model.classifier[i] = nn.Linear(4, 4)
    pools = [part for part in model.features if isinstance(part, nn.MaxPool2d)]
    return model, lambda x: hooked(model, pools[1:], lambda m: m.features(x))


def torchvision_googlenet():
    from torchvision import models
    model = models.googlenet(weights=None, init_weights=False, aux_logits=True)
    taps = [model.conv3, model.inception3b, model.inception4e, model.inception5b]
    return model, lambda x: hooked(model, taps, lambda m: m._forward(x))


def torchvision_efficientnet(name: str):
    from torchvision import models
    model = getattr(models, name)(weights=None)
    return model, lambda x: hooked(model, [model.features[i] for i in (2, 3, 5, 7)], lambda m: m.features(x))


def timm_efficientnet(name: str):
    import timm
    model = timm.create_model(name)
    return model, lambda x: hooked(model, [model.blocks[i] for i in (1, 2, 4, 6)], lambda m: m.forward_features(x))


def authors_hrformer(shape):
    """HRFormer's classifier: the name of one of its configuration files, or such a block."""
    import yaml
    module = source("HRFormer/cls", "models.hrt")
    sys.modules["models.modules.multihead_isa_attention"].F = F  # a name that its file lacks
    if isinstance(shape, str):
        text = (PLACE["sources"] / f"HRFormer/cls/configs/hrt/hrt_{shape}.yaml").read_text()
        shape = yaml.safe_load(text)["MODEL"]["HRT"]
    model = module.HighResolutionTransformer(shape)

    def maps(x):
        x = F.relu(model.bn2(model.conv2(F.relu(model.bn1(model.conv1(x))))))
        found = [model.layer1(x)]
        for i in (1, 2, 3):
            given = [*found, *[found[-1]] * (i + 1 - len(found))]
            parts = getattr(model, f"transition{i}")
            found = getattr(model, f"stage{i + 1}")([y if part is None else part(y) for part, y in zip(parts, given)])
        return found

    return model, maps


def mmpose_hrformer(extra: dict):
    """mmpose's HRFormer, from its package's files; what it needs of the rest stands in."""
    from zoo_operators import allow_mmcv_operators
    allow_mmcv_operators()
    from mmengine.model import BaseModule
    from mmengine.registry import Registry
    root = PLACE["sources"] / "mmpose" / "mmpose"
    names = {"mmpose": {"__path__": [str(root)]}, "mmpose.models": {"__path__": [str(root / "models")]},
             "mmpose.models.backbones": {"__path__": [str(root / "models/backbones")]},
             "mmpose.registry": {"MODELS": Registry("model")},
             "mmpose.models.backbones.base_backbone": {"BaseBackbone": BaseModule}}
    with stand_ins(names):
        module = importlib.import_module("mmpose.models.backbones.hrformer")
    model = module.HRFormer(extra=extra)
    return model, lambda x: list(model(x))


def segmentation_model(model: dict, package: str = "mmdet"):
    """A whole model of MMSegmentation with a part of another library, as its runner saves it.

    Args:
        model: the config's model block.
        package: whose models are entered too: "mmdet", or "VAN" for the authors' checkout.
    """
    from zoo_operators import allow_mmcv_operators, allow_mmpretrain
    allow_mmcv_operators(), allow_mmpretrain()
    from make_segnext import import_mmseg
    import_mmseg()
    from mmengine.config import Config
    from mmseg.registry import MODELS
    from zoo_mmseg import without_start
    if package == "VAN":
        _enter_van(MODELS)
    else:
        import mmdet.models  # noqa: F401
    network = MODELS.build(without_start({**copy.deepcopy(model), "data_preprocessor": None}))
    network.meta = {"cfg": Config({"model": model}).pretty_text, "CLASSES": [f"thing {i}" for i in range(150)]}
    return network, lambda x: [network.decode_head(network.extract_feat(x))]


def _enter_van(registry) -> None:
    """The authors' VAN, written for MMSegmentation 0.x, among the models of 1.x."""
    import mmengine.model
    from mmcv.cnn.bricks.drop import DropPath
    weights = {name: getattr(mmengine.model, name) for name in ("constant_init", "normal_init", "trunc_normal_init")}
    with stand_ins({"timm": {}, "timm.models": {}, "timm.models.layers": {"DropPath": DropPath},
                    "mmcv.cnn.utils": {}, "mmcv.cnn.utils.weight_init": weights,
                    "mmcv.runner": {"BaseModule": mmengine.model.BaseModule},
                    "mmseg.models.builder": {"BACKBONES": registry}}):
        source("VAN-Segmentation", "van")
