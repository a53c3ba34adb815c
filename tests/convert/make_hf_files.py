"""Make the files of test_hf.py: what transformers' `save_pretrained` writes.

    PYTHON tests/convert/make_hf_files.py      a Python with torch and transformers 5.x

golden/hf_layouts.json.gz: for each small job of tests/parity/hf_jobs.py its config.json, preprocessor_config.json, and
the shape of every tensor by key. golden/hf_segformer/: a SegFormer of a few thousand values, whole, with the picture it
was run on and the label map that transformers gives (out.npz).
"""

from __future__ import annotations

import gzip
import json
import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "parity"))

from hf_jobs import JOBS  # noqa: E402
from hf_transformers import run  # noqa: E402
from safetensors import safe_open  # noqa: E402

TINY = {**JOBS["segformer-small"], "size": [45, 70], "seed": 5, "classes": ["road", "sky", "tree"], "config": {
    "depths": [1, 1, 1, 1], "hidden_sizes": [4, 8, 12, 16], "num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [2] * 4,
    "sr_ratios": [4, 2, 2, 1], "decoder_hidden_size": 8}, "processing": {"size": {"height": 64, "width": 96}}}


def layout(folder: pathlib.Path) -> dict:
    """What a saved model says of itself, without its values."""
    keys = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            keys.update({key: file.get_slice(key).get_shape() for key in file.keys()})
    return {"config": json.loads((folder / "config.json").read_text()),
            "processor": json.loads((folder / "preprocessor_config.json").read_text()), "keys": keys}


def main() -> None:
    """Write both."""
    layouts = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in (name for name in JOBS if "small" in name):
            folder = pathlib.Path(temporary) / name
            folder.mkdir()
            run(folder, {key: value for key, value in JOBS[name].items() if key not in ("shard", "format")})
            layouts[name] = layout(folder / "model")
        folder = pathlib.Path(temporary) / "tiny"
        folder.mkdir()
        run(folder, TINY)
        golden = HERE / "golden" / "hf_segformer"
        shutil.rmtree(golden, ignore_errors=True)
        shutil.copytree(folder / "model", golden)
        shutil.copy(folder / "street.jpg", golden)
        import numpy as np
        with np.load(folder / "out.npz") as out:
            np.savez_compressed(golden / "out.npz", logits=out["logits"], labels=out["labels"].astype(np.uint8))
    text = json.dumps(layouts, sort_keys=True).encode()
    (HERE / "golden" / "hf_layouts.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))


if __name__ == "__main__":
    main()
