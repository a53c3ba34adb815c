"""Compare models of Hugging Face's transformers with jseg: `make parity-weights`.

    python tests/parity/hf.py                          what has no result yet, in a virtual environment made for it
    python tests/parity/hf.py --python PYTHON --only segformer-b0 beit-small --again
    python tests/parity/hf.py --page                   write docs/parity_weights.md from the results alone

PYTHON has torch and transformers 5.x. It builds each job of hf_jobs.py, saves it and runs it (hf_transformers.py);
jseg converts the folder and runs on the same JPEG in a process of its own (hf_jseg.py). Results are kept in
weights.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import weights_page  # noqa: E402
from hf_jobs import JOBS  # noqa: E402
from run import ROOT, WEIGHTS_PACKAGES, referee  # noqa: E402


def run_batch(batch: list[str], python: str) -> dict[str, dict]:
    """Results of a few jobs by name."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jseg-hf-"))
    try:
        (folder / "jobs.json").write_text(json.dumps([JOBS[name] for name in batch]))
        for command in ([python, HERE / "hf_transformers.py"], [sys.executable, HERE / "hf_jseg.py"]):
            done = subprocess.run([*map(str, command), str(folder)], cwd=ROOT, text=True, capture_output=True,
                                  timeout=3600)
            ended = f"{command[1].name} ended: {' '.join(done.stderr.strip().splitlines()[-3:])[-300:]}"
        paths = {name: folder / name / "result.json" for name in batch}
        return {name: json.loads(path.read_text()) if path.exists() else {"failed": ended}
                for name, path in paths.items()}
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Run what is asked for; 0 when all of it agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="a Python that has torch and transformers 5.x")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=JOBS, default=list(JOBS), help="jobs")
    parser.add_argument("--again", action="store_true", help="run what has a result already")
    parser.add_argument("--batch", type=int, default=4, help="models per process (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="write the page from the kept results")
    args = parser.parse_args()
    rows = weights_page.load()
    if args.page:
        weights_page.save(rows)
        return 0
    python = args.python or referee(ROOT / ".venv-parity-weights", WEIGHTS_PACKAGES)
    todo = [name for name in args.only if args.again or f"transformers/{name}" not in rows]
    for start in range(0, len(todo), args.batch):
        for name, row in run_batch(todo[start:start + args.batch], python).items():
            key = f"transformers/{name}"
            rows[key] = {"source": "transformers", "model": JOBS[name]["model"], **row,
                         "date": datetime.date.today().isoformat()}
            print(f"parity-weights: {key}: {'; '.join(weights_page.failures(rows[key])) or 'agrees'}", flush=True)
        weights_page.save({**weights_page.load(), **{k: v for k, v in rows.items() if k.startswith("transformers/")}})
    return 1 if any(weights_page.failures(rows[f"transformers/{name}"]) for name in args.only) else 0


if __name__ == "__main__":
    sys.exit(main())
