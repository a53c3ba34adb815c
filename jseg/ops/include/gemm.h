// Single-precision matrix products for 1x1 convolutions, of any size.
//
// Two shapes occur. *Panels*: Y (M, P) = A (M, K) X (K, P) with P pixels: A is packed in groups of MR rows, X in panels of
// PANEL pixels, and a tile of MR x PANEL sums stays in registers. Packing also takes care of pixel planes whose size is a
// power of two, which would otherwise fall on few cache lines. *Pixel sums*: C (M, K) = sum over pixels of A[m] B[k], the
// weight gradients: tiles of dot products, vectors along the pixels, partial sums of fixed size added in fixed order, so
// neither result depends on the number of threads.
#pragma once
#include <algorithm>

#include "lanes.h"

namespace jseg {

#if defined(__AVX512F__)
constexpr int MR = 8, NV = 3, DOT_M = 4, DOT_K = 4;   // 24 sums + 3 + 1 of 32 registers
#elif defined(__AVX__)
constexpr int MR = 6, NV = 2, DOT_M = 2, DOT_K = 4;   // 12 sums + 2 + 1 of 16 registers
#else
constexpr int MR = 4, NV = 2, DOT_M = 2, DOT_K = 2;
#endif
constexpr int PANEL = NV * VL;

// ---- panels -----------------------------------------------------------------------------------------------------------

inline int64_t packed_rows_size(int64_t m, int64_t k) { return round_up(m, MR) * k; }

// A[m][k] = source[m * row_step + k * column_step] -> groups of MR rows: target[(group * K + k) * MR + r], missing rows 0.
inline void pack_rows(int64_t m, int64_t k, const float* source, int64_t row_step, int64_t column_step, float* target) {
    const int64_t groups = round_up(m, MR) / MR;
#pragma omp parallel for schedule(static) if (m * k > 16384)
    for (int64_t g = 0; g < groups; g++) {
        const float* from = source + g * MR * row_step;
        float* to = target + g * k * MR;
        const int64_t rows = std::min<int64_t>(MR, m - g * MR);
        for (int64_t j = 0; j < k; j++)
            for (int64_t r = 0; r < MR; r++) to[j * MR + r] = r < rows ? from[r * row_step + j * column_step] : 0.0f;
    }
}

// Column j of packed rows times scale[j]: A diag(scale).
inline void scale_columns(int64_t m, int64_t k, const float* scale, float* packed) {
    const int64_t groups = round_up(m, MR) / MR;
#pragma omp parallel for schedule(static) if (m * k > 16384)
    for (int64_t g = 0; g < groups; g++)
        for (int64_t j = 0; j < k; j++)
            for (int64_t r = 0; r < MR; r++) packed[(g * k + j) * MR + r] *= scale[j];
}

// Sum of a[j] b[j], in vectors.
inline float dot_product(int64_t k, const float* a, const float* b) {
    V total{};
    for (int64_t j = 0; j < k; j += VL) total += load_part(a + j, k - j) * load_part(b + j, k - j);
    return lanes_sum(total);
}

// out = A shift + bias for A (M, K): the bias of a product whose input was shifted. `bias` may be null.
inline void shifted_bias(int64_t m, int64_t k, const float* a, const float* shift, const float* bias, float* out) {
#pragma omp parallel for schedule(static) if (m * k > 16384)
    for (int64_t i = 0; i < m; i++) out[i] = (bias ? bias[i] : 0.0f) + dot_product(k, a + i * k, shift);
}

// `count` <= PANEL pixels of K rows -> target[k * PANEL + i], missing pixels 0.
inline void pack_panel(int64_t k, int64_t count, const float* source, int64_t step, float* target) {
    if (count == PANEL) {
        for (int64_t j = 0; j < k; j++)
            for (int v = 0; v < NV; v++) store(target + j * PANEL + v * VL, load(source + j * step + v * VL));
        return;
    }
    for (int64_t j = 0; j < k; j++)
        for (int64_t i = 0; i < PANEL; i += VL) {
            const int64_t left = count - i;
            store(target + j * PANEL + i, left > 0 ? load_part(source + j * step + i, left) : V{});
        }
}

template <int VECTORS, class Finish>
JSEG_INLINE void panel_tile(int64_t k, const float* a, const float* b, int rows, Finish&& finish) {
    V c[MR][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) c[r][v] = V{};
    for (int64_t j = 0; j < k; j++) {
        V x[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) x[v] = load(b + j * PANEL + v * VL);
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++) {
            const V weight = splat(a[j * MR + r]);
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) c[r][v] += weight * x[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
        if (r < rows)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) finish(r, v, c[r][v]);
}

// Rows [first, last) (first a multiple of MR) of A times one packed panel of `count` pixels.
// finish(row, vector, sums) is called once for each vector that holds pixels; the last one may be partly filled.
template <class Finish>
JSEG_INLINE void panel_product(int64_t first, int64_t last, int64_t k, const float* packed_rows, const float* panel, int64_t count,
                               Finish&& finish) {
    const int64_t vectors = (count + VL - 1) / VL;
    for (int64_t m = first; m < last; m += MR) {
        const float* a = packed_rows + m * k;
        const int rows = int(std::min<int64_t>(MR, last - m));
        auto at_row = [&](int r, int v, V sums) __attribute__((always_inline)) { finish(m + r, v, sums); };
        if (vectors == NV) panel_tile<NV>(k, a, panel, rows, at_row);
#if defined(__AVX512F__)
        else if (vectors == 2) panel_tile<2>(k, a, panel, rows, at_row);
#endif
        else panel_tile<1>(k, a, panel, rows, at_row);
    }
}

// Rows of pixels of several images: element (image, row, pixel) is data[image * image_step + row * row_step + pixel].
struct Rows {
    const float* data;
    int64_t image_step, row_step;
};

// Y[n] (M, P) = finish(A X[n]) for N images, in parallel; `panels` holds K * PANEL floats a thread.
// finish(image, row, pixel, count, sums): `count` <= VL pixels from `pixel` on.
template <class Finish>
inline void image_product(int64_t images, int64_t m, int64_t k, int64_t pixels, const float* packed_rows, const Rows& x, float* panels,
                          Finish&& finish) {
    const int64_t per_image = (pixels + PANEL - 1) / PANEL, all = images * per_image, threads = omp_get_max_threads();
    const int64_t groups = round_up(m, MR) / MR;
    const int64_t splits = std::max<int64_t>(1, std::min(4 * threads / all, groups / 8)), share = (groups + splits - 1) / splits * MR;
#pragma omp parallel
    {
        NoDenormals guard;
        float* panel = panels + omp_get_thread_num() * k * PANEL;
#pragma omp for schedule(static)
        for (int64_t job = 0; job < all * splits; job++) {
            const int64_t image = job / splits / per_image, p = job / splits % per_image * PANEL, m0 = job % splits * share;
            const int64_t count = std::min<int64_t>(PANEL, pixels - p);
            pack_panel(k, count, x.data + image * x.image_step + p, x.row_step, panel);
            panel_product(m0, std::min(m, m0 + share), k, packed_rows, panel, count, [&](int64_t row, int v, V sums) __attribute__((always_inline)) {
                finish(image, row, p + v * VL, std::min<int64_t>(VL, count - v * VL), sums);
            });
        }
    }
}

// ---- pixel sums -------------------------------------------------------------------------------------------------------

constexpr int64_t DOT_BLOCK = 64, DOT_CHUNK = 1024, DOT_STEP = DOT_CHUNK + VL;   // rows of a block; pixels of a chunk; its padded length

// c[i][j] += dot(a[i], b[j]) over `length` floats, a multiple of VL.
template <int ROWS, int COLUMNS>
JSEG_INLINE void dot_tile(const float* a, const float* b, int64_t length, float* c, int64_t c_step) {
    V s[ROWS][COLUMNS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; j++) s[i][j] = V{};
    for (int64_t p = 0; p < length; p += VL) {
        V y[COLUMNS];
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; j++) y[j] = load(b + j * DOT_STEP + p);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) {
            const V x = load(a + i * DOT_STEP + p);
#pragma GCC unroll 4
            for (int j = 0; j < COLUMNS; j++) s[i][j] += x * y[j];
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; j++) c[i * c_step + j] += lanes_sum(s[i][j]);
}

template <int ROWS>
inline void dot_rows(int64_t columns, const float* a, const float* b, int64_t length, float* c, int64_t c_step) {
    int64_t j = 0;
    for (; j + DOT_K <= columns; j += DOT_K) dot_tile<ROWS, DOT_K>(a, b + j * DOT_STEP, length, c + j, c_step);
    for (; j < columns; j++) dot_tile<ROWS, 1>(a, b + j * DOT_STEP, length, c + j, c_step);
}

// Pixels [begin, end) of the flattened (N, P) axis of `rows` rows from `first` on -> rows of DOT_STEP floats, zero behind the end.
inline void gather_pixels(const Rows& source, int64_t first, int64_t rows, int64_t pixels, int64_t begin, int64_t end, float* target) {
    const int64_t filled = end - begin, padded = round_up(filled, VL);
    for (int64_t r = 0; r < rows; r++) {
        float* to = target + r * DOT_STEP;
        for (int64_t at = begin; at < end;) {
            const int64_t image = at / pixels, p = at % pixels, run = std::min(pixels - p, end - at);
            std::memcpy(to + (at - begin), source.data + image * source.image_step + (first + r) * source.row_step + p, run * sizeof(float));
            at += run;
        }
        for (int64_t i = filled; i < padded; i++) to[i] = 0;
    }
}

struct PixelSums {   // how one pixel-sum product is cut; depends on the sizes only
    int64_t m_blocks, k_blocks, segments, chunks, m, k;
    PixelSums(int64_t m_, int64_t k_, int64_t all_pixels) : m(m_), k(k_) {
        m_blocks = (m + DOT_BLOCK - 1) / DOT_BLOCK, k_blocks = (k + DOT_BLOCK - 1) / DOT_BLOCK;
        chunks = (all_pixels + DOT_CHUNK - 1) / DOT_CHUNK;
        segments = std::max<int64_t>(1, std::min(chunks, 32 / (m_blocks * k_blocks)));
    }
    int64_t partial_size() const { return segments * m * k; }
    static int64_t thread_size() { return 2 * DOT_BLOCK * DOT_STEP; }
    int64_t size() const { return partial_size() + omp_get_max_threads() * thread_size(); }
};

// C[m][k] = sum over n, p of A[n][m][p] B[n][k][p], added to C if `add`. Row m of C starts at c + m * c_step.
// `memory`: PixelSums(m, k, N * P).size() floats.
inline void pixel_sums(int64_t images, int64_t m, int64_t k, int64_t pixels, const Rows& a, const Rows& b, float* c, int64_t c_step, bool add,
                       float* memory) {
    const int64_t all = images * pixels;
    const PixelSums cut(m, k, all);
    float* partial = memory;
    float* thread_memory = memory + cut.partial_size();
#pragma omp parallel
    {
        NoDenormals guard;
        float* a_rows = thread_memory + omp_get_thread_num() * PixelSums::thread_size();
        float* b_rows = a_rows + DOT_BLOCK * DOT_STEP;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < cut.segments * cut.m_blocks * cut.k_blocks; job++) {
            const int64_t segment = job / (cut.m_blocks * cut.k_blocks), m0 = job / cut.k_blocks % cut.m_blocks * DOT_BLOCK, k0 = job % cut.k_blocks * DOT_BLOCK;
            const int64_t rows = std::min(DOT_BLOCK, m - m0), columns = std::min(DOT_BLOCK, k - k0);
            float* out = partial + segment * m * k + m0 * k + k0;
            for (int64_t i = 0; i < rows; i++) std::memset(out + i * k, 0, columns * sizeof(float));
            for (int64_t chunk = cut.chunks * segment / cut.segments; chunk < cut.chunks * (segment + 1) / cut.segments; chunk++) {
                const int64_t begin = chunk * DOT_CHUNK, end = std::min(all, begin + DOT_CHUNK), length = round_up(end - begin, VL);
                gather_pixels(a, m0, rows, pixels, begin, end, a_rows);
                gather_pixels(b, k0, columns, pixels, begin, end, b_rows);
                int64_t i = 0;
                for (; i + DOT_M <= rows; i += DOT_M) dot_rows<DOT_M>(columns, a_rows + i * DOT_STEP, b_rows, length, out + i * k, k);
                for (; i < rows; i++) dot_rows<1>(columns, a_rows + i * DOT_STEP, b_rows, length, out + i * k, k);
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < k; j++) {
                float total = add ? c[i * c_step + j] : 0.0f;
                for (int64_t s = 0; s < cut.segments; s++) total += partial[s * m * k + i * k + j];
                c[i * c_step + j] = total;
            }
    }
}

// out[m] = sum over n, p of factor[n] a[n][m][p], in parallel over rows; without `factor` it is 1.
inline void row_sums(int64_t images, int64_t m, int64_t pixels, const Rows& a, float* out, const float* factor = nullptr) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < m; row++) {
        double total = 0;
        for (int64_t image = 0; image < images; image++) {
            const float* from = a.data + image * a.image_step + row * a.row_step;
            double of_image = 0;
            for (int64_t begin = 0; begin < pixels; begin += DOT_CHUNK) {
                const int64_t end = std::min(pixels, begin + DOT_CHUNK);
                V s{};
                for (int64_t p = begin; p < end; p += VL) s += load_part(from + p, end - p);
                of_image += lanes_sum(s);
            }
            total += factor ? factor[image] * of_image : of_image;
        }
        out[row] = float(total);
    }
}

}  // namespace jseg
