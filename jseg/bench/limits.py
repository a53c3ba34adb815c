"""What this processor can do at most: copy bandwidth as STREAM counts it, and single-precision matrix products.

    python -m jseg.bench.limits        prints one JSON object; threads from OMP_NUM_THREADS
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jseg.bench.side import HERE

__all__ = ["machine_limits", "copy_bandwidth", "matrix_rate"]


def copy_bandwidth(threads: int, *, megabytes: int = 256, repeats: int = 8) -> float:
    """Best GB/s of copying an array far larger than the caches (McCalpin's STREAM copy):
    bytes read and bytes written count.
    """
    source = np.zeros(megabytes * 2**20 // 4, np.float32)
    target = np.ones_like(source)
    edges = np.linspace(0, source.size, threads + 1).astype(int)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            began = time.perf_counter()
            # NumPy lets go of the interpreter while it copies
            list(pool.map(lambda i: np.copyto(target[edges[i]:edges[i + 1]], source[edges[i]:edges[i + 1]]),
                          range(threads)))
            best = max(best, 2 * source.nbytes / (time.perf_counter() - began) / 1e9)
    return best


def matrix_rate(*, side: int = 2048, repeats: int = 6) -> float:
    """Best GFLOP/s of NumPy's float32 matrix product of two square matrices
    (its BLAS takes its threads from the environment).
    """
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((side, side), np.float32), rng.standard_normal((side, side), np.float32)
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * side**3 / (time.perf_counter() - began) / 1e9)
    return best


def machine_limits(threads: int | None) -> dict:
    """Measure both in a fresh process with that many threads (None: as the environment says):
    {"copy_gb_s", "sgemm_gflop_s", "threads"}.
    """
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    if threads:
        env.update(OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
    done = subprocess.run([sys.executable, "-m", "jseg.bench.limits"], env=env, capture_output=True, text=True,
                          timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure here and print."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    print(json.dumps({"copy_gb_s": copy_bandwidth(threads), "sgemm_gflop_s": matrix_rate(), "threads": threads}))


if __name__ == "__main__":
    main()
