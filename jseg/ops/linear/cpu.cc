// Products of tokens with a matrix on the CPU, with the tiles of include/gemm.h: tokens are the rows, output channels
// the lanes.
//     U = X W^T + b,  Y = shortcut + factor[picture] activation(U)                          (all but X and W optional)
//     S = factor dY activation'(U),  dX = S W,  dW = S^T X,  db = sum of S over tokens
// The matrix is packed once into panels of output channels, tokens block by block. Sums over tokens are taken over
// fixed runs and those are added in fixed order: results do not depend on the number of threads.
#include "call.h"
#include "gemm.h"

using namespace jseg;

namespace {

constexpr int64_t DEPTH = 512, ROWS = 12 * MR;   // a panel and a block of tokens so deep stay in second-level cache

struct Product {   // rows x columns, sums of depth k
    int64_t rows, k, columns;
    int64_t panels() const { return (columns + PANEL - 1) / PANEL; }
    int64_t matrix_size() const { return panels() * k * PANEL; }
    int64_t thread_size() const { return ROWS * (std::min(k, DEPTH) + (k > DEPTH ? panels() : 1) * PANEL); }
    int64_t size() const { return matrix_size() + omp_get_max_threads() * thread_size(); }
};

constexpr int64_t NARROW = 2 * VL;   // columns

// Rows [first, last) of X (rows, k) times a panel of at most NARROW columns, without a packed copy of X and with the
// sums in registers until they are finished: for so few columns the rest would take as long as the product.
template <class Finish>
__attribute__((noinline)) void narrow_rows(int64_t first, int64_t last, int64_t k, const float* x, const float* panel,
                                           int64_t columns, float* packed, Finish finish) {
    const int64_t left = std::min<int64_t>(VL, columns), right = columns - left;
    int64_t row = first;
    for (; row + MR <= last; row += MR) {
        V sums[MR][2];
        tile_sums(k, x + row * k, k, 1, panel, PANEL, sums);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            finish(row + i, 0, left, sums[i][0]);
            if (right) finish(row + i, VL, right, sums[i][1]);
        }
    }
    if (row == last) return;
    pack_group(last - row, k, x + row * k, k, 1, packed);
    for (; row < last; row++, packed++) {
        V sums[1][2];
        tile_sums(k, packed, 0, MR, panel, PANEL, sums);
        finish(row, 0, left, sums[0][0]);
        if (right) finish(row, VL, right, sums[0][1]);
    }
}

// finish(row, column, count, sums) for X (rows, k) B (k, columns): `count` <= VL channels from `column` on.
// B[j][i] is b[j * b_step + i] or, turned, b[i * b_step + j]. `memory` holds p.size() floats. LIGHT: `finish` leaves
// registers to a product. T: what the factors are rounded to; the narrow product of few columns stays as it is.
template <bool LIGHT, class T = Float32, class Finish>
void token_product(const Product& p, const float* x, const float* b, int64_t b_step, bool turned, float* memory,
                   Finish&& finish) {
    const int64_t blocks = (p.rows + ROWS - 1) / ROWS, panels = p.panels(),
                  splits = std::clamp<int64_t>(4 * omp_get_max_threads() / blocks, 1, panels);
    const bool narrow = LIGHT && p.columns <= NARROW && p.k <= DEPTH;
#pragma omp parallel
    {
        NoDenormals guard;
        typename T::Scope scope;
        const auto end = finish;   // a copy of this thread's own: what it holds stays in registers through every store
        float *mine = memory + p.matrix_size() + omp_get_thread_num() * p.thread_size(),
              *sofar = mine + ROWS * std::min(p.k, DEPTH);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < panels; i++) {
            const int64_t count = std::min<int64_t>(PANEL, p.columns - i * PANEL);
            float* to = memory + i * p.k * PANEL;
            if (turned) pack_turned(count, p.k, b + i * PANEL * b_step, b_step, to);
            else pack_panel(p.k, count, b + i * PANEL, b_step, to);
            if (!narrow) narrow_panel<T>(p.k, to);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < blocks * splits; job++) {
            const int64_t first = job / splits * ROWS, rows = std::min(ROWS, p.rows - first), split = job % splits;
            if constexpr (LIGHT)
                if (narrow) {
                    narrow_rows(first, first + rows, p.k, x, memory, p.columns, mine, end);
                    continue;
                }
            for (int64_t k0 = 0; k0 < p.k; k0 += DEPTH) {
                const int64_t depth = std::min(DEPTH, p.k - k0);
                const bool last = k0 + depth == p.k;
                for (int64_t r = 0; r < rows; r += MR)
                    pack_group<T>(std::min<int64_t>(MR, rows - r), depth, x + (first + r) * p.k + k0, p.k, 1,
                                  mine + r * T::steps(depth));
                for (int64_t i = panels * split / splits; i < panels * (split + 1) / splits; i++) {
                    const int64_t count = std::min<int64_t>(PANEL, p.columns - i * PANEL);
                    float* kept = sofar + (p.k > DEPTH ? i * ROWS * PANEL : 0);
                    const auto keep = [=](int64_t row, int v, V sums) __attribute__((always_inline)) {
                        float* at = kept + row * PANEL + v * VL;
                        store(at, k0 ? load(at) + sums : sums);
                    };
                    panel_product<T>(0, rows, depth, mine, memory + (i * p.k + T::steps(k0)) * PANEL, count, keep);
                    for (int64_t row = 0; row < rows && last;
                         row++)   // apart from the product, which needs all registers
                        for (int64_t j = 0; j < count; j += VL)
                            end(first + row, i * PANEL + j, std::min<int64_t>(VL, count - j),
                                load(kept + row * PANEL + j));
                }
            }
        }
    }
}

// C (m, k) = A^T B for A (rows, m) and B (rows, k), and sums (m) = the sum of A over rows. `memory`: PixelSums(m, k, 1,
// rows).size() floats.
void token_sums(int64_t rows, int64_t m, int64_t k, const float* a, const float* b, float* c, float* memory) {
    const PixelSums cut(m, k, 1, rows);
    float *partial = memory, *thread_memory = memory + cut.partial_size();
#pragma omp parallel
    {
        NoDenormals guard;
        float *a_packed = thread_memory + omp_get_thread_num() * PixelSums::thread_size(),
              *panel = a_packed + SUM_M * SUM_P;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < cut.segments * cut.m_blocks * cut.k_blocks; job++) {
            const int64_t segment = job / (cut.m_blocks * cut.k_blocks), m0 = job / cut.k_blocks % cut.m_blocks * SUM_M,
                          k0 = job % cut.k_blocks * SUM_K;
            const int64_t high = std::min(SUM_M, m - m0), wide = std::min(SUM_K, k - k0);
            const int64_t first = cut.chunks * segment / cut.segments, last = cut.chunks * (segment + 1) / cut.segments;
            for (int64_t chunk = first; chunk < last; chunk++) {
                const int64_t p = chunk * SUM_P, length = std::min(SUM_P, rows - p);
                for (int64_t r = 0; r < high; r += MR)
                    pack_group(std::min<int64_t>(MR, high - r), length, a + p * m + m0 + r, 1, m,
                               a_packed + r * length);
                for (int64_t j = 0; j < wide; j += PANEL) {
                    const int64_t count = std::min<int64_t>(PANEL, wide - j);
                    pack_panel(length, count, b + p * k + k0 + j, k, panel);
                    panel_product(0, high, length, a_packed, panel, count,
                                  [&](int64_t row, int v, V sums) __attribute__((always_inline)) {
                                      float* at = partial + (segment * m + m0 + row) * k + k0 + j + v * VL;
                                      const int64_t here = count - v * VL;
                                      store_part(at, chunk > first ? load_part(at, here) + sums : sums, here);
                                  });
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m * k; i += VL) {
            V total{};
            for (int64_t s = 0; s < cut.segments; s++) total += load_part(partial + s * m * k + i, m * k - i);
            store_part(c + i, total, m * k - i);
        }
    }
}

constexpr int64_t RUN = 256;   // tokens added in float before the sum goes on in double

// sums (m) of A (rows, m) over rows. `memory`: ceil(rows / RUN) * m floats.
void column_sums(int64_t rows, int64_t m, const float* a, float* sums, float* memory) {
    const int64_t runs = (rows + RUN - 1) / RUN;
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t run = 0; run < runs; run++)
            for (int64_t j = 0; j < m; j += VL) {
                V total{};
                for (int64_t row = run * RUN; row < std::min(rows, (run + 1) * RUN); row++)
                    total += load_part(a + row * m + j, m - j);
                store_part(memory + run * m + j, total, m - j);
            }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < m; j++) {
            double total = 0;
            for (int64_t run = 0; run < runs; run++) total += memory[run * m + j];
            sums[j] = float(total);
        }
    }
}

template <class T>
void forward(const Call& call) {
    const int64_t n = call.integer(0), tokens = call.integer(1), c = call.integer(2), d = call.integer(3),
                  with_gelu = call.integer(4);
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *bias = call.in<float>(2),
                *factor = call.in<float>(3), *shortcut = call.in<float>(4);
    float *y = call.out<float>(0), *u = call.output_count > 1 ? call.out<float>(1) : nullptr;
    const Product p{n * tokens, c, d};
    float* memory = scratch(p.size());
    if (with_gelu)
        token_product<false, T>(p, x, weight, c, true, memory,
                      [&](int64_t row, int64_t j, int64_t count, V sums) __attribute__((always_inline)) {
                          if (bias) sums += load_part(bias + j, count);
                          if (u) store_part(u + row * d + j, sums, count);
                          store_part(y + row * d + j, gelu(sums), count);
                      });
    else if (factor || shortcut)
        token_product<true, T>(p, x, weight, c, true, memory,
                      [=](int64_t row, int64_t j, int64_t count, V sums) __attribute__((always_inline)) {
                          if (bias) sums += load_part(bias + j, count);
                          if (factor) sums *= factor[row / tokens];
                          store_part(y + row * d + j, shortcut ? sums + load_part(shortcut + row * d + j, count) : sums,
                                     count);
                      });
    else
        token_product<true, T>(p, x, weight, c, true, memory,
                      [=](int64_t row, int64_t j, int64_t count, V sums) __attribute__((always_inline)) {
                          store_part(y + row * d + j, bias ? sums + load_part(bias + j, count) : sums, count);
                      });
}

}  // namespace

// in: x (N, T, C), weight (D, C), bias (D), factor (N), shortcut (N, T, D), each of the last three or absent; out: y
// (N, T, D) and, with GELU and if wanted, U (N, T, D); integers: N T C D gelu bf16
JSEG_KERNEL(jseg_linear_forward) {
    if (call.integer(5)) forward<BFloat16>(call);
    else forward<Float32>(call);
}

// in: x, weight, factor and U, each of the two or absent, dy (N, T, D); out: dx (N, T, C), dweight (D, C), dbias (D);
// integers as forward
JSEG_KERNEL(jseg_linear_backward) {
    const int64_t n = call.integer(0), tokens = call.integer(1), c = call.integer(2), d = call.integer(3),
                  rows = n * tokens;
    const float *x = call.in<float>(0), *weight = call.in<float>(1), *factor = call.in<float>(2),
                *u = call.in<float>(3), *dy = call.in<float>(4);
    float *dx = call.out<float>(0), *dweight = call.out<float>(1), *dbias = call.out<float>(2);
    const Product back{rows, d, c};
    const int64_t shared =
        round_up(std::max({back.size(), PixelSums(d, c, 1, rows).size(), (rows + RUN - 1) / RUN * d}), 16);
    float *memory = scratch(shared + (u || factor ? rows * d : 0)), *s = memory + shared;
    if (u || factor) {
#pragma omp parallel
        {
            NoDenormals guard;
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row++)
                for (int64_t j = 0; j < d; j += VL) {
                    V slope = load_part(dy + row * d + j, d - j);
                    if (factor) slope *= factor[row / tokens];
                    if (u) slope *= gelu_slope(load_part(u + row * d + j, d - j));
                    store_part(s + row * d + j, slope, d - j);
                }
        }
    }
    const float* slope = u || factor ? s : dy;
    token_product<true>(back, slope, weight, c, false, memory,
                  [=](int64_t row, int64_t j, int64_t count, V sums)
                      __attribute__((always_inline)) { store_part(dx + row * c + j, sums, count); });
    token_sums(rows, d, c, slope, x, dweight, memory);
    column_sums(rows, d, slope, dbias, memory);
}
