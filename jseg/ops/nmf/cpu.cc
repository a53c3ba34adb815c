// Non-negative matrix factorisation by multiplicative updates, all steps in one call; float32. The maths of forward and
// backward is in reference.py. Here, per image:
//
//   x is copied once into chunks of 64 pixels, [chunk][d][64], so that both products of a step read it in order. One
//   pass over the chunks does the coefficients' update and adds up x c and c^T c for the bases' update that follows.
//   Every thread owns a run of chunks and has sums of its own, added in thread order: results repeat at a given thread
//   count.
//
//   The backward pass walks the steps from the last to the first, again one pass over x each, and keeps what it
//   multiplies x's gradient from: dx = sum_t b_t z_t^T + sum_t m_t c_t^T, one product of depth (2 steps + 1) R at the
//   end.
//
// The rank is padded to `r` = multiple of 16 with columns of zeros, which stay zero. Coefficients are (L, r), bases (D,
// r). saved (made by the forward pass), per image:  c_0..c_S (L, r), b_0..b_S (D, r), x c_1..x c_S (D, r), c_1^T
// c_1..c_S^T c_S (r, r).
#include <algorithm>
#include "call.h"
#include "product.h"

namespace {
using namespace jseg;

constexpr int64_t CHUNK = 64;

struct Plan {
    int64_t n, d, l, rank, steps, r, chunks;
    float inv_t, eps;
    bool one_step;

    explicit Plan(const Call& call) {
        n = call.integer(0), d = call.integer(1), l = call.integer(2), rank = call.integer(3), steps = call.integer(4);
        inv_t = static_cast<float>(call.real(5)), eps = static_cast<float>(call.real(6)),
        one_step = call.integer(7) != 0;
        r = round_up(rank, 16);
        chunks = (l + CHUNK - 1) / CHUNK;
    }
    int64_t width(int64_t chunk) const { return std::min(CHUNK, l - chunk * CHUNK); }
    int64_t saved_size(int64_t s) const { return r * ((s + 1) * l + (2 * s + 1) * d + s * r); }
};

// Where the state of each step lies; `steps` is 0 when only the last state is kept.
struct Saved {
    const Plan& p;
    float* base;
    int64_t steps;
    float* coef(int64_t t) const { return base + t * p.l * p.r; }
    float* bases(int64_t t) const { return coef(steps + 1) + t * p.d * p.r; }
    float* top(int64_t t) const { return bases(steps + 1) + (t - 1) * p.d * p.r; }
    float* gram(int64_t t) const { return top(steps + 1) + (t - 1) * p.r * p.r; }
};

void load_chunk(const Plan& p, const float* x, int64_t chunk, float* to) {
    const int64_t width = p.width(chunk);
    for (int64_t i = 0; i < p.d; i++) {
        std::memcpy(to + i * CHUNK, x + i * p.l + chunk * CHUNK, width * sizeof(float));
        if (width < CHUNK) std::memset(to + i * CHUNK + width, 0, (CHUNK - width) * sizeof(float));
    }
}

void load_bases(const Plan& p, const float* from, float* to) {
    for (int64_t i = 0; i < p.d; i++)
        for (int64_t j = 0; j < p.r; j++) to[i * p.r + j] = j < p.rank ? from[i * p.rank + j] : 0.0f;
}

// a (rows, r) -> gram (r, r) (+)= a^T b
void gram(const Plan& p, int64_t rows, const float* a, const float* b, float* to, bool add) {
    product(p.r, p.r, rows, a, 1, p.r, b, p.r, to, p.r, add);
}

void softmax(const Plan& p, int64_t rows, const float* z, float* to) {
    for (int64_t i = 0; i < rows; i++, z += p.r, to += p.r) {
        float most = z[0] * p.inv_t;
        for (int64_t j = 1; j < p.rank; j++) most = z[j] * p.inv_t > most ? z[j] * p.inv_t : most;
        V total{};
        for (int64_t j = 0; j < p.r; j += VL) {
            const int n = static_cast<int>(std::min<int64_t>(VL, std::max<int64_t>(0, p.rank - j)));
            V e = keep_first(vexp(load(z + j) * p.inv_t - splat(most)), n);
            store(to + j, e);
            total += e;
        }
        const float scale = 1.0f / sum(total);
        for (int64_t j = 0; j < p.r; j += VL) store(to + j, load(to + j) * scale);
    }
}

// fresh = old * top / bottom, where bottom = old gram + eps (left in `bottom`); fresh may be old.
void update(const Plan& p, int64_t rows, const float* old, const float* top, const float* gram, float* bottom,
            float* fresh) {
    product(rows, p.r, p.r, old, p.r, 1, gram, p.r, bottom, p.r, false);
    for (int64_t i = 0; i < rows * p.r; i += VL) {
        V b = load(bottom + i) + p.eps;
        store(bottom + i, b);
        store(fresh + i, load(old + i) * load(top + i) / b);
    }
}

// Back through `update`: from the gradient of fresh (dfresh) to dtop and dold; gram_grad += old^T dbottom. dold may be
// dfresh.
void update_back(const Plan& p, int64_t rows, const float* old, const float* top, const float* gram_matrix,
                 const float* bottom, const float* fresh, const float* dfresh, float* dtop, float* dold, float* dbottom,
                 float* gram_grad) {
    for (int64_t i = 0; i < rows * p.r; i += VL) {
        V q = load(dfresh + i) / load(bottom + i);
        store(dtop + i, q * load(old + i));
        store(dbottom + i, -q * load(fresh + i));
        store(dold + i, q * load(top + i));
    }
    product(rows, p.r, p.r, dbottom, p.r, 1, gram_matrix, p.r, dold, p.r, true);
    gram(p, rows, old, dbottom, gram_grad, true);
}

// to[k * CHUNK + i] = from[i * r + k]
void transpose(const Plan& p, int64_t rows, const float* from, float* to) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < p.r; k++) to[k * CHUNK + i] = from[i * p.r + k];
    for (int64_t k = 0; rows < CHUNK && k < p.r; k++)
        std::memset(to + k * CHUNK + rows, 0, (CHUNK - rows) * sizeof(float));
}

// out[d][chunk's pixels] = weights (D, depth) times columns (depth, CHUNK).
void write_chunk(const Plan& p, int64_t depth, const float* weights, const float* columns, int64_t chunk, float* line,
                 float* out) {
    const int64_t width = p.width(chunk);
    float* to = out + chunk * CHUNK;
    if (width == CHUNK) return product(p.d, CHUNK, depth, weights, depth, 1, columns, CHUNK, to, p.l, false);
    product(p.d, CHUNK, depth, weights, depth, 1, columns, CHUNK, line, CHUNK, false);
    for (int64_t i = 0; i < p.d; i++) std::memcpy(to + i * p.l, line + i * CHUNK, width * sizeof(float));
}

// Symmetrised sum over the threads of their (r, r) parts: to = s + s^T, or just s.
void add_grams(const Plan& p, const float* parts, int64_t stride, int threads, bool symmetric, float* to) {
    for (int64_t i = 0; i < p.r; i++)
        for (int64_t j = 0; j < p.r; j++) {
            float total = 0;
            for (int t = 0; t < threads; t++) {
                const float* part = parts + t * stride;
                total += symmetric ? part[i * p.r + j] + part[j * p.r + i] : part[i * p.r + j];
            }
            to[i * p.r + j] = total;
        }
}

void add_parts(const float* parts, int64_t stride, int threads, int64_t first, int64_t last, float* to, bool add) {
    for (int64_t i = first; i < last; i += VL) {
        V total = add ? load(to + i) : V{};
        for (int t = 0; t < threads; t++) total += load(parts + t * stride + i);
        store(to + i, total);
    }
}

// What a thread owns: a part of each image or, where there are images enough, every image that falls to it, alone.
struct Share {
    int id, count;
    void wait() const {
        if (count > 1) {
#pragma omp barrier
        }
    }
    int64_t first(int64_t items) const { return items * id / count; }
    int64_t last(int64_t items) const { return items * (id + 1) / count; }
};

struct Forward {
    const Plan& p;
    float *xs, *parts, *threads_memory, *state;
    int64_t part_size, thread_size;

    // One pass: coefficients from `coef_old` to `coef_new` with `bases`; adds x c and c^T c, or writes y if it is the
    // last.
    void pass(Share me, bool first, float* coef_old, float* coef_new, const float* bases, float* y) const {
        const int64_t r = p.r, block = CHUNK * r;
        float *part = parts + me.id * part_size, *sums = part + p.d * r;
        float *memory = threads_memory + me.id * thread_size, *bases_gram = memory, *top = bases_gram + r * r;
        float *bottom = top + block, *columns = bottom + block, *line = columns + block;
        std::memset(part, 0, part_size * sizeof(float));
        gram(p, p.d, bases, bases, bases_gram, false);
        for (int64_t k = me.first(p.chunks); k < me.last(p.chunks); k++) {
            const float* x = xs + k * p.d * CHUNK;
            const int64_t width = p.width(k);
            float *old = coef_old + k * block, *fresh = coef_new + k * block;
            product(width, r, p.d, x, 1, CHUNK, bases, r, top, r, false);
            if (first) softmax(p, width, top, old);
            update(p, width, old, top, bases_gram, bottom, fresh);
            if (y) {
                transpose(p, width, fresh, columns);
                write_chunk(p, r, bases, columns, k, line, y);
            } else {
                product(p.d, r, width, x, CHUNK, 1, fresh, r, part, r, true);
                gram(p, width, fresh, fresh, sums, true);
            }
        }
    }

    void image(Share me, const float* x, const float* start, float* y, Saved saved) const {
        const int64_t r = p.r;
        const bool all = saved.steps == p.steps;   // else one state is kept, updated in place
        auto at = [&](int64_t t) { return all ? t : 0; };
        for (int64_t k = me.first(p.chunks); k < me.last(p.chunks); k++) load_chunk(p, x, k, xs + k * p.d * CHUNK);
        if (me.id == 0) load_bases(p, start, saved.bases(0));
        me.wait();
        for (int64_t t = 1; t <= p.steps; t++) {
            pass(me, t == 1, saved.coef(at(t - 1)), saved.coef(at(t)), saved.bases(at(t - 1)), nullptr);
            float* memory = threads_memory + me.id * thread_size;
            float *coef_gram = memory, *bottom = memory + r * r;
            me.wait();
            add_grams(p, parts + p.d * r, part_size, me.count, false, coef_gram);
            const int64_t a = me.first(p.d), b = me.last(p.d);
            float* top = all ? saved.top(t) : state;
            add_parts(parts, part_size, me.count, a * r, b * r, top, false);
            for (int64_t i = a; i < b; i += CHUNK)
                update(p, std::min(CHUNK, b - i), saved.bases(at(t - 1)) + i * r, top + i * r, coef_gram, bottom,
                       saved.bases(at(t)) + i * r);
            if (all && me.id == 0) std::memcpy(saved.gram(t), coef_gram, r * r * sizeof(float));
            me.wait();
        }
        // The last coefficients go to a place of their own: the backward pass needs those before.
        pass(me, p.steps == 0, saved.coef(at(p.steps)), state + p.d * r, saved.bases(at(p.steps)), y);
        me.wait();
    }
};

struct Backward {
    const Plan& p;
    const Saved saved;
    int64_t steps;                        // of the gradient: 0 for one_step
    float *xs, *parts, *threads_memory;
    float *z, *dcoef, *dbases, *weights, *dtop;   // z: (steps + 1) x (L, r); weights (D, depth)
    int64_t part_size, thread_size;

    int64_t depth() const { return (2 * steps + 1) * p.r; }

    // A pass over x for the update c_t -> c_{t+1} (the final one if t == steps); dtop_next: gradient of x c_{t+1}.
    void pass(Share me, int64_t t, const float* dy) const {
        const int64_t r = p.r, block = CHUNK * r;
        const float* bases = saved.bases(t);
        float *part = parts + me.id * part_size, *sums = part + p.d * r;
        float *memory = threads_memory + me.id * thread_size, *bases_gram = memory, *coef_gram = bases_gram + r * r;
        float *top = coef_gram + r * r, *bottom = top + block, *dbottom = bottom + block, *fresh_room = dbottom + block,
              *chunk = fresh_room + block;
        gram(p, p.d, bases, bases, bases_gram, false);
        if (t < steps) add_grams(p, parts + p.d * r, part_size, me.count, true, coef_gram);
        me.wait();
        std::memset(part, 0, part_size * sizeof(float));
        for (int64_t k = me.first(p.chunks); k < me.last(p.chunks); k++) {
            const float *x = xs + k * p.d * CHUNK, *old = saved.coef(t) + k * block, *fresh = fresh_room;
            float *dc = dcoef + k * block, *zk = z + t * p.l * r + k * block;
            const int64_t width = p.width(k);
            product(width, r, p.d, x, 1, CHUNK, bases, r, top, r, false);
            update(p, width, old, top, bases_gram, bottom, fresh_room);
            if (t == steps) {   // y = bases fresh^T
                load_chunk(p, dy, k, chunk);
                product(width, r, p.d, chunk, 1, CHUNK, bases, r, dc, r, false);
                if (!p.one_step) product(p.d, r, width, chunk, CHUNK, 1, fresh, r, part, r, true);
            } else {            // fresh made x c and c^T c
                product(width, r, p.d, x, 1, CHUNK, dtop, r, dc, r, true);
                product(width, r, r, fresh, r, 1, coef_gram, r, dc, r, true);
            }
            update_back(p, width, old, top, bases_gram, bottom, fresh, dc, zk, dc, dbottom, sums);
            if (t == 0 && !p.one_step) softmax_back(width, old, dc, zk);
            if (!p.one_step) product(p.d, r, width, x, CHUNK, 1, zk, r, part, r, true);
        }
    }

    // z += gradient of the softmax's argument, which has the same factor, the first bases.
    void softmax_back(int64_t rows, const float* coef, const float* dc, float* zk) const {
        for (int64_t i = 0; i < rows; i++) {
            V dot{};
            for (int64_t j = 0; j < p.r; j += VL) dot += load(coef + i * p.r + j) * load(dc + i * p.r + j);
            const float mean = sum(dot);
            for (int64_t j = 0; j < p.r; j += VL) {
                const int64_t q = i * p.r + j;
                store(zk + q, load(zk + q) + p.inv_t * load(coef + q) * (load(dc + q) - mean));
            }
        }
    }

    // dbases (+)= what the pass at step t found: x^T's part, and the bases' gram.
    void close_bases(Share me, int64_t t, bool add) const {
        const int64_t r = p.r, a = me.first(p.d), b = me.last(p.d);
        float* both = threads_memory + me.id * thread_size;
        add_grams(p, parts + p.d * r, part_size, me.count, true, both);
        add_parts(parts, part_size, me.count, a * r, b * r, dbases, add);
        product(b - a, r, r, saved.bases(t) + a * r, r, 1, both, r, dbases + a * r, r, true);
    }

    // Back through the bases' update b_{t-1} -> b_t: dbases, dtop, and each thread's part of the gram's gradient.
    void bases_back(Share me, int64_t t) const {
        const int64_t r = p.r, a = me.first(p.d), b = me.last(p.d);
        float *bottom = threads_memory + me.id * thread_size, *dbottom = bottom + CHUNK * r,
              *fresh = dbottom + CHUNK * r;
        float* sums = parts + me.id * part_size + p.d * r;
        std::memset(sums, 0, r * r * sizeof(float));
        for (int64_t i = a; i < b; i += CHUNK) {
            const int64_t rows = std::min(CHUNK, b - i), q = i * r;
            update(p, rows, saved.bases(t - 1) + q, saved.top(t) + q, saved.gram(t), bottom, fresh);
            update_back(p, rows, saved.bases(t - 1) + q, saved.top(t) + q, saved.gram(t), bottom, saved.bases(t) + q,
                        dbases + q, dtop + q, dbases + q, dbottom, sums);
            for (int64_t k = 0; k < rows; k++)
                std::memcpy(weights + (i + k) * depth() + (steps + t) * r, dtop + (i + k) * r, r * sizeof(float));
        }
    }

    void image(Share me, const float* x, const float* dy, float* dx, float* dstart) const {
        const int64_t r = p.r;
        for (int64_t k = me.first(p.chunks); k < me.last(p.chunks); k++) load_chunk(p, x, k, xs + k * p.d * CHUNK);
        for (int64_t i = me.first(p.d); i < me.last(p.d); i++)
            for (int64_t t = 0; t <= steps; t++)
                std::memcpy(weights + i * depth() + t * r, saved.bases(t) + i * r, r * sizeof(float));
        pass(me, steps, dy);
        me.wait();
        for (int64_t t = steps; t >= 0 && !p.one_step; t--) {
            close_bases(me, t, t < steps);
            me.wait();
            if (t == 0) break;
            bases_back(me, t);
            me.wait();
            pass(me, t - 1, nullptr);
            me.wait();
        }
        float *columns = threads_memory + me.id * thread_size, *line = columns + depth() * CHUNK;
        for (int64_t k = me.first(p.chunks); k < me.last(p.chunks); k++) {
            for (int64_t t = 0; t <= steps; t++)
                transpose(p, p.width(k), z + t * p.l * r + k * CHUNK * r, columns + t * r * CHUNK);
            for (int64_t t = 1; t <= steps; t++)
                transpose(p, p.width(k), saved.coef(t) + k * CHUNK * r, columns + (steps + t) * r * CHUNK);
            write_chunk(p, depth(), weights, columns, k, line, dx);
        }
        for (int64_t i = me.first(p.d); i < me.last(p.d); i++)
            for (int64_t j = 0; j < p.rank; j++) dstart[i * p.rank + j] = p.one_step ? 0.0f : dbases[i * r + j];
        me.wait();
    }
};

// Runs work(memory, share, n) for every image. With as many images as threads each image has one thread and nobody
// waits; else all threads share each image in turn. `floats` is what one image needs with `threads` threads on it.
template <class Floats, class Work>
void for_images(const Plan& p, Floats floats, Work work) {
    const int threads = omp_get_max_threads();
    const bool alone = p.n >= threads;
    const int64_t size = floats(alone ? 1 : threads);
    float* memory = scratch(alone ? size * threads : size);
#pragma omp parallel num_threads(threads)
    {
        NoDenormals guard;
        const int id = omp_get_thread_num(), count = omp_get_num_threads();
        if (alone)
            for (int64_t n = id; n < p.n; n += count) work(memory + id * size, Share{0, 1}, n, 1);
        else
            for (int64_t n = 0; n < p.n; n++) work(memory, Share{id, count}, n, threads);
    }
}

}  // namespace

// inputs x, bases; outputs y and, if the ninth scalar is 1, saved; scalars N, D, L, R, steps, inv_t, eps, one_step,
// save.
JSEG_KERNEL(jseg_nmf_forward) {
    const Plan p(call);
    const bool save = call.integer(8) != 0;
    const int64_t steps = save && !p.one_step ? p.steps : 0, per_image = p.saved_size(steps);
    const int64_t xs = p.chunks * CHUNK * p.d, part = p.d * p.r + p.r * p.r,
                  own = p.r * p.r + 3 * CHUNK * p.r + CHUNK * p.d;
    const int64_t state = p.d * p.r + p.chunks * CHUNK * p.r;
    auto floats = [&](int threads) { return xs + threads * (part + own) + state + per_image; };
    for_images(p, floats, [&](float* memory, Share me, int64_t n, int threads) {
        float *parts = memory + xs, *own_memory = parts + threads * part, *last = own_memory + threads * own;
        const Saved saved{p, save ? call.out<float>(1) + n * per_image : last + state, steps};
        const Forward f{p, memory, parts, own_memory, last, part, own};
        f.image(me, call.in<float>(0) + n * p.d * p.l, call.in<float>(1) + n * p.d * p.rank,
                call.out<float>(0) + n * p.d * p.l, saved);
    });
}

// inputs x, saved, dy; outputs dx, dbases; scalars as forward.
JSEG_KERNEL(jseg_nmf_backward) {
    const Plan p(call);
    const int64_t steps = p.one_step ? 0 : p.steps, per_image = p.saved_size(steps), depth = (2 * steps + 1) * p.r;
    const int64_t xs = p.chunks * CHUNK * p.d, part = p.d * p.r + p.r * p.r, coef = p.l * p.r;
    const int64_t own = std::max(2 * p.r * p.r + 4 * CHUNK * p.r, depth * CHUNK) + CHUNK * p.d;
    auto floats = [&](int threads) {
        return xs + threads * (part + own) + (steps + 2) * coef + p.d * (2 * p.r + depth);
    };
    for_images(p, floats, [&](float* memory, Share me, int64_t n, int threads) {
        float *parts = memory + xs, *own_memory = parts + threads * part, *z = own_memory + threads * own;
        float *dcoef = z + (steps + 1) * coef, *dbases = dcoef + coef, *dtop = dbases + p.d * p.r,
              *weights = dtop + p.d * p.r;
        const Saved saved{p, const_cast<float*>(call.in<float>(1)) + n * per_image, steps};
        const Backward b{p, saved, steps, memory, parts, own_memory, z, dcoef, dbases, weights, dtop, part, own};
        b.image(me, call.in<float>(0) + n * p.d * p.l, call.in<float>(2) + n * p.d * p.l,
                call.out<float>(0) + n * p.d * p.l, call.out<float>(1) + n * p.d * p.rank);
    });
}
