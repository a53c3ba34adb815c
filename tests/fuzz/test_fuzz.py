"""Hostile files and a slice of the fuzzers over every reader; the whole is `make fuzz` (tests/fuzz/run.py).

Each runs in a process of its own, which forks for every file: only the readers are loaded there.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

PARTS = {"models": ("pth", "pkl", "safetensors", "py", "yaml"), "pictures": ("png", "jpg", "gif", "tif", "webp", "mp4"),
         "raw data": ("zip", "tar", "mat", "nii")}


def run(script: str, *words: str) -> str:
    done = subprocess.run([sys.executable, str(HERE / script), *words], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines()
                                           if line.startswith("FOUND")) or done.stderr
    return done.stdout


@pytest.mark.parametrize("part", PARTS)
def test_hostile_files_are_refused_in_one_line(part):
    total = int(re.search(r"(\d+) hostile files, 0 findings", run("hostile_run.py", *PARTS[part]))[1])
    assert total >= {"models": 200, "pictures": 150, "raw data": 180}[part]


@pytest.mark.parametrize("part", PARTS)
def test_damaged_files_are_refused_in_one_line(part):
    shown = run("run.py", *PARTS[part], "--cases", "60", "--seconds", "20")
    assert shown.count(" files: ") == len(PARTS[part])


def test_the_harness_notices_what_it_should(tmp_path):
    """A reader that raises, hangs, eats memory, dies or leaves a file: each is a finding."""
    program = f"""
import os, sys, pathlib
sys.path[:0] = [{str(ROOT)!r}, {str(HERE)!r}]
from fuzz_trial import attempt
from jseg.errors import DataError
def grow(path, out): big = bytearray(64 << 20); big[::4096] = b'x' * len(big[::4096])
def spin(path, out):
    while True: pass
def sleep(path, out): import time; time.sleep(60)
def leave(path, out): (out / 'part').write_text('x'); raise DataError('a.png: damaged')
def whole(path, out): raise DataError('a.png: damaged')
def raw(path, out): raise DataError('a.png: \\x1b[2J')
def die(path, out): os.abort()
def fault(path, out): raise KeyError('x')
path = pathlib.Path({str(tmp_path)!r}) / 'a.png'
path.write_bytes(b'x')
for read in (grow, spin, sleep, leave, whole, raw, die, fault):
    outcome = attempt(read, path, cpu_s=1, wall_s=3 if read is sleep else 40, spare=32 << 20)
    print(read.__name__, outcome.kind, outcome.text)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["finding", "finding", "finding", "finding", "refused", "finding",
                                                   "finding", "finding"], done.stdout + done.stderr
    for line, text in zip(lines, ("MB", "of computing", "hangs", "left behind: out/part", "damaged",
                                  "control characters", "SIGABRT", "KeyError: 'x'")):
        assert text in line


def command(*words: str, cwd: pathlib.Path) -> tuple[int, list[str]]:
    """Status of a real command line and its lines on stderr."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, cwd=cwd)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if line.strip()]


@pytest.mark.parametrize("words, name, content", [
    ((str(ROOT / "tools/convert_datasets/hrf.py"), "file.zip", "--quiet"), "file.zip", ("hostile_archives", "zip",
        "deflate bomb")),
    ((str(ROOT / "tools/convert_datasets/labelme.py"), "file.tar", "--quiet"), "file.tar", ("hostile_archives", "tar",
        "member '../up.png'")),
    (("-m", "jseg", "convert", "file.pth", "out.safetensors"), "file.pth", ("hostile_models", "pth",
        "runs a command")),
    (("-m", "jseg", "check", "file.yaml"), "file.yaml", ("hostile_models", "yaml", "laughs")),
    (("-m", "jseg", "val", "--checkpoint", "file.safetensors"), "file.safetensors", ("hostile_models", "safetensors",
                                                                        "length of 2^63")),
])
def test_real_commands_end_with_one_line_and_status_2(words, name, content, tmp_path):
    module, kind, case = content
    made = __import__(module).HOSTILE[kind]()[case]
    if callable(made):
        made(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(made)
    assert kind != "zip" or zipfile.is_zipfile(tmp_path / name)
    status, lines = command(*words, cwd=tmp_path)
    assert status == 2 and len(lines) == 1 and name in lines[0], lines
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
            and not path.name.startswith(".prepare-")}
    assert left == {name}
