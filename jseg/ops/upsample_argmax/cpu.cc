// Class of the largest bilinearly resized score on the CPU, and its softmax probability.
//
// Along each axis an output reads T neighbouring sources: two for one resize, three for two resizes in a row. The lanes
// of a vector are neighbouring output pixels of a row, so that no step crosses lanes. A band is the set of output rows
// with the same first source row; its source rows are copied together class by class. For a vector of columns, each
// class is interpolated along the T source rows once, as the first of them and the differences of the others from it;
// then the rows of the band follow, several at a time: first + sum of weight x difference, since an output's weights
// sum to one.
#include <algorithm>
#include <vector>

#include "call.h"
#include "vec.h"

using namespace jseg;

namespace {

template <int T> struct Columns {   // VL output columns, the last of them repeated where the picture ends
    VI source[T];      // relative to `first`, the leftmost source pixel
    V weight[T];
    int64_t first;
    bool near;         // all source pixels lie in one vector
    Columns(const int32_t* firsts, const float* weights, int64_t x, int64_t width, int64_t w)
        : first(firsts[x]), near(true) {
        for (int i = 0; i < VL; i++) {
            const int64_t at = std::min(x + i, width - 1);
            for (int t = 0; t < T; t++) {
                source[t][i] = int32_t(std::min<int64_t>(firsts[at] + t, w - 1) - first),
                weight[t][i] = weights[at * T + t];
                near = near && source[t][i] < VL;
            }
        }
    }
    V interpolate(const float* row) const {
        V total{};
        if (near) {
            const V pixels = load(row + first);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) total += __builtin_shuffle(pixels, source[t]) * weight[t];
        } else
            for (int t = 0; t < T; t++) {
                V pixels;
                for (int i = 0; i < VL; i++) pixels[i] = row[first + source[t][i]];
                total += pixels * weight[t];
            }
        return total;
    }
};

// Of every class, T * VL floats: the first source row and the differences of the others from it. Rows are `row_size`
// floats apart.
template <int T>
void interpolate_classes(const Columns<T>& columns, int64_t classes, int64_t w, const float* rows, int64_t row_size,
                         float* scores) {
    for (int64_t k = 0; k < classes; k++, scores += T * VL) {
        const V top = columns.interpolate(rows + k * w);
        store(scores, top);
#pragma GCC unroll 4
        for (int t = 1; t < T; t++) store(scores + t * VL, columns.interpolate(rows + t * row_size + k * w) - top);
    }
}

template <int T> JSEG_INLINE V score_of(const float* scores, const V* weight) {
    V score = load(scores);
#pragma GCC unroll 4
    for (int t = 1; t < T; t++) score += weight[t] * load(scores + t * VL);
    return score;
}

// R output rows: class and value of the largest score; the lowest class wins a tie.
template <int T, int R>
void winners(int64_t classes, const float* scores, const float* weights, VI* label, V* peak) {
    V best[R], weight[R][T];
    VI at[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        for (int t = 1; t < T; t++) weight[r][t] = splat(weights[r * T + t]);
        best[r] = score_of<T>(scores, weight[r]), at[r] = VI{};
    }
    for (int64_t k = 1; k < classes; k++) {
        V part[T];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) part[t] = load(scores + (k * T + t) * VL);
        const VI here = VI{} + int32_t(k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            V score = part[0];
#pragma GCC unroll 4
            for (int t = 1; t < T; t++) score += weight[r][t] * part[t];
            const VI better = score > best[r];
            best[r] = better ? score : best[r], at[r] = better ? here : at[r];
        }
    }
    for (int r = 0; r < R; r++) label[r] = at[r], peak[r] = best[r];
}

template <int T> V probability(int64_t classes, const float* scores, const float* weights, V peak) {
    V total{}, weight[T];
    for (int t = 1; t < T; t++) weight[t] = splat(weights[t]);
    for (int64_t k = 0; k < classes; k++) total += vexp(score_of<T>(scores + k * T * VL, weight) - peak);
    return 1.0f / total;
}

constexpr int ROWS = VL == 16 ? 8 : 4;   // output rows at a time, by the number of registers

template <int T> void run(const Call& call) {
    const int64_t n = call.integer(0), classes = call.integer(1), h = call.integer(2), w = call.integer(3);
    const int64_t height = call.integer(4), width = call.integer(5);
    const bool with_prob = call.integer(6);
    const int32_t *row_first = call.in<int32_t>(1), *column_first = call.in<int32_t>(3);
    const float *row_weights = call.in<float>(2), *column_weights = call.in<float>(4);
    int32_t* labels = call.out<int32_t>(0);
    float* prob = call.out<float>(1);
    if (!with_prob) prob[0] = 0;
    const int64_t row_size = round_up(classes * w + VL, 16), thread_size = T * row_size + T * classes * VL;
    float* memory = scratch(omp_get_max_threads() * thread_size);
    std::vector<Columns<T>> columns;
    for (int64_t x = 0; x < width; x += VL) columns.emplace_back(column_first, column_weights, x, width, w);
    std::vector<int64_t> begins;   // of the bands
    for (int64_t y = 0; y < height; y++)
        if (!y || row_first[y] != row_first[y - 1]) begins.push_back(y);
    const int64_t bands = begins.size();
    begins.push_back(height);
#pragma omp parallel
    {
        NoDenormals guard;
        float *rows = memory + omp_get_thread_num() * thread_size, *scores = rows + T * row_size;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < n * bands; job++) {
            const int64_t image = job / bands, first = begins[job % bands], last = begins[job % bands + 1];
            for (int64_t k = 0; k < classes; k++)
                for (int t = 0; t < T; t++) {
                    const int64_t source = std::min<int64_t>(row_first[first] + t, h - 1);
                    std::memcpy(rows + t * row_size + k * w,
                                call.in<float>(0) + ((image * classes + k) * h + source) * w, w * sizeof(float));
                }
            for (int64_t x = 0; x < width; x += VL) {
                interpolate_classes<T>(columns[x / VL], classes, w, rows, row_size, scores);
                for (int64_t y = first, count; y < last; y += count) {
                    VI label[ROWS];
                    V peak[ROWS];
                    count = last - y >= ROWS ? ROWS : last - y >= 4 ? 4 : 1;
                    const auto find = count == ROWS ? winners<T, ROWS> : count == 4 ? winners<T, 4> : winners<T, 1>;
                    find(classes, scores, row_weights + y * T, label, peak);
                    for (int r = 0; r < count; r++) {
                        const int64_t at = (image * height + y + r) * width + x,
                                      here = std::min<int64_t>(VL, width - x);
                        std::memcpy(labels + at, &label[r], here * sizeof(int32_t));
                        if (with_prob)
                            store_part(prob + at, probability<T>(classes, scores, row_weights + (y + r) * T, peak[r]),
                                       here);
                    }
                }
            }
        }
    }
}

}  // namespace

// in: scores (N, K, h, w), first source and T weights per output row, (H) int32 and (H, T), and per output column, (W)
// and (W, T); out: labels (N, H, W) int32, probability (N, H, W) if `with_prob`, else any 1; integers: N K h w H W
// with_prob T
JSEG_KERNEL(jseg_upsample_argmax_run) {
    const int64_t taps = call.integer(7);
    (taps == 2 ? run<2> : taps == 3 ? run<3> : run<4>)(call);
}
