"""Every CUDA kernel through nvcc: compiles for seven generations of GPUs, spills nothing, stays within its shared
memory; products of those with tensor cores are made by them.

`python tests/ops/test_cuda_compile.py` prints the table of docs/kernels.md (minutes); with --registers ARCH... it
writes jseg/bench/gpu_registers.json, what `jseg bench --gpu-model` takes for the occupancy, anew for these generations.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

import jseg  # noqa: F401  (prepares the process before Jittor is imported)
from jseg.bench import gpu_model
from jseg.ops.cuda_library import OPS, WITH_PRODUCTS, cuda_kernels, nvcc_command
from jseg.runtime_cuda import find_nvcc

ARCHS = (75, 80, 86, 89, 90, 100, 120)
KERNELS = cuda_kernels()
MAX_SHARED = 48 << 10   # what every GPU grants without asking
NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc here")


def resources(kernel: str, archs) -> list[dict]:
    """Compile one kernel; what ptxas says of each of its device functions:
    name, arch, registers, shared, stack, spills (bytes).
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [*nvcc_command(str(NVCC), list(archs)), "-Xptxas=-v", "-c", "-x", "cu",
                   str(OPS / kernel / "cuda.cuh"), "-o", f"{folder}/out.o"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "warning" not in done.stderr, done.stderr
    pattern = (r"entry function '(\w+)' for 'sm_(\d+)'\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) "
               r"bytes spill loads\n"
               r".*?Used (\d+) registers(.*?)\n")
    found = []
    for name, arch, stack, stores, loads, registers, rest in re.findall(pattern, done.stderr, flags=re.S):
        shared = re.search(r"(\d+) bytes smem", rest)
        found.append({"name": name, "arch": int(arch), "registers": int(registers), "shared": int(shared.group(1))
                      if shared else 0, "stack": int(stack), "spills": int(stores) + int(loads)})
    assert {f["arch"] for f in found} == set(archs), f"{kernel}: ptxas spoke of {sorted({f['arch'] for f in found})}"
    return found


def _check(kernel: str, archs) -> None:
    for f in resources(kernel, archs):
        assert f["spills"] == 0 and f["stack"] == 0, (f"{kernel}: {f['name']} for sm_{f['arch']} spills {f['spills']} "
                                                      f"bytes, stack {f['stack']}")
        assert f["shared"] <= MAX_SHARED, (f"{kernel}: {f['name']} for sm_{f['arch']} wants {f['shared']} bytes of "
                                           "shared memory")


@needs_nvcc
def test_the_smallest_kernel_compiles():
    _check("psa_mask", (80,))


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_spills(kernel, arch):
    _check(kernel, (arch,))


def machine_code(kernel: str, arch: int) -> dict[str, list[str]]:
    """Readable function name -> the words of its instructions, of one kernel compiled for one generation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*nvcc_command(str(NVCC), [arch]), "-cubin", "-x", "cu", str(OPS / kernel / "cuda.cuh"), "-o",
                   f"{folder}/out.cubin"]
        command = [word for word in command if not word.endswith(f"code=compute_{arch}")]   # machine code alone
        subprocess.run(command, check=True, timeout=1500)
        text = subprocess.run(["cuobjdump", "-sass", f"{folder}/out.cubin"], capture_output=True, text=True, check=True,
                              timeout=600).stdout
    return instructions(text)


def instructions(text: str) -> dict[str, list[str]]:
    """The same from what cuobjdump -sass prints."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "Function : " in line:
            words = found.setdefault(line.split("Function : ")[1].strip(), [])
        instruction = re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)", line)
        if instruction:
            words.append(instruction.group(1))
    return found


# multiply-adds of one warp's instruction
HMMA = {"HMMA.1688.F32.TF32": 16 * 8 * 8, "HMMA.16816.F32": 16 * 8 * 16, "HMMA.16816.F32.BF16": 16 * 8 * 16}


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cuobjdump") is None, reason="no cuobjdump here (pip install nvidia-cuda-cuobjdump)")
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch >= 80])
@pytest.mark.parametrize("kernel", WITH_PRODUCTS)
def test_products_are_made_by_tensor_cores(kernel, arch):
    """A tile's products are all HMMA, as many as its geometry needs; none is left to multiply-adds."""
    _check_products(machine_code(kernel, arch))


def _check_products(functions: dict[str, list[str]]) -> None:
    names, seen = _readable(list(functions)), 0
    for mangled, words in functions.items():
        name, plain = names[mangled], [word for word in words if word.startswith("FFMA")]
        products = sum(HMMA[word] for word in words if word.startswith("HMMA"))
        if name.startswith("tensor_tile"):
            bm, bn, wm, wn, _ = map(int, re.findall(r"\d+", name))
            half = "HMMA.1688.F32.TF32" not in words
            assert products * (bm // wm) * (bn // wn) == bm * bn * (32 if half else 16), (mangled, products)
        elif "Cores" in mangled:
            assert products, f"{mangled}: no HMMA"
        else:
            factors = re.search(rf"gemm_tileI(?:Li\d+E)+{FACTOR}Lb\dE{FACTOR}Lb\dE", mangled)
            if factors or "Plain" in mangled:
                full = factors.groups() == ("f", "f") if factors else re.search(r"Plain(Tiles)?Ef", mangled)
                assert not products and (full or len(words) <= 16), mangled   # 16: an empty function
            continue
        assert len(plain) < 400, f"{mangled}: {len(plain)} multiply-adds beside those of its ends"
        seen += 1
    assert seen


FACTOR = r"(f|6__half|13__nv_bfloat16|S\d?_)"   # a type, or the one before it again


@needs_nvcc
@pytest.mark.slow
def test_the_library_links(tmp_path):
    """Two kernels, as `cuda_library` builds them, into one shared library that exports their entry points."""
    command, objects = nvcc_command(str(NVCC), [80]), []
    for kernel in ("readout", "upsample_cross_entropy"):
        objects.append(str(tmp_path / f"{kernel}.o"))
        subprocess.run([*command, "-c", "-x", "cu", str(OPS / kernel / "cuda.cuh"), "-o", objects[-1]],
                       check=True, timeout=900)
    subprocess.run([*command, "-shared", *objects, "-o", str(tmp_path / "lib.so")], check=True, timeout=900)
    names = subprocess.run(["nm", "-D", "--defined-only", str(tmp_path / "lib.so")], capture_output=True, text=True,
                           check=True).stdout
    for symbol in ("jseg_readout_run_float32", "jseg_upsample_cross_entropy_run_bfloat16"):
        assert symbol in names, names


def _readable(names: list[str]) -> dict:
    """Mangled name -> function name with its numbers, without types."""
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                           check=True).stdout.splitlines()
    short = {}
    for name, text in zip(names, plain):
        text = text.replace("(anonymous namespace)::", "")
        text = re.sub(r"^void ", "", re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", re.sub(r"\(int\)", "", text))).replace(
            "jseg::", "")
        numbers = re.findall(r"(?<=[<, ])\d+(?=[,>])", text)
        short[name] = text.split("<")[0] + (f"<{', '.join(numbers)}>" if numbers else "")
    return short


def table() -> str:
    """Markdown: registers per generation (the most of all types), shared memory, spills."""
    lines = ["| kernel | device function | " + " | ".join(f"sm_{a}" for a in ARCHS) + " | shared bytes | spills |",
             "|---|---|" + "---|" * (len(ARCHS) + 2)]
    for kernel in KERNELS:
        found = [f for arch in ARCHS for f in resources(kernel, (arch,))]
        short = _readable([f["name"] for f in found])
        for function in dict.fromkeys(short[f["name"]] for f in found):
            mine = [f for f in found if short[f["name"]] == function]
            registers = [max(f["registers"] for f in mine if f["arch"] == a) for a in ARCHS]
            lines.append(f"| {kernel} | `{function}` | " + " | ".join(map(str, registers))
                         + f" | {max(f['shared'] for f in mine)} | {sum(f['spills'] + f['stack'] for f in mine)} |")
        print(f"{kernel}: {len(found)} compiled", file=sys.stderr, flush=True)
    return "\n".join(lines)


def write_registers(archs: list[int]) -> None:
    """jseg/bench/gpu_registers.json: generation -> kernel as `gpu_launches` names it -> [registers, shared bytes], the
    most of all types.
    """
    known = json.loads(gpu_model.REGISTERS.read_text())
    for arch in archs:
        most = known.setdefault(f"sm_{arch}", {})
        for f in (f for kernel in KERNELS for f in resources(kernel, (arch,))):
            name = launch_name(f["name"])
            before = most.get(name, [0, 0])
            most[name] = [max(before[0], f["registers"]), max(before[1], f["shared"])]
    gpu_model.REGISTERS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def launch_name(mangled: str) -> str:
    """A mangled name as `gpu_launches` has it: a tensor tile by its size and what its factors are rounded to."""
    name = _readable([mangled])[mangled]
    if not name.startswith("tensor_tile"):
        return name
    rounded = "tf32" if mangled.split("tensor_tileI")[1].startswith("f") else "half"
    return f"tensor_tile<{', '.join(re.findall(r'[0-9]+', name)[:2])}, {rounded}>"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--registers"]:
        write_registers([int(arch) for arch in sys.argv[2:]])
    else:
        print(table())
