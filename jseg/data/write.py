"""Write pictures and masks, whole or not at all, or encode them as the bytes of such a file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Sequence

import cv2
import numpy as np
from PIL import Image

from jseg.files import write_atomically

__all__ = ["encode_image", "encode_mask", "write_image", "write_mask"]


def encode_image(img: np.ndarray, suffix: str = ".png", *, quality: int = 95) -> bytes:
    """The bytes of a picture file.

    Args:
        img: (H, W, 3) uint8 BGR, or (H, W) uint8 grey.
        suffix: chooses the format, such as ".png".
        quality: of JPEG and WebP, 1..100.
    Raises:
        ValueError: `img` has another shape or type, or OpenCV knows no format of that suffix.
    """
    if img.dtype != np.uint8 or img.ndim not in (2, 3) or (img.ndim == 3 and img.shape[2] != 3):
        raise ValueError(f"expected (H, W, 3) or (H, W) uint8, got {img.shape} {img.dtype}")
    options = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".jpeg": cv2.IMWRITE_JPEG_QUALITY, ".webp": cv2.IMWRITE_WEBP_QUALITY}
    option = options.get(suffix.lower())
    try:
        done, data = cv2.imencode(suffix, img, [option, quality] if option is not None else [])
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot write {suffix!r} files; use .png or .jpg") from error
    if not done:
        raise ValueError(f"OpenCV could not encode {img.shape} as {suffix!r}")
    return data.tobytes()


def encode_mask(mask: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> bytes:
    """The bytes of a PNG file of a label mask, from which `read_mask` gets the same indices back.

    Args:
        mask: (H, W) integers, 0..65535; written with 8 bits where all fit, else with 16.
        palette: (r, g, b) per class, 0..255, to make the file a palette PNG that viewers show in colour; entry i is
            class i, at most 256 entries, and the mask must fit 8 bits.
    Raises:
        ValueError: the mask is not a 2-D integer array of that range, or the palette does not fit.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "iu":
        raise ValueError(f"expected a non-empty (H, W) integer array, got {mask.shape} {mask.dtype}")
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > 65535 or (palette is not None and (high > 255 or len(palette) > 256)):
        raise ValueError(f"labels {low}..{high} do not fit; 0..65535 without, 0..255 with a palette")
    picture = Image.fromarray(mask.astype(np.uint16 if high > 255 else np.uint8))
    if palette is not None:
        picture.putpalette([int(v) for color in palette for v in color])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_image(path: str | os.PathLike, img: np.ndarray, *, quality: int = 95) -> None:
    """Write a picture atomically; the suffix of `path` chooses the format.

    Args:
        path: where; a file in the way is replaced only when the new one is complete. The folder is made if need be.
        img, quality: as in `encode_image`.
    Raises:
        ValueError: as `encode_image`.
    """
    try:
        content = encode_image(img, Path(path).suffix, quality=quality)
    except ValueError as error:
        raise ValueError(f"write_image({path}): {error}") from error
    write_atomically(path, content, durable=False)


def write_mask(path: str | os.PathLike, mask: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> None:
    """Write a label mask atomically as PNG, so that `read_mask` gives the same indices back.

    Args:
        path: where, ending in `.png`.
        mask, palette: as in `encode_mask`.
    Raises:
        ValueError: the suffix is not .png, or as `encode_mask`.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"write_mask({path}): masks are written as .png, other formats may change the indices")
    try:
        content = encode_mask(mask, palette)
    except ValueError as error:
        raise ValueError(f"write_mask({path}): {error}") from error
    write_atomically(path, content, durable=False)
