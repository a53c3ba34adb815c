"""Press Ctrl-C on a terminal a hundred times at random moments of train, val and predict, and see how each ends.

    python tests/engine/interrupt_run.py --presses 100 --seed 0

The moment is drawn uniformly from the first line of jseg to the end of the command's work: imports, building, steps,
evaluations, writing. Every command has to end within 3 s with status 130, without a traceback, leaving no process and
no part of a file. The training run goes on with --resume after each; at the end its weights, optimizer states, log
lines, scores and pictures have to be the unbroken run's, byte for byte, and so have the scores of val and the files of
predict. Exit status 1 and a list of what is wrong otherwise.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
from kill_run import _saved, long_config  # noqa: E402
from small_run import differences, make_datasets, make_pictures  # noqa: E402
from terminal import Terminal, faults  # noqa: E402

from jseg.config import dump_config  # noqa: E402


class Presses:
    """Presses Ctrl-C on commands, and keeps book."""

    def __init__(self, rng, limit_s):
        self.rng, self.limit_s = rng, limit_s
        self.seconds, self.wrong, self.phases = collections.defaultdict(list), [], collections.Counter()

    def press(self, words, whole_s, *folders):
        """Start a command and press at a random moment of `whole_s` seconds; whether it was still running."""
        with Terminal(*words) as terminal:
            terminal.wait_for_handlers()
            began = time.monotonic()
            if not terminal.watch(float(self.rng.uniform(0, whole_s))):
                if terminal.status:
                    self.wrong.append(f"{words[1]} ended with {terminal.status}: {terminal.text[-1500:]}")
                return False
            at, said = time.monotonic() - began, terminal.text
            seconds = terminal.press()
            if terminal.status == 0:  # it had ended its work in this moment
                return False
            self.seconds[words[1]].append(seconds)
            self.phases[f"{words[1]}: {'at work' if said else 'imports'}"] += 1
            if self.count % 10 == 0:
                print(f"{self.count} presses, {len(self.wrong)} faults", flush=True)
            self.wrong += [f"{words[1]}, Ctrl-C after {at:.2f} s: {fault}"
                           for fault in faults(terminal, seconds, *folders, limit_s=self.limit_s)]
            return True

    @property
    def count(self):
        """Presses so far."""
        return sum(map(len, self.seconds.values()))


def whole(words):
    """Seconds that an unbroken command takes from the first line of jseg."""
    with Terminal(*words) as terminal:
        terminal.wait_for_handlers()
        began = time.monotonic()
        terminal.watch(3600)
        assert terminal.status == 0, terminal.text[-3000:]
        return time.monotonic() - began


def interrupt_training(presses, config, scratch, count):
    """Stop a run `count` times on its way; what differs from the unbroken run in the end."""
    (scratch / "run.yaml").write_text(dump_config(config))
    words = ["jseg", "train", scratch / "run.yaml", "--work-dir"]
    total, seconds = config["train_cfg"]["max_iters"], whole([*words, scratch / "whole"])
    began, last = time.monotonic(), len(presses.seconds["train"]) + count
    startup = whole([*words, scratch / "whole", "--resume"])  # nothing left to do but the last score
    runs, wrong = 0, []
    while len(presses.seconds["train"]) < last:  # a second run where the first has come to its end before all presses
        run, runs = scratch / f"stopped_{runs}", runs + 1
        while (left := last - len(presses.seconds["train"])) > 0:
            rest = max(total - _saved(run), 0) * max(seconds - startup, 0.5) / total / left
            if not presses.press([*words, run, "--resume"], startup + 2 * rest, run) and _saved(run) >= total:
                break
        whole([*words, run, "--resume"])
        wrong += differences(scratch / "whole", run)
    print(f"train: {count} presses on {runs} runs of {total} iterations in {time.monotonic() - began:.0f} s",
          flush=True)
    return wrong


def interrupt_val(presses, weights, config, scratch, count):
    """Stop an evaluation `count` times."""
    words = ["jseg", "val", scratch / "run.yaml", "--checkpoint", weights, "--out"]
    seconds = whole([*words, scratch / "whole.json"])
    while count > 0:
        count -= presses.press([*words, scratch / "out" / "stopped.json"], seconds, scratch / "out")
    whole([*words, scratch / "stopped.json"])
    found = [{**json.loads((scratch / name).read_text()), "seconds": None, "date": None}
             for name in ("whole.json", "stopped.json")]
    return [] if found[0] == found[1] else ["scores of val"]


def interrupt_predict(presses, weights, scratch, count):
    """Stop a prediction `count` times in one folder."""
    words = ["jseg", "predict", weights, scratch / "many" / "images", "--out"]
    seconds = whole([*words, scratch / "predicted"])
    while count > 0:
        count -= presses.press([*words, scratch / "broken"], seconds, scratch / "broken")
    whole([*words, scratch / "broken"])
    found = [{path.name: path.read_bytes() for path in (scratch / name).iterdir()} for name in ("predicted", "broken")]
    return [] if found[0] == found[1] else ["files of predict"]


def hundred(scratch, *, presses, iterations, seed, limit_s):
    """Do it all: (the book of presses, what is wrong)."""
    config = long_config(make_datasets(scratch / "pictures"), iterations)
    make_pictures(scratch / "many", 60, np.random.default_rng(1))
    book, part = Presses(np.random.default_rng(seed), limit_s), max(1, presses // 5)
    wrong = interrupt_training(book, config, scratch, presses - 2 * part)
    weights = scratch / "whole" / "best.safetensors"
    wrong += interrupt_val(book, weights, config, scratch, part)
    wrong += interrupt_predict(book, weights, scratch, part)
    return book, [*book.wrong, *(f"differs from the unbroken run: {name}" for name in wrong)]


def main(argv=None):
    """0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=3.0, metavar="S",
                        help="seconds from Ctrl-C to the end (default 3)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        book, wrong = hundred(pathlib.Path(scratch), presses=args.presses, iterations=args.iterations, seed=args.seed,
                              limit_s=args.limit)
    for name, seconds in book.seconds.items():
        late = sum(s > args.limit for s in seconds)
        print(f"{name}: {len(seconds)} presses, seconds to the end: median {np.median(seconds):.2f}, largest "
              f"{max(seconds):.2f}, {late} over {args.limit:g}")
    print(", ".join(f"{count} {name}" for name, count in sorted(book.phases.items())))
    print("\n".join(["WRONG:", *wrong]) if wrong else f"{book.count} presses: all ended with 130 within {args.limit:g} "
                                                      "s, everything resumed identical")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
