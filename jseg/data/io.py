"""Read and write pictures and masks; every fault of a file becomes a DataError that names the file and the cure.

What MMSegmentation 1.2.2 (Apache-2.0, `mmcv.imfrombytes`) reads with its defaults, OpenCV for pictures and Pillow for
masks, is read here with the same decoders, so the pixels are the same. Deviations, each because the upstream result is
wrong or silent:

- 16-bit pictures become 8-bit by `>> 8` in every format (upstream: PNG so, TIFF rounded by libtiff, at most 1 apart);
  `scale="max"` uses the whole range where the samples have 12 bits, say;
- TIFF files of grey or RGB integers are read band by band (`jseg.data.tiff`): bands apart, in tiles or not called RGB
  come out right;
- the EXIF orientation of WebP pictures is applied (OpenCV applies it for JPEG, PNG and TIFF only), and masks are turned
  by theirs in the same way as pictures (upstream ignores it in masks);
- alpha is dropped, never blended (OpenCV multiplies it into the colours of TIFF);
- truncated files are errors, also where a decoder would fill the rest with grey (`jseg.data.jpeg`);
- a limit on pixels and decoded bytes is checked before decoding (`jseg.data.header`), and only regular files are
  opened;
- masks keep their index whatever the file: 2- and 4-bit grey PNG are not stretched to 0..255, 16-bit masks do not wrap
  at 256, an RGB file whose three channels are equal is its index;
- coloured masks are refused unless a colour map says what the colours mean.
"""

from __future__ import annotations

import os
from typing import Mapping

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jseg.data.decode import imdecode, opened, upright
from jseg.data.header import PictureHeader, check_size, foreign_word, max_file_bytes
from jseg.data.jpeg import decode_whole
from jseg.data.labels import listing
from jseg.data.tiff import decode_bands
from jseg.data.write import encode_image, encode_mask, write_image, write_mask
from jseg.errors import DataError
from jseg.files import read_regular

__all__ = [
    "damaged_tiff",
    "encode_image",
    "encode_mask",
    "file_content",
    "from_pillow",
    "imdecode",
    "picture_header",
    "picture_note",
    "read_image",
    "read_mask",
    "stored_samples",
    "write_image",
    "write_mask",
    "check_pair",
    "ColorMap",
    "SCALES",
]

ColorMap = Mapping[tuple[int, int, int], int]
SCALES = ("bits", "max")

_AGAIN = "copy or download it again, or leave it out"
_INTEGERS = "; 8- and 16-bit integers are accepted: convert it first"
_DARK = 1 << 13  # a 16-bit picture without a sample above it comes out nearly black
_BAND_PIXELS = 1 << 20  # pixels of a mask whose colours are looked up at once


def read_image(source: str | os.PathLike | bytes, *, scale: str = "bits") -> np.ndarray:
    """Read a picture as the user sees it: three channels, eight bits, upright.

    Args:
        source: a path (any characters), or the bytes of a picture file.
        scale: what becomes of 16-bit samples: "bits" shifts them right by 8, "max" makes the picture's largest sample
            255. 8-bit samples stay as they are.
    Returns:
        (H, W, 3) uint8 in BGR order. Grey and palette pictures are expanded, alpha and bands after the third are
        dropped, the EXIF orientation is applied, an animation gives its first frame.
    Raises:
        DataError: the file is missing, no regular file, empty, truncated, not a picture, larger than the limit, or has
            samples that are not 8- or 16-bit integers.
    """
    if scale not in SCALES:
        raise ValueError(f"read_image: scale is {scale!r}; accepted: {', '.join(SCALES)}")
    img = stored_samples(*file_content(source, "picture"))
    return img if img.dtype == np.uint8 else _to_8_bits(img, scale)


def _to_8_bits(img: np.ndarray, scale: str) -> np.ndarray:
    """uint16 -> uint8 by `scale`; the array is overwritten."""
    if scale == "max":
        return cv2.convertScaleAbs(img, alpha=255 / max(int(img.max()), 1))
    return np.right_shift(img, 8, out=img).astype(np.uint8)


def picture_note(path: str | os.PathLike, *, scale: str = "bits") -> str:
    """What reading a picture (with `scale` as in `read_image`) loses without an error, for a note to the user; empty
    for nearly all.

    Only a TIFF file with a fourth band that is no opacity, and a 16-bit file that uses less than an eighth of its
    range, have one.

    Raises:
        DataError: as `read_image`, for 16-bit files; other faults are left to it.
    """
    data, name = file_content(path, "picture")
    header = picture_header(data, name)
    if header.tiff is not None and header.tiff.bands == 4 and not header.tiff.has_alpha:
        return f"{name}: 4 bands, the first 3 are used"
    if header.bits == 16 and scale == "bits":
        top = int(stored_samples(data, name).max())
        if top < _DARK:
            return (
                f"{name}: 16-bit samples up to {top} of 65535 come out nearly black ({top >> 8} of 255); stretch them"
                " when exporting, or use LoadImageFromFile with scale: max"
            )
    return ""


def stored_samples(data: bytes, name: str) -> np.ndarray:
    """Decode a picture: (H, W, 3) BGR, uint8 or uint16, upright."""
    header = picture_header(data, name)
    if header.kind == "jpeg":
        return _jpeg_image(data, header, name)
    _check_end(data, header, name)
    if header.kind == "tiff" and header.tiff is not None:
        _check_bands(header, name)
        if header.tiff.is_plain and not header.tiff.is_usual:
            return _tiff_image(data, header, name)
    animated = header.kind == "png" and b"acTL" in data[:data.find(b"IDAT")]  # damage in one can end OpenCV's process
    if header.kind == "gif" or animated or (header.kind == "tiff" and _pillow_mode(data) == "RGBA"):
        return _image_by_pillow(data, name)
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if header.kind == "tiff" or header.bits == 16 else 0)
    if header.kind == "webp":
        # OpenCV 4.14 turns WebP by its EXIF orientation, 4.11 does not: done below for both
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        img = imdecode(data, flags)
    except cv2.error as error:
        raise _unreadable(
            name, f"OpenCV cannot decode this picture ({error.err}); save it as 8-bit PNG or JPEG"
        ) from error
    if img is None:
        if header.kind != "other":
            raise _undecodable(data, name)
        img = _image_by_pillow(data, name)
    if img.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name}: the picture has {img.dtype} samples{_INTEGERS}", kind="samples", path=name)
    if header.kind != "webp":
        return img
    try:
        return upright(img, data)
    except Exception as error:  # what OpenCV decodes Pillow may refuse
        raise _by_pillow(name, error) from error


def _jpeg_image(data: bytes, header: PictureHeader, name: str) -> np.ndarray:
    try:
        img, missing = decode_whole(data, header.jpeg)
    except cv2.error as error:
        raise _by_opencv(name, error) from error
    if missing:
        raise _unreadable(name, f"the JPEG file is truncated ({missing}); {_AGAIN}")
    if img is None:
        raise _undecodable(data, name)
    return img


def _tiff_image(data: bytes, header: PictureHeader, name: str) -> np.ndarray:
    bands = decode_bands(data, header.tiff)
    if bands is None:
        raise damaged_tiff(name)
    img = cv2.cvtColor(bands, cv2.COLOR_GRAY2BGR if bands.shape[2] == 1 else cv2.COLOR_RGB2BGR)
    return upright(img, data) if 0x0112 in header.tiff.tags else img


def damaged_tiff(name: str) -> DataError:
    """The error of a TIFF file that lacks a part of its samples."""
    return _unreadable(
        name, f"the TIFF file is truncated or damaged (not all of its strips or tiles are there); {_AGAIN}"
    )


def _check_bands(header: PictureHeader, name: str) -> None:
    if header.tiff.has_floats or header.tiff.bits > 16:
        kind = f"float{header.bits}" if header.tiff.has_floats else f"{header.bits}-bit"
        raise DataError(f"{name}: the picture has {kind} samples{_INTEGERS}", kind="samples", path=name)
    if header.tiff.bands > 4:
        raise DataError(
            f"{name}: a TIFF with {header.tiff.bands} bands; 1, 3 or 4 are read (of 4 the first 3). Export the bands"
            " that the model uses, for example: gdal_translate -b 1 -b 2 -b 3 IN OUT",
            kind="samples",
            path=name,
        )


def read_mask(source: str | os.PathLike | bytes, color_map: ColorMap | None = None) -> np.ndarray:
    """Read a label mask: one class index per pixel.

    Args:
        source: a path or the bytes of a mask file. A palette mask gives its indices, not its colours; an RGB mask with
            R = G = B in every pixel gives that value.
        color_map: what each (r, g, b) means. With it the mask is read by its colours, also a palette or grey one.
    Returns:
        (H, W) uint8, or int32 where the file has 16- or 32-bit samples or `color_map` has an index above 255.
    Raises:
        DataError: the file is missing, no regular file, empty, truncated, larger than the limit or not a picture; it is
            coloured and no `color_map` is given; it has a colour that `color_map` lacks (the message gives colours,
            counts and first places); its samples are floats.
    """
    data, name = file_content(source, "mask")
    header = picture_header(data, name)
    if header.kind == "jpeg":
        _jpeg_image(data, header, name)  # for its errors: the pixels are Pillow's
    _check_end(data, header, name)
    picture = _upright_picture(data, name)
    mode = picture.mode
    if color_map and mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        return _colors_to_indices(from_pillow(picture, name), color_map, name)
    if mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if mode in ("L", "P"):
        mask, step = np.array(picture, dtype=np.uint8), _grey_step(data)
        return mask if step == 1 else mask // step
    if mode in ("LA", "PA"):
        return np.array(picture.getchannel(0))
    if not color_map and (mode == "I" or mode.startswith("I;16")):
        return np.array(picture).astype(np.int32)
    if mode in ("RGB", "RGBA"):
        return _equal_channels(picture, header, name)
    what = ("colours of a colour map; save it as 8-bit RGB PNG"
            if color_map else "class indices; save it as 8-bit grey or palette PNG")
    raise DataError(f"{name}: a mask of mode {mode!r} cannot hold {what}", kind="samples", path=name)


def _equal_channels(picture: Image.Image, header: PictureHeader, name: str) -> np.ndarray:
    """The index mask (H, W) uint8 that was saved as RGB."""
    red, green, blue = (np.array(picture.getchannel(i)) for i in range(3))
    differ = cv2.bitwise_or(cv2.absdiff(red, green), cv2.absdiff(red, blue))
    if not differ.any() and header.bits == 8:
        return red
    if header.bits == 16:
        raise DataError(
            f"{name}: the mask has three 16-bit channels; save it as 8-bit grey or palette PNG",
            kind="coloured",
            path=name,
        )
    row, column = np.unravel_index(int(np.argmax(differ > 0)), differ.shape)
    color = tuple(int(channel[row, column]) for channel in (red, green, blue))
    raise DataError(
        f"{name}: the mask is coloured (RGB) and no colour map is given: {color} at row {row}, column {column}. Give"
        " the dataset the colour of each class, or convert the mask to class indices",
        kind="coloured",
        path=name,
        values=(color,),
    )


def check_pair(img: np.ndarray, mask: np.ndarray, img_path: str, mask_path: str) -> None:
    """Raise a DataError that names both files unless picture and mask have the same height and width."""
    if img.shape[:2] == mask.shape[:2]:
        return
    (h, w), (mh, mw) = img.shape[:2], mask.shape[:2]
    cure = ("one of the two is turned by 90 degrees: the EXIF orientation is applied to both, so write the mask for "
            "the picture as viewers show it" if (h, w) == (mw, mh)
            else "pair the right files, or resize the mask with nearest neighbour")
    raise DataError(
        f"{img_path} is {w}x{h} (width x height) but its mask {mask_path} is {mw}x{mh}; {cure}",
        kind="size",
        path=mask_path,
    )


def _colors_to_indices(bgr: np.ndarray, color_map: ColorMap, name: str) -> np.ndarray:
    known = np.array([red << 16 | green << 8 | blue for red, green, blue in color_map], np.int32)
    order = np.argsort(known)
    index = np.array(list(color_map.values()), dtype=np.int32)[order]
    known = known[order]
    height, width = bgr.shape[:2]
    mask = np.empty((height, width), np.uint8 if index.min() >= 0 and index.max() <= 255 else np.int32)
    strangers: dict[int, list[int]] = {}  # colour -> pixels, first place
    step = max(1, _BAND_PIXELS // width)
    for top in range(0, height, step):
        part = bgr[top:top + step].astype(np.int32)
        code = (part[..., 2] << 16) | (part[..., 1] << 8) | part[..., 0]  # (rows, W)
        place = np.minimum(np.searchsorted(known, code), len(known) - 1)
        mask[top:top + step] = index[place]
        lacking = np.flatnonzero(known[place] != code)
        if len(lacking):
            values, first, counts = np.unique(code.ravel()[lacking], return_index=True, return_counts=True)
            for value, at, count in zip(values.tolist(), lacking[first].tolist(), counts.tolist()):
                strangers.setdefault(value, [0, top * width + at])[0] += count
    if strangers:
        colors = {(v >> 16, v >> 8 & 255, v & 255): found for v, found in sorted(strangers.items())}
        counts, first = zip(*colors.values())
        raise DataError(
            f"{name}: colour not in the colour map: {listing(map(str, colors), counts, first, width)}. "
            f"Add it, or save the mask without smoothing or JPEG (known: {sorted(color_map)[:8]}...)",
            kind="coloured",
            path=name,
            values=tuple(colors),
        )
    return mask


def file_content(source: str | os.PathLike | bytes, what: str) -> tuple[bytes, str]:
    """The bytes of a file and its name for messages; a DataError where there are none to be had."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), f"<{len(source)} bytes>"
    else:
        name = os.fspath(source)
        try:
            data = read_regular(name, what=what, most_bytes=max_file_bytes())
        except DataError as error:
            error.kind, error.path = "limit" if os.path.isfile(name) else "not regular", name
            raise
        except FileNotFoundError:
            raise DataError(
                f"{name}: no such {what}; check data_root, data_prefix and the suffixes", kind="missing", path=name
            ) from None
        except OSError as error:
            raise _unreadable(name, f"cannot read the {what}: {error.strerror or error}") from error
    if not data:
        raise _unreadable(name, f"the {what} is empty (0 bytes); {_AGAIN}")
    return data, name


def picture_header(data: bytes, name: str) -> PictureHeader:
    """The header of a picture within the limit; a DataError for a file that is no picture."""
    word = foreign_word(data)
    if word:
        raise _unreadable(name, f"not a picture but {word}")
    try:
        header = PictureHeader.of(data)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError and more
        raise _by_pillow(name, error) from error
    check_size(header, name)
    return header


def _check_end(data: bytes, header: PictureHeader, name: str) -> None:
    """Raise where the end of a file is missing and its decoder would not say so (other formats' decoders do).

    OpenCV makes room for a PNG chunk of the length that stands before it, so no chunk may reach beyond the file.
    """
    if header.kind != "png":
        return
    place, kind = 8, b""
    while kind != b"IEND" and place + 12 <= len(data):
        length, kind = int.from_bytes(data[place:place + 4], "big"), data[place + 4:place + 8]
        place += 12 + length
    if kind != b"IEND" or place > len(data):
        raise _unreadable(
            name, f"the PNG file is truncated (it ends after {len(data)} bytes without its end chunk) or damaged; "
                  f"{_AGAIN}"
        )


def _grey_step(data: bytes) -> int:
    """What a decoder multiplies the samples of a 2- or 4-bit grey PNG by: 85 or 17; 1 for all other files."""
    if data.startswith(b"\x89PNG") and len(data) > 25 and data[25] == 0:
        return {2: 85, 4: 17}.get(data[24], 1)
    return 1


def _pillow_mode(data: bytes) -> str:
    """Pillow's mode of a file by its header; empty if Pillow does not know it."""
    try:
        with opened(data) as picture:
            return picture.mode
    except Exception:  # a kind of file that only OpenCV reads, or damage that the decoder will report
        return ""


def _image_by_pillow(data: bytes, name: str) -> np.ndarray:
    return from_pillow(_upright_picture(data, name), name)


def _upright_picture(data: bytes, name: str) -> Image.Image:
    """A picture that Pillow decodes, with its orientation applied."""
    try:
        with opened(data) as picture:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return picture
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError and more
        raise _by_pillow(name, error) from error


def from_pillow(picture: Image.Image, name: str = "picture", *, scale: str = "bits") -> np.ndarray:
    """A Pillow image as `read_image` gives its file: (H, W, 3) BGR uint8, alpha dropped, 16-bit samples by `scale`.

    Raises:
        DataError: its samples are neither 8- nor 16-bit integers.
    """
    mode = picture.mode
    if mode in ("LA", "PA", "P"):
        palette = picture.getpalette("RGB")
        table = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)  # (256, 3) RGB: grey
        if mode != "LA" and palette is not None:
            colors = np.array(palette, np.uint8).reshape(-1, 3)
            table = np.concatenate([colors, np.zeros((256 - len(colors), 3), np.uint8)])
        return np.ascontiguousarray(table[:, ::-1])[np.asarray(picture.getchannel(0))]
    if mode == "I" or mode.startswith("I;16"):
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{name}: the picture has 32-bit samples{_INTEGERS}", kind="samples", path=name)
        return cv2.cvtColor(_to_8_bits(grey.astype(np.uint16), scale), cv2.COLOR_GRAY2BGR)
    if mode == "F":
        raise DataError(f"{name}: the picture has float32 samples{_INTEGERS}", kind="samples", path=name)
    if mode == "1":
        picture = picture.convert("L")
    elif mode not in ("L", "RGB", "RGBA", "RGBX"):
        picture = picture.convert("RGB")
    code = {"L": cv2.COLOR_GRAY2BGR, "RGB": cv2.COLOR_RGB2BGR}.get(picture.mode, cv2.COLOR_RGBA2BGR)
    return cv2.cvtColor(np.asarray(picture), code)


def _undecodable(data: bytes, name: str) -> DataError:
    """The error for a file of which OpenCV made no picture, with the reason that Pillow finds."""
    try:
        with opened(data) as picture:
            picture.load()
            mode = picture.mode
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError and more
        return _by_pillow(name, error)
    return _unreadable(
        name,
        f"OpenCV cannot decode this picture (mode {mode!r}): it is damaged or of a rare kind; {_AGAIN}, or save it as "
        "8-bit PNG or JPEG",
    )


def _by_pillow(name: str, error: Exception) -> DataError:
    if isinstance(error, UnidentifiedImageError):
        return _unreadable(name, f"not a picture in a known format, or cut off near its start; {_AGAIN}")
    return _unreadable(name, f"truncated or damaged ({error}); {_AGAIN}")


def _by_opencv(name: str, error: cv2.error) -> DataError:
    return _unreadable(name, f"OpenCV cannot decode this picture ({error.err}); save it as 8-bit PNG or JPEG")


def _unreadable(name: str, text: str) -> DataError:
    return DataError(f"{name}: {text}", kind="unreadable", path=name)
