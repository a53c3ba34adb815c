"""Connected regions of a label map: outlines with holes, COCO annotations, GeoJSON features.

Formats: COCO data format (https://cocodataset.org/#format-data; run lengths as in cocoapi's maskApi.c), GeoJSON (RFC
7946). What is decided here:
- pixels of a region touch along a side (4-connected), so that every outline is a simple ring: two pixels that meet in a
  corner only are two regions. Holes are 8-connected with their surroundings by the same rule.
- outlines run along the pixels' edges, not through their centres: pixel (row 0, column 0) is the square from (0, 0) to
  (1, 1), and the area inside an outline, less its holes, is the number of pixels. OpenCV's contours go through centres;
  they are taken of the mask at twice its size, where every border pixel lies at a corner of the small one.
- GeoJSON asks for longitude and latitude. A picture without a georeference has neither: coordinates are then pixels,
  x to the right, y down, as image viewers that read GeoJSON (QuPath, labelme) have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Sequence

import cv2
import numpy as np

__all__ = ["Region", "find_regions", "coco_annotation", "coco_file", "geojson_file"]

Ring = np.ndarray  # (points, 2) x, y, not closed


@dataclass(frozen=True)
class Region:
    """One connected region of one class.

    Attributes:
        label: class index.
        pixels: its area.
        box: (left, top, width, height) in pixels.
        mask: (height, width) bool, the region within its box.
        score: mean probability of its pixels, 0 to 1; None where none was given.
    """

    label: int
    pixels: int
    box: tuple[int, int, int, int]
    mask: np.ndarray
    score: float | None = None

    def polygons(self) -> list[list[Ring]]:
        """Its outline and holes: one polygon, a list of rings of which the first is the outline.

        A ring is (points, 2) int32, x and y of pixel corners in the whole picture, not closed. Outlines have a positive
        area by the shoelace formula in (x, y), holes a negative one (RFC 7946's order).
        """
        big = cv2.resize(self.mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        found, tree = cv2.findContours(big, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        rings = [_corners(contour[:, 0], self.box[:2]) for contour in found]
        parents = tree[0][:, 3].tolist()
        polygons = {place: [_turned(ring, 1)] for place, ring in enumerate(rings) if parents[place] < 0}
        for place, parent in enumerate(parents):
            if parent >= 0:
                polygons[parent].append(_turned(rings[place], -1))
        return list(polygons.values())

    def run_lengths(self, size: tuple[int, int]) -> list[int]:
        """Run lengths in a picture of (H, W) = `size` as COCO counts them: column by column, zeros first."""
        left, top, width, height = self.box
        edges = np.zeros((width, height + 2), np.int8)
        edges[:, 1:-1] = self.mask.T
        edges = np.diff(edges, axis=1)
        begins, ends = ((left + column) * size[0] + top + row
                        for column, row in (np.nonzero(edges == step) for step in (1, -1)))
        joined = begins[1:] == ends[:-1]  # a run over the lower border goes on at the upper one
        begins, ends = begins[np.append(True, ~joined)], ends[np.append(~joined, True)]
        bounds = np.concatenate([[0], np.stack([begins, ends], 1).ravel(), [size[0] * size[1]]])
        counts = np.diff(bounds).tolist()
        return counts if counts[-1] else counts[:-1]


def find_regions(labels: np.ndarray, probability: np.ndarray | None = None, *, classes: Sequence[int] | None = None,
                 min_pixels: int = 1) -> list[Region]:
    """The connected regions of a label map, by class, then from top to bottom.

    Args:
        labels: (H, W) integers, 0 and above.
        probability: (H, W), 0 to 1; gives each region a score.
        classes: indices to look for; default: all that occur. Labels not among them give no region.
        min_pixels: smaller regions are left out.
    Raises:
        ValueError: `labels` has not two axes, or `probability` another size.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
        raise ValueError(f"find_regions: expected (H, W) labels, 0 and above; got {labels.shape} {labels.dtype}")
    if probability is not None and probability.shape != labels.shape:
        raise ValueError(f"find_regions: labels are {labels.shape}, probability {probability.shape}; they must agree")
    regions = []
    for label in np.unique(labels).tolist() if classes is None else sorted(set(classes)):
        of_class = (labels == label).astype(np.uint8)
        count, places, stats, _ = cv2.connectedComponentsWithStats(of_class, connectivity=4, ltype=cv2.CV_32S)
        for number in range(1, count):
            left, top, width, height, pixels = stats[number].tolist()
            if pixels < min_pixels:
                continue
            window = slice(top, top + height), slice(left, left + width)
            mask = places[window] == number
            score = None if probability is None else float(probability[window][mask].mean(dtype=np.float64))
            regions.append(Region(label, pixels, (left, top, width, height), mask, score))
    return regions


def coco_annotation(region: Region, size: tuple[int, int], *, polygons: bool = False) -> dict[str, Any]:
    """A region as COCO has it, without `id` and `image_id`; `category_id` is the class index + 1.

    Args:
        size: (H, W) of the picture.
        polygons: give the outline instead of run lengths. COCO's polygons know no holes, so a region with holes gets
            run lengths all the same.
    Returns:
        with `segmentation` a compressed RLE or a list of polygons [x, y, x, y, ...], `iscrowd` 0.
    """
    found = region.polygons() if polygons else []
    if found and all(len(rings) == 1 for rings in found):
        shape: Any = [rings[0].ravel().tolist() for rings in found]
    else:
        shape = {"size": list(size), "counts": _compressed(region.run_lengths(size))}
    score = {} if region.score is None else {"score": round(region.score, 4)}
    return {"category_id": region.label + 1, "segmentation": shape, "area": region.pixels, "bbox": list(region.box),
            "iscrowd": 0, **score}


def coco_file(pictures: Iterable[tuple[str, tuple[int, int], list[dict]]], classes: Sequence[str]) -> dict[str, Any]:
    """A COCO file of pictures: (file name, (H, W), annotations of `coco_annotation`); numbers count from 1."""
    images, annotations = [], []
    for number, (name, (height, width), found) in enumerate(pictures, 1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    return {"images": images, "annotations": annotations,
            "categories": [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(classes, 1)]}


def geojson_file(regions: Iterable[Region], classes: Sequence[str], palette: Sequence[Sequence[int]], *,
                 transform: Sequence[float] | None = None) -> dict[str, Any]:
    """Regions as a GeoJSON FeatureCollection of Polygons, rings closed, outline first and anticlockwise in (x, y).

    Args:
        classes, palette: name and RGB colour per class index.
        transform: (a, b, c, d, e, f) of a georeference, x' = a x + b y + c, y' = d x + e y + f; None leaves pixels.
    Returns:
        Features with `properties`: `class`, `label`, `pixels`, `color` and, where known, `score`.
    """
    features = []
    for region in regions:
        score = {} if region.score is None else {"score": round(region.score, 4)}
        properties = {"class": classes[region.label], "label": region.label, "pixels": region.pixels,
                      "color": [int(v) for v in palette[region.label]], **score}
        for rings in region.polygons():
            shape = {"type": "Polygon", "coordinates": [_closed(ring, transform) for ring in rings]}
            features.append({"type": "Feature", "geometry": shape, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def _corners(contour: np.ndarray, origin: tuple[int, int]) -> Ring:
    """A contour of the doubled mask as corners of its pixels, repeated points and those on straight lines left out."""
    points = (contour + 1) // 2  # (n, 2): the left half of a pixel lies at its left edge, the right half at its right
    points = points[(points != np.roll(points, 1, axis=0)).any(1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return (points[turns] + np.asarray(origin)).astype(np.int32)


def _shoelace(ring: Ring) -> int:
    """Twice the signed area."""
    x, y = ring[:, 0].astype(np.int64), ring[:, 1].astype(np.int64)
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def _turned(ring: Ring, sign: int) -> Ring:
    """The ring in the direction that gives its area this sign."""
    return ring if (_shoelace(ring) > 0) == (sign > 0) else ring[::-1]


def _closed(ring: Ring, transform: Sequence[float] | None) -> list[list[float]]:
    points = np.concatenate([ring, ring[:1]])
    if transform is None:
        return points.tolist()
    a, b, c, d, e, f = transform
    moved = np.stack([a * points[:, 0] + b * points[:, 1] + c, d * points[:, 0] + e * points[:, 1] + f], 1)
    return (moved if a * e - b * d > 0 else moved[::-1]).tolist()  # a mirrored axis turns rings round


def _compressed(counts: Sequence[int]) -> str:
    """Run lengths as COCO's text: each less the one before the last, in 5-bit groups, low first, 48 added to each."""
    text = bytearray()
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text.append(group + 32 * more + 48)
    return text.decode("ascii")
