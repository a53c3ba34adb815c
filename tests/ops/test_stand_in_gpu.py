"""jseg on a machine with CUDA 13 and cuDNN 9 from pip and a GPU that computes nothing (stand_in_gpu.cc): what is
compiled there compiles, what is called is called, no launch is refused. Jittor's core, the kernel library, jt.code's
stub, and every operation of inference and training, float32 and mixed. Needs nvcc and the headers of pip's CUDA wheels,
no GPU; twelve minutes on two cores."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

import jseg
from jseg import runtime_cuda

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Library -> the name CUDA 13's programs look for.
NAMES = {"cuda": "libcuda.so.1", "cudart": "libcudart.so.13", "cublas": "libcublas.so.13",
         "cublasLt": "libcublasLt.so.13", "curand": "libcurand.so.10", "cufft": "libcufft.so.12",
         "cusparse": "libcusparse.so.12", "cudnn": "libcudnn.so.9", "cudnn_ops": "libcudnn_ops.so.9",
         "cudnn_cnn": "libcudnn_cnn.so.9"}
HEADERS = ("cuda_runtime.h", "cublas_v2.h", "curand.h", "cufft.h", "cusparse.h", "cudnn.h")
# mode and mixed, a line for each run; in a process of its own, because a process computes on a GPU or has none.
PROGRAM = """
import ctypes
import numpy as np
import jseg
import jittor as jt
from jseg.bench.gpu import settings
from jseg.bench.jseg_side import ModelTask
from jseg.ops import cuda_library
jt.flags.use_cuda = 1
rng = np.random.default_rng(0)
inputs = {"images": rng.standard_normal((2, 3, 64, 96)).astype(np.float32),
          "labels": rng.integers(0, 150, (2, 64, 96)).astype(np.int32)}
alone = {name: value[:1] for name, value in inputs.items()}
device, launches = ctypes.CDLL("libcudart.so.13"), []
for mode in ("infer", "train"):
    for mixed in (False, True):
        task = ModelTask(settings("tiny"), inputs, mode, None, mixed)
        task()
        shapes = {name: value.shape for name, value in task.results().items() if not name.startswith("gradient/")}
        print(mode, mixed, shapes)
        if mode == "infer":
            one = ModelTask(settings("tiny"), alone, mode, None, mixed)
            one()
            before = device.stand_in_launches()
            one()
            launches.append(device.stand_in_launches() - before)
x, rows = jt.ones((2, 8, 9, 9)), jt.ones((3, 40))
for result in (jt.nn.softmax(rows, dim=1), jt.nn.softmax(rows.float16(), dim=1), jt.argmax(rows, 1)[0],
               jt.argsort(rows, 1)[0], jt.nn.Conv(8, 8, 3, padding=1, groups=8)(x), jt.nn.ConvTranspose(8, 8, 3, 2)(x),
               jt.nn.interpolate(x, size=(5, 5), mode="bilinear")):
    result.sync(True)  # what other models take from Jittor
try:
    jt.where(rows > 0)[0].sync(True)
except RuntimeError as error:  # compiled and called; how many there are is a number that the device would have computed
    assert "shape is error" in str(error), error
print("kernels", len(cuda_library._functions), "failed", dict(cuda_library._failed))
print("launches", *launches)
"""


def _headers():
    nvcc = runtime_cuda.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc here")
    release, (includes, _) = runtime_cuda.nvcc_release(nvcc), runtime_cuda.toolkit_folders(nvcc)
    missing = [name for name in HEADERS if not any((folder / name).is_file() for folder in includes)]
    if release[0] != 13 or missing:
        pytest.skip(f"needs CUDA 13, here is {release[0]}.{release[1]}; headers missing: "
                    f"{', '.join(missing) or 'none'} (pip install nvidia-cublas nvidia-curand nvidia-cufft "
                    "nvidia-cusparse nvidia-cudnn-cu13 nvidia-cuda-cccl)")
    return includes


@pytest.mark.slow
def test_everything_compiles_and_is_called_on_a_machine_with_pips_cuda_13(tmp_path, monkeypatch):
    includes = _headers()
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    folders = [word for folder in includes for word in ("-I", str(folder))]
    for name, file in NAMES.items():
        subprocess.run(["g++", "-shared", "-fPIC", "-O1", *folders, f"-Wl,-soname,{file}",
                        str(HERE / "stand_in_gpu.cc"), "-o", str(libraries / file)],
                       check=True)
        (libraries / f"lib{name}.so").symlink_to(file)
    home = tmp_path / "home"
    (home / ".cache" / "jittor").mkdir(parents=True)
    monkeypatch.setattr(runtime_cuda, "toolkit_folders", lambda nvcc: (includes, [libraries]))
    found = runtime_cuda.choose([{"name": "stand-in", "capability": (9, 0), "memory_mb": 8192}], home,
                                lambda *note: None)
    # pytest's own process chose variables for the CPU when it imported jseg
    chosen = {"nvcc_path", "cache_name", "JITTOR_HOME", "use_mpi"}
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    environment.update(found, JITTOR_HOME=str(home), LD_LIBRARY_PATH=str(libraries),
                       PYTHONPATH=str(pathlib.Path(jseg.__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=ROOT, capture_output=True,
                          text=True, timeout=3600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "REFUSED LAUNCH" not in done.stderr, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert [line.split(" {")[0] for line in lines[:4]] == ["infer False", "infer True", "train False",
                                                           "train True"], done.stdout
    assert "'logits': (2, 150, 8, 12)" in lines[0] and "'label_maps': (2, 64, 96)" in lines[1]
    used = re.fullmatch(r"kernels (\d+) failed \{\}", lines[4])
    assert used and int(used[1]) >= 15, lines[4]  # entry points: 17 at the time of writing
    counts = lines[5].split()
    assert counts[0] == "launches" and 100 < int(counts[1]) <= 120, counts  # cuDNN's own are not seen
