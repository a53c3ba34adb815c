"""Check a dataset: read all pictures and masks of a config and name every fault.

    jseg data check CONFIG [--set KEY=VALUE] [--sheet FILE] [--quick]     `jseg data check --help` shows all options
    jseg data stats CONFIG                                                mean and std of each channel
    jseg data demo FOLDER                                                 rendered street scenes to try things on
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import numpy as np

from jseg.cli import add_config_arguments
from jseg.errors import ConfigError, JsegError

EXAMPLE = "jseg data check configs/segnext/segnext_tiny_camvid-360x480_20k.yaml --sheet sheet.png"
SPLITS = ("train", "val", "test")
SHOWN = 5  # faults of a kind
TABLE_ROWS = 30  # classes


def add_arguments(parser) -> None:
    """Options of `jseg data`; each task is a sub-command."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    check = tasks.add_parser("check", help="read a prepared dataset from end to end", epilog=f"example: {EXAMPLE}",
                             formatter_class=argparse.RawDescriptionHelpFormatter,
                             description="Read every picture and mask of a config: missing or unreadable files, sizes, "
                                         "label range,\nreduce_zero_label, classes, pictures that two splits share. "
                                         "Status 2 when there are faults.")
    add_config_arguments(check)
    check.add_argument("--split", dest="splits", action="append", choices=SPLITS,
                       help="check only this one; may be given many times (default: those in the config)")
    check.add_argument("--workers", type=int, default=None, metavar="N", help="processes (default: one per core)")
    check.add_argument("--quick", action="store_true", help="only what a training run checks first: a second or two")
    check.add_argument("--sheet", metavar="FILE",
                       help="draw a contact sheet, pictures beside their masks, into this file")
    check.add_argument("--count", type=int, default=8, metavar="N",
                       help="pictures of each split on the contact sheet (default: 8)")
    check.add_argument("--out", metavar="FILE", help="write the whole result as JSON")
    check.add_argument("--all", action="store_true", help=f"print all faults, not {SHOWN} of a kind, and all classes")
    check.add_argument("--quiet", action="store_true", help="no progress bar")
    stats = tasks.add_parser("stats", help="mean, std and ranges of each channel", epilog="example: jseg data stats "
                             "mine.yaml", formatter_class=argparse.RawDescriptionHelpFormatter,
                             description="Read the pictures of a split as its LoadBands or LoadImageFromFile "
                                         "gives them, print\nminimum, maximum, mean, deviation and percentiles of each "
                                         "channel, and the lines for data_preprocessor.")
    add_config_arguments(stats)
    stats.add_argument("--split", default="train", choices=SPLITS, help="default: train")
    stats.add_argument("--count", type=int, metavar="N", help="read N pictures, drawn by the seed (default: all)")
    stats.add_argument("--out", metavar="FILE", help="write the numbers as JSON")
    stats.add_argument("--quiet", action="store_true", help="no progress bar")
    demo = tasks.add_parser("demo", help="render street scenes with masks, to try things on",
                            epilog="example: jseg data demo data/street --count 40",
                            formatter_class=argparse.RawDescriptionHelpFormatter,
                            description="Render street scenes of six classes, with exact masks, into FOLDER/images and "
                                        "FOLDER/masks, one in\nfive of them for validation. Nothing is downloaded.")
    demo.add_argument("folder", metavar="FOLDER", help="a new or empty folder")
    demo.add_argument("--count", type=int, default=40, metavar="N", help="pictures (default: %(default)s)")
    demo.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("HEIGHT", "WIDTH"),
                      help="of the pictures, in pixels (default: 240 320)")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="another one renders other scenes (default: 0)")


def run(args) -> int:
    """Do the task; 2 when it found faults."""
    from jseg.cli._data_stats import run_stats
    return {"check": run_check, "stats": run_stats, "demo": run_demo}[args.task](args)


def run_demo(args) -> int:
    """Render the pictures, all of them or none."""
    from jseg.data.render import CLASSES, render_dataset
    if args.count < 2 or min(args.size) < 48 or args.seed < 0:
        raise ConfigError(f"--count {args.count}, --size {args.size[0]} {args.size[1]}, --seed {args.seed}; accepted: "
                          "2 pictures or more, sides of 48 pixels or more, seeds from 0")
    count_val = max(1, args.count // 5)
    render_dataset(args.folder, count_train=args.count - count_val, count_val=count_val, size=args.size, seed=args.seed)
    print(f"{args.count} pictures of {len(CLASSES)} classes ({', '.join(CLASSES)}): {args.folder}/images, "
          f"{args.folder}/masks")
    return 0


def run_check(args) -> int:
    """Check the splits one after the other, print a table and the faults, write what was asked for."""
    from jseg.config import is_classifier, load_config
    from jseg.data.build import build_dataset
    from jseg.data.check import check_dataset, quick_check, shared_pictures
    from jseg.data.prepare.parallel import default_workers
    from jseg.files import write_atomically

    if args.count < 1 or (args.workers is not None and args.workers < 1):
        raise ConfigError(f"--count and --workers must be at least 1, got {args.count} and {args.workers}")
    cfg = load_config(args.config, args.overrides)
    if args.sheet and is_classifier(cfg):
        raise ConfigError(f"--sheet {args.sheet}: draws masks, and a classifier has none; jseg browse {args.config} "
                          "draws its samples")
    splits = args.splits or [split for split in SPLITS if cfg.get(f"{split}_dataloader") is not None]
    if args.quick:
        print("\n".join([*(f"note: {note}" for note in quick_check(cfg, splits=splits)),
                         f"{args.config}: ok: {', '.join(splits)}"]))
        return 0
    datasets = {split: build_dataset(cfg, split) for split in SPLITS if split in splits}
    reports = [check_dataset(dataset, name=split, workers=args.workers or default_workers(), progress=not args.quiet,
                             need_masks=split != "test" and not has_depth(dataset))
               for split, dataset in datasets.items()]
    shared = shared_pictures(reports)
    print("\n".join([*overview(reports), "", *class_table(reports, None if args.all else TABLE_ROWS)]))
    for report in reports:
        print("".join(f"note: {report.name}: {note}\n" for note in _first(report.notes, args.all)), end="")
    faults = [(report.name, fault) for report in reports for fault in report.faults] + [("", fault) for fault in shared]
    print("\n".join(fault_lines(faults, None if args.all else SHOWN)), file=sys.stderr if faults else sys.stdout)
    if args.out:
        whole = {"config": args.config, "splits": [report.summary() for report in reports],
                 "shared": [f._asdict() for f in shared]}
        write_atomically(args.out, json.dumps(whole, indent=1).encode())
    if args.sheet:
        write_contact_sheet(args.sheet, datasets, args.count, cfg.get("seed") or 0)
    return 2 if faults else 0


def has_depth(dataset) -> bool:
    """Whether the pictures have depth maps in place of labels: then masks are not missed."""
    from jseg.data.datasets.wrappers import leaves
    return all("depth_map_path" in getattr(leaf, "data_prefix", {}) for leaf in leaves(dataset))


def overview(reports) -> list[str]:
    """A line per split: pictures, sizes, ignored share, faults, time."""
    lines = [f"{'split':<6} {'pictures':>9} {'sizes (width x height)':<42} {'ignored':>8} {'faults':>7} {'seconds':>8}"]
    for report in reports:
        sizes = [f"{w}x{h}" for (h, w), _ in report.sizes.most_common(3)]
        more = f" and {len(report.sizes) - 3} more" if len(report.sizes) > 3 else ""
        total = int(report.pixels.sum()) + report.ignored
        ignored = f"{100 * report.ignored / total:.1f} %" if total else "-"
        lines.append(f"{report.name:<6} {report.pictures:>9} {', '.join(sizes) + more:<42} {ignored:>8} "
                     f"{len(report.faults):>7} {report.seconds:>8.1f}")
    return lines


def class_table(reports, most: int | None = None) -> list[str]:
    """A line per class: its share of the pixels and the number of pictures that hold it, in each split.

    Args:
        reports: of the splits; classes are those of the first.
        most: of a longer list the classes with the most pixels in the first split; None keeps all.
    """
    reports = [report for report in reports if report.pixels.any() and report.classes == reports[0].classes]
    if not reports:
        return []
    names = reports[0].classes
    width = max(map(len, names))
    lines = [f"{'class':<{width}} " + " ".join(f"{report.name + ' pixels':>13} {'pictures':>9}" for report in reports)]
    shown = sorted(np.argsort(-reports[0].pixels, kind="stable")[:most].tolist())
    for k, name in ((k, names[k]) for k in shown):
        cells = [f"{100 * report.pixels[k] / report.pixels.sum():>11.3f} % {report.pictures_with[k]:>9}"
                 for report in reports]
        lines.append(f"{name:<{width}} " + " ".join(cells))
    return lines + ([f"... and {len(names) - len(shown)} rarer classes (--all)"] if len(shown) < len(names) else [])


def fault_lines(faults, most: int | None = None) -> list[str]:
    """The faults, a kind after the other, and one line with their numbers.

    Args:
        faults: (split or "", Fault).
        most: of a kind; None prints all.
    """
    kinds: dict[str, list[str]] = {}
    for split, fault in faults:
        kinds.setdefault(fault.kind, []).append(f"{split}: {fault.text}" if split else fault.text)
    lines = []
    for kind, texts in kinds.items():
        lines += [f"{kind}: {text}" for text in texts[:most]]
        lines += [f"{kind}: and {len(texts) - most} more (--all)"] if most is not None and len(texts) > most else []
    return lines + [f"faults: {', '.join(f'{len(texts)} {kind}' for kind, texts in kinds.items())}"
                    if kinds else "no faults"]


def write_contact_sheet(path: str, datasets: dict, count: int, seed: int) -> None:
    """Draw `count` readable pictures of each split, as they are on disk, beside their masks."""
    from jseg.cli.browse import draw_contact_sheet
    from jseg.data.io import write_image

    bands = []
    for split, dataset in datasets.items():
        samples = readable_samples(dataset, count, np.random.default_rng([seed, count]))
        samples = [{**sample, "img_path": f"{split}: {os.path.basename(sample['img_path'])}"} for sample in samples]
        bands += [draw_contact_sheet(samples, dataset.classes, dataset.palette)] if samples else []
    if not bands:
        print(f"{path}: not drawn: no picture can be read", file=sys.stderr)
        return
    width = max(band.shape[1] for band in bands)
    write_image(path, np.concatenate([np.pad(band, ((0, 0), (0, width - band.shape[1]), (0, 0)), constant_values=255)
                                      for band in bands]))
    print(f"written: {path}")


def readable_samples(dataset, count: int, rng: np.random.Generator) -> list[dict]:
    """Read up to `count` pictures with their masks, drawn by `rng`, shrunk to 640 pixels;
    those that cannot be read are passed over.
    """
    from jseg.cli.browse import shown
    from jseg.data.datasets.wrappers import leaves
    from jseg.data.overlay import fit
    from jseg.data.transforms import LoadAnnotations

    pairs = [(part, *pair) for part in leaves(dataset) for pair in part.scan()[0]]
    samples = []
    for i in rng.permutation(len(pairs)):
        part, img_path, seg_map_path = pairs[i]
        sample = {"img_path": img_path, "seg_map_path": seg_map_path, "reduce_zero_label": part.reduce_zero_label,
                  "label_map": part.label_map, "color_map": part.color_map}
        try:
            sample = part.pipeline.reader.apply(sample, {})
            sample = LoadAnnotations().apply(sample, {}) if seg_map_path else sample
        except JsegError:
            continue  # named in the report
        label = sample.get("gt_seg_map")
        samples.append({**sample, "img": fit(shown(sample), 640), "view": None, "gt_seg_map": None if label is None
                        else fit(label, 640, labels=True)})
        if len(samples) == count:
            break
    return samples


def _first(texts: list[str], everything: bool) -> list[str]:
    more = [f"and {len(texts) - SHOWN} more notes (--all)"] if len(texts) > SHOWN and not everything else []
    return (texts if everything else texts[:SHOWN]) + more
