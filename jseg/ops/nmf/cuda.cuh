// Non-negative matrix factorisation by multiplicative updates on CUDA, all steps in one call and, where the device can
// launch blocks together, in one launch. The maths of forward and backward is in reference.py; an update of `old`
// (rows, R) towards x ~ old other^T, and its gradient:
//
//   top = x other, gram = other^T other, bottom = old gram + eps, new = old top / bottom
//   q = dnew / bottom, dtop = q old, dbottom = -q old top / bottom, dgram = old^T dbottom
//   dx += dtop other^T,  dother = x^T dtop + other (dgram + dgram^T),  dold = q top + dbottom gram
//
// Layout: x, y (N, D, L) of type T; bases (N, D, R), coefficients (N, L, R) and everything else float.
// Products and passes over the factors' rows take turns, with a barrier of the whole grid between them
// (cuda_together.cuh): 4 barriers per step. Long sums are cut into parts, which the pass behind them adds in order. The
// products are those of cuda_gemm.cuh, on tensor cores in TF32 whatever the type of x, which TF32 holds whole: the
// factors are float. In a pass a thread has an element, reads a row of R values and the R x R gram matrix, which its
// block has added up in shared memory. State kept for the backward pass: c_0 .. c_S, then b_0 .. b_S ("full"), or the
// last of each ("one_step"). No atomics: results repeat bit by bit.
#include "cuda_together.cuh"

namespace {
using namespace jseg;

constexpr int MAX_SHARED_RANK = 64, SHARED_GRAM = MAX_SHARED_RANK * MAX_SHARED_RANK;

struct NmfShape {
    int64_t n, d, l, r, steps;
    float inv_t, eps;
    bool one_step, save;
    GemmSize coef_top, bases_top, gram_d, gram_l;   // of x^T b, x c, and the gram matrices of bases and coefficients
    explicit NmfShape(const Call& call)
        : n(call.integer(0)), d(call.integer(1)), l(call.integer(2)), r(call.integer(3)), steps(call.integer(4)),
          inv_t(float(call.real(5))), eps(float(call.real(6))), one_step(call.integer(7) != 0),
          save(call.integer(8) != 0), coef_top(reduction_size(n, l, r, d)), bases_top(reduction_size(n, d, r, l)),
          gram_d(gram(d)), gram_l(gram(l)) {}
    // Every block of a pass adds up the parts of a gram matrix: 16 of 64 x 64, more of smaller ones.
    GemmSize gram(int64_t rows) const {
        const GemmSize s = reduction_size(n, r, r, rows);
        const int64_t most = larger(1, int(65536 / (r * r))), each = ceil_div(ceil_div(rows, most), 32) * 32;
        return s.k_each >= each ? s : GemmSize{n, r, r, rows, ceil_div(rows, each), each};
    }
    __host__ __device__ int64_t coef_size() const { return n * l * r; }
    __host__ __device__ int64_t bases_size() const { return n * d * r; }
    __host__ __device__ GemmSize map_size() const { return {n, d, l, r, 1, r}; }   // of b c^T
    __host__ __device__ RowShape coef_rows() const { return {int(n), int(l), int(r)}; }
    __host__ __device__ RowShape bases_rows() const { return {int(n), int(d), int(r)}; }
    __host__ __device__ RowShape gram_rows() const { return {int(n), int(r), int(r)}; }
    int64_t larger_size() const { return most_of({coef_size(), bases_size()}); }
    // Room for the parts of a top or gram matrix.
    int64_t top_parts() const { return most_of({reduction_floats(coef_top), reduction_floats(bases_top)}); }
    int64_t gram_parts() const { return most_of({reduction_floats(gram_l), reduction_floats(gram_d)}); }
    int64_t full_gram() const { return r > MAX_SHARED_RANK ? n * r * r : 0; }
};

// ---- passes: a thread per element of a factor -----------------------------------------------------------------------
__device__ __forceinline__ float row_times_gram(const float* row, const float* gram, int r, int j) {
    float sum = 0;
    for (int s = 0; s < r; s++) sum += row[s] * gram[s * r + j];
    return sum;
}

// The elements of some rows of a factor, for the threads of a block: body(element, row, column), element and row as
// offsets within the batch of what begins the row.
template <class Body> __device__ __forceinline__ void each_element(int first, int stop, int r, Body body) {
    const int count = (stop - first) * r;
    const int64_t begin = int64_t(first) * r;
    for (int e = int(threadIdx.x); e < count; e += int(blockDim.x)) {
        const int row = e / r * r;
        body(begin + e, begin + row, e - row);
    }
}

// A gram matrix G, or G + G^T, whose parts a block adds up in shared memory; where that is too small (`full`), they
// have been added up before.
struct Gram {
    Parts parts;
    const float* full;
    bool both;
    __device__ __forceinline__ float value(int batch, int r, int row, int column) const {
        const double sum = parts.sum(batch, row * r + column);
        return float(both ? sum + parts.sum(batch, column * r + row) : sum);
    }
    __device__ __forceinline__ void load(int batch, int r, float* room) const {
        if (full) return;
        for (int e = int(threadIdx.x); e < r * r; e += int(blockDim.x)) room[e] = value(batch, r, e / r, e % r);
    }
    __device__ __forceinline__ const float* at(int batch, int r, const float* room) const {
        return full ? full + int64_t(batch) * r * r : room;
    }
};

struct AddGram {   // the parts of a gram matrix -> full
    static constexpr int ROOM = 1;
    RowShape shape;
    Gram gram;
    float* full;
    __device__ __forceinline__ void load(int, float*) const {}
    __device__ __forceinline__ void run(int batch, int first, int stop, float*) const {
        float* to = full + batch * shape.size();
        each_element(first, stop, shape.r, [&](int64_t at, int64_t row, int column) {
            to[at] = gram.value(batch, shape.r, int(row) / shape.r, column);
        });
    }
};

// fresh = old top / (old gram + eps). With `start` old, c_0, is made first: softmax(inv_t top) over R; `start` takes
// inv_t top on the way.
struct Update {
    static constexpr int ROOM = SHARED_GRAM;
    RowShape shape;
    float inv_t, eps;
    Parts top;
    Gram gram;
    float *start, *old, *fresh;
    __device__ __forceinline__ void load(int batch, float* room) const { gram.load(batch, shape.r, room); }
    __device__ __forceinline__ void run(int batch, int first, int stop, float* room) const {
        const int r = shape.r;
        const int64_t before = batch * shape.size();
        if (start) {
            each_element(first, stop, r, [&](int64_t at, int64_t, int) {
                start[before + at] = inv_t * float(top.sum(batch, at));
            });
            __syncthreads();
            each_element(first, stop, r, [&](int64_t at, int64_t row, int column) {
                const float* z = start + before + row;
                float most = z[0], total = 0;
                for (int j = 1; j < r; j++) most = z[j] > most ? z[j] : most;
                for (int j = 0; j < r; j++) total += expf(z[j] - most);
                old[before + at] = expf(z[column] - most) / total;
            });
            __syncthreads();
        }
        const float* g = gram.at(batch, r, room);
        each_element(first, stop, r, [&](int64_t at, int64_t row, int column) {
            const float bottom = row_times_gram(old + before + row, g, r, column) + eps;
            fresh[before + at] = old[before + at] * float(top.sum(batch, at)) / bottom;
        });
    }
};

// The gradient of a factor, d = before + parts + other (dgram + dgram^T), and, where there is an `old` that the factor
// was made of, the way back through that update: dtop, dbottom, and old's gradient. Without `old`, d itself is `out`.
// What is null is left out.
struct Back {
    static constexpr int ROOM = 2 * SHARED_GRAM;
    RowShape shape;
    float inv_t, eps;
    const float* before;
    Parts parts, more;
    const float* other;
    Gram dgram;               // G + G^T
    const float* old;
    Parts top;
    Gram gram;
    float *dtop, *dbottom, *out;
    float* last;              // receives the update itself, which was not kept
    bool softmax;             // old is c_0: what its gradient adds to that of x^T b is added to dtop
    __device__ __forceinline__ void load(int batch, float* room) const {
        if (old) gram.load(batch, shape.r, room);
        if (other) dgram.load(batch, shape.r, room + SHARED_GRAM);
    }
    __device__ __forceinline__ void run(int batch, int first, int stop, float* room) const {
        const int r = shape.r;
        const int64_t begin = batch * shape.size();
        const float *g = gram.at(batch, r, room), *dg = dgram.at(batch, r, room + SHARED_GRAM);
        each_element(first, stop, r, [&](int64_t e, int64_t row, int column) {
            const int64_t at = begin + e;
            float d = before ? before[at] : 0.0f;
            if (parts.p) d += float(parts.sum(batch, e));
            if (more.p) d += float(more.sum(batch, e));
            if (other) d += row_times_gram(other + begin + row, dg, r, column);
            if (!old) {
                out[at] = d;
                return;
            }
            const float t = float(top.sum(batch, e)), bottom = row_times_gram(old + begin + row, g, r, column) + eps,
                        q = d / bottom;
            if (last) last[at] = old[at] * t / bottom;
            dtop[at] = q * old[at];
            dbottom[at] = -q * old[at] * (t / bottom);
            out[at] = q * t;
        });
        if (!old) return;
        __syncthreads();
        each_element(first, stop, r, [&](int64_t e, int64_t row, int column) {
            out[begin + e] += row_times_gram(dbottom + begin + row, g, r, column);
        });
        if (!softmax) return;
        __syncthreads();
        each_element(first, stop, r, [&](int64_t e, int64_t row, int) {
            const float *c = old + begin + row, *dc = out + begin + row;
            float total = 0;
            for (int j = 0; j < r; j++) total += c[j] * dc[j];
            dtop[begin + e] += inv_t * old[begin + e] * (out[begin + e] - total);
        });
    }
};

struct CopyRows {
    static constexpr int ROOM = 1;
    RowShape shape;
    const float* from;
    float* to;
    __device__ __forceinline__ void load(int, float*) const {}
    __device__ __forceinline__ void run(int batch, int first, int stop, float*) const {
        const int64_t before = batch * shape.size();
        each_element(first, stop, shape.r, [&](int64_t at, int64_t, int) { to[before + at] = from[before + at]; });
    }
};

// out = before + sum, as dx is added up; before may be null.
template <class Out> struct AddTo {
    Matrix<const float> before;
    Matrix<Out> out;
    __host__ __device__ bool wide() const { return out.aligned(4) && before.aligned(4); }
    template <int W>
    __device__ __forceinline__ void put_sums(int64_t b, int64_t, int64_t i, int64_t j, float (&sum)[W]) const {
        if (before.p) {
            float more[W];
            load_run<W>(before.at(b, i, j), more);
            JSEG_UNROLL
            for (int w = 0; w < W; w++) sum[w] += more[w];
        }
        store_run<W>(out.at(b, i, j), sum);
    }
};

// ---- what both directions share -------------------------------------------------------------------------------------
template <class T> struct Nmf {
    NmfShape s;
    const T* x;
    float *top, *gram, *full;   // parts, parts, and a whole gram matrix where it is too large for shared memory

    __host__ __device__ Matrix<const T> rows(const T* map) const { return rows_of(map, s.d * s.l, s.l); }   // (D, L)
    __host__ __device__ Matrix<const T, false> columns(const T* map) const {                               // (L, D)
        return columns_of(map, s.d * s.l, s.l);
    }
    __host__ __device__ Matrix<const float> factor(const float* f, int64_t rows) const {
        return rows_of(f, rows * s.r, s.r);
    }
    __host__ __device__ Matrix<const float, false> turned(const float* f, int64_t rows) const {
        return columns_of(f, rows * s.r, s.r);
    }
    __host__ __device__ Task<Matrix<const float>, StorePart> into_parts(const GemmSize& size, const float* f,
                                                                        float* out, bool wanted = true) const {
        return task(factor(f, size.k), StorePart{out, size.splits, size.m, size.n}, wanted);
    }
    __host__ __device__ Gram gram_of(const GemmSize& size, const float* p, const float* whole, bool both) const {
        return {parts_of(size, p), s.r > MAX_SHARED_RANK ? whole : nullptr, both};
    }
};

// ---- forward --------------------------------------------------------------------------------------------------------
template <class T> struct Forward {
    static constexpr int ROOM = Update::ROOM;
    Nmf<T> m;
    const float* start;          // b_0
    float *coefs, *bases, *last;   // c_t, b_t, and what the last update of the coefficients gives
    float *kept_coef, *kept_bases;   // where c_S and b_S go, if not there
    int64_t ring;                // how many of each there are before the first place is used again
    T* y;

    __host__ __device__ float* coef(int64_t t) const {
        return t == m.s.steps && kept_coef ? kept_coef : coefs + t % ring * m.s.coef_size();
    }
    __host__ __device__ float* base(int64_t t) const {
        return t == m.s.steps && kept_bases ? kept_bases : bases + t % ring * m.s.bases_size();
    }
    template <class Tiles> int64_t most_blocks() const {
        const NmfShape& s = m.s;
        return most_of({Tiles::template count<true>(s.coef_top) + Tiles::template count<true>(s.gram_d),
                        Tiles::template count<true>(s.bases_top) + Tiles::template count<true>(s.gram_l),
                        Tiles::template count<false>(s.map_size()), s.coef_rows().chunks(Tiles::THREADS)});
    }
    JSEG_EITHER_SIDE
    template <class Crew> __host__ __device__ __forceinline__ void run(Crew& crew) const {
        const NmfShape& s = m.s;
        crew.rows(CopyRows{s.bases_rows(), start, base(0)});
        for (int64_t t = 0;; t++) {
            const float* b = t ? base(t) : start;
            crew.to_rank(s.coef_top, m.columns(m.x), m.into_parts(s.coef_top, b, m.top));
            crew.to_rank(s.gram_d, m.turned(b, s.d), m.into_parts(s.gram_d, b, m.gram));
            crew.barrier();
            const Gram gram_b = m.gram_of(s.gram_d, m.gram, m.full, false);
            if (gram_b.full) {
                crew.rows(AddGram{s.gram_rows(), gram_b, m.full});
                crew.barrier();
            }
            crew.rows(Update{s.coef_rows(), s.inv_t, s.eps, parts_of(s.coef_top, m.top), gram_b, t ? nullptr : last,
                             coef(t), t < s.steps ? coef(t + 1) : last});
            crew.barrier();
            if (t == s.steps) break;
            const float* c = coef(t + 1);
            crew.to_rank(s.bases_top, m.rows(m.x), m.into_parts(s.bases_top, c, m.top));
            crew.to_rank(s.gram_l, m.turned(c, s.l), m.into_parts(s.gram_l, c, m.gram));
            crew.barrier();
            const Gram gram_c = m.gram_of(s.gram_l, m.gram, m.full, false);
            if (gram_c.full) {
                crew.rows(AddGram{s.gram_rows(), gram_c, m.full});
                crew.barrier();
            }
            crew.rows(Update{s.bases_rows(), s.inv_t, s.eps, parts_of(s.bases_top, m.top), gram_c, nullptr, base(t),
                             base(t + 1)});
            crew.barrier();
        }
        crew.product(s.map_size(), m.factor(base(s.steps), s.d), m.turned(last, s.l),
                     Store<T>{rows_of(y, s.d * s.l, s.l), nullptr, false, false});
    }
};

// ---- backward -------------------------------------------------------------------------------------------------------
template <class T> struct Backward {
    static constexpr int ROOM = Back::ROOM;
    Nmf<T> m;
    const T* dy;
    const float *coefs, *bases;   // c_0 .. c_kept, b_0 .. b_kept
    int64_t kept;
    float *from_dy, *other, *dgram, *dfull;   // parts, parts, parts, and a whole gram matrix
    float *dtop, *dbottom, *dcoef, *dbases, *last, *dx;   // dx: dx_out itself where that is float
    T* dx_out;
    float* dbases_out;

    __host__ __device__ const float* coef(int64_t t) const { return coefs + t * m.s.coef_size(); }
    __host__ __device__ const float* base(int64_t t) const { return bases + t * m.s.bases_size(); }
    template <class Tiles> int64_t most_blocks() const {
        const NmfShape& s = m.s;
        return most_of({2 * (Tiles::template count<true>(s.coef_top) + Tiles::template count<true>(s.gram_d)),
                        2 * (Tiles::template count<true>(s.bases_top) + Tiles::template count<true>(s.gram_l)) +
                            Tiles::template count<false>(s.map_size()), s.coef_rows().chunks(Tiles::THREADS)});
    }
    // dx (+)= a b^T, the whole dx at the end.
    JSEG_EITHER_SIDE
    template <class Crew>
    __host__ __device__ __forceinline__ void add_to_dx(Crew& crew, const float* a, const float* b, bool first,
                                                       bool end) const {
        const NmfShape& s = m.s;
        const auto before = rows_of(static_cast<const float*>(first ? nullptr : dx), s.d * s.l, s.l);
        if (!is_float<T> && end)
            crew.product(s.map_size(), m.factor(a, s.d), m.turned(b, s.l),
                         AddTo<T>{before, rows_of(dx_out, s.d * s.l, s.l)});
        else
            crew.product(s.map_size(), m.factor(a, s.d), m.turned(b, s.l),
                         AddTo<float>{before, rows_of(dx, s.d * s.l, s.l)});
    }
    // Where gram matrices are too large for shared memory: both of a turn whole.
    JSEG_EITHER_SIDE
    template <class Crew>
    __host__ __device__ __forceinline__ void fill_grams(Crew& crew, const Gram& one, const Gram& two) const {
        const NmfShape& s = m.s;
        if (!one.full) return;
        crew.rows(AddGram{s.gram_rows(), one, m.full});
        crew.rows(AddGram{s.gram_rows(), two, dfull});
        crew.barrier();
    }
    // A turn goes back through the update of the coefficients to c_t, then through that of the bases to b_{t-1}. The
    // products before a pass are those that finish the gradient of the update before and those that its own is made of.
    JSEG_EITHER_SIDE
    template <class Crew> __host__ __device__ __forceinline__ void run(Crew& crew) const {
        const NmfShape& s = m.s;
        const Parts none{nullptr, 0, 0};
        for (int64_t t = kept;; t--) {
            const bool first = t == kept, end = t == 0;
            const float *b = base(t), *c = coef(t);
            if (!first) add_to_dx(crew, dtop, coef(t + 1), false, false);
            JSEG_ROLL
            for (int from = 0; from < (first ? 2 : 1); from++)
                crew.to_rank(s.coef_top, m.columns(from ? dy : m.x),
                             m.into_parts(s.coef_top, b, from ? other : m.top),
                             m.into_parts(s.coef_top, dtop, other, !first));
            crew.to_rank(s.gram_d, m.turned(b, s.d), m.into_parts(s.gram_d, b, m.gram),
                         m.into_parts(s.gram_d, dbottom, dgram, !first));
            crew.barrier();
            const Gram gram_b = m.gram_of(s.gram_d, m.gram, m.full, false),
                       more_b = m.gram_of(s.gram_d, first ? m.gram : dgram, dfull, true);
            fill_grams(crew, gram_b, more_b);
            crew.rows(Back{s.coef_rows(), s.inv_t, s.eps, first ? nullptr : dcoef, parts_of(s.coef_top, other), none,
                           first ? nullptr : coef(t + 1), more_b, c, parts_of(s.coef_top, m.top), gram_b, dtop, dbottom,
                           dcoef, first ? last : nullptr, end && !s.one_step});
            crew.barrier();
            add_to_dx(crew, b, dtop, first, end);
            if (s.one_step) break;
            JSEG_ROLL
            for (int from = 0; from < (first ? 2 : 1); from++)
                crew.to_rank(s.bases_top, m.rows(from ? dy : m.x),
                             m.into_parts(s.bases_top, from ? last : dtop, from ? from_dy : other),
                             m.into_parts(s.bases_top, c, m.top, !from && !end));
            crew.to_rank(s.gram_l, m.turned(c, s.l), m.into_parts(s.gram_l, dbottom, dgram),
                         m.into_parts(s.gram_l, c, m.gram, !end));
            crew.barrier();
            const Gram more_c = m.gram_of(s.gram_l, dgram, dfull, true),
                       gram_c = m.gram_of(s.gram_l, end ? dgram : m.gram, m.full, false);
            fill_grams(crew, gram_c, more_c);
            crew.rows(Back{s.bases_rows(), s.inv_t, s.eps, first ? nullptr : dbases, parts_of(s.bases_top, other),
                           first ? parts_of(s.bases_top, from_dy) : none, b, more_c, end ? nullptr : base(t - 1),
                           parts_of(s.bases_top, m.top), gram_c, dtop, dbottom, end ? dbases_out : dbases, nullptr,
                           false});
            if (end) break;
            crew.barrier();
        }
        if (s.one_step)   // the bases were constants
            crew.rows(Back{s.bases_rows(), s.inv_t, s.eps, nullptr, none, none, nullptr, {}, nullptr, none, {}, nullptr,
                           nullptr, dbases_out, nullptr, false});
    }
};

template <class T> Nmf<T> make_nmf(const NmfShape& s, const Call& call, Workspace& work) {
    Nmf<T> m{s, call.in<T>(0), nullptr, nullptr, nullptr};
    m.top = work.take<float>(s.top_parts()), m.gram = work.take<float>(s.gram_parts()),
    m.full = work.take<float>(s.full_gram());
    return m;
}

}  // namespace

// inputs x, bases; outputs y and, if `save`, the state; numbers: N D L R steps inv_t eps one_step save
JSEG_CUDA_KERNEL(jseg_nmf_forward) {
    const NmfShape s(call);
    Forward<T> f{make_nmf<T>(s, call, work)};
    const bool keep = s.save && !s.one_step;
    f.ring = keep ? s.steps + 1 : 2;
    f.coefs = work.take<float>(keep ? 0 : 2 * s.coef_size()), f.bases = work.take<float>(keep ? 0 : 2 * s.bases_size()),
    f.last = work.take<float>(s.coef_size());
    if (work.measuring()) return;
    f.start = call.in<float>(1), f.y = call.out<T>(0);
    if (keep) f.coefs = call.out<float>(1), f.bases = f.coefs + f.ring * s.coef_size();
    else if (s.save) f.kept_coef = call.out<float>(1), f.kept_bases = f.kept_coef + s.coef_size();
    run_steps_of<T>(f, is_thin(s.r));
}

// inputs x, state, dy; outputs dx, dbases
JSEG_CUDA_KERNEL(jseg_nmf_backward) {
    const NmfShape s(call);
    Backward<T> b{make_nmf<T>(s, call, work)};
    b.kept = s.one_step ? 0 : s.steps;
    b.from_dy = work.take<float>(reduction_floats(s.bases_top)), b.other = work.take<float>(s.top_parts());
    b.dgram = work.take<float>(s.gram_parts()), b.dfull = work.take<float>(s.full_gram());
    b.dtop = work.take<float>(s.larger_size()), b.dbottom = work.take<float>(s.larger_size());
    b.dcoef = work.take<float>(s.coef_size()), b.dbases = work.take<float>(s.bases_size());
    b.last = work.take<float>(s.coef_size());
    b.dx = work.take<float>(is_float<T> ? 0 : s.n * s.d * s.l);
    if (work.measuring()) return;
    b.dx_out = call.out<T>(0), b.dbases_out = call.out<float>(1), b.dy = call.in<T>(2);
    if constexpr (is_float<T>) b.dx = b.dx_out;
    b.coefs = call.in<float>(1), b.bases = b.coefs + (b.kept + 1) * s.coef_size();
    run_steps_of<T>(b, is_thin(s.r));
}
