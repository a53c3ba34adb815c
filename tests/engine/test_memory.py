"""Memory stays flat over steps, evaluations and pictures of many sizes: the short form of memory_run.py, and a leak that it finds."""

import os
import pathlib
import platform
import subprocess
import sys

import jittor as jt
import memory_run
import pytest

from jseg.engine.memory import Pool


PICTURES = 480  # the framework's pool has seen most sizes after a hundred (+10 % until then); the warm-up covers the first 192


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return memory_run.many_sizes(tmp_path_factory.mktemp("sizes"), PICTURES, 192, few=4)


@pytest.mark.parametrize("leak_kb", [0, 256])
def test_memory_is_flat_unless_something_leaks(folder, tmp_path, monkeypatch, leak_kb):
    monkeypatch.setattr(memory_run, "leak_kb", leak_kb)
    config = memory_run.configured(folder, 50)
    grown = {}
    for name, values in (("training", memory_run.measure_training(config, tmp_path / "run")),
                         ("evaluation", memory_run.measure_evaluation(config, folder / "val"))):
        assert len(values) == {"training": 50, "evaluation": PICTURES}[name]
        grown[name] = memory_run.growth(values, warm_up=4)
    memory_run.planted.clear()
    flat = {name: value <= memory_run.LIMIT for name, value in grown.items()}
    assert all(flat.values()) if not leak_kb else not any(flat.values()), grown


def test_the_pool_is_given_back_when_it_has_outgrown_its_first_size():
    jt.gc()
    pool = Pool()
    assert not pool.check() and not pool.check()
    held = pool._held()
    big = jt.zeros((held // 4 + (100 << 20)) // 4)
    big.sync()
    del big
    jt.sync_all(True)
    assert pool._held() > held + (90 << 20), "the framework keeps what is freed"
    assert pool.check()
    assert pool._held() < held + (10 << 20) and not pool.check()


HEAP = """
import ctypes, sys
from jseg.engine.memory import fix_heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "fixed":
    fix_heap()
libc.free(libc.malloc(16 << 20))  # a block that comes and goes teaches glibc to put the next ones on the heap
block = libc.malloc(8 << 20)
print(any(int(line.partition("-")[0], 16) <= block < int(line.split()[0].partition("-")[2], 16)
          for line in open("/proc/self/maps") if "[heap]" in line))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such bound")
def test_large_blocks_stay_out_of_the_heap():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    on_heap = [subprocess.run([sys.executable, "-c", HEAP, how], env=environment, text=True, capture_output=True, check=True,
                              cwd=pathlib.Path(__file__).parents[2]).stdout.split()[-1] for how in ("left alone", "fixed")]
    assert on_heap == ["True", "False"]


@pytest.mark.slow
def test_five_hundred_iterations_and_two_thousand_pictures():
    assert memory_run.main([]) == 0
