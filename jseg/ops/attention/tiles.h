// What the attention kernel is made of: matrices that are turned, exponentials, products of any size with an end of
// one's own.
#pragma once
#include <algorithm>

#include "lanes.h"
#include "product.h"
#include "tails.h"

namespace jseg {

constexpr int WIDE = VL == 16 ? 4 : 2, TALL = 6;   // vectors and rows of a tile of sums

// Turns a matrix: end(j, i, n, v) gets row j of the turned one, columns i ... i + VL, of which the first n exist (the
// rest is 0); begin(i, j, n) gives row i of the original, columns j ... j + VL, of which n exist.
template <class Begin, class End> JSEG_INLINE void turn(int64_t rows, int64_t columns, Begin begin, End end) {
    for (int64_t i = 0; i < rows; i += VL)
        for (int64_t j = 0; j < columns; j += VL) {
            const int64_t high = std::min<int64_t>(VL, rows - i), wide = std::min<int64_t>(VL, columns - j);
            V block[VL];
#pragma GCC unroll 16
            for (int64_t r = 0; r < VL; r++) block[r] = r < high ? begin(i + r, j, wide) : V{};
            interleave<VL>(block);
#pragma GCC unroll 16
            for (int64_t c = 0; c < VL; c++)
                if (c < wide) end(j + c, i, high, block[c]);
        }
}

// e^x for x of at most about 0, to 1e-7 of e^0 (not of e^x: a softmax asks for no more); from -87 down it stays
// at 1.6e-38.
JSEG_INLINE V exp_below_zero(V x) {
    const V shift = splat(12582912.0f), log2e = splat(1.44269504f);
    x = vmax(x, splat(-87.0f));
    const V rounded = x * log2e + shift, r = x * log2e - (rounded - shift);
    V p = splat(1.535335909e-4f);
    p = p * r + 1.33988752e-3f;
    p = p * r + 9.618437375e-3f;
    p = p * r + 5.550332469e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472029e-1f;
    p = p * r + 1.0f;
    return p * (V)(((VI)rounded << 23) + 0x3f800000);
}

// end(i, j, v) for all rows i and vectors of columns j gets v = sum_k a[i][k] b[k][j]; row k of b starts at b + k
// b_step and is whole vectors. a[i][k] is a[i * a_step + k], or, turned, a[k * a_step + i].
template <bool TURNED, int M, int NV, class End>
JSEG_INLINE void sum_tile(int64_t depth, const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t row,
                          int64_t column, End& end) {
    V sums[M][NV];
    if (TURNED) tile_sums(depth, a + row, 1, a_step, b + column, b_step, sums);
    else tile_sums(depth, a + row * a_step, a_step, 1, b + column, b_step, sums);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) end(row + i, column + v * VL, sums[i][v]);
}

template <bool TURNED, int NV, class End>
JSEG_INLINE void sum_rows(int64_t rows, int64_t depth, const float* a, int64_t a_step, const float* b, int64_t b_step,
                          int64_t column, End& end) {
    for (int64_t i = 0; i < rows;) {   // tiles of 6 rows; what would leave fewer than 4 is shared by two
        const int64_t left = rows - i, high = left >= 2 * TALL || left == TALL ? TALL
                                              : left > TALL                    ? (left + 1) / 2
                                                                               : left;
        if (high == 6) sum_tile<TURNED, 6, NV>(depth, a, a_step, b, b_step, i, column, end), i += 6;
        else if (high == 5) sum_tile<TURNED, 5, NV>(depth, a, a_step, b, b_step, i, column, end), i += 5;
        else if (high == 4) sum_tile<TURNED, 4, NV>(depth, a, a_step, b, b_step, i, column, end), i += 4;
        else sum_tile<TURNED, 1, NV>(depth, a, a_step, b, b_step, i, column, end), i += 1;
    }
}

template <bool TURNED, class End>
JSEG_INLINE void products(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_step, const float* b,
                          int64_t b_step, End end) {
    int64_t j = 0;
    for (; j + WIDE * VL <= columns; j += WIDE * VL) sum_rows<TURNED, WIDE>(rows, depth, a, a_step, b, b_step, j, end);
    if constexpr (WIDE > 2)
        for (; j + 2 * VL <= columns; j += 2 * VL) sum_rows<TURNED, 2>(rows, depth, a, a_step, b, b_step, j, end);
    for (; j < columns; j += VL) sum_rows<TURNED, 1>(rows, depth, a, a_step, b, b_step, j, end);
}

// c (rows of c_step floats) += a b
template <bool TURNED>
void add_product(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_step, const float* b,
                 int64_t b_step, float* c, int64_t c_step) {
    products<TURNED>(rows, columns, depth, a, a_step, b, b_step,
                     [=](int64_t i, int64_t j, V sums) __attribute__((always_inline)) {
                         store(c + i * c_step + j, load(c + i * c_step + j) + sums);
                     });
}

}  // namespace jseg
