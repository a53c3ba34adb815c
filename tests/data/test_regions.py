"""Regions: outlines on pixel edges with holes, run lengths as pycocotools writes them, files others can read."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from jseg.data.regions import Region, coco_annotation, coco_file, find_regions, geojson_file

# what pycocotools 2.0.11 encodes the masks of `referees_masks` to
REFEREE = ("e<812009LG4000G93G6000I9OG8000K:5F00M9N00G49L0NG7:KOLG90H91GN99GJ9MG295GN9O01G29M0OG69K0MG80G9326EI9OG097G"
           "L:5F00M92G10O9NG300:KF5000H91G7000J9MG9000L94G00N90G2009LG4000G93G6000I9OG8000K:5F00M92G10O9NG300:KF5000H91"
           "G7000J9MG9000L94G00N90G2009LG4000GR10nN2R120000POMk02VON", "hb0`<h3\\OP?")


def referees_masks() -> list[np.ndarray]:
    """Masks with holes, diagonals, islands, and runs over whole columns."""
    first = np.zeros((40, 50), bool)
    first[5:35, 10:45], first[10:20, 15:25], first[30:35, 40:50], first[38:, 48:] = True, False, True, True
    y, x = np.mgrid[:40, :50]
    first[(y * 7 + x * 3) % 11 == 0] = False
    second = np.zeros((300, 7), bool)
    second[:, 2:5] = True
    second[100:220, 3] = False
    return [first, second]


def label_maps(rng, count=24):
    """Noise, where every kind of touching corner occurs, and blobs."""
    for i in range(count):
        h, w = rng.integers(1, 30, 2).tolist()
        noise = rng.integers(0, 3, (h, w), dtype=np.uint8)
        yield noise if i % 2 else cv2.resize(noise, (2 * w, 3 * h), interpolation=cv2.INTER_NEAREST)


def test_run_lengths_are_those_of_pycocotools():
    for mask, text in zip(referees_masks(), REFEREE):
        region = Region(0, int(mask.sum()), (0, 0, mask.shape[1], mask.shape[0]), mask)
        assert coco_annotation(region, mask.shape)["segmentation"] == {"size": list(mask.shape), "counts": text}


def test_outlines_fill_to_the_very_pixels_and_cross_nowhere(rng):
    """Each outline, drawn by OpenCV at 4 times the size, less its holes, is the region; the regions are the map."""
    for labels in label_maps(rng):
        found = np.zeros(labels.shape, int)
        for region in find_regions(labels):
            (rings,) = region.polygons()
            points = {tuple(point) for ring in rings for point in ring.tolist()}
            assert len(points) > 3 and len({tuple(p) for p in rings[0].tolist()}) == len(rings[0]), "a simple ring"
            inside = np.zeros((4 * labels.shape[0] + 1, 4 * labels.shape[1] + 1), np.uint8)
            cv2.fillPoly(inside, [4 * rings[0]], 1)
            for hole in rings[1:]:
                cv2.fillPoly(inside, [4 * hole], 0)
            centres = inside[2::4, 2::4].astype(bool)
            left, top, width, height = region.box
            assert (centres[top:top + height, left:left + width] == region.mask).all()
            assert centres.sum() == region.pixels == region.mask.sum()
            assert (labels[centres] == region.label).all()
            found += centres
        assert (found == 1).all()


def test_geojson_rings_are_closed_and_turn_as_the_standard_says(rng):
    labels = np.zeros((9, 9), np.uint8)
    labels[1:8, 1:8] = 1
    labels[3:5, 3:6] = 2
    probability = np.where(labels == 2, 0.5, 0.75).astype(np.float32)
    regions = find_regions(labels, probability, classes=[1, 2])
    content = json.loads(json.dumps(geojson_file(regions, "abc", [[0, 0, 0], [9, 8, 7], [1, 2, 3]])))
    frame, inner = content["features"]
    assert frame["properties"] == {"class": "b", "label": 1, "pixels": 43, "color": [9, 8, 7], "score": 0.75}
    outline, hole = frame["geometry"]["coordinates"]
    assert outline[0] == outline[-1] and hole[0] == hole[-1]
    assert {tuple(p) for p in outline} == {(1, 1), (8, 1), (8, 8), (1, 8)}
    assert {tuple(p) for p in hole} == {tuple(p) for p in inner["geometry"]["coordinates"][0]}

    def area(ring):
        return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:])) / 2

    assert (area(outline), area(hole)) == (49, -6)
    moved = geojson_file(regions, "abc", [[0] * 3] * 3, transform=(0.5, 0, 100, 0, -0.5, 200))
    outline, hole = moved["features"][0]["geometry"]["coordinates"]
    assert (area(outline), area(hole)) == (49 / 4, -6 / 4)  # north is up: the rings are turned round again
    assert {tuple(p) for p in outline} == {(100.5, 199.5), (104, 199.5), (104, 196), (100.5, 196)}


def test_small_regions_and_corners():
    labels = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1]])
    assert [region.pixels for region in find_regions(labels, classes=[1])] == [1, 4], "corners do not join"
    assert [region.box for region in find_regions(labels, classes=[1], min_pixels=2)] == [(1, 1, 2, 2)]
    assert len(find_regions(labels)) == 4
    for wrong in (labels[0], labels - 1, labels.astype(float)):
        with pytest.raises(ValueError, match="labels, 0 and above"):
            find_regions(wrong)
    with pytest.raises(ValueError, match="must agree"):
        find_regions(labels, np.zeros((2, 2)))


def test_coco_numbers_pictures_and_annotations_from_one():
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 1:5] = 1
    solid, holed = find_regions(labels, classes=[1])[0], find_regions(labels, classes=[0])[0]
    annotations = [coco_annotation(region, (4, 6), polygons=True) for region in (solid, holed)]
    content = coco_file([("a.png", (4, 6), annotations), ("b.png", (4, 6), annotations[:1])], ["sky", "car"])
    assert [(a["id"], a["image_id"], a["category_id"]) for a in content["annotations"]] == [(1, 1, 2), (2, 1, 1),
                                                                                           (3, 2, 2)]
    assert content["annotations"][0]["bbox"] == [1, 1, 4, 2] and content["annotations"][0]["area"] == 8
    assert sorted(zip(*[iter(content["annotations"][0]["segmentation"][0])] * 2)) == [(1, 1), (1, 3), (5, 1), (5, 3)]
    assert isinstance(content["annotations"][1]["segmentation"]["counts"], str), "COCO's polygons know no holes"
    assert content["images"][1] == {"id": 2, "file_name": "b.png", "width": 6, "height": 4}
