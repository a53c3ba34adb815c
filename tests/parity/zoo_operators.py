"""Operators that MMSegmentation takes from mmcv's compiled ones, in plain PyTorch, where mmcv has none (mmcv-lite).

Criss-cross attention is plain PyTorch in MMCV 2.x too: its own file is loaded. PSANet's mask is compiled there
(mmcv/ops/csrc/pytorch/cpu/psamask.cpp); here it is a gather with the same indices.
"""

from __future__ import annotations

import importlib.util
import pathlib


def add_context_operators() -> None:
    """Give CCHead and PSAHead their operators, if theirs are stand-ins that do nothing."""
    from mmseg.models.decode_heads import cc_head, psa_head
    if not hasattr(cc_head.CrissCrossAttention, "forward"):
        cc_head.CrissCrossAttention = load_criss_cross()
    if not hasattr(psa_head.PSAMask, "forward"):
        psa_head.PSAMask = plain_psa_mask()


def load_criss_cross() -> type:
    """The class of MMCV's own file, without the package around it, which imports compiled code."""
    import mmcv
    path = pathlib.Path(mmcv.__file__).parent / "ops" / "cc_attention.py"
    spec = importlib.util.spec_from_file_location("mmcv_cc_attention", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CrissCrossAttention


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
