// Small matrix products in vectors along the columns of b:  c[i][j] (+)= sum_k a[i * rs + k * cs] * b[k * bs + j].
// Columns come in whole vectors; a is read one value at a time, so any strides do. Rows of tile height keep c in
// registers. gemm.h builds on `tile_sums`, with both factors packed.
#pragma once
#include "bfloat.h"
#include "vec.h"

namespace jseg {

// sums[i][v] = sum_k a[i * rs + k * cs] * (vector v of row k of b), all in registers. T: what the factors hold, see
// bfloat.h; depth counts lanes of 32 bits.
template <class T = Float32, int M, int NV>
JSEG_INLINE void tile_sums(int64_t depth, const float* a, int64_t rs, int64_t cs, const float* b, int64_t bs,
                           V (&sums)[M][NV]) {
#pragma GCC unroll 32
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sums[i][v] = V{};
    for (int64_t k = 0; k < depth; k++) {
        V row[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) row[v] = load(b + k * bs + v * VL);
#pragma GCC unroll 32
        for (int i = 0; i < M; i++) {
            const V s = T::splat(a + i * rs + k * cs);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) sums[i][v] = T::multiply_add(s, row[v], sums[i][v]);
        }
    }
}

template <int M, int NV>
JSEG_INLINE void product_tile(int64_t depth, const float* a, int64_t rs, int64_t cs, const float* b, int64_t bs,
                              float* c, int64_t ldc, bool add) {
    V sums[M][NV];
    tile_sums(depth, a, rs, cs, b, bs, sums);
#pragma GCC unroll 32
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            float* d = c + i * ldc + v * VL;
            store(d, add ? load(d) + sums[i][v] : sums[i][v]);
        }
}

template <int NV>
static void product_columns(int64_t rows, int64_t depth, const float* a, int64_t rs, int64_t cs, const float* b,
                            int64_t bs, float* c, int64_t ldc, bool add) {
    constexpr int M = VL == 16 ? (NV == 1 ? 16 : NV == 2 ? 12 : 6) : (NV == 1 ? 8 : NV == 2 ? 4 : 2);
    int64_t i = 0;
    if (rs == 1)   // known at compile time, neighbouring rows need no address of their own
        for (; i + M <= rows; i += M) product_tile<M, NV>(depth, a + i, 1, cs, b, bs, c + i * ldc, ldc, add);
    else
        for (; i + M <= rows; i += M) product_tile<M, NV>(depth, a + i * rs, rs, cs, b, bs, c + i * ldc, ldc, add);
    for (; i < rows; i++) product_tile<1, NV>(depth, a + i * rs, rs, cs, b, bs, c + i * ldc, ldc, add);
}

[[maybe_unused]]  // gemm.h needs tile_sums alone
static void product(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t rs, int64_t cs,
                    const float* b, int64_t bs, float* c, int64_t ldc, bool add) {
    int64_t j = 0;
    for (; j + 4 * VL <= columns; j += 4 * VL) product_columns<4>(rows, depth, a, rs, cs, b + j, bs, c + j, ldc, add);
    for (; j + 2 * VL <= columns; j += 2 * VL) product_columns<2>(rows, depth, a, rs, cs, b + j, bs, c + j, ldc, add);
    for (; j < columns; j += VL) product_columns<1>(rows, depth, a, rs, cs, b + j, bs, c + j, ldc, add);
}

}  // namespace jseg
