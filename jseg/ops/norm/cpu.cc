// Normalisation on the CPU: y = activation((x - mean) * rstd * weight[c] + bias[c] + residual), rstd = 1 /
// sqrt(variance + eps).
//
// Statistics over "batch" (one set of values per channel) or "group" (one per picture and group of channels): a set is
// a list of pixel rows, small enough to stay in the second-level cache, and one thread walks it: sum, centred squares,
// result. Over "position" (one set per picture and pixel, all channels): blocks of pixels, vectors along the pixels.
// Backward, with dz = dy * activation'(z), g = weight[c] dz and xhat = (x - mean) rstd:
//     dx = rstd (g - mean(g) - xhat mean(g xhat)),  dweight[c] = sum dz xhat,  dbias[c] = sum dz,  dresidual = dz.
// Of few values dx is nearly zero and its parts are not, so these are computed in float64.
// Partial sums have a size that depends on the shape only, so no result depends on the number of threads.
#include <algorithm>
#include <vector>

#include "call.h"
#include "lanes.h"

using namespace jseg;

namespace {

enum Activation { NONE, RELU, GELU };
// floats of one partial sum; pixels of a block; blocks of a job
constexpr int64_t CHUNK = 1024, BLOCK = 4 * VL, BLOCKS_A_JOB = 16;
// Values of a set up to which its dx is computed in float64: of few values nearly everything cancels (of two, all but
// eps / variance), as in the norm behind a global pooling.
constexpr int64_t FEW = 64;

JSEG_INLINE V activated(V z, int64_t activation) {
    if (activation == RELU) return vmax(z, V{});
    return activation == GELU ? gelu(z) : z;
}
JSEG_INLINE V slope_times(V z, V dy, int64_t activation) {
    if (activation == RELU) return z > 0.0f ? dy : z != z ? z : V{};
    return activation == GELU ? gelu_slope(z) * dy : dy;
}

// Sum of f(i, lanes) over a row of `length` floats; f returns a vector whose lanes beyond `lanes` are zero.
template <class F>
JSEG_INLINE double row_total(int64_t length, F&& f) {
    double total = 0;
    for (int64_t begin = 0; begin < length; begin += CHUNK) {
        const int64_t end = std::min(length, begin + CHUNK);
        V s{};
        for (int64_t i = begin; i < end; i += VL) s += f(i, end - i);
        total += lanes_sum(s);
    }
    return total;
}

// Sum of the squared differences from `mean` over a row.
JSEG_INLINE double squares_about(const float* from, float mean, int64_t pixels) {
    return row_total(pixels, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
        V centred = load_part(from + i, left) - mean;
        if (left < VL) centred = keep_first(centred, left);
        return centred * centred;
    });
}

// y = activation((x - mean) scale + shift + residual) over the row that begins at `at`; `residual` may be null.
JSEG_INLINE void finish_row(const float* x, const float* residual, float* y, int64_t at, int64_t pixels, float mean,
                            V scale, V shift, int64_t activation) {
    for (int64_t i = 0; i < pixels; i += VL) {
        const int64_t left = pixels - i;
        V z = (load_part(x + at + i, left) - mean) * scale + shift;
        if (residual) z += load_part(residual + at + i, left);
        store_part(y + at + i, activated(z, activation), left);
    }
}

// Write dz = (dy + again) activation'((x - mean) scale + shift + residual) of the row that begins at `at`, and return
// its sum; dy, again and residual may be null.
JSEG_INLINE double write_slopes(const float* x, const float* residual, const float* dy, const float* again, float* to,
                                int64_t at, int64_t pixels, float mean, V scale, V shift, int64_t activation) {
    return row_total(pixels, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
        V dz = dy ? load_part(dy + at + i, left) : V{};
        if (again) dz += load_part(again + at + i, left);
        if (activation != NONE) {
            V z = (load_part(x + at + i, left) - mean) * scale + shift;
            if (residual) z += load_part(residual + at + i, left);
            dz = slope_times(z, dz, activation);
            if (left < VL) dz = keep_first(dz, left);
        }
        store_part(to + at + i, dz, left);
        return dz;
    });
}

// Sum of dz (x - mean) over the row that begins at `at`.
JSEG_INLINE double slopes_times_x(const float* x, const float* dz, int64_t at, int64_t pixels, float mean) {
    return row_total(pixels, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
        return load_part(dz + at + i, left) * (load_part(x + at + i, left) - mean);
    });
}

struct Shape {
    int64_t n, c, pixels, groups, activation, sets, rows;   // groups 0: over the batch
    double eps;
    explicit Shape(const Call& call)
        : n(call.integer(0)), c(call.integer(1)), pixels(call.integer(2)), groups(call.integer(3)),
          activation(call.integer(4)), eps(call.real(5)) {
        sets = groups ? n * groups : c;
        rows = groups ? c / groups : n;
    }
    int64_t row(int64_t set, int64_t r) const { return groups ? set * rows + r : r * c + set; }
    int64_t channel(int64_t set, int64_t r) const { return groups ? set % groups * rows + r : set; }
};

float rstd_of(float variance, double eps) { return float(1.0 / std::sqrt(variance + eps)); }

// dx, and dresidual where it is wanted, of a set of few values, whose dz stand in dx; `more` is added if it is there.
void few_values_backward(const Shape& s, int64_t set, const float* x, const float* weight, const float* more, float* dx,
                         float* dresidual) {
    const auto each = [&](auto&& f) {
        for (int64_t r = 0; r < s.rows; r++)
            for (int64_t i = 0; i < s.pixels; i++) f(s.row(set, r) * s.pixels + i, weight[s.channel(set, r)]);
    };
    double mean = 0, variance = 0, mean_g = 0, mean_gx = 0;
    const double share = 1.0 / double(s.rows * s.pixels);
    each([&](int64_t at, float) { mean += share * x[at]; });
    each([&](int64_t at, float) { variance += share * (x[at] - mean) * (x[at] - mean); });
    const double rstd = 1.0 / std::sqrt(variance + s.eps);
    each([&](int64_t at, double factor) {
        mean_g += share * factor * dx[at], mean_gx += share * factor * dx[at] * (x[at] - mean) * rstd;
    });
    each([&](int64_t at, double factor) {
        if (dresidual) dresidual[at] = dx[at];
        dx[at] = float((factor * dx[at] - mean_g - (x[at] - mean) * rstd * mean_gx) * rstd);
        if (more) dx[at] += more[at];
    });
}

}  // namespace

#include "sync.h"

// in: x (N, C, P), weight (C), bias (C), residual or absent; out: y, mean (sets), variance (sets); N C P groups
// activation eps
JSEG_KERNEL(jseg_norm_forward) {
    const Shape s(call);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2),
                *residual = call.in<float>(3);
    float *y = call.out<float>(0), *means = call.out<float>(1), *variances = call.out<float>(2);
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t set = 0; set < s.sets; set++) {
            double total = 0, squares = 0;
            for (int64_t r = 0; r < s.rows; r++) {
                const float* from = x + s.row(set, r) * s.pixels;
                total += row_total(s.pixels, [&](int64_t i, int64_t left)
                                                 __attribute__((always_inline)) { return load_part(from + i, left); });
            }
            const float mean = float(total / double(s.rows * s.pixels));
            for (int64_t r = 0; r < s.rows; r++) squares += squares_about(x + s.row(set, r) * s.pixels, mean, s.pixels);
            means[set] = mean;
            variances[set] = float(squares / double(s.rows * s.pixels));
            const float rstd = rstd_of(variances[set], s.eps);
            for (int64_t r = 0; r < s.rows; r++) {
                const int64_t at = s.row(set, r) * s.pixels, channel = s.channel(set, r);
                const V scale = splat(weight[channel] * rstd), shift = splat(bias[channel]);
                finish_row(x, residual, y, at, s.pixels, mean, scale, shift, s.activation);
            }
        }
    }
}

// in: x, weight, bias, residual, mean, variance, dy, dy_again, dx_more (the last three may be absent; the first two are
// added up, the last is added to dx); out: dx, dweight, dbias[, dresidual]; scalars as forward
JSEG_KERNEL(jseg_norm_backward) {
    const Shape s(call);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2),
                *residual = call.in<float>(3);
    const float *means = call.in<float>(4), *variances = call.in<float>(5), *dy = call.in<float>(6),
                *again = call.in<float>(7), *more = call.in<float>(8);
    float *dx = call.out<float>(0), *dweight = call.out<float>(1), *dbias = call.out<float>(2),
          *dresidual = call.output_count > 3 ? call.out<float>(3) : nullptr;
    std::vector<double> row_sums(2 * s.n * s.c);   // of each row: dz, dz xhat
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t set = 0; set < s.sets; set++) {
            const float mean = means[set], rstd = rstd_of(variances[set], s.eps);
            double sum_g = 0, sum_gx = 0;
            for (int64_t r = 0; r < s.rows; r++) {
                const int64_t row = s.row(set, r), at = row * s.pixels, channel = s.channel(set, r);
                const V scale = splat(weight[channel] * rstd), shift = splat(bias[channel]);
                const double sum_z = write_slopes(x, residual, dy, again, dx, at, s.pixels, mean, scale, shift,
                                                  s.activation);
                const double sum_x = slopes_times_x(x, dx, at, s.pixels, mean) * rstd;
                row_sums[2 * row] = sum_z, row_sums[2 * row + 1] = sum_x;
                sum_g += sum_z * weight[channel], sum_gx += sum_x * weight[channel];
            }
            const double count = double(s.rows * s.pixels);
            if (count <= FEW) {
                few_values_backward(s, set, x, weight, more, dx, dresidual);
                continue;
            }
            const V mean_g = splat(float(sum_g / count)), mean_gx = splat(float(sum_gx / count) * rstd);
            for (int64_t r = 0; r < s.rows; r++) {
                const int64_t at = s.row(set, r) * s.pixels;
                const V factor = splat(weight[s.channel(set, r)]);
                for (int64_t i = 0; i < s.pixels; i += VL) {
                    const int64_t left = s.pixels - i;
                    const V dz = load_part(dx + at + i, left);
                    if (dresidual) store_part(dresidual + at + i, dz, left);
                    V d = (factor * dz - mean_g - (load_part(x + at + i, left) - mean) * mean_gx) * rstd;
                    if (more) d += load_part(more + at + i, left);
                    store_part(dx + at + i, d, left);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t channel = 0; channel < s.c; channel++) {
            double z = 0, x_hat = 0;
            for (int64_t image = 0; image < s.n; image++)
                z += row_sums[2 * (image * s.c + channel)], x_hat += row_sums[2 * (image * s.c + channel) + 1];
            dbias[channel] = float(z), dweight[channel] = float(x_hat);
        }
    }
}

// Over positions. As forward, but mean and variance are (N, P).
JSEG_KERNEL(jseg_norm_position_forward) {
    const Shape s(call);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2),
                *residual = call.in<float>(3);
    float *y = call.out<float>(0), *means = call.out<float>(1), *variances = call.out<float>(2);
    const int64_t vectors = (s.pixels + VL - 1) / VL;
    const float share = 1.0f / float(s.c);
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t job = 0; job < s.n * vectors; job++) {
            const int64_t image = job / vectors, p = job % vectors * VL, left = s.pixels - p,
                          at = image * s.c * s.pixels + p;
            V mean{}, variance{};
            for (int64_t c = 0; c < s.c; c++) mean += load_part(x + at + c * s.pixels, left);
            mean *= share;
            for (int64_t c = 0; c < s.c; c++) {
                const V centred = load_part(x + at + c * s.pixels, left) - mean;
                variance += centred * centred;
            }
            variance *= share;
            store_part(means + image * s.pixels + p, mean, left);
            store_part(variances + image * s.pixels + p, variance, left);
            V rstd;
            for (int i = 0; i < VL; i++) rstd[i] = rstd_of(variance[i], s.eps);
            for (int64_t c = 0; c < s.c; c++) {
                const int64_t here = at + c * s.pixels;
                V z = (load_part(x + here, left) - mean) * rstd * weight[c] + bias[c];
                if (residual) z += load_part(residual + here, left);
                store_part(y + here, activated(z, s.activation), left);
            }
        }
    }
}

// Over positions. Inputs and outputs as backward.
JSEG_KERNEL(jseg_norm_position_backward) {
    const Shape s(call);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2),
                *residual = call.in<float>(3);
    const float *means = call.in<float>(4), *variances = call.in<float>(5), *dy = call.in<float>(6),
                *again = call.in<float>(7), *more = call.in<float>(8);
    float *dx = call.out<float>(0), *dweight = call.out<float>(1), *dbias = call.out<float>(2),
          *dresidual = call.output_count > 3 ? call.out<float>(3) : nullptr;
    const int64_t per_image = (s.pixels + BLOCK * BLOCKS_A_JOB - 1) / (BLOCK * BLOCKS_A_JOB), jobs = s.n * per_image;
    const float share = 1.0f / float(s.c);
    std::vector<float> partial(2 * jobs * s.c);
#pragma omp parallel
    {
        NoDenormals guard;
        std::vector<float> lanes(2 * s.c * VL);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < jobs; job++) {
            const int64_t image = job / per_image, first = job % per_image * BLOCK * BLOCKS_A_JOB,
                          last = std::min(s.pixels, first + BLOCK * BLOCKS_A_JOB);
            std::fill(lanes.begin(), lanes.end(), 0.0f);
            for (int64_t p = first; p < last; p += VL) {
                const int64_t left = s.pixels - p, at = image * s.c * s.pixels + p;
                const V mean = load_part(means + image * s.pixels + p, left),
                        variance = load_part(variances + image * s.pixels + p, left);
                V rstd, sum_g{}, sum_gx{};
                for (int i = 0; i < VL; i++) rstd[i] = rstd_of(variance[i], s.eps);
                for (int64_t c = 0; c < s.c; c++) {
                    const int64_t here = at + c * s.pixels;
                    const V x_hat = (load_part(x + here, left) - mean) * rstd;
                    V dz = dy ? load_part(dy + here, left) : V{};
                    if (again) dz += load_part(again + here, left);
                    if (s.activation != NONE) {
                        V z = x_hat * weight[c] + bias[c];
                        if (residual) z += load_part(residual + here, left);
                        dz = slope_times(z, dz, s.activation);
                        if (left < VL) dz = keep_first(dz, left);
                    }
                    store_part(dx + here, dz, left);
                    sum_g += dz * weight[c], sum_gx += dz * weight[c] * x_hat;
                    store(&lanes[2 * c * VL], load(&lanes[2 * c * VL]) + dz);
                    store(&lanes[(2 * c + 1) * VL], load(&lanes[(2 * c + 1) * VL]) + dz * x_hat);
                }
                sum_g *= share, sum_gx *= share;
                for (int64_t c = 0; c < s.c; c++) {
                    const int64_t here = at + c * s.pixels;
                    const V dz = load_part(dx + here, left), x_hat = (load_part(x + here, left) - mean) * rstd;
                    if (dresidual) store_part(dresidual + here, dz, left);
                    V d = (dz * weight[c] - sum_g - x_hat * sum_gx) * rstd;
                    if (more) d += load_part(more + here, left);
                    store_part(dx + here, d, left);
                }
            }
            for (int64_t i = 0; i < 2 * s.c; i++) partial[job * 2 * s.c + i] = lanes_sum(load(&lanes[i * VL]));
        }
#pragma omp for schedule(static)
        for (int64_t c = 0; c < s.c; c++) {
            double z = 0, x_hat = 0;
            for (int64_t job = 0; job < jobs; job++)
                z += partial[(job * s.c + c) * 2], x_hat += partial[(job * s.c + c) * 2 + 1];
            dbias[c] = float(z), dweight[c] = float(x_hat);
        }
    }
}
