"""A checkpoint becomes an ONNX file that was compared with its model before it got its name."""

from __future__ import annotations

import os
import pathlib
from typing import Iterator

from jseg.engine.model_file import ModelFile
from jseg.export.onnx_model import ONNX_EXTRA, OnnxOptions, import_onnx, traced_file, with_half_weights
from jseg.export.verify import accepted, check_structure, compare
from jseg.files import write_atomically

__all__ = ["write_onnx"]


def write_onnx(file: ModelFile, out: str | os.PathLike, options: OnnxOptions, *, verify: bool = True) -> Iterator[str]:
    """Trace, check, compare, write; yields lines for the screen.

    Args:
        out: the file; what was there before is replaced at the end, or left alone where anything fails.
        verify: compare the file with the model by onnxruntime.
    Raises:
        ExportError: see `onnx_model.traced_file`; onnx's checker refuses the file; it differs from the model by more
            than `verify.TOLERANCE`. WriteError: the file cannot be written.
    """
    import_onnx()
    out = pathlib.Path(out)
    model, preprocessor, _ = file.build()
    proto, scores = traced_file(file, model, preprocessor, options)
    check_structure(proto)
    yield f"{len(proto.graph.node)} nodes, opset {options.opset}; onnx's checker accepts them"
    for half in (False, True)[:1 + options.half]:
        proto = with_half_weights(proto) if half else proto
        found = compare(proto, scores, model, preprocessor, options) if verify else None
        if not verify:
            yield "not compared with the model (--no-verify)"
            continue
        if found is None:
            yield f"not compared with the model: onnxruntime is not installed ({ONNX_EXTRA})"
            continue
        for one in found:
            yield ("weights in half precision, " if half else "onnxruntime, ") + one.text
        accepted(found, half)
    write_atomically(out, proto.SerializeToString())
    size = "any size" if options.size is None else "x".join(map(str, options.size))
    taken = "normalised float32" if options.order is None else f"uint8 {options.order.upper()}"
    yield f"{out}: {taken} pictures of {size} -> {options.output}, {out.stat().st_size / 1e6:.1f} MB"
