// 1x1 convolution on the CPU, see include/gemm.h. With U = W (in_scale x + in_shift) + b, every line below optional:
//     T = activation(U) gate + residual_scale residual,  Y = shortcut + factor[image] scale T.
// The affine input goes into W and b when W is packed; the rest is done while the sums are in registers.
// Backward, with S = factor dY: dresidual = scale S, dX = W^T diag(scale) S, and from D = S X^T: dW = diag(scale) D,
// dscale = W . D + b sum(S) + residual . S by rows. With activation or gate (then nothing else of the above), U is
// computed again.
#include "call.h"
#include "gemm.h"

using namespace jseg;

namespace {

struct Ends {   // what follows the product; null where absent
    const float *bias, *gate, *residual, *residual_scale, *scale, *factor, *shortcut;
};

// S = factor dY and dresidual = scale S; dots[d] = residual . S by rows.
void spread(int64_t n, int64_t d, int64_t pixels, const Ends& ends, const float* dy, float* s, float* dresidual,
            float* dots) {
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < d; row++) {
            const V scale = splat(ends.scale ? ends.scale[row] : 1.0f);
            double dot = 0;
            for (int64_t image = 0; image < n; image++) {
                const int64_t at = (image * d + row) * pixels;
                const V factor = splat(ends.factor ? ends.factor[image] : 1.0f);
                for (int64_t begin = 0; begin < pixels; begin += SUM_RUN) {
                    const int64_t end = std::min(pixels, begin + SUM_RUN);
                    V total{};
                    for (int64_t p = begin; p < end; p += VL) {
                        const V value = load_part(dy + at + p, end - p) * factor;
                        if (s) store_part(s + at + p, value, end - p);
                        if (dresidual) store_part(dresidual + at + p, value * scale, end - p);
                        if (ends.residual) total += value * load_part(ends.residual + at + p, end - p);
                    }
                    dot += lanes_sum(total);
                }
            }
            dots[row] = float(dot);
        }
    }
}

// T: what the factors are rounded to.
template <class T>
void forward(const Call& call) {
    const int64_t n = call.integer(0), c = call.integer(1), d = call.integer(2), pixels = call.integer(3),
                  with_gelu = call.integer(4);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *in_scale = call.in<float>(9),
                *bias = call.in<float>(2);
    const Ends ends{bias,
                    call.in<float>(3),
                    call.in<float>(4),
                    call.in<float>(5),
                    call.in<float>(6),
                    call.in<float>(7),
                    call.in<float>(8)};
    float* y = call.out<float>(0);
    const int64_t rows_size = packed_rows_size(d, c), all_panels = omp_get_max_threads() * panels_size(c);
    float* packed = scratch(rows_size + all_panels + (in_scale ? d * (c + 1) : 0));
    float *panels = packed + rows_size, *shifted = panels + all_panels;
    const float* factors = weight;
    if (in_scale) {
        scaled_columns(d, c, weight, in_scale, shifted + d);
        shifted_bias(d, c, weight, call.in<float>(10), bias, shifted);
        bias = shifted, factors = shifted + d;
    }
    pack_rows<T>(d, c, factors, c, 1, packed);
    const Rows rows{x, c * pixels, pixels};
    if (ends.gate || ends.residual || ends.scale || ends.factor || ends.shortcut)
        image_product<T>(n, d, c, pixels, packed, rows, panels,
                      [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums) __attribute__((always_inline)) {
                          const int64_t at = (image * d + row) * pixels + p;
                          V value = bias ? sums + bias[row] : sums;
                          if (with_gelu) value = gelu(value);
                          if (ends.gate) value *= load_part(ends.gate + at, count);
                          if (ends.residual) {
                              const V residual = load_part(ends.residual + at, count);
                              value += ends.residual_scale ? residual * ends.residual_scale[row] : residual;
                          }
                          if (ends.scale) value *= ends.scale[row];
                          if (ends.factor) value *= ends.factor[image];
                          if (ends.shortcut) value += load_part(ends.shortcut + at, count);
                          store_part(y + at, value, count);
                      });
    else if (with_gelu)
        image_product<T>(n, d, c, pixels, packed, rows, panels,
                      [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums) __attribute__((always_inline)) {
                          store_part(y + (image * d + row) * pixels + p, gelu(bias ? sums + bias[row] : sums), count);
                      });
    else
        image_product<T>(n, d, c, pixels, packed, rows, panels,
                      [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums) __attribute__((always_inline)) {
                          store_part(y + (image * d + row) * pixels + p, bias ? sums + bias[row] : sums, count);
                      });
}

}  // namespace

// in: x (N, C, P), weight (D, C), bias (D) or absent, and, if there are more: gate, residual (N, D, P), residual_scale,
// scale (D), factor (N), shortcut (N, D, P), in_scale, in_shift (C), each or absent; out: y (N, D, P); integers: N C D
// P gelu bf16
JSEG_KERNEL(jseg_pointwise_forward) {
    if (call.integer(5)) forward<BFloat16>(call);
    else forward<Float32>(call);
}

// in: x, weight, bias or absent, dy (N, D, P), and, if there are more: gate, residual, scale, factor, each or absent;
// out: dx (N, C, P), dweight (D, C), dbias (D), and with more: dgate or dresidual (N, D, P), dscale (D), one value
// where not needed
JSEG_KERNEL(jseg_pointwise_backward) {
    const int64_t n = call.integer(0), c = call.integer(1), d = call.integer(2), pixels = call.integer(3),
                  with_gelu = call.integer(4);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2), *dy = call.in<float>(3);
    const Ends ends{bias, call.in<float>(4), call.in<float>(5), nullptr, call.in<float>(6), call.in<float>(7), nullptr};
    float *dx = call.out<float>(0), *dweight = call.out<float>(1), *dbias = call.out<float>(2),
          *dextra = call.output_count > 3 ? call.out<float>(3) : nullptr;
    const int64_t packed_size = std::max(packed_rows_size(d, c), packed_rows_size(c, d)),
                  all_panels = omp_get_max_threads() * std::max(panels_size(c), panels_size(d));
    const int64_t shared = round_up(std::max(packed_size + all_panels, PixelSums(d, c, n, pixels).size()), 16);
    const bool again = with_gelu || ends.gate;
    float* memory = scratch(shared + round_up(d, 16) + (again || ends.factor ? n * d * pixels : 0));
    float *packed = memory, *panels = memory + packed_size, *dots = memory + shared, *s = dots + round_up(d, 16);
    const float* slope = dy;
    if (again) {
        pack_rows(d, c, weight, c, 1, packed);
        image_product(n, d, c, pixels, packed, {x, c * pixels, pixels}, panels,
                      [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums) __attribute__((always_inline)) {
                          const int64_t at = (image * d + row) * pixels + p;
                          const V u = bias ? sums + bias[row] : sums;
                          V ds = load_part(dy + at, count);
                          if (ends.gate) {
                              store_part(dextra + at, ds * (with_gelu ? gelu(u) : u), count);
                              ds *= load_part(ends.gate + at, count);
                          }
                          store_part(s + at, with_gelu ? gelu_slope(u) * ds : ds, count);
                      });
        slope = s;
    } else if (ends.factor || ends.residual) {
        spread(n, d, pixels, ends, dy, ends.factor ? s : nullptr, ends.residual ? dextra : nullptr, dots);
        if (ends.factor) slope = s;
    }
    pack_rows(c, d, weight, 1, c, packed);
    if (ends.scale) scale_columns(c, d, ends.scale, packed);
    image_product(n, c, d, pixels, packed, {slope, d * pixels, pixels}, panels,
                  [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums)
                      __attribute__((always_inline)) { store_part(dx + (image * c + row) * pixels + p, sums, count); });
    pixel_sums(n, d, c, pixels, {slope, d * pixels, pixels}, {x, c * pixels, pixels}, dweight, c, false, memory);
    row_sums(n, d, pixels, {slope, d * pixels, pixels}, dbias);
    if (!ends.scale) return;
#pragma omp parallel for schedule(static) if (d * c > 16384)
    for (int64_t row = 0; row < d; row++) {
        const float by_bias = bias ? bias[row] * dbias[row] : 0.0f;
        call.out<float>(4)[row] =
            dot_product(c, weight + row * c, dweight + row * c) + by_bias + (ends.residual ? dots[row] : 0.0f);
        for (int64_t k = 0; k < c; k++) dweight[row * c + k] *= ends.scale[row];
        dbias[row] *= ends.scale[row];
    }
}
