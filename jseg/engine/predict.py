"""Segment pictures with a checkpoint alone: no dataset, no config file on disk.

Classes, palette, transforms and test mode travel inside the checkpoint. The same picture always gives the same mask.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any, Callable, Iterator, Mapping, Sequence, Union

import numpy as np

from jseg.data import io
from jseg.data.overlay import background_labels, legend_below, overlay
from jseg.data.regions import Region, find_regions
from jseg.data.transforms import Compose, LoadBands
from jseg.data.tta import augment, picture_reader, plain_view
from jseg.engine.model_file import open_model_file
from jseg.engine.precision import set_precision
from jseg.engine.prepare import Prepared, PreparedPictures
from jseg.engine.tiled import slide_of
from jseg.errors import ConfigError, DataError
from jseg.registry import nearest

__all__ = ["InferenceSegmentor", "PICTURE_SUFFIXES", "pictures_in"]

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
PASS_PIXELS = 1 << 22  # of all pictures in one pass, where there are several
Picture = Union[str, os.PathLike, np.ndarray, "PIL.Image.Image"]  # noqa: F821 (Pillow is imported by io only)


class InferenceSegmentor:
    """A trained model ready to segment pictures.

    Args:
        checkpoint: a `.safetensors` file written by jseg (training, conversion or `jseg weights`), the folder of a
            run (its best weights, or where nothing was evaluated yet its last ones), or an `.onnx` file of
            `jseg export`.
        tta: average over the scales and flips of the checkpoint's `tta:` block (slower, a little better).
        mode: "whole" or "slide"; default: what the checkpoint's `model.test_cfg` says.
        crop_size: (height, width) in pixels of the window of "slide", where the checkpoint names none or another is
            wanted.
        stride: (rows, columns) in pixels between windows; default: the checkpoint's, for a `crop_size` given here two
            thirds of it.
        resize: False leaves out what the test pipeline does to a picture's size.
        impl: "auto" uses the fastest kernels of this device, "jittor" the plain framework operators.
        allow_nonfinite: accept weights that hold NaN or inf.
        runtime: what runs an `.onnx` file: "onnxruntime" or "openvino".
        precision: "float32", or "bf16": the factors of matrix products are rounded to bfloat16, on a CPU that has
            instructions for it (AVX512_BF16); sums, convolutions, norms and readout stay float32.
    Raises:
        ConfigError: a mode or a window that cannot be, an unknown runtime or precision, or one that this machine or an
            `.onnx` file does not have.
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
        resize: bool = True,
        precision: str = "float32",
    ):
        if pathlib.Path(checkpoint).suffix == ".onnx":
            from jseg.export.exported import open_exported
            file = open_exported(checkpoint, runtime)
        else:
            file = open_model_file(checkpoint, allow_nonfinite=allow_nonfinite)
        self.config, self.classes, self.palette = file.config, file.classes, file.palette  # palette (K, 3) RGB
        self.path, self.origin = file.path, file.meta.get("origin")
        file = file._replace(config=_slide_settings(file.config, mode, crop_size, stride))
        self._model, self._preprocessor, self._transforms = file.build(impl=impl)
        set_precision(self._model, precision)
        self._transforms = self._transforms if resize else Compose([])
        self.reader = picture_reader(self.config)
        self.bands = self.reader if isinstance(self.reader, LoadBands) else None  # None: LoadImageFromFile reads
        self.scale = self.reader.scale  # of 16-bit pictures, see io.read_image
        self.view: Sequence[int] | None = None  # bands to show of pictures that LoadBands reads; None: as it says
        self._tta = self.config.get("tta") or {} if tta else None
        self._ahead: list[PreparedPictures] = []  # of the pictures that are gone through now

    @property
    def model(self):
        """The network, a `Segmentor` in evaluation mode."""
        return self._model

    def infer(self, source: Picture | Sequence[Picture], *, array_order: str = "bgr", with_prob: bool = False,
              probabilities: bool = False, logits: bool = False, thresholds: float | Mapping[str, float] | None = None,
              batch_size: int = 8):
        """Segment one picture, a list of pictures, or every picture of a folder.

        Args:
            source: a path, an array (H, W, 3) uint8, a PIL image, a list of those, or a folder (sorted by name, see
                `pictures_in`). For `LoadBands`, arrays are (H, W, C) as files store them. Pictures of a list
                or a folder are read and resized in threads while the network runs, two at most ahead of it.
            array_order: channel order of arrays: "bgr" as OpenCV reads them, or "rgb"; without meaning for `LoadBands`.
            with_prob: return how sure the model is, too.
            probabilities: return the softmax of every class instead of labels.
            logits: return the scores before the softmax instead of labels; not with `tta`.
            thresholds: probabilities, above 0 to 1, that classes must reach: `{"car": 0.7}`, or one for all. Where one
                with a threshold reaches it, it is taken (of several the one with the largest multiple of its
                threshold); elsewhere the most likely of the classes without one; where all have one, none: 255, from
                256 classes on 65535.
            batch_size: most pictures of a list or folder in one pass of the network; pictures that the transforms leave
                in one size go together, and get the labels they get one by one.
        Returns:
            labels (H, W) uint8 (uint16 from 256 classes on) at the picture's own size, 0 <= label < K; with `with_prob`
            a pair (labels, probability (H, W) float32, 0 to 1: the softmax of the class); with `probabilities` or
            `logits` (K, H, W) float32; a list of them for a list or a folder.
        Raises:
            DataError: a file that cannot be read, an array of another shape or type, a picture that the transforms
                leave nothing of.
            ValueError: options that exclude each other, an unknown class or a threshold out of range.
        """
        answer = self._asked(with_prob, probabilities, logits, thresholds)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; accepted: 1 or more")
        source = pictures_in(source, self.bands) if _is_folder(source) else source
        if not isinstance(source, (list, tuple)):
            return answer([self._views(source, array_order)])[0]
        results: list = [None] * len(source)
        passes = _Passes(answer, batch_size, results)
        nested = [isinstance(item, (list, tuple)) or _is_folder(item) for item in source]
        with self.ahead(lambda i: None if nested[i] else self._views(source[i], array_order), len(source)) as ahead:
            for place, item in enumerate(source):
                if nested[place]:
                    results[place] = self.infer(item, array_order=array_order, with_prob=with_prob, logits=logits,
                                                probabilities=probabilities, thresholds=thresholds,
                                                batch_size=batch_size)
                else:
                    passes.add(place, ahead.get(place))
            passes.finish()
        return results

    @contextlib.contextmanager
    def ahead(self, prepare: Callable[[int], Any], count: int | None = None, *,
              threads: int = 2) -> Iterator[PreparedPictures]:
        """Prepare pictures in threads while the network runs, in the body; arguments as `PreparedPictures`."""
        with PreparedPictures(prepare, count, threads=threads) as pictures:
            self._ahead.append(pictures)
            try:
                yield pictures
            finally:
                self._ahead.remove(pictures)

    def prepared(self, source: Picture, *, array_order: str = "bgr") -> Prepared:
        """A picture read, resized and, with `tta`, augmented: `infer` then goes on from there. May run in a thread.

        Raises:
            DataError: as `infer`.
        """
        return Prepared(source, self._views(source, array_order))

    def features(self, source: Picture, *, array_order: str = "bgr") -> list[np.ndarray]:
        """Maps that the decode head gets, backbone's or neck's, of one picture.

        Returns:
            (C, h, w) float32 each, finest first; they cover the picture with its padding.
        Raises:
            ValueError: the model shows none (an exported file).
        """
        import jittor as jt

        from jseg import ops
        if not hasattr(self._model, "features"):
            raise ValueError(f"{self.path}: this model gives scores alone; load the checkpoint it was made from")
        view = plain_view(self._picture(source, array_order), self._transforms, name=_name(source))
        batch = self._preprocessor.batch([view], training=False)
        with jt.no_grad(), ops.use(self._model.impl, self._model.precision):
            return [found.numpy()[0] for found in self._model.features(jt.array(batch.images))]

    def _views(self, source: Picture, array_order: str) -> list[dict]:
        """The picture as the network gets it: once, or scaled and flipped."""
        if isinstance(source, Prepared):
            return source.views
        image, name = self._picture(source, array_order), _name(source)
        if self._tta is None:
            return [plain_view(image, self._transforms, name=name)]
        return augment(image, **self._tta, name=name)

    def _picture(self, source: Picture, array_order: str) -> np.ndarray:
        if self.bands:
            return self.bands.read(_bands_of(source))
        return as_bgr(source, array_order, self.scale)

    def shown(self, source: Picture, array_order: str = "bgr") -> np.ndarray:
        """A picture for eyes, (H, W, 3) uint8 BGR: of LoadBands the bands of the attribute `view`."""
        if self.bands:
            return self.bands.shown(_bands_of(source), self.view)
        return as_bgr(source, array_order, self.scale)

    def slide(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        """(window, stride, size divisor) of mode "slide"; ConfigError: see `tiled.slide_of`."""
        return slide_of(self._model.test_cfg, self._preprocessor.test_cfg)

    def infer_stored(self, picture: np.ndarray, *, limits: Sequence | None = None, with_prob: bool = False):
        """`infer` for a part of a picture that was read already: with LoadBands the bands as stored, scaled by `limits`
        (see `LoadBands.scaled`), else (H, W, 3) uint8 BGR."""
        if self.bands:
            picture = self.bands.scaled(self.bands.stored(picture), limits)
        return self._asked(with_prob, False, False, None)([[plain_view(picture, self._transforms)]])[0]

    def _asked(self, with_prob: bool, probabilities: bool, logits: bool, thresholds) -> Callable[[list], list]:
        """What answers for pictures whose views have one size."""
        if with_prob + probabilities + logits > 1 or (probabilities or logits) and thresholds is not None:
            raise ValueError("infer: give one of with_prob, probabilities and logits; thresholds give labels, alone or "
                             "with with_prob")
        if logits and self._tta is not None:
            raise ValueError("infer: logits=True with tta=True: the views' probabilities are averaged, so there are no "
                             "logits; ask for probabilities")
        limits = {} if thresholds is None else {"thresholds": threshold_array(thresholds, self.classes)}

        def answer(pictures: list[list[dict]]) -> list:
            batches = [self._preprocessor.batch(list(views), training=False) for views in zip(*pictures)]
            inputs = [(batch.images, batch.metas) for batch in batches]
            for pictures_ahead in self._ahead:
                pictures_ahead.settle()
            if probabilities or logits:
                return self._model.scores_augmented(inputs, softmax=probabilities)
            return self._model.predict_augmented(inputs, with_prob=with_prob, **limits)

        return answer

    def overlay(self, source: Picture, labels: np.ndarray, *, opacity: float = 0.5, array_order: str = "bgr",
                outlines: bool = True, legend: bool = False) -> np.ndarray:
        """The picture with its mask in the palette's colours laid over it; a class called background stays clear.

        Args:
            source: a picture as `infer` takes it.
            labels: (H, W) from `infer`.
            opacity: of the colours, 0 to 1.
            array_order: as in `infer`.
            outlines: draw the borders of regions in their full colour.
            legend: put the classes that occur, and their shares, below.
        Returns:
            (H, W, 3) uint8 BGR, with `legend` a higher one. The colours are those of the attribute `palette`, (K, 3)
            uint8 RGB, which may be set.
        """
        clear = background_labels(self.classes)
        picture = overlay(self.shown(source, array_order), labels, self.palette, opacity=opacity,
                          outlines=outlines, clear=clear)
        return legend_below(picture, labels, self.classes, self.palette, clear=clear) if legend else picture

    def save_overlay(self, source: Picture, labels: np.ndarray, out: str | os.PathLike, *, opacity: float = 0.5,
                     array_order: str = "bgr", outlines: bool = True, legend: bool = False) -> None:
        """Write `overlay(...)` to a picture file; the suffix decides the format."""
        io.write_image(out, self.overlay(source, labels, opacity=opacity, array_order=array_order, outlines=outlines,
                                         legend=legend))

    def save_labels(self, labels: np.ndarray, out: str | os.PathLike) -> None:
        """Write the label map as a palette PNG: pixel values are class indices, viewers show the palette.

        From 257 classes on a grey PNG, of 16 bits where labels need them.
        """
        io.write_mask(out, labels, palette=self._png_palette(labels))

    def encode_labels(self, labels: np.ndarray) -> bytes:
        """The content of the PNG file that `save_labels` writes for labels (H, W)."""
        return io.encode_mask(labels, self._png_palette(labels))

    def _png_palette(self, labels: np.ndarray) -> np.ndarray | None:
        fits = len(self.palette) <= 256 and labels.max(initial=0) < 256  # a palette PNG has 256 colours
        return self.palette if fits else None

    def save_probability(self, probability: np.ndarray, out: str | os.PathLike) -> None:
        """Write the second of `infer(..., with_prob=True)` as a grey picture, 0 to 255 for 0 to 1."""
        io.write_image(out, probability_picture(probability))

    def regions(self, labels: np.ndarray, probability: np.ndarray | None = None, *,
                min_pixels: int = 1) -> list[Region]:
        """The connected regions of a label map, without those of a class called background.

        Args:
            labels, probability: from `infer`; the probability gives each region its mean as `score`.
            min_pixels: smaller regions are left out.
        Returns:
            `Region`s with `label`, `pixels`, `box`, `mask`, `score` and `polygons()`, by class.
        """
        wanted = sorted(set(range(len(self.classes))) - set(background_labels(self.classes)))
        return find_regions(labels, probability, classes=wanted, min_pixels=min_pixels)


def probability_picture(probability: np.ndarray) -> np.ndarray:
    """(H, W) probabilities as a grey picture, uint8: 0 to 255 for 0 to 1."""
    return np.round(np.asarray(probability) * 255).astype(np.uint8)


def threshold_array(thresholds: float | Mapping[str, float], classes: Sequence[str]) -> np.ndarray:
    """Thresholds as one number for all classes or by name, as (K,) float64 with NaN for classes without.

    Raises:
        ValueError: an unknown class, or a number that is not above 0 and at most 1.
    """
    given = thresholds if isinstance(thresholds, Mapping) else dict.fromkeys(classes, thresholds)
    found = np.full(len(classes), np.nan)
    for name, value in given.items():
        if name not in classes:
            raise ValueError(f"thresholds: no class {name!r}{nearest(name, classes)}; the model has "
                             f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}")
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value <= 1:
            raise ValueError(f"thresholds: {name} is {value!r}; accepted: probabilities above 0 and at most 1")
        found[list(classes).index(name)] = value
    return found


class _Passes:
    """Collects pictures and gives those of one size to `answer` together.

    Args:
        answer: pictures, each a list of views -> their results.
        most: pictures in one pass, 1 or more; fewer where they are large.
        results: filled by place.
    """

    def __init__(self, answer: Callable[[list], list], most: int, results: list):
        self.answer, self.most, self.results = answer, most, results
        self.waiting: dict[tuple, list] = {}  # pictures by the sizes of their views: (place, views)

    def add(self, place: int, views: list[dict]) -> None:
        """Take the picture at `place`; run what is then full, or the largest group where too many pictures wait."""
        sizes = tuple(view["img"].shape[:2] for view in views)
        group = self.waiting.setdefault(sizes, [])
        group.append((place, views))
        if len(group) >= min(self.most, max(1, PASS_PIXELS // max(1, max(h * w for h, w in sizes)))):
            self._run(sizes)
        elif sum(map(len, self.waiting.values())) >= 4 * self.most:
            self._run(max(self.waiting, key=lambda key: len(self.waiting[key])))

    def finish(self) -> None:
        """Run the rest."""
        for sizes in list(self.waiting):
            self._run(sizes)

    def _run(self, sizes: tuple) -> None:
        places, pictures = zip(*self.waiting.pop(sizes))
        for place, result in zip(places, self.answer(list(pictures))):
            self.results[place] = result


def _is_folder(source: Picture) -> bool:
    return isinstance(source, (str, os.PathLike)) and pathlib.Path(source).is_dir()


def _name(source: Picture) -> str:
    """What messages call a picture."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "picture"


def _bands_of(source: Picture) -> Any:
    """What LoadBands takes: a PIL image as an array."""
    if hasattr(source, "convert"):
        from PIL import ImageOps
        return np.asarray(ImageOps.exif_transpose(source))
    return source


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


def pictures_in(folder: str | os.PathLike, bands: LoadBands | None = None, *,
                arrays: bool = False) -> list[pathlib.Path]:
    """The picture files of a folder by name, not recursive, hidden ones left out; DataError when there are none.

    With a LoadBands as `bands`, .npy files too, and of a picture in several files the first; with `arrays` all that
    some pipeline may read (see `pictures_of_pipeline`).
    """
    folder = pathlib.Path(folder)
    try:
        found = sorted(
            p
            for p in folder.iterdir()
            if p.suffix.lower() in (*PICTURE_SUFFIXES, ".npy") and not p.name.startswith(".") and not p.is_dir()
        )
    except OSError as error:
        raise DataError(
            f"{folder}: cannot list the folder: {error.strerror}", kind="unreadable", path=str(folder)
        ) from error
    return _some(found, folder, ".npy") if arrays else pictures_of_pipeline(found, folder, bands)


def pictures_of_pipeline(found: list[pathlib.Path], folder: pathlib.Path,
                         bands: LoadBands | None) -> list[pathlib.Path]:
    """Of the files of a folder those that a pipeline with this LoadBands, or with none, reads."""
    if bands:
        return first_files(_some(found, folder, ".npy"), bands)
    return _some([path for path in found if path.suffix.lower() != ".npy"], folder)


def _some(found: list[pathlib.Path], folder: pathlib.Path, *further: str) -> list[pathlib.Path]:
    if not found:
        raise DataError(f"{folder}: no pictures (looked for {', '.join([*PICTURE_SUFFIXES, *further])})",
                        kind="missing", path=str(folder))
    return found


def first_files(pictures: Sequence[pathlib.Path], bands: LoadBands) -> list[pathlib.Path]:
    """Of pictures that lie in several files those whose further files follow from them; all where none has any."""
    if len(bands.files) == 1:
        return list(pictures)
    found = []
    for picture in pictures:
        with contextlib.suppress(DataError):  # its name is that of a further file
            if all(map(os.path.isfile, bands.files_of(picture))):
                found.append(picture)
    return found or list(pictures)  # then reading says what is missing


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
