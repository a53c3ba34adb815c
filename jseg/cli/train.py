"""Train a model from a config, or go on with a run that was stopped.

    jseg train mine.yaml --weights segnext_tiny_camvid       fine-tune: a file, a run's folder or a published name
    jseg train mine.yaml --weights FILE --freeze backbone    train the head alone
    jseg train mine.yaml --patience 3 --time 2h --repeat 3   end early, end in time, three runs with three seeds

With --weights, what belongs to a class goes to the class of the same name, and every key without a partner is told.
An option stands for a key of the config, which is written to the run's folder with it.
"""

from __future__ import annotations

from pathlib import Path

from jseg.cli import add_config_arguments
from jseg.cli._arguments import at_least_zero, batch_size, positive_count, time_seconds
from jseg.config import load_config, merge

EXAMPLE = ("jseg train configs/segnext/segnext_tiny_camvid-240x320_cpu.yaml --work-dir runs/camvid --set "
           "optimizer.lr=6e-5")


def add_arguments(parser) -> None:
    """Options of `jseg train`."""
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true",
                        help="go on from the newest saved state in the work dir (from the beginning "
                             "when there is none)")
    parser.add_argument("--work-dir", metavar="DIR",
                        help="folder of the run (default: work_dir of the config, else runs/<config name>)")
    parser.add_argument("--weights", metavar="NAME_OR_FILE", help="trained weights to start from (load_from)")
    parser.add_argument("--freeze", action="append", default=[], metavar="PART",
                        help="do not train this part, such as backbone; may be given many times (train_cfg.freeze)")
    parser.add_argument("--backbone-lr", type=at_least_zero, metavar="F",
                        help="learning rate of the backbone, times this (paramwise_cfg.backbone_lr_mult)")
    parser.add_argument("--layer-decay", type=at_least_zero, metavar="F",
                        help="learning rate of each part of the backbone, times this for each part between it and the "
                             "head: 0.8 to 0.95 (paramwise_cfg.decay_rate, decay_type: in_order)")
    parser.add_argument("--patience", type=positive_count, metavar="N",
                        help="end after N evaluations without a better score (train_cfg.early_stop.patience)")
    parser.add_argument("--time", type=time_seconds, metavar="T",
                        help="train for at most this long, 90s, 30m or 2h, then evaluate and end "
                             "(train_cfg.max_seconds)")
    parser.add_argument("--batch-size", type=batch_size, metavar="N",
                        help="pictures per step, or auto: as many as free memory allows (train_dataloader.batch_size)")
    parser.add_argument("--repeat", type=positive_count, metavar="N",
                        help="N runs with seeds one apart, in DIR/seed_<seed>; prints the mean and spread of the "
                             "scores")


def run(args) -> int:
    """Train; 0 when the run is complete, 130 after Ctrl-C, 143 after SIGTERM (both with the state saved)."""
    return run_config(args, load_config(args.config, args.overrides))


def run_config(args, config: dict) -> int:
    """Train a config that was read, with what the options say."""
    config = chosen(args, config)
    work_dir = args.work_dir or config.get("work_dir") or str(Path("runs") / Path(args.config).stem)
    from jseg.engine.distributed import as_rank  # imports Jittor: not for --help
    if args.repeat:
        return as_rank(lambda: _train_repeatedly(config, args.resume, work_dir, args.repeat))
    return as_rank(lambda: _train(config, args.resume, work_dir))


def chosen(args, config: dict) -> dict:
    """The config with what the options say.

    Raises:
        CheckpointError, ConvertError: there are no such weights.
    """
    train, loader, params = {}, {}, {}
    if args.freeze:
        train["freeze"] = args.freeze
    if args.patience:
        train["early_stop"] = {"patience": args.patience}
    if args.time:
        train["max_seconds"] = args.time
    if args.batch_size:
        loader["batch_size"] = args.batch_size
    if args.backbone_lr is not None:
        params["backbone_lr_mult"] = args.backbone_lr
    if args.layer_decay is not None:
        params.update(decay_rate=args.layer_decay, decay_type="in_order")
        config = {**config, "paramwise_cfg": {key: value for key, value in (config.get("paramwise_cfg") or {}).items()
                                              if key != "num_layers"}}
    blocks = {"train_cfg": train, "train_dataloader": loader, "paramwise_cfg": params}
    config = merge(config, {name: block for name, block in blocks.items() if block})
    if args.weights:
        from jseg.cli.weights import find_weights
        config["load_from"] = str(find_weights(args.weights))
    return config


def _train(config: dict, resume: bool, work_dir: str) -> int:
    from jseg.engine.train import train
    result = train(config, resume=resume, work_dir=work_dir)
    return 0 if result["signal"] is None else 128 + result["signal"]


def _train_repeatedly(config: dict, resume: bool, work_dir: str, count: int) -> int:
    """One run after the other; a signal ends the one that runs, and no further one begins."""
    from jseg.engine.distributed import is_main
    from jseg.engine.repeat import finished, seeds_of, summarise
    from jseg.engine.train import train
    folders = []
    for seed in seeds_of(config, count):
        folder = Path(work_dir) / f"seed_{seed}"
        folders.append(folder)
        if resume and finished(folder):
            continue
        result = train({**config, "seed": seed}, resume=resume, work_dir=str(folder))
        if result["signal"] is not None:
            return 128 + result["signal"]
    if is_main():
        print(summarise(folders, Path(work_dir) / "repeat.json"))
    return 0
