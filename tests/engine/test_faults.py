"""Faults of one process, each done for real: what a run says, how it ends, what it leaves,
and that it goes on as if nothing had been.

Every run here is the small one of `small_run.py`, shortened; `whole` is the same run unbroken, and a run that went
through a fault has to leave the same bytes. docs/robustness.md has the table of outcomes.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import kill_run
import numpy as np
import pytest
from small_run import differences, finish, lines, make_datasets, small_config, start, wait_for

from jseg.cli import main
from jseg.config import dump_config
from jseg.engine.checkpoint import CheckpointError, find_state, read_state, save_state
from jseg.engine.log import RunLog
from jseg.engine.train import NonFiniteError, train
from jseg.losses.cross_entropy import CrossEntropyLoss
from jseg.registry import LOSSES

ITERATIONS = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_datasets(tmp_path_factory.mktemp("pictures"))


def shortened(pictures):
    config = small_config(pictures)
    config["train_dataloader"]["num_workers"] = 1
    config["train_cfg"].update(max_iters=ITERATIONS, val_interval=12, ckpt_interval=5, keep=2)
    config["param_scheduler"][-1]["end"] = ITERATIONS
    return config


@pytest.fixture
def config(pictures):
    return shortened(pictures)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """The unbroken run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert go(shortened(pictures), run) == 0
    return run


@pytest.fixture(scope="module")
def half(pictures, tmp_path_factory):
    """A run that SIGTERM has stopped in its middle."""
    run = tmp_path_factory.mktemp("half") / "run"
    with after(run, 13, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert go(shortened(pictures), run) == 143
    return run


@pytest.fixture
def halted(half, tmp_path):
    """A copy of `half` to do harm to."""
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def plain_children():
    """Jittor's SIGCHLD handler would end this process when a child is killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def go(config, run, *words):
    """`jseg train` in this process; returns its exit status."""
    path = run.parent / "config.yaml"
    path.write_text(dump_config(config))
    return main(["train", str(path), "--work-dir", str(run), *words])


@contextlib.contextmanager
def after(run, count, act):
    """Do `act` between two steps of a run in this process, as soon as its log holds `count` steps."""
    write, waiting = RunLog.write, [act]

    def watched(self, **facts):
        result = write(self, **facts)
        if waiting and len([e for e in lines(run) if "loss" in e]) >= count:
            waiting.pop()()
        return result

    RunLog.write = watched
    try:
        yield
    finally:
        RunLog.write = write


def one_line(text):
    """The message that ends a run; no traceback came before it."""
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


def goes_on(config, run, whole):
    assert go(config, run, "--resume") == 0
    assert differences(whole, run) == []


# --- disk ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own with 16 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk, leave):
    """Fill a disk up to `leave` bytes."""
    with open(disk / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - leave)


@pytest.mark.parametrize("leave, text", [(65536, "cannot write the training state of iteration 10 (No space left"),
                                         (0, "No space left")])
def test_a_full_disk(config, whole, small_disk, capfd, leave, text):
    """With room for lines of the log but not for a state, and with none at all."""
    run = small_disk / "run"
    with after(run, 6, lambda: fill(small_disk, leave)):
        assert go(config, run) == 2
    said = one_line(capfd.readouterr().err)
    assert text in said and "--resume" in said and str(run) in said
    assert not [p.name for p in run.rglob("*") if ".tmp-" in p.name]
    found, notes = find_state(run)
    assert found == run / "last" and not notes and read_state(found)[2]["iter"] == 5
    fill(small_disk, 0)
    assert go(config, run, "--resume") == 2, "still full"
    assert "No space left" in one_line(capfd.readouterr().err) and read_state(run / "last")[2]["iter"] == 5
    (small_disk / "ballast").unlink()
    goes_on(config, run, whole)


WITHOUT_ROOT = """
import ctypes, os, sys
if os.geteuid() == 0:  # root writes where it may not: give up the right to
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_permission_lost(config, whole, tmp_path, capfd):
    run = tmp_path / "run"
    process = start(config, run, through=[sys.executable, "-c", WITHOUT_ROOT])
    wait_for(process, run, 6)
    os.chmod(run, 0o555)
    finish(process, run, 2)
    said = one_line(run.with_suffix(".txt").read_text())
    refused = re.search(r"cannot write the training state of iteration (\d+) \(Permission denied\)", said)
    assert refused and "--resume" in said
    assert "last" in {p.name for p in run.iterdir()} and read_state(run / "last")[2]["iter"] < int(refused[1])
    os.chmod(run, 0o755)
    goes_on(config, run, whole)


# --- damage ----------------------------------------------------------------------------------------------------------
def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.unlink()  # best/ may share the file
    path.write_bytes(content)


def test_every_bit_of_a_state_is_checked(tmp_path):
    arrays = {"w": np.arange(4, dtype=np.float32)}
    meta = {"config": {"a": 1.5}, "classes": ["é"]}
    save_state(tmp_path, arrays, {"m": arrays["w"]}, {"iter": 1, "best": {"score": 1e-05}}, meta)
    missed = []
    for name in ("weights.safetensors", "state.safetensors", "state.json"):
        path = tmp_path / "last" / name
        content = path.read_bytes()
        for damaged in [content[:n] for n in range(len(content))] + [content + b" "]:
            path.write_bytes(damaged)
            missed += [f"{name} cut to {len(damaged)}"] if reads(tmp_path) else []
        for bit in range(8 * len(content)):
            path.write_bytes(content[:bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1:])
            missed += [f"{name} bit {bit}"] if reads(tmp_path) else []
        path.write_bytes(content)
    assert not missed and reads(tmp_path)


def reads(folder):
    try:
        read_state(folder / "last")
    except CheckpointError:
        return False
    return True


def test_a_flipped_bit_costs_one_state(config, halted, whole, rng, capfd):
    path = halted / "last" / ("weights.safetensors", "state.safetensors", "state.json")[int(rng.integers(3))]
    flip(path, int(rng.integers(8 * path.stat().st_size)))
    goes_on(config, halted, whole)
    said = capfd.readouterr().err
    assert f"passed over: {halted / 'last'}" in said and "resuming after iteration 12" in said


def test_with_every_newer_state_damaged_the_best_one_serves_and_without_any_nothing_begins_again(
    config, halted, whole, capfd):
    before = sorted(p.name for p in halted.iterdir())
    for folder in ("last", "iter_12"):
        os.truncate(halted / folder / "weights.safetensors", 1000)
    assert find_state(halted)[0] == halted / "best"
    content = (halted / "best" / "state.json").read_bytes()
    (halted / "best" / "state.json").write_bytes(content[:-9])
    assert go(config, halted, "--resume") == 2
    said = capfd.readouterr().err
    assert "every saved state is damaged; to begin again" in said and "Traceback" not in said and said.count(
        "truncated, damaged") == 2
    assert sorted(p.name for p in halted.iterdir()) == before
    (halted / "best" / "state.json").write_bytes(content)
    goes_on(config, halted, whole)


# --- data ------------------------------------------------------------------------------------------------------------
def test_a_picture_vanishes(config, whole, tmp_path, pictures, capfd):
    run, path = tmp_path / "run", pictures / "train" / "images" / "03.png"
    content = path.read_bytes()
    try:
        with after(run, 6, path.unlink):
            assert go(config, run) == 2
    finally:
        path.write_bytes(content)
    said = capfd.readouterr().err
    done = [e["iter"] for e in lines(run)][-1]
    assert str(path) in one_line(said) and f"{done} of {ITERATIONS} iterations are saved" in said
    assert read_state(run / "last")[2]["iter"] == done >= 6
    goes_on(config, run, whole)


def workers():
    """Data workers of this process."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parent = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"jseg.data.workers" in open(f"/proc/{pid}/cmdline", "rb").read():
                found.append(int(pid))
    return found


def test_a_worker_is_killed(config, whole, tmp_path, capfd):
    run, killed = tmp_path / "run", []

    def kill():
        killed.append((workers()[0], time.monotonic()))
        os.kill(killed[0][0], signal.SIGKILL)
    with after(run, 6, kill):
        assert go(config, run) == 2
    assert time.monotonic() - killed[0][1] < 10
    said = capfd.readouterr().err
    assert f"data worker 0 (process {killed[0][0]}) was killed by SIGKILL" in one_line(said)
    done = [e["iter"] for e in lines(run)][-1]
    assert read_state(run / "last")[2]["iter"] == done and f"{done} of {ITERATIONS} iterations are saved" in said
    assert not workers()
    goes_on(config, run, whole)


# --- numbers ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def poison():
    """A loss with a gradient of nan, itself finite, for a batch that holds a mask of class 2 alone."""
    @LOSSES.register()
    class PoisonedLoss(CrossEntropyLoss):
        def with_accuracy(self, logits, labels, **options):
            loss, percent = super().with_accuracy(logits, labels, **options)
            if (labels.numpy() == 2).all(axis=(1, 2)).any():
                loss = loss + (logits * 0).sum().sqrt()
            return loss, percent
    yield "PoisonedLoss"
    LOSSES._entries.pop("PoisonedLoss")


def test_a_gradient_of_nan(config, pictures, tmp_path, poison):
    import cv2
    data = tmp_path / "data"
    shutil.copytree(pictures / "train", data)
    bad = data / "masks" / "07.png"
    cv2.imwrite(str(bad), np.full((48, 64), 2, np.uint8))
    config["train_dataloader"]["dataset"]["data_root"] = str(data)
    config["train_cfg"].update(ckpt_interval=1, accumulative_counts=1, clip_grad=None, val_interval=None)
    config["model"]["decode_head"]["loss_decode"]["type"] = poison
    with pytest.raises(NonFiniteError, match=r"the gradient is not finite.*nonfinite_iter_\d+\.json"):
        train(config, work_dir=str(tmp_path / "run"))
    report_path, = (tmp_path / "run").glob("nonfinite_iter_*.json")
    report = json.loads(report_path.read_text())
    assert str(bad) in [f["seg_map_path"] for f in report["files"]] and np.isfinite(float(report["scalars"]["loss"]))
    found, notes = find_state(tmp_path / "run")
    assert not notes and (found is None or read_state(found)[2]["iter"] == report["iter"] - 1)
    with pytest.raises(CheckpointError, match="1 tensors hold inf or nan .m."):
        save_state(tmp_path, {"w": np.ones(2)}, {"m": np.array([1, np.nan])}, {"iter": 1}, {})


# --- time ------------------------------------------------------------------------------------------------------------
JUMPS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static long jump(void) { static int calls; return (__sync_fetch_and_add(&calls, 1) % 7 - 3) * 31557600L; }
typedef int (*get_time)(clockid_t, struct timespec *);
int clock_gettime(clockid_t clock, struct timespec *t) {
    int result = ((get_time)dlsym(RTLD_NEXT, "clock_gettime"))(clock, t);
    if (clock == CLOCK_REALTIME) t->tv_sec += jump();
    return result;
}
time_t time(time_t *out) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    out->tv_sec = t.tv_sec, out->tv_usec = t.tv_nsec / 1000;
    return 0;
}
"""


def test_a_jumping_clock(config, whole, tmp_path):
    """The date jumps by years, back and forth, at every look, in the run and its worker;
    file dates lie; the bar is on screen.
    """
    (tmp_path / "jumps.c").write_text(JUMPS)
    subprocess.run(["g++", "-xc", "-shared", "-fPIC", "-O1", "-o", "jumps.so", "jumps.c", "-ldl"],
                   cwd=tmp_path, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(tmp_path / "jumps.so")}
    years = subprocess.run([sys.executable, "-c", "import time; print(*(time.gmtime().tm_year for _ in range(7)))"],
                           env=environment, text=True, capture_output=True, check=True).stdout.split()
    assert len(set(years)) > 4, "the clock does not jump"
    run = tmp_path / "run"
    for target in (8, ITERATIONS + 1):
        here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
        shown = []
        process = start(config, run, "--resume", env=environment, stderr=there, stdout=there)
        os.close(there)
        reader = threading.Thread(target=read_all, args=(here, shown))
        reader.start()
        wait_for(process, run, target)
        if target < ITERATIONS:
            process.kill()
            for number, path in enumerate(sorted(run.rglob("*"))):
                os.utime(path, (number * 1e8, 4e9 - number * 1e8))
        status = process.wait(400)
        reader.join()
        os.close(here)
    text = b"".join(shown).decode()
    assert status == 0, text[-3000:]
    bars = re.findall(r"\d+/24 \[(.*?)\]", text)
    assert bars and all(re.match(r"(\d\d:)?\d\d:\d\d<", bar) for bar in bars), bars
    assert all(e["eta_s"] >= 0 and e["images_per_s"] > 0 and e["data_wait"] >= 0 for e in lines(run) if "loss" in e)
    assert differences(whole, run) == []


def read_all(handle, shown):
    with contextlib.suppress(OSError):  # the other end is closed
        while content := os.read(handle, 65536):
            shown.append(content)


@pytest.mark.slow
def test_a_hundred_kills():
    assert kill_run.main([]) == 0


def test_nobody_reads_what_a_run_says(config, whole, tmp_path):
    """`jseg train ... 2>&1 | head`: the reader leaves after a line, and the run goes on to its end."""
    run, (here, there) = tmp_path / "run", os.pipe()
    process = start(config, run, stdout=there, stderr=there)
    os.close(there)
    os.read(here, 10)
    os.close(here)
    assert process.wait(400) == 0
    assert differences(whole, run) == []
