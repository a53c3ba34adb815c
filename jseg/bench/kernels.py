"""The kernel table: each kernel against its float64 reference,
then timed in turn with the plain path and PyTorch's operators.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Callable

import numpy as np

from jseg.bench.pairing import interleave, ratio, summary
from jseg.bench.side import Side, SideError, jseg_command, torch_command
from jseg.bench.work import share_of_limit

__all__ = ["measure_kernels", "differences"]


def measure_kernels(*, impl: str, limits: dict, repeat: int, torch: str | None = None, threads: int | None = None,
                    device: str = "cpu", only: str | None = None, check: bool = True,
                    out_of_time: Callable[[], bool] = lambda: False, say: Callable[[str], None] = print) -> dict:
    """Check every kernel of jseg.ops and time its `bench` cases.

    Args:
        impl: the implementation under test, "cpu" or "cuda".
        limits: {"copy_gb_s", "sgemm_gflop_s"} of the device; on the CPU Jittor's matrix product counts too where it is
            faster than NumPy's.
        repeat: rounds of A B A B.
        torch: a Python with PyTorch to compare with, or None.
        threads: processor threads of each side; None leaves them to the environment.
        device: "cpu" or "cuda".
        only: a part of kernels' names; others are left out.
        check: compare with the reference first; a kernel that fails is not timed.
        out_of_time: asked before each case; when true the rest is left out.
        say: takes lines that tell of progress.
    Returns:
        {"checks": by kernel, "rows": one for each timed case and for each of forward and forward with gradients,
        "limits", ...}.
    """
    checks, rows = {}, []
    with tempfile.TemporaryDirectory(prefix="jseg-bench-") as name, Side("jseg", jseg_command(),
                                                                         threads=threads) as ours:
        plain = Side("plain Jittor", jseg_command(), threads=threads, env={"JSEG_IMPL": "jittor"})
        other = _torch(torch, threads)
        try:
            for side in (ours, plain):
                side.ask("hello", device=device)
            if device == "cpu":  # NumPy's BLAS may not know this processor; take the better product
                theirs = ours.ask("limits", values=0, side=2048)["sgemm_gflop_s"]
                limits = {**limits, "sgemm_gflop_s": max(limits["sgemm_gflop_s"], theirs)}
            known = {k: cases for k, cases in ours.ask("kernels")["kernels"].items() if only is None or only in k}
            for kernel, cases in known.items():
                if out_of_time():
                    break
                if check:
                    checks[kernel] = _checked(ours, kernel, impl, say)
                bad = "failed" in checks.get(kernel, ()) or checks.get(kernel, {}).get("failures")
                for case, grad in ((case, grad) for case in cases for grad in (False, True)):
                    if bad or out_of_time():
                        break
                    table = _Table(kernel, case, grad, impl, device, limits, repeat, pathlib.Path(name))
                    row = table.row(ours, plain, other)
                    if row is not None:
                        rows.append(row)
                        say(f"  {kernel} {case}{' with gradients' * grad}: {row.get('failed') or _line(row)}")
        finally:
            plain.close()
            if other is not None:
                other.close()
    return {"checks": checks, "rows": rows, "device": device, "threads": threads, "limits": limits}


def _torch(python: str | None, threads: int | None) -> Side | None:
    return Side("PyTorch", torch_command(python), threads=threads) if python else None


def _checked(side: Side, kernel: str, impl: str, say: Callable[[str], None]) -> dict:
    """The small cases against the reference."""
    try:
        found = side.ask("check_kernel", kernel=kernel, impl=impl)
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

    def row(self, ours: Side, plain: Side, other: Side | None) -> dict | None:
        """Check against the plain path at this shape, then time; None where the kernel has no gradient."""
        words = {"kernel": self.kernel, "case": self.case, "grad": self.grad}
        row = {"kernel": self.kernel, "case": self.case, "grad": self.grad, "others": {}}
        try:
            facts = ours.ask("open_kernel", impl=self.impl, save_inputs=str(self.folder / "inputs.npz"), **words)
        except SideError as error:
            return None if "has no gradient" in str(error) else {**row, "failed": str(error)}
        ours.ask("results", out=str(self.folder / "ours.npz"))
        request = {"kernel": self.kernel, "inputs": str(self.folder / "inputs.npz"), "options": facts["options"],
                   "names": facts["names"], "device": self.device}
        sides = {"plain Jittor": (plain, {"impl": "jittor", **words})}
        if other is not None:
            sides["PyTorch"] = (other, request)
        visits: list = []
        for name, (side, asked) in sides.items():
            row["others"][name] = found = self._against(ours, side, asked, max(50 * facts["floor"], 1e-4))
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
