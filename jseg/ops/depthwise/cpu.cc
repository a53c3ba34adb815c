// Depthwise convolution with optional bias and GELU, forward and backward, one plane (n, c) at a time in cache.
//
//   z[y][x] = bias + sum_{i,j} w[i][j] * xpad[y * sy + i * dh][x * sx + j * dw]        y = z or gelu(z)
//   g = dy or dy * gelu'(z)       db = sum g       dw[i][j] = sum g[y][x] * xpad[...]       dx: the transpose
//
// A plane is copied once into a zero-padded buffer whose columns are split by phase (column modulo sx), so that every
// tap is a contiguous row at any stride:   buffer[(r * sx + phase) * ld + t] = xpad[r][t * sx + phase].
// z is computed again in the backward pass. Each plane's weight gradient has its own sums, added over n in order:
// results do not depend on the number of threads.
#include <algorithm>
#include <vector>
#include "call.h"
#include "plane.h"

namespace {
using namespace jseg;

struct Shape {
    int64_t n, c, h, w, oh, ow, kh, kw, sy, sx, ph, pw, dh, dw;
    bool gelu;
    int64_t ld, rows;                     // padded input, per phase
    int64_t gld, gtop, gleft, grows;      // padded gradient of z
    bool gather;                          // dx by correlation of the padded gradient
    std::vector<int64_t> offsets, goffsets;

    explicit Shape(const Call& call) {
        int64_t* fields[] = {&n, &c, &h, &w, &oh, &ow, &kh, &kw, &sy, &sx, &ph, &pw, &dh, &dw};
        for (int i = 0; i < 14; i++) *fields[i] = call.integer(i);
        gelu = call.integer(14) != 0;
        ld = row_stride(round_up(ow, VL) + (kw - 1) * dw / sx + 1);
        rows = (oh - 1) * sy + (kh - 1) * dh + 1;
        gather = sx == 1 && sy == 1 && ph <= dh * (kh - 1) && pw <= dw * (kw - 1);
        gtop = gather ? dh * (kh - 1) - ph : 0;
        gleft = gather ? dw * (kw - 1) - pw : 0;
        grows = gather ? h + dh * (kh - 1) : oh;
        gld = row_stride(std::max(gleft + round_up(ow, VL), round_up(w, VL) + dw * (kw - 1)) + 1);
        for (int64_t i = 0; i < kh; i++)
            for (int64_t j = 0; j < kw; j++) {
                offsets.push_back((i * dh * sx + j * dw % sx) * ld + j * dw / sx);
                goffsets.push_back(i * dh * gld + j * dw);
            }
    }
    int64_t taps() const { return kh * kw; }
    int64_t input_size() const { return rows * sx * ld + VL; }
    int64_t grad_size() const { return grows * gld + VL; }
    bool plain() const { return sx == 1 && sy == 1 && dh == 1 && dw == 1; }
    Pass forward_pass(const float* padded) const {
        return {padded, sy * sx * ld, nullptr, 0, oh, ow, static_cast<int>(taps()), offsets.data()};
    }
};

Correlate forward_kernel(const Shape& s) {
    if (!s.plain() || s.kh != s.kw) return correlate_any;
    return s.kh == 3 ? correlate_fixed<3, 3, 8> : s.kh == 5 ? correlate_fixed<5, 5, 4> : correlate_any;
}
CorrelateGrad grad_kernel(const Shape& s) {
    if (!s.plain() || s.kh != s.kw) return correlate_grad_any;
    return s.kh == 3 ? correlate_grad_fixed<3, 3, 8> : s.kh == 5 ? correlate_grad_fixed<5, 5, 4> : correlate_grad_any;
}

// x -> padded, phase-split buffer (already zero where the padding is).
void fill(const Shape& s, const float* x, float* padded) {
    for (int64_t r = std::max<int64_t>(0, s.ph); r < std::min(s.rows, s.ph + s.h); r++) {
        const float* row = x + (r - s.ph) * s.w;
        float* d = padded + r * s.sx * s.ld;
        int64_t columns = std::min(s.w, (s.ow - 1) * s.sx + (s.kw - 1) * s.dw + 1 - s.pw);   // later ones meet no tap
        if (s.sx == 1) {
            if (columns > 0) std::memcpy(d + s.pw, row, columns * sizeof(float));
        } else {
            for (int64_t q = 0; q < columns; q++) d[(q + s.pw) % s.sx * s.ld + (q + s.pw) / s.sx] = row[q];
        }
    }
}

void forward_plane(const Shape& s, Correlate kernel, const float* padded, const float* w, float bias, float* line,
                   float* y) {
    const int64_t step = 8, ld = round_up(s.ow, VL);
    for (int64_t top = 0; top < s.oh; top += step) {
        Pass p = s.forward_pass(padded + top * s.sy * s.sx * s.ld);
        p.dst = line, p.dst_ld = ld, p.rows = std::min(step, s.oh - top);
        kernel(p, w, bias, false);
        for (int64_t r = 0; r < p.rows; r++)
            for (int64_t x = 0; x < s.ow; x += VL) {
                V z = load(line + r * ld + x);
                store_part(y + (top + r) * s.ow + x, s.gelu ? gelu(z) : z,
                           static_cast<int>(std::min<int64_t>(VL, s.ow - x)));
            }
    }
}

// dy -> g, in the padded gradient buffer (zero elsewhere).
void fill_grad(const Shape& s, Correlate kernel, const float* padded, const float* w, float bias, const float* dy,
               float* g) {
    float* origin = g + s.gtop * s.gld + s.gleft;
    if (s.gelu) {
        Pass p = s.forward_pass(padded);
        p.dst = origin, p.dst_ld = s.gld;
        kernel(p, w, bias, false);
    }
    for (int64_t y = 0; y < s.oh; y++)
        for (int64_t x = 0; x < s.ow; x += VL) {
            int n = static_cast<int>(std::min<int64_t>(VL, s.ow - x));
            V v = load_part(dy + y * s.ow + x, n);
            float* d = origin + y * s.gld + x;
            if (s.gelu) v *= gelu_slope(load(d));
            store(d, v);
        }
}

// dx for strides (and paddings wider than the filter): every tap adds its row into a buffer like the padded input.
void scatter(const Shape& s, const float* g, const float* w, float* padded, float* dx) {
    std::memset(padded, 0, s.input_size() * sizeof(float));
    for (int64_t y = 0; y < s.oh; y++)
        for (int64_t t = 0; t < s.taps(); t++) {
            float* d = padded + y * s.sy * s.sx * s.ld + s.offsets[t];
            for (int64_t x = 0; x < s.ow; x += VL) store(d + x, load(d + x) + splat(w[t]) * load(g + y * s.gld + x));
        }
    for (int64_t r = 0; r < s.h; r++)
        for (int64_t q = 0; q < s.w; q++) {
            int64_t row = r + s.ph, column = q + s.pw;
            bool inside = row < s.rows && column / s.sx < s.ld;
            dx[r * s.w + q] = inside ? padded[(row * s.sx + column % s.sx) * s.ld + column / s.sx] : 0.0f;
        }
}

void gather(const Shape& s, const float* g, const float* w, float* line, float* dx) {
    std::vector<float> flipped(w, w + s.taps());
    std::reverse(flipped.begin(), flipped.end());
    Correlate kernel = forward_kernel(s);
    const int64_t step = 8, ld = round_up(s.w, VL);
    for (int64_t top = 0; top < s.h; top += step) {
        Pass p{g + top * s.gld,  s.gld, line, ld, std::min(step, s.h - top), s.w, static_cast<int>(s.taps()),
               s.goffsets.data()};
        kernel(p, flipped.data(), 0.0f, false);
        for (int64_t r = 0; r < p.rows; r++) std::memcpy(dx + (top + r) * s.w, line + r * ld, s.w * sizeof(float));
    }
}

}  // namespace

// inputs x, w, bias or None; output y; scalars: see Shape.
JSEG_KERNEL(jseg_depthwise_forward) {
    const Shape s(call);
    const float *x = call.in<float>(0), *w = call.in<float>(1), *bias = call.in<float>(2);
    float* y = call.out<float>(0);
    Correlate kernel = forward_kernel(s);
#pragma omp parallel
    {
        NoDenormals guard;
        float* padded = scratch(s.input_size() + 8 * round_up(s.ow, VL));
        std::memset(padded, 0, s.input_size() * sizeof(float));
#pragma omp for schedule(dynamic, 1)
        for (int64_t p = 0; p < s.n * s.c; p++) {
            int64_t c = p % s.c;
            fill(s, x + p * s.h * s.w, padded);
            forward_plane(s, kernel, padded, w + c * s.taps(), bias ? bias[c] : 0.0f, padded + s.input_size(),
                          y + p * s.oh * s.ow);
        }
    }
}

// inputs x, w, bias or None, dy; outputs dx, dw, db.
JSEG_KERNEL(jseg_depthwise_backward) {
    const Shape s(call);
    const float *x = call.in<float>(0), *w = call.in<float>(1), *bias = call.in<float>(2), *dy = call.in<float>(3);
    float *dx = call.out<float>(0), *dw = call.out<float>(1), *db = call.out<float>(2);
    const int64_t taps = s.taps(), sums = taps + 1;
    std::vector<double> parts(s.n * s.c * sums, 0.0);
    Correlate kernel = forward_kernel(s);
    CorrelateGrad grad = grad_kernel(s);
#pragma omp parallel
    {
        NoDenormals guard;
        float* padded = scratch(s.input_size() + s.grad_size() + 8 * round_up(std::max(s.w, s.ow), VL));
        float *g = padded + s.input_size(), *line = g + s.grad_size();
        std::memset(padded, 0, (s.input_size() + s.grad_size()) * sizeof(float));
#pragma omp for schedule(dynamic, 1)
        for (int64_t p = 0; p < s.n * s.c; p++) {
            int64_t c = p % s.c;
            const float* weight = w + c * taps;
            if (!s.gather) std::memset(padded, 0, s.input_size() * sizeof(float));   // scatter used it
            fill(s, x + p * s.h * s.w, padded);
            fill_grad(s, kernel, padded, weight, bias ? bias[c] : 0.0f, dy + p * s.oh * s.ow, g);
            const float* origin = g + s.gtop * s.gld + s.gleft;
            Pass pass = s.forward_pass(padded);
            pass.dst = const_cast<float*>(origin), pass.dst_ld = s.gld;
            grad(pass, &parts[p * sums]);
            parts[p * sums + taps] = plane_sum(origin, s.gld, s.oh, s.ow);
            if (s.gather) gather(s, g, weight, line, dx + p * s.h * s.w);
            else scatter(s, g, weight, padded, dx + p * s.h * s.w);
        }
#pragma omp for schedule(static)
        for (int64_t c = 0; c < s.c; c++)
            for (int64_t t = 0; t < sums; t++) {
                double total = 0;
                for (int64_t n = 0; n < s.n; n++) total += parts[(n * s.c + c) * sums + t];
                (t < taps ? dw[c * taps + t] : db[c]) = static_cast<float>(total);
            }
    }
}
