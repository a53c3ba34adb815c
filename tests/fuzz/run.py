"""Fuzz the readers: damaged real files, reproducible from a number. `make fuzz`.

    python tests/fuzz/run.py                              2,000 files for each reader, at most 5 minutes each
    python tests/fuzz/run.py png zip --cases 500          two readers
    python tests/fuzz/run.py png --seed 3 --only 1742     one file again; it is written to runs/fuzz

Status 1 when a reader raised anything but jseg's own errors, ended the process, took too long or too much memory, or
left a file behind.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import shutil
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import cv2

from fuzz_mutations import mutated
from fuzz_readers import READERS
from fuzz_samples import samples
from fuzz_trial import SPARE, Outcome, attempt

KEPT = HERE.parents[1] / "runs" / "fuzz"


def fuzz(kind: str, cases: range, seed: int, limit_s: float, keep: bool) -> tuple[int, list[str]]:
    """Try damaged files on one reader; return how many, and the lines of what was found."""
    files, found, outcomes = samples(kind), [], []
    end = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory(prefix="fuzz") as place:
        for case in cases:
            if time.monotonic() > end:
                break
            suffix, data = mutated(kind, files, random.Random(f"{kind} {seed} {case}"))
            folder = pathlib.Path(place) / "case"
            folder.mkdir()
            path = folder / f"file.{suffix}"
            path.write_bytes(data)
            outcome = attempt(READERS[kind].read, path, spare=SPARE + READERS[kind].need(path))
            outcomes.append(outcome)
            if outcome.kind == "finding" or keep:
                KEPT.mkdir(parents=True, exist_ok=True)
                kept = KEPT / f"{kind}-{seed}-{case}.{suffix}"
                shutil.copyfile(path, kept)
            if outcome.kind == "finding":
                found.append(f"FOUND {kind} --seed {seed} --only {case}: {outcome.text} ({kept})")
                print(found[-1], flush=True)
            shutil.rmtree(folder)
    print(row(kind, outcomes), flush=True)
    return len(outcomes), found


def row(kind: str, outcomes: list[Outcome]) -> str:
    """One line of the table: reader, files, read, refused, found, worst seconds, worst MB."""
    count = {name: sum(outcome.kind == name for outcome in outcomes) for name in ("read", "refused", "finding")}
    worst = max((o.seconds for o in outcomes), default=0), max((o.peak_mb for o in outcomes), default=0)
    return (f"{kind:12} {len(outcomes):5} files: {count['read']:5} read, {count['refused']:5} refused, "
            f"{count['finding']:3} findings; "
            f"worst {worst[0]:5.2f} s, {worst[1]:5.0f} MB")


def main(argv: list[str] | None = None) -> int:
    """0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"default: all of {', '.join(READERS)}")
    parser.add_argument("--cases", type=int, default=2000, help="files per reader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another number gives other files (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="CASE", help="one file, kept in runs/fuzz")
    parser.add_argument("--seconds", type=float, default=300, help="per reader, at most (default: %(default)s)")
    args = parser.parse_args(argv)
    unknown = [kind for kind in args.readers if kind not in READERS]
    if unknown:
        parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(READERS)}")
    cv2.setNumThreads(1)
    cases = range(args.cases) if args.only is None else range(args.only, args.only + 1)
    found = [line for kind in args.readers or READERS for line in fuzz(kind, cases, args.seed, args.seconds,
                                                                       args.only is not None)[1]]
    print(f"{len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
