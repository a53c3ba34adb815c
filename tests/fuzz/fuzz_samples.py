"""Small real files for the fuzzer to damage: written by the libraries that users' files come from, and by torch
(tests/convert/golden).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pathlib
import pickle
import sys
import tempfile

import cv2
import numpy as np
from PIL import Image

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "data" / "prepare"), str(TESTS / "convert")]

import config_samples
import fake_encode

from jseg.config import dump_config, load_config
from jseg.weights_file import write_weights_file

__all__ = ["samples"]


def samples(kind: str) -> list[tuple[str, bytes]]:
    """(suffix, content) of each small file of one kind; the same at every call."""
    return SAMPLES[kind]()


def photograph(height: int = 37, width: int = 53) -> np.ndarray:
    """(H, W, 3) uint8: smooth colours with some noise, as photographs are."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([rows * 5, columns * 4, (rows + columns) * 2], -1)
    return (smooth + rng.integers(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def saved(picture: Image.Image, form: str, **options) -> bytes:
    """The bytes of a picture written by Pillow."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _modes() -> dict[str, Image.Image]:
    colour = Image.fromarray(photograph())
    return {"RGB": colour, "L": colour.convert("L"), "P": colour.quantize(9), "1": colour.convert("1"),
            "RGBA": colour.convert("RGBA"),
            "LA": colour.convert("LA"), "I;16": Image.fromarray(photograph()[..., 0].astype(np.uint16) * 250)}


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def _png() -> list[tuple[str, bytes]]:
    files = [saved(picture, "PNG") for picture in _modes().values()]
    files.append(saved(_modes()["P"], "PNG", bits=4, transparency=3))
    files.append(saved(_modes()["RGB"], "PNG", exif=_turned()))
    files.append(saved(_modes()["RGB"], "PNG", save_all=True, append_images=[_modes()["RGB"].rotate(90)], duration=100))
    return [("png", data) for data in files]


def _jpg() -> list[tuple[str, bytes]]:
    colour = _modes()["RGB"]
    files = [saved(colour, "JPEG"), saved(colour, "JPEG", progressive=True), saved(_modes()["L"], "JPEG"),
             saved(colour.convert("CMYK"), "JPEG"),
             saved(colour, "JPEG", exif=_turned()), saved(colour, "JPEG", restart_marker_blocks=4), saved(colour,
                 "JPEG", subsampling=0)]
    return [("jpg", data) for data in files]


def _gif() -> list[tuple[str, bytes]]:
    colour = _modes()["P"]
    return [("gif", saved(colour, "GIF")), ("gif", saved(colour, "GIF", interlace=0, transparency=2)),
            ("gif", saved(colour, "GIF", save_all=True, append_images=[colour.rotate(90), colour.rotate(180)],
                          duration=50, loop=0))]


def _tif() -> list[tuple[str, bytes]]:
    modes = _modes()
    files = [saved(modes[mode], "TIFF") for mode in ("RGB", "L", "P", "1", "RGBA", "I;16")]
    files += [saved(modes["RGB"], "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg",
        "tiff_adobe_deflate")]
    files += [saved(modes["1"], "TIFF", compression="group4"), saved(modes["RGB"], "TIFF", big_tiff=True)]
    files.append(cv2.imencode(".tif", photograph().astype(np.uint16) * 200)[1].tobytes())
    return [("tif", data) for data in files]


def _webp() -> list[tuple[str, bytes]]:
    colour = _modes()["RGB"]
    files = [saved(colour, "WEBP"), saved(colour, "WEBP", lossless=True), saved(_modes()["RGBA"], "WEBP"), saved(colour,
        "WEBP", exif=_turned()),
             saved(colour, "WEBP", save_all=True, append_images=[colour.rotate(90)])]
    return [("webp", data) for data in files]


def _video() -> list[tuple[str, bytes]]:
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, code in (("mp4", "mp4v"), ("avi", "MJPG")):
            path = f"{folder}/video.{suffix}"
            writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*code), 5, (64, 48))
            for turn in range(6):
                writer.write(np.roll(photograph(48, 64), 5 * turn, axis=1))
            writer.release()
            files.append((suffix, pathlib.Path(path).read_bytes()))
    return files


def _members() -> dict[str, bytes]:
    picture = saved(_modes()["RGB"], "PNG")
    return {"images/a.png": picture, "masks/a.png": saved(_modes()["P"], "PNG"), "list.txt": b"a\nb\n",
            "inner.zip/deep/b.png": picture}


def _zip() -> list[tuple[str, bytes]]:
    import zipfile
    files = [fake_encode.pack(_members(), "x.zip")]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in _members().items():
                archive.writestr(zipfile.ZipInfo(name.replace(".zip/", "/")), data)
            with archive.open("wide.bin", "w", force_zip64=True) as member:
                member.write(b"wide" * 50)
        files.append(buffer.getvalue())
    return [("zip", data) for data in files]


def _tar() -> list[tuple[str, bytes]]:
    plain = fake_encode.pack(_members(), "x.tar")
    long_names = fake_encode.pack({"long/" * 40 + "a.png": b"x" * 700, "ä" * 90 + ".txt": b"y"}, "x.tar")
    return [("tar", plain), ("tar", long_names), ("tgz", gzip.compress(plain, mtime=0)), ("tar.bz2",
        bz2.compress(plain)), ("tar.xz", lzma.compress(plain))]


def _mat() -> list[tuple[str, bytes]]:
    labels = np.arange(63, dtype=np.uint16).reshape(7, 9)
    values = {"S": labels, "tiny": np.array([[3.0]]), "GTcls": {"B": [np.zeros((2, 2), np.uint8)],
                                                                "Segmentation": labels.astype(np.uint8)}}
    return [("mat", fake_encode.mat(values, compress)) for compress in (False, True)]


def _nii() -> list[tuple[str, bytes]]:
    packed = fake_encode.nifti(np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6))
    return [("nii", gzip.decompress(packed)), ("nii.gz", packed)]


def _golden(suffix: str) -> list[tuple[str, bytes]]:
    return [(suffix, path.read_bytes()) for path in sorted((TESTS / "convert" / "golden").glob(f"*.{suffix}"))]


def _pkl() -> list[tuple[str, bytes]]:
    tree = {"state_dict": {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}, "meta": {"classes": ("a", "b"),
        "n": 3, "big": 2 ** 70, "x": None},
            "list": [1.5, True, b"bytes", "text" * 30]}
    return _golden("pkl") + [("pkl", pickle.dumps(tree, protocol=protocol)) for protocol in range(6)]


def _safetensors() -> list[tuple[str, bytes]]:
    state = {"a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "a.bias": np.ones(2, np.float16),
             "n": np.array(3)}
    meta = {"config": {"model": {"type": "EncoderDecoder"}}, "classes": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]]}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "w.safetensors"
        write_weights_file(path, list(state), state.__getitem__, meta)
        return [("safetensors", path.read_bytes())]


def _py() -> list[tuple[str, bytes]]:
    texts = [text for name, text in sorted(vars(config_samples).items()) if name.isupper() and isinstance(text, str)]
    return [("py", text.encode()) for text in texts]


def _yaml() -> list[tuple[str, bytes]]:
    shipped = sorted((TESTS.parent / "configs").rglob("*.yaml"))[::9]
    anchors = (b"a: &a {x: 1, y: [1, 2.5e-4, .inf]}\nb: {<<: *a, z: '\\u00e9', w: \"\\x41\"}\n"
               b"c: |\n  text\n  more\nd: [*a, ~, 2026-11-28, 0x1f, 1_000]\n")
    return [("yaml", anchors)] + [("yaml", dump_config(load_config(path)).encode()) for path in shipped]


SAMPLES = {"pth": lambda: _golden("pth"), "pkl": _pkl, "safetensors": _safetensors, "py": _py, "yaml": _yaml,
           "png": _png, "jpg": _jpg, "gif": _gif,
           "tif": _tif, "webp": _webp, "mp4": _video, "zip": _zip, "tar": _tar, "mat": _mat, "nii": _nii}
