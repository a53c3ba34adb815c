// Class of the largest bilinearly resized score on CUDA, and its softmax probability.
//
//   v[k] = sum over TAPS x TAPS sources of weight x scores[n, k];  label = lowest k with v[k] = max v;
//   prob = 1 / sum exp(v - max v)
//
// Layout: scores (N, K, h, w) of type T; per output row (column) TAPS sources, int32, and their weights, float, none
// below zero, that sum to one; labels (N, H, W) of 1, 2 or 4 bytes, prob (N, H, W) float. One block: a tile of 8 x 32
// output pixels, a thread each. First it looks at all classes in the rectangle of sources that its pixels read, a warp
// a class: as means of them, no score leaves the range of its class there. A class whose highest source is below
// another's lowest by more than rounding can change wins nowhere in the tile and is passed over by all pixels; where a
// source is NaN, infinite or huge none is, nor where probabilities are wanted. The pixels then compare the rest; the
// sum is kept relative to the running maximum. There is no gradient; a NaN in class 0 gives label 0.
#include "cuda_base.cuh"

namespace {
using namespace jseg;

constexpr int THREADS = 256, TILE_W = WARP, TILE_H = THREADS / TILE_W;
constexpr int MAX_CLASSES = 2048, MAX_SOURCES = 1024;   // more are not looked at before
constexpr float HUGE_SCORE = 1e37f;                     // beyond, sums may overflow

struct Plane { int h, w, height, width, classes, taps; };
struct Tables { const int32_t *row_index, *column_index; const float *row_weights, *column_weights; };

// Sources of one output pixel along one axis; TAPS 0: any number of them, read where they lie.
template <int TAPS> struct Sources {
    int at[TAPS];
    float weight[TAPS];
    __device__ Sources(const int32_t* index, const float* weights, int output, int) {
        JSEG_UNROLL
        for (int t = 0; t < TAPS; t++)
            at[t] = index[int64_t(output) * TAPS + t], weight[t] = weights[int64_t(output) * TAPS + t];
    }
    __device__ static constexpr int count() { return TAPS; }
};
template <> struct Sources<0> {
    const int32_t* at;
    const float* weight;
    int taps;
    __device__ Sources(const int32_t* index, const float* weights, int output, int n)
        : at(index + int64_t(output) * n), weight(weights + int64_t(output) * n), taps(n) {}
    __device__ int count() const { return taps; }
};

template <int TAPS, class T> __device__ __forceinline__ float score_of(const T* plane, int w, const Sources<TAPS>& rows,
                                                                       const Sources<TAPS>& columns) {
    float score = 0.0f;
    JSEG_UNROLL
    for (int r = 0; r < rows.count(); r++) {
        float row = 0.0f;
        JSEG_UNROLL
        for (int c = 0; c < columns.count(); c++)
            row += columns.weight[c] * to_float(plane[int64_t(rows.at[r]) * w + columns.at[c]]);
        score += rows.weight[r] * row;
    }
    return score;
}

// The rectangle of sources of a tile: `low` and `high` hold those of its rows, then of its columns.
struct Rectangle {
    int top, bottom, left, right;
    __device__ Rectangle(const int* low, const int* high)
        : top(low[0]), bottom(high[0]), left(low[TILE_H]), right(high[TILE_H]) {
        for (int i = 1; i < TILE_H; i++) top = smaller(top, low[i]), bottom = larger(bottom, high[i]);
        for (int i = TILE_H + 1; i < TILE_H + TILE_W; i++)
            left = smaller(left, low[i]), right = larger(right, high[i]);
    }
    __device__ int width() const { return right - left + 1; }
    __device__ int count() const { return (bottom - top + 1) * width(); }
};

template <int TAPS> __device__ __forceinline__ void note_ends(const Sources<TAPS>& s, int place, int* low, int* high) {
    int first = s.at[0], last = s.at[0];
    JSEG_UNROLL
    for (int t = 1; t < s.count(); t++) first = smaller(first, s.at[t]), last = larger(last, s.at[t]);
    low[place] = first, high[place] = last;
}

// Of the classes of every eighth warp: the highest score of each in the rectangle, with what rounding may add, into
// `peaks`; returns the highest of the lowest scores, less what rounding may take away, infinity where one is odd.
template <class T>
__device__ float look_at(const T* scores, const Plane& p, const Rectangle& here, float rounding, float* peaks) {
    const int lane = threadIdx.x % WARP;
    float floor = -INFINITY;
    for (int k = threadIdx.x / WARP; k < p.classes; k += THREADS / WARP) {
        const T* plane = scores + int64_t(k) * p.h * p.w;
        float low = INFINITY, high = -INFINITY, odd = 0.0f;
        for (int i = lane; i < here.count(); i += WARP) {
            const float v = to_float(plane[int64_t(here.top + i / here.width()) * p.w + here.left + i % here.width()]);
            low = fminf(low, v), high = fmaxf(high, v);
            if (!(fabsf(v) <= HUGE_SCORE)) odd = 1.0f;
        }
        JSEG_UNROLL
        for (int step = WARP / 2; step; step /= 2) {
            low = fminf(low, __shfl_xor_sync(ALL_LANES, low, step));
            high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, step));
            odd = fmaxf(odd, __shfl_xor_sync(ALL_LANES, odd, step));
        }
        const float room = rounding * fmaxf(fabsf(low), fabsf(high)) + 1e-36f;
        floor = odd > 0.0f ? INFINITY : fmaxf(floor, low - room);
        if (lane == 0) peaks[k] = high + room;
    }
    return floor;
}

__device__ __forceinline__ void put_label(void* labels, int bytes, int64_t at, int label) {
    if (bytes == 1) static_cast<uint8_t*>(labels)[at] = uint8_t(label);
    else if (bytes == 2) static_cast<uint16_t*>(labels)[at] = uint16_t(label);
    else static_cast<int32_t*>(labels)[at] = label;
}

template <int TAPS, class T>
__global__ void __launch_bounds__(THREADS)
    best_class(const T* scores, Plane p, Tables tables, float rounding, void* labels, int bytes, float* prob) {
    JSEG_SHARED(int, low, TILE_H + TILE_W);
    JSEG_SHARED(int, high, TILE_H + TILE_W);
    JSEG_SHARED(float, peaks, MAX_CLASSES);
    JSEG_SHARED(float, floors, THREADS / WARP);
    const int across = int(ceil_div(p.width, TILE_W)), down = int(ceil_div(p.height, TILE_H));
    const int64_t tile = blockIdx.x, image = tile / across / down;
    const int y = int(tile / across % down) * TILE_H + threadIdx.x / TILE_W,
              x = int(tile % across) * TILE_W + threadIdx.x % TILE_W;
    const Sources<TAPS> rows(tables.row_index, tables.row_weights, smaller(y, p.height - 1), p.taps),
        columns(tables.column_index, tables.column_weights, smaller(x, p.width - 1), p.taps);
    const int64_t area = int64_t(p.h) * p.w;
    const T* plane = scores + image * p.classes * area;
    float floor = INFINITY;   // classes whose peak is below it are passed over; infinity: there are no peaks
    if (!prob && p.classes <= MAX_CLASSES) {
        if (threadIdx.x % TILE_W == 0) note_ends(rows, threadIdx.x / TILE_W, low, high);
        if (threadIdx.x < TILE_W) note_ends(columns, TILE_H + threadIdx.x, low, high);
        __syncthreads();
        const Rectangle here(low, high);
        if (here.count() <= MAX_SOURCES) {
            floor = look_at(plane, p, here, rounding, peaks);
            if (threadIdx.x % WARP == 0) floors[threadIdx.x / WARP] = floor;
            __syncthreads();
            for (int i = 0; i < THREADS / WARP; i++) floor = fmaxf(floor, floors[i]);
        }
    }
    if (y >= p.height || x >= p.width) return;
    const bool selects = floor < INFINITY;
    float best = score_of<TAPS>(plane, p.w, rows, columns), sum = 1.0f;
    int label = 0;
    for (int k = 1; k < p.classes; k++) {
        if (selects && !(peaks[k] >= floor)) continue;
        const float v = score_of<TAPS>(plane + k * area, p.w, rows, columns);
        const bool better = v > best;
        if (prob) {
            const float e = expf(better ? best - v : v - best);
            sum = better ? sum * e + 1.0f : sum + e;
        }
        best = better ? v : best;
        label = better ? k : label;
    }
    const int64_t at = (image * p.height + y) * p.width + x;
    put_label(labels, bytes, at, label);
    if (prob) prob[at] = 1.0f / sum;
}

template <int TAPS, class T> void launch(const Call& call) {
    const Plane p{int(call.integer(2)), int(call.integer(3)), int(call.integer(4)),
                  int(call.integer(5)), int(call.integer(1)), int(call.integer(7))};
    const Tables tables{call.in<int32_t>(1), call.in<int32_t>(3), call.in<float>(2), call.in<float>(4)};
    const int64_t blocks = call.integer(0) * ceil_div(p.height, TILE_H) * ceil_div(p.width, TILE_W);
    const float rounding = (4 * p.taps + 16) * 5.9604645e-8f;
    JSEG_LAUNCH((best_class<TAPS, T>), blocks, THREADS, call.in<T>(0), p, tables, rounding,
                static_cast<void*>(call.out<char>(0)), int(call.integer(8)),
                call.integer(6) ? call.out<float>(1) : static_cast<float*>(nullptr));
}

}  // namespace

// inputs scores, sources and weights per output row, (H, TAPS), and per output column; outputs labels, prob (any 1
// element without `with_prob`); integers: N K h w H W with_prob TAPS label_bytes
JSEG_CUDA_KERNEL(jseg_readout_run) {
    if (work.measuring()) return;
    const int64_t taps = call.integer(7);
    if (taps == 2) launch<2, T>(call);
    else if (taps == 3) launch<3, T>(call);
    else if (taps == 4) launch<4, T>(call);
    else launch<0, T>(call);
}
