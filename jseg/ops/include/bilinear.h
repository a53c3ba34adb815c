// Bilinear resampling of class scores: positions and steps of upsample_cross_entropy.
//
// Its scores travel as (N, h, w, Kp): classes innermost, padded to whole vectors with a value far below any score, so
// that one output pixel is a few vector operations and the pad lanes vanish in a softmax. A *band* is the set of output
// rows that lie between the same two source rows; the horizontal interpolation is done once per band and column.
#pragma once
#include <vector>

#include "lanes.h"

namespace jseg {

constexpr float PAD_SCORE = -1e30f;

// Positions of one axis: value = source[lower] * (1 - fraction) + source[upper] * fraction (PyTorch's F.interpolate).
struct Taps {
    std::vector<int> lower, upper;
    std::vector<float> fraction;
    std::vector<int> first;   // outputs first[s] .. first[s + 1] - 1 have lower == s

    Taps(int size_in, int size_out, bool align_corners)
        : lower(size_out), upper(size_out), fraction(size_out), first(size_in + 1, 0) {
        double step =
            align_corners ? (size_out > 1 ? double(size_in - 1) / (size_out - 1) : 0.0) : double(size_in) / size_out;
        for (int o = 0; o < size_out; o++) {
            double position = align_corners ? o * step : (o + 0.5) * step - 0.5;
            if (position < 0) position = 0;
            int low = position < size_in - 1 ? int(position) : size_in - 1;
            lower[o] = low;
            upper[o] = low + 1 < size_in ? low + 1 : low;
            fraction[o] = low + 1 < size_in ? float(position - low) : 0.0f;
            first[low + 1]++;
        }
        for (int s = 0; s < size_in; s++) first[s + 1] += first[s];
    }
};

// (N, K, P) -> (N, P, Kp). Tiles of 16 pixels keep the writes in cache.
inline void classes_innermost(const float* source, float* target, int n, int classes, int64_t pixels) {
    const int64_t padded = round_up(classes, VL), tiles = (pixels + 15) / 16;
#pragma omp parallel for schedule(static)
    for (int64_t job = 0; job < n * tiles; job++) {
        const int64_t image = job / tiles, p0 = job % tiles * 16, p1 = p0 + 16 < pixels ? p0 + 16 : pixels;
        const float* from = source + image * classes * pixels;
        float* to = target + image * pixels * padded;
        for (int k = 0; k < classes; k++)
            for (int64_t p = p0; p < p1; p++) to[p * padded + k] = from[k * pixels + p];
        for (int64_t k = classes; k < padded; k++)
            for (int64_t p = p0; p < p1; p++) to[p * padded + k] = PAD_SCORE;
    }
}

// Scores of the two source rows of a band at one output column: top and bottom, `padded` floats each.
JSEG_INLINE void column_scores(const float* row0, const float* row1, int64_t left, int64_t right, float fraction,
                               int64_t padded, float* top, float* bottom) {
    const V a = splat(1.0f - fraction), b = splat(fraction);
    for (int64_t k = 0; k < padded; k += VL) {
        store(top + k, a * load(row0 + left * padded + k) + b * load(row0 + right * padded + k));
        store(bottom + k, a * load(row1 + left * padded + k) + b * load(row1 + right * padded + k));
    }
}

// Scores of one output pixel from its band column; returns the largest.
JSEG_INLINE float pixel_scores(const float* top, const float* bottom, float fraction, int64_t padded, float* scores) {
    const V a = splat(1.0f - fraction), b = splat(fraction);
    V peak = splat(PAD_SCORE);
    for (int64_t k = 0; k < padded; k += VL) {
        V score = a * load(top + k) + b * load(bottom + k);
        store(scores + k, score);
        peak = vmax(score, peak);   // a NaN score is kept
    }
    return lanes_max(peak);
}

}  // namespace jseg
