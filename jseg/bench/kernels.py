"""The kernel table: each kernel against its float64 reference,
then timed in turn with the plain path and PyTorch's operators.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import tempfile
from typing import Callable, Iterator, Sequence

import numpy as np

from jseg.bench.pairing import interleave, ratio, summary
from jseg.bench.side import Side, SideError, jseg_command, torch_command
from jseg.bench.work import share_of_limit

__all__ = ["measure_kernels", "differences"]


def measure_kernels(*, impl: str, limits: dict, repeat: int, torch: str | None = None, threads: int | None = None,
                    device: str = "cpu", only: Sequence[str] = (), check: bool = True, plain: bool = True,
                    clock: str = "wall", out_of_time: Callable[[], bool] = lambda: False,
                    say: Callable[[str], None] = print) -> dict:
    """Check every kernel of jseg.ops and time its `bench` cases.

    Args:
        impl: the implementation under test, "cpu" or "cuda".
        limits: {"copy_gb_s", "sgemm_gflop_s"} of the device; on the CPU Jittor's matrix product counts too where it is
            faster than NumPy's.
        repeat: rounds of A B A B.
        torch: a Python with PyTorch to compare with, or None.
        threads: processor threads of each side; None leaves them to the environment.
        device: "cpu" or "cuda".
        only: names of kernels, or parts of names; none for all kernels.
        check: compare with the reference first; a kernel that fails is not timed.
        plain: also time the plain path; without it the check runs it only where a result is above the floor.
        clock: "wall" or "processor" time, of all threads.
        out_of_time: asked before each case; when true the rest is left out.
        say: takes lines that tell of progress.
    Returns:
        {"checks": by kernel, "rows": one for each timed case and for each of forward and forward with gradients,
        "limits", ...}.
    """
    checks, rows = {}, []
    shared = {"threads": threads, "clock": clock}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jseg-bench-")))
        ours, *rest = [stack.enter_context(side) for side in _sides(torch, plain, shared)]
        for side in (side for side in (ours, *rest) if side.name != "PyTorch"):
            side.ask("hello", device=device)
        if device == "cpu":  # NumPy's BLAS may not know this processor; take the better product
            theirs = ours.ask("limits", values=0, side=2048)["sgemm_gflop_s"]
            limits = {**limits, "sgemm_gflop_s": max(limits["sgemm_gflop_s"], theirs)}
        known = ours.ask("kernels")["kernels"]
        for kernel in _chosen(list(known), only):
            if out_of_time():
                break
            if check:
                checks[kernel] = _checked(ours, kernel, impl, plain, say)
            bad = "failed" in checks.get(kernel, ()) or checks.get(kernel, {}).get("failures")
            for case, grad in itertools.product(known[kernel], (False, True)):
                if bad or out_of_time():
                    break
                row = _Table(kernel, case, grad, impl, device, limits, repeat, folder).row(ours, rest)
                if row is not None:
                    rows.append(row)
                    say(f"  {kernel} {case}{' with gradients' * grad}: {row.get('failed') or _line(row)}")
    return {"checks": checks, "rows": rows, "device": device, "threads": threads, "clock": clock, "limits": limits}


def _sides(python: str | None, plain: bool, shared: dict) -> Iterator[Side]:
    """jseg's side and those to compare it with."""
    yield Side("jseg", jseg_command(), **shared)
    if plain:
        yield Side("plain Jittor", jseg_command(), env={"JSEG_IMPL": "jittor"}, **shared)
    if python:
        yield Side("PyTorch", torch_command(python), **shared)


def _chosen(names: list[str], only: Sequence[str]) -> list[str]:
    """The kernels that `only` asks for: one of exactly that name, or all that have it in their name."""
    return [name for name in names if not only or any(part == name if part in names else part in name for part in only)]


def _checked(side: Side, kernel: str, impl: str, plain: bool, say: Callable[[str], None]) -> dict:
    """The small cases against the reference."""
    try:
        found = side.ask("check_kernel", kernel=kernel, impl=impl, plain_always=plain)
    except SideError as error:
        say(f"{kernel}: {error}")
        return {"failed": str(error)}
    found.pop("ok")
    say(f"{kernel}: {found['cases']} cases against the reference, worst error {found['error']:.1e} (plain path "
        f"{found['plain_error']:.1e})"
        + "".join(f"\n  WRONG {line}" for line in found["failures"]))
    return found


def _line(row: dict) -> str:
    others = ", ".join(f"{name} {found.get('failed') or format(found['median_ms'], '.2f') + ' ms'}"
                       for name, found in row["others"].items())
    return f"{row['jseg']['median_ms']:.2f} ms ({others})"


def differences(ours: dict, theirs: dict) -> dict[str, float]:
    """Largest difference of each result: as a share of its largest value;
    for whole numbers the share of them that differ.

    Results that the other side does not make (statistics beside the result proper) are passed over.
    """
    found = {}
    for name, value in ours.items():
        if name not in theirs and name != "out0":
            continue
        other = np.asarray(theirs[name]).reshape(np.shape(value))
        if np.asarray(value).dtype.kind in "iu":
            found[name] = float(np.mean(value != other))
        else:
            found[name] = float(np.abs(np.float64(value) - other).max() / max(float(np.abs(other).max()), 1e-30))
    return found


class _Table:
    """One case of one kernel on all sides."""

    def __init__(self, kernel: str, case: str, grad: bool, impl: str, device: str, limits: dict, repeat: int,
                 folder: pathlib.Path):
        self.kernel, self.case, self.grad, self.impl, self.device = kernel, case, grad, impl, device
        self.limits, self.repeat, self.folder = limits, repeat, folder

    def row(self, ours: Side, others: list[Side]) -> dict | None:
        """Check against the others at this shape, then time; None where the kernel has no gradient."""
        words = {"kernel": self.kernel, "case": self.case, "grad": self.grad}
        row = {"kernel": self.kernel, "case": self.case, "grad": self.grad, "others": {}}
        try:
            facts = ours.ask("open_kernel", impl=self.impl, save_inputs=str(self.folder / "inputs.npz"), **words)
        except SideError as error:
            return None if "has no gradient" in str(error) else {**row, "failed": str(error)}
        ours.ask("results", out=str(self.folder / "ours.npz"))
        request = {"kernel": self.kernel, "inputs": str(self.folder / "inputs.npz"), "options": facts["options"],
                   "names": facts["names"], "device": self.device}
        visits: list = []
        for side in others:
            asked = request if side.name == "PyTorch" else {"impl": "jittor", **words}
            row["others"][side.name] = found = self._against(ours, side, asked, max(50 * facts["floor"], 1e-4))
            visits += found.pop("our_visits", [])
        row["jseg"] = summary(visits or interleave({"jseg": ours.run}, self.repeat)["jseg"])
        if not self.grad:
            row["limit"] = share_of_limit(row["jseg"]["median_ms"] / 1e3, facts["bytes"],
                                          facts["operations"], self.limits)
        return row

    def _against(self, ours: Side, side: Side, request: dict, accepted: float) -> dict:
        try:
            side.ask("open_kernel", **request)
            out = self.folder / "other.npz"
            side.ask("results", out=str(out))
            found = differences(dict(np.load(self.folder / "ours.npz")), dict(np.load(out)))
            wrong = {name: value for name, value in found.items() if not value <= accepted}
            if wrong:
                return {"failed": "results differ, not timed: "
                        + ", ".join(f"{n} by {v:.1e} (accepted {accepted:.0e})" for n, v in wrong.items())}
            visits = interleave({"jseg": ours.run, "other": side.run}, self.repeat)
            return {**summary(visits["other"]), "ratio": ratio(visits["jseg"], visits["other"]),
                    "our_visits": visits["jseg"], "difference": max(found.values())}
        except SideError as error:
            return {"failed": str(error)}
