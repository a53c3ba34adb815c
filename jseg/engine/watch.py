"""Watch one rank of a job from a process of its own: a rank that hangs in C code can run no Python thread.

    python -I -S watch.py PID NAME SECONDS        lines "<phase> <finished steps>" come on the standard input

A rank that says nothing for SECONDS is named with its host, phase and last finished step, and killed; mpirun then ends the job.
The rank that waits for the others is not the culprit: it gets half as long again, and one whose main thread is busy a fifth more,
because waiting inside a kernel's exchange looks busy. Until three steps are finished (kernels compile) nothing below
half an hour counts. Without any rank to blame, the first of the waiting ones ends the job, so that nothing hangs for ever.
Imports nothing of jseg, so that it costs a few MB and starts in milliseconds.
"""

import os
import select
import signal
import sys
import time

START_SECONDS = 1800.0
WAITING = "waits for the other ranks"
STATES = {"R": "running", "S": "asleep", "D": "waiting for a disk", "T": "stopped by a signal", "t": "stopped by a debugger", "Z": "dead"}


def state_of(pid: int) -> str:
    """The kernel's letter for the state of a process's main thread; "?" where it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "?"


def limit(seconds: float, phase: str, steps: int, state: str) -> float:
    """How long a rank in this phase and state may be silent."""
    base = seconds if steps > 2 else max(seconds, START_SECONDS)
    return base * (1.5 if phase == WAITING else 1.2 if state == "R" else 1.0)


def main(pid: int, name: str, seconds: float) -> None:
    """Read the rank's words until it ends, says "bye", or has to be killed."""
    phase, steps, begun_here, heard, rest = "starts", 0, None, time.monotonic(), b""
    while True:
        if select.select([0], [], [], min(1.0, seconds / 8))[0]:
            data = os.read(0, 65536)
            *lines, rest = (rest + data).split(b"\n")
            if not data or b"bye" in lines:
                return
            if lines:
                phase, _, count = lines[-1].decode().rpartition(" ")
                steps, heard = int(count), time.monotonic()
                begun_here = steps if begun_here is None else begun_here
            continue
        silent, state = time.monotonic() - heard, state_of(pid)
        if silent < limit(seconds, phase, steps - (begun_here or 0), state):
            continue
        what = "hears nothing from the other ranks" if phase == WAITING else "has stalled"
        os.write(2, f"\n{name} (process {pid}) {what}: no step for {silent:.0f} s, last finished step {steps}, it {phase}, the process is "
                    f"{STATES.get(state, state)}; ending the job (train_cfg.stall_seconds is {seconds:g})\n".encode())
        os.kill(pid, signal.SIGKILL)
        return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
