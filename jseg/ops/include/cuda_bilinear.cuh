// Bilinear resampling of class scores on the device, of upsample_cross_entropy.
//
// One axis: value = source[lower] (1 - fraction) + source[lower + 1] fraction, fraction = 0 at the last source
// (PyTorch's F.interpolate), computed in double. A small kernel writes lower and fraction of every output, and for
// every source s the first output whose lower is s: the outputs that read s are first[s - 1] .. first[s + 1] - 1.
#pragma once
#include "cuda_base.cuh"

namespace jseg {

struct Axis {
    int size_in, size_out;
    double step, shift;   // position of output o: max(0, o step + shift)
    int* lower;
    float* fraction;
    int* first;           // size_in + 1 entries
    __device__ double position(int o) const {
        const double p = o * step + shift;
        return p > 0 ? p : 0;
    }
    __device__ int lower_of(int o) const {
        const double p = position(o);
        return p < size_in - 1 ? int(p) : size_in - 1;
    }
    __device__ float fraction_of(int o, int low) const { return low + 1 < size_in ? float(position(o) - low) : 0.0f; }
};

// Without its table.
inline Axis axis_of(int size_in, int size_out, bool align_corners) {
    const double step =
        align_corners ? (size_out > 1 ? double(size_in - 1) / (size_out - 1) : 0.0) : double(size_in) / size_out;
    return {size_in, size_out, step, align_corners ? 0.0 : 0.5 * step - 0.5, nullptr, nullptr, nullptr};
}
inline Axis take_axis(int size_in, int size_out, bool align_corners, Workspace& work) {
    Axis a = axis_of(size_in, size_out, align_corners);
    a.lower = work.take<int>(size_out), a.fraction = work.take<float>(size_out), a.first = work.take<int>(size_in + 1);
    return a;
}

static __global__ void fill_axis(Axis a) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < a.size_out) {
        const int low = a.lower_of(i);
        a.lower[i] = low;
        a.fraction[i] = a.fraction_of(i, low);
    }
    if (i <= a.size_in) {
        int begin = 0, end = a.size_out;   // the first output whose lower is at least i lies in [begin, end]
        while (begin < end) {
            const int middle = (begin + end) / 2;
            if (a.lower_of(middle) < i) begin = middle + 1;
            else end = middle;
        }
        a.first[i] = begin;
    }
}
inline void run_axis(const Axis& a) {
    JSEG_LAUNCH(fill_axis, ceil_div(larger(a.size_in + 1, a.size_out), 256), 256, a);
}

__device__ __forceinline__ float mix(float a, float b, float fraction) { return a * (1.0f - fraction) + b * fraction; }

// The four sources of one output pixel within a (h, w) plane.
struct Corners {
    int64_t at[4];   // upper left, upper right, lower left, lower right
    float fx, fy;
    __device__ Corners(const Axis& rows, const Axis& columns, int y, int x)
        : Corners(rows, columns, int64_t(rows.lower[y]), int64_t(columns.lower[x]), rows.fraction[y],
                  columns.fraction[x]) {}
    // Of the upper left one and the fractions.
    __device__ Corners(const Axis& rows, const Axis& columns, int64_t y0, int64_t x0, float fy, float fx)
        : fx(fx), fy(fy) {
        const int64_t w = columns.size_in;
        const int64_t y1 = y0 + 1 < rows.size_in ? y0 + 1 : y0, x1 = x0 + 1 < w ? x0 + 1 : x0;
        at[0] = y0 * w + x0, at[1] = y0 * w + x1, at[2] = y1 * w + x0, at[3] = y1 * w + x1;
    }
    template <class T> __device__ float score(const T* plane) const {
        return mix(mix(to_float(plane[at[0]]), to_float(plane[at[1]]), fx),
                   mix(to_float(plane[at[2]]), to_float(plane[at[3]]), fx), fy);
    }
};

}  // namespace jseg
