"""Large pictures are decoded in strips: the pixels of the whole decoder, every kind of damage found, bounded memory."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from multiprocessing import get_context

import cv2
import numpy as np
import pytest
from fake_encode import encode, write_tree
from PIL import Image

from jseg.data.io import read_image
from jseg.data.prepare import ColorTable, Job, Settings, Strips, Tiling, copy_picture, cut_pair, pair_items
from jseg.data.prepare.manifest import Item
from jseg.data.prepare.parallel import _Memory
from jseg.data.prepare.strips import needs
from jseg.data.prepare.tiles import bands
from jseg.errors import ConvertError, DataError

COLORS = ((0, 0, 0), (255, 0, 0), (0, 255, 0))


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    monkeypatch.setattr("jseg.data.prepare.strips.STRIP_PX", 200)


def photo(rng, channels: int = 3) -> np.ndarray:
    """(41, 30[, channels]) uint8, smooth and noisy parts, so that an encoder uses all its row filters."""
    y, x = np.mgrid[:41, :30]
    img = np.stack([(3 * x + 2 * y + 40 * k) % 256 for k in range(channels)], -1)
    img[20:] += rng.integers(0, 60, img[20:].shape)
    return (img.squeeze(-1) if channels == 1 else img).astype(np.uint8)


def filtered_png(img: np.ndarray) -> bytes:
    """A PNG file whose rows use the filters 0 to 4 in turn, in IDAT chunks of 100 bytes."""
    bpp, rows = img.shape[2], img.reshape(len(img), -1).astype(int)
    above, raw = np.zeros_like(rows[0]), b""
    for y, row in enumerate(rows):
        left, corner = np.concatenate([[0] * bpp, row[:-bpp]]), np.concatenate([[0] * bpp, above[:-bpp]])
        guess = left + above - corner
        near = np.argmin([abs(guess - left), abs(guess - above), abs(guess - corner)], 0)
        paeth = np.choose(near, [left, above, corner])
        raw += bytes([y % 5]) + ((row - (0 * row, left, above, (left + above) // 2, paeth)[y % 5]) % 256).astype(
            np.uint8).tobytes()
        above = row
    packed = zlib.compress(raw)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", img.shape[1], len(img), 8, {3: 2, 4: 6}[bpp], 0, 0, 0))]
    chunks += [(b"IDAT", packed[i:i + 100]) for i in range(0, len(packed), 100)] + [(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c))
                                           for k, c in chunks)


def tiff(img: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(img).save(buffer, "TIFF", **options)
    return buffer.getvalue()


def kinds(rng) -> dict[str, tuple[bytes, bool]]:
    """Name -> (file, whether it is decoded in strips)."""
    rgb, grey = photo(rng), photo(rng, 1)
    palette = io.BytesIO()
    Image.fromarray(grey // 16).convert("P").save(palette, "PNG")
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(turned, "PNG", exif=exif)
    return {
        "png rgb": (encode(rgb, "png"), True), "png grey": (encode(grey, "png"), True),
        "png rgba": (encode(photo(rng, 4), "png"), True), "png filters": (filtered_png(rgb), True),
        "png filters rgba": (filtered_png(photo(rng, 4)), True), "png palette": (palette.getvalue(), False),
        "png turned": (turned.getvalue(), False),
        "png 16 bits": (cv2.imencode(".png", rgb.astype(np.uint16) * 257)[1].tobytes(), False),
        "jpeg": (encode(rgb, "jpg"), False), "tiff grey": (tiff(grey), False),
        "tiff turned": (tiff(rgb, tiffinfo={274: 3}), False), "tiff raw": (tiff(rgb, tiffinfo={278: 4}), True),
        "tiff lzw": (tiff(rgb, compression="tiff_lzw", tiffinfo={278: 3}), True),
        "tiff deflate, predictor": (tiff(rgb, compression="tiff_adobe_deflate", tiffinfo={278: 7, 317: 2}), True),
        "tiff lzw in one piece": (tiff(rgb, compression="tiff_lzw", tiffinfo={278: 41}), False)}


def test_strips_are_the_whole_decoders_pixels(rng):
    for name, (data, in_strips) in kinds(rng).items():
        picture = Strips.read(data, name)
        strips = list(picture.strips)
        whole = read_image(data)
        assert (picture.height, picture.width) == whole.shape[:2], name
        assert np.array_equal(np.concatenate(strips), whole), name
        assert (len(strips) > 1) == in_strips and (not in_strips or max(map(len, strips)) <= 7), (
            name, [len(s) for s in strips])


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("name", ["png rgb", "tiff raw", "tiff lzw"])
def test_damage_is_found(rng, name, capfd):
    data = kinds(rng)[name][0]
    for cut in range(8, len(data) - 13, 37):
        with pytest.raises(DataError, match="x.img"):
            list(Strips.read(data[:cut], "x.img").strips)
    assert capfd.readouterr().err == ""  # the decoders are quiet
    if name == "png rgb":
        for place in (len(data) // 2, len(data) - 15):  # in the pixels; in the checksum
            with pytest.raises(DataError, match=r"x\.img: truncated or damaged .*row"):
                list(Strips.read(data[:place] + bytes([data[place] ^ 1]) + data[place + 1:], "x.img").strips)


def test_bands_overlap_and_leave_nothing_out(rng):
    img = photo(rng)
    for strip in (1, 5, 41):
        spans = [(0, 16), (12, 28), (24, 40), (25, 41)]
        got = list(bands(iter([img[y:y + strip] for y in range(0, 41, strip)]), spans))
        assert all(np.array_equal(band, img[top:bottom]) for band, (top, bottom) in zip(got, spans)) and len(got) == 4


def test_tiles_from_strips_and_nothing_stays_of_a_damaged_picture(rng, tmp_path):
    img, mask = photo(rng), rng.integers(0, 3, (41, 30))
    files = {"a.png": filtered_png(img), "a_mask.png": encode(np.array(COLORS, np.uint8)[mask], "png"),
             "b.png": encode(img, "png")}

    def convert():
        with Job("tiles", tmp_path / "raw", tmp_path / "out", {}, Settings(1, progress=False)) as job:
            items = pair_items(
                [(("a.png", "a_mask.png"), ("img/{box.top}_{box.left}.png", "ann/{box.top}_{box.left}.png"))], cut_pair,
                               tiling=Tiling.overlapping(16, 32, 4),
                label=ColorTable({c: i for i, c in enumerate(COLORS)}), pad=(0, 255))
            return job.run([*items, Item("b", copy_picture, ("b.png",), ("b.png",))])

    write_tree(files, tmp_path / "raw")
    convert()
    img, mask = np.pad(img, [(0, 0), (0, 2), (0, 0)]), np.pad(mask, [(0, 0), (0, 2)], constant_values=255)
    for top in (0, 12, 24, 25):
        assert np.array_equal(read_image(tmp_path / f"out/img/{top}_0.png")[..., ::-1], img[top:top + 16])
        assert np.array_equal(np.array(Image.open(tmp_path / f"out/ann/{top}_0.png")), mask[top:top + 16])
    damaged = files["a.png"][:-16] + b"\0\0\0\0" + files["a.png"][-12:]
    write_tree({"a.png": damaged}, tmp_path / "raw")
    with pytest.raises(ConvertError, match="a.png: truncated or damaged"):
        convert()
    assert not list((tmp_path / "out").rglob("*_0.png"))
    write_tree({"a.png": files["a.png"], "b.png": damaged}, tmp_path / "raw")
    with pytest.raises(ConvertError, match="b.png: truncated or damaged"):
        convert()
    assert (tmp_path / "out/img/0_0.png").is_file() and not (tmp_path / "out/b.png").exists()


def test_unknown_colours_are_counted_over_all_strips(rng):
    mask = np.zeros((41, 30, 3), np.uint8)
    mask[3, 5] = mask[40, 1] = 9
    with pytest.raises(DataError,
                       match=r"m: colour not in the colour map: \(9, 9, 9\) at 2 pixels, first at row 3, column 5"):
        ColorTable({(0, 0, 0): 0})(encode(mask, "png"), "m")
    assert ColorTable({(0, 0, 0): 0}, unknown=7)(encode(mask, "png"), "m")[40, :3].tolist() == [0, 7, 0]


def test_memory_is_shared_out(rng):
    png, jpg = encode(photo(rng), "png"), encode(photo(rng), "jpg")
    assert needs(png[:40], len(png)) == (41 * 30, 32 * 200) and needs(jpg, len(jpg)) == (41 * 30, 6 * 41 * 30)
    assert needs(b"II*\0" + b"\xff" * 8, 77)[0] == 77 and needs(b"", 5)[0] == 5
    memory, order = _Memory(get_context("spawn"), 100), []
    first, second = memory.claim(60), threading.Thread(target=lambda: [hold(memory, 90), order.append("second")])
    with first:
        with memory.claim(40):
            pass
        second.start()
        second.join(0.2)
        order.append("first")
    second.join(10)
    assert order == ["first", "second"]
    with memory.claim(1000):  # larger than all there is: alone
        pass
    assert memory._free.value == 100


def hold(memory: _Memory, size: int) -> None:
    with memory.claim(size):
        pass
