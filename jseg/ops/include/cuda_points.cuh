// Points between the pixels of maps, shared by point_sample and deformable_attention: where they lie, and lists of them
// in the order of the cells they lie in.
//
// A cell is the square between four pixels; those around the edge count, so a map of (h, w) has (h + 1) (w + 1). What a
// pixel gets from the points is a sum over four cells. Points are sorted by cell and then by number: the sum always
// runs in the same order, without atomics. Sorting: runs of RUN keys in shared memory (bitonic); then runs are merged
// two by two, every key finding its place by a binary search in the other run. No two keys are equal.
#pragma once
#include "cuda_base.cuh"

namespace jseg {

// In pixels; far outside, where all is 0, no farther than an integer can say. NaN is outside.
__device__ __forceinline__ float position(float share, int64_t length, bool align_corners) {
    const float at = align_corners ? share * float(length - 1) : share * float(length) - 0.5f;
    return fminf(fmaxf(at, -2.0f), float(length) + 1.0f);
}

// What a pixel counts for a point in linear interpolation along one axis.
__device__ __forceinline__ float share_of(int64_t pixel, float at) {
    return fmaxf(0.0f, 1.0f - fabsf(at - float(pixel)));
}

// The cell whose upper left pixel is (top, left); `outside` where no pixel of it exists.
__device__ __forceinline__ int64_t cell_of(int64_t top, int64_t left, int64_t h, int64_t w, int64_t outside) {
    return top >= -1 && top < h && left >= -1 && left < w ? (top + 1) * (w + 1) + left + 1 : outside;
}

constexpr int RUN = 512;   // keys that one block sorts, two a thread

__device__ __forceinline__ int64_t number_of(int64_t key) { return key & 0xffffffffLL; }
__device__ __forceinline__ int64_t key_of(int64_t cell, int64_t number) { return cell << 32 | number; }

// How many of `count` sorted keys are smaller.
__device__ __forceinline__ int64_t smaller_keys(const int64_t* keys, int64_t count, int64_t key) {
    int64_t begin = 0, end = count;
    while (begin < end) {
        const int64_t middle = (begin + end) / 2;
        if (keys[middle] < key) begin = middle + 1;
        else end = middle;
    }
    return begin;
}

// keys (lists, count): the runs of every list, each in order. cells(list, number) is the cell of a point.
template <class Cells>
__global__ void __launch_bounds__(RUN / 2) sort_runs(Cells cells, int64_t count, int64_t* keys) {
    JSEG_SHARED(int64_t, room, RUN);
    const int64_t runs = ceil_div(count, RUN), list = blockIdx.x / runs, first = blockIdx.x % runs * RUN;
    for (int64_t i = threadIdx.x; i < RUN; i += RUN / 2)
        room[i] = first + i < count ? key_of(cells(list, first + i), first + i) : INT64_MAX;
    __syncthreads();
    for (int size = 2; size <= RUN; size *= 2)
        for (int step = size / 2; step; step /= 2) {
            const int low = int(threadIdx.x) / step * 2 * step + int(threadIdx.x) % step, high = low + step;
            const int64_t a = room[low], b = room[high];
            if ((a > b) == ((low & size) == 0)) room[low] = b, room[high] = a;
            __syncthreads();
        }
    for (int64_t i = threadIdx.x; i < RUN && first + i < count; i += RUN / 2) keys[list * count + first + i] = room[i];
}

// Runs of `width` keys become runs twice as wide. A thread a key.
static __global__ void __launch_bounds__(256)
    merge_runs(const int64_t* from, int64_t lists, int64_t count, int64_t width, int64_t* to) {
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (at >= lists * count) return;
    const int64_t* list = from + at / count * count;
    const int64_t i = at % count, run = i / width, other = (run ^ 1) * width, left = count - other,
                  others = left < 0 ? 0 : left < width ? left : width;
    const int64_t before = others ? smaller_keys(list + other, others, list[i]) : 0;
    to[at / count * count + run / 2 * 2 * width + i % width + before] = list[i];
}

// first (lists, cells + 1): how many keys of a list lie in earlier cells.
static __global__ void __launch_bounds__(256)
    find_cells(const int64_t* keys, int64_t lists, int64_t count, int64_t cells, int* first) {
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (at >= lists * (cells + 1)) return;
    first[at] = int(smaller_keys(keys + at / (cells + 1) * count, count, key_of(at % (cells + 1), 0)));
}

// Lists of points in the order of their cells, 0 to cells - 1; those with cell `cells` belong to no pixel.
struct Order {
    int64_t count, cells;
    const int64_t* keys;
    const int* first;
    // visit(number) for the points of a cell, in order
    template <class Visit> __device__ __forceinline__ void each(int64_t list, int64_t cell, Visit&& visit) const {
        const int* range = first + list * (cells + 1) + cell;
        for (int i = range[0]; i < range[1]; i++) visit(number_of(keys[list * count + i]));
    }
};

// The memory of an `Order` of so many lists, and its making.
class Sorter {
public:
    Sorter(int64_t lists, int64_t count, int64_t cells, Workspace& work) : count_(count), cells_(cells) {
        for (int64_t*& keys : keys_) keys = work.take<int64_t>(lists * count);
        first_ = work.take<int>(lists * (cells + 1));
    }
    template <class Cells> Order run(int64_t lists, Cells cells) const {
        int64_t *from = keys_[0], *to = keys_[1];
        JSEG_LAUNCH((sort_runs<Cells>), lists * ceil_div(count_, RUN), RUN / 2, cells, count_, from);
        for (int64_t width = RUN; width < count_; width *= 2) {
            JSEG_LAUNCH(merge_runs, ceil_div(lists * count_, 256), 256, static_cast<const int64_t*>(from), lists,
                        count_, width, to);
            int64_t* const sorted = to;
            to = from, from = sorted;
        }
        JSEG_LAUNCH(find_cells, ceil_div(lists * (cells_ + 1), 256), 256, static_cast<const int64_t*>(from), lists,
                    count_, cells_, first_);
        return {count_, cells_, from, first_};
    }

private:
    int64_t count_, cells_;
    int64_t* keys_[2];
    int* first_;
};

}  // namespace jseg
