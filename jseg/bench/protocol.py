"""The talk between the benchmark and a side: one JSON object per line, request in, answer out.

    {"do": "open", "task": "main", ...}     build something that can run   -> {"ok": true, ...}
    {"do": "run", "task": "main", "count": 5}                               -> {"ok": true, "seconds": [0.08, ...]}
    {"do": "peak"}                          largest resident memory so far  -> {"ok": true, "bytes": 123}

The first line a side writes is {"ok": true, "ready": ...}. This file needs Python's standard library only and never
imports jseg: the PyTorch side loads it as a plain file.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback

__all__ = ["serve", "run_task", "peak_bytes"]


def peak_bytes() -> int:
    """Largest resident memory of this process. The kernel's own mark is taken,
    because `ru_maxrss` is inherited from the parent.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_task(task, count: int, clock: str = "wall") -> list[float]:
    """Call `task()` `count` times; seconds of each. The task itself waits until its results are there.

    Args:
        clock: "wall", or "processor" for the processor time of all threads of this process.
    """
    now, seconds = {"wall": time.perf_counter, "processor": time.process_time}[clock], []
    for _ in range(count):
        began = now()
        task()
        seconds.append(now() - began)
    return seconds


def serve(commands: dict, tasks: dict, ready: dict) -> None:
    """Answer requests until the input closes or {"do": "quit"} comes.

    What libraries print goes to standard error; the answers have the original standard output to themselves.

    Args:
        commands: name -> function of the request (a dict) that returns a dict.
        tasks: name -> callable, filled by the commands; `run` and `close` work on it.
        ready: the content of the first answer.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    known = {"run": lambda r: {"seconds": run_task(tasks[r.get("task", "main")], int(r.get("count", 1)),
                                                    r.get("clock", "wall"))},
             "peak": lambda r: {"bytes": peak_bytes()},
             "close": lambda r: {"closed": tasks.pop(r.get("task", "main"), None) is not None}, **commands}
    print(json.dumps({"ok": True, "ready": ready}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "quit":
            break
        try:
            answer = {"ok": True, **known[request["do"]](request)}
        except Exception as error:  # whatever fails, the asker hears of it and decides
            traceback.print_exc()
            text = str(error).strip().splitlines() or [""]
            answer = {"ok": False, "error": f"{type(error).__name__}: {text[0]}"[:600]}
        print(json.dumps(answer), file=answers, flush=True)
