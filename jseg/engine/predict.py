"""Segment pictures with a checkpoint alone: no dataset, no config file on disk.

Classes, palette, transforms and test mode travel inside the checkpoint. The same picture always gives the same mask.
"""

from __future__ import annotations

import os
import pathlib
from typing import Sequence, Union

import numpy as np

from jseg.data import io
from jseg.data.tta import augment, picture_scale, plain_view
from jseg.engine.model_file import open_model_file
from jseg.errors import ConfigError, DataError
from jseg.data.overlay import overlay

__all__ = ["InferenceSegmentor", "PICTURE_SUFFIXES", "pictures_in"]

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
Picture = Union[str, os.PathLike, np.ndarray, "PIL.Image.Image"]  # noqa: F821 (Pillow is imported by io only)


class InferenceSegmentor:
    """A trained model ready to segment pictures.

    Args:
        checkpoint: a `.safetensors` file written by jseg (training, conversion or `jseg weights`), a run's `best/`
            folder, or an `.onnx` file of `jseg export`.
        tta: average over the scales and flips of the checkpoint's `tta:` block (slower, a little better).
        mode: "whole" or "slide"; default: what the checkpoint's `model.test_cfg` says.
        crop_size: (height, width) in pixels of the window of "slide", where the checkpoint names none or another is
            wanted.
        stride: (rows, columns) in pixels between windows; default: the checkpoint's, for a `crop_size` given here two
            thirds of it.
        impl: "auto" uses the fastest kernels of this device, "jittor" the plain framework operators.
        allow_nonfinite: accept weights that hold NaN or inf.
        runtime: what runs an `.onnx` file: "onnxruntime" or "openvino".
    Raises:
        ConfigError: a mode or a window that cannot be, or an unknown runtime.
        ExportError: an `.onnx` file that is not of `jseg export`, or that the runtime cannot run.
        CheckpointError: the file is missing, damaged, carries no config or class names, holds NaN or inf, or does not
            fit the model its config describes.

    Example:
        segmentor = InferenceSegmentor("weights/segnext_tiny_camvid.safetensors")
        labels = segmentor.infer("street.jpg")
        segmentor.save_overlay("street.jpg", labels, "street_overlay.png")
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike,
        *,
        tta: bool = False,
        mode: str | None = None,
        impl: str = "auto",
        allow_nonfinite: bool = False,
        crop_size: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        runtime: str = "onnxruntime",
    ):
        if pathlib.Path(checkpoint).suffix == ".onnx":
            from jseg.export.exported import open_exported
            file = open_exported(checkpoint, runtime)
        else:
            file = open_model_file(checkpoint, allow_nonfinite=allow_nonfinite)
        self.config, self.classes, self.palette = file.config, file.classes, file.palette  # palette (K, 3) RGB
        self.origin = file.meta.get("origin")
        file = file._replace(config=_slide_settings(file.config, mode, crop_size, stride))
        self._model, self._preprocessor, self._transforms = file.build(impl=impl)
        self.scale = picture_scale(self.config)  # of 16-bit pictures, see io.read_image
        self._tta = self.config.get("tta") or {} if tta else None

    def infer(self, source: Picture | Sequence[Picture], *, array_order: str = "bgr", with_prob: bool = False):
        """Segment one picture, a list of pictures, or every picture of a folder.

        Args:
            source: a path, an array (H, W, 3) uint8, a PIL image, a list of those, or a folder (sorted by name, see
                `pictures_in`).
            array_order: channel order of arrays: "bgr" as OpenCV reads them, or "rgb".
            with_prob: return how sure the model is, too.
        Returns:
            labels (H, W) uint8 (uint16 from 256 classes on) at the picture's own size, 0 <= label < K; with `with_prob`
            a pair (labels, probability (H, W) float32, 0 to 1: the softmax of the winning class); a list of them for a
            list or a folder.
        Raises:
            DataError: a file that cannot be read, an array of another shape or type, a picture that the transforms
                leave nothing of.
        """
        if isinstance(source, (list, tuple)):
            return [self.infer(item, array_order=array_order, with_prob=with_prob) for item in source]
        is_path = isinstance(source, (str, os.PathLike))
        if is_path and pathlib.Path(source).is_dir():
            return [self.infer(path, with_prob=with_prob) for path in pictures_in(source)]
        return self._infer_array(
            as_bgr(source, array_order, self.scale), os.fspath(source) if is_path else "picture", with_prob
        )

    def _infer_array(self, image: np.ndarray, name: str, with_prob: bool):
        if self._tta is None:
            views = [plain_view(image, self._transforms, name=name)]
        else:
            views = augment(image, **self._tta, name=name)
        batches = [self._preprocessor.batch([view], training=False) for view in views]
        return self._model.predict_augmented([(b.images, b.metas) for b in batches], with_prob=with_prob)[0]

    def overlay(self, source: Picture, labels: np.ndarray, *, opacity: float = 0.5,
                array_order: str = "bgr") -> np.ndarray:
        """The picture with its mask in the palette's colours laid over it, (H, W, 3) uint8 BGR; `opacity` 0 to 1."""
        return overlay(as_bgr(source, array_order, self.scale), labels, self.palette, opacity=opacity)

    def save_overlay(self, source: Picture, labels: np.ndarray, out: str | os.PathLike, *,
                     opacity: float = 0.5) -> None:
        """Write `overlay(...)` to a picture file; the suffix decides the format."""
        io.write_image(out, self.overlay(source, labels, opacity=opacity))

    def save_labels(self, labels: np.ndarray, out: str | os.PathLike) -> None:
        """Write the label map as a palette PNG: pixel values are class indices, viewers show the palette."""
        io.write_mask(out, labels, palette=self.palette)

    def save_probability(self, probability: np.ndarray, out: str | os.PathLike) -> None:
        """Write the second of `infer(..., with_prob=True)` as a grey picture, 0 to 255 for 0 to 1."""
        io.write_image(out, np.round(np.asarray(probability) * 255).astype(np.uint8))


def as_bgr(source: Picture, array_order: str = "bgr", scale: str = "bits") -> np.ndarray:
    """Any accepted picture as an (H, W, 3) uint8 BGR array;
    `scale` of 16-bit files and PIL images as in `read_image`.
    """
    if isinstance(source, (str, os.PathLike)):
        return io.read_image(source, scale=scale)
    if array_order not in ("bgr", "rgb"):
        raise ValueError(f"array_order is {array_order!r}; accepted: 'bgr', 'rgb'")
    if hasattr(source, "convert"):  # a PIL image
        from PIL import ImageOps
        return io.from_pillow(ImageOps.exif_transpose(source), scale=scale)
    array = np.asarray(source)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise DataError(f"picture: an array of shape {array.shape} and type {array.dtype} came; accepted: (H, W, 3) "
                        "uint8, BGR or RGB (array_order=); convert grey or float pictures first")
    return np.ascontiguousarray(array if array_order == "bgr" else array[..., ::-1])


def pictures_in(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The picture files of a folder by name, not recursive, hidden ones left out; DataError when there are none."""
    folder = pathlib.Path(folder)
    try:
        found = sorted(
            p
            for p in folder.iterdir()
            if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".") and not p.is_dir()
        )
    except OSError as error:
        raise DataError(
            f"{folder}: cannot list the folder: {error.strerror}", kind="unreadable", path=str(folder)
        ) from error
    if not found:
        raise DataError(
            f"{folder}: no pictures (looked for {', '.join(PICTURE_SUFFIXES)})", kind="missing", path=str(folder)
        )
    return found


def _slide_settings(config: dict, mode: str | None, crop_size, stride) -> dict:
    """The config with another test mode or window in its `model.test_cfg`."""
    if mode is None and crop_size is None and stride is None:
        return config
    given = {"crop_size": crop_size, "stride": stride}
    test_cfg = dict(config["model"].get("test_cfg") or {})
    if mode == "whole" and (crop_size or stride):
        raise ConfigError("crop_size and stride belong to mode 'slide', but the mode is 'whole'; leave one of them out")
    test_cfg["mode"] = mode or "slide"
    for name, value in given.items():
        if value is not None:
            if len(value) != 2 or not all(isinstance(side, int) and side > 0 for side in value):
                raise ConfigError(f"{name} is {value!r}; expected (height, width) in pixels, above 0")
            test_cfg[name] = list(value)
    if test_cfg["mode"] == "slide" and not test_cfg.get("crop_size"):
        raise ConfigError(
            "slide inference needs a window and the checkpoint names none: give crop_size=(height, width), on the"
            " command line --crop-size HxW"
        )
    if test_cfg["mode"] == "slide" and (crop_size is not None and stride is None or not test_cfg.get("stride")):
        test_cfg["stride"] = [
            max(1, side * 2 // 3) for side in test_cfg["crop_size"]
        ]  # windows overlap by a third, as in mmseg's configs
    return {**config, "model": {**config["model"], "test_cfg": test_cfg}}
