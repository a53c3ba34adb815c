"""The `.py` config reader: inheritance of every style, the Python that configs use,
and nothing else, in bounded time.
"""

import subprocess
import sys
import time

import pytest
from config_samples import LAZY, TREE_1X, plant

from jseg.convert.py_config import parse_py_config, read_py_config
from jseg.errors import ConvertError


def value_of(expression: str):
    """What an expression gives."""
    return parse_py_config(f"a = {expression}", "x.py")["a"]


def test_the_reader_does_not_load_jittor():
    code = "import sys, jseg.convert.py_config; sys.exit('jittor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_bases_merge_and_delete_replaces(tmp_path):
    cfg = read_py_config(plant(tmp_path, TREE_1X) / "base.py")
    assert cfg["model"]["backbone"]["depths"] == [3, 3, 12, 3]
    assert cfg["model"]["backbone"]["mlp_ratios"] == [8, 8, 4, 4]                   # from tiny.py
    assert cfg["model"]["backbone"]["init_cfg"]["checkpoint"] == "https://example.invalid/mscan_t.pth"
    assert "clip_grad" not in cfg["optim_wrapper"] and "_delete_" not in cfg["optim_wrapper"]
    assert cfg["train_dataloader"]["batch_size"] == 16 and cfg["train_dataloader"]["num_workers"] == 4
    assert cfg["train_dataloader"]["dataset"]["pipeline"][2]["scale"] == (2048, 512)  # a tuple stays one
    assert len(cfg["tta_pipeline"][1]["transforms"][0]) == 6
    assert "_base_" not in cfg


def test_places_do_not_share_values(tmp_path):
    cfg = read_py_config(plant(tmp_path, TREE_1X) / "tiny.py")
    cfg["val_dataloader"]["dataset"]["pipeline"].clear()
    assert len(cfg["test_dataloader"]["dataset"]["pipeline"]) == 4


def test_base_variables_and_file_words(tmp_path):
    plant(tmp_path, {"b.py": "depth = 50\nnet = dict(layers=[1, 2], head=dict(k=3))\n", "sub/run_1.py": """
_base_ = '../b.py'
one = {{_base_.net.head.k}}
two = _base_.net.layers[1] + _base_.depth
three = dict(_base_.net.head, j=4)
name = '{{ fileBasenameNoExtension }}{{fileExtname}}'
classes = {{'$CLASSES_NOWHERE:21'}}
root = '{{$ROOT_NOWHERE:data}}/x'
"""})
    cfg = read_py_config(tmp_path / "sub" / "run_1.py")
    assert (cfg["one"], cfg["two"], cfg["three"], cfg["name"]) == (3, 52, {"k": 3, "j": 4}, "run_1.py")
    assert (cfg["classes"], cfg["root"], cfg["depth"]) == (21, "data/x", 50)


def test_original_jseg_cover(tmp_path):
    plant(tmp_path, {"b.py": "a = dict(x=1, y=dict(p=1, q=2))\nc = 5", "m.py": """
_base_ = ['b.py']
a = dict(y=dict(_cover_=True, p=7))
c = dict(z=1)
"""})
    assert read_py_config(tmp_path / "m.py") == {"a": {"x": 1, "y": {"p": 7}}, "c": {"z": 1}}


def test_lazy_style(tmp_path):
    cfg = read_py_config(plant(tmp_path, LAZY) / "net" / "lazy.py")
    assert cfg == {"rate": 0.5, "same_rate": 0.5,
                   "schedule": {"type": "mmengine.optim.PolyLR", "power": 1.0, "eta_min": 0.0},
                   "model": {"type": "mmseg.models.EncoderDecoder",
                             "head": {"loss": {"type": "mmseg.models.losses.CrossEntropyLoss"}, "dropout": 0.5}}}


def test_checkpoint_text_reads_back():
    text = """
data = dict(
    samples_per_gpu=4,
    train=dict(
        pipeline=[
            dict(type='Resize', img_scale=(
                2048,
                512,
            )),
        ]))
limit = inf
model = {'head.norm': dict(k=-1), 'x': None}
"""
    assert parse_py_config(text, "w.pth: meta.config") == {
        "data": {"samples_per_gpu": 4, "train": {"pipeline": [{"type": "Resize", "img_scale": (2048, 512)}]}},
        "limit": float("inf"), "model": {"head.norm": {"k": -1}, "x": None}}
    with pytest.raises(ConvertError,
                       match=r"w\.pth: meta\.config:1: inherits from 'a\.py', but this text has no folder"):
        parse_py_config("_base_ = 'a.py'", "w.pth: meta.config")


@pytest.mark.parametrize("expression, expected", [
    ("[1.0] * 3 + [0.1]", [1.0, 1.0, 1.0, 0.1]), ("-2 ** 2 // 3", -2), ("7 % 4 / 2", 1.5), ("not (1 < 2 <= 2)", False),
    ("'a' if [] else 'b'", "b"), ("[int(512 * x * 0.1) for x in range(5, 9) if x != 6]", [256, 358, 409]),
    ("{f's{i}.{j}': 0 for i, n in enumerate([1, 2]) for j in range(n)}", {"s0.0": 0, "s1.0": 0, "s1.1": 0}),
    ("sum([[dict(a=1)], [2]], [])", [{"a": 1}, 2]), ("dict(dict(a=1), **{'b': 2})", {"a": 1, "b": 2}),
    ("[*range(2), 5][-1]", 5), ("'a_b.py'.split('.')[0].replace('a', 'c').upper()", "C_B"),
    ("'{:03d}-{k}'.format(7, k='x')", "007-x"), ("'%d%s' % (1, 'x')", "1x"),
    ("f'{0.5:.2f}{1!r}'", "0.501"), ("(1, (2, 3))[1:][0]", (2, 3)), ("1e-6 if 'a' in dict(a=1) else 0", 1e-6),
    ("dict(a=[1, 2]).get('a')", [1, 2]), ("min(3, 2) + max([1, 4]) + abs(-1) + len('ab')", 9),
    ("list(zip([1], 'a'))", [(1, "a")]), ])
def test_expressions(expression, expected):
    assert value_of(expression) == expected


def test_statements():
    cfg = parse_py_config("""
'''A docstring.'''
import os.path as osp, copy
a: int = 1
a += 2
b, (c, *[]) = 4, (5,)
d = dict(x=dict(y=1))
e = copy.deepcopy(d)
d['x']['y'] = 2
d['x'].update(z=3)
if a == 3:
    keep = [i for i in range(2)]
else:
    wrong = 1
for k in ('m', 'n'):
    d[k] = osp.join('data', k)
del b
__hidden__ = 1
""".replace(", *[]", ","), "x.py")
    assert cfg == {"a": 3, "c": 5, "d": {"x": {"y": 2, "z": 3}, "m": "data/m", "n": "data/n"}, "e": {"x": {"y": 1}},
                   "keep": [0, 1], "k": "n"}


HOSTILE = {
    "import": "__import__('os').system('touch pwned')", "exec": "exec('1')", "open": "a = open('f').read()",
    "getattr": "getattr(dict, 'x')", "system": "import os\nos.system('touch pwned')",
    "environ": "import os\na = os.environ.get('HOME')", "numpy": "import numpy\na = numpy.load('f')",
    "class attribute": "a = ().__class__.__bases__", "text attribute": "a = ''.__class__",
    "format attribute": "a = '{0.__class__}'.format(1)", "lambda": "a = lambda: 0", "def": "def f(): pass",
    "class": "class A: pass", "while": "while True: pass", "try": "try:\n a = 1\nexcept: pass",
    "with": "with open('x') as f: pass", "walrus": "(a := 1)", "star": "from os import *",
    "relative": "from .x import y", "power": "a = 9 ** 9 ** 9", "shift": "a = 1 << 99999999",
    "long text": "a = 'a' * 10 ** 10", "long list": "a = [0] * 10 ** 10", "width": "a = f'{1:>99999999}'",
    "width in format": "a = '{:{}}'.format(1, 99999999)", "width in %": "a = '%*d' % (99999999, 1)",
    "loops": "for i in range(100000):\n for j in range(100000):\n  a = 1",
    "comprehension": "a = [i for i in range(99999) for j in range(99999)]",
    "laughs": "a = [1] * 10\n" + "a = [a] * 10\n" * 30, "laughs as text": "a = [1] * 10\n" + "a = [a] * 10\n" * 30
    + "b = str(a)", "compare": "a = b = [1]\n" + "a = [a, a]\nb = [b, b]\n" * 40 + "c = a == b",
    "cycle": "a = []\na.append(a)", "block cycle": "a = {}\na['x'] = a", "brackets": "a = " + "[" * 5000 + "]" * 5000,
    "minuses": "a = " + "-" * 90000 + "1", "pluses": "a = " + "1+" * 20000 + "1",
    "growing": "a = [1]\n" + "a.extend(a)\n" * 40, "hoard": "x = []\nfor i in range(90000): x.append('a' * 99999)",
    "copies": "a = [1] * 90000\nx = []\nfor i in range(90000): x.append(a[:])",
    "replace": "a = 'a' * 999\na = a.replace('a', 'b' * 999)", "join": "a = ('x' * 99999).join(['a'] * 99999)",
    "list as key": "a = {[1]: 2}", "no such name": "a = b", "missing entry": "a = {}['x']",
    "bytes": "a = b'x'", "half a pair": "a = '\\ud800'", "huge file": "a = 1\n" * 60000, "not Python": "a = 1 if",
    "null": "a = '\0'", }


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configs_end_with_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plant(tmp_path, {"f": "secret"})
    start = time.perf_counter()
    with pytest.raises(ConvertError) as error:
        parse_py_config(HOSTILE[name], "x.py")
    assert str(error.value).startswith("x.py:") and "\n" not in str(error.value) and "secret" not in str(error.value)
    assert time.perf_counter() - start < 10
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_errors_name_file_and_line(tmp_path):
    plant(tmp_path, {"a.py": "x = 1\ny = run(x)\n", "c.py": "_base_ = 'a.py'", "loop.py": "_base_ = './loop.py'",
                     "none.py": "\n_base_ = 'gone.py'", "pkg.py": "_base_ = 'mmdet::a.py'", "d.json": "{}",
                     "e.py": "_base_ = 'd.json'"})
    for name, text in (("c.py", r"a\.py:2: calls 'run'"), ("loop.py", "goes in a circle"),
                       ("none.py", r"none\.py: .*gone\.py: cannot read"),
                       ("pkg.py", r"pkg\.py:1: .*inside another package"), ("e.py", "expected a config in Python"),
                       ("d.json", "expected a config in Python")):
        with pytest.raises(ConvertError, match=text):
            read_py_config(tmp_path / name)
    plant(tmp_path, {f"n{i}.py": f"_base_ = 'n{i + 1}.py'" for i in range(30)})
    with pytest.raises(ConvertError, match="more than 12 levels"):
        read_py_config(tmp_path / "n0.py")
