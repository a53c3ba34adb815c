"""Pictures of any number of channels: files of GDAL and tifffile, scaling, transforms, the preprocessor, statistics."""

import pathlib

import cv2
import numpy as np
import pytest

from jseg import cli
from jseg.data.bands import partner, read_bands
from jseg.data.preprocess import SegDataPreProcessor
from jseg.data.transforms import Compose, LoadBands
from jseg.errors import DataError

GOLDEN = pathlib.Path(__file__).parent / "band_golden"
EXPECTED = dict(np.load(GOLDEN / "expected.npz"))


@pytest.mark.parametrize("name", EXPECTED)
def test_files_of_other_tools_are_read_to_the_bit(name):
    found = read_bands(GOLDEN / f"{name}.tif")
    assert found.dtype == EXPECTED[name].dtype
    np.testing.assert_array_equal(found, EXPECTED[name])


def test_a_cut_tiff_is_an_error_that_names_it():
    data = (GOLDEN / "uint16_lzw_predictor2.tif").read_bytes()
    for cut in (200, len(data) // 2, len(data) - 40):
        with pytest.raises(DataError):
            read_bands(data[:cut])


@pytest.mark.parametrize("channels, dtype", [(1, np.uint8), (3, np.uint8), (4, np.uint8), (1, np.uint16),
                                             (3, np.uint16), (4, np.uint16)])
def test_png_keeps_its_type_and_alpha_and_gives_red_first(tmp_path, rng, channels, dtype):
    img = rng.integers(0, np.iinfo(dtype).max, (9, 7, channels)).astype(dtype)
    cv2.imwrite(str(tmp_path / "a.png"), img)
    expected = img if channels == 1 else img[..., [2, 1, 0, 3][:channels]]
    np.testing.assert_array_equal(read_bands(tmp_path / "a.png"), expected)


def test_arrays_of_either_layout(tmp_path, rng):
    img = rng.normal(size=(40, 50, 5)).astype(np.float32)
    for name, array, layout in (("a", img, "auto"), ("b", img.transpose(2, 0, 1), "auto"), ("c", img, "hwc")):
        np.save(tmp_path / f"{name}.npy", array)
        np.testing.assert_array_equal(read_bands(tmp_path / f"{name}.npy", layout=layout), img)
    np.save(tmp_path / "d.npy", img[:8, :8])
    with pytest.raises(DataError, match="say layout: hwc or layout: chw"):
        read_bands(tmp_path / "d.npy")
    np.save(tmp_path / "e.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="numpy.save"):
        read_bands(tmp_path / "e.npy")


def test_several_files_become_one_picture(tmp_path, rng):
    for folder in ("images", "depth"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    colours, depth = rng.integers(0, 256, (8, 9, 3)).astype(np.uint8), rng.integers(0, 9999, (4, 5)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "set/images/a.png"), colours)
    cv2.imwrite(str(tmp_path / "set/depth/a_d.png"), depth)
    path = str(tmp_path / "set/images/a.png")
    files = [{}, {"images": "depth", ".png": "_d.png"}]
    with pytest.raises(DataError, match="LoadBands.resize"):
        LoadBands(4, files=files).stored(path)
    found = LoadBands(4, files=files, resize="nearest", bands=[3, 0, 1, 2]).read(path)
    assert found.shape == (8, 9, 4) and found.dtype == np.float32
    np.testing.assert_array_equal(found[..., 1:], colours[..., ::-1])
    np.testing.assert_array_equal(found[..., 0], cv2.resize(depth, (9, 8), interpolation=cv2.INTER_NEAREST))
    assert partner("x_B02.tif", {"_B02.tif": "_B03.tif"}).endswith("x_B03.tif")
    with pytest.raises(ValueError, match="without slashes"):
        LoadBands(4, files=[{}, {"images": "../../etc"}])
    with pytest.raises(DataError, match="LoadBands.channels is 2"):
        LoadBands(2).read(path)


def test_scales_and_samples_without_data(rng):
    img = rng.integers(1, 4096, (30, 20, 6)).astype(np.uint16)
    fixed = LoadBands(6, scale="fixed", range=[0, 4095]).read(img)
    np.testing.assert_allclose(fixed, img / 4095 * 255, rtol=1e-5)
    assert LoadBands(6).read(img).dtype == np.float32 and LoadBands(6).read(img.astype(np.uint8)).dtype == np.uint8
    holes = img.copy()
    holes[:5] = 0
    low, high = np.percentile(img[5:], (2, 98), axis=(0, 1))
    expected = np.clip((img[5:] - low) / (high - low) * 255, 0, 255)
    found = LoadBands(6, scale="percentile", nodata=0, fill=-1).read(holes)
    np.testing.assert_allclose(found[5:], expected, rtol=1e-4, atol=1e-3)
    assert (found[:5] == -1).all()
    floats = img.astype(np.float32)
    floats[2, 3, 4] = np.nan
    with pytest.raises(DataError, match="row 2, column 3, channel 4; LoadBands.nodata: .nan"):
        LoadBands(6).read(floats)
    assert LoadBands(6, nodata=float("nan"), fill=7).read(floats)[2, 3, 4] == 7


STEPS = [
    {"type": "Resize", "scale": [21, 17]}, {"type": "RandomRotate", "prob": 1.0, "degree": 30, "pad_val": 9},
    {"type": "Pad", "size": [40, 32], "pad_val": 5}, {"type": "RandomCutOut", "prob": 1.0, "n_holes": 2,
                                                      "cutout_shape": [4, 4], "fill_in": [3, 3, 3]},
    {"type": "RandomFlip", "prob": 1.0}, {"type": "RandomCrop", "crop_size": [9, 8]},
    {"type": "RandomResize", "scale": [30, 30], "ratio_range": [0.5, 2.0]},
    {"type": "ResizeToMultiple", "size_divisor": 8}, {"type": "CLAHE"}, {"type": "AdjustGamma", "gamma": 1.4}]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["type"])
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13, 32])
def test_transforms_do_to_every_channel_what_they_do_to_a_colour(step, channels, rng):
    img = rng.integers(0, 256, (16, 20, channels)).astype(np.uint8)
    mask = rng.integers(0, 3, (16, 20)).astype(np.uint8)
    run = Compose([step])
    whole = run({"img": img, "gt_seg_map": mask}, np.random.default_rng(1))
    assert whole["img"].ndim == 3 and whole["img"].shape[2] == channels
    for band in range(channels):
        colours = run({"img": np.repeat(img[..., band:band + 1], 3, axis=2), "gt_seg_map": mask},
                      np.random.default_rng(1))
        np.testing.assert_array_equal(whole["img"][..., band], colours["img"][..., 0])
        np.testing.assert_array_equal(whole["gt_seg_map"], colours["gt_seg_map"])


def test_what_belongs_to_colours_is_refused_and_bands_are_distorted_by_themselves(rng):
    sample = {"img": rng.integers(0, 256, (6, 6, 4)).astype(np.uint8), "img_path": "a.tif"}
    with pytest.raises(DataError, match="use BandDistortion"):
        Compose([{"type": "PhotoMetricDistortion"}])(sample, rng)
    floats = {**sample, "img": rng.normal(50, 10, (6, 6, 4)).astype(np.float32)}
    step = Compose([{"type": "BandDistortion", "prob": 1.0}]).transforms[0]
    params = step.draw(floats, rng)
    found = step.apply(floats, params)["img"]
    mean, std = floats["img"].mean((0, 1)), floats["img"].std((0, 1))
    np.testing.assert_allclose(found.mean((0, 1)), mean + std * params["offsets"], rtol=1e-4)
    np.testing.assert_allclose(found.std((0, 1)), std * params["gains"], rtol=1e-3)


def test_the_preprocessor_takes_any_length_and_names_what_differs(rng):
    prep = SegDataPreProcessor(mean=[1, 2, 3, 4, 5], std=[1, 2, 3, 4, 5], test_cfg={"size_divisor": 8})
    for dtype in (np.uint8, np.float32):
        img = rng.integers(0, 256, (6, 7, 5)).astype(dtype)
        images = prep.batch([{"img": img, "img_path": "a.tif"}], training=False).images
        expected = (img - np.arange(1, 6)) / np.arange(1, 6)
        np.testing.assert_allclose(images[0, :, :6, :7], expected.transpose(2, 0, 1), rtol=1e-5)
        assert images.shape == (1, 5, 8, 8)
    with pytest.raises(DataError, match=r"a.tif: .*\(6, 7, 3\).*mean has 5 channels"):
        prep.batch([{"img": img[..., :3], "img_path": "a.tif"}], training=False)
    with pytest.raises(ValueError, match="reverse 3 channels"):
        SegDataPreProcessor(mean=[1] * 4, std=[1] * 4, bgr_to_rgb=True)


SIX_BANDS = """
train_dataloader:
  batch_size: 1
  dataset:
    type: FolderDataset
    data_root: {root}
    img_suffix: .npy
    metainfo: {{classes: [ground, roof]}}
    pipeline: [{{type: LoadBands, channels: 6, view: [5, 4, 3]}}, {{type: LoadAnnotations}}]
"""


@pytest.mark.parametrize("command, words, bands", [
    (["data", "check"], ["--quiet", "--sheet"], (5, 4, 3)), (["browse"], ["--out"], (5, 4, 3)),
    (["browse"], ["--view", "0,1,5", "--out"], (0, 1, 5)), (["browse"], ["--view", "4", "--out"], (4, 4, 4))])
def test_sheets_show_the_bands_of_the_view(tmp_path, capsys, command, words, bands):
    values = np.arange(6, dtype=np.uint8) * 30 + 20
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(2):
        np.save(tmp_path / f"images/{i}.npy", np.broadcast_to(values, (40, 50, 6)))
        cv2.imwrite(str(tmp_path / f"masks/{i}.png"), np.full((40, 50), i, np.uint8))
    (tmp_path / "a.yaml").write_text(SIX_BANDS.format(root=tmp_path))
    assert cli.main([*command, str(tmp_path / "a.yaml"), *words, str(tmp_path / "sheet.png")]) == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    colour = values[list(bands)][::-1]  # BGR
    assert (sheet == colour).all(2).sum() > 2 * 200 * 150, capsys.readouterr()
