// One AdamW step on CUDA: each value is read and written once, each gradient where it lies.
//
//   m += (g - m) share,  v = v beta2 + g^2 (1 - beta2),  w = w keep - rate m / (sqrt(v) root + eps)
//
// Layout: weights and moments (L) float, a multiple of 16; the gradient of a part is dense and the part begins at the
// next multiple of 16. One block: 8192 values by 256 threads, neighbours in a vector, and the sum of their squared
// gradients.
#include "cuda_base.cuh"

namespace {
using namespace jseg;

constexpr int MOST = 48, ALIGNED = 16, BLOCK = 8192;   // parts of a call; as in op.py

struct Parts {
    const float* gradient[MOST];
    int64_t size[MOST], end[MOST];   // `end` with the padding behind it
};
struct Numbers {
    float keep, rate, root, share, beta2, rest, eps;
};
struct Vectors {
    const float *w, *m, *v;
    float *new_w, *new_m, *new_v;
};

__global__ void __launch_bounds__(256)
    advance(Parts parts, Numbers n, Vectors vectors, int64_t length, float* squares) {
    JSEG_SHARED(float, room, 256 / WARP);
    const int64_t first = int64_t(blockIdx.x) * BLOCK, stop = first + BLOCK < length ? first + BLOCK : length;
    float total = 0.0f;
    int part = 0;
    for (int64_t at = first + threadIdx.x; at < stop; at += 256) {
        while (parts.end[part] <= at) part++;
        const int64_t i = at - (part ? parts.end[part - 1] : 0);
        const float g = i < parts.size[part] ? parts.gradient[part][i] : 0.0f, m_old = vectors.m[at];
        const float m = m_old + (g - m_old) * n.share, v = vectors.v[at] * n.beta2 + g * g * n.rest;
        vectors.new_m[at] = m;
        vectors.new_v[at] = v;
        vectors.new_w[at] = vectors.w[at] * n.keep - n.rate * m / (sqrtf(v) * n.root + n.eps);
        total += g * g;
    }
    total = block_sum<256>(total, room);
    if (threadIdx.x == 0) squares[blockIdx.x] = total;
}

}  // namespace

// inputs weights, exp_avg, exp_avg_sq (L), then a gradient for each part; outputs the three after the step, sums of
// squares of blocks; numbers keep rate root share beta2 eps
JSEG_CUDA_KERNEL(jseg_adamw_run) {
    if (work.measuring()) return;
    Parts parts{};
    int64_t length = 0;
    for (int i = 0; i + 3 < call.input_count; i++) {
        parts.gradient[i] = call.in<float>(3 + i);
        parts.size[i] = call.input_sizes[3 + i];
        parts.end[i] = length += ceil_div(parts.size[i], ALIGNED) * ALIGNED;
    }
    const Numbers n{float(call.real(0)), float(call.real(1)), float(call.real(2)), float(call.real(3)),
                    float(call.real(4)), float(1 - call.real(4)), float(call.real(5))};
    const Vectors vectors{call.in<float>(0),  call.in<float>(1),  call.in<float>(2),
                          call.out<float>(0), call.out<float>(1), call.out<float>(2)};
    JSEG_LAUNCH(advance, ceil_div(length, BLOCK), 256, parts, n, vectors, length, call.out<float>(3));
}
