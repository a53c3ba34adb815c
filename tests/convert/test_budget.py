"""A short file never runs longer than `SECONDS` nor takes more than `MEGABYTES`, whatever it says; it ends in one line.

Each input is read in a process of its own whose memory and CPU time the kernel bounds.
"""

import json
import pathlib
import struct
import subprocess
import sys

import pytest
from torch_opcodes import text

SECONDS, MEGABYTES = 6, 400
CHILD = """
import json, os, pathlib, resource, sys, time
from jseg.convert.py_config import parse_py_config
from jseg.convert.mmseg_config import translate_config
from jseg.convert.torch_file import read_torch_file
from jseg.errors import ConvertError
seconds, megabytes = int(sys.argv[2]), int(sys.argv[3])
base = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    began = time.monotonic()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (base + (megabytes << 20),) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        status, said = 0, ""
        try:
            parse_py_config(path.read_text(), path.name) if path.suffix == ".py" else read_torch_file(path)
        except ConvertError as error:
            status, said = 2, str(error)
        except BaseException as error:
            status, said = 1, repr(error)[:300]
        print(json.dumps([path.name, status, said[:2000]]), flush=True)
        os._exit(0)
    code = os.waitpid(child, 0)[1]
    if code:
        print(json.dumps([path.name, -1, f"ended by signal {code} after {time.monotonic() - began:.1f} s"]), flush=True)
"""


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def persistent(storage: bytes) -> bytes:
    """A persistent id ("storage", torch.FloatStorage, key, "cpu", 1, view)."""
    return (b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01"
            + storage + b"tQ")


NAME = "n" * (1 << 20)
TWINS = text(NAME) + put(0) + text(NAME) + put(1)  # two texts of equal content
BOMB = b"](K\1K\1K\1K\1K\1K\1K\1K\1e" + put(0) + b"".join(b"](" + get(i) * 8 + b"e" + put(i + 1) for i in range(30))
FLOATS = [float(2 ** (61 * i)) for i in range(17)]  # one hash
COLLISIONS = b"".join(b"(" + b"".join(b"G" + struct.pack(">d", FLOATS[n // 17 ** i % 17]) for i in range(4)) + b"tK\1"
                      for n in range(20_000))
PICKLES = {
    "long name called": b"\x80\x02c" + NAME.encode() + b"\nx\n" + put(0) + b"0" + (get(0) + b")R0") * 79_000 + b".",
    "long names compared": b"\x80\x04" + TWINS
                           + (get(0) + get(0) + b"\x930" + get(1) + get(1) + b"\x930") * 60_000 + b".",
    "bomb as a window's name": b"\x80\x02" + BOMB + b"0" + persistent(get(30) + b"K\0K\1\x87") + b".",
    "device of many parts": b"\x80\x02ctorch\ndevice\n" + put(0) + b"(" + text("d" * 50) + put(2)
                            + get(2) * 60_000 + b"t" + put(1) + (get(0) + get(1) + b"R0") * 60_000 + b".",
    "size of long text": b"\x80\x02](" + text("s" * 1_000_000) + put(1) + b"ctorch\nSize\n"
                         + put(0) + (get(0) + get(1) + b"\x85R") * 2000 + b"e.",
    "keys of one hash": b"\x80\x02}(" + COLLISIONS + b"u.",
    "array of empty text": b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\0cnumpy\ndtype\n(" + text("S")
                           + b"tR(\x8a\x06\0\0\0\0\0\x01t" + text("C") + b"tR.",
    "many middling lines": b"\x80\x02" + (b"V" + b"v" * 300 + b"\n0") * 60_000 + b"N" * 10,
    "long number": b"\x80\x02F" + b"1" * 1_000_000 + b"\n.",
    "a long start of a legacy file": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02"
                                     + b"N0" * 700_000 + b"M\xe9\x03.",
}

LONG = "a = 'a' * 99999\n"
CONFIGS = {
    "pattern of spaces": "a = 1 # {{$a:" + " " * 100_000, "pattern of braces": "a = 1 # " + "{{" * 100_000,
    "pattern of words": "a = 1 # " + "{{ _base_.a.b" * 18_000, "open word": "a = 1 # " + "{{_base_" + ".a" * 100_000,
    "format pattern": "a = ('{' + '.' * 99998).format(1)",
    "format of many fields": LONG + "b = ('{0}' * 30000).format(a)",
    "augmented text": LONG + "for i in range(60): a += a",
    "augmented list": "a = [1] * 9999\nfor i in range(60): a += a",
    "augmented number": "a = 3\nfor i in range(60): a *= a",
    "augmented set": "a = {1}\nfor i in range(99999): a |= {i}\nb = a[0]",
    "slice into itself": "a = [1]\nfor i in range(60): a[0:0] = a",
    "slice again": "a = [1] * 50000\nb = [0] * 50000\nfor i in range(90000): b[:] = a",
    "insert in front": "a = [1] * 90000\nfor i in range(90000):\n a.insert(0, 1)\n a.pop(0)",
    "reverse": "a = [1] * 90000\nfor i in range(90000): a.reverse()",
    "delete in front": "a = [1] * 99999\nfor i in range(90000):\n del a[0]", "round": "a = round(7, -10 ** 9)",
    "rounds": "a = round(7, -100000000)",
    "keys of one hash": "a = {(2 ** 61 - 1) * i: 1 for i in range(60000)}",
    "set of one hash": "a = set([(2 ** 61 - 1) * i for i in range(60000)])",
    "update with one hash": "a = {}\nfor i in range(60000): a.setdefault((2 ** 61 - 1) * i, 1)",
    "tuples of one hash": "a = {(2.0 ** (61 * (i % 16)), 2.0 ** (61 * (i // 16 % 16)), 2.0 ** (61 * (i // 256 % 16)), "
                          "2.0 ** (61 * (i // 4096))): 1 for i in range(30000)}",
    "names and comprehensions": "".join(f"n{i}=1\n" for i in range(20_000)) + "for i in range(99999): [1 for k in [1]]",
    "many targets": "for " + "a, " * 20_000 + "in [[1] * 20000] * 9999: pass",
    "search in text": "a = 'a' * 50000 + 'b' + 'a' * 49998\nb = 'a' * 50001\nfor i in range(9999): a.find(b)",
    "strip": LONG + "for i in range(9999): ('b' + a + 'b').strip(a)",
    "starts with": LONG + "for i in range(9999): a.startswith((a,) * 9999)",
    "% with one entry": LONG + "b = ('%(a)s' * 20000) % {'a': a}",
    "with in a loop": "for i in range(99999):\n with (" + "1+" * 60_000 + "1).read_base(): pass",
    "base of a bomb": "a = [1] * 9\n" + "a = [a] * 9\n" * 40 + "_base_ = a",
    "paths": "import os\na = os.path.join(*['a'] * 50000)",
    "blocks merged": "b = {str(i): i for i in range(20000)}\nc = {str(i): b for i in range(20000)}",
    "widths": "a = [f'{1:>999}' * 100 for i in range(99999)]",
    "power of text": "a = 2.0 ** 9999", "shift": "a = 1 << 9", "sum of lists": "a = sum([[1] * 99999] * 99999, [])",
    "index of a bomb": "a = [1] * 9\n" + "a = [a] * 9\n" * 40 + "[1].index(a)",
    "sorted texts": LONG + "b = sorted([a + 'b'] * 9999)",
    "deep brackets": "a = " + "[" * 90 + "]" * 90, "deep calls": "a = " + "dict(a=" * 60 + "1" + ")" * 60,
    "digits": "a = " + "9" * 250_000, "hex": "a = 0x" + "f" * 250_000,
}
# read, and soon: comments, or deep but sound
HARMLESS = {"pattern of spaces", "pattern of braces", "pattern of words", "open word", "deep calls"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in PICKLES.items():
        (folder / f"{name}.pth").write_bytes(content)
    for name, content in CONFIGS.items():
        (folder / f"{name.replace('%', 'percent')}.py").write_text(content)
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder), str(SECONDS), str(MEGABYTES)], timeout=500,
                          capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return {name: (status, said) for name, status, said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", [*(f"{name}.pth" for name in PICKLES),
                                  *(f"{name.replace('%', 'percent')}.py" for name in CONFIGS)])
def test_a_short_file_costs_little_and_ends_in_one_line(results, name):
    status, said = results[name]
    harmless = pathlib.Path(name).stem in HARMLESS
    assert status == 2 or (harmless and status == 0), said
    assert "\n" not in said and len(said) < 1000 and (harmless or name in said), said
