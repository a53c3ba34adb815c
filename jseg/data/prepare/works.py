"""What converters do with one picture: copy or re-encode it beside its masks, or cut it into tiles.
For use as `Item.work`.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Callable, Iterable, Sequence

import numpy as np

from jseg.data.io import check_pair, read_image
from jseg.data.prepare.archives import Source
from jseg.data.prepare.manifest import Item, Writer
from jseg.data.prepare.parallel import claim
from jseg.data.prepare.strips import Strips, decode, needs
from jseg.data.prepare.tiles import Tiling, bands, pad_to

__all__ = ["convert_pair", "copy_file", "copy_picture", "cut_pair", "pair_items"]

Label = Callable[[bytes, str], np.ndarray]


def convert_pair(item: Item, source: Source, writer: Writer, *, label: Label, palette: Sequence | None = None,
                 size: tuple[int, int] | None = None) -> None:
    """Write a picture and its masks.

    `item.inputs` are the picture and any number of masks; `item.values` the names to write them under, "" to leave one
    out. A picture is copied byte for byte unless its suffix changes or `size` is given; it is decoded in any case, so
    that damage is found now.

    Args:
        label: reads a mask from (bytes, name) as (H, W) indices.
        palette: (r, g, b) per index for viewers.
        size: (height, width) to which picture (area average) and masks (nearest) are resized.
    """
    (picture, *masks), (picture_name, *mask_names) = item.inputs, item.values
    data = source.read(picture)
    img = decode(read_image, data, source.label(picture))
    labels = [label(source.read(mask), source.label(mask)) for mask in masks]
    for mask, name in zip(labels, masks):
        check_pair(img, mask, source.label(picture), source.label(name))
    if picture_name and (size or _suffix(picture) != _suffix(picture_name)):
        writer.image(picture_name, _resized(img, size, area=True))
    elif picture_name:
        writer.copy(picture_name, source, picture, data)
    for mask, name in zip(labels, mask_names):
        writer.mask(name, _resized(mask, size, area=False), palette)


def cut_pair(item: Item, source: Source, writer: Writer, *, tiling: Tiling, label: Label | None = None,
             pad: tuple[int, int] | None = None, palette: Sequence | None = None) -> None:
    """Cut a picture and its mask into tiles; `item.values` are name patterns with `{box.top}`,
    `{box.bottom}`, `{box.left}`, `{box.right}`.

    Args:
        tiling: where the tiles lie.
        label: reads the mask; None if the item has none.
        pad: (value for pictures, for masks) that fills up what is smaller than a tile; None leaves such tiles small.
        palette: (r, g, b) per index for viewers.
    """
    picture, *masks = item.inputs
    with claim(memory_for(source, item.inputs)):
        # first: the colours are given back before the picture comes
        mask = label(source.read(masks[0]), source.label(masks[0])) if masks else None
        img = Strips.read(source.read(picture), source.label(picture))
        if mask is not None:
            check_pair(np.broadcast_to(np.uint8(0), (img.height, img.width)), mask, source.label(picture),
                       source.label(masks[0]))
        height, width = (img.height, img.width) if pad is None else (max(img.height, tiling.height),
                                                                     max(img.width, tiling.width))
        rows = [list(boxes) for _, boxes in itertools.groupby(tiling.boxes(height, width), key=lambda box: box.top)]
        spans = [(boxes[0].top, min(boxes[0].bottom, img.height)) for boxes in rows]
        for boxes, span, band in zip(rows, spans, bands(img.strips, spans)):
            labels = None if mask is None else mask[slice(*span)]
            if pad is not None:
                band = pad_to(band, tiling.height, tiling.width, pad[0])
                labels = None if labels is None else pad_to(labels, tiling.height, tiling.width, pad[1])
            for box in boxes:
                writer.image(item.values[0].format(box=box), np.ascontiguousarray(band[:, box.left:box.right]))
                if labels is not None:
                    writer.mask(item.values[1].format(box=box), labels[:, box.left:box.right], palette)
        for _ in img.strips:  # to the file's end: its last checksum
            pass


def memory_for(source: Source, inputs: Sequence[str]) -> int:
    """Bytes that cutting a picture with its mask takes: the indices, and a file with what decoding it takes."""
    files = [(source.entry(name).size, *needs(source.head(name), source.entry(name).size)) for name in inputs]
    return max(pixels for _, pixels, _ in files) + max(size + decoding for size, _, decoding in files)


def copy_file(item: Item, source: Source, writer: Writer) -> None:
    """Copy the one input to the one name of `item.values`, unread."""
    writer.copy(item.values[0], source, item.inputs[0], source.read(item.inputs[0]))


def copy_picture(item: Item, source: Source, writer: Writer) -> None:
    """Copy a picture without mask, byte for byte, after it was decoded, so that damage is found now."""
    name = item.inputs[0]
    data = source.read(name)
    for _ in Strips.read(data, source.label(name)).strips:
        pass
    writer.copy(item.values[0], source, name, data)


def pair_items(pairs: Iterable[tuple[tuple[str, ...], tuple[str, ...]]], work: Callable, **options) -> list[Item]:
    """Make an item of each (inputs, names to write); the item is called by its last input."""
    work = partial(work, **options) if options else work
    return [Item(inputs[-1], work, tuple(inputs), tuple(values)) for inputs, values in pairs]


def _suffix(name: str) -> str:
    return "." + name.rsplit(".", 1)[-1].lower().replace("jpeg", "jpg")


def _resized(array: np.ndarray, size: tuple[int, int] | None, area: bool) -> np.ndarray:
    import cv2
    if size is None or array.shape[:2] == tuple(size):
        return array
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_AREA if area else cv2.INTER_NEAREST_EXACT)
