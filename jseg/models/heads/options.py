"""The words that every head of MMSegmentation takes, with its defaults, written once.

A head's constructor is `(options, *, its own words)`: `options` is a `HeadOptions`, and a config block gives the words
of both side by side (the registry sorts them). A head whose defaults differ says so in `DEFAULTS`.
Upstream: mmsegmentation 1.2.2, mmseg/models/decode_heads/decode_head.py (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Sequence

from jseg.errors import ConfigError

__all__ = ["HeadOptions"]

INPUT_TRANSFORMS = (None, "resize_concat", "multiple_select")


@dataclass(frozen=True)
class HeadOptions:
    """What a head reads, how wide it is, and what it learns by.

    Args:
        in_channels: width of the map it reads, or one width for each of several.
        channels: width before the classifier.
        num_classes: K >= 2; background is a class of its own.
        out_channels: maps of the classifier; None for K. 1 makes a binary head of K = 2 by `threshold`.
        threshold: probability in (0, 1) from which a pixel of a binary head is class 1; None for 0.3, MMSegmentation's.
        dropout_ratio: channel dropout before the classifier, below 1; 0 or less for none.
        conv_cfg: convolution of the blocks: None or `{type: Conv2d}`; a head that takes others says so.
        norm_cfg, act_cfg: norm (None for none) and activation of the convolution blocks.
        in_index: place of the map, or of several maps, in the list that backbone or neck gives.
        input_transform: None for one map, "multiple_select" for a list, "resize_concat" for several maps resized to the
            first and joined.
        loss_decode: one loss block or a list. Losses of one name are added up.
        ignore_index: label value that counts nowhere.
        sampler: pixel sampler block, or None.
        align_corners: how maps and logits are resized.
    Raises:
        ConfigError: a value out of range, or `in_channels` and `in_index` that do not fit `input_transform`.
    """

    CONVOLUTIONS: ClassVar[tuple] = ("Conv", "Conv2d")  # what conv_cfg may name

    in_channels: int | Sequence[int]
    channels: int
    num_classes: int
    out_channels: int | None = None
    threshold: float | None = None
    dropout_ratio: float = 0.1
    conv_cfg: dict | None = None
    norm_cfg: dict | None = None
    act_cfg: dict | None = field(default_factory=lambda: {"type": "ReLU"})
    in_index: int | Sequence[int] = -1
    input_transform: str | None = None
    loss_decode: dict | Sequence[dict] = field(
        default_factory=lambda: {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0})
    ignore_index: int = 255
    sampler: dict | None = None
    align_corners: bool = False

    def __post_init__(self):
        if self.num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {self.num_classes}; background is a class of its "
                              "own: name two classes ([background, ...]) and set num_classes: 2")
        if self.out_channels not in (None, self.num_classes) and not (self.out_channels == 1 and self.num_classes == 2):
            raise ConfigError(f"out_channels is {self.out_channels}; accepted: num_classes ({self.num_classes}), or 1 "
                              "with num_classes 2")
        if self.threshold is not None and not (self.out_channels == 1 and 0 < self.threshold < 1):
            raise ConfigError(f"threshold is {self.threshold}; it goes with out_channels 1 and lies between 0 and 1")
        if self.input_transform not in INPUT_TRANSFORMS:
            raise ConfigError(
                f"input_transform is {self.input_transform!r}; accepted: {', '.join(map(repr, INPUT_TRANSFORMS))}")
        if self.conv_cfg is not None and self.conv_cfg.get("type", "Conv2d") not in self.CONVOLUTIONS:
            raise ConfigError(
                f"conv_cfg names {self.conv_cfg.get('type')!r}; accepted for this head: {', '.join(self.CONVOLUTIONS)}")
        listed = [isinstance(value, (list, tuple)) for value in (self.in_channels, self.in_index)]
        if self.input_transform is None and any(listed):
            raise ConfigError(f"in_channels {self.in_channels} and in_index {self.in_index}: one map is read, give one "
                              "number each, or an input_transform")
        if self.input_transform is not None and not (all(listed) and len(self.in_channels) == len(self.in_index)):
            raise ConfigError(f"in_channels {self.in_channels} and in_index {self.in_index} must be lists of one "
                              f"length with input_transform {self.input_transform!r}")

    @property
    def input_width(self) -> int:
        """Channels of the map that `decode` starts from, where that is one map."""
        return sum(self.in_channels) if self.input_transform == "resize_concat" else self.in_channels

    @property
    def score_channels(self) -> int:
        """Maps that the classifier gives."""
        return self.num_classes if self.out_channels is None else self.out_channels

    @property
    def blocks(self) -> dict:
        """Norm and activation, as `ConvNormAct` takes them."""
        return {"norm_cfg": self.norm_cfg, "act_cfg": self.act_cfg}
