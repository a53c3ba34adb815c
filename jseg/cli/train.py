"""Train a model from a config, or go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path

from jseg.cli import add_config_arguments
from jseg.config import load_config

EXAMPLE = ("jseg train configs/segnext/segnext_tiny_camvid-240x320_cpu.yaml --work-dir runs/camvid --set "
           "optimizer.lr=6e-5")


def add_arguments(parser) -> None:
    """Options of `jseg train`."""
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true",
                        help="go on from the newest saved state in the work dir (from the beginning "
                             "when there is none)")
    parser.add_argument("--work-dir", metavar="DIR",
                        help="folder of the run (default: work_dir of the config, else runs/<config name>)")


def run(args) -> int:
    """Train; 0 when the run is complete, 130 after Ctrl-C, 143 after SIGTERM (both with the state saved)."""
    config = load_config(args.config, args.overrides)
    work_dir = args.work_dir or config.get("work_dir") or str(Path("runs") / Path(args.config).stem)
    from jseg.engine.distributed import as_rank  # imports Jittor: not for --help
    return as_rank(lambda: _train(config, args.resume, work_dir))


def _train(config: dict, resume: bool, work_dir: str) -> int:
    from jseg.convert.start import starting_state
    from jseg.engine.train import train
    result = train(config, resume=resume, work_dir=work_dir, read_start=starting_state)
    return 0 if result["signal"] is None else 128 + result["signal"]
