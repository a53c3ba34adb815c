"""Evaluate a checkpoint: per-class table on the screen, metrics as JSON."""

from __future__ import annotations

import contextlib
import pathlib

from jseg.cli import add_config_arguments
from jseg.cli._segmentor import add_precision_argument
from jseg.errors import ConfigError

EXAMPLE = ("jseg val configs/segnext/segnext_tiny_camvid-240x320_cpu.yaml --checkpoint runs/camvid/best --out "
           "metrics.json")


def add_arguments(parser) -> None:
    """Options of `jseg val`."""
    add_config_arguments(parser, nargs="?")
    parser.add_argument("--checkpoint", required=True, metavar="FILE",
                        help="weights (.safetensors), a folder of a run that holds them, such as best/, or an .onnx "
                             "file of 'jseg export'; without CONFIG the config inside the file is used")
    parser.add_argument("--split", choices=("val", "test"), default="val",
                        help="which dataloader of the config (default: val)")
    parser.add_argument("--tta", action="store_true",
                        help="average over the scales and flips of the config's tta: block")
    parser.add_argument("--out", metavar="FILE", help="write the whole result as JSON")
    parser.add_argument("--keep", metavar="FOLDER",
                        help="save the worst and best pictures with truth and prediction there")
    parser.add_argument("--allow-nonfinite", action="store_true", help="evaluate weights that hold NaN or inf")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime",
                        help="what runs an .onnx file (default: %(default)s)")
    add_precision_argument(parser)
    parser.add_argument("--keep-count", type=int, default=4, metavar="N",
                        help="how many of each (default: %(default)s)")


def run(args) -> int:
    """Build the model, load the weights strictly, stream the dataset through, print the table;
    under mpirun, shared between the ranks.
    """
    from jseg.engine.distributed import as_rank
    return as_rank(lambda: _evaluate(args))


def _evaluate(args) -> int:
    from jseg.data.build import build_loader
    from jseg.engine import distributed
    from jseg.engine.checkpoint import load_into, load_weights, weights_path
    from jseg.engine.evaluate import evaluate, format_table, save_result
    from jseg.engine.limits import without_files
    from jseg.engine.model_file import config_told
    from jseg.engine.precision import set_precision
    from jseg.layers.init import without_values
    from jseg.models import build_model
    path = weights_path(args.checkpoint)
    exported = path.suffix == ".onnx"
    if exported:
        from jseg.export.exported import ExportedSegmentor, open_exported
        file = open_exported(path, args.runtime)
        meta = file.meta
    else:
        state, meta = load_weights(path, allow_nonfinite=args.allow_nonfinite)
    config = chosen_config(args.config, args.overrides, meta, path)
    own = contextlib.nullcontext() if args.config else config_told(path)
    with own, without_values():
        if exported:
            model = ExportedSegmentor(file, (config.get("model") or {}).get("test_cfg"))
        else:
            model = build_model(config if args.config else without_files(config["model"]))
        loader = build_loader(config, args.split, rank=distributed.rank(), world_size=distributed.world_size())
    if not exported:
        load_into(model, state, source=str(path), allow_nonfinite=True)  # they were looked at when read
    set_precision(model, args.precision)
    with distributed.watched():
        result = evaluate(model, loader, config.get("evaluator"), tta=(config.get("tta") or {}) if args.tta else None,
                          keep=args.keep, keep_count=args.keep_count)
    if not distributed.is_main():
        return 0
    print(format_table(result))
    if args.out:
        save_result({**result, "checkpoint": str(args.checkpoint), "split": args.split,
                     "precision": args.precision}, args.out)
        print(f"written: {args.out}")
    return 0


def chosen_config(config: str | None, overrides: list[str], meta: dict, source: pathlib.Path) -> dict:
    """Return the config file with its overrides, or the one inside the checkpoint when no file is named.

    The one inside may name the data set's folders, which are read; it may not name a file to write (`cache_file`).

    Raises:
        CheckpointError: no file is named and the checkpoint carries no config, or one that cannot be meant.
        ConfigError: the config file is wrong, or an override does not fit.
    """
    from jseg.config import apply_overrides, is_classifier, load_config
    from jseg.engine.model_file import own_data, stored_config
    if config is not None:
        return load_config(config, overrides)
    if not meta.get("config"):
        raise ConfigError(f"{source}: carries no config; name one: jseg val CONFIG --checkpoint {source}")
    head = "head" if is_classifier(meta["config"]) else "decode_head"
    return apply_overrides(own_data(stored_config(meta, source, blocks=("backbone", head)), source), overrides)
