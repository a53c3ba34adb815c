"""Write a checkpoint for others: weights to share, an ONNX file, an MMSegmentation checkpoint.

    jseg export best.safetensors small.safetensors --origin "trained on CamVid"
    jseg export weights.safetensors whole.safetensors --full --config CONFIG.yaml
    jseg export best.safetensors model.onnx --output labels --normalize
    jseg export best.safetensors model.pth

The suffix of the second file decides. `--full --config` gives a file of another tool, or one without config or class
names, what `jseg predict` needs: the model is built from the config, and every key of the file must fit it.
"""

from __future__ import annotations

import pathlib

from jseg.cli._arguments import positive_count
from jseg.errors import CheckpointError, ConfigError

EXAMPLE = ("jseg export runs/segnext_tiny_camvid-240x320_cpu/best.safetensors weights/segnext_tiny_camvid.safetensors "
           '--origin "trained on CamVid"')
_ONNX = {"size": None, "dynamic": False, "output": "labels", "normalize": False, "order": None, "opset": 17,
         "fp16": False, "no_verify": False}  # options of .onnx, with what they are where not given
_WEIGHTS = {"full": False, "origin": None, "given_config": None}


def add_arguments(parser) -> None:
    """Options of `jseg export`."""
    parser.add_argument("checkpoint", help="a .safetensors file written by training or conversion")
    parser.add_argument("out", help="the file to write: .safetensors, .onnx, or .pth for MMSegmentation 1.x")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="change a value of the config inside, such as a path of this machine; may be given many "
                             "times")
    parser.add_argument("--allow-nonfinite", action="store_true", help="write weights that hold NaN or inf")
    weights = parser.add_argument_group(".safetensors")
    weights.add_argument("--full", action="store_true",
                         help="keep float32 (default: half precision, running statistics excepted)")
    weights.add_argument("--config", dest="given_config", metavar="FILE",
                         help="put this config (.yaml, or a shipped config's name) into the file, "
                              "with the class names and colours of its data set, instead of those inside it")
    weights.add_argument("--origin", metavar="TEXT",
                         help="where the weights come from: data, command, licence; kept inside the file")
    onnx = parser.add_argument_group(".onnx")
    sides = onnx.add_mutually_exclusive_group()
    sides.add_argument("--size", nargs=2, type=positive_count, metavar=("HEIGHT", "WIDTH"),
                       help="take one picture at a time, of this size in pixels")
    sides.add_argument("--dynamic", action="store_true", help="take any batch, height and width (default)")
    onnx.add_argument("--output", choices=("labels", "logits", "probabilities"), default="labels",
                      help="labels: class of every pixel, uint8 (default); logits: as the head gives them, to be "
                           "resized; probabilities: of every pixel and class")
    onnx.add_argument("--normalize", action="store_true",
                      help="take uint8 pictures (N, H, W, 3) and normalise them inside (default: float32 (N, 3, H, W), "
                           "normalised)")
    onnx.add_argument("--order", choices=("bgr", "rgb"),
                      help="channels of the pictures of --normalize: bgr as OpenCV reads them (default), or rgb")
    onnx.add_argument("--opset", type=int, default=17, metavar="N",
                      help="version of the ONNX operators, 17 to 21 (default: %(default)s)")
    onnx.add_argument("--fp16", action="store_true", help="keep weights in half precision; arithmetic stays float32")
    onnx.add_argument("--no-verify", action="store_true", help="do not compare the file with the model")


def run(args) -> int:
    """Read the checkpoint, write what the suffix says, and tell what came out."""
    from jseg.engine.checkpoint import weights_path
    source, out = weights_path(args.checkpoint), pathlib.Path(args.out)
    writers = {".safetensors": (_write_weights, _WEIGHTS), ".onnx": (_write_onnx, _ONNX), ".pth": (_write_pth, {})}
    if out.suffix not in writers:
        raise CheckpointError(f"{out}: the name of a file to write ends in .safetensors, .onnx or .pth")
    if out.exists() and out.samefile(source):
        raise CheckpointError(f"{out}: is the checkpoint itself; give another name")
    write, takes = writers[out.suffix]
    for name, usual in {**_WEIGHTS, **_ONNX}.items():
        if name not in takes and getattr(args, name) != usual:
            word = {"given_config": "config"}.get(name, name).replace("_", "-")
            raise ConfigError(f"--{word} says nothing for a {out.suffix} file; leave it out")
    return write(args, source, out)


def _write_weights(args, source: pathlib.Path, out: pathlib.Path) -> int:
    from jseg.config import apply_overrides
    from jseg.engine.checkpoint import load_weights, save_weights
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


def _opened(args, source: pathlib.Path):
    """The checkpoint with its overrides."""
    from jseg.config import apply_overrides
    from jseg.engine.model_file import open_model_file
    file = open_model_file(source, allow_nonfinite=args.allow_nonfinite)
    return file._replace(config=apply_overrides(file.config, args.overrides)) if args.overrides else file


def _write_onnx(args, source: pathlib.Path, out: pathlib.Path) -> int:
    from jseg.export.onnx_model import OPSETS, OnnxOptions
    from jseg.export.write_onnx import write_onnx
    if args.opset not in OPSETS:
        raise ConfigError(f"--opset is {args.opset}; accepted: {OPSETS[0]} to {OPSETS[-1]}")
    if args.order and not args.normalize:
        raise ConfigError("--order says how uint8 pictures lie, and belongs to --normalize; give both")
    options = OnnxOptions(size=tuple(args.size) if args.size else None, output=args.output, opset=args.opset,
                          order=(args.order or "bgr") if args.normalize else None, half=args.fp16)
    for line in write_onnx(_opened(args, source), out, options, verify=not args.no_verify):
        print(line, flush=True)
    return 0


def _write_pth(args, source: pathlib.Path, out: pathlib.Path) -> int:
    from jseg.export.mmseg_file import write_mmseg_file
    for line in write_mmseg_file(_opened(args, source), out):
        print(line)
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
