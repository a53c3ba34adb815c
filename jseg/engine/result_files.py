"""The files of a prediction: labels, overlays, probabilities and polygons in their formats, benchmark submissions."""

from __future__ import annotations

import io
import json
import pathlib
from typing import Any, NamedTuple, Sequence

import numpy as np

from jseg.data.geo import write_raster
from jseg.data.io import write_mask
from jseg.data.regions import coco_annotation, coco_file, geojson_file
from jseg.data.submission import submission_ids, submission_name
from jseg.errors import ConfigError
from jseg.files import write_atomically
from jseg.registry import nearest

__all__ = ["KINDS", "SETS", "Answer", "Look", "ResultFiles", "parse_kinds", "parse_types"]

# what can be written -> file types, the default first
KINDS = {"labels": ("png", "npy", "tif"), "overlay": ("png", "jpg"), "probability": ("png", "npy", "tif"),
         "probabilities": ("npy", "tif"), "logits": ("npy", "tif"), "polygons": ("geojson", "coco")}
SETS = {"both": ("overlay", "labels"), "all": ("overlay", "labels", "probability")}
COCO_NAME = "coco.json"


class Answer(NamedTuple):
    """What the model says of one picture: labels (H, W), their probability, scores (K, H, W) by kind."""

    labels: np.ndarray
    probability: np.ndarray | None
    scores: dict[str, np.ndarray]


class Look(NamedTuple):
    """How overlays look: opacity 0 to 1, with outlines, with a legend below."""

    opacity: float = 0.5
    outlines: bool = True
    legend: bool = True


def parse_kinds(text: str) -> tuple[str, ...]:
    """Read a list such as "labels,polygons" of `KINDS` and `SETS`.

    Raises:
        ValueError: an unknown word.
    """
    found: dict[str, None] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word not in KINDS and word not in SETS:
            known = [*KINDS, *SETS]
            raise ValueError(f"unknown result {word!r}{nearest(word, known)} (known: {', '.join(known)})")
        found.update(dict.fromkeys(SETS.get(word, (word,))))
    if not found:
        raise ValueError(f"no result is named; known: {', '.join([*KINDS, *SETS])}")
    return tuple(found)


def parse_types(text: str, kinds: Sequence[str]) -> dict[str, str]:
    """The file type of each kind: its default, or the one that a list such as "npy,coco" names for it.

    Raises:
        ConfigError: a type that none of the kinds can have, or two for one kind.
    """
    types = {kind: KINDS[kind][0] for kind in kinds}
    chosen: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        takers = [kind for kind in kinds if word in KINDS[kind]]
        if not takers:
            can = "; ".join(f"{kind}: {', '.join(KINDS[kind])}" for kind in kinds)
            raise ConfigError(f"--as {word}: none of the results is written so ({can})")
        for kind in takers:
            if kind in chosen and len(takers) == 1:
                raise ConfigError(f"--as {text}: two file types for {kind}; give one")
            chosen.setdefault(kind, word)
    return {**types, **chosen}


class ResultFiles:
    """Asks a model for what is to be written, and writes it.

    Args:
        segmentor: an `InferenceSegmentor`.
        folder: an existing folder.
        types: file type by kind, from `parse_types`; empty with `form`.
        look: of overlays.
        thresholds: see `InferenceSegmentor.infer`.
        min_pixels: smaller regions get no polygon.
        form: write the submission of this benchmark instead (a key of `SUBMISSIONS`).
    """

    def __init__(self, segmentor, folder: pathlib.Path, types: dict[str, str], *, look: Look = Look(),
                 thresholds: Any = None, min_pixels: int = 1, form: str | None = None):
        self.segmentor, self.folder, self.types, self.look = segmentor, folder, types, look
        self.thresholds, self.min_pixels, self.form = thresholds, min_pixels, form
        self.tiled = False  # rasters are segmented in blocks
        self.coco: list[tuple[int, str, tuple[int, int], list[dict]]] = []  # (order, picture, size, annotations)

    def ask(self, pictures: list) -> list[Answer]:
        """What the files need of each of some pictures, as `InferenceSegmentor.infer` takes them. Scores of all classes
        cost a second run of the network."""
        infer, size = self.segmentor.infer, len(pictures)
        with_prob = "probability" in self.types or "polygons" in self.types
        found = infer(pictures, with_prob=with_prob, thresholds=self.thresholds, batch_size=size)
        scores = {kind: infer(pictures, **{kind: True}, batch_size=size) for kind in ("probabilities", "logits")
                  if kind in self.types}
        return [Answer(*(result if with_prob else (result, None)), {kind: maps[i] for kind, maps in scores.items()})
                for i, result in enumerate(found)]

    def write(self, answer: Answer, path: pathlib.Path, name: str, order: int) -> list[pathlib.Path]:
        """Write everything of one picture; returns the files.

        Args:
            path: the picture's file.
            name: what the results' names begin with.
            order: the picture's place among all, for the one COCO file.
        """
        if self.form:
            file = self.folder / submission_name(path.stem)
            write_mask(file, submission_ids(answer.labels, self.form))
            return [file]
        written = []
        for kind, ending in sorted(self.types.items()):
            written.append(self.folder / (COCO_NAME if ending == "coco" else f"{name}_{kind}.{ending}"))
            self._write(kind, ending, written[-1], answer, path, order)
        return written

    def _write(self, kind: str, ending: str, file: pathlib.Path, answer: Answer, path: pathlib.Path,
               order: int) -> None:
        segmentor = self.segmentor
        arrays = {"labels": answer.labels, "probability": answer.probability, **answer.scores}
        if ending == "npy":
            _write_array(file, arrays[kind])
        elif ending == "tif":
            write_raster(file, arrays[kind], path, segmentor.palette if kind == "labels" else None)
        elif kind == "labels":
            segmentor.save_labels(answer.labels, file)
        elif kind == "probability":
            segmentor.save_probability(answer.probability, file)
        elif kind == "overlay":
            segmentor.save_overlay(path, answer.labels, file, **self.look._asdict())
        else:
            regions = segmentor.regions(answer.labels, answer.probability, min_pixels=self.min_pixels)
            size = answer.labels.shape
            if ending == "coco":
                self.coco.append((order, path.name, size, [coco_annotation(r, size, polygons=True) for r in regions]))
            else:
                content = geojson_file(regions, segmentor.classes, segmentor.palette)
                write_atomically(file, _json(content), durable=False)

    def write_coco(self, pictures: Sequence[tuple[int, str, tuple[int, int], list[dict]]]) -> None:
        """Write the one COCO file of all pictures, those of other ranks too, in their order."""
        content = coco_file([entry[1:] for entry in sorted(pictures, key=lambda entry: entry[0])],
                            self.segmentor.classes)
        write_atomically(self.folder / COCO_NAME, _json(content), durable=False)


def _json(content: dict) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


def _write_array(file: pathlib.Path, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all, without a second copy in memory."""
    array, header = np.ascontiguousarray(array), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    write_atomically(file, [header.getvalue(), memoryview(array).cast("B")], durable=False)
