"""Views of one picture for inference: the plain test view, or the scaled and flipped views of test-time augmentation.

Follows mmsegmentation 1.2.2's `TestTimeAug` recipe: every view is resized from the original picture by a factor that
keeps its ratio, then flipped; the model averages the softmax of all views at the picture's own size
(`EncoderDecoder.predict_augmented`).
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from jseg.data.transforms import Compose, LoadBands, LoadImageFromFile
from jseg.registry import TRANSFORMS

__all__ = ["DEFAULT_SCALES", "picture_reader", "picture_scale", "test_transforms", "plain_view", "augment"]

DEFAULT_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # mmseg's img_ratios


def test_transforms(config: dict) -> Compose:
    """The resizing of the config's test (else val) pipeline, without reading files:
    what a bare picture goes through.
    """
    return Compose([step for step in _pipeline(config) if _fact(step, "on_bare_pictures", True)])


def picture_reader(config: dict) -> LoadBands | LoadImageFromFile:
    """The step of the same pipeline that reads pictures."""
    return Compose([step for step in _pipeline(config) if _fact(step, "reads_pictures", False)][:1]).reader


def picture_scale(config: dict) -> str:
    """How it reads 16-bit pictures, see `jseg.data.io.read_image`."""
    return picture_reader(config).scale


def _fact(step: dict, name: str, default: bool) -> bool:
    """What the class of a step declares; an unknown class is left to `Compose`, which names it."""
    kind = step.get("type")
    return getattr(TRANSFORMS.get(kind), name, default) if isinstance(kind, str) and kind in TRANSFORMS else default


def _pipeline(config: dict) -> list[dict]:
    loader = config.get("test_dataloader") or config.get("val_dataloader") or {}
    return (loader.get("dataset") or {}).get("pipeline") or []


def _sample(image: np.ndarray, name: str) -> dict:
    return {"img": image, "img_path": name, "ori_shape": image.shape[:2], "img_shape": image.shape[:2],
            "scale_factor": (1.0, 1.0), "flip": False, "flip_direction": None}


def plain_view(image: np.ndarray, transforms: Compose, *, name: str = "picture") -> dict:
    """The one view of ordinary inference: image (H, W, 3) uint8 BGR, or of LoadBands, through the test transforms;
    `name` is for messages.
    """
    return transforms(_sample(image, name), np.random.default_rng(0))


def augment(image: np.ndarray, *, scales: Sequence[float] = DEFAULT_SCALES, flip: bool = True,
            name: str = "picture") -> list[dict]:
    """All views of test-time augmentation: each scale, plain and (if `flip`) mirrored, in mmseg's order.

    Args:
        image: (H, W, 3) uint8 BGR, or of LoadBands.
        scales: factors > 0 on the picture's own size.
        flip: also mirror each scale.
        name: the picture's name in messages.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"tta.scales is {list(scales)}; accepted: at least one factor, each above 0")
    rng = np.random.default_rng(0)
    views = []
    for scale in scales:
        resize = Compose([{"type": "Resize", "scale_factor": scale, "keep_ratio": True}])
        for probability in (0.0, 1.0) if flip else (0.0,):
            turn = Compose([{"type": "RandomFlip", "prob": probability, "direction": "horizontal"}])
            views.append(turn(resize(_sample(image, name), rng), rng))
    return views
