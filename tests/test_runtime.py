"""The process is prepared right on machines unlike this one: faked drivers, toolkits and packages."""

import os
import subprocess
import sys

import pytest

from jseg import runtime, runtime_cuda

PROBE = "import jseg.runtime as r, os\nfor f in r.findings(): print(f.level, f.topic, f.text)\n"


def run(code: str, **env) -> subprocess.CompletedProcess:
    """Run code in a fresh process with variables added (None removes one)."""
    merged = {**os.environ, **{k: v for k, v in env.items() if v is not None}}
    for key in [k for k, v in env.items() if v is None] + ["nvcc_path", "cache_name", "use_mkl", "use_mpi",
                                                           "log_silent", "cc_path"]:
        if key not in env or env[key] is None:
            merged.pop(key, None)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=merged, timeout=120)


def test_import_leaves_jittor_alone_and_names_a_home():
    done = run("import jseg, sys, os; print('jittor' in sys.modules, os.environ['JITTOR_HOME'], "
               "os.environ['cache_name'])")
    assert done.returncode == 0, done.stderr
    imported, home, cache = done.stdout.split()
    assert imported == "False" and os.path.isdir(home) and cache.startswith("jseg_")


def test_users_own_variables_win():
    done = run(PROBE + "print(os.environ['cache_name'], os.environ['use_mkl'])", cache_name="mine", use_mkl="0")
    assert done.stdout.splitlines()[-1] == "mine 0"
    assert "use_mkl=0 is set" in done.stdout


def test_numpy_3_is_refused_when_jittor_is_imported_not_before(tmp_path):
    fake = tmp_path / "numpy-3.0.0.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 3.0.0\n")
    done = run("import jseg\nprint('jseg imports')\nimport jittor", PYTHONPATH=str(tmp_path))
    assert "jseg imports" in done.stdout
    assert done.returncode != 0
    assert "makes Jittor work with NumPy 1.26 and 2" in done.stderr and 'pip install "numpy>=1.26.4,<3"' in done.stderr


def test_a_machine_without_compiler_gets_the_command(tmp_path):
    python_only = tmp_path / "bin"
    python_only.mkdir()
    (python_only / "python").symlink_to(sys.executable)
    done = run("import jseg, jittor", PATH=str(python_only))
    assert done.returncode != 0 and "apt-get install -y g++" in done.stderr


def test_onednn_is_linked_into_an_empty_home(tmp_path):
    done = run(PROBE, JITTOR_HOME=str(tmp_path))
    lib = tmp_path / ".cache" / "jittor" / "mkl" / runtime.ONEDNN_FOLDER / "lib" / "libmkldnn.so"
    assert done.returncode == 0 and lib.exists(), done.stdout + done.stderr


def test_onednn_link_is_mended_when_its_environment_was_removed(tmp_path):
    folder = tmp_path / ".cache" / "jittor" / "mkl" / runtime.ONEDNN_FOLDER
    folder.mkdir(parents=True)
    (folder / "lib").symlink_to(tmp_path / "gone")
    assert run(PROBE, JITTOR_HOME=str(tmp_path)).returncode == 0
    assert (folder / "lib" / "libmkldnn.so").exists()


def fake_toolkit(root, release, *, versioned, cudnn):
    """A CUDA toolkit's layout with empty libraries: `versioned` as pip's wheels name them."""
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release {release}, '
                    f'V{release}.1"\necho "$@"\n')
    nvcc.chmod(0o755)
    for header in ("cuda_runtime.h", "npp.h"):
        (root / "include" / header).write_text("")
    (root / "include" / "nv" / "detail").mkdir(parents=True, exist_ok=True)
    (root / "include" / "nv" / "detail" / "__target_macros").write_text("macros")
    names = list(runtime_cuda.LIBRARIES) if cudnn else [n for n in runtime_cuda.LIBRARIES if n != "cudnn"]
    major = release.split(".")[0]
    for name in names:
        (root / "lib64" / (f"lib{name}.so.{major}" if versioned else f"lib{name}.so")).write_text(name)
    if cudnn:
        (root / "include" / "cudnn.h").write_text('#include "cudnn_version.h"\n')
        (root / "include" / "cudnn_version.h").write_text(f"#define CUDNN_MAJOR {cudnn}\n")
        for part in ("ops", "cnn") if cudnn >= 9 else ("ops_infer", "ops_train", "cnn_infer", "cnn_train"):
            (root / "lib64" / f"libcudnn_{part}.so.{cudnn}").write_text(part)
    return nvcc


def choose(monkeypatch, tmp_path, nvcc, capability=(8, 0)):
    """The variables chosen for one GPU and this nvcc alone, with the notes."""
    root = nvcc.parents[1]
    monkeypatch.setattr(runtime_cuda, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(runtime_cuda, "toolkit_folders", lambda _: ([root / "include"], [root / "lib64"]))
    notes = []
    chosen = runtime_cuda.choose([{"name": "Fake GPU", "capability": capability, "memory_mb": 1000}], tmp_path / "home",
                                 lambda *note: notes.append(note))
    return chosen, notes


def test_classic_cuda_11_with_cudnn_8_is_used_as_it_lies(monkeypatch, tmp_path):
    nvcc = fake_toolkit(tmp_path / "cuda", "11.8", versioned=False, cudnn=8)
    chosen, _ = choose(monkeypatch, tmp_path, nvcc)
    assert chosen["nvcc_path"] == str(nvcc) and "cc_flags" not in chosen and "conv_opt" not in chosen


def test_pip_cuda_13_with_cudnn_9_gets_a_home_of_links(monkeypatch, tmp_path):
    nvcc = fake_toolkit(tmp_path / "cuda", "13.0", versioned=True, cudnn=9)
    chosen, _ = choose(monkeypatch, tmp_path, nvcc)
    home = runtime_cuda.pathlib.Path(chosen["nvcc_path"]).parents[1]
    for name, content in {"libcublas.so": "cublas", "libcublas.so.13": "cublas", "libcudnn_ops_infer.so": "ops",
                          "libcudnn_cnn_train.so": "cnn"}.items():
        assert (home / "lib64" / name).read_text() == content, name
    echoed = subprocess.run([chosen["nvcc_path"], "-std=c++14", "-x", "cu file"], capture_output=True, text=True).stdout
    assert echoed.split() == ["-std=c++17", "-x", "cu", "file"]
    assert (home / "include" / "nv" / "detail" / "__target_macros").read_text() == "macros", (
        "headers whose names begin with underscores count")
    header = (home / "include" / "cudnn.h").read_text()
    assert str(tmp_path / "cuda/include/cudnn.h") in header and "cudnnRNNForwardTraining" in header
    assert "clockRate" in chosen["cc_flags"]
    assert choose(monkeypatch, tmp_path, nvcc)[0] == chosen, "a second process finds the same home"


def test_processes_that_want_one_operation_compile_it_once(tmp_path):
    real, place, source, result, log = (tmp_path / name for name in ("real", "nvcc", "op.cc", "op.so", "log"))
    real.write_text(f'#!/bin/bash\necho "$1" >> {log}\nsleep 0.4\necho compiled > "${{@: -1}}"\nexit ${{FAIL:-0}}\n')
    real.chmod(0o755)
    source.write_text("int x;")
    runtime_cuda._write_nvcc(place, real, (13, 0))
    command = [str(place), str(source), "-shared", "-o", str(result)]
    assert [p.wait() for p in [subprocess.Popen(command) for _ in range(4)]] == [0] * 4
    assert result.read_text() == "compiled\n" and len(log.read_text().splitlines()) == 1
    assert subprocess.run(command).returncode == 0 and len(log.read_text().splitlines()) == 2, (
        "who comes later has its own reason")
    before = {path.name for path in tmp_path.iterdir()}
    result.write_text("good")
    assert subprocess.run(command, env={**os.environ, "FAIL": "3"}).returncode == 3
    assert result.read_text() == "good" and {path.name for path in tmp_path.iterdir()} == before, (
        "a failure leaves what was there, and nothing else")


def test_no_cudnn_means_conv_opt(monkeypatch, tmp_path):
    nvcc = fake_toolkit(tmp_path / "cuda", "12.4", versioned=False, cudnn=None)
    chosen, notes = choose(monkeypatch, tmp_path, nvcc)
    assert chosen["conv_opt"] == "1" and any("pip install nvidia-cudnn-cu12" in str(n) for n in notes)


def test_missing_cublas_falls_back_to_the_cpu_with_a_cure(monkeypatch, tmp_path):
    nvcc = fake_toolkit(tmp_path / "cuda", "12.4", versioned=False, cudnn=8)
    (tmp_path / "cuda/lib64/libcublas.so").unlink()
    chosen, notes = choose(monkeypatch, tmp_path, nvcc)
    assert chosen == {"nvcc_path": ""} and any("libcublas cannot be found" in n[1] for n in notes)


def test_a_gpu_beyond_sm_90_is_pointed_out(monkeypatch, tmp_path):
    nvcc = fake_toolkit(tmp_path / "cuda", "12.8", versioned=False, cudnn=8)
    _, notes = choose(monkeypatch, tmp_path, nvcc, capability=(10, 0))
    assert any("newer than sm_90" in text and level == "warning"
               for _, text, level, _ in (n for n in notes if len(n) == 4))


def test_importing_jittor_leaves_pythons_signal_handlers():
    done = run("import signal, subprocess, time\nbefore = signal.getsignal(signal.SIGINT)\nimport jseg, jittor\n"
               "assert signal.getsignal(signal.SIGINT) is before\n"
               "child = subprocess.Popen(['sleep', '60'])\nchild.kill()\nchild.wait()\ntime.sleep(0.2)\nprint('alive')")
    assert done.returncode == 0 and "alive" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(bool(runtime.gpus()), reason="this machine has a GPU")
def test_nvcc_without_a_gpu_is_ignored():
    done = run("import jseg, os; print(repr(os.environ['nvcc_path']))", nvcc_path=None)
    assert done.stdout.strip() == "''"


def test_doctor_offline_proves_that_nothing_is_downloaded():
    done = subprocess.run([sys.executable, "-m", "jseg", "doctor", "--offline"], capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none was attempted" in done.stdout
