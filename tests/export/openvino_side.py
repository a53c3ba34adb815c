"""The OpenVINO side of `tests/export/measure.py`: runs under a Python with openvino and numpy; never imports jseg.

    python openvino_side.py FOLDER    reads FOLDER/model.onnx and input_<i>.npy; writes output_<i>.npy, in float32
"""

import pathlib
import sys

import numpy as np
import openvino


def main(folder: pathlib.Path) -> None:
    """Run every input."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(folder / "model.onnx")), "CPU",
                                  {"INFERENCE_PRECISION_HINT": "f32"})
    for path in sorted(folder.glob("input_*.npy")):
        np.save(folder / path.name.replace("input", "output"), np.array(compiled([np.load(path)])[0]))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
