"""The one place where pictures are segmented, one after the other: a short queue, and what is made of each picture.

Jittor computes in the thread that loaded the model, so `Desk.work` runs there; the server's threads call `Desk.ask` and
wait. Decoding and encoding have their turn here too, so that only one picture at a time is in memory decoded.
"""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import time
import traceback
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from typing import Callable, NamedTuple, Sequence

import numpy as np

from jseg.data.bands import read_bands
from jseg.data.io import encode_image, read_image
from jseg.data.regions import geojson_file
from jseg.engine.memory import Pool, fix_heap, give_back
from jseg.engine.predict import InferenceSegmentor, probability_picture
from jseg.errors import DataError, ExportError, JsegError

__all__ = ["KINDS", "MOST_REGIONS", "Desk", "Refused", "Reply", "Wish", "summary_of"]

KINDS = {"labels": "image/png", "overlay": "image/png", "probability": "image/png", "polygons": "application/geo+json"}
MOST_REGIONS = 50_000  # a picture of noise would else give millions
_STATUS = {"limit": 413, "samples": 415}  # by kind of a DataError; all others are 400


class Refused(Exception):
    """A request gets no picture: the HTTP status, and why."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Wish(NamedTuple):
    """What a client asks for.

    Attributes:
        kinds: of `KINDS`.
        as_json: one JSON object with a summary and, inside it, `kinds`; else the file of the only kind.
        opacity, outlines, legend: of the overlay.
        min_area: pixels of the smallest region that gets a polygon.
    """

    kinds: tuple[str, ...]
    as_json: bool
    opacity: float = 0.5
    outlines: bool = True
    legend: bool = False
    min_area: int = 1


class Reply(NamedTuple):
    """The content of an answer, its MIME type, and how long the picture took."""

    content: bytes
    type: str
    ms: float


class _Job(NamedTuple):
    data: bytes
    wish: Wish
    is_gone: Callable[[], bool]
    future: Future


class Desk:
    """Where requests wait for the model.

    Args:
        segmentor: answers in the thread that calls `work`, which is the one that made it.
        places: how many requests may wait.
        timeout_s: longest wait in seconds, until the work on a picture begins.
    """

    def __init__(self, segmentor: InferenceSegmentor, *, places: int, timeout_s: float):
        self.segmentor, self.timeout_s = segmentor, timeout_s
        self.done, self._jobs = 0, queue.Queue(places)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return self._jobs.qsize()

    def warm_up(self) -> None:
        """Segment a small picture, so that the first client does not wait for what is compiled at first use."""
        fix_heap()
        bands = self.segmentor.bands
        picture = np.zeros((64, 64, bands.channels if bands else 3), np.uint8)
        with contextlib.suppress(JsegError):  # an exported model may take one size only
            _segmented(self.segmentor, picture, ("polygons",))

    def ask(self, data: bytes, wish: Wish, is_gone: Callable[[], bool] = lambda: False) -> Reply:
        """Segment the picture in `data` when its turn comes; called by any thread.

        Args:
            data: the content of a picture file.
            is_gone: whether the client left, which saves the work.
        Raises:
            Refused: not a picture, too large, too many wait, its turn did not come in time.
        """
        job = _Job(data, wish, is_gone, Future())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Refused(503, f"busy: {self._jobs.maxsize} pictures wait already; try again later") from None
        try:
            return job.future.result(self.timeout_s)
        except LateError:
            if job.future.cancel():
                raise Refused(503, f"busy: the picture's turn did not come within {self.timeout_s:g} s; try again later"
                              ) from None
        return job.future.result()  # the work had begun

    def work(self) -> None:
        """Answer one request after the other, until `close`."""
        pool = Pool()
        while (job := self._jobs.get()) is not None:
            if job.future.set_running_or_notify_cancel():
                self._answer(job)
                self.done += 1
            if pool.check() or not self.waiting:
                give_back()

    def close(self) -> None:
        """Let `work` return after what waits."""
        self._jobs.put(None)

    def _answer(self, job: _Job) -> None:
        try:
            if job.is_gone():
                raise Refused(400, "the client left")
            job.future.set_result(_reply(self.segmentor, job.data, job.wish))
        except Refused as error:
            job.future.set_exception(error)
        except JsegError as error:
            kind = error.kind if isinstance(error, DataError) else ""
            job.future.set_exception(Refused(_STATUS.get(kind, 400), self._without_names(str(error), job.data)))
        except MemoryError:
            job.future.set_exception(Refused(413, "the picture needs more memory than there is"))
        except Exception:  # one bad picture must not end the server; the fault is ours and is printed
            traceback.print_exc()
            job.future.set_exception(Refused(500, "the server failed on this picture; its terminal says how"))

    def _without_names(self, text: str, data: bytes) -> str:
        """A message without where the model lies, and without what readers call bytes."""
        path = self.segmentor.path
        return text.replace(f"<{len(data)} bytes>: ", "").replace(str(path), path.name)


def _reply(segmentor: InferenceSegmentor, data: bytes, wish: Wish) -> Reply:
    began = time.perf_counter()
    picture = (read_bands(data, layout=segmentor.bands.layout) if segmentor.bands
               else read_image(data, scale=segmentor.scale))
    labels, probability = _segmented(segmentor, picture, wish.kinds)
    makers = {
        "labels": lambda: segmentor.encode_labels(labels),
        "overlay": lambda: encode_image(segmentor.overlay(picture, labels, opacity=wish.opacity, legend=wish.legend,
                                                          outlines=wish.outlines)),
        "probability": lambda: encode_image(probability_picture(probability)),
    }
    made = {kind: makers[kind]() for kind in wish.kinds if kind in makers}
    if not wish.as_json and wish.kinds[0] in made:
        return Reply(made[wish.kinds[0]], KINDS[wish.kinds[0]], _ms_since(began))
    answer = {kind: base64.b64encode(content).decode() for kind, content in made.items()}
    polygons = {}
    if "polygons" in wish.kinds:
        least = max(wish.min_area, -(-labels.size // MOST_REGIONS))
        regions = segmentor.regions(labels, probability, min_pixels=least)
        polygons = {**geojson_file(regions, segmentor.classes, segmentor.palette), "min_area": least}
    summary = {**summary_of(segmentor, labels), "ms": _ms_since(began)}
    if wish.as_json:
        answer = {**summary, **answer, **({"polygons": polygons} if polygons else {})}
    else:
        answer = {**polygons, **summary}
    content = json.dumps(answer, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
    return Reply(content, "application/json" if wish.as_json else KINDS["polygons"], summary["ms"])


def _segmented(segmentor: InferenceSegmentor, picture: np.ndarray,
               kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels and, where `kinds` use it, their probability."""
    if {"probability", "polygons"}.isdisjoint(kinds):
        return segmentor.infer(picture), None
    try:
        return segmentor.infer(picture, with_prob=True)
    except ExportError:  # a file of labels alone gives polygons without scores
        if "probability" in kinds:
            raise
    return segmentor.infer(picture), None


def summary_of(segmentor: InferenceSegmentor, labels: np.ndarray) -> dict:
    """Size, classes with their colours, and what each covers, of (H, W) labels."""
    counts = np.bincount(labels.ravel(), minlength=len(segmentor.classes))[:len(segmentor.classes)]
    return {"width": labels.shape[1], "height": labels.shape[0], "classes": list(segmentor.classes),
            "palette": np.asarray(segmentor.palette).tolist(), "pixels": counts.tolist(),
            "shares": [round(share, 6) for share in (counts / labels.size).tolist()]}


def _ms_since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 1)
