// Reductions across the lanes of one vector by halving, and interleaving of vectors, without a trip through memory.
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

// One lane on: the last lane of `before`, then all but the last of `v`. And back: all but the first of `v`, then the
// first of `after`.
JSEG_INLINE V shifted_up(V before, V v) { return __builtin_shuffle(before, v, lane_index() + (VL - 1)); }
JSEG_INLINE V shifted_down(V v, V after) { return __builtin_shuffle(v, after, lane_index() + 1); }

// COUNT (a power of two) vectors become the same units in turn: unit * COUNT + i of the whole was unit of v[i]. A unit
// is one float or several: `low` and `high` name the lanes of the lower and the upper halves of two vectors in turn.
template <int COUNT>
JSEG_INLINE void interleave(V (&v)[COUNT], VI low, VI high) {
    static_assert((COUNT & (COUNT - 1)) == 0 && COUNT <= VL, "halves must meet");
#pragma GCC unroll 4
    for (int step = 1; step < COUNT; step *= 2) {
        V next[COUNT];
#pragma GCC unroll 8
        for (int i = 0; i < COUNT / 2; i++) {
            next[2 * i] = __builtin_shuffle(v[i], v[i + COUNT / 2], low);
            next[2 * i + 1] = __builtin_shuffle(v[i], v[i + COUNT / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; i++) v[i] = next[i];
    }
}

// The same for units of one float.
template <int COUNT>
JSEG_INLINE void interleave(V (&v)[COUNT]) {
    const VI lane = lane_index(), low = (lane >> 1) + (lane & 1) * VL;
    interleave<COUNT>(v, low, low + VL / 2);
}

}  // namespace jseg
