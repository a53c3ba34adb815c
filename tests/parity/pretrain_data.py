"""Small labelled pictures in folders, as `ImageFolder` reads them: rendered scenes of 20 classes, handwritten digits.

    python tests/parity/pretrain_data.py rendered FOLDER --train 40 --val 15
    python tests/parity/pretrain_data.py digits FOLDER        with a Python that has scikit-learn, which ships them

A rendered class is what stands in the street: a car of one paint, a person in one shirt, or several things.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import cv2
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from jseg.data import render  # noqa: E402

PAINT_NAMES = ("blue", "black", "white", "teal", "grey", "purple", "sky")
SHIRT_NAMES = ("red", "orange", "yellow", "pink", "sand")
# class -> (things in the street, paint of cars or None for any, shirt of people or None)
CLASSES = {**{f"car_{name}": ("c", i, None) for i, name in enumerate(PAINT_NAMES)},
           **{f"person_{name}": ("p", None, i) for i, name in enumerate(SHIRT_NAMES)},
           "tree": ("t", None, None), "two_trees": ("tt", None, None), "two_cars": ("cc", None, None),
           "two_people": ("pp", None, None), "tree_car": ("tc", None, None), "tree_person": ("tp", None, None),
           "car_person": ("cp", None, None), "tree_car_person": ("tcp", None, None)}


def render_class(things: str, paint: int | None, shirt: int | None, size: int, rng: np.random.Generator) -> np.ndarray:
    """A scene with these things alone, (size, size, 3) uint8 BGR."""
    paints, shirts = render.PAINTS, render.SHIRTS
    render.PAINTS = paints if paint is None else (paints[paint],)
    render.SHIRTS = shirts if shirt is None else (shirts[shirt],)
    try:
        canvas = render._Canvas(2 * size, 2 * size, rng)
        horizon = canvas.h * rng.uniform(0.36, 0.52)
        top, bottom, tint, strength = render.LIGHTS[rng.integers(len(render.LIGHTS))]
        render._sky(canvas, horizon, np.array(top), np.array(bottom))
        render._ground(canvas, horizon)
        render._buildings(canvas, horizon)
        places = (rng.permutation(len(things)) + rng.uniform(0.3, 0.7, len(things))) / len(things)
        painters = {"c": render._car, "p": render._person, "t": render._tree}
        for kind, place in zip(things, places):
            foot = horizon + (canvas.h - horizon) * rng.uniform(0.45, 0.85)
            painters[kind](canvas, place * canvas.w, foot, canvas.h * rng.uniform(0.55, 0.75))
        return render._photograph(canvas, horizon, np.array(tint, np.float32), strength * rng.uniform(0.85, 1.15),
                                  (size, size))[0]
    finally:
        render.PAINTS, render.SHIRTS = paints, shirts


def write_rendered(folder: pathlib.Path, train: int, val: int, size: int = 64) -> None:
    """Fill folder/{train,val}/<class>/ with as many pictures of each class."""
    for part, count in (("train", train), ("val", val)):
        for label, (name, things) in enumerate(CLASSES.items()):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                rng = np.random.default_rng([7, part == "val", label, i])
                cv2.imwrite(str(folder / part / name / f"{i:03d}.png"), render_class(*things, size, rng))


def write_digits(folder: pathlib.Path, size: int = 64) -> None:
    """Fill folder/{train,val}/<digit>/ with scikit-learn's 1,797 digits of 8 x 8, enlarged; every fifth is for val."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target)):
        place = folder / ("val" if i % 5 == 4 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        grey = np.rint(image * (255 / 16)).astype(np.uint8)
        large = cv2.resize(grey, (size, size), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(place / f"{i:04d}.png"), cv2.cvtColor(large, cv2.COLOR_GRAY2BGR))


def main() -> int:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("rendered", "digits"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--train", type=int, default=40, help="rendered pictures of each class (default: %(default)s)")
    parser.add_argument("--val", type=int, default=15)
    args = parser.parse_args()
    if args.kind == "digits":
        write_digits(args.folder)
    else:
        write_rendered(args.folder, args.train, args.val)
    return 0


if __name__ == "__main__":
    sys.exit(main())
