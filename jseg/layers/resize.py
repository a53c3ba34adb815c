"""Bilinear resizing of maps, as PyTorch's `F.interpolate(mode="bilinear")`."""

from __future__ import annotations

import jittor as jt

from jseg import ops

__all__ = ["resize"]


def resize(x: jt.Var, size: tuple[int, int], *, align_corners: bool = False, add: jt.Var | None = None, impl: str = "auto") -> jt.Var:
    """Resize maps bilinearly, up or down, without antialiasing; see `jseg.ops.bilinear_resize`.

    Args:
        size: (height, width) of the result in pixels.
        add: maps of the result's shape to add to it.
    Shape:
        x: (N, C, H, W) -> (N, C, *size)
    Raises:
        KernelError: a size below 1, or `add` of another shape.
    """
    return ops.bilinear_resize(x, size, align_corners=align_corners, add=add, impl=impl)
