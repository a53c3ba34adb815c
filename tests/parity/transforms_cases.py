"""The pictures and transforms on which jseg is compared with MMSegmentation; both sides import this file."""

import hashlib

import cv2
import numpy as np

IGNORE = 255
NAMES = ("img", "gt_seg_map")


def scene(seed: int, height: int = 61, width: int = 83, classes: int = 12) -> dict:
    """A made-up sample: smooth colours with noise and a mask of random rectangles, some of them ignored."""
    rng = np.random.default_rng(seed)
    ramps = rng.integers(0, 256, (4, 3))
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    img = (ramps[0] * y // height + ramps[1] * x // width + ramps[2] * ((x // 9 + y // 7) % 2)) // 2
    img = np.clip(img + rng.integers(-30, 31, (height, width, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(14):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        label = int(rng.integers(classes + 1))
        color = rng.integers(0, 256, 3)
        area = slice(top, top + int(rng.integers(5, 30))), slice(left, left + int(rng.integers(5, 40)))
        mask[area] = IGNORE if label == classes else label
        img[area] = (img[area] // 2 + color // 2).astype(np.uint8)
    return {"img": img, "gt_seg_map": mask, "img_shape": (height, width), "ori_shape": (height, width)}


def others(seed: int) -> list[dict]:
    """Three samples of other sizes, for the mosaic."""
    return [scene(seed + 100, 40, 70), scene(seed + 200, 77, 33), scene(seed + 300, 64, 64)]


# (block as a config writes it, how many draws to compare); lists stand where MMSegmentation wants tuples
CASES = [
    ({"type": "Resize", "scale": [64, 64]}, 1),
    ({"type": "Resize", "scale": [97, 40], "interpolation": "bicubic"}, 1),
    ({"type": "Resize", "scale": 50, "interpolation": "area"}, 1),
    ({"type": "Resize", "scale": [128, 40], "keep_ratio": True}, 1),
    ({"type": "Resize", "scale": [40, 128], "keep_ratio": True, "interpolation": "lanczos"}, 1),
    ({"type": "Resize", "scale_factor": 0.5}, 1),
    ({"type": "Resize", "scale_factor": [1.25, 0.75], "keep_ratio": True, "interpolation": "nearest"}, 1),
    ({"type": "ResizeShortestEdge", "scale": 48, "max_size": 60}, 1),
    ({"type": "ResizeShortestEdge", "scale": [48, 90], "max_size": 200}, 1),
    ({"type": "RandomResize", "scale": [96, 64], "ratio_range": [0.5, 2.0], "keep_ratio": True}, 5),
    ({"type": "RandomResize", "scale": [96, 64], "ratio_range": [0.5, 2.0]}, 2),
    ({"type": "RandomResize", "scale": [[40, 100], [90, 50]], "keep_ratio": True}, 3),
    ({"type": "RandomChoiceResize", "scales": [[64, 48], [96, 64], [33, 77]], "keep_ratio": True}, 3),
    ({"type": "RandomChoiceResize", "scales": [32, 48, 64], "resize_type": "ResizeShortestEdge", "max_size": 80}, 3),
    ({"type": "ResizeToMultiple", "size_divisor": 32}, 1),
    ({"type": "ResizeToMultiple", "size_divisor": [8, 20], "interpolation": "bicubic"}, 1),
    ({"type": "RandomCrop", "crop_size": [32, 48]}, 3),
    ({"type": "RandomCrop", "crop_size": [24, 24], "cat_max_ratio": 0.6}, 3),
    ({"type": "RandomCrop", "crop_size": 70}, 1),
    ({"type": "RandomFlip", "prob": 0.5}, 3),
    ({"type": "RandomFlip", "prob": 1.0, "direction": ["horizontal", "vertical", "diagonal"]}, 5),
    ({"type": "RandomFlip", "prob": [0.4, 0.6], "direction": ["horizontal", "vertical"],
      "swap_seg_labels": [[1, 5], [2, 3]]}, 2),
    ({"type": "RandomRotate", "prob": 0.75, "degree": 20}, 4),
    ({"type": "RandomRotate", "prob": 1.0, "degree": [-180, 180], "pad_val": [10, 120, 230], "seg_pad_val": 7}, 3),
    ({"type": "RandomRotate", "prob": 1.0, "degree": 45, "auto_bound": True}, 3),
    ({"type": "RandomRotate", "prob": 1.0, "degree": 45, "center": [10.5, 20.0]}, 2),
    ({"type": "RandomCutOut", "prob": 1.0, "n_holes": 3, "cutout_shape": [12, 7], "seg_fill_in": 255}, 2),
    ({"type": "RandomCutOut", "prob": 0.7, "n_holes": [1, 4], "cutout_ratio": [[0.1, 0.3], [0.5, 0.25]],
      "fill_in": [9, 99, 199]}, 4),
    ({"type": "PhotoMetricDistortion"}, 16),
    ({"type": "PhotoMetricDistortion", "brightness_delta": 80, "contrast_range": [0.1, 3.0],
      "saturation_range": [0.1, 3.0], "hue_delta": 90}, 6),
    ({"type": "CLAHE"}, 1),
    ({"type": "CLAHE", "clip_limit": 2.0, "tile_grid_size": [4, 3]}, 1),
    ({"type": "AdjustGamma", "gamma": 2.2}, 1),
    ({"type": "AdjustGamma", "gamma": 0.4}, 1),
    ({"type": "Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}, 1),
    ({"type": "Normalize", "mean": [127.5, 127.5, 127.5], "std": [1.0, 2.0, 4.0], "to_rgb": False}, 1),
    ({"type": "Pad", "size": [96, 70]}, 1),
    ({"type": "Pad", "size": [70, 96], "pad_val": {"img": [1, 2, 3], "seg": 254}}, 1),
    ({"type": "Pad", "size_divisor": 32, "pad_val": 17}, 1),
    ({"type": "Pad", "pad_to_square": True, "padding_mode": "reflect"}, 1),
    ({"type": "Pad", "size_divisor": 48, "padding_mode": "symmetric"}, 1),
    ({"type": "Pad", "size_divisor": 48, "padding_mode": "edge"}, 1),
    ({"type": "RandomMosaic", "prob": 1.0, "img_scale": [48, 64]}, 3),
    ({"type": "RandomMosaic", "prob": 1.0, "img_scale": [90, 50], "center_ratio_range": [0.0, 2.0], "pad_val": 114,
      "seg_pad_val": 250}, 3),
]


def fingerprint(array: np.ndarray) -> list:
    """What is kept of a result: shape, type, start of the sha256 of its bytes,
    mean, and 2 x 2 pixels from its middle.
    """
    array = np.ascontiguousarray(array)
    h, w = array.shape[0] // 2, array.shape[1] // 2
    middle = array[max(h - 1, 0):h + 1, max(w - 1, 0):w + 1].ravel()
    return [list(array.shape), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()[:16],
            round(float(array.mean(dtype=np.float64)), 4), [round(float(v), 4) if v % 1 else int(v) for v in middle]]


def opencv_identity() -> str:
    """Start of a sha256 over what OpenCV's interpolating and float operations give on this processor.

    Releases of OpenCV, and one release on processors with other vector instructions, round some of them differently
    (bicubic resizing, conversion from and to HSV). Where this text differs, results of such operations cannot agree to
    the bit.
    """
    img = scene(0, 120, 160)["img"]
    hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
    turn = cv2.getRotationMatrix2D((70.5, 50.0), 33.3, 1.0)
    results = [cv2.resize(img, size, interpolation=way) for way in range(5) for size in ((97, 40), (211, 190))]
    results += [hsv, cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), cv2.warpAffine(img, turn, (150, 110)),
                cv2.createCLAHE(40.0, (8, 8)).apply(img[..., 0]),
                cv2.multiply(cv2.subtract(img.astype(np.float32), np.full((1, 3), 103.53)),
                             np.full((1, 3), 1 / 57.375))]
    return hashlib.sha256(b"".join(result.tobytes() for result in results)).hexdigest()[:16]
