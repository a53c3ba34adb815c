"""Watch one rank of a job from a process of its own: a rank that hangs in C code can run no Python thread.

    python -I -S watch.py PID NAME SECONDS PARENT        lines "<phase> <finished steps>" come on the standard input

A rank that says nothing for SECONDS is named with its host, phase and last finished step, and killed; mpirun then ends
the job. The rank that waits for the others is not the culprit: it gets half as long again, and one whose main thread is
busy a fifth more, because waiting inside a kernel's exchange looks busy. Until three steps are finished (kernels
compile) nothing below half an hour counts; for a rank that a signal has stopped (SIGSTOP) SECONDS always do. Without
any rank to blame, the first of the waiting ones ends the job, so that nothing hangs for ever.
A rank whose PARENT, mpirun, is gone gets SIGTERM: it saves and leaves, where it would train on unseen.
Imports nothing of jseg, so that it costs a few MB and starts in milliseconds.
"""

import os
import select
import signal
import sys
import time

START_SECONDS = 1800.0
WAITING = "waits for the other ranks"
STOPPED = "Tt"
STATES = {"R": "running", "S": "asleep", "D": "waiting for a disk", "T": "stopped by a signal",
          "t": "stopped by a debugger", "Z": "dead"}


def state_of(pid: int) -> tuple[str, int]:
    """The kernel's letter for the state of a process's main thread, and its parent;
    "?" and 0 where they cannot be read.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
        return state, int(parent)
    except (OSError, ValueError):
        return "?", 0


def limit(seconds: float, phase: str, steps: int, state: str) -> float:
    """How long a rank in this phase and state may be silent."""
    base = seconds if steps > 2 else max(seconds, START_SECONDS)
    if state in STOPPED:
        return seconds  # whatever it said last, the others wait for it; and it compiles nothing
    return base * (1.5 if phase == WAITING else 1.2 if state == "R" else 1.0)


def main(pid: int, name: str, seconds: float, parent: int) -> None:
    """Read the rank's words until it ends, says "bye", or has to be killed; ask it to stop when its parent is gone."""
    phase, steps, begun_here, heard, rest = "starts", 0, None, time.monotonic(), b""
    pause = min(1.0, seconds / 8)
    looked, orphaned = heard, False
    while True:
        ready = select.select([0], [], [], pause)[0]
        now = time.monotonic()
        if now - looked > max(5.0, 5 * pause):
            heard = now  # this process was stopped itself, as when a whole job is suspended: begin to wait anew
        if ready:
            data = os.read(0, 65536)
            *lines, rest = (rest + data).split(b"\n")
            if not data or b"bye" in lines:
                return
            if lines:
                phase, _, count = lines[-1].decode().rpartition(" ")
                steps, heard = int(count), now
                begun_here = steps if begun_here is None else begun_here
            if now - looked < pause:
                continue
        looked = now
        silent, (state, above) = now - heard, state_of(pid)
        if above not in (parent, 0) and not orphaned:
            orphaned = True
            say(f"{name} (process {pid}): mpirun is gone; asked to save and leave")
            os.kill(pid, signal.SIGTERM)
        if silent < limit(seconds, phase, steps - (begun_here or 0), state):
            continue
        what = "hears nothing from the other ranks" if phase == WAITING and state not in STOPPED else "has stalled"
        say(f"{name} (process {pid}) {what}: no step for {silent:.0f} s, last finished step {steps}, it {phase}, the "
            f"process is {STATES.get(state, state)}; ending the job (train_cfg.stall_seconds is {seconds:g})")
        os.kill(pid, signal.SIGKILL)
        return


def say(text: str) -> None:
    """A line on the standard error, where somebody still reads it."""
    try:
        os.write(2, f"\n{text}\n".encode())
    except OSError:
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
