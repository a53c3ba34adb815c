"""Cold start: how long the first inference and the first training step take when
Jittor's core is built and nothing else is.

A cache of its own (`cache_name` with `_cold` at its end) holds a core that is built once and kept, as are the
precompiled headers that the import which builds the core makes after it (`runtime_compiler`, some 3 s); before each
measurement the compiled operations and jseg's kernel library in it are thrown away. The cache that the user works with
is not touched.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
import time
from typing import Callable

from jseg.bench.models import Measurement, write_inputs
from jseg.bench.side import Side, SideError, jseg_command

__all__ = ["measure_cold", "empty_cache", "SUFFIX"]

SUFFIX = "_cold"
EMPTIED = ("jit", "jseg_cpu_kernels", "jseg_cuda_kernels", "tmp")  # folders of a cache that hold compiled operations


def empty_cache(cache: pathlib.Path) -> None:
    """Throw away the compiled operations of a cold cache, not the core.

    Raises:
        SideError: the folder is not a cold cache; nothing was removed.
    """
    if not any(part.endswith(SUFFIX) for part in cache.parts[-3:]):  # with CUDA, folders for it follow the cache's name
        raise SideError(f"{cache}: its name does not end with {SUFFIX}, so it may be somebody's cache; nothing was "
                        "removed")
    for name in EMPTIED:
        if (cache / name).is_dir():
            shutil.rmtree(cache / name)
            (cache / name).mkdir()


def measure_cold(job: Measurement, *, say: Callable[[str], None] = print) -> dict:
    """Time a first run with an empty cache.

    Args:
        job: what the first run is; its mode says whether inference or a training step.
        say: takes lines that tell of progress.
    Returns:
        {"title", "import_s", "built_s", "first_s", "second_s", "total_s"}: importing Jittor and jseg; building the
        model and loading weights; the first and the second run; building and first run together, which is what a user
        waits after the import.
    """
    env = {"cache_name": os.environ.get("cache_name", "jseg_cpu").removesuffix(SUFFIX) + SUFFIX}
    say(f"{job.title}, cold: making sure that Jittor's core is built in a cache of its own (minutes, the first time "
        "only) ...")
    with tempfile.TemporaryDirectory(prefix="jseg-bench-") as name:
        words = write_inputs(pathlib.Path(name), job.config, job.size, job.batch)
        weights = str(pathlib.Path(name) / "weights.npz")
        with Side("jseg, to build the core", jseg_command(), threads=job.threads, env=env) as side:
            cache = pathlib.Path(side.ask("hello")["cache"])
            side.ask("open", mode=job.mode, warm=0, save_weights=weights, **words)
        empty_cache(cache)
        began = time.perf_counter()
        with Side("jseg, cold", jseg_command(), threads=job.threads, env=env) as side:
            import_s = time.perf_counter() - began
            opened = side.ask("open", mode=job.mode, warm=2, weights=weights, **words)
    first_s, second_s = opened["seconds"]
    row = {"title": job.title, "model": job.name, "mode": job.mode, "size": list(job.size), "batch": job.batch,
           "threads": job.threads, "import_s": import_s, "built_s": opened["built_s"], "first_s": first_s,
           "second_s": second_s, "total_s": opened["built_s"] + first_s}
    say(f"  import {import_s:.1f} s, then {row['total_s']:.1f} s to the end of the first run")
    return row
