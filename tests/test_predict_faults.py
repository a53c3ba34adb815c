"""`jseg predict` with wrong inputs, disk or options: nothing is lost without a word, nothing half-written stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from small_model import save_small_segnext

from jseg import InferenceSegmentor
from jseg.cli import main
from jseg.data.io import read_image, read_mask
from jseg.engine.checkpoint import save_weights
from jseg.engine.predict import pictures_in
from jseg.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small SegNeXt with random weights, in a run's best/ folder."""
    folder = tmp_path_factory.mktemp("run") / "best"
    folder.mkdir()
    return save_small_segnext(folder / "weights.safetensors")


@pytest.fixture
def folder(tmp_path, rng):
    """Three pictures p0.jpg, p1.jpg, p2.jpg."""
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(3):
        pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (96, 64), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(pixels).save(place / f"p{i}.jpg")
    return place


@pytest.fixture
def predict(checkpoint, tmp_path, capfd):
    """Run the command; gives status, what was written (names), stdout, stderr."""
    def run(*words, out=tmp_path / "out", weights=checkpoint):
        status = main(["predict", str(weights), *map(str, words), "--out", str(out)])
        told = capfd.readouterr()
        assert "Traceback" not in told.err
        names = sorted(os.listdir(out)) if os.path.isdir(out) else []
        return status, names, told.out, told.err
    return run


def test_bad_inputs_are_named_and_the_others_done(folder, predict, rng):
    cut = folder / "p1.jpg"
    data = cut.read_bytes()
    cut.write_bytes(data[:len(data) * 2 // 3] + b"\xff\xd9")
    os.mkfifo(folder / "p3.png")
    (folder / "p4.png").symlink_to(folder / "gone.png")
    cv2.imwrite(str(folder / "p5.png"), rng.integers(0, 256, (1, 5000, 3), dtype=np.uint8))
    (folder / "p6\x1b[31m.png").write_bytes(b"no picture")
    status, names, out, err = predict(folder, folder / "gone", "--what", "labels")
    assert status == 2
    assert names == ["p0_labels.png", "p2_labels.png"]
    assert "2 done, 6 left out: " in err.splitlines()[-1] and f"{cut}" in err.splitlines()[-1]
    for words in (
        "gone: no such file or folder",
        "p1.jpg: the JPEG file is truncated",
        "p3.png: is a named pipe",
        "p4.png: no such picture",
        "p5.png: pipeline[0] Resize: resizing a picture of 5000x1",
        "p6\\x1b[31m.png: not a picture",
    ):
        assert sum(words in line for line in err.splitlines()) == 1, words
    assert "\x1b" not in out + err.replace("\x1b[38;5;2m", "")


def test_folders_without_pictures_of_the_model_are_named_and_the_others_done(folder, predict, tmp_path):
    for name in ("empty", "arrays"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "arrays/a.npy", np.zeros((64, 96, 3), np.uint8))
    np.save(folder / "p1.npy", np.zeros((64, 96, 3), np.uint8))  # not read by LoadImageFromFile
    status, names, _, err = predict(folder, tmp_path / "empty", tmp_path / "arrays", "--what", "labels")
    assert status == 2 and names == ["p0_labels.png", "p1_labels.png", "p2_labels.png"]
    assert f"{tmp_path}/empty: no pictures" in err and f"{tmp_path}/arrays: no pictures" in err
    assert "3 done, 2 left out: " in err.splitlines()[-1]
    status, _, _, err = predict(tmp_path / "arrays")
    assert status == 2 and err.startswith(f"{tmp_path}/arrays: no pictures (looked for .jpg") and ".npy" not in err


def test_hidden_files_and_folders_are_no_pictures(folder, predict, checkpoint):
    (folder / "._p0.jpg").write_bytes(b"\0\5\x16\7" + bytes(100))
    (folder / "p9.png").mkdir()
    assert [path.name for path in pictures_in(folder)] == ["p0.jpg", "p1.jpg", "p2.jpg"]
    status, names, _, err = predict(folder, weights=checkpoint.parent)
    assert (status, len(names), err) == (0, 6, "")
    assert len(InferenceSegmentor(checkpoint).infer(folder)) == 3


def test_a_single_bad_input_is_one_line(folder, predict):
    for given, words in (
        (folder / "gone.jpg", "no such file or folder"),
        ("/dev/zero", "is a device"),
        (folder.parent, "no pictures"),
    ):
        status, names, _, err = predict(given)
        assert (status, names) == (2, []) and words in err and len(err.splitlines()) == 1


def test_a_file_in_the_way_of_the_results_and_wrong_options(folder, predict, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"mine")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        status, _, _, err = predict(folder, out=out)
        assert status == 2 and len(err.splitlines()) == 1 and str(out) in err
    assert (tmp_path / "file").read_bytes() == b"mine"
    monkeypatch.setenv("JSEG_MAX_PIXELS", "")
    status, _, _, err = predict(folder / "p0.jpg", "--max-pixels", 1000)
    assert status == 2 and "96 x 64 pixels" in err and "--max-pixels 6144" in err
    assert predict(folder / "p0.jpg", "--max-pixels", 6144)[0] == 0
    status, _, _, err = predict(folder / "p0.jpg", "--max-pixels", 0)
    assert status == 2 and "accepted: a whole number of pixels" in err
    for wrong in ("a", "0x5", "5x5x5"):
        status, _, _, err = predict(folder, "--mode", "slide", "--crop-size", wrong)
        assert status == 2 and "expected height x width in pixels" in err


def test_slide_gets_its_window_from_the_options(checkpoint):
    with pytest.raises(ConfigError, match="--crop-size"):
        InferenceSegmentor(checkpoint, mode="slide")
    with pytest.raises(ConfigError, match="'whole'"):
        InferenceSegmentor(checkpoint, mode="whole", crop_size=(32, 32))
    with pytest.raises(ConfigError, match=r"expected \(height, width\)"):
        InferenceSegmentor(checkpoint, crop_size=(32, 0))
    for options, stride in (
        ({"crop_size": (32, 48)}, (21, 32)),
        ({"crop_size": (32, 48), "stride": (16, 16)}, (16, 16)),
    ):
        model = InferenceSegmentor(checkpoint, mode="slide", **options)._model
        assert model.test_cfg == {"mode": "slide", "crop_size": (32, 48), "stride": stride}
    assert InferenceSegmentor(checkpoint).config["model"].get("test_cfg", {}).get("mode", "whole") == "whole"


def test_probability(checkpoint, folder, predict, tmp_path):
    segmentor = InferenceSegmentor(checkpoint)
    path = folder / "p0.jpg"
    labels, probability = segmentor.infer(path, with_prob=True)
    np.testing.assert_array_equal(labels, segmentor.infer(path))
    assert probability.dtype == np.float32 and probability.shape == labels.shape
    assert 1 / 3 - 1e-6 <= probability.min() < probability.max() <= 1
    several = segmentor.infer(folder, with_prob=True)
    assert len(several) == 3 and all(len(pair) == 2 for pair in several)
    status, names, _, _ = predict(path, "--what", "all")
    assert (status, names) == (0, ["p0_labels.png", "p0_overlay.png", "p0_probability.png"])
    grey = read_mask(tmp_path / "out/p0_probability.png")
    np.testing.assert_allclose(grey, probability * 255, atol=0.51)


def test_sixteen_bit_pictures_are_read_as_the_config_says(checkpoint, folder, tmp_path, predict, rng):
    from jseg.engine.checkpoint import load_weights
    state, meta = load_weights(checkpoint)
    meta["config"]["val_dataloader"]["dataset"]["pipeline"][0]["scale"] = "max"
    meta.pop("jseg_version")
    stretched = tmp_path / "max.safetensors"
    save_weights(stretched, state, meta)
    dark = folder / "dark.png"
    cv2.imwrite(str(dark), (cv2.imread(str(folder / "p0.jpg")).astype(np.uint16) << 4))
    assert "come out nearly black" in predict(dark)[3]
    assert predict(dark, weights=stretched)[3] == ""
    bright = InferenceSegmentor(stretched)
    np.testing.assert_array_equal(bright.infer(dark), bright.infer(read_image(dark, scale="max")))


# ---- videos -----------------------------------------------------------------------------------------------------
@pytest.fixture
def clip(tmp_path, rng):
    """24 frames of 96x64 as Motion JPEG."""
    path = tmp_path / "clip.avi"
    frame = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (96, 64))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for shift in range(24):
        writer.write(np.roll(frame, 3 * shift, axis=1))
    writer.release()
    return path


def frames_in(path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        count += 1
    return count


def test_a_cut_video_gives_what_can_be_read_and_status_2(clip, predict, tmp_path):
    assert predict(clip)[:2] == (0, ["clip_overlay.mp4"]) and frames_in(tmp_path / "out/clip_overlay.mp4") == 24
    data = clip.read_bytes()
    clip.write_bytes(data[:len(data) // 2])
    status, names, out, err = predict(clip)
    count = frames_in(tmp_path / "out/clip_overlay.mp4")
    assert status == 2 and 0 < count < 24 and names == ["clip_overlay.mp4"]
    assert f"{count} of 24 frames could be read" in err and f"({count} frames)" in out
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost/secret.ts\n")
    os.mkfifo(tmp_path / "pipe.mp4")
    status, _, _, err = predict(clip, tmp_path / "list.mp4", tmp_path / "pipe.mp4")
    assert status == 2 and "list.mp4: not a video but a text" in err and "pipe.mp4: is a named pipe" in err
    assert "1 done, 2 left out" in err and "1 done, 1 done in part" in err


@pytest.mark.parametrize("looks", [True, False])
def test_a_full_disk_is_told_and_leaves_nothing(clip, predict, tmp_path, monkeypatch, looks):
    from jseg.engine import video
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        if not looks:  # as where a quota, not the disk, is the limit
            monkeypatch.setattr(video, "_SPARE_BYTES", 0)
        (disk / "clip_overlay.mp4").write_bytes(b"the result of before")
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 4096))
        status, names, _, err = predict(clip, out=disk)
        assert status == 2 and "the video cannot be written" in err and "free disk space" in err
        assert ("the disk is full after 0 frames" if looks else " of 24 frames are in the file") in err
        assert (
            names == ["ballast", "clip_overlay.mp4"]
            and (disk / "clip_overlay.mp4").read_bytes() == b"the result of before"
        )
        (disk / "ballast").unlink()
        assert predict(clip, out=disk)[0] == 0 and frames_in(disk / "clip_overlay.mp4") == 24
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


WRITER = """
import sys, time
import numpy as np
from jseg.engine.video import VideoFile
with VideoFile(sys.argv[1], 10) as video:
    while True:
        video.write(np.zeros((64, 96, 3), np.uint8))
        print(video.count, flush=True)
        time.sleep(0.01)
"""


@pytest.mark.parametrize("hard", [False, True])
def test_an_interrupted_video_leaves_no_hidden_part(tmp_path, hard):
    target = tmp_path / "video.mp4"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for _ in range(5):
        process.stdout.readline()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".video.mp4.tmp-")]
    process.send_signal(signal.SIGKILL if hard else signal.SIGINT)
    process.stdout.read()
    process.wait(timeout=20)
    if hard:  # nobody could clean up: the next writer of that file does
        from jseg.engine.video import VideoFile
        assert os.listdir(tmp_path)
        with VideoFile(target, 10):
            pass
    assert os.listdir(tmp_path) == []


def test_frames_of_another_size_are_scaled_and_none_is_lost(tmp_path):
    from jseg.engine.video import VideoFile, VideoSource
    with VideoFile(tmp_path / "mixed.mp4", 10) as video:
        for side in (64, 32, 96):
            video.write(np.full((side, side, 3), 200, np.uint8))
        video.finish_file()
    with VideoSource(tmp_path / "mixed.mp4") as source:
        assert [frame.shape for frame in source.frames()] == [(64, 64, 3)] * 3
        assert source.lost() == "" and source.expected == 3
    with pytest.raises(DataError, match="limit|pixels"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSEG_MAX_PIXELS", "100")
        VideoSource(tmp_path / "mixed.mp4")


def test_files_for_a_benchmarks_server(checkpoint, folder, tmp_path, capsys, monkeypatch):
    from jseg.data.submission import SUBMISSIONS, _Form
    assert main(["predict", str(checkpoint), str(folder), "--out", str(tmp_path / "no"), "--format", "cityscapes"]) == 2
    assert "--format cityscapes: the checkpoint has 3 classes" in capsys.readouterr().err
    monkeypatch.setitem(SUBMISSIONS, "cityscapes", _Form(lambda: ["sky", "road", "car"], (23, 7, 26)))
    assert main(["predict", str(checkpoint), str(folder), "--out", str(tmp_path / "out"), "--format",
                 "cityscapes"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p0.png", "p1.png", "p2.png"]
    labels = InferenceSegmentor(checkpoint).infer(folder / "p0.jpg")
    assert (np.array(Image.open(tmp_path / "out/p0.png")) == np.array([23, 7, 26])[labels]).all()
