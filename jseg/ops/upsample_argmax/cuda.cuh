// Class of the largest bilinearly resized score on CUDA, and its softmax probability.
//
//   v[k] = bilinear sample of scores[n, k] at an output pixel;  label = lowest k with v[k] = max v;  prob = 1 / sum exp(v - max v)
//
// Layout: scores (N, K, h, w) of type T; labels (N, H, W) int32, prob (N, H, W) float. One block: 256 output pixels, a
// thread each, neighbours in a row: they share source pixels, so the four reads a class come from the first-level
// cache. The sum is kept relative to the running maximum. There is no gradient; a NaN in class 0 gives label 0.
#include "cuda_bilinear.cuh"

namespace {
using namespace jseg;

template <class T>
__global__ void __launch_bounds__(256)
    best_class(const T* scores, int64_t n, int classes, Axis rows, Axis columns, int32_t* labels, float* prob) {
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x, width = columns.size_out,
                  area = int64_t(rows.size_in) * columns.size_in;
    if (at >= n * rows.size_out * width) return;
    const Corners corners(rows, columns, int(at / width % rows.size_out), int(at % width));
    const T* plane = scores + at / width / rows.size_out * classes * area;
    float best = corners.score(plane), sum = 1.0f;
    int label = 0;
    for (int k = 1; k < classes; k++) {
        plane += area;
        const float v = corners.score(plane);
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

}  // namespace

// inputs scores; outputs labels, prob (any 1 element without `with_prob`); integers: N K h w H W align_corners
// with_prob
JSEG_CUDA_KERNEL(jseg_upsample_argmax_run) {
    const int64_t n = call.integer(0);
    const bool align = call.integer(6), with_prob = call.integer(7);
    const Axis rows = take_axis(int(call.integer(2)), int(call.integer(4)), align, work),
               columns = take_axis(int(call.integer(3)), int(call.integer(5)), align, work);
    if (work.measuring()) return;
    run_axis(rows);
    run_axis(columns);
    JSEG_LAUNCH((best_class<T>), ceil_div(n * rows.size_out * columns.size_out, 256), 256, call.in<T>(0), n,
                int(call.integer(1)), rows, columns, call.out<int32_t>(0),
                with_prob ? call.out<float>(1) : static_cast<float*>(nullptr));
}
