"""The reader of torch files against files that real torch wrote
(tests/convert/make_torch_files.py says what they hold).
"""

import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from jseg.convert.pickle_data import Global, Inert
from jseg.convert.torch_file import Tensor, read_torch_file
from jseg.errors import ConvertError

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
FILES = sorted(path.name for path in GOLDEN.iterdir() if path.suffix in (".pth", ".pkl")
               and not path.name.startswith(("refused", "mini")))


@pytest.fixture(scope="module")
def expected():
    found = dict(np.load(GOLDEN / "expected.npz"))
    return {**found, **json.loads(str(found.pop("json")))}


def flatten(value, path="", out=None):
    """Leaves by path, in the spelling of make_torch_files.py."""
    out = {} if out is None else out
    if isinstance(value, dict):
        for key, item in value.items():
            flatten(item, f"{path}.{key}".lstrip("."), out)
    elif isinstance(value, (list, tuple)) and not path.endswith("size"):
        for i, item in enumerate(value):
            flatten(item, f"{path}.{i}", out)
    else:
        out[path] = value
    return out


@pytest.mark.parametrize("name", FILES)
def test_every_value_equals_what_torch_saved(name, expected):
    found = flatten(read_torch_file(GOLDEN / name))
    case = "numpy" if name.startswith("numpy") else name.partition(".")[0].partition("_")[2]
    wanted = {key.partition(":")[2]: value for key, value in expected.items() if key.startswith(case + ":")}
    if name == "legacy_tensors.pth":  # the old format has no such types
        wanted = {path: value
                  for path, value in wanted.items() if path not in ("dtype.uint16", "dtype.uint32", "dtype.uint64")}
    assert sorted(found) == sorted(wanted)
    for path, want in wanted.items():
        got = found[path]
        if not isinstance(want, np.ndarray):
            got = (str(got) if isinstance(got, Global) else got.hex() if isinstance(got, bytes) else list(got)
                   if isinstance(got, tuple) else got)
            assert got == want, path
            continue
        got = got.numpy() if isinstance(got, Tensor) else got
        if not isinstance(got, np.ndarray):
            assert got == want.item(), path
            continue
        assert (got.dtype.newbyteorder("="), got.shape) == (want.dtype.newbyteorder("="), want.shape), path
        np.testing.assert_array_equal(got, want, err_msg=path)
        assert got.flags.c_contiguous or name.startswith("numpy") or path == "fortran", path


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_tied_tensors_share_their_storage(form):
    tied = read_torch_file(GOLDEN / f"{form}_tensors.pth")["tied"]
    assert tied["a"].storage is tied["b"].storage is tied["tail"].storage
    assert tied["a"].dtype == "int32" and tied["tail"].offset == 2


@pytest.mark.parametrize("name, word", [
    ("complex", "ComplexFloatStorage"), ("sparse", "sparse"), ("csr", "sparse"), ("quantised", "quantised"),
    ("meta", "meta"), ("float8", "float8_e4m3fn"), ("nested", "nested"), ("negated", "resolve_neg"),
    ("script", "TorchScript")])
def test_kinds_that_are_not_read_are_refused_by_name(name, word):
    with pytest.raises(ConvertError, match=word) as caught:
        read_torch_file(GOLDEN / f"refused_{name}.pth")
    assert "\n" not in str(caught.value) and f"refused_{name}.pth" in str(caught.value)


def test_a_whole_module_stays_an_inert_record():
    module = read_torch_file(GOLDEN / "refused_module.pth")["state_dict"]["w"]
    assert isinstance(module, Inert) and str(module.kind) == "torch.nn.modules.linear.Linear"


def test_a_changed_bit_is_noticed(tmp_path):
    content = bytearray((GOLDEN / "zip_tensors.pth").read_bytes())
    whole = read_torch_file(GOLDEN / "zip_tensors.pth")["view"]["whole"]
    with zipfile.ZipFile(GOLDEN / "zip_tensors.pth") as archive:
        info = archive.getinfo(next(n for n in archive.namelist() if n.endswith(f"/data/{whole.storage.key}")))
        place = bytes(content).index(archive.read(info))
    content[place + 9] ^= 1
    (tmp_path / "bit.pth").write_bytes(content)
    with pytest.raises(ConvertError, match="checksum"):
        read_torch_file(tmp_path / "bit.pth")["view"]["whole"].numpy()
    content = bytearray((GOLDEN / "numpy_jittor.pkl").read_bytes())
    content[400] ^= 1
    (tmp_path / "bit.pkl").write_bytes(content)
    with pytest.raises(ConvertError, match="checksum"):
        read_torch_file(tmp_path / "bit.pkl")


@pytest.mark.parametrize("name", ["zip_objects.pth", "legacy_objects.pth", "numpy4.pkl"])
def test_every_truncation_ends_in_one_line(name, tmp_path):
    content, path = (GOLDEN / name).read_bytes(), tmp_path / name
    for size in range(0, len(content) - 1, max(1, len(content) // 150)):
        path.write_bytes(content[:size])
        try:
            for value in flatten(read_torch_file(path)).values():
                if isinstance(value, Tensor):
                    value.numpy()
        except ConvertError as error:
            assert "\n" not in str(error) and name in str(error)
        else:
            pytest.fail(f"{size} of {len(content)} bytes were read without complaint")


def test_big_endian_is_refused(tmp_path):
    for entry, word in ((b"big", "byte order"),):
        path = tmp_path / "big.pth"
        with zipfile.ZipFile(GOLDEN / "zip_hub.pth") as source, zipfile.ZipFile(path, "w") as target:
            for info in source.infolist():
                target.writestr(info.filename, entry if info.filename.endswith("byteorder") else source.read(info))
        with pytest.raises(ConvertError, match=word):
            read_torch_file(path)
    content = (GOLDEN / "legacy_hub.pth").read_bytes()
    at = content.index(b"little_endian")
    flag = content.index(b"\x88", at)
    (tmp_path / "big2.pth").write_bytes(content[:flag] + b"\x89" + content[flag + 1:])
    with pytest.raises(ConvertError, match="big-endian"):
        read_torch_file(tmp_path / "big2.pth")


def test_neither_jittor_nor_torch_is_imported():
    program = ("import sys; from jseg.convert.torch_file import read_torch_file; read_torch_file(sys.argv[1]); "
               "sys.exit('jittor' in sys.modules or 'torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", program, str(GOLDEN / "zip_hub.pth")], timeout=60).returncode == 0
