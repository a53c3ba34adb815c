"""Time jseg's own kernels and models, random weights, against the plain path and PyTorch.

For developing jseg; one checkpoint over jseg, ONNX Runtime, OpenVINO and PyTorch is `jseg benchmark`.

Every result is compared before anything is timed. Sides run in turn (A B A B), each in a process of its own, so its
peak memory is its own too; figures are medians with quartiles. Whole models are measured for inference (pictures in
memory to label maps in memory) and for a training step with the config's optimizer. `--against-torch PYTHON` names a
Python that has PyTorch and mmsegmentation; it runs with default settings and tuned (glibc keeps freed memory,
channels-last tensors). `--gpu` is one command for a machine with a GPU: under 8 minutes for everything it can tell; it
exits with 2 where there is none.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import shlex

EXAMPLE = ("jseg bench --kernels --model configs/segnext/segnext_tiny_ade20k-512x512_160k.yaml --threads 2 "
           "--against-torch .venv-parity/bin/python --baseline jittor --cold --json bench.json --markdown "
           "docs/performance.md")


def add_arguments(parser) -> None:
    """Options of `jseg bench`."""
    parser.add_argument("--kernels", nargs="*", metavar="NAME",
                        help="the kernel table; with NAMEs only these kernels, or those that have one in their name")
    parser.add_argument("--model", nargs="+", default=[], metavar="CONFIG",
                        help="whole models of these config files or shipped configs")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="override one value of every config")
    parser.add_argument("--size", nargs=2, type=int, action="append", metavar=("H", "W"),
                        help="picture size in pixels; may be given many times (default: 512 512)")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N",
                        help="pictures at once (default: 1 for inference, 2 for training)")
    parser.add_argument("--mode", nargs="+", choices=("infer", "train"), default=["infer", "train"],
                        help="what of whole models (default: both)")
    parser.add_argument("--threads", nargs="+", type=int, default=[None], metavar="N",
                        help="processor threads (default: as the environment says)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds of A B A B (default: %(default)s)")
    parser.add_argument("--against-torch", metavar="PYTHON", help="also run PyTorch under this Python")
    parser.add_argument("--baseline", choices=("jittor", "none"),
                        help="jittor: also run the plain layer-by-layer path, none: never run it (default: with "
                             "kernels only)")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall",
                        help="of kernels: wall time, or the processor time of all threads, which other work on the "
                             "machine disturbs less (default: %(default)s)")
    parser.add_argument("--cold", action="store_true",
                        help="also time the first run with nothing compiled but Jittor's core")
    parser.add_argument("--gpu", action="store_true",
                        help="everything a machine with a GPU can tell, in under 8 minutes")
    parser.add_argument("--gpu-model", nargs="?", const="sm_90", metavar="ARCH",
                        help="predict, without a GPU, what each kernel of SegNeXt-T and -B, or of --model, takes on "
                             "one: sm_80, sm_86, sm_89, sm_90, sm_100 or sm_120 (default: sm_90)")
    parser.add_argument("--json", metavar="OUT", help="write all results; rewritten as they come")
    parser.add_argument("--markdown", metavar="OUT", help="write the page")
    parser.add_argument("--add", nargs="+", default=[], metavar="JSON",
                        help="put the rows of earlier runs on the page, too")


def run(args) -> int:
    """Measure what was asked for; 0, or 1 when results differed or a kernel failed its check."""
    from jseg.bench.machine import machine_facts
    from jseg.bench.page import add_results, page
    from jseg.errors import ConfigError
    from jseg.files import write_atomically

    _check(args)
    earlier = [_read(path) for path in args.add]
    machine = machine_facts(shlex.join(["jseg", "bench", *_words(args)]))
    results = {"machine": machine, "models": [], "cold": [], "kernels": []}

    def keep() -> None:
        if args.json:
            write_atomically(args.json, json.dumps(results, indent=1).encode())

    if args.gpu_model:
        from jseg.bench.gpu_model import predict_as_asked
        results["gpu_model"] = predict_as_asked(args)
    elif args.gpu:
        from jseg.bench.gpu import measure_gpu
        measure_gpu(results, torch=args.against_torch, keep=keep)
    elif args.kernels is not None or args.model:
        _measure(args, results, keep)
    elif not earlier:
        raise ConfigError(
            "nothing to measure: give --kernels, --model CONFIG, --gpu, or --add JSON with --markdown OUT")
    keep()
    if args.markdown:
        measured = bool(args.gpu or args.kernels is not None or args.model)
        whole = {**results, "machine": results["machine"] if measured else earlier[-1]["machine"],
                 "commands": [found["machine"]["command"] for found in earlier]
                 + [results["machine"]["command"]] * measured}
        for found in reversed(earlier):
            add_results(whole, found)
        write_atomically(args.markdown, page(whole).encode())
        print(f"wrote {args.markdown}")
    return 1 if _failures(results) else 0


def _measure(args, results: dict, keep) -> None:
    from jseg.bench.cold import measure_cold
    from jseg.bench.kernels import measure_kernels
    from jseg.bench.limits import machine_limits
    from jseg.bench.models import Measurement, measure_model, rivals
    from jseg.bench.side import SideError
    from jseg.config import load_config

    configs = {pathlib.Path(path).stem: load_config(path, args.overrides) for path in args.model}
    others = rivals(torch=args.against_torch, jittor=args.baseline == "jittor")
    for (name, config), threads, size, mode in itertools.product(configs.items(), args.threads,
                                                                 args.size or [[512, 512]], args.mode):
        for batch in args.batch or [1 if mode == "infer" else 2]:
            job = Measurement(config, name, mode, (size[0], size[1]), batch, threads)
            try:
                results["models"].append(measure_model(job, others, repeat=args.repeat, say=_say))
                keep()
                if args.cold:
                    results["cold"].append(measure_cold(job, say=_say))
            except SideError as error:  # too large for this machine, say: the others are measured all the same
                _say(f"  {error}")
                results["models"].append({"title": job.title, "failed": str(error), "others": {}})
            keep()
    if args.kernels is None:
        return
    for threads in args.threads:
        limits = machine_limits(threads)
        _say(f"this machine: copy {limits['copy_gb_s']:.1f} GB/s, float32 matrix product {limits['sgemm_gflop_s']:.0f} "
             "GFLOP/s")
        found = measure_kernels(impl="cpu", limits=limits, repeat=args.repeat, torch=args.against_torch,
                                threads=threads, only=args.kernels, plain=args.baseline != "none", clock=args.clock,
                                say=_say)
        results["kernels"].append(found)
        keep()


def _say(line: str) -> None:
    print(line, flush=True)


def _check(args) -> None:
    """Refuse numbers that mean nothing, and a side that is not here, before minutes are spent."""
    from jseg.bench.side import torch_command
    from jseg.errors import ConfigError

    wrong = [f"--size {h} {w}: height and width must be at least 1" for h, w in args.size or [] if min(h, w) < 1]
    numbers = {"--batch": args.batch or [], "--threads": args.threads, "--repeat": [args.repeat]}
    wrong += [f"{word} {value}: must be at least 1" for word, values in numbers.items()
              for value in values if value is not None and value < 1]
    if args.cold and not args.model:
        wrong.append("--cold: times the first run of a model; give --model CONFIG")
    if args.gpu and (args.model or args.kernels is not None or args.cold):
        wrong.append("--gpu: decides itself what to measure; leave out --model, --kernels and --cold")
    if wrong:
        raise ConfigError("\n".join(wrong))
    if args.against_torch:
        torch_command(args.against_torch)


def _read(path: str) -> dict:
    from jseg.errors import DataError

    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        found["machine"]["date"]
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a result of `jseg bench --json` ({error})") from error


def _words(args) -> list[str]:
    """The words that say what is measured, without the folders of this machine."""
    words = []
    for name, value in vars(args).items():
        option = "--" + {"overrides": "set"}.get(name, name.replace("_", "-"))
        if name in ("run", "json", "markdown", "add") or value in (None, [], False, [None]):
            continue
        if name == "against_torch":
            words += [option, "PYTHON"]
        elif name in ("size", "overrides"):
            words += [word for one in value for word in (option, *(map(str, one) if name == "size" else [one]))]
        else:
            words += [option, *([] if value is True
                                or value == "" else map(str, value if isinstance(value, list) else [value]))]
    return words


def _failures(results: dict) -> list[str]:
    """What did not do what it should: kernels that failed their check,
    measurements of jseg that failed, sides whose results differ.
    """
    found = [f"{kernel}: {line}" for part in results["kernels"] for kernel, checked in part["checks"].items()
             for line in [*checked.get("failures", []), *([checked["failed"]] if "failed" in checked else [])]]
    rows = results["models"] + [row for part in results["kernels"] for row in part["rows"]]
    found += [row["failed"] for row in rows if "failed" in row]
    found += [other["failed"] for row in rows for other in row["others"].values()
              if other.get("failed", "").startswith("results differ")]
    return found
