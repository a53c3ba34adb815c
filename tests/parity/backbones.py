"""Compare releases of other homes with jseg: torchvision, timm, and the authors' own repositories.

    python tests/parity/backbones.py --python PYTHON --sources FOLDER             what has no result yet
    python tests/parity/backbones.py --python PYTHON --only timm-resnet50d --again

PYTHON has torch and what the releases asked for need: torchvision, timm, einops; for jobs of mmpretrain, mmpose, mmdet
and VAN-Segmentation the environment of `make parity`. FOLDER holds checkouts of the authors' repositories under their
names: Swin-Transformer, ConvNeXt, mae, HRNet-Image-Classification, PIDNet, DDRNet, SegFormer, Mask2Former, detectron2,
eomt, VAN-Classification, VAN-Segmentation, HRFormer, and mmpose, its wheel unpacked; releases whose checkout is missing
are left as they are. Each network gets random weights; its checkpoint, in the release's own layout, goes through `jseg
convert` (which builds and accounts strictly), and both sides see the same picture: every map within 1e-4 of its range;
with `step` one training step too (limits: weights_page.py). Results are kept in tests/parity/weights.json, a row for
each release, and shown in docs/parity_weights.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import weights_page  # noqa: E402

_SMALL_BEIT = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 3, "init_values": 0.1,
               "use_abs_pos_emb": False, "global_pool": "token"}
_SMALL_MAE = {"img_size": 64, "patch_size": 16, "embed_dim": 128, "depth": 4, "num_heads": 2, "decoder_embed_dim": 32,
              "decoder_depth": 1, "decoder_num_heads": 2}
# larger than 32 windows: on a map no larger than one window these networks do not shift, MMSegmentation's does
_SWIN_T = {"img_size": 448, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
_SMALL_SWIN = {"img_size": 256, "embed_dim": 24, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 3, 4], "window_size": 4,
               "ape": True, "drop_path_rate": 0.0}
_WHOLE = {"whole": True}


def _job(source: str, build: str, *args, size=(96, 128), **more) -> dict:
    """A release: where it is from, the referee's builder with its arguments, (height, width) of the picture."""
    return {"source": source, "build": build, "args": list(args), "size": list(size), **more}


def _vit(name: str, skip: int = 1, size: int = 64, **words) -> dict:
    return _job("timm", "timm_vit", name, skip, words={"img_size": size, **words}, size=(size, size))


JOBS = {
    **{f"torchvision-{name}": _job("torchvision", "torchvision_resnet", name) for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d")},
    **{f"timm-{name}": _job("timm", "timm_resnet", name) for name in (
        "resnet18", "resnet50", "resnet50c", "resnet50d", "resnet101d", "resnext50_32x4d")},
    "torchvision-mobilenet_v2": _job("torchvision", "torchvision_mobilenet_v2"),
    "timm-mobilenetv2_100": _job("timm", "timm_mobilenet_v2", "mobilenetv2_100"),
    "timm-mobilenetv2_140": _job("timm", "timm_mobilenet_v2", "mobilenetv2_140"),
    **{f"{library}-mobilenet_v3_{arch}": _job(library, "mobilenet_v3", library, arch, size=(161, 192))
       for library in ("torchvision", "timm") for arch in ("small", "large")},
    "timm-vit_tiny_patch16": _vit("vit_tiny_patch16_224"), "timm-vit_base_patch16": _vit("vit_base_patch16_224"),
    "timm-deit_small_patch16": _vit("deit_small_patch16_224"),
    "timm-deit3_small_patch16": _vit("deit3_small_patch16_224"),
    "timm-vit_small_patch14_dinov2": _vit("vit_small_patch14_dinov2", size=56),
    "timm-vit_small_patch14_reg4_dinov2": _vit("vit_small_patch14_reg4_dinov2", skip=5, size=56),
    "eomt-small": _job("tue-mps/eomt", "authors_eomt", 7, 9, 2, 64, size=(64, 64), **_WHOLE,
                       words={"patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 1, "reg_tokens": 4}),
    "timm-beit": _job("timm", "timm_beit", size=(64, 64), words={**_SMALL_BEIT, "use_rel_pos_bias": True}),
    "timm-beit-shared": _job("timm", "timm_beit", size=(64, 64),
                             words={**_SMALL_BEIT, "use_shared_rel_pos_bias": True}),
    "timm-swin_tiny": _job("timm", "timm_swin", "swin_tiny_patch4_window7_224", size=(448, 448),
                           words={"img_size": 448}),
    "timm-convnext_tiny": _job("timm", "timm_convnext", "convnext_tiny"),
    "timm-convnext_atto": _job("timm", "timm_convnext", "convnext_atto"),
    "torchvision-convnext_tiny": _job("torchvision", "torchvision_convnext"),
    "timm-hrnet_w18": _job("timm", "timm_hrnet", "hrnet_w18"),
    "timm-hrnet_w18_small": _job("timm", "timm_hrnet", "hrnet_w18_small"),
    "microsoft-swin_tiny": _job("microsoft/Swin-Transformer", "authors_swin", size=(448, 448), words=_SWIN_T,
                                container="model"),
    "microsoft-swin-ape": _job("microsoft/Swin-Transformer", "authors_swin", size=(256, 256), words=_SMALL_SWIN,
                               container="model"),
    "facebook-convnext_tiny": _job("facebookresearch/ConvNeXt", "authors_convnext", container="model"),
    "facebook-mae": _job("facebookresearch/mae", "authors_mae", words=_SMALL_MAE, size=(64, 64), container="model"),
    "hrnet-w18": _job("HRNet/HRNet-Image-Classification", "authors_hrnet", 18),
    "pidnet-s": _job("XuJiacong/PIDNet", "authors_pidnet", prefix="model.", size=(128, 192), **_WHOLE,
                     words={"m": 2, "n": 3, "planes": 32, "ppm_planes": 96, "head_planes": 128}),
    "pidnet-l": _job("XuJiacong/PIDNet", "authors_pidnet", prefix="model.", size=(64, 128), **_WHOLE,
                     words={"m": 3, "n": 4, "planes": 64, "ppm_planes": 112, "head_planes": 256}),
    "ddrnet-23-slim": _job("ydhongHIT/DDRNet", "authors_ddrnet", size=(128, 192), **_WHOLE,
                           words={"planes": 32, "spp_planes": 128, "head_planes": 64, "augment": True}),
    "ddrnet-23-slim-inference": _job("ydhongHIT/DDRNet", "authors_ddrnet", size=(64, 128), **_WHOLE,
                                     words={"planes": 32, "spp_planes": 128, "head_planes": 64, "augment": False}),
    "nvidia-segformer-b0": _job("NVlabs/SegFormer", "authors_segformer", "mit_b0", 150, 256, container="state_dict",
                                **_WHOLE),
    "nvidia-segformer-b2": _job("NVlabs/SegFormer", "authors_segformer", "mit_b2", 19, 768, container="state_dict",
                                **_WHOLE),
}
_MMSEG_HEADS = {
    "decode_head": {"type": "FPNHead", "in_channels": [64] * 5, "in_index": [0, 1, 2, 3, 4],
                    "feature_strides": [4, 8, 16, 32, 64], "channels": 32, "dropout_ratio": 0.1, "num_classes": 150,
                    "norm_cfg": {"type": "BN"}, "align_corners": False,
                    "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}},
    "train_cfg": {}, "test_cfg": {"mode": "whole"}}
_NAS_FPN = {"type": "EncoderDecoder", "backbone": {"type": "ResNet", "depth": 18, "norm_cfg": {"type": "BN"},
                                                   "zero_init_residual": False},
            "neck": {"type": "mmdet.NASFPN", "in_channels": [64, 128, 256, 512], "out_channels": 64, "num_outs": 5,
                     "stack_times": 3, "norm_cfg": {"type": "BN"}}, **_MMSEG_HEADS}
_FPN = {**_MMSEG_HEADS["decode_head"], "in_channels": [64] * 4, "in_index": [0, 1, 2, 3],
        "feature_strides": [4, 8, 16, 32]}
_VAN_FPN = {"type": "EncoderDecoder", **_MMSEG_HEADS, "decode_head": _FPN,
            "backbone": {"type": "VAN", "embed_dims": [32, 64, 160, 256], "drop_rate": 0.0, "drop_path_rate": 0.1,
                         "depths": [3, 3, 5, 2], "norm_cfg": {"type": "SyncBN", "requires_grad": True}},
            "neck": {"type": "FPN", "in_channels": [32, 64, 160, 256], "out_channels": 64, "num_outs": 4}}
_VAN_B6 = {"embed_dims": [96, 192, 384, 768], "mlp_ratios": [8, 8, 4, 4], "depths": [6, 6, 90, 6]}
_HRFORMER_S = {"drop_path_rate": 0.1, "with_rpe": True, "stage1": {
    "num_modules": 1, "num_branches": 1, "block": "BOTTLENECK", "num_blocks": [2], "num_channels": [64],
    "num_heads": [2], "num_mlp_ratios": [4]}}
for _i, _modules in ((2, 1), (3, 4), (4, 2)):
    _HRFORMER_S[f"stage{_i}"] = {
        "num_modules": _modules, "num_branches": _i, "block": "HRFORMERBLOCK", "num_blocks": [2] * _i,
        "num_channels": [32, 64, 128, 256][:_i], "num_heads": [1, 2, 4, 8][:_i], "mlp_ratios": [4] * _i,
        "window_sizes": [7] * _i, **({"multiscale_output": True} if _i == 4 else {})}
_STEP = {"step": True}  # gradients and running statistics too
JOBS.update({  # past MMSegmentation
    "van-b0": _job("Visual-Attention-Network/VAN-Classification", "authors_van", "van_b0", **_STEP),
    "van-b3": _job("Visual-Attention-Network/VAN-Classification", "authors_van", "van_b3"),
    "van-b6": _job("Visual-Attention-Network/VAN-Classification", "authors_van", "VAN", words=_VAN_B6, size=(64, 64)),
    "van-b0-fpn": _job("Visual-Attention-Network/VAN-Segmentation", "segmentation_model", words={
        "model": _VAN_FPN, "package": "VAN"}, **_WHOLE, **_STEP),
    "mmpretrain-van_tiny": _job("mmpretrain", "mmpretrain_model", "VAN", words={"out_indices": [0, 1, 2, 3]}, **_STEP),
    "mmpretrain-van_large": _job("mmpretrain", "mmpretrain_model", "VAN", words={"arch": "large", "out_indices": [
        0, 1, 2, 3]}),
    # a seed where rounding moves no window's largest value to another place
    **{f"torchvision-{name}": _job("torchvision", "torchvision_vgg", name, **({**_STEP, "seed": 1} if "11" in name
                                                                              else {}))
       for name in ("vgg11", "vgg11_bn", "vgg16", "vgg16_bn", "vgg19_bn")},
    "mmpretrain-vgg16_bn": _job("mmpretrain", "mmpretrain_model", "VGG", 16, words={
        "out_indices": [1, 2, 3, 4], "norm_cfg": {"type": "BN"}}),
    "torchvision-googlenet": _job("torchvision", "torchvision_googlenet", size=(96, 96), seed=1, **_STEP),
    **{f"torchvision-{name}": _job("torchvision", "torchvision_efficientnet", name, **(_STEP if "b0" in name else {}))
       for name in ("efficientnet_b0", "efficientnet_b4")},
    "torchvision-efficientnet_b7": _job("torchvision", "torchvision_efficientnet", "efficientnet_b7",
                                        calm=r"block\.[23]\.1\.weight"),
    "timm-efficientnet_b0": _job("timm", "timm_efficientnet", "efficientnet_b0"),
    "timm-tf_efficientnet_l2": _job("timm", "timm_efficientnet", "tf_efficientnet_l2", size=(64, 96),
                                    calm=r"\.bn3\.weight"),
    "mmpretrain-efficientnet_b0": _job("mmpretrain", "mmpretrain_model", "EfficientNet", "b0", words={
        "out_indices": [2, 3, 4, 5]}, size=(97, 131), **_STEP),
    "hrformer-small": _job("HRNet/HRFormer", "authors_hrformer", "small", **_STEP),
    "hrformer-base": _job("HRNet/HRFormer", "authors_hrformer", "base"),
    "mmpose-hrformer_small": _job("mmpose", "mmpose_hrformer", words={"extra": _HRFORMER_S}, size=(96, 128), **_STEP),
    "mmdet-nas_fpn": _job("mmdet", "segmentation_model", words={"model": _NAS_FPN}, size=(128, 192), **_WHOLE, **_STEP),
})
JOBS.update({  # masks hide cells from 1/2 on: a seed whose cells rounding does not move across
    "meta-mask2former-r50": _job("facebookresearch/Mask2Former", "authors_mask2former", "r50", 150, numpy=True,
                                 **_WHOLE),
    "meta-mask2former-swin": _job("facebookresearch/Mask2Former", "authors_mask2former", "swin", 19, numpy=True,
                                  words={"layers": [2, 3]}, seed=1, **_WHOLE)})


def run(jobs: list[dict], python: str, sources: str | None) -> dict[str, dict]:
    """Rows of a few jobs."""
    with tempfile.TemporaryDirectory(prefix="jseg-weights-") as name:
        folder = pathlib.Path(name)
        (folder / "jobs.json").write_text(json.dumps({"jobs": jobs, "sources": sources}))
        for command in ([python, HERE / "backbones_torch.py"], [sys.executable, HERE / "backbones_jseg.py"]):
            subprocess.run([*map(str, command), str(folder)], check=True)
        return {job["name"]: json.loads((folder / job["name"] / "result.json").read_text()) for job in jobs}


def main() -> int:
    """Run what is asked for; 0 when all of it agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="a Python that has torch, torchvision and timm")
    parser.add_argument("--sources", help="folder with checkouts of the authors' repositories")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="releases (default: all)")
    parser.add_argument("--again", action="store_true", help="run what has a result already")
    parser.add_argument("--batch", type=int, default=6, help="releases per process (default: %(default)s)")
    args = parser.parse_args()
    unknown = set(args.only or ()) - set(JOBS)
    if unknown:
        parser.error(f"unknown releases {', '.join(sorted(unknown))}; known: {', '.join(JOBS)}")
    rows, wanted = weights_page.load(), args.only or list(JOBS)
    todo = [{**JOBS[name], "name": name} for name in wanted
            if args.again or name not in rows or weights_page.failures(rows[name])]
    for start in range(0, len(todo), args.batch):
        batch = todo[start:start + args.batch]
        for name, row in run(batch, args.python, args.sources).items():
            job = JOBS[name]
            model = " ".join(map(str, [job["build"], *job["args"]]))
            rows[name] = {"source": job["source"], "model": model, **row, "date": datetime.date.today().isoformat()}
            print(f"parity-weights: {name}: {'; '.join(weights_page.failures(rows[name])) or 'agrees'}", flush=True)
        weights_page.save(rows)
    bad = [name for name in wanted if name not in rows or weights_page.failures(rows[name])]
    print(f"{len(wanted) - len(bad)} of {len(wanted)} releases agree")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
