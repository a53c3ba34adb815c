// Criss-cross attention on the CPU: softmax over the row and the column of every position, forward and backward.
//
// A line is a row or a column. Its products are small matrices, over positions t and s of the line:
//     A[t][s] = q[t] . k[s]     then, over both lines of t:  A = softmax(A), A[t][t] of the column left out
//     y[t] += sum_s A[t][s] v[s]
// Backward:  G[t][s] = dy[t] . v[s],  G = A (G - sum A G) over both lines,  dv[s] += sum_t A[t][s] dy[t],
//            dq[t] += sum_s G[t][s] k[s],  dk[s] += sum_t G[t][s] q[t]
// Weights are kept as (N, H, W, column then row), each filled up with zeros to a multiple of 16. Columns are done first
// and write, rows then add: results do not depend on the number of threads.
#include <algorithm>
#include <limits>

#include "call.h"
#include "lanes.h"
#include "product.h"

using namespace jseg;

namespace {

constexpr int64_t ALIGN = 16;   // as in op.py
static_assert(ALIGN % VL == 0, "lines are whole vectors");

struct Shape {
    int64_t n, c, d, h, w;
    explicit Shape(const Call& call)
        : n(call.integer(0)), c(call.integer(1)), d(call.integer(2)), h(call.integer(3)), w(call.integer(4)) {}
    int64_t area() const { return h * w; }
    int64_t down() const { return round_up(h, ALIGN); }     // places of a column
    int64_t across() const { return round_up(w, ALIGN); }   // places of a row
    int64_t places() const { return down() + across(); }
    int64_t memory() const {
        const int64_t longest = std::max(down(), across());
        return (std::max(c, d) + longest) * longest;
    }
};

// Position t of a line is first + t * step on the map; its weights begin at `place`.
struct Line {
    int64_t first, step, length, places, place;
    static Line column(const Shape& s, int64_t i) { return {i, s.w, s.h, s.down(), 0}; }
    static Line row(const Shape& s, int64_t i) { return {i * s.w, 1, s.w, s.across(), s.down()}; }
    int64_t weights(const Shape& s) const { return first * s.places() + place; }
    int64_t weights_step(const Shape& s) const { return step * s.places(); }
};

// to[t][s] = a[t] . b[s] over `depth` channels of maps a and b; places beyond the line get 0.
void pair_products(const Shape& s, const Line& line, int64_t depth, const float* a, const float* b, float* to,
                   float* memory) {
    for (int64_t c = 0; c < depth; c++) {
        float* row = memory + c * line.places;
        const float* from = b + c * s.area() + line.first;
        for (int64_t i = 0; i < line.length; i++) row[i] = from[i * line.step];
        std::fill(row + line.length, row + line.places, 0.0f);
    }
    product(line.length, line.places, depth, a + line.first, line.step, s.area(), memory, line.places,
            to + line.weights(s), line.weights_step(s), false);
}

// to[t] (+)= sum_s weights[t][s] from[s], or turned: to[s] (+)= sum_t weights[t][s] from[t], for `channels` of maps.
void mix(const Shape& s, const Line& line, bool turned, bool add, int64_t channels, const float* weights,
         const float* from, float* to, float* memory) {
    const float* factors = weights + line.weights(s);
    int64_t step = line.weights_step(s);
    float* sums = memory + line.length * line.places;
    if (!turned) {
        for (int64_t t = 0; t < line.length; t++)
            for (int64_t i = 0; i < line.length; i++) memory[i * line.places + t] = factors[t * step + i];
        for (int64_t i = 0; i < line.length; i++)
            std::fill(memory + i * line.places + line.length, memory + (i + 1) * line.places, 0.0f);
        factors = memory, step = line.places;
    }
    product(channels, line.places, line.length, from + line.first, s.area(), line.step, factors, step, sums,
            line.places, false);
    for (int64_t c = 0; c < channels; c++) {
        float* out = to + c * s.area() + line.first;
        const float* in = sums + c * line.places;
        for (int64_t i = 0; i < line.length; i++) out[i * line.step] = (add ? out[i * line.step] : 0.0f) + in[i];
    }
}

// The softmax of one position's scores, in place; `itself` is its place in its column.
void softmax(const Shape& s, int64_t itself, float* scores) {
    scores[itself] = -std::numeric_limits<float>::infinity();
    float* const parts[2] = {scores, scores + s.down()};
    const int64_t lengths[2] = {s.h, s.w}, places[2] = {s.down(), s.across()};
    float top = scores[s.down()];
    for (int part = 0; part < 2; part++)
        for (int64_t i = 0; i < lengths[part]; i++) {
            const float score = parts[part][i];
            top = score > top || score != score ? score : top;
        }
    V sums{};
    for (int part = 0; part < 2; part++)
        for (int64_t i = 0; i < places[part]; i += VL) {
            V e = vexp_falling(load(parts[part] + i) - top);
            e = keep_first(e, int(std::clamp<int64_t>(lengths[part] - i, 0, VL)));
            if (part == 0 && itself >= i && itself < i + VL) e[itself - i] = 0.0f;
            store(parts[part] + i, e);
            sums += e;
        }
    const V share = splat(1.0f / lanes_sum(sums));
    for (int64_t i = 0; i < s.places(); i += VL) store(scores + i, load(scores + i) * share);
}

// Gradients of one position's weights become those of its scores, in place.
void softmax_back(const Shape& s, const float* weights, float* gradients) {
    V sums{};
    for (int64_t i = 0; i < s.places(); i += VL) sums += load(weights + i) * load(gradients + i);
    const V mean = splat(lanes_sum(sums));
    for (int64_t i = 0; i < s.places(); i += VL) store(gradients + i, load(weights + i) * (load(gradients + i) - mean));
}

// work(image, line, memory) for all columns, then for all rows.
template <class Work> void each_line(const Shape& s, bool together, Work&& work) {
    const int64_t counts[2] = {s.w, s.h};
#pragma omp parallel
    {
        NoDenormals guard;
        float* memory = scratch(s.memory());
        for (int kind = 0; kind < 2; kind++) {
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < s.n * counts[kind]; i++) {
                const int64_t at = i % counts[kind];
                work(i / counts[kind], kind ? Line::row(s, at) : Line::column(s, at), memory);
            }
            if (!together) {
#pragma omp barrier
            }
        }
    }
}

// work(position) for all positions of all pictures.
template <class Work> void each_position(const Shape& s, Work&& work) {
#pragma omp parallel
    {
        NoDenormals guard;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s.n * s.area(); i++) work(i);
    }
}

}  // namespace

// in: query, key (N, C, H, W), value (N, D, H, W); out: y (N, D, H, W), weights (N, H, W, places); scalars: N C D H W
JSEG_KERNEL(jseg_criss_cross_forward) {
    const Shape s(call);
    const float *query = call.in<float>(0), *key = call.in<float>(1), *value = call.in<float>(2);
    float *y = call.out<float>(0), *weights = call.out<float>(1);
    const int64_t narrow = s.c * s.area(), wide = s.d * s.area(), all = s.area() * s.places();
    each_line(s, true, [=, &s](int64_t n, const Line& line, float* memory) {
        pair_products(s, line, s.c, query + n * narrow, key + n * narrow, weights + n * all, memory);
    });
    each_position(s, [=, &s](int64_t i) { softmax(s, i % s.area() / s.w, weights + i * s.places()); });
    each_line(s, false, [=, &s](int64_t n, const Line& line, float* memory) {
        mix(s, line, false, line.place != 0, s.d, weights + n * all, value + n * wide, y + n * wide, memory);
    });
}

// in: query, key, value, weights, dy; out: their gradients, the last one as memory; scalars as forward
JSEG_KERNEL(jseg_criss_cross_backward) {
    const Shape s(call);
    const float *query = call.in<float>(0), *key = call.in<float>(1), *value = call.in<float>(2);
    const float *weights = call.in<float>(3), *dy = call.in<float>(4);
    float *dquery = call.out<float>(0), *dkey = call.out<float>(1), *dvalue = call.out<float>(2);
    float* slopes = call.out<float>(3);
    const int64_t narrow = s.c * s.area(), wide = s.d * s.area(), all = s.area() * s.places();
    each_line(s, true, [=, &s](int64_t n, const Line& line, float* memory) {
        pair_products(s, line, s.d, dy + n * wide, value + n * wide, slopes + n * all, memory);
    });
    each_position(s, [=, &s](int64_t i) { softmax_back(s, weights + i * s.places(), slopes + i * s.places()); });
    each_line(s, false, [=, &s](int64_t n, const Line& line, float* memory) {
        const bool add = line.place != 0;
        mix(s, line, true, add, s.d, weights + n * all, dy + n * wide, dvalue + n * wide, memory);
        mix(s, line, false, add, s.c, slopes + n * all, key + n * narrow, dquery + n * narrow, memory);
        mix(s, line, true, add, s.c, slopes + n * all, query + n * narrow, dkey + n * narrow, memory);
    });
}
