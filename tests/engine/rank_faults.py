"""Let one rank of a small training job fail on purpose;
print how long the job takes to end, its exit status and what it said.

    python tests/engine/rank_faults.py                     # every fault, as a table
    python tests/engine/rank_faults.py kill:1 stall:0      # some of them

A fault is `<kind>:<rank>`: exception, memory (MemoryError), exit (sys.exit(3)), kill (SIGKILL, as the kernel does when
memory runs out), stall (SIGSTOP), hang (sleeps for ever), data (a picture that cannot be read), nan (a loss that is not
finite). Others send a signal to a process of the job from outside: <target>-<signal>, such as launch-sigterm,
launch-sighup (its terminal was closed), mpirun-sigkill, rank-sigstop. Time counts from the fault to the end of the last
process; a stall is noticed after `train_cfg.stall_seconds`, here 3.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

FAULTS = ("exception:1", "exception:0", "memory:1", "exit:1", "kill:1", "kill:0", "stall:1", "stall:0", "hang:1",
          "data:1", "nan:1", "launch-sigterm", "launch-sighup", "launch-sigkill", "mpirun-sigterm", "mpirun-sigkill",
          "rank-sigstop")
AT_STEP = 3


def inject(kind: str) -> None:
    """Make step AT_STEP of this process go wrong."""
    import jittor as jt
    from jseg.engine import train as training
    from jseg.errors import DataError
    step, next_batch = training._step, training._next_batch

    def mark():
        pathlib.Path(os.environ["JSEG_FAULT_MARK"]).write_text(str(time.time()))

    def faulty_step(run, batch):
        if run.done == AT_STEP:
            mark()
            if kind == "exception":
                raise RuntimeError("injected")
            if kind == "memory":
                raise MemoryError("injected")
            if kind == "exit":
                sys.exit(3)
            if kind == "nan":
                loss = run.model.loss
                run.model.loss = lambda *batch: {k: v * float("nan") if k == "loss" else v
                                                 for k, v in loss(*batch).items()}
            if kind == "hang":
                time.sleep(1000)
            if kind in ("kill", "stall"):
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "stall": signal.SIGSTOP}[kind])
        return step(run, batch)

    def faulty_batch(run, batches, stop):
        def unreadable():
            mark()
            raise DataError("street_07.png: truncated")
            yield
        return next_batch(run, unreadable() if kind == "data" and run.done == AT_STEP else batches, stop)

    training._step, training._next_batch = faulty_step, faulty_batch
    assert jt.in_mpi


def rank_main() -> int:
    """One rank of the job."""
    kind, number, *words = sys.argv[2:]
    import jseg
    from jseg import runtime
    from jseg.cli import main
    if runtime.job_rank() == int(number):
        inject(kind)
    return main(["train", *words])


def run_fault(fault: str, config: dict, folder: pathlib.Path, *, ranks: int = 2, grace: float = 6.0) -> tuple[
    float, int, str]:
    """Run the job: (seconds from the fault to the job's end, exit status, everything it printed)."""
    from jseg.cli.launch import mpirun_words
    from jseg.config import dump_config
    kind, _, number = fault.partition(":")
    path, mark = folder.with_suffix(".yaml"), folder.with_suffix(".mark")
    path.write_text(dump_config(config))
    job = type("Options", (), {"ranks": ranks, "hostfile": None, "cpu": True, "grace": grace,
                               "command": ["train", str(path), "--work-dir", str(folder)]})
    words = [sys.executable, "-m", "jseg", "launch", "-n", str(ranks), "--cpu", "--grace", str(grace), *job.command]
    if number:
        started = mpirun_words("mpirun", job)
        words = [*started[:started.index(sys.executable) + 1], __file__, "--rank", kind, number, *job.command[1:]]
    with open(folder.with_suffix(".txt"), "w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env={**os.environ, "JSEG_FAULT_MARK": str(mark)},
                                   start_new_session=True,
                                   # these tests may run under nohup
                                   preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
        try:
            if not number:
                _send(process, kind, folder)
                mark.write_text(str(time.time()))
            status = process.wait(600)
            while ranks_of(folder):
                time.sleep(0.05)
                if time.time() - float(mark.read_text()) > 120:
                    raise RuntimeError(f"{fault}: ranks {ranks_of(folder)} go on without the job")
            ended = time.time()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            for left in ranks_of(folder):
                os.kill(left, signal.SIGKILL)
    said = folder.with_suffix(".txt").read_text()
    if not mark.exists():
        raise RuntimeError(f"{fault}: the job ended with status {status} before the fault:\n{said[-3000:]}")
    return ended - float(mark.read_text()), status, said


def ranks_of(folder: pathlib.Path) -> list[int]:
    """Processes that train in this folder, without their helpers."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(folder) in words and "launch" not in words and "mpirun" not in words[0]:
            found.append(int(path.parent.name))
    return sorted(found)


def _send(process, kind: str, folder: pathlib.Path) -> None:
    """Send <target>-<signal> when some steps are done."""
    log = folder / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < AT_STEP:
        if process.poll() is not None:
            return
        time.sleep(0.05)
    target, _, name = kind.partition("-")
    targets = {"launch": process.pid, "rank": ranks_of(folder)[-1]}
    if target == "mpirun":
        targets["mpirun"] = int(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(targets[target], getattr(signal, name.upper()))


def faulty_config(pictures, fault: str) -> dict:
    """A run that would take long; where the fault is a stall it is noticed soon."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    from small_run import small_config
    config = small_config(pictures)
    config["train_cfg"].update(max_iters=100000, val_interval=100000, ckpt_interval=2,
                               stall_seconds=3.0 if fault.startswith(("stall", "hang", "rank-sigstop")) else 600.0)
    return config


def table(faults) -> None:
    """Run the faults and print a line for each."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    from small_run import make_datasets
    with tempfile.TemporaryDirectory() as scratch:
        pictures = make_datasets(pathlib.Path(scratch) / "pictures")
        print(f"| {'fault':<16} | seconds to the end | exit status | said |\n|---|---|---|---|")
        for number, fault in enumerate(faults):
            seconds, status, text = run_fault(fault, faulty_config(pictures, fault),
                                              pathlib.Path(scratch) / f"run{number}")
            telling = [line.strip() for line in text.splitlines() if any(word in line for word in (
                "rank 0 of", "rank 1 of", "Error", "stopped after", "process rank"))]
            print(f"| {fault:<16} | {seconds:.1f} | {status} | {' / '.join(telling)[:330]} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        sys.exit(rank_main())
    table(sys.argv[1:] or FAULTS)
