"""`jseg data stats`: mean, deviation and ranges of each channel, as lines for the config."""

from __future__ import annotations

import json
import sys

import numpy as np

from jseg.cli._progress import told_progress
from jseg.errors import ConfigError

__all__ = ["run_stats"]


def run_stats(args) -> int:
    """Read the pictures of a split, print a table of channels and the lines for `data_preprocessor`."""
    from jseg.config import load_config
    from jseg.data.build import build_dataset
    from jseg.data.stats import channel_stats
    from jseg.files import write_atomically

    if args.count is not None and args.count < 1:
        raise ConfigError(f"--count is {args.count}; accepted: 1 or more")
    cfg = load_config(args.config, args.overrides)
    dataset = build_dataset(cfg, args.split)
    with told_progress(unit="picture", disable=args.quiet) as tell:
        found = channel_stats(dataset, count=args.count, seed=cfg.get("seed") or 0, tell=tell)
    preprocessor = cfg.get("data_preprocessor") or {}
    reverse = bool(preprocessor.get("bgr_to_rgb") or preprocessor.get("to_rgb"))
    order = slice(None, None, -1) if reverse else slice(None)
    print("\n".join(stats_lines(found, order, args.split)))
    if args.out:
        content = {key: value[..., order].tolist() if isinstance(value, np.ndarray) else value
                   for key, value in found._asdict().items()}
        content = {"config": args.config, "split": args.split, **content}
        write_atomically(args.out, json.dumps(content, indent=1).encode())
        print(f"written: {args.out}", file=sys.stderr)
    return 0


def stats_lines(found, order: slice, split: str) -> list[str]:
    """A line per channel in the order that the model sees, then YAML for the config."""
    lines = [f"{found.pictures} pictures of {split}, {found.pixels:,} pixels, stored as {', '.join(found.dtypes)}",
             f"{'channel':>7} {'min':>11} {'max':>11} {'mean':>11} {'std':>11} {'1 %':>11} {'2 %':>11} {'98 %':>11} "
             f"{'99 %':>11} {'no data':>8}"]
    columns = [found.least[order], found.most[order], found.mean[order], found.std[order],
               *(row[order] for row in found.percentiles)]
    for channel, absent in enumerate(found.absent[order]):
        lines.append(f"{channel:>7} " + " ".join(f"{column[channel]:>11.5g}" for column in columns)
                     + f" {100 * absent:>6.2f} %")
    flat = [i for i, value in enumerate(found.std[order]) if value <= 0]
    if flat:
        lines.append(f"note: channel {', '.join(map(str, flat))} has one value everywhere; its std is written as 1")
    std = np.where(found.std[order] > 0, found.std[order], 1)
    return [*lines, "", "data_preprocessor:", f"  mean: {_flow(found.mean[order])}", f"  std: {_flow(std)}"]


def _flow(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.6g}" if abs(value) < 1e6 else f"{value:.1f}" for value in values) + "]"
