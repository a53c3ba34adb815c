"""Make Jittor 1.3.11 work with NumPy 2, Python 3.13 and g++ 15, and see after every import that arrays go in and out
of Jittor unchanged.

Jittor reads NumPy's structures by hand, as NumPy 1 lays them out. NumPy 2 moved an array's element size and one entry
of its table of functions (docs/jittor_numpy2.md), so Jittor would copy a wrong number of bytes, and call a null
pointer. The cure is an overlay: a folder in Jittor's cache that holds links to the installed package's files, and
changed copies of those named in `CHANGES`. With NumPy 2, or g++ from 15 on, Jittor is imported from there; the
installed package stays as it is. The changed sources ask NumPy for its version when they run.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import os
import pathlib
import tempfile
from typing import Any

from jseg.errors import RuntimeSetupError

__all__ = ["CHANGES", "make_overlay", "overlay_spec", "take_foreign_arrays", "check_arrays"]

_DESCRIPTION = """// NumPy 2 lays a description of elements out in another way; what comes before is the same in both.
struct PyArrayDescr2_Proxy {
    PyObject_HEAD
    PyObject* typeobj;
    char kind;
    char type;
    char byteorder;
    char unused;
    int type_num;
    unsigned long long flags;
    Py_ssize_t elsize;
    Py_ssize_t alignment;
};

struct PyArray_Proxy {"""
_SIZE = """// 0x12 is the version of the C interface that NumPy 2.0 has.
inline bool is_numpy2() { return PyArray_GetNDArrayCFeatureVersion() >= 0x12; }
inline int64 numpy_elsize(PyArrayDescr_Proxy* descr) {
    return is_numpy2() ? ((PyArrayDescr2_Proxy*)descr)->elsize : descr->elsize;
}

inline int64 PyArray_Size(PyArray_Proxy* arr) {"""
_CAST = """PyArrayDescr_Proxy array_descr;
        array_descr.type_num = 5; // 5: int32
        int value;
        PyArray_CastScalarToCtype(obj, &value, &array_descr);"""
_CONVERSION = """PyObjHolder number(PyNumber_Long(obj));
        int value = (int)PyLong_AsLong(number.obj);"""
# file of the package -> (text that occurs in it once, what takes its place)
CHANGES = {
    "src/pyjt/numpy.h": (
        ("struct PyArray_Proxy {", _DESCRIPTION),
        ("inline int64 PyArray_Size(PyArray_Proxy* arr) {", _SIZE),
        ("size *= arr->descr->elsize;", "size *= numpy_elsize(arr->descr);"),
    ),
    "src/pyjt/numpy.cc": (
        ("fill(PyArray_CopyInto, 82);", "fill(PyArray_CopyInto, is_numpy2() ? 50 : 82);"),
    ),
    "src/pyjt/py_converter.h": (
        (_CAST, _CONVERSION),
    ),
    # g++ 15, whose containers do not bring uint8_t and the like any more, and which reads templates that nobody uses
    "src/types.h": (
        ("#include <memory>", "#include <memory>\n#include <cstdint>"),
    ),
    "src/misc/stack_vector.h": (
        ("inline T operator*() { return self->at(index); }", "inline T operator*() { return self->a[index]; }"),
    ),
    # Python 3.13, which no NumPy 1 has wheels for: what exec() defines is not in a function's locals() any more
    "compiler.py": (
        ("    mod = locals()[gen_name]", "    mod = sys.modules[gen_name]"),
    ),
}


_CURE = 'pip install --no-deps --force-reinstall jittor==1.3.11.0, or pip install "numpy>=1.26.4,<2"'


def make_overlay(package: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """Make, or find, the overlay of the installed package `jittor`; safe when several processes start at once.

    Args:
        package: the folder of the installed package.
        cache: Jittor's cache, which gets a folder named by what goes into the overlay.
    Returns:
        the overlay's folder `jittor`.
    Raises:
        RuntimeSetupError: a text of `CHANGES` is not in its file exactly once, or the cache cannot be written.
    """
    changed = {}
    for name, changes in CHANGES.items():
        try:
            text = (package / name).read_text(encoding="utf-8")
        except OSError as error:
            raise RuntimeSetupError(f"jittor: {package / name} cannot be read: {error}\n  cure: {_CURE}") from error
        for old, new in changes:
            if text.count(old) != 1:
                raise RuntimeSetupError(f"jittor: {package / name} is not the file of Jittor 1.3.11: {old!r} occurs in "
                                        f"it {text.count(old)} times, not once, so it cannot be made to work with "
                                        f"NumPy 2\n  cure: {_CURE}")
            text = text.replace(old, new)
        changed[name] = text
    names = sorted(str(path.relative_to(package)) for path in package.iterdir())
    key = hashlib.sha256("\0".join([str(package), *names, *changed.values()]).encode()).hexdigest()[:10]
    home = cache / f"jseg_numpy2_{key}"
    if not home.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{home.name}.", dir=cache) as draft:
                _link_entries(package, pathlib.Path(draft) / "new" / "jittor", changed)
                os.rename(pathlib.Path(draft) / "new", home)
        except OSError as error:
            if not home.is_dir():  # otherwise another process was first
                raise RuntimeSetupError(
                    f"jittor: {home} cannot be made: {error}\n  cure: make {cache} writable") from error
    return home / "jittor"


def _link_entries(source: pathlib.Path, target: pathlib.Path, changed: dict[str, str], below: str = "") -> None:
    """Fill `target`: a folder with a changed file in it becomes a folder, everything else one link.
    Compiled Python files stay out.
    """
    target.mkdir(parents=True)
    for entry in source.iterdir():
        name, place = below + entry.name, target / entry.name
        if name in changed:
            place.write_text(changed[name], encoding="utf-8")
        elif any(file.startswith(f"{name}/") for file in changed):
            _link_entries(entry, place, changed, f"{name}/")
        elif entry.name != "__pycache__":
            place.symlink_to(entry)


def overlay_spec(installed: importlib.machinery.ModuleSpec, cache: pathlib.Path) -> importlib.machinery.ModuleSpec:
    """The spec by which the overlay is imported as `jittor`, for the installed package's;
    raises as `make_overlay` does.
    """
    folder = make_overlay(pathlib.Path(installed.origin).absolute().parent, cache)
    return importlib.machinery.PathFinder.find_spec("jittor", [str(folder.parent)])


def take_foreign_arrays(jt: Any) -> None:
    """Let `jt.array` take arrays whose bytes it would misread without a word:
    of the other byte order, or wider than float64.
    """
    import numpy as np
    array = jt.array

    def array_of_native_numbers(data, dtype=None):
        if isinstance(data, (np.ndarray, np.generic)):
            if not data.dtype.isnative:
                data = data.astype(data.dtype.newbyteorder("="))
            if data.dtype.kind == "f" and data.dtype.itemsize > 8:
                data = data.astype(np.float64)
        return array(data, dtype)

    array_of_native_numbers.__doc__ = array.__doc__
    jt.array = array_of_native_numbers


def check_arrays(jt: Any) -> None:
    """Give Jittor arrays of every kind and read them back: half a millisecond once one operation is compiled.

    Raises:
        RuntimeSetupError: one came back different, or an array of objects was taken.
    """
    import numpy as np
    for kind in ("float16", "float32", "float64"):
        # kept from now on: Jittor's operations switch denormals off, of which NumPy would warn
        np.finfo(kind).smallest_subnormal
    for name, array in _samples(np):
        found = jt.array(array).numpy()
        wanted = np.atleast_1d(array)
        if array.dtype.itemsize == 8 and array.flags.c_contiguous:
            # as Jittor does by default
            wanted = wanted.astype({"f": np.float32, "i": np.int32, "u": np.int32}[array.dtype.kind])
        if found.shape != wanted.shape or not np.array_equal(found, wanted):
            raise RuntimeSetupError(
                f"jittor: {name} {wanted.tolist()} reads back as {found.tolist()}: NumPy {np.__version__} and "
                                    f"Jittor {jt.__version__} do not fit together\n  cure: {_CURE}")
    try:
        jt.array(np.array([None, 1], dtype=object))
    except Exception:  # Jittor's own word
        return
    raise RuntimeSetupError(
        f"jittor: takes an array of objects as numbers with NumPy {np.__version__}\n  cure: {_CURE}")


def _samples(np: Any):
    """(name, array) for every type Jittor has, in every form an array can have."""
    for kind in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float16",
                 "float32", "float64"):
        whole = (np.arange(24) % 5).astype(kind).reshape(2, 3, 4)
        yield kind, whole
        yield f"{kind}, every second column from the right", whole[:, :, ::-2]
        yield f"{kind}, transposed", whole.T
    # of one type only: one number alone is an operation, which takes a compiler
    yield "float32, 0-d", np.array(4.25, "float32")
    yield "float32, empty", np.zeros((0, 3), "float32")
    frozen = np.arange(6, dtype="float32")
    frozen.flags.writeable = False
    yield "float32, read-only", frozen
    yield "float32, one number repeated", np.broadcast_to(frozen[1:2], (2, 3))
    yield "int16, big-endian", np.arange(-3, 3).astype(">i2")
    yield "float32, big-endian, not contiguous", np.arange(6).astype(">f4")[::2]
    yield "float32, not aligned", np.frombuffer(b"\0" + np.arange(3, dtype="float32").tobytes(), "float32", 3, 1)
