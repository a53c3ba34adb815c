"""Segment pictures, folders or video files with a checkpoint."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import sys
from typing import Iterable

import numpy as np

from jseg.cli._arguments import checked_word
from jseg.cli._progress import told_progress
from jseg.cli._segmentor import add_model_arguments, open_segmentor
from jseg.errors import ConfigError, DataError, JsegError, WriteError
from jseg.text import printable

EXAMPLE = "jseg predict weights/segnext_tiny_camvid.safetensors street.jpg --out masks/"


def add_arguments(parser) -> None:
    """Options of `jseg predict`."""
    _add_results(parser)
    _add_looks(parser)
    _add_network(parser)


def _add_results(parser) -> None:
    """What goes in and what comes out."""
    from jseg.data.submission import SUBMISSIONS
    from jseg.engine.result_files import parse_kinds
    parser.add_argument(
        "checkpoint",
        help="a .safetensors file, a run's folder or its best/, or an .onnx file of 'jseg export'; it carries config,"
             " classes and palette",
    )
    parser.add_argument("inputs", nargs="+", help="picture files, folders of pictures, video files")
    parser.add_argument("--out", default="predictions", help="folder for the results (default: %(default)s)")
    parser.add_argument(
        "--what", type=checked_word(parse_kinds), default="both", metavar="LIST",
        help=(
            "one or several of these, with commas (default: both). overlay: picture with colours over it; labels:"
            " palette PNG of class indices; both: these two; probability: grey PNG of the class's softmax, 255 for 1;"
            " all: the three; polygons: outlines of regions with their holes, classes and scores; probabilities,"
            " logits: arrays (K, H, W) of all classes. A video gives an overlay video"
        ),
    )
    parser.add_argument(
        "--as", dest="types", default="", metavar="TYPES",
        help=(
            "file types, with commas, for results with several: npy for labels and probability (float32), tif for both"
            " and for scores (GeoTIFF at the picture's place, needs the extra 'geo'), jpg for"
            " overlay, geojson (default; pixel coordinates, one file per picture) or coco (one coco.json at the end:"
            " polygons, run lengths for regions with holes) for polygons"
        ),
    )
    parser.add_argument(
        "--format",
        choices=tuple(SUBMISSIONS),
        help="instead of --what: one grey PNG per picture with the ids that this benchmark's server takes, named like "
             "the picture",
    )
    parser.add_argument(
        "--threshold", action="append", default=[], metavar="[CLASS=]P",
        help=(
            "least probability for a class to be taken, or for all classes; may be given many times. Elsewhere the most"
            " likely class without a threshold is taken; where all have one, none: label 255"
        ),
    )
    parser.add_argument("--min-area", type=int, default=1, metavar="N", help="leave polygons below N pixels out")


def _add_looks(parser) -> None:
    """How overlays look."""
    parser.add_argument(
        "--palette", metavar="FILE",
        help="colours of overlays and labels: a text file with '#e0463c road' or '224 70 60 road' per line, or the word"
             " distinct for colours as far from each other as they can be (default: the checkpoint's)",
    )
    parser.add_argument("--opacity", type=float, default=0.5,
                        help="of the colours in overlays, 0 to 1 (default: %(default)s)")
    parser.add_argument("--no-outlines", action="store_true", help="overlays without the borders of regions")
    parser.add_argument("--no-legend", action="store_true",
                        help="overlays of the picture's own size, without the classes and their shares below it")
    parser.add_argument("--view", metavar="R,G,B", help="bands to show in overlays, where LoadBands reads, from 0, "
                        "or one as grey (default: as the checkpoint says)")


def _add_network(parser) -> None:
    """How the network sees the pictures."""
    parser.add_argument("--batch-size", type=int, default=1, metavar="N",
                        help="pictures in one pass of the network, where they have one size (default: %(default)s)")
    parser.add_argument("--tiled", action="store_true",
                        help="rasters larger than memory: read, segment and write window by window, labels (and "
                             "probability) as GeoTIFF; a slide over the raster's own pixels, needs the extra 'geo'")
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help=(
            "read pictures of up to N pixels (default: JSEG_MAX_PIXELS, else 268435456; a small file can hold a huge"
            " picture)"
        ),
    )
    add_model_arguments(parser)


def _note_first(jobs: list[pathlib.Path], scale: str) -> None:
    """Say once, by the first picture, what reading loses: inputs of one command are mostly of one kind."""
    from jseg.data.io import picture_note
    from jseg.engine.video import VIDEO_SUFFIXES
    picture = next((job for job in jobs if job.suffix.lower() not in VIDEO_SUFFIXES), None)
    with contextlib.suppress(JsegError):  # told when it is read
        note = picture_note(picture, scale=scale) if picture else ""
        if note:
            print(f"note: {printable(note)}", file=sys.stderr)


def run(args) -> int:
    """Segment every input and print one line each: what was written, and the classes that cover the most.

    An input that cannot be read is named and left out; the others are done, and the status is 2. Under mpirun every
    input is the work of one rank.
    """
    from jseg.data.header import pixel_limit
    from jseg.engine.distributed import as_rank
    with pixel_limit(args.max_pixels):
        return as_rank(lambda: _predict(args))


def _predict(args) -> int:
    from jseg.data.submission import check_classes
    from jseg.engine import distributed
    from jseg.engine.result_files import Look, ResultFiles
    types = _checked_options(args)
    listed, faults = _listed(args.inputs)
    _refuse_nothing(listed, faults)
    _refuse_file(pathlib.Path(args.out))
    segmentor = open_segmentor(args, tiled=args.tiled)
    jobs = _of_pipeline(listed, segmentor.bands, faults)
    _refuse_nothing(jobs, faults)
    if args.view:
        segmentor.view = _view(args.view, segmentor)
    if args.format:
        check_classes(segmentor.classes, args.format)
    if args.palette:
        segmentor.palette = _palette(args.palette, segmentor.classes)
    look = Look(args.opacity, not args.no_outlines, not args.no_legend)
    files = ResultFiles(segmentor, _result_folder(args.out), types, look=look, min_pixels=args.min_area,
                        form=args.format, thresholds=_thresholds(args.threshold, segmentor.classes))
    if distributed.is_main() and segmentor.bands is None:
        _note_first(jobs, segmentor.scale)
    alone = len(jobs) == 1 and not faults and distributed.world_size() == 1
    if distributed.is_main():
        for fault in faults:
            print(printable(fault), file=sys.stderr)
    files.tiled = args.tiled
    with distributed.watched():
        done, left_out, damaged = _segment_share(files, jobs, 1 if args.tiled else args.batch_size, alone)
    if "coco" in types.values():
        regions = [entry for part in distributed.gather_objects(files.coco) for entry in part]
        if distributed.is_main() and regions:
            files.write_coco(regions)
    if alone:
        return 2 if damaged else 0
    shares = distributed.gather_objects((done, left_out, damaged))
    return _summary(shares, [printable(fault.path) for fault in faults], files.folder)


def _checked_options(args) -> dict[str, str]:
    """Look at the options that need no model; returns the file type of each result."""
    from jseg.engine.result_files import parse_types
    if not 0 <= args.opacity <= 1:
        raise ConfigError(f"--opacity is {args.opacity}; accepted: 0 to 1")
    for name in ("batch_size", "min_area"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(args, name)}; accepted: 1 or more")
    if args.format and (args.types or args.threshold):
        raise ConfigError("--format writes what a benchmark takes; leave --as and --threshold out")
    if args.tiled:
        odd = [word for word, given in (("--tta", args.tta), ("--format", args.format), ("--threshold", args.threshold),
                                        ("--mode whole", args.mode == "whole")) if given]
        kinds = ["labels"] if args.what == ("overlay", "labels") else [*args.what]
        odd += [f"--what {kind}" for kind in kinds if kind not in ("labels", "probability")]
        if odd:
            raise ConfigError(f"--tiled writes labels and probability as GeoTIFF; leave {', '.join(odd)} out")
        return dict.fromkeys(kinds, "tif")
    if args.tta and "logits" in args.what:
        raise ConfigError("--what logits with --tta: the views' probabilities are averaged, so there are no logits; "
                          "ask for probabilities")
    return {} if args.format else parse_types(args.types, args.what)


def _thresholds(given: list[str], classes: list[str]) -> float | dict[str, float] | None:
    """`--threshold`: a number for all classes, `name=number` for one, the last word for a class counts."""
    from jseg.engine.predict import threshold_array
    found: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            found.update({name: float(number)} if name else dict.fromkeys(classes, float(number)))
            threshold_array(found, classes)
        except ValueError as error:
            why = str(error) if "thresholds" in str(error) else "expected CLASS=P or P, P above 0 and at most 1"
            raise ConfigError(f"--threshold {text}: {why}") from error
    return found or None


def _palette(given: str, classes: list[str]) -> np.ndarray:
    from jseg.data.colours import read_palette, spread_colours
    if given == "distinct" and not os.path.exists(given):
        return np.array(spread_colours(len(classes)), np.uint8)
    return read_palette(given, classes)


def _view(text: str, segmentor) -> tuple[int, ...]:
    from jseg.cli.browse import chosen_bands
    if segmentor.bands is None:
        raise ConfigError(f"--view {text}: the model's pictures are read by LoadImageFromFile and have no other bands")
    return chosen_bands(text, segmentor.bands.channels)


def _listed(inputs: list[str]) -> tuple[list[tuple[pathlib.Path, list[pathlib.Path]]], list[DataError]]:
    """The words of the command line with the files behind them, and what is wrong with words that lead to none."""
    from jseg.engine.predict import pictures_in
    listed, faults = [], []
    for given in map(pathlib.Path, inputs):
        try:
            if not os.path.lexists(given):
                raise DataError(f"{given}: no such file or folder", kind="missing", path=str(given))
            listed.append((given, pictures_in(given, arrays=True) if given.is_dir() else [given]))
        except DataError as error:
            faults.append(error)
    return listed, faults


def _of_pipeline(listed: list[tuple[pathlib.Path, list[pathlib.Path]]], bands,
                 faults: list[DataError]) -> list[pathlib.Path]:
    """The files named, and those of folders that the model's pipeline reads; folders without any join `faults`."""
    from jseg.engine.predict import pictures_of_pipeline
    jobs = []
    for given, files in listed:
        try:
            jobs += files if files == [given] else pictures_of_pipeline(files, given, bands)
        except DataError as error:
            faults.append(error)
    return jobs


def _refuse_nothing(found: list, faults: list[DataError]) -> None:
    """Raise the faults where they are all that there is."""
    if not found:
        raise faults[0] if len(faults) == 1 else DataError("\n".join(map(str, faults)))


def _refuse_file(out: pathlib.Path) -> None:
    if out.exists() and not out.is_dir():
        raise WriteError(f"{out}: is a file; --out names a folder for the results")


def _result_folder(given: str) -> pathlib.Path:
    out = pathlib.Path(given)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"{out}: the folder for the results cannot be made ({error.strerror}); give another --out"
        ) from error
    return out


def _segment_share(files, jobs: list[pathlib.Path], batch_size: int, alone: bool) -> tuple[int, list[str], list[str]]:
    """Do this rank's share of the jobs. The only job of a command, `alone`, is not left out but raises.

    Returns:
        how many were done; the names of those left out; of those done, the names of those that are damaged.
    """
    from jseg.engine import distributed
    from jseg.engine.video import VIDEO_SUFFIXES
    stems = [job.stem for job in jobs]
    # two inputs with one stem, from different folders or with different suffixes, must not overwrite each other
    names = [job.stem if stems.count(job.stem) == 1 else f"{job.parent.name}_{job.stem}_{job.suffix[1:]}"
             for job in jobs]
    mine = list(range(len(jobs)))[distributed.rank()::distributed.world_size()]
    videos = [job.suffix.lower() in VIDEO_SUFFIXES for job in jobs]
    share = list(mine)
    positions = {place: position for position, place in enumerate(share)}

    def prepare(position: int):
        place = share[position]
        return None if videos[place] or files.tiled else files.segmentor.prepared(jobs[place])

    done, left_out, damaged = 0, [], []
    with files.segmentor.ahead(prepare, len(share)) as ahead:
        while mine:
            distributed.beat("predicts")
            is_video = videos[mine[0]]
            part = [place for place in mine[:1 if is_video else batch_size] if videos[place] == is_video]
            mine = mine[len(part):]
            try:
                if is_video:
                    if _segment_video(files, jobs[part[0]], names[part[0]]):
                        damaged.append(printable(jobs[part[0]]))
                else:
                    pictures = [ahead.get(positions[place]) for place in part]
                    _segment_pictures(files, [(jobs[place], names[place], place) for place in part], pictures)
                done += len(part)
            except WriteError:  # the next one would fare no better
                raise
            except JsegError as error:
                if alone:
                    raise
                if len(part) > 1:  # one by one, to see which
                    mine, batch_size = part + mine, 1
                    continue
                print(f"left out: {printable(error)}", file=sys.stderr)
                left_out.append(printable(jobs[part[0]]))
    return done, left_out, damaged


def _summary(shares: list[tuple[int, list[str], list[str]]], missing: list[str], out: pathlib.Path) -> int:
    """Print what became of all inputs; returns the exit status, the same on every rank."""
    from jseg.engine import distributed
    done = sum(share[0] for share in shares)
    left_out = missing + [name for share in shares for name in share[1]]
    damaged = [name for share in shares for name in share[2]]
    if distributed.is_main():
        if len(shares) > 1:
            counts = ", ".join(str(share[0] + len(share[1])) for share in shares)
            print(f"{done + len(left_out)} inputs on {len(shares)} ranks ({counts}), results in {out}")
        sys.stdout.flush()
        for names, words in ((left_out, "left out"), (damaged, "done in part")):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                print(f"{done} done, {len(names)} {words}: {', '.join(names[:5])}{more}", file=sys.stderr)
    return 2 if left_out or damaged else 0


def _segment_pictures(files, pictures: list[tuple[pathlib.Path, str, int]], prepared: list) -> None:
    """Segment some pictures (file, name of the results, place among all) together; print a line for each."""
    classes = files.segmentor.classes
    if files.tiled:
        return _segment_raster(files, *pictures[0][:2])
    for answer, (path, name, order) in zip(files.ask(prepared), pictures):
        written = files.write(answer, path, name, order)
        counts = np.bincount(answer.labels.ravel(), minlength=len(classes))[:len(classes)]
        _tell_result(path, written, counts, answer.labels.size, classes)


def _segment_raster(files, path: pathlib.Path, name: str) -> None:
    """Segment a raster in blocks and print a line."""
    from jseg.engine.tiled import predict_tiled
    outs = {kind: files.folder / f"{name}_{kind}.tif" for kind in sorted(files.types)}
    with told_progress(unit="block", desc=printable(path.name)) as tell:
        counts = predict_tiled(files.segmentor, path, outs, tell=tell)
    _tell_result(path, outs.values(), counts, counts.sum(), files.segmentor.classes)


def _tell_result(path: pathlib.Path, written: Iterable, counts: np.ndarray, pixels: int, classes: list[str]) -> None:
    """Print what was written of a picture, and the classes that cover the most; `counts` are pixels per class."""
    share = counts / max(pixels, 1)
    top = ", ".join(f"{classes[k]} {share[k]:.0%}" for k in np.argsort(-share, kind="stable")[:4] if share[k] > 0)
    print(f"{printable(path)} -> {', '.join(map(printable, written))}  ({top or 'no class'})", flush=True)


def _segment_video(files, path: pathlib.Path, name: str) -> bool:
    """Write an overlay video and print a line; True if only a part of the input could be read."""
    from tqdm import tqdm

    from jseg.engine.video import VideoFile, VideoSource
    if files.form:
        raise DataError(f"{path}: a video is no picture of a benchmark; leave --format out")
    segmentor, look, out = files.segmentor, files.look, files.folder / f"{name}_overlay.mp4"
    with VideoSource(path) as source, VideoFile(out, source.rate) as result:
        with contextlib.closing(source.frames()) as frames:
            def prepare(_):
                frame = next(frames, None)
                if frame is not None and segmentor.bands:
                    frame = np.ascontiguousarray(frame[..., ::-1])
                return None if frame is None else segmentor.prepared(frame)

            with segmentor.ahead(prepare, threads=1) as ahead:
                pictures = itertools.takewhile(lambda picture: picture is not None, map(ahead.get, itertools.count()))
                for picture in tqdm(pictures, total=source.expected, unit="frame", desc=printable(path.name)):
                    labels = segmentor.infer(picture, thresholds=files.thresholds)
                    result.write(segmentor.overlay(picture.source, labels, opacity=look.opacity,
                                                   outlines=look.outlines))
        result.finish_file()
        lost = source.lost()
    print(f"{printable(path)} -> {printable(out)} ({result.count} frames)", flush=True)
    if lost:
        print(f"{printable(path)}: {lost}; the result holds what could be read", file=sys.stderr)
    return bool(lost)
