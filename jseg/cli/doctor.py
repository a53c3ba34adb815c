"""Say what this machine has, what jseg chose and why, and how to cure each problem."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from jseg import runtime

EXAMPLE = "jseg doctor --offline"

# Everything Jittor 1.3.11 may download at import, with the state that prevents it.
DOWNLOADS = (
    ("oneDNN", "use_mkl", "linked from PyPI's package, or off"),
    ("cutt", "use_cutt", "off: jseg does not use it"),
    ("cutlass", "use_cutlass", "off: jseg does not use it"),
    ("NCCL", "use_nccl", "only with a GPU under mpirun, from the machine's own library"),
    ("CUDA (jtcuda)", "nvcc_path", "never: nvcc is chosen, or none"),
    ("CUB", "nvcc_path", "only for CUDA 10 and older"),
)

_PROBE = """
import sys
def forbid(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        print("jseg-doctor-network", event, args[-1] if event != "urllib.Request" else args[0], file=sys.stderr)
        raise OSError("jseg doctor --offline forbids the network")
sys.addaudithook(forbid)
import jseg, jittor as jt
x = jt.nn.Conv(3, 4, 3)(jt.ones((1, 3, 8, 8)))
print("jseg-doctor-ok", list(x.shape), jt.flags.use_cuda)
"""


def add_arguments(parser) -> None:
    """Options of `jseg doctor`."""
    parser.add_argument("--offline", action="store_true",
                        help="also import Jittor with the network forbidden, to prove that nothing is downloaded")
    parser.add_argument("--short", action="store_true", help="print problems only, and one line when there are none")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args) -> int:
    """Print the findings; 0 when Jittor can be used, 2 when something fatal was found."""
    found = [*runtime.findings(), runtime.core_finding(), runtime.operations_finding()]
    if args.json:
        print(json.dumps([vars(f) for f in found], indent=1))
    else:
        _print(found, args.short)
    fatal = any(f.level == "fatal" for f in found)
    if args.offline and not fatal:
        return _offline()
    return 2 if fatal else 0


def _print(found: list[runtime.Finding], short: bool) -> None:
    mark = {"ok": "  ok ", "warning": " warn", "fatal": "FATAL"}
    for finding in found:
        if short and finding.level == "ok":
            continue
        print(f"{mark[finding.level]}  {finding.topic}: {finding.text}")
        if finding.cure:
            print(f"         cure: {finding.cure}")
    problems = sum(f.level != "ok" for f in found)
    print(f"jseg doctor: {problems or 'no'} problem{'s' if problems != 1 else ''}; {runtime.describe()}")
    if not short:
        names = ("JITTOR_HOME", "cache_name", "nvcc_path", "cc_flags", "conv_opt", "use_mkl", "use_mpi", "use_nccl",
                 "use_cutt", "use_cutlass", "OMP_NUM_THREADS")
        print("environment: " + " ".join(f"{n}={os.environ[n]!r}" for n in names if n in os.environ))


def _offline() -> int:
    """Import Jittor and run a convolution in a process in which every connection raises."""
    print("\nwhat Jittor could download, and why it will not:")
    for name, variable, why in DOWNLOADS:
        print(f"  {name:14} {variable}={os.environ.get(variable, '')!r:8} {why}")
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    attempts = [line for line in done.stderr.splitlines() if line.startswith("jseg-doctor-network")]
    if done.returncode == 0 and "jseg-doctor-ok" in done.stdout and not attempts:
        print("proved: Jittor imported and ran a convolution with every connection forbidden; none was attempted")
        return 0
    print("NOT proved:", "\n".join(attempts) or done.stderr[-2000:], file=sys.stderr)
    return 2
