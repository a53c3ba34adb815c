// Bilinear resizing of planes on the CPU, see include/bilinear.h for the positions.
//
// Forward: source rows are stretched to the output's width as they are needed, two are kept; output rows are mixed from
// the two in vectors. Backward, the transpose: the output rows that read a source row are added up in vectors, then
// along the row.
#include "bilinear.h"
#include "call.h"

using namespace jseg;

namespace {

struct Resize {
    int64_t planes, h, w, height, width, step;   // step: floats of an output row, whole vectors
    Taps rows, columns;
    explicit Resize(const Call& call)
        : planes(call.integer(0)), h(call.integer(1)), w(call.integer(2)), height(call.integer(3)),
          width(call.integer(4)), step(round_up(width, VL)), rows(int(h), int(height), call.integer(5)),
          columns(int(w), int(width), call.integer(5)) {}
};

// One source row at the output's width.
void stretch(const Resize& r, const float* from, float* to) {
    const int *lower = r.columns.lower.data(), *upper = r.columns.upper.data();
    const float* fraction = r.columns.fraction.data();
    for (int64_t x = 0; x < r.width; x++) to[x] = from[lower[x]] * (1.0f - fraction[x]) + from[upper[x]] * fraction[x];
}

void resize_plane(const Resize& r, const float* x, const float* add, float* y, float* memory) {
    float *kept[2] = {memory, memory + r.step};
    int64_t holds[2] = {-1, -1};
    auto row = [&](int64_t source, int64_t other) {   // where the stretched source row is; `other` must stay
        for (int i = 0; i < 2; i++)
            if (holds[i] == source) return kept[i];
        const int i = holds[0] == other ? 1 : 0;
        stretch(r, x + source * r.w, kept[i]);
        holds[i] = source;
        return kept[i];
    };
    for (int64_t o = 0; o < r.height; o++) {
        const float *low = row(r.rows.lower[o], r.rows.upper[o]), *high = row(r.rows.upper[o], r.rows.lower[o]);
        const V a = splat(1.0f - r.rows.fraction[o]), b = splat(r.rows.fraction[o]);
        const int64_t at = o * r.width;
        for (int64_t i = 0; i < r.width; i += VL) {
            V value = a * load(low + i) + b * load(high + i);
            if (add) value += load_part(add + at + i, r.width - i);
            store_part(y + at + i, value, r.width - i);
        }
    }
}

// part += weight * from, one row of `count` floats; `part` has whole vectors.
void add_row(int64_t count, const float* from, float weight, float* part) {
    const V factor = splat(weight);
    for (int64_t i = 0; i < count; i += VL) store(part + i, load(part + i) + factor * load_part(from + i, count - i));
}

void gather_plane(const Resize& r, const float* dy, float* dx, float* part) {
    for (int64_t s = 0; s < r.h; s++) {
        std::memset(part, 0, r.step * sizeof(float));
        if (s)   // outputs between source rows s - 1 and s
            for (int64_t o = r.rows.first[s - 1]; o < r.rows.first[s]; o++)
                add_row(r.width, dy + o * r.width, r.rows.fraction[o], part);
        for (int64_t o = r.rows.first[s]; o < r.rows.first[s + 1]; o++)
            add_row(r.width, dy + o * r.width, 1.0f - r.rows.fraction[o], part);
        float* to = dx + s * r.w;
        std::memset(to, 0, r.w * sizeof(float));
        for (int64_t i = 0; i < r.width; i++) {
            const float share = part[i] * r.columns.fraction[i];
            to[r.columns.lower[i]] += part[i] - share;
            to[r.columns.upper[i]] += share;
        }
    }
}

}  // namespace

// in: x (P, h, w), add (P, H, W) or absent; out: y (P, H, W); integers: P h w H W align_corners
JSEG_KERNEL(jseg_bilinear_resize_forward) {
    const Resize r(call);
    const float *x = call.in<float>(0), *add = call.in<float>(1);
    float *y = call.out<float>(0), *memory = scratch(omp_get_max_threads() * 2 * r.step);
#pragma omp parallel
    {
        NoDenormals guard;
        float* rows = memory + omp_get_thread_num() * 2 * r.step;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < r.planes; p++)
            resize_plane(r, x + p * r.h * r.w, add ? add + p * r.height * r.width : nullptr, y + p * r.height * r.width,
                         rows);
    }
}

// in: dy (P, H, W); out: dx (P, h, w); integers as above
JSEG_KERNEL(jseg_bilinear_resize_backward) {
    const Resize r(call);
    const float* dy = call.in<float>(0);
    float *dx = call.out<float>(0), *memory = scratch(omp_get_max_threads() * r.step);
#pragma omp parallel
    {
        NoDenormals guard;
        float* part = memory + omp_get_thread_num() * r.step;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < r.planes; p++) gather_plane(r, dy + p * r.height * r.width, dx + p * r.h * r.w, part);
    }
}
