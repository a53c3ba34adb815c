"""HRNet: branches of several resolutions side by side, which exchange their maps again and again.

Paper: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020 (first Sun et al.,
CVPR 2019). Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/hrnet.py (Apache-2.0), whose words, keys and
arithmetic these are.

Deviations: `zero_init_residual` works (upstream's condition is never met); `norm_eval` is not here: `frozen_stages`
fixes the norms of the frozen stages.
"""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import Callable, Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, Numbered, build_norm, conv_norm, relu
from jseg.layers.freeze import freeze, run_frozen
from jseg.models.backbones.resnet import BasicBlock, Bottleneck, make_stage, zero_last_norms
from jseg.registry import MODELS

__all__ = ["ConvNorm", "Fusion", "HRModule", "HRNet", "bilinear_enlarged"]

_BLOCKS = MappingProxyType({"BASIC": BasicBlock, "BOTTLENECK": Bottleneck})
_STAGE_WORDS = ("num_modules", "num_branches", "block", "num_blocks", "num_channels")
_STEM_CHANNELS = 64


class ConvNorm(nn.Sequential):
    """A convolution without bias and a norm. Keys "0" and "1". Shape:
    (N, in_channels, H, W) -> (N, out_channels, H', W').
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, norm_cfg: Mapping):
        conv = Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
        super().__init__(conv, build_norm(norm_cfg, out_channels)[1])

    def execute(self, x: jt.Var, *, activation: str | None = "relu", residual: jt.Var | None = None) -> jt.Var:
        """activation(norm(conv(x)) + residual)."""
        conv, norm = self
        return conv_norm(x, conv, norm, activation=activation, residual=residual)


def bilinear_enlarged(x: jt.Var, y: jt.Var, factor: int) -> jt.Var:
    """y plus a coarser map, enlarged bilinearly by a factor and then, where that misses a few rows, to the size of y.
    Shape: x: (N, C, h, w); y: (N, C, H, W) -> (N, C, H, W).
    """
    x = ops.bilinear_resize(x, (x.shape[2] * factor, x.shape[3] * factor))
    return ops.bilinear_resize(x, tuple(y.shape[2:]), add=y)


class Fusion(Numbered):
    """What one branch receives: its own map, the coarser ones projected and resized, the finer ones by strided
    convolutions.

    Args:
        place: of the branch that receives, 0 the finest.
        widths: channels of all branches.
        norm_cfg: norm of every convolution.
        make_step: (channels before, after) -> what halves a map; called with `activation` and `residual` as `ConvNorm`.
        add_enlarged: (coarser map, map, factor) -> their sum.
    Shape:
        maps: list of (N, widths[i], H_i, W_i) -> (N, widths[place], H_place, W_place)
    """

    def __init__(self, place: int, widths: Sequence[int], norm_cfg: Mapping, *,
                 make_step: Callable[[int, int], nn.Module] | None = None,
                 add_enlarged: Callable[[jt.Var, jt.Var, int], jt.Var] = bilinear_enlarged):
        make_step = make_step or functools.partial(ConvNorm, kernel_size=3, stride=2, norm_cfg=norm_cfg)
        parts = []
        for other, width in enumerate(widths):
            if other > place:
                parts.append(ConvNorm(width, widths[place], 1, norm_cfg=norm_cfg))
            elif other == place:
                parts.append(None)
            else:
                inner = [width] * (place - other)
                parts.append(nn.Sequential(*[make_step(a, b) for a, b in zip(inner, (*inner[1:], widths[place]))]))
        super().__init__(parts)
        self.place, self.add_enlarged = place, add_enlarged

    def execute(self, maps: Sequence[jt.Var]) -> jt.Var:
        y = maps[self.place]
        for other in range(self.place + 1, len(self)):
            y = self.add_enlarged(self[other](maps[other], activation=None), y, 2**(other - self.place))
        if self.place == 0:
            return relu(y)
        for other in range(self.place):
            *before, last = self[other]
            x = maps[other]
            for part in before:
                x = part(x)
            y = last(x, residual=y, activation="relu" if other == self.place - 1 else None)
        return y


class HRModule(nn.Module):
    """Blocks on every branch, then every branch receives from all.

    Args:
        branches: the blocks of each, finest first.
        widths: channels of what they give.
        fuse: place of a branch -> its `Fusion`.
        multiscale_output: False gives the finest map only.
    Shape:
        maps: list of (N, C_i, H_i, W_i) -> list of (N, widths[i], H_i, W_i)
    """

    def __init__(self, branches: Sequence[nn.Module], widths: Sequence[int], fuse: Callable[[int], Fusion], *,
                 multiscale_output: bool):
        super().__init__()
        self.branches = Numbered(branches)
        receivers = len(widths) if multiscale_output else 1
        self.fuse_layers = Numbered([fuse(i) for i in range(receivers)] if len(widths) > 1 else [])

    def execute(self, maps: Sequence[jt.Var]) -> list[jt.Var]:
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        return [fuse(maps) for fuse in self.fuse_layers] if len(maps) > 1 else maps


class Transition(Numbered):
    """Maps of the next stage: adapted in width where that changes, and new ones by strided convolutions of the
    coarsest.

    Args:
        before, after: widths of the maps; `after` has as many or more.
    Shape:
        maps: list of len(before) maps, finest first -> list of len(after) maps, each new one half as large
    """

    def __init__(self, before: Sequence[int], after: Sequence[int], norm_cfg: Mapping):
        parts = []
        for i, width in enumerate(after):
            if i < len(before):
                parts.append(None if width == before[i] else ConvNorm(before[i], width, 3, norm_cfg=norm_cfg))
                continue
            steps = [before[-1]] * (i - len(before) + 1)
            parts.append(nn.Sequential(*[ConvNorm(a, b, 3, stride=2, norm_cfg=norm_cfg)
                                         for a, b in zip(steps, (*steps[1:], width))]))
        super().__init__(parts)

    def execute(self, maps: Sequence[jt.Var]) -> list[jt.Var]:
        given = [*maps, *[maps[-1]] * (len(self) - len(maps))]
        return [x if part is None else part(x) for part, x in zip(self, given)]


@MODELS.register()
class HRNet(nn.Module):
    """A stem of stride 4 and four stages, each of which adds a branch of half the resolution.

    Args:
        extra: `{stage1: {...}, ..., stage4: {...}}`, each with num_modules, num_branches, block ("BASIC" or
            "BOTTLENECK"), and num_blocks and num_channels, one number per branch. W18, W32 and W48 are named by stage
            4's first width.
        in_channels: channels of the picture.
        norm_cfg: norm of every convolution.
        frozen_stages: -1: none; 0: the stem; n: the stem and the first n stages. A frozen part computes as in
            evaluation (norms by their running statistics, which stand still) and its parameters get no gradient.
        zero_init_residual: start each block as the identity.
        multiscale_output: False gives the finest map only.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), strides
            4, 8, 16, 32
    Raises:
        ConfigError: a stage that is missing, has other words, or lists of other lengths than `num_branches`.
    """

    # kind of block -> words of a stage with it
    STAGE_WORDS = MappingProxyType({"BASIC": _STAGE_WORDS, "BOTTLENECK": _STAGE_WORDS})
    TINY = MappingProxyType({"type": "HRNet", "extra": {
        "stage1": {"num_modules": 1, "num_branches": 1, "block": "BOTTLENECK", "num_blocks": [1], "num_channels": [4]},
        "stage2": {"num_modules": 1, "num_branches": 2, "block": "BASIC", "num_blocks": [1, 1],
                   "num_channels": [8, 12]},
        "stage3": {"num_modules": 2, "num_branches": 3, "block": "BASIC", "num_blocks": [1, 1, 1],
                   "num_channels": [8, 12, 16]},
        "stage4": {"num_modules": 1, "num_branches": 4, "block": "BASIC", "num_blocks": [1, 1, 1, 1],
                   "num_channels": [8, 12, 16, 24]}}})

    def __init__(self, extra: Mapping, in_channels: int = 3,
                 norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}),
                 frozen_stages: int = -1, zero_init_residual: bool = False, multiscale_output: bool = True):
        super().__init__()
        stages = _checked(extra, self.STAGE_WORDS)
        if frozen_stages not in range(-1, len(stages) + 1):
            raise ConfigError(f"frozen_stages is {frozen_stages}; -1 freezes nothing, 0 the stem, 1 to {len(stages)} "
                              "stages")
        self.frozen_stages = frozen_stages
        self.conv1 = Conv2d(in_channels, _STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.bn1 = build_norm(norm_cfg, _STEM_CHANNELS)[1]
        self.conv2 = Conv2d(_STEM_CHANNELS, _STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.bn2 = build_norm(norm_cfg, _STEM_CHANNELS)[1]
        first = _BLOCKS[stages[0]["block"]]
        self.layer1 = _blocks(first, _STEM_CHANNELS, stages[0]["num_channels"][0], stages[0]["num_blocks"][0], norm_cfg)
        widths = [stages[0]["num_channels"][0] * first.expansion]
        for i, stage in enumerate(stages[1:], 1):
            modules, after = [], self.stage_widths(stage)
            setattr(self, f"transition{i}", Transition(widths, after, norm_cfg))
            for j in range(stage["num_modules"]):
                whole = multiscale_output or i < len(stages) - 1 or j < stage["num_modules"] - 1
                modules.append(self.make_module(stage, after, norm_cfg, place=(i - 1, j), multiscale_output=whole))
            setattr(self, f"stage{i + 1}", nn.Sequential(*modules))
            widths = after
        self.out_channels = widths if multiscale_output else widths[:1]
        self.strides = [4 * 2**i for i in range(len(self.out_channels))]
        if zero_init_residual:
            zero_last_norms(self)
        for name in self._frozen():
            freeze(getattr(self, name))

    def stage_widths(self, stage: Mapping) -> list[int]:
        """Channels of the maps of a stage."""
        return [width * _BLOCKS[stage["block"]].expansion for width in stage["num_channels"]]

    def make_module(self, stage: Mapping, widths: Sequence[int], norm_cfg: Mapping, *, place: tuple[int, int],
                    multiscale_output: bool) -> HRModule:
        """One module of a stage whose maps have `widths`. `place`: numbers of the stage, 0 the second, and of the
        module in it.
        """
        block = _BLOCKS[stage["block"]]
        branches = [_blocks(block, *sizes, norm_cfg) for sizes in zip(widths, stage["num_channels"],
                                                                      stage["num_blocks"])]
        return HRModule(branches, widths, lambda place: Fusion(place, widths, norm_cfg),
                        multiscale_output=multiscale_output)

    def execute(self, x: jt.Var) -> list[jt.Var]:
        frozen = self._frozen()

        def run(name, value):
            part = getattr(self, name)
            return run_frozen(part, value) if name in frozen else part(value)

        for i in (1, 2):
            if "conv1" in frozen:
                x = relu(run(f"bn{i}", run(f"conv{i}", x)))
            else:
                x = conv_norm(x, getattr(self, f"conv{i}"), getattr(self, f"bn{i}"), activation="relu")
        maps = [run("layer1", x)]
        for i in (1, 2, 3):
            maps = run(f"stage{i + 1}", run(f"transition{i}", maps))
        return maps

    def _frozen(self) -> list[str]:
        """Names of the frozen parts."""
        parts = (("conv1", "bn1", "conv2", "bn2"), ("layer1", "transition1"), ("stage2", "transition2"),
                 ("stage3", "transition3"), ("stage4",))
        return [name for part in parts[:self.frozen_stages + 1] for name in part]


def _blocks(block: type, in_channels: int, channels: int, blocks: int, norm_cfg: Mapping) -> nn.Sequential:
    """Residual blocks of one resolution."""
    return make_stage(block, in_channels, channels, blocks, stride=1, dilation=1, style="pytorch", norm_cfg=norm_cfg)


def _checked(extra: Mapping, words: Mapping[str, Sequence[str]]) -> list[Mapping]:
    """The four stages; ConfigError where one does not fit. `words`: those of a stage for each kind of block."""
    if sorted(extra) != [f"stage{i}" for i in range(1, 5)]:
        raise ConfigError(f"extra has {', '.join(extra) or 'nothing'}; accepted: stage1, stage2, stage3 and stage4")
    stages = [extra[f"stage{i}"] for i in range(1, 5)]
    for i, stage in enumerate(stages, 1):
        known = words if i > 1 else _BLOCKS
        if stage.get("block", next(iter(words))) not in known:
            raise ConfigError(f"extra.stage{i}: block is {stage['block']!r}; accepted: {', '.join(known)}")
        accepted = words[stage.get("block", next(iter(words)))]
        if sorted(stage) != sorted(accepted):
            raise ConfigError(f"extra.stage{i} has {', '.join(stage)}; accepted, all of them: {', '.join(accepted)}")
        branches = stage["num_branches"]
        lists = {word: list(stage[word]) for word in accepted if word not in ("num_modules", "num_branches", "block")}
        if any(len(values) != branches for values in lists.values()) or stage["num_modules"] < 1:
            raise ConfigError(f"extra.stage{i}: {lists} need num_branches = {branches} numbers each; num_modules is "
                              f"{stage['num_modules']}, at least 1")
    counts = [stage["num_branches"] for stage in stages]
    if counts[0] != 1 or counts != sorted(counts):
        raise ConfigError(f"extra: num_branches are {counts}; the first stage has 1, and none has fewer than the one "
                          "before")
    return stages
