"""A compiler that cannot work is refused with its own words and a cure before minutes are spent;
one that can is called once.
"""

import pathlib
import shutil
import sys

import pytest

from jseg import runtime_import, runtime_toolchain
from jseg.errors import RuntimeSetupError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("g++"),
                                reason="needs g++ on Linux")


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """compiler(name, script): a program of this name is Jittor's compiler; `real` in the script is g++."""
    def make(name, script):
        place = tmp_path / name
        place.write_text(f"#!/bin/sh\nreal() {{ {shutil.which('g++')} \"$@\"; }}\n{script}\n")
        place.chmod(0o755)
        monkeypatch.setenv("cc_path", str(place))
        return place
    return make


def refusal() -> str:
    with pytest.raises(RuntimeSetupError) as caught:
        runtime_toolchain.try_compiler(runtime_import.include_flags())
    return str(caught.value)


def test_the_compiler_of_this_machine_works(monkeypatch):
    monkeypatch.delenv("cc_path", raising=False)
    runtime_toolchain.try_compiler(runtime_import.include_flags())


def test_an_old_one_is_refused_by_its_version(compiler):
    compiler("g++-7", "echo 7.5.0")
    text = refusal()
    assert "g++-7 is version 7.5.0" in text and "from version 9 on" in text and "export cc_path=" in text


def test_one_without_openmp_or_headers_shows_its_words_and_command(compiler):
    compiler("g++", 'case "$*" in -dump*) echo 12 ;; *) real "$@" -Djseg_probe=other_name ;; esac')
    assert "jseg_probe" in refusal()
    compiler("g++", 'case "$*" in -dump*) echo 12 ;; *) echo "collect2: error: x\nfatal error: omp.h file not found" '
                    '>&2; exit 1 ;; esac')
    text = refusal()
    assert ("needs: fatal error: omp.h file not found" in text and "apt-get install -y g++" in text
            and "-fopenmp" in text)
    compiler("g++", 'case "$*" in -dump*) echo 12 ;; *) echo "fatal error: Python.h: No such file" >&2; exit 1 ;; esac')
    assert "python3-dev" in refusal()


def test_one_that_is_too_new_is_refused_with_the_newest_that_works(compiler):
    compiler("g++-99", 'case "$*" in -dump*) echo 99 ;; *) echo "probe.cc:8:9: error: no such header" >&2; exit 1 ;; '
                       'esac')
    text = refusal()
    assert "no such header" in text and "apt-get install -y g++-15, and export cc_path=/usr/bin/g++-15" in text


@pytest.mark.parametrize("version,new", [("9.4.0", False), ("14", False), ("15.2.0", True), ("16", True), ("", False)])
def test_compilers_from_15_on_have_new_headers(compiler, version, new):
    """There the containers no longer include <cstdint>, so Jittor is imported with a change."""
    compiler("g++", f"echo {version}")
    assert runtime_toolchain.has_new_headers() is new


def test_one_that_takes_no_pointers_to_members_for_functions_is_refused(compiler):
    """As clang, which compiles all of Jittor's core but one file, after minutes."""
    compiler("g++", 'case "$*" in -dump*) echo 12 ;; *) real $(printf "%s\\n" "$@" | grep -vx -- -w) '
                    '-Werror=pmf-conversions ;; esac')
    assert "Node::" in refusal()


@pytest.mark.parametrize("name,text", [("c++", "g++ or clang in it"), ("clang++-14", "only g++ compiles"),
                                       (None, "is no program")])
def test_what_jittor_cannot_name_is_found_at_start(compiler, monkeypatch, name, text):
    monkeypatch.setenv("cc_path", str(compiler(name, "exit 1")) if name else "/nowhere/g++")
    notes = []
    runtime_toolchain.find_compiler(lambda *note: notes.append(note))
    assert notes[0][2] == "fatal" and text in notes[0][1] and "cc_path" in notes[0][3]


def test_headers_are_found_without_a_config_script(monkeypatch):
    flags = runtime_import.include_flags()
    folders = [flag[2:].strip('"') for flag in flags.split(' -') if flag]
    assert any((pathlib.Path(folder.lstrip('I"')) / "Python.h").is_file()
               or (pathlib.Path(folder) / "Python.h").is_file() for folder in folders), flags
    monkeypatch.setattr(runtime_import.os.path, "isfile", lambda path: False)
    assert not runtime_import.has_config_script()
