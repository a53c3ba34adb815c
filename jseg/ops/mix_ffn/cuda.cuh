// Y = shortcut + f s (W2 gelu(dw3x3(W1 (is X + ih) + b1) + bd) + b2) on CUDA, forward and backward; the hidden tensor
// is never saved.
//
//   U = W1 X + b1,  A = dw(U) + bd,  G = gelu(A),  Y = W2 G + b2     (s per channel, f per picture, shortcut: optional)
//   dY' = f dY,  M = sum_n dY' G^T,  S = sum dY':   dW2 = s M,  db2 = s S,  ds = sum_e W2 M + b2 S
//   dG = (s W2)^T dY',  dA = dG gelu'(A),  ddw = sum dA U(+tap),  dbd = sum dA,
//   dU = dw^T(dA),  dW1 = dU X^T,  db1 = sum dU,  dX = W1^T dU         (is, ih: inference only, no gradient)
//
// Layout: X (N, C, P), Y (N, D, P) of type T, P = H W; hidden tensors (images, E, P) in the workspace, U and G of
// type T, their gradients float, for as many images at once as fit into 256 MiB (at least one); parameters and their
// gradients float. U and A are computed again in the backward pass. The products are those of cuda_gemm.cuh, the 3x3
// filter with its GELU and their backward pass the tiles of cuda_depthwise.cuh. Gradients of parameters are added
// over parts and groups of images in order: results repeat bit by bit.
#include "cuda_depthwise.cuh"
#include "cuda_gemm.cuh"

namespace {
using namespace jseg;

#ifndef JSEG_HIDDEN_BYTES
#define JSEG_HIDDEN_BYTES (256 << 20)   // tests make it small, so that images go in groups
#endif

struct MixShape {
    int64_t n, c, e, d, p, group;
    int h, w;
    MixShape(const Call& call, int64_t hidden_bytes)   // of all hidden tensors, for each of their elements
        : n(call.integer(0)), c(call.integer(1)), e(call.integer(2)), d(call.integer(3)),
          p(call.integer(4) * call.integer(5)), h(int(call.integer(4))), w(int(call.integer(5))) {
        group = JSEG_HIDDEN_BYTES / (e * p * hidden_bytes);
        group = group < 1 ? 1 : group < n ? group : n;
    }
    int64_t images(int64_t first) const { return first + group < n ? group : n - first; }
    int64_t hidden() const { return group * e * p; }
    DepthwiseShape filter(int64_t images) const { return same_depthwise(images, e, h, w, 3, 3, true); }
};

// out (batches, rows, columns) = x scale[row] + shift[row], times factor[batch]; what is null is left out. A thread an
// element.
template <class T>
__global__ void affine_rows(const T* x, int64_t batches, int64_t rows, int64_t columns, const float* scale,
                            const float* shift, const float* factor, float* out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= batches * rows * columns) return;
    const int64_t row = at / columns % rows;
    out[at] = (to_float(x[at]) * (scale ? scale[row] : 1.0f) + (shift ? shift[row] : 0.0f)) *
              (factor ? factor[at / columns / rows] : 1.0f);
}

// U of some images.
template <class T>
void expand(const MixShape& s, const float* w1, const float* b1, const T* x, int64_t images, T* u) {
    run_gemm(gemm_size(images, s.e, s.p, s.c), rows_of(w1, 0, s.c), rows_of(x, s.c * s.p, s.p),
             Store<T>{rows_of(u, s.e * s.p, s.p), b1, false, false});
}

// M -> dW2 and ds, S -> db2; one block per row d.
static __global__ void __launch_bounds__(256) finish_scale(const float* w2, const float* b2, const float* scale,
                                                           int64_t e, float* dw2, float* db2, float* dscale) {
    JSEG_SHARED(double, room, 256 / WARP);
    const int64_t d = blockIdx.x;
    double total = 0;
    for (int64_t i = threadIdx.x; i < e; i += 256) {
        total += double(w2[d * e + i]) * dw2[d * e + i];
        dw2[d * e + i] *= scale[d];
    }
    total = block_sum<256>(total, room);
    if (threadIdx.x) return;
    dscale[d] = float(total + double(b2[d]) * db2[d]);
    db2[d] *= scale[d];
}

// Both products that read dY of a group: M and dG.
template <class G, class T>
void back_through_fc2(const MixShape& s, const GemmSize& size, const G* dy, const float* w2, const T* g, bool more,
                      float* parts, float* dw2, float* db2, float* dg) {
    run_reduction(size, rows_of(dy, s.d * s.p, s.p), columns_of(g, s.e * s.p, s.p), true, more, parts, dw2);
    JSEG_LAUNCH((row_sums<G>), s.d, 256, dy, size.batches, s.d, s.p, more, db2);
    run_gemm(gemm_size(size.batches, s.e, s.p, s.d), columns_of(w2, 0, s.e), rows_of(dy, s.d * s.p, s.p),
             Store<float>{rows_of(dg, s.e * s.p, s.p), nullptr, false, false});
}

}  // namespace

// inputs X, W1, b1, dw, bd, W2, b2 [, scale, factor, shortcut, input scale, input shift]; output Y; integers: N C E D H
// W
JSEG_CUDA_KERNEL(jseg_mix_ffn_forward) {
    const MixShape s(call, 2 * int64_t(sizeof(T)));
    const bool affine = given(call, 10);
    T *u = work.take<T>(s.hidden()), *g = work.take<T>(s.hidden());
    float* folded = work.take<float>(affine ? s.e * (s.c + 1) : 0);
    if (work.measuring()) return;
    const float *w1 = affine ? folded : call.in<float>(1), *b1 = affine ? folded + s.e * s.c : call.in<float>(2);
    if (affine)
        JSEG_LAUNCH((fold_affine<float>), s.e, 256, call.in<float>(1), call.in<float>(2), call.in<float>(10),
                    call.in<float>(11), s.c, folded, folded + s.e * s.c);
    const float* factor = call.in<float>(8);
    const T* shortcut = call.in<T>(9);
    for (int64_t first = 0; first < s.n; first += s.group) {
        const int64_t images = s.images(first), out = first * s.d * s.p;
        expand(s, w1, b1, call.in<T>(0) + first * s.c * s.p, images, u);
        run_depthwise(s.filter(images), static_cast<const T*>(u), call.in<float>(3), call.in<float>(4), g);
        run_gemm(gemm_size(images, s.d, s.p, s.e), rows_of(call.in<float>(5), 0, s.e),
                 rows_of(static_cast<const T*>(g), s.e * s.p, s.p),
                 Ending<T>{call.out<T>(0) + out, s.d, s.p, call.in<float>(6), false, nullptr, nullptr,
                           shortcut ? shortcut + out : nullptr, nullptr, call.in<float>(7),
                           factor ? factor + first : nullptr});
    }
}

// inputs X, W1, b1, dw, bd, W2, b2, dY, scale or None, factor or None; outputs: the gradients of the first seven, then
// of the scale
JSEG_CUDA_KERNEL(jseg_mix_ffn_backward) {
    // U, G and dG; dU takes the place of G where they are of one type
    const MixShape s(call, is_float<T> ? 12 : 2 * int64_t(sizeof(T)) + 8);
    const GemmSize fc1 = reduction_size(s.group, s.e, s.c, s.p), fc2 = reduction_size(s.group, s.d, s.e, s.p);
    const bool scaled = given(call, 8), dropped = given(call, 9);
    T *u = work.take<T>(s.hidden()), *g = work.take<T>(s.hidden());
    float *dg = work.take<float>(s.hidden()), *du = work.take<float>(is_float<T> ? 0 : s.hidden());
    if constexpr (is_float<T>) du = g;
    float* scratch = take_depthwise_backward(s.filter(s.group), work);
    float *parts1 = work.take<float>(reduction_floats(fc1)), *parts2 = work.take<float>(reduction_floats(fc2));
    float *w2s = work.take<float>(scaled ? s.d * s.e : 0), *dys = work.take<float>(dropped ? s.group * s.d * s.p : 0);
    if (work.measuring()) return;
    const T *cu = u, *cg = g;
    const float *cdg = dg, *cdu = du, *w2 = call.in<float>(5), *none = nullptr;
    if (scaled)
        JSEG_LAUNCH((affine_rows<float>), ceil_div(s.d * s.e, 256), 256, w2, 1, s.d, s.e, call.in<float>(8), none, none,
                    w2s);
    if (scaled) w2 = w2s;
    for (int64_t first = 0; first < s.n; first += s.group) {
        const bool more = first > 0;
        const T *x = call.in<T>(0) + first * s.c * s.p, *dy = call.in<T>(7) + first * s.d * s.p;
        GemmSize small1 = fc1, small2 = fc2;   // the last group may have fewer images
        const int64_t images = small1.batches = small2.batches = s.images(first);
        expand(s, call.in<float>(1), call.in<float>(2), x, images, u);
        run_depthwise(s.filter(images), cu, call.in<float>(3), call.in<float>(4), g);
        if (dropped) {
            JSEG_LAUNCH((affine_rows<T>), ceil_div(images * s.d * s.p, 256), 256, dy, images, s.d, s.p, none, none,
                        call.in<float>(9) + first, dys);
            back_through_fc2(s, small2, static_cast<const float*>(dys), w2, cg, more, parts2, call.out<float>(5),
                             call.out<float>(6), dg);
        } else {
            back_through_fc2(s, small2, dy, w2, cg, more, parts2, call.out<float>(5), call.out<float>(6), dg);
        }
        run_depthwise_backward(s.filter(images), cu, call.in<float>(3), call.in<float>(4), cdg, du, call.out<float>(3),
                               call.out<float>(4), scratch, false, more);
        run_reduction(small1, rows_of(cdu, s.e * s.p, s.p), columns_of(x, s.c * s.p, s.p), true, more, parts1,
                      call.out<float>(1));
        JSEG_LAUNCH((row_sums<float>), s.e, 256, cdu, images, s.e, s.p, more, call.out<float>(2));
        run_gemm(gemm_size(images, s.c, s.p, s.e), columns_of(call.in<float>(1), 0, s.c), rows_of(cdu, s.e * s.p, s.p),
                 Store<T>{rows_of(call.out<T>(0) + first * s.c * s.p, s.c * s.p, s.p), nullptr, false, false});
    }
    if (scaled)
        JSEG_LAUNCH(finish_scale, s.d, 256, call.in<float>(5), call.in<float>(6), call.in<float>(8), s.e,
                    call.out<float>(5), call.out<float>(6), call.out<float>(7));
}
