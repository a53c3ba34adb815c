"""Give every reader files that somebody made to harm it, and print a table. Status 1 when one of them did.

    python tests/fuzz/hostile_run.py                 all readers
    python tests/fuzz/hostile_run.py zip tar -v      two readers, with the message of every file

Each file must be refused with one readable message (or read, where it is odd but whole), within 10 seconds of
computing and 1 GB, and nothing may be left behind.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent)]

import cv2

import hostile_archives
import hostile_models
import hostile_pictures
from fuzz_readers import READERS
from fuzz_trial import SPARE, Outcome, attempt
from run import row

PARTS = (hostile_models, hostile_pictures, hostile_archives)
HOSTILE = {kind: make for part in PARTS for kind, make in part.HOSTILE.items()}
READABLE = {kind: names for part in PARTS for kind, names in part.READABLE.items()}


def odd_files() -> dict[str, Any]:
    """What may lie under a file's name without being a file."""
    return {"named pipe": os.mkfifo, "folder": os.mkdir, "link to itself": lambda path: os.symlink(path.name, path),
            "link to nothing": lambda path: os.symlink("nowhere", path),
            "link to endless zeros": lambda path: os.symlink("/dev/zero", path)}


def trial(kind: str, made: Any, folder: pathlib.Path) -> Outcome:
    """Make one file in an empty folder and try it."""
    suffix, made = made if isinstance(made, tuple) else (READERS[kind].suffixes[0], made)
    folder.mkdir()
    path = folder / f"file.{suffix}"
    if callable(made):
        made(path)
    else:
        path.write_bytes(made)
    outcome = attempt(READERS[kind].read, path, spare=SPARE + READERS[kind].need(path))
    shutil.rmtree(folder)
    return outcome


def main(argv: list[str] | None = None) -> int:
    """0 when every file was refused or honestly read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"default: all of {', '.join(READERS)}")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every outcome")
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    total, found = 0, []
    with tempfile.TemporaryDirectory(prefix="hostile") as place:
        for kind in args.readers or READERS:
            outcomes = []
            for name, made in {**HOSTILE[kind](), **odd_files()}.items():
                outcome = trial(kind, made, pathlib.Path(place) / "case")
                if outcome.kind == "read" and name not in READABLE.get(kind, ()):
                    outcome = outcome._replace(kind="finding", text="was read as if it were whole")
                outcomes.append(outcome)
                if outcome.kind == "finding":
                    found.append(f"FOUND {kind}, {name}: {outcome.text}")
                    print(found[-1], flush=True)
                elif args.verbose:
                    print(f"  {outcome.kind} in {outcome.seconds:.2f} s, {outcome.peak_mb:.0f} MB, {kind}, {name}: "
                          f"{outcome.text}")
            print(row(kind, outcomes), flush=True)
            total += len(outcomes)
    print(f"{total} hostile files, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
