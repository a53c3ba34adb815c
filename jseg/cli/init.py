"""Write a config for your own pictures and masks: one command from two folders to training.

    jseg init IMAGES MASKS                                masks of class numbers, palettes or colours
    jseg init IMAGES annotations.json                     COCO; a folder of labelme's or YOLO's outlines works, too
    jseg init IMAGES MASKS --classes sky,road,car --model segformer-b0 --weights NAME_OR_FILE

Pictures and masks are paired by what their names have in common. Classes are counted, and named from --classes, a list
beside the masks (classes.txt, labelmap.txt, data.yaml) or a known dataset's colours. The pictures are divided into
train and val so that every class is in both; folders train/ and val/ and given lists are kept. Scale, crop, length and
the weights of classes come from the pictures. The config is checked before it is written. Nothing is overwritten, and
nothing is written into the folders of the data.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from jseg.cli._arguments import batch_size, positive_count
from jseg.errors import ConfigError, JsegError

EXAMPLE = "jseg init data/mine/images data/mine/masks --out mine.yaml"


def add_arguments(parser) -> None:
    """Options of `jseg init`."""
    parser.add_argument("images", metavar="IMAGES", help="folder of the pictures")
    parser.add_argument("masks", metavar="MASKS", help="folder of masks or outlines (labelme, YOLO), or a COCO file")
    parser.add_argument("--out", default="mine.yaml", metavar="FILE", help="the config to write (default: %(default)s)")
    parser.add_argument("--classes", metavar="NAMES", help="a file with a name per line, or names with commas")
    parser.add_argument("--ignore", action="append", default=[], type=_value, metavar="VALUE",
                        help="value (255) or colour (0,0,0) that counts nowhere; may be given many times")
    parser.add_argument("--val-images", metavar="DIR", help="folder of the pictures to evaluate on")
    parser.add_argument("--val-masks", metavar="DIR", help="folder of their masks")
    parser.add_argument("--train-list", metavar="FILE", help="list of the pictures to train on, one name per line")
    parser.add_argument("--val-list", metavar="FILE", help="list of the pictures to evaluate on")
    parser.add_argument("--val-ratio", type=float, default=0.2, metavar="R",
                        help="share of the pictures to evaluate on (default: %(default)s)")
    parser.add_argument("--kfold", type=int, default=0, metavar="K", help="divide for cross-validation with K parts")
    parser.add_argument("--model", metavar="WORDS", help="model, as segnext-small or segformer-b0 (default: that of "
                                                         "--weights, else segnext-tiny)")
    parser.add_argument("--weights", metavar="NAME_OR_FILE", help="weights to start from; the same as in jseg train")
    parser.add_argument("--crop", nargs=2, type=positive_count, metavar=("H", "W"), help="crop for training, in pixels")
    parser.add_argument("--batch-size", type=batch_size, metavar="N",
                        help="pictures per step, or auto (default: 4 or 8)")
    parser.add_argument("--iters", type=positive_count, metavar="N", help="length of the run in iterations")
    parser.add_argument("--balance", action="store_true", help="weight the loss by class, so that rare ones count")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default: %(default)s)")


def _value(text: str):
    """`255` or `0,0,0`."""
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(0 <= number <= 65535 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor red,green,blue")
    return numbers[0] if len(numbers) == 1 else numbers


def run(args) -> int:
    """Look at the data, write the config, say what comes next."""
    from jseg.data.own.gather import Asked, gather_data
    from jseg.files import write_atomically
    _check_arguments(args)
    model, weights, meta = _model(args)
    data = gather_data(Asked(
        args.images, args.masks, args.out, classes=args.classes, ignore=tuple(args.ignore),
        val_images=args.val_images, val_masks=args.val_masks, train_list=args.train_list, val_list=args.val_list,
        val_ratio=args.val_ratio, folds=args.kfold, progress=sys.stderr.isatty()))
    try:
        text = _text(args, data, model, weights, meta)
        _check_text(text, args.out)
        write_atomically(args.out, text.encode())
    except BaseException:
        data.remove()
        raise
    _tell(args, data)
    return 0


def _check_arguments(args) -> None:
    if os.path.lexists(args.out):
        raise ConfigError(f"{args.out}: exists and is not overwritten; remove it, or give another name with --out")
    if not args.out.endswith((".yaml", ".yml")):
        raise ConfigError(f"{args.out}: the name of a config ends in .yaml")
    home = os.path.realpath(os.path.dirname(args.out) or os.curdir)
    for folder in filter(None, (args.images, args.masks, args.val_images, args.val_masks)):
        inside = os.path.realpath(folder)
        if os.path.isdir(inside) and (home == inside or home.startswith(inside + os.sep)):
            raise ConfigError(f"{args.out}: lies in {folder}, where nothing is written; give --out elsewhere")
    if args.kfold and args.kfold < 2 or not 0 < args.val_ratio < 1:
        raise ConfigError(f"--kfold {args.kfold}, --val-ratio {args.val_ratio}: two parts or more, and a share between "
                          "0 and 1")
    if args.kfold and (args.val_images or args.train_list):
        raise ConfigError("--kfold divides the pictures itself; leave out --val-images and --train-list")


def _model(args):
    """(OwnModel, weights file or "", facts in that file)."""
    from jseg.engine.own_model import find_model, model_of_weights
    weights, meta = "", {}
    if args.weights:
        from jseg.cli.weights import find_weights
        from jseg.engine.checkpoint import load_weights
        weights = str(find_weights(args.weights))
        if weights.endswith(".safetensors"):  # other files are read by training, and have no config of jseg's
            meta = load_weights(weights)[1]
    if args.model:
        model = find_model(args.model) or _published(args.model)
    elif isinstance(meta.get("config"), dict):
        model = model_of_weights(meta, weights)
    else:
        model = find_model("segnext_tiny")
    return model, os.path.abspath(weights) if weights else "", meta


def _published(words: str):
    """A model that MMSegmentation publishes, in jseg's words."""
    from jseg.convert.model_index import read_models
    from jseg.convert.model_index_search import search_models
    from jseg.engine.own_model import OwnModel
    found = [model for model in search_models(read_models(), [words]) if not model.missing_types()]
    if not found:
        raise ConfigError(f"--model {words}: no model of this name builds here; `jseg models --like {words}` shows "
                          "what is known")
    return OwnModel("", found[0].name, found[0].jseg_config()["model"])


def _text(args, data, model, weights: str, meta: dict) -> str:
    from jseg.data.io import picture_note
    from jseg.data.own.recipe import choose_sizes
    from jseg.engine.own_config import OwnRun, own_config_text
    from jseg.engine.own_model import wanted_crop
    preprocessor = meta.get("config", {}).get("data_preprocessor", {}) if isinstance(meta.get("config"), dict) else {}
    sizes = choose_sizes(data.sizes, args.crop or wanted_crop(model.block))
    batch = args.batch_size or (8 if data.count[1] >= 64 else 4)
    run = OwnRun(model, weights, sizes, batch, args.iters, args.balance, args.seed,
                 shlex.join(["jseg", *sys.argv[1:]]), args.out,
                 stretch=any(picture_note(path).endswith("scale: max") for path in data.samples),
                 normalise={key: preprocessor[key] for key in ("mean", "std", "bgr_to_rgb") if key in preprocessor})
    return own_config_text(data, run)


def _check_text(text: str, path: str) -> None:
    """What is written passes `jseg check` and the look at the data that training begins with."""
    import tempfile

    from jseg.config import load_config
    from jseg.data.check import quick_check
    from jseg.engine.check import check_config
    with tempfile.TemporaryDirectory() as folder:
        draft = os.path.join(folder, os.path.basename(path))
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
        config = load_config(draft)
    faults = check_config(config)
    if faults:
        raise ConfigError("no config was written, since this model does not go with these pictures: "
                          + "\n".join(faults))
    try:
        quick_check(config)
    except JsegError as error:
        raise type(error)(f"no config was written; the data has faults:\n{error}") from error


def _tell(args, data) -> None:
    labels, total = data.labels, max(sum(data.pixels), 1)
    print(f"{data.count[0]} pictures with {data.kind}, {data.count[1]} to train on; {len(labels.names)} classes, "
          f"names: {labels.source}")
    width = max(5, *map(len, labels.names))
    print(f"  {'class':<{width}}   pixels  pictures")
    for name, pixels, pictures in zip(labels.names, data.pixels, data.pictures):
        print(f"  {name:<{width}} {100 * pixels / total:6.2f} %  {pictures:>8}")
    for note in data.notes:
        print(f"note: {note}")
    if labels.made_up:
        print(f"note: the names are made up; write your own into {args.out}, or start again with --classes")
    name = os.path.splitext(os.path.basename(args.out))[0]
    config = shlex.quote(args.out)
    print(f"written: {args.out}\nnext:\n  jseg check {config}")
    if args.kfold:
        folds = " ".join(map(str, range(args.kfold)))
        print(f"  for k in {folds}; do jseg train {config} --work-dir runs/{name}_$k --set "
              "train_dataloader.dataset.split.fold=$k --set val_dataloader.dataset.split.fold=$k; done")
        print(f"  jseg report runs/{name}_0")
        return
    print(f"  jseg train {config}" + ("" if args.weights else "   # --weights NAME_OR_FILE starts from trained weights")
          + f"\n  jseg report runs/{name}")
