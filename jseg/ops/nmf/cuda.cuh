// Non-negative matrix factorisation by multiplicative updates on CUDA, all steps in one call. The maths of forward and
// backward is in reference.py; an update of `old` (rows, R) towards x ~ old other^T, and its gradient:
//
//   top = x other, gram = other^T other, bottom = old gram + eps, new = old top / bottom
//   q = dnew / bottom, dtop = q old, dbottom = -q old top / bottom, dgram = old^T dbottom
//   dx += dtop other^T,  dother = x^T dtop + other (dgram + dgram^T),  dold = q top + dbottom gram
//
// Layout: x, y (N, D, L) of type T; bases (N, D, R), coefficients (N, L, R) and everything else float.
// The products are those of cuda_gemm.cuh (one block per tile; long sums are cut, the parts added in order), on tensor
// cores in TF32 whatever the type of x, which TF32 holds whole: the factors are float. The rest
// are kernels with a thread per element that reads one row of R values and the R x R gram matrix: small beside x, which
// every product reads once. State kept for the backward pass: c_0 .. c_S, then b_0 .. b_S ("full"), or the last of each
// ("one_step"). No atomics: results repeat bit by bit. About 9 launches per step forward: for small x they, not the
// arithmetic, take the time.
#include <utility>
#include "cuda_gemm.cuh"

namespace {
using namespace jseg;

struct NmfShape {
    int64_t n, d, l, r, steps;
    float inv_t, eps;
    bool one_step, save;
    explicit NmfShape(const Call& call)
        : n(call.integer(0)), d(call.integer(1)), l(call.integer(2)), r(call.integer(3)), steps(call.integer(4)),
          inv_t(float(call.real(5))), eps(float(call.real(6))), one_step(call.integer(7) != 0),
          save(call.integer(8) != 0) {}
    int64_t coef_size() const { return n * l * r; }
    int64_t bases_size() const { return n * d * r; }
    int64_t larger_size() const { return n * (d > l ? d : l) * r; }
    // Room for the parts of every reduction below.
    int64_t parts() const {
        int64_t most = 0;
        for (const GemmSize& s : {coef_top(), bases_top(), gram(l), gram(d)})
            most = reduction_floats(s) > most ? reduction_floats(s) : most;
        return most;
    }
    GemmSize coef_top() const { return reduction_size(n, l, r, d); }
    GemmSize bases_top() const { return reduction_size(n, d, r, l); }
    GemmSize gram(int64_t rows) const { return reduction_size(n, r, r, rows); }
};

// ---- kernels: one thread per element of a (N, rows, R) factor -------------------------------------------------------
__device__ __forceinline__ float row_times_gram(const float* row, const float* gram, int64_t r, int64_t j) {
    float sum = 0;
    for (int64_t s = 0; s < r; s++) sum += row[s] * gram[s * r + j];
    return sum;
}

static __global__ void update_factor(const float* old, const float* top, const float* gram, int64_t n, int64_t rows,
                                     int64_t r, float eps, float* fresh) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= n * rows * r) return;
    const float bottom = row_times_gram(old + at / r * r, gram + at / (rows * r) * r * r, r, at % r) + eps;
    fresh[at] = old[at] * top[at] / bottom;
}

// dtop, dbottom and the first half of dold, q top.
static __global__ void update_slopes(const float* dnew, const float* old, const float* top, const float* gram,
                                     int64_t n, int64_t rows, int64_t r, float eps, float* dtop, float* dbottom,
                                     float* dold) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= n * rows * r) return;
    const float bottom = row_times_gram(old + at / r * r, gram + at / (rows * r) * r * r, r, at % r) + eps;
    const float q = dnew[at] / bottom;
    dtop[at] = q * old[at];
    dbottom[at] = -q * old[at] * (top[at] / bottom);
    dold[at] = q * top[at];
}

// out += factor (gram, or gram + gram^T)
static __global__ void add_times_gram(const float* factor, const float* gram, bool both, int64_t n, int64_t rows,
                                      int64_t r, float* out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= n * rows * r) return;
    const float *row = factor + at / r * r, *g = gram + at / (rows * r) * r * r;
    const int64_t j = at % r;
    float sum = row_times_gram(row, g, r, j);
    if (both)
        for (int64_t s = 0; s < r; s++) sum += row[s] * g[j * r + s];
    out[at] += sum;
}

// c_0 = softmax(inv_t x^T b) over R, a thread per row; in place is fine.
static __global__ void softmax_rows(const float* z, int64_t rows, int64_t r, float inv_t, float* out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= rows) return;
    float most = inv_t * z[at * r], total = 0;
    for (int64_t j = 1; j < r; j++) most = inv_t * z[at * r + j] > most ? inv_t * z[at * r + j] : most;
    for (int64_t j = 0; j < r; j++) total += expf(inv_t * z[at * r + j] - most);
    for (int64_t j = 0; j < r; j++) out[at * r + j] = expf(inv_t * z[at * r + j] - most) / total;
}
// dz = inv_t c (dc - sum dc c)
static __global__ void softmax_rows_backward(const float* coef, const float* dcoef, int64_t rows, int64_t r,
                                             float inv_t, float* dz) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= rows) return;
    float total = 0;
    for (int64_t j = 0; j < r; j++) total += coef[at * r + j] * dcoef[at * r + j];
    for (int64_t j = 0; j < r; j++) dz[at * r + j] = inv_t * coef[at * r + j] * (dcoef[at * r + j] - total);
}
template <class From, class To> __global__ void convert(const From* from, int64_t count, To* to) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < count) put(to + at, to_float(from[at]));
}
static __global__ void fill_zero(int64_t count, float* to) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < count) to[at] = 0.0f;
}
inline int64_t blocks_of(int64_t count) { return ceil_div(count, 256); }

// ---- steps ----------------------------------------------------------------------------------------------------------
template <class T> struct Nmf {
    NmfShape s;
    const T* x;
    float *parts, *top, *gram;   // scratch

    Matrix<const T> x_rows() const { return rows_of(x, s.d * s.l, s.l); }                // (D, L)
    Matrix<const T, false> x_columns() const { return columns_of(x, s.d * s.l, s.l); }   // (L, D)
    Matrix<const float> factor(const float* f, int64_t rows) const { return rows_of(f, rows * s.r, s.r); }
    Matrix<const float, false> turned(const float* f, int64_t rows) const {
        return columns_of(f, rows * s.r, s.r);
    }

    void coef_top(const float* bases, bool add, float* out) const {
        run_reduction_as<float>(s.coef_top(), x_columns(), factor(bases, s.d), false, add, parts, out);
    }
    void bases_top(const float* coef, bool add, float* out) const {
        run_reduction_as<float>(s.bases_top(), x_rows(), factor(coef, s.l), false, add, parts, out);
    }
    void make_gram(const float* a, const float* b, int64_t rows, float* out) const {
        run_reduction_as<float>(s.gram(rows), turned(a, rows), factor(b, rows), false, false, parts, out);
    }
    void update_coef(const float* bases, const float* old, float* fresh) const {
        coef_top(bases, false, top);
        make_gram(bases, bases, s.d, gram);
        JSEG_LAUNCH(update_factor, blocks_of(s.coef_size()), 256, old, top, gram, s.n, s.l, s.r, s.eps, fresh);
    }
    void update_bases(const float* coef, const float* old, float* fresh) const {
        bases_top(coef, false, top);
        make_gram(coef, coef, s.l, gram);
        JSEG_LAUNCH(update_factor, blocks_of(s.bases_size()), 256, old, top, gram, s.n, s.d, s.r, s.eps, fresh);
    }
    void product(const float* a, const float* b, bool add, float* out) const {   // (D, R) (L, R)^T
        run_gemm_as<float>(gemm_size(s.n, s.d, s.l, s.r), factor(a, s.d), turned(b, s.l),
                 Store<float>{rows_of(out, s.d * s.l, s.l), nullptr, false, add});
    }
    // Gradient of one update: dold is written, dother added to, dx written (`first`) or added to.
    void update_back(bool of_coef, const float* dnew, const float* other, const float* old, float* dtop, float* dbottom,
                     float* dold, float* dother, float* dx, bool first) const {
        const int64_t rows = of_coef ? s.l : s.d, inner = of_coef ? s.d : s.l;
        if (of_coef) coef_top(other, false, top);
        else bases_top(other, false, top);
        make_gram(other, other, inner, gram);
        JSEG_LAUNCH(update_slopes, blocks_of(s.n * rows * s.r), 256, dnew, old, top, gram, s.n, rows, s.r, s.eps, dtop,
                    dbottom, dold);
        JSEG_LAUNCH(add_times_gram, blocks_of(s.n * rows * s.r), 256, dbottom, gram, false, s.n, rows, s.r, dold);
        if (of_coef) product(other, dtop, !first, dx);
        else product(dtop, other, !first, dx);
        if (!dother) return;
        make_gram(old, dbottom, rows, gram);   // now dgram
        if (of_coef) bases_top(dtop, true, dother);
        else coef_top(dtop, true, dother);
        JSEG_LAUNCH(add_times_gram, blocks_of(s.n * inner * s.r), 256, other, gram, true, s.n, inner, s.r, dother);
    }
};

template <class T> Nmf<T> make_nmf(const NmfShape& s, const Call& call, Workspace& work) {
    Nmf<T> m{s, call.in<T>(0), nullptr, nullptr, nullptr};
    m.parts = work.take<float>(s.parts()), m.top = work.take<float>(s.larger_size()),
    m.gram = work.take<float>(s.n * s.r * s.r);
    return m;
}

}  // namespace

// inputs x, bases; outputs y and, if `save`, the state; numbers: N D L R steps inv_t eps one_step save
JSEG_CUDA_KERNEL(jseg_nmf_forward) {
    const NmfShape s(call);
    const Nmf<T> m = make_nmf<T>(s, call, work);
    const bool keep = s.save && !s.one_step;
    float *coefs = work.take<float>(keep ? 0 : 2 * s.coef_size()),
          *bases = work.take<float>(keep ? 0 : 2 * s.bases_size()), *last = work.take<float>(s.coef_size());
    if (work.measuring()) return;
    if (keep) coefs = call.out<float>(1), bases = coefs + (s.steps + 1) * s.coef_size();
    auto coef = [&](int64_t t) { return coefs + (keep ? t : t % 2) * s.coef_size(); };
    auto base = [&](int64_t t) { return bases + (keep ? t : t % 2) * s.bases_size(); };
    JSEG_LAUNCH((convert<float, float>), blocks_of(s.bases_size()), 256, call.in<float>(1), s.bases_size(), base(0));
    m.coef_top(base(0), false, m.top);
    JSEG_LAUNCH(softmax_rows, blocks_of(s.n * s.l), 256, m.top, s.n * s.l, s.r, s.inv_t, coef(0));
    for (int64_t t = 0; t < s.steps; t++) {
        m.update_coef(base(t), coef(t), coef(t + 1));
        m.update_bases(coef(t + 1), base(t), base(t + 1));
    }
    m.update_coef(base(s.steps), coef(s.steps), last);
    run_gemm_as<float>(gemm_size(s.n, s.d, s.l, s.r), m.factor(base(s.steps), s.d), m.turned(last, s.l),
             Store<T>{rows_of(call.out<T>(0), s.d * s.l, s.l), nullptr, false, false});
    if (!s.save || keep) return;
    JSEG_LAUNCH((convert<float, float>), blocks_of(s.coef_size()), 256, coef(s.steps), s.coef_size(),
                call.out<float>(1));
    JSEG_LAUNCH((convert<float, float>), blocks_of(s.bases_size()), 256, base(s.steps), s.bases_size(),
                call.out<float>(1) + s.coef_size());
}

// inputs x, state, dy; outputs dx, dbases
JSEG_CUDA_KERNEL(jseg_nmf_backward) {
    const NmfShape s(call);
    const Nmf<T> m = make_nmf<T>(s, call, work);
    float *dtop = work.take<float>(s.larger_size()), *dbottom = work.take<float>(s.larger_size()),
          *last = work.take<float>(s.coef_size());
    float *dcoef = work.take<float>(s.coef_size()), *spare = work.take<float>(s.coef_size());
    float *dbases = work.take<float>(s.bases_size()), *other = work.take<float>(s.bases_size()),
          *dx = work.take<float>(s.n * s.d * s.l);
    if (work.measuring()) return;
    const int64_t kept = s.one_step ? 0 : s.steps;
    const float *coefs = call.in<float>(1), *bases = coefs + (kept + 1) * s.coef_size();
    auto coef = [&](int64_t t) { return coefs + t * s.coef_size(); };
    auto base = [&](int64_t t) { return bases + t * s.bases_size(); };
    const auto dy = rows_of(call.in<T>(2), s.d * s.l, s.l);
    const auto dy_turned = columns_of(call.in<T>(2), s.d * s.l, s.l);
    m.update_coef(base(kept), coef(kept), last);
    run_reduction_as<float>(s.bases_top(), dy, m.factor(last, s.l), false, false, m.parts, dbases);
    run_reduction_as<float>(s.coef_top(), dy_turned, m.factor(base(kept), s.d), false, false, m.parts, spare);
    m.update_back(true, spare, base(kept), coef(kept), dtop, dbottom, dcoef, s.one_step ? nullptr : dbases, dx, true);
    for (int64_t t = kept; t > 0; t--) {
        m.update_back(false, dbases, coef(t), base(t - 1), dtop, dbottom, other, dcoef, dx, false);
        std::swap(dbases, other);
        m.update_back(true, dcoef, base(t - 1), coef(t - 1), dtop, dbottom, spare, dbases, dx, false);
        std::swap(dcoef, spare);
    }
    if (s.one_step) {
        JSEG_LAUNCH(fill_zero, blocks_of(s.bases_size()), 256, s.bases_size(), call.out<float>(1));
    } else {
        JSEG_LAUNCH(softmax_rows_backward, blocks_of(s.n * s.l), 256, coef(0), dcoef, s.n * s.l, s.r, s.inv_t, spare);
        m.product(base(0), spare, true, dx);
        m.bases_top(spare, true, dbases);
        JSEG_LAUNCH((convert<float, float>), blocks_of(s.bases_size()), 256, dbases, s.bases_size(),
                    call.out<float>(1));
    }
    JSEG_LAUNCH((convert<float, T>), blocks_of(s.n * s.d * s.l), 256, dx, s.n * s.d * s.l, call.out<T>(0));
}
