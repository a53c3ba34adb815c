"""Label maps as pictures: colours, overlays, legends, contact sheets.
OpenCV order (BGR) throughout, palettes in RGB.
"""

from __future__ import annotations

from typing import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["overlay", "colour_map", "legend", "contact_sheet", "fit"]

_INK, _PAPER = (28, 28, 30), (255, 255, 255)


def overlay(image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]],
            opacity: float = 0.5) -> np.ndarray:
    """Lay the class colours over a picture; labels outside the palette (ignored pixels) leave it as it is.

    Args:
        image: (H, W, 3) uint8 BGR.
        labels: (H, W) integers.
        palette: (K, 3) RGB 0-255.
        opacity: of the colours, 0-1.
    Returns:
        (H, W, 3) uint8 BGR, a new array.
    Raises:
        ValueError: sizes differ, or opacity is outside 0-1.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"overlay: picture is {image.shape[:2]}, labels {labels.shape}; they must have one size")
    if not 0 <= opacity <= 1:
        raise ValueError(f"overlay: opacity is {opacity}, accepted 0-1")
    mixed = cv2.addWeighted(image, 1 - opacity, colour_map(labels, palette), opacity, 0)
    known = (labels >= 0) & (labels < len(palette))
    return np.where(known[..., None], mixed, image)


def colour_map(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Paint labels (H, W) in their colours: (H, W, 3) uint8 BGR; labels outside the palette become black."""
    table = np.zeros((len(palette) + 1, 3), np.uint8)
    table[:-1] = np.asarray(palette, np.uint8).reshape(-1, 3)[:, ::-1]
    known = (labels >= 0) & (labels < len(palette))
    return table[np.where(known, labels, len(palette))]


def legend(classes: Sequence[str], palette: Sequence[Sequence[int]], width: int = 640, *,
           text_px: int = 14) -> np.ndarray:
    """Draw swatches with class names, wrapped into lines.

    Args:
        width: of the picture in pixels; a name wider than that is cut.
        text_px: letter height.
    Returns:
        (H, width, 3) uint8 BGR on white.
    """
    font, pad, line = ImageFont.load_default(size=text_px), text_px // 2, text_px * 2
    places, x, y = [], pad, pad
    for name in classes:
        needed = text_px + pad + int(font.getlength(name)) + 2 * pad
        if x + needed > width and x > pad:
            x, y = pad, y + line
        places.append((x, y))
        x += needed
    sheet = Image.new("RGB", (width, y + line), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for name, colour, (x, y) in zip(classes, palette, places):
        pen.rectangle([x, y, x + text_px, y + text_px], fill=tuple(int(c) for c in colour), outline=_INK)
        pen.text((x + text_px + pad, y - 1), name, font=font, fill=_INK)
    return np.ascontiguousarray(np.asarray(sheet)[..., ::-1])


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = (), *, captions: Sequence[str] = (),
                  cell_width: int = 320, gap: int = 6) -> np.ndarray:
    """Arrange pictures in a grid.

    Args:
        rows: pictures (H, W, 3) uint8 BGR of any sizes; each is scaled to `cell_width` pixels.
        titles: a heading per column.
        captions: a line above each row.
    Returns:
        (H, W, 3) uint8 BGR on white.
    Raises:
        ValueError: there is no picture.
    """
    if not rows or not any(len(row) for row in rows):
        raise ValueError("contact_sheet: no pictures")
    columns = max(len(row) for row in rows)
    width = columns * cell_width + (columns + 1) * gap
    bands = [_text_band(titles, cell_width, gap, width)] if titles else []
    for i, row in enumerate(rows):
        if i < len(captions):
            bands.append(_text_band([captions[i]], width, gap, width))
        cells = [_scaled(image, cell_width) for image in row]
        band = np.full((max(c.shape[0] for c in cells) + gap, width, 3), 255, np.uint8)
        for k, cell in enumerate(cells):
            x = gap + k * (cell_width + gap)
            band[:cell.shape[0], x:x + cell_width] = cell
        bands.append(band)
    return np.concatenate([np.full((gap, width, 3), 255, np.uint8), *bands])


def fit(image: np.ndarray, max_side: int, *, labels: bool = False) -> np.ndarray:
    """Shrink a picture or a label map so that no side exceeds `max_side` pixels; never enlarge."""
    h, w = image.shape[:2]
    scale = max_side / max(h, w)
    if scale >= 1:
        return image
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    if not labels:
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    rows = np.minimum((np.arange(size[1]) + 0.5) * h / size[1], h - 1).astype(int)
    columns = np.minimum((np.arange(size[0]) + 0.5) * w / size[0], w - 1).astype(int)
    return image[rows[:, None], columns]


def _scaled(image: np.ndarray, width: int) -> np.ndarray:
    h, w = image.shape[:2]
    size = (width, max(1, round(h * width / w)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if w > width else cv2.INTER_LINEAR)


def _text_band(texts: Sequence[str], step: int, gap: int, width: int) -> np.ndarray:
    band = Image.new("RGB", (width, 24), _PAPER)
    pen, font = ImageDraw.Draw(band), ImageFont.load_default(size=14)
    for k, text in enumerate(texts):
        pen.text((gap + k * (step + gap), 3), str(text), font=font, fill=_INK)
    return np.ascontiguousarray(np.asarray(band)[..., ::-1])
