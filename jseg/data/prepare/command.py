"""The command line that all converters share: `SOURCE ... --out FOLDER`, and one clear line for every fault.

The last line is "N done, M left out". Exit status: 0 done, 2 a fault the user can cure (printed without traceback) or
something left out that `--partial` does not accept, 130 interrupted, 143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import warnings
from typing import Callable, Sequence

from jseg import runtime_signals
from jseg.data.prepare.manifest import Report, Settings
from jseg.data.prepare.members import MOST_BYTES
from jseg.data.prepare.parallel import disk_full
from jseg.errors import JsegError
from jseg.text import printable

__all__ = ["run"]


def run(convert: Callable[..., Report], argv: Sequence[str] | None = None, *, out: str,
        add_arguments: Callable[[argparse.ArgumentParser], object] | None = None) -> int:
    """Run one converter's command line and return its exit status.

    Args:
        convert: `convert(src, out, settings, **own options)`; its module's docstring is the help text.
        argv: the words of the command; default: those of this process.
        out: default output folder, the one the base configs read.
        add_arguments: adds the converter's own options, whose names are keywords of `convert`.
    """
    warnings.filterwarnings("ignore", module="PIL")  # about damage that an error is going to name
    try:
        with runtime_signals.raising():
            args = vars(_parser(convert, out, add_arguments).parse_args(argv))
            settings = Settings(args.pop("workers"), args.pop("overwrite"), args.pop("partial"), args.pop("link"),
                                not args.pop("quiet"), args.pop("max_file_mb"))
            report = convert(args.pop("sources"), args.pop("out"), settings, **args)
            print(printable(report, keep="\n"))
            if report.lost and not settings.partial:
                print(f"{report.lost} left out, see above: mend the source and run the same command again, or add "
                      "--partial if this is what you want", file=sys.stderr)
                return 2
            return 0
    except BaseException as error:
        number = runtime_signals.asked(error)
        if number is None:
            return _status_of(error)
    print("what is finished is kept: run the same command again to go on", file=sys.stderr)
    return runtime_signals.end(number)


def _status_of(error: BaseException) -> int:
    """Say what went wrong; returns the exit status. What is no fault of the user's is raised again."""
    if isinstance(error, SystemExit):  # argparse: 0 after --help, 2 after a usage message
        return error.code if isinstance(error.code, int) else 2
    if not isinstance(error, (JsegError, OSError)):
        raise error
    text = ("no space left on the target: free some, then run the same command again (what is finished is kept)"
            if disk_full(error) else error)
    print(printable(str(text).replace("\n", " ")), file=sys.stderr)
    return 2


def _parser(convert: Callable, out: str, add_arguments: Callable | None) -> argparse.ArgumentParser:
    module = inspect.getmodule(convert)
    script = os.path.basename(inspect.getsourcefile(convert) or "")
    parser = argparse.ArgumentParser(
        prog=script, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: python tools/convert_datasets/{script} ~/Downloads --out {out}")
    parser.add_argument("sources", nargs="+", metavar="SOURCE",
                        help="the download: a folder, or archives (.zip, .tar, .tgz); never changed")
    parser.add_argument("-o", "--out", default=out, metavar="FOLDER", help=f"where to write (default: {out})")
    parser.add_argument("--workers", type=_count, default=0, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--overwrite", action="store_true",
                        help="do everything again; default: skip what a former run finished")
    parser.add_argument("--partial", action="store_true", help="accept other numbers of files than the published "
                                                               "ones, and what is left out")
    parser.add_argument("--link", action="store_true",
                        help="link unchanged pictures to a source folder instead of copying them")
    parser.add_argument("--max-file-mb", type=_count, default=MOST_BYTES >> 20, metavar="N",
                        help="largest file of the source, decompressed (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    if add_arguments is not None:
        add_arguments(parser)
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value
