"""Segment pictures with a checkpoint alone: no dataset, no config file on disk.

Classes, palette, transforms and test mode travel inside the checkpoint. The same picture always gives the same mask.
"""

from __future__ import annotations

import os
import pathlib
from typing import Iterator, Sequence, Union

import numpy as np

from jseg.data import io
from jseg.data.tta import augment, plain_view
from jseg.engine.model_file import open_model_file
from jseg.errors import DataError
from jseg.data.overlay import overlay

__all__ = ["InferenceSegmentor", "PICTURE_SUFFIXES", "pictures_in"]

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
Picture = Union[str, os.PathLike, np.ndarray, "PIL.Image.Image"]  # noqa: F821 (Pillow is imported by io only)


class InferenceSegmentor:
    """A trained model ready to segment pictures.

    Args:
        checkpoint: a `.safetensors` file written by jseg (training, conversion or `jseg weights`), or a run's `best/` folder.
        tta: average over the scales and flips of the checkpoint's `tta:` block (slower, a little better).
        mode: "whole" or "slide"; default: what the checkpoint's `model.test_cfg` says.
        impl: "auto" uses the fastest kernels of this device, "jittor" the plain framework operators.
        allow_nonfinite: accept weights that hold NaN or inf.
    Raises:
        CheckpointError: the file is missing, damaged, carries no config or class names, holds NaN or inf, or does not fit the
            model its config describes.

    Example:
        segmentor = InferenceSegmentor("weights/segnext_tiny_camvid.safetensors")
        labels = segmentor.infer("street.jpg")
        segmentor.save_overlay("street.jpg", labels, "street_overlay.png")
    """

    def __init__(self, checkpoint: str | os.PathLike, *, tta: bool = False, mode: str | None = None, impl: str = "auto",
                 allow_nonfinite: bool = False):
        file = open_model_file(checkpoint, allow_nonfinite=allow_nonfinite)
        self.config, self.classes, self.palette = file.config, file.classes, file.palette  # palette (K, 3) RGB
        self.origin = file.meta.get("origin")
        self._model, self._preprocessor, self._transforms = file.build(impl=impl, mode=mode)
        self._tta = self.config.get("tta") or {} if tta else None

    def infer(self, source: Picture | Sequence[Picture], *, array_order: str = "bgr"):
        """Segment one picture, a list of pictures, or every picture of a folder.

        Args:
            source: a path, an array (H, W, 3) uint8, a PIL image, a list of those, or a folder (sorted by name, see
                `pictures_in`).
            array_order: channel order of arrays: "bgr" as OpenCV reads them, or "rgb".
        Returns:
            labels (H, W) uint8 (uint16 from 256 classes on) at the picture's own size, 0 <= label < K; a list of them for
            a list or a folder.
        Raises:
            DataError: a file that cannot be read, an array of another shape or type.
        """
        if isinstance(source, (list, tuple)):
            return [self.infer(item, array_order=array_order) for item in source]
        if isinstance(source, (str, os.PathLike)) and pathlib.Path(source).is_dir():
            return [self.infer(path) for path in pictures_in(source)]
        return self._infer_array(as_bgr(source, array_order))

    def _infer_array(self, image: np.ndarray) -> np.ndarray:
        if self._tta is None:
            views = [plain_view(image, self._transforms)]
        else:
            views = augment(image, **self._tta)
        batches = [self._preprocessor.batch([view], training=False) for view in views]
        return self._model.predict_augmented([(b.images, b.metas) for b in batches])[0]

    def overlay(self, source: Picture, labels: np.ndarray, *, opacity: float = 0.5, array_order: str = "bgr") -> np.ndarray:
        """The picture with its mask in the palette's colours laid over it, (H, W, 3) uint8 BGR; `opacity` 0 to 1."""
        return overlay(as_bgr(source, array_order), labels, self.palette, opacity=opacity)

    def save_overlay(self, source: Picture, labels: np.ndarray, out: str | os.PathLike, *, opacity: float = 0.5) -> None:
        """Write `overlay(...)` to a picture file; the suffix decides the format."""
        io.write_image(out, self.overlay(source, labels, opacity=opacity))

    def save_labels(self, labels: np.ndarray, out: str | os.PathLike) -> None:
        """Write the label map as a palette PNG: pixel values are class indices, viewers show the palette."""
        io.write_mask(out, labels, palette=self.palette)


def as_bgr(source: Picture, array_order: str = "bgr") -> np.ndarray:
    """Any accepted picture as an (H, W, 3) uint8 BGR array."""
    if isinstance(source, (str, os.PathLike)):
        return io.read_image(source)
    if array_order not in ("bgr", "rgb"):
        raise ValueError(f"array_order is {array_order!r}; accepted: 'bgr', 'rgb'")
    if hasattr(source, "convert"):  # a PIL image
        from PIL import ImageOps
        return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(source).convert("RGB"))[..., ::-1])
    array = np.asarray(source)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise DataError(f"picture: an array of shape {array.shape} and type {array.dtype} came; accepted: (H, W, 3) uint8, "
                        f"BGR or RGB (array_order=); convert grey or float pictures first")
    return np.ascontiguousarray(array if array_order == "bgr" else array[..., ::-1])


def pictures_in(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The picture files of a folder, sorted by name, not recursive; DataError when there are none."""
    folder = pathlib.Path(folder)
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        raise DataError(f"{folder}: no pictures (looked for {', '.join(PICTURE_SUFFIXES)})")
    return found


def video_frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """The frames of a video file as (H, W, 3) uint8 BGR arrays; DataError when it cannot be opened or has none."""
    import cv2
    capture = cv2.VideoCapture(os.fspath(path))
    try:
        count = 0
        while True:
            more, frame = capture.read()
            if not more:
                break
            count += 1
            yield frame
        if count == 0:
            raise DataError(f"{path}: no frames could be read (unknown codec, truncated, or not a video)")
    finally:
        capture.release()
