"""Reading, inheriting, overriding and writing configs."""

import pathlib
import re

import pytest

from jseg.config import apply_overrides, configs_folder, dump_config, load_config, merge
from jseg.errors import ConfigError

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[1] / "configs").rglob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    """A function that writes one file below tmp_path and returns its path."""

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def complaint(call, *args) -> str:
    """The text of the ConfigError that a call raises."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize("text, number", [("6e-5", 6e-5), ("1e-6", 1e-6), ("1E5", 1e5), ("-2.5e+3", -2500.0),
                                          ("+1e2", 100.0), (".5e1", 5.0), ("1.e3", 1000.0), ("1_0e2", 1000.0),
                                          ("0.1", 0.1), ("6.0e-05", 6e-5)])
def test_exponents_are_numbers(write, text, number):
    value = load_config(write("a.yaml", f"lr: {text}\n"))["lr"]
    assert isinstance(value, float) and value == number


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "0x1e5g", "'6e-5'", "deadbee5"])
def test_words_that_look_like_numbers_stay_text(write, text):
    assert load_config(write("a.yaml", f"name: {text}\n"))["name"] == text.strip("'")


@pytest.mark.parametrize("text, first, second", [
    ("a: 1\nb: 2\na: 3\n", 1, 3), ("x:\n  a: 1\n  b: {c: 1}\n  a: 2\n", 2, 4), ("x: [{a: 1,\n  a: 2}]\n", 1, 2),
    ("x: {a: 1, a: 1}\n", 1, 1), ("'a': 1\na: 2\n", 1, 2)])
def test_a_key_given_twice_is_refused_with_both_lines(write, text, first, second):
    path = write("a.yaml", text)
    assert (complaint(load_config, path) == f"{path}:{second}: key 'a' is given twice, first on line {first}; keep one "
                                            "of them")


def test_equal_keys_in_different_blocks_and_anchors_are_fine(write):
    path = write("a.yaml", "x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\nz: *x\n'1': text\n1: number\n")
    cfg = load_config(path)
    assert cfg == {"x": {"a": 1, "b": 2}, "y": {"a": 3, "b": 2}, "z": {"a": 1, "b": 2}, "1": "text", 1: "number"}


@pytest.mark.parametrize("text, words", [
    ("a:\n\tb: 1\n", ":2: not YAML: a tab cannot indent YAML; use spaces"),
    ("a: [1, 2\nb: 3\n", ":2: not YAML: "),
    ("a: 1\n  b: 2\n", ":2: not YAML: mapping values are not allowed here"),
    ("a: !!python/object:os.system {}\n", ":1: not YAML: could not determine a constructor"),
    ("a: 1\n---\nb: 2\n", ":2: not YAML: but found another document"),
    ("a: 1\nb: &b {c: [*b]}\n", ":2: this block contains itself through an alias; write it out"),
    ("a: {[1]: 2}\n", ":1: not YAML: found unhashable key"),
    ("a: *missing\n", ":1: not YAML: found undefined alias"),
    ("- 1\n- 2\n", ": expected `key: value` lines at the top level, got list"),
    ("# nothing\n", ": expected `key: value` lines at the top level, got an empty file")])
def test_what_is_not_a_config_is_named_with_its_line(write, text, words):
    path = write("a.yaml", text)
    assert complaint(load_config, path).startswith(path + words)


def test_files_that_cannot_be_read(write, tmp_path):
    path = write("train.yaml", "a: 1\n")
    message = complaint(load_config, path.replace("train", "trian"))
    assert "trian.yaml: cannot read the config (No such file or directory); did you mean 'train.yaml'?" in message
    assert "expected a config in YAML" in complaint(load_config, write("a.py", "a = 1\n"))
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
    assert "bytes.yaml:1: not UTF-8 (byte 0xff); save it as UTF-8" in complaint(
        load_config, str(tmp_path / "bytes.yaml"))
    (tmp_path / "closed.yaml").symlink_to(tmp_path / "closed.yaml")
    assert "did you mean" not in complaint(load_config, str(tmp_path / "closed.yaml"))
    child = write("child.yaml", "_base_: ../gone.yaml\n")
    assert complaint(load_config, child).startswith(f"{child}: _base_: ")


SHIPPED = "segnext/segnext_tiny_ade20k-512x512_160k.yaml"


@pytest.mark.parametrize("name", [SHIPPED, f"configs/{SHIPPED}", f"./configs/{SHIPPED}", SHIPPED.removesuffix(".yaml"),
                                  SHIPPED.partition("/")[2], SHIPPED.partition("/")[2].removesuffix(".yaml"),
                                  pathlib.PurePath(SHIPPED)])
def test_a_shipped_config_has_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name, ["seed=7"]) == {**load_config(pathlib.Path(__file__).parents[1] / "configs" / SHIPPED),
                                             "seed": 7}


def test_a_file_comes_before_the_shipped_config_of_its_name(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(SHIPPED, "a: 1\n")
    assert load_config(SHIPPED) == {"a": 1}
    with pytest.raises(ConfigError):  # only the command's own word is a name
        load_config(write("child.yaml", f"_base_: other/{SHIPPED}\n"))


@pytest.mark.parametrize("name, words", [
    ("segnext/segnext_tny_ade20k-512x512_160k.yaml",
     "cannot read the config (No such file or directory), and none of the configs that come with jseg has this name; "
     "the nearest of them: segnext/segnext_tiny_ade20k-512x512_160k.yaml, "),
    ("segnext_tiny_ade-512x512_160k", "no config has this name; expected a file that ends in .yaml or .yml, or one of "
     "those that come with jseg; the nearest of them: segnext/segnext_"),
    ("other/segnext_tiny_ade20k-512x512_160k.yaml",
     "has this name; the nearest of them: segnext/segnext_tiny_ade20k-512x512_160k.yaml, "),
    ("segnext", "those that come with jseg: segnext/segnext_base_ade20k-512x512_160k.yaml, segnext/"),
    ("/segnext/segnext_tiny_ade20k-512x512_160k.yaml", "cannot read the config"),
    (f"../{SHIPPED}", "cannot read the config"),
    ("_base_/schedules/none.yaml", "cannot read the config"),
    ("y" * 5000 + ".yaml", "cannot read the config (File name too long)")])
def test_a_name_that_no_config_has_gets_the_nearest(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint(load_config, name).startswith(f"{name}: ") and words in complaint(load_config, name)


def test_a_name_that_two_shipped_configs_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jseg.config.shipped_configs", lambda: {"a/x": "a/x.yaml", "b/x": "b/x.yaml"})
    assert (complaint(load_config, "x.yaml") == "x.yaml: several configs that come with jseg have this name: a/x, b/x; "
                                                "name one with its folder")


def test_bases_merge_in_order_and_lists_replace(write):
    write("base/model.yaml", "model: {type: A, head: {channels: 8, classes: 2}}\nlist: [1, 2, 3]\n")
    write("base/data.yaml", "data: {root: x}\nmodel: {head: {classes: 3}}\n")
    path = write("sub/a.yaml",
                 "_base_: [../base/model.yaml, ../base/data.yaml]\nmodel: {head: {channels: 16}}\nlist: [9]\n")
    assert load_config(path) == {"model": {"type": "A", "head": {"channels": 16, "classes": 3}},
                                 "data": {"root": "x"}, "list": [9]}


def test_delete_replaces_a_block(write):
    write("base.yaml", "opt: {type: SGD, lr: 0.1, nested: {x: 1}}\nneck: null\n")
    path = write("a.yaml", "_base_: base.yaml\nopt: {_delete_: true, type: AdamW, nested: {_delete_: false, y: "
                           "2}}\nneck: {type: FPN}\n")
    assert load_config(path) == {"opt": {"type": "AdamW", "nested": {"y": 2}}, "neck": {"type": "FPN"}}
    assert load_config(write("alone.yaml", "opt: {_delete_: true, a: 1}\n")) == {"opt": {"a": 1}}


def test_null_and_false_override(write):
    write("base.yaml", "a: {b: 1}\nc: 5\nd: true\n")
    assert load_config(write("x.yaml", "_base_: base.yaml\na: null\nc: 0\nd: false\n")) == {
        "a": None, "c": 0, "d": False}


def test_depth_two_is_read_and_three_refused(write):
    write("a.yaml", "v: [a]\nonly_a: 1\n")
    write("b.yaml", "_base_: a.yaml\nv: [b]\n")
    c = write("c.yaml", "_base_: b.yaml\nv: [c]\n")
    assert load_config(c) == {"v": ["c"], "only_a": 1}
    message = complaint(load_config, write("d.yaml", "_base_: c.yaml\n"))
    assert "_base_ is nested 3 deep" in message and "at most 2 levels" in message


def test_circles_are_refused(write):
    path = write("a.yaml", "_base_: b.yaml\n")
    write("b.yaml", "_base_: ./a.yaml\n")
    assert "_base_ goes in a circle" in complaint(load_config, path)
    assert "_base_ goes in a circle" in complaint(load_config, write("self.yaml", "_base_: self.yaml\n"))


def test_own_bases_have_names_in_any_folder(write, tmp_path, monkeypatch):
    """jseg:: leads to the package's files, which may themselves be two deep."""
    path = write("deep/er/child.yaml", "_base_: [jseg::models/segnext_tiny, 'jseg::schedules/adamw_20k.yaml']\n"
                                       "model: {decode_head: {num_classes: 3}}\n")
    write("parent.yaml", f"_base_: {path}\nseed: 4\n")
    monkeypatch.chdir(tmp_path)
    folder = configs_folder() / "_base_"
    wanted = load_config(folder / "models/segnext_tiny.yaml")
    wanted["model"]["decode_head"]["num_classes"] = 3
    wanted.update(load_config(folder / "schedules/adamw_20k.yaml"), seed=4)
    assert load_config(write("top.yaml", "_base_: parent.yaml\n")) == wanted
    whole = "segnext/segnext_tiny_ade20k-512x512_160k"
    assert load_config(write("whole.yaml", f"_base_: jseg::{whole}\n")) == load_config(whole)
    for name, hint in (("models/segnext_tini", "did you mean 'jseg::models/segnext_tiny'?"),
                       ("segnext_tiny", "there are jseg::models/segnext_tiny"), ("../../etc/passwd", "no base")):
        assert hint in complaint(load_config, write("wrong.yaml", f"_base_: jseg::{name}\n"))


@pytest.mark.parametrize("text, hint", [
    ("lr=1", "--set lr: the config has no 'lr' at the top; did you mean 'optimizer.lr'?"),
    ("num_classes=3", "did you mean 'model.decode_head.num_classes'?"),
    ("decode_head.num_classes=3", "did you mean 'model.decode_head.num_classes'?"),
    ("dataset.split.fold=1", "did you mean 'train_dataloader.dataset.split.fold'?"),
    ("train_cgf.max_iters=1", "did you mean 'train_cfg'?"),
    ("train_dataloader.datasets.split=1", "did you mean 'dataset'?")])
def test_overrides_name_the_nearest_key(text, hint):
    cfg = {"model": {"decode_head": {"num_classes": 2}}, "optimizer": {"lr": 0.1}, "train_cfg": {"max_iters": 1},
           "train_dataloader": {"dataset": {"split": {"fold": 0, "seed": 1}}}}
    assert hint in complaint(apply_overrides, cfg, [text])
    assert apply_overrides(cfg, ["seed=3"])["seed"] == 3  # a key of the top that a block has, too


def test_keys_of_the_top_are_those_that_check_knows():
    from jseg.config import TOP_LEVEL
    from jseg.engine import check_rules

    assert set(TOP_LEVEL) == set(check_rules.TOP_LEVEL)


def test_the_same_base_twice_is_no_circle(write):
    write("a.yaml", "x: 1\n")
    write("b.yaml", "_base_: a.yaml\ny: 1\n")
    assert load_config(write("c.yaml", "_base_: [a.yaml, b.yaml]\n")) == {"x": 1, "y": 1}


@pytest.mark.parametrize("base", ["{a: 1}", "3", "[a.yaml, 3]"])
def test_a_base_that_is_no_file_name(write, base):
    assert "_base_: expected a file name or a list of file names" in complaint(
        load_config, write("a.yaml", f"_base_: {base}\n"))


def test_merge_leaves_its_arguments_alone():
    base, child = {"a": {"b": [1]}}, {"a": {"c": {"d": [2]}}}
    merged = merge(base, child)
    merged["a"]["b"].append(0)
    merged["a"]["c"]["d"].append(0)
    assert base == {"a": {"b": [1]}} and child == {"a": {"c": {"d": [2]}}}


def test_overrides_set_values_of_every_kind():
    cfg = {"optimizer": {"lr": 0.1}, "model": {"heads": [{"k": 1}, {"k": 2}], "neck": None}, "path": "x"}
    new = apply_overrides(cfg,
                          ["optimizer.lr=6e-5", "model.heads.1.k=19", "model.neck={type: FPN, ins: [1, 2]}", "path=a=b",
                           "optimizer.betas=[0.9, 0.99]", "model.heads.0={k: 7}", "seed=3", "flag=true", "none="])
    assert new == {"optimizer": {"lr": 6e-5, "betas": [0.9, 0.99]}, "path": "a=b", "seed": 3,
                   "flag": True, "none": None,
                   "model": {"heads": [{"k": 7}, {"k": 19}], "neck": {"type": "FPN", "ins": [1, 2]}}}
    assert cfg == {"optimizer": {"lr": 0.1}, "model": {"heads": [{"k": 1}, {"k": 2}], "neck": None}, "path": "x"}


@pytest.mark.parametrize("text, words", [
    ("optimzer.lr=1", "--set optimzer.lr: the config has no 'optimzer'; did you mean 'optimizer'?"),
    ("optimizer.pram.lr=1", "the config has no 'optimizer.pram'; did you mean 'param'?"),
    ("optimizer.lr.x=1", "optimizer.lr is 0.1, not a block with keys; set it whole"),
    ("ema.decay=0.9", "ema is None, not a block with keys; set it whole, for example --set 'ema={key: value}'"),
    ("heads.2.k=1", "'2' does not index a list of 2; use 0 to 1"),
    ("heads.-1.k=1", "'-1' does not index a list of 2"),
    ("heads.2={}", "'2' does not index a list of 2"),
    ("empty.0=1", "the list is empty"),
    ("optimizer.lr", "expected key.sub.key=value"),
    ("=3", "expected key.sub.key=value"),
    ("optimizer.lr=[1", "--set optimizer.lr:1: not YAML"),
    ("optimizer={a: 1, a: 2}", "key 'a' is given twice")])
def test_overrides_that_do_not_fit(text, words):
    cfg = {"optimizer": {"lr": 0.1, "param": {}}, "heads": [{"k": 1}, {"k": 2}], "ema": None, "empty": []}
    assert words in complaint(apply_overrides, cfg, [text])


def test_load_config_takes_overrides(write):
    path = write("a.yaml", "optimizer: {lr: 0.1}\n")
    assert load_config(path, ["optimizer.lr=1e-3"]) == {"optimizer": {"lr": 1e-3}}
    assert load_config(pathlib.Path(path)) == {"optimizer": {"lr": 0.1}}


def test_dump_round_trips(write):
    cfg = {"lr": 6e-5, "text": "6e-5", "also": "1E5", "yes": "yes", "number": "12", "null": None, "s": "null",
           "big": 1e22, "inf": float("inf"), "nested": {"list": [1, [2.5, {"a": []}], {}], "flag": False},
           "unicode": "天空: sky", "lines": "a\nb\n", 3: "three", "empty": ""}
    assert load_config(write("a.yaml", dump_config(cfg))) == cfg
    shared = [1, 2]
    text = dump_config({"a": shared, "b": shared, "t": (1, 2)})
    assert "&" not in text and load_config(write("b.yaml", text)) == {"a": [1, 2], "b": [1, 2], "t": [1, 2]}
    assert list(load_config(write("c.yaml", dump_config({"z": 1, "a": 2})))) == ["z", "a"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_load_and_round_trip(path, write):
    cfg = load_config(path)
    assert cfg and load_config(write("copy.yaml", dump_config(cfg))) == cfg
    assert "_base_" not in dump_config(cfg) and "_delete_" not in dump_config(cfg)


def test_shipped_names_say_what_the_file_holds():
    """`<method>_<variant>_<dataset>-<h>x<w>_<n>k.yaml` agrees with variant, crop and length."""
    leaves = [p for p in CONFIGS if p.parent.name == "segnext"]
    pattern = r"segnext_(tiny|small|base|large)_[a-z0-9]+-(\d+)x(\d+)_(\d+)k"
    published = [p for p in leaves if re.fullmatch(pattern, p.stem)]
    assert len(published) >= 28
    for path in published:
        variant, h, w, k = re.fullmatch(pattern, path.stem).groups()
        cfg, text = load_config(path), path.read_text()
        assert cfg["model"]["backbone"]["variant"] == variant
        assert cfg["data_preprocessor"]["size"] == [int(h), int(w)]
        assert cfg["train_cfg"]["max_iters"] == int(k) * 1000 == cfg["param_scheduler"][-1]["end"]
        assert text.startswith("#") and f"configs/segnext/{path.name}" in text.splitlines()[0]
