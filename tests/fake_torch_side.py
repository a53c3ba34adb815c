"""Stands in for tests/parity/torch_side.py in tests of the benchmark: answers the protocol without PyTorch.

FAKE_SIDE says how it behaves: "agree" copies jseg's results (they lie beside its own), "differ" changes them, "labels"
leaves out the logits, "die" ends at the first run.
"""

from __future__ import annotations

import os
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "jseg" / "bench"))
import protocol  # noqa: E402

BEHAVIOUR = os.environ.get("FAKE_SIDE", "agree")
tasks: dict = {}


def work() -> None:
    """Two milliseconds, or the end."""
    if BEHAVIOUR == "die":
        print("out of luck", file=sys.stderr)
        os._exit(3)
    print("chatter that must not reach the answers")
    time.sleep(0.002)


def open_task(request: dict) -> dict:
    """Any task is two milliseconds of sleep; a request without weights is refused as the real side does."""
    if "weights" not in request:
        raise KeyError("weights")
    tasks["main"] = work
    return {"built_by": "a stand-in", "seconds": []}


def results(request: dict) -> dict:
    """jseg's own results, or other ones."""
    out = pathlib.Path(request["out"])
    found = dict(np.load(out.with_name("jseg.npz")))
    if BEHAVIOUR == "labels":
        del found["logits"]
    if BEHAVIOUR == "differ":
        found["logits"] = found["logits"] + 1
    np.savez(out, **found)
    return {}


if __name__ == "__main__":
    protocol.serve({"open": open_task, "results": results, "echo": lambda r: {"heard": r.get("word")}}, tasks,
                   {"side": "fake"})
