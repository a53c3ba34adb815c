"""An exported file held to its model: onnx's checker, then the same pictures through onnxruntime and through jseg.

A file is accepted where its scores differ by at most `TOLERANCE` of their range on every size, in half precision by
`HALF_TOLERANCE` (its float32 form was held to `TOLERANCE` before).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import cv2
import jittor as jt
import numpy as np

from jseg.errors import ExportError
from jseg.export.onnx_model import OnnxOptions, import_onnx, with_logits

__all__ = ["HALF_TOLERANCE", "SIZES", "TOLERANCE", "Agreement", "accepted", "check_structure", "compare", "normalised",
           "open_session", "pictures"]

TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2  # of the range of the scores
SIZES = ((2, 64, 64), (1, 512, 512), (1, 513, 770))  # batch, height, width of a dynamic file's check


@dataclass(frozen=True)
class Agreement:
    """What a comparison found on one input.

    Args:
        size: (batch, height, width).
        error: largest difference of scores over the range of the model's.
        equal: share of pixels with the same label, 0 to 1.
    """

    size: tuple[int, int, int]
    error: float
    equal: float

    @property
    def text(self) -> str:
        """For the screen."""
        n, h, w = self.size
        return (f"{n} x {h}x{w}: largest logit error {self.error:.1e} of the range, {100 * self.equal:.3f} % equal "
                "pixels")


def check_structure(proto) -> None:
    """onnx's checker, with the shapes that it can infer.

    Raises:
        ExportError: what it says.
    """
    onnx = import_onnx()
    try:
        onnx.checker.check_model(proto, full_check=proto.ByteSize() < (1 << 28))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx's checker refuses the exported model: {' '.join(str(error).split())[:500]}") from error


def open_session(content: bytes, options=None):
    """An onnxruntime session on the CPU, or None where onnxruntime is not installed.

    Args:
        options: `onnxruntime.SessionOptions`; None for the usual ones.
    Raises:
        ExportError: onnxruntime refuses the file.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises classes of its own without a common base
        raise ExportError(f"onnxruntime refuses the exported model: {' '.join(str(error).split())[:500]}") from error


def pictures(sizes: tuple[int, int, int], seed: int) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8, RGB or BGR, with large and small structures; the same for a seed."""
    n, h, w = sizes
    rng = np.random.default_rng(seed)
    found = np.empty((n, h, w, 3), np.uint8)
    for picture in found:
        coarse = cv2.resize(rng.uniform(0, 255, (6, 8, 3)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
        fine = rng.normal(0, 18, (h, w, 3))
        picture[:] = np.clip(coarse + fine, 0, 255)
    return found


def compare(proto, scores: str, model, preprocessor, options: OnnxOptions,
            sizes: Sequence[tuple[int, int, int]] | None = None) -> list[Agreement] | None:
    """Run file and model on pictures of several sizes.

    Args:
        proto, scores: the ONNX model and the name of its scores inside.
        sizes: (batch, height, width) of each; None for `SIZES`, or the one size of a fixed file.
    Returns:
        one `Agreement` per size; None where onnxruntime is not installed.
    Raises:
        ExportError: onnxruntime cannot run the file.
    """
    session = open_session(with_logits(proto, scores).SerializeToString())
    if session is None:
        return None
    sizes = sizes or (SIZES if options.size is None else ((1, *options.size),))
    return [_agreement(session, scores, model, preprocessor, options, size, seed) for seed, size in enumerate(sizes)]


def _agreement(session, scores: str, model, preprocessor, options: OnnxOptions, size: tuple[int, int, int],
               seed: int) -> Agreement:
    bgr = pictures(size, seed)
    images = normalised(bgr, preprocessor)
    given = images if options.order is None else bgr if options.order == "bgr" else np.ascontiguousarray(bgr[..., ::-1])
    try:
        result, found = session.run([options.output, scores], {"image": given})
    except Exception as error:  # as above
        raise ExportError(f"onnxruntime fails on {size}: {' '.join(str(error).split())[:500]}") from error
    with jt.no_grad():
        expected = model(jt.array(images)).numpy()
    if found.shape != expected.shape:
        raise ExportError(f"on {size} the file gives scores {found.shape}, the model {expected.shape}")
    spread = float(expected.max() - expected.min()) or 1.0
    error = float(np.abs(found - expected).max()) / spread
    labels = np.stack(model.predict(images, [{}] * len(images)))
    return Agreement(size, error if np.isfinite(error) else float("inf"),
                     float((_labels(result, options.output, labels, model) == labels).mean()))


def _labels(result: np.ndarray, output: str, expected: np.ndarray, model) -> np.ndarray:
    """Label maps of what a file gave."""
    if output == "labels":
        return result
    if output == "probabilities":
        return result.argmax(1)
    from jseg import ops
    with jt.no_grad():
        return ops.readout(jt.array(result), expected.shape[1:], align_corners=model.align_corners).numpy()


def normalised(bgr: np.ndarray, preprocessor) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8 BGR as the model takes them, (N, 3, H, W) float32."""
    out = np.empty((len(bgr), 3, *bgr.shape[1:3]), np.float32)
    for plane, picture in zip(out, bgr):
        preprocessor.fill(plane, picture)
    return out


def accepted(found: Sequence[Agreement], half: bool) -> None:
    """Raise ExportError unless every comparison is within the tolerance."""
    limit = HALF_TOLERANCE if half else TOLERANCE
    worst = max(found, key=lambda one: one.error)
    if worst.error > limit:
        raise ExportError(f"the exported file disagrees with its model ({worst.text}); at most {limit:.0e} is accepted."
                          " No file was written")
