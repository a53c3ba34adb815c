"""Rendered street scenes with exact labels: a dataset that needs no download, for the demo and for tests.

A scene is painted back to front on a canvas of twice the size: sky, ground, rows of buildings, trees, cars, people.
Light (time of day, sun side, haze), colours, textures and places are drawn anew for every picture; objects cast
shadows, the camera adds noise. Every picture depends on (seed, split, number) only.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from typing import Callable, Sequence

import cv2
import numpy as np

from jseg.data.io import write_image, write_mask
from jseg.errors import DataError

__all__ = ["CLASSES", "PALETTE", "render_dataset", "render_scene"]

CLASSES = ("sky", "ground", "building", "tree", "car", "person")
PALETTE = ((110, 170, 230), (120, 100, 120), (190, 110, 70), (60, 140, 60), (40, 60, 190), (225, 50, 80))
SKY, GROUND, BUILDING, TREE, CAR, PERSON = range(6)
MARK = "rendered.json"
VERSION = 3          # raise it when pictures change: an older dataset is then rendered again

# Colours are BGR floats 0..255. A light is (sky top, sky bottom, colour of sunlight, strength).
LIGHTS = (((200, 140, 80), (235, 210, 180), (0.95, 1.0, 1.05), 1.0),
          ((190, 185, 180), (215, 212, 210), (1.0, 1.0, 1.0), 0.8),
          ((150, 100, 90), (120, 170, 235), (0.8, 0.92, 1.1), 0.8),
          ((225, 180, 120), (240, 235, 225), (1.0, 1.0, 1.0), 1.1),
          ((130, 90, 70), (165, 135, 130), (1.1, 0.95, 0.85), 0.7))
WALLS = ((70, 90, 150), (120, 150, 180), (150, 155, 160), (95, 100, 110), (90, 130, 190), (160, 175, 200),
         (75, 80, 125))
# Cars keep to cool and neutral colours, clothes to warm ones, so that a small model learns the demo in minutes.
PAINTS = ((190, 90, 40), (45, 40, 40), (230, 228, 225), (150, 130, 60), (150, 145, 140), (170, 60, 80), (215, 175, 120))
SHIRTS = ((40, 40, 200), (50, 130, 235), (60, 210, 240), (130, 70, 215), (110, 170, 250))
TROUSERS = ((110, 60, 40), (60, 50, 50), (90, 120, 160), (140, 90, 50))
SKINS = ((130, 160, 215), (90, 120, 180), (60, 80, 125))


class _Canvas:
    """Picture and labels under work, at twice the final size."""

    def __init__(self, h: int, w: int, rng: np.random.Generator):
        self.h, self.w, self.rng = h, w, rng
        self.img = np.zeros((h, w, 3), np.float32)
        self.mask = np.zeros((h, w), np.uint8)
        self.sun = 1 if rng.random() < 0.5 else -1   # side the light comes from: -1 left, 1 right
        self._noises: dict[float, np.ndarray] = {}

    def noise(self, cell: float) -> np.ndarray:
        """Smooth noise with blobs of about `cell` pixels, one field a scene:
        (h, w) float32 of mean 0 and spread about 1.
        """
        if cell not in self._noises:
            grid = max(2, round(self.h / cell)), max(2, round(self.w / cell))
            small = self.rng.standard_normal(grid, dtype=np.float32)
            self._noises[cell] = cv2.resize(small, (self.w, self.h), interpolation=cv2.INTER_CUBIC)
        return self._noises[cell]

    def paint(self, region: np.ndarray, colour: np.ndarray | Sequence[float], label: int | None) -> None:
        """Give the pixels of a region (h, w) uint8 a colour, one or (h, w, 3), and a label."""
        x, y, w, h = cv2.boundingRect(region)
        box = slice(y, y + h), slice(x, x + w)
        inside = region[box] > 0
        colour = np.asarray(colour, np.float32)
        self.img[box][inside] = colour[box][inside] if colour.ndim == 3 else colour
        if label is not None:
            self.mask[box][inside] = label

    def polygon(self, points: Sequence[Sequence[float]]) -> np.ndarray:
        """Region of a polygon given by (x, y) corners."""
        region = np.zeros((self.h, self.w), np.uint8)
        cv2.fillPoly(region, [np.round(np.asarray(points)).astype(np.int32)], 255)
        return region

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        """Region of an ellipse around (x, y)."""
        region = np.zeros((self.h, self.w), np.uint8)
        cv2.ellipse(region, (round(x), round(y)), (max(1, round(rx)), max(1, round(ry))), 0, 0, 360, 255, -1)
        return region

    def shade(self, region: np.ndarray, factor: float, blur_px: float, only: int | None = None) -> None:
        """Multiply the brightness of a region by `factor`, with soft borders; on pixels labelled `only`."""
        alpha = cv2.GaussianBlur(region, (0, 0), blur_px).astype(np.float32) / 255
        if only is not None:
            alpha = alpha * (self.mask == only)
        self.img *= 1 - (1 - factor) * alpha[..., None]


def render_scene(size: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Render one street scene.

    Args:
        size: (h, w) in pixels, each at least 48.
        rng: source of everything random.
    Returns:
        picture (h, w, 3) uint8 BGR and labels (h, w) uint8, 0..5 as in CLASSES.
    """
    h, w = size
    canvas = _Canvas(2 * h, 2 * w, rng)
    horizon = canvas.h * rng.uniform(0.36, 0.52)
    sky_top, sky_bottom, tint, strength = LIGHTS[rng.integers(len(LIGHTS))]
    _sky(canvas, horizon, np.array(sky_top), np.array(sky_bottom))
    _ground(canvas, horizon)
    _buildings(canvas, horizon)
    things = [(_tree, rng.integers(1, 3)), (_car, rng.integers(1, 3)), (_person, rng.integers(1, 4))]
    placed = [(rng.uniform(0.2, 0.85), paint) for paint, count in things for _ in range(count)]
    # spread: some overlap, few hide
    places = (rng.permutation(len(placed)) + rng.uniform(0.1, 0.9, len(placed))) / len(placed)
    for (depth, paint), place in sorted(zip(placed, places), key=lambda item: item[0][0]):  # far ones first
        foot = horizon + (canvas.h - horizon) * depth
        paint(canvas, place * canvas.w, foot, canvas.h * (0.42 + 0.38 * depth))
    return _photograph(canvas, horizon, np.array(tint, np.float32), strength * rng.uniform(0.85, 1.15), (h, w))


def _sky(canvas: _Canvas, horizon: float, top: np.ndarray, bottom: np.ndarray) -> None:
    rows = np.clip(np.arange(canvas.h) / max(horizon, 1), 0, 1)[:, None, None]
    sky = (top * (1 - rows) + bottom * rows) * np.ones((1, canvas.w, 1))
    clouds = np.clip(canvas.noise(canvas.h / 5) + 0.5 * canvas.noise(canvas.h / 12) - canvas.rng.uniform(0, 1.2),
                     0, 1)[..., None]
    canvas.img[:] = sky * (1 - 0.7 * clouds) + np.array((235, 235, 238)) * 0.7 * clouds
    canvas.mask[:] = SKY


def _ground(canvas: _Canvas, horizon: float) -> None:
    """A street that runs to a vanishing point, with pavements or lawn beside it and broken lane marks on it."""
    rng, w, h = canvas.rng, canvas.w, canvas.h
    side = np.array(((120, 125, 130), (70, 115, 95), (100, 120, 140), (135, 140, 150))[rng.integers(4)], np.float32)
    road = np.full(3, rng.uniform(65, 115), np.float32) + rng.uniform(-6, 6, 3).astype(np.float32)
    texture = (7 * canvas.noise(4) + 6 * canvas.noise(2.2) + 8 * canvas.noise(h / 8))[..., None]
    canvas.paint(canvas.polygon([(0, horizon), (w, horizon), (w, h), (0, h)]), side + texture, GROUND)
    vanish, half = w * rng.uniform(0.3, 0.7), w * rng.uniform(0.45, 0.8)
    middle = vanish + w * rng.uniform(-0.25, 0.25)
    canvas.paint(canvas.polygon([(vanish - 6, horizon), (vanish + 6, horizon), (middle + half, h), (middle - half, h)]),
                 road + texture, GROUND)
    for edge in (-half, half):  # kerbs
        canvas.paint(canvas.polygon([(vanish + np.sign(edge) * 6, horizon), (middle + edge * 1.04, h),
                                     (middle + edge * 0.98, h)]),
                     side * 1.25, GROUND)
    for near, far in zip((1.0, 0.62, 0.38, 0.22), (0.78, 0.48, 0.29, 0.17)):
        corners = [(vanish + (middle - vanish) * t + s * 0.03 * half * t, horizon + (h - horizon) * t)
                   for t, s in ((near, -1), (near, 1), (far, 1), (far, -1))]
        canvas.paint(canvas.polygon(corners), np.full(3, 205.0) + texture, GROUND)


def _buildings(canvas: _Canvas, horizon: float) -> None:
    """A row of fronts along the horizon, broken by gaps,
    then at times a high one that runs out of the picture at a side.
    """
    rng, w, h = canvas.rng, canvas.w, canvas.h
    x = -w * rng.uniform(0, 0.2)
    while x < w:
        width = w * rng.uniform(0.16, 0.36)
        if rng.random() < 0.8:
            _front(canvas, x, width, horizon - h * rng.uniform(0.14, 0.34), horizon + h * rng.uniform(0.0, 0.04))
        x += width * rng.uniform(0.95, 1.25)
    for side in (-1, 1):
        if rng.random() < 0.45:
            width = w * rng.uniform(0.14, 0.28)
            _front(canvas, -2 if side < 0 else w - width, width + 2, -h * 0.05, horizon + h * rng.uniform(0.05, 0.14))


def _front(canvas: _Canvas, left: float, width: float, top: float, foot: float) -> None:
    """One building: lit front, dark side on the far side from the sun, rows of windows, a roof edge."""
    rng = canvas.rng
    wall = np.array(WALLS[rng.integers(len(WALLS))], np.float32) * rng.uniform(0.8, 1.15)
    texture = (5 * canvas.noise(3) + 6 * canvas.noise(canvas.h / 10))[..., None]
    right = left + width
    canvas.paint(canvas.polygon([(left, top), (right, top), (right, foot), (left, foot)]), wall + texture, BUILDING)
    if top > canvas.h * 0.08 and rng.random() < 0.5:  # a pitched roof
        peak = top - width * rng.uniform(0.12, 0.25)
        canvas.paint(canvas.polygon([(left - 3, top), ((left + right) / 2, peak), (right + 3, top)]),
                     np.array((60, 65, 105)) + texture, BUILDING)
    dark = width * rng.uniform(0.12, 0.25)
    edge = (left, left + dark) if canvas.sun > 0 else (right - dark, right)
    canvas.shade(canvas.polygon([(edge[0], top), (edge[1], top), (edge[1], foot), (edge[0], foot)]), 0.65, 1)
    pane = np.array(((70, 55, 45), (150, 130, 105), (120, 190, 225))[rng.integers(3)],
                    np.float32) * rng.uniform(0.7, 1.1)
    step_x, step_y = rng.uniform(0.07, 0.11) * canvas.w, rng.uniform(0.08, 0.12) * canvas.h
    for y in np.arange(top + 0.3 * step_y, foot - 0.7 * step_y, step_y):
        for x in np.arange(left + 0.3 * step_x, right - 0.6 * step_x, step_x):
            canvas.paint(canvas.polygon([(x, y), (x + 0.5 * step_x, y), (x + 0.5 * step_x, y + 0.55 * step_y),
                                         (x, y + 0.55 * step_y)]),
                         pane * rng.uniform(0.8, 1.2), None)


def _shadow(canvas: _Canvas, x: float, foot: float, width: float, length: float) -> None:
    region = canvas.ellipse(x - canvas.sun * length * 0.5, foot, width * 0.55 + length * 0.5, max(2.0, width * 0.14))
    canvas.shade(region, 0.5, 1 + width * 0.03, only=GROUND)


def _tree(canvas: _Canvas, x: float, foot: float, scale: float) -> None:
    """A trunk with a crown of blobs, lighter towards the sun and textured as leaves."""
    rng = canvas.rng
    height, crown = scale * rng.uniform(0.85, 1.15), scale * rng.uniform(0.26, 0.36)
    thick = scale * rng.uniform(0.035, 0.06)
    _shadow(canvas, x, foot, crown * 1.6, crown)
    bark = np.array((45, 65, 90), np.float32) * rng.uniform(0.7, 1.2) + (8 * canvas.noise(3))[..., None]
    canvas.paint(canvas.polygon([(x - thick, foot), (x + thick, foot), (x + 0.6 * thick, foot - height * 0.6),
                                 (x - 0.6 * thick, foot - height * 0.6)]), bark, TREE)
    region = np.zeros((canvas.h, canvas.w), np.uint8)
    for _ in range(9):
        angle, reach = rng.uniform(0, 2 * np.pi), crown * 0.55 * np.sqrt(rng.random())
        region |= canvas.ellipse(x + reach * np.cos(angle) * 1.1, foot - height * 0.72 + reach * np.sin(angle),
                                 crown * rng.uniform(0.45, 0.65), crown * rng.uniform(0.4, 0.6))
    leaf = np.array(((45, 110, 60), (50, 95, 90), (35, 80, 45), (60, 130, 115))[rng.integers(4)],
                    np.float32) * rng.uniform(0.8, 1.2)
    across = np.clip((np.arange(canvas.w) - x) / crown * canvas.sun, -1, 1)[None, :] * 0.22
    down = np.clip((foot - height * 0.72 - np.arange(canvas.h)) / crown, -1, 1)[:, None] * 0.2
    light = 1 + across + down + 0.16 * canvas.noise(5) + 0.10 * canvas.noise(2.5)
    canvas.paint(region, leaf * light[..., None], TREE)


def _car(canvas: _Canvas, x: float, foot: float, scale: float) -> None:
    """A car from the side: body, cabin with windows, wheels, lamps."""
    rng = canvas.rng
    length, height = scale * rng.uniform(0.95, 1.25), scale * rng.uniform(0.40, 0.48)
    left, facing = x - length / 2, 1 if rng.random() < 0.5 else -1
    paint = np.array(PAINTS[rng.integers(len(PAINTS))], np.float32) * rng.uniform(0.8, 1.1)
    _shadow(canvas, x, foot, length * 1.05, height * 0.4)

    def at(u: float, v: float) -> tuple[float, float]:  # u along the car from its tail, v up from the ground, both 0..1
        return (left + length * (u if facing > 0 else 1 - u), foot - height * v)

    gloss = (np.clip((foot - np.arange(canvas.h)) / height, 0, 1)[:, None, None] * 0.5 + 0.7) * np.ones(
        (1, canvas.w, 1))
    body = [at(0, 0.16), at(0, 0.52), at(0.12, 0.6), at(0.24, 0.98), at(0.62, 1.0), at(0.78, 0.62),
            at(0.97, 0.52), at(1, 0.16)]
    canvas.paint(canvas.polygon(body), paint * gloss + (3 * canvas.noise(4))[..., None], CAR)
    glass = np.array((95, 85, 75), np.float32) * rng.uniform(0.5, 1.3)
    for pane in ([(0.19, 0.64), (0.28, 0.92), (0.42, 0.93), (0.42, 0.64)],
                 [(0.46, 0.64), (0.46, 0.93), (0.6, 0.92), (0.71, 0.64)]):
        canvas.paint(canvas.polygon([at(*corner) for corner in pane]), glass, CAR)
    for u in (0.2, 0.8):
        cx, cy = at(u, 0.17)
        canvas.paint(canvas.ellipse(cx, cy, height * 0.2, height * 0.2), np.full(3, 28.0), CAR)
        canvas.paint(canvas.ellipse(cx, cy, height * 0.09, height * 0.09), np.full(3, 130.0), CAR)
    canvas.paint(canvas.ellipse(*at(0.97, 0.44), height * 0.06, height * 0.05), np.array((190, 235, 245)), CAR)
    canvas.paint(canvas.ellipse(*at(0.03, 0.46), height * 0.05, height * 0.05), np.array((40, 30, 190)), CAR)


def _person(canvas: _Canvas, x: float, foot: float, scale: float) -> None:
    """A person standing or walking: legs, torso with arms, head."""
    rng = canvas.rng
    height = scale * rng.uniform(0.72, 0.9)
    broad = height * rng.uniform(0.18, 0.22)
    stride = height * rng.uniform(0.0, 0.08)
    shirt, trousers = (np.array(cloth[rng.integers(len(cloth))], np.float32) * rng.uniform(0.8, 1.15)
                       for cloth in (SHIRTS, TROUSERS))
    skin, hair = np.array(SKINS[rng.integers(len(SKINS))],
                          np.float32), np.array((30, 40, 60), np.float32) * rng.uniform(0.5, 2)
    _shadow(canvas, x, foot, broad * 2.2, height * 0.35)
    folds = (6 * canvas.noise(3))[..., None]
    hip, chest, neck = foot - 0.48 * height, foot - 0.78 * height, foot - 0.84 * height
    for side in (-1, 1):
        ankle = x + side * (stride + 0.35 * broad)
        canvas.paint(canvas.polygon([(x + side * 0.85 * broad, hip), (x - side * 0.1 * broad, hip),
                                     (ankle - 0.3 * broad, foot),
                                     (ankle + 0.3 * broad, foot)]), trousers + folds, PERSON)
        hand = x + side * broad * rng.uniform(1.2, 1.6)
        canvas.paint(canvas.polygon([(x + side * 0.5 * broad, neck), (x + side * 1.05 * broad, chest),
                                     (hand + side * 0.1 * broad, hip),
                                     (hand - side * 0.4 * broad, hip)]), shirt * 0.85 + folds, PERSON)
    canvas.paint(canvas.polygon([(x - 0.95 * broad, chest), (x - 0.5 * broad, neck), (x + 0.5 * broad, neck),
                                 (x + 0.95 * broad, chest),
                                 (x + 0.9 * broad, hip + 2), (x - 0.9 * broad, hip + 2)]), shirt + folds, PERSON)
    top = foot - 0.92 * height
    canvas.paint(canvas.ellipse(x, top, 0.075 * height, 0.085 * height), skin, PERSON)
    canvas.paint(canvas.ellipse(x, top - 0.035 * height, 0.078 * height, 0.055 * height), hair, PERSON)


def _photograph(canvas: _Canvas, horizon: float, tint: np.ndarray, strength: float, size: tuple) -> tuple[
    np.ndarray, np.ndarray]:
    """Light, haze towards the horizon, patches of shade, lens and sensor noise; then the final size."""
    rng, (h, w) = canvas.rng, size
    img = canvas.img
    if rng.random() < 0.3:
        near = np.clip(1 - np.abs(np.arange(canvas.h) - horizon) / (0.35 * canvas.h), 0,
                       1)[:, None, None] * rng.uniform(0.1, 0.3)
        img = img * (1 - near) + 205 * near
    img = img * tint * strength * (1 + 0.05 * canvas.noise(canvas.h / 3))[..., None]
    img = cv2.resize(np.clip(img, 0, 255), (w, h), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.3:
        img = cv2.GaussianBlur(img, (0, 0), rng.uniform(0.4, 0.8))
    img = img + rng.standard_normal(img.shape) * rng.uniform(2, 5)
    return np.clip(np.rint(img), 0, 255).astype(np.uint8), np.ascontiguousarray(canvas.mask[::2, ::2])


def render_dataset(out: str | os.PathLike, *, count_train: int = 200, count_val: int = 50,
                   size: Sequence[int] = (128, 160), seed: int = 0,
                   progress: Callable[[int, int], None] | None = None) -> str:
    """Write a dataset of rendered scenes that FolderDataset reads.

    Layout: `<out>/images/{train,val}/0000.png`, `<out>/masks/{train,val}/0000.png` (palette PNG, indices as in CLASSES)
    and `<out>/masks/classes.txt`. The folder appears only when it is complete; one with the same arguments is kept as
    it is, an older one of ours is replaced.

    Args:
        out: the folder to make.
        count_train, count_val: pictures of each part, >= 1.
        size: (h, w) in pixels, each at least 48.
        seed: non-negative; other seeds, other scenes.
        progress: called with (pictures done, pictures in all).
    Returns:
        `out` as text.
    Raises:
        ValueError: counts or size out of range.
        DataError: `out` exists and was not made by this function.
    """
    out, size = os.fspath(out), tuple(int(side) for side in size)
    if min(count_train, count_val) < 1 or min(size) < 48:
        raise ValueError(f"render_dataset: counts must be >= 1 and sides >= 48 pixels, got {count_train}, {count_val} "
                         f"and {size}")
    facts = {"version": VERSION, "count_train": count_train, "count_val": count_val, "size": list(size), "seed": seed}
    if os.path.isdir(out) and os.listdir(out):
        known = _facts(out)
        if known == facts:
            return out
        if known is None:
            raise DataError(f"{out}: exists and holds other files (no {MARK}); choose another folder or remove it")
    parent = os.path.dirname(os.path.abspath(out))
    os.makedirs(parent, exist_ok=True)
    work = tempfile.mkdtemp(prefix=".rendering-", dir=parent)
    try:
        _write_all(work, (("train", count_train), ("val", count_val)), size, seed, progress)
        with open(os.path.join(work, MARK), "w", encoding="utf-8") as file:
            json.dump(facts, file)
        os.chmod(work, 0o755)
        if os.path.isdir(out):
            shutil.rmtree(out)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _write_all(folder: str, parts: Sequence, size: tuple, seed: int,
               progress: Callable[[int, int], None] | None) -> None:
    total, done = sum(count for _, count in parts), 0
    for number, (part, count) in enumerate(parts):
        for i in range(count):
            img, mask = render_scene(size, np.random.default_rng([seed, number, i]))
            write_image(os.path.join(folder, "images", part, f"{i:04d}.png"), img)
            write_mask(os.path.join(folder, "masks", part, f"{i:04d}.png"), mask, PALETTE)
            done += 1
            if progress is not None:
                progress(done, total)
    with open(os.path.join(folder, "masks", "classes.txt"), "w", encoding="utf-8") as file:
        file.write("\n".join(CLASSES) + "\n")


def _facts(folder: str) -> dict | None:
    try:
        with open(os.path.join(folder, MARK), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None
