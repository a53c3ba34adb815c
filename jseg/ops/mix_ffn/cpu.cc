// Y = shortcut + factor[image] scale (W2 gelu(dw3x3(W1 X + b1) + bd) + b2) on the CPU, X (N, C, H, W), hidden E
// channels, Y (N, D, H, W). Shortcut, factor (N) and scale (D) may be absent; so may an affine input in_scale X +
// in_shift, which goes into W1 and b1.
//
// Forward: a tile of output pixels stays in the second-level cache. For each chunk of hidden channels: hidden values on
// the tile and one pixel around it; then, a strip of rows at a time, depthwise filter and GELU straight into panels,
// and their product with that chunk's columns of W2 added to the tile of Y.
// Backward: for a few images and a chunk of hidden channels at a time, with G = gelu(A), A = dw(U) + bd, U = W1 X + b1:
//     dG = W2^T dY,  dA = dG gelu'(A),  dW2 = dY G^T,  dU = dw^T(dA),  dW1 = dU X^T,  dX += W1^T dU,
// and sums for the rest; dY times factor takes the place of dY, scale goes into W2, and dscale = W2 . dW2 + b2 db2 by
// rows. The hidden tensor never exists as a whole. Sums run in an order that no thread count changes.
#include <unistd.h>

#include "call.h"
#include "gemm.h"
#include "plane.h"

using namespace jseg;

namespace {

struct Shape {
    int64_t n, c, e, d, h, w, pixels;
    explicit Shape(const Call& call)
        : n(call.integer(0)), c(call.integer(1)), e(call.integer(2)), d(call.integer(3)), h(call.integer(4)),
          w(call.integer(5)), pixels(h * w) {}
};

// Floats that fit in one core's second-level cache.
int64_t cache_floats() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
    static const int64_t bytes = 0;
#endif
    return (bytes > 0 ? std::clamp<int64_t>(bytes, 1 << 18, 1 << 22) : 1 << 19) / 4;
}

// ---- forward --------------------------------------------------------------------------------------------------------

constexpr int FILTER_ROWS = VL == 16 ? 3 : 2;   // rows of hidden values that are read once for several output rows

struct Tiling {
    // hidden channels of a chunk; sides of a tile; number of tiles down and across
    int64_t chunk, th, tw, rows, columns;
    // rows filtered before their second product: a strip of a chunk takes some 48 KB
    int64_t strip;
    int64_t x_size, hidden_step, strip_step;
    explicit Tiling(const Shape& s) {
        // a chunk begins with a group of rows
        chunk = std::min<int64_t>(s.e, (s.c <= 48 ? 32 : s.c <= 192 ? 64 : 128) / MR * MR);
        columns = s.w <= 160 ? 1 : (s.w + 127) / 128;
        tw = columns == 1 ? s.w : round_up((s.w + columns - 1) / columns, VL);
        columns = (s.w + tw - 1) / tw;
        strip = FILTER_ROWS * std::max<int64_t>(1, 256 / (FILTER_ROWS * tw));
        const int64_t fitting = std::max<int64_t>(4, (cache_floats() / tw - strip * chunk) / (s.c + s.d + chunk)),
                      threads = omp_get_max_threads();
        rows = (s.h + fitting - 1) / fitting;
        while (s.n * rows * columns % threads && s.n * rows * columns < 4 * threads && (s.h + rows) / (rows + 1) >= 4)
            rows++;
        th = (s.h + rows - 1) / rows;
        rows = (s.h + th - 1) / th;
        const int64_t region = round_up((th + 2) * std::min(tw + 2, s.w), PANEL);
        x_size = region * s.c, hidden_step = region + VL, strip_step = round_up(strip * tw, PANEL);
    }
    int64_t thread_size(const Shape& s) const {
        return x_size + chunk * (hidden_step + strip_step) + (th + strip - 1) / strip * s.d * strip_step +
               round_up(tw + 2, 16) + 16 + strip_step;
    }
};

struct Forward {
    Shape s;
    Tiling t;
    const float *x, *fc1_b, *dw_w, *dw_b, *fc2_b, *scale, *factor, *shortcut;
    const float *fc1_packed, *fc2_packed;   // fc1: rows in groups; fc2: one packed matrix a chunk
    float* y;
};

// Pixels of a region (row-major, `width` wide, corner at `corner`) -> panels of all channels.
void pack_region(const float* x, const Shape& s, int64_t corner, int64_t width, int64_t count, float* panels) {
    // planes whose size is a power of two are better read in long runs
    const int64_t run = width == s.w ? 4 * PANEL : PANEL;
    for (int64_t p = 0; p < count; p += run, panels += s.c * run) {
        const int64_t end = std::min<int64_t>(count, p + run);
        if (width == s.w) {
            pack_panels(s.c, end - p, x + corner + p, s.pixels, panels);
            continue;
        }
        for (int64_t at = p; at < end;) {
            const int64_t row = at / width, column = at % width, length = std::min(width - column, end - at);
            for (int64_t c = 0; c < s.c; c++)
                std::memcpy(panels + c * PANEL + (at - p), x + c * s.pixels + corner + row * s.w + column,
                            length * sizeof(float));
            at += length;
        }
    }
}

// R output rows of the depthwise filter from R + 2 rows, which begin `before` (0 or 1) pixels left of the output and
// end `after` pixels right of it; beyond, they are zero.
template <int R>
JSEG_INLINE void filter_rows(const float* const* rows, int64_t before, int64_t width, int64_t after, const V* w, V bias,
                             float* out) {
    V last[R + 2], now[R + 2];
#pragma GCC unroll 5
    for (int i = 0; i < R + 2; i++)
        last[i] = before ? splat(rows[i][-1]) : V{}, now[i] = load_part(rows[i], width + after);
    for (int64_t x = 0; x < width; x += VL) {
        V sums[R], next[R + 2];
        const int64_t left = width + after - x - VL;
        if (left >= VL)
#pragma GCC unroll 5
            for (int i = 0; i < R + 2; i++) next[i] = load(rows[i] + x + VL);
        else
#pragma GCC unroll 5
            for (int i = 0; i < R + 2; i++) next[i] = left > 0 ? load_part(rows[i] + x + VL, left) : V{};
#pragma GCC unroll 3
        for (int r = 0; r < R; r++) sums[r] = bias;
#pragma GCC unroll 5
        for (int i = 0; i < R + 2; i++) {
            const V taps[3] = {shifted_up(last[i], now[i]), now[i], shifted_down(now[i], next[i])};
#pragma GCC unroll 3
            for (int r = 0; r < R; r++)
                if (i - r >= 0 && i - r < 3)
#pragma GCC unroll 3
                    for (int j = 0; j < 3; j++) sums[r] += w[(i - r) * 3 + j] * taps[j];
            last[i] = now[i], now[i] = next[i];
        }
#pragma GCC unroll 3
        for (int r = 0; r < R; r++) store_part(out + r * width + x, sums[r], width - x);
    }
}

struct Tile {   // output pixels of a tile, and the region with one pixel around it, as far as that lies in the picture
    int64_t y0, x0, height, width, top, left, r_height, r_width;
    Tile(const Shape& s, const Tiling& t, int64_t y, int64_t x)
        : y0(y), x0(x), height(std::min(t.th, s.h - y)), width(std::min(t.tw, s.w - x)),
          top(std::max<int64_t>(0, y - 1)), left(std::max<int64_t>(0, x - 1)),
          r_height(std::min(s.h, y + height + 1) - top), r_width(std::min(s.w, x + width + 1) - left) {}
};

// Rows [y, end) of a tile of one hidden channel: filtered (in `line`), GELU, into one row of panels that lie `step`
// floats apart.
[[gnu::noinline]] void filter_strip(const Tile& tile, const float* hidden, const float* zeros, const float* weight,
                                    float bias, int64_t y, int64_t end, float* line, float* target, int64_t step) {
    V w[9];
#pragma GCC unroll 9
    for (int i = 0; i < 9; i++) w[i] = splat(weight[i]);
    const int64_t before = tile.x0 - tile.left, after = tile.r_width - before - tile.width,
                  pixels = (end - y) * tile.width;
    float* out = line;
    for (int64_t left = end - y; left > 0; left -= FILTER_ROWS, y += FILTER_ROWS, out += FILTER_ROWS * tile.width) {
        const float* rows[FILTER_ROWS + 2];
        for (int i = 0; i < FILTER_ROWS + 2; i++) {
            const int64_t from = tile.y0 + y + i - 1 - tile.top;
            rows[i] = (from >= 0 && from < tile.r_height ? hidden + from * tile.r_width : zeros) + before;
        }
        if (left >= FILTER_ROWS) filter_rows<FILTER_ROWS>(rows, before, tile.width, after, w, splat(bias), out);
        else
            for (int r = 0; r < left; r++)
                filter_rows<1>(rows + r, before, tile.width, after, w, splat(bias), out + r * tile.width);
    }
    for (int64_t p = 0; p < pixels; p += PANEL, target += step)
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) store(target + v * VL, gelu(load(line + p + v * VL)));
}

// Hidden values of one chunk on the region of a tile.
template <class T>
[[gnu::noinline]] void hidden_chunk(const Forward& f, int64_t e0, int64_t chunk, int64_t region, const float* panels,
                                    float* hidden) {
    const int64_t c = f.s.c, step = f.t.hidden_step;
    for (int64_t p = 0; p < region; p += PANEL)
        panel_product<T>(0, chunk, c, f.fc1_packed + e0 * T::steps(c), panels + p * c,
                         std::min<int64_t>(PANEL, region - p),
                         [&](int64_t row, int v, V sums) __attribute__((always_inline)) {
                             store(hidden + row * step + p + v * VL, sums + f.fc1_b[e0 + row]);
                         });
}

// Product of one strip of a chunk, in panels, with the chunk's columns of W2, added to what earlier chunks gave.
template <class T>
[[gnu::noinline]] void add_strip(const Forward& f, int64_t e0, int64_t chunk, int64_t pixels, float* g, float* out) {
    const int64_t d = f.s.d, step = f.t.strip_step;
    for (int64_t p = 0; p < pixels; p += PANEL) {
        narrow_panel<T>(chunk, g + p * chunk);
        panel_product<T>(0, d, chunk, f.fc2_packed + e0 * round_up(d, MR), g + p * chunk,
                         std::min<int64_t>(PANEL, pixels - p),
                         [&](int64_t row, int v, V sums) __attribute__((always_inline)) {
                             float* at = out + row * step + p + v * VL;
                             store(at, e0 ? load(at) + sums : sums + f.fc2_b[row]);
                         });
    }
}

// shortcut + factor scale (sums of a tile) -> y
[[gnu::noinline]] void finish_tile(const Forward& f, int64_t image, const Tile& tile, const float* out) {
    const Shape& s = f.s;
    const Tiling& t = f.t;
    for (int64_t d = 0; d < s.d; d++) {
        const V scale = splat((f.scale ? f.scale[d] : 1.0f) * (f.factor ? f.factor[image] : 1.0f));
        for (int64_t r = 0; r < tile.height; r++) {
            const int64_t to = (image * s.d + d) * s.pixels + (tile.y0 + r) * s.w + tile.x0;
            const float* from = out + (r / t.strip * s.d + d) * t.strip_step + r % t.strip * tile.width;
            for (int64_t x = 0; x < tile.width; x += VL) {
                const V value = load_part(from + x, tile.width - x) * scale;
                store_part(f.y + to + x, f.shortcut ? value + load_part(f.shortcut + to + x, tile.width - x) : value,
                           tile.width - x);
            }
        }
    }
}

template <class T>
void forward_tile(const Forward& f, int64_t image, const Tile& tile, float* memory) {
    const Shape& s = f.s;
    const Tiling& t = f.t;
    float *panels = memory, *hidden = panels + t.x_size, *g = hidden + t.chunk * t.hidden_step,
          *zeros = g + t.chunk * t.strip_step;
    float *line = zeros + round_up(t.tw + 2, 16) + 16, *out = line + t.strip_step;
    const int64_t region = tile.r_height * tile.r_width;
    pack_region(f.x + image * s.c * s.pixels, s, tile.top * s.w + tile.left, tile.r_width, region, panels);
    for (int64_t p = 0; p < region; p += PANEL) narrow_panel<T>(s.c, panels + p * s.c);
    std::memset(zeros, 0, (t.tw + 2) * sizeof(float));
    for (int64_t e0 = 0; e0 < s.e; e0 += t.chunk) {
        const int64_t chunk = std::min(t.chunk, s.e - e0);
        hidden_chunk<T>(f, e0, chunk, region, panels, hidden);
        for (int64_t y = 0; y < tile.height; y += t.strip) {
            const int64_t end = std::min(tile.height, y + t.strip);
            for (int64_t e = 0; e < chunk; e++)
                filter_strip(tile, hidden + e * t.hidden_step, zeros, f.dw_w + (e0 + e) * 9, f.dw_b[e0 + e], y, end,
                             line, g + e * PANEL, chunk * PANEL);
            add_strip<T>(f, e0, chunk, (end - y) * tile.width, g, out + y / t.strip * s.d * t.strip_step);
        }
    }
    finish_tile(f, image, tile, out);
}

// ---- backward -------------------------------------------------------------------------------------------------------

struct Planes {   // one hidden channel of one image, with a border of zeros
    int64_t step, size;
    explicit Planes(const Shape& s) : step(row_stride(s.w + 2 + VL)), size(step * (s.h + 2) + VL) {}
};

struct Channel {   // one hidden channel of one image on its way back
    V w[9], flipped[9];
    float bias, factor;
    float *u, *dg, *up, *ap;   // in: u, dg = U, dG; out: u <- dU, dg <- factor G. up, ap: padded planes of U and dA
    V total[11] = {};          // of the weights' gradients, dA and dU
};

// R rows from row y on: dA = dG gelu'(A) and G = gelu(A), then the weights' gradients.
template <int R>
JSEG_INLINE void slope_rows(int64_t width, int64_t step, Channel& c, int64_t y) {
    const float* up = c.up + y * step;
    float *ap = c.ap + (y + 1) * step + 1, *dg = c.dg + y * width;
    const float bias = c.bias, factor = c.factor;
    for (int64_t x = 0; x < width; x += VL) {
        V a[R];
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) a[r] = splat(bias);
        window<3, 3, R>(up + x, step, c.w, a);
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) store_part(ap + r * step + x, a[r], width - x);
    }
    for (int r = 0; r < R; r++)
        for (int64_t x = 0; x < width; x += VL) {
            float *at = dg + r * width + x, *to = ap + r * step + x;
            V slope, value = gelu_with_slope(load(to), slope);
            store_part(to, load_part(at, width - x) * slope, width - x);
            store_part(at, value * factor, width - x);
        }
    V total[10];
#pragma GCC unroll 10
    for (int i = 0; i < 10; i++) total[i] = c.total[i];
    for (int64_t x = 0; x < width; x += VL) {
        V da[R];
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) total[9] += da[r] = load_part(ap + r * step + x, width - x);
#pragma GCC unroll 4
        for (int i = 0; i < 3 + R - 1; i++)
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++) {
                const V tap = load(up + i * step + x + j);
#pragma GCC unroll 2
                for (int r = 0; r < R; r++)
                    if (i - r >= 0 && i - r < 3) total[(i - r) * 3 + j] += da[r] * tap;
            }
    }
#pragma GCC unroll 10
    for (int i = 0; i < 10; i++) c.total[i] = total[i];
}

// R rows of dU.
template <int R>
JSEG_INLINE void input_rows(int64_t width, int64_t step, Channel& c, int64_t y) {
    const float* ap = c.ap + y * step;
    float* u = c.u + y * width;
    V total = c.total[10];
    for (int64_t x = 0; x < width; x += VL) {
        const int64_t left = width - x;
        V du[R] = {};
        window<3, 3, R>(ap + x, step, c.flipped, du);
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            if (left < VL) du[r] = keep_first(du[r], left);
            store_part(u + r * width + x, du[r], left);
            total += du[r];
        }
    }
    c.total[10] = total;
}

// Depthwise backward of one channel of one image, two rows at a time: dU follows one row behind dA, so that all of it
// stays in the first-level cache. Adds to the eleven sums, in float over at most some SUM_RUN pixels.
void filter_backward(const Shape& s, const Planes& planes, const float* weight, Channel& c, double* sums) {
    const int64_t step = planes.step, width = s.w, height = s.h;
#pragma GCC unroll 9
    for (int i = 0; i < 9; i++) c.w[i] = splat(weight[i]), c.flipped[i] = splat(weight[8 - i]);
    std::memcpy(c.up + step + 1, c.u, width * sizeof(float));
    for (int64_t y = 0, run = 0; y < height; y += 2) {
        for (int64_t row = y + 1; row < std::min(y + 3, height); row++)
            std::memcpy(c.up + (row + 1) * step + 1, c.u + row * width, width * sizeof(float));
        if (y + 2 <= height) slope_rows<2>(width, step, c, y);
        else slope_rows<1>(width, step, c, y);
        if (y) input_rows<2>(width, step, c, y - 1);
        else input_rows<1>(width, step, c, 0);
        if (y + 2 == height) input_rows<1>(width, step, c, y + 1);
        run += 2 * width;
        if (run < SUM_RUN && y + 2 < height) continue;
        for (int i = 0; i < 11; i++) sums[i] += lanes_sum(c.total[i]), c.total[i] = V{};
        run = 0;
    }
}

struct Cut {   // images and hidden channels at a time: both buffers together take some 8 MB
    // row_step: an odd number of cache lines, or the rows of a plane share few cache sets
    int64_t chunk, images, row_step;
    explicit Cut(const Shape& s) {
        const int64_t room = 1 << 20;
        chunk = 128;
        while (chunk > 16 && chunk * s.pixels > room) chunk /= 2;
        chunk = std::min(chunk, s.e);
        row_step = round_up(s.pixels, 32) + 16;
        images = std::clamp<int64_t>(room / (chunk * s.pixels), 1, s.n);
    }
};

// T: what the factors of both products are rounded to.
template <class T>
void forward(const Call& call) {
    const Shape s(call);
    const Tiling t(s);
    const int64_t fc1_size = round_up(packed_rows_size(s.e, s.c), 16), fc2_size = round_up(round_up(s.d, MR) * s.e, 16),
                  thread_size = round_up(t.thread_size(s), 16);
    const float *in_scale = call.in<float>(10), *fc1_w = call.in<float>(1), *fc1_b = call.in<float>(2);
    const int64_t scaled_size = in_scale ? round_up(s.e * (s.c + 1), 16) : 0;
    float* memory = scratch(fc1_size + fc2_size + scaled_size + omp_get_max_threads() * thread_size);
    float *fc1_packed = memory, *fc2_packed = memory + fc1_size, *shifted = fc2_packed + fc2_size,
          *tiles = shifted + scaled_size;
    for (int64_t e0 = 0; e0 < s.e; e0 += t.chunk)
        pack_rows<T>(s.d, std::min(t.chunk, s.e - e0), call.in<float>(5) + e0, s.e, 1,
                     fc2_packed + e0 * round_up(s.d, MR));
    const float* factors = fc1_w;
    if (in_scale) {
        scaled_columns(s.e, s.c, fc1_w, in_scale, shifted + s.e);
        shifted_bias(s.e, s.c, fc1_w, call.in<float>(11), fc1_b, shifted);
        fc1_b = shifted, factors = shifted + s.e;
    }
    pack_rows<T>(s.e, s.c, factors, s.c, 1, fc1_packed);
    const Forward f{s, t, call.in<float>(0), fc1_b, call.in<float>(3), call.in<float>(4), call.in<float>(6),
                    call.in<float>(7), call.in<float>(8), call.in<float>(9), fc1_packed, fc2_packed,
                    call.out<float>(0)};
#pragma omp parallel
    {
        NoDenormals guard;
        typename T::Scope scope;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < s.n * t.rows * t.columns; job++)
            forward_tile<T>(f, job / (t.rows * t.columns),
                         Tile(s, t, job / t.columns % t.rows * t.th, job % t.columns * t.tw),
                         tiles + omp_get_thread_num() * thread_size);
    }
}

}  // namespace

// in: x, fc1_w (E, C), fc1_b, dw_w (E, 9), dw_b, fc2_w (D, E), fc2_b, scale (D), factor (N), shortcut (N, D, H, W),
// in_scale, in_shift (C), the last five each or absent; out: y; integers: N C E D H W bf16
JSEG_KERNEL(jseg_mix_ffn_forward) {
    if (call.integer(6)) forward<BFloat16>(call);
    else forward<Float32>(call);
}

// in: x to fc2_b as forward, dy, scale, factor, the last two each or absent; out: dx, dfc1_w, dfc1_b, ddw_w, ddw_b,
// dfc2_w, dfc2_b[, dscale]
JSEG_KERNEL(jseg_mix_ffn_backward) {
    const Shape s(call);
    const Cut cut(s);
    const Planes planes(s);
    const float *x = call.in<float>(0), *fc1_w = call.in<float>(1), *fc1_b = call.in<float>(2),
                *dw_w = call.in<float>(3), *dw_b = call.in<float>(4);
    const float *fc2_w = call.in<float>(5), *dy = call.in<float>(7), *scale = call.in<float>(8),
                *factor = call.in<float>(9);
    float *dx = call.out<float>(0), *dfc1_w = call.out<float>(1), *dfc1_b = call.out<float>(2),
          *ddw_w = call.out<float>(3), *ddw_b = call.out<float>(4);
    float* dfc2_w = call.out<float>(5);
    const int64_t threads = omp_get_max_threads(), map = cut.images * cut.chunk * cut.row_step;
    const int64_t packed_size =
        round_up(std::max(packed_rows_size(cut.chunk, std::max(s.c, s.d)), packed_rows_size(s.c, cut.chunk)), 16);
    const int64_t work_size =
        std::max({threads * std::max({panels_size(s.c), panels_size(s.d), panels_size(cut.chunk)}),
                  threads * 2 * planes.size, PixelSums(s.d, cut.chunk, cut.images, s.pixels).size(),
                  PixelSums(cut.chunk, s.c, cut.images, s.pixels).size()});
    float* memory = scratch(2 * map + packed_size + work_size);
    float *u = memory, *g = u + map, *packed = g + map, *work = packed + packed_size;
    for (int64_t n0 = 0; n0 < s.n; n0 += cut.images)
        for (int64_t e0 = 0; e0 < s.e; e0 += cut.chunk) {
            const int64_t images = std::min(cut.images, s.n - n0), chunk = std::min(cut.chunk, s.e - e0),
                          step = chunk * cut.row_step;
            const Rows x_part{x + n0 * s.c * s.pixels, s.c * s.pixels, s.pixels},
                dy_part{dy + n0 * s.d * s.pixels, s.d * s.pixels, s.pixels};
            const Rows u_rows{u, step, cut.row_step}, g_rows{g, step, cut.row_step};
            float* dx_part = dx + n0 * s.c * s.pixels;
            pack_rows(chunk, s.c, fc1_w + e0 * s.c, s.c, 1, packed);
            image_product(images, chunk, s.c, s.pixels, packed, x_part, work,
                          [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums)
                              __attribute__((always_inline)) {
                                  store_part(u + image * step + row * cut.row_step + p, sums + fc1_b[e0 + row], count);
                              });
            pack_rows(chunk, s.d, fc2_w + e0, 1, s.e, packed);
            if (scale) scale_columns(chunk, s.d, scale, packed);
            image_product(images, chunk, s.d, s.pixels, packed, dy_part, work,
                          [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums)
                              __attribute__((always_inline)) {
                                  store_part(g + image * step + row * cut.row_step + p,
                                             factor ? sums * factor[n0 + image] : sums, count);
                              });
#pragma omp parallel
            {
                NoDenormals guard;
                float* up = work + omp_get_thread_num() * 2 * planes.size;
                std::memset(up, 0, 2 * planes.size * sizeof(float));
#pragma omp for schedule(dynamic, 1)
                for (int64_t e = 0; e < chunk; e++) {
                    double sums[11] = {};
                    for (int64_t image = 0; image < images; image++) {
                        const int64_t at = image * step + e * cut.row_step;
                        Channel channel{{},     {},     dw_b[e0 + e], factor ? factor[n0 + image] : 1.0f,
                                        u + at, g + at, up,           up + planes.size};
                        filter_backward(s, planes, dw_w + (e0 + e) * 9, channel, sums);
                    }
                    const int64_t to = e0 + e;
                    for (int i = 0; i < 9; i++) ddw_w[to * 9 + i] = (n0 ? ddw_w[to * 9 + i] : 0.0f) + float(sums[i]);
                    ddw_b[to] = (n0 ? ddw_b[to] : 0.0f) + float(sums[9]);
                    dfc1_b[to] = (n0 ? dfc1_b[to] : 0.0f) + float(sums[10]);
                }
            }
            pixel_sums(images, s.d, chunk, s.pixels, dy_part, g_rows, dfc2_w + e0, s.e, n0 > 0, work);
            pixel_sums(images, chunk, s.c, s.pixels, u_rows, x_part, dfc1_w + e0 * s.c, s.c, n0 > 0, work);
            pack_rows(s.c, chunk, fc1_w + e0 * s.c, 1, s.c, packed);
            image_product(images, s.c, chunk, s.pixels, packed, u_rows, work,
                          [&](int64_t image, int64_t row, int64_t p, int64_t count, V sums)
                              __attribute__((always_inline)) {
                                  float* at = dx_part + (image * s.c + row) * s.pixels + p;
                                  store_part(at, e0 ? load_part(at, count) + sums : sums, count);
                              });
        }
    float* dfc2_b = call.out<float>(6);
    row_sums(s.n, s.d, s.pixels, {dy, s.d * s.pixels, s.pixels}, dfc2_b, factor);
    if (!scale) return;
#pragma omp parallel for schedule(static) if (s.d * s.e > 16384)
    for (int64_t d = 0; d < s.d; d++) {
        call.out<float>(7)[d] = dot_product(s.e, fc2_w + d * s.e, dfc2_w + d * s.e) + call.in<float>(6)[d] * dfc2_b[d];
        for (int64_t e = 0; e < s.e; e++) dfc2_w[d * s.e + e] *= scale[d];
        dfc2_b[d] *= scale[d];
    }
}
