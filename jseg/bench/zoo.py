"""The models of `jseg bench --zoo`: one config of each family, in the order of the table.

The best known ones are timed at 512x512, one of every other family at 256x256, or at what its config needs.
"""

from __future__ import annotations

import dataclasses
from typing import Sequence

from jseg.bench.models import Measurement
from jseg.bench.opponents import Rival
from jseg.config import configs_folder, load_config
from jseg.errors import ConfigError
from jseg.registry import nearest

__all__ = ["ZOO", "Specimen", "chosen_models", "still_open", "zoo_measurement"]


@dataclasses.dataclass(frozen=True)
class Specimen:
    """A model of the table: its name there, its config below configs/, the side of its pictures in pixels."""

    name: str
    config: str
    side: int = 256


ZOO = (
    Specimen("SegNeXt-T", "segnext/segnext_tiny_ade20k-512x512_160k.yaml", 512),
    Specimen("SegNeXt-B", "segnext/segnext_base_ade20k-512x512_160k.yaml", 512),
    Specimen("SegFormer-B0", "segformer/segformer_mit-b0_ade20k-512x512_160k.yaml", 512),
    Specimen("FCN-R50", "fcn/fcn_r50-d8_ade20k-512x512_80k.yaml", 512),
    Specimen("DeepLabV3+-R50", "deeplabv3plus/deeplabv3plus_r50-d8_ade20k-512x512_80k.yaml", 512),
    Specimen("UPerNet-Swin-T", "swin/swin-tiny-patch4-window7_upernet_ade20k-512x512_160k.yaml", 512),
    Specimen("OCRNet-HR18", "ocrnet/ocrnet_hr18_cityscapes-512x1024_160k.yaml", 512),
    Specimen("PIDNet-S", "pidnet/pidnet-s_cityscapes-1024x1024_120k.yaml", 512),
    Specimen("BiSeNetV2", "bisenetv2/bisenetv2_cityscapes-1024x1024_160k.yaml", 512),
    Specimen("STDC1", "stdc/stdc1_cityscapes-512x1024_80k.yaml", 512),
    Specimen("Mask2Former-R50", "mask2former/mask2former_r50_cityscapes-512x1024_90k.yaml", 512),
    Specimen("UPerNet-ConvNeXt-T", "convnext/convnext-tiny_upernet_ade20k-512x512_160k.yaml", 512),
    Specimen("ANN-R50", "ann/ann_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("APCNet-R50", "apcnet/apcnet_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("UPerNet-BEiT-B", "beit/beit-base_upernet_ade20k-640x640_160k.yaml", 640),
    Specimen("BiSeNetV1-R18", "bisenetv1/bisenetv1_r18-d32_cityscapes-1024x1024_160k.yaml"),
    Specimen("CCNet-R50", "ccnet/ccnet_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("CGNet", "cgnet/cgnet_cityscapes-680x680_60k.yaml"),
    Specimen("ContextNet", "contextnet/contextnet_cityscapes-512x1024_160k.yaml"),
    Specimen("DANet-R50", "danet/danet_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("DDRNet-23-slim", "ddrnet/ddrnet_23-slim_cityscapes-1024x1024_120k.yaml"),
    Specimen("DeepLabV3-R50", "deeplabv3/deeplabv3_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("DMNet-R50", "dmnet/dmnet_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("DNLNet-R50", "dnlnet/dnl_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("DPT-ViT-B", "dpt/dpt_vit-b16_ade20k-512x512_160k.yaml"),
    Specimen("EMANet-R50", "emanet/emanet_r50-d8_cityscapes-512x1024_80k.yaml"),
    Specimen("FPN-EfficientNet-B0", "efficientnet/fpn_efficientnet-b0_ade20k-512x512_80k.yaml"),
    Specimen("EncNet-R50", "encnet/encnet_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("EoMT-DINOv2-S", "eomt/eomt_dinov2-s_ade20k-512x512_40k.yaml", 512),
    Specimen("ERFNet", "erfnet/erfnet_cityscapes-512x1024_160k.yaml"),
    Specimen("FastFCN-R50", "fastfcn/fastfcn_r50-d32_jpu_psp_ade20k-512x512_80k.yaml"),
    Specimen("Fast-SCNN", "fastscnn/fast_scnn_cityscapes-512x1024_160k.yaml"),
    Specimen("GCNet-R50", "gcnet/gcnet_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("FPN-GoogLeNet", "googlenet/fpn_googlenet_ade20k-512x512_80k.yaml"),
    Specimen("OCRNet-HRFormer-S", "hrformer/ocrnet_hrformer-small_cityscapes-512x1024_80k.yaml"),
    Specimen("FCN-HR18", "hrnet/fcn_hr18_ade20k-512x512_160k.yaml"),
    Specimen("ICNet-R18", "icnet/icnet_r18-d8_cityscapes-832x832_160k.yaml"),
    Specimen("ISANet-R50", "isanet/isanet_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("K-Net-FCN-R50", "knet/knet-s3_r50-d8_fcn_ade20k-512x512_80k.yaml"),
    Specimen("UPerNet-MAE-B", "mae/mae-base_upernet_ade20k-512x512_160k.yaml", 512),
    Specimen("MaskFormer-R50", "maskformer/maskformer_r50-d32_ade20k-512x512_160k.yaml"),
    Specimen("FCN-MobileNetV2", "mobilenet_v2/mobilenet-v2-d8_fcn_ade20k-512x512_160k.yaml"),
    Specimen("LRASPP-MobileNetV3", "mobilenet_v3/mobilenet-v3-d8_lraspp_cityscapes-512x1024_320k.yaml", 512),
    Specimen("NAS-FPN-EfficientNet-L2", "nas_fpn/fpn_nas-fpn_efficientnet-l2_voc12aug-512x512_80k.yaml"),
    Specimen("NonLocal-R50", "nonlocal_net/nonlocal_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("PointRend-R50", "point_rend/pointrend_r50_cityscapes-512x1024_80k.yaml"),
    Specimen("FPN-PoolFormer-S12", "poolformer/fpn_poolformer_s12_ade20k-512x512_40k.yaml"),
    Specimen("PSANet-R50", "psanet/psanet_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("PSPNet-R50", "pspnet/pspnet_r50-d8_ade20k-512x512_80k.yaml"),
    Specimen("DeepLabV3+-ResNeSt-101", "resnest/resnest_s101-d8_deeplabv3plus_ade20k-512x512_160k.yaml"),
    Specimen("SAN-ViT-B", "san/san_vit-b16_coco_stuff164k-640x640_60k.yaml"),
    Specimen("Segmenter-ViT-S", "segmenter/segmenter_vit-s_mask_ade20k-512x512_160k.yaml"),
    Specimen("FPN-R50", "sem_fpn/fpn_r50_ade20k-512x512_160k.yaml"),
    Specimen("SETR-ViT-L", "setr/setr_vit-l_pup_ade20k-512x512_160k.yaml"),
    Specimen("UPerNet-Twins-SVT-S", "twins/twins_svt-s_uperhead_ade20k-512x512_160k.yaml"),
    Specimen("UNet-S5", "unet/unet-s5-d16_fcn_cityscapes-512x1024_160k.yaml"),
    Specimen("UPerNet-R50", "upernet/upernet_r50_ade20k-512x512_80k.yaml"),
    Specimen("FPN-VAN-B0", "van/fpn_van-b0_ade20k-512x512_40k.yaml"),
    Specimen("FCN-VGG16", "vgg/fcn_vgg16-d16_ade20k-512x512_80k.yaml"),
    Specimen("UPerNet-DeiT-S", "vit/vit_deit-s16_mln_upernet_ade20k-512x512_160k.yaml"),
)


def chosen_models(names: Sequence[str]) -> list[Specimen]:
    """The models of these names, or of a family of that name; all where none is given.

    Raises:
        ConfigError: an unknown name.
    """
    found = []
    for name in names:
        own = [one for one in ZOO if name.lower() in (one.name.lower(), one.config.partition("/")[0])]
        if not own:
            known = [one.name for one in ZOO]
            raise ConfigError(f"--zoo {name}: no model of the table{nearest(name, known)}; accepted: "
                              f"{', '.join(known)}")
        found += own
    return list(dict.fromkeys(found)) if names else list(ZOO)


def zoo_measurement(one: Specimen, mode: str, threads: int | None, size: Sequence[int] | None = None,
                    batch: int | None = None) -> Measurement:
    """What is measured of a model: 1 picture at inference and 2 in training, of its own size, unless said otherwise."""
    config = load_config(configs_folder() / one.config)
    batch = batch or (1 if mode == "infer" else 2)
    return Measurement(config, one.name, mode, tuple(size or (one.side, one.side)), batch, threads)


def still_open(row: dict | None, rivals: Sequence[Rival]) -> list[Rival] | None:
    """Whom an earlier row says nothing of, or that a package was missing which is here now; None where all is said.

    Args:
        row: one that failed on jseg's own side, or None, leaves everybody open.
    """
    if row is None or "jseg" not in row:
        return list(rivals)
    found = [rival for rival in rivals if rival.name not in row["others"]
             or (row["others"][rival.name].get("absent") and not rival.absent)]
    return found or None
