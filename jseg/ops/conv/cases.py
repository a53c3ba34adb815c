"""Shapes of conv for tests and benchmarks."""

import jittor as jt

from jseg.ops.case import Case
from jseg.ops.conv.op import conv

CASES = [
    Case("one_number", n=1, c=1, out=1, size=(1, 1), padding=1),
    Case("odd", n=2, c=5, out=7, size=(5, 9), padding=1),
    *[Case(f"{name}_{way}", way=way, **options) for way in ("winograd2", "winograd4") for name, options in (
        ("one_tile", dict(n=1, c=2, out=3, size=(3, 3))),
        ("narrow", dict(n=3, c=3, out=2, size=(41, 1), padding=(0, 2), more=("bias",))),
        ("long_rows", dict(n=1, c=3, out=9, size=(6, 210), more=("scale",))),
        ("batch", dict(n=3, c=9, out=17, size=(13, 11), padding=1, more=("bias", "scale", "residual"))),
        ("relu", dict(n=2, c=4, out=10, size=(9, 35), padding=1, more=("bias", "scale", "residual"),
                      activation="relu")),
        ("dilated", dict(n=2, c=6, out=5, size=(14, 17), padding=2, dilation=2, more=("bias", "scale", "residual"),
                         activation="relu")),
        ("dilated_apart", dict(n=1, c=4, out=5, size=(9, 40), padding=(3, 1), dilation=(2, 3))),
        ("few_rows_of_lattices", dict(n=1, c=3, out=4, size=(5, 7), padding=12, dilation=12, more=("residual",))),
        ("many_channels", dict(n=1, c=130, out=70, size=(12, 12), padding=1)),
        ("one_panel_and_more", dict(n=1, c=8, out=8, size=(40, 52), padding=1, activation="relu")))],
    *[Case(f"product_{name}", way="product", **options) for name, options in (
        ("plain", dict(n=2, c=5, out=7, size=(5, 9), kernel=(3, 3), padding=1, more=("bias", "scale", "residual"),
                       activation="relu")),
        ("pixels", dict(n=2, c=19, out=11, size=(7, 13), kernel=(1, 1), more=("bias", "residual"))),
        ("strided_pixels", dict(n=1, c=4, out=9, size=(7, 130), kernel=(1, 1), stride=2)),
        ("strided", dict(n=2, c=6, out=13, size=(15, 120), kernel=(3, 3), stride=2, padding=1, more=("bias",))),
        ("stem", dict(n=1, c=3, out=20, size=(23, 107), kernel=(7, 7), stride=2, padding=3, activation="relu")),
        ("stride_3", dict(n=1, c=2, out=3, size=(17, 29), kernel=(4, 2), stride=3, padding=(2, 0))),
        ("strided_dilated", dict(n=1, c=3, out=4, size=(19, 25), kernel=(3, 5), stride=(1, 2), padding=4, dilation=2)),
        ("groups", dict(n=2, c=12, out=9, size=(11, 8), kernel=(5, 5), padding=2, groups=3, more=("scale",))),
        ("deep", dict(n=1, c=70, out=30, size=(9, 31), kernel=(5, 5), padding=2, more=("scale", "residual"))))],
    Case("64_128x128", n=1, c=64, out=64, size=(128, 128), padding=1, bench=True),
    Case("128_64x64", n=1, c=128, out=128, size=(64, 64), padding=1, bench=True),
    Case("256_64x64_dilation2", n=1, c=256, out=256, size=(64, 64), padding=2, dilation=2, bench=True),
    Case("512_64x64_dilation4", n=1, c=512, out=512, size=(64, 64), padding=4, dilation=4, bench=True),
    Case("2048_512_64x64", n=1, c=2048, out=512, size=(64, 64), padding=1, bench=True),
    Case("stem_7x7_512x512", n=1, c=3, out=64, size=(512, 512), kernel=(7, 7), stride=2, padding=3, bench=True),
    Case("1024_256_pixels_64x64", n=1, c=1024, out=256, size=(64, 64), kernel=(1, 1), bench=True),
    Case("64_128_stride2_128x128", n=1, c=64, out=128, size=(128, 128), stride=2, padding=1, bench=True),
]
GRADS = []
FLOOR = 4e-6  # F(4x4, 3x3): three to five times what the sum over taps has
LAYERS = {}


class _Layer:
    """Stands for the layer whose filters are kept."""


def make(case, rng):
    """Random input, weights of unit gain."""
    kernel, groups = case.options.get("kernel", (3, 3)), case.options.get("groups", 1)
    options = {key: case.options[key] for key in ("stride", "padding", "dilation", "groups", "activation", "way")
               if key in case.options}
    depth = case.c // groups * kernel[0] * kernel[1]
    inputs = {"x": rng.standard_normal((case.n, case.c, *case.size)),
              "weight": rng.standard_normal((case.out, case.c // groups, *kernel)) / depth ** 0.5}
    sides = [(v, v) if isinstance(v, int) else v for v in (options.get("stride", 1), options.get("padding", 0),
                                                           options.get("dilation", 1))]
    size = [(case.size[i] + 2 * sides[1][i] - sides[2][i] * (kernel[i] - 1) - 1) // sides[0][i] + 1 for i in range(2)]
    for name in case.options.get("more", ()):
        inputs[name] = rng.standard_normal((case.n, case.out, *size) if name == "residual" else case.out)
    return {**inputs, **options}


def call(inputs, impl):
    """y (N, D, H', W')."""
    layer = LAYERS.setdefault(tuple(inputs["weight"].shape), _Layer())  # of several cases: their weights differ
    with jt.no_grad():
        return conv(**inputs, layer=layer, impl=impl)
