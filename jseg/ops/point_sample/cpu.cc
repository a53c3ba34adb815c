// Values of maps at points, see op.py. The pixels and weights of a picture's points are found once; then each plane is
// one pass over them, which in the backward pass adds in the order of the points.
#include <algorithm>
#include <cmath>
#include <vector>
#include "call.h"

using namespace jseg;

namespace {

// A point reads up to four pixels; one beyond the edge has weight 0 and place 0.
struct Tap {
    int32_t place[4];
    float weight[4];
};

struct Points {
    int64_t n, c, h, w, count;
    std::vector<Tap> taps;

    Points(const Call& call, const float* points)
        : n(call.integer(0)), c(call.integer(1)), h(call.integer(2)), w(call.integer(3)), count(call.integer(4)),
          taps(n * count) {
        const bool nearest = call.integer(5) != 0, align = call.integer(6) != 0;
#pragma omp parallel for
        for (int64_t i = 0; i < n * count; i++) {
            const float x = position(points[2 * i], w, align), y = position(points[2 * i + 1], h, align);
            taps[i] = Tap{};
            if (nearest) {
                put(taps[i], 0, int64_t(std::nearbyint(y)), int64_t(std::nearbyint(x)), 1.0f);
                continue;
            }
            const float left = std::floor(x), top = std::floor(y), right = x - left, down = y - top;
            put(taps[i], 0, int64_t(top), int64_t(left), (1.0f - down) * (1.0f - right));
            put(taps[i], 1, int64_t(top), int64_t(left) + 1, (1.0f - down) * right);
            put(taps[i], 2, int64_t(top) + 1, int64_t(left), down * (1.0f - right));
            put(taps[i], 3, int64_t(top) + 1, int64_t(left) + 1, down * right);
        }
    }
    // In pixels; far outside, where all is 0, no farther than an integer can say.
    static float position(float share, int64_t length, bool align) {
        const float at = align ? share * float(length - 1) : share * float(length) - 0.5f;
        return std::min(std::max(at, -2.0f), float(length) + 1.0f);
    }
    void put(Tap& tap, int i, int64_t row, int64_t column, float weight) const {
        if (row < 0 || row >= h || column < 0 || column >= w) return;
        tap.place[i] = int32_t(row * w + column);
        tap.weight[i] = weight;
    }
};

}  // namespace

// in: x (N, C, H, W), points (N, P, 2); out: y (N, C, P); integers: N C H W P nearest align_corners
JSEG_KERNEL(jseg_point_sample_forward) {
    const float* x = call.in<float>(0);
    float* y = call.out<float>(0);
    const Points points(call, call.in<float>(1));
#pragma omp parallel for
    for (int64_t plane = 0; plane < points.n * points.c; plane++) {
        const Tap* taps = points.taps.data() + plane / points.c * points.count;
        const float* from = x + plane * points.h * points.w;
        const float* next = plane + 1 < points.n * points.c ? from + points.h * points.w : from;
        float* to = y + plane * points.count;
        for (int64_t i = 0; i < points.count; i++) {
            const Tap& t = taps[i];
            // the same pixels of the next plane: points lie anywhere, the processor cannot foresee them
            __builtin_prefetch(next + t.place[0]);
            __builtin_prefetch(next + t.place[2]);
            to[i] = (t.weight[0] * from[t.place[0]] + t.weight[1] * from[t.place[1]]) +
                    (t.weight[2] * from[t.place[2]] + t.weight[3] * from[t.place[3]]);
        }
    }
}

// in: dy (N, C, P), points; out: dx (N, C, H, W)
JSEG_KERNEL(jseg_point_sample_backward) {
    const float* dy = call.in<float>(0);
    float* dx = call.out<float>(0);
    const Points points(call, call.in<float>(1));
#pragma omp parallel for
    for (int64_t plane = 0; plane < points.n * points.c; plane++) {
        const Tap* taps = points.taps.data() + plane / points.c * points.count;
        const float* from = dy + plane * points.count;
        float* to = dx + plane * points.h * points.w;
        std::fill(to, to + points.h * points.w, 0.0f);
        for (int64_t i = 0; i < points.count; i++)
            for (int k = 0; k < 4; k++) to[taps[i].place[k]] += taps[i].weight[k] * from[i];
    }
}
