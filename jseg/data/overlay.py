"""Label maps as pictures: colours, overlays, legends, contact sheets.
OpenCV order (BGR) throughout, palettes in RGB.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from typing import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["overlay", "background_labels", "colour_map", "legend", "legend_below", "contact_sheet", "fit"]

_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
                 "/System/Library/Fonts", "/Library/Fonts")
_INK, _PAPER = (28, 28, 30), (255, 255, 255)


def overlay(image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.5, *,
            outlines: bool = False, clear: Sequence[int] = ()) -> np.ndarray:
    """Lay the class colours over a picture; labels outside the palette (ignored pixels) leave it as it is.

    Args:
        image: (H, W, 3) uint8 BGR.
        labels: (H, W) integers.
        palette: (K, 3) RGB 0-255.
        opacity: of the colours, 0-1.
        outlines: draw the borders of regions in their full colour, on their own side.
        clear: labels that leave the picture as it is, too.
    Returns:
        (H, W, 3) uint8 BGR, a new array.
    Raises:
        ValueError: sizes differ, or opacity is outside 0-1.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"overlay: picture is {image.shape[:2]}, labels {labels.shape}; they must have one size")
    if not 0 <= opacity <= 1:
        raise ValueError(f"overlay: opacity is {opacity}, accepted 0-1")
    colours = colour_map(labels, palette)
    painted = (labels >= 0) & (labels < len(palette))
    if len(clear):
        painted &= ~np.isin(labels, clear)
    result = np.where(painted[..., None], cv2.addWeighted(image, 1 - opacity, colours, opacity, 0), image)
    if outlines:
        border = _borders(labels) & painted
        result[border] = colours[border]
    return result


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels near another label, (H, W) bool: 1 pixel in small pictures, more in large ones."""
    width = max(1, round(min(labels.shape) / 480))
    values = labels.astype(np.float32)  # exact for labels below 2^24; OpenCV dilates no integers of 32 bits
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    return (cv2.dilate(values, around) != values) | (cv2.erode(values, around) != values)


def background_labels(classes: Sequence[str]) -> list[int]:
    """Indices of the classes that mean "nothing here" by their name."""
    return [k for k, name in enumerate(classes) if name.strip().strip("_").lower() in ("background", "bg")]


def legend_below(picture: np.ndarray, labels: np.ndarray, classes: Sequence[str], palette: Sequence[Sequence[int]], *,
                 clear: Sequence[int] = (), most: int = 24) -> np.ndarray:
    """Put a legend under a picture: the classes that occur, the largest first, with their share of the pixels.

    Args:
        picture: (H, W, 3) uint8 BGR, such as an overlay.
        labels: (H', W') integers; those outside the palette are not named.
        clear: labels that are not painted, so not named.
        most: classes to name; the last line says how many more there are.
    Returns:
        (H + the legend's height, W, 3) uint8 BGR; the picture itself where no class is left to name.
    """
    counts = np.bincount(labels.ravel(), minlength=len(classes))[:len(classes)]
    counts[list(clear)] = 0
    shown = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k] > 0]
    if not shown:
        return picture
    names = [f"{classes[k]} {_share(counts[k] / labels.size)}" for k in shown[:most]]
    colours = [palette[k] for k in shown[:most]]
    if len(shown) > most:
        names.append(f"and {len(shown) - most} more")
        colours.append(_PAPER)
    text_px = min(28, max(12, picture.shape[1] // 50))
    return np.concatenate([picture, legend(names, colours, picture.shape[1], text_px=text_px)])


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "< 1%"


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
    font, pad, line = _font(text_px, frozenset("".join(classes))), text_px // 2, text_px * 2
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


@functools.lru_cache(maxsize=8)
def _font(text_px: int, letters: frozenset) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which has the letters of English; where it lacks some, the installed one that lacks fewest."""
    best = ImageFont.load_default(size=text_px)
    fewest = _missing(best, letters)
    for path in _installed_fonts() if fewest else ():
        with contextlib.suppress(OSError):  # damaged, or of a kind that FreeType does not read
            font = ImageFont.truetype(path, text_px)
            missing = _missing(font, letters)
            best, fewest = (font, missing) if missing < fewest else (best, fewest)
        if not fewest:
            break
    return best


def _missing(font: ImageFont.FreeTypeFont, letters: frozenset) -> int:
    """How many letters a font draws as it draws one that no font has."""
    box = bytes(font.getmask("\U0010fffd"))
    return sum(bytes(font.getmask(letter)) == box for letter in letters if not letter.isspace())


def _installed_fonts(most: int = 200) -> list[str]:
    """Font files in the usual folders, those with Chinese, Japanese and Korean letters first."""
    found = [path for folder in _FONT_FOLDERS for path in sorted(pathlib.Path(folder).expanduser().rglob("*"))
             if path.suffix.lower() in (".ttf", ".otf", ".ttc")]
    first = ("cjk", "wqy", "hans", "fallback", "pingfang", "heiti")
    return [str(path) for path in sorted(found, key=lambda p: not any(word in p.name.lower() for word in first))][:most]


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
