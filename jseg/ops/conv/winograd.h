// 3x3 convolution of stride 1 by Winograd's minimal filtering: F(2x2, 3x3) and F(4x4, 3x3).
//
// A tile of OUT x OUT results needs (OUT + 2)^2 products a pair of channels where the sum over taps needs 9 OUT^2: 2.25
// and 4 times as many. With B, G, A of Tile<OUT>:  Y = A^T [sum over channels of (G g G^T) . (B^T d B)] A.
//
// The filters come transformed (`transform_filters`). A block of tiles goes through three steps: patches of every
// input channel are transformed, VL tiles in the lanes; for each of the (OUT + 2)^2 positions a matrix product over
// channels; the sums of every output channel are transformed back, and the ending done. With dilation d a result
// depends on one of d x d interleaved lattices only, in each of which the convolution is an ordinary one: tiles of all
// lattices and all pictures go into the same blocks.
#pragma once
#include <vector>

#include "gemm.h"
#include "shape.h"

namespace jseg {

// One-dimensional transforms, of values that lie `step` apart.
template <int OUT> struct Tile;

// Points 0, 1, -1 and infinity.
template <> struct Tile<2> {
    static constexpr double G[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    JSEG_INLINE void input(const V (&d)[4], V (&t)[4]) {
        t[0] = d[0] - d[2];
        t[1] = d[1] + d[2];
        t[2] = d[2] - d[1];
        t[3] = d[3] - d[1];
    }
    JSEG_INLINE void output(const V (&s)[4], V (&y)[2]) {
        y[0] = s[0] + s[1] + s[2];
        y[1] = s[1] - s[2] + s[3];
    }
};

// Points 0, +-1/sqrt(2), +-sqrt(2) and infinity: in float32 half the error of the usual 0, +-1, +-2.
template <> struct Tile<4> {
    static constexpr double R = 0.70710678118654752440;
    static constexpr double G[6][3] = {{1, 0, 0},
                                       {-2.0 / 3, -2.0 / 3 * R, -1.0 / 3},
                                       {-2.0 / 3, 2.0 / 3 * R, -1.0 / 3},
                                       {1.0 / 6, 1.0 / 3 * R, 1.0 / 3},
                                       {1.0 / 6, -1.0 / 3 * R, 1.0 / 3},
                                       {0, 0, 1}};
    JSEG_INLINE void input(const V (&d)[6], V (&t)[6]) {
        const V even = d[4] - 2.0f * d[2], odd = d[3] - 2.0f * d[1];
        const V even2 = d[4] - 0.5f * d[2], odd2 = d[3] - 0.5f * d[1];
        t[0] = (d[0] - 2.5f * d[2]) + d[4];
        t[1] = even + float(R) * odd;
        t[2] = even - float(R) * odd;
        t[3] = even2 + float(2 * R) * odd2;
        t[4] = even2 - float(2 * R) * odd2;
        t[5] = (d[1] - 2.5f * d[3]) + d[5];
    }
    JSEG_INLINE void output(const V (&s)[6], V (&y)[4]) {
        const V sum = s[1] + s[2], difference = s[1] - s[2], sum2 = s[3] + s[4], difference2 = s[3] - s[4];
        y[0] = s[0] + (sum + sum2);
        y[1] = float(R) * difference + float(2 * R) * difference2;
        y[2] = 0.5f * sum + 2.0f * sum2;
        y[3] = s[5] + float(R / 2) * difference + float(4 * R) * difference2;
    }
};

template <int OUT> constexpr int64_t positions() { return (OUT + 2) * (OUT + 2); }
template <int OUT> inline int64_t filters_size(int64_t d, int64_t c) {
    return positions<OUT>() * packed_rows_size(d, c);
}

// Filters (D, C, 3, 3) -> G g G^T, for each position rows packed as `pack_rows` does.
template <int OUT> inline void transform_filters(int64_t d, int64_t c, const float* filters, float* target) {
    constexpr int IN = OUT + 2;
    const int64_t groups = round_up(d, MR) / MR, all = packed_rows_size(d, c);
#pragma omp parallel for schedule(static) if (d * c > 1024)
    for (int64_t g = 0; g < groups; g++)
        for (int64_t k = 0; k < c; k++) {
            double taps[9][MR] = {}, half[IN][3][MR];
            for (int64_t r = 0; r < std::min<int64_t>(MR, d - g * MR); r++)
                for (int i = 0; i < 9; i++) taps[i][r] = filters[((g * MR + r) * c + k) * 9 + i];
            for (int i = 0; i < IN; i++)
                for (int v = 0; v < 3; v++)
                    for (int r = 0; r < MR; r++)
                        half[i][v][r] = Tile<OUT>::G[i][0] * taps[v][r] + Tile<OUT>::G[i][1] * taps[3 + v][r] +
                                        Tile<OUT>::G[i][2] * taps[6 + v][r];
            for (int i = 0; i < IN; i++)
                for (int j = 0; j < IN; j++)
                    for (int r = 0; r < MR; r++)
                        target[(i * IN + j) * all + (g * c + k) * MR + r] =
                            float(Tile<OUT>::G[j][0] * half[i][0][r] + Tile<OUT>::G[j][1] * half[i][1][r] +
                                  Tile<OUT>::G[j][2] * half[i][2][r]);
        }
}

// A stretch of a row of tiles that lies in a block.
struct TileRun {
    int64_t image, lane, count;   // `count` tiles from this lane of the block on
    int64_t row, column;          // the first tile's first input value; may lie outside
    int64_t out_row, out_column;  // and its first result
};

template <int OUT> class Winograd {
    static constexpr int IN = OUT + 2;
    static constexpr int64_t POSITIONS = IN * IN;

    const Shape& s_;
    const float* x_;
    Ending end_;
    int64_t down_, right_, tiles_;   // tiles of a lattice, and of everything
    int64_t block_, blocks_;         // tiles of a block
    bool alone_;                     // each thread has blocks of its own
    // Dense: in a row, tiles of neighbouring lattices are neighbours, so that values are read and results written in
    // whole vectors. A vector of tiles holds one piece of a row, or `pieces_` rows. Else lattices come one by one.
    bool dense_ = false;
    int64_t pieces_ = 1;

public:
    Winograd(const Shape& s, const float* x, const Ending& end) : s_(s), x_(x), end_(end) {
        const int64_t rows = (s.out_height + s.dilation_h - 1) / s.dilation_h,
                      columns = (s.out_width + s.dilation_w - 1) / s.dilation_w;
        down_ = (rows + OUT - 1) / OUT, right_ = (columns + OUT - 1) / OUT;
        for (int64_t right = right_; right * 4 <= right_ * 5 && !dense_; right++) {   // a few tiles in vain, if need be
            const int64_t lanes = right * s.dilation_w;
            dense_ = 2 * s.dilation_w <= std::min<int64_t>(VL, lanes) && VL % s.dilation_w == 0 &&
                     (lanes % VL == 0 || (VL % lanes == 0 && OUT * lanes >= VL));
            if (dense_) right_ = right, pieces_ = std::max<int64_t>(1, VL / lanes);
        }
        tiles_ = s.images * s.dilation_h * s.dilation_w * down_ * right_;
        // Panels of one position stay in second-level cache while the filters pass by.
        const int64_t panels = s.c < 256 ? 1 : std::clamp<int64_t>(98304 / (s.c * PANEL), 1, 4),
                      all = (tiles_ + PANEL - 1) / PANEL, threads = omp_get_max_threads();
        block_ = std::clamp<int64_t>(all / threads, 1, panels) * PANEL;
        blocks_ = (tiles_ + block_ - 1) / block_;
        alone_ = threads == 1 || blocks_ >= threads;
    }

    int64_t memory_size() const {
        const int64_t threads = omp_get_max_threads();
        return (alone_ ? threads : 1) * (values_size() + sums_size()) + threads * lines_size();
    }

    // `filters`: as `transform_filters` makes them; `memory`: memory_size() floats, 64-byte aligned.
    void run(const float* filters, float* memory) const {
        const bool alone = alone_;
        const int64_t blocks = blocks_, size = values_size() + sums_size(), own = lines_size(),
                      threads = omp_get_max_threads();
        float* lines = memory + (alone ? threads : 1) * size;
        const int64_t groups = round_up(s_.d, MR) / MR;
#pragma omp parallel
        {
            NoDenormals guard;
            float *values = memory + (alone ? omp_get_thread_num() * size : 0), *sums = values + values_size(),
                  *mine = lines + omp_get_thread_num() * own;
            std::vector<TileRun> runs;
            if (alone) {
#pragma omp for schedule(static)
                for (int64_t block = 0; block < blocks; block++) {
                    const int64_t first = block * block_, count = std::min(block_, tiles_ - first);
                    find_runs(first, count, runs);
                    for (int64_t k = 0; k < s_.c; k++) transform_channel(runs, k, count, values, mine);
                    for (int64_t p = 0; p < POSITIONS; p++) multiply(filters, p, 0, groups, count, values, sums);
                    for (int64_t row = 0; row < s_.d; row++) finish_channel(runs, row, count, sums, mine);
                }
            } else
                for (int64_t block = 0; block < blocks; block++) {
                    const int64_t first = block * block_, count = std::min(block_, tiles_ - first);
                    find_runs(first, count, runs);
#pragma omp for schedule(static)
                    for (int64_t k = 0; k < s_.c; k++) transform_channel(runs, k, count, values, mine);
#pragma omp for schedule(static)
                    for (int64_t job = 0; job < POSITIONS * 4; job++)
                        multiply(filters, job / 4, groups * (job % 4) / 4, groups * (job % 4 + 1) / 4, count, values,
                                 sums);
#pragma omp for schedule(static)
                    for (int64_t row = 0; row < s_.d; row++) finish_channel(runs, row, count, sums, mine);
                }
        }
    }

private:
    // Panels (C, PANEL) of a position one after another; the gap keeps positions off each other's cache lines.
    int64_t position_size() const { return s_.c * block_ + 16; }
    int64_t values_size() const { return POSITIONS * position_size(); }
    int64_t sums_size() const { return round_up(s_.d, MR) * POSITIONS * block_; }
    int64_t patch_step() const { return block_ + VL; }
    int64_t line_size() const { return OUT * (block_ + 2 * VL); }
    int64_t lines_size() const { return round_up(POSITIONS * patch_step() + IN * line_size(), 16); }

    void find_runs(int64_t first, int64_t count, std::vector<TileRun>& runs) const {
        runs.clear();
        const int64_t lattices = dense_ ? 1 : s_.dilation_w, length = right_ * s_.dilation_w / lattices;
        for (int64_t lane = 0; lane < count;) {
            int64_t rest = first + lane;
            const int64_t across = rest % length, here = std::min(length - across, count - lane);
            rest /= length;
            const int64_t right = rest % lattices;
            rest /= lattices;
            const int64_t tile_row = rest % down_, down = rest / down_ % s_.dilation_h,
                          out_row = down + s_.dilation_h * OUT * tile_row, out_column = right + lattices * OUT * across;
            runs.push_back({rest / down_ / s_.dilation_h, lane, here, out_row - s_.pad_h, out_column - s_.pad_w,
                            out_row, out_column});
            lane += here;
        }
    }

    // The patches of channel k, transformed, into row k of every panel.
    void transform_channel(const std::vector<TileRun>& runs, int64_t k, int64_t count, float* values,
                           float* mine) const {
        if (dense_) {
            for (size_t i = 0; i < runs.size(); i += pieces_)
                for (int64_t lane = 0; lane < (pieces_ > 1 ? 1 : runs[i].count); lane += VL)
                    transform_vector(&runs[i], int64_t(runs.size() - i), lane, k, values);
            return;
        }
        for (const TileRun& run : runs) gather_patches(run, plane_of(run, k), mine);
        for (int64_t lane = 0; lane < count; lane += VL) {
            V half[IN][IN];
#pragma GCC unroll 6
            for (int column = 0; column < IN; column++) {
                V d[IN], t[IN];
#pragma GCC unroll 6
                for (int r = 0; r < IN; r++) d[r] = load(mine + (r * IN + column) * patch_step() + lane);
                Tile<OUT>::input(d, t);
#pragma GCC unroll 6
                for (int r = 0; r < IN; r++) half[r][column] = t[r];
            }
#pragma GCC unroll 6
            for (int r = 0; r < IN; r++) put_values(half[r], r, k, lane, values);
        }
    }

    // Row r of patches whose columns are transformed yet, into row k of the panels of its positions.
    void put_values(const V (&half)[IN], int r, int64_t k, int64_t lane, float* values) const {
        float* to = values + r * IN * position_size() + lane / PANEL * s_.c * PANEL + k * PANEL + lane % PANEL;
        V t[IN];
        Tile<OUT>::input(half, t);
#pragma GCC unroll 6
        for (int column = 0; column < IN; column++) store(to + column * position_size(), t[column]);
    }

    const float* plane_of(const TileRun& run, int64_t k) const {
        return x_ + (run.image * s_.c + k) * s_.height * s_.width;
    }

    // VL tiles, from `lane` of the first run on: rows are combined as they lie, and only then taken apart into columns.
    void transform_vector(const TileRun* runs, int64_t count, int64_t lane, int64_t k, float* values) const {
        const int64_t plane = s_.height * s_.width, down = s_.dilation_h * s_.width, unit = s_.dilation_w,
                      wide = VL / pieces_ * OUT;   // values of a piece
        // Column transforms of VL values of a run from `offset` on.
        const auto combine = [&](const TileRun& run, int64_t offset, V (&t)[IN]) __attribute__((always_inline)) {
            const int64_t column = run.column + offset;
            const float* from = plane_of(run, k) + run.row * s_.width;
            V d[IN];
            if (run.row >= 0 && run.row + (IN - 1) * s_.dilation_h < s_.height && column >= 0 &&
                column + VL <= s_.width)
#pragma GCC unroll 6
                for (int r = 0; r < IN; r++) {
                    d[r] = load(from + r * down + column);
                    __builtin_prefetch(from + r * down + column + plane);   // of the next channel
                }
            else
#pragma GCC unroll 6
                for (int r = 0; r < IN; r++) {
                    const int64_t row = run.row + r * s_.dilation_h;
                    d[r] = row >= 0 && row < s_.height ? load_inside(from + r * down, column, s_.width) : V{};
                }
            Tile<OUT>::input(d, t);
        };
        V line[OUT + 1][IN];   // vectors in turn, and the values after each piece
#pragma GCC unroll 4
        for (int v = 0; v < OUT; v++) {
            const int64_t piece = v * pieces_ / OUT;
            if (piece < count)
                combine(runs[piece], OUT * lane + v * VL - piece * wide, line[v]);
            else
#pragma GCC unroll 6
                for (int r = 0; r < IN; r++) line[v][r] = V{};
        }
        if (pieces_ == 1) combine(runs[0], OUT * (lane + VL), line[OUT]);
        else combine_ends(runs, std::min(count, pieces_), k, line[OUT]);
        const VI at = lane_index(), of_unit = at & int(unit - 1), of_piece = at & int(VL / pieces_ - 1);
        const VI even = at * 2 - of_unit, odd = even + int(unit);
        const VI next = of_piece >= int(VL / pieces_ - unit)
                            ? (at - of_piece) * int(2 * unit * pieces_) / VL + of_unit + VL
                            : at + int(unit),
                 second = next >= VL ? next + int(unit) : next;
#pragma GCC unroll 6
        for (int r = 0; r < IN; r++) {
            V phase[OUT], half[IN];
#pragma GCC unroll 4
            for (int v = 0; v < OUT; v++) phase[v] = line[v][r];
            deinterleave<OUT>(phase, even, odd);
#pragma GCC unroll 4
            for (int v = 0; v < OUT; v++) half[v] = phase[v];
            half[OUT] = __builtin_shuffle(phase[0], line[OUT][r], next);
            half[OUT + 1] = __builtin_shuffle(phase[1], line[OUT][r], second);
            put_values(half, r, k, runs[0].lane + lane, values);
        }
    }

    // Column transforms of the 2 x dilation values behind each run, one after another.
    void combine_ends(const TileRun* runs, int64_t count, int64_t k, V (&t)[IN]) const {
        float ends[IN][VL] = {};
        for (int64_t piece = 0; piece < count; piece++) {
            const TileRun& run = runs[piece];
            const float* from = plane_of(run, k) + run.row * s_.width;
            for (int64_t i = 0; i < 2 * s_.dilation_w; i++) {
                const int64_t column = run.column + VL / pieces_ * OUT + i;
                if (column < 0 || column >= s_.width) continue;
                for (int r = 0; r < IN; r++) {
                    const int64_t row = run.row + r * s_.dilation_h;
                    if (row >= 0 && row < s_.height)
                        ends[r][piece * 2 * s_.dilation_w + i] = from[r * s_.dilation_h * s_.width + column];
                }
            }
        }
        V d[IN];
#pragma GCC unroll 6
        for (int r = 0; r < IN; r++) d[r] = load(ends[r]);
        Tile<OUT>::input(d, t);
    }

    // Any run, taken apart into patches[row][column][lane].
    void gather_patches(const TileRun& run, const float* plane, float* patches) const {
        float* lines = patches + POSITIONS * patch_step();
        const int64_t step = patch_step(), length = OUT * run.count + 2;
        for (int r = 0; r < IN; r++) {
            const int64_t row = run.row + r * s_.dilation_h;
            float* line = lines + r * line_size();
            if (row >= 0 && row < s_.height)
                copy_line(plane + row * s_.width, s_.width, run.column, length, s_.dilation_w, line);
            else
                for (int64_t i = 0; i < length; i += VL) store(line + i, V{});
        }
        const VI even = lane_index() * 2, odd = even + 1;
        for (int r = 0; r < IN; r++) {
            const float* from = lines + r * line_size();
            float* to = patches + r * IN * step + run.lane;
            for (int64_t i = 0; i < run.count; i += VL) {   // lanes beyond the run belong to the next
                V phase[OUT];
#pragma GCC unroll 4
                for (int v = 0; v < OUT; v++) phase[v] = load(from + OUT * i + v * VL);
                deinterleave<OUT>(phase, even, odd);
#pragma GCC unroll 4
                for (int v = 0; v < OUT; v++) store(to + v * step + i, phase[v]);
#pragma GCC unroll 2
                for (int v = 0; v < 2; v++)
                    store(to + (OUT + v) * step + i, shifted_down(phase[v], splat(from[OUT * (i + VL) + v])));
            }
        }
    }

    // Groups [first, last) of MR rows at one position: sums[row][position][tile].
    void multiply(const float* filters, int64_t position, int64_t first, int64_t last, int64_t count,
                  const float* values, float* sums) const {
        const float* rows = filters + position * packed_rows_size(s_.d, s_.c);
        for (int64_t g = first; g < last; g++)
            for (int64_t lane = 0; lane < count; lane += PANEL) {
                const float *a = rows + g * s_.c * MR, *b = values + position * position_size() + lane * s_.c;
                float* to = sums + (g * MR * POSITIONS + position) * block_ + lane;
                const int64_t vectors = (std::min<int64_t>(PANEL, count - lane) + VL - 1) / VL;
                if (vectors == NV) multiply_tile<NV>(a, b, to);
                else if (vectors == 2) multiply_tile<2>(a, b, to);
                else multiply_tile<1>(a, b, to);
            }
    }
    // Long sums are added up in parts: a quarter of the error at 2048 channels.
    template <int VECTORS> void multiply_tile(const float* a, const float* b, float* to) const {
        constexpr int64_t PART = 256;
        const int64_t step = POSITIONS * block_;
        V parts[MR][VECTORS];
        for (int64_t k = 0; k < s_.c; k += PART) {
            const bool starts = k == 0, ends = k + PART >= s_.c;
            panel_tile<VECTORS>(std::min(PART, s_.c - k), a + k * MR, b + k * PANEL, MR,
                                [&](int r, int v, V total) __attribute__((always_inline)) {
                                    if (!starts) total += parts[r][v];
                                    if (ends) store(to + r * step + v * VL, total);
                                    else parts[r][v] = total;
                                });
        }
    }

    // Turns the sums of one output channel back, and writes its results.
    void finish_channel(const std::vector<TileRun>& runs, int64_t channel, int64_t count, const float* sums,
                        float* lines) const {
        const float* from = sums + channel * POSITIONS * block_;
        const int64_t size = s_.out_height * s_.out_width;
        if (dense_) {
            for (size_t i = 0; i < runs.size(); i += pieces_)
                for (int64_t lane = 0; lane < (pieces_ > 1 ? 1 : runs[i].count); lane += VL)
                    finish_vector(&runs[i], int64_t(runs.size() - i), lane, channel, from + runs[i].lane + lane);
            return;
        }
        for (int64_t lane = 0; lane < count; lane += VL)
            turn_back(channel, from + lane, [&](int r, V (&y)[OUT]) __attribute__((always_inline)) {
#pragma GCC unroll 4
                for (int v = 0; v < OUT; v++) store(lines + r * line_size() + lane * OUT + v * VL, y[v]);
            });
        const int64_t step = s_.dilation_w;
        for (const TileRun& run : runs) {
            const int64_t length = std::min(OUT * run.count, (s_.out_width - run.out_column + step - 1) / step),
                          plane = (run.image * s_.d + channel) * size;
            for (int r = 0; r < OUT; r++) {
                const int64_t row = run.out_row + r * s_.dilation_h;
                if (row >= s_.out_height) break;
                const float* line = lines + r * line_size() + run.lane * OUT;
                const int64_t at = plane + row * s_.out_width + run.out_column;
                if (step == 1)
                    for (int64_t i = 0; i < length; i += VL) end_.put(at + i, load(line + i), length - i);
                else
                    for (int64_t i = 0; i < length; i++) end_.put_one(at + i * step, line[i]);
            }
        }
    }

    // VL tiles of a channel, from `lane` of the first run on.
    void finish_vector(const TileRun* runs, int64_t count, int64_t lane, int64_t channel, const float* sums) const {
        int64_t at[OUT], rows[OUT], columns[OUT];   // of each vector of a row of results
        const int64_t size = s_.out_height * s_.out_width, down = s_.dilation_h * s_.out_width;
        for (int v = 0; v < OUT; v++) {
            const int64_t piece = v * pieces_ / OUT;
            rows[v] = columns[v] = at[v] = 0;
            if (piece >= count) continue;
            const TileRun& run = runs[piece];
            const int64_t column = run.out_column + OUT * lane + v * VL - piece * VL / pieces_ * OUT;
            at[v] = (run.image * s_.d + channel) * size + run.out_row * s_.out_width + column;
            columns[v] = s_.out_width - column;
            if (columns[v] > 0) rows[v] = (s_.out_height - run.out_row + s_.dilation_h - 1) / s_.dilation_h;
        }
        const Ending end = end_;   // a copy that no store can change
        turn_back(channel, sums, [&](int r, V (&y)[OUT]) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int v = 0; v < OUT; v++) {
                if (r >= rows[v]) continue;
                end.put(at[v] + r * down, y[v], columns[v]);
                __builtin_prefetch(end.y + at[v] + r * down + size, 1);   // of the next channel
            }
        });
    }

    // VL tiles of a channel: put(row, OUT vectors of results in turn).
    template <class Put> void turn_back(int64_t channel, const float* from, Put&& put) const {
        const V factor = end_.factor(channel), offset = end_.offset(channel);
        const int unit = dense_ ? int(s_.dilation_w) : 1;
        const VI at = lane_index(), of_unit = at & (unit - 1), units = at - of_unit,
                 low = ((units >> 1) & -unit) + of_unit + ((units & unit) != 0 ? VI{} + VL : VI{}), high = low + VL / 2;
        V half[OUT][IN];
#pragma GCC unroll 6
        for (int column = 0; column < IN; column++) {
            V t[IN], y[OUT];
#pragma GCC unroll 6
            for (int r = 0; r < IN; r++) t[r] = load(from + (r * IN + column) * block_);
            Tile<OUT>::output(t, y);
#pragma GCC unroll 4
            for (int r = 0; r < OUT; r++) half[r][column] = y[r];
        }
#pragma GCC unroll 4
        for (int r = 0; r < OUT; r++) {
            V y[OUT];
            Tile<OUT>::output(half[r], y);
#pragma GCC unroll 4
            for (int v = 0; v < OUT; v++) y[v] = y[v] * factor + offset;
            interleave<OUT>(y, low, high);
            put(r, y);
        }
    }
};

}  // namespace jseg
