// Layer normalisation of tokens on the CPU: rows of C channels, mean and variance of each.
//     x_hat = (x - mean) rstd,  y = x_hat w + b
//     g = dy w,  dx = (g - mean(g) - x_hat mean(g x_hat)) rstd,  dw = sum over tokens of dy x_hat,  db = sum of dy
// Four rows at a time, so that their sums need not wait for one another; dw and db are added up over runs of RUN rows
// first, and the runs in fixed order: results do not depend on the number of threads.
#include <algorithm>

#include "call.h"
#include "lanes.h"
#include "tails.h"

using namespace jseg;

namespace {

constexpr int64_t RUN = 128;   // rows

// body(j, n): vectors of a row of c channels from j on, of which n lanes exist.
template <class Body> JSEG_INLINE void each_vector(int64_t c, Body body) {
    int64_t j = 0;
    for (; j + VL <= c; j += VL) body(j, int64_t(VL));
    if (j < c) body(j, c - j);
}

template <int ROWS>
JSEG_INLINE void forward_rows(int64_t c, const float* x, const float* weight, const float* bias, float eps, float* y,
                              float* means, float* rstds) {
    V sums[ROWS] = {}, squares[ROWS] = {};
    each_vector(c, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) sums[r] += load_some(x + r * c + j, n);
    });
    float mean[ROWS], rstd[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) mean[r] = lanes_sum(sums[r]) / float(c);
    each_vector(c, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const V off = keep_first(load_some(x + r * c + j, n) - mean[r], int(n));
            squares[r] += off * off;
        }
    });
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) rstd[r] = 1.0f / std::sqrt(lanes_sum(squares[r]) / float(c) + eps);
    each_vector(c, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        const V w = load_some(weight + j, n), b = load_some(bias + j, n);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++)
            store_some(y + r * c + j, (load_some(x + r * c + j, n) - mean[r]) * (rstd[r] * w) + b, n);
    });
    for (int r = 0; r < ROWS && means; r++) means[r] = mean[r], rstds[r] = rstd[r];
}

// dx of a few rows; dw and db are added to. Where the spread is small, rstd is large, and with it the rounding of the
// saved mean: x_hat then has a mean `off` of its own, which is taken out again.
template <int ROWS>
JSEG_INLINE void backward_rows(int64_t c, const float* x, const float* dy, const float* weight, const float* mean,
                               const float* rstd, float* dx, float* dw, float* db) {
    V sums[ROWS] = {}, products[ROWS] = {}, offs[ROWS] = {};
    each_vector(c, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        const V w = load_some(weight + j, n);
        V by_weight{}, by_bias{};
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const V hat = keep_first((load_some(x + r * c + j, n) - mean[r]) * rstd[r], int(n)),
                    d = load_some(dy + r * c + j, n), g = d * w;
            sums[r] += g, products[r] += g * hat, offs[r] += hat;
            by_weight += d * hat, by_bias += d;
        }
        store_some(dw + j, load_some(dw + j, n) + by_weight, n);
        store_some(db + j, load_some(db + j, n) + by_bias, n);
    });
    float slope[ROWS], level[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        const float of_g = lanes_sum(sums[r]) / float(c), off = lanes_sum(offs[r]) / float(c);
        slope[r] = lanes_sum(products[r]) / float(c) - off * of_g;
        level[r] = of_g - off * slope[r];
    }
    each_vector(c, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        const V w = load_some(weight + j, n);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const V hat = (load_some(x + r * c + j, n) - mean[r]) * rstd[r];
            store_some(dx + r * c + j, (load_some(dy + r * c + j, n) * w - level[r] - hat * slope[r]) * rstd[r], n);
        }
    });
}

}  // namespace

// in: x (R, C), weight, bias (C); out: y (R, C) and, if wanted, mean and 1 / sqrt(variance + eps) (2, R); numbers: R C
// eps
JSEG_KERNEL(jseg_layer_norm_forward) {
    const int64_t rows = call.integer(0), c = call.integer(1);
    const float eps = float(call.real(2)), *x = call.in<float>(0), *weight = call.in<float>(1),
                *bias = call.in<float>(2);
    float *y = call.out<float>(0), *means = call.output_count > 1 ? call.out<float>(1) : nullptr;
#pragma omp parallel if (rows * c > 16384)
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t run = 0; run < (rows + RUN - 1) / RUN; run++) {
            const int64_t last = std::min(rows, (run + 1) * RUN);
            int64_t i = run * RUN;
            const auto at = [=](int64_t row) { return means ? means + row : nullptr; };
            for (; i + 4 <= last; i += 4)
                forward_rows<4>(c, x + i * c, weight, bias, eps, y + i * c, at(i), at(rows + i));
            for (; i < last; i++) forward_rows<1>(c, x + i * c, weight, bias, eps, y + i * c, at(i), at(rows + i));
        }
    }
}

// in: x, weight, mean and rstd, dy; out: dx, dweight, dbias; numbers as forward
JSEG_KERNEL(jseg_layer_norm_backward) {
    const int64_t rows = call.integer(0), c = call.integer(1), runs = (rows + RUN - 1) / RUN, padded = round_up(c, 16);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *means = call.in<float>(2),
                *dy = call.in<float>(3);
    float *dx = call.out<float>(0), *dweight = call.out<float>(1), *dbias = call.out<float>(2),
          *parts = scratch(runs * 2 * padded);
#pragma omp parallel if (rows * c > 16384)
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t run = 0; run < runs; run++) {
            const int64_t last = std::min(rows, (run + 1) * RUN);
            int64_t i = run * RUN;
            float *dw = parts + run * 2 * padded, *db = dw + padded;
            std::memset(dw, 0, 2 * padded * sizeof(float));
            for (; i + 4 <= last; i += 4)
                backward_rows<4>(c, x + i * c, dy + i * c, weight, means + i, means + rows + i, dx + i * c, dw, db);
            for (; i < last; i++)
                backward_rows<1>(c, x + i * c, dy + i * c, weight, means + i, means + rows + i, dx + i * c, dw, db);
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < c; j++) {
            double dw = 0, db = 0;
            for (int64_t run = 0; run < runs; run++)
                dw += parts[run * 2 * padded + j], db += parts[(run * 2 + 1) * padded + j];
            dweight[j] = float(dw), dbias[j] = float(db);
        }
    }
}
