// One AdamW step on the CPU: each value is read and written once, each gradient where it lies.
//     m += (g - m) share,  v = v beta2 + g^2 (1 - beta2),  w = w keep - rate m / (sqrt(v) root + eps)
// Blocks of fixed length go to the threads; a block's sum of squares does not depend on their number.
#include <algorithm>
#include <cmath>

#include "call.h"
#include "lanes.h"

using namespace jseg;

namespace {

constexpr int64_t ALIGN = 16, BLOCK = 8192;   // floats: where a part begins, what a thread takes at once; as in op.py
static_assert(BLOCK % ALIGN == 0 && ALIGN % VL == 0, "no vector may reach from one part or block into the next");

struct Numbers {
    V keep, rate, root, share, beta2, rest, eps;
    explicit Numbers(const Call& call)
        : keep(splat(float(call.real(0)))), rate(splat(float(call.real(1)))), root(splat(float(call.real(2)))),
          share(splat(float(call.real(3)))), beta2(splat(float(call.real(4)))), rest(splat(float(1 - call.real(4)))),
          eps(splat(float(call.real(5)))) {}
};

JSEG_INLINE V vsqrt(V x) {
    V y;
    for (int i = 0; i < VL; i++) y[i] = std::sqrt(x[i]);
    return y;
}

struct Vectors {
    const float *w, *m, *v;
    float *new_w, *new_m, *new_v;

    // Values at..at + VL, of which the first `left`, if any, have a gradient. Returns its squares.
    inline __attribute__((always_inline)) V advance(int64_t at, const float* gradient, int64_t left,
                                                    const Numbers& n) const {
        const V g = load_part(gradient, int(std::clamp<int64_t>(left, 0, VL))), m_old = load(m + at);
        const V m_new = m_old + (g - m_old) * n.share, v_new = load(v + at) * n.beta2 + g * g * n.rest;
        store(new_m + at, m_new);
        store(new_v + at, v_new);
        store(new_w + at, load(w + at) * n.keep - n.rate * m_new / (vsqrt(v_new) * n.root + n.eps));
        return g * g;
    }
};

}  // namespace

// in: weights, exp_avg, exp_avg_sq (L), then a gradient for each part; out: the three after the step, sums of squares
// of blocks; scalars: keep rate root share beta2 eps
JSEG_KERNEL(jseg_adamw_run) {
    const Numbers numbers(call);
    const Vectors vectors{call.in<float>(0),  call.in<float>(1),  call.in<float>(2),
                          call.out<float>(0), call.out<float>(1), call.out<float>(2)};
    float* squares = call.out<float>(3);
    const int parts = int(call.input_count) - 3;
    int64_t ends[64], length = 0;   // of each part, with the padding behind it
    for (int i = 0; i < parts; i++) ends[i] = length += round_up(call.input_sizes[3 + i], ALIGN);
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < (length + BLOCK - 1) / BLOCK; block++) {
            const int64_t stop = std::min(length, (block + 1) * BLOCK);
            int64_t at = block * BLOCK;
            V total{};
            for (int part = int(std::upper_bound(ends, ends + parts, at) - ends); at < stop; part++) {
                const int64_t begin = part ? ends[part - 1] : 0, filled = begin + call.input_sizes[3 + part];
                const float* gradient = call.in<float>(3 + part);
                for (const int64_t end = std::min(stop, ends[part]); at < end; at += VL)
                    total += vectors.advance(at, gradient + (at - begin), filled - at, numbers);
            }
            squares[block] = lanes_sum(total);
        }
    }
}
