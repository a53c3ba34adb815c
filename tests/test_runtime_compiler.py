"""Operations are compiled in one call with precompiled headers;
where that is impossible, as right as before and with a finding.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest

from jseg import runtime_compiler

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("g++"),
                                reason="needs g++ on Linux")
ROOT = pathlib.Path(__file__).resolve().parents[1]

_OPERATION = f"""
import os, pathlib, subprocess, sys, time
import jseg, jittor as jt
jt.flags.cc_flags += " -DJSEG_TEST_FACTOR=3 "     # as a user's own flag
x = jt.code((2,), "float32", [jt.array([1.0, 2.5])], cpu_src='''
    int mine_{os.getpid()}_{{}} = JSEG_TEST_FACTOR;     // a source that no cache holds
    for (int i = 0; i < 2; i++) @out(i) = mine_{os.getpid()}_{{}} * @in0(i);
'''.replace("{{}}", sys.argv[1]))
print(x.numpy().tolist(), jt.flags.python_path.startswith("/bin/sh"))
built = pathlib.Path(jt.flags.cache_path) / "jit"
mine = [f for f in built.glob("code*_op.cc") if "mine_{os.getpid()}_" + sys.argv[1] in f.read_text()]
print(len(mine), [os.stat(f.with_suffix(".so")).st_mtime_ns for f in mine],
      [(f.with_name(f.stem + ".post.s")).exists() for f in mine])
"""


def _run(code: str, *arguments: str, **env: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env={**os.environ, **env},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_operation_is_compiled_in_one_step_once_with_the_users_flags():
    first = _run(_OPERATION, "a")
    assert first[0] == "[3.0, 7.5] True"
    assert first[1].startswith("1 [") and first[1].endswith("[False]"), "asm_tuner's in-between file must be absent"
    assert _run(_OPERATION, "a") == first, "a second process compiled it again"


def test_jittors_own_way_stays_one_variable_away():
    first = _run(_OPERATION, "b", JSEG_PRECOMPILED="0")
    assert first[0] == "[3.0, 7.5] False" and first[1].endswith("[True]")


COMPILER = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *c++-header*) {header} ;; esac
case "$*" in *-include*)
    g++ -H "$@" 2> {log}.err; status=$?; cat {log}.err >> {log}; cat {log}.err >&2; exit $status ;;
esac
exec g++ "$@"
"""


@pytest.fixture
def fake(tmp_path):
    """A stand-in for Jittor with a small header, and a compiler that logs:
    fake(header="shell command on a header's compile").
    """
    source = tmp_path / "jittor" / "src"
    source.mkdir(parents=True)
    (source / "var.h").write_text("static int of_var_h = JIT;\n")

    def make(header=":"):
        compiler = tmp_path / "compiler"
        compiler.write_text(COMPILER.format(log=tmp_path / "log", header=header))
        compiler.chmod(0o755)
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/python.log\n')
        python.chmod(0o755)
        flags = types.SimpleNamespace(cc_type="g++", cc_path=str(compiler),
                                      cc_flags=f' -std=c++14 -fPIC -shared -lstdc++ -I"{source}" -O1 ',
                                      jittor_path=str(source.parent), cache_path=str(tmp_path / "cache"),
                                      python_path=str(python))
        return types.SimpleNamespace(flags=flags)

    return make


def _prepare(jt) -> list[tuple]:
    notes = []
    jt.flags.python_path = jt.flags.python_path.removeprefix("/bin/sh ").strip('"')
    if jt.flags.python_path.endswith("compile.sh"):
        jt.flags.python_path = str(pathlib.Path(jt.flags.cc_path).with_name("python"))
    runtime_compiler.prepare(jt, lambda *note: notes.append(note), quiet=True)
    return notes


def _compile(jt, folder: pathlib.Path, text: str) -> pathlib.Path:
    """Compile a source as Jittor does; the library's path."""
    source, library = folder / "one_op.cc", folder / "one_op.so"
    source.write_text(text)
    library.unlink(missing_ok=True)
    subprocess.run(f'{jt.flags.python_path} x/utils/asm_tuner.py --cc_path="{jt.flags.cc_path}" "{source}" '
                   f'{jt.flags.cc_flags} -o "{library}"',
                   shell=True, check=True, cwd=folder)
    return library


OPERATION = '#define JIT 1\n#include "var.h"\nextern "C" int answer() { return of_var_h; }\n'


def test_the_compiler_takes_the_header_and_a_changed_file_remakes_it(fake, tmp_path):
    jt = fake()
    assert _prepare(jt)[-1][1:3] == ("compiled with precompiled headers", "ok")
    assert _compile(jt, tmp_path, OPERATION).exists()
    log = (tmp_path / "log").read_text()
    assert "\n! " in log and log.count("c++-header") == 1
    _prepare(jt)
    assert (tmp_path / "log").read_text().count("c++-header") == 1, "a second process made it again"
    (tmp_path / "jittor/src/var.h").write_text("static int of_var_h = JIT + 41;\n")
    _prepare(jt)
    assert (tmp_path / "log").read_text().count("c++-header") == 2, "a stale header was kept"
    import ctypes
    assert ctypes.CDLL(str(_compile(jt, tmp_path, OPERATION))).answer() == 42


def test_a_header_that_cannot_be_made_is_a_finding_and_operations_still_compile(fake, tmp_path):
    jt = fake(header='echo "no space for headers" >&2; exit 1')
    topic, text, level, cure = _prepare(jt)[-1]
    assert topic == "operations" and level == "warning" and "no space for headers" in text
    assert _compile(jt, tmp_path, OPERATION).exists()
    _prepare(jt)
    assert (tmp_path / "log").read_text().count("c++-header") == 1, "each import would try in vain"
    shutil.rmtree(cure.split()[2])
    assert _prepare(fake())[-1][2] == "ok", "the cure does not help"


def test_what_is_no_plain_operation_goes_to_python(fake, tmp_path):
    jt = fake()
    _prepare(jt)
    with_begin = OPERATION + "//@begin replace \"a\" \"b\"\n//@end\n"
    assert not _compile(jt, tmp_path, with_begin).exists()
    assert (tmp_path / "python.log").read_text().startswith("x/utils/asm_tuner.py --cc_path=")
    subprocess.run(f"{jt.flags.python_path} x/utils/dlink_compiler.py 'a b'", shell=True, check=True)
    assert (tmp_path / "python.log").read_text() == "x/utils/dlink_compiler.py a b\n"


def test_a_wrong_operation_shows_the_compilers_words(fake, tmp_path, capfd):
    jt = fake()
    _prepare(jt)
    with pytest.raises(subprocess.CalledProcessError):
        _compile(jt, tmp_path, OPERATION + "int x = undeclared_name;\n")
    assert "undeclared_name" in capfd.readouterr().err and not (tmp_path / "one_op.so").exists()


def test_a_cache_that_cannot_be_written_leaves_jittors_way(fake, tmp_path):
    jt = fake()
    (tmp_path / "cache").write_text("a file where the folder should be")
    before = jt.flags.python_path
    topic, text, level, cure = _prepare(jt)[0]
    assert level == "warning" and "cannot be precompiled" in text and str(tmp_path) in cure
    assert jt.flags.python_path == before
