"""The `jseg` command: each file in this folder is one command, found by its name.

A command module has a docstring (its first line is the summary in `jseg --help`), `EXAMPLE` (one real command line that
ends its help), `add_arguments(parser)` and `run(args) -> int`. Only the module of the command that runs is imported.
Exit status: 0 done, 2 a fault the user can cure (its text is printed, no traceback), 128 + number ended by a signal:
130 Ctrl-C, 143 SIGTERM, 129 SIGHUP (see `jseg.runtime_signals`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys
import time
from typing import Sequence

from jseg import runtime_signals
from jseg.errors import JsegError
from jseg.registry import nearest
from jseg.text import printable

__all__ = ["main", "commands", "build_parser", "add_config_arguments"]


def commands() -> dict[str, str]:
    """Map each command to its one-line summary, read from the files without importing them."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("[a-z]*.py")):
        with open(path, encoding="utf-8") as file:
            found[path.stem.replace("_", "-")] = file.readline().strip().strip('"')  # of the docstring
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Args:
        argv: the words after `jseg`; default: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with runtime_signals.raising():
            status = _dispatch(words)
        if runtime_signals.is_command() and runtime_signals.asked() is not None:
            runtime_signals.leave(status)
        return status
    except BaseException as error:
        number = runtime_signals.asked(error)
        if number is None:
            return _report_error(error)
    return runtime_signals.end(number)


def _report_error(error: BaseException) -> int:
    """Say what went wrong; returns the exit status. What is no fault of the user's is raised again."""
    if isinstance(error, SystemExit):  # argparse: 0 after --help, 2 after a usage message
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, JsegError):
        if "OMPI_COMM_WORLD_RANK" in os.environ and os.environ["OMPI_COMM_WORLD_RANK"] != "0":
            # Ranks mostly fail with the same error. Rank 0 prints it and ends the job before the others print it too.
            time.sleep(3.5)
        print(printable(error, keep="\n\t"), file=sys.stderr)  # it may quote a file
        return 2
    if isinstance(error, BrokenPipeError):  # the reader of our output left, as in `jseg check ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    raise error


def build_parser(command: str) -> argparse.ArgumentParser:
    """Import one command's module and return its argument parser; `run` is set as a default."""
    module = importlib.import_module(f"jseg.cli.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"jseg {command}", description=module.__doc__,
                                     epilog=f"example: {module.EXAMPLE}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def add_config_arguments(parser: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
    """Add the positional `config` and the repeatable `--set key.sub.key=value` (`args.overrides`)."""
    parser.add_argument("config", nargs=nargs, metavar="CONFIG",
                        help="a config file (.yaml), or the name of a config that comes with jseg")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="override one value, for example --set optimizer.lr=6e-5; may be given many times")


def _dispatch(words: list[str]) -> int:
    known = commands()
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(known))
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        import jseg
        print(f"jseg {jseg.__version__}")
        return 0
    if words[0] not in known:
        print(f"jseg: unknown command {words[0]!r}{nearest(words[0], known)} (commands: {', '.join(known)})",
              file=sys.stderr)
        return 2
    args = build_parser(words[0]).parse_args(words[1:])
    return int(args.run(args) or 0)


def _overview(known: dict[str, str]) -> str:
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in known.items()]
    return "\n".join(["usage: jseg COMMAND ...", "", "commands:", *lines, "",
                      "`jseg COMMAND --help` shows its options and an example."])
