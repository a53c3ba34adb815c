"""Colours that eyes can tell apart, palettes from files, and what an overlay paints."""

from __future__ import annotations

import numpy as np
import pytest

from jseg.data.colours import colour_distance, read_palette, spread_colours
from jseg.data.overlay import background_labels, legend_below, overlay
from jseg.errors import DataError


def test_distance_is_that_of_cielab():
    """Values of the CIE 1976 formula for sRGB: red, green, blue, white."""
    found = colour_distance([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]])
    np.testing.assert_allclose([found[0, 1], found[0, 2], found[1, 2], found[3, 4]], [170.6, 176.3, 258.7, 100],
                               atol=0.5)


@pytest.mark.parametrize("count, least", [(2, 85), (12, 50), (20, 40), (80, 20), (150, 15)])
def test_spread_colours_are_far_apart(count, least):
    colours = spread_colours(count)
    distance = colour_distance(colours) + 1000 * np.eye(count)
    assert distance.min() > least
    assert spread_colours(count + 5)[:count] == colours, "a class keeps its colour when others come"
    assert (colour_distance([*colours, (0, 0, 0), (255, 255, 255)])[-2:, :-2] > least).all(), "nor black or white"


def test_many_colours_are_made_too():
    assert len(spread_colours(3000)) == 3000


def test_palette_files(tmp_path):
    path = tmp_path / "palette.txt"
    path.write_text("// by name\n#ff0010 traffic light\n\n1 2 3 sky // blue?\n")
    assert read_palette(path, ["sky", "traffic light"]).tolist() == [[1, 2, 3], [255, 0, 16]]
    path.write_text("#010203\n4, 5, 6\n")
    assert read_palette(path, ["a", "b"]).tolist() == [[1, 2, 3], [4, 5, 6]]
    for text, words in (("#01020 a", "1: expected a colour"), ("1 2 300 a", "1: expected a colour"),
                        ("1 2 3 sky\n1 2 3 skyy", "2: no class 'skyy'; did you mean 'sky'"),
                        ("1 2 3", "no colour for road; give one line for each of the 2"),
                        ("1 2 3\n" * 3, "3: colour 3 of a model of 2 classes")):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_palette(path, ["sky", "road"])


def test_overlay_leaves_the_background_clear_and_draws_borders_on_their_own_side(rng):
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 5:15], labels[5:15, 15:25], labels[0] = 1, 2, 255
    palette = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
    found = overlay(image, labels, palette, 0.5, outlines=True, clear=background_labels(["Background", "a", "b"]))
    assert (found[labels % 255 == 0] == image[labels % 255 == 0]).all()
    assert (found[5:15, 14] == [0, 200, 0]).all() and (found[5:15, 15] == [200, 0, 0]).all()
    inner = found[7:13, 7:13].astype(float) - (image[7:13, 7:13] / 2 + np.array([0, 100, 0]))
    assert np.abs(inner).max() <= 1
    assert background_labels(["sky", "bg", "_background_", "back"]) == [1, 2]


def test_letters_that_pillows_font_lacks_come_from_an_installed_one():
    from PIL import ImageFont

    from jseg.data import overlay as module
    own = ImageFont.load_default(size=14)
    assert module._missing(own, frozenset("Road, sky")) == 0 and module._missing(own, frozenset("дорога")) == 5
    if not any("DejaVuSans" in path for path in module._installed_fonts()):
        pytest.skip("no DejaVu fonts here")
    assert module._missing(module._font(14, frozenset("дорога road")), frozenset("дорога road")) == 0
    assert module._missing(module._font(14, frozenset("\U0010fffe")), frozenset("ab")) == 0, "no font has it"


def test_legend_names_what_occurs():
    picture, labels = np.full((40, 300, 3), 7, np.uint8), np.zeros((40, 300), np.uint8)
    labels[:, 100:] = 2
    palette = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    found = legend_below(picture, labels, ["a", "b", "c"], palette)
    assert (found[:40] == picture).all() and found.shape[0] > 55

    def shown(colour):
        return (found[40:] == colour[::-1]).all(2).sum() > 50

    assert [shown(colour) for colour in palette] == [True, False, True]
    assert legend_below(picture, labels, ["a", "b", "c"], palette, clear=[0, 2]) is picture
