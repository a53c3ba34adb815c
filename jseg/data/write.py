"""Write pictures and masks: whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Sequence

import cv2
import numpy as np
from PIL import Image

from jseg.files import write_atomically

__all__ = ["write_image", "write_mask"]


def write_image(path: str | os.PathLike, img: np.ndarray, *, quality: int = 95) -> None:
    """Write a picture atomically; the suffix of `path` chooses the format.

    Args:
        path: where; a file in the way is replaced only when the new one is complete. The folder is made if need be.
        img: (H, W, 3) uint8 BGR, or (H, W) uint8 grey.
        quality: of JPEG and WebP, 1..100.
    Raises:
        ValueError: `img` has another shape or type, or OpenCV knows no format of that suffix.
    """
    if img.dtype != np.uint8 or img.ndim not in (2, 3) or (img.ndim == 3 and img.shape[2] != 3):
        raise ValueError(f"write_image({path}): expected (H, W, 3) or (H, W) uint8, got {img.shape} {img.dtype}")
    suffix = Path(path).suffix
    options = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".jpeg": cv2.IMWRITE_JPEG_QUALITY, ".webp": cv2.IMWRITE_WEBP_QUALITY}
    option = options.get(suffix.lower())
    try:
        done, data = cv2.imencode(suffix, img, [option, quality] if option is not None else [])
    except cv2.error as error:
        raise ValueError(f"write_image({path}): OpenCV cannot write {suffix!r} files; use .png or .jpg") from error
    if not done:
        raise ValueError(f"write_image({path}): OpenCV could not encode {img.shape} as {suffix!r}")
    write_atomically(path, data.tobytes(), durable=False)


def write_mask(path: str | os.PathLike, mask: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> None:
    """Write a label mask atomically as PNG, so that `read_mask` gives the same indices back.

    Args:
        path: where, ending in `.png`.
        mask: (H, W) integers, 0..65535; written with 8 bits where all fit, else with 16.
        palette: (r, g, b) per class, 0..255, to make the file a palette PNG that viewers show in colour; entry i is
            class i, at most 256 entries, and the mask must fit 8 bits.
    Raises:
        ValueError: the suffix is not .png, the mask is not a 2-D integer array of that range, or the palette does not
        fit.
    """
    mask = np.asarray(mask)
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"write_mask({path}): masks are written as .png, other formats may change the indices")
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "iu":
        raise ValueError(
            f"write_mask({path}): expected a non-empty (H, W) integer array, got {mask.shape} {mask.dtype}")
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > 65535 or (palette is not None and (high > 255 or len(palette) > 256)):
        raise ValueError(
            f"write_mask({path}): labels {low}..{high} do not fit; 0..65535 without, 0..255 with a palette")
    if high > 255:
        picture = Image.fromarray(mask.astype(np.uint16))
    else:
        picture = Image.fromarray(mask.astype(np.uint8))
        if palette is not None:
            picture.putpalette([int(v) for color in palette for v in color])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue(), durable=False)
