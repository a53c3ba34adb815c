// The mask operator of PSANet on the CPU: weights by relative position (N, mh * mw, H, W) to and from weights by
// absolute position (N, H * W, H, W).
//
//   collect:     y[n][p][q] = x[n][(p - q + half) in the window][q]
//   distribute:  y[n][q][p] = the same value
//
// Along a row of x, q and p both move one pixel right, so in y the values lie H * W + 1 apart: each run of x is one
// strided run. Every value has a place of its own, so rows of the window go to the threads without meeting.
#include <algorithm>
#include <cstring>

#include "call.h"

using namespace jseg;

namespace {

struct Shape {
    int64_t n, h, w, rows, columns;
    bool distribute;
    explicit Shape(const Call& call)
        : n(call.integer(0)), h(call.integer(1)), w(call.integer(2)), rows(call.integer(3)), columns(call.integer(4)),
          distribute(call.integer(5) != 0) {}
    int64_t area() const { return h * w; }
};

// visit(x, y, count): `count` values from x on, one after another, belong to every (area + 1)th value from y on;
// skip(x, count): these have no place in y.
template <class Visit, class Skip> void each_run(const Shape& s, Visit&& visit, Skip&& skip) {
    const int64_t area = s.area(), half_rows = (s.rows - 1) / 2, half_columns = (s.columns - 1) / 2;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < s.n; n++)
        for (int64_t channel = 0; channel < s.rows * s.columns; channel++) {
            const int64_t down = channel / s.columns - half_rows, right = channel % s.columns - half_columns;
            const int64_t first = std::clamp<int64_t>(-right, 0, s.w);
            const int64_t last = std::clamp<int64_t>(s.w - right, first, s.w);
            for (int64_t row = 0; row < s.h; row++) {
                const int64_t x = ((n * s.rows * s.columns + channel) * s.h + row) * s.w, other = row + down;
                if (other < 0 || other >= s.h) {
                    skip(x, s.w);
                    continue;
                }
                skip(x, first);
                skip(x + last, s.w - last);
                const int64_t here = row * s.w + first, there = other * s.w + first + right;
                const int64_t pair = s.distribute ? here * area + there : there * area + here;
                visit(x + first, n * area * area + pair, last - first);
            }
        }
}

}  // namespace

// in: x; out: y; scalars: N, H, W, mh, mw, distribute
JSEG_KERNEL(jseg_psa_mask_forward) {
    const Shape s(call);
    const float* x = call.in<float>(0);
    float* y = call.out<float>(0);
    const int64_t step = s.area() + 1, rows = s.n * s.area();
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) std::memset(y + row * s.area(), 0, s.area() * sizeof(float));
    each_run(
        s,
        [=](int64_t from, int64_t to, int64_t count) {
            for (int64_t i = 0; i < count; i++) y[to + i * step] = x[from + i];
        },
        [](int64_t, int64_t) {});
}

// in: dy; out: dx; scalars as forward
JSEG_KERNEL(jseg_psa_mask_backward) {
    const Shape s(call);
    const float* dy = call.in<float>(0);
    float* dx = call.out<float>(0);
    const int64_t step = s.area() + 1;
    each_run(
        s,
        [=](int64_t to, int64_t from, int64_t count) {
            for (int64_t i = 0; i < count; i++) dx[to + i] = dy[from + i * step];
        },
        [=](int64_t to, int64_t count) { std::fill(dx + to, dx + to + count, 0.0f); });
}
