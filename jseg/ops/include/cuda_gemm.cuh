// Matrix products on the device: C[b] (m, n) = A[b] (m, k) B[b] (k, n) with any strides, float sums, and an end of
// one's own.
//
// One block computes a tile of C. A and B pass through shared memory in slices of BK; the next slice is read into
// registers while the present one is multiplied; a thread holds TM x TN sums in groups of 4 x 4. Long sums over few
// results are cut into `splits`: every split writes its own part, and the parts are added in order (`run_reduction`):
// no atomics.
#pragma once
#include <type_traits>
#include "cuda_base.cuh"

namespace jseg {

// Element (b, i, j) of a batch of matrices is p[b * batch + i * row + j * column].
template <class T> struct Matrix {
    T* p;
    int64_t batch, row, column;
    __device__ T* at(int64_t b, int64_t i, int64_t j) const { return p + b * batch + i * row + j * column; }
};
template <class T> Matrix<T> matrix(T* p, int64_t batch, int64_t row, int64_t column) {
    return {p, batch, row, column};
}

struct GemmSize {
    int64_t batches, m, n, k, splits, k_each;   // k_each: depth of a split
};

// ---- ends: what becomes of a finished sum ---------------------------------------------------------------------------
// out = (add ? out : 0) + act(sum + bias[i])
template <class T> struct Store {
    Matrix<T> out;
    const float* bias;
    bool act, add;
    __device__ __forceinline__ void operator()(int64_t b, int64_t, int64_t i, int64_t j, float sum) const {
        T* to = out.at(b, i, j);
        if (bias) sum += bias[i];
        if (act) sum = gelu(sum);
        put(to, add ? to_float(*to) + sum : sum);
    }
};
// out = shortcut + factor[b] scale[i] (gate act(sum + bias[i]) + residual_scale[i] residual); what is null is left out.
// All maps are dense (batches, rows, columns).
template <class T> struct Ending {
    T* out;
    int64_t rows, columns;
    const float* bias;
    bool act;
    const T *gate, *residual, *shortcut;
    const float *residual_scale, *scale, *factor;
    __device__ __forceinline__ void operator()(int64_t b, int64_t, int64_t i, int64_t j, float sum) const {
        const int64_t at = (b * rows + i) * columns + j;
        if (bias) sum += bias[i];
        if (act) sum = gelu(sum);
        if (gate) sum *= to_float(gate[at]);
        if (residual) sum += to_float(residual[at]) * (residual_scale ? residual_scale[i] : 1.0f);
        if (scale) sum *= scale[i];
        if (factor) sum *= factor[b];
        if (shortcut) sum += to_float(shortcut[at]);
        put(out + at, sum);
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
    __device__ __forceinline__ void operator()(int64_t b, int64_t, int64_t i, int64_t j, float z) const {
        const int64_t at = (b * rows + i) * columns + j;
        if (bias) z += bias[i];
        float g = to_float(dy[at]) * (factor ? factor[b] : 1.0f);
        if (scale_terms) scale_terms[at] = g * (z + (residual ? to_float(residual[at]) : 0.0f));
        if (dgate) put(dgate + at, g * (act ? gelu(z) : z));
        if (scale) g *= scale[i];
        if (gate) g *= to_float(gate[at]);
        if (dresidual) put(dresidual + at, g);
        slope[at] = act ? g * gelu_slope(z) : g;
    }
};
// parts (batches, splits, m, n)
struct StorePart {
    float* parts;
    int64_t splits, m, n;
    __device__ __forceinline__ void operator()(int64_t b, int64_t split, int64_t i, int64_t j, float sum) const {
        parts[((b * splits + split) * m + i) * n + j] = sum;
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

template <int BM, int BN, int BK, int TM, int TN, class TA, class TB, class End>
__global__ void __launch_bounds__(BM / TM * (BN / TN), 1)
    gemm_tile(GemmSize s, Matrix<const TA> a, Matrix<const TB> b, End end) {
    constexpr int THREADS = BM / TM * (BN / TN), ACROSS = BN / TN, AL = BM + 4, BL = BN + 4, ROW_STEP = BM * 4 / TM,
                  COLUMN_STEP = BN * 4 / TN;
    JSEG_SHARED(float, as, BK * AL);
    JSEG_SHARED(float, bs, BK * BL);
    int64_t block = blockIdx.x;
    const int64_t down = ceil_div(s.m, BM), across = ceil_div(s.n, BN);
    const int64_t i0 = block % down * BM, j0 = (block /= down) % across * BN, split = (block /= across) % s.splits,
                  batch = block / s.splits;
    const int64_t begin = split * s.k_each, stop = begin + s.k_each < s.k ? begin + s.k_each : s.k;
    const TA* ap = a.p + batch * a.batch;
    const TB* bp = b.p + batch * b.batch;
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
            if (r < s.m && q < s.n) end(batch, split, r, q, sums[i][j]);
        }
}

// ---- host side ------------------------------------------------------------------------------------------------------
#ifndef JSEG_BIG_TILES
#define JSEG_BIG_TILES 128   // as many blocks make the 128 x 128 tile worth while; tests set 1
#endif
inline bool is_thin(int64_t n) { return n <= 16; }

template <class TA, class TB, class End> void run_gemm(const GemmSize& s, Matrix<const TA> a, Matrix<const TB> b,
                                                       End end) {
    auto blocks = [&](int bm, int bn) { return s.batches * s.splits * ceil_div(s.m, bm) * ceil_div(s.n, bn); };
    if (is_thin(s.n)) JSEG_LAUNCH((gemm_tile<128, 16, 8, 4, 4, TA, TB, End>), blocks(128, 16), 128, s, a, b, end);
    else if (s.m > 64 && s.n > 64 && blocks(128, 128) >= JSEG_BIG_TILES)
        JSEG_LAUNCH((gemm_tile<128, 128, 8, 8, 8, TA, TB, End>), blocks(128, 128), 256, s, a, b, end);
    else JSEG_LAUNCH((gemm_tile<64, 64, 16, 4, 4, TA, TB, End>), blocks(64, 64), 256, s, a, b, end);
}
inline GemmSize gemm_size(int64_t batches, int64_t m, int64_t n, int64_t k) { return {batches, m, n, k, 1, k}; }

// A product whose sum is long: cut so that about 512 blocks are busy, at least 64 deep each.
inline GemmSize reduction_size(int64_t batches, int64_t m, int64_t n, int64_t k) {
    const int64_t tiles = batches * (is_thin(n) ? ceil_div(m, 128) : ceil_div(m, 64) * ceil_div(n, 64));
    int64_t splits = ceil_div(512, tiles);
    if (splits > ceil_div(k, 64)) splits = ceil_div(k, 64);
    const int64_t each = ceil_div(ceil_div(k, splits), 16) * 16;
    return {batches, m, n, k, ceil_div(k, each), each};
}
inline int64_t reduction_floats(const GemmSize& s) { return s.batches * s.splits * s.m * s.n; }

// out (batches, m, n), or (m, n) when `over_batches` adds the batches too; `parts` holds `reduction_floats`.
template <class TA, class TB>
void run_reduction(const GemmSize& s, Matrix<const TA> a, Matrix<const TB> b, bool over_batches, bool add, float* parts,
                   float* out) {
    run_gemm(s, a, b, StorePart{parts, s.splits, s.m, s.n});
    const int64_t rows = over_batches ? 1 : s.batches, results = s.m * s.n;
    JSEG_LAUNCH((sum_parts<float, float>), ceil_div(rows * results, 256), 256, static_cast<const float*>(parts), rows,
                s.batches * s.splits / rows, results, add, out);
}

// out (batches, rows, columns) = x scale[row] + shift[row], times factor[batch]; what is null is left out. A thread an
// element.
template <class T>
__global__ void affine_rows(const T* x, int64_t batches, int64_t rows, int64_t columns, const float* scale,
                            const float* shift, const float* factor, float* out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= batches * rows * columns) return;
    const int64_t row = at / columns % rows;
    out[at] = (to_float(x[at]) * (scale ? scale[row] : 1.0f) + (shift ? shift[row] : 0.0f)) *
              (factor ? factor[at / columns / rows] : 1.0f);
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
