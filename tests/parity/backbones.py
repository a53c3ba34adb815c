"""Compare releases of other homes with jseg: torchvision, timm, and the authors' own repositories.

    python tests/parity/backbones.py --python PYTHON --sources FOLDER             what has no result yet
    python tests/parity/backbones.py --python PYTHON --only timm-resnet50d --again

PYTHON has torch, torchvision and timm (pip). FOLDER holds checkouts of the authors' repositories under their names:
Swin-Transformer, ConvNeXt, mae, HRNet-Image-Classification, PIDNet, DDRNet, SegFormer, Mask2Former, detectron2, eomt;
releases whose checkout is missing are left as they are. Each network gets random weights; its checkpoint, in the
release's own layout, goes through `jseg convert` (which builds and accounts strictly), and both sides see the same
picture: every map within LIMIT of its range. Results are kept in tests/parity/weights.json, a row for each release.
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
RESULTS, LIMIT = HERE / "weights.json", 1e-4
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
JOBS.update({  # masks hide cells from 1/2 on: a seed whose cells rounding does not move across
    "meta-mask2former-r50": _job("facebookresearch/Mask2Former", "authors_mask2former", "r50", 150, numpy=True,
                                 **_WHOLE),
    "meta-mask2former-swin": _job("facebookresearch/Mask2Former", "authors_mask2former", "swin", 19, numpy=True,
                                  words={"layers": [2, 3]}, seed=1, **_WHOLE)})


def load_results() -> dict[str, dict]:
    """Kept rows by release; those of other scripts too."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save_results(rows: dict[str, dict]) -> None:
    """Write the rows, a line for each, so that changes read well."""
    lines = [f" {json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in sorted(rows.items())]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def fault(row: dict) -> str:
    """What of a row is beyond its limit; empty where all agrees."""
    if "failed" in row:
        return row["failed"]
    faults = [f"{row['unaccounted']} keys unaccounted"] if row["unaccounted"] else []
    faults += [f"maps {row['logits']:.2g} > {LIMIT:g}"] if not row["logits"] <= LIMIT else []
    faults += [f"labels {row['labels']:.3%} equal"] if row.get("labels") is not None and row["labels"] < 0.999 else []
    return "; ".join(faults)


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
    rows, wanted = load_results(), args.only or list(JOBS)
    todo = [{**JOBS[name], "name": name} for name in wanted if args.again or name not in rows or fault(rows[name])]
    for start in range(0, len(todo), args.batch):
        batch = todo[start:start + args.batch]
        for name, row in run(batch, args.python, args.sources).items():
            job = JOBS[name]
            model = " ".join(map(str, [job["build"], *job["args"]]))
            rows[name] = {"source": job["source"], "model": model, **row, "date": datetime.date.today().isoformat()}
            print(f"parity-weights: {name}: {fault(rows[name]) or 'agrees'}", flush=True)
        save_results(rows)
    bad = [name for name in wanted if name not in rows or fault(rows[name])]
    print(f"{len(wanted) - len(bad)} of {len(wanted)} releases agree")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
