// Attention on the CPU: softmax(scale Q K^T + bias + mask) V by blocks of QB queries and KB keys, forward and backward.
//
// Scores are kept turned, S^T[key][query], queries in the lanes: maximum, sum and rescaling are then whole-vector
// operations, and each product needs one factor in vectors (queries, or channels) and reads the other value by value: K
// and V are never turned or padded, and only copied where many blocks of queries read them (rows of a token are far
// apart, and fall on few cache lines). With m the running maximum of a query:
//     S^T = K (scale Q^T) + bias^T + mask^T,  P^T = exp(S^T - m),  O^T = O^T exp(m_old - m) + V^T P^T,  y = O / sum P
// Backward, with P^T = exp(S^T - logsum) and delta = dy . y by query:
//     dS^T = P^T (V dy^T - delta),  dV += P^T dy,  dK += scale dS^T Q,  dQ^T += scale K^T dS^T,  dbias += dS
// A job is a head, a run of pictures and a run of queries; its sums for dK and dV (several runs of queries) and dbias
// (several runs of pictures) are added in fixed order. How the work is cut depends on the sizes only, so results do not
// depend on the number of threads.
#include <algorithm>

#include "call.h"
#include "tiles.h"

using namespace jseg;

namespace {

constexpr int64_t QB = 64, KB = 128;   // queries and keys of a block
constexpr float LOWEST = -3.4028235e38f;
static_assert(QB % (WIDE * VL) == 0, "a full block is whole tiles");

// ---- tensors ----------------------------------------------------------------------------------------------

// Row `row` of picture `image` and head `head` starts at p + image * image_step + row * step + head * width.
template <class T> struct Tokens {
    T* p;
    int64_t image_step, step, width;
    T* at(int64_t image, int64_t head, int64_t row) const { return p + image * image_step + row * step + head * width; }
};

// Part `part` of `parts` that lie side by side in each token.
template <class T> Tokens<T> tokens(T* p, int64_t length, int64_t heads, int64_t width, int64_t parts, int64_t part) {
    return {p + part * heads * width, length * parts * heads * width, parts * heads * width, width};
}

struct Shape {
    int64_t n, l, m, heads, d, e, packed;   // packed: 0 no, 2 keys and values, 3 all in one tensor
    float scale;
    int64_t biases, masks, mask_rows;   // biases: 0, 1 shared or N; masks: 0 or P; rows of one: 1 or L
    explicit Shape(const Call& call)
        : n(call.integer(0)), l(call.integer(1)), m(call.integer(2)), heads(call.integer(3)), d(call.integer(4)),
          e(call.integer(5)), packed(call.integer(6)), scale(float(call.real(7))), biases(call.integer(8)),
          masks(call.integer(9)), mask_rows(call.integer(10)) {}
    int64_t d_padded() const { return round_up(d, VL); }
    int64_t e_padded() const { return round_up(e, VL); }
    int64_t bias_at(int64_t image, int64_t head) const { return ((biases > 1 ? image : 0) * heads + head) * l * m; }
};

template <class T> struct Parts {
    Tokens<T> q, k, v;
    Parts(const Shape& s, T* const (&p)[3]) {
        T* keys = s.packed == 3 ? p[0] : p[1];
        const int64_t first = s.packed == 3 ? 1 : 0, together = s.packed ? s.packed : 1;
        q = tokens(p[0], s.l, s.heads, s.d, s.packed == 3 ? 3 : 1, 0);
        k = tokens(keys, s.m, s.heads, s.d, together, first);
        v = tokens(s.packed ? keys : p[2], s.m, s.heads, s.e, together, s.packed ? first + 1 : 0);
    }
};

// Keys and values of one picture and head as the products read them, from row 0 on.
struct Keys {
    const float *k, *v;
    int64_t k_step, v_step;
    static constexpr int64_t WORTH = 4;   // blocks of queries that pay for a copy
    static int64_t size(const Shape& s) { return s.m * (s.d + s.e); }
    Keys(const Shape& s, const Parts<const float>& in, int64_t image, int64_t head, int64_t blocks, float* memory)
        : k(in.k.at(image, head, 0)), v(in.v.at(image, head, 0)), k_step(in.k.step), v_step(in.v.step) {
        if (blocks < WORTH) return;
        for (int64_t i = 0; i < s.m; i++) {
            std::memcpy(memory + i * s.d, k + i * k_step, s.d * sizeof(float));
            std::memcpy(memory + s.m * s.d + i * s.e, v + i * v_step, s.e * sizeof(float));
        }
        k = memory, v = memory + s.m * s.d, k_step = s.d, v_step = s.e;
    }
};

struct Block {   // queries q0 ... q0 + count of one picture and head
    int64_t image, head, q0, count;
    int64_t lanes() const { return round_up(count, VL); }
};

// to[j * QB + i] = factor from[i * step + j] for the block's queries i and columns j; lanes without a query get 0.
void turn_tokens(const Block& block, int64_t width, const float* from, int64_t step, float factor, float* to) {
    turn(
        block.count, width,
        [=](int64_t i, int64_t j, int64_t n)
            __attribute__((always_inline)) { return load_some(from + i * step + j, n) * factor; },
        [=](int64_t j, int64_t i, int64_t, V v) __attribute__((always_inline)) { store(to + j * QB + i, v); });
}
// to[i * step + j] = factor from[j * QB + i]
void turn_back(const Block& block, int64_t width, const float* from, float factor, float* to, int64_t step) {
    turn(
        width, block.count,
        [=](int64_t j, int64_t i, int64_t) __attribute__((always_inline)) { return load(from + j * QB + i) * factor; },
        [=](int64_t i, int64_t j, int64_t n, V v)
            __attribute__((always_inline)) { store_some(to + i * step + j, v, n); });
}

struct Added {   // what is added to the scores
    const float *bias, *mask;
    explicit Added(const Call& call) : bias(call.in<float>(3)), mask(call.in<float>(4)) {}
    explicit operator bool() const { return bias || mask; }
    // to[(k - k0) * QB + i] = bias + mask of the block's queries i and keys k0 ... k0 + keys
    void fill(const Shape& s, const Block& b, int64_t k0, int64_t keys, float* to) const {
        const float *from = bias ? bias + s.bias_at(b.image, b.head) + b.q0 * s.m + k0 : nullptr, *more = nullptr;
        if (mask) more = mask + (b.image % s.masks * s.mask_rows + (s.mask_rows > 1 ? b.q0 : 0)) * s.m + k0;
        const int64_t more_step = s.mask_rows > 1 ? s.m : 0, step = s.m;
        turn(
            b.count, keys,
            [=](int64_t i, int64_t k, int64_t n) __attribute__((always_inline)) {
                V v = from ? load_some(from + i * step + k, n) : V{};
                return more ? v + load_some(more + i * more_step + k, n) : v;
            },
            [=](int64_t k, int64_t i, int64_t, V v) __attribute__((always_inline)) { store(to + k * QB + i, v); });
    }
};

// ---- forward ----------------------------------------------------------------------------------------------

struct Running {   // of each query: the largest score so far and the sum of exponentials
    V top[QB / VL], total[QB / VL];
};

// S^T = K Q^T + added of one block of keys, and the largest score.
void scores(const Shape& s, const Block& b, int64_t keys, const float* k, int64_t k_step, const float* qt,
            const float* added, float* st, V* top) {
    if (added)
        products<false>(keys, b.lanes(), s.d, k, k_step, qt, QB,
                        [=](int64_t i, int64_t j, V sums) __attribute__((always_inline)) {
                            sums += load(added + i * QB + j);
                            top[j / VL] = vmax(sums, top[j / VL]);
                            store(st + i * QB + j, sums);
                        });
    else
        products<false>(keys, b.lanes(), s.d, k, k_step, qt, QB,
                        [=](int64_t i, int64_t j, V sums) __attribute__((always_inline)) {
                            top[j / VL] = vmax(sums, top[j / VL]);
                            store(st + i * QB + j, sums);
                        });
}

// S^T becomes P^T; returns in `fade` what earlier sums are to be multiplied by.
void exponentials(const Block& b, int64_t keys, const V* top, float* st, Running& running, V* fade) {
    for (int64_t j = 0; j < b.lanes(); j += VL) {
        const V m = top[j / VL];
        V even{}, odd{};   // two sums: neighbouring keys do not wait for one another
        int64_t k = 0;
        for (; k + 2 <= keys; k += 2) {
            float* at = st + k * QB + j;
            const V one = exp_below_zero(load(at) - m), two = exp_below_zero(load(at + QB) - m);
            store(at, one), store(at + QB, two);
            even += one, odd += two;
        }
        if (k < keys) {
            const V one = exp_below_zero(load(st + k * QB + j) - m);
            store(st + k * QB + j, one);
            even += one;
        }
        fade[j / VL] = exp_below_zero(running.top[j / VL] - m);
        running.total[j / VL] = running.total[j / VL] * fade[j / VL] + (even + odd);
        running.top[j / VL] = m;
    }
}

int64_t forward_size(const Shape& s) { return round_up(QB * (s.d + s.e + 2 * KB) + Keys::size(s), 16); }

void forward_block(const Shape& s, const Block& b, const Tokens<const float>& q, const Keys& in, const Added& added,
                   const Tokens<float>& y, float* logsum, float* memory) {
    float *qt = memory, *ot = qt + QB * s.d, *st = ot + QB * s.e, *extra = st + QB * KB;
    Running running;
    for (int64_t v = 0; v < QB / VL; v++) running.top[v] = splat(LOWEST), running.total[v] = V{};
    turn_tokens(b, s.d, q.at(b.image, b.head, b.q0), q.step, s.scale, qt);
    std::memset(ot, 0, QB * s.e * sizeof(float));
    for (int64_t k0 = 0; k0 < s.m; k0 += KB) {
        const int64_t keys = std::min(KB, s.m - k0);
        V top[QB / VL], fade[QB / VL];
        std::copy(running.top, running.top + QB / VL, top);
        if (added) added.fill(s, b, k0, keys, extra);
        scores(s, b, keys, in.k + k0 * in.k_step, in.k_step, qt, added ? extra : nullptr, st, top);
        exponentials(b, keys, top, st, running, fade);
        products<true>(s.e, b.lanes(), keys, in.v + k0 * in.v_step, in.v_step, st, QB,
                       [=, &fade](int64_t i, int64_t j, V sums) __attribute__((always_inline)) {
                           store(ot + i * QB + j, load(ot + i * QB + j) * fade[j / VL] + sums);
                       });
    }
    float totals[QB], tops[QB];
    for (int64_t v = 0; v < QB / VL; v++) {   // the largest score adds e^0 to the sum; without it all are at -inf
        const V total = running.total[v], share = pick(total < 0.5f, V{}, 1.0f / total);
        for (int64_t i = 0; i < s.e && v * VL < b.count; i++)
            store(ot + i * QB + v * VL, load(ot + i * QB + v * VL) * share);
        store(totals + v * VL, total), store(tops + v * VL, running.top[v]);
    }
    turn_back(b, s.e, ot, 1.0f, y.at(b.image, b.head, b.q0), y.step);
    if (logsum)
        for (int64_t i = 0; i < b.count; i++)
            logsum[(b.image * s.heads + b.head) * s.l + b.q0 + i] =
                totals[i] < 0.5f ? -LOWEST : tops[i] + std::log(totals[i]);
}

// ---- backward ---------------------------------------------------------------------------------------------

// How backward is divided: each head's pictures into `image_runs`, its queries into `query_runs` of whole blocks.
struct Cut {
    int64_t image_runs, query_runs, jobs;
    explicit Cut(const Shape& s) {
        const int64_t blocks = (s.l + QB - 1) / QB, wanted = 32;
        query_runs = std::clamp<int64_t>((wanted + s.n * s.heads - 1) / (s.n * s.heads), 1, (blocks + 3) / 4);
        const int64_t heads = s.heads * query_runs;
        image_runs = s.biases == 1 ? std::clamp<int64_t>((wanted + heads - 1) / heads, 1, s.n) : s.n;
        jobs = s.heads * image_runs * query_runs;
    }
    int64_t key_parts(const Shape& s) const {
        return query_runs > 1 ? query_runs * s.n * s.heads * s.m * (s.d_padded() + s.e_padded()) : 0;
    }
    int64_t bias_parts(const Shape& s) const {
        return s.biases == 1 && image_runs > 1 ? image_runs * s.heads * s.l * s.m : 0;
    }
};

struct Back {   // the tensors of a backward pass
    Shape s;
    Cut cut;
    Parts<const float> in;
    Added added;
    Tokens<const float> y, dy;
    const float* logsum;
    Parts<float> out;
    float *dbias, *key_parts, *bias_parts;
};

struct Room {   // memory of a thread
    float *qt, *dyt, *q, *dy, *pt, *dst, *extra, *dqt, *dk, *dv, *keys;
    static int64_t size(const Shape& s) {
        return round_up(QB * (2 * s.d + s.e + s.d_padded() + s.e_padded() + 3 * KB) +
                            s.m * (s.d_padded() + s.e_padded()) + Keys::size(s),
                        16);
    }
    Room(const Shape& s, float* p) {
        qt = p, dyt = qt + QB * s.d, q = dyt + QB * s.e, dy = q + QB * s.d_padded(), pt = dy + QB * s.e_padded(),
        dst = pt + QB * KB;
        extra = dst + QB * KB, dqt = extra + QB * KB, dk = dqt + QB * s.d, dv = dk + s.m * s.d_padded();
        keys = dv + s.m * s.e_padded();
    }
};

// Rows of `width` floats one after another, each filled up with zeros to whole vectors.
void copy_rows(int64_t rows, int64_t width, const float* from, int64_t step, float* to) {
    const int64_t padded = round_up(width, VL);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j += VL) store(to + i * padded + j, load_some(from + i * step + j, width - j));
}

// dbias (rows of m floats) of the block's queries and keys k0 ... k0 + keys: dS, or added to what is there.
void store_bias(const Shape& s, const Block& b, int64_t k0, int64_t keys, const float* dst, bool add, float* dbias) {
    float* to = dbias + b.q0 * s.m + k0;
    const int64_t step = s.m;
    turn(
        keys, b.count,
        [=](int64_t k, int64_t i, int64_t) __attribute__((always_inline)) { return load(dst + k * QB + i); },
        [=](int64_t i, int64_t k, int64_t n, V v) __attribute__((always_inline)) {
            float* at = to + i * step + k;
            store_some(at, add ? load_some(at, n) + v : v, n);
        });
}

void backward_block(const Back& t, const Block& b, const Keys& in, const Room& room, bool add_bias, float* dbias) {
    const Shape& s = t.s;
    float logsum[QB] = {}, delta[QB] = {};
    const int64_t padded = s.e_padded(), lanes = b.lanes();
    copy_rows(b.count, s.d, t.in.q.at(b.image, b.head, b.q0), t.in.q.step, room.q);
    copy_rows(b.count, s.e, t.dy.at(b.image, b.head, b.q0), t.dy.step, room.dy);
    turn_tokens(b, s.d, room.q, s.d_padded(), s.scale, room.qt);
    turn_tokens(b, s.e, room.dy, padded, 1.0f, room.dyt);
    for (int64_t i = 0; i < b.count; i++) {
        const float* y = t.y.at(b.image, b.head, b.q0 + i);
        V dot{};
        for (int64_t j = 0; j < s.e; j += VL) dot += load(room.dy + i * padded + j) * load_some(y + j, s.e - j);
        delta[i] = lanes_sum(dot), logsum[i] = t.logsum[(b.image * s.heads + b.head) * s.l + b.q0 + i];
    }
    std::memset(room.dqt, 0, QB * s.d * sizeof(float));
    float *pt = room.pt, *dst = room.dst, *extra = room.extra;
    for (int64_t k0 = 0; k0 < s.m; k0 += KB) {
        const int64_t keys = std::min(KB, s.m - k0);
        const float *k = in.k + k0 * in.k_step, *v = in.v + k0 * in.v_step;
        if (t.added) t.added.fill(s, b, k0, keys, extra);
        const bool with = bool(t.added);
        products<false>(keys, lanes, s.d, k, in.k_step, room.qt, QB,
                        [=, &logsum](int64_t i, int64_t j, V sums) __attribute__((always_inline)) {
                            if (with) sums += load(extra + i * QB + j);
                            store(pt + i * QB + j, exp_below_zero(sums - load(logsum + j)));
                        });
        products<false>(keys, lanes, s.e, v, in.v_step, room.dyt, QB,
                        [=, &delta](int64_t i, int64_t j, V sums) __attribute__((always_inline)) {
                            store(dst + i * QB + j, load(pt + i * QB + j) * (sums - load(delta + j)));
                        });
        add_product<false>(keys, padded, b.count, pt, QB, room.dy, padded, room.dv + k0 * padded, padded);
        add_product<false>(keys, s.d_padded(), b.count, dst, QB, room.q, s.d_padded(), room.dk + k0 * s.d_padded(),
                           s.d_padded());
        add_product<true>(s.d, lanes, keys, k, in.k_step, dst, QB, room.dqt, QB);
        if (dbias) store_bias(s, b, k0, keys, dst, add_bias, dbias);
    }
    turn_back(b, s.d, room.dqt, s.scale, t.out.q.at(b.image, b.head, b.q0), t.out.q.step);
}

// to = factor times padded rows
void store_rows(int64_t rows, int64_t width, const float* from, float factor, float* to, int64_t step) {
    const int64_t padded = round_up(width, VL);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j += VL)
            store_some(to + i * step + j, load(from + i * padded + j) * factor, width - j);
}

void backward_job(const Back& t, int64_t job, float* memory) {
    const Shape& s = t.s;
    const Room room(s, memory);
    const int64_t query_run = job % t.cut.query_runs, image_run = job / t.cut.query_runs % t.cut.image_runs,
                  head = job / t.cut.query_runs / t.cut.image_runs;
    const int64_t blocks = (s.l + QB - 1) / QB, first = blocks * query_run / t.cut.query_runs * QB,
                  last = std::min(s.l, blocks * (query_run + 1) / t.cut.query_runs * QB);
    const int64_t from = s.n * image_run / t.cut.image_runs, to = s.n * (image_run + 1) / t.cut.image_runs,
                  width = s.d_padded() + s.e_padded();
    for (int64_t image = from; image < to; image++) {
        float* dbias = nullptr;
        if (s.biases)
            dbias = t.bias_parts ? t.bias_parts + (image_run * s.heads + head) * s.l * s.m
                                 : t.dbias + s.bias_at(image, head);
        const Keys keys(s, t.in, image, head, (last - first + QB - 1) / QB, room.keys);
        std::memset(room.dk, 0, s.m * width * sizeof(float));
        for (int64_t q0 = first; q0 < last; q0 += QB)
            backward_block(t, {image, head, q0, std::min(QB, last - q0)}, keys, room, s.biases == 1 && image > from,
                           dbias);
        if (t.key_parts) {
            std::memcpy(t.key_parts + ((query_run * s.n + image) * s.heads + head) * s.m * width, room.dk,
                        s.m * width * sizeof(float));
            continue;
        }
        store_rows(s.m, s.d, room.dk, s.scale, t.out.k.at(image, head, 0), t.out.k.step);
        store_rows(s.m, s.e, room.dv, 1.0f, t.out.v.at(image, head, 0), t.out.v.step);
    }
}

// Adds the parts of dK and dV of one picture and head up in the first of them, and stores the sums.
void finish_keys(const Back& t, int64_t image, int64_t head) {
    const Shape& s = t.s;
    const int64_t size = s.m * (s.d_padded() + s.e_padded());
    float* sums = t.key_parts + (image * s.heads + head) * size;
    for (int64_t run = 1; run < t.cut.query_runs; run++) {
        const float* more = sums + run * s.n * s.heads * size;
        for (int64_t i = 0; i < size; i += VL) store(sums + i, load(sums + i) + load(more + i));
    }
    store_rows(s.m, s.d, sums, s.scale, t.out.k.at(image, head, 0), t.out.k.step);
    store_rows(s.m, s.e, sums + s.m * s.d_padded(), 1.0f, t.out.v.at(image, head, 0), t.out.v.step);
}

void finish_bias(const Back& t, int64_t i) {
    const int64_t size = t.s.heads * t.s.l * t.s.m, left = size - i;
    V total{};
    for (int64_t run = 0; run < t.cut.image_runs; run++) total += load_some(t.bias_parts + run * size + i, left);
    store_some(t.dbias + i, total, left);
}

}  // namespace

// in: q, k, v as `packed` says, bias or absent, mask or absent; out: y (N, L, G, E) and, if wanted, logsum (N, G, L);
// numbers: N L M G D E packed scale biases masks mask_rows
JSEG_KERNEL(jseg_attention_forward) {
    const Shape s(call);
    const Parts<const float> in(s, {call.in<float>(0), call.in<float>(1), call.in<float>(2)});
    const Added added(call);
    const Tokens<float> y = tokens(call.out<float>(0), s.l, s.heads, s.e, 1, 0);
    float *logsum = call.output_count > 1 ? call.out<float>(1) : nullptr,
          *memory = scratch(omp_get_max_threads() * forward_size(s));
    // A job: a picture and head, and a run of its queries. How many runs there are changes no result.
    const int64_t blocks = (s.l + QB - 1) / QB, sets = s.n * s.heads,
                  runs = std::clamp<int64_t>((4 * omp_get_max_threads() + sets - 1) / sets, 1, blocks);
#pragma omp parallel
    {
        NoDenormals guard;
        float* mine = memory + omp_get_thread_num() * forward_size(s);
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < sets * runs; job++) {
            const int64_t image = job / runs / s.heads, head = job / runs % s.heads,
                          first = blocks * (job % runs) / runs, last = blocks * (job % runs + 1) / runs;
            const Keys keys(s, in, image, head, last - first, mine + forward_size(s) - Keys::size(s));
            for (int64_t q0 = first * QB; q0 < std::min(s.l, last * QB); q0 += QB)
                forward_block(s, {image, head, q0, std::min(QB, s.l - q0)}, in.q, keys, added, y, logsum, mine);
        }
    }
}

// in: q, k, v, bias, mask as forward, y, logsum, dy; out: gradients of q, k, v as `packed` says and, with a bias,
// dbias; numbers as forward
JSEG_KERNEL(jseg_attention_backward) {
    const Shape s(call);
    const Cut cut(s);
    const int64_t parts = s.packed == 3   ? 1
                          : s.packed == 2 ? 2
                                          : 3,
                  each = Room::size(s), threads = omp_get_max_threads();
    float* memory = scratch(threads * each + cut.key_parts(s) + cut.bias_parts(s));
    float *key_parts = memory + threads * each, *bias_parts = key_parts + cut.key_parts(s);
    const Back t{
        s,
        cut,
        {s, {call.in<float>(0), call.in<float>(1), call.in<float>(2)}},
        Added(call),
        tokens(call.in<float>(5), s.l, s.heads, s.e, 1, 0),
        tokens(call.in<float>(7), s.l, s.heads, s.e, 1, 0),
        call.in<float>(6),
        {s, {call.out<float>(0), parts > 1 ? call.out<float>(1) : nullptr, parts > 2 ? call.out<float>(2) : nullptr}},
        s.biases ? call.out<float>(int(parts)) : nullptr,
        cut.key_parts(s) ? key_parts : nullptr,
        cut.bias_parts(s) ? bias_parts : nullptr};
#pragma omp parallel
    {
        NoDenormals guard;
        float* mine = memory + omp_get_thread_num() * each;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < cut.jobs; job++) backward_job(t, job, mine);
        if (t.key_parts)
#pragma omp for schedule(static)
            for (int64_t i = 0; i < s.n * s.heads; i++) finish_keys(t, i / s.heads, i % s.heads);
        if (t.bias_parts)
#pragma omp for schedule(static)
            for (int64_t i = 0; i < s.heads * s.l * s.m; i += VL) finish_bias(t, i);
    }
}
