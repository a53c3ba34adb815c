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
    bool gelu;
    explicit PointwiseShape(const jseg::Call& call)
        : n(call.integer(0)), c(call.integer(1)), d(call.integer(2)), p(call.integer(3)), gelu(call.integer(4) != 0) {}
};
}  // namespace

// inputs x, W, b [, gate, residual, residual scale, scale, factor, shortcut, input scale, input shift], each but x and
// W or None output y; integers: N C D P gelu
JSEG_CUDA_KERNEL(jseg_pointwise_forward) {
    using namespace jseg;
    const PointwiseShape s(call);
    const bool affine = given(call, 9);
    float* folded = work.take<float>(affine ? s.d * (s.c + 1) : 0);
    if (work.measuring()) return;
    const float *w = affine ? folded : call.in<float>(1), *b = affine ? folded + s.d * s.c : call.in<float>(2);
    if (affine)
        JSEG_LAUNCH((fold_affine<float>), s.d, 256, call.in<float>(1), call.in<float>(2), call.in<float>(9),
                    call.in<float>(10), s.c, folded, folded + s.d * s.c);
    run_gemm(gemm_size(s.n, s.d, s.p, s.c), rows_of(w, 0, s.c), rows_of(call.in<T>(0), s.c * s.p, s.p),
             Ending<T>{call.out<T>(0), s.d, s.p, b, s.gelu, call.in<T>(3), call.in<T>(4), call.in<T>(8),
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
