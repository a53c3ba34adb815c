// The end of a row: vectors of which only the first n floats exist. `load_part` and `store_part` with masks where the
// CPU has them.
#pragma once
#include "vec.h"

namespace jseg {

#if defined(__AVX512F__)
JSEG_INLINE V load_some(const float* p, int64_t n) {
    return n >= VL ? load(p) : (V)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
JSEG_INLINE void store_some(float* p, V v, int64_t n) {
    if (n >= VL) store(p, v);
    else _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
}
#else
JSEG_INLINE V load_some(const float* p, int64_t n) { return load_part(p, int(n)); }
JSEG_INLINE void store_some(float* p, V v, int64_t n) { store_part(p, v, int(n)); }
#endif

}  // namespace jseg
