"""Segment pictures, folders or video files with a checkpoint."""

from __future__ import annotations

import pathlib

import numpy as np

from jseg.errors import DataError

EXAMPLE = "jseg predict weights/segnext_tiny_camvid.safetensors street.jpg --out masks/"
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def add_arguments(parser) -> None:
    """Options of `jseg predict`."""
    parser.add_argument("checkpoint", help="a .safetensors file, or a run's best/ folder; it carries config, classes and palette")
    parser.add_argument("inputs", nargs="+", help="picture files, folders of pictures, video files")
    parser.add_argument("--out", default="predictions", help="folder for the results (default: %(default)s)")
    parser.add_argument("--what", choices=("overlay", "labels", "both"), default="both",
                        help="overlay: picture with colours over it; labels: palette PNG of class indices (default: both)")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours in overlays, 0 to 1 (default: %(default)s)")
    parser.add_argument("--tta", action="store_true", help="average over scales and flips")
    parser.add_argument("--mode", choices=("whole", "slide"), help="override the checkpoint's test mode")
    parser.add_argument("--allow-nonfinite", action="store_true", help="use weights that hold NaN or inf all the same")
    parser.add_argument("--impl", choices=("auto", "jittor"), default="auto", help="kernels (default) or plain operators")


def run(args) -> int:
    """Segment every input and print one line each: what was written, and the classes that cover the most.

    Under mpirun every input is the work of one rank.
    """
    from jseg.engine.distributed import as_rank
    return as_rank(lambda: _predict(args))


def _predict(args) -> int:
    from jseg.engine import distributed
    from jseg.engine.predict import InferenceSegmentor, pictures_in
    if not 0 <= args.opacity <= 1:
        raise DataError(f"--opacity is {args.opacity}; accepted: 0 to 1")
    jobs = []
    for given in map(pathlib.Path, args.inputs):
        if not given.exists():
            raise DataError(f"{given}: no such file or folder")
        jobs += pictures_in(given) if given.is_dir() else [given]
    stems = [job.stem for job in jobs]
    segmentor = InferenceSegmentor(args.checkpoint, tta=args.tta, mode=args.mode, impl=args.impl,
                                   allow_nonfinite=args.allow_nonfinite)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    ranks = distributed.world_size()
    with distributed.watched():
        _segment(segmentor, jobs, stems, out, args)
    if ranks > 1:
        counts = distributed.gather_objects(len(jobs[distributed.rank()::ranks]))
        if distributed.is_main():
            print(f"{sum(counts)} inputs on {ranks} ranks ({', '.join(map(str, counts))}), results in {out}")
    return 0


def _segment(segmentor, jobs: list, stems: list, out: pathlib.Path, args) -> None:
    """Do this rank's share of the jobs."""
    from jseg.engine import distributed
    for job in jobs[distributed.rank()::distributed.world_size()]:
        distributed.beat("predicts")
        # two inputs with one stem, from different folders or with different suffixes, must not overwrite each other
        name = job.stem if stems.count(job.stem) == 1 else f"{job.parent.name}_{job.stem}_{job.suffix[1:]}"
        if job.suffix.lower() in VIDEO_SUFFIXES:
            print(_video(segmentor, job, out / f"{name}_overlay.mp4", args.opacity))
        else:
            print(_picture(segmentor, job, out, name, args), flush=True)


def _picture(segmentor, path: pathlib.Path, out: pathlib.Path, name: str, args) -> str:
    labels = segmentor.infer(path)
    written = []
    if args.what in ("labels", "both"):
        written.append(out / f"{name}_labels.png")
        segmentor.save_labels(labels, written[-1])
    if args.what in ("overlay", "both"):
        written.append(out / f"{name}_overlay.png")
        segmentor.save_overlay(path, labels, written[-1], opacity=args.opacity)
    share = np.bincount(labels.ravel(), minlength=len(segmentor.classes)) / labels.size
    top = ", ".join(f"{segmentor.classes[k]} {share[k]:.0%}" for k in np.argsort(-share, kind="stable")[:4] if share[k] > 0)
    return f"{path} -> {', '.join(map(str, written))}  ({top})"


def _video(segmentor, path: pathlib.Path, out: pathlib.Path, opacity: float) -> str:
    import cv2
    from tqdm import tqdm

    from jseg.engine.predict import video_frames
    source = cv2.VideoCapture(str(path))
    rate, total = source.get(cv2.CAP_PROP_FPS) or 25.0, int(source.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    source.release()
    draft = out.with_name(f".{out.stem}.part{out.suffix}")
    writer, count = None, 0
    try:
        for frame in tqdm(video_frames(path), total=total, unit="frame", desc=path.name):
            if writer is None:
                height, width = frame.shape[:2]
                writer = cv2.VideoWriter(str(draft), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
                if not writer.isOpened():
                    raise DataError(f"{out}: cannot write a video there")
            writer.write(segmentor.overlay(frame, segmentor.infer(frame), opacity=opacity))
            count += 1
        writer.release()
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return f"{path} -> {out} ({count} frames)"
