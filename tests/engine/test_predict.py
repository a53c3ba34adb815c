"""A checkpoint alone segments pictures, in every form they come in, the same way every time."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from jseg import InferenceSegmentor
from jseg.config import load_config
from jseg.data import tta
from jseg.data.io import read_mask
from jseg.engine.checkpoint import model_state, save_weights
from jseg.errors import CheckpointError, ConfigError, DataError

CLASSES = ["sky", "road", "car"]
PALETTE = [[10, 120, 240], [90, 90, 90], [220, 30, 30]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small SegNeXt with random weights whose head separates pictures by their content."""
    import jittor as jt

    from jseg.models import build_model
    jt.set_global_seed(3)
    config = load_config("configs/segnext/segnext_tiny_demo-128x160_cpu.yaml")
    config["model"]["backbone"] = {"type": "MSCAN", "embed_dims": [8, 16, 32, 32], "depths": [1, 1, 1, 1],
                                   "mlp_ratios": [2, 2, 2, 2]}
    config["model"]["decode_head"].update(in_channels=[16, 32, 32], channels=32, ham_channels=32, num_classes=3,
                                          norm_cfg={"type": "GN", "num_groups": 4})
    config["val_dataloader"]["dataset"]["pipeline"].insert(1, {"type": "Resize", "scale": [96, 64], "keep_ratio": True})
    model = build_model(config)
    model.decode_head.conv_seg.weight.assign(model.decode_head.conv_seg.weight * 100)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, model_state(model), {"config": config, "classes": CLASSES, "palette": PALETTE})
    return path


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
    expected = (pixels.astype(float) + np.array(PALETTE)[labels][..., ::-1]) / 2
    assert np.abs(overlay - expected).max() <= 1


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
