// Values of maps at points on CUDA, see op.py for the meaning.
//
// Layout: x (N, C, H, W) and y (N, C, P) of type T, points (N, P, 2) float. A thread takes one point, or in the
// backward pass one pixel, through GROUP channels. Forward it reads the point's pixels. Backward it adds up what the
// points of the four cells around its pixel give, in their order (include/cuda_points.cuh): no atomics, results
// repeat bit by bit. Sums are float.
#include "cuda_points.cuh"

namespace {
using namespace jseg;

constexpr int GROUP = 8, THREADS = 256;

struct Shape {
    int64_t n, c, h, w, count;
    bool nearest, align;
    explicit Shape(const Call& call)
        : n(call.integer(0)), c(call.integer(1)), h(call.integer(2)), w(call.integer(3)), count(call.integer(4)),
          nearest(call.integer(5) != 0), align(call.integer(6) != 0) {}
    __host__ __device__ int64_t cells() const { return (h + 1) * (w + 1); }
    // of a launch with a thread for each of `places` and each group of channels
    int64_t blocks(int64_t places) const { return n * ceil_div(c, GROUP) * ceil_div(places, THREADS); }
};

// What a thread of such a launch works on.
struct Job {
    int64_t at, n, channel;
    int channels;
    __device__ Job(const Shape& s, int64_t places) {
        const int64_t across = ceil_div(places, THREADS), groups = ceil_div(s.c, GROUP), group = blockIdx.x / across;
        at = blockIdx.x % across * THREADS + threadIdx.x, n = group / groups, channel = group % groups * GROUP;
        channels = s.c - channel < GROUP ? int(s.c - channel) : GROUP;
    }
};

struct Point {
    float x, y;
    __device__ Point(const Shape& s, const float* point)
        : x(position(point[0], s.w, s.align)), y(position(point[1], s.h, s.align)) {
        if (s.nearest) x = rintf(x), y = rintf(y);
    }
    __device__ int64_t left() const { return int64_t(floorf(x)); }
    __device__ int64_t top() const { return int64_t(floorf(y)); }
    __device__ float share(int64_t row, int64_t column) const { return share_of(row, y) * share_of(column, x); }
};

template <class T> __global__ void __launch_bounds__(THREADS) sample(Shape s, const T* x, const float* points, T* y) {
    const Job job(s, s.count);
    if (job.at >= s.count) return;
    const Point point(s, points + 2 * (job.n * s.count + job.at));
    float sums[GROUP] = {};
    for (int k = 0; k < (s.nearest ? 1 : 4); k++) {
        const int64_t row = point.top() + k / 2, column = point.left() + k % 2;
        if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
        const float share = point.share(row, column);
        const T* from = x + ((job.n * s.c + job.channel) * s.h + row) * s.w + column;
        JSEG_UNROLL
        for (int c = 0; c < GROUP; c++)
            if (c < job.channels) sums[c] += share * to_float(from[c * s.h * s.w]);
    }
    T* to = y + (job.n * s.c + job.channel) * s.count + job.at;
    JSEG_UNROLL
    for (int c = 0; c < GROUP; c++)
        if (c < job.channels) put(to + c * s.count, sums[c]);
}

struct Cells {
    Shape s;
    const float* points;
    __device__ int64_t operator()(int64_t list, int64_t number) const {
        const Point point(s, points + 2 * (list * s.count + number));
        return cell_of(point.top(), point.left(), s.h, s.w, s.cells());
    }
};

template <class T>
__global__ void __launch_bounds__(THREADS, 2) gather(Shape s, Order order, const T* dy, const float* points, T* dx) {
    const Job job(s, s.h * s.w);
    if (job.at >= s.h * s.w) return;
    const int64_t row = job.at / s.w, column = job.at % s.w;
    const T* from = dy + (job.n * s.c + job.channel) * s.count;
    float sums[GROUP] = {};
    for (int k = 0; k < (s.nearest ? 1 : 4); k++)
        order.each(job.n, cell_of(row - k / 2, column - k % 2, s.h, s.w, 0), [&](int64_t number) {
            const float share = Point(s, points + 2 * (job.n * s.count + number)).share(row, column);
            const T* of_point = from + number;
            JSEG_UNROLL
            for (int c = 0; c < GROUP; c++, of_point += s.count)
                if (c < job.channels) sums[c] += share * to_float(*of_point);
        });
    T* to = dx + (job.n * s.c + job.channel) * s.h * s.w + job.at;
    JSEG_UNROLL
    for (int c = 0; c < GROUP; c++)
        if (c < job.channels) put(to + c * s.h * s.w, sums[c]);
}

}  // namespace

// inputs x, points; outputs y; integers: N C H W P nearest align_corners
JSEG_CUDA_KERNEL(jseg_point_sample_forward) {
    const Shape s(call);
    if (work.measuring()) return;
    JSEG_LAUNCH((sample<T>), s.blocks(s.count), THREADS, s, call.in<T>(0), call.in<float>(1), call.out<T>(0));
}

// inputs dy, points; outputs dx; integers as above
JSEG_CUDA_KERNEL(jseg_point_sample_backward) {
    const Shape s(call);
    const Sorter sorter(s.n, s.count, s.cells(), work);
    if (work.measuring()) return;
    const Order order = sorter.run(s.n, Cells{s, call.in<float>(1)});
    JSEG_LAUNCH((gather<T>), s.blocks(s.h * s.w), THREADS, s, order, call.in<T>(0), call.in<float>(1), call.out<T>(0));
}
