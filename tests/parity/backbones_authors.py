"""Networks of their authors' repositories for `backbones_torch.py`, run from checkouts as they are.

Each builder gives (network, maps of a picture). What a file needs of MMCV, MMSegmentation 0.x or detectron2 stands in.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import types
from functools import partial

import numpy as np
import torch
from backbones_tools import PLACE, as_map, next_norms, plain_norms, resize_bilinearly, source, stand_ins, tapped
from torch import nn
from torch.nn import functional as F

np.float = float  # a name that the authors' files of that time use


def authors_swin(**words):
    model = source("Swin-Transformer", "models.swin_transformer").SwinTransformer(**words)

    def maps(x):
        size, width = words["img_size"] // 4, words["embed_dim"]
        blocks = tapped(model, [layer.blocks[-1] for layer in model.layers], lambda m: m(x))
        return plain_norms([b.reshape(b.shape[0], size // 2**i, size // 2**i, width * 2**i)
                             for i, b in enumerate(blocks)])

    return model, maps


def authors_eomt(classes: int, queries: int, blocks: int, side: int, **words):
    """EoMT over a timm ViT; semantic scores of a picture of its own size, which its network takes from 0 to 1."""
    from timm.models.vision_transformer import VisionTransformer
    module = source("eomt", "models.eomt")
    encoder = nn.Module()
    encoder.backbone = VisionTransformer(img_size=side, num_classes=0, init_values=1e-5, no_embed_class=True, **words)
    for name, values in (("pixel_mean", (0.485, 0.456, 0.406)), ("pixel_std", (0.229, 0.224, 0.225))):
        encoder.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1))
    model = module.EoMT(encoder, classes, queries, blocks)

    def maps(x):
        masks, scores = (found[-1] for found in model(x * encoder.pixel_std + encoder.pixel_mean))
        masks = F.interpolate(masks, (side, side), mode="bilinear").sigmoid()
        return [torch.einsum("bqhw,bqc->bchw", masks, scores.softmax(-1)[..., :-1])]

    return nn.ModuleDict({"network": model}), maps


def authors_convnext(**words):
    model = source("ConvNeXt", "models.convnext").ConvNeXt(**words)
    return model, lambda x: next_norms(tapped(model, list(model.stages), lambda m: m(x)), model.norm)


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
    resize_bilinearly(model)

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
        models = PLACE["sources"] / "SegFormer/mmseg/models"
        mit = _file_module("nv_mit", models / "backbones/mix_transformer.py", "nv.backbones")
        head = _file_module("nv_head", models / "decode_heads/segformer_head.py", "nv.decode_heads").SegFormerHead
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
    return stand_ins({
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

    root = PLACE["sources"] / "Mask2Former/mask2former"
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
    return stand_ins({
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
            file = PLACE["sources"] / "detectron2/detectron2/modeling/backbone/resnet.py"
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
