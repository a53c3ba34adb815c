"""Every command ends by Ctrl-C on a real terminal: within 3 seconds, with 130,
without a traceback, leaving no process and no part.

Also SIGTERM (143), a closed terminal (129), Ctrl-C within a long C++ call and twice in a row, and scripts of users.
What a resumed run is worth after a hundred presses shows `engine/interrupt_run.py`; ranks are in
engine/test_distributed.py.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from terminal import ROOT, Terminal, faults

from jseg.config import dump_config, load_config

sys.path.insert(0, str(pathlib.Path(__file__).parent / "engine"))
import interrupt_run  # noqa: E402
from small_run import lines, make_datasets, small_config  # noqa: E402

WEIGHTS = ROOT / "weights" / "segnext_tiny_camvid.safetensors"
CONFIG = ROOT / "configs" / "segnext" / "segnext_tiny_camvid-240x320_cpu.yaml"
LIMIT_S = 3.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) / 2)  # on a machine with other work, as much longer


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder with work for every command that lasts longer than the tests wait."""
    folder = tmp_path_factory.mktemp("stage")
    config = small_config(make_datasets(folder / "pictures"))
    config["train_cfg"].update(max_iters=100000, val_interval=None, ckpt_interval=1000)
    config["train_dataloader"]["num_workers"] = 1
    (folder / "run.yaml").write_text(dump_config(config))
    rng = np.random.default_rng(0)
    picture, mask = (rng.integers(0, 256, (1200, 1600, 3)).astype(np.uint8),
                     rng.integers(0, 3, (1200, 1600)).astype(np.uint8))
    devkit, names = folder / "VOCdevkit" / "VOC2012", [f"{i:04d}" for i in range(150)]
    for part, suffix, content in (("JPEGImages", ".jpg", picture), ("SegmentationClass", ".png", mask)):
        (devkit / part).mkdir(parents=True)
        cv2.imwrite(str(folder / f"one{suffix}"), content)
        for name in names:
            os.link(folder / f"one{suffix}", devkit / part / f"{name}{suffix}")
    (devkit / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split in ("train", "val"):
        (devkit / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(
            "\n".join(names if split == "train" else names[:1]))
    (folder / "many").mkdir()
    cv2.imwrite(str(folder / "small.jpg"), picture[:240, :320])
    for name in names:
        os.link(folder / "small.jpg", folder / "many" / f"{name}.jpg")
    clip = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (320, 240))
    for _ in range(400):
        clip.write(picture[:240, :320])
    clip.release()
    large = {**config, "val_dataloader": json.loads(json.dumps(config["val_dataloader"]))}
    large["val_dataloader"]["dataset"].update(
        data_root=str(devkit), data_prefix={"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"})
    large["train_dataloader"] = {**large["val_dataloader"], "num_workers": 1}
    (folder / "large.yaml").write_text(dump_config(large))
    camvid = load_config(CONFIG)
    camvid["val_dataloader"]["dataset"] = {**large["val_dataloader"]["dataset"],
                                           "metainfo": {"classes": [f"class_{i}" for i in range(11)]}}
    (folder / "val.yaml").write_text(dump_config(camvid))
    large["val_dataloader"]["dataset"].update(data_root=str(folder), data_prefix={"img_path": "many"})
    (folder / "many.yaml").write_text(dump_config(large))
    return folder


@pytest.fixture(scope="module")
def silent_server():
    """An address where connections are taken and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/w.pth"


def steps(run, count):
    """Whether a run has done so many steps."""
    return lambda: len(lines(run)) >= count


def written(folder):
    """Whether a command has written a file."""
    return lambda: any(path.suffix in (".png", ".mp4", ".jpg") for path in folder.rglob("*"))


def work(stage, out, address):
    """Command -> (its words; seconds, or a condition to wait for, before Ctrl-C)."""
    index = stage / "index.yaml"
    index.write_text(f"w: {{file: w.pth, url: {address}, sha256: null, source: test, licence: null, config: null, "
                     f"classes: null, miou: null}}\n")
    sleeper = stage / "python"
    sleeper.write_text("#!/bin/sh\nsleep 60\n")
    sleeper.chmod(0o755)
    return {
        "predict": (("jseg", "predict", WEIGHTS, stage / "many", "--out", out), "->"),
        "predict a video": (("jseg", "predict", WEIGHTS, stage / "clip.avi", "--out", out), written(out)),
        "val": (("jseg", "val", stage / "val.yaml", "--checkpoint", WEIGHTS), 1.0),
        "train": (("jseg", "train", stage / "run.yaml", "--work-dir", out / "run"), steps(out / "run", 3)),
        "convert a dataset": ((sys.executable, "tools/convert_datasets/voc2012.py", stage / "VOCdevkit", "--out", out,
                               "--partial", "--overwrite", "--workers", "2"), written(out)),
        "data check": (("jseg", "data", "check", stage / "large.yaml"), 1.0),
        "serve": (("jseg", "serve", WEIGHTS, "--port", "0"), "serving"),
        "weights get": (("jseg", "weights", "get", "w", "--index", index, "--dir", out), 1.0),
        "bench": (("jseg", "bench", "--model", CONFIG, "--size", "240", "320"), 2.0),
        "warmup": (("jseg", "warmup", CONFIG, "--train"), 1.0),
        "verify": (("jseg", "verify", WEIGHTS, "--against-torch", sleeper, "--pictures", stage / "one.jpg"), 1.0),
        "tools script": ((sys.executable, "tools/run_net.py", "--config-file", stage / "many.yaml", "--task", "test",
                          "--resume", WEIGHTS, "--save-dir", out), "->")}


@pytest.mark.parametrize("name", ["predict", "predict a video", "val", "train", "convert a dataset", "data check",
                                  "serve", "weights get", "bench", "warmup", "verify", "tools script"])
def test_ctrl_c_at_work(name, stage, tmp_path, silent_server):
    words, moment = work(stage, tmp_path, silent_server)[name]
    with Terminal(*words) as terminal:
        terminal.wait_for_handlers()
        if isinstance(moment, float):
            terminal.watch(moment)
        else:
            terminal.wait_for(moment)
        assert terminal.status is None, terminal.text
        assert faults(terminal, terminal.press(), tmp_path, limit_s=LIMIT_S) == []
    if name == "train":
        saved = json.loads((tmp_path / "run" / "last" / "state.json").read_text())["iter"]
        assert saved == lines(tmp_path / "run")[-1]["iter"] >= 3


def test_ctrl_c_while_anything_is_imported(stage, tmp_path, silent_server, rng):
    """Every command, also the short ones, at a random moment of its first half second."""
    short = {name: ("jseg", *words) for name, words in {
        "doctor": ("doctor",), "check": ("check", CONFIG), "flops": ("flops", CONFIG), "names": ("names",),
        "export": ("export", WEIGHTS, tmp_path / "w.onnx"),
        "browse": ("browse", stage / "large.yaml", "--out", tmp_path / "sheet.png"),
        "convert": ("convert", WEIGHTS, tmp_path / "w"),
        "report": ("report", tmp_path), "launch": ("launch", "-n", "2", "--cpu", "train", stage / "run.yaml",
                                                   "--work-dir", tmp_path / "ranks")}.items()}
    scripts = {path.name: (sys.executable, path, "--help") for path in sorted((ROOT / "tools").rglob("*.py"))}
    own_ends, wrong = {"convert": 2, "report": 2}, []
    if not all(map(shutil.which, ("mpirun", "mpicc"))):
        own_ends["launch"] = 2
    for name, words in {**{name: words for name, (words, _) in work(stage, tmp_path, silent_server).items()}, **short,
                        **scripts}.items():
        with Terminal(*words) as terminal:
            terminal.wait_for_handlers()
            if terminal.watch(float(rng.uniform(0, 0.5 if "--help" not in words else 0.03))):
                seconds = terminal.press()
                # else it had come to its own end when the key came
                if terminal.status != own_ends.get(name, 0):
                    wrong += [f"{name}: {fault}" for fault in faults(terminal, seconds, tmp_path, limit_s=LIMIT_S)]
    assert not wrong


@pytest.mark.mpi
@pytest.mark.parametrize("after_s", [0.3, 0.8, 1.5, 2.5])
def test_ctrl_c_while_ranks_start(after_s, stage, tmp_path):
    """mpirun would wait twice for three seconds."""
    with Terminal("jseg", "launch", "-n", "2", "--cpu", "train", stage / "run.yaml", "--work-dir",
                  tmp_path / "ranks") as terminal:
        terminal.wait_for("mpirun")
        terminal.watch(after_s)
        assert faults(terminal, terminal.press(), tmp_path, limit_s=LIMIT_S) == []


def command(tmp_path, body):
    """A script that counts as a command of jseg: it is called so."""
    path = tmp_path / "jseg"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport pathlib\nfrom jseg import cli, "
                    "runtime_signals\ndef work(words):\n    import jittor as jt\n"
                    + "".join(f"    {line}\n" for line in body.splitlines())
                    + "cli._dispatch = work\nsys.exit(cli.main())\n")
    return sys.executable, path


@pytest.mark.parametrize("how, status", [("key", 130), ("sigterm", 143)])
def test_a_long_call_of_c_plus_plus_is_not_waited_for(tmp_path, how, status):
    """No Python handler runs within it; what it was writing goes."""
    body = ("a = jt.random((6000, 6000)).sync()\nwith runtime_signals.temporary_file('film.part.mp4'):\n    "
            "pathlib.Path('film.part.mp4').touch()\n    print('computes', flush=True)\n    for _ in range(30): a = a @ "
            "a\n    a.sync()")
    with Terminal(*command(tmp_path, body), cwd=tmp_path) as terminal:
        terminal.wait_for("computes")
        terminal.watch(0.3)
        began = time.monotonic()
        if how == "key":
            terminal.press()
        else:
            os.kill(terminal.process, signal.SIGTERM)
            terminal.watch(30)
        assert faults(terminal, time.monotonic() - began, tmp_path, status=status, limit_s=LIMIT_S) == []


def test_an_error_that_c_code_prints_is_no_traceback(tmp_path):
    """Libraries call Python from C, and print the error where it raises."""
    body = ("import ctypes, time\ncall = ctypes.CFUNCTYPE(None)(lambda: time.sleep(60))\nprint('works', "
            "flush=True)\ncall()\ntry:\n    time.sleep(60)\nexcept BaseException:\n    ctypes.pythonapi.PyErr_Print()")
    with Terminal(*command(tmp_path, body)) as terminal:
        terminal.wait_for("works")
        assert faults(terminal, terminal.press(), limit_s=LIMIT_S) == []


def test_who_swallows_the_signal_is_ended(tmp_path):
    body = ("import time\nwhile True:\n    try:\n        print('works', flush=True)\n        time.sleep(60)\n    "
            "except BaseException:\n        pass")
    with Terminal(*command(tmp_path, body)) as terminal:
        terminal.wait_for("works")
        assert faults(terminal, terminal.press(), limit_s=LIMIT_S) == []


def test_ctrl_c_while_a_compiler_runs(tmp_path):
    """The terminal's signal reaches g++ too, whose failure is no error of the program."""
    source = " ".join(f"template<int N> struct T{i} {{ enum {{ v = T{i}<N-1>::v + N }}; }}; template<> struct T{i}<0> "
                      f"{{ enum {{ v = 0 }}; }};"
                                                 for i in range(40))
    use = " ".join(f"out0_p[0] += T{i}<{800 - i}>::v;" for i in range(40))
    body = (f"print('compiles', flush=True)\njt.code([1], 'float32', [jt.ones(1)], cpu_header='''{source} // "
            f"{time.time()}''', cpu_src='''@alias(o, out0)\n{use}''').sync()\nprint('done', flush=True)")
    with Terminal(*command(tmp_path, body)) as terminal:
        terminal.wait_for("compiles")
        terminal.watch(0.7)
        assert "done" not in terminal.text
        assert faults(terminal, terminal.press(), limit_s=LIMIT_S) == []


@pytest.mark.parametrize("name", ["predict a video", "val"])
def test_sigterm_to_the_whole_group(name, stage, tmp_path, silent_server):
    words, _ = work(stage, tmp_path, silent_server)[name]
    with Terminal(*words) as terminal:
        terminal.wait_for_handlers()
        terminal.watch(1.5)
        began = time.monotonic()
        os.killpg(terminal.process, signal.SIGTERM)
        terminal.watch(30)
        assert faults(terminal, time.monotonic() - began, tmp_path, status=143, limit_s=LIMIT_S) == []


def test_a_second_ctrl_c_ends_training_at_once(stage, tmp_path):
    """Within a step that takes long, after which the state before it is whole."""
    run = tmp_path / "run"
    words = ("jseg", "train", stage / "run.yaml", "--work-dir", run, "--set", "train_cfg.ckpt_interval=1")
    with Terminal(*words) as terminal:
        terminal.wait_for(steps(run, 3))
        os.write(terminal._screen, b"\x03\x03")
        assert faults(terminal, terminal.press(), limit_s=LIMIT_S) == []
    with Terminal(*words, "--resume") as terminal:
        terminal.wait_for(r"resuming after iteration [1-9]")
        assert "passed over" not in terminal.text
        terminal.press()


def test_a_closed_terminal_ends_a_run_which_saves(stage, tmp_path):
    run = tmp_path / "run"
    with Terminal("jseg", "train", stage / "run.yaml", "--work-dir", run) as terminal:
        terminal.wait_for(steps(run, 3))
        terminal.close()
        terminal.watch(30)
        assert terminal.status == 129 and not terminal.session()
    assert json.loads((run / "last" / "state.json").read_text())["iter"] == lines(run)[-1]["iter"] >= 3


def test_nohup_keeps_a_run_going(stage, tmp_path):
    run = tmp_path / "run"
    words = (shutil.which("nohup"), sys.executable, "-m", "jseg", "train", stage / "run.yaml", "--work-dir", run)
    with Terminal("sh", "-c", f"exec {' '.join(map(str, words))} > {tmp_path / 'out.txt'} 2>&1",
                  cwd=tmp_path) as terminal:
        terminal.watch(120, lambda: len(lines(run)) >= 2)
        terminal.close()
        count = len(lines(run))
        terminal.watch(60, lambda: len(lines(run)) > count + 1)
        assert terminal.status is None and len(lines(run)) > count + 1


@pytest.mark.parametrize("end", ["jt.ones(3).sync()", "raise ValueError('its own')",
                                 "os.kill(0, signal.SIGINT); time.sleep(5)"])
def test_a_script_of_a_user_ends_as_scripts_do(tmp_path, end):
    """No handlers of jseg or Jittor in it, and no pool of Jittor that waits for ever."""
    (tmp_path / "script.py").write_text(f"import os, signal, sys, time\nsys.path.insert(0, {str(ROOT)!r})\nimport "
                                        "jseg, jittor as jt\nprint('ready', flush=True)\nassert "
                                        f"signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n{end}\n")
    with Terminal(sys.executable, tmp_path / "script.py") as terminal:
        terminal.wait_for("ready")
        began = time.monotonic()
        terminal.watch(30)
        expected = {"j": (0, ""), "r": (1, "its own"), "o": (-2, "KeyboardInterrupt")}[end[0]]
        assert (terminal.status, expected[1] in terminal.text) == (expected[0], True), terminal.text
        assert time.monotonic() - began < LIMIT_S and not terminal.session()


def test_presses_at_random_moments_lose_nothing(tmp_path):
    book, wrong = interrupt_run.hundred(tmp_path, presses=6, iterations=24, seed=int(time.time()), limit_s=LIMIT_S)
    assert not wrong and book.count == 6


@pytest.mark.slow
def test_a_hundred_presses():
    done = subprocess.run([sys.executable, interrupt_run.__file__, "--presses", "100"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
