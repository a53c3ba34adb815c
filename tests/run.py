"""Run the tests folder by folder, each in a process of its own: `make test`.

From an empty cache one process would load hundreds of compiled operations; folders keep that, and what a failure can
spoil, small.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parent


def parts() -> list[list[str]]:
    """Arguments of pytest for each part: the files of tests/ itself, then every folder below it that holds tests."""
    folders = sorted({p.parent for p in TESTS.rglob("test_*.py")} - {TESTS})
    return [sorted(map(str, TESTS.glob("test_*.py")))] + [sorted(map(str, folder.glob("test_*.py")))
                                                          for folder in folders]


def main() -> int:
    """0 when every part passes; other arguments go to pytest."""
    failed = []
    for files in parts():
        name = pathlib.Path(files[0]).parent.relative_to(TESTS.parent)
        command = [sys.executable, "-m", "pytest", "-q", *sys.argv[1:], *files]
        print(f"--- {name}", flush=True)
        if subprocess.run(command, cwd=TESTS.parent).returncode:  # negative when a signal ended it
            failed.append(str(name))
    print(f"tests: {'FAILED in ' + ', '.join(failed) if failed else 'all parts passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
