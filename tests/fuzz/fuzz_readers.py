"""The readers of files that strangers may have made, each as `read(path, out)`: the package's public functions, called
as its commands call them.
"""

from __future__ import annotations

import pathlib
import re
import warnings
from typing import Any, Callable, NamedTuple

import numpy as np

from jseg.config import load_config
from jseg.convert.pickle_data import load_pickle
from jseg.convert.py_config import read_py_config
from jseg.convert.torch_file import Tensor, read_torch_file
from jseg.data.header import PEAK_RATIO, PictureHeader, check_size
from jseg.data.io import read_image, read_mask
from jseg.data.prepare import Job, Settings, Strips, decode
from jseg.data.prepare.matfile import matrix
from jseg.data.prepare.nifti import read_nifti
from jseg.engine.model_file import open_model_file
from jseg.engine.video import VideoSource
from jseg.errors import DataError, JsegError
from jseg.files import read_regular

__all__ = ["READERS", "Reader"]

QUIET = Settings(workers=1, progress=False)


class Reader(NamedTuple):
    """A reader, the suffixes of its files (the first is that of files without a better one), and the bytes it states
    to need for a file.
    """

    read: Callable[[pathlib.Path, pathlib.Path], object]
    suffixes: tuple[str, ...]
    need: Callable[[pathlib.Path], int] = lambda path: 0


def picture_need(path: pathlib.Path) -> int:
    """Bytes that an allowed picture may take, as jseg.data.header states it; 0 for one that is not read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = PictureHeader.of(content(path))
        check_size(header, path.name)
        return PEAK_RATIO * header.decoded_bytes
    except Exception:  # no file, no picture, or too large
        return 0


def content(path: pathlib.Path) -> bytes:
    """The bytes of a regular file, for readers that take bytes."""
    try:
        return read_regular(path)
    except OSError as error:
        raise DataError(f"{path.name}: {error.strerror}") from error


def read_checkpoint(path: pathlib.Path, out: pathlib.Path) -> None:
    """Read a `.pth` or `.pkl` file and the values of all tensors in it."""
    todo, seen = [read_torch_file(path)], set()
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            value.numpy()
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo += value.values() if isinstance(value, dict) else value


def read_pickle(path: pathlib.Path, out: pathlib.Path) -> None:
    """Read a pickle as a checkpoint, and as plain data without handlers."""
    _all((lambda: read_checkpoint(path, out), lambda: load_pickle(content(path), {}, where=path.name)))


def read_picture(path: pathlib.Path, out: pathlib.Path) -> None:
    """Read a file as a picture, as a mask, and as converters read large ones, in strips of rows."""
    _all((lambda: read_image(path), lambda: read_mask(path), lambda: read_strips(path)))


def read_strips(path: pathlib.Path) -> None:
    """Decode a picture strip by strip."""
    for _ in Strips.read(content(path), path.name).strips:
        pass


def read_video(path: pathlib.Path, out: pathlib.Path) -> None:
    """Decode all frames; lost ones are a refusal, as the command's status 2 is."""
    with VideoSource(path) as source:
        for _ in source.frames():
            pass
        if lost := source.lost():
            raise DataError(lost)


def read_archive(path: pathlib.Path, out: pathlib.Path) -> None:
    """List an archive and read all members."""
    with Job("fuzz", path, out, {}, QUIET) as job:
        for name in job.source.names:
            job.source.head(name)
            job.source.read(name)


def read_matlab(path: pathlib.Path, out: pathlib.Path) -> None:
    """Read the two forms in which datasets hold masks."""
    with Job("fuzz", path, out, {}, QUIET) as job:
        data = job.source.read(job.source.find(re.escape(path.name), "masks")[()])
    _all((lambda: decode(lambda content: matrix(content, "S"), data, path.name),
          lambda: decode(lambda content: matrix(content, "GTcls", "Segmentation"), data, path.name)))


def read_volume(path: pathlib.Path, out: pathlib.Path) -> None:
    """Read a NIfTI volume and compute all its slices."""
    with Job("fuzz", path, out, {}, QUIET) as job:
        volume = read_nifti(job.source.read(job.source.find(re.escape(path.name), "scans")[()]), path.name)
    for index in range(volume.shape[-1]):
        np.clip(volume.slice(index), 0, 1)


def _all(readers: tuple[Callable[[], Any], ...]) -> None:
    """Call all of them; the first refusal is raised when all were tried."""
    refused: list[JsegError] = []
    for read in readers:
        try:
            read()
        except JsegError as error:
            refused.append(error)
    if refused:
        raise refused[0]


READERS: dict[str, Reader] = {
    "pth": Reader(read_checkpoint, ("pth", "pt")),
    "pkl": Reader(read_pickle, ("pkl",)),
    "safetensors": Reader(lambda path, out: open_model_file(path), ("safetensors",)),
    "py": Reader(lambda path, out: read_py_config(path), ("py",)),
    "yaml": Reader(lambda path, out: load_config(path), ("yaml", "yml")),
    **{kind: Reader(read_picture, (kind,), picture_need) for kind in ("png", "jpg", "gif", "tif", "webp")},
    "mp4": Reader(read_video, ("mp4", "avi")),
    "zip": Reader(read_archive, ("zip",)),
    "tar": Reader(read_archive, ("tar", "tgz", "tar.gz", "tar.bz2", "tar.xz")),
    "mat": Reader(read_matlab, ("mat",)),
    "nii": Reader(read_volume, ("nii", "nii.gz")),
}
