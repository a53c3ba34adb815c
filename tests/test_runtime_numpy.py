"""Arrays of every type and form go into Jittor and come back, under NumPy 1 and 2;
the overlay for NumPy 2 is made of checked changes.
"""

import concurrent.futures
import importlib.machinery
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jseg import runtime, runtime_numpy
from jseg.errors import RuntimeSetupError

INSTALLED = next(pathlib.Path(folder) / "jittor"
                 for folder in sys.path if (pathlib.Path(folder) / "jittor" / "__init__.py").is_file())
TYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16",
         "float32", "float64")
SHAPES = ((), (1,), (7,), (0,), (0, 3), (2, 0), (1, 1), (3, 5), (2, 3, 4), (2, 1, 3, 2, 2))
FORMS = {
    "whole": lambda x: x,
    "transposed": lambda x: x.T,
    "reversed": lambda x: x[..., ::-1] if x.ndim else x,
    "every second": lambda x: x[::2] if x.ndim else x,
    "Fortran order": np.asfortranarray,
    "read-only": lambda x: (x.setflags(write=False), x)[1],
    "repeated": lambda x: np.broadcast_to(x, (2, *x.shape)),
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "other byte order, reversed": lambda x: x.astype(x.dtype.newbyteorder())[..., ::-1] if x.ndim else x,
    "not aligned": lambda x: np.ndarray(x.shape, x.dtype, b"\0" + x.tobytes(), 1) if x.size else x,
    "a field of records": lambda x: np.array([(1, v) for v in x.ravel()],
                                             [("a", "i1"), ("b", x.dtype)])["b"].reshape(x.shape),
    "a subclass": lambda x: x.view(type("Mine", (np.ndarray,), {})),
}


@pytest.fixture(scope="module")
def jt():
    """Jittor, prepared."""
    import jittor
    return jittor


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TYPES)
def test_arrays_come_back_as_they_went_in(jt, kind, form):
    for shape in SHAPES:
        size = int(np.prod(shape))
        if size == 1 and kind not in ("float32", "int32"):
            continue  # one number alone is an operation of its own, whose compiling would be all this test does
        array = FORMS[form]((np.arange(size) * 3 % 7 - (3 if kind[0] in "if" else 0)).astype(kind).reshape(shape))
        if form == "a subclass" and type(array) is not np.ndarray:
            with pytest.raises(Exception, match="not support"):
                jt.array(array)
            continue
        found = jt.array(array).numpy()
        assert found.shape == (array.shape or (1,)), (shape, found.shape)
        assert np.array_equal(found.astype("float64"), np.atleast_1d(array).astype("float64")), (shape, array, found)


@pytest.mark.parametrize("kind", TYPES)
def test_two_round_trips_and_views_of_jittors_memory(jt, kind):
    array = (np.arange(12) % 3).astype(kind).reshape(3, 4)
    once = jt.array(array)
    assert np.array_equal(jt.array(once.numpy()).numpy(), once.numpy())
    assert np.array_equal(once.data, array) and once.numpy().dtype == once.data.dtype


@pytest.mark.parametrize("number", [np.float32(1), np.int64(1), np.int8(1), np.uint8(1), np.float64(1)])
def test_numpys_numbers_are_numbers_and_indices(jt, number):
    whole = jt.array(np.arange(12, dtype="float32").reshape(3, 4))
    assert jt.array(number).numpy().tolist() == [1]
    if number.dtype.kind in "iu":
        assert whole[number].numpy().tolist() == [4, 5, 6, 7] and whole[number, number].numpy().tolist() == [5]


def test_lists_and_wide_numbers(jt):
    assert jt.array([[1.0, 2.5], [3, 4]]).numpy().tolist() == [[1, 2.5], [3, 4]]
    assert jt.array(np.array([1.5, -2.25], dtype=np.longdouble)).numpy().tolist() == [1.5, -2.25]
    assert jt.array(np.array([1.5, 2], dtype=">f8"), dtype="float64").numpy().tolist() == [1.5, 2]


@pytest.mark.parametrize("array", [np.array([None, 1], dtype=object), np.array(["a", "b"]), np.array([1 + 2j, 3]),
                                   np.array([b"x"]),
                                   np.array(["2020-01-01"], dtype="M8[D]")], ids=lambda array: array.dtype.kind)
def test_what_is_no_number_is_refused(jt, array):
    with pytest.raises(Exception, match="not support"):
        jt.array(array)


def test_the_check_after_import_finds_a_jittor_that_misreads(jt):
    import types
    right = jt.array
    runtime_numpy.check_arrays(jt)

    def short(data):  # as Jittor 1.3.11 copies under NumPy 2: another number of bytes
        return types.SimpleNamespace(numpy=lambda: np.where(np.arange(found.size).reshape(found.shape) > 2, 0, found)) \
            if (found := right(data).numpy()).dtype == "float64" or found.dtype == "int16" else right(data)

    for wrong in (short, lambda data: right(np.asarray(data, dtype="float32")) if data.dtype == object
                  else right(data)):
        with pytest.raises(RuntimeSetupError, match="NumPy"):
            runtime_numpy.check_arrays(types.SimpleNamespace(array=wrong, __version__="1.3.11"))


def test_the_overlay_is_links_and_the_changed_files(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: runtime_numpy.make_overlay(INSTALLED, tmp_path), range(4)))
    assert len(folders) == 1 and len(list(tmp_path.iterdir())) == 1, "processes that start at once leave one overlay"
    folder = folders.pop()
    for name, changes in runtime_numpy.CHANGES.items():
        assert not (folder / name).is_symlink() and all(new in (folder / name).read_text() for _, new in changes)
    files = {str(p.relative_to(folder)) for p in map(pathlib.Path, _all_files(folder))}
    assert files == {str(p.relative_to(INSTALLED)) for p in map(pathlib.Path, _all_files(INSTALLED))
                     if p.parent != INSTALLED / "__pycache__"}
    own = [name for name in files if not os.path.islink(folder / name)
           and not any(p.is_symlink() for p in (folder / name).parents)]
    assert sorted(own) == sorted(runtime_numpy.CHANGES), "only the changed files are files"


def _all_files(folder: pathlib.Path) -> list[str]:
    return [os.path.join(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names]


def test_jittor_is_found_in_the_overlay_and_the_installed_package_is_untouched(tmp_path):
    installed = importlib.machinery.PathFinder.find_spec("jittor", [str(INSTALLED.parent)])
    before = sorted(_all_files(INSTALLED))
    spec = runtime_numpy.overlay_spec(installed, tmp_path)
    assert spec.origin.startswith(str(tmp_path)) and list(spec.submodule_search_locations) == [
        str(pathlib.Path(spec.origin).parent)]
    assert sorted(_all_files(INSTALLED)) == before


def test_a_jittor_whose_sources_are_others_is_refused_with_the_text_that_is_missing(tmp_path):
    shutil.copytree(INSTALLED / "src" / "pyjt", tmp_path / "jittor" / "src" / "pyjt")
    source = tmp_path / "jittor" / "src" / "pyjt" / "numpy.cc"
    source.write_text(source.read_text().replace("PyArray_CopyInto, 82", "PyArray_CopyInto, 81"))
    with pytest.raises(RuntimeSetupError, match=r"(?s)numpy\.cc is not the file of Jittor 1\.3\.11: "
                                                r"'fill\(PyArray_CopyInto, 82\);' occurs.*cure: pip"):
        runtime_numpy.make_overlay(tmp_path / "jittor", tmp_path / "cache")
    assert not (tmp_path / "cache").exists(), "nothing half-made"


def test_the_changed_sources_compile_and_know_both_layouts(tmp_path):
    """Each NumPy's own size of an element, read by the changed header's code from NumPy's own description."""
    if not shutil.which("g++"):
        pytest.skip("no g++")
    from jseg import runtime_import
    header = (runtime_numpy.make_overlay(INSTALLED, tmp_path) / "src" / "pyjt" / "numpy.h").read_text()
    start, end = header.index("struct PyArrayDescr_Proxy"), header.index("struct PyArray_Proxy")
    size = header[header.index("inline bool is_numpy2()"):header.index("inline int64 PyArray_Size")]
    (tmp_path / "probe.cc").write_text(
        "#include <Python.h>\ntypedef long long int64;\nstatic unsigned version;\nstatic unsigned "
        "PyArray_GetNDArrayCFeatureVersion() { return version; }\n"
        f'{header[start:end]}{size}\nextern "C" long long probe(void* descr, unsigned numpy) {{ version = numpy; '
        "return numpy_elsize((PyArrayDescr_Proxy*)descr) * 1000 + ((PyArrayDescr_Proxy*)descr)->type_num; }\n")
    subprocess.run(f"g++ -shared -fPIC {runtime_import.include_flags()} probe.cc -o probe.so", shell=True,
                   check=True, cwd=tmp_path)
    import ctypes
    probe = ctypes.CDLL(str(tmp_path / "probe.so")).probe
    probe.restype, probe.argtypes = ctypes.c_longlong, [ctypes.c_void_p, ctypes.c_uint]
    here = 0x12 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 0x11
    for kind in TYPES:
        dtype = np.dtype(kind)
        assert probe(id(dtype), here) == dtype.itemsize * 1000 + dtype.num, kind


def test_the_note_to_upstream_has_the_changes_as_they_are_made():
    note = (pathlib.Path(__file__).resolve().parents[1] / "docs" / "jittor_numpy2.md").read_text(encoding="utf-8")
    marked = {sign: {line[1:].strip() for line in note.splitlines() if line.startswith(sign)} for sign in "+-"}
    for changes in runtime_numpy.CHANGES.values():
        for old, new in changes:
            before, after = ({line.strip() for line in text.splitlines() if line.strip()} for text in (old, new))
            assert after - before <= marked["+"] and before - after <= marked["-"], old


def test_a_numpy_of_another_major_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_findings", [])
    monkeypatch.setattr(runtime, "_version", {"numpy": "3.0.0", "jittor": "1.3.11.0"}.get)
    runtime._check_numpy()
    assert runtime.findings()[0].level == "fatal" and "<3" in runtime.findings()[0].cure


def test_numpy_does_not_warn_of_denormals_that_jittor_switches_off():
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c",
                           "import jseg, jittor as jt; (jt.array([1.0, 2.5]) * 3).sync(); import numpy; "
                           "print(numpy.finfo('float32').eps, numpy.finfo('float64').eps)"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "subnormal" not in done.stderr, done.stderr


def test_opencv_5_is_pointed_out(monkeypatch):
    monkeypatch.setattr(runtime, "_findings", [])
    for version, level in (("4.14.0.94", "ok"), ("5.0.0.93", "warning")):
        monkeypatch.setattr(runtime, "_version", {"opencv-python": version}.get)
        runtime._check_opencv()
        assert runtime.findings()[-1].level == level and version in runtime.findings()[-1].text
