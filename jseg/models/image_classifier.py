"""ImageClassifier: backbone, mean over places, linear classifier: what backbones are pretrained as.

Upstream: mmpretrain 1.2 mmpretrain/models/{classifiers/image,heads/linear_head,heads/cls_head}.py (Apache-2.0), whose
words and state keys (`backbone.*`, `head.fc.*`) these are. Mixing: Zhang et al., "mixup", ICLR 2018; Yun et al.,
"CutMix", ICCV 2019, as timm 1.0's `Mixup(mode="batch", correct_lam=True)` and mmpretrain's batch augments do it. Loss:
cross entropy with soft targets; label smoothing: Szegedy et al., CVPR 2016 (mmpretrain's LabelSmoothLoss, mode
"original", which is timm's SoftTargetCrossEntropy of smoothed targets).

Deviations:
- the mean over places is the head's, so that any backbone that gives maps can stand before it; a map with a class token
  (ViT) gives the token;
- a picture's partner in mixing is half a batch away (timm: the batch in reverse, mmpretrain: drawn). A step that is
  split over ranks then pairs the same pictures as one process, where the batch is a multiple of twice the ranks.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Linear
from jseg.ops import ranks
from jseg.registry import MODELS, construct, nearest
from jseg.rules import FACTOR, POSITIVE, Rule, fields

__all__ = ["ImageClassifier", "LinearClsHead", "Mixing", "augment_faults"]

_AUGMENTS = {"Mixup": POSITIVE, "CutMix": POSITIVE}
_BLOCK = {"type": Rule(lambda v: v in _AUGMENTS, " or ".join(_AUGMENTS), optional=False),
          "alpha": POSITIVE, "prob": Rule(lambda v: FACTOR.accepts(v) and v <= 1, "a number from 0 to 1")}


class LinearClsHead(nn.Module):
    """Mean of a map over its places (or the class token that comes with it), and a linear layer to classes.

    Args:
        num_classes: K.
        in_channels: C, of all maps of `in_index` together.
        in_index: the backbone's map, or several, whose means are joined.
        label_smooth_val: share of every target that is spread over all classes, in [0, 1).
    Shape:
        maps: list of (N, C_i, H_i, W_i), or pairs of such a map and its token (N, C_i) -> (N, K)
    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, num_classes: int, in_channels: int, in_index: int | Sequence[int] = -1,
                 label_smooth_val: float = 0.0):
        super().__init__()
        if num_classes < 2 or not 0.0 <= label_smooth_val < 1.0:
            raise ValueError(f"needs 2 classes or more and 0 <= label_smooth_val < 1, got {num_classes} and "
                             f"{label_smooth_val}")
        self.num_classes, self.label_smooth_val = num_classes, float(label_smooth_val)
        self.in_index = [in_index] if isinstance(in_index, int) else list(in_index)
        self.in_channels = in_channels
        self.fc = Linear(in_channels, num_classes)

    def execute(self, maps: Sequence) -> jt.Var:
        vectors = [_pooled_vector(maps[i]) for i in self.in_index]
        return self.fc(vectors[0] if len(vectors) == 1 else jt.concat(vectors, 1))


def _pooled_vector(found: jt.Var | tuple) -> jt.Var:
    """(N, C) of a map, or the class token that comes with it."""
    if isinstance(found, (tuple, list)):
        return found[1].reshape(found[1].shape[0], -1)
    return found.reshape(found.shape[0], found.shape[1], -1).mean(2)


class Mixing:
    """Mix every picture of a batch with another one: one draw for the batch.

    Args:
        augments: `{type: Mixup | CutMix, alpha, prob}` blocks; `prob` of each, else they share what is left evenly.
    Raises:
        ConfigError: a wrong block, or probabilities of more than 1.
    """

    def __init__(self, augments: Sequence[Mapping[str, Any]]):
        faults = augment_faults(augments)
        if faults:
            raise ConfigError("\n".join(faults))
        self.augments = [dict(block) for block in augments]
        given = [block.get("prob") for block in self.augments]
        rest = (1.0 - sum(p for p in given if p is not None)) / max(1, given.count(None))
        self.probs = [rest if p is None else float(p) for p in given]

    def draw(self, size: tuple[int, int], rng=np.random) -> tuple[np.ndarray, float]:
        """The weight of a picture against its partner's, and its share of the target.

        Args:
            size: (H, W) of the pictures.
            rng: has `random_sample`, `beta` and `randint`; NumPy's global generator, which a run seeds at every step.
        Returns:
            (H, W) float32: one number everywhere (Mixup), 0 inside a box and 1 around it (CutMix), 1 for no mixing; and
            the share, 0 to 1.
        """
        place = int(np.searchsorted(np.cumsum(self.probs), rng.random_sample(), side="right"))
        if place >= len(self.augments):
            return np.ones(size, np.float32), 1.0
        block = self.augments[place]
        share = float(rng.beta(block["alpha"], block["alpha"]))
        if block["type"] == "Mixup":
            return np.full(size, share, np.float32), share
        weight = np.ones(size, np.float32)
        top, bottom, left, right = cut_box(size, share, int(rng.randint(size[0])), int(rng.randint(size[1])))
        weight[top:bottom, left:right] = 0.0
        return weight, 1.0 - (bottom - top) * (right - left) / float(size[0] * size[1])


def cut_box(size: tuple[int, int], share: float, row: int, column: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of CutMix's box around a centre: sides sqrt(1 - share) of the picture's, cut at its
    edges."""
    ratio = np.sqrt(1.0 - share)
    high, wide = int(size[0] * ratio), int(size[1] * ratio)
    return (*np.clip([row - high // 2, row + (high + 1) // 2], 0, size[0]).tolist(),
            *np.clip([column - wide // 2, column + (wide + 1) // 2], 0, size[1]).tolist())


def augment_faults(augments: Any, where: str = "model.train_cfg.augments") -> list[str]:
    """List what is wrong with the `augments` of a classifier; empty when nothing is."""
    if not isinstance(augments, (list, tuple)):
        return [f"{where}: got {augments!r:.200}, expected a list of blocks such as {{type: Mixup, alpha: 0.8}}"]
    faults = []
    for i, block in enumerate(augments):
        if not isinstance(block, Mapping):
            faults.append(f"{where}.{i}: got {block!r:.200}, expected a block such as {{type: Mixup, alpha: 0.8}}")
            continue
        faults += fields(block, _BLOCK, f"{where}.{i}", "a batch augmentation")
        faults += [f"{where}.{i}: needs {key!r}" for key in ("type", "alpha") if key not in block]
    if not faults and sum(block.get("prob") or 0.0 for block in augments) > 1 + 1e-9:
        faults.append(f"{where}: the probabilities add up to more than 1")
    return faults


@MODELS.register()
class ImageClassifier(nn.Module):
    """A backbone under a linear classifier.

    Args:
        backbone: config block; its map that `head.in_index` names is pooled.
        head: `{num_classes, in_channels, in_index, label_smooth_val}`, see `LinearClsHead`; `type` may be left out.
        neck: `{type: GlobalAveragePooling}` as mmpretrain writes it, or None: the head pools either way.
        train_cfg: `{augments: [{type: Mixup, alpha: 0.8}, {type: CutMix, alpha: 1.0}]}`, see `Mixing`; None for none.
        impl: operator implementation, see `ops.use`.
    Shape:
        images: (N, 3, H, W) float32, normalised -> logits (N, K)
    Raises:
        ConfigError: a block that does not fit its constructor.
    """

    ignore_index = -1  # no label: every picture has a class
    precisions = ("float32",)  # see `Segmentor`

    def __init__(self, backbone: dict, head: dict, *, neck: dict | None = None, train_cfg: dict | None = None,
                 impl: str = "auto"):
        super().__init__()
        if neck is not None and neck.get("type") != "GlobalAveragePooling":
            raise ConfigError(f"model.neck: got {neck!r:.200}; accepted: {{type: GlobalAveragePooling}}, or none")
        known = set(train_cfg or {}) - {"augments"}
        if known:
            raise ConfigError(f"model.train_cfg: unknown key {sorted(known)[0]!r}"
                              f"{nearest(sorted(known)[0], ['augments'])}; it takes augments")
        self.impl = impl
        self.backbone = MODELS.build(backbone, "model.backbone")
        self.head = construct(LinearClsHead, head, "model.head")
        augments = (train_cfg or {}).get("augments")
        self.mixing = Mixing(augments) if augments else None

    @property
    def num_classes(self) -> int:
        """K."""
        return self.head.num_classes

    def derive(self) -> None:
        """Nothing here follows from other weights; see `Segmentor.derive`."""

    def begin_step(self, iteration: int) -> None:
        """See `Segmentor.begin_step`."""

    def blank_labels(self, count: int, size: tuple[int, int]) -> np.ndarray:
        """Labels (count,) for pictures that are looked at for their shapes only."""
        return np.zeros(count, np.int32)

    def execute(self, images: jt.Var) -> jt.Var:
        with ops.use(self.impl):
            return self.head(self.backbone(images))

    def loss(self, images: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        """Losses of a training batch, which is mixed first.

        Args:
            images: (N, 3, H, W) float32.
            labels: (N,) int32, values in [0, K).
        Returns:
            "loss" and "head.loss", and "head.acc_top1" in percent: pictures whose first class is the one with the
            larger share of the target.
        """
        targets = one_hot(labels, self.num_classes)
        if self.mixing is not None and self.is_training():
            images, targets = mix_batch(images, targets, *self.mixing.draw(tuple(images.shape[2:])))
        logits = self(images).float32()
        found, truth = jt.argmax(logits, 1)[0], jt.argmax(targets, 1)[0]
        loss = soft_cross_entropy(logits, smoothed(targets, self.head.label_smooth_val))
        if ranks.in_step():
            loss = loss * jt.array(np.array([ranks.share_of(labels.shape[0])], np.float32))
        return {"loss": loss, "head.loss": loss, "head.acc_top1": (found == truth).float32().mean() * 100}


def one_hot(labels: jt.Var, num_classes: int) -> jt.Var:
    """(N,) int32 -> (N, K) float32."""
    return (labels.reshape(-1, 1) == jt.arange(num_classes).reshape(1, -1)).float32()


def mix_batch(images: jt.Var, targets: jt.Var, weight: np.ndarray, share: float) -> tuple[jt.Var, jt.Var]:
    """Pictures and targets mixed with those half a batch away.

    Shape:
        images: (N, C, H, W); targets: (N, K); weight: (H, W) -> same
    """
    half = images.shape[0] // 2
    if half == 0:
        return images, targets
    weight, share = jt.array(weight[None, None]), jt.array(np.array([[share]], np.float32))
    others = [jt.concat([part[half:], part[:half]], 0) for part in (images, targets)]
    return images * weight + others[0] * (1 - weight), targets * share + others[1] * (1 - share)


def smoothed(targets: jt.Var, share: float) -> jt.Var:
    """Targets (N, K) with a share of each spread over all classes."""
    return targets if share == 0.0 else targets * (1.0 - share) + share / targets.shape[1]


def soft_cross_entropy(logits: jt.Var, targets: jt.Var) -> jt.Var:
    """Mean over pictures of -sum(target * log softmax(logits)); (N, K), (N, K) -> scalar."""
    shifted = logits - logits.max(1, keepdims=True).stop_grad()
    logs = shifted - jt.log(jt.exp(shifted).sum(1, keepdims=True))
    return -(targets * logs).sum() / logits.shape[0]
