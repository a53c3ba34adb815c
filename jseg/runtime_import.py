"""Run Jittor's own import so that it neither ends the process, nor stays silent for minutes,
nor leaves traces outside its cache.

What Jittor 1.3.11 does by itself, and what happens here instead:
- Its compile helper (`jit_utils_core`) no longer fits the cache, because the cache was moved or copied or the compiler
  changed: Jittor compiles it again and calls `sys.exit(0)`, so a program ends with nothing done and status 0. Here the
      import goes on with the new helper.
- It keeps the last JITTOR_HOME in `~/.cache/jittor/config.json`, read and written without a lock, even where HOME
  cannot be written.
  Here that file lies in JITTOR_HOME and is never written.
- It switches off the check of certificates for every later download of the process. Here that is undone.
- Its compile pool forks, which Python 3.14 no longer does unless asked: what it was given cannot be sent to a new
  interpreter. Here it is asked.
- A program that ends just after its first operation can wait for ever for a thread that had not begun. Here its end
  waits for that.
- A forked child waits for ever at its first parallel loop, because OpenMP's threads stayed in the parent. Here a child
  computes with one thread; a child of a process that uses a GPU is refused.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import importlib
import importlib.util
import multiprocessing
import os
import pathlib
import platform
import re
import sys
import sysconfig
import threading
import time
import warnings
from typing import Any, Callable

from jseg import runtime_signals, runtime_toolchain
from jseg.errors import RuntimeSetupError

__all__ = ["await_threads_at_exit", "execute_jittor", "import_utilities", "has_config_script", "include_flags",
           "host_folder", "was_built_here", "survive_forks"]

_HELPER = "jit_utils_core"
_MOST_WAIT_S = 2.0  # for threads to begin at the end of a program
_told = False  # one announcement per process is enough


def execute_jittor(execute: Callable[[Any], None], module: Any, *, quiet: bool) -> None:
    """Execute the module `jittor`, to its end.

    Args:
        execute: executes the module: its loader's `exec_module`.
        module: the module `jittor`, new and empty.
        quiet: do not announce a build of minutes.
    Raises:
        RuntimeSetupError: Jittor ended its import a second time.
    """
    global _told
    _told = quiet
    utilities = import_utilities()
    utilities.run_cmds = _announce_builds(utilities.run_cmds)
    if not _cached(utilities, "jittor_core*"):
        runtime_toolchain.try_compiler(utilities.get_py3_include_path())
        _announce("building Jittor's core for this machine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of Jittor's own files, under Python 3.12 and later
        try:
            execute(module)
        except SystemExit:  # it has compiled a new helper while an old one was in use
            _announce("Jittor's cache was moved or copied, or made with another compiler or Python: building its core "
                      "again")
            _load_new_helper(utilities)
            try:
                execute(module)
            except SystemExit as stop:
                folder = utilities.cache_path
                raise RuntimeSetupError(f"jittor: its import ended the process twice (status {stop.code}) with the "
                                        f"cache {folder}\n  cure: rm -r '{folder}', then try again") from None


def import_utilities() -> Any:
    """Import `jittor_utils`, which names the cache's folder (`cache_path`),
    and give it Python's headers where it would not find them.
    """
    import ssl
    certificates, home = ssl._create_default_https_context, os.environ.get("HOME")
    os.environ["HOME"] = os.environ["JITTOR_HOME"]  # where jittor_utils keeps its config.json: see above
    try:
        utilities = importlib.import_module("jittor_utils")
    finally:
        if home is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = home
        ssl._create_default_https_context = certificates
    if sys.platform.startswith("linux"):
        utilities.Pool = multiprocessing.get_context("fork").Pool
    if not has_config_script():
        utilities._py3_include_path = include_flags()
        utilities._py3_extension_suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return utilities


def has_config_script() -> bool:
    """Whether there is a `python3.x-config` where Jittor looks for one; virtual environments have none."""
    name, folder = f"python3.{sys.version_info.minor}-config", os.path.dirname(sys.executable)
    places = [f"{folder}/{name}", f"{sys.executable}-config", f"/usr/bin/{name}", f"/usr/local/bin/{name}",
              f"{folder}/python3-config"]
    return any(map(os.path.isfile, [os.environ.get("python_config_path", ""), *places]))


def include_flags() -> str:
    """The compiler's flags for Python's headers, as Python itself knows them."""
    paths = sysconfig.get_paths()
    return " ".join(f'-I"{path}"' for path in dict.fromkeys([paths["include"], paths["platinclude"]]))


def host_folder() -> str:
    """The folder that Jittor's cache has for this system, kernel and host name,
    as `jittor_utils.find_cache_path` names it.
    """
    def shorten(text: str) -> str:
        return f"{text[:14]}x{hashlib.md5(text.encode()).hexdigest()[:2]}" if len(text) > 14 else text
    kept = "".join(c for c in shorten(platform.platform() + platform.node()) if c.isidentifier() or c.isnumeric()
                   or c.isalpha() or c in ".-+")
    return shorten(kept)


def was_built_here(library: pathlib.Path) -> bool:
    """Whether a library in Jittor's cache was made at the path where it lies:
    Jittor compiles a moved or copied one again.
    """
    try:
        command = library.with_name(f"{library.name}.key").read_text(errors="replace").partition("\n")[0]
    except OSError:
        return False
    return f'"{library}"' in command


def _cached(utilities: Any, name: str) -> list[pathlib.Path]:
    folder = pathlib.Path(utilities.cache_path)  # with CUDA, the core lies in a folder inside
    return [*folder.glob(name), *folder.glob(f"*/{name}")]


def _announce(what: str) -> None:
    global _told
    if not _told:
        print(f"jseg: {what}: 2 to 4 minutes, only this once ...", file=sys.stderr, flush=True)
    _told = True


def _announce_builds(run_cmds: Callable[..., None]) -> Callable[..., None]:
    """`jittor_utils.run_cmds`, which says so before it compiles the core's files:
    those whose command is not the one noted beside them.
    """
    def announced(cmds, cache_path, jittor_path, msg="run_cmds"):
        if msg.endswith("jittor_core") and any(map(_must_compile, cmds)):
            _announce("building Jittor's core again, because files or flags it was made with have changed")
        return run_cmds(cmds, cache_path, jittor_path, msg)
    return announced


def _must_compile(command: str) -> bool:
    """Whether Jittor's cache has no result of this command;
    that the sources changed under the same command is not looked for.
    """
    output = re.search(r' -o "([^"]+)"', command)
    if not output or not os.path.isfile(output[1]):
        return True
    try:
        with open(f"{output[1]}.key", encoding="utf-8", errors="replace") as key:
            noted = key.readline().rstrip("\n")
    except OSError:
        return True
    return re.sub(r" -DJT\w+=\S*", "", noted) != re.sub(r" -DJT\w+=\S*", "", command)


def _load_new_helper(utilities: Any) -> None:
    """Take the helper that was just compiled, beside the old one: Python and the system's loader know an extension by
    its path, so it is loaded under another spelling of its path; the compiler has put a new file there, and the old one
    stays loaded, unused."""
    for name in [name for name in sys.modules if name == _HELPER or name.startswith("jittor.")]:
        del sys.modules[name]
    utilities.cc = None
    path = os.path.join(utilities.cache_path, ".", _HELPER + sysconfig.get_config_var("EXT_SUFFIX"))
    spec = importlib.util.spec_from_file_location(_HELPER, path)
    flags = os.RTLD_NOW | os.RTLD_GLOBAL | getattr(os, "RTLD_DEEPBIND", 0)  # as jittor.compiler loads it
    with utilities.import_scope(flags):
        sys.modules[_HELPER] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_HELPER])


def await_threads_at_exit() -> None:
    """Let Jittor's compile thread begin before the interpreter's end tells it to stop.

    It starts with the first operation; one that has not run yet when a short program ends misses the word, waits for
    the next for ever, and the program waits for it. Call this after Jittor's import: what is registered last runs
    first.
    """
    def wait() -> None:
        until = time.monotonic() + _MOST_WAIT_S
        # it has not begun, or works
        while time.monotonic() < until and "R" in map(runtime_signals.state_of, _other_threads()):
            time.sleep(0.001)
    atexit.register(wait)


def _other_threads() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/task") if int(name) != threading.get_native_id()]
    except OSError:
        return []


def survive_forks(jt: Any) -> None:
    """Let a forked child compute: with one thread on the CPU, not at all where its parent uses a GPU,
    whose state no child inherits.

    libgomp's threads stay in the parent and a child waits for them for ever; with one thread it never looks for them.
    LLVM's OpenMP starts anew in a child by itself.
    """
    openmp = ctypes.CDLL("libgomp.so.1") if sys.platform.startswith("linux") and jt.flags.cc_type == "g++" else None

    def in_child() -> None:
        if jt.flags.use_cuda:
            for owner, name in ((jt, "array"), (jt, "sync_all"), (jt.Var, "sync"), (jt.Var, "numpy"), (jt.Var, "data"),
                                (jt.Var, "item")):
                setattr(owner, name, _refuse_fork)
        elif openmp is not None:
            openmp.omp_set_num_threads(1)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=in_child)


def _refuse_fork(*_args, **_options):
    raise RuntimeSetupError("jittor: this process was forked from one that computes on a GPU, and a GPU's state does "
                            "not survive that\n"
                            '  cure: start it anew: multiprocessing.get_context("spawn"), or load the model in the '
                            'child only')
