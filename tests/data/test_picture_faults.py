"""Pictures cut, patched, huge, of rare layouts or no files at all: read right or refused in one line, never slowly."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from jseg.data.header import PEAK_RATIO, PictureHeader
from jseg.data.io import from_pillow, picture_note, read_image, read_mask
from jseg.errors import ConfigError, DataError


@pytest.fixture
def street(rng) -> np.ndarray:
    """Blobs with noise on them, (211, 317, 3) RGB: data up to the last block, and no grey corner."""
    blobs = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (317, 211), interpolation=cv2.INTER_CUBIC)
    return np.clip(blobs + rng.normal(0, 6, blobs.shape), 0, 255).astype(np.uint8)


def encoded(array: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


# ---- JPEG cut in the middle, with an end mark after it ----------------------------------------------------------
JPEG_KINDS = {
    "baseline": {},
    "no subsampling": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True, "quality": 90},
    "restarts": {"restart_marker_rows": 1},
    "grey": {"mode": "L"},
    "grey progressive": {"mode": "L", "progressive": True},
    "CMYK": {"mode": "CMYK"},
    "CMYK progressive": {"mode": "CMYK", "progressive": True},
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_cut_jpeg_with_an_end_mark_is_refused_and_a_whole_one_is_not(street, kind):
    data = encoded(street, "JPEG", **JPEG_KINDS[kind])
    np.testing.assert_array_equal(read_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    start = data.index(b"\xff\xda") + 20
    for share in np.linspace(0.02, 0.99, 23):
        cut = data[:start + int((len(data) - start - 40) * share)].rstrip(b"\xff") + b"\xff\xd9"
        for file in (cut, cut + data[len(cut):], cut + b"anything"):
            with pytest.raises(DataError, match="the JPEG file is truncated") as caught:
                read_image(file)
            assert caught.value.kind == "unreadable"
    with pytest.raises(DataError, match="truncated"):
        read_mask(cut)


def test_whole_jpegs_of_every_kind_of_scan_and_orientation_pass(street, rng):
    exif = Image.Exif()
    for turn in range(1, 9):
        exif[0x0112] = turn
        for progressive in (False, True):
            data = encoded(street, "JPEG", exif=exif, progressive=progressive)
            np.testing.assert_array_equal(
                read_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            )
    for color in (0, 128, 255):
        for size in ((1, 1), (8, 8), (1, 300), (500, 3)):
            for progressive in (False, True):
                assert (
                    read_image(encoded(np.full((*size, 3), color, np.uint8), "JPEG", progressive=progressive)).shape[:2]
                    == size
                )
    frames = [Image.fromarray(street), Image.fromarray(street[::-1])]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "MPO", save_all=True, append_images=frames[1:]
    )  # two pictures in one file, as cameras write them
    assert read_image(buffer.getvalue()).shape == street.shape
    noise = encoded(rng.integers(0, 256, street.shape, dtype=np.uint8), "JPEG", quality=100)
    assert (
        read_image(noise + bytes(1000) + b"\xff\xd9").shape == street.shape
    ), "bytes after the picture are nothing to us"


def test_real_jpegs_are_no_false_alarms(shared_data):
    found = sorted(shared_data.rglob("*.jpg"))
    assert found
    for path in found:
        assert read_image(path).ndim == 3


@pytest.mark.parametrize(
    "kind, mark", [("PNG", struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))), ("GIF", b"\0;")]
)
def test_other_formats_cut_and_ended_are_refused(street, kind, mark):
    data = encoded(street, kind, mode="P" if kind == "GIF" else None)
    for share in (0.3, 0.6, 0.9):
        for read in (read_image, read_mask):
            with pytest.raises(DataError, match="truncated|cannot decode"):
                read(data[:int(len(data) * share)] + mark)


# ---- TIFF -------------------------------------------------------------------------------------------------------
def tiff(
    samples: np.ndarray,
    *,
    photometric: int,
    planar: bool,
    tile: tuple[int, int] | None = None,
    packed: bool = False,
    order: str = "<",
    big: bool = False,
    predictor: bool = False,
) -> bytes:
    """Write (H, W, bands) uint8 or uint16 as a TIFF file by the specification, in strips of 7 rows or tiles."""
    height, width, bands = samples.shape
    planes = [samples[..., i:i + 1] for i in range(bands)] if planar else [samples]
    pieces = []
    for plane in planes:
        if tile:
            full = np.zeros(
                (-(-height // tile[0]) * tile[0], -(-width // tile[1]) * tile[1], plane.shape[2]), plane.dtype
            )
            full[:height, :width] = plane
            blocks = [
                full[y : y + tile[0], x : x + tile[1]]
                for y in range(0, height, tile[0])
                for x in range(0, width, tile[1])
            ]
        else:
            blocks = [plane[y:y + 7] for y in range(0, height, 7)]
        for block in blocks:
            if predictor:
                block = np.concatenate([block[:, :1], np.diff(block, axis=1)], axis=1)
            raw = block.astype(block.dtype.newbyteorder(order)).tobytes()
            pieces.append(zlib.compress(raw) if packed else raw)
    head, at, places = 16 if big else 8, 16 if big else 8, []
    for piece in pieces:
        places.append(at)
        at += len(piece)
    tags = {
        256: [width],
        257: [height],
        258: [8 * samples.itemsize] * bands,
        259: [8 if packed else 1],
        262: [photometric],
        277: [bands],
        284: [2 if planar else 1],
        317: [2 if predictor else 1],
    }
    lengths = [len(piece) for piece in pieces]
    tags.update(
        {322: [tile[1]], 323: [tile[0]], 324: places, 325: lengths} if tile else {273: places, 278: [7], 279: lengths}
    )
    if bands > (3 if photometric == 2 else 1):
        tags[338] = [0] * (bands - (3 if photometric == 2 else 1))
    word, start = ("Q", at) if big else ("I", at)
    beyond, outside, entries = start + (8 if big else 2) + len(tags) * (20 if big else 12) + (8 if big else 4), b"", b""
    for tag, values in sorted(tags.items()):
        packed_values = struct.pack(f"{order}{len(values)}I", *values)
        room = 8 if big else 4
        if len(packed_values) > room:
            outside, packed_values = outside + packed_values, struct.pack(order + word, beyond + len(outside))
        entries += struct.pack(order + "HH" + word, tag, 4, len(values)) + packed_values.ljust(room, b"\0")
    magic = b"II" if order == "<" else b"MM"
    top = magic + (struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start))
    assert len(top) == head
    return (
        top
        + b"".join(pieces)
        + struct.pack(order + ("Q" if big else "H"), len(tags))
        + entries
        + bytes(8 if big else 4)
        + outside
    )


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"tile": (16, 32)},
        {"packed": True, "predictor": True},
        {"packed": True, "tile": (16, 16)},
        {"order": ">"},
        {"big": True},
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_tiff_in_every_layout_gives_its_samples(rng, layout, dtype, bands):
    samples = rng.integers(0, np.iinfo(dtype).max + 1, (37, 53, bands)).astype(dtype)
    eight = (samples >> 8 if dtype == np.uint16 else samples).astype(np.uint8)
    expected = np.repeat(eight, 3, axis=2) if bands == 1 else eight[..., 2::-1]
    for planar in (False, True):
        for photometric in (1, 2) if bands > 1 else (1,):
            data = tiff(samples, photometric=photometric, planar=planar, **layout)
            np.testing.assert_array_equal(
                read_image(data), expected, err_msg=f"planar {planar}, photometric {photometric}"
            )
            places = data[:-1 - len(data) // 3]
            with pytest.raises(DataError, match="truncated or damaged|not a picture|cut off"):
                read_image(places)


def test_tiff_of_other_tools(cases):
    expected = read_image(cases / "field/21/bands/tf_chunky16.tif")
    for name in ("tf_planar16.tif", "tf_tiled16_planar.tif"):
        np.testing.assert_array_equal(read_image(cases / "field/21/bands" / name), expected, err_msg=name)


@pytest.fixture
def cases():
    """The folder of inputs that failed once."""
    from pathlib import Path
    folder = Path(__file__).parents[2] / "../shared/cases"
    if not folder.is_dir():
        pytest.skip("needs ../shared/cases")
    return folder


def test_tiff_bands_that_a_model_cannot_use(rng, tmp_path):
    samples = rng.integers(0, 200, (20, 30, 12)).astype(np.uint8)
    for bands in (5, 6, 12):
        with pytest.raises(DataError, match=f"a TIFF with {bands} bands; 1, 3 or 4 are read"):
            read_image(tiff(samples[..., :bands], photometric=1, planar=False))
    path = tmp_path / "four.tif"
    path.write_bytes(tiff(samples[..., :4], photometric=2, planar=False))
    assert "4 bands, the first 3 are used" in picture_note(path)


def test_twelve_bits_in_sixteen_are_noted_and_can_be_stretched(rng, tmp_path):
    path = tmp_path / "xray.png"
    cv2.imwrite(str(path), rng.integers(0, 4096, (20, 30), dtype=np.uint16))
    assert "16-bit samples up to 40" in picture_note(path) and "scale: max" in picture_note(path)
    assert picture_note(path, scale="max") == ""
    assert read_image(path).max() == 15 and read_image(path, scale="max").max() == 255
    with Image.open(path) as picture:
        np.testing.assert_array_equal(from_pillow(picture), read_image(path))
    with pytest.raises(ValueError, match="bits, max"):
        read_image(path, scale="min")


# ---- masks ------------------------------------------------------------------------------------------------------
def test_an_index_mask_saved_as_rgb_is_its_index(rng):
    index = rng.integers(0, 19, (20, 30), dtype=np.uint8)
    grey = np.repeat(index[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_mask(encoded(grey, "PNG")), index)
    np.testing.assert_array_equal(read_mask(encoded(grey, "PNG", mode="RGBA")), index)
    grey[4, 5, 1] += 1
    with pytest.raises(DataError, match=r"coloured \(RGB\).* at row 4, column 5") as caught:
        read_mask(encoded(grey, "PNG"))
    assert caught.value.kind == "coloured" and caught.value.values == (tuple(int(v) for v in grey[4, 5]),)
    with pytest.raises(DataError, match="16-bit channels"):
        read_mask(cv2.imencode(".png", np.full((4, 4, 3), 300, np.uint16))[1].tobytes())


@pytest.mark.parametrize(
    "content, words",
    [
        (b"\x93NUMPY\1\0v\0", "masks are picture files: save a mask as 8-bit grey PNG"),
        (b"PK\3\4" + bytes(30), "a ZIP archive"),
        (b"\n <!DOCTYPE HTML><html>", "the download went wrong"),
        (b"\0\5\x16\7" + bytes(80), "macOS"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_a_file_that_is_no_picture_is_called_what_it_is(content, words):
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=words):
            read(content)


# ---- no files, and huge ones ------------------------------------------------------------------------------------
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        odd = {
            tmp_path / "pipe.png": "a named pipe",
            tmp_path / "link.png": "a named pipe",
            tmp_path / "socket.png": "a socket",
            tmp_path: "a folder",
            "/dev/zero": "a device",
        }
        for path, words in odd.items():
            for read in (read_image, read_mask):
                with pytest.raises(DataError, match=f"is {words}; expected a (picture|mask)") as caught:
                    read(path)
                assert caught.value.kind == "not regular"


def png(width: int, height: int, bits: int, color: int) -> bytes:
    """A valid PNG of zeros; a row is deflated at a time."""
    squeezer, channels = zlib.compressobj(9), {0: 1, 2: 3, 3: 1, 6: 4}[color]
    row = bytes(1 + -(-width * bits * channels // 8))
    body = b"".join(squeezer.compress(row) for _ in range(height)) + squeezer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))]
    chunks += [(b"PLTE", bytes(6))] if color == 3 else []
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in [*chunks, (b"IDAT", body), (b"IEND", b"")]
    )


def resized(data: bytes, width: int, height: int) -> bytes:
    """The header of a picture file with another size in it."""
    kind = PictureHeader.of(data).kind
    data = bytearray(data)
    places = {"gif": [(6, "<HH")], "bmp": [(18, "<ii")], "png": [(16, ">II")]}
    if kind == "jpeg":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif kind == "webp":
        struct.pack_into("<I", data, 21, (width - 1) | (height - 1) << 14)
    elif kind == "tiff":
        entries = struct.unpack_from("<I", data, 4)[0] + 2
        for place in range(entries, entries + 24, 12):
            if struct.unpack_from("<H", data, place)[0] in (256, 257):
                struct.pack_into("<HIi", data, place + 2, 4, 1, width if data[place] == 0 else height)
    else:
        struct.pack_into(places[kind][0][1], data, places[kind][0][0], width, height)
    return bytes(data)


@pytest.mark.parametrize(
    "kind, options",
    [("PNG", {}), ("JPEG", {}), ("GIF", {"mode": "P"}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})],
)
def test_the_limit_is_looked_at_before_decoding(street, kind, options, monkeypatch):
    data = encoded(street, kind, **options)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    side = 16383 if kind == "WEBP" else 32000
    monkeypatch.setenv("JSEG_MAX_PIXELS", "200000000")
    for read in (read_image, read_mask):
        with pytest.raises(
            DataError, match=rf"{side:,} x {side:,} pixels .* at most 200,000,000 pixels and 0.8 GB"
        ) as caught:
            read(resized(data, side, side))
        assert caught.value.kind == "limit"
    monkeypatch.undo()
    monkeypatch.setenv("JSEG_MAX_PIXELS", str(street.shape[0] * street.shape[1] - 1))
    with pytest.raises(DataError, match=rf"--max-pixels {street.shape[0] * street.shape[1]} or JSEG_MAX_PIXELS"):
        read_image(data)
    monkeypatch.setenv("JSEG_MAX_PIXELS", str(street.shape[0] * street.shape[1]))
    assert read_image(data).shape == street.shape
    for wrong in ("many", "0", "-5", "1e9", "9" * 40):
        monkeypatch.setenv("JSEG_MAX_PIXELS", wrong)
        with pytest.raises(ConfigError, match="accepted: a whole number of pixels from 1 to 1073741824"):
            read_image(data)


def test_animations_count_by_their_canvas(street, monkeypatch):
    frames = [Image.fromarray(street), Image.fromarray(street[::-1])]
    monkeypatch.setenv("JSEG_MAX_PIXELS", "1000")
    for kind in ("GIF", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match="317 x 211 pixels"):
            read_image(buffer.getvalue())


PEAK = """
import sys
from jseg.data import io
from jseg.data.header import PictureHeader
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
reader, data = getattr(io, sys.argv[1]), open(sys.argv[2], "rb").read()
before = peak()
reader(data)
print(peak() - before, PictureHeader.of(data).decoded_bytes)
"""


@pytest.mark.parametrize(
    "name, reader",
    [("bits.png", "read_image"), ("wide.png", "read_image"), ("rgba.png", "read_mask"), ("a.gif", "read_image")],
)
def test_peak_memory_stays_in_the_stated_multiple(tmp_path, name, reader):
    side = 3000
    data = {
        "bits.png": lambda: png(side, side, 1, 0),
        "wide.png": lambda: png(side, side, 16, 0),
        "rgba.png": lambda: png(side, side, 8, 6),
        "a.gif": lambda: encoded(np.zeros((side, side), np.uint8), "GIF"),
    }[name]()
    (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, reader, str(tmp_path / name)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    used, decoded = map(int, done.stdout.split())
    assert decoded // 4 < used < 3.5 * decoded + (24 << 20) < PEAK_RATIO * decoded


def test_the_bombs_of_the_cases_are_refused_at_once(cases):
    for path in sorted(cases.glob("reliability/i*")):
        for read in (read_image, read_mask):
            with pytest.raises(DataError, match="pixels and .* GB when decoded"):
                read(path)
