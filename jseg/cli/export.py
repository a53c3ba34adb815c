"""Write a checkpoint's weights as a small file to share: half precision, with their origin."""

from __future__ import annotations

import pathlib

from jseg.errors import CheckpointError

EXAMPLE = ("jseg export runs/segnext_tiny_camvid-240x320_cpu/best.safetensors weights/segnext_tiny_camvid.safetensors "
           '--origin "trained on CamVid"')


def add_arguments(parser) -> None:
    """Options of `jseg export`."""
    parser.add_argument("checkpoint", help="a .safetensors file written by training or conversion")
    parser.add_argument("out", help="the file to write; .safetensors")
    parser.add_argument("--full", action="store_true", help="keep float32 (default: half precision, running statistics excepted)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="change a value of the config inside, such as a path of this machine; may be given many times")
    parser.add_argument("--origin", metavar="TEXT", help="where the weights come from: data, command, licence; kept inside the file")


def run(args) -> int:
    """Read, shrink, write, and say what changed in size."""
    from jseg.config import apply_overrides
    from jseg.engine.checkpoint import load_weights, save_weights
    source, out = pathlib.Path(args.checkpoint), pathlib.Path(args.out)
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: the name of a weights file ends in .safetensors")
    if out.exists() and out.samefile(source):
        raise CheckpointError(f"{out}: is the checkpoint itself; give another name")
    state, meta = load_weights(source)
    if args.origin:
        meta["origin"] = {**(meta.get("origin") or {}), "text": args.origin} if isinstance(meta.get("origin"), dict) else args.origin
    if args.overrides:
        meta["config"] = apply_overrides(meta.get("config") or {}, args.overrides)
    meta.pop("jseg_version", None)
    digest = save_weights(out, state, meta, half=not args.full)
    print(f"{out}: {len(state)} tensors, {out.stat().st_size / 1e6:.1f} MB (from {source.stat().st_size / 1e6:.1f} MB), content sha256 {digest[:16]}")
    return 0
