// Products of tokens with a matrix on CUDA, forward and backward (cuda_gemm.cuh).
//
//   u = W x + b,  y = shortcut + f act(u)         all but W and x optional; act: none or GELU
//   g = dy f act'(u),  dx = W^T g,  dW = sum over tokens of g x^T,  db = sum of g
//
// Layout: x (N, T, C), y, shortcut, g (N, T, D) of type T; W (D, C), b (D), f (N), dW, db float. One block: a tile of
// tokens by channels; what follows the product happens as it is written. With GELU, u is saved as float; g lies as
// float in the workspace where it is not dy itself. dW and db are cut along the tokens; their parts are added in order:
// results repeat bit by bit.
#include "cuda_gemm.cuh"

namespace {
using namespace jseg;

struct LinearShape {
    int64_t n, tokens, c, d;
    bool gelu;
    explicit LinearShape(const Call& call)
        : n(call.integer(0)), tokens(call.integer(1)), c(call.integer(2)), d(call.integer(3)),
          gelu(call.integer(4) != 0) {}
    int64_t rows() const { return n * tokens; }
};

template <class T> struct TokenEnding {   // i: token, j: channel
    T* y;
    int64_t d, tokens;
    const float *bias, *factor;
    const T* shortcut;
    bool act;
    float* before;   // null where u is not saved
    bool wide() const {
        return d % 4 == 0 && in_fours(y) && in_fours(bias) && in_fours(shortcut) && in_fours(before);
    }
    template <int W>
    __device__ __forceinline__ void put_sums(int64_t, int64_t, int64_t i, int64_t j, float (&u)[W]) const {
        float more[W];
        if (bias) {
            load_run<W>(bias + j, more);
            JSEG_UNROLL
            for (int w = 0; w < W; w++) u[w] += more[w];
        }
        if (before) store_run<W>(before + i * d + j, u);
        JSEG_UNROLL
        for (int w = 0; w < W; w++) {
            if (act) u[w] = gelu(u[w]);
            if (factor) u[w] *= factor[i / tokens];
        }
        if (shortcut) {
            load_run<W>(shortcut + i * d + j, more);
            JSEG_UNROLL
            for (int w = 0; w < W; w++) u[w] += more[w];
        }
        store_run<W>(y + i * d + j, u);
    }
};
// slope <- dy f act'(u); a thread per element. What is null is left out.
template <class T>
__global__ void end_slopes(const T* dy, int64_t size, int64_t each, const float* factor, const float* u, float* slope) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < size) slope[at] = to_float(dy[at]) * (factor ? factor[at / each] : 1.0f) * (u ? gelu_slope(u[at]) : 1.0f);
}

constexpr int RUN = 256, THREADS = 256, SLICES = THREADS / WARP;   // RUN: tokens of a part

// parts (runs, D) <- sums of g (rows, D) over a run of tokens; a block takes 32 channels, 8 threads each.
template <class G>
__global__ void __launch_bounds__(THREADS) token_parts(const G* g, int64_t rows, int64_t d, float* parts) {
    JSEG_SHARED(float, room, THREADS);
    const int64_t across = ceil_div(d, WARP), run = blockIdx.x / across,
                  j = blockIdx.x % across * WARP + threadIdx.x % WARP;
    const int slice = int(threadIdx.x) / WARP;
    float sum = 0.0f;
    for (int64_t row = run * RUN + slice; row < (run + 1) * RUN && row < rows && j < d; row += SLICES)
        sum += to_float(g[row * d + j]);
    room[threadIdx.x] = sum;
    __syncthreads();
    if (slice || j >= d) return;
    for (int i = 1; i < SLICES; i++) sum += room[i * WARP + threadIdx.x];
    parts[run * d + j] = sum;
}

}  // namespace

// inputs x, W, b, factor, shortcut, each of the last three or None; outputs y and, with GELU and if wanted, u;
// integers: N T C D gelu
JSEG_CUDA_KERNEL(jseg_linear_forward) {
    const LinearShape s(call);
    if (work.measuring()) return;
    run_gemm(gemm_size(1, s.rows(), s.d, s.c), rows_of(call.in<T>(0), 0, s.c), columns_of(call.in<float>(1), 0, s.c),
             TokenEnding<T>{call.out<T>(0), s.d, s.tokens, call.in<float>(2), call.in<float>(3), call.in<T>(4), s.gelu,
                            call.output_count > 1 ? call.out<float>(1) : nullptr});
}

// inputs x, W, factor and u, each of the two or None, dy; outputs dx, dW, db
JSEG_CUDA_KERNEL(jseg_linear_backward) {
    const LinearShape s(call);
    const bool changed = given(call, 2) || given(call, 3);
    const GemmSize weights = reduction_size(1, s.d, s.c, s.rows());
    const int64_t size = s.rows() * s.d, runs = ceil_div(s.rows(), RUN);
    float *parts = work.take<float>(reduction_floats(weights)), *sums = work.take<float>(runs * s.d),
          *slope = work.take<float>(changed ? size : 0);
    if (work.measuring()) return;
    const T *x = call.in<T>(0), *dy = call.in<T>(4);
    const float* w = call.in<float>(1);
    auto rest = [&](auto* g) {
        using G = std::remove_const_t<std::remove_pointer_t<decltype(g)>>;
        run_gemm(gemm_size(1, s.rows(), s.c, s.d), rows_of(g, 0, s.d), rows_of(w, 0, s.c),
                 Store<T>{rows_of(call.out<T>(0), 0, s.c), nullptr, false, false});
        run_reduction(weights, columns_of(g, 0, s.d), rows_of(x, 0, s.c), false, false, parts, call.out<float>(1));
        JSEG_LAUNCH((token_parts<G>), runs * ceil_div(s.d, WARP), THREADS, g, s.rows(), s.d, sums);
        JSEG_LAUNCH((sum_parts<float, float>), ceil_div(s.d, 256), 256, static_cast<const float*>(sums), int64_t(1),
                    runs, s.d, false, call.out<float>(2));
    };
    if (!changed) return rest(dy);
    JSEG_LAUNCH((end_slopes<T>), ceil_div(size, 256), 256, dy, size, s.tokens * s.d, call.in<float>(2),
                call.in<float>(3), slope);
    rest(static_cast<const float*>(slope));
}
