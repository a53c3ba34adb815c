"""Time jseg's own kernels and models, random weights, against the plain path and PyTorch.

For developing jseg; one checkpoint over jseg, ONNX Runtime, OpenVINO and PyTorch is `jseg benchmark`.

Every result is compared before anything is timed. Sides run in turn (A B A B), each in a process of its own, so its
peak memory is its own too; figures are medians with quartiles. Whole models are measured for inference (pictures in
memory to label maps in memory) and for a training step with the config's optimizer, with any config. `--against`
chooses the opponents: torch (MMSegmentation's model under PyTorch, with default settings and tuned: glibc keeps freed
memory, channels-last tensors), compile (torch.compile, frozen weights), onnxruntime, openvino and openvino-bf16 (jseg's
own ONNX file). `--against-torch PYTHON` names the Python that has PyTorch and mmsegmentation; alone, it stands for
`--against torch`. `--zoo` times one model of each family; with `--json FILE --resume` it goes on where it stopped.
`--gpu` is one command for a machine with a GPU: under 8 minutes for everything it can tell; it exits with 2 where there
is none.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import shlex

EXAMPLE = ("jseg bench --kernels --model configs/segnext/segnext_tiny_ade20k-512x512_160k.yaml --threads 2 "
           "--against-torch .venv-parity/bin/python --baseline jittor --cold --json bench.json --markdown page.md")


def add_arguments(parser) -> None:
    """Options of `jseg bench`."""
    parser.add_argument("--kernels", nargs="*", metavar="NAME",
                        help="the kernel table; with NAMEs only these kernels, or those that have one in their name")
    parser.add_argument("--model", nargs="+", default=[], metavar="CONFIG",
                        help="whole models of these config files or shipped configs")
    parser.add_argument("--zoo", nargs="*", metavar="MODEL",
                        help="one model of each family; with MODELs only these (names of the table, or families)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="override one value of every config")
    parser.add_argument("--size", nargs=2, type=int, action="append", metavar=("H", "W"),
                        help="picture size in pixels; may be given many times (default: 512 512; of --zoo: as its list "
                             "says)")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N",
                        help="pictures at once (default: 1 for inference, 2 for training)")
    parser.add_argument("--mode", nargs="+", choices=("infer", "train"),
                        help="what of whole models (default: both; of --zoo: infer)")
    parser.add_argument("--threads", nargs="+", type=int, default=[None], metavar="N",
                        help="processor threads (default: as the environment says)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds of A B A B (default: %(default)s)")
    parser.add_argument("--against", metavar="NAME,...",
                        help="opponents of whole models: torch, compile, onnxruntime, openvino, openvino-bf16")
    parser.add_argument("--against-torch", metavar="PYTHON",
                        help="the Python of torch and compile; without --against: also run PyTorch under it")
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
    parser.add_argument("--resume", action="store_true",
                        help="keep the rows of whole models that the file of --json has, and measure the others")
    parser.add_argument("--markdown", metavar="OUT", help="write the page")
    parser.add_argument("--tables", metavar="PAGE",
                        help="put the tables of --zoo into this page, between the lines <!-- zoo --> and <!-- end of "
                             "zoo -->")
    parser.add_argument("--add", nargs="+", default=[], metavar="JSON",
                        help="put the rows of earlier runs on the page, too")


def run(args) -> int:
    """Measure what was asked for; 0, or 1 when results differed or a kernel failed its check."""
    from jseg.bench.machine import machine_facts
    from jseg.bench.page import add_results, page
    from jseg.bench.zoo_page import write_tables
    from jseg.errors import ConfigError
    from jseg.files import write_atomically

    _check(args)
    earlier = [_read(path) for path in args.add]
    machine = machine_facts(shlex.join(["jseg", "bench", *_words(args)]))
    results = {"machine": machine, "models": [], "zoo": [], "cold": [], "kernels": []}
    if args.resume and pathlib.Path(args.json).exists():
        before = _read(args.json)
        add_results(results, before)
        results["commands"] = list(dict.fromkeys([*_commands(before), machine["command"]]))
    measured = bool(args.gpu or args.kernels is not None or args.model or args.zoo is not None)

    def keep() -> None:
        if args.json:
            write_atomically(args.json, json.dumps(results, indent=1).encode())

    if args.gpu_model:
        from jseg.bench.gpu_model import predict_as_asked
        results["gpu_model"] = predict_as_asked(args)
    elif args.gpu:
        from jseg.bench.gpu import measure_gpu
        measure_gpu(results, torch=args.against_torch, keep=keep)
    elif measured:
        _measure(args, results, keep)
    elif not earlier:
        raise ConfigError("nothing to measure: give --kernels, --model CONFIG, --zoo, --gpu, or --add JSON with "
                          "--markdown OUT or --tables PAGE")
    keep()
    whole = {**results, "machine": earlier[-1]["machine"] if earlier and not measured else results["machine"],
             "commands": [command for found in (*earlier, *[results] * measured) for command in _commands(found)]}
    for found in reversed(earlier):
        add_results(whole, found)
    if args.markdown:
        write_atomically(args.markdown, page(whole).encode())
        print(f"wrote {args.markdown}")
    if args.tables:
        write_tables(args.tables, whole)
        print(f"wrote the tables of {args.tables}")
    return 1 if _failures(results) else 0


def _measure(args, results: dict, keep) -> None:
    from jseg.bench.kernels import measure_kernels
    from jseg.bench.limits import machine_limits

    if args.model or args.zoo is not None:
        _measure_models(args, results, keep)
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


def _measure_models(args, results: dict, keep) -> None:
    """Rows of "models" and "zoo", one after the other; what an earlier run measured already is left as it is."""
    from jseg.bench.cold import measure_cold
    from jseg.bench.models import measure_model
    from jseg.bench.side import SideError
    from jseg.bench.zoo import still_open

    rivals, jobs = _rivals(args), _jobs(args)
    for number, (key, job) in enumerate(jobs, 1):
        rows = results[key]
        place = next((i for i, row in enumerate(rows) if row["title"] == job.title), len(rows))
        earlier = rows[place] if place < len(rows) else None
        others = still_open(earlier, rivals)
        if others is None:
            continue
        try:
            _say(f"[{number} of {len(jobs)}]")
            row = measure_model(job, others, repeat=args.repeat, say=_say)
            row["others"] = {**(earlier or {}).get("others", {}), **row["others"]}
            if args.cold:
                results["cold"].append(measure_cold(job, say=_say))
        except SideError as error:  # too large for this machine, say: the others are measured all the same
            _say(f"  {error}")
            row = {"title": job.title, "mode": job.mode, "threads": job.threads, "batch": job.batch,
                   "size": list(job.size), "failed": str(error), "others": {}}
        rows[place:place + 1] = [{**row, "name": job.name}]
        keep()


def _rivals(args) -> list:
    from jseg.bench.opponents import opponent_names, rivals
    names = opponent_names(args.against) if args.against is not None else ["torch"] * bool(args.against_torch)
    return rivals(names, torch=args.against_torch, jittor=args.baseline == "jittor")


def _jobs(args) -> list[tuple]:
    """(key of the results, what to measure) of every row."""
    from jseg.bench.models import Measurement
    from jseg.bench.zoo import chosen_models, zoo_measurement
    from jseg.config import load_config

    jobs = []
    configs = {pathlib.Path(path).stem: load_config(path, args.overrides) for path in args.model}
    for (name, config), threads, size, mode in itertools.product(
            configs.items(), args.threads, args.size or [[512, 512]], args.mode or ["infer", "train"]):
        for batch in args.batch or [1 if mode == "infer" else 2]:
            jobs.append(("models", Measurement(config, name, mode, (size[0], size[1]), batch, threads)))
    models = [] if args.zoo is None else chosen_models(args.zoo)
    for mode, threads, size, batch, one in itertools.product(args.mode or ["infer"], args.threads, args.size or [None],
                                                             args.batch or [None], models):
        jobs.append(("zoo", zoo_measurement(one, mode, threads, size, batch)))
    return jobs


def _commands(results: dict) -> list[str]:
    """What measured some results, in one run or several."""
    return results.get("commands") or [results["machine"]["command"]]


def _say(line: str) -> None:
    print(line, flush=True)


def _check(args) -> None:
    """Refuse numbers that mean nothing, and a side that is not here, before minutes are spent."""
    from jseg.bench.side import torch_command
    from jseg.bench.zoo import chosen_models
    from jseg.bench.zoo_page import check_marks
    from jseg.errors import ConfigError

    wrong = [f"--size {h} {w}: height and width must be at least 1" for h, w in args.size or [] if min(h, w) < 1]
    numbers = {"--batch": args.batch or [], "--threads": args.threads, "--repeat": [args.repeat]}
    wrong += [f"{word} {value}: must be at least 1" for word, values in numbers.items()
              for value in values if value is not None and value < 1]
    if args.cold and not args.model:
        wrong.append("--cold: times the first run of a model; give --model CONFIG")
    if args.gpu and (args.model or args.kernels is not None or args.cold or args.zoo is not None or args.against):
        wrong.append("--gpu: decides itself what to measure; leave out --model, --zoo, --kernels, --against and --cold")
    if args.against is not None and not (args.model or args.zoo is not None):
        wrong.append("--against: opponents of whole models; give --model CONFIG or --zoo")
    if args.resume and not args.json:
        wrong.append("--resume: goes on with the file of --json; give --json FILE")
    if wrong:
        raise ConfigError("\n".join(wrong))
    if args.tables:
        check_marks(args.tables)
    if args.against_torch:
        torch_command(args.against_torch)
    _rivals(args)
    if args.zoo:
        chosen_models(args.zoo)


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
        if name in ("kernels", "zoo") and value == []:
            words.append(option)
        if (name in ("run", "json", "markdown", "add", "resume", "tables") or value in (None, [], False, [None])
                or (name, value) == ("clock", "wall")):
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
    rows = results["models"] + results.get("zoo", []) + [row for part in results["kernels"] for row in part["rows"]]
    found += [row["failed"] for row in rows if "failed" in row]
    found += [other["failed"] for row in rows for other in row["others"].values()
              if other.get("failed", "").startswith("results differ")]
    return found
