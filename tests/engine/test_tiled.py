"""Rasters in blocks: the labels of a slide over the whole, places on earth kept, memory that does not grow."""

import numpy as np
import pytest
from small_run import small_config

from jseg import InferenceSegmentor, cli
from jseg.engine.model_file import save_model
from jseg.engine.tiled import blocks, predict_tiled
from jseg.errors import ConfigError, DataError
from jseg.models import build_model
from jseg.models.readout import windows

rasterio = pytest.importorskip("rasterio")


class Names:
    classes, palette = ["ground", "disc", "box"], np.array([[0, 0, 0], [255, 0, 0], [0, 99, 255]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of five bands with random weights, percentiles, slide windows of 64."""
    folder = tmp_path_factory.mktemp("tiled")
    config = small_config(folder)
    config["model"]["backbone"]["in_channels"] = 5
    config["model"]["test_cfg"] = {"mode": "slide", "crop_size": [64, 64], "stride": [32, 32]}
    config["data_preprocessor"].update(mean=[100.0] * 5, std=[60.0] * 5, bgr_to_rgb=False)
    for split in ("train", "val"):
        config[f"{split}_dataloader"]["dataset"]["pipeline"] = [
            {"type": "LoadBands", "channels": 5, "bands": [4, 0, 1, 2, 3], "scale": "percentile", "nodata": 0},
            {"type": "Resize", "scale": [40, 40]}, {"type": "LoadAnnotations"}]
    save_model(folder / "a.safetensors", build_model(config), config, Names)
    return folder / "a.safetensors"


def raster(path, height, width, rng, **options):
    """Smooth patches, uint16, five bands, with a place on earth."""
    values = np.kron(rng.integers(1, 9000, (5, height // 16 + 1, width // 16 + 1)), np.ones((1, 16, 16), int))
    values = (values[:, :height, :width] + rng.integers(0, 600, (5, height, width))).astype(np.uint16)
    values[:, :9] = 0
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), **options}
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=5, dtype="uint16", tiled=True,
                       blockxsize=64, blockysize=64, compress="deflate", **place) as file:
        file.write(values)


@pytest.mark.parametrize("length, crop, stride", [(500, 64, 32), (517, 64, 64), (64, 64, 32), (20, 64, 32),
                                                  (97, 96, 32)])
def test_blocks_have_the_windows_of_the_whole(length, crop, stride):
    found = blocks(length, crop, stride, 32, 160)
    padded = -(-length // 32) * 32
    assert [part.begin for part in found] == [0, *(part.end for part in found[:-1])] and found[-1].end == length
    for part in found:
        own = [(begin + part.first, end + part.first)
               for begin, end in windows(-(-(part.last - part.first) // 32) * 32, crop, stride)]
        wanted = [span for span in windows(padded, crop, stride) if span[1] > part.begin and span[0] < part.end]
        assert own == wanted, part
        assert part.last - part.first <= 160
    assert len(found) == {500: 5, 517: 5, 64: 1, 20: 1, 97: 2}[length]  # as large as they may be


def test_labels_are_those_of_the_whole_and_lie_at_its_place(checkpoint, tmp_path, monkeypatch, rng):
    raster(tmp_path / "a.tif", 333, 417, rng)
    monkeypatch.setattr("jseg.engine.tiled.BLOCK_PIXELS", 192 ** 2)
    segmentor = InferenceSegmentor(checkpoint, resize=False)
    whole, sure = segmentor.infer(str(tmp_path / "a.tif"), with_prob=True)
    blocks_done = []
    outs = {"labels": tmp_path / "l.tif", "probability": tmp_path / "p.tif"}
    counts = predict_tiled(segmentor, tmp_path / "a.tif", outs, tell=lambda done, count: blocks_done.append(count))
    assert len(blocks_done) == blocks_done[0] > 8 and len(np.unique(whole)) > 1
    np.testing.assert_array_equal(counts, np.bincount(whole.ravel(), minlength=3))
    with rasterio.open(tmp_path / "a.tif") as old, rasterio.open(outs["labels"]) as new, rasterio.open(
            outs["probability"]) as probability:
        np.testing.assert_array_equal(new.read(1), whole)
        assert (new.crs, new.transform, new.dtypes) == (old.crs, old.transform, ("uint8",))
        assert new.colormap(1)[2] == (0, 99, 255, 255)
        np.testing.assert_allclose(probability.read(1), sure, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "l.tif", "p.tif"]


def test_predict_keeps_control_points_and_coordinate_systems(checkpoint, tmp_path, rng):
    points = [rasterio.control.GroundControlPoint(row, col, 7 + col / 1e3, 50 - row / 1e3)
              for row, col in ((0, 0), (0, 100), (90, 0), (90, 100))]
    raster(tmp_path / "a.tif", 90, 100, rng, transform=None, gcps=points, crs="EPSG:4326")
    raster(tmp_path / "b.tif", 90, 100, rng)
    words = ["predict", str(checkpoint), str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), "--out",
             str(tmp_path / "out")]
    assert cli.main([*words, "--what", "labels,probabilities", "--as", "tif"]) == 0
    assert cli.main([*words, "--tiled", "--what", "labels", "--out", str(tmp_path / "tiled")]) == 0
    for folder in ("out", "tiled"):
        with rasterio.open(tmp_path / folder / "a_labels.tif") as file:
            found, system = file.gcps
            assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]
            assert system.to_epsg() == 4326
    with rasterio.open(tmp_path / "out/b_probabilities.tif") as file:
        assert (file.crs.to_epsg(), file.count, file.dtypes[0], file.shape) == (32632, 3, "float32", (90, 100))
        np.testing.assert_allclose(file.read().sum(0), 1, atol=1e-5)


def test_what_blocks_cannot_do_is_said(checkpoint, tmp_path, rng, capsys):
    raster(tmp_path / "a.tif", 70, 70, rng)
    with pytest.raises(ConfigError, match="multiples of data_preprocessor.test_cfg.size_divisor, 32"):
        predict_tiled(InferenceSegmentor(checkpoint, resize=False, crop_size=(60, 60), stride=(30, 30)),
                      tmp_path / "a.tif", {"labels": tmp_path / "l.tif"})
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-3000])
    with pytest.raises(DataError, match="b.tif"):
        predict_tiled(InferenceSegmentor(checkpoint, resize=False), tmp_path / "b.tif", {"labels": tmp_path / "l.tif"})
    assert cli.main(["predict", str(checkpoint), str(tmp_path / "a.tif"), "--tiled", "--tta"]) == 2
    assert "leave --tta out" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]
