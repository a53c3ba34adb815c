"""Run the tests folder by folder, each in a process of its own: `make test`.

Jittor 1.3.11 compiles the operations of a plain backward pass in several threads that change one graph without a lock (`ConvTuner`,
`VarRelayManager`), and now and then dies of a segmentation fault on that way. So a part that is ended by a signal is run once more, with
one compiling thread, and that is said; a test that fails, fails.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parent


def parts() -> list[list[str]]:
    """Arguments of pytest for each part: the files of tests/ itself, then every folder below it that holds tests."""
    folders = sorted({p.parent for p in TESTS.rglob("test_*.py")} - {TESTS})
    return [sorted(map(str, TESTS.glob("test_*.py")))] + [sorted(map(str, folder.glob("test_*.py"))) for folder in folders]


def main() -> int:
    """0 when every part passes; other arguments go to pytest."""
    failed = []
    for files in parts():
        name = pathlib.Path(files[0]).parent.relative_to(TESTS.parent)
        command = [sys.executable, "-m", "pytest", "-q", *sys.argv[1:], *files]
        print(f"--- {name}", flush=True)
        status = subprocess.run(command, cwd=TESTS.parent).returncode
        if status < 0 or status >= 128:
            print(f"--- {name}: ended by signal {-status if status < 0 else status - 128}; once more, compiling in one thread", flush=True)
            status = subprocess.run(command, cwd=TESTS.parent, env={**os.environ, "use_parallel_op_compiler": "1"}).returncode
        if status:
            failed.append(str(name))
    print(f"tests: {'FAILED in ' + ', '.join(failed) if failed else 'all parts passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
