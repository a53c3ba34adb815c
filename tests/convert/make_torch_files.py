"""Write the small checkpoints of tests/convert/golden with real PyTorch, and what they hold. Runs under a Python with
torch, numpy and mmengine, without jseg.

    python tests/convert/make_torch_files.py

Every case is written as a zip archive and as a legacy stream; `expected.npz` holds, for each case, every value by its
path ("tensors:dtype.float32") as an array, texts and types as JSON. NumPy pickles are written in protocols 0, 2, 4 and
5. `mini_mmseg.pth` and `mini_authors.pth` are a small SegNeXt that mmsegmentation 1.2.2 built from its own config, with
the weights of tests/parity/segnext_cases.py, saved as mmengine's runner saves it and in the form of the authors'
release.
"""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import pickle
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
MINI_BACKBONE = {"embed_dims": [8], "depths": [1], "mlp_ratios": [2], "num_stages": 1, "init_cfg": None}
MINI_HEAD = {"in_channels": [8], "in_index": [0], "channels": 32, "ham_channels": 32, "num_classes": 3}
DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool", "uint16",
          "uint32", "uint64")


def tensors(torch) -> dict:
    """One tensor of each kind; values are distinct, so that a wrong stride shows."""
    grid = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5) / 7
    found = {"dtype": {}}
    for name in DTYPES:
        values = (np.arange(6) % 2 if name == "bool" else np.arange(6) - (0 if name[0] == "u" else 3)).reshape(2, 3)
        found["dtype"][name] = torch.from_numpy(values).to(getattr(torch, name))
    found["big"] = {"int64": torch.tensor([2 ** 62, -2 ** 62]), "uint8": torch.tensor([0, 255], dtype=torch.uint8),
                    "float64": torch.tensor([1e300, -1e-300], dtype=torch.float64),
                    "float32": torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0, 1e-45])}
    found["view"] = {"whole": grid, "transposed": grid.transpose(0, 2), "sliced": grid[1:, ::2, 1:4],
                     "strided": grid.flatten()[3::7], "column": grid[:, 1, 2], "permuted": grid.permute(1, 2, 0)[1],
                     "expanded": torch.tensor([[1.5], [2.5]]).expand(2, 4),
                     "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(
                         memory_format=torch.channels_last)}
    shared = torch.arange(5, dtype=torch.int32)
    found["tied"] = {"a": shared, "b": shared, "tail": shared[2:]}
    found["empty"] = {"none": torch.zeros(0), "rows": torch.zeros(0, 3),
                      "columns": torch.zeros(2, 0, dtype=torch.int64)}
    found["scalar"] = {"float": torch.tensor(2.5), "long": torch.tensor(-7), "bool": torch.tensor(True),
                       "half": torch.tensor(0.5).half(), "bfloat16": torch.tensor(3.0).bfloat16()}
    return found


def objects(torch) -> dict:
    """What surrounds tensors in training checkpoints."""
    class Named(torch.Tensor):
        pass

    globals()["Named"] = Named
    Named.__module__, Named.__qualname__ = "__main__", "Named"
    layer = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    frozen = torch.nn.Parameter(torch.arange(3.0), requires_grad=False)
    tagged = torch.nn.Parameter(torch.arange(2.0))
    tagged.note = "an attribute"
    return {"parameter": layer.weight, "frozen": frozen, "tagged": tagged,
            "buffer": torch.nn.Parameter(torch.ones(2)).data, "subclass": torch.arange(4.0).as_subclass(Named),
            "state": layer.state_dict(), "optimizer": optimizer.state_dict(),
            "dtype": torch.float16, "device": torch.device("cpu"), "cuda": torch.device("cuda", 1),
            "size": torch.Size([2, 3]), "array": np.arange(6, dtype=np.float32).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)), "big_endian": np.arange(3, dtype=">f4"),
            "empty_array": np.zeros((0, 2)), "flags": np.array([True, False]),
            "words": np.array(["ab", "c"]), "number": np.float64(2.5), "count": np.int64(-3),
            "plain": {"text": "naïve ✓", "none": None, "yes": True, "list": [1, -2, 3.5, 2 ** 70], "pair": (1, "x"),
                      "bytes": b"\x00\xff"},
            "default": collections.defaultdict(list, {"k": [1]}), "ordered": collections.OrderedDict(a=1, b=2)}


def hub() -> dict:
    """mmengine's message hub, as its runner saves it."""
    from mmengine.logging import MessageHub
    hub = MessageHub.get_instance("golden")
    for i in range(5):
        hub.update_scalar("train/loss", 1.0 / (i + 1), count=i + 1)
    hub.update_info("iter", 5)
    return {"message_hub": hub.state_dict(), "meta": {"iter": 5, "cfg": "model = dict(type='EncoderDecoder')\n"}}


def flatten(torch, value, path: str, out: dict) -> None:
    """Every leaf of `value` under its path: arrays as arrays, the rest as JSON text."""
    if isinstance(value, torch.Tensor):
        value = value.detach().as_subclass(torch.Tensor).contiguous()
        out[path] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    elif type(value).__name__ == "HistoryBuffer":
        values, counts = value.data
        out[f"{path}.values"], out[f"{path}.counts"] = np.array(values), np.array(counts)
    elif isinstance(value, dict):
        for key, item in value.items():
            flatten(torch, item, f"{path}.{key}".lstrip("."), out)
    elif isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        for i, item in enumerate(value):
            flatten(torch, item, f"{path}.{i}", out)
    elif isinstance(value, np.ndarray):
        out[path] = value
    else:
        known = {torch.dtype: str, torch.device: str, bytes: lambda b: b.hex(), torch.Size: list}.get(
            type(value), lambda v: getattr(v, "item", lambda: v)())
        out[path] = np.array("json:" + json.dumps(known(value)))


def main() -> None:
    import torch
    torch.manual_seed(0)
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.iterdir():
        old.unlink()
    expected: dict[str, np.ndarray] = {}
    for case, content in (("tensors", tensors(torch)), ("objects", objects(torch)), ("hub", hub())):
        for form, options in (("zip", {}), ("legacy", {"_use_new_zipfile_serialization": False})):
            if form == "legacy" and case == "tensors":  # the old format has no such types
                content["dtype"] = {name: value for name, value in content["dtype"].items()
                                    if name not in ("uint16", "uint32", "uint64")}
            name, found = f"{form}_{case}.pth", {}
            torch.save(content, GOLDEN / name, **options)
            flatten(torch, content, "", found)
            expected.update({f"{case}:{path}": value
                             for path, value in found.items() if f"{case}:{path}" not in expected})
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "h": np.arange(3, dtype=np.float16),
              "f": np.asfortranarray(np.arange(8.0).reshape(2, 4)), "all": np.arange(256, dtype=np.uint8),
              "zero": np.zeros((0, 3), np.float32), "point": np.array(1.5), "n": np.int64(4)}
    for protocol in (0, 2, 4, 5):
        (GOLDEN / f"numpy{protocol}.pkl").write_bytes(pickle.dumps(arrays, protocol))
    body = pickle.dumps(arrays, 4)
    # as Jittor's safepickle does
    (GOLDEN / "numpy_jittor.pkl").write_bytes(body + hashlib.sha1(body).digest() + b"HCAJSLHD")
    found = {}
    flatten(torch, arrays, "", found)
    expected.update({f"numpy:{path}": value for path, value in found.items()})
    mini(torch)
    refused(torch)
    texts = {path: json.loads(str(value)[5:]) for path, value in expected.items() if value.dtype.kind == "U"
             and str(value).startswith("json:")}
    arrays = {path: value for path, value in expected.items() if path not in texts}
    np.savez_compressed(GOLDEN / "expected.npz",
                        versions=np.array(f"torch {torch.__version__}, numpy {np.__version__}"),
                        json=np.array(json.dumps(texts)), **arrays)
    print(sum(path.stat().st_size for path in GOLDEN.iterdir()), "bytes,", len(expected), "values")


def mini(torch) -> None:
    """A SegNeXt of some thousand parameters, built by mmsegmentation, in the forms of two releases."""
    sys.path.insert(0, str(HERE.parent / "parity"))
    import make_segnext
    from mmengine.config import Config
    mmseg = make_segnext.import_mmseg()
    from mmseg.registry import MODELS
    config = Config.fromfile(
        next(pathlib.Path(mmseg.__file__).parent.glob(".mim/configs/segnext/segnext_mscan-t_*.py")))
    config.model.backbone.update(MINI_BACKBONE)
    config.model.decode_head.update(MINI_HEAD)
    text = config.pretty_text
    config.model.data_preprocessor = None
    network = MODELS.build(config.model)
    make_segnext.load(network)
    state = network.state_dict()
    meta = {"epoch": 0, "iter": 160000, "cfg": text, "seed": 1, "experiment_name": "mini", "time": "20230209_120000",
            "mmengine_version": "0.10.7",
            "dataset_meta": {"classes": ("sky", "tree", "road"), "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
                             "reduce_zero_label": True}}
    torch.save({"meta": meta, "state_dict": state, "message_hub": hub()["message_hub"]}, GOLDEN / "mini_mmseg.pth")
    authors = collections.OrderedDict((key.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv."), value.half()
                                       if value.is_floating_point() else value) for key, value in state.items())
    torch.save({"meta": {"mmseg_version": "0.24.1", "CLASSES": ("a", "b", "c"), "PALETTE": None},
                "state_dict": authors}, GOLDEN / "mini_authors.pth",
               _use_new_zipfile_serialization=False)


def refused(torch) -> None:
    """Files that must be refused, each with its own word."""
    import torch.ao.nn.quantized  # noqa: F401
    cases = {"complex": torch.ones(2, dtype=torch.complex64), "sparse": torch.eye(2).to_sparse(),
             "csr": torch.eye(2).to_sparse_csr(),
             "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
             "meta": torch.empty(2, device="meta"), "float8": torch.ones(2).to(torch.float8_e4m3fn),
             "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
             "negated": torch.complex(torch.ones(2), torch.ones(2)).conj().imag, "module": torch.nn.Linear(1, 1)}
    for name, value in cases.items():
        torch.save({"state_dict": {"w": value}}, GOLDEN / f"refused_{name}.pth")
    program = torch.jit.script(torch.nn.Linear(1, 1))
    program.save(str(GOLDEN / "refused_script.pth"))


if __name__ == "__main__":
    sys.exit(main())
