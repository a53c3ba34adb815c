"""One writer at a time in a run's folder: real processes, a killed owner, another host, a disk without locks."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from jseg.engine.run_folder import RunFolderError, locked

ROOT = pathlib.Path(__file__).parents[2]
HOLD = """
import ctypes, sys, time
from jseg.engine.run_folder import locked
if sys.argv[2:]:  # a host of its own, as far as names go
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x04000000) or libc.sethostname(sys.argv[2].encode(), len(sys.argv[2])):  # CLONE_NEWUTS
        sys.exit("no namespace")
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""
TRY = "import sys; from jseg.engine.run_folder import locked\nwith locked(sys.argv[1]): print('held')"


@pytest.fixture
def owner():
    """Start processes that hold a folder's lock; they end with the test."""
    started = []

    def start(folder, *host, through=()):
        # Jittor, imported by other tests, ends this process when a child is killed
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process = subprocess.Popen([*through, sys.executable, "-c", HOLD, str(folder), *host], cwd=ROOT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)
        if process.stdout.readline() != "held\n":
            pytest.skip("another host name needs root")
        return process
    yield start
    for process in started:
        process.kill()
        process.communicate()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("host", [(), ("another-host",)])
def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path, owner, host, capfd):
    first = owner(tmp_path, *host)
    name = (host or (socket.gethostname(),))[0]
    with pytest.raises(RunFolderError,
                       match=rf"in use by another run \(pid {first.pid} on {name} since .*another --work-dir"):
        with locked(tmp_path):
            pass
    kill(first)
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == first.pid, "a killed owner leaves its name"
    with locked(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert (f"run.lock was left by pid {first.pid} on another-host" in capfd.readouterr().err) == bool(host)
    assert (tmp_path / "run.lock").read_text() == ""


def test_an_error_of_the_run_frees_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with locked(tmp_path):
            1 / 0
    with locked(tmp_path):
        pass


def without_locks():
    """A command that starts another on a kernel whose disks know no file locks."""
    tool = shutil.which("strace")
    command = [tool, "-f", "-qq", "-o", os.devnull, "-e", "trace=flock", "-e", "inject=flock:error=ENOLCK"]
    if tool is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("refusing file locks needs strace and the right to trace")
    return command


def test_on_a_disk_without_locks_the_named_owner_is_looked_up(tmp_path, owner):
    def attempt():
        return subprocess.run([*through, sys.executable, "-c", TRY, str(tmp_path)], cwd=ROOT, text=True,
                              capture_output=True, timeout=60)
    through = without_locks()
    owner(tmp_path, through=through)
    named = json.loads((tmp_path / "run.lock").read_text())
    refused = attempt()
    assert (refused.returncode and f"in use by another run (pid {named['pid']} on" in refused.stderr
            and "no file locks" in refused.stderr)
    os.kill(named["pid"], signal.SIGKILL)
    until = time.monotonic() + 20
    while os.path.exists(f"/proc/{named['pid']}") and time.monotonic() < until:
        time.sleep(0.02)
    assert attempt().stdout == "held\n"
    (tmp_path / "run.lock").write_text(json.dumps({**named, "host": "another-host"}))
    refused = attempt()
    assert refused.returncode and "on another-host" in refused.stderr and "remove" in refused.stderr
