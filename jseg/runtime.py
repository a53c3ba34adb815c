"""The one place that prepares the process before `import jittor`, and answers "what am I on?".

`prepare()` runs when jseg is imported. It only sets environment variables that Jittor reads, links libraries that are
already on the machine to where Jittor looks for them, and installs a gate on `import jittor` that stops with a clear
word where Jittor would corrupt data, abort or download. A variable the user has set is never changed.
The facts behind each entry were measured on Jittor 1.3.11; `jseg doctor` prints what was found and decided.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import dataclasses
import glob
import importlib.abc
import importlib.machinery
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
import sysconfig

from jseg import runtime_signals, runtime_toolchain
from jseg.errors import RuntimeSetupError

__all__ = ["Finding", "prepare", "findings", "jittor_home", "core_is_built", "gpus", "describe", "in_job", "job_rank"]

ONEDNN_PACKAGE = "onednn-devel-cpu-gomp==2021.2.0"
ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"  # the folder name Jittor 1.3.11 looks for on Linux x86-64
PYTHON_VERSIONS = ((3, 9), (3, 14))  # tried: the first and the last
NUMPY_VERSIONS = ((1, 22), (3,))
CORE = "jittor_core*.so"
JITTOR_VERSIONS = ((1, 3, 11), (1, 3, 12))  # tried: at least the first, below the second


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of `jseg doctor`: what was looked at, what was found, what was chosen and why.

    `level` is "ok", "warning" (works, but less well) or "fatal" (Jittor must not be imported); `cure` is a command.
    """

    topic: str
    text: str
    level: str = "ok"
    cure: str = ""


_findings: list[Finding] = []
_prepared = False


def findings() -> list[Finding]:
    """What `prepare()` found, in the order it looked."""
    return list(_findings)


def prepare() -> None:
    """Set up the environment for Jittor once per process; later calls do nothing.

    A fatal finding raises nothing here, so that tools which need no Jittor work anywhere, but at the moment something
    imports Jittor.

    Raises:
        RuntimeSetupError: Jittor was imported before, unprepared, to its end or to an error.
    """
    global _prepared
    if _prepared:
        return
    begun = [name for name in ("jittor", "jittor_utils") if name in sys.modules]  # the second stays when a first fails
    if begun:
        failed = "" if "jittor" in begun else " (its import failed)"
        raise RuntimeSetupError(f"jittor was imported before jseg{failed}, so jseg could not prepare it (compiler, "
                                "CUDA, cache, NumPy): put `import jseg` above `import jittor`; in a notebook, restart "
                                "the kernel first")
    _prepared = True
    _check_python()
    _check_numpy()
    _check_opencv()
    runtime_toolchain.find_compiler(_add_finding)
    _check_home()
    _choose("JITTOR_HOME", str(jittor_home()))  # Jittor stores the last value it saw for later runs; always name ours
    _choose("log_silent", "0" if os.environ.get("JSEG_VERBOSE") == "1" else "1")
    _choose("FIX_TORCH_ERROR", "0")  # otherwise Jittor imports torch where it is installed
    _choose("use_cutt", "0")         # both are downloads that jseg never uses
    _choose("use_cutlass", "0")
    # its threads change one graph without a lock: a first step could end in a segmentation fault
    _choose("use_parallel_op_compiler", "1")
    _choose_waiting()
    _prepare_onednn()
    _prepare_mpi()
    if in_job():
        _prepare_share()
    _prepare_cuda()
    _choose("cache_name", _cache_name())  # changed flags on one cache make Jittor exit with status 0 and run nothing
    sys.meta_path.insert(0, _JittorGate())


def jittor_home() -> pathlib.Path:
    """The folder whose `.cache/jittor` holds everything Jittor compiles: `JITTOR_HOME` or the user's home."""
    return pathlib.Path(os.environ.get("JITTOR_HOME") or pathlib.Path.home()).absolute()


def core_is_built() -> bool:
    """Whether Jittor's core has been compiled for this cache name, here (the first import takes minutes otherwise)."""
    return core_finding().level == "ok" and bool(_in_cache(CORE))


def core_finding() -> Finding:
    """Whether the next import of Jittor takes seconds or minutes, and why."""
    from jseg import runtime_import
    found = [pathlib.Path(path) for path in _in_cache(CORE)]
    if not found and _in_cache(CORE, host="*"):
        return Finding("core", f"built for another host name or kernel than {platform.node()}, {platform.release()}, "
                       "which are part of the cache's name: the next import of Jittor builds it for these, in 2 to 4 "
                       "minutes", "warning",
                       "jseg warmup   (a container: give it one name, docker run --hostname)")
    if not found:
        return Finding("core", "not built yet: the first import of Jittor takes 2 to 4 minutes")
    if not any(map(runtime_import.was_built_here, found)):
        return Finding("core", f"the cache {found[0].parent} was moved or copied here, and Jittor's files know where "
                       "they were made: the next import of Jittor builds them again, in 2 to 4 minutes", "warning",
                       "jseg warmup   (in an image: as its last step)")
    return Finding("core", "built")


def operations_finding() -> Finding:
    """How Jittor's operations are compiled, as an earlier import of Jittor left it."""
    from jseg import runtime_compiler
    return Finding(*runtime_compiler.describe([pathlib.Path(path) for path in _in_cache(runtime_compiler.FOLDER)]))


def _in_cache(name: str, host: str | None = None) -> list[str]:
    """The paths of this name (a pattern) in Jittor's cache folders for this Python, host and cache name."""
    from jseg import runtime_import
    pattern = (jittor_home() / ".cache" / "jittor" / "jt*" / "*" / f"py{platform.python_version()}"
               / (host or runtime_import.host_folder()) / "*" / "*")
    cache = os.environ.get("cache_name", "default")
    return glob.glob(str(pattern / cache / name)) + glob.glob(str(pattern / cache / "*" / name))


def gpus() -> list[dict]:
    """The NVIDIA GPUs the driver offers: a list of {name, capability (major, minor), memory_mb}; empty without any."""
    name = ctypes.util.find_library("cuda") or "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = []
    for index in range(count.value):
        device, text, memory = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_size_t()
        major, minor = ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(text, 100, device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        found.append({"name": text.value.decode(), "capability": (major.value, minor.value),
                      "memory_mb": memory.value >> 20})
    return found


def in_job() -> bool:
    """Whether mpirun started this process, alone or with others."""
    return "OMPI_COMM_WORLD_SIZE" in os.environ


def job_rank() -> int:
    """This process's number in its MPI job, known before Jittor is imported; 0 without MPI."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))


def cpu_fact(name: str) -> str:
    """What the kernel tells of the first processor under a name of /proc/cpuinfo, such as "flags"; "" for nothing."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def cpu_name() -> str:
    """The processor's own name, as the kernel tells it."""
    return cpu_fact("model name") or platform.processor() or platform.machine()


def describe() -> str:
    """One line for logs and reports: the device that will compute, threads, Python, Jittor and NumPy versions."""
    found = gpus() if os.environ.get("nvcc_path") else []
    threads = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    device = found[0]["name"] if found else f"{cpu_name()}, {threads} thread{'' if threads == '1' else 's'}"
    return (f"{device}; Python {platform.python_version()}, Jittor {_version('jittor') or 'absent'}, "
            f"NumPy {_version('numpy') or 'absent'}")


# -- the steps of prepare() ------------------------------------------------------------------------------------------


def _add_finding(topic: str, text: str, level: str = "ok", cure: str = "") -> None:
    _findings.append(Finding(topic, text, level, cure))


def _choose(name: str, value: str) -> str:
    """Set an environment variable unless the user has; returns the value in force."""
    if name in os.environ and os.environ[name] != value:
        _add_finding("environment", f"{name}={os.environ[name]} is yours and stays (jseg would set {value!r})")
    return os.environ.setdefault(name, value)


def _choose_waiting() -> None:
    """Let idle OpenMP threads sleep soon. By default they spin for milliseconds at every barrier, which on a machine
    shared with data workers (or anybody) takes the core from the thread they wait for: steps measured 4 times
    slower."""
    if "OMP_WAIT_POLICY" not in os.environ:
        _choose("GOMP_SPINCOUNT", "2000")  # iterations, some 10 microseconds; no cost was measurable on an idle machine


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(p) for p in version.split(".")[:3] if p.isdigit())


def _check_python() -> None:
    here = f"{platform.python_version()} at {sys.executable}"
    if not PYTHON_VERSIONS[0] <= sys.version_info[:2] <= PYTHON_VERSIONS[1] or sysconfig.get_config_var(
        "Py_GIL_DISABLED"):
        _add_finding("python", f"{here}: Jittor works with Python 3.9 to 3.14, and not with a free-threaded one",
              "fatal", "make a virtual environment with one of them: python3.11 -m venv .venv")
    else:
        _add_finding("python", here)


def _check_numpy() -> None:
    numpy, jittor = _version("numpy"), _version("jittor")
    if numpy is None or not NUMPY_VERSIONS[0] <= _numbers(numpy) < NUMPY_VERSIONS[1]:
        _add_finding("numpy", f"{numpy or 'not installed'}: jseg makes Jittor work with NumPy 1.26 and 2", "fatal",
              'pip install "numpy>=1.26.4,<3"')
    elif _numbers(numpy) >= (2,):
        _add_finding("numpy",
              f"{numpy}; Jittor knows NumPy 1 only, so it is imported with six of its files changed, from "
              "links in its cache (jseg_numpy2_*); the installed package stays as it is")
    else:
        _add_finding("numpy", numpy)
    if jittor is None:
        _add_finding("jittor", "not installed", "fatal",
              "pip install --no-deps jittor==1.3.11.0   (its dependencies came with jseg)")
    elif not JITTOR_VERSIONS[0] <= _numbers(jittor) < JITTOR_VERSIONS[1]:
        _add_finding("jittor", f"{jittor} has not been tried; 1.3.11 has", "warning", "pip install jittor==1.3.11.0")
    else:
        _add_finding("jittor", jittor)


def _check_opencv() -> None:
    """OpenCV goes by several names on PyPI; what is wrong with a version does not stop Jittor."""
    found = next(filter(None, map(_version, ("opencv-python-headless", "opencv-python",
                                             "opencv-contrib-python-headless", "opencv-contrib-python"))), None)
    if found and _numbers(found) >= (5,):
        _add_finding("opencv",
                     f"{found} rounds nearest neighbours otherwise than 4: masks that RandomRotate turns differ at "
                        "their borders from MMSegmentation's",
              "warning", 'pip install "opencv-python-headless>=4.9,<5"')
    elif found:
        _add_finding("opencv", found)


def _check_home() -> None:
    """See that Jittor can write its cache, which it does at every start."""
    folder = jittor_home() / ".cache" / "jittor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"[Errno 13] Permission denied: {str(folder)!r}")
    except OSError as error:
        _add_finding("cache", f"Jittor compiles into {folder}, which cannot be written: {error}", "fatal",
              "export JITTOR_HOME=FOLDER, a folder that you can write")
        return
    _add_finding("cache", str(folder))


def _prepare_onednn() -> None:
    """Link PyPI's oneDNN to where Jittor would download it to; without it, turn oneDNN off (3x3 convs ~75x slower)."""
    target = jittor_home() / ".cache" / "jittor" / "mkl" / ONEDNN_FOLDER
    if os.environ.get("use_mkl") == "0":
        _add_finding("oneDNN", "off, because use_mkl=0 is set")
        return
    source = _onednn_prefix()
    if source is not None:
        try:
            for name in ("include", "lib"):
                _link(source / name, target / name)
        except OSError as error:
            _add_finding("oneDNN", f"cannot link it into {target}: {error}", "warning",
                         f"make {target.parent} writable")
    if (target / "lib" / "libmkldnn.so").exists():
        _add_finding("oneDNN", f"{(target / 'lib').resolve()}")
        return
    _choose("use_mkl", "0")
    cure = f"pip install {ONEDNN_PACKAGE}" if platform.machine() == "x86_64" else ""
    _add_finding("oneDNN", f"not found for {platform.system()} {platform.machine()}; turned off, so that Jittor does "
          "not try to download it (convolutions outside jseg's kernels become much slower)", "warning", cure)


def _onednn_prefix() -> pathlib.Path | None:
    try:
        package = importlib.metadata.distribution("onednn-devel-cpu-gomp")
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in package.files or ():
        if file.name == "dnnl.h":
            return pathlib.Path(package.locate_file(file)).resolve().parents[1]
    return None


def _link(source: pathlib.Path, link: pathlib.Path) -> None:
    """Make `link` point to `source` unless something that exists is there;
    safe when several processes start at once.
    """
    if link.exists() or not source.is_dir():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    draft = link.with_name(f".{link.name}-{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(source)
    draft.replace(link)


def _prepare_mpi() -> None:
    """MPI costs a compile and an import; it is on only under mpirun."""
    if not in_job():
        _choose("use_mpi", "0")
        _add_finding("mpi", "off (not under mpirun)")
        return
    # inherited from a parent that was no rank, 0 would end Jittor's import with an AttributeError
    os.environ["use_mpi"] = "1"
    if not shutil.which("mpicc"):
        _add_finding("mpi", "mpirun started this process but there is no mpicc for Jittor to build with", "fatal",
              "apt-get install -y openmpi-bin libopenmpi-dev")
    else:
        _add_finding("mpi", f"on, rank {job_rank()} of {os.environ['OMPI_COMM_WORLD_SIZE']}")


def _local(kind: str, default: int) -> int:
    """This host's part of the job: "RANK" among, or "SIZE" of, its processes;
    other starters than mpirun have names of their own.
    """
    others = {"RANK": ("MPI_LOCALRANKID", "SLURM_LOCALID", "PMI_LOCAL_RANK"),
              "SIZE": ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")}[kind]
    found = (os.environ.get(name, "") for name in (f"OMPI_COMM_WORLD_LOCAL_{kind}", *others))
    return next((int(value) for value in found if value.isdigit()), default)


def _prepare_share() -> None:
    """Split this host between the ranks on it: cores, and GPUs where NCCL does not hand them out itself."""
    local_rank, local_size = _local("RANK", 0), _local("SIZE", 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bound = os.environ.get("OMPI_MCA_orte_bound_at_launch") == "1"  # mpirun has given each rank cores of its own
    _choose("OMP_NUM_THREADS", str(cores if bound else max(1, cores // local_size)))
    alone = bound and cores * local_size < (os.cpu_count() or 1)
    _add_finding("cores", f"{os.environ['OMP_NUM_THREADS']} threads for local rank {local_rank} of {local_size}"
          + (f", bound by mpirun to {cores} of {os.cpu_count()} cores" if alone else ""), "warning" if alone else "ok",
          "start with mpirun --bind-to none, or with jseg launch" if alone else "")
    # a rank that waits spins: let data workers and other ranks have its core
    _choose("OMPI_MCA_mpi_yield_when_idle", "1")
    visible = _visible_gpus()
    if not visible or "nvcc_path" in os.environ and not os.environ["nvcc_path"]:
        return
    from jseg import runtime_cuda
    if local_size > len(visible):
        _add_finding("cuda", f"{local_size} ranks on this host and {len(visible)} GPUs: ranks share GPUs, and MPI "
                      "carries the gradients", "warning",
              f"start {len(visible)} ranks per host, or compute on the CPU with jseg launch --cpu")
    elif os.environ.get("use_nccl") != "0" and runtime_cuda.has_nccl():
        return  # Jittor's NCCL code takes the GPU of the local rank, and needs to see all
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[local_rank % len(visible)]  # before anything asks the driver


def _visible_gpus() -> list[str]:
    """Names of the GPUs as CUDA_VISIBLE_DEVICES takes them, without waking the driver:
    it reads that variable only once.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    return [str(i) for i in range(len(glob.glob("/proc/driver/nvidia/gpus/*")))]


def _prepare_cuda() -> None:
    if "nvcc_path" in os.environ:
        _add_finding("cuda", f"nvcc_path={os.environ['nvcc_path']!r} is yours and stays")
        return
    found = gpus()
    if not found:
        os.environ["nvcc_path"] = ""  # with nvcc but no GPU, Jittor aborts at import
        _add_finding("cuda", "no usable NVIDIA GPU (no driver or no device): computing on the CPU"
              + ("; nvcc is ignored" if shutil.which("nvcc") else ""))
        return
    from jseg import runtime_cuda  # only machines with a GPU pay for the search
    for name, value in runtime_cuda.choose(found, jittor_home(), _add_finding).items():
        _choose(name, value)


def _cache_name() -> str:
    """One cache per set of flags: Jittor does not notice a change of flags in an old cache."""
    # MPI changes no flag of the core or of a kernel: no part
    parts = ["jseg", "gpu" if os.environ.get("nvcc_path") else "cpu"]
    parts += ["numpy2"] if _numbers(_version("numpy") or "") >= (2,) else []
    parts += ["nomkl"] if os.environ.get("use_mkl") == "0" else []
    parts += ["noconv"] if os.environ.get("conv_opt") == "1" else []
    return "_".join(parts)


class _JittorGate(importlib.abc.MetaPathFinder):
    """Stops `import jittor` on a fatal finding, announces a long first build, and checks the import afterwards."""

    def find_spec(self, name, path=None, target=None):
        """Answer for the module `jittor` alone, at every try: a search without an import must not open the way."""
        if name != "jittor":
            return None
        fatal = [f for f in _findings if f.level == "fatal"]
        if fatal:
            raise RuntimeSetupError("\n".join(f"{f.topic}: {f.text}" + (f"\n  cure: {f.cure}" if f.cure else "")
                                              for f in fatal))
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        from jseg import runtime_compiler, runtime_import, runtime_numpy  # only processes that compute pay for them
        if _numbers(_version("numpy")) >= (2,) or runtime_toolchain.has_new_headers():
            spec = runtime_numpy.overlay_spec(spec, jittor_home() / ".cache" / "jittor")
        execute = spec.loader.exec_module

        def exec_and_check(module):
            with runtime_signals.guarded_import(runtime_import.import_utilities):
                runtime_import.execute_jittor(execute, module, quiet=job_rank() != 0)
            runtime_import.survive_forks(module)
            runtime_import.await_threads_at_exit()
            runtime_compiler.prepare(module, _add_finding, quiet=job_rank() != 0)
            runtime_numpy.take_foreign_arrays(module)
            runtime_numpy.check_arrays(module)

        spec.loader.exec_module = exec_and_check
        return spec


