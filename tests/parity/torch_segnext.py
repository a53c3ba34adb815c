"""SegNeXt in plain PyTorch, for machines with PyTorch but without mmsegmentation. Never imports jseg or Jittor.

Structure, arithmetic and state keys are those of mmsegmentation 1.2.2 (mmseg/models/backbones/mscan.py and
decode_heads/ham_head.py, Apache-2.0; paper: SegNeXt, NeurIPS 2022), so that the same weights load strictly and the same
work is timed. Deviation: maps stay (N, C, H, W); upstream turns them into tokens and back between blocks, which copies
now and then.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["SegNeXt", "Bases"]

SIZES = {"tiny": ((32, 64, 160, 256), (3, 3, 5, 2)), "small": ((64, 128, 320, 512), (2, 2, 4, 2)),
         "base": ((64, 128, 320, 512), (3, 3, 12, 3)), "large": ((64, 128, 320, 512), (3, 5, 27, 3))}


class FeedForward(nn.Module):
    """1x1, 3x3 depthwise, GELU, 1x1."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        """(N, C, H, W) -> same."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class Gate(nn.Module):
    """Multi-scale convolutional attention that multiplies its input."""

    def __init__(self, c: int):
        super().__init__()
        self.conv0 = nn.Conv2d(c, c, 5, padding=2, groups=c)
        for i, k in enumerate((7, 11, 21)):
            self.add_module(f"conv{i}_1", nn.Conv2d(c, c, (1, k), padding=(0, k // 2), groups=c))
            self.add_module(f"conv{i}_2", nn.Conv2d(c, c, (k, 1), padding=(k // 2, 0), groups=c))
        self.conv3 = nn.Conv2d(c, c, 1)

    def forward(self, x):
        """(N, C, H, W) -> same."""
        a = self.conv0(x)
        a = a + self.conv0_2(self.conv0_1(a)) + self.conv1_2(self.conv1_1(a)) + self.conv2_2(self.conv2_1(a))
        return self.conv3(a) * x


class Attention(nn.Module):
    """1x1, GELU, gate, 1x1, plus the input."""

    def __init__(self, c: int):
        super().__init__()
        self.proj_1, self.spatial_gating_unit, self.proj_2 = nn.Conv2d(c, c, 1), Gate(c), nn.Conv2d(c, c, 1)

    def forward(self, x):
        """(N, C, H, W) -> same."""
        return self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x)))) + x


class PathDrop(nn.Module):
    """Drop a residual branch of single pictures with probability `drop_prob`."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        """(N, C, H, W) -> same."""
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1.0 - self.drop_prob
        return x * (x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep) / keep)


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and scaled per channel after."""

    def __init__(self, c: int, ratio: int, drop_path: float):
        super().__init__()
        self.norm1, self.attn, self.drop_path = nn.BatchNorm2d(c), Attention(c), PathDrop(drop_path)
        self.norm2, self.mlp = nn.BatchNorm2d(c), FeedForward(c, c * ratio)
        self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(torch.full((c,), 1e-2)),
                                                  nn.Parameter(torch.full((c,), 1e-2)))

    def forward(self, x):
        """(N, C, H, W) -> same."""
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class Stem(nn.Module):
    """Two strided convolutions."""

    def __init__(self, c: int):
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(3, c // 2, 3, 2, 1), nn.BatchNorm2d(c // 2), nn.GELU(),
                                  nn.Conv2d(c // 2, c, 3, 2, 1), nn.BatchNorm2d(c))

    def forward(self, x):
        """(N, 3, H, W) -> (N, C, H/4, W/4)."""
        return self.proj(x)


class Embed(nn.Module):
    """A strided convolution and a norm."""

    def __init__(self, c_in: int, c: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(c_in, c, 3, 2, 1), nn.BatchNorm2d(c)

    def forward(self, x):
        """(N, C0, H, W) -> (N, C, H/2, W/2)."""
        return self.norm(self.proj(x))


class Backbone(nn.Module):
    """MSCAN."""

    def __init__(self, variant: str, drop_path_rate: float):
        super().__init__()
        (dims, depths), first = SIZES[variant], 0
        rates = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        for i, (c, depth, ratio) in enumerate(zip(dims, depths, (8, 8, 4, 4))):
            self.add_module(f"patch_embed{i + 1}", Embed(dims[i - 1], c) if i else Stem(c))
            self.add_module(f"block{i + 1}", nn.ModuleList(Block(c, ratio, rates[first + j]) for j in range(depth)))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(c))
            first += depth

    def forward(self, x):
        """(N, 3, H, W) -> four maps."""
        maps = []
        for i in "1234":
            x = getattr(self, "patch_embed" + i)(x)
            for block in getattr(self, "block" + i):
                x = block(x)
            x = getattr(self, "norm" + i)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            maps.append(x)
        return maps


class Bases(nn.Module):
    """Non-negative matrix factorisation by multiplicative updates; `fixed` (S, D, R) replaces the random bases."""

    def __init__(self, options: dict):
        super().__init__()
        self.spatial, self.rank = options.get("MD_S", 1), options.get("MD_R", 64)
        self.steps = options.get("train_steps", 6), options.get("eval_steps", 7)
        self.fixed = None

    @staticmethod
    def update(x, other, old):
        """Multiplicative update of `old` so that x comes nearer to old @ other^T."""
        return old * (x @ other) / (old @ (other.transpose(1, 2) @ other) + 1e-6)

    def forward(self, x):
        """(N, C, H, W), non-negative -> same."""
        n, c, h, w = x.shape
        flat = x.reshape(n * self.spatial, c // self.spatial, h * w)
        if self.fixed is not None:
            bases = self.fixed.to(x).repeat(n, 1, 1)
        else:
            bases = F.normalize(torch.rand((n * self.spatial, c // self.spatial, self.rank), device=x.device), dim=1)
        turned = flat.transpose(1, 2)
        coef = F.softmax(turned @ bases, dim=-1)
        for _ in range(self.steps[0] if self.training else self.steps[1]):
            coef = self.update(turned, bases, coef)
            bases = self.update(flat, coef, bases)
        coef = self.update(turned, bases, coef)
        return (bases @ coef.transpose(1, 2)).reshape(n, c, h, w)


class Unit(nn.Module):
    """1x1 convolution, GroupNorm, ReLU, the last two optional."""

    def __init__(self, c_in: int, c: int, groups: int = 0, relu: bool = False):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(c_in, c, 1, bias=not groups), relu
        if groups:
            self.gn = nn.GroupNorm(groups, c)

    def forward(self, x):
        """(N, C0, H, W) -> (N, C, H, W)."""
        x = self.conv(x)
        x = self.gn(x) if hasattr(self, "gn") else x
        return F.relu(x) if self.relu else x


class Burger(nn.Module):
    """1x1, factorisation, 1x1, plus the input."""

    def __init__(self, c: int, options: dict, groups: int):
        super().__init__()
        self.ham_in, self.ham, self.ham_out = Unit(c, c), Bases(options), Unit(c, c, groups)

    def forward(self, x):
        """(N, C, H, W) -> same."""
        return F.relu(x + self.ham_out(self.ham(F.relu(self.ham_in(x)))))


class HamHead(nn.Module):
    """LightHamHead."""

    def __init__(self, cfg: dict):
        super().__init__()
        c, groups = cfg["ham_channels"], (cfg.get("norm_cfg") or {}).get("num_groups", 32)
        self.in_index = cfg["in_index"]
        self.squeeze = Unit(sum(cfg["in_channels"]), c, groups, True)
        self.hamburger = Burger(c, cfg.get("ham_kwargs") or {}, groups)
        self.align = Unit(c, cfg["channels"], groups, True)
        self.dropout = nn.Dropout2d(cfg.get("dropout_ratio", 0.1))
        self.conv_seg = nn.Conv2d(cfg["channels"], cfg["num_classes"], 1)

    def forward(self, maps):
        """Four maps -> logits (N, K, H/8, W/8)."""
        maps = [maps[i] for i in self.in_index]
        maps = [F.interpolate(m, size=maps[0].shape[2:], mode="bilinear", align_corners=False) for m in maps]
        return self.conv_seg(self.dropout(self.align(self.hamburger(self.squeeze(torch.cat(maps, 1))))))


class SegNeXt(nn.Module):
    """The segmentor.

    Args:
        model: a config's model block: MSCAN with a `variant`, LightHamHead.
    """

    def __init__(self, model: dict):
        super().__init__()
        self.backbone = Backbone(model["backbone"]["variant"], model["backbone"].get("drop_path_rate", 0.0))
        self.decode_head = HamHead(model["decode_head"])

    def forward(self, x):
        """(N, 3, H, W) -> logits (N, K, H/8, W/8)."""
        return self.decode_head(self.backbone(x))
