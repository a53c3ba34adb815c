"""Export shipped configs to ONNX and hold the files to their models: a row each in `measured.json` and docs/onnx.md.

    python tests/export/measure.py configs/segnext/*.yaml [--openvino PYTHON]    # adds or replaces rows, one at a time
    python tests/export/measure.py --page                                        # writes the table of docs/onnx.md

Weights are random (seed 0), sizes those of `verify.SIZES`. Each row: onnx's checker, the largest logit error over the
range of the scores by onnxruntime and by OpenVINO (float32, in a Python of its own), and the smallest share of pixels
with the same label.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import types

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS, PAGE = ROOT / "tests" / "export" / "measured.json", ROOT / "docs" / "onnx.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def row(config_file: str, openvino: str | None) -> dict:
    """Export one config and compare."""
    from jseg import ops  # prepares the process before Jittor is imported
    import jittor as jt  # isort: skip
    from jseg.config import load_config
    from jseg.data.build import build_preprocessor
    from jseg.export import verify
    from jseg.export.onnx_model import OnnxOptions, traced_file
    from jseg.models import build_model
    config = load_config(config_file)
    jt.set_global_seed(0)
    model = build_model(config)
    model.eval()
    preprocessor, options = build_preprocessor(config), OnnxOptions(output="logits")
    names = [f"class {i}" for i in range(model.num_classes)]
    file = types.SimpleNamespace(path=pathlib.Path(config_file), state={}, config=config, classes=names,
                                 palette=np.zeros((len(names), 3), np.uint8), meta={})
    proto, _ = traced_file(file, model, preprocessor, options)
    verify.check_structure(proto)
    session = verify.open_session(proto.SerializeToString())
    found = {"nodes": len(proto.graph.node), "sizes": [], "onnxruntime": [], "openvino": [], "equal": []}
    with tempfile.TemporaryDirectory() as folder, jt.no_grad():
        folder, expected = pathlib.Path(folder), []
        for i, size in enumerate(verify.SIZES):
            images = verify.normalised(verify.pictures(size, i), preprocessor)
            expected.append(model(jt.array(images)).numpy())
            np.save(folder / f"input_{i}.npy", images)
            theirs = [session.run(["logits"], {"image": images})[0]]
            found["sizes"].append("x".join(map(str, size)))
            found["onnxruntime"].append(error(theirs[0], expected[i]))
            ours, labels = (ops.readout(jt.array(x), images.shape[2:],
                                                align_corners=model.align_corners).numpy()
                            for x in (expected[i], theirs[0]))
            found["equal"].append(float((ours == labels).mean()))
        if openvino:
            (folder / "model.onnx").write_bytes(proto.SerializeToString())
            side = pathlib.Path(__file__).with_name("openvino_side.py")
            subprocess.run([openvino, str(side), str(folder)], check=True)
            found["openvino"] = [error(np.load(folder / f"output_{i}.npy"), y) for i, y in enumerate(expected)]
    return found


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the range."""
    return float(np.abs(found - expected).max() / np.ptp(expected))


def page() -> None:
    """Write the table."""
    rows = json.loads(ROWS.read_text())
    lines = ["| config | nodes | onnxruntime | OpenVINO | equal pixels |", "|---|---|---|---|---|"]
    for name, found in sorted(rows.items()):
        theirs = f"{max(found['openvino']):.1e}" if found["openvino"] else "not run"
        lines.append(f"| {name} | {found['nodes']} | {max(found['onnxruntime']):.1e} | {theirs} | "
                     f"{100 * min(found['equal']):.3f} % |")
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN, 1)
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def main() -> int:
    """1 where a file disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*")
    parser.add_argument("--openvino", metavar="PYTHON", help="a Python with openvino and numpy")
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    bad = 0
    for config in args.configs:
        found = row(config, args.openvino)
        rows = json.loads(ROWS.read_text()) if ROWS.exists() else {}
        name = str(pathlib.Path(config).resolve().relative_to(ROOT / "configs"))
        ROWS.write_text(json.dumps({**rows, name: found}, indent=1, sort_keys=True) + "\n")
        good = (max(found["onnxruntime"]) <= 1e-4 and max(found["openvino"] or [0]) <= 1e-3
                and min(found["equal"]) > 0.999)
        print(name, "agrees" if good else "DISAGREES", found, flush=True)
        bad += not good
    if args.page:
        page()
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
