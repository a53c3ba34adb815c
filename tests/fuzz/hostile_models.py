"""Hostile checkpoints, pickles, weights files and configs: code that wants to run, numbers that lie, text that
grows.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import struct
import tarfile
import tempfile
import zipfile
from typing import Callable, Union

import numpy as np
from torch_opcodes import integer, program, tensor, text

from jseg.weights_file import write_weights_file

__all__ = ["HOSTILE"]

Made = Union[bytes, Callable[[pathlib.Path], None]]  # the content, or what makes the file
MB = 1 << 20


# ---- checkpoints of torch ------------------------------------------------------------------------------------------


def archive(content: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED,
            root: str = "archive") -> bytes:
    """A torch zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr(f"{root}/data.pkl", content)
        for key, data in (storages if storages is not None else {"0": bytes(8)}).items():
            file.writestr(f"{root}/data/{key}", data)
        file.writestr(f"{root}/version", b"3\n")
    return buffer.getvalue()


def _tar_form() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo("storages")
        file.addfile(info)
    return buffer.getvalue()


def _pth() -> dict[str, Made]:
    good = archive(program(tensor()))
    runs = archive(program(b"cos\nsystem\n(" + text("touch owned") + b"tR"))
    cases: dict[str, Made] = {f"tensor of {fields}": archive(program(tensor(**fields))) for fields in (
        {"shape": (2 ** 40,)}, {"shape": (-1,)}, {"shape": (2 ** 62, 2 ** 62)}, {"strides": (-1,)},
        {"strides": (2 ** 62,)}, {"offset": 2 ** 62}, {"offset": -8},
        {"count": 2 ** 60}, {"count": -1}, {"key": "../../etc/passwd"}, {"key": "no such"}, {"shape": (1,) * 2000,
            "strides": (1,) * 2000},
        {"shape": (2 ** 31,), "strides": (0,)}, {"storage": "ComplexFloatStorage"}, {"storage": "NoSuchStorage"})}
    cases |= {
        "empty": b"", "page": b"<html>404</html>" * 99, "runs a command": runs, "cut in the directory": good[:-40],
        "cut in the pickle": good[:90],
        "no data.pkl": archive(b"").replace(b"data.pkl", b"data.pky"),
        "storage shorter than said": archive(program(tensor()), {"0": b"\0" * 3}),
        "no storage": archive(program(tensor()), {}),
        "compressed bomb": archive(bytes(80 * MB), method=zipfile.ZIP_DEFLATED),
        "garbage pickle": archive(b"\xff" * 500), "lists 100,000 deep": archive(program(b"](" * 100_000)),
        "tuples 100,000 deep": archive(b"\x80\x02)" + b"\x85" * 100_000 + b"."), "tar form": _tar_form(),
        "legacy magic alone": pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        "legacy of huge counts": b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001,
            {"little_endian": True}, {}, ["0"])) + struct.pack("<q", 2 ** 62),
        "long name called often": archive(b"\x80\x02" + b"c" + b"m" * 60_000 + b"\nf\nq\x00" + b"h\x00)R0" * 30_000
                                          + b"N."),
        "a list doubled often": archive(b"\x80\x02]q\x00" + b"(h\x00h\x00e" * 40 + b"."),
        "text that is config with a bomb": archive(
            b"\x80\x02}" + text("meta") + b"}" + text("config") + text("a = 'x' * 10 ** 9\nb = [a] * 10 ** 9")
            + b"ss."),
    }
    return cases


def _pkl() -> dict[str, Made]:
    def op(*codes: bytes) -> bytes:
        return b"\x80\x04" + b"".join(codes) + b"."
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U%c%sK\x00K\x01tR"
    return {
        "empty": b"", "page": b"<html>404</html>" * 99, "runs a command": b"cos\nsystem\n(S'touch owned'\ntR.",
        "runs eval": b"cbuiltins\neval\n(S'1'\ntR.",
        "runs by INST": b"(S'touch owned'\nios\nsystem\n.", "runs by STACK_GLOBAL": op(text("subprocess"),
            text("Popen"), b"\x93", text("touch"), b"\x85R"),
        "memo number of 2^31": op(b"Nr\xff\xff\xff\x7f"), "bytes of 2^62": op(b"\x8e", struct.pack("<Q", 2 ** 62)),
        "text of 2^63": op(b"\x8d", struct.pack("<Q", 2 ** 63)),
        "frame of 2^63": op(b"\x95", struct.pack("<Q", 2 ** 63), b"N"), "long of 2 GB": op(b"\x8b", struct.pack("<i",
            2 ** 31 - 1)), "long of negative length": op(b"\x8b", struct.pack("<i", -5)),
        "integer of a million digits": b"I" + b"9" * MB + b"\n.",
        "float of a million digits": b"F" + b"9" * MB + b"\n.", "quotes that do not close": b"S'abc\n.",
        "a million marks": b"(" * MB + b".", "a million pops": b"0" * MB + b".", "a million lists": b"]" * MB + b".",
        "lists in each other": op(b"]" * 50_000, b"a" * 49_999),
        "text doubled by memo": op(text("x" * 60_000), b"\x94", b"h\x00\x86h\x00\x86" * 20_000), "stop at once": b".",
        "no stop": b"\x80\x02N", "unknown opcode": op(b"\xfe"),
        "protocol 99": b"\x80\x63N.", "persistent id": b"Pabc\n.", "extension": op(b"\x82\x01"),
        "list as a key": op(b"}]Ns"), "dict of odd count": op(b"(NNNd"),
        "calls a number": op(b"K\x01)R"), "builds on a number": op(b"K\x01}b"), "next buffer": op(b"\x97"),
        "array of absurd size": op(
            array, b"(K\x01(", integer(2 ** 40), b"t", dtype % (2, b"f4"), b"\x89U\x04abcdtb"),
            "array of objects": op(array, b"(K\x01(K\x01t", dtype % (2, b"O8"), b"\x89]Natb"),
        "array of wide records": op(array, b"(K\x01(K\x01t", dtype % (11, b"V2000000000"), b"\x89U\x04abcdtb"),
        "colliding keys": op(b"}(", b"".join(
            integer(place * (2 ** 61 - 1)) + b"N" for place in range(20_000)), b"u"),
    }


# ---- weights files -------------------------------------------------------------------------------------------------


def tensors(header: object, data: bytes = bytes(8), size: int | None = None) -> bytes:
    """A safetensors file of any header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", (len(raw) if size is None else size) % 2 ** 64) + raw + data


def sealed(metadata: dict) -> bytes:
    """A whole jseg weights file with odd metadata."""
    state = {"w": np.zeros(2, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "w.safetensors"
        write_weights_file(path, ["w"], state.__getitem__, metadata)
        return path.read_bytes()


def _safetensors() -> dict[str, Made]:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    cases: dict[str, Made] = {f"tensor of {fields}": tensors({"w": {**one, **fields}}) for fields in (
        {"shape": [2 ** 63]}, {"shape": [-2]}, {"shape": [2 ** 40, 2 ** 40]}, {"shape": "2"}, {"data_offsets": [0,
            2 ** 62]}, {"data_offsets": [8, 0]}, {"data_offsets": [-8, 0]},
        {"data_offsets": []}, {"dtype": "F99"}, {"dtype": None}, {"shape": [1] * 5000})}
    cases |= {f"metadata {value!r}"[:60]: tensors({"w": one, "__metadata__": value}) for value in (
        None, 3, [], {"config": 3}, {"config": "{"}, {"format": "pt"}, {"format": "jseg 2", "config": "[" * 100_000},
        {"config": "null", "classes": "3", "palette": "\"x\""})}
    cases |= {f"sealed {sorted(value.items())!r}"[:70]: sealed(value) for value in (
        {}, {"config": None}, {"config": []}, {"config": {}, "classes": 3, "palette": None}, {"config": {"model": 3},
            "classes": None}, {"config": "x" * 99, "classes": {}})}
    cases |= {
        "empty": b"", "page": b"<html>404</html>" * 99, "length of 2^63": tensors({"w": one}, size=2 ** 63),
        "length of 2^64 - 1": tensors({"w": one}, size=-1),
        "length beyond the file": tensors({"w": one}, size=9999), "length of nothing": tensors({"w": one}, size=0),
        "no JSON": tensors(b"\xff" * 64), "a list": tensors([]),
        "cut in the header": tensors({"w": one})[:20], "cut in the values": tensors({"w": one})[:-3],
        "overlapping": tensors({"w": one, "v": one}),
        "a hole": tensors({"w": {**one, "data_offsets": [8, 16]}}, bytes(16)),
        "brackets 100,000 deep": tensors(b"[" * 100_000), "the same name twice": tensors(
            b'{"w":%s,"w":%s}' % ((json.dumps(one).encode(),) * 2)),
            "integer of a million digits": tensors(b'{"w":' + b"9" * MB + b"}"), "no metadata": tensors({"w": one}),
        "escapes in a name": tensors({"\x1b[2J\x07": one}), "100,000 tensors": tensors({f"w{place}": {"dtype": "F32",
            "shape": [0], "data_offsets": [0, 0]} for place in range(100_000)}, b""),
    }
    return cases


# ---- configs -------------------------------------------------------------------------------------------------------


def with_base(content: str, base: str, make_base: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], None]:
    """A config and something beside it."""
    def make(path: pathlib.Path) -> None:
        path.write_text(content)
        make_base(path.parent / base)
    return make


def _py() -> dict[str, Made]:
    def lines(*text: str) -> bytes:
        return "\n".join(text).encode() + b"\n"
    expressions = ("9 ** 9 ** 9", "1 << 10 ** 10", "'a' * 10 ** 10", "[0] * 10 ** 10", "list(range(10 ** 10))",
                   "[x for x in range(10 ** 5) for y in range(10 ** 5)]",
                   "f'{1:1000000000}'", "'%1000000000d' % 1", "'{:>999999999}'.format(1)",
                   "'{:*^{}}'.format(1, 10 ** 9)", "'aaaa'.replace('', 'b' * 10 ** 6)",
                   "('x' * 10 ** 5).join(['y'] * 10 ** 5)", "__import__('os').system('touch owned')",
                   "().__class__.__base__.__subclasses__()", "open('/etc/passwd').read()",
                   "eval('1')", "(lambda: 1)()", "sum([[0] * 10 ** 6] * 10 ** 4, [])", "str(10 ** 10 ** 6)",
                   "{**{}, **{'a': a}}", "dict(zip(range(10 ** 9), range(10 ** 9)))",
                   "'a'.ljust(10 ** 10)", "bytes(10 ** 10)", "1 if" + " (" * 3000 + "1" + ")" * 3000 + " else 2",
                   "-" * 50_000 + "1", "[" * 300 + "]" * 300, "not " * 30_000 + "1")
    cases: dict[str, Made] = {f"a = {expression}"[:60]: lines(f"a = {expression}") for expression in expressions}
    cases |= {
        "page": b"<html>404</html>" * 99, "NUL": b"a = 1\0\n", "UTF-16": "a = 1".encode("utf-16"),
        "latin-1": "a = 'stra\xdfe'\n".encode("latin-1"), "tabs and spaces": b"if 1:\n\ta = 1\n        b = 2\n",
        "text that doubles": lines("a = 'x'", *["a += a"] * 60), "lists that double": lines("a = [1]",
            *["a = [a, a]"] * 60), "loop": lines("while True:", "    pass"), "recursion": lines("def f(): return f()",
                "a = f()"),
        "class": lines("class A: pass"), "import": lines("import os", "os.system('touch owned')"),
        "base of itself": with_base("_base_ = './file.py'\n", "x", lambda path: None),
        "base is a pipe": with_base("_base_ = './pipe.py'\n", "pipe.py", os.mkfifo),
        "base is endless": with_base("_base_ = './zero.py'\n", "zero.py", lambda path: os.symlink("/dev/zero", path)),
        "base elsewhere": lines("_base_ = '/etc/passwd'"), "a thousand bases": lines("_base_ = ['./a.py'] * 1000"),
        "base of two": with_base(
            "_base_ = './b.py'\n", "b.py", lambda path: path.write_text("_base_ = './file.py'\n")),
            "a line of a megabyte": lines("a = '" + "x" * MB + "'"),
        "braces that grow": lines("a = '{{fileDirname}}' * 3000", "b = '{{_base_.x}}'"),
        "spaces for a regular expression": lines("_base_ = '" + "{{ " + " " * 200_000 + "'"),
        "expression of 20,000 terms": lines("a = " + " + ".join(["1"] * 20_000)),
        "escapes in a message": lines("a = '\x1b[2J' + 1"), "marks of direction": lines("a = \u202e1"),
    }
    return cases


def _yaml() -> dict[str, Made]:
    def laughs(item: str, levels: int) -> bytes:
        rows = [f"a0: &a0 {item}"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
        return "\n".join(rows).encode()
    maps = ["m0: &m0 {x: 1}"] + [f"m{n}: &m{n} {{" + ", ".join(f"k{k}: *m{n - 1}" for k in range(9)) + "}"
                                 for n in range(1, 9)]
    merged = ["m0: &m0 {x: 1}"] + [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 50)}]}}" for n in range(1, 30)]
    values = ("!!python/object/apply:os.system ['touch owned']", "!!python/name:os.system", "!!binary '%%%'",
              "2026-99-99", "!!timestamp x", "!!int x", "!!float x", "!!bool x", "!!omap x",
              "{[1, 2]: 3}", "{{}: 1}", "? [a]", "&a [*a]", "*nowhere", "!unknown 3", "{<<: 3}", "{<<: [1]}", "%", "@",
              "`", "'", "\"\\xZZ\"", "\"\\U99999999\"", "[1, 2", "}", "1: 2: 3", "9" * 100_000)
    cases: dict[str, Made] = {f"a: {value}"[:60]: f"a: {value}\n".encode() for value in values}
    cases |= {
        "page": b"<html>404</html>" * 99, "laughs": laughs("[x, x, x, x, x, x, x, x, x]", 10),
        "laughs of text": laughs("'" + "x" * 1000 + "'", 9), "laughs of maps": "\n".join(maps).encode(),
        "merged maps": "\n".join(merged).encode(), "brackets 100,000 deep": b"a: " + b"[" * 100_000,
        "braces 100,000 deep": b"a: " + b"{a: " * 100_000, "dashes 10,000 deep": b"- " * 10_000,
        "indents": b"\n".join(b" " * depth + b"a:" for depth in range(3000)), "NUL": b"a: \0\n", "bell": b"a: \x07\n",
        "UTF-16": "a: 1".encode("utf-16"), "latin-1": "a: stra\xdfe\n".encode("latin-1"),
        "base is a pipe": with_base("_base_: pipe.yaml\n", "pipe.yaml", os.mkfifo),
        "base is endless": with_base("_base_: zero.yaml\n", "zero.yaml", lambda path: os.symlink("/dev/zero", path)),
        "base of itself": b"_base_: file.yaml\n", "base of no text": b"_base_: {a: 1}\n",
        "base elsewhere": b"_base_: /etc/passwd\n", "base with NUL": b"_base_: \"a\\0.yaml\"\n",
        "the same key twice": b"a: 1\na: 2\n", "two documents": b"a: 1\n---\nb: 2\n", "a list": b"- 1\n",
        "a text": b"hello\n", "tab": b"a:\n\tb: 1\n", "three megabytes": b"a: [" + b"1," * (3 * MB // 2) + b"]\n",
        "a hundred thousand keys": b"".join(b"k%d: 1\n" % n for n in range(100_000)),
        "quadratic comments": b"a: '" + b"\n\n" * 300_000 + b"'",
    }
    return cases


HOSTILE = {"pth": _pth, "pkl": _pkl, "safetensors": _safetensors, "py": _py, "yaml": _yaml}
# Odd but whole, or harmless as data: they may be read.
READABLE = {
    "pth": {"a list doubled often", "text that is config with a bomb"},
    "pkl": {"frame of 2^63", "protocol 99", "extension", "calls a number"}, "safetensors": set(),
    "py": {"braces that grow"}, "yaml": {"a: 2026-99-99"},
}
