"""Turn a run into one self-contained HTML page, or compare runs on one page.

    jseg report runs/a                    curves, classes, confusion and pictures of one run: runs/a/report.html
    jseg report result.json               of one file of `jseg val --out`: result.html
    jseg report runs/a runs/b runs/c      compare with the first: comparison.html
    jseg report runs/repeated runs/other  the runs of `jseg train --repeat` count as one group with mean and spread
"""

from __future__ import annotations

from pathlib import Path

EXAMPLE = "jseg report runs/demo"


def add_arguments(parser) -> None:
    """Options of `jseg report`."""
    parser.add_argument("runs", metavar="RUN", nargs="+",
                        help="work_dir of a run (log.jsonl, metrics.json, eval/, config.yaml), folder of repeated runs "
                             "(seed_<n>/), or JSON file of jseg val --out")
    parser.add_argument("--out", metavar="FILE",
                        help="the page to write (default: RUN/report.html, or comparison.html for several); an older "
                             "page there is replaced, another file is not")


def run(args) -> int:
    """Write the page and print its path."""
    from jseg.report.compare import write_comparison
    from jseg.report.groups import is_repeated
    from jseg.report.page import write_report
    if len(args.runs) > 1:
        path = write_comparison(args.runs, args.out or "comparison.html")
    elif is_repeated(args.runs[0]):
        path = write_comparison(args.runs, args.out or Path(args.runs[0]) / "report.html")
    else:
        path = write_report(args.runs[0], args.out)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
