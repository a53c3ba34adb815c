"""Start a command on several ranks: finds mpirun, sets what must be set, prints the line it uses."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Callable

from jseg import runtime, runtime_signals
from jseg.errors import ConfigError, RuntimeSetupError
from jseg.text import read_text

EXAMPLE = "jseg launch -n 4 train configs/segnext/segnext_tiny_ade20k-512x512_160k.yaml --work-dir runs/ade"
COMMANDS = ("train", "pretrain", "val", "predict")
ASK_AGAIN_S = 2.0  # between two requests to the ranks to save and leave
LAST_WORDS_S = 0.5  # for mpirun to pass on what its ranks said before they ended
# What a remote host must be told; ranks on this host inherit everything.
EXPORTED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "JITTOR_HOME", "OMP_NUM_THREADS",
            "CUDA_VISIBLE_DEVICES", "nvcc_path", "cache_name", "use_mkl", "JSEG_VERBOSE", "JSEG_IMPL", "JSEG_CONV",
            "JSEG_LAUNCH", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG")


def add_arguments(parser) -> None:
    """Options of `jseg launch`."""
    parser.add_argument("-n", "--ranks", type=int, required=True, metavar="N",
                        help="number of processes over all hosts: one for each GPU")
    parser.add_argument("--hostfile", metavar="FILE",
                        help="hosts for mpirun, one per line: `node1 slots=4`; jseg must be installed at the "
                                                            "same place on each")
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU even where there are GPUs")
    parser.add_argument("--grace", type=float, default=6.0, metavar="S",
                        help="seconds between a SIGTERM to mpirun itself and the end of the job, which then comes even "
                             "when a rank dies (default: %(default)g); a signal to jseg launch has no limit")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...",
                        help=f"one of {', '.join(COMMANDS)}, with its own options")


def run(args) -> int:
    """Check, print the line, run it; the job's exit status."""
    if not args.command or args.command[0] not in COMMANDS:
        raise ConfigError(f"jseg launch: got {args.command[0] if args.command else 'no command'!r}; commands that run "
                          f"on several ranks: {', '.join(COMMANDS)}")
    if args.ranks < 1:
        raise ConfigError(f"jseg launch: -n is {args.ranks}; at least 1")
    mpirun = shutil.which("mpirun")
    missing = [name for name in ("mpirun", "mpicc") if not shutil.which(name)]
    if missing:
        raise RuntimeSetupError(f"jseg launch: no {' and no '.join(missing)} on PATH; install Open MPI on every host: "
                                "apt-get install -y openmpi-bin libopenmpi-dev")
    os.environ["JSEG_LAUNCH"] = "1"  # for the ranks: a stop that was asked for here is no failure
    words = mpirun_words(mpirun, args)
    print(shlex.join(words), file=sys.stderr, flush=True)
    return _run(words, {**os.environ, **({"nvcc_path": "", "CUDA_VISIBLE_DEVICES": ""} if args.cpu else {})})


def mpirun_words(mpirun: str, args) -> list[str]:
    """The command line; raises ConfigError where ranks and devices or slots do not match."""
    words = [mpirun, "-np", str(args.ranks), "--bind-to", "none",  # a rank has threads: it must not be tied to one core
             "--mca", "odls_base_sigkill_timeout", str(max(1, round(args.grace / 2)))]  # mpirun waits so long twice
    words += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    if args.hostfile:
        slots = _slots(pathlib.Path(args.hostfile))
        if args.ranks > slots:
            raise ConfigError(f"{args.hostfile}: {slots} slots for {args.ranks} ranks; add `slots=` (one for each GPU) "
                              "or hosts, or lower -n")
        words += ["--hostfile", args.hostfile]
        set_here = {**os.environ, **({"nvcc_path": "", "CUDA_VISIBLE_DEVICES": ""} if args.cpu else {})}
        words += [word for name in EXPORTED if name in set_here for word in ("-x", name)]
    else:
        _check_devices(args.ranks, args.cpu)
        words += ["--oversubscribe"] if args.ranks > _physical_cores() else []
    return [*words, sys.executable, "-m", "jseg", *args.command]


def _check_devices(ranks: int, cpu: bool) -> None:
    """Ranks on this host need a GPU each, or cores."""
    found = [] if cpu or not os.environ.get("nvcc_path") else runtime.gpus()
    if found and ranks > len(found):
        raise ConfigError(f"jseg launch: {ranks} ranks, but {len(found)} GPUs here "
                          f"({', '.join(g['name'] for g in found)}); each rank needs one: -n {len(found)}, a "
                          "--hostfile, or --cpu")
    cores = len(os.sched_getaffinity(0))
    if found:
        print(f"{ranks} ranks, one GPU each of {len(found)}", file=sys.stderr)
    else:
        print(f"{ranks} ranks on the CPU, {max(1, cores // ranks)} of {cores} threads each"
              + (": more ranks than cores, slower than fewer" if ranks > cores else ""), file=sys.stderr)


def _physical_cores() -> int:
    """What mpirun counts as slots: cores, not hardware threads."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return 1
    pairs = set(zip(re.findall(r"physical id\s*: (\d+)", text), re.findall(r"core id\s*: (\d+)", text)))
    return len(pairs) or 1


def _slots(path: pathlib.Path) -> int:
    """Slots that a hostfile offers; a host without the word has one."""
    try:
        lines = [line.split("#")[0].strip() for line in read_text(path, what="hostfile",
                                                                  error=ConfigError).splitlines()]
    except ConfigError as error:
        raise ConfigError(f"{error}; a hostfile has lines like `node1 slots=4`") from error
    return sum(int(found[1]) if (found := re.search(r"slots\s*=\s*(\d+)", line)) else 1 for line in lines if line)


def _run(words: list[str], environment: dict[str, str]) -> int:
    """Run mpirun in a session of its own and hand signals on:
    the first asks the ranks to save and leave, a second Ctrl-C ends them.

    mpirun is asked as well when this process is gone, in whatever way. Where mpirun is, each rank's watcher asks it.
    """
    asked: list[int] = []
    jobs: list[subprocess.Popen] = []

    def ask(number: int) -> None:
        runtime_signals.mute_broken_output()
        again = bool(asked)
        asked.append(number)
        for job in jobs:
            if again and number == signal.SIGINT:
                job.terminate()
            elif not again:
                job.send_signal(signal.SIGUSR1)  # mpirun hands this one on to every rank and does nothing else

    with runtime_signals.answering(ask):
        job = subprocess.Popen(words, env=environment, start_new_session=True, preexec_fn=_asked_when_orphaned())
        jobs.append(job)
        status = _await(job, asked, local="--hostfile" not in words)
    status = status if status >= 0 else 128 - status
    return 128 + asked[0] if asked and status in (0, 128 + signal.SIGTERM, 128 + signal.SIGUSR1,
                                                  128 + signal.SIGKILL) else status


def _await(job: subprocess.Popen, asked: list[int], *, local: bool) -> int:
    """Wait for mpirun; once asked to end, ask again and again, and wait no longer than its ranks live.

    Before its ranks run, mpirun hands a signal on to nobody; when they have ended early it waits twice for three
    seconds. Ranks on other hosts are mpirun's to wait for.
    """
    asked_at = alone_since = 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return job.wait(0.25 if asked else ASK_AGAIN_S)
        now = time.monotonic()
        if asked and now - asked_at > ASK_AGAIN_S:
            job.send_signal(signal.SIGUSR1)
            asked_at = now
        alone_since = (alone_since or now) if asked and local and not _has_children(job.pid) else 0.0
        if alone_since and now - alone_since > LAST_WORDS_S:
            job.kill()


def _has_children(process: int) -> bool:
    """Whether a process has any that still run; also where the system cannot tell."""
    try:
        children = [child for path in pathlib.Path(f"/proc/{process}/task").glob("*/children")
                    for child in path.read_text().split()]
    except OSError:
        return True
    return any(runtime_signals.runs(int(child)) for child in children)


def _asked_when_orphaned() -> Callable[[], None] | None:
    """What mpirun does before it starts: have the kernel send it SIGUSR1 when `jseg launch` dies, by SIGKILL too.
    Linux alone can.
    """
    if not sys.platform.startswith("linux"):
        return None
    system, parent_death_signal = ctypes.CDLL(None), 1  # PR_SET_PDEATHSIG
    return lambda: system.prctl(parent_death_signal, int(signal.SIGUSR1), 0, 0, 0)
