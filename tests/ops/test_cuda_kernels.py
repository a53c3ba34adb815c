"""The CUDA kernels on the CPU, under the emulator of cuda_emu.h: results, faults that must be caught, launch geometry.

Each kernel runs through its own op.py with impl="cuda"; only the last step, the call of the device, is the emulator.
Every tensor lies between guard zones. No GPU, nvcc or CUDA header is needed.
"""

from __future__ import annotations

import importlib
import re
import types

import jittor as jt
import numpy as np
import pytest

from jseg import ops
from jseg.bench import kernel_tasks
from jseg.ops import common, cuda_library
import cuda_emulator as emulation

pytestmark = pytest.mark.usefixtures("few_kernels")
KERNELS = cuda_library.cuda_kernels()
HALF = {"float16": 2 ** -11, "bfloat16": 2 ** -8}                     # rounding of one value
PLANES = [(1, 1), (1, 37), (23, 1), (16, 16), (17, 32), (33, 33), (128, 128), (512, 512), (1024, 2048)]
TENSOR = cuda_library.WITH_PRODUCTS
SMALL_MIX = "#define JSEG_HIDDEN_BYTES 40000\n"                        # so that images go in groups


def _cases(kernel):
    return importlib.import_module(f"jseg.ops.{kernel}.cases")


def _work(case) -> int:
    """Elements of the largest tensor, roughly; the emulator runs about a million threads per second."""
    inputs = _inputs(case.kernel, case)
    area = np.prod(case.options.get("out", (1, 1))) if isinstance(case.options.get("out"), tuple) else 1
    hidden = case.options.get("hidden", 1) * np.prod(case.options.get("size", (1, 1))) * case.options.get("n", 1)
    return int(max([v.size for v in inputs.values() if isinstance(v, np.ndarray)] + [area, hidden]))


def _inputs(kernel, case, dtype="float32"):
    """Arguments in float64, rounded to what the kernel gets: maps to `dtype`, parameters to float32."""
    inputs = _cases(kernel).make(case, np.random.default_rng(7))
    return {k: _round(v, dtype if _is_map(k, v) else "float32") if isinstance(v, np.ndarray) and v.dtype.kind == "f"
            else v for k, v in inputs.items()}


def _is_map(name, value) -> bool:
    return name in ("x", "logits", "gate", "residual", "shortcut", "q", "k", "v", "query", "key", "value")


def _round(values, dtype):
    values = np.asarray(values, np.float32)
    if dtype == "float16":
        values = values.astype(np.float16)
    elif dtype == "bfloat16":
        values = (emulation.to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def _small(kernel):
    for case in _cases(kernel).CASES:
        object.__setattr__(case, "kernel", kernel)
    return [case for case in _cases(kernel).CASES if not case.bench and (_work(case) <= 20000)]


def _typical(kernel):
    """The small cases named "odd" or "..._odd", or else the second."""
    return [case for case in _small(kernel) if case.name.split("_")[-1] == "odd"] or _small(kernel)[1:2]


TYPICAL = [pytest.param(kernel, case, id=f"{kernel}-{case.name}") for kernel in KERNELS for case in _typical(kernel)]
PAIRS = [pytest.param(kernel, case, id=f"{kernel}-{case.name}") for kernel in KERNELS for case in _small(kernel)]
_libraries: dict = {}


def _source(kernel):
    return (SMALL_MIX if kernel == "mix_ffn" else "") + f'#include "{emulation.OPS / kernel / "cuda.cuh"}"\n'


def _library(kernel):
    if kernel not in _libraries:
        _libraries[kernel] = emulation.build(kernel, source=_source(kernel))
    return _libraries[kernel]


@pytest.fixture(scope="module", autouse=True)
def libraries(request):
    """What the chosen tests will ask for is built beside them, on the other processors."""
    chosen = [item.callspec.params for item in request.session.items
              if item.path == request.path and hasattr(item, "callspec")]
    sources = [(words["kernel"], _source(words["kernel"])) for words in chosen if "kernel" in words]
    sources += [(FAULTS[words["fault"]][0], _faulty(words["fault"])) for words in chosen if "fault" in words]
    sources += [(BARRIERS[words["file"]][0], "".join(_parted(**words))) for words in chosen if "file" in words]
    with emulation.building(list(dict.fromkeys(sources))):
        yield


@pytest.fixture
def emulate(monkeypatch):
    """A function that makes impl="cuda" run on an emulator."""
    def use(emulator):
        monkeypatch.setattr(cuda_library, "ready", lambda: True)
        monkeypatch.setattr(cuda_library, "cuda_op", emulator)
        return emulator
    return use


def _vars(inputs, dtype="float32"):
    def convert(name, v):
        if not isinstance(v, np.ndarray):
            return v
        if v.dtype.kind != "f":
            return jt.array(np.ascontiguousarray(v.astype(np.int32)))
        return emulation.loaded(v, dtype if _is_map(name, v) else "float32")
    return {k: convert(k, v) for k, v in inputs.items()}


def _run(kernel, case, impl="cuda", dtype="float32"):
    """name -> array: outputs out0, out1... and gradients d<input> of sum(dout * out0)."""
    cases, inputs = _cases(kernel), _inputs(kernel, case, dtype)
    tensors = _vars(inputs, dtype)
    outs = cases.call(tensors, impl)
    outs = list(outs) if isinstance(outs, (tuple, list)) else [outs]
    results = {f"out{i}": emulation.values(out) for i, out in enumerate(outs)}
    names = _grad_names(cases, inputs)
    if names:
        slope = emulation.loaded(_dout(results["out0"], dtype).reshape(outs[0].shape), str(outs[0].dtype))
        grads = kernel_tasks.gradients(outs[0], slope, [tensors[name] for name in names])
        results.update((f"d{name}", emulation.values(g)) for name, g in zip(names, grads))
    return results


def _grad_names(cases, inputs):
    return [name for name in getattr(cases, "GRADS", []) if isinstance(inputs.get(name), np.ndarray)]


def _dout(out, dtype):
    return _round(np.random.default_rng(11).standard_normal(np.shape(out)), dtype)


def _expected(kernel, case, dtype="float32", products=None):
    """By the reference; `products`: with matrix products as plain as tensor cores take them."""
    reference, inputs = importlib.import_module(f"jseg.ops.{kernel}.reference"), _inputs(kernel, case, dtype)
    if products:
        inputs = {name: emulation.plain_products(value, products) if isinstance(value, np.ndarray)
                  and value.dtype == np.float64 else value for name, value in inputs.items()}
    outs = reference.forward(**inputs)
    outs = list(outs) if isinstance(outs, tuple) else [outs]
    results = {f"out{i}": np.asarray(out) for i, out in enumerate(outs)}
    names = _grad_names(_cases(kernel), inputs)
    if names:
        grads = reference.backward(_dout(outs[0], dtype).reshape(np.shape(outs[0])), **inputs)
        results.update((f"d{name}", grads[name]) for name in names)
    return results


def _error(got, want):
    difference = np.abs(np.asarray(got, np.float64).reshape(np.shape(want)) - want)
    return float(np.where(np.isnan(difference), np.inf, difference).max()) / max(float(np.abs(want).max()), 1e-30)


def _wrong(kernel, case, floor, dtype="float32"):
    """{name: error} of the results beyond the floor."""
    got, want = _run(kernel, case, dtype=dtype), _expected(kernel, case, dtype)
    assert set(got) == set(want)
    return {name: _error(got[name], want[name]) for name in want if not _error(got[name], want[name]) <= floor}


@pytest.mark.parametrize("kernel, case", PAIRS)
def test_forward_and_gradients_match_the_reference(kernel, case, emulate):
    emulate(emulation.Emulator(_library(kernel)))
    floor = _cases(kernel).FLOOR
    wrong = _wrong(kernel, case, floor)
    if wrong:   # the plain path may be as far off: at most twice its error
        plain, want = _run(kernel, case, "jittor"), _expected(kernel, case)
        wrong = {k: v for k, v in wrong.items() if v > 2 * _error(plain[k], want[k])}
    assert not wrong, f"{kernel} {case.name}: relative errors {wrong}, accepted {floor}"


def test_large_tiles_match_the_reference(emulate):
    library = emulation.build("pointwise", source="#define JSEG_BIG_TILES 1\n" + _spliced("pointwise"))
    emulator = emulate(emulation.Emulator(library))
    case = next(c for c in _small("pointwise") if c.name == "many_classes")
    assert not _wrong("pointwise", case, _cases("pointwise").FLOOR)
    assert any("<128, 128" in kernel for kernel, *_ in emulator.launches), emulator.launches


@pytest.mark.parametrize("kernel, case", TYPICAL)
@pytest.mark.parametrize("schedule", [1, 2, 3])
def test_every_schedule_gives_the_same_bits(kernel, case, schedule, emulate):
    emulate(emulation.Emulator(_library(kernel)))
    first = _run(kernel, case)
    emulate(emulation.Emulator(_library(kernel), schedule))
    second = _run(kernel, case)
    for name in first:
        assert np.array_equal(first[name], second[name]), f"{kernel} {case.name} {name}: schedule {schedule} differs"


@pytest.mark.parametrize("kernel, case", [pair for pair in PAIRS if pair.values[0] in TENSOR])
def test_products_on_tensor_cores_are_no_worse_than_plain_ones(kernel, case, emulate):
    """float32 maps: at most twice the error of the same operation with plain TF32 products. Attention's dq and dk come
    from a difference of a rounded product and a sum that is not rounded, as nowhere in the plain operation: 3 times,
    and zero where one key is all there is."""
    emulator = emulate(emulation.Emulator(_library(kernel), tf32=True))
    got, want, plain = _run(kernel, case), _expected(kernel, case), _expected(kernel, case, products="float32")
    assert emulator.products, emulator.launches
    errors = {name: (_error(got[name], want[name]), _error(plain[name], want[name])) for name in want
              if np.abs(want[name]).max() > 1e-12 or np.abs(got[name]).max() > 1e-5}
    wrong = {name: (error, of_plain) for name, (error, of_plain) in errors.items() if not
             error <= (3 if kernel == "attention" and name in ("dq", "dk") else 2) * of_plain + _cases(kernel).FLOOR}
    assert not wrong, f"{kernel} {case.name}: relative errors, and those of plain TF32 products: {wrong}"


@pytest.mark.parametrize("kernel, case", TYPICAL)
@pytest.mark.parametrize("dtype", list(HALF))
def test_half_precision_maps_with_float32_sums(kernel, case, dtype, emulate):
    emulate(emulation.Emulator(_library(kernel)))
    want, got = _expected(kernel, case, dtype), _run(kernel, case, dtype=dtype)
    plain = _expected(kernel, case, dtype, products=dtype) if kernel in TENSOR else None
    for name in want:
        if kernel == "readout" and name == "out0":
            assert np.array_equal(got[name], want[name])
            continue
        # outputs and map gradients are rounded once; sums are float32, so nothing grows with their length
        limit = 1.5 * HALF[dtype] + (2 * _error(plain[name], want[name]) if kernel in TENSOR else 0)
        assert _error(got[name], want[name]) <= limit, (f"{kernel} {case.name} {dtype} {name}: "
                                                                    f"{_error(got[name], want[name])}")


# ---- faults that must be caught --------------------------------------------------------------------------------------
def _spliced(kernel: str) -> str:
    return emulation.spliced(emulation.OPS / kernel / "cuda.cuh")


def _barriers(text: str, file: str) -> list[int]:
    """Where the barriers of one file are in a spliced source; those beside tensor cores have tests of their own
    (test_tensor_cores.py) and are not reached by float32 in full.
    """
    starts = [(m.start(), m.group(1)) for m in re.finditer(r"^//@ (.*)$", text, flags=re.M)]
    found = [m.start() for m in re.finditer(r"__syncthreads\(\);", text)]
    found = [at for at in found if [name for start, name in starts if start < at][-1] == file]
    with_cores = text.find(CORES_BEGIN.get(file, "\0"))
    return [at for at in found if with_cores < 0 or at < with_cores]


def _caught(kernel, cases, text, emulate) -> str:
    """What the emulator or the comparison says of a changed source; "" if nothing."""
    library = emulation.build(kernel, source=text)
    for case in cases:
        for schedule in (0, 1, 2):
            emulate(emulation.Emulator(library, schedule))
            try:
                wrong = _wrong(kernel, case, 20 * _cases(kernel).FLOOR)
            except emulation.EmulationError as error:
                return str(error)
            if wrong:
                return str(wrong)
    return ""


FAULTS = {   # name: kernel, cases, text that occurs once in the spliced source, what takes its place
    "depthwise_wide_halo": ("depthwise", ["3x3_gelu"], "    load_tile<TH + 2 * HALF, TW + 2 * HALF, LD>(",
                            "    load_tile<TH + 2 * HALF + 9, TW + 2 * HALF, LD>("),
    "depthwise_narrow_halo": ("depthwise", ["3x3_gelu"], "    load_tile<TH + 2 * HALF, TW + 2 * HALF, LD>(",
                              "    load_tile<TH + 2 * HALF, TW + 2 * HALF - 1, LD>("),
    "depthwise_no_edge_test": ("depthwise", ["3x3_gelu"], "y >= 0 && y < h && x >= 0 && x < w ?",
                               "y >= 0 && y < h && x < w ?"),
    "depthwise_output_beyond": ("depthwise", ["3x3_gelu"], "if (top + row + r < s.h && left + column < s.w)\n          "
                                                           "  put(y", "if (left + column < s.w)\n            put(y"),
    "depthwise_early_return": ("depthwise", ["3x3_gelu"], "    load_tile<TH + 2 * HALF, TW + 2 * HALF, LD>(",
                               "    if (left + int(threadIdx.x % TW) >= s.w) return;\n    load_tile<TH + 2 * HALF, TW "
                               "+ 2 * HALF, LD>("),
    "msca_reach": ("msca", ["odd"], "constexpr int MAX_STRIPS = 8, REACH = 10,",
                   "constexpr int MAX_STRIPS = 8, REACH = 8,"),
    "msca_bias_outside": ("msca", ["odd"], "y >= 0 && y < p.h ? sums[e] : 0.0f;\n    }\n}\n\n// Adds",
                          "sums[e];\n    }\n}\n\n// Adds"),
    "argmax_output_beyond": ("readout", ["odd"], "if (y >= p.height || x >= p.width) return;", ""),
    "argmax_narrow_look": ("readout", ["labels_odd"], "i < TILE_H + TILE_W; i++)\n            left",
                           "i < TILE_H + 2; i++)\n            left"),
    "gemm_edge": ("pointwise", ["odd"], "e * at.ds < side_left && e * at.dd < depth_left ?", "e * at.ds < side_left ?"),
    "norm_pixels_beyond": ("norm", ["position_many"], "if (first + e * THREADS < from.s.p) body",
                           "if (first + e * THREADS < from.s.p + 1) body"),
    "norm_run_beyond": ("norm", ["batch_odd"], "v[e] = i < count ? to_float(x[i]) : 0.0f;",
                        "v[e] = i <= count ? to_float(x[i]) : 0.0f;"),
    "norm_pivot_left_out": ("norm", ["batch_long_rows"], "from[2] + 2 * off * from[1] + count * off * off", "from[2]"),
    "norm_wrong_statistic": ("norm", ["position_odd"], "from.s.position ? set + p : set", "set"),
    "attention_keys_beyond": ("attention", ["odd"], "row + i < s.l && key < s.m ? from", "row + i < s.l ? from"),
    "attention_no_fading": ("attention", ["several_blocks"], "room.template scale_rows<GROUPS>(sums, fade);", ";"),
    "attention_queries_beyond": ("attention", ["windows_small"], "if (row < s.l && key < s.m) parts",
                                 "if (key < s.m) parts"),
    "criss_cross_itself_twice": ("criss_cross", ["odd"], "i < s.h && i != itself", "i < s.h"),
    "points_beside_the_map": ("point_sample", ["odd"], "column < 0 || column >= s.w", "column < 0"),
    "points_not_merged": ("point_sample", ["many_points"], "width < count_;", "false;"),
    "deformable_other_map": ("deformable_attention", ["odd"], "pixel >= s.first[map + 1]",
                             "pixel > s.first[map + 1]"),
    "psa_mask_window": ("psa_mask", ["small_window"], "right >= 0 && right < s.columns", "right < s.columns"),
    "warp_divergence": ("upsample_cross_entropy", ["odd"], "if (threadIdx.x % WARP == 0) room[i * 8",
                        "if (threadIdx.x % WARP < 3) __shfl_xor_sync(ALL_LANES, total, 1);\n        if (threadIdx.x % "
                        "WARP == 0) room[i * 8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, emulate):
    kernel, names, old, _ = FAULTS[fault]
    assert old in _spliced(kernel), f"{fault}: the text to change is gone from {kernel}"
    assert _caught(kernel, [c for c in _small(kernel) if c.name in names], _faulty(fault),
                   emulate), f"{fault} went unnoticed"


def _faulty(fault) -> str:
    kernel, _, old, new = FAULTS[fault]
    return _spliced(kernel).replace(old, new)


CORES_BEGIN = {"cuda_gemm.cuh": "// ---- with tensor cores", "cuda_attention.cuh": "// By tensor cores, factors"}
BARRIERS = {   # file: the kernel that shows its barriers, and its cases that reach them; not cuda_points.cuh: without
    # one of its barriers keys are lost, and what is read in their place ends the process
    "cuda_attention.cuh": ("attention", ["odd", "spatial_reduction", "several_blocks"]),
    "cuda_base.cuh": ("depthwise", ["5x5_no_padding"]), "cuda_depthwise.cuh": ("depthwise", ["3x3_gelu"]),
    "cuda_gemm.cuh": ("pointwise", ["odd", "many_classes"]), "layer_norm": ("layer_norm", ["odd"]),
    "linear": ("linear", ["odd"]),
    "msca": ("msca", ["odd"]), "norm": ("norm", ["batch_odd", "batch_long_rows", "position_odd"]),
    "readout": ("readout", ["labels_odd", "many_classes"]),
    "upsample_cross_entropy": ("upsample_cross_entropy", ["odd"])}


def _barrier_list():
    """Every barrier of every file; those of depthwise run by default, all with --slow."""
    for file, (kernel, _) in BARRIERS.items():
        for i in range(len(_barriers(_spliced(kernel), file))):
            yield pytest.param(file, i, id=f"{file}-{i}", marks=[] if file == "cuda_depthwise.cuh"
                               else [pytest.mark.slow])


@pytest.mark.parametrize("file, number", list(_barrier_list()))
def test_a_missing_barrier_is_caught(file, number, emulate):
    kernel, names = BARRIERS[file]
    before, after = _parted(file, number)
    caught = _caught(kernel, [c for c in _small(kernel) if c.name in names], before + after, emulate)
    assert caught, f"{file}: nothing went wrong without the barrier after {before.splitlines()[-2].strip()!r}"


def _parted(file, number) -> tuple[str, str]:
    """The source before and after one barrier."""
    text = _spliced(BARRIERS[file][0])
    at = _barriers(text, file)[number]
    return text[:at], text[at + len("__syncthreads();"):]


# ---- launches --------------------------------------------------------------------------------------------------------
def _calls(h, w):
    """symbol -> scalars of large and small calls on planes of h x w."""
    strips, area, coarse = [3, 5, 7, 11, 21], h * w, -(-h // 2) * -(-w // 2)
    return [("depthwise", "forward", [2, 64, h, w, h, w, 3, 3, 1, 1, 1, 1, 1, 1, 1]),
            ("depthwise", "backward", [2, 64, h, w, h, w, 3, 3, 1, 1, 1, 1, 1, 1, 1]),
            ("depthwise", "backward", [2, 64, h, w, h, w, 7, 7, 1, 1, 3, 3, 1, 1, 1]),
            ("msca", "forward", [2, 64, h, w, *strips]), ("msca", "backward", [2, 64, h, w, *strips]),
            ("msca", "backward", [2, 64, h, w, 1, 3, 9]), ("mix_ffn", "forward", [2, 64, 512, 64, h, w]),
            ("mix_ffn", "backward", [2, 64, 512, 64, h, w]), ("pointwise", "forward", [2, 64, 150, h * w, 1]),
            ("pointwise", "backward", [2, 64, 150, h * w, 1]),
            ("nmf", "forward", [1, 512, h * w, 64, 7, 1, 1e-6, 0, 1]),
            ("nmf", "backward", [1, 512, h * w, 16, 6, 1, 1e-6, 0, 1]), ("norm", "forward", [2, 64, h * w, 0, 1, 1e-5]),
            ("norm", "backward", [2, 64, h * w, 8, 2, 1e-5]), ("norm", "position_forward", [2, 64, h * w, 0, 0, 1e-5]),
            ("norm", "position_backward", [2, 64, h * w, 0, 2, 1e-5]),
            ("attention", "forward", [2, h * w, -(-h // 8) * -(-w // 8), 3, 40, 160, 0, 0.125, 0, 2, 1]),
            ("attention", "backward", [2, h * w, -(-h // 8) * -(-w // 8), 3, 40, 40, 2, 0.125, 0, 0, 0]),
            ("attention", "backward", [128, 49, 49, 3, 32, 32, 3, 0.125, 1, 64, 49]),
            ("linear", "forward", [2, h * w, 96, 384, 1]), ("linear", "backward", [2, h * w, 96, 10, 0]),
            ("layer_norm", "forward", [2 * h * w, 96, 1e-5]), ("layer_norm", "backward", [2 * h * w, 96, 1e-5]),
            ("criss_cross", "forward", [2, 64, 512, h, w]), ("criss_cross", "backward", [2, 64, 512, h, w]),
            *[("deformable_attention", way, [2, area + coarse, 8, 32, area, 2, 4, h, w, -(-h // 2), -(-w // 2)])
              for way in ("forward", "backward")],
            ("point_sample", "forward", [2, 256, h, w, 12544, 0, 0]),
            ("point_sample", "backward", [2, 256, h, w, 12544, 0, 1]),
            ("psa_mask", "forward", [2, -(-h // 8), -(-w // 8), 97, 97, 1]),
            ("psa_mask", "backward", [2, -(-h // 8), -(-w // 8), 97, 97, 0]),
            ("bilinear_resize", "forward", [128, -(-h // 8), -(-w // 8), h, w, 0]),
            ("bilinear_resize", "backward", [128, -(-h // 8), -(-w // 8), h, w, 1]),
            ("readout", "run", [2, 150, -(-h // 8), -(-w // 8), h, w, 1, 3, 1]),
            ("readout", "run", [2, 150, -(-h // 8), -(-w // 8), h, w, 0, 6, 1]),
            ("upsample_cross_entropy", "run", [2, 150, -(-h // 8), -(-w // 8), h, w, 0, 255, 0, 0, 1])]


@pytest.mark.parametrize("h, w", PLANES, ids=lambda v: str(v))
def test_launches_are_what_a_device_accepts(h, w):
    for kernel, name, scalars in _calls(h, w):
        for dtype in cuda_library.DTYPES[:2]:
            launches, error = emulation.Emulator(_library(kernel)).dry(f"jseg_{kernel}_{name}_{dtype}", scalars)
            assert launches and not error, f"{kernel} {name} {h}x{w}: {error or 'nothing was launched'}"
            assert all(1 <= blocks < 2 ** 31 and threads in (64, 128, 256)
                       for _, blocks, threads, _ in launches), launches


def test_an_impossible_grid_is_refused():
    launches, error = emulation.Emulator(_library("readout")).dry("jseg_readout_run_float32",
                                                                  [2 ** 20, 3, 4, 4, 2 ** 11, 2 ** 11, 0, 2, 1])
    assert "a grid of" in error, launches


# ---- dispatch --------------------------------------------------------------------------------------------------------
def test_every_operator_has_a_cuda_kernel():
    assert set(KERNELS) == set(ops.KERNELS) - {"conv"}  # whose work is cuDNN's there


@pytest.mark.parametrize("kernel", KERNELS)
def test_auto_takes_the_cuda_kernel_on_a_gpu(kernel, emulate, monkeypatch):
    emulator = emulate(emulation.Emulator(_library(kernel)))
    monkeypatch.setattr(common, "jt", types.SimpleNamespace(flags=types.SimpleNamespace(use_cuda=1)))
    monkeypatch.delenv("JSEG_IMPL", raising=False)
    for dtype in cuda_library.DTYPES:
        before = len(emulator.launches)
        case = _typical(kernel)[0]
        _cases(kernel).call(_vars(_inputs(kernel, case, dtype), dtype), "auto")
        assert len(emulator.launches) > before, f"{kernel} {dtype}: 'auto' did not run the CUDA kernel"


def test_impl_cuda_is_refused_without_a_gpu():
    if jt.flags.use_cuda:
        pytest.skip("there is a GPU")
    with pytest.raises(common.KernelError,
                       match="msca: there is no CUDA kernel that could run here, jt.flags.use_cuda is 0"):
        common.pick("cuda", "msca")


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_benchmarks_own_check_passes_in_half_precision(kernel, emulate):
    """What `jseg bench --gpu` asks of a device: every floating-point argument in bfloat16, parameters too."""
    emulate(emulation.Emulator(_library(kernel)))
    found = kernel_tasks.check(kernel, "cuda", "bfloat16", plain_always=False)
    assert found["failures"] == [] and found["cases"] > 2
