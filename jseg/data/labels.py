"""What the labels of a mask may be: classes and one value that means "ignore"; anything else is an error that carries
what it found."""

from __future__ import annotations

from typing import Iterable, Mapping, Sequence

import numpy as np

from jseg.errors import DataError

__all__ = ["LabelError", "check_labels", "listing", "void_cure"]

_SHOWN = 5  # offending values or colours listed in one message


class LabelError(DataError):
    """A mask holds what is neither a class nor ignored.

    Attributes:
        values: label -> pixels of what does not belong.
    """

    def __init__(self, text: str, values: Mapping[int, int] | None = None, *, path: str = ""):
        super().__init__(text, kind="label", path=path)
        self.values = dict(values or {})


def check_labels(mask: np.ndarray, num_classes: int, ignore_index: int | None, path: str) -> None:
    """Raise a LabelError if a mask holds a label that is neither a class nor the ignored one.

    Args:
        mask: (H, W) integer labels, as training would use them (the zero label reduced, classes mapped).
        num_classes: classes are 0..num_classes - 1.
        ignore_index: the one other label allowed; None allows none.
        path: the mask's file, for the message.
    Raises:
        LabelError: names the file, each offending value (at most 5) with its count and first place, and the likely
            cure.
    """
    bad = mask >= num_classes
    if mask.dtype.kind == "i":
        bad |= mask < 0
    if ignore_index is not None:
        bad &= mask != ignore_index
    if not bad.any():
        return
    values, first, counts = np.unique(np.where(bad, mask.astype(np.int64), -1 << 40), return_index=True,
                                      return_counts=True)
    keep = values != -1 << 40
    values, first, counts = values[keep], first[keep], counts[keep]
    cure = _cure(mask, [int(v) for v in values], num_classes, ignore_index)
    also = "" if ignore_index is None else f" and {ignore_index} (ignored)"
    raise LabelError(f"{path}: label out of range: {listing(map(str, values), counts, first, mask.shape[1])}; accepted "
                     f"are 0..{num_classes - 1}{also}. {cure}", dict(zip(values.tolist(), counts.tolist())), path=path)


def void_cure(value: int, ignored: int = 255) -> str:
    """How to say that a value in the masks means "no label"; the setting has three places, or one."""
    return (f"set ignore_index: {value} on the dataset and on every head, and data_preprocessor.seg_pad_val: {value} "
            f"(or, on the dataset "
            f"alone, label_map: {{{value}: {ignored}}})")


def _cure(mask: np.ndarray, values: list[int], num_classes: int, ignore_index: int | None) -> str:
    ignored = 255 if ignore_index is None else ignore_index
    if len(values) == 1 and num_classes == 2 and values[0] > 2 and not (mask == 1).any():
        kind = "a 0/255 picture" if values == [255] else f"one of two values, 0 and {values[0]}"
        return (f"The mask looks like {kind}: write class 1 as 1, or set label_map: {{{values[0]}: 1}} on the dataset; "
                f"if {values[0]} means "
                f"no label, {void_cure(values[0], ignored)}.")
    if values == [255]:
        return f"255 usually marks pixels without a label: {void_cure(255, ignored)}."
    if values == [num_classes] and not (mask == 0).any():
        return "Labels seem to start at 1: set reduce_zero_label: true on the dataset."
    if values == [num_classes]:
        return (f"Label {num_classes} is one past the last class: if 0 means 'no label' set reduce_zero_label: true; "
                f"if {num_classes} means 'no label' {void_cure(num_classes, ignored)}; "
                "else a class is missing from the class list.")
    if len(values) > 20:
        return ("So many values point to a picture instead of a mask, or to a mask saved as JPEG: "
                "give the index masks as PNG.")
    return ("The class list does not belong to these masks, or the raw dataset must be converted first "
            "(tools/convert_datasets).")


def listing(names: Iterable[str], counts: Sequence[int], first: Sequence[int], width: int) -> str:
    """Name at most five values with their counts and first places; `first` counts pixels row by row, `width` per
    row."""
    rows = [f"{name} at {count} pixel{'s' if count != 1 else ''}, first at row {place // width}, column {place % width}"
            for name, count, place in zip(names, counts, first)]
    more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return "; ".join(rows[:_SHOWN]) + more
