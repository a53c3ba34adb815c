"""Find a CUDA toolkit that fits the GPU and, where its layout is not the one Jittor expects,
build a home of links for it.

Jittor 1.3.11 expects a classic toolkit: `bin/nvcc`, `include/*.h`, `lib64/lib<name>.so`, cuDNN 8's library names,
C++14. CUDA 13 needs C++17 and dropped two `cudaDeviceProp` fields; cuDNN 9 renamed its libraries and removed an RNN
interface; pip's wheels have versioned library names only, spread over many folders. `choose()` decides which case this
is.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import shutil
import site
import subprocess
import sys
from typing import Callable

__all__ = ["choose", "build_home", "find_nvcc", "toolkit_folders", "cudnn_major"]

LIBRARIES = ("cudart", "cublas", "cublasLt", "curand", "cufft", "cusparse", "cudnn")
# cuDNN 8's name -> cuDNN 9's library that holds the same functions
CUDNN9_NAMES = {"ops_infer": "ops", "ops_train": "ops", "cnn_infer": "cnn", "cnn_train": "cnn"}
REMOVED_RNN = ("cudnnSetRNNDescriptor_v6", "cudnnGetRNNParamsSize", "cudnnGetRNNWorkspaceSize",
               "cudnnGetRNNTrainingReserveSize", "cudnnGetRNNLinLayerMatrixParams", "cudnnGetRNNLinLayerBiasParams",
               "cudnnRNNForwardTraining", "cudnnRNNForwardInference", "cudnnRNNBackwardData", "cudnnRNNBackwardWeights")
# Every CUDA operation of Jittor includes npp.h, for these; NPP itself, an image library, is in few installations.
NPP_LIMITS = {"NPP_MIN_32U": "0U", "NPP_MAX_32U": "4294967295U", "NPP_MIN_32S": "(-2147483647 - 1)",
              "NPP_MAX_32S": "2147483647", "NPP_MIN_64U": "0ULL", "NPP_MAX_64U": "18446744073709551615ULL",
              "NPP_MIN_64S": "(-9223372036854775807LL - 1)", "NPP_MAX_64S": "9223372036854775807LL"}

# What Jittor takes from CUB and CCCL 3 (CUDA 13) took out, put back around its header.
CUB = """#pragma once
#include_next <cub/cub.cuh>
#include <cub/version.cuh>
#if CUB_VERSION >= 300000
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
namespace cub {
struct Max {
    template <class T> __host__ __device__ T operator()(const T& a, const T& b) const { return a < b ? b : a; }
};
template <class Value, class Offset = ptrdiff_t> using CountingInputIterator = thrust::counting_iterator<Value>;
template <class Value, class Function, class Input, class Offset = ptrdiff_t>
struct TransformInputIterator : thrust::transform_iterator<Function, Input, Value> {
    __host__ __device__ TransformInputIterator(Input input, Function function)
        : thrust::transform_iterator<Function, Input, Value>(input, function) {}
};
#ifdef __CUDACC__
__device__ inline unsigned LaneId() {
    unsigned lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}
#endif
}  // namespace cub
#endif
"""

NVCC = '''#!/bin/bash
# Written by jseg: Jittor calls this as its nvcc.
words=(); result=; shared=; before=
for x in "$@"; do
    [ "$x" = -shared ] && shared=yes
    [ "$before" = -o ] && result=$x
    before=$x
    SWAPwords+=("$x")
done
if [ -z "$shared" ] || [ -z "$result" ] || [ ! -f "$1" ] || ! command -v flock > /dev/null; then
    exec "REAL_NVCC" "${words[@]}"
fi
draft=$result.$$
touch "$draft"
exec 9> "$result.lock"
flock 9
made=$( (printf '%s\\n' "${words[@]}"; cat "$1") | cksum)
if [ "$result.made" -nt "$draft" ] && [ "$(cat "$result.made")" = "$made" ]; then rm -f "$draft"; exit 0; fi
for i in "${!words[@]}"; do [ "${words[i]}" = "$result" ] && words[i]=$draft; done
"REAL_NVCC" "${words[@]}" && mv "$draft" "$result" && echo "$made" > "$result.made"
status=$?
rm -f "$draft"
exit $status
'''


def choose(gpus: list[dict], jittor_home: pathlib.Path, note: Callable[..., None]) -> dict[str, str]:
    """Decide the environment variables for a machine with a GPU.

    Args:
        gpus: as `runtime.gpus()` gives them, at least one.
        jittor_home: its `.cache/jittor` receives the folder of links.
        note: called with (topic, text, level, cure) for each finding.
    Returns:
        variables to set: always `nvcc_path`; where needed `cc_flags`, `conv_opt`, `nccl_include_path`, `nccl_lib_path`,
        `use_nccl`.
    """
    names = ", ".join(f"{g['name']} (sm_{g['capability'][0]}{g['capability'][1]}, {g['memory_mb']} MiB)" for g in gpus)
    nvcc = find_nvcc()
    if nvcc is None:
        note("cuda", f"{names}, but no nvcc: computing on the CPU", "warning",
             "pip install nvidia-cuda-nvcc nvidia-cuda-runtime "
             "nvidia-cublas nvidia-curand nvidia-cufft nvidia-cusparse nvidia-cudnn-cu13 nvidia-cuda-cccl")
        return {"nvcc_path": ""}
    release = nvcc_release(nvcc)
    includes, libraries = toolkit_folders(nvcc)
    missing = [name for name in LIBRARIES if name != "cudnn" and _library(libraries, name) is None]
    if missing or _header(includes, "cuda_runtime.h") is None:
        note("cuda",
             f"{names}, nvcc {release} at {nvcc}, but {', '.join('lib' + m for m in missing) or 'cuda_runtime.h'} "
             f"cannot be found in {', '.join(map(str, libraries))}: computing on the CPU, since Jittor's import would "
             "abort",
             "warning",
             f"install the CUDA {release[0]} toolkit's libraries, or their pip packages (nvidia-cublas, ...)")
        return {"nvcc_path": ""}
    chosen: dict[str, str] = {}
    cudnn = cudnn_major(includes)
    if cudnn is None or _library(libraries, "cudnn") is None:
        chosen["conv_opt"] = "1"
        note("cudnn", "not found: conv_opt=1, convolutions outside jseg's kernels run on Jittor's own code", "warning",
             f"pip install nvidia-cudnn-cu{release[0]}")
    else:
        note("cudnn", f"version {cudnn}")
    if needs_home(nvcc, release, cudnn, includes):
        nvcc = build_home(jittor_home / ".cache" / "jittor", nvcc, release, includes, libraries, cudnn)
        note("cuda", f"{names}; CUDA {release[0]}.{release[1]}, links under {nvcc.parents[1]}")
    else:
        note("cuda", f"{names}; CUDA {release[0]}.{release[1]} at {nvcc}")
    if release >= (13, 0):
        chosen["cc_flags"] = " -DclockRate=major -DcomputeMode=multiProcessorCount "
    if max(g["capability"] for g in gpus) > (9, 0):
        note("cuda", "this GPU is newer than sm_90, the newest Jittor 1.3.11 names; its kernels are built for "
             "sm_90 and may not run", "warning", "set cuda_arch and nvcc_flags by hand, or use a GPU up to sm_90")
    chosen.update(_nccl(includes, libraries, note))
    return {"nvcc_path": str(nvcc), **chosen}


def has_nccl() -> bool:
    """Whether NCCL's header and library are here under the names Jittor expects."""
    nvcc = find_nvcc()
    return nvcc is not None and "nccl_lib_path" in _nccl(*toolkit_folders(nvcc), lambda *words: None)


def _nccl(includes, libraries, note) -> dict[str, str]:
    header, library = _header(includes, "nccl.h"), _library(libraries, "nccl")
    if header and library and library.name == "libnccl.so":
        note("nccl", str(library))
        return {"nccl_include_path": str(header.parent), "nccl_lib_path": str(library.parent)}
    if header and library:
        note("nccl", f"{library} has only a versioned name; NCCL off, MPI carries the gradients", "warning",
             f"ln -s {library.name} {library.parent / 'libnccl.so'}")
    return {"use_nccl": "0"}


def find_nvcc() -> pathlib.Path | None:
    """The nvcc to use: on PATH, in /usr/local/cuda, or in pip's wheels."""
    candidates = [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc"]
    candidates += [str(p / "bin" / "nvcc") for p in _pip_roots()]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return pathlib.Path(candidate)
    return None


def nvcc_release(nvcc: pathlib.Path) -> tuple[int, int]:
    """(major, minor) as `nvcc --version` prints it; (0, 0) where it prints none."""
    text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _pip_roots() -> list[pathlib.Path]:
    """The `nvidia/<component>` folders of pip's wheels, e.g. nvidia/cu13, nvidia/cudnn, nvidia/cublas."""
    roots: list[pathlib.Path] = []
    for folder in dict.fromkeys([*site.getsitepackages(), *(p for p in sys.path if p.endswith("packages") or p)]):
        nvidia = pathlib.Path(folder) / "nvidia"
        if nvidia.is_dir():
            roots += sorted(p for p in nvidia.iterdir() if p.is_dir() and p not in roots)
    return roots


def toolkit_folders(nvcc: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Folders that may hold CUDA headers and libraries, the toolkit of this nvcc first, pip's wheels after it."""
    real = nvcc.resolve().parents[1]
    roots = list(dict.fromkeys([real, nvcc.parents[1], pathlib.Path("/usr/local/cuda"), *_pip_roots()]))
    includes = [r / d for r in roots for d in ("include", "targets/x86_64-linux/include")]
    libraries = [r / d for r in roots for d in ("lib64", "targets/x86_64-linux/lib", "lib")]
    libraries.append(pathlib.Path("/usr/lib/x86_64-linux-gnu"))
    includes.append(pathlib.Path("/usr/include"))
    return [p for p in includes if p.is_dir()], [p for p in libraries if p.is_dir()]


def _header(includes: list[pathlib.Path], name: str) -> pathlib.Path | None:
    return next((folder / name for folder in includes if (folder / name).is_file()), None)


def _library(libraries: list[pathlib.Path], name: str) -> pathlib.Path | None:
    """lib<name>.so, or the highest lib<name>.so.<version>, in the first folder that has one."""
    for folder in libraries:
        if (folder / f"lib{name}.so").exists():
            return folder / f"lib{name}.so"
        versioned = sorted(folder.glob(f"lib{name}.so.*"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
        if versioned:
            return versioned[-1]
    return None


def cudnn_major(includes: list[pathlib.Path]) -> int | None:
    """cuDNN's major version from its headers; None without cuDNN."""
    for name in ("cudnn_version.h", "cudnn_version_v9.h", "cudnn.h"):
        header = _header(includes, name)
        found = header and re.search(r"#define\s+CUDNN_MAJOR\s+(\d+)", header.read_text(errors="replace"))
        if found:
            return int(found[1])
    return None


def needs_home(nvcc: pathlib.Path, release: tuple[int, int], cudnn: int | None, includes: list[pathlib.Path]) -> bool:
    """Whether Jittor could not use the toolkit as it lies."""
    root = nvcc.resolve().parents[1]
    classic = all((root / "lib64" / f"lib{name}.so").exists() for name in LIBRARIES if name != "cudnn")
    return release >= (13, 0) or (cudnn or 0) >= 9 or not classic or _header(includes, "npp.h") is None


def build_home(cache: pathlib.Path, nvcc: pathlib.Path, release: tuple[int, int], includes: list[pathlib.Path],
               libraries: list[pathlib.Path], cudnn: int | None) -> pathlib.Path:
    """Build (or find) the folder of links and return its `bin/nvcc`.

    The folder's name carries a hash of what went in, this file included, so another toolkit gets another folder; it is
    filled under a temporary name and renamed, so a killed process leaves nothing half-made in use.
    """
    source = pathlib.Path(__file__).read_text(encoding="utf-8")
    key = hashlib.sha256("\n".join(map(str, [source, nvcc, release, cudnn, *includes,
                                             *libraries])).encode()).hexdigest()[:10]
    home = cache / f"jseg_cuda_{release[0]}.{release[1]}_{key}"
    if home.is_dir():
        return home / "bin" / "nvcc"
    draft = home.with_name(f"{home.name}.{os.getpid()}")
    for folder in ("bin", "include", "lib64"):
        (draft / folder).mkdir(parents=True, exist_ok=True)
    for folder in includes:
        if folder != pathlib.Path("/usr/include"):
            _link_tree(folder, draft / "include")
    for name in ("cudnn.h", "cudnn_version.h"):  # distributions keep cuDNN in /usr/include
        header = _header(includes, name)
        if header and not (draft / "include" / name).exists():
            _link_tree(header.parent, draft / "include", only="cudnn*.h")
    for folder in libraries:
        _link_libraries(folder, draft / "lib64", cuda_only=folder == pathlib.Path("/usr/lib/x86_64-linux-gnu"))
    if (cudnn or 0) >= 9:
        _adapt_cudnn9(draft)
    if not (draft / "include" / "npp.h").exists():
        limits = "".join(f"#define {name} {value}\n" for name, value in NPP_LIMITS.items())
        (draft / "include" / "npp.h").write_text(f"#pragma once\n{limits}")
    if release >= (13, 0) and not (draft / "include" / "cub").exists():  # CUB itself lies where nvcc looks by itself
        (draft / "include" / "cub").mkdir()
        (draft / "include" / "cub" / "cub.cuh").write_text(CUB)
    _write_nvcc(draft / "bin" / "nvcc", nvcc, release)
    try:
        draft.rename(home)
    except OSError:  # another process was first
        shutil.rmtree(draft, ignore_errors=True)
    return home / "bin" / "nvcc"


def _link_tree(source: pathlib.Path, target: pathlib.Path, only: str = "*") -> None:
    for entry in sorted(source.glob(only)):
        # of pip's wheels; CUDA's own headers have names like __target_macros
        if entry.name in ("__init__.py", "__pycache__"):
            continue
        place = target / entry.name
        if entry.is_dir():
            place.mkdir(exist_ok=True)  # packages share folder names: merge them file by file
            _link_tree(entry, place)
        elif not os.path.lexists(place):
            place.symlink_to(entry.resolve())


def _link_libraries(source: pathlib.Path, target: pathlib.Path, cuda_only: bool) -> None:
    """Link every library under its own name, its major-version name and its bare name."""
    for entry in sorted(source.iterdir()):
        found = re.fullmatch(r"(lib[^/]+\.so)(\.[\d.]+)?", entry.name)
        if not found and not entry.name.endswith(".a"):
            continue
        if cuda_only and not entry.name.startswith(tuple(f"lib{n}" for n in (*LIBRARIES, "nccl", "nvrtc"))):
            continue
        names = {entry.name}
        if found:
            names |= {found[1]} | ({f"{found[1]}.{found[2][1:].split('.')[0]}"} if found[2] else set())
        for name in names:
            if not os.path.lexists(target / name):
                (target / name).symlink_to(entry.resolve())


def _adapt_cudnn9(home: pathlib.Path) -> None:
    """Give cuDNN 9 the library names of cuDNN 8, and its header stand-ins for
    the removed RNN functions (unused by jseg).
    """
    for old, new in CUDNN9_NAMES.items():
        source, place = home / "lib64" / f"libcudnn_{new}.so", home / "lib64" / f"libcudnn_{old}.so"
        if source.exists() and not os.path.lexists(place):
            place.symlink_to(source.resolve())
    header = home / "include" / "cudnn.h"
    real = header.resolve()
    header.unlink()
    stubs = "\n".join(f"template <class... A> static inline cudnnStatus_t {name}(A...) {{ return "
                      f"CUDNN_STATUS_NOT_SUPPORTED; }}"
                      for name in REMOVED_RNN)
    header.write_text(f'#pragma once\n#include "{real}"\n#if defined(__cplusplus) && CUDNN_MAJOR >= '
                      f'9\n{stubs}\n#endif\n')


def _write_nvcc(place: pathlib.Path, nvcc: pathlib.Path, release: tuple[int, int]) -> None:
    """An nvcc for Jittor: C++17 where it asks for C++14, which CUDA 13's CUB and Thrust refuse; and of several
    processes that want the same operation at once (`-shared SOURCE ... -o RESULT`) one compiles it, at one stroke, and
    the others take what it made."""
    swap = '[ "$x" = -std=c++14 ] && x=-std=c++17; ' if release >= (13, 0) else ""
    place.write_text(NVCC.replace("SWAP", swap).replace("REAL_NVCC", str(nvcc)))
    place.chmod(0o755)
