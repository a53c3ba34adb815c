"""What jseg's CUDA kernels launch for a call, by the same rules as the host code of `jseg/ops/*/cuda.cuh`: kernel,
grid, bytes, multiply-adds. tests/ops/test_gpu_launches.py holds these rules against the host code itself.

Bytes are each tensor once: what a kernel reads again is taken to be in the second-level cache. Products on tensor cores
are counted by whole tiles, edges included, as the hardware computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

__all__ = ["Call", "Launch", "launches_of", "SYMBOLS"]

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4}
HIDDEN_BYTES = 256 << 20   # of mix_ffn's hidden tensors at once
BIG_TILES = 128            # blocks that make the large tile worth while


@dataclass(frozen=True)
class Call:
    """A call of an entry point.

    Args:
        symbol: without its type.
        inputs, outputs: (shape, dtype) of each tensor, None for an absent one.
        scalars: the call's numbers.
    """

    symbol: str
    inputs: list
    outputs: list
    scalars: list

    def given(self, i: int) -> bool:
        """Whether input i was passed."""
        return i < len(self.inputs) and self.inputs[i] is not None

    @property
    def item(self) -> int:
        """Bytes of a value of the maps."""
        return SIZES[self.inputs[0][1]]


@dataclass(frozen=True)
class Launch:
    """One launch.

    Args:
        kernel: function name, for `tensor_tile` with its tile.
        blocks, threads: the grid.
        size: bytes read and written.
        adds: multiply-adds of ordinary arithmetic.
        products: multiply-adds on tensor cores, edges of tiles included.
        rounded: what their factors are, "tf32" or "half"; "" for none.
        stretches: of work, with a barrier of the whole grid between one and the next.
    """

    kernel: str
    blocks: int
    threads: int
    size: float
    adds: float = 0.0
    products: float = 0.0
    rounded: str = ""
    stretches: int = 1


def launches_of(call: Call) -> list[Launch]:
    """The launches of a call, in order.

    Raises:
        KeyError: no rule for this symbol.
    """
    return SYMBOLS[call.symbol](call)


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _each(kernel: str, count: int, size: float, adds: float = 0.0, threads: int = 256) -> Launch:
    """A thread an element."""
    return Launch(kernel, _up(count, threads), threads, size, adds)


# ---- products --------------------------------------------------------------------------------------------------------
def _tiles(batches: int, m: int, n: int, k_each: int, splits: int, rounded: str, size: float) -> Launch:
    def blocks(bm, bn):
        return batches * splits * _up(m, bm) * _up(n, bn)

    depth = 16 if rounded == "tf32" else 32
    if n <= 16:
        bm, bn, threads = 128, 16, 128
    elif m > 64 and n > 64 and blocks(128, 128) >= BIG_TILES:
        bm, bn, threads = 128, 128, 256
    else:
        bm, bn, threads = 64, 64, 128
    count = blocks(bm, bn)
    return Launch(f"tensor_tile<{bm}, {bn}, {rounded}>", count, threads, size,
                  products=count * bm * bn * _up(k_each, depth) * depth, rounded=rounded)


def _product(batches: int, m: int, n: int, k: int, rounded: str, size: float) -> Launch:
    return _tiles(batches, m, n, k, 1, rounded, size)


def _cut(batches: int, m: int, n: int, k: int) -> int:
    """Depth of each part of a long sum."""
    tiles = batches * (_up(m, 128) if n <= 16 else _up(m, 64) * _up(n, 64))
    return _up(_up(k, min(_up(512, tiles), _up(k, 64))), 32) * 32


def _reduction(batches: int, m: int, n: int, k: int, rounded: str, size: float, *, over_batches: bool) -> list[Launch]:
    """A product whose sum is long, in parts that a second launch adds up; size: bytes of both factors."""
    each = _cut(batches, m, n, k)
    splits = _up(k, each)
    parts, rows = 4.0 * batches * splits * m * n, 1 if over_batches else batches
    return [_tiles(batches, m, n, each, splits, rounded, size + parts),
            _each("sum_parts", rows * m * n, parts + 4.0 * rows * m * n)]


def _of(call: Call) -> str:
    """What factors are rounded to where one is a map and the other a parameter."""
    return "tf32" if call.item == 4 else "half"


def _of_slopes(call: Call, size: int) -> str:
    """And where one is a gradient of `size` bytes a value, the other a map."""
    if call.item == 4 or (size == 4 and call.inputs[0][1] == "float16"):
        return "tf32"
    return "half"


def _pointwise_forward(call: Call) -> list[Launch]:
    n, c, d, p = map(int, call.scalars[:4])
    maps = 1 + sum(call.given(i) for i in (3, 4, 8))
    fold = [Launch("fold_affine", d, 256, 8.0 * d * c)] if call.given(9) else []
    return [*fold, _product(n, d, p, c, _of(call), 4.0 * d * c + call.item * n * p * (c + maps * d))]


def _pointwise_backward(call: Call) -> list[Launch]:
    n, c, d, p, gelu = map(int, call.scalars[:5])
    e, maps, w = call.item, n * d * p, 4.0 * d * c
    again, scaled = bool(gelu) or len(call.inputs) > 4, call.given(6)
    found = []
    if again:
        extra = call.given(4) + call.given(5)
        more = maps * (e * (1 + 2 * extra) + 4 + 4 * scaled)
        found.append(_product(n, d, p, c, _of(call), w + e * n * c * p + more))
        if scaled:
            found.append(Launch("row_sums", d, 256, 4.0 * maps))
    g = 4 if again else e
    found.append(_product(n, c, p, d, "tf32" if g == 4 else "half", w + g * maps + e * n * c * p))
    found += _reduction(n, d, c, p, _of_slopes(call, g), g * maps + e * n * c * p, over_batches=True)
    return [*found, Launch("row_sums", d, 256, g * maps)]


def _pointwise_fold(call: Call) -> list[Launch]:
    sides = [tuple(map(int, call.scalars[1 + 3 * i:3 + 3 * i])) for i in range(int(call.scalars[0]))]
    return [Launch("fold_norms", sum(d for d, _ in sides), 256, sum(8.0 * d * c for d, c in sides))]


# ---- depthwise and msca ----------------------------------------------------------------------------------------------
def _side(h: int, w: int) -> int:
    return 16 if h <= 16 and w <= 16 else 32


def _depthwise_tile(n: int, c: int, h: int, w: int, k: int, size_in: int, size_out: int) -> Launch:
    side = _side(h, w)
    each = _up(h, side) * _up(w, side)
    return Launch(f"depthwise_tile<{k}, {side}, {side // 4}>", n * c * each, side * (side // 4),
                  float(n * c * h * w * (size_in + size_out)), float(n * c * each * side * side * k * k))


def _depthwise_back(n: int, c: int, h: int, w: int, k: int, size: float, gelu: bool) -> list[Launch]:
    """size: bytes a pixel."""
    side = _side(h, w)
    each = _up(h, side) * _up(w, side)
    parts = 4.0 * n * c * each * (k * k + 1)
    passes = (2 + gelu * (side + 2 * (k // 2)) ** 2 / side ** 2) * n * c * each * side * side * k * k
    return [Launch(f"depthwise_tile_backward<{k}, {side}, {side // 4}>", n * c * each, side * (side // 4),
                   n * c * h * w * size + parts, passes),
            _each("sum_filter_parts", c * (k * k + 1) * 32, parts)]


STRIPS, REACH, STRIP_ROWS = 7 + 11 + 21, 10, 32


def _msca_forward(call: Call) -> list[Launch]:
    n, c, h, w = map(int, call.scalars[:4])
    tw = 32 if w <= 32 else 64
    each, rows = _up(w, tw) * _up(h, STRIP_ROWS), STRIP_ROWS + 2 * REACH
    adds = 25 * rows * (tw + 2 * REACH) + STRIPS * (rows + STRIP_ROWS) * tw
    return [Launch(f"msca_tile<{tw}>", n * c * each, 256, 2.0 * call.item * n * c * h * w, float(n * c * each * adds))]


def _msca_backward(call: Call) -> list[Launch]:
    n, c, h, w = map(int, call.scalars[:4])
    each, rows, sums = _up(w, 32) * _up(h, 32), 32 + 2 * REACH, 2 * (STRIPS + 3)
    adds, parts = 25 * rows * rows + STRIPS * (2 * rows * 32 + 3 * 32 * 32), 4.0 * n * c * each * sums
    return [Launch("msca_tile_backward", n * c * each, 256, n * c * h * w * (2.0 * call.item + 4) + parts,
                   float(n * c * each * adds)), _each("sum_strip_parts", c * sums * 32, parts),
            *_depthwise_back(n, c, h, w, 5, 2.0 * call.item + 4, False)]


# ---- mix_ffn ---------------------------------------------------------------------------------------------------------
def _groups(n: int, hidden: int) -> list[int]:
    """Pictures of each turn; hidden: bytes of a picture's hidden tensors."""
    group = min(max(HIDDEN_BYTES // hidden, 1), n)
    return [min(group, n - first) for first in range(0, n, group)]


def _mix_forward(call: Call) -> list[Launch]:
    n, c, e, d, h, w = map(int, call.scalars[:6])
    p, t = h * w, call.item
    found = [Launch("fold_affine", e, 256, 8.0 * e * c)] if call.given(10) else []
    for images in _groups(n, e * p * 2 * t):
        found += [_product(images, e, p, c, _of(call), 4.0 * e * c + t * images * p * (c + e)),
                  _depthwise_tile(images, e, h, w, 3, t, t),
                  _product(images, d, p, e, _of(call), 4.0 * e * d + t * images * p * (e + d * (1 + call.given(9))))]
    return found


def _mix_backward(call: Call) -> list[Launch]:
    n, c, e, d, h, w = map(int, call.scalars[:6])
    p, t = h * w, call.item
    scaled, dropped = call.given(8), call.given(9)
    found = [_each("affine_rows", d * e, 8.0 * d * e)] if scaled else []
    for images in _groups(n, e * p * (12 if t == 4 else 2 * t + 8)):
        found += [_product(images, e, p, c, _of(call), 4.0 * e * c + t * images * p * (c + e)),
                  _depthwise_tile(images, e, h, w, 3, t, t)]
        if dropped:
            found.append(_each("affine_rows", images * d * p, images * d * p * (t + 4.0)))
        g = 4 if dropped else t
        found += _reduction(images, d, e, p, _of_slopes(call, g), images * p * float(g * d + t * e), over_batches=True)
        found += [Launch("row_sums", d, 256, float(g * images * d * p)),
                  _product(images, e, p, d, "tf32" if g == 4 else "half", 4.0 * e * d + images * p * (g * d + 4 * e)),
                  *_depthwise_back(images, e, h, w, 3, t + 8.0, True),
                  *_reduction(images, e, c, p, _of_slopes(call, 4), images * p * float(4 * e + t * c),
                              over_batches=True),
                  Launch("row_sums", e, 256, 4.0 * images * e * p),
                  _product(images, c, p, e, "tf32", 4.0 * e * c + images * p * (4 * e + t * c))]
    return [*found, *([Launch("finish_scale", d, 256, 12.0 * d * e)] if scaled else [])]


# ---- nmf: N D L R steps inv_t eps one_step save; all in one launch ------------------------------------------------
class _Nmf:
    """Parts of its work as launches of their own, to be added up."""

    THREADS = 128

    def __init__(self, call: Call):
        self.n, self.d, self.l, self.r, self.steps = map(int, call.scalars[:5])
        self.one_step, self.t = bool(call.scalars[7]), call.item
        self.passes_with_grams = 0

    def to_rank(self, m: int, k: int, each: int, size: float) -> Launch:
        """(m, R) from a sum over k, in parts of `each`; size: bytes of the factors."""
        bm, bn = (128, 16) if self.r <= 16 else (64, 64)
        blocks, parts = self.n * _up(k, each) * _up(m, bm) * _up(self.r, bn), 4.0 * self.n * _up(k, each) * m * self.r
        return Launch("", blocks, self.THREADS, size + parts, products=blocks * bm * bn * _up(each, 16) * 16)

    def top(self, of_coef: bool) -> Launch:
        """x^T b or x c."""
        m, k = (self.l, self.d) if of_coef else (self.d, self.l)
        return self.to_rank(m, k, _cut(self.n, m, self.r, k),
                            self.n * (self.t * self.d * self.l + 4.0 * k * self.r))

    def gram(self, rows: int) -> Launch:
        most = max(1, 65536 // (self.r * self.r))
        each = max(_cut(self.n, self.r, self.r, rows), _up(_up(rows, most), 32) * 32)
        return self.to_rank(self.r, rows, each, 4.0 * self.n * rows * self.r)

    def product(self, size: int) -> Launch:
        """(D, L) from both factors; size: bytes of a value, counted twice where it is added to."""
        blocks = self.n * _up(self.d, 64) * _up(self.l, 64)
        return Launch("", blocks, self.THREADS, self.n * (4.0 * (self.d + self.l) * self.r + size * self.d * self.l),
                      products=blocks * 64 * 64 * _up(self.r, 16) * 16)

    def each(self, of_coef: bool, tensors: int, grams: int = 1) -> Launch:
        """A pass over a factor: it reads the parts of what `top` made, a row and a gram matrix an element."""
        rows, inner = (self.l, self.d) if of_coef else (self.d, self.l)
        count = self.n * rows * self.r
        parts = _up(inner, _cut(self.n, rows, self.r, inner))
        rows_each = max(1, self.THREADS // self.r)
        self.passes_with_grams += 1
        return Launch("", self.n * _up(rows, rows_each), self.THREADS, 4.0 * (tensors + parts) * count,
                      float(count * self.r * grams))

    def together(self, most: list[list[Launch]], work: list[Launch], barriers: int) -> Launch:
        """All of it; most: what is done between two barriers, where many blocks find work."""
        if self.r > 64:   # gram matrices are added up by themselves, behind a barrier more
            barriers += self.passes_with_grams
        return Launch("run_steps", max(sum(one.blocks for one in some) for some in most), self.THREADS,
                      sum(one.size for one in work), sum(one.adds for one in work), sum(one.products for one in work),
                      "tf32", 1 + barriers)


def _nmf_forward(call: Call) -> list[Launch]:
    m = _Nmf(call)
    of_coef = [m.top(True), m.gram(m.d), m.each(True, 3)]
    work = [*of_coef, m.product(m.t)]
    for _ in range(m.steps):
        work += [m.top(False), m.gram(m.l), m.each(False, 3), m.top(True), m.gram(m.d), m.each(True, 3)]
    return [m.together([of_coef[:2], [m.top(False), m.gram(m.l)], work[3:4], of_coef[2:]], work, 2 + 4 * m.steps)]


def _nmf_backward(call: Call) -> list[Launch]:
    m = _Nmf(call)
    kept = 0 if m.one_step else m.steps
    of_coef, of_bases = [m.top(True), m.gram(m.d)] * 2, [m.top(False), m.gram(m.l)] * 2
    work = [*of_coef[:3], m.each(True, 6), m.product(m.t)]
    if not m.one_step:
        work += [*of_bases, m.top(False), m.each(False, 6, 3)]
    for _ in range(kept):
        work += [m.product(8), *of_coef, m.each(True, 7, 3), m.product(8), *of_bases, m.each(False, 7, 3)]
    return [m.together([of_coef, [*of_bases, work[4]], work[3:4]], work, 2 if m.one_step else 4 * kept + 3)]


# ---- the others ------------------------------------------------------------------------------------------------------
def _norm_forward(call: Call) -> list[Launch]:
    n, c, p, groups = map(int, call.scalars[:4])
    count, e = n * c * p, call.item
    runs, length = (n * groups, c // groups * p) if groups else (n * c, p)
    return [Launch("normalise_together", max(runs * _up(length, 4096), n * c * _up(p, 1024)), 256,
                   float(e * count * (3 + call.given(3))), stretches=2)]


def _norm_position_forward(call: Call) -> list[Launch]:
    n, c, p = map(int, call.scalars[:3])
    return [Launch("normalise_positions", n * _up(p, 32), 256, 2.0 * call.item * n * c * p)]


def _norm_backward(call: Call) -> list[Launch]:
    n, c, p, groups = map(int, call.scalars[:4])
    position, cuts, e = "position" in call.symbol, _up(p, 1024), call.item
    maps = 1 + sum(call.given(i) for i in (3, 6, 7))   # read by both passes
    whole = float(e * n * c * p)
    between = (Launch("position_means", n * _up(p, 32), 256, whole * maps) if position else
               Launch("finish_sets", n * groups if groups else c, 64, 8.0 * n * c * cuts))
    return [Launch("row_parts", n * c * cuts, 256, whole * maps), Launch("finish_channels", c, 64, 8.0 * n * c * cuts),
            between, Launch("back_to_input", n * c * cuts, 256,
                            whole * (maps + 1 + call.given(8) + (len(call.outputs) > 3)))]


def _axes(*sizes: int) -> list[Launch]:
    return [_each("fill_axis", size, 16.0 * size) for size in sizes]


def _resize(call: Call) -> list[Launch]:
    planes, h, w, height, width = map(int, call.scalars[:5])
    back = call.symbol.endswith("backward")
    small, large = planes * h * w, planes * height * width
    size = float(call.item * (small + large * (1 + (not back and call.given(1)))))
    if back:
        return [*_axes(max(h + 1, height), max(w + 1, width)), _each("gather_planes", small, size, 4.0 * large)]
    cuts = _up(height * width, 256)
    each = min(max(planes * cuts // 1024, 1), 8)   # planes of a block
    return [Launch("resize_planes", cuts * _up(planes, each), 256, size, 4.0 * large)]


def _readout(call: Call) -> list[Launch]:
    """Counted as if no class were passed over: which ones are depends on the scores."""
    n, k, h, w, height, width, prob, taps = map(int, call.scalars[:8])
    pixels = n * height * width
    return [Launch(f"best_class<{taps}>", n * _up(height, 8) * _up(width, 32), 256,
                   float(call.item * n * k * h * w + pixels * (int(call.scalars[8]) + 4 * prob)),
                   float(pixels * k * taps * 2))]


def _cross_entropy(call: Call) -> list[Launch]:
    n, k, h, w, height, width = map(int, call.scalars[:6])
    pixels, scores, with_grad = n * height * width, n * k * h * w, bool(call.scalars[10])
    found = [*_axes(max(h + 1, height), max(w + 1, width)),
             _each("pixel_losses", pixels, float(call.item * scores + pixels * (4 + 16 * with_grad)),
                   12.0 * pixels * k),
             Launch("finish_losses", 1, 256, 24.0 * _up(pixels, 256))]
    if with_grad:
        size = float((call.item + 4) * scores + 16 * pixels)
        found.append(_each("score_grads", scores, size, 12.0 * pixels * k, 128))
    return found


def _adamw(call: Call) -> list[Launch]:
    def elements(tensor) -> int:
        count = 1
        for side in tensor[0]:
            count *= side
        return count

    length = sum(_up(elements(g), 16) * 16 for g in call.inputs[3:])
    return [Launch("advance", _up(length, 8192), 256, 28.0 * length, 8.0 * length)]


SYMBOLS: dict[str, Callable[[Call], list[Launch]]] = {
    "jseg_pointwise_forward": _pointwise_forward, "jseg_pointwise_backward": _pointwise_backward,
    "jseg_pointwise_fold": _pointwise_fold,
    "jseg_msca_forward": _msca_forward, "jseg_msca_backward": _msca_backward,
    "jseg_mix_ffn_forward": _mix_forward, "jseg_mix_ffn_backward": _mix_backward,
    "jseg_nmf_forward": _nmf_forward, "jseg_nmf_backward": _nmf_backward,
    "jseg_norm_forward": _norm_forward, "jseg_norm_backward": _norm_backward,
    "jseg_norm_position_forward": _norm_position_forward, "jseg_norm_position_backward": _norm_backward,
    "jseg_bilinear_resize_forward": _resize, "jseg_bilinear_resize_backward": _resize,
    "jseg_readout_run": _readout, "jseg_upsample_cross_entropy_run": _cross_entropy, "jseg_adamw_run": _adamw,
}
