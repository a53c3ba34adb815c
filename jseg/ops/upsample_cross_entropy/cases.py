"""Shapes of upsample_cross_entropy for tests and benchmarks."""

from jseg.ops.case import Case
from jseg.ops.upsample_cross_entropy.op import upsample_cross_entropy

CASES = [
    Case("one_pixel", n=1, k=3, size=(1, 1), out=(1, 1)),
    Case("one_class", n=1, k=1, size=(2, 3), out=(5, 4)),
    Case("odd", n=2, k=5, size=(6, 7), out=(19, 23)),
    Case("same_size", n=1, k=17, size=(9, 8), out=(9, 8)),
    Case("align_corners", n=1, k=16, size=(5, 9), out=(17, 40), align_corners=True),
    Case("downwards", n=2, k=7, size=(20, 31), out=(9, 10)),
    Case("one_source_row", n=1, k=33, size=(1, 6), out=(8, 11), align_corners=True),
    Case("non_ignored_mean", n=2, k=19, size=(4, 5), out=(16, 20), avg_non_ignore=True),
    Case("class_weight", n=2, k=6, size=(5, 4), out=(21, 15), weighted=True),
    Case("class_weight_non_ignored", n=2, k=6, size=(5, 4), out=(21, 15), weighted=True, avg_non_ignore=True),
    Case("pixel_weight", n=1, k=8, size=(5, 4), out=(20, 16), pixels=True),
    Case("per_pixel", n=2, k=11, size=(5, 4), out=(20, 16), weighted=True, pixels=True, reduction="none"),
    Case("all_ignored", n=1, k=4, size=(2, 2), out=(8, 8), ignored=1.0),
    Case("wide_scores", n=1, k=21, size=(4, 4), out=(16, 16), scale=200.0),
    Case("camvid", n=2, k=11, size=(64, 64), out=(512, 512), bench=True),
    Case("ade20k", n=2, k=150, size=(64, 64), out=(512, 512), bench=True),
]
GRADS = ["logits"]
FLOOR = 1e-6


def make(case, rng):
    """Random logits and labels, a fifth of them ignored."""
    options = case.options
    n, k, size, out = case.n, case.k, case.size, case.out
    labels = rng.integers(0, k, (n, *out))
    labels[rng.random(labels.shape) < options.get("ignored", 0.2)] = 255
    inputs = {"logits": rng.standard_normal((n, k, *size)) * options.get("scale", 3.0), "labels": labels}
    inputs.update({name: options[name] for name in ("align_corners", "avg_non_ignore", "reduction") if name in options})
    if "weighted" in options:
        inputs["class_weight"] = rng.random(k) + 0.5
    if "pixels" in options:
        inputs["pixel_weight"] = rng.random((n, *out)) * (rng.random((n, *out)) < 0.7)
    return inputs


def call(inputs, impl):
    """Loss and accuracy."""
    return upsample_cross_entropy(**inputs, impl=impl)
