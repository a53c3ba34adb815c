"""Cooperative launches on the CPU: the emulator's barrier of the grid and the faults it must find; nmf in one launch
and in many, and with each of its barriers taken out."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest

from jseg.bench.gpu_launches import Call, launches_of
from jseg.ops.nmf import cases, reference
import cuda_emulator as emulation

HERE = emulation.HERE
CASES = {case.name: case for case in cases.CASES}
FAULTS = {1: "a cooperative grid of 6 blocks, of which 5 are resident",
          2: "a deadlock: 1 blocks have exited, 4 wait for the grid", 3: "1 have exited, 63 wait for the grid",
          4: "not cooperative", 6: "1 threads wait at a barrier, 0 have exited, 63 wait for the grid"}


def _meet(blocks: int, fault: int, schedule: int = 0, resident: int = emulation.RESIDENT) -> np.ndarray:
    library = emulation.build("together", source=f'#include "{HERE / "together.cuh"}"\n')
    out = emulation.Guarded("float32", blocks)
    emulation.Emulator(library, schedule, resident=resident).call("jseg_together_meet_float32", [], [out],
                                                                  [blocks, fault])
    return out.inside


@pytest.mark.parametrize("schedule", range(4))
def test_blocks_meet_at_a_barrier_of_the_grid(schedule):
    assert _meet(5, 0, schedule).tolist() == [2, 3, 4, 5, 1]
    assert _meet(1, 0, schedule).tolist() == [1]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_cooperative_launches_are_found(fault):
    with pytest.raises(emulation.EmulationError, match=FAULTS[fault]):
        _meet(6 if fault == 1 else 5, fault)
    assert _meet(3, 0).tolist() == [2, 3, 1]   # and the next launch knows nothing of it


def test_a_missing_barrier_of_the_grid_is_seen_in_the_result():
    for schedule in range(3):
        assert not np.array_equal(_meet(5, 5, schedule), [2, 3, 4, 5, 1])


def test_a_grid_is_as_large_as_the_device_takes_and_a_refusal_is_told():
    assert _meet(3, 0, resident=2)[:2].tolist() == [2, 1]
    for resident in (0, -3):
        assert _meet(3, 0, resident=resident)[0] == -1


# ---- nmf -------------------------------------------------------------------------------------------------------------
def _nmf(library, case, *, dtype: str = "float32", tf32: bool = False, schedule: int = 0,
         resident: int = emulation.RESIDENT):
    """Results of forward and backward, and the emulator after each."""
    options = dict(cases.make(case, np.random.default_rng(3)))
    x, bases = options.pop("x"), options.pop("bases")
    (n, d, length), rank, one_step = x.shape, bases.shape[2], options.get("grad") == "one_step"
    kept = 0 if one_step else options["steps"]
    state = n * rank * ((kept + 1) * length + (2 * kept + 1) * d + kept * rank)
    scalars = [n, d, length, rank, options["steps"], options.get("inv_t", 1.0), options.get("eps", 1e-6), one_step, 1]

    def map_of(values=None):
        kept = None if values is None else emulation.to_bfloat16(values) if dtype == "bfloat16" else values
        return emulation.Guarded(dtype, x.size, kept)

    entry, emulators, results = "tf32" if tf32 else dtype, [], []
    maps = map_of(x), map_of(np.random.default_rng(4).standard_normal(x.shape))
    saved, start = emulation.Guarded("float32", state), emulation.Guarded("float32", bases.size, bases)
    for way, ins, outs in (("forward", [maps[0], start], [map_of(), saved]),
                           ("backward", [maps[0], saved, maps[1]],
                            [map_of(), emulation.Guarded("float32", bases.size)])):
        emulators.append(emulation.Emulator(library, schedule, tf32=tf32, resident=resident))
        emulators[-1].call(f"jseg_nmf_{way}_{entry}", ins, outs, scalars)
        results += [out.inside for out in outs if out is not saved]
    return results, emulators


@pytest.fixture(scope="module")
def nmf():
    return emulation.build("nmf")


@pytest.mark.parametrize("name, dtype, tf32", [
    ("odd", "float32", False), ("odd", "float32", True), ("odd", "float16", False), ("odd_one_step", "bfloat16", False),
    ("odd_one_step", "float32", True), ("no_steps", "float32", True), ("one_value", "float32", False),
    ("rank24", "float32", True), ("rank70", "float32", True), ("rank70_one_step", "float32", False)])
def test_nmf_in_one_launch_is_nmf_in_many(nmf, name, dtype, tf32):
    """Bit by bit, whatever the number of blocks, where the device cannot launch them together and where it refuses."""
    options = {"dtype": dtype, "tf32": tf32}
    want, together = _nmf(nmf, CASES[name], **options)
    assert [len(one.launches) for one in together] == [1, 1]
    for resident in (0, -4, 1, 3):
        got, emulators = _nmf(nmf, CASES[name], resident=resident, **options)
        counts = [len(one.launches) for one in emulators]
        assert counts == [1, 1] if resident > 0 else min(counts) > 4
        assert all(np.array_equal(a, b) for a, b in zip(got, want)), (name, resident)


def test_nmf_goes_through_as_many_barriers_as_are_counted(nmf):
    for name in ("odd", "odd_one_step", "no_steps", "rank70", "rank70_one_step"):
        case = CASES[name]
        o = case.options
        scalars = [o["n"], o["d"], o["l"], o["r"], o["steps"], 1, 1e-6, o.get("grad") == "one_step", 1]
        x = ((o["n"], o["d"], o["l"]), "float32")
        for way, emulator in zip(("forward", "backward"), _nmf(nmf, case)[1]):
            counted = launches_of(Call(f"jseg_nmf_{way}", [x], [x], scalars))
            assert [one.stretches - 1 for one in counted] == [emulator.barriers], (name, way)


def _with_barriers_to_leave_out() -> tuple[str, int]:
    """nmf's source where `emu_left_out` says which of the barriers between its steps is not there, and their number."""
    parts = emulation.spliced(emulation.OPS / "nmf" / "cuda.cuh").split("crew.barrier();")
    text = "".join(f"{part}if (emu_left_out != {i}) crew.barrier();" for i, part in enumerate(parts[:-1])) + parts[-1]
    return ('extern "C" {\n__attribute__((visibility("default"))) int emu_left_out = -1;\n}\n' + text, len(parts) - 1)


def test_each_barrier_between_the_steps_is_needed():
    """Without it, results differ under some schedule."""
    source, count = _with_barriers_to_leave_out()
    assert count == 11
    library = emulation.build("nmf", source=source)
    left_out = ctypes.c_int.in_dll(library, "emu_left_out")
    names = ("odd", "rank70")
    want = {name: _nmf(library, CASES[name])[0] for name in names}
    for barrier in range(count):
        left_out.value = barrier
        assert any(not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(got, want[name]))
                   for name in names for schedule in (0, 1)
                   for got in [_nmf(library, CASES[name], schedule=schedule)[0]]), f"barrier {barrier} is not missed"


@pytest.mark.parametrize("old, new", [
    ("const int batch = chunk / per_batch, first = chunk % per_batch * each;",
     "const int batch = 0, first = chunk % per_batch * each;"),
    ("(blockIdx.x + gridDim.x - turn % gridDim.x) % gridDim.x;", "blockIdx.x + 1;"),
    ("first + each < s.rows ? first + each : s.rows", "first + each"),
    ("if (batch != loaded)", "if (loaded < 0)")], ids=["batch", "turn", "rows", "loaded"])
def test_planted_faults_are_caught(old, new):
    source = emulation.spliced(emulation.OPS / "nmf" / "cuda.cuh")
    assert len(re.findall(re.escape(old), source)) == 1, "the text to change is gone"
    library = emulation.build("nmf", source=source.replace(old, new))
    case = CASES["odd"]
    options = cases.make(case, np.random.default_rng(3))
    want = reference.forward(options.pop("x").astype(np.float32).astype(np.float64), **{
        key: np.asarray(value, np.float64) if key == "bases" else value for key, value in options.items()})
    try:
        got = _nmf(library, case, resident=1)[0][0].reshape(want.shape)
    except emulation.EmulationError:
        return
    assert not np.abs(got - want).max() <= 1e-3 * np.abs(want).max()
