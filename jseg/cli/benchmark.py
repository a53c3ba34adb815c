"""Compare one checkpoint over jseg, ONNX Runtime, OpenVINO and PyTorch: speed, memory, mIoU.

One table: size of the file, start and first run, time (median, in brackets quartiles), peak memory, mIoU on a
validation set. Each runtime is a process of its own with the same picture and the same number of threads, and is
compared with jseg before it is timed; they are timed in turn. The ONNX file is the one that `jseg export` writes,
float32 and for any size; what runtimes take in whole pictures, jseg does, too (no sliding windows). Runtimes that are
not installed are said to be. Exit status 1 where a result was wrong. To time jseg's own kernels and models while
developing it, see `jseg bench`.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil

EXAMPLE = ("jseg benchmark weights/segnext_tiny_camvid.safetensors --size 360 480 --threads 2 --data "
           "configs/segnext/segnext_tiny_camvid-288x384_cpu.yaml --images 20 --json runtimes.json")


def add_arguments(parser) -> None:
    """Options of `jseg benchmark`."""
    parser.add_argument("checkpoint", help="a .safetensors file written by training or conversion, or a run's folder")
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"),
                        help="size of the picture that is timed, as the network gets it, in pixels (default: 512 512)")
    parser.add_argument("--data", metavar="CONFIG",
                        help="also measure mIoU on the val_dataloader of this config, with its transforms")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="override one value of the config of --data; may be given many times")
    parser.add_argument("--images", type=int, metavar="N", help="only the first N pictures of the data")
    parser.add_argument("--int8", metavar="FILE", help="an int8 .onnx file of the same checkpoint, giving labels")
    parser.add_argument("--against-torch", metavar="PYTHON",
                        help="a Python that has PyTorch and mmsegmentation 1.x; it runs the checkpoint as `jseg export "
                             "CHECKPOINT model.pth` writes it")
    parser.add_argument("--threads", type=int, metavar="N",
                        help="processor threads of every runtime (default: OMP_NUM_THREADS, else all)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="turns of A B C (default: %(default)s)")
    parser.add_argument("--json", metavar="OUT", help="write all figures")


def run(args) -> int:
    """Measure and print; 0, or 1 when a runtime's result was wrong."""
    _check(args)
    from jseg.bench.machine import machine_facts
    from jseg.bench.runtimes import Comparison, compare_runtimes
    from jseg.bench.runtimes_table import runtimes_table
    from jseg.bench.side import thread_count
    from jseg.engine.channels import COLOURS, model_channels
    from jseg.engine.model_file import open_model_file
    from jseg.errors import ConfigError
    from jseg.files import write_atomically
    from jseg.runtime import cpu_name

    file = open_model_file(args.checkpoint)
    if model_channels(file.config["model"]) != COLOURS:
        raise ConfigError(f"{args.checkpoint}: takes pictures of {model_channels(file.config['model'])} channels; "
                          f"exported files take {COLOURS}")
    threads = thread_count(args.threads)
    job = Comparison(file, (args.size[0], args.size[1]), threads, args.repeat, _loader(args) if args.data else None,
                     pathlib.Path(args.int8) if args.int8 else None, args.against_torch)
    machine = machine_facts(_command(args), **{"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino", "onnx": "onnx"})
    rows = compare_runtimes(job, say=lambda line: print(line, flush=True))
    print("", *runtimes_table(rows), "", sep="\n")
    for row in rows:
        if "miou_failed" in row:
            print(f"{row['runtime']} {row['precision']}, mIoU: {row['miou_failed']}")
    print(f"{args.size[0]}x{args.size[1]}, {threads} thread{'s' * (threads != 1)}, {cpu_name()}, {machine['date']}")
    if args.json:
        result = {"machine": machine, "checkpoint": file.path.name, "size": list(job.size), "threads": threads,
                  "repeat": args.repeat, "data": args.data, "images": rows[0].get("images"), "rows": rows}
        write_atomically(args.json, json.dumps(result, indent=1).encode())
        print(f"wrote {args.json}")
    return int(any(row.get("failed", "").startswith("wrong") for row in rows))


def _check(args) -> None:
    """Refuse what cannot be meant before anything heavy is imported."""
    from jseg.errors import ConfigError
    wrong = [f"--{name} {value}: must be at least 1" for name in ("threads", "repeat", "images")
             for value in [getattr(args, name)] if value is not None and value < 1]
    if min(args.size) < 64:
        wrong.append(f"--size {args.size[0]} {args.size[1]}: exported files take pictures from 64x64 on")
    wrong += [f"--{name} is about the data; give --data CONFIG, too"
              for name, value in (("images", args.images), ("set", args.overrides)) if value and not args.data]
    if args.against_torch and shutil.which(args.against_torch) is None:
        wrong.append(f"--against-torch {args.against_torch}: cannot be run; give a Python that has PyTorch and "
                     "mmsegmentation 1.x, for example .venv-parity/bin/python")
    if wrong:
        raise ConfigError("\n".join(wrong))


def _loader(args):
    """The validation pictures, the first ones where fewer are asked for."""
    from jseg.config import load_config
    from jseg.data.build import build_loader, with_first_pictures
    config = load_config(args.data, args.overrides)
    if args.images is not None:
        config = with_first_pictures(config, "val", args.images)
    loader = build_loader(config, "val")
    len(loader)  # the files are looked up: a missing folder is told before minutes are spent
    return loader


def _command(args) -> str:
    """The command without the folders of this machine."""
    words = ["jseg", "benchmark", pathlib.Path(args.checkpoint).name, "--size", *map(str, args.size)]
    for name in ("data", "images", "threads"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    words += ["--repeat", str(args.repeat)]
    words += ["--int8", pathlib.Path(args.int8).name] if args.int8 else []
    return shlex.join(words + (["--against-torch", "PYTHON"] if args.against_torch else []))
