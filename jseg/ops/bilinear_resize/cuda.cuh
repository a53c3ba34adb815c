// Bilinear resizing of planes on CUDA, see include/cuda_bilinear.cuh for the positions.
//
// Layout: x (P, h, w) and y, add (P, H, W) of type T. Forward, a thread per output pixel, neighbours in a row: the four
// reads of neighbours share cache lines. Backward, a thread per source pixel gathers the outputs that read it, in
// order: no atomics, results repeat bit by bit. Sums are float.
#include "cuda_bilinear.cuh"

namespace {
using namespace jseg;

template <class T>
__global__ void __launch_bounds__(256)
    resize_planes(const T* x, const T* add, int64_t planes, Axis rows, Axis columns, T* y) {
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x, width = columns.size_out, area = rows.size_out * width;
    if (at >= planes * area) return;
    const Corners corners(rows, columns, int(at / width % rows.size_out), int(at % width));
    const float value = corners.score(x + at / area * rows.size_in * columns.size_in);
    put(y + at, add ? value + to_float(add[at]) : value);
}

// Weight with which output o reads source s.
__device__ __forceinline__ float share(const Axis& axis, int o, int s) {
    return axis.lower[o] == s ? 1.0f - axis.fraction[o] : axis.fraction[o];
}

template <class T>
__global__ void __launch_bounds__(256) gather_planes(const T* dy, int64_t planes, Axis rows, Axis columns, T* dx) {
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x, w = columns.size_in, h = rows.size_in;
    if (at >= planes * h * w) return;
    const int x = int(at % w), y = int(at / w % h);
    const T* plane = dy + at / w / h * rows.size_out * columns.size_out;
    float total = 0;
    for (int r = rows.first[y ? y - 1 : 0]; r < rows.first[y + 1]; r++) {
        float sum = 0;
        for (int q = columns.first[x ? x - 1 : 0]; q < columns.first[x + 1]; q++)
            sum += share(columns, q, x) * to_float(plane[int64_t(r) * columns.size_out + q]);
        total += share(rows, r, y) * sum;
    }
    put(dx + at, total);
}

}  // namespace

// inputs x, add (may be absent); outputs y; integers: P h w H W align_corners
JSEG_CUDA_KERNEL(jseg_bilinear_resize_forward) {
    const int64_t planes = call.integer(0);
    const bool align = call.integer(5);
    const Axis rows = take_axis(int(call.integer(1)), int(call.integer(3)), align, work),
               columns = take_axis(int(call.integer(2)), int(call.integer(4)), align, work);
    if (work.measuring()) return;
    run_axis(rows);
    run_axis(columns);
    JSEG_LAUNCH((resize_planes<T>), ceil_div(planes * rows.size_out * columns.size_out, 256), 256, call.in<T>(0),
                call.in<T>(1), planes, rows, columns, call.out<T>(0));
}

// inputs dy; outputs dx; integers as above
JSEG_CUDA_KERNEL(jseg_bilinear_resize_backward) {
    const int64_t planes = call.integer(0);
    const bool align = call.integer(5);
    const Axis rows = take_axis(int(call.integer(1)), int(call.integer(3)), align, work),
               columns = take_axis(int(call.integer(2)), int(call.integer(4)), align, work);
    if (work.measuring()) return;
    run_axis(rows);
    run_axis(columns);
    JSEG_LAUNCH((gather_planes<T>), ceil_div(planes * rows.size_in * columns.size_in, 256), 256, call.in<T>(0), planes,
                rows, columns, call.out<T>(0));
}
