"""Run the tests folder by folder, each in a process of its own, as many at a time as `--jobs` says: `make test`.

From an empty cache one process would load hundreds of compiled operations; folders keep that, and what a failure can
spoil, small. Most of a part is one thread's work (Python, a compiler), so two parts share two cores well.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

LINES_OF_FAILURES = 100
TESTS = pathlib.Path(__file__).resolve().parent
# the longest first; the parts after it need no Jittor and keep the second process busy while Jittor's core is compiled
FIRST = ("tests", "tests/data", "tests/data/prepare", "tests/convert", "tests/ops", "tests/engine", "tests/models")


def parts() -> dict[str, list[str]]:
    """Name and files of each part (tests/ itself, every folder below that holds tests) in the order of their start."""
    folders = sorted({p.parent for p in TESTS.rglob("test_*.py")})
    found = {str(folder.relative_to(TESTS.parent)): sorted(map(str, folder.glob("test_*.py"))) for folder in folders}
    return {name: found[name] for name in sorted(found, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST))}


def run_part(name: str, files: list[str], options: list[str], threads: int, lock: threading.Lock) -> list[str] | None:
    """Run pytest on `files` and print its lines, each behind the part's name.

    Returns:
        None when it passes, else what it said of the failures: the tests' names and the errors' own lines.
    """
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, "-m", "pytest", "-q", *options, *files], cwd=TESTS.parent, env=env,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = []
    for line in process.stdout:
        text = line.decode(errors="replace").rstrip()
        if re.match(r"(E  |FAILED |ERROR |_{3,} )", text):
            said.append(text)
        with lock:
            print(f"{name}: {text}", flush=True)
    status = process.wait()  # negative when a signal ended it
    return None if status == 0 else [*said[:LINES_OF_FAILURES], f"exit status {status}"]


def main() -> int:
    """0 when every part passes; other arguments go to pytest."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=min(2, cores), help="parts at a time (default: 2, on one core 1)")
    args, options = parser.parse_known_args()
    todo, lock = parts(), threading.Lock()
    with ThreadPoolExecutor(args.jobs) as pool:
        ends = {name: pool.submit(run_part, name, files, options, max(1, cores // args.jobs), lock)
                for name, files in todo.items()}
        failed = {name: end.result() for name, end in ends.items() if end.result() is not None}
    for name, said in failed.items():  # once more at the end, where a log's tail shows it
        print("\n".join(f"{name}: {line}" for line in said))
    print(f"tests: {'FAILED in ' + ', '.join(failed) if failed else 'all parts passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
