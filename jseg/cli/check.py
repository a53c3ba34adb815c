"""List every mistake in config files, without training anything."""

from __future__ import annotations

import sys

from jseg.cli import add_config_arguments
from jseg.config import load_config
from jseg.errors import ConfigError

EXAMPLE = "jseg check configs/segnext/*.yaml"


def add_arguments(parser) -> None:
    """Options of `jseg check`."""
    add_config_arguments(parser, nargs="+")


def run(args) -> int:
    """Print each fault on a line and return 2, or one summary line for each config and return 0."""
    from jseg.engine.check import check_config, summary  # imports Jittor: not for --help

    status = 0
    for path in args.config:
        try:
            cfg = load_config(path, args.overrides)
            faults = check_config(cfg, where=path)
        except ConfigError as error:
            faults = [str(error)]
        if faults:
            status = 2
            print("\n".join(faults), file=sys.stderr)
        else:
            print(f"{path}: ok: {summary(cfg)}")
    return status
