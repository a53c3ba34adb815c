// Reductions across the lanes of one vector by halving, without a trip through memory.
#pragma once
#include "vec.h"

namespace jseg {

JSEG_INLINE float lanes_sum(V v) {
    const VI lane = lane_index();
#pragma GCC unroll 4
    for (int half = VL / 2; half; half /= 2) v += __builtin_shuffle(v, lane ^ half);
    return v[0];
}

// A NaN in any lane wins.
JSEG_INLINE float lanes_max(V v) {
    const VI lane = lane_index();
#pragma GCC unroll 4
    for (int half = VL / 2; half; half /= 2) {
        const V other = __builtin_shuffle(v, lane ^ half);
        v = (other <= v) | (v != v) ? v : other;
    }
    return v[0];
}

JSEG_INLINE int32_t lanes_min(VI v) {
    const VI lane = lane_index();
#pragma GCC unroll 4
    for (int half = VL / 2; half; half /= 2) {
        const VI other = __builtin_shuffle(v, lane ^ half);
        v = other < v ? other : v;
    }
    return v[0];
}

}  // namespace jseg
