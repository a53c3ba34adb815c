"""Text files that are not what they should be: hostile YAML, other encodings, pipes."""

import os
import pathlib
import resource
import subprocess
import sys
import time

import pytest

from jseg.config import load_config
from jseg.errors import ConfigError, DataError
from jseg.text import read_text
from jseg.yaml_reader import MOST_BYTES, MOST_LEVELS, parse_yaml

FIELD = pathlib.Path(__file__).resolve().parents[2] / "shared" / "cases"


def grown(first: str, next_line: str, levels: int = 9) -> str:
    """Nine lines, each holding the one before ten times over."""
    return f"a0: &a0 {first}\n" + "".join(f"a{i}: &a{i} {next_line.replace('@', f'*a{i - 1}')}\n" for i in range(1,
        levels + 1))


BLOCK, LIST = "{" + ", ".join(f"k{i}: @" for i in range(10)) + "}", "[" + ", ".join(["@"] * 10) + "]"
HOSTILE = {
    "lists": (grown("[x, x]", LIST), "more than 20000 keys and values, aliases counted"),
    "blocks": (grown("{k: x}", BLOCK), "more than 20000 keys and values"),
    "model": (grown("[x]", LIST) + "model: *a9\n", "more than 20000 keys and values"),
    "base": (grown("[x]", LIST) + "_base_: *a9\n", "more than 20000 keys and values"),
    "merges": (grown("{k: x}", "{<<: " + LIST + "}"), "more than 20000 keys and values"),
    "in_keys": (grown("[x]", LIST, 3) + "? *a3\n: 1\n", "unhashable key"),
    "chain": ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 900)),
              "nested more than 40 deep"),
    "wide": ("a: [" + "1," * 60_000 + "1]\n", "more than 20000 keys and values"),
    "flow": ("a: " + "[" * 3000 + "\n", "nested more than 40 deep"),
    "flow_blocks": ("a: " + "{b: " * 3000 + "\n", "nested more than 40 deep"),
    "dashes": ("- " * 3000 + "x\n", "nested more than 40 deep"),
    "indented": ("".join(" " * i + "k:\n" for i in range(300)), "nested more than 40 deep"),
    "itself": ("a: &a {b: [*a]}\n", "contains itself through an alias"),
    "control": ("a: 1\nb: \x01\n", ".yaml:2: not YAML: the control character U+0001"),
    "escape": ('a: "\\e[31m"\n', "control character U+001B"),
    "nul": ('a: "x\\0y"\n', "control character U+0000"),
    "surrogate": ('a: "\\ud800"\n', "control character U+D800"),
    "long": ("a: '" + "x" * 5000 + "'\n", "a text of 5000 characters"),
    "large": ("# " + "x" * MOST_BYTES + "\n", "at most 262,144 are accepted"),
    "hex": ("a: 0x" + "f" * 100_000 + "\n", "a whole number of 400000 bits"),
    "digits": ("a: " + "1" * 5000 + "\n", "is no int"),
    "million": ("a: 9223372036854775808\n", "a whole number of 64 bits"),
    "bool": ("a: !!bool maybe\n", "'maybe' is no bool"),
    "int": ("a: !!int ''\n", "'' is no int"),
    "set": ("a: !!set {x}\n", "!!set is no plain value"),
    "binary": ("a: !!binary aGk=\n", "!!binary is no plain value"),
    "date": ("a: !!timestamp 2026-11-28\n", "!!timestamp is no plain value"),
    "omap": ("a: !!omap [x: 1]\n", "!!omap is no plain value"),
    "python": ("a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
    "value": ("a: =\n", "could not determine a constructor"),
    "null_key": ("~: 1\n", "reads as null; keys are words or whole numbers"),
    "no_key": ("a: {? : 1}\n", "reads as null"),
    "yes_key": ("yes: 1\n", "reads as true"),
    "float_key": ("1.5: 1\n", "reads as 1.5"),
    "twice": ("a: {1: x, 0x1: y}\n", "key '0x1' is given twice, first on line 1"),
    "tab": ("a:\n\tb: 1\n", "a tab cannot indent YAML"),
    "undefined": ("a: *" + "x" * 5000 + "\n", "found undefined alias"),
}


def test_hostile_yaml_is_one_line_each(tmp_path):
    """`jseg check` of all files in one process with little memory: a line each, in a few seconds together."""
    for name, (text, _) in HOSTILE.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "y").write_bytes(text.encode())
        (folder / "y").rename(folder / "y.yaml")
    paths = [str(tmp_path / name / "y.yaml") for name in HOSTILE]
    probe = ("import resource, sys, time\nfrom jseg.config import load_config\nfrom jseg.errors import ConfigError\n"
             "resource.setrlimit(resource.RLIMIT_AS, (600 << 20,) * 2)\n"
             "for path in sys.argv[1:]:\n    began = time.process_time()\n"
             "    try:\n        print('read', load_config(path))\n    except ConfigError as error:\n        "
             "print(error)\n"
             "    assert time.process_time() - began < 2, path\n")
    done = subprocess.run([sys.executable, "-c", probe, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    told = done.stdout.splitlines()
    assert len(told) == len(HOSTILE), done.stdout
    for line, path, (name, (_, words)) in zip(told, paths, HOSTILE.items()):
        assert line.startswith(path) and words in line and len(line) < 600, f"{name}: {line[:600]}"


@pytest.mark.parametrize("text, value", [("1:30", "1:30"), ("010", "010"), ("2026-11-28", "2026-11-28"), ("0x10", 16),
                                         ("1_000", 1000),
                                         ("-3", -3), ("0", 0), ("1.", 1.0), (".5", 0.5), ("-.inf", float("-inf")),
                                         ("190:20:30", "190:20:30")])
def test_numbers_of_yaml_1_1_do_not_surprise(text, value):
    found = parse_yaml(f"a: {text}\n", "a.yaml")["a"]
    assert found == value and type(found) is type(value)


def test_limits_leave_room(tmp_path):
    """A deep alias, a long class list and a block just within the limits are read; files share one allowance."""
    names = [f"class {i}" for i in range(4000)]
    assert parse_yaml("a: &a " + repr(names) + "\nb: *a\n", "a")["b"] == names
    assert parse_yaml("a: " + "[" * (MOST_LEVELS - 2) + "x" + "]" * (MOST_LEVELS - 2), "a")
    (tmp_path / "leaf.yaml").write_text("a: 1\n")
    (tmp_path / "many.yaml").write_text("_base_: [" + "leaf.yaml, " * 3000 + "]\n")
    with pytest.raises(ConfigError, match="many.yaml: more than 20000 keys and values"):
        load_config(tmp_path / "many.yaml")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_a_base_that_is_no_regular_file(tmp_path, kind):
    base = tmp_path / "base.yaml"
    {"fifo": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](base)
    (tmp_path / "a.yaml").write_text("_base_: base.yaml\n")
    began = time.monotonic()
    with pytest.raises(ConfigError,
                       match="a.yaml: _base_: .*base.yaml: is a .*; expected a config: give a regular file"):
        load_config(tmp_path / "a.yaml")
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("content, words", [
    ("猫\n".encode("utf-16"), ": not UTF-8 but UTF-16; save it as UTF-8"), ("猫\n".encode("utf-16-be"),
                                                                           "a NUL byte|not UTF-8"),
    ("a\n天空\n".encode("gbk"), ":2: not UTF-8 .byte 0xcc.; save it as UTF-8"), (b"a\nb\0\n", ":2: a NUL byte")])
def test_other_encodings_are_named(tmp_path, content, words):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_text(tmp_path / "list.txt")


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffp0\r\np1\r\n".encode())
    assert read_text(tmp_path / "list.txt").splitlines() == ["p0", "p1"]


@pytest.mark.skipif(not FIELD.is_dir(), reason="the folder of reported cases is absent")
@pytest.mark.parametrize("name", ["b02_lol_dict", "b03_lol_base", "b04_lol_model", "b24_ctrl"])
def test_reported_bombs(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with pytest.raises(ConfigError):
        load_config(FIELD / "reliability" / f"{name}.yaml")
    assert time.process_time() - began < 1 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
