// Correlation of one padded plane with one small filter, and the gradient of the filter: the parts depthwise and msca
// share.
//
//   correlate:       dst[y][x] (+)= bias + sum_t weight[t] * src[y * ld + x + offset(t)]      for y < rows, x < width
//   correlate_grad:  sums[t]    += sum_{y, x} g[y][x] * src[y * ld + x + offset(t)]
//
// Rows are computed in whole vectors: src must be readable to the rounded width plus the filter, lanes beyond `width`
// are stored as zero, and g must be zero there. Fixed filter sizes keep the weights in registers and take R rows at a
// time, so that a loaded vector serves several rows; any other filter goes through a list of offsets.
#pragma once
#include "vec.h"

namespace jseg {

struct Pass {
    const float* src;         // the first tap of output (0, 0)
    int64_t ld;               // floats from one output row's taps to the next row's
    float* dst;
    int64_t dst_ld;
    int64_t rows, width;
    int taps;                 // used by the general version only, with
    const int64_t* offsets;   // one per tap
};
using Correlate = void (*)(const Pass&, const float* weight, float bias, bool add);
using CorrelateGrad = void (*)(const Pass&, double* sums);   // dst, dst_ld is g here (only read)

JSEG_INLINE void emit(const Pass& p, int64_t y, int64_t x, V v, bool add) {
    float* d = p.dst + y * p.dst_ld + x;
    if (add) v += load(d);
    if (x + VL > p.width) v = keep_first(v, static_cast<int>(p.width - x));
    store(d, v);
}

template <int KH, int KW, int R>
JSEG_INLINE void window(const float* s, int64_t ld, const V* w, V* acc) {
#pragma GCC unroll 64
    for (int i = 0; i < KH + R - 1; i++) {
#pragma GCC unroll 64
        for (int j = 0; j < KW; j++) {
            V v = load(s + i * ld + j);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
                if (i - r >= 0 && i - r < KH) acc[r] += w[(i - r) * KW + j] * v;
        }
    }
}

template <int KH, int KW, int R>
static void correlate_fixed(const Pass& p, const float* weight, float bias, bool add) {
    V w[KH * KW];
#pragma GCC unroll 64
    for (int t = 0; t < KH * KW; t++) w[t] = splat(weight[t]);
    int64_t y = 0;
    for (; y + R <= p.rows; y += R)
        for (int64_t x = 0; x < p.width; x += VL) {
            V acc[R];
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) acc[r] = splat(bias);
            window<KH, KW, R>(p.src + y * p.ld + x, p.ld, w, acc);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) emit(p, y + r, x, acc[r], add);
        }
    for (; y < p.rows; y++)
        for (int64_t x = 0; x < p.width; x += VL) {
            V acc[1] = {splat(bias)};
            window<KH, KW, 1>(p.src + y * p.ld + x, p.ld, w, acc);
            emit(p, y, x, acc[0], add);
        }
}

static void correlate_any(const Pass& p, const float* weight, float bias, bool add) {
    for (int64_t y = 0; y < p.rows; y++) {
        const float* row = p.src + y * p.ld;
        int64_t x = 0;
        for (; x + 4 * VL <= p.width; x += 4 * VL) {
            V a = splat(bias), b = a, c = a, d = a;
            for (int t = 0; t < p.taps; t++) {
                const float* s = row + x + p.offsets[t];
                V w = splat(weight[t]);
                a += w * load(s);
                b += w * load(s + VL);
                c += w * load(s + 2 * VL);
                d += w * load(s + 3 * VL);
            }
            emit(p, y, x, a, add);
            emit(p, y, x + VL, b, add);
            emit(p, y, x + 2 * VL, c, add);
            emit(p, y, x + 3 * VL, d, add);
        }
        for (; x < p.width; x += VL) {
            V a = splat(bias);
            for (int t = 0; t < p.taps; t++) a += splat(weight[t]) * load(row + x + p.offsets[t]);
            emit(p, y, x, a, add);
        }
    }
}

constexpr int64_t GRAD_ROWS = 64;   // float sums run over this many rows at most, then go into doubles

template <int KH, int KW, int R>
static void correlate_grad_fixed(const Pass& p, double* sums) {
    for (int64_t top = 0; top < p.rows; top += GRAD_ROWS) {
        int64_t y = top, end = top + GRAD_ROWS < p.rows ? top + GRAD_ROWS : p.rows;
        V acc[KH * KW];
#pragma GCC unroll 64
        for (int t = 0; t < KH * KW; t++) acc[t] = V{};
        for (; y + R <= end; y += R)
            for (int64_t x = 0; x < p.width; x += VL) {
                const float *s = p.src + y * p.ld + x, *d = p.dst + y * p.dst_ld + x;
                V g[R];
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) g[r] = load(d + r * p.dst_ld);
#pragma GCC unroll 64
                for (int i = 0; i < KH + R - 1; i++) {
#pragma GCC unroll 64
                    for (int j = 0; j < KW; j++) {
                        V v = load(s + i * p.ld + j);
#pragma GCC unroll 16
                        for (int r = 0; r < R; r++)
                            if (i - r >= 0 && i - r < KH) acc[(i - r) * KW + j] += g[r] * v;
                    }
                }
            }
        for (; y < end; y++)
            for (int64_t x = 0; x < p.width; x += VL) {
                const float* s = p.src + y * p.ld + x;
                V g = load(p.dst + y * p.dst_ld + x);
#pragma GCC unroll 64
                for (int t = 0; t < KH * KW; t++) acc[t] += g * load(s + (t / KW) * p.ld + t % KW);
            }
        for (int t = 0; t < KH * KW; t++) sums[t] += sum(acc[t]);
    }
}

static void correlate_grad_any(const Pass& p, double* sums) {
    for (int first = 0; first < p.taps; first += 8) {
        int count = p.taps - first < 8 ? p.taps - first : 8;
        int64_t offset[8];
        for (int t = 0; t < 8; t++) offset[t] = p.offsets[first + (t < count ? t : 0)];
        for (int64_t top = 0; top < p.rows; top += GRAD_ROWS) {
            int64_t end = top + GRAD_ROWS < p.rows ? top + GRAD_ROWS : p.rows;
            V acc[8] = {};
            for (int64_t y = top; y < end; y++)
                for (int64_t x = 0; x < p.width; x += VL) {
                    const float* s = p.src + y * p.ld + x;
                    V g = load(p.dst + y * p.dst_ld + x);
#pragma GCC unroll 8
                    for (int t = 0; t < 8; t++) acc[t] += g * load(s + offset[t]);
                }
            for (int t = 0; t < count; t++) sums[first + t] += sum(acc[t]);
        }
    }
}

// Sum over the plane; g as in correlate_grad.
static inline double plane_sum(const float* g, int64_t ld, int64_t rows, int64_t width) {
    double total = 0;
    for (int64_t y = 0; y < rows; y++) {
        V acc{};
        for (int64_t x = 0; x < width; x += VL) acc += load(g + y * ld + x);
        total += sum(acc);
    }
    return total;
}

// Row length of a padded plane: a multiple of VL that no power of two divides far, or the rows of a column share one
// cache set.
JSEG_INLINE int64_t row_stride(int64_t floats) {
    int64_t ld = round_up(floats, VL);
    return ld % 256 == 0 ? ld + VL : ld;
}

}  // namespace jseg
