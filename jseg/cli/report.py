"""Turn a run folder into one self-contained HTML page."""

from __future__ import annotations

EXAMPLE = "jseg report runs/demo"


def add_arguments(parser) -> None:
    """Options of `jseg report`."""
    parser.add_argument("run_dir", metavar="RUN", help="work_dir of a run: log.jsonl, metrics.json, eval/, config.yaml")
    parser.add_argument("--out", metavar="FILE", help="the page to write (default: RUN/report.html)")


def run(args) -> int:
    """Write the page and print its path."""
    from jseg.report.page import write_report
    path = write_report(args.run_dir, args.out)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
