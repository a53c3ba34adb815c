"""Opening a checkpoint as the options of `jseg predict` and `jseg serve` say."""

from __future__ import annotations

from jseg.cli._arguments import height_width

__all__ = ["add_model_arguments", "add_precision_argument", "open_segmentor"]


def add_model_arguments(parser) -> None:
    """What a model's answer depends on, see `open_segmentor`."""
    parser.add_argument("--tta", action="store_true", help="average over scales and flips")
    parser.add_argument("--mode", choices=("whole", "slide"), help="override the checkpoint's test mode")
    parser.add_argument(
        "--crop-size", type=height_width, metavar="HxW", help="window of --mode slide in pixels, such as 512x512"
    )
    parser.add_argument(
        "--stride", type=height_width, metavar="HxW", help="pixels between windows; default: two thirds of --crop-size"
    )
    parser.add_argument("--allow-nonfinite", action="store_true", help="use weights that hold NaN or inf all the same")
    parser.add_argument("--impl", choices=("auto", "jittor"), default="auto",
                        help="kernels (default) or plain operators")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime",
                        help="what runs an .onnx file (default: %(default)s)")
    add_precision_argument(parser)


def add_precision_argument(parser) -> None:
    """What the factors of products are rounded to, see `precision.set_precision`."""
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32",
                        help="bf16: round the factors of matrix products to bfloat16, on a CPU with AVX512_BF16; "
                             "quicker, 'jseg val --precision bf16' tells what it costs (default: %(default)s)")


def open_segmentor(args, *, tiled: bool = False):
    """The `InferenceSegmentor` of the options `add_model_arguments`; `tiled`: for windows at the pixels' own size."""
    from jseg.engine.predict import InferenceSegmentor
    return InferenceSegmentor(
        args.checkpoint,
        tta=args.tta,
        mode="slide" if tiled else args.mode,
        impl=args.impl,
        crop_size=args.crop_size,
        stride=args.stride,
        allow_nonfinite=args.allow_nonfinite,
        runtime=args.runtime,
        resize=not tiled,
        precision=args.precision,
    )
