// What a convolution is given, and how rows of its input are read: with zeros where the picture ends.
#pragma once
#include <algorithm>

#include "lanes.h"
#include "tails.h"

namespace jseg {

struct Shape {
    int64_t images, c, height, width, d, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
        groups, out_height, out_width;
};

// What follows while the sums are still at hand:  y = activation(scale sum + shift + residual).
struct Ending {   // null where absent; residual has the layout of y
    const float *scale, *shift, *residual;
    bool relu;
    float* y;

    V factor(int64_t channel) const { return splat(scale ? scale[channel] : 1.0f); }
    V offset(int64_t channel) const { return splat(shift ? shift[channel] : 0.0f); }
    // `count` <= VL results from y + at on, whose affine map is done.
    void put(int64_t at, V value, int64_t count) const {
        if (residual) value += load_some(residual + at, count);
        store_some(y + at, relu ? vmax(value, V{}) : value, count);
    }
    void put_one(int64_t at, float value) const {
        if (residual) value += residual[at];
        y[at] = relu && value < 0.0f ? 0.0f : value;
    }
};

// Values [column, column + VL) of a row, zeros for those outside.
JSEG_INLINE V load_inside(const float* row, int64_t column, int64_t width) {
    if (column >= width || column <= -VL) return V{};
    const int64_t before = column < 0 ? -column : 0, end = std::min<int64_t>(VL, width - column);
#if defined(__AVX512F__)
    return (V)_mm512_maskz_loadu_ps(__mmask16(((1u << end) - 1) & ~((1u << before) - 1)), row + column);
#else
    float part[VL] = {};
    for (int64_t i = before; i < end; i++) part[i] = row[column + i];
    return load(part);
#endif
}

// `length` values of a row of `width`, `step` apart from `column` on, which may lie outside; zeros for those that do.
inline void copy_line(const float* row, int64_t width, int64_t column, int64_t length, int64_t step, float* line) {
    const int64_t before = std::min(length, column < 0 ? (step - 1 - column) / step : 0),
                  end = std::clamp<int64_t>(width > column ? (width - column + step - 1) / step : 0, before, length);
    const float* from = row + column;
    for (int64_t i = 0; i < before; i++) line[i] = 0;
    if (step == 1)
        for (int64_t i = before; i < end; i += VL) store_some(line + i, load_some(from + i, end - i), end - i);
    else
        for (int64_t i = before; i < end; i++) line[i] = from[i * step];
    for (int64_t i = end; i < length; i++) line[i] = 0;
}

// COUNT (2 or 4) vectors of values in turn -> their phases: lane i of v[p] becomes value COUNT i + p. A value may be a
// unit of several floats: `even` and `odd` name the lanes of every second unit of two vectors. Back: `interleave`.
template <int COUNT> JSEG_INLINE void deinterleave(V (&v)[COUNT], VI even, VI odd) {
#pragma GCC unroll 2
    for (int step = 1; step < COUNT; step *= 2) {
        V next[COUNT];
#pragma GCC unroll 2
        for (int i = 0; i < COUNT / 2; i++) {
            next[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], even);
            next[i + COUNT / 2] = __builtin_shuffle(v[2 * i], v[2 * i + 1], odd);
        }
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; i++) v[i] = next[i];
    }
}

}  // namespace jseg
