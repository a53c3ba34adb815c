"""Read a NIfTI-1 volume (.nii, .nii.gz) without nibabel: what the Synapse abdomen scans need.

Format: nifti.nimh.nih.gov, NIfTI-1.1; values are `slope * stored + intercept`.
"""

from __future__ import annotations

import struct

import numpy as np

from jseg.errors import DataError

__all__ = ["read_nifti"]

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


def read_nifti(data: bytes, name: str) -> np.ndarray:
    """Return the volume as float64 with its axes as stored, (X, Y, Z) for a scan.

    Args:
        data: the decompressed file.
        name: for messages.
    Raises:
        DataError: not a single-file NIfTI-1 volume, an unknown sample type, or truncated.
    """
    orders = [order for order in "<>" if len(data) >= 352 and struct.unpack_from(order + "i", data)[0] == 348]
    if not orders or data[344:348] != b"n+1\0":
        raise DataError(f"{name}: not a NIfTI-1 file (.nii), or cut off; download it again")
    order = orders[0]
    count, *dims = struct.unpack_from(order + "8h", data, 40)
    kind = struct.unpack_from(order + "h", data, 70)[0]
    offset, slope, intercept = struct.unpack_from(order + "3f", data, 108)
    shape = tuple(dims[:count])
    if kind not in _TYPES or not 1 <= count <= 7 or min(shape) < 1:
        raise DataError(f"{name}: NIfTI sample type {kind} with shape {shape} is not known; accepted are integers and floats")
    dtype = np.dtype(order + _TYPES[kind])
    size = int(np.prod(shape))
    if len(data) < int(offset) + size * dtype.itemsize:
        raise DataError(f"{name}: truncated: {len(data)} of {int(offset) + size * dtype.itemsize} bytes; download it again")
    volume = np.frombuffer(data, dtype, size, int(offset)).reshape(shape, order="F").astype(np.float64)
    scaled = np.isfinite(slope) and slope != 0
    return volume * slope + intercept if scaled and (slope, intercept) != (1, 0) else volume
