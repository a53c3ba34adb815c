"""Show samples as training sees them, augmented, beside their masks, in one contact sheet."""

from __future__ import annotations

import os

import numpy as np

from jseg.cli import add_config_arguments
from jseg.errors import ConfigError

EXAMPLE = "jseg browse configs/segnext/segnext_tiny_camvid-360x480_20k.yaml --count 16 --out sheet.png"
PAIRS_A_ROW = 4


def add_arguments(parser) -> None:
    """Options of `jseg browse`."""
    add_config_arguments(parser)
    parser.add_argument("--split", default="train", choices=("train", "val", "test"),
                        help="whose pictures (default: train)")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="number of samples (default: 16)")
    parser.add_argument("--epoch", type=int, default=0, metavar="N", help="training epoch to show (default: 0)")
    add_view_argument(parser)
    parser.add_argument("--out", default="sheet.png", metavar="FILE",
                        help="the contact sheet to write, a picture (default: sheet.png)")


def add_view_argument(parser) -> None:
    """`--view`, for pictures of more bands than eyes see."""
    parser.add_argument("--view", metavar="R,G,B", help="bands to show of pictures read by LoadBands, from 0: three as "
                        "red, green, blue, or one as grey (default: LoadBands.view)")


def chosen_bands(text: str, channels: int) -> tuple[int, ...]:
    """The numbers of `--view`.

    Raises:
        ConfigError: not one or three bands of the picture.
    """
    words = text.split(",")
    if len(words) not in (1, 3) or not all(w.strip().isdigit() and int(w) < channels for w in words):
        raise ConfigError(f"--view {text}: accepted: one or three bands from 0 to {channels - 1}, with commas, such as "
                          f"{'2,1,0' if channels > 2 else '0'}")
    return tuple(int(word) for word in words)


def run(args) -> int:
    """Write the contact sheet; print its path and how much of the shown pixels each class has."""
    from jseg.config import load_config
    from jseg.data import Loader, build_dataset
    from jseg.data.io import write_image

    if args.count < 1 or args.epoch < 0:
        raise ConfigError(f"--count must be at least 1 and --epoch at least 0, got {args.count} and {args.epoch}")
    cfg = load_config(args.config, args.overrides)
    dataset, seed = build_dataset(cfg, args.split), cfg.get("seed") or 0
    count = min(args.count, len(dataset))
    order = Loader(dataset, None, batch_size=1, num_workers=0, seed=seed, training=args.split == "train")
    start = args.epoch * len(dataset) if args.split == "train" else 0
    picks = [order.picks(start + i)[0] for i in range(count)]
    samples = [dataset.get(index, np.random.default_rng([seed, epoch, index])) for epoch, index in picks]
    if args.view:
        view = chosen_bands(args.view, samples[0]["img"].shape[2])
        samples = [{**sample, "view": view} for sample in samples]
    write_image(args.out, draw_contact_sheet(samples, dataset.classes, dataset.palette))
    print(f"written: {args.out} ({count} of {len(dataset)} samples of {args.split})")
    print(_shares(samples, dataset.classes))
    return 0


def draw_contact_sheet(samples: list[dict], classes, palette, *, cell_width: int = 240) -> np.ndarray:
    """Draw samples beside their overlays, a few a row, under file names, with a legend of the classes below.

    Args:
        samples: outputs of a dataset, drawn as `shown` gives them; without `gt_seg_map` the overlay is left out.
        classes, palette: K names and K RGB colours.
    Returns:
        (H, W, 3) uint8 BGR.
    """
    import cv2

    from jseg.data.overlay import contact_sheet, legend, overlay
    bands = []
    for first in range(0, len(samples), PAIRS_A_ROW):
        cells, titles = [], []
        for sample in samples[first:first + PAIRS_A_ROW]:
            img, label = shown(sample), sample.get("gt_seg_map")
            if label is not None and label.shape != img.shape[:2]:  # evaluation resizes the picture only
                label = cv2.resize(label, img.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            cells += [img] if label is None else [img, overlay(img, label, palette, 0.65)]
            known = f"{classes[sample['gt_label']]}: " if "gt_label" in sample else ""
            titles += [known + os.path.basename(sample["img_path"])] + [""] * (label is not None)
        bands.append(contact_sheet([cells], titles, cell_width=cell_width))
    width = max(band.shape[1] for band in bands)
    grid = np.concatenate([np.pad(band, ((0, 0), (0, width - band.shape[1]), (0, 0)), constant_values=255)
                           for band in bands])
    return np.concatenate([grid, legend([*classes, "ignored: not coloured"], [*palette, (255, 255, 255)],
                                        grid.shape[1])])


def shown(sample: dict) -> np.ndarray:
    """The picture of a sample, (H, W, 3) uint8 BGR: of LoadBands the bands of its "view"; floats are stretched to
    0..255."""
    from jseg.data.bands import shown_bands

    img = sample["img"]
    if sample.get("view"):
        return shown_bands(img, sample["view"])
    if img.dtype == np.uint8:
        return img
    low, high = float(img.min()), float(img.max())
    return ((img - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def _shares(samples: list[dict], classes) -> str:
    labels = [sample["gt_seg_map"].ravel() for sample in samples if sample.get("gt_seg_map") is not None]
    if not labels:
        return "no masks in this split"
    values = np.concatenate(labels)
    counts = np.bincount(values[values < len(classes)], minlength=len(classes))
    parts = [f"{name} {100 * n / len(values):.1f}%" for name, n in zip(classes, counts) if n]
    absent = [name for name, n in zip(classes, counts) if not n]
    text = f"share of the pixels: {', '.join(parts)}, ignored {100 * (1 - counts.sum() / len(values)):.1f}%"
    return text + (f"\nnot seen: {', '.join(absent[:20])}{', ...' if len(absent) > 20 else ''}" if absent else "")
