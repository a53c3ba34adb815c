// MSCA's depthwise part on CUDA: a = conv0(x) + b0;  y = a + sum over strips s of column_s(row_s(a)), forward and
// backward.
//
// Layout: x, y, dy, dx (N, C, H, W) of type T; filters and their gradients float. Zero padding applies to x, to a and
// to every t_s = row_s(a) + bias: outside the plane all of them are 0.
//
// Forward, SegNeXt's sizes (5x5; 7, 11, 21), one block = one tile of 32 x 32 or 64 x 32 pixels of one plane: x with a
// halo of 12 goes to shared memory, a with a halo of 10 is computed there, then strip by strip t_s (10 more rows up and
// down) and the column sums, which stay in registers: x is read once, y written once. Lanes run along columns where the
// filter is vertical, along rows (odd row length: no bank conflicts) where it is horizontal; a thread computes 4 or 8
// neighbours along the filter.
//
// Backward, in two steps; with u_s = column_s^T(dy):
//   1. tiles as above: a again, then  dcolumn_s[i] = sum dy t_s(+i),  drow_s[j] = sum u_s a(+j),  their biases sum dy
//      and sum u_s, and da = dy + sum_s row_s^T(u_s), stored as float in the workspace;
//   2. the 5x5 backward pass of cuda_depthwise.cuh on (x, da): dx, dw0, db0.
// Every tile's weight sums go to the workspace and are added in tile order: no atomics, results repeat bit by bit.
//
// Other sizes: the same steps with the direct depthwise kernels, a, t_s, u_s and da as float tensors in the workspace.
#include "cuda_depthwise.cuh"

namespace {
using namespace jseg;

constexpr int MAX_STRIPS = 8, REACH = 10, EDGE = REACH + 2, SUMS = 2 * (7 + 1) + 2 * (11 + 1) + 2 * (21 + 1),
              STRIP_ROWS = 32;

struct MscaShape {
    int64_t n, c;
    int h, w, strips, k0, k[MAX_STRIPS];
    explicit MscaShape(const Call& call)
        : n(call.integer(0)), c(call.integer(1)), h(int(call.integer(2))), w(int(call.integer(3))),
          strips(int(call.integer(4))), k0(int(call.integer(5))) {
        for (int s = 0; s < strips; s++) k[s] = int(call.integer(6 + s));
    }
    bool published() const { return k0 == 5 && strips == 3 && k[0] == 7 && k[1] == 11 && k[2] == 21; }
    int64_t pixels() const { return n * c * h * w; }
};

struct Plane {
    int64_t c;
    int h, w;
    Tiles tiles;
};

// Filters of all channels as the op passes them; the order row weight, row bias, column weight, column bias.
struct Filters {
    const float *w0, *b0, *strip[12];
};
struct FilterGrads {
    float* strip[12];
};

// Where strip S begins among a channel's sums: row taps, row bias, column taps, column bias, strip after strip.
template <int S> constexpr int SIZE = S == 0 ? 7 : S == 1 ? 11 : 21;
template <int S> constexpr int START = S == 0 ? 0 : S == 1 ? 16 : 40;

// Strip S of one channel -> shared memory, in the order of the sums.
template <int S> __device__ __forceinline__ void load_strip(const Filters& f, int64_t c, float* strips) {
    constexpr int K = SIZE<S>;
    for (int i = threadIdx.x; i < 2 * (K + 1); i += blockDim.x) {
        const bool column = i > K;
        const int at = i - column * (K + 1);
        const float *weight = column ? f.strip[4 * S + 2] : f.strip[4 * S],
                    *bias = column ? f.strip[4 * S + 3] : f.strip[4 * S + 1];
        strips[START<S> + i] = at < K ? weight[c * K + at] : bias[c];
    }
}
__device__ __forceinline__ void load_filters(const Filters& f, int64_t c, float* strips, float* conv0) {
    load_strip<0>(f, c, strips);
    load_strip<1>(f, c, strips);
    load_strip<2>(f, c, strips);
    if (threadIdx.x < 25) conv0[threadIdx.x] = f.w0[c * 25 + threadIdx.x];
}

// a on the tile and REACH pixels around it; x lies in `xs` with EDGE pixels around. 0 outside the plane.
template <int TW>
__device__ __forceinline__ void make_a(const Plane& p, int top, int left, const float* xs, const float* w, float bias,
                                       float* as) {
    constexpr int ROWS = STRIP_ROWS + 2 * REACH, COLUMNS = TW + 2 * REACH, LD = COLUMNS + 1, XLD = TW + 2 * EDGE + 1;
    static_assert(ROWS % ROWS_EACH == 0, "whole groups of rows");
    for (int i = threadIdx.x; i < ROWS / ROWS_EACH * COLUMNS; i += blockDim.x) {
        const int q = i % COLUMNS, r = i / COLUMNS * ROWS_EACH, x = left - REACH + q, y = top - REACH + r;
        float sums[ROWS_EACH] = {bias, bias, bias, bias};
        if (x >= 0 && x < p.w && y + ROWS_EACH > 0 && y < p.h)
            window_sums<5, ROWS_EACH, XLD, false>(xs + r * XLD + q, w, sums);
        JSEG_UNROLL
        for (int e = 0; e < ROWS_EACH; e++)
            as[(r + e) * LD + q] = x >= 0 && x < p.w && y + e >= 0 && y + e < p.h ? sums[e] : 0.0f;
    }
}

// EACH neighbours of a one-dimensional filter; `line` steps by `STEP`.
template <int K, int EACH, int STEP, bool FLIP>
__device__ __forceinline__ void line_sums(const float* line, const float* weight, float (&sums)[EACH]) {
    float v[K + EACH - 1];
    JSEG_UNROLL
    for (int i = 0; i < K + EACH - 1; i++) v[i] = line[i * STEP];
    JSEG_UNROLL
    for (int i = 0; i < K; i++) {
        const float w = weight[FLIP ? K - 1 - i : i];
        JSEG_UNROLL
        for (int e = 0; e < EACH; e++) sums[e] += w * v[i + e];
    }
}

// t of one strip on the tile's columns and REACH rows around it. 0 in rows outside the plane.
template <int S, int TW>
__device__ __forceinline__ void make_t(const Plane& p, int top, const float* as, const float* strip, float* ts) {
    constexpr int K = SIZE<S>, ROWS = STRIP_ROWS + 2 * REACH, EACH = 8, ALD = TW + 2 * REACH + 1, TLD = TW + 1;
    for (int i = threadIdx.x; i < ROWS * TW / EACH; i += blockDim.x) {
        const int r = i % ROWS, q = i / ROWS * EACH, y = top - REACH + r;
        float sums[EACH];
        JSEG_UNROLL
        for (int e = 0; e < EACH; e++) sums[e] = strip[K];
        if (y >= 0 && y < p.h) line_sums<K, EACH, 1, false>(as + r * ALD + q + REACH - K / 2, strip, sums);
        JSEG_UNROLL
        for (int e = 0; e < EACH; e++) ts[r * TLD + q + e] = y >= 0 && y < p.h ? sums[e] : 0.0f;
    }
}

// Adds one strip to the thread's outputs. Ends with a barrier after which `ts` is free.
template <int S, int TW, int ITEMS>
__device__ __forceinline__ void add_strip(const Plane& p, int top, const float* as, const float* strips, float* ts,
                                          float (&sums)[ITEMS][ROWS_EACH]) {
    constexpr int K = SIZE<S>, TLD = TW + 1;
    const float *row = strips + START<S>, *column = row + K + 1;
    make_t<S, TW>(p, top, as, row, ts);
    __syncthreads();
    JSEG_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        const int item = threadIdx.x + i * 256, q = item % TW, r = item / TW * ROWS_EACH;
        JSEG_UNROLL
        for (int e = 0; e < ROWS_EACH; e++) sums[i][e] += column[K];
        line_sums<K, ROWS_EACH, TLD, false>(ts + (r + REACH - K / 2) * TLD + q, column, sums[i]);
    }
    __syncthreads();
}

template <class T, int TW> __global__ void __launch_bounds__(256) msca_tile(Plane p, const T* x, Filters f, T* y) {
    constexpr int XR = STRIP_ROWS + 2 * EDGE, XC = TW + 2 * EDGE, AR = STRIP_ROWS + 2 * REACH, ALD = TW + 2 * REACH + 1;
    constexpr int ITEMS = TW * STRIP_ROWS / ROWS_EACH / 256;
    JSEG_SHARED(float, xs, XR * (XC + 1));   // x, later t
    JSEG_SHARED(float, as, AR * ALD);
    JSEG_SHARED(float, strips, SUMS);
    JSEG_SHARED(float, conv0, 25);
    const int64_t plane = blockIdx.x / p.tiles.each(), c = plane % p.c;
    const int top = int(blockIdx.x % p.tiles.each() / p.tiles.across) * STRIP_ROWS,
              left = int(blockIdx.x % p.tiles.across) * TW;
    load_tile<XR, XC, XC + 1>(x + plane * p.h * p.w, p.h, p.w, top - EDGE, left - EDGE, xs);
    load_filters(f, c, strips, conv0);
    __syncthreads();
    make_a<TW>(p, top, left, xs, conv0, f.b0[c], as);
    __syncthreads();
    float sums[ITEMS][ROWS_EACH];
    JSEG_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        const int item = threadIdx.x + i * 256, q = item % TW, r = item / TW * ROWS_EACH;
        JSEG_UNROLL
        for (int e = 0; e < ROWS_EACH; e++) sums[i][e] = as[(r + e + REACH) * ALD + q + REACH];
    }
    add_strip<0, TW>(p, top, as, strips, xs, sums);
    add_strip<1, TW>(p, top, as, strips, xs, sums);
    add_strip<2, TW>(p, top, as, strips, xs, sums);
    JSEG_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        const int item = threadIdx.x + i * 256, q = item % TW, r = item / TW * ROWS_EACH;
        JSEG_UNROLL
        for (int e = 0; e < ROWS_EACH; e++)
            if (top + r + e < p.h && left + q < p.w) put(y + (plane * p.h + top + r + e) * p.w + left + q, sums[i][e]);
    }
}

// ---- backward, step 1 -----------------------------------------------------------------------------------------------
// tiles of 32 x 32, 256 threads
constexpr int BACK = 32, BACK_ROWS = BACK + 2 * REACH, BACK_LD = BACK_ROWS + 1, BACK_WARPS = 8;

// Sums of g v(+i) for the K taps of a strip, and of g, over the block -> room[warp][tap]; the thread owns ROWS_EACH
// neighbours.
template <int K, int STEP>
__device__ __forceinline__ void strip_grads(const float (&g)[ROWS_EACH], const float* line, float* room) {
    float v[K + ROWS_EACH - 1], sums[WARP] = {};
    JSEG_UNROLL
    for (int i = 0; i < K + ROWS_EACH - 1; i++) v[i] = line[i * STEP];
    JSEG_UNROLL
    for (int e = 0; e < ROWS_EACH; e++) {
        sums[K] += g[e];
        JSEG_UNROLL
        for (int i = 0; i < K; i++) sums[i] += g[e] * v[i + e];
    }
    room[threadIdx.x] = warp_sum_each(sums);
}

// One strip: its weight sums -> parts, its share of da -> `da`: ROWS_EACH neighbours along the row that `mine` starts.
template <int S>
__device__ __forceinline__ void strip_backward(const Plane& p, int top, const float* as, const float* dys,
                                               const float* strips, float* ts, float* us, float* room, float* part,
                                               float (&da)[ROWS_EACH]) {
    constexpr int K = SIZE<S>, TLD = BACK + 1, SHIFT = REACH - K / 2;
    const float *row = strips + START<S>, *column = row + K + 1;
    make_t<S, BACK>(p, top, as, row, ts);
    // u on the tile's rows, REACH columns around it
    for (int i = threadIdx.x; i < BACK / ROWS_EACH * BACK_ROWS; i += 256) {
        const int q = i % BACK_ROWS, r = i / BACK_ROWS * ROWS_EACH;
        float sums[ROWS_EACH] = {};
        line_sums<K, ROWS_EACH, BACK_LD, true>(dys + (r + SHIFT) * BACK_LD + q, column, sums);
        JSEG_UNROLL
        for (int e = 0; e < ROWS_EACH; e++) us[(r + e) * BACK_LD + q] = top + r + e < p.h ? sums[e] : 0.0f;
    }
    __syncthreads();
    float g[ROWS_EACH];
    {   // lanes along columns: g = dy
        const int q = threadIdx.x % BACK, r = threadIdx.x / BACK * ROWS_EACH;
        JSEG_UNROLL
        for (int e = 0; e < ROWS_EACH; e++) g[e] = dys[(r + e + REACH) * BACK_LD + q + REACH];
        strip_grads<K, TLD>(g, ts + (r + SHIFT) * TLD + q, room + BACK_WARPS * WARP);
    }
    {   // lanes along rows: g = u
        const int r = threadIdx.x % BACK, q = threadIdx.x / BACK * ROWS_EACH;
        JSEG_UNROLL
        for (int e = 0; e < ROWS_EACH; e++) g[e] = us[r * BACK_LD + q + e + REACH];
        strip_grads<K, 1>(g, as + (r + REACH) * BACK_LD + q + SHIFT, room);
        line_sums<K, ROWS_EACH, 1, true>(us + r * BACK_LD + q + SHIFT, row, da);
    }
    __syncthreads();
    if (threadIdx.x < 2 * WARP && threadIdx.x % WARP <= K) {   // row sums, then column sums
        float total = 0;
        for (int i = 0; i < BACK_WARPS; i++)
            total += room[threadIdx.x / WARP * BACK_WARPS * WARP + i * WARP + threadIdx.x % WARP];
        part[START<S> + threadIdx.x / WARP * (K + 1) + threadIdx.x % WARP] = total;
    }   // `room` is written again only behind the next strip's first barrier
}

template <class T> __global__ void __launch_bounds__(256)
    msca_tile_backward(Plane p, int64_t n, const T* x, const T* dy, Filters f, float* da, float* parts) {
    constexpr int XR = BACK + 2 * EDGE, T_SIZE = BACK_ROWS * (BACK + 1);
    JSEG_SHARED(float, xs, larger(XR * (XR + 1), T_SIZE + BACK * BACK_LD));   // x, later t and u
    JSEG_SHARED(float, as, BACK_ROWS * BACK_LD);
    JSEG_SHARED(float, dys, BACK_ROWS * BACK_LD);
    JSEG_SHARED(float, strips, SUMS);
    JSEG_SHARED(float, conv0, 25);
    JSEG_SHARED(float, room, 2 * BACK_WARPS * WARP);
    const int64_t plane = blockIdx.x / p.tiles.each(), c = plane % p.c, tile = blockIdx.x % p.tiles.each();
    const int top = int(tile / p.tiles.across) * BACK, left = int(tile % p.tiles.across) * BACK;
    load_tile<XR, XR, XR + 1>(x + plane * p.h * p.w, p.h, p.w, top - EDGE, left - EDGE, xs);
    load_tile<BACK_ROWS, BACK_ROWS, BACK_LD>(dy + plane * p.h * p.w, p.h, p.w, top - REACH, left - REACH, dys);
    load_filters(f, c, strips, conv0);
    __syncthreads();
    make_a<BACK>(p, top, left, xs, conv0, f.b0[c], as);
    __syncthreads();
    const int r = threadIdx.x % BACK, q = threadIdx.x / BACK * ROWS_EACH;
    float mine[ROWS_EACH];
    JSEG_UNROLL
    for (int e = 0; e < ROWS_EACH; e++) mine[e] = dys[(r + REACH) * BACK_LD + q + e + REACH];
    float *ts = xs, *us = xs + T_SIZE, *part = parts + ((c * n + plane / p.c) * p.tiles.each() + tile) * SUMS;
    strip_backward<0>(p, top, as, dys, strips, ts, us, room, part, mine);
    strip_backward<1>(p, top, as, dys, strips, ts, us, room, part, mine);
    strip_backward<2>(p, top, as, dys, strips, ts, us, room, part, mine);
    JSEG_UNROLL
    for (int e = 0; e < ROWS_EACH; e++) xs[r * BACK_LD + q + e] = mine[e];   // turned, so that lanes write along rows
    __syncthreads();
    for (int i = threadIdx.x; i < BACK * BACK; i += 256) {
        const int y = i / BACK, column = i % BACK;
        if (top + y < p.h && left + column < p.w)
            da[(plane * p.h + top + y) * p.w + left + column] = xs[y * BACK_LD + column];
    }
}

template <int S> __device__ __forceinline__ void store_sum(const FilterGrads& to, int64_t c, int i, float total) {
    constexpr int K = SIZE<S>;
    const bool column = i - START<S> > K;
    const int at = i - START<S> - column * (K + 1);
    if (at < K) (column ? to.strip[4 * S + 2] : to.strip[4 * S])[c * K + at] = total;
    else (column ? to.strip[4 * S + 3] : to.strip[4 * S + 1])[c] = total;
}

// parts (C, count, SUMS) -> the strips' gradients. One warp a sum; lanes take every 32nd part, in order.
__global__ void sum_strip_parts(const float* parts, int64_t c, int64_t count, FilterGrads to) {
    const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
    if (at >= c * SUMS) return;   // whole warps
    const int64_t channel = at / SUMS;
    double total = 0;
    for (int64_t i = threadIdx.x % WARP; i < count; i += WARP) total += parts[(channel * count + i) * SUMS + at % SUMS];
    total = warp_sum(total);
    if (threadIdx.x % WARP) return;
    const int i = int(at % SUMS);
    if (i < START<1>) store_sum<0>(to, channel, i, float(total));
    else if (i < START<2>) store_sum<1>(to, channel, i, float(total));
    else store_sum<2>(to, channel, i, float(total));
}

Filters filters(const Call& call) {
    Filters f{call.in<float>(1), call.in<float>(2), {}};
    for (int i = 0; i < 12; i++) f.strip[i] = call.in<float>(3 + i);
    return f;
}

template <class T> void forward_direct(const MscaShape& s, const Call& call, float* a, float* t, float* y32) {
    run_depthwise(same_depthwise(s.n, s.c, s.h, s.w, s.k0, s.k0, false), call.in<T>(0), call.in<float>(1),
                  call.in<float>(2), a);
    run_depthwise(same_depthwise(s.n, s.c, s.h, s.w, s.k0, s.k0, false), call.in<T>(0), call.in<float>(1),
                  call.in<float>(2), y32);
    for (int i = 0; i < s.strips; i++) {
        const int at = 3 + 4 * i;
        run_depthwise(same_depthwise(s.n, s.c, s.h, s.w, 1, s.k[i], false), static_cast<const float*>(a),
                      call.in<float>(at), call.in<float>(at + 1), t);
        run_depthwise(same_depthwise(s.n, s.c, s.h, s.w, s.k[i], 1, false), static_cast<const float*>(t),
                      call.in<float>(at + 2), call.in<float>(at + 3), y32, true);
    }
}

template <class From, class To> __global__ void copy_as(const From* from, int64_t count, To* to) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < count) put(to + at, to_float(from[at]));
}

template <class T> void backward_direct(const MscaShape& s, const Call& call, int dy_at, float* a, float* t, float* u,
                                        float* da) {
    const T* dy = call.in<T>(dy_at);
    run_depthwise(same_depthwise(s.n, s.c, s.h, s.w, s.k0, s.k0, false), call.in<T>(0), call.in<float>(1),
                  call.in<float>(2), a);
    JSEG_LAUNCH((copy_as<T, float>), ceil_div(s.pixels(), 256), 256, dy, s.pixels(), da);
    for (int i = 0; i < s.strips; i++) {
        const int at = 3 + 4 * i;
        const DepthwiseShape row = same_depthwise(s.n, s.c, s.h, s.w, 1, s.k[i], false),
                             column = same_depthwise(s.n, s.c, s.h, s.w, s.k[i], 1, false);
        run_depthwise(row, static_cast<const float*>(a), call.in<float>(at), call.in<float>(at + 1), t);
        run_depthwise_backward(column, static_cast<const float*>(t), call.in<float>(at + 2), call.in<float>(at + 3), dy,
                               u, call.out<float>(at + 2), call.out<float>(at + 3), nullptr);
        run_depthwise_backward(row, static_cast<const float*>(a), call.in<float>(at), call.in<float>(at + 1),
                               static_cast<const float*>(u), da, call.out<float>(at), call.out<float>(at + 1), nullptr,
                               true);
    }
}

}  // namespace

// inputs x, w0, b0, then per strip row weight, row bias, column weight, column bias; output y; integers: N C H W strips
// k0 k...
JSEG_CUDA_KERNEL(jseg_msca_forward) {
    const MscaShape s(call);
    const bool direct = !s.published();
    float *a = work.take<float>(direct ? s.pixels() : 0), *t = work.take<float>(direct ? s.pixels() : 0),
          *y = work.take<float>(direct ? s.pixels() : 0);
    if (work.measuring()) return;
    if (direct) {
        forward_direct<T>(s, call, a, t, y);
        JSEG_LAUNCH((copy_as<float, T>), ceil_div(s.pixels(), 256), 256, static_cast<const float*>(y), s.pixels(),
                    call.out<T>(0));
        return;
    }
    auto run = [&](auto tw) {
        const Plane p{s.c, s.h, s.w, make_tiles(s.h, s.w, STRIP_ROWS, tw)};
        JSEG_LAUNCH((msca_tile<T, tw.value>), s.n * s.c * p.tiles.each(), 256, p, call.in<T>(0), filters(call),
                    call.out<T>(0));
    };
    if (s.w <= 32) run(std::integral_constant<int, 32>{});
    else run(std::integral_constant<int, 64>{});
}

// inputs as above, then dy; outputs: the gradients in the order of the inputs
JSEG_CUDA_KERNEL(jseg_msca_backward) {
    const MscaShape s(call);
    const bool direct = !s.published();
    const DepthwiseShape conv0 = same_depthwise(s.n, s.c, s.h, s.w, s.k0, s.k0, false);
    const Plane p{s.c, s.h, s.w, make_tiles(s.h, s.w, BACK, BACK)};
    float *da = work.take<float>(s.pixels()), *scratch = take_depthwise_backward(conv0, work);
    float* parts = work.take<float>(direct ? 0 : s.n * s.c * p.tiles.each() * SUMS);
    float *a = work.take<float>(direct ? s.pixels() : 0), *t = work.take<float>(direct ? s.pixels() : 0),
          *u = work.take<float>(direct ? s.pixels() : 0);
    if (work.measuring()) return;
    const int dy_at = 3 + 4 * s.strips;
    if (direct) {
        backward_direct<T>(s, call, dy_at, a, t, u, da);
    } else {
        FilterGrads to;
        for (int i = 0; i < 12; i++) to.strip[i] = call.out<float>(3 + i);
        JSEG_LAUNCH((msca_tile_backward<T>), s.n * s.c * p.tiles.each(), 256, p, s.n, call.in<T>(0), call.in<T>(dy_at),
                    filters(call), da, parts);
        JSEG_LAUNCH(sum_strip_parts, ceil_div(s.c * SUMS * WARP, 256), 256, parts, s.c, s.n * p.tiles.each(), to);
    }
    run_depthwise_backward(conv0, call.in<T>(0), call.in<float>(1), call.in<float>(2), static_cast<const float*>(da),
                           call.out<T>(0), call.out<float>(1), call.out<float>(2), scratch);
}
