// Batch statistics over the ranks of a job, in two halves with a sum over ranks between them: forward moments -> apply,
// backward slopes -> spread. Included by cpu.cc, whose helpers it uses; loops and rounding are those of the kernels
// there. A sum travels as float64: the square of the mean is taken off again without harm up to a mean of some 10^5
// deviations.
#pragma once

// in: x (N, C, P); out: float64 (2 C): sum of x and of x^2 per channel; N C P 0
JSEG_KERNEL(jseg_norm_moments) {
    const int64_t n = call.integer(0), c = call.integer(1), pixels = call.integer(2);
    const float* x = call.in<float>(0);
    double* sums = call.out<double>(0);
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < c; k++) {
            double total = 0, squares = 0;
            for (int64_t image = 0; image < n; image++) {
                const float* from = x + (image * c + k) * pixels;
                total += row_total(pixels, [&](int64_t i, int64_t left)
                                               __attribute__((always_inline)) { return load_part(from + i, left); });
            }
            const double count = double(n * pixels);
            const float mean = float(total / count);
            for (int64_t image = 0; image < n; image++)
                squares += squares_about(x + (image * c + k) * pixels, mean, pixels);
            sums[k] = total;
            sums[c + k] = squares + 2 * double(mean) * total - count * double(mean) * double(mean);   // sum of x^2
        }
    }
}

// in: x, weight, bias, residual or absent, sums of all ranks; out: y, mean (C), variance (C); N C P 0 activation eps
// count
JSEG_KERNEL(jseg_norm_apply) {
    const Shape s(call);
    const double count = call.real(6);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2),
                *residual = call.in<float>(3);
    const double* sums = call.in<double>(4);
    float *y = call.out<float>(0), *means = call.out<float>(1), *variances = call.out<float>(2);
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < s.c; k++) {
            const double exact = sums[k] / count;
            const float mean = means[k] = float(exact);
            variances[k] = float(std::max(0.0, sums[s.c + k] / count - exact * exact));
            const V scale = splat(weight[k] * rstd_of(variances[k], s.eps)), shift = splat(bias[k]);
            for (int64_t image = 0; image < s.n; image++) {
                const int64_t at = (image * s.c + k) * s.pixels;
                finish_row(x, residual, y, at, s.pixels, mean, scale, shift, s.activation);
            }
        }
    }
}

// in: x, weight, bias, residual, mean, variance, dy, dy_again (each of the last two may be absent);
// out: dz (N, C, P), dweight, dbias of this rank, float64 (2 C): sum of dz and of dz xhat per channel; N C P 0
// activation eps
JSEG_KERNEL(jseg_norm_slopes) {
    const Shape s(call);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2),
                *residual = call.in<float>(3);
    const float *means = call.in<float>(4), *variances = call.in<float>(5), *dy = call.in<float>(6),
                *again = call.in<float>(7);
    float *slopes = call.out<float>(0), *dweight = call.out<float>(1), *dbias = call.out<float>(2);
    double* sums = call.out<double>(3);
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < s.c; k++) {
            const float mean = means[k], rstd = rstd_of(variances[k], s.eps);
            const V scale = splat(weight[k] * rstd), shift = splat(bias[k]);
            double sum_z = 0, sum_x = 0;
            for (int64_t image = 0; image < s.n; image++) {
                const int64_t at = (image * s.c + k) * s.pixels;
                sum_z += write_slopes(x, residual, dy, again, slopes, at, s.pixels, mean, scale, shift, s.activation);
                sum_x += slopes_times_x(x, slopes, at, s.pixels, mean) * rstd;
            }
            sums[k] = sum_z, sums[s.c + k] = sum_x;
            dbias[k] = float(sum_z), dweight[k] = float(sum_x);
        }
    }
}

// in: x, weight, mean, variance, dz, sums of all ranks, dx_more or absent; out: dx; N C P 0 0 eps count
JSEG_KERNEL(jseg_norm_spread) {
    const Shape s(call);
    const double count = call.real(6);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *means = call.in<float>(2),
                *variances = call.in<float>(3);
    const float *slopes = call.in<float>(4), *more = call.in<float>(6);
    const double* sums = call.in<double>(5);
    float* dx = call.out<float>(0);
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < s.c; k++) {
            const float mean = means[k], rstd = rstd_of(variances[k], s.eps);
            const V factor = splat(weight[k]), mean_g = splat(float(sums[k] * weight[k] / count));
            const V mean_gx = splat(float(sums[s.c + k] * weight[k] / count) * rstd);
            for (int64_t image = 0; image < s.n; image++) {
                const int64_t at = (image * s.c + k) * s.pixels;
                for (int64_t i = 0; i < s.pixels; i += VL) {
                    const int64_t left = s.pixels - i;
                    V d = (factor * load_part(slopes + at + i, left) - mean_g -
                           (load_part(x + at + i, left) - mean) * mean_gx) *
                          rstd;
                    if (more) d += load_part(more + at + i, left);
                    store_part(dx + at + i, d, left);
                }
            }
        }
    }
}
