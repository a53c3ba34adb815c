// 1x1 convolution and what surrounds it on CUDA, forward and backward, as matrix products (cuda_gemm.cuh).
//
//   z = W (is x + ih) + b,   y = shortcut + f s (gate act(z) + rs residual)   all but W and x optional; act: none, GELU
//   g = dy f s gate act'(z),   dx = W^T g,  dW = sum_n g x^T,  db = sum g,  dgate = dy act(z),  dresidual = dy f s,
//   ds = sum dy f (z + residual)                       (is, ih and rs are for inference: they have no gradient)
//
// Layout: x (N, C, P), y, gate, residual, shortcut (N, D, P) of type T with P = H W pixels; W (D, C), b, s, rs (D), f
// (N), is, ih (C), dW, db, ds float. One block: a tile of 128 x 128 or 64 x 64 channels by pixels; everything after the
// product happens as it is written. In the backward pass z is multiplied out again where it is needed, g stored as
// float in the workspace. dW is cut along the pixels; its parts are added in order: results repeat bit by bit.
#include "cuda_gemm.cuh"

namespace {
struct PointwiseShape {
    int64_t n, c, d, p;
    bool gelu;   // forward: some activation
    explicit PointwiseShape(const jseg::Call& call)
        : n(call.integer(0)), c(call.integer(1)), d(call.integer(2)), p(call.integer(3)), gelu(call.integer(4) != 0) {}
};

// W (scale x + shift) + b = W' x + b' with the scale and shift of a norm by running statistics; `later` receives
// `before`, a bias, plus the shift.
struct Fold {
    const float *w, *b, *weight, *bias, *mean, *variance, *before;
    float *w_out, *b_out, *scale, *later;
    int64_t first, c;   // first: row of W among those of all folds
    float eps;
};
constexpr int MOST_FOLDS = 7;
struct Folds {
    Fold each[MOST_FOLDS];
    int64_t count;
};

// One block per row of W.
static __global__ void __launch_bounds__(256) fold_norms(Folds folds) {
    JSEG_SHARED(double, room, 256 / jseg::WARP);
    int which = 0;
    while (which + 1 < folds.count && int64_t(blockIdx.x) >= folds.each[which + 1].first) which++;
    const Fold& f = folds.each[which];
    const int64_t row = int64_t(blockIdx.x) - f.first;
    double total = 0;
    for (int64_t j = threadIdx.x; j < f.c; j += 256) {
        const float scale = f.weight[j] / sqrtf(f.variance[j] + f.eps), shift = f.bias[j] - f.mean[j] * scale,
                    w = f.w[row * f.c + j];
        f.w_out[row * f.c + j] = w * scale;
        total += double(w) * double(shift);
        if (f.before && row == 0) f.scale[j] = scale, f.later[j] = f.before[j] + shift;
    }
    total = jseg::block_sum<256>(total, room);
    if (threadIdx.x == 0) f.b_out[row] = float(total + (f.b ? double(f.b[row]) : 0.0));
}
}  // namespace

// inputs x, for its type alone, then for each fold W, b or None, the norm's weight, bias, mean and variance, the bias
// that its shift is added to or None; outputs for each fold W', b' and, with the last input, the norm's scale and the
// sum; numbers: how many folds, then D C eps of each
JSEG_CUDA_KERNEL(jseg_pointwise_fold) {
    if (work.measuring()) return;
    Folds folds{};
    folds.count = call.integer(0);
    int64_t rows = 0;
    int out = 0;
    for (int i = 0; i < folds.count && i < MOST_FOLDS; i++) {
        const int in = 1 + 7 * i, number = 1 + 3 * i;
        Fold& f = folds.each[i];
        f = {call.in<float>(in), call.in<float>(in + 1), call.in<float>(in + 2), call.in<float>(in + 3),
             call.in<float>(in + 4), call.in<float>(in + 5), call.in<float>(in + 6), call.out<float>(out),
             call.out<float>(out + 1), nullptr, nullptr, rows, call.integer(number + 1), float(call.real(number + 2))};
        out += 2;
        if (f.before) f.scale = call.out<float>(out), f.later = call.out<float>(out + 1), out += 2;
        rows += call.integer(number);
    }
    JSEG_LAUNCH(fold_norms, rows, 256, folds);
}

// inputs x, W, b [, gate, residual, residual scale, scale, factor, shortcut, input scale, input shift], each but x and
// W or None; output y; integers: N C D P act (0 none, 1 GELU, 2 ReLU), one that is the CPU's, then where the columns of
// W begin and how long its rows are
JSEG_CUDA_KERNEL(jseg_pointwise_forward) {
    using namespace jseg;
    const PointwiseShape s(call);
    const bool affine = given(call, 9);
    float* folded = work.take<float>(affine ? s.d * (s.c + 1) : 0);
    if (work.measuring()) return;
    const float *w = affine ? folded : call.in<float>(1) + call.integer(6),
                *b = affine ? folded + s.d * s.c : call.in<float>(2);
    if (affine)
        JSEG_LAUNCH((fold_affine<float>), s.d, 256, call.in<float>(1), call.in<float>(2), call.in<float>(9),
                    call.in<float>(10), s.c, folded, folded + s.d * s.c);
    run_gemm(gemm_size(s.n, s.d, s.p, s.c), rows_of(w, 0, affine ? s.c : call.integer(7)),
             rows_of(call.in<T>(0), s.c * s.p, s.p),
             Ending<T>{call.out<T>(0), s.d, s.p, b, int(call.integer(4)), call.in<T>(3), call.in<T>(4), call.in<T>(8),
                       call.in<float>(5), call.in<float>(6), call.in<float>(7)});
}

// inputs x, W, b or None, dy [, gate, residual, scale, factor]; outputs dx, dW, db [, dgate or dresidual, dscale]
JSEG_CUDA_KERNEL(jseg_pointwise_backward) {
    using namespace jseg;
    const PointwiseShape s(call);
    const GemmSize weights = reduction_size(s.n, s.d, s.c, s.p);
    const bool again = s.gelu || call.input_count > 4, scaled = given(call, 6);
    const int64_t map = s.n * s.d * s.p;
    float *parts = work.take<float>(reduction_floats(weights)), *slope = work.take<float>(again ? map : 0),
          *terms = work.take<float>(scaled ? map : 0);
    if (work.measuring()) return;
    const auto w = call.in<float>(1);
    const auto x = call.in<T>(0), dy = call.in<T>(3);
    auto rest = [&](auto* g) {
        run_gemm(gemm_size(s.n, s.c, s.p, s.d), columns_of(w, 0, s.c), rows_of(g, s.d * s.p, s.p),
                 Store<T>{rows_of(call.out<T>(0), s.c * s.p, s.p), nullptr, false, false});
        run_reduction(weights, rows_of(g, s.d * s.p, s.p), columns_of(x, s.c * s.p, s.p), true, false, parts,
                      call.out<float>(1));
        using G = std::remove_const_t<std::remove_pointer_t<decltype(g)>>;
        JSEG_LAUNCH((row_sums<G>), s.d, 256, g, s.n, s.d, s.p, false, call.out<float>(2));
    };
    if (!again) return rest(dy);
    const T *gate = call.in<T>(4), *residual = call.in<T>(5);
    run_gemm(gemm_size(s.n, s.d, s.p, s.c), rows_of(w, 0, s.c), rows_of(x, s.c * s.p, s.p),
             EndingBack<T>{slope, s.d, s.p, dy, gate, residual, call.in<float>(2), call.in<float>(6), call.in<float>(7),
                           s.gelu, gate ? call.out<T>(3) : nullptr, residual ? call.out<T>(3) : nullptr,
                           scaled ? terms : nullptr});
    if (scaled) JSEG_LAUNCH((row_sums<float>), s.d, 256, terms, s.n, s.d, s.p, false, call.out<float>(4));
    rest(static_cast<const float*>(slope));
}
