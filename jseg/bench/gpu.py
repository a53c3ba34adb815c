"""Everything a machine with a GPU can tell, in parts with a time limit each, in under 8 minutes together.

    doctor     what was found and chosen; Jittor's core, built if need be
    kernels    every kernel's CUDA implementation against the float64 reference: float32, the same with products in
               TF32, float16, bfloat16
    model      the whole model on CUDA against the CPU: logits and label maps; loss and gradients
    times      SegNeXt-T and B in turn with the plain path and with PyTorch (eager, channels last, torch.compile),
               float32 and mixed
    bandwidth  each kernel's rates and its share of what the device was measured to do

A part that fails or runs out of time says so in the results; the next one runs all the same. Results are kept after
each step. Nearly all of the time is nvcc's, an operation at a time, so kernels are checked side by side, each in a
process of its own, and the operations of whole models are compiled in the background (see `ahead`).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator

import numpy as np

import jseg
from jseg import runtime
from jseg.bench.ahead import GPU, Ahead, persistent
from jseg.bench.kernels import measure_kernels
from jseg.bench.models import LIMITS, MIXED_LIMITS, TF32_LIMITS, compare, write_inputs
from jseg.bench.pairing import interleave, ratio, summary
from jseg.bench.side import Side, SideError, jseg_command, torch_command
from jseg.errors import RuntimeSetupError
from jseg.registry import nearest

__all__ = ["measure_gpu", "Clock", "PARTS", "find_torch", "settings"]

# seconds; unused time goes to the parts after it
PARTS = {"doctor": 150, "kernels": 90, "model": 60, "times": 120, "bandwidth": 45}
TORCH_WAYS = {"PyTorch": {}, "PyTorch, channels last": {"channels_last": True}, "PyTorch, compiled": {"compile": True}}
DTYPES = ("float32", "tf32", "float16", "bfloat16")
PLAIN = {"JSEG_IMPL": "jittor"}  # variables of the plain path's side
FULL = {"JSEG_TF32": "0"}        # and of a side whose numbers are compared with the CPU's


class Clock:
    """How long each part may still take.

    Args:
        parts: name -> seconds, in order.
        now: a clock, in seconds.
    """

    def __init__(self, parts: dict[str, float], now: Callable[[], float] = time.monotonic):
        self.parts, self.now, self.began = parts, now, now()

    def left(self, part: str) -> float:
        """Seconds until the part must end: until then all parts up to it together have had their time. At least 1."""
        if part not in self.parts:
            raise ValueError(f"no part {part!r}{nearest(part, self.parts)} (parts: {', '.join(self.parts)})")
        names = list(self.parts)
        end = self.began + sum(self.parts[name] for name in names[:names.index(part) + 1])
        return max(end - self.now(), 1.0)

    def out(self, part: str) -> bool:
        """Whether the part's time is used up."""
        return self.left(part) <= 1.0


def measure_gpu(results: dict, *, torch: str | None, keep: Callable[[], None],
                say: Callable[[str], None] = print) -> None:
    """Run all parts and put what they find into `results["gpu"]` and `results["kernels"]`.

    Args:
        results: the benchmark's results so far.
        torch: a Python with PyTorch; None looks for one.
        keep: saves `results`; called after each step.
        say: takes lines that tell of progress.
    Raises:
        RuntimeSetupError: the machine has no GPU that Jittor can use.
    """
    check_gpu()
    clock, found = Clock(PARTS), {"parts": {}}
    results["gpu"] = found
    python = torch or find_torch()
    with contextlib.ExitStack() as stack:
        ahead = stack.enter_context(Ahead(_jobs(stack)))
        parts = {"doctor": lambda: _doctor(clock, ahead), "kernels": lambda: _kernel_checks(clock, say),
                 "model": lambda: _cuda_against_cpu(clock),
                 "times": lambda: _times(clock, python, ahead, found.setdefault("times", []), keep, say),
                 "bandwidth": lambda: _bandwidth(clock, results, say)}
        for name, part in parts.items():
            began = time.monotonic()
            say(f"{name} (at most {clock.left(name):.0f} s)")
            try:
                found["parts"][name] = part() or {}
            except SideError as error:
                found["parts"][name] = {"failed": str(error)}
                say(f"  {error}")
            found["parts"][name]["took_s"] = round(time.monotonic() - began, 1)
            keep()
    found["took_s"] = round(time.monotonic() - clock.began, 1)
    failed = [name for name, part in found["parts"].items() if "failed" in part]
    say(f"done in {found['took_s']:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))


def check_gpu() -> None:
    """Raise RuntimeSetupError, with what doctor found, unless Jittor can compute on a GPU here."""
    notes = "\n".join(f"  {f.topic}: {f.text}" for f in runtime.findings() if f.topic in ("cuda", "cudnn"))
    if not runtime.gpus():
        raise RuntimeSetupError("jseg bench --gpu: this machine has no NVIDIA GPU that can be used; nothing was "
                                f"measured\n{notes}\nrun it on a machine with one, or measure the CPU: jseg bench "
                                "--kernels --model CONFIG")
    if not os.environ.get("nvcc_path"):
        raise RuntimeSetupError("jseg bench --gpu: there is a GPU, but no CUDA toolkit that Jittor can use; nothing "
                                f"was measured\n{notes}\nsee `jseg doctor` for what to install")


def find_torch() -> str | None:
    """A Python here that has PyTorch: this one, or the one called python3."""
    for python in dict.fromkeys(filter(None, (sys.executable, shutil.which("python3"), shutil.which("python")))):
        program = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
        if subprocess.run([python, "-c", program], capture_output=True).returncode == 0:
            return python
    return None


def _jobs(stack: contextlib.ExitStack) -> dict:
    """What to compile in the background: SegNeXt-T with jseg's kernels and on the plain path,
    as `_times` will run it.
    """
    jobs = {}
    for mode, batch in (("infer", 1), ("train", 2)):
        _, words = stack.enter_context(_folder(settings("tiny"), (128, 128), batch))
        for mixed in (False, True):
            opened = {"config": words["config"], "inputs": words["inputs"], "mode": mode, "mixed": mixed}
            jobs["jseg", mode, mixed] = ({}, opened)
            jobs["plain Jittor", mode, mixed] = (PLAIN, opened)
    return jobs


def _doctor(clock: Clock, ahead: Ahead) -> dict:
    """Findings, and Jittor's first import, which builds its core where it is not built;
    then operations can be compiled.
    """
    built, began = runtime.core_is_built(), time.monotonic()
    with Side("jseg", jseg_command(), timeout_s=clock.left("doctor")) as side:
        hello = side.ask("hello", device="cuda")
        ahead.start()
        return {"findings": [vars(f) for f in runtime.findings()], "core_was_built": built,
                "import_s": time.monotonic() - began, **hello}


def _kernel_checks(clock: Clock, say: Callable[[str], None]) -> dict:
    """Every kernel and dtype against the reference, on the device, each in a process of its own."""
    with Side("jseg", jseg_command(), timeout_s=clock.left("kernels")) as side:
        told = side.ask("kernels")
        names = list(told["kernels"])

    def checked(job: tuple[str, str]) -> dict:
        kernel, dtype = job
        try:
            found = persistent(kernel, lambda side: side.ask("check_kernel", kernel=kernel, impl="cuda", dtype=dtype,
                                                             plain_always=False),
                               timeout_s=clock.left("kernels"))
        except SideError as error:
            found = {"failures": [str(error)]}
        say(f"  {kernel} {dtype}: " + ("; ".join(found["failures"][:2]) or f"ok, worst error {found['error']:.1e}"))
        return found

    jobs = [(kernel, dtype) for dtype in DTYPES for kernel in names
            if dtype != "tf32" or kernel in told["with_products"]]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        found = dict(zip(jobs, pool.map(checked, jobs)))
    wrong = [f"{kernel} {dtype}" for (kernel, dtype), one in found.items() if one["failures"]]
    return {"checks": {kernel: {dtype: found[kernel, dtype] for dtype in DTYPES if (kernel, dtype) in found}
                       for kernel in names},
            **({"failed": f"wrong or absent: {', '.join(wrong)}"} if wrong else {})}


def _cuda_against_cpu(clock: Clock) -> dict:
    """The same weights and pictures on both devices."""
    found: dict = {}
    with _folder(settings("tiny"), (256, 256), 2) as (folder, words):
        given = {"config": words["config"], "inputs": words["inputs"]}

        def run(job: tuple[str, str]) -> dict:
            device, mode = job
            limit = {"timeout_s": clock.left("model")}
            with Side(f"jseg on {device}", jseg_command(), env=FULL, **limit) as side:
                # only nvcc's results appear at one stroke
                side.ask("hello", **(GPU if device == "cuda" else {"device": device}))
                side.ask("open", mode=mode, warm=0, weights=words["weights"], **given, **limit)
                side.ask("results", out=str(folder / f"{device}_{mode}.npz"), **limit)
            return dict(np.load(folder / f"{device}_{mode}.npz"))

        with Side("jseg on cpu", jseg_command(), timeout_s=clock.left("model")) as side:
            side.ask("hello", device="cpu")
            side.ask("open", mode="infer", warm=0, save_weights=words["weights"], **given)
        jobs = [(device, mode) for mode in ("infer", "train") for device in ("cuda", "cpu")]
        with ThreadPoolExecutor(len(jobs)) as pool:
            outs = dict(zip(jobs, pool.map(run, jobs)))
        for mode in ("infer", "train"):
            found[mode] = compare(outs["cuda", mode], outs["cpu", mode])
    wrong = [f"{kind} differ by {v:.1e}" for values in found.values()
             for kind, v in values.items() if not v <= LIMITS[kind]]
    return {**found, **({"failed": "; ".join(wrong)} if wrong else {})}


def settings(variant: str) -> dict:
    """A config that needs no file: SegNeXt of this variant, 150 classes, AdamW."""
    from jseg.config import load_config
    shipped = jseg.configs_folder() / "segnext" / f"segnext_{variant}_ade20k-512x512_160k.yaml"
    if shipped.is_file():
        return load_config(shipped)
    deep = variant != "tiny"
    width = {"tiny": 256, "small": 256, "base": 512, "large": 1024}[variant]
    head = {"type": "LightHamHead", "in_channels": [128, 320, 512] if deep else [64, 160, 256], "in_index": [1, 2, 3],
            "channels": width, "ham_channels": width, "num_classes": 150, "dropout_ratio": 0.1,
            "norm_cfg": {"type": "GN", "num_groups": 32},
            "ham_kwargs": {"MD_R": 16}, "loss_decode": {"type": "CrossEntropyLoss"}}
    return {"model": {"type": "EncoderDecoder",
                      "backbone": {"type": "MSCAN", "variant": variant, "drop_path_rate": 0.1}, "decode_head": head},
            "optimizer": {"type": "AdamW", "lr": 6e-5, "betas": [0.9, 0.999], "weight_decay": 0.01}}


@contextlib.contextmanager
def _folder(config: dict, size: tuple[int, int], batch: int) -> Iterator[tuple[pathlib.Path, dict]]:
    with tempfile.TemporaryDirectory(prefix="jseg-bench-") as name:
        folder = pathlib.Path(name)
        yield folder, {**write_inputs(folder, config, size, batch), "weights": str(folder / "weights.npz"),
                       "device": "cuda"}


# In order of worth: what comes last is left out first.
PLAN = [(variant, mode, size, 1 if mode == "infer" else 16, mixed) for mixed in (False, True)
        for variant in ("tiny", "base")
        for mode, size in (("infer", (512, 512)), ("train", (512, 512)), ("infer", (1024, 2048)),
                           ("infer", (768, 1536)))]


def _times(clock: Clock, python: str | None, ahead: Ahead, rows: list, keep: Callable[[], None],
           say: Callable[[str], None]) -> dict:
    """Rows of `PLAN`, as many as there is time for; the sides' processes serve all rows."""
    sides: dict[str, Side] = {}
    with ahead, contextlib.ExitStack() as stack:  # with the last row the background has done its duty
        # a quarter of the time at most: then the first row compiles what it lacks itself
        for mode in ("infer", "train"):
            ahead.wait(("jseg", mode, False), clock.left("times") / 8)

        def start(name: str, command: list[str], env: dict | None = None) -> None:
            sides[name] = stack.enter_context(Side(name, command, env=env, timeout_s=clock.left("times")))
            sides[name].ask("hello", **GPU, timeout_s=clock.left("times"))

        start("jseg", jseg_command())
        start("plain Jittor", jseg_command(), PLAIN)
        if python:
            start("PyTorch", torch_command(python))
        for variant, mode, size, batch, mixed in PLAN:
            row = {"variant": variant, "mode": mode, "size": list(size), "batch": batch,
                   "dtype": "mixed" if mixed else "float32", "others": {}}
            rows.append(row)
            if clock.out("times"):
                row["failed"] = "out of time"
                continue
            with _folder(settings(variant), size, batch) as (folder, words):
                try:
                    unready = ahead.wait(("plain Jittor", mode, mixed), 0) if variant == "tiny" else ""
                    _time_row(row, sides, {**words, "mode": mode, "mixed": mixed, "warm": 0}, folder, clock,
                              {"plain Jittor": unready})
                except SideError as error:
                    row["failed"] = str(error)
            keep()
            say(f"  {variant} {mode} {size[0]}x{size[1]} {row['dtype']}: {row.get('failed') or _line(row)}")
    return {"python": bool(python), "rows_left_out": sum(row.get("failed") == "out of time" for row in rows)}


def _time_row(row: dict, sides: dict[str, Side], words: dict, folder: pathlib.Path, clock: Clock,
              unready: dict[str, str]) -> None:
    """One row; `unready` says of sides by name why they cannot run, or ""."""
    ours, accepted = sides["jseg"], MIXED_LIMITS if words["mixed"] else TF32_LIMITS

    def limit() -> dict:
        return {"timeout_s": clock.left("times")}

    ours.ask("open", save_weights=words["weights"], **{k: v for k, v in words.items() if k != "weights"}, **limit())
    ours.ask("results", out=str(folder / "jseg.npz"), **limit())
    ours.run(3, **limit())
    ways = {"plain Jittor": ("plain Jittor", {})} if row["variant"] == "tiny" and row["size"] == [512, 512] else {}
    if "PyTorch" in sides:
        ways.update({name: ("PyTorch", way) for name, way in TORCH_WAYS.items()})
    visits: list = []
    for name, (side, way) in ways.items():
        if clock.out("times") or unready.get(name):
            row["others"][name] = {"failed": unready.get(name) or "out of time"}
            continue
        try:
            opened = sides[side].ask("open", **words, **way, **limit())
            sides[side].ask("results", out=str(folder / "other.npz"), **limit())
            found = compare(dict(np.load(folder / "jseg.npz")), dict(np.load(folder / "other.npz")))
            wrong = {kind: value for kind, value in found.items() if not value <= accepted[kind]}
            row["others"][name] = {"differences": found, "built_by": opened.get("built_by", "jseg")}
            if wrong:
                row["others"][name]["failed"] = f"results differ from jseg's, not timed: {wrong}"
                continue
            sides[side].run(3, **limit())
            times = interleave({"jseg": lambda n: ours.run(n, **limit()),
                                "other": lambda n: sides[side].run(n, **limit())}, 3)
            row["others"][name].update(summary(times["other"]), ratio=ratio(times["jseg"], times["other"]))
            visits += times["jseg"]
        except SideError as error:
            row["others"][name] = {"failed": str(error)}
    row["jseg"] = summary(visits or interleave({"jseg": lambda n: ours.run(n, **limit())}, 3)["jseg"])


def _line(row: dict) -> str:
    others = ", ".join(f"{name} {found['ratio']['median']:.2f} times" for name, found in row["others"].items()
                       if "ratio" in found)
    return f"{row['jseg']['median_ms']:.2f} ms" + (f" ({others})" if others else "")


def _bandwidth(clock: Clock, results: dict, say: Callable[[str], None]) -> dict:
    """The kernel table on the device, with the device's own limits."""
    with Side("jseg", jseg_command(), timeout_s=clock.left("bandwidth")) as side:
        side.ask("hello", device="cuda")
        limits = side.ask("limits")
    say(f"  device: copy {limits['copy_gb_s']:.0f} GB/s, float32 matrix product {limits['sgemm_gflop_s']:.0f} GFLOP/s")
    found = measure_kernels(impl="cuda", limits=limits, repeat=2, device="cuda", check=False,
                            out_of_time=lambda: clock.out("bandwidth"), say=say)
    results["kernels"].append(found)
    return {"limits": limits, "rows": len(found["rows"])}
