// Convolution of any kernel, stride, dilation and groups as a matrix product over channels and taps, whose right side
// is made in panels as it is needed: never more than a block of them exists. Long sums go on from chunk to chunk.
#pragma once
#include <vector>

#include "gemm.h"
#include "shape.h"

namespace jseg {

class TapProduct {
    static constexpr int64_t DEPTH = 512;   // rows of a chunk, about: a group of weights stays in first-level cache

    struct PixelRun {   // of one row of the result, within one panel
        int64_t panel, lane, count, row, column;
    };

    const Shape& s_;
    const float* x_;
    Ending end_;
    int64_t taps_, in_, out_, depth_;             // of a group: channels in and out, and rows of the product
    int64_t channels_, panels_, block_, per_image_, splits_, share_;

public:
    TapProduct(const Shape& s, const float* x, const Ending& end) : s_(s), x_(x), end_(end) {
        taps_ = s.kernel_h * s.kernel_w, in_ = s.c / s.groups, out_ = s.d / s.groups, depth_ = in_ * taps_;
        channels_ = std::clamp<int64_t>(DEPTH / taps_, 1, in_);
        const int64_t pixels = s.out_height * s.out_width, threads = omp_get_max_threads();
        panels_ = std::clamp<int64_t>(98304 / (channels_ * taps_ * PANEL), 1, 4);
        panels_ = std::clamp<int64_t>(s.images * s.groups * pixels / (PANEL * threads), 1, panels_);
        block_ = panels_ * PANEL, per_image_ = (pixels + block_ - 1) / block_;
        const int64_t groups = round_up(out_, MR) / MR, all = s.images * s.groups * per_image_;
        splits_ = std::max<int64_t>(1, std::min(4 * threads / all, groups / 8));
        share_ = (groups + splits_ - 1) / splits_ * MR;
    }

    int64_t memory_size() const { return rows_size() + omp_get_max_threads() * own_size(); }

    // `memory`: memory_size() floats, 64-byte aligned. Weights (D, C / groups, kernel_h, kernel_w).
    void run(const float* weight, float* memory) const {
        const int64_t each = packed_rows_size(out_, depth_);
        for (int64_t g = 0; g < s_.groups; g++)
            pack_rows(out_, depth_, weight + g * out_ * depth_, depth_, 1, memory + g * each);
#pragma omp parallel
        {
            NoDenormals guard;
            float* mine = memory + rows_size() + omp_get_thread_num() * own_size();
            std::vector<PixelRun> runs;
#pragma omp for schedule(static)
            for (int64_t job = 0; job < s_.images * s_.groups * per_image_ * splits_; job++) {
                const int64_t split = job % splits_, block = job / splits_ % per_image_,
                              group = job / splits_ / per_image_ % s_.groups,
                              image = job / splits_ / per_image_ / s_.groups;
                find_runs(block * block_, runs);
                compute(image, group, block * block_, split * share_, std::min(out_, (split + 1) * share_),
                        memory + group * each, runs, mine);
            }
        }
    }

private:
    int64_t rows_size() const { return round_up(s_.groups * packed_rows_size(out_, depth_), 16); }
    int64_t panel_size() const { return channels_ * taps_ * PANEL; }
    int64_t line_size() const { return PANEL * s_.stride_w + (s_.kernel_w - 1) * s_.dilation_w + 4 * VL; }
    int64_t sums_size() const { return channels_ < in_ ? round_up(share_, MR) * block_ : 0; }
    int64_t own_size() const { return round_up(panels_ * panel_size() + sums_size() + 2 * line_size(), 16); }

    void find_runs(int64_t first, std::vector<PixelRun>& runs) const {
        runs.clear();
        const int64_t end = std::min(first + block_, s_.out_height * s_.out_width);
        for (int64_t pixel = first; pixel < end;) {
            const int64_t lane = (pixel - first) % PANEL, column = pixel % s_.out_width,
                          count = std::min({PANEL - lane, s_.out_width - column, end - pixel});
            runs.push_back({(pixel - first) / PANEL, lane, count, pixel / s_.out_width, column});
            pixel += count;
        }
    }

    void compute(int64_t image, int64_t group, int64_t first, int64_t m0, int64_t m1, const float* rows,
                 const std::vector<PixelRun>& runs, float* mine) const {
        float *panels = mine, *sums = mine + panels_ * panel_size(), *line = sums + sums_size();
        const int64_t pixels = s_.out_height * s_.out_width, count = std::min(block_, pixels - first),
                      top = group * out_, at = (image * s_.d + top) * pixels + first, step = block_;
        const Ending ending = end_;   // a copy that no store can change
        for (int64_t c = 0; c < in_; c += channels_) {
            const int64_t channels = std::min(channels_, in_ - c), depth = channels * taps_;
            const bool starts = c == 0, ends = c + channels == in_;
            for (int64_t k = 0; k < channels; k++)
                pack_channel(x_ + (image * s_.c + group * in_ + c + k) * s_.height * s_.width, runs, k * taps_, panels,
                             line);
            for (int64_t m = m0; m < m1; m += MR) {
                const float* a = rows + m * depth_ + c * taps_ * MR;
                for (int64_t lane = 0; lane < count; lane += PANEL) {
                    const int64_t here = std::min<int64_t>(PANEL, count - lane);
                    const auto end = [&](int r, int v, V total, int64_t here) __attribute__((always_inline)) {
                        float* kept = sums + (m - m0 + r) * step + lane + v * VL;
                        if (!starts) total += load(kept);
                        if (!ends) {
                            store(kept, total);
                            return;
                        }
                        total = total * ending.factor(top + m + r) + ending.offset(top + m + r);
                        ending.put(at + (m + r) * pixels + lane + v * VL, total, here);
                    };
                    const auto finish = [&](int r, int v, V total)
                        __attribute__((always_inline)) { end(r, v, total, here - v * VL); };
                    const auto whole = [&](int r, int v, V total)
                        __attribute__((always_inline)) { end(r, v, total, VL); };
                    const int64_t vectors = (here + VL - 1) / VL;
                    const float* b = panels + lane / PANEL * panel_size();
                    const int left = int(std::min<int64_t>(MR, m1 - m));
                    if (here == PANEL && left == MR) panel_tile<NV>(depth, a, b, MR, whole);
                    else if (vectors == NV) panel_tile<NV>(depth, a, b, left, finish);
                    else if (vectors == 2) panel_tile<2>(depth, a, b, left, finish);
                    else panel_tile<1>(depth, a, b, left, finish);
                }
            }
        }
    }

    // Rows [first, first + taps) of every panel: what each tap reads of one channel.
    void pack_channel(const float* plane, const std::vector<PixelRun>& runs, int64_t first, float* panels,
                      float* line) const {
        for (const PixelRun& run : runs)
            for (int64_t u = 0; u < s_.kernel_h; u++) {
                const int64_t row = run.row * s_.stride_h - s_.pad_h + u * s_.dilation_h,
                              column = run.column * s_.stride_w - s_.pad_w;
                float* to = panels + run.panel * panel_size() + (first + u * s_.kernel_w) * PANEL + run.lane;
                if (row < 0 || row >= s_.height) {
                    for (int64_t v = 0; v < s_.kernel_w; v++)
                        for (int64_t i = 0; i < run.count; i += VL) store_some(to + v * PANEL + i, V{}, run.count - i);
                    continue;
                }
                const float* from = plane + row * s_.width;
                const int64_t length = (run.count - 1) * s_.stride_w + (s_.kernel_w - 1) * s_.dilation_w + 1;
                if (column < 0 || column + length > s_.width || s_.stride_w == 2) {
                    copy_line(from, s_.width, column, length, 1, line);
                    from = line;
                } else
                    from += column;
                if (s_.stride_w == 2) copy_halves(run, from, length, line + line_size(), to);
                else copy_taps(run, from, to);
            }
    }

    void copy_taps(const PixelRun& run, const float* from, float* to) const {
        for (int64_t v = 0; v < s_.kernel_w; v++, from += s_.dilation_w, to += PANEL)
            if (s_.stride_w == 1 && run.count == PANEL)
#pragma GCC unroll 3
                for (int i = 0; i < NV; i++) store(to + i * VL, load(from + i * VL));
            else if (s_.stride_w == 1)
                for (int64_t i = 0; i < run.count; i += VL)
                    store_some(to + i, load_some(from + i, run.count - i), run.count - i);
            else
                for (int64_t i = 0; i < run.count; i++) to[i] = from[i * s_.stride_w];
    }

    // Stride 2: even and odd values apart, then every tap reads neighbours. `from` may be read up to 2 VL beyond.
    void copy_halves(const PixelRun& run, const float* from, int64_t length, float* halves, float* to) const {
        const int64_t half = line_size() / 2;
        const VI even = lane_index() * 2, odd = even + 1;
        for (int64_t i = 0; i < length; i += 2 * VL) {
            V pair[2] = {load(from + i), load(from + i + VL)};
            deinterleave<2>(pair, even, odd);
            store(halves + i / 2, pair[0]);
            store(halves + half + i / 2, pair[1]);
        }
        for (int64_t v = 0; v < s_.kernel_w; v++) {
            const float* tap = halves + v * s_.dilation_w % 2 * half + v * s_.dilation_w / 2;
            for (int64_t i = 0; i < run.count; i += VL)
                store_some(to + v * PANEL + i, load_some(tap + i, run.count - i), run.count - i);
        }
    }
};

}  // namespace jseg
