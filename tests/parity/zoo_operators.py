"""What the referee's models ask of packages that are not there: operators of mmcv's compiled ones, in plain PyTorch,
where mmcv has none (mmcv-lite), and names of torchvision.

Most that MMSegmentation's configs need are plain PyTorch in MMCV 2.x too. PSANet's mask is compiled there
(mmcv/ops/csrc/pytorch/cpu/psamask.cpp); here it is a gather with the same indices.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types


def allow_mmcv_operators() -> bool:
    """Let mmcv.ops be imported where mmcv has no compiled operators: those that it also writes with PyTorch work
    (point_sample, criss-cross and multi-scale deformable attention), the others stop.

    Call it before anything of mmcv is imported.

    Returns:
        whether they are compiled.
    """
    if importlib.util.find_spec("mmcv._ext") is not None:
        return True
    stand_in = types.ModuleType("mmcv._ext")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)

    def missing(name):
        if name.startswith("__"):
            raise AttributeError(name)

        def stop(*_, **__):
            raise RuntimeError(f"mmcv has no compiled operator {name} here")
        return stop

    stand_in.__getattr__ = missing
    sys.modules["mmcv._ext"] = stand_in
    return False


def allow_mmpretrain() -> None:
    """Let mmpretrain's models (ConvNeXt, PoolFormer) be imported without torchvision: its transforms name classes of
    it, which no model here runs.
    """
    if importlib.util.find_spec("torchvision") is not None:
        return

    def some_class(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})

    for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes", "torchvision.transforms",
                 "torchvision.transforms.functional", "torchvision.transforms.transforms"):
        module, (above, _, leaf) = types.ModuleType(name), name.rpartition(".")
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__, module.__getattr__, sys.modules[name] = [], some_class, module
        if above:
            setattr(sys.modules[above], leaf, module)
    modes = {name: name for name in ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")}
    sys.modules["torchvision.transforms.transforms"].InterpolationMode = types.SimpleNamespace(**modes)


def add_psa_mask() -> None:
    """Give PSAHead an operator that runs without mmcv's compiled one."""
    from mmseg.models.decode_heads import psa_head
    psa_head.PSAMask = plain_psa_mask()


def plain_psa_mask() -> type:
    """PSAMask by `torch.gather`."""
    import torch
    from torch import nn

    class PSAMask(nn.Module):
        """(N, mh * mw, H, W) -> (N, H * W, H, W)."""

        def __init__(self, psa_type, mask_size):
            super().__init__()
            self.psa_type, self.mask_size = psa_type, mask_size

        def forward(self, x):
            n, _, h, w = x.shape
            rows, columns = self.mask_size
            down, right = torch.arange(h * w) // w, torch.arange(h * w) % w
            r = down[:, None] - down[None, :] + (rows - 1) // 2  # [other position, position]
            c = right[:, None] - right[None, :] + (columns - 1) // 2
            inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
            index = (r * columns + c).where(inside, torch.zeros_like(r))
            found = x.reshape(n, -1, h * w).gather(1, index.expand(n, -1, -1)) * inside
            found = found if self.psa_type == "collect" else found.transpose(1, 2)
            return found.reshape(n, h * w, h, w)

    return PSAMask
