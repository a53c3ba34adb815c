// Matrix products on the device: C[b] (m, n) = A[b] (m, k) B[b] (k, n) with any strides, float sums, and an end of
// one's own.
//
// One block computes a tile of C, slice by slice of the depth. On sm_80 and newer by tensor cores (`tensor_tile`):
// float factors are rounded to TF32 on the way into them, half-precision ones taken as they are, and where one factor
// is float and the other is not, the float one is rounded to the other's type; the next slices are copied to shared
// memory while the present one is multiplied. On older GPUs, and where full float32 is asked for, by plain
// multiply-adds (`gemm_tile`): the next slice is read into registers, a thread holds TM x TN sums in groups of 4 x 4.
// Long sums over few results are cut into `splits`: every split writes its own part, and the parts are added in order
// (`run_reduction`): no atomics.
#pragma once
#include <type_traits>
#include "cuda_base.cuh"
#include "cuda_mma.cuh"

namespace jseg {

// Element (b, i, j) of a batch of matrices is p[b * batch + i * row + j * column]. ROWS: its rows are runs of memory
// (column is 1), or else its columns (row is 1); for other strides either will do.
template <class T, bool ROWS = true> struct Matrix {
    T* p;
    int64_t batch, row, column;
    __device__ T* at(int64_t b, int64_t i, int64_t j) const { return p + b * batch + i * row + j * column; }
    // Whether each run can be read in pieces of 16 bytes, as many as hold `each` elements.
    __host__ __device__ bool aligned(int64_t each) const {
        return (ROWS ? column : row) == 1 && (ROWS ? row : column) % each == 0 && batch % each == 0 &&
               reinterpret_cast<uintptr_t>(p) % (each * sizeof(T)) == 0;
    }
};
template <class T> Matrix<T> matrix(T* p, int64_t batch, int64_t row, int64_t column) {
    return {p, batch, row, column};
}
template <class T> __host__ __device__ Matrix<T> rows_of(T* p, int64_t batch, int64_t row) {
    return {p, batch, row, 1};
}
template <class T> __host__ __device__ Matrix<T, false> columns_of(T* p, int64_t batch, int64_t column) {
    return {p, batch, 1, column};
}

struct GemmSize {
    int64_t batches, m, n, k, splits, k_each;   // k_each: depth of a split
};

// ---- ends: what becomes of finished sums, W of them in a row of C: 1 or, where `wide` says that maps allow it, 4 ---
// out = (add ? out : 0) + act(sum + bias[i])
template <class T> struct Store {
    Matrix<T> out;
    const float* bias;
    bool act, add;
    __host__ __device__ bool wide() const { return out.aligned(4); }
    template <int W>
    __device__ __forceinline__ void put_sums(int64_t b, int64_t, int64_t i, int64_t j, float (&sum)[W]) const {
        T* to = out.at(b, i, j);
        float before[W] = {};
        if (add) load_run<W>(static_cast<const T*>(to), before);
        JSEG_UNROLL
        for (int w = 0; w < W; w++) {
            if (bias) sum[w] += bias[i];
            if (act) sum[w] = gelu(sum[w]);
            if (add) sum[w] += before[w];
        }
        store_run<W>(to, sum);
    }
};
// out = shortcut + factor[b] scale[i] (gate act(sum + bias[i]) + residual_scale[i] residual); what is null is left out.
// act: 0 none, 1 GELU, 2 ReLU. All maps are dense (batches, rows, columns).
template <class T> struct Ending {
    T* out;
    int64_t rows, columns;
    const float* bias;
    int act;
    const T *gate, *residual, *shortcut;
    const float *residual_scale, *scale, *factor;
    bool wide() const {
        return columns % 4 == 0 && in_fours(out) && in_fours(gate) && in_fours(residual) && in_fours(shortcut);
    }
    template <int W>
    __device__ __forceinline__ void put_sums(int64_t b, int64_t, int64_t i, int64_t j, float (&sum)[W]) const {
        const int64_t at = (b * rows + i) * columns + j;
        float more[W];
        JSEG_UNROLL
        for (int w = 0; w < W; w++) {
            if (bias) sum[w] += bias[i];
            if (act == 1) sum[w] = gelu(sum[w]);
            if (act == 2) sum[w] = sum[w] < 0.0f ? 0.0f : sum[w];
        }
        if (gate) {
            load_run<W>(gate + at, more);
            JSEG_UNROLL
            for (int w = 0; w < W; w++) sum[w] *= more[w];
        }
        if (residual) {
            load_run<W>(residual + at, more);
            JSEG_UNROLL
            for (int w = 0; w < W; w++) sum[w] += more[w] * (residual_scale ? residual_scale[i] : 1.0f);
        }
        JSEG_UNROLL
        for (int w = 0; w < W; w++) {
            if (scale) sum[w] *= scale[i];
            if (factor) sum[w] *= factor[b];
        }
        if (shortcut) {
            load_run<W>(shortcut + at, more);
            JSEG_UNROLL
            for (int w = 0; w < W; w++) sum[w] += more[w];
        }
        store_run<W>(out + at, sum);
    }
};
// The way back through `Ending`, z = sum + bias: slope = gradient of z; dgate or dresidual; scale_terms = dy factor (z
// + residual), whose sums over a row are the gradient of the scale.
template <class T> struct EndingBack {
    float* slope;
    int64_t rows, columns;
    const T *dy, *gate, *residual;
    const float *bias, *scale, *factor;
    bool act;
    T *dgate, *dresidual;
    float* scale_terms;
    bool wide() const {
        return columns % 4 == 0 && in_fours(slope) && in_fours(dy) && in_fours(gate) && in_fours(residual) &&
               in_fours(dgate) && in_fours(dresidual) && in_fours(scale_terms);
    }
    template <int W>
    __device__ __forceinline__ void put_sums(int64_t b, int64_t, int64_t i, int64_t j, float (&z)[W]) const {
        const int64_t at = (b * rows + i) * columns + j;
        float g[W], more[W] = {};
        load_run<W>(dy + at, g);
        JSEG_UNROLL
        for (int w = 0; w < W; w++) {
            if (bias) z[w] += bias[i];
            if (factor) g[w] *= factor[b];
        }
        if (scale_terms) {
            if (residual) load_run<W>(residual + at, more);
            JSEG_UNROLL
            for (int w = 0; w < W; w++) more[w] = g[w] * (z[w] + more[w]);
            store_run<W>(scale_terms + at, more);
        }
        if (dgate) {
            JSEG_UNROLL
            for (int w = 0; w < W; w++) more[w] = g[w] * (act ? gelu(z[w]) : z[w]);
            store_run<W>(dgate + at, more);
        }
        if (gate) load_run<W>(gate + at, more);
        JSEG_UNROLL
        for (int w = 0; w < W; w++) {
            if (scale) g[w] *= scale[i];
            if (gate) g[w] *= more[w];
        }
        if (dresidual) store_run<W>(dresidual + at, g);
        JSEG_UNROLL
        for (int w = 0; w < W; w++)
            if (act) g[w] *= gelu_slope(z[w]);
        store_run<W>(slope + at, g);
    }
};
// parts (batches, splits, m, n)
struct StorePart {
    float* parts;
    int64_t splits, m, n;
    __host__ __device__ bool wide() const { return n % 4 == 0 && in_fours(parts); }
    template <int W>
    __device__ __forceinline__ void put_sums(int64_t b, int64_t split, int64_t i, int64_t j, float (&sum)[W]) const {
        store_run<W>(parts + ((b * splits + split) * m + i) * n + j, sum);
    }
};

// Which tile of which product a block makes; block: its number among all of them.
template <int BM, int BN> struct TilePlace {
    int64_t i0, j0, split, batch, begin, stop;
    __device__ __forceinline__ TilePlace(const GemmSize& s, int64_t block) {
        const int64_t down = ceil_div(s.m, BM), across = ceil_div(s.n, BN);
        i0 = block % down * BM, j0 = (block /= down) % across * BN, split = (block /= across) % s.splits;
        batch = block / s.splits;
        begin = split * s.k_each, stop = begin + s.k_each < s.k ? begin + s.k_each : s.k;
    }
};

// A slice of a matrix on its way to shared memory: SIDE x DEPTH elements, EACH of them per thread, coalesced along
// whichever stride is 1; zero outside [0, side) x [begin, end).
template <int SIDE, int DEPTH, int THREADS> struct Slice {
    static constexpr int EACH = SIDE * DEPTH / THREADS, LD = SIDE + 4;
    static_assert(EACH * THREADS == SIDE * DEPTH && THREADS % SIDE == 0 && THREADS % DEPTH == 0,
                  "whole elements per thread");
    float v[EACH];
    template <class T>
    __device__ __forceinline__ void read(const T* p, int64_t side_step, int64_t depth_step, int64_t first, int64_t side,
                                         int64_t begin, int64_t end) {
        const Place at(depth_step == 1);
        const int64_t side_left = side - first - at.s, depth_left = end - begin - at.d;
        const int64_t step = at.ds * side_step + at.dd * depth_step;
        p += (first + at.s) * side_step + (begin + at.d) * depth_step;
        JSEG_UNROLL
        for (int e = 0; e < EACH; e++)
            v[e] = e * at.ds < side_left && e * at.dd < depth_left ? to_float(p[e * step]) : 0.0f;
    }
    __device__ __forceinline__ void write(bool along_depth, float* shared) const {
        const Place at(along_depth);
        JSEG_UNROLL
        for (int e = 0; e < EACH; e++) shared[(at.d + e * at.dd) * LD + at.s + e * at.ds] = v[e];
    }

private:
    struct Place {   // of a thread's first element, and the way to its next
        int s, d, ds, dd;
        __device__ explicit Place(bool along_depth)
            : s(along_depth ? threadIdx.x / DEPTH : threadIdx.x % SIDE),
              d(along_depth ? threadIdx.x % DEPTH : threadIdx.x / SIDE), ds(along_depth ? THREADS / DEPTH : 0),
              dd(along_depth ? 0 : THREADS / SIDE) {}
    };
};

// ---- without tensor cores -------------------------------------------------------------------------------------------
// Whether plain products of these types are wanted on the GPU this is compiled for; with tensor cores, only float maps
// have a choice.
#ifdef __CUDA_ARCH__
template <class TA, class TB> constexpr bool PLAIN_WANTED = __CUDA_ARCH__ < 800 || (is_float<TA> && is_float<TB>);
#else
template <class TA, class TB> constexpr bool PLAIN_WANTED = true;
#endif

template <int BM, int BN, int BK> constexpr int GEMM_ROOM = BK * (BM + BN + 8);   // floats

// The tile of one block; `as`: GEMM_ROOM floats of shared memory, in nobody's use.
template <int BM, int BN, int BK, int TM, int TN, class TA, bool RA, class TB, bool RB, class End>
__device__ __forceinline__ void make_gemm_tile(const TilePlace<BM, BN>& t, const GemmSize& s,
                                               const Matrix<const TA, RA>& a, const Matrix<const TB, RB>& b,
                                               const End& end, float* as) {
    constexpr int THREADS = BM / TM * (BN / TN), ACROSS = BN / TN, AL = BM + 4, BL = BN + 4, ROW_STEP = BM * 4 / TM,
                  COLUMN_STEP = BN * 4 / TN;
    float* const bs = as + BK * AL;
    const int64_t i0 = t.i0, j0 = t.j0, begin = t.begin, stop = t.stop;
    const TA* ap = a.p + t.batch * a.batch;
    const TB* bp = b.p + t.batch * b.batch;
    const int row = int(threadIdx.x) / ACROSS * 4, column = int(threadIdx.x) % ACROSS * 4;
    Slice<BM, BK, THREADS> next_a;
    Slice<BN, BK, THREADS> next_b;
    float sums[TM][TN] = {};
    next_a.read(ap, a.row, a.column, i0, s.m, begin, stop);
    next_b.read(bp, b.column, b.row, j0, s.n, begin, stop);
    for (int64_t k0 = begin; k0 < stop; k0 += BK) {
        next_a.write(a.column == 1, as);
        next_b.write(b.row == 1, bs);
        __syncthreads();
        if (k0 + BK < stop) {
            next_a.read(ap, a.row, a.column, i0, s.m, k0 + BK, stop);
            next_b.read(bp, b.column, b.row, j0, s.n, k0 + BK, stop);
        }
        JSEG_UNROLL
        for (int k = 0; k < BK; k++) {
            float av[TM], bv[TN];
            JSEG_UNROLL
            for (int g = 0; g < TM; g += 4) {
                const float4 v = *reinterpret_cast<const float4*>(as + k * AL + g / 4 * ROW_STEP + row);
                av[g] = v.x, av[g + 1] = v.y, av[g + 2] = v.z, av[g + 3] = v.w;
            }
            JSEG_UNROLL
            for (int g = 0; g < TN; g += 4) {
                const float4 v = *reinterpret_cast<const float4*>(bs + k * BL + g / 4 * COLUMN_STEP + column);
                bv[g] = v.x, bv[g + 1] = v.y, bv[g + 2] = v.z, bv[g + 3] = v.w;
            }
            JSEG_UNROLL
            for (int i = 0; i < TM; i++)
                JSEG_UNROLL
                for (int j = 0; j < TN; j++) sums[i][j] += av[i] * bv[j];
        }
        __syncthreads();
    }
    JSEG_UNROLL
    for (int i = 0; i < TM; i++)
        JSEG_UNROLL
        for (int j = 0; j < TN; j++) {
            const int64_t r = i0 + i / 4 * ROW_STEP + row + i % 4, q = j0 + j / 4 * COLUMN_STEP + column + j % 4;
            float sum[1] = {sums[i][j]};
            if (r < s.m && q < s.n) end.template put_sums<1>(t.batch, t.split, r, q, sum);
        }
}

template <int BM, int BN, int BK, int TM, int TN, class TA, bool RA, class TB, bool RB, class End>
__global__ void __launch_bounds__(BM / TM * (BN / TN), 1)
    gemm_tile(GemmSize s, Matrix<const TA, RA> a, Matrix<const TB, RB> b, End end) {
    if constexpr (!PLAIN_WANTED<TA, TB>) return;
    JSEG_SHARED(float, room, (GEMM_ROOM<BM, BN, BK>));
    make_gemm_tile<BM, BN, BK, TM, TN>(TilePlace<BM, BN>(s, blockIdx.x), s, a, b, end, room);
}

// ---- with tensor cores ----------------------------------------------------------------------------------------------
// A block of BM x BN is made of warps of WM x WN; STAGES slices of the depth are in shared memory or on their way.
// M: what the factors are rounded to.
template <class M, int BM, int BN, int WM, int WN, int STAGES, class TA, bool RA, class TB, bool RB> struct TensorTile {
    static constexpr int WARPS = BM / WM * (BN / WN), THREADS = WARPS * WARP, DEPTH = 64 / int(sizeof(M)),
                         STAGED = WN + 8;   // floats of a row of sums in shared memory
    using FeedA = Feed<M, TA, BM, DEPTH, RA, THREADS>;
    using FeedB = Feed<M, TB, BN, DEPTH, !RB, THREADS>;
    static constexpr int BYTES = larger(STAGES * Feeds<M, FeedA, FeedB>::STAGE * int(sizeof(M)),
                                        WARPS * 16 * STAGED * int(sizeof(float)));

    // The tile of one block; `room`: BYTES of shared memory, in nobody's use.
    template <class End>
    __device__ static __forceinline__ void make(const TilePlace<BM, BN>& t, const GemmSize& s,
                                                const Matrix<const TA, RA>& a, const Matrix<const TB, RB>& b,
                                                bool a_wide, bool b_wide, bool end_wide, const End& end,
                                                unsigned char* room) {
        constexpr int MT = WM / 16, NT = WN / 8;
        const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP, row = warp / (BN / WN) * WM,
                  column = warp % (BN / WN) * WN;
        float sums[MT][NT][4] = {};
        multiply_slices<M, STAGES>(FeedA(a.p + t.batch * a.batch, a.row, a.column, t.i0, s.m, t.begin, a_wide),
                                   FeedB(b.p + t.batch * b.batch, b.column, b.row, t.j0, s.n, t.begin, b_wide),
                                   int(t.stop - t.begin), reinterpret_cast<M*>(room), row, column, sums);
        __syncthreads();   // the slices make room for the sums, 16 rows of each warp at a time
        float* const mine = reinterpret_cast<float*>(room) + warp * 16 * STAGED;
        JSEG_UNROLL
        for (int i = 0; i < MT; i++) {
            JSEG_UNROLL
            for (int j = 0; j < NT; j++)
                JSEG_UNROLL
                for (int h = 0; h < 2; h++)
                    store_shared_as(mine + (lane / 4 + h * 8) * STAGED + j * 8 + lane % 4 * 2,
                                    float2{sums[i][j][2 * h], sums[i][j][2 * h + 1]});
            __syncwarp();
            JSEG_ROLL
            for (int at = lane * 4; at < 16 * WN; at += WARP * 4) {
                const int64_t r = t.i0 + row + i * 16 + at / WN, q = t.j0 + column + at % WN;
                if (r >= s.m || q >= s.n) continue;
                const float4 four = load_shared_as<float4>(mine + at / WN * STAGED + at % WN);
                float sum[4] = {four.x, four.y, four.z, four.w};
                if (end_wide && q + 4 <= s.n) {
                    end.template put_sums<4>(t.batch, t.split, r, q, sum);
                } else {
                    JSEG_ROLL
                    for (int w = 0; w < 4 && q + w < s.n; w++) {
                        float one[1] = {w == 0 ? sum[0] : w == 1 ? sum[1] : w == 2 ? sum[2] : sum[3]};
                        end.template put_sums<1>(t.batch, t.split, r, q + w, one);
                    }
                }
            }
            __syncwarp();
        }
    }
};

// Two large blocks shall fit on a multiprocessor, with 128 registers a thread: too few where B is converted on its way.
template <class M, int BM, int BN, int WM, int WN, int STAGES, class TA, bool RA, class TB, bool RB, class End>
__global__ void
    __launch_bounds__(BM / WM * (BN / WN) * WARP, BM * BN > 64 * 64 && std::is_same<M, TB>::value ? 2 : 1)
    tensor_tile(GemmSize s, Matrix<const TA, RA> a, Matrix<const TB, RB> b, bool a_wide, bool b_wide, bool end_wide,
                End end) {
    if constexpr (!JSEG_TENSOR_CORES) return;
    using Tile = TensorTile<M, BM, BN, WM, WN, STAGES, TA, RA, TB, RB>;
    JSEG_SHARED(unsigned char, room, Tile::BYTES);
    Tile::make(TilePlace<BM, BN>(s, blockIdx.x), s, a, b, a_wide, b_wide, end_wide, end, room);
}

// ---- host side ------------------------------------------------------------------------------------------------------
#ifndef JSEG_BIG_TILES
#define JSEG_BIG_TILES 128   // as many blocks make the 128 x 128 tile worth while; tests set 1
#endif
inline bool is_thin(int64_t n) { return n <= 16; }

// Whether a kernel was compiled with its tensor cores for the device at hand.
template <class Kernel> bool has_tensor_cores(Kernel kernel) {
#ifdef __CUDACC__
    static const bool found = [&] {
        cudaFuncAttributes attributes{};
        return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 80;
    }();
    return found;
#else
    return emu::device().capability >= 80;
#endif
}

// What the factors of a product are rounded to; and those of a product of gradients: float ones may be small, too small
// for float16, not for TF32, which is as fine.
template <class TA, class TB> using Rounded = std::conditional_t<is_float<TA>, TB, TA>;
template <class TA, class TB>
using RoundedSlopes = std::conditional_t<std::is_same<Rounded<TA, TB>, __half>::value && !std::is_same<TA, TB>::value,
                                         float, Rounded<TA, TB>>;

template <class M, int BM, int BN, int WM, int WN, int STAGES, class TA, bool RA, class TB, bool RB, class End>
void run_tensor_tiles(const GemmSize& s, const Matrix<const TA, RA>& a, const Matrix<const TB, RB>& b, const End& end) {
    JSEG_LAUNCH((tensor_tile<M, BM, BN, WM, WN, STAGES, TA, RA, TB, RB, End>),
                s.batches* s.splits* ceil_div(s.m, BM) * ceil_div(s.n, BN), BM / WM * (BN / WN) * WARP, s, a, b,
                a.aligned(EACH_CHUNK<M>), b.aligned(EACH_CHUNK<M>), end.wide(), end);
}

// M: what factors are rounded to on tensor cores, float for TF32.
template <class M, class TA, bool RA, class TB, bool RB, class End>
void run_gemm_as(const GemmSize& s, Matrix<const TA, RA> a, Matrix<const TB, RB> b, End end) {
    auto blocks = [&](int bm, int bn) { return s.batches * s.splits * ceil_div(s.m, bm) * ceil_div(s.n, bn); };
    const bool big = s.m > 64 && s.n > 64 && blocks(128, 128) >= JSEG_BIG_TILES;
    const bool able = has_tensor_cores(tensor_tile<M, 64, 64, 32, 32, 4, TA, RA, TB, RB, End>);
    if (able && tf32_allowed) {
        if (is_thin(s.n)) run_tensor_tiles<M, 128, 16, 32, 16, 4>(s, a, b, end);
        else if (big) run_tensor_tiles<M, 128, 128, 64, 32, 2>(s, a, b, end);
        else run_tensor_tiles<M, 64, 64, 32, 32, 4>(s, a, b, end);
    } else if (big) {
        JSEG_LAUNCH((gemm_tile<128, 128, 8, 8, 8, TA, RA, TB, RB, End>), blocks(128, 128), 256, s, a, b, end);
    } else {
        JSEG_LAUNCH((gemm_tile<64, 64, 16, 4, 4, TA, RA, TB, RB, End>), blocks(64, 64), 256, s, a, b, end);
    }
}
template <class TA, bool RA, class TB, bool RB, class End>
void run_gemm(const GemmSize& s, Matrix<const TA, RA> a, Matrix<const TB, RB> b, End end) {
    run_gemm_as<Rounded<TA, TB>>(s, a, b, end);
}
inline GemmSize gemm_size(int64_t batches, int64_t m, int64_t n, int64_t k) { return {batches, m, n, k, 1, k}; }

// A product whose sum is long: cut so that about 512 blocks are busy, at least 64 deep each.
inline GemmSize reduction_size(int64_t batches, int64_t m, int64_t n, int64_t k) {
    const int64_t tiles = batches * (is_thin(n) ? ceil_div(m, 128) : ceil_div(m, 64) * ceil_div(n, 64));
    int64_t splits = ceil_div(512, tiles);
    if (splits > ceil_div(k, 64)) splits = ceil_div(k, 64);
    const int64_t each = ceil_div(ceil_div(k, splits), 32) * 32;
    return {batches, m, n, k, ceil_div(k, each), each};
}
inline int64_t reduction_floats(const GemmSize& s) { return s.batches * s.splits * s.m * s.n; }

// Of gradients: out (batches, m, n), or (m, n) when `over_batches` adds the batches too; `parts` holds
// `reduction_floats`.
template <class M, class TA, bool RA, class TB, bool RB>
void run_reduction_as(const GemmSize& s, Matrix<const TA, RA> a, Matrix<const TB, RB> b, bool over_batches, bool add,
                      float* parts, float* out) {
    run_gemm_as<M>(s, a, b, StorePart{parts, s.splits, s.m, s.n});
    const int64_t rows = over_batches ? 1 : s.batches, results = s.m * s.n;
    JSEG_LAUNCH((sum_parts<float, float>), ceil_div(rows * results, 256), 256, static_cast<const float*>(parts), rows,
                s.batches * s.splits / rows, results, add, out);
}
template <class TA, bool RA, class TB, bool RB>
void run_reduction(const GemmSize& s, Matrix<const TA, RA> a, Matrix<const TB, RB> b, bool over_batches, bool add,
                   float* parts, float* out) {
    run_reduction_as<RoundedSlopes<TA, TB>>(s, a, b, over_batches, add, parts, out);
}

// W (scale x + shift) + bias = (W scale) x + (W shift + bias): a map of the input's channels taken into the product's
// parameters (rows, columns), which are small. One block per row; no bias is 0.
template <class W>
__global__ void __launch_bounds__(256) fold_affine(const W* w, const W* bias, const W* scale, const W* shift,
                                                   int64_t columns, W* w_out, W* bias_out) {
    JSEG_SHARED(double, room, 256 / WARP);
    const int64_t row = int64_t(blockIdx.x) * columns;
    double total = 0;
    for (int64_t j = threadIdx.x; j < columns; j += 256) {
        w_out[row + j] = w[row + j] * scale[j];
        total += double(w[row + j]) * double(shift[j]);
    }
    total = block_sum<256>(total, room);
    if (threadIdx.x == 0) bias_out[blockIdx.x] = W(total + (bias ? double(bias[blockIdx.x]) : 0.0));
}

// out[i] = (add ? out[i] : 0) + sum over batches and columns of g (batches, rows, columns). One block per row.
template <class T>
__global__ void __launch_bounds__(256)
    row_sums(const T* g, int64_t batches, int64_t rows, int64_t columns, bool add, float* out) {
    JSEG_SHARED(double, room, 256 / WARP);
    double total = 0;
    for (int64_t b = 0; b < batches; b++) {
        const T* p = g + (b * rows + blockIdx.x) * columns;
        float sum = 0;
        for (int64_t j = threadIdx.x; j < columns; j += 256) sum += to_float(p[j]);
        total += sum;
    }
    total = block_sum<256>(total, room);
    if (threadIdx.x == 0) out[blockIdx.x] = float((add ? double(out[blockIdx.x]) : 0.0) + total);
}

}  // namespace jseg
