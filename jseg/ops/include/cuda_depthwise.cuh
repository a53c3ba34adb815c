// Depthwise filters on the device: a tiled path for 3x3 and 5x5 at stride 1 and "same" padding, a direct one for all
// else. depthwise, msca and mix_ffn call `run_depthwise` and `run_depthwise_backward`. The maths is in
// depthwise/cuda.cuh.
#pragma once
#include <type_traits>
#include "cuda_base.cuh"

namespace jseg {

struct DepthwiseShape {
    int64_t n, c;
    int h, w, oh, ow, kh, kw, sy, sx, ph, pw, dh, dw;
    bool gelu;
    __host__ __device__ int taps() const { return kh * kw; }
    __host__ __device__ int64_t inputs() const { return n * c * h * w; }
    __host__ __device__ int64_t results() const { return n * c * oh * ow; }
    bool tiled(int k) const {
        return kh == k && kw == k && sy == 1 && sx == 1 && dh == 1 && dw == 1 && ph == k / 2 && pw == k / 2;
    }
};
inline DepthwiseShape same_depthwise(int64_t n, int64_t c, int h, int w, int kh, int kw, bool gelu) {
    return {n, c, h, w, h, w, kh, kw, 1, 1, kh / 2, kw / 2, 1, 1, gelu};
}

// A plane cut into tiles of `TW` x `TH`; block -> plane, tile corner.
struct Tiles {
    int across, down;
    __host__ __device__ int64_t each() const { return int64_t(across) * down; }
};
inline Tiles make_tiles(int h, int w, int th, int tw) { return {int(ceil_div(w, tw)), int(ceil_div(h, th))}; }

// Rows [top, top + ROWS) and columns [left, left + COLUMNS) of a plane -> shared memory, zero outside the plane.
template <int ROWS, int COLUMNS, int LD, class T>
__device__ __forceinline__ void load_tile(const T* plane, int h, int w, int top, int left, float* tile) {
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += blockDim.x) {
        const int r = i / COLUMNS, q = i % COLUMNS, y = top + r, x = left + q;
        tile[r * LD + q] = y >= 0 && y < h && x >= 0 && x < w ? to_float(plane[int64_t(y) * w + x]) : 0.0f;
    }
}

// ROWS sums of a K x K window whose corner is `tile`, one below the other; `weight` [K][K], `flip` turns it by 180
// degrees.
template <int K, int ROWS, int LD, bool FLIP>
__device__ __forceinline__ void window_sums(const float* tile, const float* weight, float (&sums)[ROWS]) {
    JSEG_UNROLL
    for (int j = 0; j < K; j++) {
        float column[ROWS + K - 1];
        JSEG_UNROLL
        for (int i = 0; i < ROWS + K - 1; i++) column[i] = tile[i * LD + j];
        JSEG_UNROLL
        for (int i = 0; i < K; i++) {
            const float v = weight[FLIP ? (K - 1 - i) * K + K - 1 - j : i * K + j];
            JSEG_UNROLL
            for (int r = 0; r < ROWS; r++) sums[r] += v * column[r + i];
        }
    }
}

constexpr int ROWS_EACH = 4;   // rows of a column that one thread computes

// ---- tiled: one block, one tile of TW x 4 GROUPS pixels of one plane ------------------------------------------------
template <class X, class Y, int K, int TW, int GROUPS>
__global__ void __launch_bounds__(TW* GROUPS)
    depthwise_tile(DepthwiseShape s, Tiles t, const X* x, const float* weight, const float* bias, Y* y) {
    constexpr int HALF = K / 2, TH = GROUPS * ROWS_EACH, LD = TW + 2 * HALF + 1;
    JSEG_SHARED(float, tile, (TH + 2 * HALF) * LD);
    JSEG_SHARED(float, w, K * K);
    const int64_t plane = blockIdx.x / t.each(), c = plane % s.c;
    const int top = int(blockIdx.x % t.each() / t.across) * TH, left = int(blockIdx.x % t.across) * TW;
    load_tile<TH + 2 * HALF, TW + 2 * HALF, LD>(x + plane * s.h * s.w, s.h, s.w, top - HALF, left - HALF, tile);
    if (threadIdx.x < K * K) w[threadIdx.x] = weight[c * K * K + threadIdx.x];
    __syncthreads();
    const int column = threadIdx.x % TW, row = int(threadIdx.x / TW) * ROWS_EACH;
    float sums[ROWS_EACH];
    JSEG_UNROLL
    for (int r = 0; r < ROWS_EACH; r++) sums[r] = bias ? bias[c] : 0.0f;
    window_sums<K, ROWS_EACH, LD, false>(tile + row * LD + column, w, sums);
    JSEG_UNROLL
    for (int r = 0; r < ROWS_EACH; r++)
        if (top + row + r < s.h && left + column < s.w)
            put(y + (plane * s.h + top + row + r) * s.w + left + column, s.gelu ? gelu(sums[r]) : sums[r]);
}

// g = dy or dy gelu'(z) on the tile and K/2 pixels around it; then dx, and this tile's sums g x (K * K of them) and g.
template <class X, class G, class DX, int K, int TW, int GROUPS>
__global__ void __launch_bounds__(TW* GROUPS)
    depthwise_tile_backward(DepthwiseShape s, Tiles t, const X* x, const float* weight, const float* bias, const G* dy,
                            DX* dx, float* parts) {
    constexpr int HALF = K / 2, TH = GROUPS * ROWS_EACH, XLD = TW + 4 * HALF + 1, GLD = TW + 2 * HALF + 1,
                  WARPS = TW * GROUPS / WARP;
    JSEG_SHARED(float, xs, (TH + 4 * HALF) * XLD);
    JSEG_SHARED(float, gs, (TH + 2 * HALF) * GLD);
    JSEG_SHARED(float, w, K * K);
    JSEG_SHARED(float, room, WARPS * WARP);
    const int64_t plane = blockIdx.x / t.each(), c = plane % s.c;
    const int top = int(blockIdx.x % t.each() / t.across) * TH, left = int(blockIdx.x % t.across) * TW;
    load_tile<TH + 4 * HALF, TW + 4 * HALF, XLD>(x + plane * s.h * s.w, s.h, s.w, top - 2 * HALF, left - 2 * HALF, xs);
    load_tile<TH + 2 * HALF, TW + 2 * HALF, GLD>(dy + plane * s.h * s.w, s.h, s.w, top - HALF, left - HALF, gs);
    if (threadIdx.x < K * K) w[threadIdx.x] = weight[c * K * K + threadIdx.x];
    __syncthreads();
    if (s.gelu) {
        for (int i = threadIdx.x; i < (TH + 2 * HALF) * (TW + 2 * HALF); i += TW * GROUPS) {
            const int r = i / (TW + 2 * HALF), q = i % (TW + 2 * HALF);
            float z[1] = {bias ? bias[c] : 0.0f};
            window_sums<K, 1, XLD, false>(xs + r * XLD + q, w, z);
            gs[r * GLD + q] *= gelu_slope(z[0]);
        }
        __syncthreads();
    }
    const int column = threadIdx.x % TW, row = int(threadIdx.x / TW) * ROWS_EACH;
    float sums[ROWS_EACH] = {};
    window_sums<K, ROWS_EACH, GLD, true>(gs + row * GLD + column, w, sums);
    JSEG_UNROLL
    for (int r = 0; r < ROWS_EACH; r++)
        if (top + row + r < s.h && left + column < s.w)
            put(dx + (plane * s.h + top + row + r) * s.w + left + column, sums[r]);

    float grads[WARP] = {}, own[ROWS_EACH];
    JSEG_UNROLL
    // zero outside the plane
    for (int r = 0; r < ROWS_EACH; r++) grads[K * K] += own[r] = gs[(row + r + HALF) * GLD + column + HALF];
    JSEG_UNROLL
    for (int j = 0; j < K; j++) {
        float line[ROWS_EACH + K - 1];
        JSEG_UNROLL
        for (int i = 0; i < ROWS_EACH + K - 1; i++) line[i] = xs[(row + i + HALF) * XLD + column + j + HALF];
        JSEG_UNROLL
        for (int i = 0; i < K; i++)
            JSEG_UNROLL
            for (int r = 0; r < ROWS_EACH; r++) grads[i * K + j] += own[r] * line[r + i];
    }
    room[threadIdx.x] = warp_sum_each(grads);
    __syncthreads();
    if (threadIdx.x <= K * K) {
        float total = 0;
        for (int i = 0; i < WARPS; i++) total += room[i * WARP + threadIdx.x];
        const int64_t part = plane / s.c * t.each() + blockIdx.x % t.each();
        parts[(c * s.n * t.each() + part) * (K * K + 1) + threadIdx.x] = total;
    }
}

// parts (C, count, taps + 1) -> dw (C, taps), db (C), or added to them. One warp a sum; lanes take every 32nd part, in
// order.
static __global__ void sum_filter_parts(const float* parts, int64_t c, int64_t count, int taps, bool add, float* dw,
                                        float* db) {
    const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
    if (at >= c * (taps + 1)) return;   // whole warps
    const float* p = parts + at / (taps + 1) * count * (taps + 1) + at % (taps + 1);
    double total = 0;
    for (int64_t i = threadIdx.x % WARP; i < count; i += WARP) total += p[i * (taps + 1)];
    total = warp_sum(total);
    if (threadIdx.x % WARP) return;
    const int64_t channel = at / (taps + 1), tap = at % (taps + 1);
    if (tap == taps && !db) return;
    float* out = tap < taps ? dw + channel * taps + tap : db + channel;
    *out = (add ? *out : 0.0f) + float(total);
}

// ---- direct: any size, stride and dilation; one thread per pixel ----------------------------------------------------
template <class X>
__device__ __forceinline__ float direct_sum(const DepthwiseShape& s, const X* plane, const float* weight, float sum,
                                            int y, int x) {
    for (int i = 0; i < s.kh; i++) {
        const int r = y * s.sy + i * s.dh - s.ph;
        if (r < 0 || r >= s.h) continue;
        for (int j = 0; j < s.kw; j++) {
            const int q = x * s.sx + j * s.dw - s.pw;
            if (q >= 0 && q < s.w) sum += weight[i * s.kw + j] * to_float(plane[int64_t(r) * s.w + q]);
        }
    }
    return sum;
}

// y = (add ? y : 0) + z or gelu(z); with `dy`, y = dy gelu'(z) instead.
template <class X, class DY, class Y>
__global__ void depthwise_direct(DepthwiseShape s, const X* x, const float* weight, const float* bias, const DY* dy,
                                 bool add, Y* y) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= s.results()) return;
    const int64_t plane = at / s.ow / s.oh, c = plane % s.c;
    const float z = direct_sum(s, x + plane * s.h * s.w, weight + c * s.taps(), bias ? bias[c] : 0.0f,
                               int(at / s.ow % s.oh), int(at % s.ow));
    put(y + at, dy ? to_float(dy[at]) * gelu_slope(z) : (add ? to_float(y[at]) : 0.0f) + (s.gelu ? gelu(z) : z));
}

// dx[r][q] = (add ? dx : 0) + sum over the taps that read pixel (r, q).
template <class G, class DX>
__global__ void depthwise_direct_dx(DepthwiseShape s, const G* g, const float* weight, bool add, DX* dx) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= s.inputs()) return;
    const int64_t plane = at / s.w / s.h;
    const float* w = weight + plane % s.c * s.taps();
    const int r = int(at / s.w % s.h) + s.ph, q = int(at % s.w) + s.pw;
    float sum = add ? to_float(dx[at]) : 0.0f;
    for (int i = 0; i < s.kh; i++) {
        const int y = (r - i * s.dh) / s.sy;
        if (r < i * s.dh || y >= s.oh || y * s.sy != r - i * s.dh) continue;
        for (int j = 0; j < s.kw; j++) {
            const int x = (q - j * s.dw) / s.sx;
            if (q >= j * s.dw && x < s.ow && x * s.sx == q - j * s.dw)
                sum += w[i * s.kw + j] * to_float(g[(plane * s.oh + y) * s.ow + x]);
        }
    }
    put(dx + at, sum);
}

constexpr int DIRECT_THREADS = 256;

// One block per channel and tap; the last "tap" is the bias.
template <class X, class G>
__global__ void __launch_bounds__(DIRECT_THREADS)
    depthwise_direct_dw(DepthwiseShape s, const X* x, const G* g, float* dw, float* db) {
    JSEG_SHARED(double, room, DIRECT_THREADS / WARP);
    const int64_t c = blockIdx.x / (s.taps() + 1);
    const int tap = int(blockIdx.x % (s.taps() + 1)), down = tap / s.kw * s.dh - s.ph, right = tap % s.kw * s.dw - s.pw;
    const int64_t area = int64_t(s.oh) * s.ow;
    double total = 0;
    for (int64_t n = 0; n < s.n; n++) {
        const X* plane = x + (n * s.c + c) * s.h * s.w;
        float sum = 0;
        for (int64_t p = threadIdx.x; p < area; p += DIRECT_THREADS) {
            const float v = to_float(g[(n * s.c + c) * area + p]);
            const int r = int(p / s.ow) * s.sy + down, q = int(p % s.ow) * s.sx + right;
            if (tap == s.taps()) sum += v;
            else if (r >= 0 && r < s.h && q >= 0 && q < s.w) sum += v * to_float(plane[int64_t(r) * s.w + q]);
        }
        total += sum;
    }
    total = block_sum<DIRECT_THREADS>(total, room);
    if (threadIdx.x) return;
    if (tap < s.taps()) dw[c * s.taps() + tap] = float(total);
    else if (db) db[c] = float(total);
}

// ---- host side ------------------------------------------------------------------------------------------------------
// Calls `go` with compile-time tile sizes: 16 x 16 pixels for small planes, else 32 x 32.
template <class Go> void with_tile(int h, int w, Go go) {
    if (h <= 16 && w <= 16) go(std::integral_constant<int, 16>{}, std::integral_constant<int, 4>{});
    else go(std::integral_constant<int, 32>{}, std::integral_constant<int, 8>{});
}

template <class X, class Y>
void run_depthwise(const DepthwiseShape& s, const X* x, const float* weight, const float* bias, Y* y,
                   bool add = false) {
    auto tile = [&](auto k) {
        with_tile(s.h, s.w, [&](auto tw, auto groups) {
            const Tiles t = make_tiles(s.h, s.w, groups * ROWS_EACH, tw);
            JSEG_LAUNCH((depthwise_tile<X, Y, k.value, tw.value, groups.value>), s.n * s.c * t.each(), tw * groups, s,
                        t, x, weight, bias, y);
        });
    };
    if (!add && s.tiled(3)) return tile(std::integral_constant<int, 3>{});
    if (!add && s.tiled(5)) return tile(std::integral_constant<int, 5>{});
    JSEG_LAUNCH((depthwise_direct<X, X, Y>), ceil_div(s.results(), DIRECT_THREADS), DIRECT_THREADS, s, x, weight, bias,
                static_cast<const X*>(nullptr), add, y);
}

// Workspace of the backward pass: parts of the sums (tiled), or g (direct, with GELU).
inline float* take_depthwise_backward(const DepthwiseShape& s, Workspace& work) {
    int64_t floats = s.gelu ? s.results() : 0;
    if (s.tiled(3) || s.tiled(5))
        with_tile(s.h, s.w, [&](auto tw, auto groups) {
            floats = s.n * s.c * make_tiles(s.h, s.w, groups * ROWS_EACH, tw).each() * (s.taps() + 1);
        });
    return work.take<float>(floats);
}

// `add` adds to dx (direct filters only), `add_sums` to dw and db (tiled filters only).
template <class X, class G, class DX>
void run_depthwise_backward(const DepthwiseShape& s, const X* x, const float* weight, const float* bias, const G* dy,
                            DX* dx, float* dw, float* db, float* scratch, bool add = false, bool add_sums = false) {
    auto tile = [&](auto k) {
        with_tile(s.h, s.w, [&](auto tw, auto groups) {
            const Tiles t = make_tiles(s.h, s.w, groups * ROWS_EACH, tw);
            JSEG_LAUNCH((depthwise_tile_backward<X, G, DX, k.value, tw.value, groups.value>), s.n * s.c * t.each(),
                        tw * groups, s, t, x, weight, bias, dy, dx, scratch);
            JSEG_LAUNCH(sum_filter_parts, ceil_div(s.c * (s.taps() + 1) * WARP, 256), 256, scratch, s.c, s.n * t.each(),
                        s.taps(), add_sums, dw, db);
        });
    };
    if (!add && s.tiled(3)) return tile(std::integral_constant<int, 3>{});
    if (!add && s.tiled(5)) return tile(std::integral_constant<int, 5>{});
    auto rest = [&](auto* g) {
        using Slope = std::remove_cv_t<std::remove_pointer_t<decltype(g)>>;
        JSEG_LAUNCH((depthwise_direct_dx<Slope, DX>), ceil_div(s.inputs(), DIRECT_THREADS), DIRECT_THREADS, s, g,
                    weight, add, dx);
        JSEG_LAUNCH((depthwise_direct_dw<X, Slope>), s.c * (s.taps() + 1), DIRECT_THREADS, s, x, g, dw, db);
    };
    if (!s.gelu) return rest(dy);
    JSEG_LAUNCH((depthwise_direct<X, G, float>), ceil_div(s.results(), DIRECT_THREADS), DIRECT_THREADS, s, x, weight,
                bias, dy, false, scratch);
    rest(static_cast<const float*>(scratch));
}

}  // namespace jseg
