"""What any model answers: training loss, label maps of a batch, label maps from several augmented versions.

Meaning of whole and slide inference and test-time augmentation: mmsegmentation 1.2.2, mmseg/models/segmentors
(Apache-2.0); how inference avoids full-size logits is told in `jseg.models.readout`.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Callable, Mapping, Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.losses.base import total
from jseg.models.readout import (Frame, LabelReader, Window, direct_maps, label_map, overlaps, score_map, window_maps,
                                 windows)
from jseg.ops.common import PRECISIONS
from jseg.ops.readout.op import MAX_TAPS
from jseg.rules import SIZE, Rule, fields, is_pair

__all__ = ["Segmentor"]

# Input pixels per pass at inference on the CPU. Twice as many take twice the memory and are up to 10 % slower.
GROUP_PIXELS = 1 << 20


class Segmentor(nn.Module):
    """Base of whole models. A subclass gives `num_classes`, `align_corners`,
    `ignore_index`, `class_scores` and `batch_losses`.

    Args:
        test_cfg: `{mode: whole}` (default) or `{mode: slide, crop_size: [h, w], stride: [h, w]}`, in pixels; with
            `even: true` as many windows at equal distances (stride = crop_size: as few as cover the picture). With
            `direct: true` the scores of a whole picture without padding are resized once, to its own size, as
            transformers does; otherwise to the network's input first, as MMSegmentation does.
        impl: operator implementation of the whole model: "auto", "jittor", "cpu" or "cuda" (see `ops.use`).
    Shape:
        images: (N, 3, H, W) float32, normalised -> class scores (N, K, h, w), to be resized to (H, W)
    Raises:
        ConfigError: a `test_cfg` that names no mode, or sizes that do not fit.
    """

    num_classes: int
    align_corners: bool
    ignore_index: int
    precisions: tuple[str, ...] = PRECISIONS  # that it can compute its products in

    def __init__(self, *, test_cfg: dict | None = None, impl: str = "auto"):
        super().__init__()
        self.test_cfg, self.impl = _read_test_cfg(test_cfg), impl
        self.precision = "float32"  # of products at inference, see `ops.use`

    def class_scores(self, images: jt.Var) -> jt.Var:
        """(N, K, h, w), to be resized bilinearly to the size of `images`; the class with the largest wins."""
        raise NotImplementedError

    def batch_losses(self, images: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        """Terms of the loss by name, and accuracies "<...>.acc_<...>" in percent."""
        raise NotImplementedError

    def blank_labels(self, count: int, size: tuple[int, int]) -> np.ndarray:
        """Labels (count, H, W) of pictures of `size` without any class: to look at shapes."""
        return np.full((count, *size), self.ignore_index, np.int32)

    def begin_step(self, iteration: int) -> None:
        """Told before each training step, counted from 0 (see `Head.begin_step`)."""

    def derive(self) -> None:
        """Compute what follows from other weights (`DERIVED` of the classes), after those of elsewhere were loaded."""

    def execute(self, images: jt.Var) -> jt.Var:
        with ops.use(self.impl, self.precision):
            return self.class_scores(images)

    def loss(self, images: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        """Losses of a training batch.

        Args:
            images: (N, 3, H, W) float32.
            labels: (N, H, W) int32, values in [0, K) or the ignore index.
        Returns:
            "loss", the sum to differentiate, and its parts by name; accuracies in percent.
        """
        with ops.use(self.impl, self.precision):
            terms = self.batch_losses(images, labels)
            return {"loss": total(terms), **terms}

    def predict(self, images, metas: Sequence[dict], *, with_prob: bool = False) -> list:
        """Label maps of a batch, each at its picture's own size.

        Args:
            images: (N, 3, H, W) float32, normalised and padded; a Var or a NumPy array.
            metas: N dicts: `ori_shape` (h, w), `padding_size` (left, right, top, bottom) or `img_shape`, `flip`,
                `flip_direction`.
            with_prob: return the winning class's softmax probability too.
        Returns:
            N arrays (h, w), uint8 (uint16 above 256 classes); with `with_prob` N pairs (labels, probability float32 in
            [0, 1]).
        Raises:
            ValueError: as many metas as pictures are needed; a meta that contradicts the input.
        """
        return self.predict_augmented([(images, metas)], with_prob=with_prob)

    def predict_augmented(self, inputs: Sequence[tuple], *, with_prob: bool = False,
                          thresholds: np.ndarray | None = None) -> list:
        """Label maps from several augmented versions of the same pictures: the largest mean softmax wins.

        The caller makes the versions from the pictures themselves, as mmsegmentation's TTA pipeline does: resize the
        uint8 picture (ratio kept), flip it, normalise, pad; each version's metas say its padding and flip, and all say
        the same `ori_shape`.

            inputs = [preprocess(resize(picture, scale), flip) for scale in scales for flip in (False, True)]
            labels = model.predict_augmented([(batch.images, batch.metas) for batch in inputs])

        One version gives exactly `predict`.

        Args:
            inputs: pairs (images, metas) as for `predict`, of any sizes, with the same pictures in the same order.
            with_prob: return the class's mean probability too.
            thresholds: (K,) probabilities, see `readout.choose_classes`; where no class reaches its own the label is
                `no_class`.
        Returns, raises: as `predict`.
        """
        if with_prob or thresholds is not None:
            def read(views):
                labels, prob = label_map(views, self.num_classes, with_prob=with_prob, thresholds=thresholds)
                labels = np.where(labels == self.num_classes, self.no_class, labels)
                labels = labels.astype(self._label_dtype(thresholds))
                return (labels, prob) if with_prob else labels
        else:
            def read(views):
                return label_map(views, self.num_classes)[0].astype(self._label_dtype())
        return self._read_out(inputs, read, direct=None if thresholds is not None else {"with_prob": with_prob})

    def scores_augmented(self, inputs: Sequence[tuple], *, softmax: bool = True) -> list[np.ndarray]:
        """Scores of all classes, each picture's (K, h, w) float32 at its own size: 4 K h w bytes each.

        Args:
            inputs: as for `predict_augmented`.
            softmax: probabilities, averaged over the versions; without it logits, of one version.
        Raises:
            ValueError: logits of several versions; as `predict`.
        """
        if not softmax and len(inputs) > 1:
            raise ValueError("logits of several augmented versions have no common scale; ask for probabilities, or "
                             "leave test-time augmentation out")
        return self._read_out(inputs, lambda views: score_map(views, self.num_classes, softmax=softmax))

    @property
    def no_class(self) -> int:
        """The label of pixels without a class, where thresholds leave some: 255, or 65535 from 256 classes on."""
        return 255 if self.num_classes < 256 else 65535

    def _label_dtype(self, thresholds: np.ndarray | None = None) -> type:
        return np.uint8 if self.num_classes < 256 + (thresholds is None) else np.uint16

    def _read_out(self, inputs: Sequence[tuple], read: Callable[[list], Any], *, direct: dict | None = None) -> list:
        """Run the network in evaluation mode and give each picture's views to `read`; `direct` are the options of
        `_direct_maps`, where that may answer instead."""
        was_training = self.is_training()
        if was_training:
            self.eval()
        try:
            with jt.no_grad(), ops.use(self.impl, self.precision):
                views = []  # for each augmentation, for each picture: its windows
                for images, metas in inputs:
                    images = jt.array(images) if isinstance(images, np.ndarray) else images
                    if len(metas) != images.shape[0] or len(metas) != len(inputs[0][1]):
                        raise ValueError(f"predict: {images.shape[0]} pictures, {len(metas)} metas and "
                                         f"{len(inputs[0][1])} in the first version; they must agree")
                    frames = [Frame.from_meta(meta, tuple(images.shape[2:])) for meta in metas]
                    if direct is not None and len(inputs) == 1 and self._few_windows:
                        return self._direct_maps(images, frames, self._label_dtype(), **direct)
                    views.append(self._run_windows(images, frames))
                return [read(list(of_picture)) for of_picture in zip(*views)]
        finally:
            if was_training:
                self.train()

    def _direct_maps(self, images: jt.Var, frames: list[Frame], dtype, with_prob: bool) -> list:
        """The direct road of `readout`: classes straight from the logits, pictures that lie alike in one call."""
        spans = self._window_spans(tuple(images.shape[2:]))
        results = []
        for first, group in self._picture_groups(images, spans):
            here = frames[first:first + group.shape[0]]
            alike = [[*found] for _, found in itertools.groupby(range(len(here)), lambda i: (here[i].padding,
                                                                                           here[i].own_size))]
            readers = None
            for rows in spans[0]:
                across = [self(_window_of(group, rows, columns)) for columns in spans[1]]
                logits = across[0] if len(across) == 1 else jt.concat(across, 3)
                if readers is None:
                    low_size = tuple(across[0].shape[2:])
                    readers = [LabelReader(direct_maps(replace(here[places[0]], flip=None), spans, low_size,
                                                       self.align_corners, self._resizes_once), low_size[0], with_prob)
                               for places in alike]
                for reader, places in zip(readers, alike):
                    reader.add(logits if len(alike) == 1 else logits[places[0]:places[-1] + 1])
            for reader, places in zip(readers, alike):
                for place, (labels, *prob) in zip(places, zip(*reader.finish())):
                    upright = [np.ascontiguousarray(here[place].upright(values))
                               for values in (labels.astype(dtype, copy=False), *prob)]
                    results.append(tuple(upright) if with_prob else upright[0])
        return results

    def _window_spans(self, size: tuple[int, int]) -> tuple[tuple[tuple[int, int], ...], ...]:
        """(begin, end) of the windows in rows and in columns of an input of this size; the whole of it is one."""
        if self.test_cfg["mode"] == "slide":
            even = bool(self.test_cfg.get("even"))
            return tuple(tuple(windows(size[axis], self.test_cfg["crop_size"][axis], self.test_cfg["stride"][axis],
                                       even=even)) for axis in (0, 1))
        return tuple(((0, side),) for side in size)

    @property
    def _few_windows(self) -> bool:
        """Whether the direct road takes the slide: each window that covers a pixel adds up to three sources."""
        if self.test_cfg["mode"] == "whole":
            return True
        most = max(-(-crop // stride) + 1 for crop, stride in zip(self.test_cfg["crop_size"], self.test_cfg["stride"]))
        return 3 * most <= MAX_TAPS

    @property
    def _resizes_once(self) -> bool:
        return self.test_cfg["mode"] == "whole" and bool(self.test_cfg.get("direct"))

    @staticmethod
    def _picture_groups(images: jt.Var, spans: tuple) -> list[tuple[int, jt.Var]]:
        """The batch as it is run, (first picture, pictures): whole on a GPU, on the CPU `GROUP_PIXELS` of a window of
        each at once."""
        count = images.shape[0]
        height, width = (end - begin for begin, end in (side[0] for side in spans))
        step = count if jt.flags.use_cuda else max(1, GROUP_PIXELS // (height * width))
        return [(0, images)] if step >= count else [(i, images[i:i + step]) for i in range(0, count, step)]

    def _run_windows(self, images: jt.Var, frames: list[Frame]) -> list[list[Window]]:
        """Run the network on the whole input or on each window of a slide; for each picture its windows."""
        size = tuple(images.shape[2:])
        spans = self._window_spans(size)
        counts = overlaps(size[0], spans[0]), overlaps(size[1], spans[1])
        result: list[list[Window]] = [[] for _ in frames]
        for rows, columns in itertools.product(*spans):
            for first, group in self._picture_groups(_window_of(images, rows, columns), spans):
                logits = self(group)  # (n, K, h, w)
                low_size = tuple(logits.shape[2:])
                logits = logits.transpose(0, 2, 1, 3)  # (n, h, K, w)
                logits.sync()
                for i, frame in enumerate(frames[first:first + group.shape[0]]):
                    maps = window_maps(frame, (rows, columns), counts, low_size, self.align_corners,
                                       self._resizes_once)
                    result[first + i].append(Window(logits[i], *maps))
        return result


def _window_of(images: jt.Var, rows: tuple[int, int], columns: tuple[int, int]) -> jt.Var:
    """A window of pictures (N, C, H, W); the whole of them is no copy."""
    if (rows, columns) == ((0, images.shape[2]), (0, images.shape[3])):
        return images
    return images[:, :, slice(*rows), slice(*columns)]


_TEST_CFG = {"mode": Rule(lambda v: v in ("whole", "slide"), "whole or slide", optional=False), "crop_size": SIZE,
             "stride": SIZE, **dict.fromkeys(("direct", "even"), Rule(lambda v: isinstance(v, bool), "true or false"))}


def faults_of_test_cfg(cfg: Mapping) -> list[str]:
    """List what is wrong with a `model.test_cfg`; empty when nothing is."""
    where = "model.test_cfg"
    faults = fields(cfg, _TEST_CFG, where, "test_cfg")
    crop, stride = cfg.get("crop_size"), cfg.get("stride")
    if cfg.get("mode") == "slide":
        faults += [f"{where}: mode slide needs {key!r}" for key in ("crop_size", "stride") if cfg.get(key) is None]
        if is_pair(crop) and is_pair(stride) and any(s > c for s, c in zip(stride, crop)):
            faults.append(f"{where}: stride {stride} is larger than crop_size {crop}: parts of the picture would get "
                          "no label")
    return faults


def _read_test_cfg(cfg: Mapping | None) -> dict:
    """A `test_cfg` with its default mode, sizes as pairs."""
    cfg = {"mode": "whole", **(cfg or {})}
    faults = faults_of_test_cfg(cfg)
    if faults:
        raise ConfigError("\n".join(faults))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
