"""Products on tensor cores, on the CPU: the emulator's own operations against layouts written down another way, the
products of cuda_gemm.cuh against NumPy, and faults that must be caught."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import cuda_emulator as emulation

HERE = emulation.HERE
ENTRIES = {"float32": "tf32", "float16": "float16", "bfloat16": "bfloat16"}
DTYPES = list(ENTRIES)
# (side of fours, side of eights), values -> offset in a matrix that lies column by column, as pairs of size and step:
# thread t = 4 g + i has position i in the first and g in the second
FRAGMENTS = {   # depth: A 16 x K, B as 8 x K, C 16 x 8
    8: {"a": (((4, 16), (8, 1)), ((2, 8), (2, 64))), "b": (((4, 8), (8, 1)), ((2, 32),)),
        "c": (((4, 32), (8, 1)), ((2, 16), (2, 8)))},
    16: {"a": (((4, 32), (8, 1)), ((2, 16), (2, 8), (2, 128))), "b": (((4, 16), (8, 1)), ((2, 8), (2, 64))),
         "c": (((4, 32), (8, 1)), ((2, 16), (2, 8)))}}


def offsets(layout) -> np.ndarray:
    """(32, values): where in the matrix each value of each thread lies."""
    def of(parts):   # the first part runs fastest
        sizes = [range(size) for size, _ in reversed(parts)]
        return np.array([sum(i * step for i, (_, step) in zip(reversed(at), parts))
                         for at in itertools.product(*sizes)])
    threads, values = layout
    return of(threads)[:, None] + of(values)[None]


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """As the numbers lie in memory."""
    return {"float32": np.float32, "float16": np.float16, "bfloat16": emulation.to_bfloat16}[dtype](
        np.asarray(values, np.float32))


def loaded(memory: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers in memory, as float64."""
    if dtype == "bfloat16":
        memory = (memory.astype(np.uint32) << 16).view(np.float32)
    return memory.astype(np.float64)


def library(name: str, *changes):
    """tests/ops/<name>.cuh under the emulator, with texts of it or of its headers replaced."""
    text = emulation.spliced(HERE / f"{name}.cuh")
    for old, new in changes:
        assert old in text, f"the text to change is gone: {old}"
        text = text.replace(old, new)
    return emulation.build(name, source=text if changes else f'#include "{HERE / name}.cuh"\n')


def call(built, name, inputs, outputs, scalars=(), schedule=0) -> list:
    """Run an entry point on NumPy arrays; outputs are (dtype, count)."""
    ins = [emulation.Guarded(kind, a.size, a) for kind, a in inputs]
    outs = [emulation.Guarded(kind, count) for kind, count in outputs]
    emulation.Emulator(built, schedule).call(name, ins, outs, list(scalars))
    return [out.inside.copy() for out in outs]


# ---- the emulator's operations -------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
def test_fragments_of_a_product_are_those_of_the_hardware(dtype, rng):
    depth = 8 if dtype == "float32" else 16
    layouts = {name: offsets(layout) for name, layout in FRAGMENTS[depth].items()}
    assert all(np.array_equal(np.sort(at.ravel()), np.arange(at.size)) for at in layouts.values())
    a, b, c = (rng.standard_normal(size) for size in ((16, depth), (depth, 8), (16, 8)))
    a, b, c = emulation.rounded(a, dtype), emulation.rounded(b, dtype), c.astype(np.float32).astype(np.float64)

    def words(matrix, at):   # column by column; two halves make a word
        return np.ascontiguousarray(stored(matrix.T.ravel()[at], dtype)).view(np.int32)
    built = library("warp")
    inputs = [("int32", words(a, layouts["a"])), ("int32", words(b.T, layouts["b"]))]
    out = emulation.Guarded("float32", 128, c.T.ravel()[layouts["c"]].astype(np.float32))
    emulation.Emulator(built).call(f"jseg_warp_multiply_{ENTRIES[dtype]}",
                                   [emulation.Guarded(kind, v.size, v) for kind, v in inputs], [out], [])
    got = np.empty(128)
    got[layouts["c"].ravel()] = out.inside
    want = c + a @ b
    assert np.abs(got.reshape(8, 16).T - want).max() <= 2 ** -22 * np.abs(want).max()


@pytest.mark.parametrize("turned", [0, 1])
def test_ldmatrix_hands_out_rows_or_columns(turned, rng):
    matrices = rng.integers(0, 2 ** 15, (4, 8, 8)).astype(np.uint16)
    got, = call(library("warp"), "jseg_warp_move_float32", [("int32", matrices.view(np.int32))], [("int32", 128)],
                [turned])
    halves = got.view(np.uint16).reshape(32, 4, 2)   # thread, matrix, which half of the word
    for t in range(32):
        for i in range(4):
            source = matrices[i].T if turned else matrices[i]
            assert list(halves[t, i]) == list(source[t // 4, t % 4 * 2:t % 4 * 2 + 2])


def test_rounding_to_tf32():
    values = np.array([1 + 2 ** -11, 1 + 2 ** -11 - 2 ** -23, -1 - 2 ** -11, 1 + 3 * 2 ** -11, 0, -0.0, np.inf, -np.inf,
                       3.4e38, 1e-40, np.pi] + [1.0] * 21, np.float32)
    bits, = call(library("warp"), "jseg_warp_round_float32", [("float32", values)], [("int32", 32)])
    got, finite = bits.view(np.float32), np.isfinite(values)
    assert np.array_equal(got[finite][:8], emulation.rounded(values[finite], "float32").astype(np.float32)[:8])
    assert got[0] == 1 + 2 ** -10 and got[1] == 1 and got[2] == -1 - 2 ** -10 and got[6] == np.inf
    assert (bits & 0x1fff == 0).all()
    nan, = call(library("warp"), "jseg_warp_round_float32", [("float32", np.full(32, np.nan, np.float32))],
                [("int32", 32)])
    assert np.isnan(nan.view(np.float32)).all()


COPY_FAULTS = {   # what is changed -> what the emulator says
    "too_early": ("    copies_wait<1>();\n", "    copies_wait<2>();\n", "before the copy was waited for"),
    "no_wait": ("    copies_wait<1>();\n", "", "before the copy was waited for"),
    "no_commit": ("    copies_commit();\n    copies_wait<1>();", "    copies_wait<1>();", "before the copy was waited"),
    "no_barrier": ("    copies_wait<1>();\n    __syncthreads();", "    copies_wait<1>();", "a read"),
    "written_while_read": ("    __syncthreads();\n    store_shared_as(room + (threadIdx.x ^ 32)",
                           "    store_shared_as(second + (threadIdx.x ^ 16)", "no barrier between"),
    "copied_while_read": ("    copies_wait<0>();\n",
                          "    copies_wait<0>();\n    copy_async<16>(room + threadIdx.x * 4, in, 16);\n",
                          "no barrier between|copy was waited"),
    "misaligned": ("copy_async<16>(room + threadIdx.x * 4, in", "copy_async<16>(room + threadIdx.x * 4, in + 1 + 0",
                   "misaligned"),
}


def test_copies_land_at_the_wait():
    values = np.arange(512, dtype=np.float32)
    out, = call(library("warp"), "jseg_warp_pass_float32", [("float32", values)], [("float32", 512)])
    want = values.reshape(2, 2, 32, 4)[:, ::-1].copy()
    want[1, :, :, 3] = 0
    assert np.array_equal(out, want.ravel())


@pytest.mark.parametrize("fault", COPY_FAULTS)
def test_faults_of_copies_are_caught_under_every_schedule(fault):
    *change, words = COPY_FAULTS[fault]
    built = library("warp", tuple(change))
    for schedule in (0, 1, 2):
        with pytest.raises(emulation.EmulationError, match=words):
            call(built, "jseg_warp_pass_float32", [("float32", np.zeros(512, np.float32))], [("float32", 512)], (),
                 schedule)


# ---- products --------------------------------------------------------------------------------------------------------
# batches, m, n, k: unaligned, aligned, thin, more than a tile, several slices
SIZES = [(1, 1, 1, 1), (2, 5, 7, 9), (1, 65, 33, 40), (2, 64, 24, 96), (1, 130, 16, 72), (1, 72, 72, 200)]
LAYOUTS = [(1, 1), (1, 0), (0, 1), (0, 0)]


def product(built, dtype, size, layout=(1, 1), *, left_float=False, splits=1, schedule=0, seed=3):
    """C as computed, and A and B as float64."""
    batches, m, n, k = size
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((batches, m, k)), rng.standard_normal((batches, k, n)) / k ** 0.5
    a = a.astype(np.float32).astype(np.float64) if left_float else loaded(stored(a, dtype), dtype)
    b = loaded(stored(b, dtype), dtype)
    placed = [matrix if by_rows else matrix.transpose(0, 2, 1) for matrix, by_rows in zip((a, b), layout)]
    inputs = [(dtype, stored(placed[0], dtype)), (dtype, stored(placed[1], dtype)),
              ("float32", a.astype(np.float32))]
    kind = "float32" if splits > 1 else dtype
    got, = call(built, f"jseg_product_{ENTRIES[dtype]}", inputs, [(kind, batches * m * n)],
                [*size, *layout, left_float, splits], schedule)
    return loaded(got, kind).reshape(batches, m, n), a, b


def distance(got, want) -> float:
    """The largest difference, by the largest value."""
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_those_of_rounded_factors(dtype, size):
    built = library("product")
    for layout in LAYOUTS:
        got, a, b = product(built, dtype, size, layout)
        model = emulation.rounded(a, dtype) @ emulation.rounded(b, dtype)   # a plain TF32 or half-precision product
        last = 0 if dtype == "float32" else 2.0 ** (-11 if dtype == "float16" else -8)   # of the result
        assert distance(got, model) <= 2e-6 + last, layout
        assert distance(got, a @ b) <= 2 * distance(model, a @ b) + 2e-6 + last, layout


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_float_factor_is_rounded_to_the_others_type_and_parts_are_float(dtype):
    built = library("product")
    for size in ((1, 65, 33, 40), (2, 64, 24, 96)):
        got, a, b = product(built, dtype, size, left_float=True)
        last = 0 if dtype == "float32" else 2.0 ** (-11 if dtype == "float16" else -8)
        assert distance(got, emulation.rounded(a, dtype) @ emulation.rounded(b, dtype)) <= 2e-6 + last
    runs = [product(built, dtype, (1, 40, 36, 300), (0, 1), splits=4, schedule=schedule)[0] for schedule in (0, 1, 2)]
    _, a, b = product(built, dtype, (1, 40, 36, 300), (0, 1), splits=4)
    assert distance(runs[0], emulation.rounded(a, dtype) @ emulation.rounded(b, dtype)) <= 2e-6
    assert np.array_equal(runs[0], runs[1]) and np.array_equal(runs[0], runs[2])


def test_full_float32_and_older_devices_go_without_tensor_cores():
    built, size = library("product"), (1, 65, 33, 40)
    a, b = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((65, 40), (40, 33)))
    inputs = [("float32", a), ("float32", b), ("float32", a)]
    found = {}
    for entry, capability in (("float32", 80), ("tf32", 80), ("tf32", 75)):
        emulator = emulation.Emulator(built, capability=capability)
        out = emulation.Guarded("float32", 65 * 33)
        emulator.call(f"jseg_product_{entry}", [emulation.Guarded(kind, v.size, v) for kind, v in inputs], [out],
                      [*size, 1, 1, 0, 1])
        found[entry, capability] = (emulator.products > 0, out.inside.copy())
    assert [used for used, _ in found.values()] == [False, True, False]
    exact = a.astype(np.float64) @ b
    errors = [distance(out.reshape(65, 33), exact) for _, out in found.values()]
    assert errors[0] < 1e-6 and errors[2] < 1e-6 and errors[1] > 1e-5


GEMM_FAULTS = {   # a fragment's rows, the slices' ways, the edges
    "swapped_rows": ("p + (row + lane % 16) * LD", "p + (row + (lane ^ 8) % 16) * LD"),
    "swapped_single": ("lane / 4 + i % 2 * 8, k + lane % 4 + i / 2 * 4",
                       "lane / 4 + i / 2 * 8, k + lane % 4 + i % 2 * 4"),
    "swapped_columns": ("p + (column + lane % 8 + lane / 16 * 8)", "p + (column + lane % 8 + lane / 8 % 2 * 8)"),
    "sums_elsewhere": ("(lane / 4 + h * 8) * ROOM", "(lane / 4 * 2 + h) * ROOM"),
    "not_committed": ("        if (next < slices) ask(next);\n        copies_commit();", "        if (next < slices) "
                                                                                        "ask(next);"),
    "not_waited_for": ("        copies_wait<STAGES - 2>();\n", ""),
    "a_stage_too_early": ("copies_wait<STAGES - 2>()", "copies_wait<STAGES - 1>()"),
    "no_barrier_before_slices": ("        __syncthreads();   // the slice is here", "        // the slice is here"),
    "no_barrier_before_ends": ("    __syncthreads();   // the slices make room", "    // the slices make room"),
    "no_warp_barrier_before_reads": ("        __syncwarp();\n        JSEG_ROLL", "        JSEG_ROLL"),
    "no_warp_barrier_after_reads": ("        __syncwarp();\n    }\n}", "    }\n}"),
    "asked_for_too_soon": ("const int next = slice + STAGES - 1;", "const int next = slice + STAGES;"),
    "side_beyond": ("if (lines <= 0 || run <= 0 ||", "if ("),
    "depth_beyond": ("return run < E ? run : E;", "return E;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", GEMM_FAULTS)
def test_faults_of_products_are_caught(fault):
    built = library("product", GEMM_FAULTS[fault])
    assert _caught(built), f"{fault} went unnoticed"


def _caught(built) -> str:
    for layout, size in itertools.product(LAYOUTS, [(1, 65, 33, 203), (2, 64, 24, 96)]):
        try:
            got, a, b = product(built, "float32", size, layout)
        except emulation.EmulationError as error:
            return str(error)
        if not distance(got, emulation.rounded(a, "float32") @ emulation.rounded(b, "float32")) <= 2e-6:
            return "wrong"
    return ""
