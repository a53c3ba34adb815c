// 1x1 convolution on the CPU: Y[n] (D, P) = activation(W (D, C) X[n] (C, P) + b), see include/gemm.h.
// Backward: with S = dY (times gelu'(W X + b), computed again), dX = W^T S, dW = S X^T and db = row sums of S.
#include "call.h"
#include "gemm.h"

using namespace jseg;

// in: x (N, C, P), weight (D, C), bias (D) or absent; out: y (N, D, P); integers: N C D P gelu
JSEG_KERNEL(jseg_pointwise_forward) {
    const int64_t n = call.integer(0), c = call.integer(1), d = call.integer(2), pixels = call.integer(3), with_gelu = call.integer(4);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2);
    float* y = call.out<float>(0);
    float* packed = scratch(packed_rows_size(d, c) + omp_get_max_threads() * c * PANEL);
    float* panels = packed + packed_rows_size(d, c);
    pack_rows(d, c, weight, c, 1, packed);
    if (with_gelu)
        image_product(n, d, c, pixels, packed, {x, c * pixels, pixels}, panels, [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums) __attribute__((always_inline)) {
            store_part(y + (image * d + row) * pixels + p, gelu(bias ? sums + bias[row] : sums), count);
        });
    else
        image_product(n, d, c, pixels, packed, {x, c * pixels, pixels}, panels, [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums) __attribute__((always_inline)) {
            store_part(y + (image * d + row) * pixels + p, bias ? sums + bias[row] : sums, count);
        });
}

// in: x (N, C, P), weight (D, C), bias (D) or absent, dy (N, D, P); out: dx (N, C, P), dweight (D, C), dbias (D); integers: N C D P gelu
JSEG_KERNEL(jseg_pointwise_backward) {
    const int64_t n = call.integer(0), c = call.integer(1), d = call.integer(2), pixels = call.integer(3), with_gelu = call.integer(4);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2), *dy = call.in<float>(3);
    float *dx = call.out<float>(0), *dweight = call.out<float>(1), *dbias = call.out<float>(2);
    const int64_t packed_size = std::max(packed_rows_size(d, c), packed_rows_size(c, d)), panels_size = omp_get_max_threads() * std::max(c, d) * PANEL;
    const int64_t shared = std::max(packed_size + panels_size, PixelSums(d, c, n * pixels).size());
    float* memory = scratch(shared + (with_gelu ? n * d * pixels : 0));
    float *packed = memory, *panels = memory + packed_size;
    const float* slope = dy;
    if (with_gelu) {
        float* s = memory + shared;
        pack_rows(d, c, weight, c, 1, packed);
        image_product(n, d, c, pixels, packed, {x, c * pixels, pixels}, panels, [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums) __attribute__((always_inline)) {
            const int64_t at = (image * d + row) * pixels + p;
            store_part(s + at, gelu_slope(bias ? sums + bias[row] : sums) * load_part(dy + at, count), count);
        });
        slope = s;
    }
    pack_rows(c, d, weight, 1, c, packed);
    image_product(n, c, d, pixels, packed, {slope, d * pixels, pixels}, panels, [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums) __attribute__((always_inline)) {
        store_part(dx + (image * c + row) * pixels + p, sums, count);
    });
    pixel_sums(n, d, c, pixels, {slope, d * pixels, pixels}, {x, c * pixels, pixels}, dweight, c, false, memory);
    row_sums(n, d, pixels, {slope, d * pixels, pixels}, dbias);
}
