// Cross-entropy of bilinearly resized scores on CUDA; the (N, K, H, W) tensor never exists.
//
// With v = resized scores of one pixel, m = max v, s = sum exp(v - m), t = its label, c = weight of the pixel:
//     loss = c (m + log s - v[t]),      d loss / d v[k] = c (exp(v[k] - m) / s - [k = t]).
//
// Layout: scores (N, K, h, w) of type T; labels (N, H, W) int32; weights, losses and the gradient float (a mean's
// gradient is too small for float16 before the loss scale has multiplied it).
// Forward, one block = 256 output pixels, a thread each: one pass over the classes with a running maximum and sum; the
// state of a pixel (m, c / s, c, t: 16 bytes) and the block's sums of loss, class weight, valid and correct pixels go
// to the workspace; one more block adds the sums in order, in double.
// Backward, a thread per source pixel and class, classes side by side: it holds the 3 x 3 scores around its source in
// registers, walks over the output pixels that read the source, computes v[k] again and gathers; a warp reads the same
// pixel state. Each gradient is written once: no atomics, results repeat bit by bit.
#include "cuda_bilinear.cuh"

namespace {
using namespace jseg;

struct PixelState {
    float peak, scale, weight;   // m, c / s, c
    int label;
};
struct Weights {
    const float *of_class, *of_pixel, *slope;   // (K), (N, H, W), (N, H, W): each may be null for ones
};

constexpr int SUMMED = 4;   // loss, class weights of valid pixels, valid pixels, correct pixels

// Adds four numbers over a block of 256; threads 0..3 hold the results.
__device__ __forceinline__ double sum_four(const double (&v)[SUMMED]) {
    JSEG_SHARED(double, room, SUMMED * 8);
    JSEG_UNROLL
    for (int i = 0; i < SUMMED; i++) {
        const double total = warp_sum(v[i]);
        if (threadIdx.x % WARP == 0) room[i * 8 + threadIdx.x / WARP] = total;
    }
    __syncthreads();
    double total = 0;
    if (threadIdx.x < SUMMED)
        for (int i = 0; i < 8; i++) total += room[threadIdx.x * 8 + i];
    return total;
}

template <class T>
__global__ void __launch_bounds__(256)
    pixel_losses(const T* scores, const int32_t* labels, Weights weights, int64_t n, int classes, int ignore, Axis rows,
                 Axis columns, float* losses, PixelState* states, double* parts) {
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x, width = columns.size_out,
                  area = int64_t(rows.size_in) * columns.size_in;
    const bool inside = at < n * rows.size_out * width;
    const int label = inside ? labels[at] : ignore;
    double sums[SUMMED] = {};
    if (label != ignore && label >= 0 && label < classes) {
        const Corners corners(rows, columns, int(at / width % rows.size_out), int(at % width));
        const T* plane = scores + at / width / rows.size_out * classes * area;
        float peak = corners.score(plane), total = 1.0f, wanted = peak;
        int best = 0;
        for (int k = 1; k < classes; k++) {
            plane += area;
            const float v = corners.score(plane);
            const bool better = v > peak;
            const float e = expf(better ? peak - v : v - peak);
            total = better ? total * e + 1.0f : total + e;
            peak = better ? v : peak;
            best = better ? k : best;
            wanted = k == label ? v : wanted;
        }
        const float share = weights.of_class ? weights.of_class[label] : 1.0f;
        const float weight = share * (weights.of_pixel ? weights.of_pixel[at] : 1.0f),
                    slope = weight * (weights.slope ? weights.slope[at] : 1.0f);
        const float loss = weight * (peak - wanted + logf(total));
        if (losses) losses[at] = loss;
        if (states) states[at] = {peak, slope / total, slope, label};
        sums[0] = loss, sums[1] = share, sums[2] = 1, sums[3] = best == label;
    } else if (inside) {
        if (losses) losses[at] = 0.0f;
        if (states) states[at] = {0.0f, 0.0f, 0.0f, -1};
    }
    const double total = sum_four(sums);
    if (threadIdx.x < SUMMED) parts[int64_t(blockIdx.x) * SUMMED + threadIdx.x] = total;
}

// parts -> summary: loss, accuracy; scale: 1 / count, or 1 where every pixel has its own loss. One block.
static __global__ void __launch_bounds__(256)
    finish_losses(const double* parts, int64_t count, double pixels, bool weighted, bool avg_non_ignore, bool per_pixel,
                  float* summary, float* scale) {
    JSEG_SHARED(double, totals, SUMMED);
    double sums[SUMMED] = {};
    for (int64_t i = threadIdx.x; i < count; i += 256)
        for (int j = 0; j < SUMMED; j++) sums[j] += parts[i * SUMMED + j];
    const double total = sum_four(sums);
    if (threadIdx.x < SUMMED) totals[threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.x) return;
    const double eps = 1.1920928955078125e-7, valid = totals[2];
    const double divisor = (weighted ? totals[1] : valid) + (avg_non_ignore ? 0.0 : pixels - valid) + eps;
    summary[0] = float(totals[0] / divisor);
    summary[1] = float((totals[3] + eps) * 100.0 / (valid + eps));
    *scale = per_pixel ? 1.0f : float(1.0 / divisor);
}

// Sum over the output pixels of rows [y0, y1) and columns [x0, x1), which all lie between the same four sources.
struct Range {
    int begin, end;
    bool upper;   // the thread's source is the upper (right) one of the two
};
__device__ __forceinline__ float gather(const PixelState* states, int k, const Axis& rows, const Axis& columns, Range y,
                                        Range x, float a, float b, float c, float d) {
    float total = 0;
    for (int r = y.begin; r < y.end; r++) {
        const float fy = rows.fraction[r];
        const PixelState* line = states + int64_t(r) * columns.size_out;
        float sum = 0;
        for (int q = x.begin; q < x.end; q++) {
            const PixelState s = line[q];
            const float fx = columns.fraction[q];
            const float v = mix(mix(a, b, fx), mix(c, d, fx), fy);
            // An ignored pixel has scale 0 and peak 0: leave it out, exp(v) may be infinite.
            const float slope = s.label < 0 ? 0.0f : s.scale * expf(v - s.peak) - (s.label == k ? s.weight : 0.0f);
            sum += slope * (x.upper ? fx : 1.0f - fx);
        }
        total += sum * (y.upper ? fy : 1.0f - fy);
    }
    return total;
}

template <class T>
__global__ void __launch_bounds__(128) score_grads(const T* scores, const PixelState* states, int64_t n, int classes,
                                                   Axis rows, Axis columns, const float* scale, float* out) {
    const int64_t item = int64_t(blockIdx.x) * 128 + threadIdx.x, h = rows.size_in, w = columns.size_in;
    if (item >= n * h * w * classes) return;
    const int k = int(item % classes);
    const int64_t pixel = item / classes, x = pixel % w, y = pixel / w % h, image = pixel / w / h;
    const T* plane = scores + (image * classes + k) * h * w;
    float near[3][3];
    JSEG_UNROLL
    for (int i = 0; i < 3; i++)
        JSEG_UNROLL
        for (int j = 0; j < 3; j++) {
            const int64_t r = y + i - 1, q = x + j - 1;
            near[i][j] = to_float(plane[(r < 0 ? 0 : r < h ? r : h - 1) * w + (q < 0 ? 0 : q < w ? q : w - 1)]);
        }
    const PixelState* map = states + image * rows.size_out * columns.size_out;
    float total = 0;
    JSEG_UNROLL
    for (int i = 0; i < 2; i++) {
        const Range yr{i ? rows.first[y] : y ? rows.first[y - 1] : 0, i ? rows.first[y + 1] : rows.first[y], i == 0};
        JSEG_UNROLL
        for (int j = 0; j < 2; j++) {
            const Range xr{j   ? columns.first[x]
                           : x ? columns.first[x - 1]
                               : 0,
                           j ? columns.first[x + 1] : columns.first[x], j == 0};
            total +=
                gather(map, k, rows, columns, yr, xr, near[i][j], near[i][j + 1], near[i + 1][j], near[i + 1][j + 1]);
        }
    }
    out[(image * classes + k) * h * w + y * w + x] = total * *scale;
}

}  // namespace

// inputs scores, labels int32, class weight or None, pixel weight or None, pixel slope or None
// outputs summary (2): loss, accuracy; pixel losses if `per_pixel`, else any 1; gradient of the scores if `with_grad`,
// else any 1 integers: N K h w H W align_corners ignore_index avg_non_ignore per_pixel with_grad
// The gradient is that of the mean loss, or of sum(pixel_slope * losses) if `per_pixel`.
JSEG_CUDA_KERNEL(jseg_upsample_cross_entropy_run) {
    const int64_t n = call.integer(0);
    const int classes = int(call.integer(1));
    const bool align = call.integer(6), per_pixel = call.integer(9), with_grad = call.integer(10);
    const Axis rows = take_axis(int(call.integer(2)), int(call.integer(4)), align, work),
               columns = take_axis(int(call.integer(3)), int(call.integer(5)), align, work);
    const int64_t pixels = n * rows.size_out * columns.size_out, blocks = ceil_div(pixels, 256);
    double* parts = work.take<double>(blocks * SUMMED);
    float* scale = work.take<float>(1);
    PixelState* states = work.take<PixelState>(with_grad ? pixels : 0);
    if (work.measuring()) return;
    if (!with_grad) states = nullptr;
    const Weights weights{call.in<float>(2), call.in<float>(3), call.in<float>(4)};
    run_axis(rows);
    run_axis(columns);
    JSEG_LAUNCH((pixel_losses<T>), blocks, 256, call.in<T>(0), call.in<int32_t>(1), weights, n, classes,
                int(call.integer(7)), rows, columns, per_pixel ? call.out<float>(1) : static_cast<float*>(nullptr),
                states, parts);
    JSEG_LAUNCH(finish_losses, 1, 256, parts, blocks, double(pixels), weights.of_class != nullptr, call.integer(8) != 0,
                per_pixel, call.out<float>(0), scale);
    if (!with_grad) return;
    JSEG_LAUNCH((score_grads<T>), ceil_div(n * rows.size_in * columns.size_in * classes, 128), 128, call.in<T>(0),
                states, n, classes, rows, columns, scale, call.out<float>(2));
}
