// Bilinear resizing of planes on CUDA, see include/cuda_bilinear.cuh for the positions.
//
// Layout: x (P, h, w) and y, add (P, H, W) of type T. Forward, a thread per output pixel of a few planes, neighbours in
// a row: the four reads of neighbours share cache lines. Backward, a thread per source pixel gathers the outputs that
// read it, in order: no atomics, results repeat bit by bit. Sums are float.
#include "cuda_bilinear.cuh"

namespace {
using namespace jseg;

template <class T>
__global__ void __launch_bounds__(256)
    resize_planes(const T* x, const T* add, int64_t planes, int64_t each, Axis rows, Axis columns, T* y) {
    const int64_t width = columns.size_out, area = rows.size_out * width, cuts = ceil_div(area, 256),
                  at = blockIdx.x % cuts * 256 + threadIdx.x, first = blockIdx.x / cuts * each;
    if (at >= area) return;
    const int row = int(at / width), column = int(at % width), y0 = rows.lower_of(row), x0 = columns.lower_of(column);
    const Corners corners(rows, columns, int64_t(y0), int64_t(x0), rows.fraction_of(row, y0),
                          columns.fraction_of(column, x0));
    for (int64_t plane = first; plane < first + each && plane < planes; plane++) {
        const float value = corners.score(x + plane * rows.size_in * columns.size_in);
        put(y + plane * area + at, add ? value + to_float(add[plane * area + at]) : value);
    }
}
// Planes of a block: 8 where there are blocks enough.
inline int64_t planes_each(int64_t planes, int64_t cuts) {
    const int64_t each = planes * cuts / 1024;
    return each < 1 ? 1 : each < 8 ? each : 8;
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
    if (work.measuring()) return;
    const Axis rows = axis_of(int(call.integer(1)), int(call.integer(3)), align),
               columns = axis_of(int(call.integer(2)), int(call.integer(4)), align);
    const int64_t cuts = ceil_div(int64_t(rows.size_out) * columns.size_out, 256), each = planes_each(planes, cuts);
    JSEG_LAUNCH((resize_planes<T>), cuts * ceil_div(planes, each), 256, call.in<T>(0), call.in<T>(1), planes, each,
                rows, columns, call.out<T>(0));
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
