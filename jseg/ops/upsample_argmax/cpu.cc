// Class of the largest bilinearly resized score on the CPU, and its softmax probability; positions as in
// include/bilinear.h.
//
// The lanes of a vector are neighbouring output pixels of a row, so that no step crosses lanes. A band is the set of
// output rows that lie between the same two source rows; its source rows are copied together class by class. For a
// vector of columns, each class is interpolated along both source rows once, as T and B; then the rows of the band
// follow, several at a time: T + fraction (B - T).
#include <algorithm>
#include <vector>

#include "bilinear.h"
#include "call.h"

using namespace jseg;

namespace {

struct Columns {   // VL output columns, the last of them repeated where the picture ends
    VI lower, upper;   // relative to `first`, the leftmost source pixel
    V fraction;
    int64_t first;
    bool near;         // all source pixels lie in one vector
    Columns(const Taps& taps, int64_t x, int64_t width) : first(taps.lower[x]), near(true) {
        for (int i = 0; i < VL; i++) {
            const int64_t at = std::min(x + i, width - 1);
            lower[i] = int32_t(taps.lower[at] - first), upper[i] = int32_t(taps.upper[at] - first),
            fraction[i] = taps.fraction[at];
            near = near && upper[i] < VL;
        }
    }
    V interpolate(const float* row) const {
        V left, right;
        if (near) {
            const V pixels = load(row + first);
            left = __builtin_shuffle(pixels, lower), right = __builtin_shuffle(pixels, upper);
        } else
            for (int i = 0; i < VL; i++) left[i] = row[first + lower[i]], right[i] = row[first + upper[i]];
        return left * (1.0f - fraction) + right * fraction;
    }
};

// T and B - T of every class, 2 * VL floats each.
void interpolate_classes(const Columns& columns, int64_t classes, int64_t w, const float* row0, const float* row1,
                         float* scores) {
    for (int64_t k = 0; k < classes; k++) {
        const V top = columns.interpolate(row0 + k * w);
        store(scores + 2 * k * VL, top);
        store(scores + (2 * k + 1) * VL, columns.interpolate(row1 + k * w) - top);
    }
}

// R output rows: class and value of the largest score; the lowest class wins a tie.
template <int R>
void winners(int64_t classes, const float* scores, const float* fractions, VI* label, V* peak) {
    V best[R], fraction[R];
    VI at[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        fraction[r] = splat(fractions[r]), best[r] = load(scores) + fraction[r] * load(scores + VL), at[r] = VI{};
    for (int64_t k = 1; k < classes; k++) {
        const V top = load(scores + 2 * k * VL), step = load(scores + (2 * k + 1) * VL);
        const VI here = VI{} + int32_t(k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const V score = top + fraction[r] * step;
            const VI better = score > best[r];
            best[r] = better ? score : best[r], at[r] = better ? here : at[r];
        }
    }
    for (int r = 0; r < R; r++) label[r] = at[r], peak[r] = best[r];
}

V probability(int64_t classes, const float* scores, float fraction, V peak) {
    V total{};
    for (int64_t k = 0; k < classes; k++)
        total += vexp(load(scores + 2 * k * VL) + fraction * load(scores + (2 * k + 1) * VL) - peak);
    return 1.0f / total;
}

constexpr int ROWS = VL == 16 ? 8 : 4;   // output rows at a time, by the number of registers

}  // namespace

// in: scores (N, K, h, w); out: labels (N, H, W) int32, probability (N, H, W) if `with_prob`, else any 1
// integers: N K h w H W align_corners with_prob
JSEG_KERNEL(jseg_upsample_argmax_run) {
    const int64_t n = call.integer(0), classes = call.integer(1), h = call.integer(2), w = call.integer(3);
    const int64_t height = call.integer(4), width = call.integer(5);
    const bool align = call.integer(6), with_prob = call.integer(7);
    int32_t* labels = call.out<int32_t>(0);
    float* prob = call.out<float>(1);
    if (!with_prob) prob[0] = 0;
    const int64_t row_size = round_up(classes * w + VL, 16), thread_size = 2 * row_size + 2 * classes * VL;
    float* memory = scratch(omp_get_max_threads() * thread_size);
    const Taps rows(h, height, align), taps(w, width, align);
    std::vector<Columns> columns;
    for (int64_t x = 0; x < width; x += VL) columns.emplace_back(taps, x, width);
#pragma omp parallel
    {
        NoDenormals guard;
        float *row0 = memory + omp_get_thread_num() * thread_size, *row1 = row0 + row_size, *scores = row1 + row_size;
#pragma omp for schedule(dynamic, 1)
        for (int64_t band = 0; band < n * h; band++) {
            const int64_t image = band / h, lower = band % h, upper = std::min(lower + 1, h - 1),
                          first = rows.first[lower], last = rows.first[lower + 1];
            if (first == last) continue;
            for (int64_t k = 0; k < classes; k++) {
                const float* plane = call.in<float>(0) + (image * classes + k) * h * w;
                std::memcpy(row0 + k * w, plane + lower * w, w * sizeof(float));
                std::memcpy(row1 + k * w, plane + upper * w, w * sizeof(float));
            }
            for (int64_t x = 0; x < width; x += VL) {
                interpolate_classes(columns[x / VL], classes, w, row0, row1, scores);
                for (int64_t y = first, count; y < last; y += count) {
                    VI label[ROWS];
                    V peak[ROWS];
                    count = last - y >= ROWS ? ROWS : last - y >= 4 ? 4 : 1;
                    const auto run = count == ROWS ? winners<ROWS> : count == 4 ? winners<4> : winners<1>;
                    run(classes, scores, &rows.fraction[y], label, peak);
                    for (int r = 0; r < count; r++) {
                        const int64_t at = (image * height + y + r) * width + x,
                                      here = std::min<int64_t>(VL, width - x);
                        std::memcpy(labels + at, &label[r], here * sizeof(int32_t));
                        if (with_prob)
                            store_part(prob + at, probability(classes, scores, rows.fraction[y + r], peak[r]), here);
                    }
                }
            }
        }
    }
}
