"""Count the FLOPs and parameters of a config's model, for one picture.

The rule is the one behind the tables of the SegNeXt paper (fvcore's): a multiply-add of a convolution or of a matrix
product counts 1; a batch norm counts 2 for each element, layer and group norm 5; a bilinear resize counts 4 for each
element it makes, the logits' resize to the picture's size included. Biases, activations, additions and products of maps
count nothing. With it SegNeXt-T, S, B, L at 512x512 and 150 classes give the published 6.6, 15.9, 34.9, 70.0 G (B and L
with MD_R 64). Counters that take convolutions alone give 6.10 G for T, those that leave out the last resize 6.45 G.
"""

from __future__ import annotations

import contextlib
from collections import Counter

from jseg.cli import add_config_arguments
from jseg.config import load_config
from jseg.errors import ConfigError

EXAMPLE = "jseg flops configs/segnext/segnext_tiny_ade20k-512x512_160k.yaml --size 512 512"
NORM_COSTS = {"BatchNorm2d": 2, "GroupNorm": 5, "LayerNorm": 5}
RESIZE_COST = 4


def add_arguments(parser) -> None:
    """Options of `jseg flops`."""
    add_config_arguments(parser)
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"),
                        help="picture size in pixels (default: 512 512)")
    parser.add_argument("--depth", type=int, default=2, help="levels of the module tree to print (default: 2)")


def run(args) -> int:
    """Print the totals, a table by module and the rule."""
    from jseg.engine.channels import model_channels
    from jseg.layers import named_parameters
    from jseg.models import build_model

    if min(args.size) < 1:
        raise ConfigError(f"--size is {args.size[0]} {args.size[1]}; height and width must be at least 1 pixel")
    cfg = load_config(args.config, args.overrides)
    model = build_model(cfg)
    counts, logits = count_operations(model, (args.size[0], args.size[1]), model_channels(cfg["model"]))
    sizes = {key: value.numel() for key, value in named_parameters(model).items()}
    count, total = sum(sizes.values()), sum(counts.values())
    print(f"{count / 1e6:.2f} M parameters ({4 * count / 1e6:.1f} MB in float32), {total / 1e9:.2f} G FLOPs "
          f"(multiply-adds) for a picture of {args.size[0]}x{args.size[1]}, logits {'x'.join(map(str, logits))}\n")
    print(f"{'module':<40}{'G FLOPs':>14}{'parameters':>14}")
    for name in _rows(model, args.depth):
        print(f"{'  ' * name.count('.') + name:<40}{_below(counts, name) / 1e9:>14.4f}{_below(sizes, name):>14,}")
    print(f"{'(logits resized)':<40}{counts['(logits resized)'] / 1e9:>14.4f}{0:>14,}")
    print(f"{'total':<40}{total / 1e9:>14.4f}{count:>14,}\n")
    print(__doc__.split("\n\n")[1])
    return 0


def count_operations(model, size: tuple[int, int], channels: int = 3) -> tuple[Counter, tuple[int, ...]]:
    """Count what one picture costs in evaluation. The graph is laid out but never executed, so nothing is compiled.

    Args:
        model: a segmentor or a classifier; it is put into evaluation mode and its operators into their plain form.
        size: (H, W) of the picture in pixels.
        channels: of the picture.
    Returns:
        operations by the name of the module that ran them, and the shape of the logits.
    """
    import jittor as jt

    model.impl = "jittor"
    model.eval()
    counts: Counter = Counter()
    with jt.flag_scope(lazy_execution=1), jt.no_grad(), _watched(model, counts):
        logits = model(jt.zeros((1, channels, *size)))
    maps = len(logits.shape) == 4  # a classifier has no map to resize
    counts["(logits resized)"] = RESIZE_COST * logits.shape[1] * size[0] * size[1] * maps
    return counts, tuple(logits.shape)


@contextlib.contextmanager
def _watched(model, counts: Counter):
    """Let convolutions, matrix products, norms and resizes add to `counts` under the running module's name."""
    import jittor as jt
    from jittor import nn

    from jseg import ops

    names = {id(module): name for name, module in model.named_modules()}
    running = [""]

    def call(module, *args, **options):
        running.append(names.get(id(module), running[-1]))
        try:
            result = originals[jt.Module, "__call__"](module, *args, **options)
        finally:
            name = running.pop()
        cost = NORM_COSTS.get(type(module).__name__)
        if cost is not None:
            counts[name] += cost * result.numel()
        return result

    def convolve(x, weight, *args, **options):
        result = originals[nn, "conv2d"](x, weight, *args, **options)
        counts[running[-1]] += result.numel() * weight.numel() // weight.shape[0]
        return result

    def multiplies(place):
        def multiply(a, b):
            result = originals[place](a, b)
            counts[running[-1]] += result.numel() * a.shape[-1]
            return result

        return multiply

    def enlarge(x, size, **options):
        result = originals[ops, "bilinear_resize"](x, size, **options)
        counts[running[-1]] += RESIZE_COST * result.numel() * (tuple(size) != tuple(x.shape[2:]))
        return result

    watchers = {(jt.Module, "__call__"): call, (nn, "conv2d"): convolve, (ops, "bilinear_resize"): enlarge}
    products = ((jt, "matmul"), (jt, "bmm"), (jt, "bmm_transpose"), (nn, "matmul_transpose"))
    watchers.update({place: multiplies(place) for place in products})
    originals = {place: getattr(*place) for place in watchers}
    try:
        for (owner, name), watcher in watchers.items():
            setattr(owner, name, watcher)
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def _rows(model, depth: int) -> list[str]:
    """Module names down to a depth, in order."""
    return [name for name, _ in model.named_modules() if name and name.count(".") < depth]


def _below(values, name: str) -> int:
    """Sum of the values of a module and everything in it."""
    return sum(value for key, value in values.items() if key == name or key.startswith(name + "."))
