"""A prediction of the time that whole models take on a GPU, from what jseg's kernels launch, beside the same account of
PyTorch's eager operators. Nothing is measured and no GPU is needed: it tells what binds, and what a measurement has to
be held against.

The model is laid out as Jittor would run it on a GPU, but never executed; every call of jseg's CUDA kernels is recorded
and turned into launches (`gpu_launches`) and into PyTorch's operators (`gpu_rivals`). A launch takes the longest of:
memory: its bytes at the device's bandwidth; arithmetic: its multiply-adds at the float32 peak; tensor cores: its
products at the peak of their type, of which mma.sync reaches a share on the newest devices; few blocks: the last two,
or the bytes that one multiprocessor can ask for, where there are fewer blocks than multiprocessors; launch: 2
microseconds, and as much again for each barrier of the whole grid inside it. Convolutions that Jittor leaves to cuDNN
are the same on both sides; other operators of Jittor's own (random numbers, casts, sums of losses) are on neither.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from dataclasses import dataclass
from typing import Callable, Iterator

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.bench.gpu_launches import Call, Launch, launches_of
from jseg.bench.gpu_rivals import convolution, operators_of
from jseg.engine.optim import build_optimizer
from jseg.errors import ConfigError
from jseg.models import build_model
from jseg.ops import cuda_library
from jseg.registry import nearest

__all__ = ["DEVICES", "Device", "predict_as_asked", "predict_gpu", "record_calls", "time_of"]

LAUNCH_US = 2.0
SHARES = (1.0, 0.6)   # of the published peaks
REGISTERS = pathlib.Path(__file__).with_name("gpu_registers.json")


@dataclass(frozen=True)
class Device:
    """Published peaks of a GPU, without sparsity, sums in float32.

    Args:
        name: of the product.
        sms: multiprocessors.
        ghz: boost clock.
        float32, tf32, half: TFLOP/s.
        gb_s: of its memory.
        threads, shared: resident threads and bytes of shared memory of a multiprocessor.
        mma: share of the tensor cores' peak that mma.sync reaches; the rest needs instructions of one generation.
    """

    name: str
    sms: int
    ghz: float
    float32: float
    tf32: float
    half: float
    gb_s: float
    threads: int
    shared: int
    mma: float = 1.0


DEVICES = {
    "sm_80": Device("A100 40 GB", 108, 1.41, 19.5, 156, 312, 1555, 2048, 164 << 10),
    "sm_86": Device("RTX 3090", 82, 1.70, 35.6, 35.6, 71, 936, 1536, 100 << 10),
    "sm_89": Device("RTX 4090", 128, 2.52, 82.6, 82.6, 165, 1008, 1536, 100 << 10),
    "sm_90": Device("H100 SXM", 132, 1.83, 67, 495, 989, 3352, 2048, 228 << 10, 0.62),
    "sm_100": Device("B200", 148, 1.85, 75, 1100, 2250, 8000, 2048, 228 << 10, 0.3),
    "sm_120": Device("RTX 5090", 170, 2.41, 104.8, 104.8, 209.5, 1792, 1536, 100 << 10),
}


# ---- what a model calls ----------------------------------------------------------------------------------------------
class _Recorder:
    """Stands in for `cuda_op`; results are zeros that nobody computes."""

    def __init__(self, mixed: bool):
        self.calls: list[Call] = []
        self.convolutions: list[tuple] = []   # maps in, maps out, weights, multiply-adds, whether it is the first
        self.mixed = mixed

    def __call__(self, symbol: str, inputs: list, outputs: list, scalars: list = ()) -> list:
        tensors = [None if v is None else (tuple(v.shape), str(v.dtype)) for v in inputs]
        results = [(tuple(shape), str(dtype)) for shape, dtype in outputs]
        self.calls.append(Call(symbol, tensors, results, list(scalars)))
        return [jt.zeros(shape, dtype) for shape, dtype in results]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let jseg's kernels, and convolutions, come here."""
        places = {(cuda_library, "cuda_op"): self, (cuda_library, "ready"): lambda: True,
                  (nn, "conv2d"): lambda x, weight, *args, **words: self._convolve(x, weight, args, words)}
        before = {(owner, name): getattr(owner, name) for owner, name in places}
        self._conv2d = before[nn, "conv2d"]
        try:
            for (owner, name), stand_in in places.items():
                setattr(owner, name, stand_in)
            with ops.use("cuda"):
                yield
        finally:
            for (owner, name), original in before.items():
                setattr(owner, name, original)

    def _convolve(self, x, weight, args, words):
        result = self._conv2d(x, weight, *args, **words)
        result = result.float16() if self.mixed else result   # as on a GPU, where convolutions start the mixed part
        adds = result.numel() * weight.numel() // weight.shape[0]
        self.convolutions.append((x.numel(), result.numel(), weight.numel(), adds, x.shape[1] == 3))
        return result


def record_calls(config: dict, mode: str, size: tuple[int, int], batch: int, mixed: bool) -> tuple[list, list]:
    """The kernels' calls of one inference or training step, and the convolutions that are left to cuDNN.

    Args:
        config: a whole config.
        mode: "infer" or "train".
        size: (H, W) of the pictures.
        mixed: half-precision maps, as `train_cfg.amp` has them.
    """
    model, recorder = build_model({**config, "model": {**config["model"], "impl": "cuda"}}), _Recorder(mixed)
    images = (batch, 3, *size)
    with jt.flag_scope(lazy_execution=1, auto_mixed_precision_level=3 if mixed else 0), recorder.listening():
        if mode == "infer":
            model.eval()
            with jt.no_grad():
                logits = model(jt.zeros(images))
                ops.readout(logits, size)
        else:
            model.train()
            optimizer = build_optimizer(model, config["optimizer"], config.get("paramwise_cfg"))
            optimizer.accumulate(model.loss(jt.zeros(images), jt.zeros((batch, *size), "int32"))["loss"])
            optimizer.step(optimizer.lrs)
    return [_in_half(call) if mixed else call for call in recorder.calls], recorder.convolutions


def _in_half(call: Call) -> Call:
    """The same call on half-precision maps, wherever the trace left float32: at inference norms widen them."""
    if call.symbol == "jseg_adamw_run":
        return call
    (shape, dtype), *rest = call.inputs
    return Call(call.symbol, [(shape, "float16" if dtype == "float32" else dtype), *rest], call.outputs, call.scalars)


# ---- how long that takes ---------------------------------------------------------------------------------------------
def time_of(launch: Launch, device: Device, share: float = 1.0, *, mma: bool = True) -> tuple[float, str]:
    """Microseconds of one launch, and the bound that binds.

    Args:
        share: of the device's peaks that is reached.
        mma: whether its products are by mma.sync.
    """
    spread = min(1.0, launch.blocks / device.sms)
    tensor = {"": 1.0, "tf32": device.tf32, "half": device.half}[launch.rounded] * (device.mma if mma else 1.0)
    arithmetic, products = 2 * launch.adds / device.float32 / 1e6, 2 * launch.products / tensor / 1e6
    memory = launch.size / device.gb_s / 1e3
    few = max(arithmetic, products) / spread
    few = max(few, launch.size / (spread * device.sms * 64 * device.ghz) / 1e3) if spread < 1 else 0.0
    bounds = {"memory": memory / share, "arithmetic": arithmetic / share, "tensor cores": products / share,
              "few blocks": few / share, "launch": LAUNCH_US * launch.stretches}
    bound = max(bounds, key=bounds.get)
    if bound == "few blocks" and few <= max(memory, arithmetic, products):
        bound = "memory"
    return bounds[bound], bound


def limit_of(launch: Launch, device: Device) -> float:
    """Microseconds that the device's peaks allow at best: bytes or operations, no launch, all multiprocessors busy."""
    tensor = {"": 1.0, "tf32": device.tf32, "half": device.half}[launch.rounded]
    return max(launch.size / device.gb_s / 1e3, 2 * launch.adds / device.float32 / 1e6,
               2 * launch.products / tensor / 1e6)


def occupancy(launch: Launch, device: Device, registers: dict) -> float | None:
    """Share of a multiprocessor's threads that are resident, or None where the compiler was not asked."""
    found = registers.get(launch.kernel)
    if found is None:
        return None
    used, shared = found
    blocks = min(32, device.threads // launch.threads, 65536 // (-(-used // 8) * 8 * launch.threads),
                 device.shared // (shared + 1024))
    return blocks * launch.threads / device.threads


def account(launches: list[Launch], device: Device, registers: dict, *, mma: bool) -> list[dict]:
    """A row for each kernel or operator, the longest first."""
    rows: dict[str, dict] = {}
    for launch in launches:
        row = rows.setdefault(launch.kernel, {"kernel": launch.kernel, "launches": 0, "bytes": 0.0, "adds": 0.0,
                                              "products": 0.0, "us": 0.0, "us_at_60": 0.0, "limit_us": 0.0,
                                              "occupancy": occupancy(launch, device, registers), "bounds": {}})
        (us, bound), (us_at_60, _) = (time_of(launch, device, share, mma=mma) for share in SHARES)
        for key, more in (("launches", 1), ("bytes", launch.size), ("adds", launch.adds), ("us", us),
                          ("products", launch.products), ("us_at_60", us_at_60),
                          ("limit_us", limit_of(launch, device))):
            row[key] += more
        row["bounds"][bound] = row["bounds"].get(bound, 0.0) + us
    for row in rows.values():
        row["bound"] = max(row["bounds"], key=row["bounds"].get)
    return sorted(rows.values(), key=lambda row: -row["us"])


def predict_gpu(arch: str, configs: dict[str, dict], *, sizes: list, batches: list, modes: list,
                say: Callable[[str], None] = print) -> dict:
    """Print the tables of a device and return them.

    Args:
        arch: a key of `DEVICES`.
        configs: name -> whole config.
        sizes: (H, W) of pictures.
        batches: pictures at once.
        modes: of "infer" and "train".
    """
    device = DEVICES[arch]
    registers = json.loads(REGISTERS.read_text()).get(arch, {})
    say(f"PREDICTION for {device.name} ({arch}): {device.float32:g} TFLOP/s float32, {device.tf32:g} TF32, "
        f"{device.half:g} half precision, {device.gb_s:g} GB/s; mma.sync at {device.mma:.0%} of the tensor "
        "cores. Nothing here was measured.\n")
    found = []
    for name, config in configs.items():
        for size in sizes:
            for mode in modes:
                for batch in batches:
                    for mixed in (False, True):
                        found.append(_predict_one(device, registers, name, config, tuple(size), mode, batch, mixed))
                        _print_one(found[-1], say)
    _print_totals(found, device, say)
    return {"arch": arch, "device": device.name, "prediction": True, "models": found}


def predict_as_asked(args) -> dict:
    """`predict_gpu` by the words of `jseg bench --gpu-model`.

    Raises:
        ConfigError: a device that is not known.
    """
    from jseg.bench.gpu import settings
    from jseg.config import load_config

    if args.gpu_model not in DEVICES:
        raise ConfigError(f"--gpu-model {args.gpu_model}: not a device of the table{nearest(args.gpu_model, DEVICES)}; "
                          f"accepted: {', '.join(DEVICES)}")
    configs = {pathlib.Path(path).stem: load_config(path, args.overrides) for path in args.model}
    configs = configs or {"SegNeXt-T": settings("tiny"), "SegNeXt-B": settings("base")}
    return predict_gpu(args.gpu_model, configs, sizes=args.size or [(512, 512)], batches=args.batch or [1, 16],
                       modes=args.mode or ["infer", "train"])


def _predict_one(device, registers, name, config, size, mode, batch, mixed) -> dict:
    calls, convolutions = record_calls(config, mode, size, batch, mixed)
    ours = [launch for call in calls for launch in launches_of(call)]
    theirs = [one for call in calls for one in operators_of(call)]
    item = 2 if mixed else 4
    for maps_in, maps_out, weights, adds, first in convolutions:
        for backward in (False, True)[:1 + (mode == "train")]:
            theirs += convolution(item, maps_in, maps_out, weights, adds, backward=backward, first=first)
    shared = [one for one in theirs[len(theirs) - _count_shared(convolutions, mode):]]
    rows = account(ours, device, registers, mma=True) + account(
        [Launch(f"cuDNN: {one.kernel}", one.blocks, one.threads, one.size, one.adds, one.products, one.rounded)
         for one in shared], device, registers, mma=False)
    return {"model": name, "mode": mode, "size": size, "batch": batch, "precision": "half" if mixed else "TF32",
            "jseg": rows, "torch": account(theirs, device, {}, mma=False)}


def _count_shared(convolutions: list, mode: str) -> int:
    """Operators that `convolution` makes of these: 2 forward, and 3 or, without an input gradient, 2 back."""
    return sum(2 + (mode == "train") * (2 if first else 3) for *_, first in convolutions)


def _sum(rows: list[dict], key: str) -> float:
    return sum(row[key] for row in rows)


def _print_one(found: dict, say: Callable[[str], None]) -> None:
    say(f"### {found['model']}, {'inference' if found['mode'] == 'infer' else 'training step'}, {found['batch']} x "
        f"{found['size'][0]}x{found['size'][1]}, {found['precision']}: predicted\n")
    for side, title in (("jseg", "kernel"), ("torch", "PyTorch operator")):
        say(f"| {title} | launches | MB | G multiply-adds | G on tensor cores | occupancy | bound | us at peak | "
            "us at 60 % |")
        say("|---|---|---|---|---|---|---|---|---|")
        for row in found[side]:
            filled = "-" if row["occupancy"] is None else f"{row['occupancy']:.0%}"
            say(f"| {row['kernel']} | {row['launches']} | {row['bytes'] / 1e6:.1f} | {row['adds'] / 1e9:.2f} | "
                f"{row['products'] / 1e9:.2f} | {filled} | {row['bound']} | {row['us']:.0f} | {row['us_at_60']:.0f} |")
        rows = found[side]
        say(f"| **sum** | {_sum(rows, 'launches')} | {_sum(rows, 'bytes') / 1e6:.0f} | "
            f"{_sum(rows, 'adds') / 1e9:.1f} | {_sum(rows, 'products') / 1e9:.1f} | | | "
            f"{_sum(rows, 'us'):.0f} | {_sum(rows, 'us_at_60'):.0f} |\n")


def _print_totals(found: list[dict], device: Device, say: Callable[[str], None]) -> None:
    say(f"### Predicted for {device.name}: whole models, nothing measured\n")
    say("| model | mode | batch | precision | launches | us at peak | us at 60 % | over the limits | PyTorch: "
        "launches | us at peak | us at 60 % | ratio at 60 % |")
    say("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for one in found:
        ours, theirs = one["jseg"], one["torch"]
        say(f"| {one['model']} | {one['mode']} | {one['batch']} | {one['precision']} | {_sum(ours, 'launches')} | "
            f"{_sum(ours, 'us'):.0f} | {_sum(ours, 'us_at_60'):.0f} | "
            f"{_sum(ours, 'us') / _sum(ours, 'limit_us'):.2f} | {_sum(theirs, 'launches')} | "
            f"{_sum(theirs, 'us'):.0f} | {_sum(theirs, 'us_at_60'):.0f} | "
            f"{_sum(theirs, 'us_at_60') / _sum(ours, 'us_at_60'):.2f} |")
    say("\nratio: PyTorch's predicted time over jseg's. over the limits: jseg's time at the peaks over the sum of what "
        "its bytes and operations need with every multiprocessor busy and launches free.")
