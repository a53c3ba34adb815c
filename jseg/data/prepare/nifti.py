"""Read a NIfTI-1 volume (.nii, .nii.gz) without nibabel: what the Synapse abdomen scans need.

Format: nifti.nimh.nih.gov, NIfTI-1.1; values are `slope * stored + intercept`.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from jseg.errors import DataError

__all__ = ["Volume", "read_nifti"]

MOST_PLANE = 1 << 24  # values of one slice; scans have 512 x 512

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


class Volume:
    """A volume whose values are computed slice by slice, so that one of 512 x 512 x 500 takes no more memory than its
    file.

    Attributes:
        shape: axes as stored, (X, Y, Z) for a scan.
    """

    def __init__(self, stored: np.ndarray, slope: float, intercept: float):
        self._stored, self._slope, self._intercept = stored, slope, intercept
        self.shape: tuple[int, ...] = stored.shape

    def slice(self, index: int) -> np.ndarray:
        """Values at `index` of the last axis as float64: (X, Y) of a scan."""
        plane = self._stored[..., index].astype(np.float64)
        scaled = math.isfinite(self._slope) and self._slope != 0
        return plane * self._slope + self._intercept if scaled and (self._slope, self._intercept) != (1, 0) else plane

    def values(self) -> np.ndarray:
        """All values, float64."""
        return np.stack([self.slice(index) for index in range(self.shape[-1])], axis=-1)


def read_nifti(data: bytes, name: str) -> Volume:
    """Return the volume in a file.

    Args:
        data: the decompressed file.
        name: for messages.
    Raises:
        DataError: not a single-file NIfTI-1 volume, an unknown sample type, absurd axes, or truncated.
    """
    orders = [order for order in "<>" if len(data) >= 352 and struct.unpack_from(order + "i", data)[0] == 348]
    if not orders or data[344:348] != b"n+1\0":
        raise DataError(f"{name}: not a NIfTI-1 file (.nii), or cut off; download it again")
    order = orders[0]
    count, *dims = struct.unpack_from(order + "8h", data, 40)
    kind = struct.unpack_from(order + "h", data, 70)[0]
    offset, slope, intercept = struct.unpack_from(order + "3f", data, 108)
    shape = tuple(dims[:max(count, 0)])
    if kind not in _TYPES or not 1 <= count <= 7 or min(shape) < 1:
        raise DataError(f"{name}: NIfTI sample type {kind} with shape {shape} is not known; accepted are integers and "
                        "floats")
    if not 352 <= offset <= len(data) or offset != int(offset):
        raise DataError(f"{name}: damaged: its values begin at byte {offset:g} of {len(data)}; download it again")
    if (plane := math.prod(shape[:-1])) > MOST_PLANE:
        raise DataError(f"{name}: a slice has {plane} values (shape {shape}); accepted are up to {MOST_PLANE}")
    if not math.isfinite(intercept):
        raise DataError(f"{name}: damaged: its values are scaled by {slope:g} and {intercept:g}; download it again")
    dtype = np.dtype(order + _TYPES[kind])
    size = math.prod(shape)
    if len(data) < int(offset) + size * dtype.itemsize:
        raise DataError(f"{name}: truncated: {len(data)} of {int(offset) + size * dtype.itemsize} bytes; download it "
                        "again")
    return Volume(np.frombuffer(data, dtype, size, int(offset)).reshape(shape, order="F"), slope, intercept)
