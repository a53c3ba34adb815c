// Criss-cross attention on CUDA: softmax over the row and the column of every position; the maths is in cpu.cc.
//
// Layout: query, key (N, C, H, W), value and y (N, D, H, W) of type T; weights (N, H, W, column then row) float, each
// part filled up with zeros to a multiple of 16. The products of a picture's columns, and of its rows, are one batched
// product each (include/cuda_gemm.cuh: a block per 64 x 64 tile), which read the maps with the strides they have. What
// columns give is kept as float, rows add to it: every result is rounded once. The softmax takes a warp per position.
// No atomics: results repeat bit by bit.
#include "cuda_gemm.cuh"

namespace {
using namespace jseg;

constexpr int THREADS = 256, WARPS = THREADS / WARP;

struct Shape {
    int64_t n, c, d, h, w;
    explicit Shape(const Call& call)
        : n(call.integer(0)), c(call.integer(1)), d(call.integer(2)), h(call.integer(3)), w(call.integer(4)) {}
    __host__ __device__ int64_t area() const { return h * w; }
    __host__ __device__ int64_t down() const { return ceil_div(h, 16) * 16; }     // places of a column
    __host__ __device__ int64_t across() const { return ceil_div(w, 16) * 16; }   // places of a row
    __host__ __device__ int64_t places() const { return down() + across(); }
};

// The columns, or the rows, of one picture: position i of line b is b * next + i * step of a map.
struct Lines {
    int64_t count, length, next, step, places, first;   // places of a position, the first of these lines' own
    Lines(const Shape& s, bool rows)
        : count(rows ? s.h : s.w), length(rows ? s.w : s.h), next(rows ? s.w : 1), step(rows ? 1 : s.w),
          places(s.places()), first(rows ? s.down() : 0) {}
    template <class P> Matrix<P> positions_by_channels(P* map, int64_t area) const { return {map, next, step, area}; }
    template <class P> Matrix<P> channels_by_positions(P* map, int64_t area) const { return {map, next, area, step}; }
    template <class P> Matrix<P> weights(P* weights) const {
        return {weights + first, next * places, step * places, 1};
    }
    template <class P> Matrix<P> turned_weights(P* weights) const {
        return {weights + first, next * places, 1, step * places};
    }
};

// out = sum + so far
template <class T> struct Finish {
    Matrix<T> out;
    Matrix<const float> sofar;
    bool wide() const { return out.aligned(4) && sofar.aligned(4); }
    template <int W>
    __device__ __forceinline__ void put_sums(int64_t b, int64_t, int64_t i, int64_t j, float (&sum)[W]) const {
        float before[W];
        load_run<W>(sofar.at(b, i, j), before);
        JSEG_UNROLL
        for (int w = 0; w < W; w++) sum[w] += before[w];
        store_run<W>(out.at(b, i, j), sum);
    }
};

// to[t][s] = a[t] . b[s] over `channels` of maps a and b, for all lines.
template <class T>
void pair_products(const Shape& s, int64_t channels, const T* a, const T* b, float* to) {
    for (int64_t n = 0; n < s.n; n++, a += channels * s.area(), b += channels * s.area(), to += s.area() * s.places())
        for (bool rows : {false, true}) {
            const Lines lines(s, rows);
            run_gemm(gemm_size(lines.count, lines.length, lines.length, channels),
                     lines.positions_by_channels(a, s.area()), lines.channels_by_positions(b, s.area()),
                     Store<float>{lines.weights(to), nullptr, false, false});
        }
}

// to[t] = sum_s weights[t][s] from[s] over both lines of t, or turned: to[s] = sum_t weights[t][s] from[t].
template <class T>
void mix(const Shape& s, bool turned, int64_t channels, const float* weights, const T* from, float* sofar, T* to) {
    const int64_t map = channels * s.area();
    for (int64_t n = 0; n < s.n; n++, weights += s.area() * s.places(), from += map, to += map) {
        const Lines down(s, false), across(s, true);
        const auto run = [&](const Lines& lines, auto end) {
            run_gemm(gemm_size(lines.count, channels, lines.length, lines.length),
                     lines.channels_by_positions(from, s.area()),
                     turned ? lines.weights(weights) : lines.turned_weights(weights), end);
        };
        run(down, Store<float>{down.channels_by_positions(sofar, s.area()), nullptr, false, false});
        run(across, Finish<T>{across.channels_by_positions(to, s.area()),
                              across.channels_by_positions(static_cast<const float*>(sofar), s.area())});
    }
}

// ---- kernels: a warp per position -----------------------------------------------------------------------------------
struct Position {
    int64_t at, itself;   // its place in its own column, which its row counts already
    bool exists;
    int lane;
    __device__ explicit Position(const Shape& s)
        : at(int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP), itself(at % s.area() / s.w),
          exists(at < s.n * s.area()), lane(int(threadIdx.x) % WARP) {}
    __device__ bool counts(const Shape& s, int64_t i) const {
        return i < s.down() ? i < s.h && i != itself : i - s.down() < s.w;
    }
};

// The softmax of scores, in place; what does not count gets 0.
static __global__ void __launch_bounds__(THREADS) softmax(Shape s, float* scores) {
    const Position p(s);
    const int64_t end = p.exists ? s.places() : 0;
    scores += p.at * s.places();
    float top = -INFINITY, sum = 0.0f;
    for (int64_t i = p.lane; i < end; i += WARP)
        if (p.counts(s, i)) top = fmaxf(top, scores[i]);
    JSEG_UNROLL
    for (int step = WARP / 2; step; step /= 2) top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, step));
    for (int64_t i = p.lane; i < end; i += WARP) {
        const float e = p.counts(s, i) ? expf(scores[i] - top) : 0.0f;
        scores[i] = e, sum += e;
    }
    sum = warp_sum(sum);
    for (int64_t i = p.lane; i < end; i += WARP) scores[i] = scores[i] / sum;
}

// Gradients of weights become those of scores, in place.
static __global__ void __launch_bounds__(THREADS) softmax_back(Shape s, const float* weights, float* gradients) {
    const Position p(s);
    const int64_t end = p.exists ? s.places() : 0;
    weights += p.at * s.places(), gradients += p.at * s.places();
    float mean = 0.0f;
    for (int64_t i = p.lane; i < end; i += WARP)
        if (p.counts(s, i)) mean += weights[i] * gradients[i];
    mean = warp_sum(mean);
    for (int64_t i = p.lane; i < end; i += WARP)
        gradients[i] = p.counts(s, i) ? weights[i] * (gradients[i] - mean) : 0.0f;
}

}  // namespace

// inputs query, key, value; outputs y, weights; numbers: N C D H W
JSEG_CUDA_KERNEL(jseg_criss_cross_forward) {
    const Shape s(call);
    float* sofar = work.take<float>(s.d * s.area());
    if (work.measuring()) return;
    float* weights = call.out<float>(1);
    pair_products(s, s.c, call.in<T>(0), call.in<T>(1), weights);
    JSEG_LAUNCH(softmax, ceil_div(s.n * s.area(), WARPS), THREADS, s, weights);
    mix(s, false, s.d, weights, call.in<T>(2), sofar, call.out<T>(0));
}

// inputs query, key, value, weights, dy; outputs their gradients, that of the weights as memory; numbers as above
JSEG_CUDA_KERNEL(jseg_criss_cross_backward) {
    const Shape s(call);
    float* sofar = work.take<float>((s.c > s.d ? s.c : s.d) * s.area());
    if (work.measuring()) return;
    const T *query = call.in<T>(0), *key = call.in<T>(1), *value = call.in<T>(2), *dy = call.in<T>(4);
    const float* weights = call.in<float>(3);
    float* slopes = call.out<float>(3);
    pair_products(s, s.d, dy, value, slopes);
    JSEG_LAUNCH(softmax_back, ceil_div(s.n * s.area(), WARPS), THREADS, s, weights, slopes);
    mix(s, true, s.d, weights, dy, sofar, call.out<T>(2));
    mix(s, false, s.c, static_cast<const float*>(slopes), key, sofar, call.out<T>(0));
    mix(s, true, s.c, static_cast<const float*>(slopes), query, sofar, call.out<T>(1));
}
