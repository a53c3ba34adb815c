"""Compare a checkpoint with MMSegmentation under your own PyTorch: inputs, logits and label maps.

Both read the same picture files: mmsegmentation's `init_model` and `inference_model` on one side, `InferenceSegmentor`
on the converted checkpoint on the other. Modes: whole, slide, and tta (test-time augmentation). The factorisation of
SegNeXt's head, which mmsegmentation starts from random bases, starts from jseg's on both sides. PyTorch opens a .pth
the way it does for mmsegmentation, which can run code in it: verify files you trust. Exit status 1 where they disagree.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import tempfile
from collections import namedtuple

import numpy as np

EXAMPLE = "jseg verify segnext_mscan-t_ade20k.pth --against-torch ../mmseg-venv/bin/python --pictures street.jpg"
LOGIT_LIMIT, LABEL_LIMIT, TIE = 1e-4, 0.999, 1e-4
MODES = ("whole", "slide", "tta")
# equal: share of pixels; unequal: pixels; ties: those of them that rounding decides
Row = namedtuple("Row", "picture size mode equal unequal ties")


def add_arguments(parser) -> None:
    """Options of `jseg verify`."""
    parser.add_argument("checkpoint", help="a .pth, .pt or .pkl to convert, or a jseg .safetensors")
    parser.add_argument("--pictures", nargs="+", default=[], metavar="FILE",
                        help="picture files or folders (default: two generated pictures)")
    parser.add_argument("--against-torch", required=True, metavar="PYTHON",
                        help="a Python that has PyTorch and mmsegmentation 1.x")
    parser.add_argument("--config", dest="given_config", metavar="FILE",
                        help="an mmsegmentation config (.py) to use on both sides instead of the one inside the file")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    parser.add_argument("--slide", nargs=2, type=int, metavar=("CROP", "STRIDE"),
                        help="window and step of slide mode in pixels (default: the checkpoint's, else 512 341)")
    parser.add_argument("--scales", nargs="+", type=float, help="of test-time augmentation (default: the checkpoint's)")
    parser.add_argument("--allow-nonfinite", action="store_true", help="compare weights that hold NaN or inf")
    parser.add_argument("--timeout", type=int, default=3600,
                        help="seconds that PyTorch's side may take (default: %(default)s)")


def run(args) -> int:
    """Compare, print the table, return 0 when all agree."""
    with tempfile.TemporaryDirectory(prefix="jseg-verify-") as folder:
        lines, good = compare(args, pathlib.Path(folder))
    print("\n".join(lines))
    return 0 if good else 1


def compare(args, folder: pathlib.Path) -> tuple[list[str], bool]:
    """(lines of the report, whether all agree)."""
    import jittor as jt
    pictures = _pictures(args.pictures, folder)
    converted, settings = _prepare(args, folder)
    request = {"checkpoint": None if args.checkpoint.endswith((".safetensors", ".pkl"))
               else os.path.abspath(args.checkpoint),
               "config": os.path.abspath(args.given_config) if args.given_config else None,
               "settings": to_mmseg(settings), "every_input": True, "pictures": [os.path.abspath(p) for p in pictures],
               "modes": args.modes, "tta": settings["tta"],
               "slide": {key: settings["model"]["test_cfg"][key] for key in ("crop_size", "stride")}}
    (folder / "request.json").write_text(json.dumps(request))
    answer = ask(args.against_torch, folder, args.timeout)
    facts = json.loads(str(answer["facts"]))
    with jt.flag_scope(lazy_execution=0):  # many picture sizes: few kernels matter more than fused ones
        inputs, logits = _network(converted, pictures, answer)
        rows = label_rows(converted, pictures, args.modes, answer)
    good = logits <= LOGIT_LIMIT and all(row.equal >= LABEL_LIMIT for row in rows)
    return report(args, facts, inputs, logits, rows, good), good


def _pictures(given: list[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """The files named, those of folders, or two generated street scenes."""
    from jseg.data.io import write_image
    from jseg.data.render import render_scene
    from jseg.engine.predict import pictures_in
    from jseg.errors import DataError
    found = []
    for path in map(pathlib.Path, given):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        found += pictures_in(path) if path.is_dir() else [path]
    for i, size in enumerate([(200, 320), (261, 173)] if not given else []):
        found.append(folder / f"generated_{size[1]}x{size[0]}.png")
        write_image(found[-1], render_scene(size, np.random.default_rng(i))[0])
    return found


def _prepare(args, folder: pathlib.Path) -> tuple[pathlib.Path, dict]:
    """Convert where needed; the file that jseg's side uses, with the modes filled in, and its config.
    Writes bases.npy, state.npz.
    """
    import jseg.data.datasets  # noqa: F401  (class names)
    from jseg.convert.checkpoint import convert_checkpoint
    from jseg.data.tta import DEFAULT_SCALES
    from jseg.engine.checkpoint import load_weights, save_weights
    from jseg.engine.model_file import checked_model_file, stored_config
    from jseg.errors import ConvertError
    from jseg.models.heads.ham_head import evaluation_bases, ham_options
    source = pathlib.Path(args.checkpoint)
    if source.suffix != ".safetensors":
        source = convert_checkpoint(source, folder / "converted.safetensors", config=args.given_config,
                                    allow_nonfinite=args.allow_nonfinite).out
    state, meta = load_weights(source, allow_nonfinite=args.allow_nonfinite)
    model = stored_config(meta, source, blocks=("backbone",))["model"]
    kind = (model.get("decode_head") or {}).get("type", "no head")
    if kind != "LightHamHead":
        raise ConvertError(f"{args.checkpoint}: verify compares whole SegNeXt models (MSCAN with LightHamHead); this "
                           f"is {model['backbone'].get('type', 'no model')} with {kind}")
    checked_model_file(source, state, meta)
    test = dict(model.get("test_cfg") or {"mode": "whole"})
    if args.slide or "crop_size" not in test:
        crop, stride = args.slide or (512, 341)
        test.update(crop_size=[crop, crop], stride=[stride, stride])
    model["test_cfg"] = test
    tta = {"scales": list(DEFAULT_SCALES), "flip": True, **(meta["config"].get("tta") or {})}
    meta["config"]["tta"] = {**tta, "scales": args.scales} if args.scales else tta
    head = model["decode_head"]
    options = ham_options(head.get("ham_kwargs"))
    spatial = int(options["MD_S"])
    np.save(folder / "bases.npy", evaluation_bases(spatial, head["ham_channels"] // spatial, int(options["MD_R"])))
    np.savez(folder / "state.npz", **{key: np.asarray(value, np.float32) for key, value in state.items()})
    save_weights(folder / "ours.safetensors", state,
                 {key: value for key, value in meta.items() if key != "jseg_version"})
    return folder / "ours.safetensors", meta["config"]


def to_mmseg(settings: dict) -> dict:
    """jseg's settings in mmsegmentation 1.x's vocabulary:
    what its inference needs, for files that carry no config of its own.
    """
    from jseg.models.backbones.mscan import SIZES, VARIANTS
    from jseg.models.heads.ham_head import ham_options
    model = settings["model"]
    backbone = {key: value for key, value in model["backbone"].items() if key not in ("variant", "impl")}
    backbone = {"norm_cfg": {"type": "BN", "requires_grad": True},
                **VARIANTS.get(model["backbone"].get("variant"), SIZES),
                **{key: value for key, value in backbone.items() if value is not None}}
    head = {key: value for key, value in model["decode_head"].items() if key not in ("loss_decode", "sampler", "impl")}
    head["ham_kwargs"] = {key: value for key, value in ham_options(head.get("ham_kwargs")).items() if key != "grad"}
    preprocessor = json.loads(json.dumps(settings["data_preprocessor"]))
    loader = settings.get("test_dataloader") or settings.get("val_dataloader") or {}
    pipeline = [step for step in (loader.get("dataset") or {}).get("pipeline") or [] if step["type"] not in
                ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")]
    test = preprocessor.get("test_cfg") or {}
    if "resize_divisor" in test:
        preprocessor["test_cfg"] = None
        pipeline = [*pipeline, {"type": "ResizeToMultiple", "size_divisor": test["resize_divisor"]}]
    return {"default_scope": "mmseg", "data_preprocessor": preprocessor,
            "test_pipeline": [{"type": "LoadImageFromFile"}, *pipeline, {"type": "PackSegInputs"}],
            "model": {"type": "EncoderDecoder", "data_preprocessor": preprocessor, "backbone": backbone,
                      "decode_head": head, "test_cfg": model["test_cfg"]}}


def ask(python: str, folder: pathlib.Path, timeout: int):
    """Run the other side; its answer. ConvertError where it fails."""
    from jseg.errors import ConvertError
    script = pathlib.Path(__file__).resolve().parents[1] / "convert" / "mmseg_side.py"
    try:
        done = subprocess.run([python, str(script), str(folder)], capture_output=True, text=True,
                              timeout=timeout, cwd=folder)
    except OSError as error:
        raise ConvertError(f"--against-torch {python}: cannot be run ({error.strerror}); give a Python that has "
                           "PyTorch and mmsegmentation 1.x, for example ../mmseg-venv/bin/python") from error
    except subprocess.TimeoutExpired as error:
        raise ConvertError(f"--against-torch {python}: not done after {timeout} s; give fewer or smaller pictures, or "
                           "a larger --timeout") from error
    if done.returncode or not (folder / "answer.npz").exists():
        last = "\n".join(done.stderr.strip().splitlines()[-6:])
        raise ConvertError(f"--against-torch {python}: MMSegmentation's side failed (it needs torch, mmengine, mmcv or "
                           f"mmcv-lite, mmsegmentation 1.x and what they ask for: ftfy, regex):\n{last}")
    return np.load(folder / "answer.npz")


def _network(converted: pathlib.Path, pictures: list, answer) -> tuple[list[float], float]:
    """(largest difference of each picture's network input, largest logit error over the reference's range,
    on the reference's inputs).
    """
    import jittor as jt
    from jseg.data import io
    from jseg.data.tta import plain_view
    from jseg.engine.model_file import open_model_file
    model, preprocessor, transforms = open_model_file(converted, allow_nonfinite=True).build()
    inputs, worst = [], 0.0
    for i, path in enumerate(pictures):
        batch = preprocessor.batch([plain_view(io.read_image(path), transforms)], training=False)
        theirs, logits = answer[f"input/{i}"], answer[f"logits/{i}"]
        inputs.append(float(np.abs(batch.images - theirs).max()) if batch.images.shape == theirs.shape
                      else float("inf"))
        with jt.no_grad():
            ours = model(jt.array(theirs)).numpy()
        error = (np.abs(ours.astype(np.float64) - logits).max() / max(np.ptp(logits), 1e-30)
                 if ours.shape == logits.shape else float("inf"))
        worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return inputs, worst


def label_rows(converted: pathlib.Path, pictures: list, modes: list[str], answer) -> list[Row]:
    """One row for each picture and mode."""
    from jseg.engine.predict import InferenceSegmentor
    rows = []
    for mode in modes:
        segmentor = InferenceSegmentor(converted, tta=mode == "tta", mode="whole" if mode == "tta" else mode)
        for i, path in enumerate(pictures):
            rows.append(label_row(pathlib.Path(path).name, mode, segmentor.infer(path), answer[f"{mode}/{i}/labels"],
                                  answer[f"{mode}/{i}/margins"], float(answer[f"{mode}/{i}/range"])))
    return rows


def label_row(picture: str, mode: str, ours: np.ndarray, theirs: np.ndarray, margins: np.ndarray, spread: float) -> Row:
    """Compare two label maps (h, w); `margins` (h, w) and `spread` are the reference's
    lead of the best class and range of scores.
    """
    size = f"{theirs.shape[1]}x{theirs.shape[0]}"
    if ours.shape != theirs.shape:
        return Row(picture, f"{size}, ours {ours.shape[1]}x{ours.shape[0]}", mode, 0.0, theirs.size, 0)
    unequal = ours != theirs
    return Row(picture, size, mode, float(1 - unequal.mean()), int(unequal.sum()),
               int((margins[unequal] <= TIE * spread).sum()))


def report(args, facts: dict, inputs: list[float], logits: float, rows: list[Row], good: bool) -> list[str]:
    """The table and the verdict in words."""
    width = max(len(row.picture) for row in rows)
    equal_inputs = sum(value == 0 for value in inputs)
    lines = [f"{args.checkpoint} against {facts['versions']}; its config: {facts['config']}",
             f"network inputs: {equal_inputs} of {len(inputs)} equal to the last bit"
             + ("" if equal_inputs == len(inputs) else
                f", largest difference {max(inputs):.3g} (another decoder or resize)"),
             f"logits: largest error {logits:.2g} of their range (limit {LOGIT_LIMIT:g})",
             f"{'picture':<{width}}  {'size':>11}  mode   equal pixels  unequal  decided by rounding"]
    lines += [f"{row.picture:<{width}}  {row.size:>11}  {row.mode:<5}  {row.equal:>11.4%}  {row.unequal:>8}  "
              f"{row.ties:>8}" for row in rows]
    unequal, ties = sum(row.unequal for row in rows), sum(row.ties for row in rows)
    if unequal:
        lines.append(f"{ties} of {unequal} unequal pixels: the reference's best two classes lie within {TIE:g} of the "
                     "range of its scores")
    lines.append(f"they {'agree' if good else 'DISAGREE'}: logits within {LOGIT_LIMIT:g} and at least "
                 f"{LABEL_LIMIT:.1%} equal pixels are asked of every picture")
    return lines
