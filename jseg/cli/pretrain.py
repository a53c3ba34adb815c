"""Train the backbone of a config as a classifier of pictures, to start segmentation from.

    jseg pretrain pretrain/mscan-tiny_imagenet-224x224_300e.yaml --data data/flowers
    jseg val --checkpoint runs/flowers                       top-1, top-5 and every class of the best weights
    jseg train mine.yaml --weights runs/flowers/best.safetensors     a segmentor that starts from them

--data names a folder with train/ and val/, and in each a folder of pictures for every class. Resuming, limits, ranks,
the log, the run's folder and `jseg report` are those of `jseg train`, which takes such configs too.
"""

from __future__ import annotations

from pathlib import Path

from jseg.cli import train
from jseg.config import is_classifier, load_config, merge
from jseg.errors import ConfigError, DataError

EXAMPLE = ("jseg pretrain configs/pretrain/mscan-tiny_imagenet-224x224_300e.yaml --data data/flowers --work-dir "
           "runs/flowers")


def add_arguments(parser) -> None:
    """Options of `jseg pretrain`: those of `jseg train`, and --data."""
    train.add_arguments(parser)
    parser.add_argument("--data", metavar="FOLDER",
                        help="folder with train/ and val/, each with a folder for every class; sets data_root and the "
                             "number of classes")


def run(args) -> int:
    """Train; exit status as that of `jseg train`."""
    config = load_config(args.config, args.overrides)
    if not is_classifier(config):
        raise ConfigError(f"{args.config}: is no classifier (model.type: ImageClassifier); jseg train trains it")
    return train.run_config(args, with_data(config, args.data) if args.data else config)


def with_data(config: dict, folder: str) -> dict:
    """The config for the classes of another folder of pictures.

    Raises:
        DataError: it has no train/ and val/ with class folders.
    """
    root = Path(folder)
    found = {part: sorted(path.name for path in (root / part).iterdir() if path.is_dir() and path.name[0] != ".")
             if (root / part).is_dir() else [] for part in ("train", "val")}
    if min(map(len, found.values())) < 2:
        raise DataError(f"{folder}: expected train/ and val/ in it, each with a folder for every class; found "
                        f"{len(found['train'])} classes in train/ and {len(found['val'])} in val/")
    blocks = {f"{part}_dataloader": {"dataset": {"data_root": str(root), "data_prefix": part}} for part in found}
    return merge(config, {**blocks, "model": {"head": {"num_classes": len(found["train"])}}})
