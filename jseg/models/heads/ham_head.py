"""LightHamHead, the decoder of SegNeXt: concatenated stages through a Hamburger (matrix factorisation) block.

Papers: Guo et al., "SegNeXt", NeurIPS 2022, sec. 3.2; Geng et al., "Is Attention Better Than Matrix Decomposition?",
ICLR 2021. Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/ham_head.py (Apache-2.0), whose state keys and
arithmetic these are.

Deviations from upstream:
- in evaluation the starting bases are fixed by their shape; upstream draws new ones for every picture, so the same
  picture gives a different mask each time. `rand_init` decides about training only;
- `grad: one_step` differentiates the last factorisation step alone, as the Hamburger paper and original JSeg do;
- `inv_t` is checked and then 1 is used, because upstream's NMF2D and the authors' set it to 1 whatever is given.
"""

from __future__ import annotations

import functools
from types import MappingProxyType

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, relu
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.ops import ranks
from jseg.registry import MODELS, nearest

__all__ = ["LightHamHead", "evaluation_bases", "ham_options"]

_SPELLINGS = MappingProxyType({"TRAIN_STEPS": "train_steps", "EVAL_STEPS": "eval_steps", "INV_T": "inv_t",
                               "RAND_INIT": "rand_init", "GRAD": "grad"})
_DEFAULTS = MappingProxyType({"MD_S": 1, "MD_R": 64, "train_steps": 6, "eval_steps": 7, "inv_t": 100, "rand_init": True,
                              "grad": "full"})


def ham_options(given: dict | None) -> dict:
    """Merge `ham_kwargs` with the defaults, in mmsegmentation's spelling.

    Args:
        given: mmsegmentation's MD_S, MD_R, train_steps, eval_steps, inv_t, rand_init, or the authors' MD_S, MD_D, MD_R,
            SPATIAL, TRAIN_STEPS, EVAL_STEPS, INV_T, RAND_INIT; and `grad`, "full" or "one_step". MD_D (the width)
            follows from the channels and is ignored; SPATIAL must be true, as everywhere in SegNeXt.
    Raises:
        ConfigError: unknown key, a key given in both spellings, or a value out of range.
    """
    options = dict(_DEFAULTS)
    seen: dict[str, str] = {}
    for key, value in (given or {}).items():
        name = _SPELLINGS.get(key, key)
        if key == "SPATIAL":
            if not value:
                raise ConfigError("ham_kwargs: SPATIAL: false is not supported; SegNeXt factorises over positions "
                                  "(true)")
            continue
        if key == "MD_D":
            continue
        if name not in _DEFAULTS:
            known = [*_DEFAULTS, *_SPELLINGS, "SPATIAL", "MD_D"]
            raise ConfigError(f"ham_kwargs: unknown key {key!r}{nearest(key, known)} (known: {', '.join(known)})")
        if name in seen:
            raise ConfigError(f"ham_kwargs: {key!r} and {seen[name]!r} are one setting; give one of them")
        seen[name], options[name] = key, value
    for name in ("MD_S", "MD_R", "train_steps", "eval_steps"):
        if int(options[name]) < 1:
            raise ConfigError(f"ham_kwargs: {name} must be at least 1, got {options[name]}")
    if options["grad"] not in ("full", "one_step"):
        raise ConfigError(f"ham_kwargs: grad must be 'full' or 'one_step', got {options['grad']!r}")
    return options


@functools.lru_cache(maxsize=32)
def evaluation_bases(spatial: int, dimension: int, rank: int) -> np.ndarray:
    """Starting bases that depend on their shape only.

    Returns:
        (spatial, dimension, rank) float32, non-negative, each column of length 1; read-only.
    """
    generator = np.random.RandomState(np.array([spatial, dimension, rank], np.uint32))
    bases = generator.random_sample((spatial, dimension, rank))
    bases = (bases / np.linalg.norm(bases, axis=1, keepdims=True)).astype(np.float32)
    bases.setflags(write=False)
    return bases


class NMF2D(nn.Module):
    """Non-negative matrix factorisation of a map and its reconstruction, by multiplicative updates.

    Args:
        channels: C, divisible by `MD_S`.
        ham_kwargs: see `ham_options`.
    Shape:
        x: (N, C, H, W), non-negative -> same
    State:
        `bases` (MD_S, C / MD_S, MD_R) only with `rand_init: false`.
    """

    BUFFERS = ("bases",)

    def __init__(self, channels: int, ham_kwargs: dict | None):
        super().__init__()
        options = ham_options(ham_kwargs)
        self.spatial, self.rank = options["MD_S"], options["MD_R"]
        self.train_steps, self.eval_steps = options["train_steps"], options["eval_steps"]
        self.rand_init, self.grad = options["rand_init"], options["grad"]
        if channels % self.spatial:
            raise ConfigError(f"ham_kwargs: MD_S={self.spatial} must divide ham_channels={channels}")
        self.dimension = channels // self.spatial
        self.is_train = True
        if not self.rand_init:
            self.bases = jt.array(evaluation_bases(self.spatial, self.dimension, self.rank)).stop_grad()

    def starting_bases(self, batch: int) -> jt.Var:
        """Bases for `batch` pictures, (batch * MD_S, D, R):
        random in training with `rand_init`, else the same for all.
        """
        shape = (batch * self.spatial, self.dimension, self.rank)
        if self.is_train and self.rand_init:
            bases = ranks.rand(shape)
            return (bases / jt.sqrt((bases * bases).sum(1, keepdims=True)).maximum(1e-12)).stop_grad()
        if not self.rand_init:
            return jt.concat([self.bases] * batch, 0)
        return self.fixed_bases(batch)

    def fixed_bases(self, batch: int) -> jt.Var:
        """The bases of evaluation with `rand_init`, the same for all `batch` pictures, (batch * MD_S, D, R)."""
        return jt.array(np.tile(evaluation_bases(self.spatial, self.dimension, self.rank), (batch, 1, 1))).stop_grad()

    def execute(self, x: jt.Var) -> jt.Var:
        n, c, h, w = x.shape
        steps = self.train_steps if self.is_train else self.eval_steps
        flat = x.reshape(n * self.spatial, self.dimension, h * w)  # (N*S, D, L)
        flat = ops.nmf(flat, self.starting_bases(n), steps=steps, inv_t=1.0, grad=self.grad)
        return flat.reshape(n, c, h, w)


class Hamburger(nn.Module):
    """1x1 convolution, factorisation, 1x1 convolution, added to the input. Shape: (N, C, H, W) -> same."""

    def __init__(self, channels: int, ham_kwargs: dict | None, *, norm_cfg: dict | None):
        super().__init__()
        self.ham_in = ConvNormAct(channels, channels, 1)
        self.ham = NMF2D(channels, ham_kwargs)
        self.ham_out = ConvNormAct(channels, channels, 1, norm_cfg=norm_cfg)

    def execute(self, x: jt.Var) -> jt.Var:
        enjoy = self.ham(self._entrance(x))
        if self.ham_out.norm_name is None:
            return relu(x + self.ham_out(enjoy))
        return getattr(self.ham_out, self.ham_out.norm_name)(self.ham_out.conv(enjoy), activation="relu", residual=x)

    def _entrance(self, x: jt.Var) -> jt.Var:
        if not ops.folds_norms(x):
            return relu(self.ham_in(x))
        return ops.pointwise(x, self.ham_in.conv.weight, self.ham_in.conv.bias, activation="relu")  # in one launch


@MODELS.register()
class LightHamHead(SegmentationHead):
    """Decode head of SegNeXt.

    Args:
        options: see `HeadOptions`; the first of `in_index` sets the size of the result.
        ham_channels: width of the Hamburger block.
        ham_kwargs: see `ham_options`.
    Shape:
        features: list of (N, C_i, H_i, W_i) -> (N, num_classes, H_first, W_first)
    """

    DEFAULTS = MappingProxyType({"input_transform": "multiple_select"})
    TINY = MappingProxyType({"type": "LightHamHead", "channels": 16, "ham_channels": 16,
                             "norm_cfg": {"type": "GN", "num_groups": 4}, "ham_kwargs": {"MD_R": 4}})

    def __init__(self, options: HeadOptions, *, ham_channels: int = 512, ham_kwargs: dict | None = None):
        super().__init__(options)
        self.squeeze = ConvNormAct(sum(options.in_channels), ham_channels, 1, **options.blocks)
        self.hamburger = Hamburger(ham_channels, ham_kwargs, norm_cfg=options.norm_cfg)
        self.align = ConvNormAct(ham_channels, options.channels, 1, **options.blocks)

    def decode(self, features: list[jt.Var]) -> jt.Var:
        """(N, channels, H_first, W_first) from the selected maps."""
        return self.align(self.hamburger(self.squeeze.norm_and_activate(self._squeezed(features))))

    def _squeezed(self, maps: list[jt.Var]) -> jt.Var:
        """The squeezing 1x1 convolution of the concatenated maps, (N, ham_channels, H_first, W_first).

        Convolution and resize are linear and act on different axes, so each level is convolved at its own size by its
        share of the weight, resized, and added up: less work, and the concatenated map never exists.
        """
        size, conv = tuple(maps[0].shape[2:]), self.squeeze.conv
        if ops.uses_plain():
            return conv(jt.concat([ops.bilinear_resize(m, size, align_corners=self.align_corners) for m in maps], 1))
        edges = np.cumsum([0] + [m.shape[1] for m in maps]).tolist()
        total = None
        for m, columns in list(zip(maps, zip(edges, edges[1:])))[:0:-1]:
            total = ops.bilinear_resize(ops.pointwise(m, conv.weight, columns=columns), size,
                                        align_corners=self.align_corners, add=total)
        return ops.pointwise(maps[0], conv.weight, conv.bias, shortcut=total, columns=(0, edges[1]))
