"""Read and write video files without losing frames silently: sources say how many they hold, results are read back.

The rule for a damaged or cut source: every frame that its decoder gives is used, in order, and `VideoSource.lost` says
in words what the file names beyond them.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
from typing import Iterator

import cv2
import numpy as np

from jseg import runtime_signals
from jseg.data.decode import quiet_opencv, tell_of_decoding
from jseg.data.header import PictureHeader, check_size
from jseg.errors import DataError, WriteError
from jseg.files import drop_drafts, open_regular

__all__ = ["VIDEO_SUFFIXES", "VideoSource", "VideoFile"]

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
_COUNTED = (".mp4", ".avi", ".mov", ".m4v")  # these list their frames; others tell a duration only
_USUAL_RATE, _HIGHEST_RATE = 25.0, 1000.0
_SPARE_BYTES = 1 << 16  # free space below which a writer cannot go on
_LOOK_EVERY = 25  # frames between two looks at the free space
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own lines: what is wrong is said here


class VideoSource:
    """The frames of a video file, once, in order.

    Args:
        path: a regular file with one of VIDEO_SUFFIXES.
    Attributes:
        rate: frames per second, above 0.
        expected: frames that the file names (estimated from its duration where the format does not list them), or None.
        read: frames given so far.
    Raises:
        DataError: missing, no regular file, no video, or frames beyond the limit on pixels.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        try:
            with open_regular(path, what="video file") as file:
                head = file.read(16)
        except OSError as error:
            raise DataError(
                f"{path}: cannot read the video: {error.strerror or error}", kind="unreadable", path=str(path)
            ) from error
        if head and head[:4] != b"RIFF" and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
            # FFmpeg takes texts for playlists, whose files and addresses it would open
            raise DataError(f"{path}: not a video but a text", kind="unreadable", path=str(path))
        self._capture = _opened(self.path)
        rate, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 0 < rate <= _HIGHEST_RATE else _USUAL_RATE
        self.expected = int(count) if 0 < count < 1 << 40 else None
        self.read = 0
        self._seconds = 0.0  # where the last frame ended
        size = [int(self._capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        try:
            check_size(PictureHeader("video", *(max(side, 0) for side in size), channels=3), str(path))
        except DataError:
            self.close()
            raise

    def frames(self) -> Iterator[np.ndarray]:
        """Yield each frame as (H, W, 3) uint8 BGR; DataError when there is not one."""
        while True:
            tell_of_decoding()
            more, frame = self._capture.read()
            if not more:
                break
            self.read += 1
            self._seconds = max(self._seconds, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 + 1 / self.rate)
            yield frame
        if not self.read:
            raise DataError(
                f"{self.path}: no frames could be read (unknown codec, truncated, or not a video)",
                kind="unreadable",
                path=str(self.path),
            )

    def lost(self) -> str:
        """After the last frame: what is missing, in words; empty when all frames came."""
        if self.expected is None or self.read >= self.expected:
            return ""
        if self.path.suffix.lower() in _COUNTED:
            return f"{self.read} of {self.expected} frames could be read: the file is cut off or damaged"
        seconds = self.expected / self.rate
        if self._seconds < seconds - max(1.0, 0.02 * seconds):
            return (
                f"{self.read} of about {self.expected} frames could be read ({self._seconds:.1f} of {seconds:.1f}"
                " seconds): the file is cut off or damaged"
            )
        return ""  # frames at uneven times: fewer than the duration suggests

    def close(self) -> None:
        """Let the file go."""
        self._capture.release()

    def __enter__(self) -> "VideoSource":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


class VideoFile:
    """An MP4 file (MPEG-4 part 2) that gets its name only when all its frames have been read back.

    Used as a context: leaving it by an exception, or without `finish_file`, removes what was written.

    Args:
        path: where; a file in the way is replaced at the end. The folder must exist.
        rate: frames per second.
    """

    def __init__(self, path: str | os.PathLike, rate: float):
        self.path = pathlib.Path(path)
        self.count = 0
        drop_drafts(self.path.parent, self.path.name)
        self._draft = self.path.with_name(
            f".{self.path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}{self.path.suffix}"
        )
        self._rate, self._writer, self._size = rate, None, (0, 0)

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8 BGR; one of another size than the first is scaled to it.

        Raises:
            WriteError: no video can be written there, or the disk is full.
        """
        if self._writer is None:
            self._size = frame.shape[1], frame.shape[0]
            self._writer = cv2.VideoWriter(str(self._draft), cv2.VideoWriter_fourcc(*"mp4v"), self._rate, self._size)
            if not self._writer.isOpened():
                raise WriteError(
                    f"{self.path}: cannot write a video of {self._size[0]}x{self._size[1]} pixels and {self._rate:g}"
                    " frames per second there"
                )
        if (frame.shape[1], frame.shape[0]) != self._size:
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        if self.count % _LOOK_EVERY == 0 and shutil.disk_usage(self.path.parent).free < _SPARE_BYTES:
            raise self._unwritten(f"the disk is full after {self.count} frames")
        self._writer.write(frame)
        self.count += 1

    def finish_file(self) -> None:
        """Close the file, read it back, and give it its name.

        Raises:
            WriteError: not all frames are in it (OpenCV does not say when the disk is full).
        """
        self._release()
        found = _count_frames(self._draft)
        if found != self.count:
            raise self._unwritten(f"{found} of {self.count} frames are in the file")
        try:
            with open(self._draft, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self._draft, self.path)
        except OSError as error:
            raise self._unwritten(error.strerror or str(error)) from error

    def _unwritten(self, why: str) -> WriteError:
        return WriteError(
            f"{self.path}: the video cannot be written ({why}); free disk space or give another --out. What was there"
            " before is untouched"
        )

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def __enter__(self) -> "VideoFile":
        self._removal = contextlib.ExitStack()
        self._removal.enter_context(runtime_signals.temporary_file(self._draft))  # also where a signal ends the process
        return self

    def __exit__(self, *exc_info) -> None:
        with self._removal:
            self._release()


def _opened(path: pathlib.Path) -> cv2.VideoCapture:
    with quiet_opencv():
        return cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)


def _count_frames(path: pathlib.Path) -> int:
    """Decode a video file to its end; 0 where it cannot be opened."""
    capture = _opened(path)
    try:
        count = 0
        while capture.grab():
            count += 1
        return count
    finally:
        capture.release()
