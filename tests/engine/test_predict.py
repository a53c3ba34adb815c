"""A checkpoint alone segments pictures, in every form they come in, the same way every time."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from small_model import CLASSES, PALETTE, save_small_segnext

from jseg import InferenceSegmentor
from jseg.data import tta
from jseg.data.io import read_mask
from jseg.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small SegNeXt with random weights whose head separates pictures by their content."""
    return save_small_segnext(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture
def street(tmp_path, rng):
    """A picture file of an odd size with coarse blobs, and its pixels in BGR."""
    pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (131, 77), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / "street.png"
    cv2.imwrite(str(path), pixels)
    return path, pixels


def test_every_form_of_a_picture_gives_one_mask_at_its_own_size(checkpoint, street, tmp_path):
    path, pixels = street
    segmentor = InferenceSegmentor(checkpoint)
    labels = segmentor.infer(path)
    assert labels.shape == (77, 131) and labels.dtype == np.uint8
    assert 2 <= len(np.unique(labels)) <= 3, "a picture of blobs must not come out in one class"
    rgb = np.ascontiguousarray(pixels[..., ::-1])
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(folder / name), pixels if name == "a.png" else pixels[:, ::-1])
    forms = {"text path": str(path), "array": pixels, "PIL": Image.fromarray(rgb)}
    for name, form in forms.items():
        np.testing.assert_array_equal(segmentor.infer(form), labels, err_msg=name)
    np.testing.assert_array_equal(segmentor.infer(rgb, array_order="rgb"), labels)
    first, second = segmentor.infer([path, pixels])
    np.testing.assert_array_equal(first, second)
    in_folder = segmentor.infer(folder)
    np.testing.assert_array_equal(in_folder[0], labels)
    assert len(in_folder) == 2 and (in_folder[1] != labels).any()


def test_a_second_process_gives_the_same_mask(checkpoint, street):
    path, _ = street
    code = ("import sys, hashlib; from jseg import InferenceSegmentor; "
            f"labels = InferenceSegmentor({str(checkpoint)!r}).infer({str(path)!r}); "
            "print(hashlib.sha256(labels.tobytes()).hexdigest())")
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              timeout=300).stdout
               for _ in range(2)}
    assert len(outputs) == 1


def test_kernels_and_plain_operators_agree_and_so_do_slide_and_tta_shapes(checkpoint, street):
    path, _ = street
    plain = InferenceSegmentor(checkpoint, impl="jittor").infer(path)
    fast = InferenceSegmentor(checkpoint).infer(path)
    assert (plain == fast).mean() > 0.999
    assert InferenceSegmentor(checkpoint, tta=True).infer(path).shape == (77, 131)
    with pytest.raises(ConfigError, match="crop_size"):
        InferenceSegmentor(checkpoint, mode="slide")


def test_command_writes_overlay_and_labels_with_palette(checkpoint, street, tmp_path, capsys):
    from jseg.cli import main
    path, pixels = street
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), str(path), "--out", str(out)]) == 0
    assert "street_labels.png" in capsys.readouterr().out
    labels = InferenceSegmentor(checkpoint).infer(path)
    np.testing.assert_array_equal(read_mask(out / "street_labels.png"), labels)
    assert Image.open(out / "street_labels.png").getpalette()[:9] == [c for colour in PALETTE for c in colour]
    overlay = cv2.imread(str(out / "street_overlay.png")).astype(int)
    assert overlay.shape[0] > 77 and overlay.shape[1] == 131, "the legend is below"
    full = np.array(PALETTE)[labels][..., ::-1]
    mixed, border = np.abs(overlay[:77] - (pixels.astype(float) + full) / 2).max(2) <= 1, (overlay[:77] == full).all(2)
    assert (mixed | border).all() and 0 < (border & ~mixed).mean() < 0.5


def test_command_segments_a_video(checkpoint, street, tmp_path):
    from jseg.cli import main
    _, pixels = street
    frame = pixels[:76, :130]
    clip = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10, (130, 76))
    for shift in range(3):
        writer.write(np.roll(frame, 10 * shift, axis=1))
    writer.release()
    assert main(["predict", str(checkpoint), str(clip), "--out", str(tmp_path / "out")]) == 0
    result = cv2.VideoCapture(str(tmp_path / "out" / "drive_overlay.mp4"))
    assert int(result.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    assert result.read()[1].shape == (76, 130, 3)


def test_exported_half_precision_weights_give_nearly_the_same_mask(checkpoint, street, tmp_path):
    from jseg.cli import main
    path, _ = street
    small = tmp_path / "shared.safetensors"
    assert main(["export", str(checkpoint), str(small), "--origin", "random weights", "--set",
                 "val_dataloader.dataset.data_root=data/here"]) == 0
    assert small.stat().st_size < 0.75 * checkpoint.stat().st_size
    segmentor = InferenceSegmentor(small)
    assert (segmentor.origin == "random weights"
            and segmentor.config["val_dataloader"]["dataset"]["data_root"] == "data/here")
    assert (segmentor.infer(path) == InferenceSegmentor(checkpoint).infer(path)).mean() > 0.99
    assert main(["export", str(checkpoint), str(checkpoint)]) == 2, "a checkpoint is never replaced by its own export"


@pytest.mark.parametrize("bad, words", [(np.zeros((4, 4), np.uint8), r"\(H, W, 3\) uint8"),
                                        (np.zeros((4, 4, 3)), "float64")])
def test_arrays_of_another_kind_are_refused(checkpoint, bad, words):
    with pytest.raises(DataError, match=words):
        InferenceSegmentor(checkpoint).infer(bad)


def test_missing_and_foreign_files_are_named(checkpoint, tmp_path, capsys):
    from jseg.cli import main
    assert main(["predict", str(checkpoint), str(tmp_path / "none.jpg")]) == 2
    assert "none.jpg: no such file" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="nothing.safetensors"):
        InferenceSegmentor(tmp_path / "nothing.safetensors")


def test_scores_of_all_classes_agree_with_the_labels(checkpoint, street):
    path, _ = street
    for options in ({}, {"mode": "slide", "crop_size": (48, 64)}):
        segmentor = InferenceSegmentor(checkpoint, **options)
        labels, probability = segmentor.infer(path, with_prob=True)
        scores, logits = segmentor.infer(path, probabilities=True), segmentor.infer(path, logits=True)
        assert scores.shape == logits.shape == (3, 77, 131) and scores.dtype == np.float32
        np.testing.assert_allclose(scores.max(0), probability, atol=1e-5)
        np.testing.assert_allclose(scores, np.exp(logits) / np.exp(logits).sum(0), atol=1e-5)
        ordered = np.sort(scores, axis=0)
        clear = ordered[-1] - ordered[-2] > 1e-4
        assert (scores.argmax(0) == labels)[clear].all() and clear.mean() > 0.9
    averaged = InferenceSegmentor(checkpoint, tta=True)
    np.testing.assert_allclose(averaged.infer(path, probabilities=True).sum(0), 1, atol=1e-5)
    with pytest.raises(ValueError, match="ask for probabilities"):
        averaged.infer(path, logits=True)
    with pytest.raises(ValueError, match="give one of"):
        segmentor.infer(path, logits=True, with_prob=True)
    assert [maps.shape[0] for maps in segmentor.features(path)] == [8, 16, 32, 32]


def test_pictures_in_one_pass_get_the_labels_they_get_alone(checkpoint, rng, monkeypatch):
    segmentor = InferenceSegmentor(checkpoint)
    pictures = [cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), size)
                for size in [(96, 64), (80, 64), (96, 64), (96, 64), (64, 96), (80, 64), (96, 64)]]
    sizes, run = [], segmentor._model.predict_augmented
    monkeypatch.setattr(segmentor._model, "predict_augmented",
                        lambda inputs, **words: sizes.append(len(inputs[0][1])) or run(inputs, **words))
    alone = [segmentor.infer(picture) for picture in pictures]
    together = segmentor.infer(pictures, batch_size=3)
    assert sizes == [1] * 7 + [3, 2, 1, 1] or sorted(sizes[7:]) == [1, 1, 2, 3]
    for one, other in zip(alone, together):
        np.testing.assert_array_equal(one, other)


def test_thresholds(checkpoint, street):
    """By the rule, recomputed pixel by pixel from all probabilities."""
    path, _ = street
    segmentor = InferenceSegmentor(checkpoint)
    scores = segmentor.infer(path, probabilities=True).astype(float)
    plain = segmentor.infer(path)
    for given in ({"road": 0.2}, {"sky": 0.9, "car": 0.3}, {"sky": 0.5, "road": 0.6, "car": 0.7}, 0.6):
        found, probability = segmentor.infer(path, thresholds=given, with_prob=True)
        limits = given if isinstance(given, dict) else dict.fromkeys(CLASSES, given)
        near = np.zeros(plain.shape, bool)
        expected = np.empty(plain.shape, int)
        for place in np.ndindex(plain.shape):
            p = dict(zip(CLASSES, scores[(slice(None), *place)]))
            near[place] = any(abs(p[name] - limit) < 1e-4 for name, limit in limits.items())
            reached = {name: p[name] / limit for name, limit in limits.items() if p[name] >= limit}
            rest = {name: value for name, value in p.items() if name not in limits}
            ranked = sorted((reached or rest).values())
            near[place] |= len(ranked) > 1 and ranked[-1] - ranked[-2] < 1e-3
            expected[place] = CLASSES.index(max(reached or rest, key=(reached or rest).get)) if reached or rest else 255
        assert (found == expected)[~near].all() and (found != plain).any() and near.mean() < 0.1
        chosen = np.take_along_axis(scores, np.minimum(found, 2)[None].astype(int), 0)[0]
        np.testing.assert_allclose(probability[found < 255], chosen[found < 255], atol=1e-5)
    for wrong, words in (({"raod": 0.5}, "did you mean 'road'"), (0, "above 0"), ({"car": 1.5}, "car is 1.5")):
        with pytest.raises(ValueError, match=words):
            segmentor.infer(path, thresholds=wrong)


def test_command_writes_every_kind_of_result(checkpoint, street, tmp_path, capsys):
    from jseg.cli import main
    path, pixels = street
    other = tmp_path / "other.png"
    cv2.imwrite(str(other), pixels[::-1])
    words = ["predict", str(checkpoint), str(path), str(other), "--out", str(tmp_path / "out")]
    assert main([*words, "--what", "labels,probability,probabilities,logits,polygons,overlay", "--as", "npy,jpg",
                 "--threshold", "0.5", "--batch-size", "2", "--palette", "distinct"]) == 0
    assert main([*words, "--what", "polygons", "--as", "coco", "--min-area", "9"]) == 0
    segmentor = InferenceSegmentor(checkpoint)
    labels, probability = segmentor.infer(path, with_prob=True, thresholds=0.5)

    def loaded(kind):
        return np.load(tmp_path / f"out/street_{kind}.npy")

    np.testing.assert_array_equal(loaded("labels"), labels)
    np.testing.assert_allclose(loaded("probability"), probability, atol=1e-6)
    np.testing.assert_allclose(loaded("probabilities"), segmentor.infer(path, probabilities=True), atol=1e-6)
    np.testing.assert_allclose(loaded("logits"), segmentor.infer(path, logits=True), rtol=1e-4, atol=1e-4)
    geo = json.loads((tmp_path / "out/street_polygons.geojson").read_text())
    assert sum(f["properties"]["pixels"] for f in geo["features"]) == (labels < 255).sum()
    coco = json.loads((tmp_path / "out/coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["street.png", "other.png"]
    assert {c["name"] for c in coco["categories"]} == set(CLASSES)
    assert min(a["area"] for a in coco["annotations"]) >= 9 and all(0 < a["score"] <= 1 for a in coco["annotations"])
    assert (tmp_path / "out/street_overlay.jpg").exists()
    capsys.readouterr()
    for wrong, text in ((["--what", "label"], "did you mean 'labels'"),
                        (["--what", "labels", "--as", "coco"], "none of the results is written so (labels: png, "
                         "npy, tif)"),
                        (["--what", "polygons", "--as", "coco,geojson"], "two file types"),
                        (["--threshold", "raod=0.4"], "did you mean 'road'"), (["--threshold", "2"], "at most 1"),
                        (["--palette", str(path)], "street.png"), (["--what", "logits", "--tta"], "--tta"),
                        (["--batch-size", "0"], "--batch-size is 0")):
        try:
            status = main([*words[:3], "--out", str(tmp_path / "no"), *wrong])
        except SystemExit as error:
            status = error.code
        assert status == 2 and text in capsys.readouterr().err, wrong


def test_more_than_256_classes_are_saved_too(checkpoint, tmp_path, rng):
    segmentor = InferenceSegmentor(checkpoint)
    segmentor.palette = np.zeros((300, 3), np.uint8)
    labels = rng.integers(0, 300, (5, 7)).astype(np.uint16)
    segmentor.save_labels(labels, tmp_path / "labels.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "labels.png"), labels)


def test_a_file_of_another_tool_is_named(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"encoder.weight": np.zeros((3, 3), np.float32)}, str(path), metadata={"format": "pt"})
    with pytest.raises(CheckpointError,
                       match=r"other.safetensors: carries no config, so its model is unknown; give it"):
        InferenceSegmentor(path)


def test_transforms_say_themselves_whether_a_bare_picture_needs_them(monkeypatch):
    from jseg.data.transforms import LoadImageFromFile, Transform
    from jseg.registry import TRANSFORMS

    class ReadElsewhere(LoadImageFromFile):
        pass

    class Half(Transform):
        def apply(self, sample, params):
            return {**sample, "img": sample["img"][::2]}

    pipeline = [{"type": "ReadElsewhere", "scale": "max"}, {"type": "Half"}, {"type": "PackSegInputs"}]
    config = {"test_dataloader": {"dataset": {"pipeline": pipeline}}}
    monkeypatch.setattr(TRANSFORMS, "_entries", {**TRANSFORMS._entries, "ReadElsewhere": ReadElsewhere, "Half": Half})
    assert [type(step) for step in tta.test_transforms(config).transforms] == [Half]
    assert tta.picture_scale(config) == "max"
