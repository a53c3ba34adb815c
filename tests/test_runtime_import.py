"""Jittor's import goes to its end and stays inside its cache:
moved caches, homes that cannot be written, forks, the clone's own folder.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from jseg import runtime, runtime_import

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENVIRONMENT = ("nvcc_path", "cache_name", "use_mkl", "use_mpi", "log_silent", "cc_path")


def run(code: str, *, cwd=ROOT, timeout=300, **env) -> subprocess.CompletedProcess:
    """Run code in a fresh process that prepares itself, with variables added."""
    clean = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=timeout,
                          env={**clean, **env})


@pytest.fixture
def copied_cache(tmp_path) -> tuple[pathlib.Path, pathlib.Path]:
    """(a JITTOR_HOME, its cache folder): a copy of the cache in use, without the compiled operations,
    whose commands name the old place.
    """
    done = run("import jseg, jittor, jittor_utils\nprint(jseg.runtime.jittor_home())\nprint(jittor_utils.cache_path)")
    assert done.returncode == 0, done.stderr
    home, cache = map(pathlib.Path, done.stdout.split("\n")[:2])
    copy = tmp_path / "a moved home" / cache.relative_to(home)
    shutil.copytree(cache, copy, symlinks=True, ignore=shutil.ignore_patterns("jit", "jseg_headers", "jseg_*kernels"))
    return tmp_path / "a moved home", copy


def test_an_import_that_would_end_the_process_goes_on_and_says_so():
    """Jittor's own `sys.exit(0)`: it is told that its compile helper, which is in use,
    was just compiled, as in a moved cache.
    """
    done = run("""
import jseg, jittor_utils
jittor_utils.try_import_jit_utils_core()
old = jittor_utils.cc
old.cache_compile = lambda *command: True
import jittor as jt, numpy as np
print(jittor_utils.cc is old, jt.array(np.arange(6.)[::2]).numpy().tolist(),
      (jt.array([1.0, 2.5]) * 2).numpy().tolist())
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False [0.0, 2.0, 4.0] [2.0, 5.0]", "the process ended before it did its work"
    assert "was moved or copied" in done.stderr and "2 to 4 minutes" in done.stderr


@pytest.mark.slow
def test_a_command_on_a_moved_cache_does_its_work(copied_cache, tmp_path):
    home, _ = copied_cache
    env = {**{key: value for key, value in os.environ.items() if key not in ENVIRONMENT}, "JITTOR_HOME": str(home)}
    weights = ROOT / "weights" / "segnext_tiny_camvid.safetensors"
    import numpy as np
    from PIL import Image
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "black.png")
    done = subprocess.run([sys.executable, "-m", "jseg", "predict", str(weights), str(tmp_path / "black.png"), "--out",
                           str(tmp_path / "out")],
                          capture_output=True, text=True, env=env, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "out").iterdir()) and "2 to 4 minutes" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks elsewhere are of no use to Jittor")
def test_the_compile_pool_forks_where_python_does_not(tmp_path):
    """As Python 3.14: what the pool is given would not go to a new interpreter, and the main module would run again."""
    (tmp_path / "program.py").write_text("""
import multiprocessing
multiprocessing.set_start_method("forkserver")
import jseg, jittor, jittor_utils
with jittor_utils.Pool(1, initializer=lambda: None) as pool:
    print("main", pool.apply(len, ("abc",)))
""")
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.strip() == "main 3", done.stdout + done.stderr


def test_doctor_names_a_moved_cache(tmp_path, monkeypatch):
    core = tmp_path / "here" / "jittor_core.so"
    core.parent.mkdir()
    core.write_text("")
    monkeypatch.setattr(runtime, "_in_cache", lambda name, host=None: [str(core)] if host is None else [])
    core.with_name("jittor_core.so.key").write_text(f'"g++" "a.o" -o "{core}" -shared\n# a.o: 1\n')
    assert runtime.core_is_built() and runtime.core_finding().level == "ok"
    core.with_name("jittor_core.so.key").write_text('"g++" "a.o" -o "/elsewhere/jittor_core.so" -shared\n# a.o: 1\n')
    found = runtime.core_finding()
    assert (not runtime.core_is_built() and found.level == "warning" and "moved or copied" in found.text
            and "jseg warmup" in found.cure)
    monkeypatch.setattr(runtime, "_in_cache", lambda name, host=None: [] if host is None else [str(core)])
    found = runtime.core_finding()
    assert not runtime.core_is_built() and "another host name" in found.text and found.level == "warning"


def test_a_build_of_minutes_is_announced_whatever_its_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime_import, "_told", False)
    built = tmp_path / "a.o"
    command = f'"g++" "a.cc" -c -o "{built}"'
    built.write_text("")
    ran = []
    run_cmds = runtime_import._announce_builds(lambda *words: ran.append(words))
    (tmp_path / "a.o.key").write_text(f"{command.replace(' -o', ' -DJT_SYNC=1 -o')}\n# a.cc: 12\n")
    run_cmds([command], "cache", "jittor", "Compiling jittor_core")
    assert capsys.readouterr().err == "" and len(ran) == 1
    run_cmds([command.replace("-c", "-O3 -c")], "cache", "jittor", "Compiling jittor_core")
    assert "2 to 4 minutes" in capsys.readouterr().err and len(ran) == 2
    run_cmds([command.replace("a.o", "b.o")], "cache", "jittor", "Compiling jittor_core")
    assert capsys.readouterr().err == "", "said twice"


def test_an_import_that_ends_the_process_twice_is_an_error(monkeypatch, tmp_path):
    import types
    (tmp_path / "jittor_core.so").touch()
    utilities = types.SimpleNamespace(run_cmds=None, cache_path=str(tmp_path))
    monkeypatch.setattr(runtime_import, "import_utilities", lambda: utilities)
    monkeypatch.setattr(runtime_import, "_load_new_helper", lambda _: None)
    with pytest.raises(runtime.RuntimeSetupError, match="ended the process twice"):
        runtime_import.execute_jittor(lambda module: sys.exit(0), types.ModuleType("jittor"), quiet=True)


def test_a_compiler_that_cannot_work_is_refused_at_once_and_again(tmp_path):
    """By name and version it is one; the first thing it has to compile fails."""
    fake = tmp_path / "g++"
    fake.write_text('#!/bin/sh\ncase "$1" in *version*) echo 12.2.0 ;; *) echo "cc1plus: error: no such instruction" '
                    '>&2; exit 1 ;; esac\n')
    fake.chmod(0o755)
    done = run("import importlib.util, jseg\nassert importlib.util.find_spec('jittor')\nfor _ in range(2):\n    try: "
               "import jittor\n    except jseg.errors.RuntimeSetupError as error: print(error)",
               JITTOR_HOME=str(tmp_path / "home"), cc_path=str(fake))
    assert done.stdout.count("cannot compile what Jittor needs: cc1plus: error: no such instruction") == 2, (
        done.stdout + done.stderr)
    assert "2 to 4 minutes" not in done.stderr


def test_a_home_that_cannot_be_written_is_one_line_and_named_by_doctor():
    done = subprocess.run([sys.executable, "-m", "jseg", "doctor", "--short"], capture_output=True, text=True,
                          env={**os.environ, "JITTOR_HOME": "/proc/nowhere"})
    assert done.returncode == 2 and "FATAL  cache:" in done.stdout and "export JITTOR_HOME=" in done.stdout, (
        done.stdout + done.stderr)
    done = run("import jseg\nprint('jseg imports')\nimport jittor", JITTOR_HOME="/proc/nowhere")
    assert ("jseg imports" in done.stdout and "RuntimeSetupError: cache: Jittor compiles into /proc/nowhere"
            in done.stderr.replace("jseg.errors.", ""))


def test_an_unwritable_home_does_not_matter_and_the_process_stays_as_it_was():
    done = run("import os, ssl\nbefore = ssl._create_default_https_context\nimport jseg, jittor as jt\nassert "
               "jseg.runtime.core_is_built()\nprint(os.environ['HOME'], ssl._create_default_https_context is before, "
               "jt.array([1.0, 2.5]).numpy().tolist())",
               HOME="/proc/nowhere", JITTOR_HOME=str(runtime.jittor_home()))
    assert done.stdout.strip() == "/proc/nowhere True [1.0, 2.5]", done.stderr


FORK = """
import multiprocessing
import jseg, jittor as jt, numpy as np
x = jt.array(np.random.default_rng(0).random((64, 64, 64), dtype="float32"))
def work():
    return float(((x + 1.5) * x).sum().numpy()[0])
wanted = work()
def child(queue): queue.put(work() == wanted)
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
process.join(60)
print("alive" if process.is_alive() else process.exitcode, queue.empty() or queue.get())
process.kill()
"""


def test_a_forked_child_computes_after_its_parent_has():
    done = run(FORK, OMP_NUM_THREADS="2")
    assert done.stdout.strip() == "0 True", done.stdout + done.stderr


def test_a_child_forked_from_a_process_on_a_gpu_is_refused(monkeypatch):
    import types

    class Var:
        sync = numpy = data = item = None

    jt = types.SimpleNamespace(flags=types.SimpleNamespace(use_cuda=1, cc_type="clang"), Var=Var, array=None,
                               sync_all=None)
    hooks = []
    monkeypatch.setattr(os, "register_at_fork", lambda after_in_child: hooks.append(after_in_child))
    runtime_import.survive_forks(jt)
    hooks[0]()
    for call in (jt.array, Var().numpy, jt.sync_all):
        with pytest.raises(runtime.RuntimeSetupError, match="forked from one that computes on a GPU"):
            call()


def test_the_first_example_works_in_the_folder_where_git_clone_was_typed(tmp_path):
    """As installed here: the folder `jseg` of the clone must not be taken for the package."""
    (tmp_path / "jseg").symlink_to(ROOT)
    done = run("from jseg import InferenceSegmentor; print(InferenceSegmentor.__name__)", cwd=tmp_path)
    assert done.stdout.strip() == "InferenceSegmentor", done.stderr


def test_a_plain_editable_install_works_there_too(tmp_path):
    """The file that `pip install -e .` would put into site-packages holds a path,
    which a folder of the same name does not precede.
    """
    pytest.importorskip("setuptools", minversion="64")
    clone = tmp_path / "jseg"
    shutil.copytree(ROOT / "jseg", clone / "jseg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, clone)
    done = subprocess.run([sys.executable, "setup.py", "-q", "editable_wheel", "--dist-dir", str(tmp_path / "dist")],
                          cwd=clone, capture_output=True, text=True)
    if "No module named 'wheel'" in done.stderr or "invalid command 'bdist_wheel'" in done.stderr:
        pytest.skip("the package wheel is not installed")
    assert done.returncode == 0, done.stderr
    import zipfile
    with zipfile.ZipFile(next((tmp_path / "dist").glob("jseg_jittor-*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    code = (f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]; import site; "
            f"site.addsitedir({str(tmp_path / 'site')!r})\n")
    done = run(f"{code}from jseg import InferenceSegmentor\nimport jseg; print(jseg.__file__)", cwd=tmp_path)
    assert done.stdout.strip() == str(clone / "jseg" / "__init__.py"), done.stderr
