"""Find a compiler that Jittor can use, and try it before Jittor spends minutes with it.

Jittor 1.3.11 tells compilers apart by the name of their command, and compiles with C++14, OpenMP and Python's headers. `find_compiler` looks at
each start, and costs nothing; `try_compiler` compiles one small library the way Jittor will compile hundreds, and runs before a build.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from typing import Callable

from jseg.errors import RuntimeSetupError

__all__ = ["find_compiler", "try_compiler"]

OLDEST = {"g++": (9,), "clang": (13,)}  # of what is tried; Jittor itself names none
INSTALL = {"g++": "apt-get install -y g++, or export cc_path=/usr/bin/g++", "clang": "apt-get install -y libomp-dev, or export cc_path=/usr/bin/g++"}
SOURCE = """#include <Python.h>
#include <omp.h>
#include <unordered_map>
#include <string>
extern "C" int jseg_probe() {
    int sum = 0;
    #pragma omp parallel for reduction(+:sum)
    for (int i = 0; i < 4; i++) sum += std::to_string(i).size();
    return sum;
}
"""


def find_compiler(note: Callable[..., None]) -> None:
    """Say which compiler Jittor will take, or that there is none, it has a name Jittor does not know, or Python's headers are missing.

    Args:
        note: called with (topic, text, level, cure).
    """
    compiler = os.environ.get("cc_path") or shutil.which("g++") or shutil.which("clang++")
    header = pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not compiler:
        note("compiler", "no g++: Jittor compiles its kernels on this machine", "fatal", "apt-get install -y g++")
    elif not shutil.which(compiler):
        note("compiler", f"cc_path={compiler!r} is no program", "fatal", "unset cc_path, or let it name g++ or clang++")
    elif compiler_type(compiler) is None:
        note("compiler", f"{compiler}: Jittor tells compilers apart by name, which must have g++ or clang in it", "fatal",
             "unset cc_path, or let it name g++ or clang++")
    elif not header.is_file():
        note("compiler", f"{compiler}, but {header} is missing", "fatal", "apt-get install -y python3-dev")
    else:
        note("compiler", compiler)
        if "cc_path" not in os.environ and os.path.basename(compiler) == "clang++":
            os.environ["cc_path"] = compiler  # Jittor looks for g++ only


def compiler_type(compiler: str) -> str | None:
    """"g++", "clang", or None for a name that Jittor 1.3.11 does not know."""
    name = os.path.basename(compiler)
    return "clang" if "clang" in name else "g++" if "g++" in name else None


def try_compiler(include_flags: str) -> None:
    """Compile, load and call a small library with the flags Jittor will use; half a second.

    Args:
        include_flags: where Python's headers are, as a compiler takes it.
    Raises:
        RuntimeSetupError: with the compiler's own words and a cure.
    """
    compiler = os.environ.get("cc_path") or "g++"
    kind = compiler_type(compiler)
    if kind is None:
        return  # find_compiler has said so
    version = _version(compiler)
    if version and version < OLDEST[kind]:
        raise RuntimeSetupError(f"compiler: {compiler} is version {'.'.join(map(str, version))}; {kind} from version {OLDEST[kind][0]} on can compile "
                                f"Jittor\n  cure: install a newer one and export cc_path=/usr/bin/{kind}-12")
    with tempfile.TemporaryDirectory(prefix="jseg-probe-") as name:
        source, library = pathlib.Path(name) / "probe.cc", pathlib.Path(name) / "probe.so"
        source.write_text(SOURCE)
        command = [compiler, str(source), "-std=c++14", "-fPIC", "-march=native", "-fopenmp", "-shared", *shlex.split(include_flags), "-lstdc++", "-ldl",
                   *shlex.split(os.environ.get("cc_flags", "")), "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=name)
            words = done.stderr
            if done.returncode == 0 and ctypes.CDLL(str(library)).jseg_probe() == 4:
                if kind == "g++" or ctypes.util.find_library("omp"):
                    return
                words = "libomp.so cannot be found by the system's loader"
        except (OSError, subprocess.TimeoutExpired, AttributeError) as error:
            words = str(error)
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*[mK]", "", words).splitlines() if line.strip()]
    telling = [line for line in lines if re.search("error|cannot|undefined|not found", line) and not line.startswith("collect2")] or lines
    raise RuntimeSetupError(f"compiler: {compiler} cannot compile what Jittor needs: {telling[0] if telling else 'no word from it'}\n"
                            f"  the command: {shlex.join(command)}\n  cure: {_cure(words, kind)}")


def _cure(words: str, kind: str) -> str:
    if "Python.h" in words:
        return "apt-get install -y python3-dev"
    return INSTALL[kind]


def _version(compiler: str) -> tuple[int, ...]:
    try:
        text = subprocess.run([compiler, "-dumpversion"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(map(int, re.findall(r"\d+", text)))
