"""Another runtime's side of `jseg benchmark` and `jseg bench`: a process that opens one file and runs it on request.

    PYTHON runtime_side.py onnxruntime | openvino | torch        speaks `protocol` on standard input and output

Never imports jseg or Jittor: its memory is the runtime's own. The runtime is imported before the first answer. Timed is
what jseg's side does too: pictures in memory to label maps in memory. An ONNX file gives label maps itself;
MMSegmentation gives scores at the input's size by its `encode_decode`, whose largest is taken here.
"""

from __future__ import annotations

import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def _plain_module(folder: str, name: str):
    """A file of jseg that imports nothing of jseg. Its folder leaves the path again: other files there have names that
    packages look for, too."""
    before = list(sys.path)
    sys.path[:] = [folder, *(entry for entry in before if os.path.abspath(entry) != HERE)]
    try:
        return __import__(name)
    finally:
        sys.path[:] = [entry for entry in before if os.path.abspath(entry) != HERE]


def _open_onnxruntime(request: dict):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = request["threads"], 1
    session = onnxruntime.InferenceSession(request["file"], options, providers=["CPUExecutionProvider"])
    output, taken = session.get_outputs()[0].name, session.get_inputs()[0].name
    return lambda images: session.run([output], {taken: images})[0]


def _open_openvino(request: dict):
    import openvino
    core, precision = openvino.Core(), request["precision"]
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this processor has no bf16 arithmetic")
    compiled = core.compile_model(core.read_model(request["file"]), "CPU", {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": request["threads"], "NUM_STREAMS": 1})
    return lambda images: np.array(compiled([images])[0])


def _open_torch(request: dict):
    import torch
    from mmengine.config import Config
    from mmseg.apis import init_model
    torch.set_num_threads(request["threads"])
    if request.get("bases"):  # Hamburger starts from jseg's instead of random ones
        from mmseg.models.decode_heads.ham_head import NMF2D
        bases = torch.from_numpy(np.load(request["bases"]))
        NMF2D._build_bases = lambda self, b, s, d, r, device=None: bases.repeat(b, 1, 1)
    content = torch.load(request["file"], map_location="cpu", weights_only=True)
    model = init_model(Config.fromstring(content["meta"]["cfg"], ".py"), request["file"], device="cpu")

    def run(images: np.ndarray) -> np.ndarray:
        size = tuple(images.shape[2:])
        meta = {"ori_shape": size, "img_shape": size, "pad_shape": size, "padding_size": [0, 0, 0, 0]}
        with torch.inference_mode():
            return model.encode_decode(torch.from_numpy(images), [meta] * len(images)).numpy()
    return run


def _torch_labels(scores: np.ndarray) -> np.ndarray:
    import torch
    labels = torch.from_numpy(scores).argmax(1)
    return labels.to(torch.uint8 if scores.shape[1] <= 256 else torch.int32).numpy()


def _imported(kind: str):
    """(function that opens a file, function from its output to label maps, text that names the version)."""
    if kind == "torch":
        mmseg = _plain_module(os.path.join(os.path.dirname(HERE), "convert"), "mmseg_side").import_mmseg()
        import torch
        return _open_torch, _torch_labels, f"MMSegmentation {mmseg.__version__}, PyTorch {torch.__version__}"
    module = __import__(kind)
    return ({"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}[kind], lambda labels: labels,
            f"{kind} {module.__version__}")


class _Task:
    """An opened file with its pictures; calling it gives their label maps (N, H, W)."""

    def __init__(self, run, labels, images: np.ndarray):
        self.run, self.labels, self.images = run, labels, images

    def __call__(self) -> np.ndarray:
        return self.labels(self.run(self.images))


def main() -> None:
    """Answer requests until the input closes."""
    protocol = _plain_module(HERE, "protocol")
    start, labels, version = _imported(sys.argv[1])
    tasks: dict = {}

    def open_file(request: dict) -> dict:
        """Open request["file"] with `threads` and `precision`, run it once on the pictures in `images`, an .npy, or in
        `inputs`, an .npz that has them beside other things.
        """
        pictures = np.load(request["images"]) if "images" in request else np.load(request["inputs"])["images"]

        def build():
            tasks["main"] = _Task(start(request), labels, pictures)
        return {"built_s": protocol.run_task(build, 1)[0], "seconds": protocol.run_task(tasks["main"], 1),
                "built_by": version}

    def results(request: dict) -> dict:
        """Write the label maps to request["out"], an .npz."""
        np.savez(request["out"], label_maps=tasks["main"]())
        return {}

    def infer(request: dict) -> dict:
        """Write to request["out"] what the file gives for the pictures in request["images"], as it comes."""
        np.save(request["out"], tasks["main"].run(np.load(request["images"])))
        return {}

    protocol.serve({"open": open_file, "results": results, "infer": infer}, tasks, {"side": version})


if __name__ == "__main__":
    main()
