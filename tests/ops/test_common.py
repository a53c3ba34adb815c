"""The choice of implementation, argument checks and the CPU library of jseg.ops."""

import pathlib
import subprocess
import sys

import jittor as jt
import numpy as np
import pytest

from jseg.errors import KernelError
from jseg.ops import cpu_library, depthwise, msca, nmf
from jseg.ops.case import Case
from jseg.ops.common import check_dtype, check_same, check_shape, pick

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _zeros(*shape):
    return jt.array(np.zeros(shape, np.float32))


def test_auto_takes_the_cpu_kernel_and_the_environment_overrides(monkeypatch):
    monkeypatch.delenv("JSEG_IMPL", raising=False)
    assert pick("auto", "msca", _zeros(1)) == "cpu"
    assert pick("auto", "msca", jt.array(np.zeros(1, np.float16))) == "jittor"
    monkeypatch.setenv("JSEG_IMPL", "jittor")
    assert pick("auto", "msca", _zeros(1)) == "jittor"
    assert pick("cpu", "msca", _zeros(1)) == "cpu"
    monkeypatch.setenv("JSEG_IMPL", "gpu")
    with pytest.raises(KernelError, match="JSEG_IMPL='gpu', accepted are auto, jittor, cpu, cuda"):
        pick("auto", "msca")


def test_an_explicit_choice_never_falls_back():
    with pytest.raises(KernelError, match="msca: impl='cpu' takes float32, got float16"):
        pick("cpu", "msca", jt.array(np.zeros(1, np.float16)))
    with pytest.raises(KernelError, match="nothing: there is no CPU kernel"):
        pick("cpu", "nothing")


def test_checks_name_the_tensor_and_both_shapes():
    with pytest.raises(KernelError, match=r"k: w is \(2, 3\), expected \(2, any, 4\)"):
        check_shape("k", "w", _zeros(2, 3), (2, None, 4))
    with pytest.raises(KernelError, match=r"k: b is \(3,\), a is \(2,\); they must be equal"):
        check_same("k", a=_zeros(2), b=_zeros(3))
    with pytest.raises(KernelError, match="k: a is float32, accepted are int32"):
        check_dtype("k", ("int32",), a=_zeros(2))
    with pytest.raises(AttributeError, match="case 'a' has no option 'y'; it has \\['x'\\]"):
        Case("a", x=1).y


def test_operations_refuse_what_does_not_fit():
    x = _zeros(1, 2, 8, 8)
    with pytest.raises(KernelError, match=r"depthwise: weight is \(3, 1, 3, 3\), expected \(2, 1, any, any\)"):
        depthwise(x, _zeros(3, 1, 3, 3))
    with pytest.raises(KernelError, match="activation is 'relu', accepted are None and 'gelu'"):
        depthwise(x, _zeros(2, 1, 3, 3), activation="relu")
    with pytest.raises(KernelError, match="has no output"):
        depthwise(x, _zeros(2, 1, 9, 9))
    with pytest.raises(KernelError, match="its kernel size must be odd"):
        msca(x, _zeros(2, 1, 4, 4), _zeros(2), [])
    with pytest.raises(KernelError, match=r"strips\[0\] w_col is \(2, 1, 5, 1\), expected \(2, 1, 7, 1\)"):
        msca(x, _zeros(2, 1, 5, 5), _zeros(2), [(_zeros(2, 1, 1, 7), _zeros(2), _zeros(2, 1, 5, 1), _zeros(2))])
    with pytest.raises(KernelError, match=r"nmf: bases is \(1, 3, 4\), expected \(1, 2, any\)"):
        nmf(_zeros(1, 2, 9), _zeros(1, 3, 4), steps=1)
    with pytest.raises(KernelError, match="grad is 'some', accepted are 'full' and 'one_step'"):
        nmf(_zeros(1, 2, 9), _zeros(1, 2, 4), steps=1, grad="some")


def test_a_missing_function_is_named():
    with pytest.raises(KernelError, match="no function 'jseg_msca_sideways'"):
        cpu_library.kernel_address("jseg_msca_sideways")


def test_counts_are_padded_to_few_stubs():
    x, w = _zeros(2), jt.array(np.zeros(2, np.int32))
    one = cpu_library.stub_key([x, x], [((2,), "float32")])
    assert one == cpu_library.stub_key([x, None, x, x], [((5,), "float32")])
    assert one != cpu_library.stub_key([x, w], [((2,), "float32")])


_AGREE = """
import jseg, numpy as np, jittor as jt
from jseg.ops.msca import cases
case = next(c for c in cases.CASES if c.name == "odd")
inputs = {k: jt.array(v.astype("float32")) for k, v in cases.make(case, np.random.default_rng(0)).items()}
a, b = cases.call(inputs, "cpu").numpy(), cases.call(inputs, "jittor").numpy()
print("difference", abs(a - b).max() / abs(b).max())
"""


def _agree():
    done = subprocess.run([sys.executable, "-c", _AGREE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("difference")[1]) < 1e-5, done.stdout
    return done.stderr


def test_a_second_process_compiles_nothing():
    _agree()
    assert "compiling CPU kernels" not in _agree()


def test_the_slowest_files_start_first_and_what_a_killed_process_left_goes(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(cpu_library, "_compile", lambda kernel, target: started.append(kernel)
                        or target.write_text("") and "")
    monkeypatch.setattr(cpu_library, "run_compiler", lambda command, target: "")
    monkeypatch.setattr(cpu_library.os, "cpu_count", lambda: 1)
    (tmp_path / "tmpleft.o").write_text("half")
    cpu_library._build_locked(tmp_path, {kernel: tmp_path / f"{kernel}.o" for kernel in cpu_library.cpu_kernels()})
    assert tuple(started[:len(cpu_library.SLOWEST_FIRST)]) == cpu_library.SLOWEST_FIRST
    assert sorted(started) == cpu_library.cpu_kernels() and not (tmp_path / "tmpleft.o").exists()
