// Multi-scale convolutional attention (SegNeXt), depthwise part, forward and backward.
//
//   a = conv0(x) + b0        t_s = row_s(a) + br_s        y = a + sum_s (col_s(t_s) + bc_s)
//
//   da = dy + sum_s row_s'(col_s'(dy))        dx = conv0'(da)     (' = transposed: correlation with the flipped filter)
//   dcol_s[i] = sum dy * t_s shifted i        drow_s[j] = sum col_s'(dy) * a shifted j        dw0 = sum da * x shifted
//
// One task is a band of rows of one plane (n, c). Its rows and a halo are copied into zero-padded buffers, all of one
// geometry, that fit the second-level cache; x is read once and y written once. A band recomputes what it needs of its
// neighbours, a and t_s included in the backward pass, so tasks share nothing. Weight gradients are sums per task,
// added in task order: results do not depend on the number of threads.
#include <algorithm>
#include <unistd.h>
#include <vector>
#include "call.h"
#include "plane.h"

namespace {
using namespace jseg;

struct Filter {
    const float* weight;   // (C, taps)
    const float* bias;     // (C,)
    int kh, kw, taps, first;   // first: where its sums start (weights, then the bias)
    Correlate run;
    CorrelateGrad grad;
    std::vector<int64_t> offsets;
};

#define JSEG_ROW(k) case k: f.run = correlate_fixed<1, k, 4>, f.grad = correlate_grad_fixed<1, k, 1>; break
#define JSEG_COLUMN(k) case k: f.run = correlate_fixed<k, 1, 8>, f.grad = correlate_grad_fixed<k, 1, 8>; break

Filter make_filter(const float* weight, const float* bias, int kh, int kw, int64_t ld, int& sums) {
    Filter f{weight, bias, kh, kw, kh * kw, sums, correlate_any, correlate_grad_any, {}};
    sums += f.taps + 1;
    for (int i = 0; i < kh; i++)
        for (int j = 0; j < kw; j++) f.offsets.push_back(i * ld + j);
    if (kh == 3 && kw == 3) f.run = correlate_fixed<3, 3, 8>, f.grad = correlate_grad_fixed<3, 3, 8>;
    else if (kh == 5 && kw == 5) f.run = correlate_fixed<5, 5, 4>, f.grad = correlate_grad_fixed<5, 5, 4>;
    else if (kh == 1)
        switch (kw) { JSEG_ROW(3); JSEG_ROW(5); JSEG_ROW(7); JSEG_ROW(9); JSEG_ROW(11); JSEG_ROW(15); JSEG_ROW(21); }
    else if (kw == 1) switch (kh) {
            JSEG_COLUMN(3);
            JSEG_COLUMN(5);
            JSEG_COLUMN(7);
            JSEG_COLUMN(9);
            JSEG_COLUMN(11);
            JSEG_COLUMN(15);
            JSEG_COLUMN(21);
        }
    return f;
}

// Shapes, filters and the geometry of the padded buffers. Buffer row 0 is plane row `top - halo` of the band.
struct Plan {
    int64_t n, c, h, w, ld, left, size;
    int64_t reach, halo;                 // largest half strip; that plus half of conv0
    int64_t band, bands;
    int sums = 0;
    Filter conv0;
    std::vector<Filter> rows, columns;

    Plan(const Call& call, int buffers) {
        n = call.integer(0), c = call.integer(1), h = call.integer(2), w = call.integer(3);
        const int strips = static_cast<int>(call.integer(4)), k0 = static_cast<int>(call.integer(5));
        reach = 0;
        for (int s = 0; s < strips; s++) reach = std::max<int64_t>(reach, call.integer(6 + s) / 2);
        halo = reach + k0 / 2;
        left = round_up(std::max<int64_t>(reach, k0 / 2), VL);
        ld = row_stride(2 * left + round_up(w, VL));
        const int64_t l2 = std::max<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), 256 << 10);
        const int64_t fit = l2 * 3 / 4 / (4 * ld * buffers) - 2 * halo;
        band = std::min(h, std::max<int64_t>({fit, 2 * halo, 16}));
        bands = (h + band - 1) / band;
        band = (h + bands - 1) / bands;
        size = (band + 2 * halo) * ld + VL;
        conv0 = make_filter(call.in<float>(1), call.in<float>(2), k0, k0, ld, sums);
        for (int s = 0; s < strips; s++) {
            const int k = static_cast<int>(call.integer(6 + s));
            rows.push_back(make_filter(call.in<float>(3 + 4 * s), call.in<float>(4 + 4 * s), 1, k, ld, sums));
            columns.push_back(make_filter(call.in<float>(5 + 4 * s), call.in<float>(6 + 4 * s), k, 1, ld, sums));
        }
    }
};

// One band of one plane: where its rows lie, and the steps on them.
struct Band {
    const Plan& plan;
    int64_t channel, top, end;

    // Pixel (row, 0) of a buffer.
    float* at(float* buffer, int64_t row) const { return buffer + (row - top + plan.halo) * plan.ld + plan.left; }
    int64_t clip(int64_t row) const { return std::min(std::max<int64_t>(row, 0), plan.h); }

    // Zero the rows of [first, last) that lie outside the plane.
    void clear_outside(float* buffer, int64_t first, int64_t last) const {
        for (int64_t r = first; r < last; r++)
            if (r < 0 || r >= plan.h) std::memset(at(buffer, r) - plan.left, 0, plan.ld * sizeof(float));
    }
    void copy_in(const float* plane, float* buffer, int64_t reach) const {
        clear_outside(buffer, top - reach, end + reach);
        for (int64_t r = clip(top - reach); r < clip(end + reach); r++)
            std::memcpy(at(buffer, r), plane + r * plan.w, plan.w * sizeof(float));
    }
    Pass pass(const Filter& f, float* src, float* dst, int64_t first, int64_t last) const {
        return {at(src, first - f.kh / 2) - f.kw / 2, plan.ld, at(dst, first), plan.ld, last - first, plan.w, f.taps,
                f.offsets.data()};
    }
    void forward(const Filter& f, float* src, float* dst, int64_t first, int64_t last, bool add) const {
        f.run(pass(f, src, dst, clip(first), clip(last)), f.weight + channel * f.taps, f.bias[channel], add);
    }
    void transposed(const Filter& f, float* src, float* dst, int64_t first, int64_t last, bool add) const {
        float flipped[32 * 32];
        std::reverse_copy(f.weight + channel * f.taps, f.weight + (channel + 1) * f.taps, flipped);
        f.run(pass(f, src, dst, clip(first), clip(last)), flipped, 0.0f, add);
    }
    // Sums of gradient g against the filter's input, over the band's own rows.
    void filter_grad(const Filter& f, float* input, float* g, double* sums) const {
        f.grad(pass(f, input, g, top, end), sums + f.first);
        sums[f.first + f.taps] += plane_sum(at(g, top), plan.ld, end - top, plan.w);
    }
};

void forward_band(const Band& b, const float* x, float* y, float* memory) {
    const Plan& plan = b.plan;
    float *in = memory, *a = in + plan.size, *t = a + plan.size, *out = t + plan.size;
    b.copy_in(x, in, plan.halo);
    b.clear_outside(a, b.top - plan.reach, b.end + plan.reach);
    b.clear_outside(t, b.top - plan.reach, b.end + plan.reach);
    b.forward(plan.conv0, in, a, b.top - plan.reach, b.end + plan.reach, false);
    for (size_t s = 0; s < plan.rows.size(); s++) {
        const int64_t half = plan.columns[s].kh / 2;
        b.forward(plan.rows[s], a, t, b.top - half, b.end + half, false);
        b.forward(plan.columns[s], t, out, b.top, b.end, s > 0);
    }
    const bool strips = !plan.rows.empty();
    for (int64_t r = b.top; r < b.end; r++)
        for (int64_t i = 0; i < plan.w; i += VL) {
            V v = load(b.at(a, r) + i);
            if (strips) v += load(b.at(out, r) + i);
            store_part(y + r * plan.w + i, v, static_cast<int>(std::min<int64_t>(VL, plan.w - i)));
        }
}

void backward_band(const Band& b, const float* x, const float* dy, float* dx, double* sums, float* memory) {
    const Plan& plan = b.plan;
    float *in = memory, *a = in + plan.size, *t = a + plan.size, *g = t + plan.size, *dt = g + plan.size,
          *da = dt + plan.size;
    const int64_t near = plan.conv0.kh / 2;   // rows of da beyond the band that dx needs
    b.copy_in(x, in, plan.halo);
    b.copy_in(dy, g, plan.halo);
    b.copy_in(dy, da, near);
    b.clear_outside(a, b.top - plan.reach, b.end + plan.reach);
    b.clear_outside(t, b.top - plan.reach, b.end + plan.reach);
    b.forward(plan.conv0, in, a, b.top - plan.reach, b.end + plan.reach, false);
    for (size_t s = 0; s < plan.rows.size(); s++) {
        const Filter &row = plan.rows[s], &column = plan.columns[s];
        const int64_t half = column.kh / 2;
        b.forward(row, a, t, b.top - half, b.end + half, false);
        b.filter_grad(column, t, g, sums);
        b.transposed(column, g, dt, b.top - near, b.end + near, false);
        b.filter_grad(row, a, dt, sums);
        b.transposed(row, dt, da, b.top - near, b.end + near, true);
    }
    b.filter_grad(plan.conv0, in, da, sums);
    b.transposed(plan.conv0, da, t, b.top, b.end, false);   // t is free now
    for (int64_t r = b.top; r < b.end; r++) std::memcpy(dx + r * plan.w, b.at(t, r), plan.w * sizeof(float));
}

// Calls work(band, plane index, task index, memory) for every band of every plane.
template <class Work>
void for_bands(const Plan& plan, int buffers, Work work) {
#pragma omp parallel
    {
        NoDenormals guard;
        float* memory = scratch(buffers * plan.size);
        // the left and right borders stay zero from here on
        std::memset(memory, 0, buffers * plan.size * sizeof(float));
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < plan.n * plan.c * plan.bands; task++) {
            const int64_t plane = task / plan.bands, top = task % plan.bands * plan.band;
            if (top >= plan.h) continue;
            work(Band{plan, plane % plan.c, top, std::min(plan.h, top + plan.band)}, plane, task, memory);
        }
    }
}

}  // namespace

// inputs x, w0, b0, then per strip w_row, b_row, w_col, b_col; output y; scalars N, C, H, W, strips, k0, k of each
// strip.
JSEG_KERNEL(jseg_msca_forward) {
    const Plan plan(call, 4);
    const float* x = call.in<float>(0);
    float* y = call.out<float>(0);
    const int64_t area = plan.h * plan.w;
    for_bands(plan, 4, [&](const Band& band, int64_t plane, int64_t, float* memory) {
        forward_band(band, x + plane * area, y + plane * area, memory);
    });
}

// inputs as forward, then dy; outputs: one gradient per input.
JSEG_KERNEL(jseg_msca_backward) {
    const Plan plan(call, 6);
    const int strips = static_cast<int>(plan.rows.size());
    const float *x = call.in<float>(0), *dy = call.in<float>(3 + 4 * strips);
    float* dx = call.out<float>(0);
    const int64_t area = plan.h * plan.w;
    std::vector<double> parts(plan.n * plan.c * plan.bands * plan.sums, 0.0);
    for_bands(plan, 6, [&](const Band& band, int64_t plane, int64_t task, float* memory) {
        backward_band(band, x + plane * area, dy + plane * area, dx + plane * area, &parts[task * plan.sums], memory);
    });
    std::vector<const Filter*> filters{&plan.conv0};
    for (int s = 0; s < strips; s++) filters.push_back(&plan.rows[s]), filters.push_back(&plan.columns[s]);
    for (int64_t c = 0; c < plan.c; c++)
        for (size_t f = 0; f < filters.size(); f++)
            for (int t = 0; t <= filters[f]->taps; t++) {
                double total = 0;
                for (int64_t n = 0; n < plan.n; n++)
                    for (int64_t b = 0; b < plan.bands; b++)
                        total += parts[((n * plan.c + c) * plan.bands + b) * plan.sums + filters[f]->first + t];
                const int taps = filters[f]->taps, out = 1 + 2 * static_cast<int>(f);
                if (t < taps) call.out<float>(out)[c * taps + t] = static_cast<float>(total);
                else call.out<float>(out + 1)[c] = static_cast<float>(total);
            }
}
