"""Find a compiler that Jittor can use, and try it before Jittor spends minutes with it.

Jittor 1.3.11 tells compilers apart by the name of their command, and compiles with C++14, OpenMP and Python's headers.
On Linux only g++ can: a source of its core (utils/data.gz) casts pointers to member functions to pointers to functions,
an extension of g++ that clang has not (tried: 14). `find_compiler` looks at each start, and costs nothing;
`try_compiler` compiles one small library the way Jittor will compile hundreds, before a build.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from typing import Callable

from jseg.errors import RuntimeSetupError

__all__ = ["find_compiler", "has_new_headers", "try_compiler"]

OLDEST, NEWEST = (9,), (15,)  # Jittor itself names none
INSTALL = "apt-get install -y g++, and export cc_path=/usr/bin/g++"
SOURCE = """#include <Python.h>
#include <omp.h>
#include <string>
struct Node { void release(); };
void Node::release() {}
void (*jseg_probe_release)(Node*) = (void (*)(Node*))&Node::release;
extern "C" int jseg_probe() {
    int sum = 0;
    #pragma omp parallel for reduction(+:sum)
    for (int i = 0; i < 4; i++) sum += std::to_string(i).size();
    return sum;
}
"""


def find_compiler(note: Callable[..., None]) -> None:
    """Say which compiler Jittor will take, or that there is none, it has a name Jittor does not know,
    or Python's headers are missing.

    Args:
        note: called with (topic, text, level, cure).
    """
    compiler = os.environ.get("cc_path") or shutil.which("clang++" if sys.platform == "darwin" else "g++")
    header = pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not compiler:
        note("compiler", "no g++: Jittor compiles its kernels on this machine", "fatal", "apt-get install -y g++")
    elif not shutil.which(compiler):
        note("compiler", f"cc_path={compiler!r} is no program", "fatal", "unset cc_path, or let it name g++")
    elif compiler_type(compiler) is None:
        note("compiler", f"{compiler}: Jittor tells compilers apart by name, which must have g++ or clang in it",
             "fatal", "unset cc_path, or let it name g++")
    elif compiler_type(compiler) == "clang" and sys.platform.startswith("linux"):
        note("compiler", f"{compiler}: a source of Jittor's core is C++ that only g++ compiles", "fatal", INSTALL)
    elif not header.is_file():
        note("compiler", f"{compiler}, but {header} is missing", "fatal", "apt-get install -y python3-dev")
    else:
        note("compiler", compiler)


def compiler_type(compiler: str) -> str | None:
    """"g++", "clang", or None for a name that Jittor 1.3.11 does not know."""
    name = os.path.basename(compiler)
    return "clang" if "clang" in name else "g++" if "g++" in name else None


def has_new_headers() -> bool:
    """Whether the compiler is g++ 15 or later, whose headers no longer bring what Jittor leaves out to include."""
    return _version(os.environ.get("cc_path") or "g++")[:1] >= (15,)


def try_compiler(include_flags: str) -> None:
    """Compile, load and call a small library with the flags Jittor will use; half a second.

    Args:
        include_flags: where Python's headers are, as a compiler takes it.
    Raises:
        RuntimeSetupError: with the compiler's own words and a cure.
    """
    if not sys.platform.startswith("linux"):
        return  # other flags, which nobody has tried here
    compiler = os.environ.get("cc_path") or "g++"
    version = _version(compiler)
    if version and version < OLDEST:
        raise RuntimeSetupError(f"compiler: {compiler} is version {'.'.join(map(str, version))}; g++ from version "
                                f"{OLDEST[0]} on can compile Jittor\n  cure: install a newer one and export "
                                "cc_path=/usr/bin/g++-12")
    with tempfile.TemporaryDirectory(prefix="jseg-probe-") as name:
        source, library = pathlib.Path(name) / "probe.cc", pathlib.Path(name) / "probe.so"
        source.write_text(SOURCE)
        command = [compiler, str(source), "-std=c++14", "-w", "-fPIC", "-march=native", "-fopenmp", "-shared",
                   *shlex.split(include_flags), "-lstdc++", "-ldl", *shlex.split(os.environ.get("cc_flags", "")),
                   "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=name)
            words = done.stderr
            if done.returncode == 0 and ctypes.CDLL(str(library)).jseg_probe() == 4:
                return
        except (OSError, subprocess.TimeoutExpired, AttributeError) as error:
            words = str(error)
    cure = (f"apt-get install -y g++-{NEWEST[0]}, and export cc_path=/usr/bin/g++-{NEWEST[0]}"
            if version[:1] > NEWEST else INSTALL)
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*[mK]", "", words).splitlines() if line.strip()]
    telling = [line for line in lines if re.search("error|cannot|undefined|not found", line)
               and not line.startswith("collect2")] or lines
    raise RuntimeSetupError(f"compiler: {compiler} cannot compile what Jittor needs: "
                            f"{telling[0] if telling else 'no word from it'}\n  the command: {shlex.join(command)}\n  "
                            f"cure: {'apt-get install -y python3-dev' if 'Python.h:' in words else cure}")


def _version(compiler: str) -> tuple[int, ...]:
    try:
        text = subprocess.run([compiler, "-dumpversion"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(map(int, re.findall(r"\d+", text)))
