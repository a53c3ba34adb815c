// Cross-entropy of bilinearly resized scores on the CPU; the (N, K, H, W) tensor never exists.
//
// With v = resized scores of one pixel, m = max v, s = sum exp(v - m), t = its label, c = weight of the pixel:
//     loss = c (m + log s - v[t]),      d loss / d v[k] = c (exp(v[k] - m) / s - [k = t]).
// Bands (see bilinear.h) are the units of work. A band adds its gradient to two source rows that it alone owns:
// `upper_part` (its own source row) and `lower_part` (the row below); both are summed at the end, so the result does
// not depend on threads.
#include <cmath>
#include <cstring>

#include "bilinear.h"
#include "call.h"

using namespace jseg;

namespace {

struct Problem {
    int n, classes, h, w, height, width, ignore;
    int64_t padded;                  // classes, rounded up to whole vectors
    const int32_t* labels;           // (N, H, W)
    const float* class_weight;       // (K) or null
    const float* pixel_weight;       // (N, H, W) or null
    const float* pixel_slope;        // (N, H, W) upstream gradient of each pixel's loss, or null for 1
    const float* scores;             // (N, h, w, Kp)
    float* pixel_loss;               // (N, H, W) or null
    float* upper_part;               // (N, h, w, Kp) or null: no gradient wanted
    float* lower_part;
};

struct Sums {
    double loss = 0, share = 0;      // share: class weights of the non-ignored pixels
    int64_t valid = 0, correct = 0;
};

// The first class with the largest score is the label's?
bool label_wins(const float* v, int label, float peak) {
    if (!(v[label] == peak)) return false;
    int earlier = 0;
    for (int k = 0; k < label; k++) earlier += v[k] == peak;
    return earlier == 0;
}

// One output pixel. `v` holds its scores and is overwritten; returns its unweighted loss.
JSEG_INLINE float pixel(const Problem& p, float* v, float peak, int label, float weight, float fraction, float* d_top,
                        float* d_bottom) {
    const float wanted = v[label];
    V total = V{};
    for (int64_t k = 0; k < p.padded; k += VL) {
        V e = vexp_falling(load(v + k) - peak);
        total += e;
        if (d_top) store(v + k, e);
    }
    const float sum_exp = lanes_sum(total);
    if (d_top) {
        const V to_top = splat((1.0f - fraction) * weight / sum_exp), to_bottom = splat(fraction * weight / sum_exp);
        for (int64_t k = 0; k < p.padded; k += VL) {
            V e = load(v + k);
            store(d_top + k, load(d_top + k) + to_top * e);
            store(d_bottom + k, load(d_bottom + k) + to_bottom * e);
        }
        d_top[label] -= (1.0f - fraction) * weight;
        d_bottom[label] -= fraction * weight;
    }
    return (peak - wanted) + std::log(sum_exp);
}

// Add a column's gradient to its two source columns.
void spread(float* row, const float* d, int64_t left, int64_t right, float fraction, int64_t padded) {
    const V a = splat(1.0f - fraction), b = splat(fraction);
    for (int64_t k = 0; k < padded; k += VL) {
        V g = load(d + k);
        store(row + left * padded + k, load(row + left * padded + k) + a * g);
        store(row + right * padded + k, load(row + right * padded + k) + b * g);
    }
}

// All output rows of one band. `buffer`: 5 Kp floats.
Sums band(const Problem& p, const Taps& rows, const Taps& columns, int image, int source_row, float* buffer) {
    float *top = buffer, *bottom = top + p.padded, *v = bottom + p.padded, *d_top = v + p.padded,
          *d_bottom = d_top + p.padded;
    const int64_t row_size = p.w * p.padded, row = (int64_t)image * p.h + source_row;
    const float* row0 = p.scores + row * row_size;
    const float* row1 = source_row + 1 < p.h ? row0 + row_size : row0;
    float* d_row0 = p.upper_part ? p.upper_part + row * row_size : nullptr;
    float* d_row1 = p.upper_part ? p.lower_part + row * row_size : nullptr;
    if (d_row0) {
        std::memset(d_row0, 0, row_size * sizeof(float));
        std::memset(d_row1, 0, row_size * sizeof(float));
    }
    Sums sums;
    for (int x = 0; x < p.width; x++) {
        bool ready = false;
        for (int y = rows.first[source_row]; y < rows.first[source_row + 1]; y++) {
            const int64_t at = ((int64_t)image * p.height + y) * p.width + x;
            const int label = p.labels[at];
            if (label == p.ignore || label < 0 || label >= p.classes) {
                if (p.pixel_loss) p.pixel_loss[at] = 0;
                continue;
            }
            if (!ready) {
                column_scores(row0, row1, columns.lower[x], columns.upper[x], columns.fraction[x], p.padded, top,
                              bottom);
                std::memset(d_top, 0, 2 * p.padded * sizeof(float));
                ready = true;
            }
            const float share = p.class_weight ? p.class_weight[label] : 1.0f;
            const float weight = share * (p.pixel_weight ? p.pixel_weight[at] : 1.0f);
            const float slope = weight * (p.pixel_slope ? p.pixel_slope[at] : 1.0f);
            const float peak = pixel_scores(top, bottom, rows.fraction[y], p.padded, v);
            sums.correct += label_wins(v, label, peak);
            const float loss =
                weight * pixel(p, v, peak, label, slope, rows.fraction[y], d_row0 ? d_top : nullptr, d_bottom);
            if (p.pixel_loss) p.pixel_loss[at] = loss;
            sums.loss += loss;
            sums.share += share;
            sums.valid++;
        }
        if (ready && d_row0) {
            spread(d_row0, d_top, columns.lower[x], columns.upper[x], columns.fraction[x], p.padded);
            spread(d_row1, d_bottom, columns.lower[x], columns.upper[x], columns.fraction[x], p.padded);
        }
    }
    return sums;
}

// (N, h, w, Kp) row pairs -> (N, K, h, w), times `scale`.
void collect(const Problem& p, float scale, float* out) {
    const int64_t row_size = p.w * p.padded;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < (int64_t)p.n * p.h; row++) {
        const int64_t image = row / p.h, y = row % p.h;
        const float* a = p.upper_part + row * row_size;
        const float* b = y ? p.lower_part + (row - 1) * row_size : nullptr;
        for (int x0 = 0; x0 < p.w; x0 += 16)
            for (int k = 0; k < p.classes; k++)
                for (int x = x0; x < x0 + 16 && x < p.w; x++) {
                    int64_t at = x * p.padded + k;
                    out[((image * p.classes + k) * p.h + y) * p.w + x] = scale * (b ? a[at] + b[at] : a[at]);
                }
    }
}

}  // namespace

// in: scores (N, K, h, w), labels (N, H, W) int32, class_weight (K) or absent, pixel_weight (N, H, W) or absent,
//     pixel_slope (N, H, W) or absent
// out: summary (2): loss, accuracy; pixel losses (N, H, W) if `per_pixel`, else any 1; d_scores (N, K, h, w) if
// `with_grad`, else any 1 integers: N K h w H W align_corners ignore_index avg_non_ignore per_pixel with_grad
// d_scores is the gradient of the mean loss, or of sum(pixel_slope * losses) if `per_pixel`.
JSEG_KERNEL(jseg_upsample_cross_entropy_run) {
    Problem p{};
    p.n = call.integer(0), p.classes = call.integer(1), p.h = call.integer(2), p.w = call.integer(3);
    p.height = call.integer(4), p.width = call.integer(5), p.ignore = call.integer(7);
    const bool align = call.integer(6), avg_non_ignore = call.integer(8), per_pixel = call.integer(9),
               with_grad = call.integer(10);
    p.padded = round_up(p.classes, VL);
    p.labels = call.in<int32_t>(1), p.class_weight = call.in<float>(2), p.pixel_weight = call.in<float>(3),
    p.pixel_slope = call.in<float>(4);
    p.pixel_loss = per_pixel ? call.out<float>(1) : nullptr;

    const int64_t plane = (int64_t)p.h * p.w, map = p.n * plane * p.padded, bands = (int64_t)p.n * p.h;
    const int64_t buffer = 5 * p.padded + 64;
    float* memory = scratch(map * (with_grad ? 3 : 1) + buffer * omp_get_max_threads());
    p.scores = memory;
    p.upper_part = with_grad ? memory + map : nullptr, p.lower_part = with_grad ? memory + 2 * map : nullptr;
    float* buffers = memory + map * (with_grad ? 3 : 1);
    classes_innermost(call.in<float>(0), memory, p.n, p.classes, plane);

    const Taps rows(p.h, p.height, align), columns(p.w, p.width, align);
    std::vector<Sums> parts(bands);
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < bands; b++)
            parts[b] = band(p, rows, columns, b / p.h, b % p.h, buffers + buffer * omp_get_thread_num());
    }
    Sums all;
    for (const Sums& part : parts)
        all.loss += part.loss, all.share += part.share, all.valid += part.valid, all.correct += part.correct;
    const double eps = 1.1920928955078125e-7;
    const int64_t pixels = (int64_t)p.n * p.height * p.width;
    const double count =
        (p.class_weight ? all.share : double(all.valid)) + (avg_non_ignore ? 0 : pixels - all.valid) + eps;
    call.out<float>(0)[0] = all.loss / count;
    call.out<float>(0)[1] = (all.correct + eps) * 100.0 / (all.valid + eps);
    if (!per_pixel) call.out<float>(1)[0] = 0;
    if (with_grad) collect(p, per_pixel ? 1.0f : float(1.0 / count), call.out<float>(2));
    else call.out<float>(2)[0] = 0;
}
