"""Try jseg with many Pythons, NumPys and OpenCVs:
`make matrix`, or `python3 tests/matrix.py --python 3.13 --deps newest`.

Each Python has one virtual environment and one Jittor cache, with a core for each major version of NumPy, which takes
minutes to build. For each cell the script installs the cell's packages there, runs the tests, and writes what came of
it, with the date, into docs/matrix.md; rows of other systems, compilers and cells stay. Interpreters are found on the
path (python3.9 to python3.14) and among pyenv's. --fresh makes environments and caches anew. Needs nothing but Python
itself. `.venv/bin/python tests/matrix.py --here` tries what is installed beside that interpreter, with its own cache.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "matrix.md"
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
JITTOR = "jittor==1.3.11.0"
COMMON = ["onednn-devel-cpu-gomp==2021.2.0", "astunparse", "pytest>=8,<10", "pyflakes>=3.2,<4"]
EXTRAS = ["onnx>=1.16,<2", "onnxruntime>=1.18,<2", "flask>=3,<4", "waitress>=3.0.1,<4"]
# Both ends of every range in setup.py; NumPy 1 has no wheels for Python 3.13, and OpenCV below 4.10 none for NumPy 2.
DEPS = {
    "lowest": ["numpy==1.26.4", "opencv-python-headless==4.9.0.80", "Pillow==10.4.0", "PyYAML==6.0.1",
               "safetensors==0.4.3", "tqdm==4.66.0", "onnx==1.16.0", "onnxruntime==1.18.0", "flask==3.0.0",
               "waitress==3.0.1"],
    "numpy1": ["numpy==1.26.4", "opencv-python-headless>=4.9,<4.12", "Pillow<14", "PyYAML<7",
               "safetensors<0.9", "tqdm<5", *EXTRAS],
    "numpy2": ["numpy>=2,<2.3", "opencv-python-headless>=4.10.0.84,<5", "Pillow<14", "PyYAML<7",
               "safetensors<0.9", "tqdm<5", *EXTRAS],
    "newest": ["numpy>=2,<3", "opencv-python-headless<5", "Pillow<14", "PyYAML<7", "safetensors<0.9", "tqdm<5",
               *EXTRAS],
}
INSTALLED = "installed"
CORE = ["tests/data/test_io.py", "tests/data/test_picture_faults.py", "tests/data/test_transforms.py",
        "tests/data/test_datasets.py", "tests/data/test_render.py", "tests/test_config.py",
        "tests/test_runtime_numpy.py", "tests/models/test_segnext_parity.py", "tests/engine/test_model_file.py",
        "tests/engine/test_predict.py"]
HEAD = ("Python", "packages", "NumPy", "OpenCV", "Pillow", "system, compiler", "tests", "result", "date")


def main() -> int:
    """Run the chosen cells and write the page; 1 when a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", metavar="3.X",
                        help="a Python to try; may be given many times (default: all)")
    parser.add_argument("--deps", action="append", choices=list(DEPS),
                        help="which end of the ranges; may be given many times (default: all)")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build" / "matrix",
                        help="where environments and caches go")
    parser.add_argument("--here", action="store_true",
                        help="one row: the interpreter that runs this script, what is installed there, its own cache")
    parser.add_argument("--core", action="store_true",
                        help="run the ten files whose outcome hangs most on versions: " + " ".join(CORE))
    parser.add_argument("--fresh", action="store_true", help="make environments and caches anew")
    parser.add_argument("tests", nargs="*", help="arguments for pytest (default: the whole of `make test`)")
    args = parser.parse_args()
    failed, args.renewed = False, set()
    cells = ([("%d.%d" % sys.version_info[:2], INSTALLED)] if args.here else
             [(version, deps) for version in args.python or PYTHONS for deps in args.deps or DEPS])
    for version, deps in cells:
        row = run_cell(version, deps, args)
        print(" | ".join(row), flush=True)
        failed |= row[7].startswith("failed")
        write_rows([old for old in read_rows()
                    if (".".join(old[0].split(".")[:2]), old[1], *old[5:7]) != (version, deps, *row[5:7])] + [row])
    return int(failed)


def find_python(version: str) -> str | None:
    """An interpreter of this version that works: on the path, or pyenv's."""
    pyenv = sorted((pathlib.Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for candidate in [shutil.which(f"python{version}"), *map(str, pyenv)]:
        probe = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
        if candidate and subprocess.run([candidate, "-c", probe], capture_output=True,
                                        text=True).stdout.strip() == version:
            return candidate
    return None


def run_cell(version: str, deps: str, args: argparse.Namespace) -> tuple[str, ...]:
    """Make one environment and run the tests in it; the row for the table."""
    tests = [*CORE * args.core, *args.tests]
    here = (f"{system_name()}, {compiler_name()}",
            " ".join(["`--core`"] * args.core + args.tests) or "`make test`")
    today, environment = datetime.date.today().isoformat(), {**os.environ}
    if deps == INSTALLED:
        interpreter, cell = sys.executable, args.folder.resolve() / INSTALLED
        cell.mkdir(parents=True, exist_ok=True)
    else:
        python, cell = find_python(version), args.folder.resolve() / version
        if python is None:
            return (version, deps, "-", "-", "-", *here, "not tried: no such interpreter here", today)
        if args.fresh and cell not in args.renewed:
            shutil.rmtree(cell, ignore_errors=True)
            args.renewed.add(cell)
        fault = make_environment(python, cell / "venv", DEPS[deps])
        if fault:
            return (version, deps, "-", "-", "-", *here, f"not tried: {fault}", today)
        interpreter = str((cell / "venv").resolve() / "bin" / "python")
        (cell / "home").resolve().mkdir(exist_ok=True)
        environment["JITTOR_HOME"] = str((cell / "home").resolve())
    command = [interpreter, "-m", "pytest", "-q", *tests] if tests else [
        interpreter, str(ROOT / "tests" / "run.py")]
    with open(cell / "log.txt", "w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
    found = subprocess.run([interpreter, "-c",
                            "import platform, importlib.metadata as m\nprint(platform.python_version(), "
                            "m.version('numpy'), m.version('opencv-python-headless'), m.version('Pillow'))"],
                           capture_output=True, text=True).stdout.split()
    return (found[0], deps, *found[1:], *here, outcome((cell / "log.txt").read_text(errors="replace"), done.returncode),
            today)


def make_environment(python: str, venv: pathlib.Path, packages: list[str]) -> str:
    """A virtual environment with these packages and this checkout on its path; "" or why it cannot be made."""
    wanted = "\n".join([JITTOR, *COMMON, *packages])
    if (venv / "made").exists() and (venv / "made").read_text() == wanted:
        return ""
    (venv / "made").unlink(missing_ok=True)
    if not (venv / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--upgrade", "--disable-pip-version-check",
           "--only-binary", ":all:"]
    done = subprocess.run([*pip, *COMMON, *packages], capture_output=True, text=True)
    if done.returncode == 0:  # Jittor itself is a source package, and its metadata forbid NumPy 2
        done = subprocess.run([*pip[:-2], "--no-deps", JITTOR], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        return "no such packages for this Python: " + (lines[-1].removeprefix("ERROR: ")[:120]
                                                       if lines else "pip failed")
    for folder in (venv / "lib").glob("python*/site-packages"):
        (folder / "checkout.pth").write_text(f"{ROOT}\n")
    (venv / "made").write_text(wanted)
    return ""


def outcome(log: str, status: int) -> str:
    """What pytest's last lines say, summed over the parts of a run."""
    counts = {word: sum(map(int, re.findall(rf"(\d+) {word}", "\n".join(re.findall(r"^.* in [\d.]+s.*$", log, re.M)))))
              for word in
              ("passed", "failed", "error")}
    failed = re.findall(r"^(?:\S+: )?(?:FAILED|ERROR) (\S+)", log, re.M)
    if status == 0:
        return f"passed ({counts['passed']})"
    names = ", ".join(sorted({name.split("::")[-1].partition("[")[0] for name in failed})[:6])
    return f"failed: {counts['failed'] + counts['error']} of {sum(counts.values())} ({names or f'status {status}'})"


def system_name() -> str:
    """The distribution's own name, as `Debian GNU/Linux 12`, and its C library."""
    try:
        words = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines()
                     if "=" in line)
        name = f"{words.get('NAME', 'Linux')} {words.get('VERSION_ID', '')}".replace('"', "").strip()
    except OSError:
        name = platform.system()
    return f"{name}, {' '.join(platform.libc_ver())}"


def compiler_name() -> str:
    """The compiler Jittor will use, with its version."""
    compiler = os.environ.get("cc_path") or "g++"
    try:
        version = subprocess.run([compiler, "-dumpfullversion", "-dumpversion"], capture_output=True,
                                 text=True).stdout.strip()
    except OSError:
        return "no compiler"
    return f"{os.path.basename(compiler).split('-')[0]} {version}"


def read_rows() -> list[tuple[str, ...]]:
    """The rows of the page as it is."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    cells = [tuple(cell.strip() for cell in line.strip().strip("|").split(" | "))
             for line in lines if line.startswith("| ")]
    return [row for row in cells if len(row) == len(HEAD) and row[0] not in (HEAD[0], "---")]


def write_rows(rows: list[tuple[str, ...]]) -> None:
    """Put the rows, sorted, between the page's head and what follows its table."""
    text = (PAGE.read_text(encoding="utf-8") if PAGE.exists()
            else "# What was tried with which versions\n\n<!-- matrix -->\n<!-- end -->\n")
    rows = sorted(rows, key=lambda row: ([int(n) for n in row[0].split(".")], row[5], row[1], row[6]))
    table = "\n".join([f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD),
                       *(f"| {' | '.join(row)} |" for row in rows)])
    before, _, rest = text.partition("<!-- matrix -->")
    draft = PAGE.with_suffix(".tmp")
    draft.write_text(f"{before}<!-- matrix -->\n{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}",
                     encoding="utf-8")
    os.replace(draft, PAGE)


if __name__ == "__main__":
    sys.exit(main())
