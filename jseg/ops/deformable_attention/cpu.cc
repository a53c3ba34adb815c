// Weighted sums of values at points of several maps, see op.py. A pixel of one head is `width` floats in a row; the
// four of a point are read as rows. The gradient goes head by head: its sums run in the order of the queries, and no
// two threads write one pixel.
#include <algorithm>
#include <cmath>
#include "call.h"
#include "vec.h"

using namespace jseg;

namespace {

struct Sizes {
    int64_t n, cells, heads, width, queries, maps, count;
    int64_t h[16], w[16], first[16];

    explicit Sizes(const Call& call)
        : n(call.integer(0)), cells(call.integer(1)), heads(call.integer(2)), width(call.integer(3)),
          queries(call.integer(4)), maps(call.integer(5)), count(call.integer(6)) {
        int64_t at = 0;
        for (int64_t m = 0; m < maps; m++) {
            h[m] = call.integer(7 + 2 * m);
            w[m] = call.integer(8 + 2 * m);
            first[m] = at;
            at += h[m] * w[m];
        }
    }
};

// The four pixels of a point: the first float of each (-1 outside), its factor, and how that changes along x and y.
struct Taps {
    int64_t place[4];
    float factor[4], along_x[4], along_y[4];

    Taps(const Sizes& s, int64_t map, const float* point) {
        const float x = position(point[0], s.w[map]), y = position(point[1], s.h[map]);
        const float left = std::floor(x), top = std::floor(y), right = x - left, down = y - top;
        for (int k = 0; k < 4; k++) {
            const int64_t row = int64_t(top) + k / 2, column = int64_t(left) + k % 2;
            const bool inside = row >= 0 && row < s.h[map] && column >= 0 && column < s.w[map];
            const float share_y = k / 2 ? down : 1.0f - down, share_x = k % 2 ? right : 1.0f - right;
            place[k] = inside ? (s.first[map] + row * s.w[map] + column) * s.heads * s.width : -1;
            factor[k] = share_x * share_y;
            along_x[k] = (k % 2 ? 1.0f : -1.0f) * share_y * float(s.w[map]);
            along_y[k] = (k / 2 ? 1.0f : -1.0f) * share_x * float(s.h[map]);
        }
    }
    // In pixels; far outside, where all is 0, no farther than an integer can say. NaN becomes a place outside with a
    // NaN factor.
    static float position(float share, int64_t length) {
        const float at = share * float(length) - 0.5f;
        return at != at ? at : std::min(std::max(at, -2.0f), float(length) + 1.0f);
    }
};

// to += factor * from
JSEG_INLINE void add_row(float* to, const float* from, float factor, int64_t width) {
    for (int64_t d = 0; d < width; d += VL) {
        const int part = int(std::min<int64_t>(VL, width - d));
        store_part(to + d, load_part(to + d, part) + splat(factor) * load_part(from + d, part), part);
    }
}

JSEG_INLINE float product(const float* a, const float* b, int64_t width) {
    V total{};
    for (int64_t d = 0; d < width; d += VL) {
        const int part = int(std::min<int64_t>(VL, width - d));
        total += load_part(a + d, part) * load_part(b + d, part);
    }
    return sum(total);
}

}  // namespace

// in: value (N, S, G, D), points (N, Q, G, M, P, 2), weights (N, Q, G, M, P); out: y (N, Q, G, D); integers: N S G D Q
// M P, then H W of each map
JSEG_KERNEL(jseg_deformable_attention_forward) {
    const Sizes s(call);
    const float *value = call.in<float>(0), *points = call.in<float>(1), *weights = call.in<float>(2);
    float* y = call.out<float>(0);
#pragma omp parallel for schedule(static)
    for (int64_t job = 0; job < s.n * s.queries * s.heads; job++) {
        const int64_t picture = job / (s.queries * s.heads), head = job % s.heads;
        const float* from = value + picture * s.cells * s.heads * s.width + head * s.width;
        float* to = y + job * s.width;
        std::fill(to, to + s.width, 0.0f);
        for (int64_t i = 0; i < s.maps * s.count; i++) {
            const int64_t at = job * s.maps * s.count + i;
            const Taps taps(s, i / s.count, points + 2 * at);
            for (int k = 0; k < 4; k++) {
                const float factor = weights[at] * taps.factor[k];
                if (taps.place[k] >= 0) add_row(to, from + taps.place[k], factor, s.width);
                else if (factor != factor) std::fill(to, to + s.width, factor);
            }
        }
    }
}

// in: value, points, weights, dy (N, Q, G, D); out: gradients of the first three
JSEG_KERNEL(jseg_deformable_attention_backward) {
    const Sizes s(call);
    const float *value = call.in<float>(0), *points = call.in<float>(1), *weights = call.in<float>(2),
                *dy = call.in<float>(3);
    float *dvalue = call.out<float>(0), *dpoints = call.out<float>(1), *dweights = call.out<float>(2);
#pragma omp parallel for schedule(dynamic)
    for (int64_t job = 0; job < s.n * s.heads; job++) {
        const int64_t picture = job / s.heads, head = job % s.heads, step = s.heads * s.width;
        const int64_t start = picture * s.cells * step + head * s.width;
        for (int64_t cell = 0; cell < s.cells; cell++)
            std::fill(dvalue + start + cell * step, dvalue + start + cell * step + s.width, 0.0f);
        for (int64_t query = 0; query < s.queries; query++) {
            const int64_t row = (picture * s.queries + query) * s.heads + head;
            const float* slope = dy + row * s.width;
            for (int64_t i = 0; i < s.maps * s.count; i++) {
                const int64_t at = row * s.maps * s.count + i;
                const Taps taps(s, i / s.count, points + 2 * at);
                float total = 0.0f, x = 0.0f, y = 0.0f;
                for (int k = 0; k < 4; k++) {
                    if (taps.place[k] < 0) continue;
                    const float share = product(slope, value + start + taps.place[k], s.width);
                    add_row(dvalue + start + taps.place[k], slope, weights[at] * taps.factor[k], s.width);
                    total += taps.factor[k] * share;
                    x += taps.along_x[k] * share;
                    y += taps.along_y[k] * share;
                }
                dweights[at] = total;
                dpoints[2 * at] = weights[at] * x;
                dpoints[2 * at + 1] = weights[at] * y;
            }
        }
    }
}
