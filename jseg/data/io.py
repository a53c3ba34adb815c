"""Read and write pictures and masks; every fault of a file becomes a DataError that names the file and the cure.

What MMSegmentation 1.2.2 (Apache-2.0, `mmcv.imfrombytes`) reads with its defaults, OpenCV for pictures and Pillow for masks, is
read here with the same decoders, so the pixels are the same. Deviations, each because the upstream result is wrong or silent:

- 16-bit pictures become 8-bit by `>> 8` in every format (upstream: PNG so, TIFF rounded by libtiff, at most 1 apart);
- the EXIF orientation of WebP pictures is applied (OpenCV applies it for JPEG, PNG and TIFF only), and masks are turned by
  theirs in the same way as pictures (upstream ignores it in masks);
- alpha is dropped, never blended (OpenCV multiplies it into the colours of TIFF);
- truncated files are errors, also where a decoder would fill the rest with grey;
- masks keep their index whatever the file: 2- and 4-bit grey PNG are not stretched to 0..255, 16-bit masks do not wrap at 256;
- coloured masks are refused unless a colour map says what the colours mean.

A JPEG whose bytes were altered in the middle decodes without complaint in every decoder; only missing bytes are detected.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jseg.errors import DataError
from jseg.files import write_atomically

__all__ = ["imdecode", "read_image", "read_mask", "write_image", "write_mask", "check_labels", "check_pair", "ColorMap"]

ColorMap = Mapping[tuple[int, int, int], int]

_EXIF_ORIENTATION = 0x0112
_AGAIN = "copy or download it again, or take it out of the list"
_INTEGERS = "; 8- and 16-bit integers are accepted: convert it first"
_SHOWN = 5  # offending values or colours listed in one message


def read_image(source: str | os.PathLike | bytes) -> np.ndarray:
    """Read a picture as the user sees it: three channels, eight bits, upright.

    Args:
        source: a path (any characters), or the bytes of a picture file.
    Returns:
        (H, W, 3) uint8 in BGR order. Grey and palette pictures are expanded, 16-bit samples are shifted right by 8, alpha is
        dropped, the EXIF orientation is applied, an animation gives its first frame.
    Raises:
        DataError: the file is missing, empty, truncated, not a picture, or has samples that are not 8- or 16-bit integers.
    """
    data, name = _content(source, "picture")
    kind = _kind(data)
    _check_complete(data, kind, name)
    mode = _tiff_mode(data) if kind == "tiff" else ""
    if kind == "gif" or mode == "RGBA":
        return _image_by_pillow(data, name)
    flags = cv2.IMREAD_COLOR | {"tiff": cv2.IMREAD_ANYDEPTH, "webp": cv2.IMREAD_IGNORE_ORIENTATION}.get(kind, 0)  # OpenCV 4.14 turns WebP, 4.11 does not
    try:
        img = imdecode(data, flags)
    except cv2.error as error:
        raise DataError(f"{name}: OpenCV cannot decode this picture ({error.err}); save it as 8-bit PNG or JPEG") from error
    if img is None and mode == "F":
        raise DataError(f"{name}: the picture has float32 samples{_INTEGERS}")
    if img is None:
        if kind != "other":
            raise _undecodable(data, name)
        img = _image_by_pillow(data, name)
    if img.dtype == np.uint16:
        img = (img >> 8).astype(np.uint8)
    if img.dtype != np.uint8:
        raise DataError(f"{name}: the picture has {img.dtype} samples{_INTEGERS}")
    return _upright(img, data) if kind == "webp" else img


def read_mask(source: str | os.PathLike | bytes, color_map: ColorMap | None = None) -> np.ndarray:
    """Read a label mask: one class index a pixel.

    Args:
        source: a path or the bytes of a mask file. A palette mask gives its indices, not its colours.
        color_map: what each (r, g, b) means. With it the mask is read by its colours, also a palette or grey one.
    Returns:
        (H, W) uint8, or int32 where the file has 16- or 32-bit samples or `color_map` has an index above 255.
    Raises:
        DataError: the file is missing, empty, truncated or not a picture; it is coloured and no `color_map` is given; it has a
            colour that `color_map` lacks (the message gives colours, counts and first places); its samples are floats.
    """
    data, name = _content(source, "mask")
    _check_complete(data, _kind(data), name)
    try:
        with _opened(data) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError and more
        raise _unreadable(name, error) from error
    mode = picture.mode
    if color_map and mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        return _colors_to_indices(np.array(picture.convert("RGBA"))[..., :3], color_map, name)
    if mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if mode in ("L", "P"):
        return np.array(picture, dtype=np.uint8) // _grey_step(data)
    if mode in ("LA", "PA"):
        return np.array(picture)[..., 0]
    if not color_map and (mode == "I" or mode.startswith("I;16")):
        return np.array(picture).astype(np.int32)
    if mode in ("RGB", "RGBA"):
        raise DataError(f"{name}: the mask is coloured (RGB) and no colour map is given; give the dataset the colour of each class, "
                        "or convert the mask to class indices")
    what = "colours of a colour map; save it as 8-bit RGB PNG" if color_map else "class indices; save it as 8-bit grey or palette PNG"
    raise DataError(f"{name}: a mask of mode {mode!r} cannot hold {what}")


def write_image(path: str | os.PathLike, img: np.ndarray, *, quality: int = 95) -> None:
    """Write a picture atomically; the suffix of `path` chooses the format.

    Args:
        path: where; a file in the way is replaced only when the new one is complete. The folder is made if need be.
        img: (H, W, 3) uint8 BGR, or (H, W) uint8 grey.
        quality: of JPEG and WebP, 1..100.
    Raises:
        ValueError: `img` has another shape or type, or OpenCV knows no format of that suffix.
    """
    if img.dtype != np.uint8 or img.ndim not in (2, 3) or (img.ndim == 3 and img.shape[2] != 3):
        raise ValueError(f"write_image({path}): expected (H, W, 3) or (H, W) uint8, got {img.shape} {img.dtype}")
    suffix = Path(path).suffix
    options = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".jpeg": cv2.IMWRITE_JPEG_QUALITY, ".webp": cv2.IMWRITE_WEBP_QUALITY}
    option = options.get(suffix.lower())
    try:
        done, data = cv2.imencode(suffix, img, [option, quality] if option is not None else [])
    except cv2.error as error:
        raise ValueError(f"write_image({path}): OpenCV cannot write {suffix!r} files; use .png or .jpg") from error
    if not done:
        raise ValueError(f"write_image({path}): OpenCV could not encode {img.shape} as {suffix!r}")
    write_atomically(path, data.tobytes(), durable=False)


def write_mask(path: str | os.PathLike, mask: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> None:
    """Write a label mask atomically as PNG, so that `read_mask` gives the same indices back.

    Args:
        path: where, ending in `.png`.
        mask: (H, W) integers, 0..65535; written with 8 bits where all fit, else with 16.
        palette: (r, g, b) per class, 0..255, to make the file a palette PNG that viewers show in colour; entry i is class i, at
            most 256 entries, and the mask must fit 8 bits.
    Raises:
        ValueError: the suffix is not .png, the mask is not a 2-D integer array of that range, or the palette does not fit.
    """
    mask = np.asarray(mask)
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"write_mask({path}): masks are written as .png, other formats may change the indices")
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "iu":
        raise ValueError(f"write_mask({path}): expected a non-empty (H, W) integer array, got {mask.shape} {mask.dtype}")
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > 65535 or (palette is not None and (high > 255 or len(palette) > 256)):
        raise ValueError(f"write_mask({path}): labels {low}..{high} do not fit; 0..65535 without, 0..255 with a palette")
    if high > 255:
        picture = Image.fromarray(mask.astype(np.uint16))
    else:
        picture = Image.fromarray(mask.astype(np.uint8))
        if palette is not None:
            picture.putpalette([int(v) for color in palette for v in color])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue(), durable=False)


def check_pair(img: np.ndarray, mask: np.ndarray, img_path: str, mask_path: str) -> None:
    """Raise a DataError that names both files unless picture and mask have the same height and width."""
    if img.shape[:2] == mask.shape[:2]:
        return
    (h, w), (mh, mw) = img.shape[:2], mask.shape[:2]
    cure = ("one of the two is turned by 90 degrees: the EXIF orientation is applied to both, so write the mask for the picture "
            "as viewers show it" if (h, w) == (mw, mh) else "pair the right files, or resize the mask with nearest neighbour")
    raise DataError(f"{img_path} is {w}x{h} (width x height) but its mask {mask_path} is {mw}x{mh}; {cure}")


def check_labels(mask: np.ndarray, num_classes: int, ignore_index: int | None, path: str) -> None:
    """Raise a DataError if a mask holds a label that is neither a class nor the ignored one.

    Args:
        mask: (H, W) integer labels, as training would use them (the zero label reduced, classes mapped).
        num_classes: classes are 0..num_classes - 1.
        ignore_index: the one other label allowed; None allows none.
        path: the mask's file, for the message.
    Raises:
        DataError: names the file, each offending value (at most 5) with its count and first place, and the likely cure.
    """
    bad = mask >= num_classes
    if mask.dtype.kind == "i":
        bad |= mask < 0
    if ignore_index is not None:
        bad &= mask != ignore_index
    if not bad.any():
        return
    values, first, counts = np.unique(np.where(bad, mask.astype(np.int64), -1 << 40), return_index=True, return_counts=True)
    keep = values != -1 << 40
    found = _listing((str(v) for v in values[keep]), counts[keep], first[keep], mask.shape[1])
    cure = _label_cure(mask, [int(v) for v in values[keep]], num_classes, ignore_index)
    also = "" if ignore_index is None else f" and {ignore_index} (ignored)"
    raise DataError(f"{path}: label out of range: {found}; accepted are 0..{num_classes - 1}{also}. {cure}")


def _label_cure(mask: np.ndarray, values: list[int], num_classes: int, ignore_index: int | None) -> str:
    if values == [255] and num_classes <= 2:
        return "The mask looks like a 0/255 picture: write class 1 as 1, or set the model's ignore_index if 255 means no label."
    if values == [255]:
        return "255 usually marks pixels without a label: set ignore_index to 255."
    if values == [num_classes] and not (mask == 0).any():
        return "Labels seem to start at 1: set reduce_zero_label: true on the dataset."
    if values == [num_classes]:
        return (f"Label {num_classes} is one past the last class: if 0 means 'no label' set reduce_zero_label: true; if "
                f"{num_classes} means 'no label' set ignore_index to it; else a class is missing from the class list.")
    if len(values) > 20:
        return "So many values point to a picture instead of a mask, or to a mask saved as JPEG: give the index masks as PNG."
    return "The class list does not belong to these masks, or the raw dataset must be converted first (tools/convert_datasets)."


def _listing(names, counts, first, width: int) -> str:
    rows = [f"{name} at {count} pixel{'s' if count != 1 else ''}, first at row {place // width}, column {place % width}"
            for name, count, place in zip(names, counts, first)]
    more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return "; ".join(rows[:_SHOWN]) + more


def _colors_to_indices(rgb: np.ndarray, color_map: ColorMap, name: str) -> np.ndarray:
    weights = np.array([65536, 256, 1])
    known = np.array([np.dot(color, weights) for color in color_map])
    order = np.argsort(known)
    index = np.array(list(color_map.values()), dtype=np.int32)[order]
    known = known[order]
    code = (rgb[..., 0].astype(np.int32) << 16) | (rgb[..., 1].astype(np.int32) << 8) | rgb[..., 2]  # (H, W)
    place = np.minimum(np.searchsorted(known, code), len(known) - 1)
    lacking = known[place] != code
    if lacking.any():
        values, first, counts = np.unique(np.where(lacking, code, -1), return_index=True, return_counts=True)
        keep = values >= 0
        names = [f"({v >> 16}, {v >> 8 & 255}, {v & 255})" for v in values[keep]]
        raise DataError(f"{name}: colour not in the colour map: {_listing(names, counts[keep], first[keep], code.shape[1])}. "
                        f"Add it, or save the mask without smoothing or JPEG (known: {sorted(color_map)[:8]}...)")
    return index[place].astype(np.uint8 if index.min() >= 0 and index.max() <= 255 else np.int32)


def _content(source: str | os.PathLike | bytes, what: str) -> tuple[bytes, str]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), f"<{len(source)} bytes>"
    else:
        name = os.fspath(source)
        try:
            data = Path(name).read_bytes()
        except FileNotFoundError:
            raise DataError(f"{name}: no such {what}; check data_root, data_prefix and the suffixes") from None
        except OSError as error:
            raise DataError(f"{name}: cannot read the {what}: {error.strerror or error}") from error
    if not data:
        raise DataError(f"{name}: the {what} is empty (0 bytes); {_AGAIN}")
    return data, name


def imdecode(data: bytes, flags: int) -> np.ndarray | None:
    """OpenCV's decoder without its own lines on stderr: our error says all."""
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    level = set_level(0)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    finally:
        set_level(level)


def _opened(data: bytes) -> Image.Image:
    """Open with Pillow; pictures above its limit of 179 million pixels (aerial mosaics) are no attack here, up to OpenCV's of 2^30."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 1 << 30
    try:
        return Image.open(io.BytesIO(data))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _kind(data: bytes) -> str:
    """Name the format by its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    magic = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"II*\0": "tiff", b"MM\0*": "tiff", b"GIF8": "gif", b"BM": "bmp"}
    return next((kind for start, kind in magic.items() if data.startswith(start)), "other")


def _check_complete(data: bytes, kind: str, name: str) -> None:
    """Raise unless the end mark of a JPEG or PNG is there; the other formats' decoders notice missing bytes themselves."""
    if kind == "png" and data.rfind(b"IEND") < 0:
        raise DataError(f"{name}: the PNG file is truncated (it ends after {len(data)} bytes without its end chunk); {_AGAIN}")
    if kind == "jpeg" and data.rfind(b"\xff\xd9") < _scan_start(data):
        raise DataError(f"{name}: the JPEG file is truncated (it ends after {len(data)} bytes without its end mark); {_AGAIN}")


def _scan_start(data: bytes) -> int:
    """Where a JPEG's first scan starts: what lies before (an EXIF thumbnail) may hold an end mark of its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        if marker == 0xFF or 0xD0 <= marker <= 0xD7 or marker == 0x01:  # fill byte, restart, temporary: no length follows
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    return len(data)


def _grey_step(data: bytes) -> int:
    """What a decoder multiplies the samples of a 2- or 4-bit grey PNG by: 85 or 17; 1 for all other files."""
    if _kind(data) == "png" and len(data) > 25 and data[25] == 0:
        return {2: 85, 4: 17}.get(data[24], 1)
    return 1


def _tiff_mode(data: bytes) -> str:
    """Pillow's mode of a TIFF by its header; empty if Pillow does not know it."""
    try:
        with _opened(data) as picture:
            return picture.mode
    except Exception:  # a kind of TIFF that only OpenCV reads, or damage that the decoder will report
        return ""


def _image_by_pillow(data: bytes, name: str) -> np.ndarray:
    try:
        with _opened(data) as picture:
            picture.load()
            rgba = np.array(ImageOps.exif_transpose(picture).convert("RGBA"))  # (H, W, 4)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError and more
        raise _unreadable(name, error) from error
    return np.ascontiguousarray(rgba[..., 2::-1])


def _undecodable(data: bytes, name: str) -> DataError:
    """The error for a file of which OpenCV made no picture, with the reason that Pillow finds."""
    try:
        with _opened(data) as picture:
            picture.load()
            mode = picture.mode
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError and more
        return _unreadable(name, error)
    return DataError(f"{name}: OpenCV cannot decode this picture (mode {mode!r}): it is damaged or of a rare kind; {_AGAIN}, or "
                     "save it as 8-bit PNG or JPEG")


def _unreadable(name: str, error: Exception) -> DataError:
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{name}: not a picture in a known format, or cut off near its start; {_AGAIN}")
    return DataError(f"{name}: truncated or damaged ({error}); {_AGAIN}")


def _upright(img: np.ndarray, data: bytes) -> np.ndarray:
    """Turn a decoded picture by the EXIF orientation in its file, for formats where OpenCV does not."""
    with _opened(data) as picture:
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in (5, 6, 7, 8):
        img = img.transpose(1, 0, 2)  # (W, H, 3)
    if orientation in (3, 4, 7, 8):
        img = img[::-1]
    if orientation in (2, 3, 6, 7):
        img = img[:, ::-1]
    return np.ascontiguousarray(img)
