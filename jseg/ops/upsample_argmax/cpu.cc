// Class of the largest bilinearly resized score on the CPU, and its softmax probability; see include/bilinear.h.
#include "bilinear.h"
#include "call.h"

using namespace jseg;

namespace {

struct Winner {
    int32_t label;
    float peak;
};

// Largest score of one output pixel; the lowest class wins a tie. Scores are stored where `scores` is given.
JSEG_INLINE Winner winner(const float* top, const float* bottom, float fraction, int64_t padded, float* scores) {
    const V a = splat(1.0f - fraction), b = splat(fraction);
    VI at = lane_index(), best_at = at;
    V best = a * load(top) + b * load(bottom);
    if (scores) store(scores, best);
    for (int64_t k = VL; k < padded; k += VL) {
        at += VL;
        const V score = a * load(top + k) + b * load(bottom + k);
        if (scores) store(scores + k, score);
        const VI better = score > best;
        best = better ? score : best;
        best_at = better ? at : best_at;
    }
    const float peak = lanes_max(best);
    const int32_t label = lanes_min(best == splat(peak) ? best_at : VI{} + INT32_MAX);
    return {label == INT32_MAX ? 0 : label, peak};   // no lane equals a NaN
}

float probability(const float* scores, float peak, int64_t padded) {
    V total{};
    for (int64_t k = 0; k < padded; k += VL) total += vexp(load(scores + k) - peak);
    return 1.0f / lanes_sum(total);
}

}  // namespace

// in: scores (N, K, h, w); out: labels (N, H, W) int32, probability (N, H, W) if `with_prob`, else any 1
// integers: N K h w H W align_corners with_prob
JSEG_KERNEL(jseg_upsample_argmax_run) {
    const int64_t n = call.integer(0), classes = call.integer(1), h = call.integer(2), w = call.integer(3);
    const int64_t height = call.integer(4), width = call.integer(5), padded = round_up(classes, VL), map = n * h * w * padded;
    const bool align = call.integer(6), with_prob = call.integer(7);
    int32_t* labels = call.out<int32_t>(0);
    float* prob = call.out<float>(1);
    if (!with_prob) prob[0] = 0;
    float* scores = scratch(map + omp_get_max_threads() * (3 * padded + 64));
    classes_innermost(call.in<float>(0), scores, n, classes, h * w);
    const Taps rows(h, height, align), columns(w, width, align);
#pragma omp parallel
    {
        NoDenormals guard;
        float *top = scores + map + omp_get_thread_num() * (3 * padded + 64), *bottom = top + padded, *pixel = bottom + padded;
#pragma omp for schedule(dynamic, 1)
        for (int64_t band = 0; band < n * h; band++) {
            const int64_t image = band / h, source_row = band % h;
            const float *row0 = scores + band * w * padded, *row1 = source_row + 1 < h ? row0 + w * padded : row0;
            for (int64_t x = 0; x < width && rows.first[source_row] < rows.first[source_row + 1]; x++) {
                column_scores(row0, row1, columns.lower[x], columns.upper[x], columns.fraction[x], padded, top, bottom);
                for (int64_t y = rows.first[source_row]; y < rows.first[source_row + 1]; y++) {
                    const int64_t at = (image * height + y) * width + x;
                    const Winner best = winner(top, bottom, rows.fraction[y], padded, with_prob ? pixel : nullptr);
                    labels[at] = best.label < classes ? best.label : 0;   // every score is below the padding
                    if (with_prob) prob[at] = probability(pixel, best.peak, padded);
                }
            }
        }
    }
}
