"""The referee's side of `backbones.py`: builds each release's network with random weights, saves its checkpoint as the
release does, and runs it on a picture.

    python tests/parity/backbones_torch.py FOLDER      FOLDER/jobs.json -> <name>/checkpoint.*, <name>/reference.npz

Runs under a Python with torch, torchvision and timm, without jseg. Networks without a package come from checkouts of
their authors' repositories (`sources` of jobs.json), which run as they are; a job whose checkout is missing says so.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import pickle
import sys
import types
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_OPERATORS = torch.library.Library("torchvision", "DEF")  # its models need none of them, its import two of their names
with contextlib.suppress(RuntimeError):
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

np.float = float  # a name that the authors' files of that time use
SOURCES = pathlib.Path(".")


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Values that keep maps near one and make every weight count."""
    rng = np.random.default_rng(seed)
    state = model.state_dict()
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        leaf, shape = key.rpartition(".")[2], tuple(value.shape)
        if leaf == "running_var" or (value.ndim == 1 and leaf in ("weight", "gamma", "gamma_1", "gamma_2")) or (
            leaf == "layer_scale"):
            new = rng.uniform(0.5, 1.5, shape)
        elif value.ndim >= 2 and leaf == "weight":
            new = rng.normal(0, (1.5 / max(np.prod(shape[1:]), 1))**0.5, shape)
        elif leaf == "relative_position_index" or leaf == "attn_mask":
            continue
        else:
            new = rng.normal(0, 0.3, shape)
        state[key] = torch.from_numpy(np.asarray(new, np.float32))
    model.load_state_dict(state)
    model.eval()


def source(folder: str, name: str):
    """A module of an author's checkout."""
    path = SOURCES / folder
    if not path.is_dir():
        raise FileNotFoundError(f"no checkout {path}")
    sys.path.insert(0, str(path))
    for loaded in [key for key in sys.modules if key.split(".")[0] == name.split(".")[0]]:
        del sys.modules[loaded]  # several repositories have a package `models`
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(path))


def tapped(model: nn.Module, modules: list[nn.Module], run) -> list[torch.Tensor]:
    """What `modules` give while `run(model)` goes."""
    found: dict[int, torch.Tensor] = {}
    hooks = [module.register_forward_hook(lambda _, __, out, i=i: found.__setitem__(i, out))
             for i, module in enumerate(modules)]
    with torch.no_grad():
        run(model)
    for hook in hooks:
        hook.remove()
    return [found[i] for i in range(len(modules))]


def as_map(tokens: torch.Tensor, skip: int = 0) -> torch.Tensor:
    """(N, skip + S * S, C) -> (N, C, S, S)."""
    tokens = tokens[:, skip:]
    side = int(tokens.shape[1]**0.5)
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side)


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
    taps = [model.blocks[blocks * i // 4 - 1] for i in (1, 2, 3)] + [model.norm]
    return model, lambda x: [as_map(t, skip) for t in tapped(model, taps, lambda m: m.forward_features(x))]


def timm_beit(**words):
    from timm.models.beit import Beit
    model = Beit(**words)
    taps = [model.blocks[len(model.blocks) * i // 4 - 1] for i in (1, 2, 3)] + [model.norm]
    return model, lambda x: [as_map(t, 1) for t in tapped(model, taps, lambda m: m.forward_features(x))]


def _plain_norms(maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Channel-last maps behind a norm with weight 1 and bias 0, channels first."""
    return [F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2) for x in maps]


def timm_swin(name: str, **words):
    import timm
    model = timm.create_model(name, **words)
    return model, lambda x: _plain_norms(tapped(model, [layer.blocks for layer in model.layers], lambda m: m(x)))


def timm_convnext(name: str):
    import timm
    model = timm.create_model(name)
    return model, lambda x: _next_norms(tapped(model, list(model.stages), lambda m: m(x)), model.head.norm)


def torchvision_convnext():
    from torchvision import models
    model = models.convnext_tiny()
    return model, lambda x: _next_norms(tapped(model, [model.features[i] for i in (1, 3, 5, 7)], lambda m: m(x)),
                                        model.classifier[0])


def _next_norms(maps: list[torch.Tensor], last: nn.Module) -> list[torch.Tensor]:
    """Norms of the maps: new ones, and the classifier's for the last."""
    maps = [x.permute(0, 2, 3, 1) for x in maps]
    found = [F.layer_norm(x, x.shape[-1:], eps=1e-6) for x in maps]
    found[-1] = F.layer_norm(maps[-1], maps[-1].shape[-1:], last.weight, last.bias, 1e-6)
    return [x.permute(0, 3, 1, 2) for x in found]


def timm_hrnet(name: str):
    import timm
    model = timm.create_model(name)
    _bilinear(model)
    return model, lambda x: model.stages(F.relu(model.bn2(model.conv2(F.relu(model.bn1(model.conv1(x)))))))


def _bilinear(model: nn.Module) -> None:
    """HRNet's maps are resized bilinearly in segmentation."""
    for module in model.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", False


# -- networks of their authors' repositories ---------------------------------------------------------------------------


def authors_swin(**words):
    model = source("Swin-Transformer", "models.swin_transformer").SwinTransformer(**words)

    def maps(x):
        size, width = words["img_size"] // 4, words["embed_dim"]
        blocks = tapped(model, [layer.blocks[-1] for layer in model.layers], lambda m: m(x))
        return _plain_norms([b.reshape(b.shape[0], size // 2**i, size // 2**i, width * 2**i)
                             for i, b in enumerate(blocks)])

    return model, maps


def authors_convnext(**words):
    model = source("ConvNeXt", "models.convnext").ConvNeXt(**words)
    return model, lambda x: _next_norms(tapped(model, list(model.stages), lambda m: m(x)), model.norm)


def authors_mae(**words):
    module = source("mae", "models_mae")
    block = module.Block
    module.Block = lambda *args, qk_scale=None, **more: block(*args, **more)  # a word that timm had then
    model = module.MaskedAutoencoderViT(**words, norm_layer=partial(nn.LayerNorm, eps=1e-6))

    def maps(x):
        tokens = model.patch_embed(x) + model.pos_embed[:, 1:]
        tokens = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1), tokens], 1)
        found = []
        for block in model.blocks:
            tokens = block(tokens)
            found.append(tokens)
        found[-1] = model.norm(found[-1])
        blocks = len(found)
        return [as_map(found[blocks * i // 4 - 1], 1) for i in (1, 2, 3, 4)]

    return model, maps


def authors_hrnet(width: int):
    module = source("HRNet-Image-Classification/lib", "models.cls_hrnet")
    extra = {}
    for i, (modules, blocks) in enumerate(((1, 2), (1, 1), (2, 1), (1, 1)), 1):
        extra[f"STAGE{i}"] = {"NUM_MODULES": modules, "NUM_BRANCHES": i, "NUM_BLOCKS": [blocks] * i,
                              "NUM_CHANNELS": [32] if i == 1 else [width * 2**j for j in range(i)],
                              "BLOCK": "BOTTLENECK" if i == 1 else "BASIC", "FUSE_METHOD": "SUM"}
    model = module.HighResolutionNet({"MODEL": {"EXTRA": extra}})
    _bilinear(model)

    def maps(x):
        found = tapped(model, [model.stage4], lambda m: m(x))
        return list(found[0])

    return model, maps


def authors_pidnet(**words):
    model = source("PIDNet", "models.pidnet").PIDNet(**words)
    return model, lambda x: [model(x)[1]]


def authors_ddrnet(**words):
    module = source("DDRNet", "segmentation.DDRNet_23_slim")
    model = module.DualResNet(module.BasicBlock, [2, 2, 2, 2], **words)
    return model, lambda x: [model(x)[0] if words.get("augment") else model(x)]


def authors_segformer(name: str, classes: int, width: int):
    """NVIDIA's backbone and head, whose few needs of MMCV 1.x and MMSegmentation 0.x stand in."""
    blocks = _segformer_stand_ins()
    with blocks:
        mit = _file_module("nv_mit", SOURCES / "SegFormer/mmseg/models/backbones/mix_transformer.py", "nv.backbones")
        file = SOURCES / "SegFormer/mmseg/models/decode_heads/segformer_head.py"
        head = _file_module("nv_head", file, "nv.decode_heads").SegFormerHead
        widths = {"mit_b0": [32, 64, 160, 256], "small": [8, 16, 24, 32]}.get(name, [64, 128, 320, 512])
        backbone = getattr(mit, name)() if name != "small" else mit.MixVisionTransformer(
            patch_size=4, embed_dims=widths, num_heads=[1, 2, 3, 4], mlp_ratios=[2] * 4, qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), depths=[1, 2, 1, 1], sr_ratios=[4, 2, 2, 1])
        decode = head(feature_strides=[4, 8, 16, 32], in_channels=widths, num_classes=classes, channels=128,
                      decoder_params={"embed_dim": width})
    model = nn.ModuleDict({"backbone": backbone, "decode_head": decode})
    return model, lambda x: [decode(backbone(x))]


def _file_module(name: str, path: pathlib.Path, package: str):
    """A module of one file, inside a package that stands in for its own."""
    spec = importlib.util.spec_from_file_location(f"{package}.{name}", path)
    module = importlib.util.module_from_spec(spec)
    module.__package__ = package
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _stand_ins(modules: dict[str, dict]):
    """Modules that hold the given names, for the time of an import."""
    before = {name: sys.modules.get(name) for name in modules}
    for name, values in modules.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update({"__path__": [], **values})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name)
            else:
                sys.modules[name] = module


class _Registry:
    """`register_module()` and `register()` that give back the class."""

    def register_module(self, *args, **kwargs):
        return lambda cls: cls

    register = register_module


def _segformer_stand_ins():
    class BaseDecodeHead(nn.Module):
        def __init__(self, in_channels, channels, num_classes, input_transform=None, **words):
            super().__init__()
            self.in_channels, self.channels, self.num_classes = in_channels, channels, num_classes
            self.conv_seg, self.dropout = nn.Conv2d(channels, num_classes, 1), nn.Identity()

        def _transform_inputs(self, inputs):
            return inputs

    class ConvModule(nn.Module):
        def __init__(self, in_channels, out_channels, kernel_size, norm_cfg=None):
            super().__init__()
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False)
            self.bn = nn.BatchNorm2d(out_channels)

        def forward(self, x):
            return F.relu(self.bn(self.conv(x)))

    def nothing(*args, **kwargs):
        return None

    registry = {"BACKBONES": _Registry(), "HEADS": _Registry()}
    return _stand_ins({
        "nv": {}, "nv.backbones": {}, "nv.decode_heads": {}, "nv.builder": registry,
        "mmseg": {}, "mmseg.models": {}, "mmseg.models.builder": registry, "mmseg.models.utils": {},
        "mmseg.utils": {"get_root_logger": nothing}, "mmseg.ops": {"resize": F.interpolate}, "nv.utils": {},
        "mmseg.models.decode_heads": {}, "mmseg.models.decode_heads.decode_head": {"BaseDecodeHead": BaseDecodeHead},
        "nv.decode_heads.decode_head": {"BaseDecodeHead": BaseDecodeHead}, "mmcv": {}, "attr": {}, "IPython": {
            "embed": nothing}, "mmcv.cnn": {"ConvModule": ConvModule, "DepthwiseSeparableConvModule": ConvModule},
        "mmcv.runner": {"load_checkpoint": nothing}})


# -- Mask2Former over detectron2, whose few needs stand in -------------------------------------------------------------


class _Conv(nn.Conv2d):
    """detectron2's convolution with a norm and an activation."""

    def __init__(self, *args, norm=None, activation=None, **words):
        super().__init__(*args, **words)
        self.norm, self.activation = norm, activation

    def forward(self, x):
        x = super().forward(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


class _Block(nn.Module):
    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride


class _Spec(types.SimpleNamespace):
    def __init__(self, channels=None, height=None, width=None, stride=None):
        super().__init__(channels=channels, stride=stride)


def _norm(name, channels):
    return {"": lambda: None, "GN": lambda: nn.GroupNorm(32, channels), "BN": lambda: nn.BatchNorm2d(channels)}[name]()


def _detectron_stand_ins():
    def nothing(*args, **kwargs):
        return None

    def same(value):
        return value

    root = SOURCES / "Mask2Former/mask2former"
    layers = {"Conv2d": _Conv, "ShapeSpec": _Spec, "get_norm": _norm, "CNNBlockBase": _Block, "DeformConv": None,
              "ModulatedDeformConv": None}
    packages = {"mask2former": root, "mask2former.modeling": root / "modeling",
                "mask2former.modeling.pixel_decoder": root / "modeling/pixel_decoder",
                "mask2former.modeling.transformer_decoder": root / "modeling/transformer_decoder",
                "mask2former.modeling.backbone": root / "modeling/backbone"}
    fill = types.SimpleNamespace(c2_xavier_fill=nothing, c2_msra_fill=nothing)

    class Registry(_Registry):
        def __init__(self, name=""):
            pass

    modeling = {"SEM_SEG_HEADS_REGISTRY": Registry(), "BACKBONE_REGISTRY": Registry(), "Backbone": nn.Module,
                "ShapeSpec": _Spec}
    return _stand_ins({
        "detectron2": {}, "detectron2.config": {"configurable": same}, "detectron2.layers": layers,
        "detectron2.modeling": modeling, "detectron2.modeling.backbone": {},
        "detectron2.modeling.backbone.backbone": modeling, "detectron2.modeling.backbone.build": modeling,
        "detectron2.utils": {}, "detectron2.utils.registry": {"Registry": Registry}, "fvcore": {},
        "fvcore.nn": {"weight_init": fill}, "fvcore.nn.weight_init": vars(fill), "MultiScaleDeformableAttention": {},
        **{name: {"__path__": [str(path)]} for name, path in packages.items()}})


class _Mask2Former(nn.Module):
    """The parts of the release under its names."""

    def __init__(self, backbone, pixel_decoder, predictor, classes):
        super().__init__()
        self.backbone, self.sem_seg_head, self.criterion = backbone, nn.Module(), nn.Module()
        self.sem_seg_head.pixel_decoder, self.sem_seg_head.predictor = pixel_decoder, predictor
        self.criterion.register_buffer("empty_weight", torch.ones(classes + 1))

    def forward(self, x):
        head = self.sem_seg_head
        masks, _, maps = head.pixel_decoder.forward_features(self.backbone(x))
        out = head.predictor(maps, masks)
        scores = out["pred_logits"].softmax(-1)[..., :-1]
        masks = F.interpolate(out["pred_masks"], size=x.shape[-2:], mode="bilinear", align_corners=False)
        return torch.einsum("bqc,bqhw->bchw", scores, masks.sigmoid())


def authors_mask2former(kind: str, classes: int, layers: tuple[int, int] = (6, 9)):
    """On "r50" or on a small Swin, with a head of published or "small" width; layers of the encoder and decoder."""
    width, heads, inner = (32, 1, 24) if kind == "small" else (256, 8, 1024)
    with _detectron_stand_ins():
        name = "mask2former.modeling."
        decoder = importlib.import_module(f"{name}pixel_decoder.msdeformattn").MSDeformAttnPixelDecoder
        predict = importlib.import_module(f"{name}transformer_decoder.mask2former_transformer_decoder")
        if kind == "r50":
            file = SOURCES / "detectron2/detectron2/modeling/backbone/resnet.py"
            resnet = _file_module("resnet", file, "detectron2.modeling.backbone")
            backbone = resnet.ResNet(resnet.BasicStem(norm="BN"), resnet.ResNet.make_default_stages(
                50, norm="BN", stride_in_1x1=False), out_features=["res2", "res3", "res4", "res5"])
            widths = [256, 512, 1024, 2048]
        else:
            swin = importlib.import_module(f"{name}backbone.swin")
            backbone = swin.SwinTransformer(embed_dim=24, depths=[2, 2, 2, 2], num_heads=[1, 2, 3, 4], window_size=4)
            widths = [24, 48, 96, 192]
        shapes = {f"res{i + 2}": _Spec(channels=width, stride=4 * 2**i) for i, width in enumerate(widths)}
        pixel = decoder(shapes, transformer_dropout=0.0, transformer_nheads=heads, transformer_dim_feedforward=inner,
                        transformer_enc_layers=layers[0], conv_dim=width, mask_dim=width, norm="GN", common_stride=4,
                        transformer_in_features=["res3", "res4", "res5"])
        predictor = predict.MultiScaleMaskedTransformerDecoder(
            width, True, num_classes=classes, hidden_dim=width, num_queries=20, nheads=heads,
            dim_feedforward=2 * inner, dec_layers=layers[1], pre_norm=False, mask_dim=width,
            enforce_input_project=False)
    model = _Mask2Former(backbone, pixel, predictor, classes)
    return model, lambda x: [model(x)]


# -- the run -----------------------------------------------------------------------------------------------------------


def save(model: nn.Module, path: pathlib.Path, job: dict) -> None:
    """The checkpoint as the release has it."""
    state = {f"{job.get('prefix', '')}{key}": value for key, value in model.state_dict().items()}
    if job.get("numpy"):
        content = {"model": {key: value.numpy() for key, value in state.items()}, "__author__": "a referee"}
        path.with_suffix(".pkl").write_bytes(pickle.dumps(content))
        return
    torch.save({job["container"]: state} if job.get("container") else state, path.with_suffix(".pth"))


def main() -> None:
    """Run every job of a folder; what fails is told in its reference."""
    global SOURCES
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1])
    task = json.loads((folder / "jobs.json").read_text())
    SOURCES = pathlib.Path(task["sources"] or "/nowhere")
    for job in task["jobs"]:
        out = folder / job["name"]
        out.mkdir()
        try:
            builder = globals()[job["build"]]
            model, maps = builder(*job.get("args", []), **job.get("words", {}))
            randomise(model, job.get("seed", 0))
            save(model, out / "checkpoint", job)
            picture = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (1, 3, *job["size"])).astype(np.float32))
            with torch.no_grad():
                found = maps(picture)
            keys = len([key for key in model.state_dict()])
            np.savez(out / "reference.npz", picture=picture.numpy(), keys=keys,
                     **{f"map{i}": value.numpy() for i, value in enumerate(found)})
        except Exception as error:  # one referee that fails is told in its row
            (out / "failed.txt").write_text(f"referee: {type(error).__name__}: {error}"[:300])
        print(job["name"], flush=True)


if __name__ == "__main__":
    main()
