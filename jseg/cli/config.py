"""Print a config as training reads it: with all that its `_base_` brings, and the overrides."""

from __future__ import annotations

import os

from jseg.cli import add_config_arguments
from jseg.config import dump_config, load_config
from jseg.errors import ConfigError
from jseg.files import write_atomically

EXAMPLE = "jseg config segnext/segnext_tiny_ade20k-512x512_160k --set optimizer.lr=1e-4"


def add_arguments(parser) -> None:
    """Options of `jseg config`."""
    add_config_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="write it to a new file (.yaml) instead of the screen")


def run(args) -> int:
    """Print YAML that stands alone, or write it."""
    text = dump_config(load_config(args.config, args.overrides))
    if not args.out:
        print(text, end="")
        return 0
    if os.path.lexists(args.out):
        raise ConfigError(f"{args.out}: exists and is not overwritten; give another name with --out")
    if not args.out.endswith((".yaml", ".yml")):
        raise ConfigError(f"{args.out}: the name of a config ends in .yaml")
    write_atomically(args.out, text.encode())
    print(f"written: {args.out}")
    return 0
