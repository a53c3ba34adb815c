// Single-precision matrix products for 1x1 convolutions, of any size.
//
// Two shapes occur. *Panels*: Y (M, P) = A (M, K) X (K, P) with P pixels: A is packed in groups of MR rows, X in panels
// of PANEL pixels, and a tile of MR x PANEL sums stays in registers. Packing also takes care of pixel planes whose size
// is a power of two, which would otherwise fall on few cache lines. *Pixel sums*: C (M, K) = sum over pixels of A[m]
// B[k], the weight gradients: the same tiles with both sides turned while they are packed; partial sums over fixed runs
// of pixels are added in fixed order, so neither result depends on the number of threads.
#pragma once
#include <algorithm>

#include "lanes.h"
#include "product.h"

namespace jseg {

#if defined(__AVX512F__)
constexpr int MR = 8, NV = 3;   // 24 sums + 3 + 1 of 32 registers
#elif defined(__AVX__)
constexpr int MR = 4, NV = 3;   // 12 sums + 3 + 1 of 16 registers
#else
constexpr int MR = 4, NV = 2;
#endif
constexpr int PANEL = NV * VL;

// ---- panels ---------------------------------------------------------------------------------------------------------

inline int64_t packed_rows_size(int64_t m, int64_t k) { return round_up(m, MR) * k; }

// One group of `rows` <= MR rows: to[j * MR + r] = from[r * row_step + j * column_step], missing rows 0. In pairs, lane
// j holds columns 2 j and 2 j + 1, and the lanes of tiles stand in blocks of 16, row by row.
template <class T = Float32>
inline void pack_group(int64_t rows, int64_t k, const float* from, int64_t row_step, int64_t column_step, float* to) {
    constexpr int64_t WIDTH = T::NARROW ? 2 : 1;
    const int64_t steps = T::steps(k), whole = k / WIDTH;
    int64_t of_tiles = 0, j = 0;
    if constexpr (T::NARROW) of_tiles = T::steps_of_tiles(steps);
    if (!T::NARROW && rows == MR && row_step == 1)
        for (; j < k; j++) std::memcpy(to + j * MR, from + j * column_step, MR * sizeof(float));
    if (column_step == 1)
        for (; j + VL <= whole; j += VL) {
            V group[MR];
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) group[r] = r < rows ? T::load_steps(from + r * row_step + j * WIDTH) : V{};
            if (j >= of_tiles) interleave<MR>(group);
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) store(to + j * MR + r * VL, group[r]);
        }
    for (; j < steps; j++)
        for (int r = 0; r < MR; r++)
            to[j < of_tiles ? (j / 16 * MR + r) * 16 + j % 16 : j * MR + r] =
                r < rows ? T::step(from + r * row_step + j * WIDTH * column_step, column_step, j < whole) : 0.0f;
}

// A[m][k] = source[m * row_step + k * column_step] -> groups of MR rows: target[(group * K + k) * MR + r], missing rows
// 0.
template <class T = Float32>
inline void pack_rows(int64_t m, int64_t k, const float* source, int64_t row_step, int64_t column_step, float* target) {
    const int64_t groups = round_up(m, MR) / MR;
#pragma omp parallel for schedule(static) if (m * k > 16384)
    for (int64_t g = 0; g < groups; g++)
        pack_group<T>(std::min<int64_t>(MR, m - g * MR), k, source + g * MR * row_step, row_step, column_step,
                      target + g * T::steps(k) * MR);
}

// out = A diag(scale), rows of k.
inline void scaled_columns(int64_t m, int64_t k, const float* a, const float* scale, float* out) {
#pragma omp parallel for schedule(static) if (m * k > 16384)
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < k; j += VL)
            store_part(out + i * k + j, load_part(a + i * k + j, k - j) * load_part(scale + j, k - j), k - j);
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

// A panel of K rows of numbers becomes, in place, one of steps(K) rows of T.
template <class T>
JSEG_INLINE void narrow_panel(int64_t k, float* panel) {
    if constexpr (T::NARROW)
        for (int64_t j = 0; j < k; j += 2)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) {
                const float* from = panel + j * PANEL + v * VL;
                store(panel + j / 2 * PANEL + v * VL, T::pairs(load(from), j + 1 < k ? load(from + PANEL) : V{}));
            }
}

template <int VECTORS, class T = Float32, class Finish>
JSEG_INLINE void panel_tile(int64_t k, const float* a, const float* b, int rows, Finish&& finish) {
    V c[MR][VECTORS];
    int64_t of_tiles = 0;
    if constexpr (T::NARROW) of_tiles = T::steps_of_tiles(k);
    tile_sums<T>(k - of_tiles, a + of_tiles * MR, 1, MR, b + of_tiles * PANEL, PANEL, c);
#ifdef JSEG_TILES
    if (of_tiles) {
        static_assert(MR == TILE_ROWS && VL == 16, "a packed group is a tile");
        alignas(64) float sums[VECTORS][MR][VL];
        tile_products<VECTORS>(of_tiles / TILE_STEPS, a, b, PANEL, sums);
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) c[r][v] += load(sums[v][r]);
    }
#endif
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
        if (r < rows)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) finish(r, v, c[r][v]);
}

// Rows [first, last) (first a multiple of MR) of A times one packed panel of `count` pixels.
// finish(row, vector, sums) is called once for each vector that holds pixels; the last one may be partly filled.
template <class T = Float32, class Finish>
JSEG_INLINE void panel_product(int64_t first, int64_t last, int64_t depth, const float* packed_rows, const float* panel,
                               int64_t count, Finish&& finish) {
    const int64_t vectors = (count + VL - 1) / VL, k = T::steps(depth);
    for (int64_t m = first; m < last; m += MR) {
        const float* a = packed_rows + m * k;
        const int rows = int(std::min<int64_t>(MR, last - m));
        auto at_row = [&](int r, int v, V sums) __attribute__((always_inline)) { finish(m + r, v, sums); };
        if (vectors == NV) panel_tile<NV, T>(k, a, panel, rows, at_row);
        else if (vectors == 2) panel_tile<2, T>(k, a, panel, rows, at_row);
        else panel_tile<1, T>(k, a, panel, rows, at_row);
    }
}

// Rows of pixels of several images: element (image, row, pixel) is data[image * image_step + row * row_step + pixel].
struct Rows {
    const float* data;
    int64_t image_step, row_step;
};

// Panels that `image_product` packs in one go, at most 48 KB where there are several: planes whose size is a power of
// two have their rows on the same few cache lines, so a row of X or Y should be read and written in long runs.
inline int64_t panels_at_once(int64_t k) { return std::clamp<int64_t>(12288 / (k * PANEL), 1, 4); }
inline int64_t panels_size(int64_t k) { return panels_at_once(k) * k * PANEL; }

// `count` pixels of K rows -> panels one after another, K * PANEL floats apart, row by row where all are full.
template <class T = Float32>
inline void pack_panels(int64_t k, int64_t count, const float* source, int64_t step, float* target) {
    if constexpr (T::NARROW) {
        const int64_t full = count / PANEL * PANEL;
        for (int64_t j = 0; j < k && full; j += 2)
            for (int64_t p = 0; p < full; p += PANEL)
                for (int v = 0; v < NV; v++) {
                    const float* from = source + j * step + p + v * VL;
                    store(target + p * k + j / 2 * PANEL + v * VL,
                          T::pairs(load(from), j + 1 < k ? load(from + step) : V{}));
                }
        if (full == count) return;
        pack_panel(k, count - full, source + full, step, target + full * k);
        narrow_panel<T>(k, target + full * k);
    } else if (count % PANEL == 0)
        for (int64_t j = 0; j < k; j++)
            for (int64_t p = 0; p < count; p += PANEL)
                for (int v = 0; v < NV; v++)
                    store(target + p * k + j * PANEL + v * VL, load(source + j * step + p + v * VL));
    else
        for (int64_t p = 0; p < count; p += PANEL)
            pack_panel(k, std::min<int64_t>(PANEL, count - p), source + p, step, target + p * k);
}

// Y[n] (M, P) = finish(A X[n]) for N images, in parallel; `panels` holds panels_size(K) floats per thread.
// finish(image, row, pixel, count, sums): `count` <= VL pixels from `pixel` on. T: what `packed_rows` hold.
template <class T = Float32, class Finish>
inline void image_product(int64_t images, int64_t m, int64_t k, int64_t pixels, const float* packed_rows, const Rows& x,
                          float* panels, Finish&& finish) {
    const int64_t run = panels_at_once(k) * PANEL, per_image = (pixels + run - 1) / run, all = images * per_image,
                  threads = omp_get_max_threads();
    const int64_t groups = round_up(m, MR) / MR;
    const int64_t splits = std::max<int64_t>(1, std::min(4 * threads / all, groups / 8)),
                  share = (groups + splits - 1) / splits * MR;
#pragma omp parallel
    {
        NoDenormals guard;
        typename T::Scope scope;
        float* mine = panels + omp_get_thread_num() * panels_size(k);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < all * splits; job++) {
            const int64_t image = job / splits / per_image, begin = job / splits % per_image * run,
                          end = std::min(pixels, begin + run);
            const int64_t m0 = job % splits * share, m1 = std::min(m, m0 + share);
            pack_panels<T>(k, end - begin, x.data + image * x.image_step + begin, x.row_step, mine);
            for (int64_t top = m0; top < m1; top += MR)
                for (int64_t p = begin; p < end; p += PANEL) {
                    const auto tile = [&](int64_t rows, int64_t count) __attribute__((always_inline)) {
                        panel_product<T>(top, top + rows, k, packed_rows, mine + (p - begin) * k, count,
                                         [&](int64_t row, int v, V sums) __attribute__((always_inline)) {
                                             finish(image, row, p + v * VL, std::min<int64_t>(VL, count - v * VL),
                                                    sums);
                                         });
                    };
                    if (end - p >= PANEL && m1 - top >= MR) tile(MR, PANEL);
                    else tile(std::min<int64_t>(MR, m1 - top), std::min<int64_t>(PANEL, end - p));
                }
        }
    }
}

// ---- pixel sums -----------------------------------------------------------------------------------------------------

// rows, columns and pixels of a block: a panel of it fits in first-level cache
constexpr int64_t SUM_M = 128, SUM_K = 4 * PANEL, SUM_P = 128;

// `count` <= PANEL rows of `length` pixels -> target[pixel * PANEL + row], missing rows up to a whole vector 0.
inline void pack_turned(int64_t count, int64_t length, const float* source, int64_t row_step, float* target) {
    const auto turn = [=](int64_t rows, int64_t left, const float* from, float* to) __attribute__((always_inline)) {
        V block[VL];
#pragma GCC unroll 16
        for (int64_t r = 0; r < VL; r++) block[r] = r < rows ? load_part(from + r * row_step, left) : V{};
        interleave<VL>(block);
#pragma GCC unroll 16
        for (int64_t i = 0; i < VL; i++)
            if (i < left) store(to + i * PANEL, block[i]);
    };
    for (int64_t first = 0; first < count; first += VL)
        for (int64_t p = 0; p < length; p += VL) {
            const int64_t rows = std::min<int64_t>(VL, count - first), left = std::min<int64_t>(VL, length - p);
            const float* from = source + first * row_step + p;
            float* to = target + p * PANEL + first;
            if (rows == VL && left == VL) turn(VL, VL, from, to);
            else turn(rows, left, from, to);
        }
}

struct PixelSums {   // how one pixel-sum product is cut; depends on the sizes only
    int64_t m, k, pixels, m_blocks, k_blocks, per_image, chunks, segments;
    PixelSums(int64_t m_, int64_t k_, int64_t images, int64_t pixels_) : m(m_), k(k_), pixels(pixels_) {
        m_blocks = (m + SUM_M - 1) / SUM_M, k_blocks = (k + SUM_K - 1) / SUM_K;
        per_image = (pixels + SUM_P - 1) / SUM_P, chunks = images * per_image;
        segments = std::max<int64_t>(1, std::min(chunks, 32 / (m_blocks * k_blocks)));
    }
    int64_t partial_size() const { return round_up(segments * m * k, 16); }
    static int64_t thread_size() { return (SUM_M + PANEL) * SUM_P; }
    int64_t size() const { return partial_size() + omp_get_max_threads() * thread_size(); }
};

// Rows [m0, m0 + rows) and columns [k0, k0 + columns) of A B^T over one segment of the pixels; `out` has rows of cut.k
// floats.
inline void sum_block(const PixelSums& cut, int64_t segment, int64_t m0, int64_t rows, int64_t k0, int64_t columns,
                      const Rows& a, const Rows& b, float* out, float* a_packed) {
    float* panel = a_packed + SUM_M * SUM_P;
    const int64_t first = cut.chunks * segment / cut.segments, last = cut.chunks * (segment + 1) / cut.segments;
    for (int64_t chunk = first; chunk < last; chunk++) {
        const int64_t image = chunk / cut.per_image, p = chunk % cut.per_image * SUM_P,
                      length = std::min(SUM_P, cut.pixels - p);
        const float *a_from = a.data + image * a.image_step + m0 * a.row_step + p,
                    *b_from = b.data + image * b.image_step + k0 * b.row_step + p;
        for (int64_t r = 0; r < rows; r += MR)
            pack_group(std::min<int64_t>(MR, rows - r), length, a_from + r * a.row_step, a.row_step, 1,
                       a_packed + r * length);
        for (int64_t j = 0; j < columns; j += PANEL) {
            const int64_t count = std::min<int64_t>(PANEL, columns - j);
            pack_turned(count, length, b_from + j * b.row_step, b.row_step, panel);
            panel_product(0, rows, length, a_packed, panel, count,
                          [&](int64_t row, int v, V sums) __attribute__((always_inline)) {
                              float* at = out + row * cut.k + j + v * VL;
                              const int64_t here = count - v * VL;
                              store_part(at, chunk > first ? load_part(at, here) + sums : sums, here);
                          });
        }
    }
}

// C[m][k] = sum over n, p of A[n][m][p] B[n][k][p], added to C if `add`. Row m of C starts at c + m * c_step.
// `memory`: PixelSums(m, k, N, P).size() floats.
inline void pixel_sums(int64_t images, int64_t m, int64_t k, int64_t pixels, const Rows& a, const Rows& b, float* c,
                       int64_t c_step, bool add, float* memory) {
    const PixelSums cut(m, k, images, pixels);
    float* partial = memory;
    float* thread_memory = memory + cut.partial_size();
#pragma omp parallel
    {
        NoDenormals guard;
        float* mine = thread_memory + omp_get_thread_num() * PixelSums::thread_size();
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < cut.segments * cut.m_blocks * cut.k_blocks; job++) {
            const int64_t segment = job / (cut.m_blocks * cut.k_blocks), m0 = job / cut.k_blocks % cut.m_blocks * SUM_M,
                          k0 = job % cut.k_blocks * SUM_K;
            sum_block(cut, segment, m0, std::min(SUM_M, m - m0), k0, std::min(SUM_K, k - k0), a, b,
                      partial + segment * m * k + m0 * k + k0, mine);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < k; j += VL) {
                V total = add ? load_part(c + i * c_step + j, k - j) : V{};
                for (int64_t s = 0; s < cut.segments; s++) total += load_part(partial + s * m * k + i * k + j, k - j);
                store_part(c + i * c_step + j, total, k - j);
            }
    }
}

constexpr int64_t SUM_RUN = 1024;   // pixels added in float before the sum goes on in double

// out[m] = sum over n, p of factor[n] a[n][m][p], in parallel over rows; without `factor` it is 1.
inline void row_sums(int64_t images, int64_t m, int64_t pixels, const Rows& a, float* out,
                     const float* factor = nullptr) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < m; row++) {
        double total = 0;
        for (int64_t image = 0; image < images; image++) {
            const float* from = a.data + image * a.image_step + row * a.row_step;
            double of_image = 0;
            for (int64_t begin = 0; begin < pixels; begin += SUM_RUN) {
                const int64_t end = std::min(pixels, begin + SUM_RUN);
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
