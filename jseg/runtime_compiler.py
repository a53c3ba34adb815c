"""Make Jittor compile an operation in a third of the time:
one call of g++, with the headers of all operations compiled beforehand.

Jittor 1.3.11 starts Python (`utils/asm_tuner.py`) for every operation, which runs g++ twice, with debug information;
nearly all of that time goes into the same headers. `asm_tuner` only does something where a source says `@begin`, which
needs an option that is off. In the place of Python (`jt.flags.python_path`) jseg puts a shell script: it hands such
sources to Jittor's own tool and compiles the others at once, with a precompiled header that lies in Jittor's cache, one
for each compiler and set of flags. g++ takes that header only where everything fits and otherwise reads a file without
a line of code; where the call fails, it is repeated without the header. So neither results nor flags of the user
change, and the only trace is speed.

`JSEG_PRECOMPILED=0` in the environment leaves Jittor's own way.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import Callable

__all__ = ["FOLDER", "describe", "prepare"]

FOLDER = "jseg_headers"  # in Jittor's cache folder
STANDARD = ("assert.h", "cmath", "algorithm", "cstdint", "limits", "random", "stdexcept", "string")
# Headers that the sources of operations include, under jittor/src; those this version lacks are left out.
JITTOR = ("var.h", "fused_op.h", "executor.h", "init.h", "misc/cuda_flags.h", "misc/cpu_math.h", "ops/op_register.h",
          *(f"ops/{name}_op.h" for name in ("array", "binary", "broadcast_to", "code", "getitem", "random",
                                            "reduce", "reindex", "reindex_reduce", "setitem", "ternary",
                                            "transpose", "unary")))
SCRIPT = """#!/bin/sh
# Written by jseg: Jittor calls this as its Python. What compiles one operation becomes a single call of the compiler.
python={python}
header={header}
case "$1" in */asm_tuner.py) ;; *) exec "$python" "$@" ;; esac
if grep -q '@begin' "$3"; then exec "$python" "$@"; fi
compiler="${{2#--cc_path=}}"
shift 2
if [ -f "$header.gch" ] && grep -q '^#define JIT 1' "$1"; then
    "$compiler" -include "$header" "$@" 2>/dev/null && exit 0
fi
exec "$compiler" "$@"
"""


def prepare(jt, note: Callable[..., None], *, quiet: bool = False) -> None:
    """Change how Jittor compiles operations; after its import, before its first operation.
    Never raises for a header it cannot make.

    Args:
        jt: the module jittor.
        note: called with (topic, text, level, cure) for what was found.
        quiet: do not announce the wait of some seconds, the first time.
    """
    if os.environ.get("JSEG_PRECOMPILED") == "0":
        note(*describe([]))
        return
    if not sys.platform.startswith("linux") or jt.flags.cc_type != "g++":
        note("operations", f"compiled in Jittor's own way: {jt.flags.cc_type} on {sys.platform} is not g++ on Linux")
        return
    text = _header_text(pathlib.Path(jt.flags.jittor_path) / "src")
    command = [jt.flags.cc_path, *_compile_flags(jt.flags.cc_flags)]
    key = hashlib.sha256("\0".join([*command, jt.flags.python_path, text]).encode()).hexdigest()[:16]
    folder = pathlib.Path(jt.flags.cache_path) / FOLDER / key
    script, header = folder / "compile.sh", folder / "operations.h"
    try:
        if not _fresh(folder):
            import fcntl
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _fresh(folder):
                    if not quiet:
                        print("jseg: precompiling the headers of Jittor's operations, once per machine ...",
                              file=sys.stderr, flush=True)
                    _write(header,
                           "// Stands for the precompiled header beside it where the compiler cannot take that.\n")
                    _write(script, SCRIPT.format(python=shlex.quote(jt.flags.python_path),
                                                 header=shlex.quote(str(header))))
                    _build(folder, command, text)
    except OSError as error:  # a cache that cannot be written; what is compiled already stays usable
        note("operations", f"headers cannot be precompiled: {error}", "warning",
             f"make {folder.parent.parent} writable")
    if script.is_file():
        jt.flags.python_path = f'/bin/sh "{script}"'
    note(*describe([folder.parent]))


def describe(folders: list[pathlib.Path]) -> tuple[str, str, str, str]:
    """What a finding says about these folders, each a cache's `FOLDER`: (topic, text, level, cure)."""
    if os.environ.get("JSEG_PRECOMPILED") == "0":
        return "operations", "compiled in Jittor's own way, because JSEG_PRECOMPILED=0 is set", "ok", ""
    for failed in (path for folder in folders for path in sorted(folder.glob("*/failed.txt"))):
        words = " ".join(failed.read_text(errors="replace").split())[:300]
        return ("operations", f"headers cannot be precompiled, so each operation compiles some 3 times slower: {words}",
                "warning", f"rm -r {failed.parent}   (the next import of Jittor tries again)")
    if any(path for folder in folders for path in folder.glob("*/stamp.json")):
        return "operations", "compiled with precompiled headers", "ok", ""
    return "operations", "headers not precompiled yet: the next import of Jittor does it, in seconds", "ok", ""


def _header_text(source: pathlib.Path) -> str:
    """The source of the precompiled header. Every generated source begins by defining JIT,
    which changes what op.h declares.
    """
    lines = ["#define JIT 1"] + [f"#include <{name}>" for name in STANDARD]
    return "\n".join(lines + [f'#include "{name}"' for name in JITTOR if (source / name).is_file()]) + "\n"


def _compile_flags(flags: str) -> list[str]:
    """Jittor's flags without those for the linker: a header is used only under the flags it was made with."""
    return [word for word in shlex.split(flags) if word != "-shared" and not word.startswith(("-l", "-L", "-Wl,"))]


def _fresh(folder: pathlib.Path) -> bool:
    """Whether the header is there, and none of the files it was made from has changed; also true after a failure."""
    if (folder / "failed.txt").is_file():
        return (folder / "compile.sh").is_file()
    try:
        stamp = json.loads((folder / "stamp.json").read_text())
        return (folder / "operations.h.gch").is_file() and all(_stat(name) == value for name, value in stamp.items())
    except (OSError, ValueError):
        return False


def _stat(name: str) -> list[int]:
    found = os.stat(name)
    return [found.st_size, found.st_mtime_ns]


def _build(folder: pathlib.Path, command: list[str], text: str) -> None:
    """Make the header, see that the compiler really takes it,
    and only then put it in place, with what it was made from.
    """
    for name in ("operations.h.gch", "stamp.json"):
        (folder / name).unlink(missing_ok=True)
    for left in folder.glob("tmp*"):  # of a process that was killed: only the one that holds the lock is here
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = pathlib.Path(name)
        (work / "all.h").write_text(text)
        (work / "operations.h").write_text("// empty\n")
        (work / "probe.cc").write_text("#define JIT 1\nint probe;\n")
        done = subprocess.run([*command, "-x", "c++-header", str(work / "all.h"), "-o",
                               str(work / "operations.h.gch"), "-MD", "-MF",
                               str(work / "dependencies")], capture_output=True, text=True)
        if done.returncode == 0:
            done = subprocess.run([*command, "-include", str(work / "operations.h"), "-H", "-Winvalid-pch",
                                   "-fsyntax-only", str(work / "probe.cc")], capture_output=True, text=True)
            if done.returncode == 0 and any(line.startswith("! ") for line in done.stderr.splitlines()):
                used = (work / "dependencies").read_text().replace("\\\n", " ").split(":", 1)[1]
                files = [file for file in shlex.split(used) if not file.startswith(str(work))]
                os.replace(work / "operations.h.gch", folder / "operations.h.gch")
                _write(folder / "stamp.json", json.dumps({file: _stat(file) for file in [*files, command[0]]}))
                return
        if done.returncode < 0 or "signal terminated program" in done.stderr:
            return  # interrupted, or memory ran out: the next import tries again
        _write(folder / "failed.txt", done.stderr[-2000:] or f"{command[0]} ended with status {done.returncode}")


def _write(path: pathlib.Path, text: str) -> None:
    """Write a file at one stroke: a process that reads it meanwhile sees the old or the new one."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    draft.write_text(text)
    os.replace(draft, path)
