"""Pictures per second of one rank on one core against two ranks on two cores, and what the exchange of gradients costs.

    python tests/engine/scaling.py --data DIR [--real-time]

SegNeXt-T on CamVid (SegNet's layout) at 240x320, 8 pictures per step over all ranks, every rank and its data worker on
one core. The figures are means over the steps after the third. `--real-time` gives the ranks real-time priority (root
only), so that other work on the machine does not disturb them; it disturbs that work instead. Run it once before
without, so that all kernels are compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SKIPPED = 3


def rank_main(config_path: str, folder: str) -> int:
    """One rank: pin, train, then time the bare exchange of a vector of the
    model's size between ranks that are all there.
    """
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"])]})
    os.environ["OMP_NUM_THREADS"] = "1"
    if os.environ.get("JSEG_REAL_TIME"):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    from jseg.config import load_config
    from jseg.engine import distributed
    from jseg.engine.train import train
    return distributed.as_rank(lambda: measured(train, load_config(config_path), folder, distributed))


def measured(train, config: dict, folder: str, distributed) -> int:
    """Train and write folder/figures.json on rank 0."""
    import jittor as jt
    import numpy as np
    train(config, work_dir=folder)
    size, times = distributed.EXCHANGE["bytes"] // max(1, distributed.EXCHANGE["messages"]), []
    for _ in range(20 if size else 0):
        message = jt.array(np.ones(size // 4, np.float32))
        message.sync(True)
        distributed.barrier()
        began = time.perf_counter()
        message.mpi_all_reduce("add").sync(True)
        times.append(time.perf_counter() - began)
    if distributed.is_main():
        steps = [json.loads(line) for line in (pathlib.Path(folder) / "log.jsonl").read_text().splitlines()][SKIPPED:]
        seconds = [config["train_dataloader"]["batch_size"] / e["images_per_s"] for e in steps]
        (pathlib.Path(folder) / "figures.json").write_text(json.dumps({
            "steps": len(steps), "step_s": float(np.mean(seconds)),
            "exchange_s": float(np.mean([e.get("exchange_s", 0.0) for e in steps])),
            "data_wait_s": float(np.mean([e["data_wait"] for e in steps])), "message_bytes": size,
            "bare_s": float(np.median(times)) if times else 0.0}))
    return 0


def run(ranks: int, args, scratch: pathlib.Path) -> dict:
    """The figures of one job."""
    from jseg.cli.launch import mpirun_words
    from jseg.config import dump_config, load_config
    config = load_config(str(ROOT / "configs/segnext/segnext_tiny_camvid-240x320_cpu.yaml"), [
        f"train_dataloader.dataset.data_root={args.data}", "train_dataloader.num_workers=1",
        f"train_cfg.max_iters={args.steps}", "train_cfg.val_interval=null", "val_dataloader=null",
        "train_cfg.log_interval=1"])
    path = scratch / f"{ranks}.yaml"
    path.write_text(dump_config(config))
    options = argparse.Namespace(ranks=ranks, hostfile=None, cpu=True, grace=6.0, command=[])
    words = mpirun_words("mpirun", options)
    words = [*words[:words.index(sys.executable) + 1], __file__, "--rank", str(path), str(scratch / str(ranks))]
    out = subprocess.run(words, capture_output=True, text=True,
                         env={**os.environ, **({"JSEG_REAL_TIME": "1"} if args.real_time else {})})
    if out.returncode:
        sys.exit(out.stdout + out.stderr)
    return json.loads((scratch / str(ranks) / "figures.json").read_text())


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CamVid in SegNet's layout")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--real-time", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        one, two = (run(ranks, args, pathlib.Path(scratch)) for ranks in (1, 2))
    print("| ranks | steps | s per step | pictures/s | waits for data | exchange with its waiting | bare exchange "
          "|\n|---|---|---|---|---|---|---|")
    for ranks, found in ((1, one), (2, two)):
        share = {key: f"{found[key] * 1000:.1f} ms ({found[key] / found['step_s']:.1%})"
                 for key in ("data_wait_s", "exchange_s", "bare_s")}
        print(f"| {ranks} | {found['steps']} | {found['step_s']:.3f} | {8 / found['step_s']:.3f} | "
              f"{share['data_wait_s']} | {share['exchange_s']} | {share['bare_s']} |")
    print(
        f"efficiency of 2 ranks: {one['step_s'] / two['step_s'] / 2:.3f}; message {two['message_bytes'] / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(rank_main(*sys.argv[2:]) if sys.argv[1:2] == ["--rank"] else main())
