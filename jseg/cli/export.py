"""Write a checkpoint's weights as a small file to share: half precision, with their origin.

    jseg export best.safetensors small.safetensors --origin "trained on CamVid"
    jseg export weights.safetensors whole.safetensors --full --config CONFIG.yaml

The second gives a file of another tool, or one without config or class names, what `jseg predict` needs: the model is
built from the config, and every key of the file must fit it.
"""

from __future__ import annotations

import pathlib

from jseg.errors import CheckpointError

EXAMPLE = ("jseg export runs/segnext_tiny_camvid-240x320_cpu/best.safetensors weights/segnext_tiny_camvid.safetensors "
           '--origin "trained on CamVid"')


def add_arguments(parser) -> None:
    """Options of `jseg export`."""
    parser.add_argument("checkpoint", help="a .safetensors file written by training or conversion")
    parser.add_argument("out", help="the file to write; .safetensors")
    parser.add_argument("--full", action="store_true",
                        help="keep float32 (default: half precision, running statistics excepted)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="change a value of the config inside, such as a path of this machine; may be given many "
                             "times")
    parser.add_argument("--config", dest="given_config", metavar="FILE",
                        help="put this config (.yaml, or a shipped config's name) into the file, "
                        "with the class names and colours of its data set, instead of those inside it")
    parser.add_argument("--allow-nonfinite", action="store_true", help="write weights that hold NaN or inf")
    parser.add_argument("--origin", metavar="TEXT",
                        help="where the weights come from: data, command, licence; kept inside the file")


def run(args) -> int:
    """Read, shrink, write, and say what changed in size."""
    from jseg.config import apply_overrides
    from jseg.engine.checkpoint import load_weights, save_weights, weights_path
    source, out = weights_path(args.checkpoint), pathlib.Path(args.out)
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: the name of a weights file ends in .safetensors")
    if out.exists() and out.samefile(source):
        raise CheckpointError(f"{out}: is the checkpoint itself; give another name")
    state, meta = load_weights(source, allow_nonfinite=args.allow_nonfinite)
    if args.given_config:
        meta.update(_facts(args.given_config, state, source))
    if args.origin:
        meta["origin"] = ({**(meta.get("origin") or {}), "text": args.origin} if isinstance(meta.get("origin"), dict)
                          else args.origin)
    if args.overrides:
        meta["config"] = apply_overrides(meta.get("config") or {}, args.overrides)
    meta.pop("jseg_version", None)
    digest = save_weights(out, state, meta, half=not args.full)
    print(f"{out}: {len(state)} tensors, {out.stat().st_size / 1e6:.1f} MB (from {source.stat().st_size / 1e6:.1f} "
          f"MB), content sha256 {digest[:16]}")
    return 0


def _facts(config_file: str, state: dict, source: pathlib.Path) -> dict:
    """Config, class names and colours from a config file, whose model takes every one of the weights."""
    import jseg.data.datasets  # noqa: F401  (registers them)
    from jseg.config import load_config
    from jseg.engine.checkpoint import load_into
    from jseg.errors import ConfigError
    from jseg.layers.init import without_values
    from jseg.models import build_model
    from jseg.registry import DATASETS
    config = load_config(config_file)
    with without_values():
        model = build_model(config)
    load_into(model, state, source=str(source), allow_nonfinite=True)
    block = next((config[name]["dataset"] for name in ("test_dataloader", "val_dataloader", "train_dataloader")
                  if isinstance(config.get(name), dict) and isinstance(config[name].get("dataset"), dict)), None)
    if block is None:
        raise ConfigError(f"{config_file}: names no data set, so the classes have no names; give it a val_dataloader "
                          f"with a dataset")
    dataset = DATASETS.build({key: value for key, value in block.items() if key != "pipeline"}, "dataset")
    return {"config": config, "classes": list(dataset.classes),
            "palette": [[int(v) for v in colour] for colour in dataset.palette]}
