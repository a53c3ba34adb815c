"""Original JSeg's command line on jseg's commands.

    python tools/run_net.py --config-file CONFIG --task train
        -> jseg train CONFIG
    python tools/run_net.py --config-file CONFIG --task train --resume RUN
        -> jseg train CONFIG --resume --work-dir RUN
    python tools/run_net.py --config-file CONFIG --task val --resume WEIGHTS
        -> jseg val CONFIG --checkpoint WEIGHTS
    python tools/run_net.py --config-file CONFIG --task test --resume WEIGHTS --save-dir DIR
        -> jseg predict WEIGHTS PICTURES --out DIR

Without --resume, val and test take the best weights of the config's run folder. Configs are jseg's YAML files. The
command that runs is printed first.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])  # jseg from this checkout, installed or not


def parse(words: list[str]) -> argparse.Namespace:
    """Read original JSeg's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="example: python tools/run_net.py --config-file "
                                            "configs/segnext/segnext_tiny_ade20k-512x512_160k.yaml --task train")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a config (.yaml)")
    parser.add_argument("--task", choices=("train", "val", "test"), default="train", help="what to do (default: train)")
    parser.add_argument("--resume", nargs="?", const="", metavar="PATH",
                        help="train: the run folder to continue (default: the config's own); val, test: the weights")
    parser.add_argument("--save-dir", default="./results", help="where test puts its pictures (default: %(default)s)")
    parser.add_argument("--no_cuda", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument("--efficient_val", action="store_true",
                        help="accepted; evaluation never keeps label maps in memory")
    return parser.parse_args(words)


def translate(args: argparse.Namespace) -> list[str]:
    """Return the words of the jseg command that does what `args` ask for.

    Raises:
        ConfigError: the config cannot be read, or names no folder of pictures for `test`.
        CheckpointError: `--resume` does not name what the task needs.
    """
    from jseg.config import load_config
    from jseg.errors import CheckpointError

    config = load_config(args.config_file)
    folder = pathlib.Path(config.get("work_dir") or pathlib.Path("runs") / pathlib.Path(args.config_file).stem)
    if args.task == "train":
        if args.resume and not pathlib.Path(args.resume).is_dir():
            raise CheckpointError(f"--resume {args.resume}: training continues from a run folder, not from a file; "
                                  "give the folder, or start anew from these weights with jseg train CONFIG --set "
                                  f"load_from={args.resume}")
        own = ["--work-dir", args.resume] if args.resume else []
        return ["train", args.config_file] + (["--resume", *own] if args.resume is not None else [])
    weights = _weights(pathlib.Path(args.resume or folder))
    if args.task == "val":
        return ["val", args.config_file, "--checkpoint", weights]
    return ["predict", weights, _pictures(config, args.config_file), "--out", args.save_dir]


def _weights(path: pathlib.Path) -> str:
    """A weights file as it is; in a run folder its best weights."""
    from jseg.errors import CheckpointError

    tried = [path] if not path.is_dir() else [path / "best.safetensors", path / "weights.safetensors"]
    for candidate in tried:
        if candidate.is_file():
            return str(candidate)
    raise CheckpointError(f"{path}: no weights there (looked for {', '.join(map(str, tried))}); name a .safetensors "
                          "file with --resume")


def _pictures(config: dict, name: str) -> str:
    """The folder of pictures of the test dataset, or of the validation dataset."""
    from jseg.errors import ConfigError

    loader = config.get("test_dataloader") or config.get("val_dataloader") or {}
    dataset = loader.get("dataset") or {}
    prefix = (dataset.get("data_prefix") or {}).get("img_path")
    if prefix is None:
        raise ConfigError(f"{name}: val_dataloader.dataset.data_prefix.img_path: needed by --task test; or use "
                          f"jseg predict WEIGHTS FOLDER")
    return os.path.join(dataset.get("data_root") or "", prefix)


def main(words: list[str]) -> int:
    """Translate, say what runs, run it."""
    args = parse(words)
    if args.no_cuda:
        os.environ["nvcc_path"] = ""  # before jseg looks for a GPU
    from jseg.cli import main as jseg
    from jseg.errors import JsegError

    try:
        command = translate(args)
    except JsegError as error:
        print(error, file=sys.stderr)
        return 2
    print("jseg", shlex.join(command), flush=True)
    return jseg(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
