"""List every mistake in config files, without training anything.

The pictures and masks are not looked at: `jseg data check CONFIG` reads them all, `jseg data check CONFIG --quick` as
much as training reads first.
"""

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
    """Print each fault on a line and return 2, or one summary line for each config and return 0; say what was not
    looked at."""
    from jseg.engine.check import check_config, summary  # imports Jittor: not for --help

    status, sound = 0, []
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
            sound.append(path)
    if sound:
        name = sound[0] if len(sound) == 1 else "CONFIG"
        print(f"pictures and masks were not looked at; to do so: jseg data check {name}")
    return status
