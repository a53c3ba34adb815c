"""Completion of command lines: what is offered, and that bash, zsh and fish insert it when TAB is pressed."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from terminal import Terminal

from jseg import cli
from jseg.cli._candidates import after_break, find_candidates, registered_names, split_line
from jseg.cli.names import _registries

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEMO = "segnext/segnext_tiny_demo-128x160_cpu"
LINES = {  # line up to the cursor -> all candidates
    "tra": {"train"}, "train --wo": {"--work-dir"}, "val x --split ": {"val", "test"}, "data ch": {"check"},
    "data check x --quie": {"--quiet"}, "bench --mode infer ": {"infer", "train"}, "train x --patience ": set(),
    "names LightHamH": {"LightHamHead"}, "names A RandomFl": {"RandomFlip"}, "flops segnext_tiny_d": {DEMO[8:]},
    f"train {DEMO[:-6]}": {DEMO}, "launch -n 2 trai": {"train"}, "launch -n 2 train --wo": {"--work-dir"},
    f"train {DEMO} --set optimizer.l": {"optimizer.lr="}, f"train {DEMO} --set model.dec": {"model.decode_head."},
    f"train {DEMO} --set seed.": set(), f"train {DEMO} --set param_scheduler.0.ty": {"param_scheduler.0.type="},
    "train gone.yaml --set opt": set(), "bench --kernels nm": {"nmf"}, "weights get segnext_tiny_cam": set(),
    "train x --weights segnext_tiny_cam": {"segnext_tiny_camvid"},
    "predict w": {"w one.safetensors", "weights of mine/"}, "predict 'w o": {"w one.safetensors"},
    "predict w\\ o": {"w one.safetensors"}, "predict w\\ ": {"w one.safetensors"}, "nonsense ": set(),
    "train x --work-dir w": {"weights of mine/"}, "completion z": {"zsh"}, "predict .h": {".hidden.pth"},
    "predict weights\\ of\\ mine/": {"weights of mine/a.onnx"}, "check mine": {"mine.yaml"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with files to complete, and a `jseg` on the PATH."""
    for name in ("w one.safetensors", "w two.txt", ".hidden.pth", "mine.yaml", "weights of mine/a.onnx", "bin/jseg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jseg "$@"\n')
    (tmp_path / "bin" / "jseg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_lines_are_completed(folder):
    found = {line: {value for value, _ in find_candidates(split_line(f"jseg {line}")[1:])} for line in LINES}
    assert found == LINES
    assert {value for value, _ in find_candidates([""])} == {*cli.commands(), "--help", "--version"}
    assert all(("--help", "") in [(value, "") for value, _ in find_candidates([name, "--"])]
               for name in cli.commands() if name != "data")
    assert after_break([("a b=c", ""), ("a b=d'", "")], "a b=") == [("c", ""), ("d\\'", "")]


def test_names_are_those_that_are_registered():
    assert registered_names() == sorted({name for _, kind in _registries() for name in kind.names()})


def test_completing_loads_no_framework(folder):
    program = ("import sys\nfrom jseg import cli\nfor line in sys.argv[1:]:\n"
               "    assert cli.main(['completion', 'bash', '--line', 'jseg ' + line]) == 0\n"
               "assert not {'jittor', 'torch'} & set(sys.modules)\n")
    done = subprocess.run([sys.executable, "-c", program, *LINES], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "w\\ one.safetensors\n" in done.stdout


def test_scripts_are_printed(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        text = capsys.readouterr().out
        assert f"jseg completion {shell}" in text
        if shutil.which(shell):
            subprocess.run([shell, "-n", "/dev/stdin"], input=text, text=True, check=True, timeout=60)
    assert cli.main(["completion", "tcsh"]) == 2


def press_tab(shell, setup, folder):
    """What the shell's line becomes when TAB is pressed, for four beginnings."""
    typed = {"jseg trai": "jseg train ", "jseg names RandomFl": "jseg names RandomFlip ",
             "jseg predict w\\ ": "jseg predict w\\ one.safetensors ",
             f"jseg train {DEMO[:-4]}": f"jseg train {DEMO} ",
             f"jseg train {DEMO} --set optimizer.l": f"jseg train {DEMO} --set optimizer.lr="}
    env = {"TERM": "dumb", "INPUTRC": "/dev/null", "PS1": "> ", "HOME": str(folder)}
    with Terminal(*shell, env=env, cwd=folder) as terminal:
        terminal.send("\n".join([*setup, "echo 'rea'dy", ""]))
        terminal.wait_for(r"\nready")
        for begun, whole in typed.items():
            at = len(terminal.text)
            terminal.send(f"{begun}\t")
            terminal.wait_for(lambda: whole in terminal.text[at:].replace("\a", ""))
            terminal.send("\x15")  # Ctrl-U: the line is dropped


def test_bash_completes(folder):
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    press_tab(("bash", "--norc", "--noprofile", "-i"), ['eval "$(jseg completion bash)"'], folder)


@pytest.mark.parametrize("how", ["eval", "fpath"])
def test_zsh_completes(folder, how):
    if not shutil.which("zsh"):
        pytest.skip("no zsh here")
    setup = {"eval": ["autoload -U compinit; compinit -u -D", 'eval "$(jseg completion zsh)"'],
             "fpath": ["jseg completion zsh > _jseg; fpath+=$PWD; autoload -U compinit; compinit -u -D"]}[how]
    press_tab(("zsh", "-f", "-i"), setup, folder)


def test_fish_completes(folder):
    if not shutil.which("fish"):
        pytest.skip("no fish here")
    lines = ["jseg trai", "jseg names RandomFl", "jseg predict w\\ ", f"jseg train {DEMO} --set optimizer.l"]
    asked = "; ".join(f"complete -C'{line}'" for line in lines)
    done = subprocess.run(["fish", "-c", f"jseg completion fish | source; {asked}"], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "HOME": str(folder)})
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [
        "train", "RandomFlip", "w one.safetensors", "optimizer.lr="], done.stderr
