"""Checkpoints: nothing is lost, nothing is loaded by halves, and every message says what to do."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from jittor import nn
from safetensors import safe_open
from safetensors.numpy import save_file

import jseg
from jseg.convert import weights_file
from jseg.engine import checkpoint
from jseg.engine.checkpoint import (find_state, load_into, load_weights, publish_copy, read_state,
                                    save_state, save_weights)
from jseg.errors import CheckpointError, WriteError

META = {"config": {"model": {"type": "EncoderDecoder"}}, "classes": ["sky", "road"], "palette": [[1, 2, 3], [4, 5, 6]],
        "metrics": {"mIoU": 0.5}, "origin": {"made_by": "test"}}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv(3, 4, 1)
        self.norm = nn.BatchNorm(4)


@pytest.fixture
def state(rng):
    return {"a.weight": rng.standard_normal((4, 3)).astype(np.float32), "a.bias": np.zeros(4, np.float32),
            "bn.running_var": np.full(3, 1e-9, np.float32), "big": np.array([1e6, 1.0], np.float32),
            "count": np.array(7, np.int64), "none": np.zeros((0, 3), np.float32)}


def test_weights_round_trip(tmp_path, state):
    save_weights(tmp_path / "w.safetensors", state, META)
    loaded, meta = load_weights(tmp_path / "w.safetensors")
    assert set(loaded) == set(state)
    assert all(np.array_equal(loaded[k], state[k]) and loaded[k].dtype == state[k].dtype for k in state)
    assert {k: meta[k] for k in META} == META and meta["jseg_version"]
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_the_same_content_gives_the_same_bytes_from_every_writer(tmp_path, state):
    ours, turned, converted = (tmp_path / f"{name}.safetensors" for name in "abc")
    digest = save_weights(ours, state, META)
    save_weights(turned, dict(reversed(state.items())), dict(reversed(META.items())))
    meta = {**META, "jseg_version": jseg.__version__}
    assert weights_file.write_weights_file(converted, state, state.__getitem__, meta) == digest
    content = ours.read_bytes()
    assert content == turned.read_bytes() == converted.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    assert header.pop("__metadata__")["sha256"] == digest
    assert all((8 + length + entry["data_offsets"][0]) % state[name].itemsize == 0 for name, entry in header.items())
    with pytest.raises(ValueError, match="tensor x is complex64"):
        save_weights(ours, {"x": np.zeros(1, np.complex64)}, {})


def test_files_of_older_versions_load(tmp_path, state):
    """Their metadata had no check of their own."""
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    save_weights(new, state, META)
    with safe_open(new, framework="numpy") as file:
        metadata = file.metadata()
        assert metadata.pop("metadata_sha256") and metadata["format"] == "jseg 2"
        save_file({key: file.get_tensor(key) for key in file.keys()}, old, metadata={**metadata, "format": "jseg"})
    loaded, meta = load_weights(old)
    assert meta["classes"] == META["classes"] and all(np.array_equal(loaded[key], state[key]) for key in state)


def test_half_precision_spares_what_it_would_ruin(tmp_path, state):
    save_weights(tmp_path / "w.safetensors", state, META, half=True)
    loaded, _ = load_weights(tmp_path / "w.safetensors")
    assert loaded["a.weight"].dtype == np.float16
    np.testing.assert_allclose(loaded["a.weight"], state["a.weight"], rtol=1e-3)
    assert loaded["bn.running_var"].dtype == loaded["big"].dtype == np.float32 and loaded["count"].dtype == np.int64


def test_unknown_meta_key_is_refused(tmp_path, state):
    with pytest.raises(ValueError, match="colour"):
        save_weights(tmp_path / "w.safetensors", state, {"colour": 1})


@pytest.mark.parametrize("damage, text", [
    (lambda b: b[:len(b) // 2], "truncated, damaged"), (lambda b: b"", "it is empty"),
    (lambda b: b[:-3] + bytes([b[-3] ^ 64]) + b[-2:], "sha256"), (lambda b: b"PK\3\4" + b[4:], "zip archive.*jseg "
                                                                                               "convert"),
])
def test_damaged_files_are_named(tmp_path, state, damage, text):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": state["a.weight"]}, META)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"w\.safetensors: .*{text}.*again"):
        load_weights(path)


def test_missing_and_foreign_files_say_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(tmp_path / "none.safetensors")
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="jseg convert"):
        load_weights(tmp_path / "x.pth")


def test_load_into_accounts_for_every_key():
    net = Net()
    good = {name: np.full(tuple(v.shape), i + 1, np.float32) for i, (name, v) in enumerate(net.state_dict().items())}
    report = load_into(net, {**good, "norm.num_batches_tracked": np.array(3)})
    assert report.complete and report.ignored == ["norm.num_batches_tracked"] and len(report.loaded) == len(good)
    assert all(np.array_equal(v.numpy(), good[k]) for k, v in net.state_dict().items())
    before = checkpoint.model_state(net)
    bad = {k: v * 9 for k, v in good.items() if k != "stem.bias"}
    bad.update({"head.weight": np.zeros(2, np.float32), "head.bias": np.zeros(2, np.float32),
                "norm.weight": np.zeros(5, np.float32)})
    with pytest.raises(CheckpointError) as caught:
        load_into(net, bad, source="w.safetensors")
    text = str(caught.value)
    assert ("1 missing, 2 unexpected, 1 of another shape" in text and "stem: bias" in text
            and "head: weight, bias" in text)
    assert "norm.weight: file (5,), model (4,)" in text and "strict=False" in text
    assert all(np.array_equal(v, before[k])
               for k, v in checkpoint.model_state(net).items()), "a refused load changed the model"
    report = load_into(net, bad, strict=False)
    assert report.missing == ["stem.bias"] and net.stem.weight.numpy().max() == 9


def test_no_match_is_an_error_even_when_not_strict():
    with pytest.raises(CheckpointError, match="none of its 1 keys"):
        load_into(Net(), {"x": np.zeros(1, np.float32)}, strict=False)


def test_half_weights_load_as_float32(tmp_path):
    net = Net()
    save_weights(tmp_path / "w.safetensors", checkpoint.model_state(net), META, half=True)
    other = Net()
    load_into(other, load_weights(tmp_path / "w.safetensors")[0])
    assert str(other.stem.weight.dtype) == "float32"
    np.testing.assert_allclose(other.stem.weight.numpy(), net.stem.weight.numpy(), rtol=1e-3, atol=1e-6)


def write(folder, n, keep=2, **extra):
    arrays = {"w": np.full(1000, n, np.float32)}
    return save_state(folder, arrays, {"m.w": arrays["w"] * 2}, {"iter": n, **extra}, META, keep=keep)


def test_states_are_kept_pruned_and_found(tmp_path):
    for n in (1, 2, 3):
        write(tmp_path, n)
    assert sorted(os.listdir(tmp_path)) == ["iter_2", "last"]
    weights, state, record = read_state(tmp_path / "last")
    assert weights["w"][0] == 3 and state["m.w"][0] == 6 and record["iter"] == 3
    write(tmp_path, 3, evaluated=True)
    assert sorted(os.listdir(tmp_path)) == ["iter_2", "last"], "the same moment saved twice is one state"
    publish_copy(tmp_path / "last", tmp_path / "best")
    write(tmp_path, 4, keep=1)
    publish_copy(tmp_path / "last", tmp_path / "best")
    assert sorted(os.listdir(tmp_path)) == ["best", "last"] and read_state(tmp_path / "best")[2]["iter"] == 4


@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "gone"])
def test_a_damaged_last_state_is_passed_over_and_named(tmp_path, name, how):
    write(tmp_path, 1)
    write(tmp_path, 2)
    path = tmp_path / "last" / name
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(content[:-40] if how == "truncated" else content.replace(b'"sha256": {', b'"sha256": [')[:-9]
                         + b"\x01" + content[-8:])
    found, notes = find_state(tmp_path)
    assert found == tmp_path / "iter_1" and len(notes) == 1 and "last" in notes[0]


def test_files_of_two_moments_are_not_one_state(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    os.replace(tmp_path / "iter_1" / "weights.safetensors", tmp_path / "last" / "weights.safetensors")
    with pytest.raises(CheckpointError, match="not the file that state.json was written with"):
        read_state(tmp_path / "last")


def test_nothing_to_find(tmp_path):
    assert find_state(tmp_path) == (None, [])


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write the training state.*--resume"):
        write(tmp_path / "absent", 1)
    with pytest.raises(WriteError, match="cannot be written.*untouched"):
        (tmp_path / "file").write_text("")
        save_weights(tmp_path / "file" / "w.safetensors", {}, {})


@pytest.mark.parametrize("limit", [100, 2000, 5500])
def test_a_full_disk_leaves_the_old_state(tmp_path, limit):
    """The limit on file sizes makes the kernel refuse to write on, as a full disk does, at different files."""
    write(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises((CheckpointError, WriteError), match="cannot be written|cannot write"):
            save_state(tmp_path, {"w": np.zeros(10, np.float32)}, {"m.w": np.zeros(2000, np.float32)},
                       {"iter": 2}, META)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["last"] and read_state(find_state(tmp_path)[0])[2]["iter"] == 1


WRITER = """
import sys
import numpy as np
from jseg.engine.checkpoint import find_state, save_state, publish_copy
folder, n = sys.argv[1], int(sys.argv[2])
while True:
    n += 1
    arrays = {"w": np.full(20000, n, np.float32)}
    last = save_state(folder, arrays, {"m": arrays["w"]}, {"iter": n, "evaluated": True}, {}, keep=2)
    if n % 3 == 0:
        publish_copy(last, folder + "/best")
    print("saved", flush=True)
"""


def test_a_writer_killed_at_random_moments_leaves_a_whole_state(tmp_path, rng):
    """SIGKILL while states are written without pause: the newest whole one never goes back, nor does `best` vanish."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Jittor's handler ends this process when a child is killed
    root, newest = pathlib.Path(__file__).parents[2], 0
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(newest)], cwd=root,
                                  stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(float(rng.uniform(0.02, 0.25)))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        found, notes = find_state(tmp_path)
        assert found is not None, os.listdir(tmp_path)
        assert not notes, notes
        weights, state, record = read_state(found)
        assert record["iter"] > newest and weights["w"][0] == state["m"][0] == record["iter"]
        newest = record["iter"]
    checkpoint.tidy(tmp_path, 2)
    assert read_state(tmp_path / "best")[2]["iter"] > 0
    assert not [p for p in os.listdir(tmp_path) if ".tmp-" in p or ".old-" in p]
    assert json.loads((tmp_path / "best" / "state.json").read_text())["iter"] % 3 == 0
