// The two kinds of factors of a product: single precision, and pairs of bfloat16 in one lane of 32 bits, two neighbours
// along the depth, whose products are summed in single precision. A packed matrix of either kind has `steps(k)` lanes
// where it has k values. Without AVX512_BF16 the pairs are taken apart: the same roundings of the factors, slower. With
// AMX-BF16 whole blocks of 16 lanes of the depth go to the tile unit (amx.h); a packed group of rows holds them row by
// row, so that one block is one tile.
#pragma once
#include "amx.h"
#include "vec.h"

namespace jseg {

struct Float32 {
    static constexpr bool NARROW = false;
    struct Scope {   // what a thread that computes products needs: nothing
        Scope() {}
    };
    static constexpr int64_t steps(int64_t k) { return k; }
    JSEG_INLINE V splat(const float* at) { return jseg::splat(*at); }
    JSEG_INLINE V multiply_add(V a, V b, V sum) { return sum + a * b; }
    JSEG_INLINE V load_steps(const float* from) { return load(from); }
    JSEG_INLINE float step(const float* from, int64_t column_step, bool) { (void)column_step; return *from; }
};

JSEG_INLINE VI bfloat_bits(V x) {   // rounded to the nearest, ties to even, in the upper half; NaN stays one
    const VI bits = (VI)x, rounded = bits + (((bits >> 16) & 1) + 0x7fff);
    return (x == x ? rounded : bits | 0x400000) & int32_t(0xffff0000);
}

struct BFloat16 {
    static constexpr bool NARROW = true;
#ifdef JSEG_TILES
    using Scope = TileScope;
#else
    using Scope = Float32::Scope;
#endif
    // Lanes of the depth that go to the tile unit, a whole number of blocks.
    static int64_t steps_of_tiles(int64_t steps) {
#ifdef JSEG_TILES
        return tiles_allowed() ? steps / TILE_STEPS * TILE_STEPS : 0;
#else
        return (void)steps, 0;
#endif
    }
    static constexpr int64_t steps(int64_t k) { return (k + 1) / 2; }
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    JSEG_INLINE V splat(const float* at) {
        int32_t bits;
        std::memcpy(&bits, at, 4);
        return (V)_mm512_set1_epi32(bits);
    }
    JSEG_INLINE V multiply_add(V a, V b, V sum) {
        return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
    // Lane i: even[i] and odd[i].
    JSEG_INLINE V pairs(V even, V odd) {
        const __m512i lanes = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                               6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return (V)_mm512_permutexvar_epi16(order, lanes);
    }
    // 2 VL neighbours: lane i holds values 2 i and 2 i + 1.
    JSEG_INLINE V load_steps(const float* from) {
        return (V)_mm512_cvtne2ps_pbh((__m512)load(from + VL), (__m512)load(from));
    }
#else
    JSEG_INLINE V splat(const float* at) {
        int32_t bits;
        std::memcpy(&bits, at, 4);
        return (V)(VI{} + bits);
    }
    JSEG_INLINE V multiply_add(V a, V b, V sum) {
        const VI high = VI{} + int32_t(0xffff0000);
        return sum + (V)((VI)a << 16) * (V)((VI)b << 16) + (V)((VI)a & high) * (V)((VI)b & high);
    }
    JSEG_INLINE V pairs(V even, V odd) {
        return (V)(((bfloat_bits(even) >> 16) & 0xffff) | bfloat_bits(odd));
    }
    JSEG_INLINE V load_steps(const float* from) {
        const V first = load(from), second = load(from + VL);
        const VI even = lane_index() * 2;
        return pairs(__builtin_shuffle(first, second, even), __builtin_shuffle(first, second, even + 1));
    }
#endif
    // One lane: from[0] and from[column_step], the second 0 where it is absent.
    JSEG_INLINE float step(const float* from, int64_t column_step, bool both) {
        return pairs(jseg::splat(from[0]), jseg::splat(both ? from[column_step] : 0.0f))[0];
    }
};

}  // namespace jseg
