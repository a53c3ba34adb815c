"""Label maps against the plain recipe: resize, cut, flip, resize, softmax, argmax, with every tensor at full size."""

from __future__ import annotations

import dataclasses

import jittor as jt
import numpy as np
import pytest

from jseg.ops.bilinear import resize_matrix
from jseg.models import readout
from jseg.models.readout import Frame, Window, label_map, overlaps, window_maps, windows

pytestmark = pytest.mark.usefixtures("few_kernels")


def plain_scores(frame: Frame, pieces: dict, align_corners: bool) -> np.ndarray:
    """mmsegmentation's steps one after the other: pieces maps (top, bottom, left, right) to logits (K, h, w)."""
    classes = next(iter(pieces.values())).shape[0]
    total, count = np.zeros((classes, *frame.size)), np.zeros(frame.size)
    for (top, bottom, left, right), logits in pieces.items():
        rows, columns = (resize_matrix(s, b - a, align_corners) for a, b, s in
                         ((top, bottom, logits.shape[1]), (left, right, logits.shape[2])))
        total[:, top:bottom, left:right] += rows @ logits @ columns.T
        count[top:bottom, left:right] += 1
    total = (total / count)[:, frame.content[0], frame.content[1]]
    total = total[:, :, ::-1] if frame.flip == "horizontal" else total[:, ::-1] if frame.flip == "vertical" else total
    rows, columns = (resize_matrix(s, o, align_corners) for o, s in zip(frame.own_size, total.shape[1:]))
    return rows @ total @ columns.T


FRAMES = [Frame((32, 48), (0, 0, 0, 0), None, (32, 48)), Frame((32, 48), (2, 5, 1, 3), "horizontal", (57, 30)),
          Frame((32, 48), (0, 5, 0, 3), "vertical", (20, 61))]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("frame", FRAMES, ids=["same", "horizontal", "vertical"])
@pytest.mark.parametrize("slide", [False, True])
def test_one_view(frame, slide, align_corners, rng, monkeypatch):
    monkeypatch.setattr(readout, "TILE_VALUES", 5 * 20 * 20)  # several tiles
    spans = (windows(32, 16, 10), windows(48, 20, 14)) if slide else ([(0, 32)], [(0, 48)])
    counts = overlaps(32, spans[0]), overlaps(48, spans[1])
    pieces, view = {}, []
    for rows in spans[0]:
        for columns in spans[1]:
            logits = rng.standard_normal((5, 4, 6)).astype(np.float32)
            pieces[(*rows, *columns)] = logits
            maps = window_maps(frame, (rows, columns), counts, (4, 6), align_corners)
            view.append(Window(jt.array(logits.transpose(1, 0, 2).copy()), *maps))
    expected = plain_scores(frame, pieces, align_corners)
    labels, prob = label_map([view], 5, with_prob=True)
    softmax = np.exp(expected) / np.exp(expected).sum(0)
    assert (labels != expected.argmax(0)).mean() < 0.002
    np.testing.assert_allclose(prob, softmax.max(0), atol=1e-4)
    assert (label_map([view], 5)[0] == labels).mean() > 0.998


def read_directly(frame, spans, pieces, align_corners, with_prob=False):
    """Label maps by `LabelReader`, a row of windows after the other, of two pictures: logits and their negatives."""
    low = next(iter(pieces.values())).shape[1:]
    upright = dataclasses.replace(frame, flip=None)
    reader = readout.LabelReader(readout.direct_maps(upright, tuple(map(tuple, spans)), low, align_corners), low[0],
                                 with_prob)
    most = 0
    for rows in spans[0]:
        strip = np.concatenate([pieces[(*rows, *columns)] for columns in spans[1]], 2)
        reader.add(jt.array(np.stack([strip, -strip])))
        most = max(most, len(reader._kept))
    return [[frame.upright(values) for values in found] for found in zip(*reader.finish())], most


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("frame", [*FRAMES, Frame((32, 48), (0, 0, 0, 0), None, (9, 170))],
                         ids=["same", "horizontal", "vertical", "flat"])
@pytest.mark.parametrize("windows_of", [None, (16, 10), (16, 4)], ids=["whole", "slide", "many_windows"])
def test_labels_come_directly_from_windows(frame, windows_of, align_corners, rng):
    spans = [[(0, 32)], [(0, 48)]] if windows_of is None else [windows(side, *windows_of) for side in (32, 48)]
    pieces = {(*rows, *columns): 3 * rng.standard_normal((5, 4, 6)).astype(np.float32)
              for rows in spans[0] for columns in spans[1]}
    (first, second), most = read_directly(frame, spans, pieces, align_corners, with_prob=True)
    assert most <= (1 if windows_of is None else -(-windows_of[0] // windows_of[1])), "logits are let go"
    expected = plain_scores(frame, pieces, align_corners)
    for sign, (labels, prob) in ((1, first), (-1, second)):
        scores = np.sort(sign * expected, 0)
        clear = scores[-1] - scores[-2] > 1e-5
        assert clear.mean() > 0.999 and (labels == (sign * expected).argmax(0))[clear].all()
        np.testing.assert_allclose(prob, 1 / np.exp(scores - scores[-1]).sum(0), atol=1e-5)
    (alone, _), _ = read_directly(frame, spans, pieces, align_corners)
    assert np.array_equal(alone[0], first[0]) and alone[0].dtype == np.uint8


def test_views_average_their_softmax(rng):
    frames, views, expected = [FRAMES[1], Frame((20, 20), (0, 0, 0, 0), None, (57, 30))], [], 0.0
    for frame in frames:
        logits = (3 * rng.standard_normal((4, 3, 5))).astype(np.float32)
        span = ((0, frame.size[0]), (0, frame.size[1]))
        maps = window_maps(frame, span, (np.ones(frame.size[0]), np.ones(frame.size[1])), (3, 5), False)
        views.append([Window(jt.array(logits.transpose(1, 0, 2).copy()), *maps)])
        scores = np.exp(plain_scores(frame, {(*span[0], *span[1]): logits}, False))
        expected = expected + scores / scores.sum(0) / 2
    labels, prob = label_map(views, 4, with_prob=True)
    assert (labels != expected.argmax(0)).mean() < 0.002
    np.testing.assert_allclose(prob, expected.max(0), atol=1e-4)


@pytest.mark.parametrize(("length", "crop", "stride", "expected"), [
    (100, 48, 32, [(0, 48), (32, 80), (52, 100)]), (48, 48, 32, [(0, 48)]), (30, 48, 32, [(0, 30)]),
    (80, 48, 32, [(0, 48), (32, 80)])])
def test_windows_lie_as_in_mmseg(length, crop, stride, expected):
    assert windows(length, crop, stride) == expected


def test_frames_read_metas():
    assert Frame.from_meta({}, (8, 9)).own_size == (8, 9)
    assert Frame.from_meta({"img_shape": (6, 5), "ori_shape": (12, 10)}, (8, 9)).padding == (0, 4, 0, 2)
    with pytest.raises(ValueError, match="does not fit an input of"):
        Frame.from_meta({"padding_size": (0, 9, 0, 0)}, (8, 9))
    with pytest.raises(ValueError, match="flip_direction must be"):
        Frame.from_meta({"flip": True, "flip_direction": "diagonal"}, (8, 9))


@pytest.mark.parametrize("flip", [None, "horizontal", "vertical"])
@pytest.mark.parametrize("own", [(57, 30), (20, 61), (32, 48)])
def test_direct_scores_are_resized_once(own, flip, rng):
    """`test_cfg.direct`: from the logits to the picture, by the summed road and by the direct one."""
    frame, logits = Frame((32, 48), (0, 0, 0, 0), flip, own), rng.standard_normal((5, 4, 6)).astype(np.float32)
    rows, columns = (resize_matrix(s, o, False) for s, o in zip(logits.shape[1:], own))
    turned = {None: logits, "horizontal": logits[:, :, ::-1], "vertical": logits[:, ::-1]}[flip]
    wanted = (rows @ turned @ columns.T).argmax(0)
    maps = window_maps(frame, ((0, 32), (0, 48)), (np.ones(32), np.ones(48)), (4, 6), False, True)
    labels, _ = label_map([[Window(jt.array(logits.transpose(1, 0, 2)), *maps)]], 5)
    assert (labels == wanted).all()
    if flip is None:
        maps = readout.direct_maps(frame, (((0, 32),), ((0, 48),)), (4, 6), False, True)
        found = [made.matrix() for made in maps]
        np.testing.assert_allclose(found[0], rows, atol=1e-6)
        np.testing.assert_allclose(found[1], columns, atol=1e-6)


def test_a_message_about_a_map_costs_nothing():
    """`readout` makes one for every picture: the tables, printed, took a tenth of the time."""
    frame = Frame((384, 480), (0, 0, 0, 24), None, (360, 480))
    maps = readout.direct_maps(frame, (((0, 384),), ((0, 480),)), (48, 60), False)
    assert str(maps) == "(Resampling(48 to 360), Resampling(60 to 480))"


def test_padded_pictures_are_resized_twice_all_the_same():
    frame = Frame((32, 48), (0, 5, 0, 3), None, (20, 61))
    arguments = (frame, ((0, 32), (0, 48)), (np.ones(32), np.ones(48)), (4, 6), False)
    for once, usual in zip(window_maps(*arguments, True), window_maps(*arguments)):
        np.testing.assert_array_equal(once, usual)
