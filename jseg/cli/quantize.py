"""Make an int8 file of an exported .onnx file, and print mIoU before and after per class.

    jseg export best.safetensors model.onnx
    jseg quantize model.onnx --data CONFIG.yaml --calibrate 64

Both files are evaluated on the validation set. A loss above --max-drop is refused, without a file, and the layers that
cost most are named: leave them in float with --keep, or let --auto choose.
"""

from __future__ import annotations

import pathlib

from jseg.errors import ConfigError

EXAMPLE = ("jseg quantize model.onnx --data configs/segnext/segnext_tiny_camvid-288x384_cpu.yaml --calibrate 64 "
           "--out model_int8.onnx")


def add_arguments(parser) -> None:
    """Options of `jseg quantize`."""
    parser.add_argument("model", metavar="FILE", help="an .onnx file of 'jseg export'")
    parser.add_argument("--data", metavar="CONFIG",
                        help="the config whose data calibrate and judge; without it the one inside the file is used")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="override one value of the config; may be given many times")
    parser.add_argument("--calibrate", type=int, metavar="N",
                        help="pictures that the ranges of int8 come from, evenly spread over the split (default: 32, "
                             "or all where there are fewer)")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train",
                        help="where they come from, through the config's test pipeline (default: %(default)s)")
    parser.add_argument("--images", type=int, metavar="N",
                        help="evaluate on the first N pictures of the validation set (default: all)")
    parser.add_argument("--max-drop", type=float, default=1.0, metavar="POINTS",
                        help="largest loss of mIoU in points (default: %(default)s)")
    parser.add_argument("--keep", nargs="+", action="extend", default=[], metavar="LAYER",
                        help="layers that stay float32; patterns such as 'backbone.block1.*' too")
    parser.add_argument("--auto", action="store_true",
                        help="leave the costliest layers in float, 1, 2, 4, ..., until the loss fits")
    parser.add_argument("--costs", action="store_true", help="print what each layer costs, even if the loss fits")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime",
                        help="what evaluates both files (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="the int8 file (default: FILE_int8.onnx beside FILE)")


def run(args) -> int:
    """Quantise, evaluate, print the table."""
    path = pathlib.Path(args.model)
    out = pathlib.Path(args.out) if args.out else path.with_name(f"{path.stem}_int8.onnx")
    _check_arguments(args, path, out)
    from jseg.cli.val import chosen_config
    from jseg.export.exported import open_exported
    from jseg.export.quantize import QuantizeOptions, quantize_file
    file = open_exported(path, args.runtime)
    config = chosen_config(args.data, args.overrides, file.meta, path)
    options = QuantizeOptions(calibrate=args.calibrate, split=args.split, images=args.images, max_drop=args.max_drop,
                              keep=tuple(args.keep), automatic=args.auto, costs=args.costs)
    for line in quantize_file(file, config, out, options):
        print(line, flush=True)
    return 0


def _check_arguments(args, path: pathlib.Path, out: pathlib.Path) -> None:
    for name in ("calibrate", "images"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; accepted: 1 or more")
    if not 0 <= args.max_drop <= 100:
        raise ConfigError(f"--max-drop is {args.max_drop}; accepted: 0 to 100 points of mIoU")
    if out.suffix != ".onnx":
        raise ConfigError(f"--out {out}: the int8 file is an ONNX file; end its name with .onnx")
    if out.resolve() == path.resolve():
        raise ConfigError(f"--out {out}: is the float32 file itself; give another name")
