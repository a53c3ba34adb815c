"""Kill one run a hundred times at random moments and compare what it leaves with the same run unbroken.

    python tests/engine/kill_run.py --kills 100 --seed 0

Each life of the run is a process group of its own (training process and data worker) that gets SIGKILL after a time
drawn uniformly from [0, start-up + some work], so that kills fall into start-up, steps, the writing of states and
evaluations alike; the range adapts to what is left, so that the last kill falls near the end of the run. Every life has
to start without complaint, and at the end all weights, optimizer states, moving averages, log lines and scores have to
be the unbroken run's, bit for bit. Exit status 1 and a list of what differs otherwise.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import pathlib
import signal
import statistics
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from small_run import differences, lines, make_datasets, small_config, start  # noqa: E402


def long_config(pictures, iterations):
    """States every 3 steps and evaluations every 10, so that many kills fall into them."""
    config = small_config(pictures)
    config["train_dataloader"]["num_workers"] = 1
    config["train_cfg"].update(max_iters=iterations, ckpt_interval=3, val_interval=10, keep=2)
    config["param_scheduler"][-1]["end"] = iterations
    return config


class Life:
    """One start of the run, until it is killed or ends."""

    def __init__(self, config, folder):
        self.folder, self.began = folder, time.monotonic()
        said = folder.with_suffix(".txt")
        self._said_before = said.stat().st_size if said.exists() else 0
        self._drafts_before = self._drafts()
        self.process = start(config, folder, "--resume", start_new_session=True)
        self.work_from = None  # seconds from the start to the first new step

    def wait(self, limit_s, ceiling=math.inf):
        """Watch for at most `limit_s` seconds, or until a state after iteration `ceiling` is saved; returns the exit
        status when the run ends by itself."""
        while time.monotonic() - self.began < limit_s:
            if self.process.poll() is not None:
                return self.process.returncode
            if self.work_from is None and self._steps():
                self.work_from = time.monotonic() - self.began
            if self.work_from is not None and _saved(self.folder) > ceiling:
                return self.process.poll()
            time.sleep(min(0.02, max(0.0, limit_s - (time.monotonic() - self.began))))
        return self.process.poll()

    def _steps(self):
        """Whether this life has done a step."""
        with open(self.folder.with_suffix(".txt"), "rb") as file:
            file.seek(self._said_before)
            return b"first step:" in file.read()

    def kill(self):
        """SIGKILL to the whole group; returns what it was doing."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return self._phase()

    def _drafts(self):
        """What unfinished writers have left; a start-up does not clear it away."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return {name for name in names if ".tmp-" in name or ".old-" in name}

    def _phase(self):
        if self._drafts() - self._drafts_before:
            return "writing a state"
        if not self._steps():
            return "start-up"
        try:
            due = json.loads((self.folder / "last" / "state.json").read_text())["evaluated"] is False
        except (OSError, ValueError):
            return "writing a state"
        return "evaluation" if due else "steps"


def killed_run(config, folder, kills, rng, startup_s, step_s):
    """Run to the end with `kills` kills on the way. Returns (kills by phase, slowest start in s, complaints)."""
    phases, complaints, starts = collections.Counter(), [], [startup_s]
    total = config["train_cfg"]["max_iters"]
    while True:
        left = kills - sum(phases.values())
        life, limit = Life(config, folder), math.inf
        if left > 0:
            ready, rest = statistics.median(starts[-9:]), (total - _saved(folder)) * step_s / left
            # the expected work of a life is at least `rest`
            work = max(ready / 2, rest + math.sqrt(rest * rest + 2 * rest * ready))
            limit = float(rng.uniform(0, ready + work))
        # a machine that became faster must not end the run early
        status = life.wait(limit, total - 4 * left if left else math.inf)
        if life.work_from is not None:
            starts.append(life.work_from)
        if status is None:
            phases[life.kill()] += 1
            if sum(phases.values()) % 10 == 0:
                print(f"{sum(phases.values())} kills, {_saved(folder)} of {total} iterations saved", flush=True)
            continue
        said = folder.with_suffix(".txt").read_text()
        complaints += [line for line in said.splitlines() if "passed over" in line or "Traceback" in line
                       or "differs" in line]
        if status != 0:
            complaints.append(f"a life ended with status {status}: {said[-1500:]}")
        elif left > 0:
            complaints.append(f"the run ended after {kills - left} of {kills} kills; give more --iterations")
        return phases, max(starts[1:], default=startup_s), complaints


def _saved(folder):
    try:
        return json.loads((folder / "last" / "state.json").read_text())["iter"]
    except (OSError, ValueError):
        return 0


def main(argv=None):
    """0 when nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=450)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        config = long_config(make_datasets(scratch / "pictures"), args.iterations)
        began = time.monotonic()
        whole = Life(config, scratch / "whole")
        if whole.wait(math.inf) != 0:
            print((scratch / "whole.txt").read_text()[-3000:])
            return 1
        seconds = time.monotonic() - began
        print(f"unbroken: {args.iterations} iterations in {seconds:.0f} s, {whole.work_from:.1f} s of them to the "
              "first step", flush=True)
        step_s = (seconds - whole.work_from) / args.iterations
        began = time.monotonic()
        phases, slowest, wrong = killed_run(config, scratch / "killed", args.kills, np.random.default_rng(args.seed),
                                            whole.work_from, step_s)
        if not wrong:
            wrong = differences(scratch / "whole", scratch / "killed")
        files = len(list((scratch / "whole").rglob("*.safetensors")))
        print(f"killed {sum(phases.values())} times in {time.monotonic() - began:.0f} s (slowest start {slowest:.1f} "
              "s): "
              + ", ".join(f"{count} in {name}" for name, count in phases.most_common()))
        print("\n".join(["DIFFERENT:", *wrong]) if wrong else
              f"identical: {files} weights files byte for byte, {len(lines(scratch / 'whole'))} log lines, metrics and "
              "pictures of the evaluation")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
