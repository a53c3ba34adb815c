"""Shapes of attention for tests and benchmarks.

n pictures or windows, l queries, m keys; width of queries and keys, out of values.
"""

import numpy as np

from jseg.ops.attention.op import attention
from jseg.ops.case import Case

CASES = [
    Case("one_token", n=1, l=1, m=1, heads=1, width=1),
    Case("odd", n=2, l=5, m=7, heads=3, width=9, out=11),
    Case("one_query", n=2, l=1, m=70, heads=2, width=8),
    Case("two_keys", n=1, l=19, m=2, heads=2, width=5),
    Case("windows_odd", n=4, l=49, m=49, heads=3, width=32, packed=3, bias=True, mask=2),
    Case("windows_small", n=6, l=9, m=9, heads=2, width=7, packed=3, bias=True, mask=3),
    Case("many_windows", n=40, l=4, m=4, heads=1, width=5, packed=3, bias=True),
    Case("bias_each", n=3, l=18, m=21, heads=2, width=8, bias="each"),
    Case("spatial_reduction", n=1, l=150, m=33, heads=2, width=16, packed=2),
    Case("several_blocks", n=1, l=130, m=150, heads=1, width=12, bias=True, mask=1),
    Case("segments", n=1, l=600, m=20, heads=1, width=8, packed=2, bias=True),
    Case("many_keys", n=1, l=3, m=1000, heads=2, width=8),
    Case("wide_heads", n=1, l=20, m=40, heads=1, width=128),
    Case("wider_heads", n=1, l=18, m=17, heads=2, width=70, out=150),
    Case("key_padding", n=3, l=17, m=30, heads=2, width=8, mask=3, mask_rows=1, masked="keys"),
    Case("masked_rows", n=2, l=20, m=18, heads=2, width=8, bias=True, mask=2, masked="rows"),
    Case("large_logits", n=1, l=24, m=50, heads=2, width=16, size=4.0),
    Case("scaled", n=1, l=10, m=12, heads=2, width=4, scale=0.7),
    Case("plain_8x1024x64", n=1, l=1024, m=1024, heads=8, width=64, bench=True),
    Case("swin_t_windows", n=64, l=49, m=49, heads=3, width=32, packed=3, bias=True, bench=True),
    Case("swin_t_shifted", n=64, l=49, m=49, heads=3, width=32, packed=3, bias=True, mask=64, bench=True),
    Case("segformer_b0_stage1", n=1, l=16384, m=256, heads=1, width=32, packed=2, bench=True),
    Case("segformer_b0_stage3", n=1, l=1024, m=256, heads=5, width=32, packed=2, bench=True),
    Case("vit_b_packed", n=1, l=1025, m=1025, heads=12, width=64, packed=3, bench=True),
]
GRADS = ["q", "k", "v", "bias"]
FLOOR = 1e-6


def make(case, rng):
    """Queries, keys and values of unit variance (times `size`), packed as the case says."""
    n, heads, width, options = case.n, case.heads, case.width, case.options
    out, size, packed = options.get("out", width), options.get("size", 1.0), options.get("packed", 0)
    q, k = (size * rng.standard_normal((n, length, heads, width)) for length in (case.l, case.m))
    v = rng.standard_normal((n, case.m, heads, out))
    inputs = {3: {"q": (q, k, v)}, 2: {"q": (q,), "k": (k, v)}, 0: {"q": (q,), "k": (k,), "v": (v,)}}[packed]
    inputs = {name: parts[0] if len(parts) == 1 else np.stack(parts, 2) for name, parts in inputs.items()}
    if "bias" in options:
        inputs["bias"] = rng.standard_normal((*[n][:case.bias == "each"], heads, case.l, case.m))
    if "mask" in options:
        shape = case.mask, options.get("mask_rows", case.l), case.m
        inputs["mask"] = _mask(shape, options.get("masked", "some"), rng)
    return inputs | {name: options[name] for name in ("scale",) if name in options}


def _mask(shape, kind, rng):
    """0 and -100 as Swin's, -inf for the last keys or for whole rows."""
    mask = np.where(rng.random(shape) < 0.3, -100.0, 0.0)
    if kind == "keys":
        mask[..., shape[2] // 2:] = -np.inf
    elif kind == "rows":
        mask[rng.random(shape) < 0.3] = -np.inf
        mask[:, ::3] = -np.inf
    return mask


def call(inputs, impl):
    """y (N, L, G, E)."""
    return attention(**inputs, impl=impl)
