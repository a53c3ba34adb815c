"""Hostile and broken checkpoints: none runs code, costs much memory or time, or leaves a file;
each ends in one clear line.

Every file goes through the whole command, `jseg convert FILE OUT`. Memory is the growth of this process's peak resident
size, the mapped file included; where the kernel does not let a process reset that peak, what Python and NumPy allocate
(tracemalloc, slow).
"""

import gc
import io
import os
import decimal
import pathlib
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from torch_opcodes import integer, program, tensor, text

from jseg.cli import main
from jseg.convert.pickle_data import Global, Inert, load_pickle
from jseg.convert.torch_file import read_torch_file
from jseg.errors import ConvertError

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
SPARE = 40 << 20   # bytes any file may cost besides twice its size
SECONDS = 10       # of this process's own time
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"


class Runs:
    """An object whose unpickling calls `function(*args)`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def archive(pickled: bytes, *, data: bytes = b"\0" * 8, extra=(), packed: bool = False) -> bytes:
    """A torch zip around a pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as target:
        for name, content in (("a/data.pkl", pickled), ("a/byteorder", b"little"), ("a/data/0", data),
                              ("a/version", b"3\n"), *extra):
            target.writestr(name, content)
    return out.getvalue()


def mini() -> bytes:
    return (GOLDEN / "mini_mmseg.pth").read_bytes()


def patched(content: bytes, old: bytes, new: bytes, *, last: bool = False) -> bytes:
    at = content.rindex(old) if last else content.index(old)
    return content[:at] + new + content[at + len(new):]


def weights(change) -> bytes:
    """A good NumPy checkpoint (MSCAN and head) after `change(state)`, pickled."""
    state = {key: value.numpy() for key, value in read_torch_file(GOLDEN / "mini_mmseg.pth")["state_dict"].items()
             if "tracked" not in key}
    whole = {"meta": {}, "model": state}
    change(whole)
    return pickle.dumps(whole, 4)


def nested(count: int, code: bytes) -> bytes:
    return b"\x80\x02" + b"]" * count + code * (count - 1) + b"."


def collide() -> bytes:
    return b"\x80\x02}(" + b"".join(integer(k * (2 ** 61 - 1)) + b"N" for k in range(1, 120_000)) + b"u."


def zip_with(change) -> bytes:
    """A golden archive with one zip field changed; `change(bytearray, start of the directory)`."""
    content = bytearray(mini())
    change(content, struct.unpack("<I", content[-6:-2])[0])
    return bytes(content)


def put(content: bytearray, at: int, form: str, value: int) -> None:
    struct.pack_into(form, content, at, value)


def overlapping() -> bytes:
    def change(content, start):
        second = start + 46 + sum(struct.unpack("<HHH", content[start + 28:start + 34]))
        put(content, second + 42, "<I", struct.unpack("<I", content[start + 42:start + 46])[0])
        sizes = content[start + 16:start + 28]
        content[second + 16:second + 28] = sizes
    return zip_with(change)


def many_entries() -> bytes:
    entry = b"PK\x01\x02" + b"\0" * 24 + struct.pack("<HHH", 1, 0, 0) + b"\0" * 12 + b"a"
    count = 90_000
    head = b"PK\x03\x04" + b"\0" * 26
    return (head + entry * count + b"PK\x06\x06"
            + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, len(entry) * count, len(head))
            + b"PK\x06\x07" + struct.pack("<IQI", 0, len(head) + len(entry) * count, 1) + b"PK\x05\x06"
            + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 2 ** 32 - 1, 2 ** 32 - 1, 0))


def payloads(mark: str) -> dict:
    """Pickles that run code when Python, torch or Jittor opens them; running any would make the file `mark`."""
    command = f"touch {mark}"
    calls = {"os_system": Runs(os.system, command), "eval": Runs(eval, f"open({mark!r}, 'w')"),
             "exec": Runs(exec, f"open({mark!r}, 'w')"), "open": Runs(open, mark, "w")}
    found = {name: archive(pickle.dumps({"state_dict": {"w": value}}, 2)) for name, value in calls.items()}
    found["legacy_system"] = pickle.dumps(Runs(os.system, command), 0)
    found["numpy_pickle_exec"] = weights(
        lambda whole: whole["model"].update(payload=Runs(exec, f"open({mark!r}, 'w')")))
    found["beside_good_weights"] = weights(lambda whole: whole.update(optimizer=Runs(os.system, command)))
    found["popen"] = archive(b"\x80\x02csubprocess\nPopen\n(" + text(command) + b"tR.")
    found["inst"] = b"\x80\x02(" + text(command) + b"ios\nsystem\n."
    found["obj"] = b"\x80\x02(cposix\nsystem\n" + text(command) + b"o."
    found["stack_global"] = b"\x80\x04" + text("os") + text("system") + b"\x93(" + text(command) + b"tR."
    found["torch_load"] = archive(b"\x80\x02ctorch.serialization\nload\n(" + text("x") + b"tR.")
    found["runpy"] = archive(b"\x80\x02crunpy\n_run_code\n(" + text(command) + b"tR.")
    found["numpy_gadget"] = archive(b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(" + text(command) + b"}tR.")
    found["from_type_gadget"] = archive(
        program(b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n(" + text(command) + b"t}tR"))
    found["unknown_class"] = archive(program(b"cevil.module\nPayload\n(" + text(command) + b"tR"))
    found["build_setstate"] = archive(program(b"cevil\nX\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb"))
    found["extension_code"] = archive(program(b"\x82\x01"))
    return found


def breaks() -> dict:
    """Broken files and bombs, by name; each value is made when its test runs."""
    return {**broken_archives(), **pickle_bombs(), **forged_weights()}


def broken_archives() -> dict:
    """Files that are cut, of another kind, or whose directory or storages lie."""
    big = 1 << 40
    good = (GOLDEN / "mini_authors.pth").read_bytes()
    return {
        "empty": lambda: b"", "one_byte": lambda: b"\x80", "html": lambda: b"<!DOCTYPE html><html>404</html>",
        "zeros": lambda: b"\0" * 5000, "git_lfs": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "half_zip": lambda: mini()[:30_000], "half_legacy": lambda: good[:9000], "no_directory": lambda: mini()[:-22],
        "tar": lambda: b"a" * 257 + b"ustar" + b"\0" * 300,
        "garbage_pickle": lambda: b"\x80\x02" + bytes(range(256)) * 20,
        "wrong_magic": lambda: pickle.dumps(7, 2) + good[10:],
        "zip_no_pickle": lambda: zip_with(lambda c, s: c.__setitem__(slice(0, len(c)),
                                                                     c.replace(b"data.pkl", b"dota.pkl"))),
        "two_pickles": lambda: archive(b"\x80\x02}.", extra=[("b/data.pkl", b"\x80\x02}.")]),
        "compressed": lambda: archive(b"\x80\x02}." + b"\0" * 100_000, packed=True),
        "zip_bomb": lambda: archive(program(tensor()), data=b"\0" * (64 << 20), packed=True),
        "climbing_name": lambda: archive(program(tensor()), extra=[("a/../../../../tmp/x", b"x")]),
        "absolute_name": lambda: archive(program(tensor()), extra=[("/etc/passwd2", b"x")]),
        "drive_name": lambda: archive(program(tensor()), extra=[("C:\\x", b"x")]),
        "climbing_key": lambda: archive(program(tensor(key="../../etc/passwd"))),
        "duplicate_entry": lambda: patched(
            archive(program(tensor()), extra=[("a/data/1", b"y")]).replace(b"a/data/1", b"a/data/0"), b"PK", b"PK"),
        "overlap": overlapping, "many_entries": many_entries,
        "lying_entry_size": lambda: zip_with(lambda c, s: (put(c, s + 20, "<I", 1 << 30),
                                                           put(c, s + 24, "<I", 1 << 30))),
        "lying_directory": lambda: patched(mini(), mini()[-12:-6], struct.pack("<HI", 60000, 1 << 30), last=True),
        "lying_offset": lambda: zip_with(lambda c, s: put(c, s + 42, "<I", 12345)),
        "encrypted": lambda: zip_with(lambda c, s: put(c, s + 8, "<H", 1)),
        "other_local_name": lambda: zip_with(lambda c, s: c.__setitem__(30, 0x41)),
        "truncated_storage": lambda: archive(program(tensor((1000,), count=1000))),
        "missing_storage": lambda: archive(program(tensor(key="7"))),
        "lying_legacy_count": lambda: patched(good, struct.pack("<q", 3), struct.pack("<q", 1 << 50), last=True),
        "absurd_shape": lambda: archive(program(tensor((big, big), (big, 1)))),
        "stride_0_bomb": lambda: archive(program(tensor((big,), (0,)))),
        "stride_0_gigabyte": lambda: archive(program(tensor((1 << 28,), (0,)),
                                                     "backbone.block1.0.attn.spatial_gating_unit.conv0.weight")),
        "empty_huge": lambda: archive(program(tensor((0, 1 << 61), (1, 1)))),
        "negative_stride": lambda: archive(program(tensor((2,), (-1,)))),
        "negative_offset": lambda: archive(program(tensor(offset=-4))),
        "beyond_storage": lambda: archive(program(tensor((2,), (1000,)))),
        "float_shape": lambda: archive(program(tensor()).replace(integer(2) + b"t(", b"G" + b"\0" * 8 + b"t(")),
        "hundred_dimensions": lambda: archive(program(tensor((1,) * 100, (1,) * 100))),
        "unknown_storage": lambda: archive(program(tensor(storage="EvilStorage"))),
    }


def pickle_bombs() -> dict:
    """Pickles that nest, repeat, lie or ask for more memory than there is."""
    wide = b"\xf0\x9f\x99\x82"
    return {
        "deep_lists": lambda: nested(200_000, b"a"), "deep_tuples": lambda: b"\x80\x02)" + b"\x85" * 190_000 + b".",
        "deep_state": lambda: archive(program(b"}" + text("a") + b"}" + text("b") + b"}" + text("c") + b"}" + text("d")
                                              + b"}" + text("e") + b"}" + text("f") + tensor() + b"ssssss")),
        "itself": lambda: b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s.",
        "laughs": lambda: b"\x80\x02" + b"]q\x00"
        + b"".join(b"](" + b"j" + struct.pack("<I", k) + b"j" + struct.pack("<I", k) + b"er" + struct.pack("<I", k + 1)
                   for k in range(60)) + b".",
        "many_dicts": lambda: b"\x80\x02(" + b"}" * 1_600_000 + b"l.",
        "many_marks": lambda: b"\x80\x02" + b"(" * 1_600_000 + b".",
        "many_gets": lambda: b"\x80\x02]q\x00(" + b"h\x00" * 1_600_000 + b"l.",
        "many_memos": lambda: b"\x80\x04N" + b"\x94" * 1_600_000 + b".",
        "huge_memo": lambda: b"\x80\x02Nr\xff\xff\xff\xff.", "huge_memo_line": lambda: b"Np" + b"9" * 4000 + b"\n.",
        "copied_list": lambda: b"\x80\x02](" + b"K\x01" * 100_000 + b"eq\x00("
        + b"ctorch\nSize\n(h\x00tR" * 50_000 + b"l.",
        "copied_text": lambda: b"\x80\x02" + text("x" * 1_000_000) + b"q\x00("
        + (b"c_codecs\nencode\n(h\x00" + text("latin1") + b"tR") * 3000 + b"l.",
        "colliding_keys": collide,
        "tuple_keys": lambda: b"\x80\x02(" + b"K\x01" * 50_000 + b"tq\x00}(" + b"h\x00N" * 50_000 + b"u.",
        "wide_text": lambda: b"\x80\x02" + b"X" + struct.pack("<I", 40_000_004) + b"x" * 40_000_000 + wide + b".",
        "lying_text": lambda: b"\x80\x02X\xff\xff\xff\xffabc.",
        "lying_bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
        "huge_integer": lambda: b"\x80\x02\x8b" + struct.pack("<I", 3_000_000) + b"\x7f" * 3_000_000 + b".",
        "huge_integer_line": lambda: b"L" + b"9" * 900_000 + b"L\n.", "endless_line": lambda: b"(S'" + b"x" * 3_000_000,
        "unhashable_key": lambda: b"\x80\x02}]Ns.", "no_mark": lambda: b"\x80\x02Nt.",
        "pops_too_much": lambda: b"\x80\x020000.", "no_stop": lambda: b"\x80\x02}",
        "state_for_a_number": lambda: b"\x80\x02K\x01}b.",
        "object_array": lambda: pickle.dumps({"w": np.array([{}, []], object)}, 4),
        "array_lie": lambda: pickle.dumps({"w": np.zeros(3, np.float32)}, 4).replace(b"K\x03\x85", b"K\x7f\x85"),
        "dtype_bomb": lambda: pickle.dumps({"w": np.zeros(1, np.float32)}, 4).replace(b"f4", b"V9"),
        "not_weights": lambda: pickle.dumps([1, 2, 3], 2),
        "no_tensors": lambda: pickle.dumps({"state_dict": {"a": 1}}, 2),
    }


def forged_weights() -> dict:
    """Weights of another family, and SegNeXt's with keys, shapes or a config that lie."""
    big = 1 << 40
    return {
        "other_family": lambda: pickle.dumps({"backbone.layer1.0.conv1.weight": np.zeros((4, 4, 1, 1), np.float32)}, 4),
        "missing_key": lambda: weights(lambda w: w["model"].pop("backbone.norm1.bias")),
        "extra_key": lambda: weights(lambda w: w["model"].update({"decode_head.extra": np.zeros(3)})),
        "wrong_shape": lambda: weights(lambda w: w["model"].update({"decode_head.conv_seg.bias": np.zeros(9)})),
        "forged_width": lambda: weights(
            lambda w: w["model"].update({"backbone.norm1.weight": np.zeros(300_000, np.float32)})),
        "forged_depth": lambda: weights(lambda w: w["model"].update({f"backbone.block1.{k}.x": np.zeros(1)
                                                                     for k in range(2, 4000)})),
        "huge_config": lambda: weights(lambda w: w["meta"].update(config={"model": {
            "type": "EncoderDecoder", "backbone": {"type": "MSCAN", "embed_dims": [big] * 4, "depths": [9] * 4},
            "decode_head": {"type": "LightHamHead", "in_channels": [8], "in_index": [0], "channels": big,
                            "num_classes": 3}}})),
        "code_in_config": lambda: weights(lambda w: w["meta"].update(
            config="import os\nos.system('touch MARK')\nmodel = dict(type='EncoderDecoder')\n")),
        "config_text_loop": lambda: weights(
            lambda w: w["meta"].update(config="a = [1] * 10 ** 9\nmodel = dict(type='EncoderDecoder')\n")),
    }


PAYLOADS = sorted(payloads("/nowhere"))
BREAKS = sorted(breaks())


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What the command imports is no cost of a file's."""
    import jseg.convert.checkpoint, jseg.convert.mmseg_config, jseg.models, jseg.engine.checkpoint  # noqa: E401, F401


class Peak:
    """Growth of the peak memory inside a `with` block, in bytes."""

    def __enter__(self):
        gc.collect()
        try:
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            self.before = self.resident("VmHWM")
        except OSError:
            self.before = None
            tracemalloc.start()
        return self

    def __exit__(self, *error):
        if self.before is None:
            self.bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        else:
            self.bytes = self.resident("VmHWM") - self.before

    @staticmethod
    def resident(name: str) -> int:
        line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines()
                    if line.startswith(name))
        return int(line.split()[1]) << 10


def refuse(content: bytes, folder: pathlib.Path, capsys) -> str:
    """Run the command on a file; returns its one line after checking what it cost and left."""
    path, out = folder / "in.pth", folder / "out" / "x.safetensors"
    path.write_bytes(content)
    size = len(content)
    del content
    began = time.process_time()
    with Peak() as peak:
        status = main(["convert", str(path), str(out)])
    seconds = time.process_time() - began
    said = capsys.readouterr()
    assert status == 2 and said.out == "", said
    assert said.err.count("\n") == 1 and str(path) in said.err and len(said.err) < 1500, said.err
    assert os.listdir(folder) == ["in.pth"], "something was written"
    assert peak.bytes < 2 * size + SPARE, f"{peak.bytes >> 20} MB for a file of {size} bytes"
    assert seconds < SECONDS, f"{seconds:.1f} s"
    return said.err


@pytest.mark.parametrize("name", PAYLOADS)
def test_code_in_a_file_is_never_run(name, tmp_path, capsys):
    mark = tmp_path.parent / f"{tmp_path.name}_mark"
    refuse(payloads(str(mark))[name], tmp_path, capsys)
    assert not mark.exists(), "the payload ran"


@pytest.mark.parametrize("name", BREAKS)
def test_broken_files_and_bombs_end_in_one_line(name, tmp_path, capsys, monkeypatch):
    content = breaks()[name]()
    line = refuse(content, tmp_path, capsys)
    assert not pathlib.Path("MARK").exists()
    if name == "other_family":
        assert "ResNet" in line and "SegNeXt" in line


def test_there_are_sixty():
    assert len(PAYLOADS) + len(BREAKS) >= 60


def test_the_largest_training_checkpoint_is_no_bomb(tmp_path):
    """SegNeXt-L with AdamW's two moments and step of every parameter, one group each, and a moving average."""
    names = [f"module.backbone.block3.{i}.attn.spatial_gating_unit.conv2_1.weight" for i in range(1100)]
    group = (b"}(" + text("lr") + b"G" + b"\0" * 8 + text("weight_decay") + b"G" + b"\0" * 8
             + b"".join(text(f"option{i}") + b"N" for i in range(12)) + b"u")
    sets = b"".join(text(word) + b"}(" + b"".join(text(name) + tensor() for name in names) + b"u"
                    for word in ("state_dict", "ema_state_dict"))
    moments = b"}(" + b"".join(integer(i) + b"}("
                               + b"".join(text(word) + tensor() for word in ("step", "exp_avg", "exp_avg_sq")) + b"u"
                               for i in range(900)) + b"u"
    optimizer = text("optimizer") + b"}(" + text("state") + moments + text("param_groups") + b"](" + group * 900 + b"eu"
    (tmp_path / "x.pth").write_bytes(archive(b"\x80\x02}(" + sets + optimizer + b"u."))
    found = read_torch_file(tmp_path / "x.pth")
    assert (list(found["ema_state_dict"]) == names
            and len(found["optimizer"]["state"]) == len(found["optimizer"]["param_groups"]) == 900)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(protocol):
    value = {"a": [1, -1, 255, 65536, 2 ** 40, -2 ** 80], "b": (1.5, None, True, False, ()),
             "c": {"x": "naïve 🙂\n\\u0041'", "y": b"\x00\xff\n"}, 3: [[], {}, ("t",), ("u", 1), ("v", 1, 2, 3)],
             ("k", 1): "tuple key", "long": "z" * 300, "nested": [[[1]]]}
    value["again"] = value["a"]
    if protocol == 0:
        value["c"]["x"] = "naïve"
    found, at = load_pickle(pickle.dumps(value, protocol), {"_codecs.encode": lambda a: a[0].encode("latin-1")})
    assert found == value and found["again"] is found["a"] and at == len(pickle.dumps(value, protocol))


def test_sets_and_objects_become_records():
    found = load_pickle(pickle.dumps({"s": {1, 2}, "f": frozenset([3]), "p": decimal.Decimal("1.5")}, 4), {})[0]
    assert isinstance(found["s"], Inert) and sorted(found["s"].items) == [1, 2] and found["f"].args == ([3],)
    assert found["p"].kind == Global("decimal", "Decimal") and found["p"].args == ("1.5",)


def test_names_of_functions_are_data():
    found = load_pickle(b"\x80\x02cevil\nname\n.", {})[0]
    assert found == Global("evil", "name") and str(found) == "evil.name"
    with pytest.raises(ConvertError, match="os.system, which weights have no use for.*Nothing was run"):
        load_pickle(b"\x80\x02cos\nsystem\n.", {})
