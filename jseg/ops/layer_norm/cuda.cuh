// Layer normalisation of tokens on CUDA: rows of C channels.
//
//   x_hat = (x - mean) rstd,  y = x_hat w + b
//   g = dy w,  dx = (g - mean(g) - x_hat mean(g x_hat)) rstd,  dw = sum over tokens of dy x_hat,  db = sum of dy
//
// Layout: x, y, dy, dx (R, C) of type T; w, b, dw, db (C), mean and rstd (2, R) float. Forward and dx: a warp takes a
// row, its block 8 rows. dw and db: a block takes 32 channels of a run of rows, 8 threads per channel; the runs are
// added in order: results repeat bit by bit.
#include "cuda_base.cuh"

namespace {
using namespace jseg;

constexpr int THREADS = 256, WARPS = THREADS / WARP, ROWS = 256;   // ROWS: of a run

template <class T>
__global__ void __launch_bounds__(THREADS) normalise_rows(const T* x, const float* weight, const float* bias,
                                                          int64_t rows, int64_t c, float eps, T* y, float* means) {
    const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const bool inside = row < rows;
    const int lane = int(threadIdx.x) % WARP;
    x += row * c, y += row * c;
    float sum = 0.0f, squares = 0.0f;
    for (int64_t j = lane; inside && j < c; j += WARP) sum += to_float(x[j]);
    const float mean = warp_sum(sum) / float(c);
    for (int64_t j = lane; inside && j < c; j += WARP) {
        const float off = to_float(x[j]) - mean;
        squares += off * off;
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / float(c) + eps);
    for (int64_t j = lane; inside && j < c; j += WARP) put(y + j, (to_float(x[j]) - mean) * rstd * weight[j] + bias[j]);
    if (inside && means && lane == 0) means[row] = mean, means[rows + row] = rstd;
}

// Where the spread is small, rstd is large, and with it the rounding of the saved mean: x_hat then has a mean `off` of
// its own, which is taken out again.
template <class T>
__global__ void __launch_bounds__(THREADS)
    back_to_rows(const T* x, const T* dy, const float* weight, const float* means, int64_t rows, int64_t c, T* dx) {
    const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const bool inside = row < rows;
    const int lane = int(threadIdx.x) % WARP;
    const float mean = inside ? means[row] : 0.0f, rstd = inside ? means[rows + row] : 0.0f;
    x += row * c, dy += row * c, dx += row * c;
    float sum = 0.0f, products = 0.0f, off = 0.0f;
    for (int64_t j = lane; inside && j < c; j += WARP) {
        const float hat = (to_float(x[j]) - mean) * rstd, g = to_float(dy[j]) * weight[j];
        sum += g, products += g * hat, off += hat;
    }
    sum = warp_sum(sum) / float(c), products = warp_sum(products) / float(c), off = warp_sum(off) / float(c);
    const float slope = products - off * sum, level = sum - off * slope;
    for (int64_t j = lane; inside && j < c; j += WARP) {
        const float hat = (to_float(x[j]) - mean) * rstd;
        put(dx + j, (to_float(dy[j]) * weight[j] - level - hat * slope) * rstd);
    }
}

// parts (runs, 2, C) <- sums of dy x_hat and dy over a run of rows
template <class T>
__global__ void __launch_bounds__(THREADS)
    channel_parts(const T* x, const T* dy, const float* means, int64_t rows, int64_t c, float* parts) {
    JSEG_SHARED(float, room, THREADS);
    JSEG_SHARED(float, more_room, THREADS);
    const int64_t across = ceil_div(c, WARP), run = blockIdx.x / across,
                  j = blockIdx.x % across * WARP + threadIdx.x % WARP;
    const int slice = int(threadIdx.x) / WARP;
    float by_weight = 0.0f, by_bias = 0.0f;
    for (int64_t row = run * ROWS + slice; row < (run + 1) * ROWS && row < rows && j < c; row += WARPS) {
        const float d = to_float(dy[row * c + j]);
        by_weight += d * (to_float(x[row * c + j]) - means[row]) * means[rows + row], by_bias += d;
    }
    room[threadIdx.x] = by_weight, more_room[threadIdx.x] = by_bias;
    __syncthreads();
    if (slice || j >= c) return;
    for (int i = 1; i < WARPS; i++)
        by_weight += room[i * WARP + threadIdx.x], by_bias += more_room[i * WARP + threadIdx.x];
    parts[run * 2 * c + j] = by_weight, parts[(run * 2 + 1) * c + j] = by_bias;
}

// The runs of `channel_parts` in order and in double.
static __global__ void add_runs(const float* parts, int64_t runs, int64_t c, float* dweight, float* dbias) {
    const int64_t j = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (j >= c) return;
    double by_weight = 0, by_bias = 0;
    for (int64_t run = 0; run < runs; run++)
        by_weight += parts[run * 2 * c + j], by_bias += parts[(run * 2 + 1) * c + j];
    dweight[j] = float(by_weight), dbias[j] = float(by_bias);
}

}  // namespace

// inputs x, weight, bias; outputs y and, if wanted, mean and rstd (2, R); numbers: R C eps
JSEG_CUDA_KERNEL(jseg_layer_norm_forward) {
    const int64_t rows = call.integer(0), c = call.integer(1);
    if (work.measuring()) return;
    JSEG_LAUNCH((normalise_rows<T>), ceil_div(rows, WARPS), THREADS, call.in<T>(0), call.in<float>(1),
                call.in<float>(2), rows, c, float(call.real(2)), call.out<T>(0),
                call.output_count > 1 ? call.out<float>(1) : nullptr);
}

// inputs x, weight, mean and rstd, dy; outputs dx, dweight, dbias
JSEG_CUDA_KERNEL(jseg_layer_norm_backward) {
    const int64_t rows = call.integer(0), c = call.integer(1), runs = ceil_div(rows, ROWS);
    float* parts = work.take<float>(runs * 2 * c);
    if (work.measuring()) return;
    const T *x = call.in<T>(0), *dy = call.in<T>(3);
    const float* means = call.in<float>(2);
    JSEG_LAUNCH((back_to_rows<T>), ceil_div(rows, WARPS), THREADS, x, dy, call.in<float>(1), means, rows, c,
                call.out<T>(0));
    JSEG_LAUNCH((channel_parts<T>), runs * ceil_div(c, WARP), THREADS, x, dy, means, rows, c, parts);
    JSEG_LAUNCH(add_runs, ceil_div(c, 256), 256, static_cast<const float*>(parts), runs, c, call.out<float>(1),
                call.out<float>(2));
}
