"""What any model answers: training loss, label maps of a batch, label maps from several augmented versions.

Meaning of whole and slide inference and test-time augmentation: mmsegmentation 1.2.2, mmseg/models/segmentors
(Apache-2.0); how inference avoids full-size logits is told in `jseg.models.readout`.
"""

from __future__ import annotations

import itertools
from typing import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.losses.base import total
from jseg.models.readout import Frame, Window, label_map, overlaps, window_maps, windows
from jseg.registry import nearest

__all__ = ["Segmentor"]

# input pixels of one pass on the CPU at inference: more at once is 0 to 10 % slower and takes as much more memory
GROUP_PIXELS = 1 << 20


class Segmentor(nn.Module):
    """Base of whole models. A subclass gives `num_classes`, `align_corners`,
    `ignore_index`, `class_scores` and `batch_losses`.

    Args:
        test_cfg: `{mode: whole}` (default) or `{mode: slide, crop_size: [h, w], stride: [h, w]}`, in pixels.
        impl: operator implementation of the whole model: "auto", "jittor", "cpu" or "cuda" (see `ops.use`).
    Shape:
        images: (N, 3, H, W) float32, normalised -> class scores (N, K, h, w), to be resized to (H, W)
    Raises:
        ConfigError: a `test_cfg` that names no mode, or sizes that do not fit.
    """

    num_classes: int
    align_corners: bool
    ignore_index: int

    def __init__(self, *, test_cfg: dict | None = None, impl: str = "auto"):
        super().__init__()
        self.test_cfg, self.impl = _checked_test_cfg(test_cfg), impl

    def class_scores(self, images: jt.Var) -> jt.Var:
        """(N, K, h, w), to be resized bilinearly to the size of `images`; the class with the largest wins."""
        raise NotImplementedError

    def batch_losses(self, images: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        """Terms of the loss by name, and accuracies "<...>.acc_<...>" in percent."""
        raise NotImplementedError

    def execute(self, images: jt.Var) -> jt.Var:
        with ops.use(self.impl):
            return self.class_scores(images)

    def loss(self, images: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        """Losses of a training batch.

        Args:
            images: (N, 3, H, W) float32.
            labels: (N, H, W) int32, values in [0, K) or the ignore index.
        Returns:
            "loss", the sum to differentiate, and its parts by name; accuracies in percent.
        """
        with ops.use(self.impl):
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

    def predict_augmented(self, inputs: Sequence[tuple], *, with_prob: bool = False) -> list:
        """Label maps from several augmented versions of the same pictures: the largest mean softmax wins.

        The caller makes the versions from the pictures themselves, as mmsegmentation's TTA pipeline does: resize the
        uint8 picture (ratio kept), flip it, normalise, pad; each version's metas say its padding and flip, and all say
        the same `ori_shape`.

            inputs = [preprocess(resize(picture, scale), flip) for scale in scales for flip in (False, True)]
            labels = model.predict_augmented([(batch.images, batch.metas) for batch in inputs])

        One version gives exactly `predict`.

        Args:
            inputs: pairs (images, metas) as for `predict`, of any sizes, with the same pictures in the same order.
            with_prob: return the winning class's mean probability too.
        Returns, raises: as `predict`.
        """
        was_training = self.is_training()
        if was_training:
            self.eval()
        try:
            with jt.no_grad(), ops.use(self.impl):
                results = self._label_maps(inputs, with_prob)
        finally:
            if was_training:
                self.train()
        return results

    def _label_maps(self, inputs: Sequence[tuple], with_prob: bool) -> list:
        dtype = np.uint8 if self.num_classes <= 256 else np.uint16
        views = []  # for each augmentation, for each picture: its windows, or a finished map
        for images, metas in inputs:
            images = jt.array(images) if isinstance(images, np.ndarray) else images
            if len(metas) != images.shape[0] or len(metas) != len(inputs[0][1]):
                raise ValueError(f"predict: {images.shape[0]} pictures, {len(metas)} metas and {len(inputs[0][1])} in "
                                 "the first version; they must agree")
            frames = [Frame.from_meta(meta, tuple(images.shape[2:])) for meta in metas]
            if len(inputs) == 1 and self.test_cfg["mode"] == "whole" and all(frame.is_one_resize for frame in frames):
                return self._one_resize(images, frames, dtype, with_prob)
            views.append(self._windows(images, frames))
        results = []
        for i in range(len(inputs[0][1])):
            labels, prob = label_map([view[i] for view in views], self.num_classes, with_prob=with_prob)
            results.append((labels.astype(dtype), prob) if with_prob else labels.astype(dtype))
        return results

    def _one_resize(self, images: jt.Var, frames: list[Frame], dtype, with_prob: bool) -> list:
        """The usual case of equal sizes: one fused resize and argmax for each group of pictures."""
        results = []
        for first, group in self._groups(images):
            found = ops.upsample_argmax(self(group), tuple(images.shape[2:]), align_corners=self.align_corners,
                                        with_prob=with_prob)
            maps = (found[0].numpy().astype(dtype), found[1].numpy()) if with_prob else (found.numpy().astype(dtype),)
            for frame, picture in zip(frames[first:], zip(*maps)):
                upright = tuple(np.ascontiguousarray(frame.upright(values)) for values in picture)
                results.append(upright if with_prob else upright[0])
        return results

    @staticmethod
    def _groups(images: jt.Var) -> list[tuple[int, jt.Var]]:
        """The batch as it is run, (first picture, pictures): whole on a GPU, on the CPU `GROUP_PIXELS` at once."""
        count, _, height, width = images.shape
        step = count if jt.flags.use_cuda else max(1, GROUP_PIXELS // (height * width))
        return [(0, images)] if step >= count else [(i, images[i:i + step]) for i in range(0, count, step)]

    def _windows(self, images: jt.Var, frames: list[Frame]) -> list[list[Window]]:
        """Run the network on the whole input or on each window of a slide; for each picture its windows."""
        size = tuple(images.shape[2:])
        if self.test_cfg["mode"] == "slide":
            spans = [windows(size[axis], self.test_cfg["crop_size"][axis], self.test_cfg["stride"][axis])
                     for axis in (0, 1)]
        else:
            spans = [[(0, size[0])], [(0, size[1])]]
        counts = overlaps(size[0], spans[0]), overlaps(size[1], spans[1])
        result: list[list[Window]] = [[] for _ in frames]
        for rows, columns in itertools.product(*spans):
            for first, group in self._groups(images[:, :, slice(*rows), slice(*columns)]):
                logits = self(group)  # (n, K, h, w)
                low_size = tuple(logits.shape[2:])
                logits = logits.transpose(0, 2, 1, 3)  # (n, h, K, w)
                logits.sync()
                for i, frame in enumerate(frames[first:first + group.shape[0]]):
                    maps = window_maps(frame, (rows, columns), counts, low_size, self.align_corners)
                    result[first + i].append(Window(logits[i], *maps))
        return result


def _checked_test_cfg(cfg: dict | None) -> dict:
    """Validate a `test_cfg` block and fill in the default mode."""
    cfg = dict(cfg or {})
    cfg.setdefault("mode", "whole")
    if cfg["mode"] not in ("whole", "slide"):
        raise ConfigError(f"model.test_cfg: mode must be 'whole' or 'slide', got {cfg['mode']!r}")
    known = ("mode", "crop_size", "stride")
    for key in cfg:
        if key not in known:
            raise ConfigError(f"model.test_cfg: unknown key {key!r}{nearest(key, known)} (known: {', '.join(known)})")
    if cfg["mode"] == "slide":
        for key in known[1:]:
            value = cfg.get(key)
            if not isinstance(value, (list, tuple)) or len(value) != 2 or min(value) < 1:
                raise ConfigError(f"model.test_cfg: slide inference needs {key}: [height, width] in pixels, got "
                                  f"{value!r}")
            cfg[key] = (int(value[0]), int(value[1]))
        if any(s > c for s, c in zip(cfg["stride"], cfg["crop_size"])):
            raise ConfigError(f"model.test_cfg: stride {list(cfg['stride'])} is larger than crop_size "
                              f"{list(cfg['crop_size'])}; parts of the picture would stay without a label")
    return cfg
