"""Segment pictures, folders or video files with a checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
from typing import Callable

import numpy as np

from jseg.errors import ConfigError, DataError, JsegError, WriteError
from jseg.text import printable

EXAMPLE = "jseg predict weights/segnext_tiny_camvid.safetensors street.jpg --out masks/"
RESULTS = {
    "overlay": ("overlay",),
    "labels": ("labels",),
    "both": ("overlay", "labels"),
    "probability": ("probability",),
    "all": ("overlay", "labels", "probability"),
}


def add_arguments(parser) -> None:
    """Options of `jseg predict`."""
    from jseg.data.submission import SUBMISSIONS
    parser.add_argument(
        "checkpoint",
        help="a .safetensors file, a run's folder or its best/, or an .onnx file of 'jseg export'; it carries config,"
             " classes and palette",
    )
    parser.add_argument("inputs", nargs="+", help="picture files, folders of pictures, video files")
    parser.add_argument("--out", default="predictions", help="folder for the results (default: %(default)s)")
    parser.add_argument(
        "--what",
        choices=tuple(RESULTS),
        default="both",
        help=(
            "overlay: picture with colours over it; labels: palette PNG of class indices; both: these two (default);"
            " probability: grey PNG of the winning class's softmax, 255 for 1; all: the three. A video gives an overlay"
            " video"
        ),
    )
    parser.add_argument(
        "--format",
        choices=tuple(SUBMISSIONS),
        help="instead of --what: one grey PNG per picture with the ids that this benchmark's server takes, named like "
             "the picture",
    )
    parser.add_argument("--opacity", type=float, default=0.5,
                        help="of the colours in overlays, 0 to 1 (default: %(default)s)")
    parser.add_argument("--tta", action="store_true", help="average over scales and flips")
    parser.add_argument("--mode", choices=("whole", "slide"), help="override the checkpoint's test mode")
    parser.add_argument(
        "--crop-size", type=_height_width, metavar="HxW", help="window of --mode slide in pixels, such as 512x512"
    )
    parser.add_argument(
        "--stride", type=_height_width, metavar="HxW", help="pixels between windows; default: two thirds of --crop-size"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help=(
            "read pictures of up to N pixels (default: JSEG_MAX_PIXELS, else 268435456; a small file can hold a huge"
            " picture)"
        ),
    )
    parser.add_argument("--allow-nonfinite", action="store_true", help="use weights that hold NaN or inf all the same")
    parser.add_argument("--impl", choices=("auto", "jittor"), default="auto",
                        help="kernels (default) or plain operators")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime",
                        help="what runs an .onnx file (default: %(default)s)")


def _height_width(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected height x width in pixels, such as 512x1024, or one number for both"
        )
    return int(parts[0]), int(parts[-1])


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
    from jseg.engine.predict import InferenceSegmentor
    if not 0 <= args.opacity <= 1:
        raise ConfigError(f"--opacity is {args.opacity}; accepted: 0 to 1")
    jobs, faults = _listed(args.inputs)
    if not jobs:
        raise faults[0] if len(faults) == 1 else DataError("\n".join(map(str, faults)))
    _refuse_file(pathlib.Path(args.out))
    segmentor = InferenceSegmentor(
        args.checkpoint,
        tta=args.tta,
        mode=args.mode,
        impl=args.impl,
        crop_size=args.crop_size,
        stride=args.stride,
        allow_nonfinite=args.allow_nonfinite,
        runtime=args.runtime,
    )
    if args.format:
        check_classes(segmentor.classes, args.format)
    out = _result_folder(args.out)
    if distributed.is_main():
        _note_first(jobs, segmentor.scale)
    if len(jobs) == 1 and not faults and distributed.world_size() == 1:
        return 2 if _segment(segmentor, jobs[0], jobs[0].stem, out, args) else 0
    if distributed.is_main():
        for fault in faults:
            print(printable(fault), file=sys.stderr)
    with distributed.watched():
        done, left_out, damaged = _segment_share(segmentor, jobs, out, args)
    shares = distributed.gather_objects((done, left_out, damaged))
    return _summary(shares, [printable(fault.path) for fault in faults], out)


def _listed(inputs: list[str]) -> tuple[list[pathlib.Path], list[DataError]]:
    """The files behind the words of the command line, and what is wrong with words that lead to none."""
    from jseg.engine.predict import pictures_in
    jobs, faults = [], []
    for given in map(pathlib.Path, inputs):
        try:
            if not os.path.lexists(given):
                raise DataError(f"{given}: no such file or folder", kind="missing", path=str(given))
            jobs += pictures_in(given) if given.is_dir() else [given]
        except DataError as error:
            faults.append(error)
    return jobs, faults


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


def _segment_share(segmentor, jobs: list[pathlib.Path], out: pathlib.Path, args) -> tuple[int, list[str], list[str]]:
    """Do this rank's share of the jobs.

    Returns:
        how many were done; the names of those left out; of those done, the names of those that are damaged.
    """
    from jseg.engine import distributed
    stems = [job.stem for job in jobs]
    done, left_out, damaged = 0, [], []
    for job in jobs[distributed.rank()::distributed.world_size()]:
        distributed.beat("predicts")
        # two inputs with one stem, from different folders or with different suffixes, must not overwrite each other
        name = job.stem if stems.count(job.stem) == 1 else f"{job.parent.name}_{job.stem}_{job.suffix[1:]}"
        try:
            if _segment(segmentor, job, name, out, args):
                damaged.append(printable(job))
            done += 1
        except WriteError:  # the next one would fare no better
            raise
        except JsegError as error:
            print(f"left out: {printable(error)}", file=sys.stderr)
            left_out.append(printable(job))
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


def _segment(segmentor, job: pathlib.Path, name: str, out: pathlib.Path, args) -> bool:
    """Segment one input and print its line; True if only a part of it could be read."""
    from jseg.engine.video import VIDEO_SUFFIXES
    if job.suffix.lower() in VIDEO_SUFFIXES:
        if args.format:
            raise DataError(f"{job}: a video is no picture of a benchmark; leave --format out")
        return _segment_video(segmentor, job, out / f"{name}_overlay.mp4", args.opacity)
    print(_segment_picture(segmentor, job, out, name, args), flush=True)
    return False


def _segment_picture(segmentor, path: pathlib.Path, out: pathlib.Path, name: str, args) -> str:
    from jseg.data.io import write_mask
    from jseg.data.submission import submission_ids, submission_name
    labels, probability = (
        segmentor.infer(path, with_prob=True) if args.what in ("probability", "all") else (segmentor.infer(path), None)
    )
    save: dict[str, Callable] = {
        "labels": lambda file: segmentor.save_labels(labels, file),
        "overlay": lambda file: segmentor.save_overlay(path, labels, file, opacity=args.opacity),
        "probability": lambda file: segmentor.save_probability(probability, file)}
    written = []
    if args.format:
        written.append(out / submission_name(path.stem))
        write_mask(written[0], submission_ids(labels, args.format))
    for kind in sorted(() if args.format else RESULTS[args.what]):
        written.append(out / f"{name}_{kind}.png")
        save[kind](written[-1])
    share = np.bincount(labels.ravel(), minlength=len(segmentor.classes)) / labels.size
    top = ", ".join(f"{segmentor.classes[k]} {share[k]:.0%}" for k in np.argsort(-share, kind="stable")[:4]
                    if share[k] > 0)
    return f"{printable(path)} -> {', '.join(map(printable, written))}  ({top})"


def _segment_video(segmentor, path: pathlib.Path, out: pathlib.Path, opacity: float) -> bool:
    from tqdm import tqdm

    from jseg.engine.video import VideoFile, VideoSource
    with VideoSource(path) as source, VideoFile(out, source.rate) as result:
        with contextlib.closing(source.frames()) as frames:
            for frame in tqdm(frames, total=source.expected, unit="frame", desc=printable(path.name)):
                result.write(segmentor.overlay(frame, segmentor.infer(frame), opacity=opacity))
        result.finish_file()
        lost = source.lost()
    print(f"{printable(path)} -> {printable(out)} ({result.count} frames)", flush=True)
    if lost:
        print(f"{printable(path)}: {lost}; the result holds what could be read", file=sys.stderr)
    return bool(lost)
