// Class of the largest bilinearly resized score on CUDA, and its softmax probability.
//
//   v[k] = sum over TAPS x TAPS sources of weight x scores[n, k];  label = lowest k with v[k] = max v;
//   prob = 1 / sum exp(v - max v)
//
// Layout: scores (N, K, h, w) of type T; per output row (column) its first source, int32, and TAPS weights, float, that
// sum to one; labels (N, H, W) int32, prob (N, H, W) float. One block: 256 output pixels, a thread each, neighbours in
// a row: they share source pixels, so the reads per class come from the first-level cache. The sum is kept relative to
// the running maximum. There is no gradient; a NaN in class 0 gives label 0.
#include "cuda_base.cuh"

namespace {
using namespace jseg;

struct Plane { int h, w, height, width; };

// Sources of one output pixel along one axis.
template <int TAPS> struct Sources {
    int at[TAPS];
    float weight[TAPS];
    __device__ Sources(const int32_t* first, const float* weights, int output, int size) {
        JSEG_UNROLL
        for (int t = 0; t < TAPS; t++)
            at[t] = smaller(first[output] + t, size - 1), weight[t] = weights[int64_t(output) * TAPS + t];
    }
};

template <int TAPS, class T> __device__ __forceinline__ float score_of(const T* plane, int w, const Sources<TAPS>& rows,
                                                                       const Sources<TAPS>& columns) {
    float score = 0.0f;
    JSEG_UNROLL
    for (int r = 0; r < TAPS; r++) {
        float row = 0.0f;
        JSEG_UNROLL
        for (int c = 0; c < TAPS; c++)
            row += columns.weight[c] * to_float(plane[int64_t(rows.at[r]) * w + columns.at[c]]);
        score += rows.weight[r] * row;
    }
    return score;
}

template <int TAPS, class T>
__global__ void __launch_bounds__(256)
    best_class(const T* scores, int64_t n, int classes, Plane p, const int32_t* row_first, const float* row_weights,
               const int32_t* column_first, const float* column_weights, int32_t* labels, float* prob) {
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x, area = int64_t(p.h) * p.w;
    if (at >= n * p.height * p.width) return;
    const Sources<TAPS> rows(row_first, row_weights, int(at / p.width % p.height), p.h),
        columns(column_first, column_weights, int(at % p.width), p.w);
    const T* plane = scores + at / p.width / p.height * classes * area;
    float best = score_of<TAPS>(plane, p.w, rows, columns), sum = 1.0f;
    int label = 0;
    for (int k = 1; k < classes; k++) {
        plane += area;
        const float v = score_of<TAPS>(plane, p.w, rows, columns);
        const bool better = v > best;
        if (prob) {
            const float e = expf(better ? best - v : v - best);
            sum = better ? sum * e + 1.0f : sum + e;
        }
        best = better ? v : best;
        label = better ? k : label;
    }
    labels[at] = label;
    if (prob) prob[at] = 1.0f / sum;
}

template <int TAPS, class T> void launch(const Call& call) {
    const int64_t n = call.integer(0);
    const Plane p{int(call.integer(2)), int(call.integer(3)), int(call.integer(4)), int(call.integer(5))};
    JSEG_LAUNCH((best_class<TAPS, T>), ceil_div(n * p.height * p.width, 256), 256, call.in<T>(0), n,
                int(call.integer(1)), p, call.in<int32_t>(1), call.in<float>(2), call.in<int32_t>(3), call.in<float>(4),
                call.out<int32_t>(0), call.integer(6) ? call.out<float>(1) : static_cast<float*>(nullptr));
}

}  // namespace

// inputs scores, first source and TAPS weights per output row, and per output column; outputs labels, prob (any 1
// element without `with_prob`); integers: N K h w H W with_prob TAPS
JSEG_CUDA_KERNEL(jseg_upsample_argmax_run) {
    if (work.measuring()) return;
    const int64_t taps = call.integer(7);
    if (taps == 2) launch<2, T>(call);
    else if (taps == 3) launch<3, T>(call);
    else launch<4, T>(call);
}
