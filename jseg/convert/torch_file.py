"""Read `.pth`, `.pt` and `.pkl` checkpoints without PyTorch and without running anything in them.

Formats: the zip archives of torch 1.6 and later, the legacy stream before it, and pickles of NumPy arrays or Jittor
Vars as original JSeg and Jittor write them (`jt.save`; with or without the SHA-1 at the end). Written from the
behaviour of torch 2.13's `torch.save` (torch/serialization.py, torch/_utils.py, BSD-3-Clause); checked against files
that real torch wrote.

Deviations: tensors stay on the CPU whatever device they were saved from; `requires_grad`, hooks and attributes are
dropped; a tensor subclass becomes its plain tensor; sparse, quantised, nested, meta and complex tensors are refused by
name; an mmengine HistoryBuffer becomes a dict of its arrays; an object of any other class becomes an `Inert` record.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import pathlib
import struct
import sys
from typing import Any

import numpy as np

from jseg.convert.numpy_pickle import NUMPY_HANDLERS, ArrayBeingRead, DtypeBeingRead
from jseg.convert.pickle_data import Global, Inert, brief, load_pickle
from jseg.convert.zip_file import zip_entries
from jseg.errors import ConvertError

__all__ = ["Tensor", "read_torch_file"]

# torch's dtype name -> how NumPy reads its bytes (bfloat16 has no NumPy type: two bytes, widened to float32 on reading)
DTYPES = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8", "uint8": "u1", "int8": "i1",
          "int16": "i2", "int32": "i4", "int64": "i8", "bool": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8"}
STORAGES = {"HalfStorage": "float16", "BFloat16Storage": "bfloat16", "FloatStorage": "float32",
            "DoubleStorage": "float64", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
            "IntStorage": "int32", "LongStorage": "int64", "BoolStorage": "bool", "UntypedStorage": "uint8"}
# as releases of Jittor spell it
JITTOR_VARS = ("jittor.jittor_core.Var", "jittor_core.Var", "jittor_core.jittor_core.Var", "jittor.Var")
HISTORY_BUFFERS = ("mmengine.logging.history_buffer.HistoryBuffer", "mmengine.logging.log_buffer.HistoryBuffer")
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
JITTOR_TAIL = b"HCAJSLHD"       # after the SHA-1 of all before it
MAX_PICKLE_BYTES = 256 << 20    # the archive's data.pkl holds names and shapes only
MAX_DEPTH = 64                  # containers in containers
SPARE_BYTES = 16 << 20          # a repeated (stride 0) tensor may be larger than its file by this much


class _Storage:
    """A run of `count` values of one dtype. Its bytes are known at once (zip) or after the stream was read (legacy)."""

    __slots__ = ("key", "dtype", "count", "bytes", "base", "offset", "check")

    def __init__(self, key: str, dtype: str, count: int, *, base: "_Storage | None" = None, offset: int = 0):
        self.key, self.dtype, self.count = key, dtype, count
        self.bytes: memoryview | None = None
        self.base, self.offset = base, offset  # a legacy storage may be a window on another, `offset` values in
        self.check = None                      # what compares the bytes with their checksum, before their first use

    @property
    def size(self) -> int:
        """Bytes that the values take."""
        return self.count * np.dtype(DTYPES[self.dtype]).itemsize

    def view(self) -> memoryview:
        """The bytes of the values. Raises: ValueError when they are missing or
        do not match their checksum (ConvertError).
        """
        if self.base is not None:
            start = self.offset * np.dtype(DTYPES[self.dtype]).itemsize
            whole = self.base.view()
            if start + self.size > len(whole):
                raise ValueError(f"storage {self.key} is a window beyond its base of {len(whole)} bytes")
            return whole[start:start + self.size]
        if self.bytes is None:
            raise ValueError(f"the values of storage {self.key} are missing")
        if self.check is not None:
            check, self.check = self.check, None
            check()
        return self.bytes


class Tensor:
    """A tensor in the file: nothing is read until `numpy()`.

    `dtype` is torch's name ("bfloat16"); `shape`, `strides` and `offset` count values; tied tensors share `storage`.
    """

    __slots__ = ("storage", "offset", "shape", "strides", "dtype", "file_bytes", "where")

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, dtype: str,
                 file_bytes: int, where: str):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.dtype, self.file_bytes, self.where = dtype, file_bytes, where

    def __repr__(self) -> str:
        return f"Tensor({self.dtype} {self.shape})"

    @property
    def nbytes(self) -> int:
        """Bytes that `numpy()` will take."""
        return math.prod(self.shape) * np.dtype(self.result_type).itemsize

    @property
    def result_type(self) -> str:
        """NumPy's name of the type `numpy()` returns."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    def numpy(self) -> np.ndarray:
        """The values as a new contiguous array: bool as bool, bfloat16 widened to float32, others in their own type.

        Raises:
            ConvertError: the tensor reaches outside its storage, or is far larger than its file.
        """
        width = np.dtype(DTYPES[self.dtype]).itemsize
        if self.nbytes > 2 * self.file_bytes + SPARE_BYTES or max(self.shape, default=0) >= 1 << 62:
            raise ConvertError(f"{self.where}: a tensor of shape {brief(self.shape)} needs {self.nbytes} bytes, the "
                               f"whole file has {self.file_bytes}; the file is damaged or forged")
        try:
            data = self.storage.view()
        except ValueError as error:
            raise ConvertError(f"{self.where}: {error}; the file is incomplete or forged") from error
        if 0 in self.shape:
            return np.zeros(self.shape, self.result_type)
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides))
        if (last + 1) * width > len(data):
            raise ConvertError(f"{self.where}: a tensor of shape {brief(self.shape)}, strides {brief(self.strides)}, "
                               f"offset {self.offset} reaches beyond its storage of {len(data) // width} values; the "
                               "file is damaged or forged")
        flat = np.frombuffer(data, "<" + DTYPES[self.dtype], count=last + 1 - self.offset, offset=self.offset * width)
        values = np.lib.stride_tricks.as_strided(flat, self.shape, [s * width for s in self.strides], writeable=False)
        if self.dtype == "bool":
            return np.asarray(values != 0)
        if self.dtype == "bfloat16":
            wide = np.array(values, "<u4", order="C")
            wide *= np.uint32(1 << 16)
            return wide.view("<f4")
        return np.array(values, order="C")


def read_torch_file(path: str | os.PathLike) -> Any:
    """Read a checkpoint as plain data.

    Args:
        path: a file of `torch.save` (zip or legacy), of `jt.save`, or a plain pickle of NumPy arrays. It is mapped, not
            copied.
    Returns:
        what was saved: dicts (OrderedDict becomes dict, in order), lists, tuples, numbers, text, NumPy arrays
        (read-only), `Tensor`s, `Global` for named types (torch.float16), `Inert` for objects of any other class,
        {"values", "counts"} for HistoryBuffers.
    Raises:
        ConvertError: missing, empty, truncated, damaged, hostile, or a kind of tensor jseg does not read; names the
        file.
    """
    path = pathlib.Path(path)
    try:
        if not path.is_file():
            raise ConvertError(f"{path}: no such file; give the path of a .pth, .pt or .pkl checkpoint")
        if path.stat().st_size == 0:
            raise ConvertError(f"{path}: the file is empty; download or copy it again")
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: cannot be read: {error}") from error
    if bytes(data[:4]) == b"PK\x03\x04":
        value = _read_zip(str(path), data)
    elif bytes(data[257:262]) == b"ustar":
        raise ConvertError(f"{path}: a tar file from torch 0.1; load and save it once with torch 0.4 to 2.x")
    elif bytes(data[:1]) in (b"\x80", b"(", b"}", b"]"):
        value = _read_stream(str(path), data)
    else:
        raise ConvertError(f"{path}: starts with {brief(bytes(data[:8]))}, which is neither a torch archive nor a "
                           "pickle; an HTML page here means the download failed")
    return _plain(value, str(path))


# -- zip ---------------------------------------------------------------------------------------------------------------


def _read_zip(where: str, data: memoryview) -> Any:
    entries = zip_entries(data, where)
    pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if any(name.rpartition("/")[2] == "constants.pkl" for name in entries):
        raise ConvertError(f"{where}: a TorchScript archive (it holds code); save the model's state_dict() instead")
    if len(pickles) != 1:
        raise ConvertError(f"{where}: a zip file with {len(pickles)} data.pkl inside; a torch checkpoint has exactly "
                           "one")
    root = pickles[0][:-len("data.pkl")]
    program = entries[pickles[0]]
    if root + "byteorder" in entries and bytes(entries[root + "byteorder"].data[:16]).strip() != b"little":
        raise ConvertError(f"{where}: byte order {brief(bytes(entries[root + 'byteorder'].data[:16]))}; only "
                           "little-endian files are read")
    if len(program.data) > MAX_PICKLE_BYTES:
        raise ConvertError(f"{where}: {pickles[0]} has {len(program.data)} bytes, at most {MAX_PICKLE_BYTES} are taken")
    program.check(where, pickles[0])
    storages: dict[str, _Storage] = {}

    def persistent(identity: Any) -> _Storage:
        dtype, key, count = _storage_identity(where, identity)
        known = storages.get(key)
        if known is not None and (known.dtype, known.count) == (dtype, count):
            return known
        name = f"{root}data/{key}"
        entry = entries.get(name)
        if entry is None:
            raise ConvertError(f"{where}: the archive has no entry {name}; it is incomplete")
        storage = _Storage(key, dtype, count)
        if len(entry.data) < storage.size:
            raise ConvertError(f"{where}: {name} has {len(entry.data)} bytes, {brief(count)} values of {dtype} were "
                               "promised")
        storage.bytes = entry.data
        storage.check = lambda: entry.check(where, name)
        return storages.setdefault(key, storage)

    return load_pickle(program.data, _handlers(where, len(data)), persistent, where=where)[0]


# -- legacy stream and plain pickle
# --------------------------------------------------------------------------------------


def _read_stream(where: str, data: memoryview) -> Any:
    if bytes(data[-8:]) == JITTOR_TAIL and len(data) > 28:
        if hashlib.sha1(data[:-28]).digest() != bytes(data[-28:-8]):
            raise ConvertError(f"{where}: differs from the checksum at its end, so the file is damaged; copy or "
                               "download it again")
    storages: dict[str, _Storage] = {}
    handlers = _handlers(where, len(data))

    def persistent(identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
            return identity[1]  # ("module", class, source file, source): the class alone
        dtype, key, count = _storage_identity(where, identity)
        base = storages.setdefault(key, _Storage(key, dtype, count))
        view = identity[5] if len(identity) > 5 else None
        if view is None:
            return base
        if not (isinstance(view, tuple) and len(view) == 3 and isinstance(view[0], (str, int))
                and all(isinstance(n, int) and 0 <= n < 1 << 62 for n in view[1:])):
            raise ConvertError(f"{where}: a window {brief(view)} on a storage; the file is damaged or forged")
        name = view[0][:100] if isinstance(view[0], str) else str(view[0])[:100]
        return storages.setdefault(name, _Storage(name, dtype, view[2], base=base, offset=view[1]))

    value, at = load_pickle(data, handlers, persistent, where=where)
    if value != LEGACY_MAGIC or not isinstance(value, int):
        return value
    version, at = load_pickle(data, {}, start=at, where=where, steps=1000)
    if version != LEGACY_PROTOCOL:
        raise ConvertError(f"{where}: legacy protocol {brief(version)}; only {LEGACY_PROTOCOL} is known")
    system, at = load_pickle(data, {}, start=at, where=where, steps=1000)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise ConvertError(f"{where}: written on a big-endian machine; only little-endian files are read")
    value, at = load_pickle(data, handlers, persistent, start=at, where=where)
    keys, at = load_pickle(data, {}, start=at, where=where)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ConvertError(f"{where}: damaged: no list of storages after the values")
    for key in keys:
        at = _attach_legacy(where, data, at, storages.get(key), key)
    return value


def _attach_legacy(where: str, data: memoryview, at: int, storage: _Storage | None, key: str) -> int:
    """Give a storage its bytes: an int64 count, then the values. Returns the position after them."""
    if storage is None or storage.base is not None:
        raise ConvertError(f"{where}: values for a storage {brief(key)} that no tensor names; the file is damaged")
    if at + 8 > len(data):
        raise ConvertError(f"{where}: truncated before the values of storage {brief(key)}; download or copy it again")
    count = struct.unpack("<q", data[at:at + 8])[0]
    if count != storage.count:
        raise ConvertError(f"{where}: storage {brief(key)} has {count} values, {brief(storage.count)} were promised; "
                           "the file is damaged")
    if at + 8 + storage.size > len(data):
        raise ConvertError(f"{where}: truncated: storage {brief(key)} says {count} values, {len(data) - at - 8} bytes "
                           "are left; download or copy it again")
    storage.bytes = data[at + 8:at + 8 + storage.size]
    return at + 8 + storage.size


def _storage_identity(where: str, identity: Any) -> tuple[str, str, int]:
    """(dtype, key, count) from torch's ("storage", type, key, location, count[, view]), checked."""
    if not (isinstance(identity, tuple) and 5 <= len(identity) <= 6 and identity[0] == "storage"
            and isinstance(identity[1], Global)
            and isinstance(identity[2], (str, int)) and isinstance(identity[4], int) and 0 <= identity[4] < 1 << 62):
        raise ConvertError(f"{where}: an unknown reference {brief(identity)} to data outside the pickle; the file is "
                           "damaged or forged")
    name, key = identity[1].name, str(identity[2])
    if len(key) > 100 or not key.isprintable() or "/" in key or "\\" in key or key == "..":
        raise ConvertError(f"{where}: a storage named {brief(key)}; no torch file has such a name")
    if name not in STORAGES:
        raise ConvertError(f"{where}: storage {key} is a {brief(name)}, which jseg does not read (complex, quantised "
                           "and 8-bit float tensors have no place in a segmentation model here); accepted: "
                           f"{', '.join(STORAGES)}")
    return STORAGES[name], key, identity[4]


# -- what may be built -------------------------------------------------------------------------------------------------


def _handlers(where: str, file_bytes: int) -> dict:
    """The allow-list: "module.name" -> function(args) for every global whose call gives something but `Inert`."""

    def tensor(args: tuple, dtype: str | None = None) -> Tensor:
        storage, offset, shape, strides = args[:4]
        if not isinstance(storage, _Storage):
            raise ConvertError(f"{where}: a tensor without a storage")
        fits = isinstance(shape, (tuple, list)) and isinstance(strides, (tuple, list)) and len(shape) == len(
            strides) <= 32
        if not fits or any(not isinstance(n, int) or not 0 <= n < 1 << 62 for n in (offset, *shape, *strides)):
            raise ConvertError(f"{where}: a tensor with shape {brief(shape)}, strides {brief(strides)}, offset "
                               f"{brief(offset)}; the file is damaged or forged")
        extra = args[6] if len(args) > 6 and dtype is None else None
        if isinstance(extra, dict) and (extra.get("neg") or extra.get("conj")):
            raise ConvertError(f"{where}: a lazily negated tensor; save it as tensor.resolve_neg()")
        return Tensor(storage, offset, tuple(shape), tuple(strides), dtype or storage.dtype, file_bytes, where)

    def tensor_v3(args: tuple) -> Tensor:
        dtype = args[6].name if isinstance(args[6], Global) else ""
        if dtype not in DTYPES:
            raise ConvertError(f"{where}: a tensor of type {dtype or brief(args[6])}; accepted: {', '.join(DTYPES)}")
        return tensor(args, dtype)

    def from_type(args: tuple) -> Any:
        rebuild, _, inner = args[:3]  # (function, tensor subclass, its arguments, state)
        handler = (table.get(str(rebuild)) if isinstance(rebuild, Global)
                   and str(rebuild).startswith("torch._utils._rebuild") else None)
        return handler(inner) if handler else Inert(rebuild, (inner,))

    def refuse(args: tuple) -> None:
        raise ConvertError(f"{where}: holds a sparse, quantised, nested, complex or meta tensor, which jseg does not "
                           "read; save it dense, real and on the CPU")

    first = lambda args: args[0] if args else None  # noqa: E731
    table = {
        "torch._utils._rebuild_tensor": tensor, "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": tensor_v3, "torch._utils._rebuild_parameter": first,
        "torch._utils._rebuild_parameter_with_state": first, "torch.nn.parameter.Parameter": first,
        "torch._tensor._rebuild_from_type_v2": from_type, "torch._tensor._rebuild_from_type": from_type,
        "collections.OrderedDict": _pairs, "builtins.dict": _pairs, "__builtin__.dict": _pairs,
        "collections.defaultdict": lambda a: {}, "torch.Size": lambda a: tuple(_sequence(a[0])) if a else (),
        "torch.serialization._get_layout": lambda a: brief(a[0]),
        "torch.device": lambda a: ":".join(brief(part).strip("'") for part in a[:2]), "builtins.complex": refuse,
        "__builtin__.complex": refuse,
        **NUMPY_HANDLERS, **{name: _var for name in JITTOR_VARS},
    }
    for name in ("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor",
                 "_rebuild_meta_tensor_no_storage", "_rebuild_device_tensor_from_numpy", "_rebuild_wrapper_subclass",
                 "_rebuild_device_tensor_from_cpu_tensor"):
        table[f"torch._utils.{name}"] = refuse
    return table


def _var(args: tuple) -> ArrayBeingRead:
    """A Jittor Var is a call with the NumPy array of its values."""
    if len(args) != 1 or not isinstance(args[0], ArrayBeingRead):
        raise ValueError("a Jittor Var without a NumPy array of its values")
    return args[0]


def _pairs(args: tuple) -> dict:
    """dict() and OrderedDict(): empty, of pairs, or of a dict; keys are text."""
    if not args:
        return {}
    pairs = list(args[0].items()) if isinstance(args[0], dict) else _sequence(args[0])
    if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str) for pair in pairs):
        raise ValueError("an OrderedDict whose keys are not text")
    return dict(pairs)


def _sequence(value: Any) -> list | tuple:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{brief(value)} where a list is needed")
    return value


# -- clean-up ----------------------------------------------------------------------------------------------------------


def _plain(value: Any, where: str) -> Any:
    """Replace arrays being read and history buffers by plain data, everywhere in `value`, in place where possible.

    Shared parts stay shared and each is visited once, so the time is linear however a file folds its values.
    """
    done: dict[int, tuple] = {}  # id -> (original, replacement); holding the original keeps its id taken
    root = [value]
    todo: list[tuple[Any, int]] = [(root, 0)]
    while todo:
        container, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise ConvertError(f"{where}: values nested more than {MAX_DEPTH} deep; no checkpoint is")
        if isinstance(container, Inert):
            container.state = _replaced(container.state, depth, todo, done)
            container.args = _replaced(container.args, depth, todo, done)
            container = container.items
        places = container.items() if isinstance(container, dict) else enumerate(container)
        for place, item in list(places):
            container[place] = _replaced(item, depth, todo, done)
    return root[0]


def _replaced(item: Any, depth: int, todo: list, done: dict) -> Any:
    """What stands for `item` in the result; containers are queued for their own elements."""
    if isinstance(item, (str, bytes, int, float, bool, type(None), Global, Tensor)):
        return item
    if id(item) in done:
        return done[id(item)][1]
    if depth > MAX_DEPTH:  # the caller's next round reports it
        todo.append(([], depth + 1))
        return None
    result = item
    if isinstance(item, ArrayBeingRead):
        result = item.array
    elif isinstance(item, DtypeBeingRead):
        result = item.dtype.name
    elif isinstance(item, tuple):
        result = tuple(_replaced(part, depth + 1, todo, done) for part in item)
    elif isinstance(item, Inert) and str(item.kind) in HISTORY_BUFFERS and isinstance(item.state, dict):
        result = {"values": item.state.get("_log_history"), "counts": item.state.get("_count_history")}
    if isinstance(result, (list, dict, Inert)):
        todo.append((result, depth + 1))
    done[id(item)] = (item, result)
    return result


if sys.byteorder != "little":
    raise ImportError("jseg.convert.torch_file: only little-endian machines are supported")
