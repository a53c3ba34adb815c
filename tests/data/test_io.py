"""Reading and writing pictures and masks: every kind read right,
every fault an error that names the file and the cure.
"""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from jseg.data.io import check_pair, read_image, read_mask, write_image, write_mask
from jseg.data.labels import check_labels
from jseg.errors import DataError, WriteError


@pytest.fixture
def rgb(rng) -> np.ndarray:
    """A smooth (24, 36, 3) picture in RGB order."""
    return cv2.resize(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), (36, 24))


def encoded(array: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    """A picture file made by Pillow."""
    buffer = io.BytesIO()
    picture = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    """An EXIF block with nothing but an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A PNG with 1, 2, 4 or 8 bits a grey sample, which Pillow cannot write."""
    rows = b"".join(b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits:].ravel()).tobytes()
                    for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_picture_from_path_and_bytes(rgb, kind, tmp_path):
    data = encoded(rgb, kind)
    path = tmp_path / "Straße 街道 é.dat"
    path.write_bytes(data)
    for source in (data, bytearray(data), path, str(path)):
        img = read_image(source)
        np.testing.assert_array_equal(img, rgb[..., ::-1])
        assert img.flags.c_contiguous and img.dtype == np.uint8


def test_jpeg_has_opencv_pixels(rgb):
    data = encoded(rgb, "JPEG", quality=70)
    np.testing.assert_array_equal(read_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    np.testing.assert_array_equal(read_image(data + b"trailing bytes"), read_image(data))


def test_grey_palette_and_bilevel_pictures(rgb):
    grey = rgb[..., 0]
    np.testing.assert_array_equal(read_image(encoded(grey, "PNG")), np.dstack([grey] * 3))
    assert set(np.unique(read_image(encoded(grey > 99, "PNG")))) == {0, 255}
    data = encoded(rgb, "PNG", mode="P")
    np.testing.assert_array_equal(read_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., ::-1])
    gif = encoded(rgb, "GIF")
    np.testing.assert_array_equal(read_image(gif), np.asarray(Image.open(io.BytesIO(gif)).convert("RGB"))[..., ::-1])


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bit_is_shifted(rng, suffix):
    deep = rng.integers(0, 65536, (9, 7, 3)).astype(np.uint16)
    np.testing.assert_array_equal(read_image(cv2.imencode(suffix, deep)[1].tobytes()), deep >> 8)
    np.testing.assert_array_equal(read_image(cv2.imencode(suffix, deep[..., 0])[1].tobytes())[..., 1],
                                  deep[..., 0] >> 8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped(rgb, rng, kind):
    rgba = np.dstack([rgb, rng.integers(0, 256, rgb.shape[:2], dtype=np.uint8)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(read_image(encoded(rgba, kind, **options)), rgb[..., ::-1])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_picture_and_mask_alike(kind, orientation):
    quadrants = np.kron(np.array([[10, 80, 80], [150, 220, 220]], np.uint8), np.ones((16, 16), np.uint8))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    img = read_image(encoded(np.dstack([quadrants] * 3), kind, exif=turned(orientation), **options))[..., 1]
    steps = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
             6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90}
    np.testing.assert_allclose(img, steps[orientation](quadrants), atol=3 if kind == "JPEG" else 0)
    if kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read_mask(encoded(quadrants, kind, exif=turned(orientation))),
                                      steps[orientation](quadrants))


@pytest.mark.parametrize("kind, options", [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"restart_marker_rows": 1}), ("PNG", {}),
    ("WEBP", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {})])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_truncated_file(kind, options, share, tmp_path):
    img = cv2.resize(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8), (240, 160))
    data = encoded(img, kind, **options)
    path = tmp_path / "cut.img"
    path.write_bytes(data[:int(len(data) * share)])
    for read in (read_image, read_mask):
        with pytest.raises(DataError,
                           match=r"cut\.img: .*(truncated|cut off|not a picture)[\s\S]*copy or download it again"):
            read(path)


def test_jpeg_cut_after_its_thumbnail(rgb):
    """An EXIF thumbnail carries an end mark of its own; it must not pass for the picture's."""
    thumbnail = encoded(rgb[:8, :8], "JPEG")
    data = encoded(cv2.resize(rgb, (300, 200)), "JPEG")
    block = b"Exif\0\0" + thumbnail
    whole = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    assert read_image(whole).shape == (200, 300, 3)
    for stop in (len(block) + 10, len(whole) // 2, len(whole) - 2):
        with pytest.raises(DataError, match="JPEG file is truncated"):
            read_image(whole[:stop])


def test_missing_empty_and_foreign_files(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="gone.jpg: no such (picture|mask); check data_root"):
            read(tmp_path / "gone.jpg")
        with pytest.raises(DataError, match=r"empty.jpg: the (picture|mask) is empty \(0 bytes\)"):
            read(tmp_path / "empty.jpg")
        with pytest.raises(DataError, match="page.jpg: not a picture but a web page"):
            read(tmp_path / "page.jpg")
        with pytest.raises(DataError, match="is a folder; expected a (picture|mask)"):
            read(tmp_path)


def test_damaged_png_is_refused(rgb):
    data = bytearray(encoded(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8), "PNG"))
    data[len(data) // 2] ^= 0xFF
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="damaged|cannot decode"):
            read(bytes(data))


def test_float_samples_are_refused(rng):
    data = cv2.imencode(".tiff", rng.random((5, 6)).astype(np.float32))[1].tobytes()
    with pytest.raises(DataError, match="float32 samples; 8- and 16-bit integers are accepted"):
        read_image(data)
    with pytest.raises(DataError, match="mode 'F' cannot hold class indices"):
        read_mask(data)


def test_palette_mask_gives_indices(rng, tmp_path):
    mask = rng.integers(0, 21, (20, 30)).astype(np.uint8)
    mask[0, :5] = 255
    write_mask(tmp_path / "voc.png", mask, palette=rng.integers(0, 256, (256, 3)))
    with Image.open(tmp_path / "voc.png") as picture:
        assert picture.mode == "P"
    got = read_mask(tmp_path / "voc.png")
    np.testing.assert_array_equal(got, mask)
    assert got.dtype == np.uint8
    few = Image.fromarray(mask % 4)
    few.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0, 0, 0, 250])
    buffer = io.BytesIO()
    few.save(buffer, "PNG", bits=2)
    np.testing.assert_array_equal(read_mask(buffer.getvalue()), mask % 4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_packed_grey_mask_keeps_its_indices(bits):
    mask = (np.arange(40) % (1 << bits)).astype(np.uint8).reshape(5, 8)
    np.testing.assert_array_equal(read_mask(grey_png(mask, bits)), mask)


def test_wide_mask(rng, tmp_path):
    mask = rng.integers(0, 60000, (12, 13)).astype(np.int32)
    write_mask(tmp_path / "deep" / "wide.png", mask)
    got = read_mask(tmp_path / "deep" / "wide.png")
    np.testing.assert_array_equal(got, mask)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(read_mask(encoded(mask.astype(np.uint16), "TIFF", exif=turned(6))),
                                  np.rot90(mask, -1))


def test_colored_mask(rng):
    colors = {(128, 0, 0): 0, (0, 128, 0): 1, (1, 2, 3): 7, (255, 255, 255): 255}
    table = np.array(list(colors), np.uint8)
    pick = rng.integers(0, 4, (15, 17))
    data = encoded(table[pick], "PNG")
    np.testing.assert_array_equal(read_mask(data, colors), np.array(list(colors.values()))[pick])
    assert read_mask(data, {**colors, (9, 9, 9): 300}).dtype == np.int32
    with pytest.raises(DataError, match=r"coloured \(RGB\) and no colour map is given"):
        read_mask(data)
    palette = Image.fromarray(3 - pick.astype(np.uint8))  # indices in another order: only its colours count
    palette.putpalette(table[::-1].ravel().tolist())
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes([0, 9]))
    np.testing.assert_array_equal(read_mask(buffer.getvalue(), colors), read_mask(data, colors))
    bilevel = pick > 1
    np.testing.assert_array_equal(read_mask(encoded(bilevel, "PNG"), {(0, 0, 0): 0, (255, 255, 255): 1}), bilevel)
    with pytest.raises(DataError, match="mode 'I;16' cannot hold colours"):
        read_mask(encoded(pick.astype(np.uint16), "PNG"), colors)
    stained = table[pick]
    stained[3, 4] = stained[9, 2] = (5, 6, 7)
    stained[14, 16] = (255, 0, 1)
    with pytest.raises(DataError, match=r"\(5, 6, 7\) at 2 pixels, first at row 3, column 4; \(255, 0, 1\) at 1 pixel, "
                                        r"first at row 14, column 16"):
        read_mask(encoded(stained, "PNG"), colors)


def test_check_labels_names_file_values_places_and_cure():
    mask = np.zeros((10, 20), np.uint8)
    mask[5:, :] = 255
    check_labels(mask, 1, 255, "a.png")
    check_labels(mask.astype(np.int32), 256, None, "a.png")
    mask[2, 3] = mask[4, 1] = 19
    mask[3, 0] = 40
    with pytest.raises(DataError,
                       match=r"a\.png: label out of range: 19 at 2 pixels, first at row 2, column 3; 40 at 1 pixel, "
                                        r"first at row 3, column 0; accepted are 0\.\.18 and 255 \(ignored\)\. The "
                                        r"class list does not belong"):
        check_labels(mask, 19, 255, "a.png")
    with pytest.raises(DataError, match="-1 at 2 pixels"):
        check_labels(np.array([[0, -1, -1]], np.int32), 19, 255, "a.png")


@pytest.mark.parametrize("values, classes, ignore, cure", [
    ([1, 150, 7], 150, 255, "set reduce_zero_label: true on the dataset"),
    ([0, 150, 7], 150, 255, "one past the last class"),
    ([0, 255], 2, None, "0/255 picture"),
    ([0, 11, 255], 12, 11, "set ignore_index: 255 on the dataset and on every head, and data_preprocessor.seg_pad_val: "
                           "255"),
    ([0, 128], 2, 255, "two values, 0 and 128: write class 1 as 1, or set label_map: .128: 1. on the dataset"),
    ([0, 1, 2], 2, 255, "2 means 'no label' set ignore_index: 2 on the dataset and on every head, and "
                        "data_preproc.*label_map: .2: 255"),
    (list(range(200)), 12, 255, "picture instead of a mask"),
])
def test_check_labels_cures(values, classes, ignore, cure):
    with pytest.raises(DataError, match=cure):
        check_labels(np.array([values], np.uint8), classes, ignore, "m.png")


def test_check_pair():
    img = np.zeros((30, 40, 3), np.uint8)
    check_pair(img, np.zeros((30, 40), np.uint8), "a.jpg", "a.png")
    with pytest.raises(DataError,
                       match=r"a\.jpg is 40x30 \(width x height\) but its mask a\.png is 20x30; pair the right files"):
        check_pair(img, np.zeros((30, 20), np.uint8), "a.jpg", "a.png")
    with pytest.raises(DataError, match="turned by 90 degrees"):
        check_pair(img, np.zeros((40, 30), np.uint8), "a.jpg", "a.png")


def test_write_is_atomic(rgb, tmp_path):
    path = tmp_path / "out" / "ünï.png"
    write_image(path, rgb)
    np.testing.assert_array_equal(read_image(path), rgb)
    before = path.read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))  # the kernel refuses to write on, as a full disk does
    try:
        with pytest.raises(WriteError, match="cannot be written.*untouched"):
            write_image(path, rgb // 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_written_formats(rgb, tmp_path):
    write_image(tmp_path / "a.jpg", rgb, quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - rgb).mean() < 3
    write_image(tmp_path / "grey.bmp", rgb[..., 0])
    for path, array in (("a.xyz", rgb), ("a.png", rgb.astype(float)), ("a.png", rgb[..., :2])):
        with pytest.raises(ValueError, match="write_image"):
            write_image(tmp_path / path, array)
    for path, array in (("a.jpg", rgb[..., 0]), ("a.png", rgb), ("a.png", np.array([[-1]])),
                        ("a.png", np.array([[70000]]))):
        with pytest.raises(ValueError, match="write_mask"):
            write_mask(tmp_path / path, array)
    with pytest.raises(ValueError, match="0..255 with a palette"):
        write_mask(tmp_path / "a.png", np.array([[300]]), palette=[(0, 0, 0)])


def test_real_files(shared_data):
    """Photographs and masks of the known datasets read, in pairs of one size."""
    pairs = [("camvid/val", "camvid/valannot", ".png", 11), ("raw/voc_samples", "raw/voc_samples", ".jpg", 255)]
    for images, masks, suffix, highest in pairs:
        found = sorted((shared_data / images).rglob(f"*{suffix}"))[:4]
        assert found
        for path in found:
            mask = shared_data / masks / f"{path.stem}.png"
            if mask.exists():
                label = read_mask(mask)
                check_pair(read_image(path), label, str(path), str(mask))
                assert label.max() <= highest
