// Class of the largest bilinearly resized score on the CPU, and its softmax probability.
//
// Along each axis an output is a mean of T sources: two for one resize, three for two resizes in a row, more where
// windows of a slide overlap. The lanes of a vector are neighbouring output pixels of a row, so that no step crosses
// lanes. A band is the set of neighbouring output rows with the same sources, a block a vector of columns in a band.
//
// Weights are not negative and sum to one, so all scores of a block lie within those of its sources ("nodes"), and so
// does the difference of two classes: where class a leads class b at every node by more than rounding can take away, b
// wins nowhere in the block. Nodes are looked at once, for the class that leads and by how much. A block whose nodes
// all name one class is painted in one go; elsewhere the classes that lose to none of the nodes' leaders at all nodes
// are left ("candidates"). Each of them is interpolated along the T source rows once, as the first of them and the
// differences of the others from it; then the rows of the band follow, several at a time: first + sum of weight x
// difference. Where a node holds NaN, infinity or a huge value, all classes are candidates: the labels are always those
// of the plain comparison of all classes. With probabilities, classes stay until all that are left out add less than a
// float can tell.
#include <algorithm>
#include <cmath>
#include <vector>

#include "call.h"
#include "lanes.h"

using namespace jseg;

namespace {

constexpr int MAX_TAPS = 32;         // T of a `Columns` stands for its number of sources, or for any number up to this
constexpr int RIVALS = 4;            // leaders that a class is compared with
constexpr int FEW = 64;              // candidates read where they lie; the sources of more are copied together first
constexpr float HUGE_SCORE = 1e37f;  // beyond, differences may overflow
constexpr int ROWS = VL == 16 ? 8 : 4;   // output rows at a time, by the number of registers

template <int T> JSEG_INLINE int taps_of(int taps) { return T == MAX_TAPS ? taps : T; }

JSEG_INLINE unsigned lanes_set(VI mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)mask);
#elif defined(__x86_64__)
    return _mm_movemask_ps((__m128)mask);
#else
    unsigned bits = 0;
    for (int i = 0; i < VL; i++) bits |= unsigned(mask[i] & 1) << i;
    return bits;
#endif
}

// VL floats from `p`, of which those from `end` on are no memory of ours.
JSEG_INLINE V load_until(const float* p, const float* end) { return load_part(p, int(std::min<int64_t>(end - p, VL))); }

template <int T> struct Columns {   // VL output columns, the last of them repeated where the picture ends
    VI source[T];        // column of each output's sources; with `count` its place in `node`
    V weight[T];
    int32_t node[VL];    // the different sources, ascending
    int32_t used[VL];    // those with a weight above zero
    int count, used_count, taps;   // count is 0: more than VL of them
    bool near;           // neighbours: one load gets them
    bool repeats;        // the same nodes are used as by the block before

    Columns(const int32_t* index, const float* weights, int n_taps, int64_t x, int64_t width, const Columns* before)
        : taps(n_taps) {
        std::vector<int32_t> all, weighted;
        for (int i = 0; i < VL; i++)
            for (int t = 0; t < taps; t++) {
                const int64_t at = std::min(x + i, width - 1) * taps + t;
                source[t][i] = index[at], weight[t][i] = weights[at];
                all.push_back(index[at]);
                if (weights[at] > 0) weighted.push_back(index[at]);
            }
        const auto distinct = [](std::vector<int32_t>& values) {
            std::sort(values.begin(), values.end());
            values.erase(std::unique(values.begin(), values.end()), values.end());
            return values.size() <= VL ? int(values.size()) : 0;
        };
        count = distinct(all), used_count = count ? distinct(weighted) : 0;
        std::copy_n(all.begin(), count, node);
        std::copy_n(weighted.begin(), used_count, used);
        near = count && node[count - 1] - node[0] < VL;
        if (count)
            for (int t = 0; t < taps; t++)
                for (int i = 0; i < VL; i++)
                    source[t][i] = near ? source[t][i] - node[0]
                                        : int32_t(std::lower_bound(node, node + count, source[t][i]) - node);
        repeats = before && count == before->count && used_count && used_count == before->used_count &&
                  std::equal(node, node + count, before->node) && std::equal(used, used + used_count, before->used);
    }
    V interpolate(const float* row, const float* end) const {
        V total{};
        if (count) {
            V pixels{};
            if (near) pixels = load_until(row + node[0], end);
            else
                for (int i = 0; i < count; i++) pixels[i] = row[node[i]];
            const int n_taps = taps_of<T>(taps);
#pragma GCC unroll 4
            for (int t = 0; t < n_taps; t++) total += __builtin_shuffle(pixels, source[t]) * weight[t];
        } else
            for (int t = 0; t < taps; t++) {
                V pixels;
                for (int i = 0; i < VL; i++) pixels[i] = row[source[t][i]];
                total += pixels * weight[t];
            }
        return total;
    }
};

template <class I> JSEG_INLINE bool among(const I* values, int count, I value) {
    return std::find(values, values + count, value) != values + count;
}

struct Band {
    int64_t begin, end;      // output rows
    int64_t used[MAX_TAPS];  // the different sources with a weight above zero, the same for all rows
    int used_count;
    bool first;              // the sources of all weights are others than those of the band before
};

std::vector<Band> bands_of(const int32_t* index, const float* weights, int taps, int64_t height) {
    std::vector<Band> bands;
    for (int64_t y = 0; y < height; y++) {
        const int32_t* at = index + y * taps;
        const float* weight = weights + y * taps;
        const bool same = y > 0 && std::equal(at, at + taps, at - taps);
        const auto both_count = [](float a, float b) { return (a > 0) == (b > 0); };
        if (same && std::equal(weight, weight + taps, weight - taps, both_count)) {
            bands.back().end = y + 1;
            continue;
        }
        Band band{y, y + 1, {}, 0, !same};
        for (int t = 0; t < taps; t++)
            if (weight[t] > 0 && !among<int64_t>(band.used, band.used_count, at[t]))
                band.used[band.used_count++] = at[t];
        bands.push_back(band);
    }
    return bands;
}

// What is known of the nodes of one picture: the scores with classes innermost (h, w, padded), the class that leads, by
// how much, and the largest absolute score (infinity where one is huge or NaN).
struct Survey {
    int64_t classes, padded, h, w;
    float *scores, *lead, *size;
    int32_t* leader;

    struct Seen {   // of VL nodes
        V best, second, largest;
        VI at, odd;
    };
    // The nodes of row `y`; VL classes at a time, as whole rows of a class lie together. `seen`: one for VL nodes each.
    void look(const float* image, const float* end, int64_t y, Seen* seen) {
        for (int64_t k = 0; k < padded; k += VL)
            for (int64_t x = 0; x < w; x += VL) {
                Seen s = k ? seen[x / VL] : Seen{splat(-INFINITY), splat(-INFINITY), V{}, VI{}, VI{}};
                V values[VL];
                for (int i = 0; i < VL; i++) {
                    values[i] = V{};
                    if (k + i >= classes) continue;
                    const V v = values[i] = load_until(image + ((k + i) * h + y) * w + x, end), absolute = vabs(v);
                    s.odd |= ~(absolute <= HUGE_SCORE);
                    s.largest = vmax(absolute, s.largest);
                    const VI better = v > s.best;
                    s.second = better ? s.best : vmax(s.second, v);
                    s.best = better ? v : s.best, s.at = better ? VI{} + int32_t(k + i) : s.at;
                }
                seen[x / VL] = s;
                interleave(values);   // now a vector holds the classes of one node
                for (int64_t i = 0; i < std::min<int64_t>(VL, w - x); i++)
                    store(scores + (y * w + x + i) * padded + k, values[i]);
            }
        for (int64_t x = 0; x < w; x++) {
            const Seen& s = seen[x / VL];
            const int i = int(x % VL);
            const int64_t n = y * w + x;
            leader[n] = s.at[i], lead[n] = s.best[i] - s.second[i], size[n] = s.odd[i] ? INFINITY : s.largest[i];
        }
    }
};

struct Nodes {   // of one block
    int64_t at[MAX_TAPS * VL];
    int count;
    int32_t rivals[RIVALS];
    int rival_count;
};

// Classes that none of J rivals beats at all nodes by `margin` and what rounding may change, in ascending order.
template <int J> int64_t filter(const Survey& s, const Nodes& nodes, float rounding, float margin, int32_t* list) {
    float rival[J][MAX_TAPS * VL], room[J];
    for (int j = 0; j < J; j++) {
        float largest = 0;
        for (int n = 0; n < nodes.count; n++) {
            rival[j][n] = s.scores[nodes.at[n] * s.padded + nodes.rivals[j]];
            largest = std::max(largest, std::abs(rival[j][n]));
        }
        room[j] = margin + rounding * largest;
    }
    int64_t found = 0;
    for (int64_t k = 0; k < s.classes; k += VL) {
        V gap[J], largest{};
        for (int j = 0; j < J; j++) gap[j] = splat(INFINITY);
        for (int n = 0; n < nodes.count; n++) {
            const V v = load(s.scores + nodes.at[n] * s.padded + k);
            largest = vmax(largest, vabs(v));
#pragma GCC unroll 4
            for (int j = 0; j < J; j++) gap[j] = vmin(gap[j], rival[j][n] - v);
        }
        VI keep = first_lanes(int(std::min<int64_t>(VL, s.classes - k)));
        for (int j = 0; j < J; j++) keep &= ~(gap[j] >= room[j] + rounding * largest);
        for (unsigned bits = lanes_set(keep); bits; bits &= bits - 1) list[found++] = int32_t(k) + __builtin_ctz(bits);
    }
    return found;
}

// R output rows: class and value of the largest score; the lowest class wins a tie.
template <int T, int R>
void winners(const int32_t* list, int64_t count, const float* scores, const float* weights, int taps, VI* label,
             V* peak) {
    V best[R], weight[R][T];
    VI at[R];
    const int n_taps = taps_of<T>(taps);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        for (int t = 1; t < n_taps; t++) weight[r][t] = splat(weights[r * n_taps + t]);
        best[r] = load(scores), at[r] = VI{} + list[0];
#pragma GCC unroll 4
        for (int t = 1; t < n_taps; t++) best[r] += weight[r][t] * load(scores + t * VL);
    }
    for (int64_t i = 1; i < count; i++) {
        const float* const part = scores + i * n_taps * VL;
        const VI here = VI{} + list[i];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            V score = load(part);
#pragma GCC unroll 4
            for (int t = 1; t < n_taps; t++) score += weight[r][t] * load(part + t * VL);
            const VI better = score > best[r];
            best[r] = better ? score : best[r], at[r] = better ? here : at[r];
        }
    }
    for (int r = 0; r < R; r++) label[r] = at[r], peak[r] = best[r];
}

template <int T> V probability(int64_t count, const float* scores, const float* weights, int taps, V peak) {
    V total{}, weight[T];
    const int n_taps = taps_of<T>(taps);
    for (int t = 1; t < n_taps; t++) weight[t] = splat(weights[t]);
    for (int64_t i = 0; i < count; i++, scores += n_taps * VL) {
        V score = load(scores);
#pragma GCC unroll 4
        for (int t = 1; t < n_taps; t++) score += weight[t] * load(scores + t * VL);
        total += vexp_falling(score - peak);
    }
    return 1.0f / total;
}

// The label map, of 1, 2 or 4 bytes a pixel, and the probabilities if they are wanted.
struct Result {
    char* labels;
    int64_t bytes;
    float* prob;

    template <class L> void put(int64_t at, VI label, int here) const {
        L values[VL];
        for (int i = 0; i < VL; i++) values[i] = L(label[i]);
        if (here == VL) std::memcpy(labels + at * sizeof(L), values, sizeof values);
        else std::memcpy(labels + at * sizeof(L), values, here * sizeof(L));
    }
    void put(int64_t at, VI label, int here) const {
        if (bytes == 1) put<uint8_t>(at, label, here);
        else if (bytes == 2) put<uint16_t>(at, label, here);
        else put<int32_t>(at, label, here);
    }
    void paint(int64_t at, int32_t label, int64_t count) const {
        if (bytes == 1) std::memset(labels + at, label, count);
        else if (bytes == 2) std::fill_n(reinterpret_cast<uint16_t*>(labels) + at, count, uint16_t(label));
        else std::fill_n(reinterpret_cast<int32_t*>(labels) + at, count, label);
        if (prob) std::fill_n(prob + at, count, 1.0f);
    }
};

// Where comparing all classes is not to be saved, trying stops for a while.
struct Patience {
    int failed = 0, skip = 0;
    bool tired(int blocks) {
        const bool still = skip > 0;
        skip = std::max(skip - blocks, 0);
        return still;
    }
    void note(bool helped) {
        failed = helped ? 0 : std::min(failed + 1, 9);
        if (failed >= 4) skip = 64 << (failed - 4);
    }
};

template <int T> struct Readout {
    int64_t classes, h, w, height, width;
    int taps;
    const int32_t* row_index;
    const float* row_weights;
    std::vector<Columns<T>> columns;
    std::vector<Band> bands;
    Survey survey;
    bool prunes, odd;         // of this picture; `odd`: some node has a size of infinity
    float rounding, margin;   // a lead below margin + rounding x (sizes of both scores) may be none
    int64_t row_size;         // floats of a source row of all classes, copied together

    int64_t thread_floats() const { return taps * row_size + taps * classes * VL + round_up(classes, 16); }

    bool near_odd(const Band& band, const Columns<T>& block) const {
        for (int t = 0; t < taps; t++)
            for (int i = 0; i < block.count; i++)
                if (survey.size[row_index[band.begin * taps + t] * w + block.node[i]] == INFINITY) return true;
        return false;
    }
    // The number of candidates of a block; 0 where the first of the list is the label of all its pixels.
    int64_t candidates(const Band& band, const Columns<T>& block, int32_t* list, Patience& patience) const {
        const auto all = [&] {
            for (int64_t k = 0; k < classes; k++) list[k] = int32_t(k);
            return classes;
        };
        if (!band.used_count || !block.used_count || (odd && near_odd(band, block))) return all();
        Nodes nodes;
        nodes.count = nodes.rival_count = 0;
        float lead = INFINITY, size = 0;
        bool one = true;
        for (int r = 0; r < band.used_count; r++)
            for (int c = 0; c < block.used_count; c++) {
                const int64_t n = band.used[r] * w + block.used[c];
                nodes.at[nodes.count++] = n;
                lead = std::min(lead, survey.lead[n]), size = std::max(size, survey.size[n]);
                const int32_t leader = survey.leader[n];
                if (among(nodes.rivals, nodes.rival_count, leader)) continue;
                one = nodes.rival_count == 0;
                if (nodes.rival_count < RIVALS) nodes.rivals[nodes.rival_count++] = leader;
            }
        if (one && lead >= margin + 2 * rounding * size) {
            list[0] = nodes.rivals[0];
            return 0;
        }
        const int64_t work = nodes.count * (2 + 2 * nodes.rival_count),
                      saved = VL * (taps + band.end - band.begin) * (taps + 1);
        if (2 * work > saved || patience.tired(1)) return all();
        const auto by_rivals = nodes.rival_count == 1 ? filter<1> : nodes.rival_count == 2 ? filter<2>
                               : nodes.rival_count == 3 ? filter<3> : filter<4>;
        const int64_t count = by_rivals(survey, nodes, rounding, margin, list);
        patience.note(2 * count <= classes);
        return count == 1 ? 0 : count;
    }
    // All pixels of the bands from `i` on that have the same sources: one after the other, or where nothing is to be
    // saved together.
    void fill_like(const float* image, const float* end, int64_t first_row, int64_t i, const Result& result,
                   float* memory, Patience& patience) const {
        const int64_t first = i;
        while (++i < int64_t(bands.size()) && !bands[i].first) {}
        if (!prunes || patience.tired(int(columns.size()))) {
            const Band together{bands[first].begin, bands[i - 1].end, {}, 0, true};
            fill(image, end, first_row, together, result, memory, patience);
        } else
            for (int64_t b = first; b < i; b++) fill(image, end, first_row, bands[b], result, memory, patience);
    }
    // All pixels of a band.
    void fill(const float* image, const float* end, int64_t first_row, const Band& band, const Result& result,
              float* memory, Patience& patience) const {
        float *copy = memory, *scores = memory + taps * row_size;
        int32_t* const list = reinterpret_cast<int32_t*>(scores + taps * classes * VL);
        bool copied = false;
        int64_t count = -1, painted = -1;   // columns from `painted` on wait for their one label, `list[0]`
        const int32_t* const source = row_index + band.begin * taps;
        const auto paint = [&](int64_t until, int32_t label) {
            for (int64_t y = band.begin; y < band.end && painted >= 0; y++)
                result.paint((first_row + y) * width + painted, label, until - painted);
            painted = -1;
        };
        for (int64_t x = 0; x < width; x += VL) {
            const Columns<T>& block = columns[x / VL];
            if (count < 0 || !block.repeats) {
                const int32_t label = count < 0 ? 0 : list[0];
                count = candidates(band, block, list, patience);
                if (count || label != list[0]) paint(x, label);
            }
            if (!count) {
                if (painted < 0) painted = x;
                continue;
            }
            if (count > FEW && !copied) {
                for (int64_t k = 0; k < classes; k++)
                    for (int t = 0; t < taps; t++)
                        std::memcpy(copy + t * row_size + k * w, image + (k * h + source[t]) * w, w * sizeof(float));
                copied = true;
            }
            const int n_taps = taps_of<T>(taps);
            for (int64_t i = 0; i < count; i++) {
                float* const to = scores + i * n_taps * VL;
                const auto row = [&](int t) {
                    return count > FEW ? block.interpolate(copy + t * row_size + list[i] * w, scores)
                                       : block.interpolate(image + (list[i] * h + source[t]) * w, end);
                };
                const V top = row(0);
                store(to, top);
#pragma GCC unroll 4
                for (int t = 1; t < n_taps; t++) store(to + t * VL, row(t) - top);
            }
            const int here = int(std::min<int64_t>(VL, width - x));
            for (int64_t y = band.begin, rows; y < band.end; y += rows) {
                VI label[ROWS];
                V peak[ROWS];
                rows = band.end - y >= ROWS ? ROWS : band.end - y >= 4 ? 4 : 1;
                const auto find = rows == ROWS ? winners<T, ROWS> : rows == 4 ? winners<T, 4> : winners<T, 1>;
                find(list, count, scores, row_weights + y * taps, taps, label, peak);
                for (int r = 0; r < rows; r++) {
                    const int64_t at = (first_row + y + r) * width + x;
                    result.put(at, label[r], here);
                    if (result.prob)
                        store_part(result.prob + at,
                                   probability<T>(count, scores, row_weights + (y + r) * taps, taps, peak[r]), here);
                }
            }
        }
        paint(width, list[0]);
    }
};

template <int T> void run(const Call& call) {
    const int64_t n = call.integer(0);
    Readout<T> r;
    r.classes = call.integer(1), r.h = call.integer(2), r.w = call.integer(3);
    r.height = call.integer(4), r.width = call.integer(5), r.taps = int(call.integer(7));
    const bool with_prob = call.integer(6);
    Result result{call.out<char>(0), call.integer(8), with_prob ? call.out<float>(1) : nullptr};
    if (!with_prob) call.out<float>(1)[0] = 0;
    r.row_index = call.in<int32_t>(1), r.row_weights = call.in<float>(2);
    r.bands = bands_of(r.row_index, r.row_weights, r.taps, r.height);
    r.columns.reserve((r.width + VL - 1) / VL);   // each looks at the one before
    for (int64_t x = 0; x < r.width; x += VL)
        r.columns.emplace_back(call.in<int32_t>(3), call.in<float>(4), r.taps, x, r.width,
                               x ? &r.columns.back() : nullptr);
    // below four pixels a node, looking at the nodes costs more than it saves
    const bool prunes = r.prunes = r.height * r.width >= 4 * r.h * r.w;
    r.rounding = (8 * r.taps + 16) * 5.9604645e-8f;
    r.margin = 1e-36f + (with_prob ? 17.5f + std::log(float(r.classes)) : 0.0f);
    r.row_size = round_up(r.classes * r.w + VL, 16);
    const int64_t padded = round_up(r.classes, VL), area = prunes ? r.h * r.w : 0,
                  thread_size = round_up(r.thread_floats(), 16);
    float* const memory = scratch(area * (padded + 3) + omp_get_max_threads() * thread_size + 16);
    float* const nodes = memory + omp_get_max_threads() * thread_size;
    r.survey = Survey{r.classes, padded, r.h, r.w, nodes + 3 * area, nodes, nodes + area,
                      reinterpret_cast<int32_t*>(nodes + 2 * area)};
    const float* const end = call.in<float>(0) + n * r.classes * r.h * r.w;
#pragma omp parallel
    {
        NoDenormals guard;
        for (int64_t image = 0; image < n; image++) {
            const float* const scores = call.in<float>(0) + image * r.classes * r.h * r.w;
            if (prunes) {
                std::vector<Survey::Seen> seen((r.w + VL - 1) / VL);
#pragma omp for schedule(static)
                for (int64_t y = 0; y < r.h; y++) r.survey.look(scores, end, y, seen.data());
#pragma omp single
                {
                    const float largest = *std::max_element(r.survey.size, r.survey.size + area);
                    r.odd = largest == INFINITY, r.prunes = 2 * largest >= r.margin;
                }
            }
            Patience patience;
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < int64_t(r.bands.size()); i++)
                if (r.bands[i].first)
                    r.fill_like(scores, end, image * r.height, i, result, memory + omp_get_thread_num() * thread_size,
                                patience);
        }
    }
}

}  // namespace

// in: scores (N, K, h, w); sources, int32, and their weights of each output row, (H, T), and of each output column,
// (W, T), weights not below zero; out: labels (N, H, W) of 1, 2 or 4 bytes, probability (N, H, W) if `with_prob`, else
// any 1; integers: N K h w H W with_prob T label_bytes
JSEG_KERNEL(jseg_readout_run) {
    const int64_t taps = call.integer(7);
    (taps == 2 ? run<2> : taps == 3 ? run<3> : taps == 4 ? run<4> : run<MAX_TAPS>)(call);
}
