// The mask operator of PSANet on CUDA: weights by relative position (N, mh * mw, H, W) to and from weights by absolute
// position (N, H * W, H, W), both of type T; the maths is in cpu.cc.
//
// A thread per result, which reads one value or writes 0: nothing is added, no atomics. A block makes 8 rows of 32
// results. Along a diagonal of such a tile what is read lies next to one another, so a sector of memory serves eight
// results.
#include "cuda_base.cuh"

namespace {
using namespace jseg;

constexpr int ROWS = 8, COLUMNS = 32, THREADS = ROWS * COLUMNS;

struct Shape {
    int64_t n, h, w, rows, columns;
    bool distribute;
    explicit Shape(const Call& call)
        : n(call.integer(0)), h(call.integer(1)), w(call.integer(2)), rows(call.integer(3)), columns(call.integer(4)),
          distribute(call.integer(5) != 0) {}
    __host__ __device__ int64_t area() const { return h * w; }
    __host__ __device__ int64_t channels() const { return rows * columns; }
};

// Result (row, column) of picture n of a block, or none.
struct Place {
    int64_t n, row, column;
    bool exists;
    __device__ Place(int64_t rows, int64_t columns) {
        const int64_t across = ceil_div(columns, COLUMNS), down = ceil_div(rows, ROWS), tile = blockIdx.x / across;
        n = tile / down, row = tile % down * ROWS + threadIdx.x / COLUMNS;
        column = blockIdx.x % across * COLUMNS + threadIdx.x % COLUMNS, exists = row < rows && column < columns;
    }
    static int64_t blocks(int64_t n, int64_t rows, int64_t columns) {
        return n * ceil_div(rows, ROWS) * ceil_div(columns, COLUMNS);
    }
};

// y (N, area, area) <- x
template <class T> __global__ void __launch_bounds__(THREADS) make_absolute(Shape s, const T* x, T* y) {
    const Place at(s.area(), s.area());
    if (!at.exists) return;
    const int64_t here = s.distribute ? at.row : at.column, there = s.distribute ? at.column : at.row;
    const int64_t down = there / s.w - here / s.w + (s.rows - 1) / 2,
                  right = there % s.w - here % s.w + (s.columns - 1) / 2;
    const bool near = down >= 0 && down < s.rows && right >= 0 && right < s.columns;
    put(y + (at.n * s.area() + at.row) * s.area() + at.column,
        near ? to_float(x[(at.n * s.channels() + down * s.columns + right) * s.area() + here]) : 0.0f);
}

// dx (N, channels, area) <- dy
template <class T> __global__ void __launch_bounds__(THREADS) make_relative(Shape s, const T* dy, T* dx) {
    const Place at(s.channels(), s.area());
    if (!at.exists) return;
    const int64_t here = at.column, down = here / s.w + at.row / s.columns - (s.rows - 1) / 2,
                  right = here % s.w + at.row % s.columns - (s.columns - 1) / 2, there = down * s.w + right;
    const bool inside = down >= 0 && down < s.h && right >= 0 && right < s.w;
    const int64_t pair = s.distribute ? here * s.area() + there : there * s.area() + here;
    put(dx + (at.n * s.channels() + at.row) * s.area() + here,
        inside ? to_float(dy[at.n * s.area() * s.area() + pair]) : 0.0f);
}

}  // namespace

// inputs x; outputs y; integers: N H W mh mw distribute
JSEG_CUDA_KERNEL(jseg_psa_mask_forward) {
    const Shape s(call);
    if (work.measuring()) return;
    JSEG_LAUNCH((make_absolute<T>), Place::blocks(s.n, s.area(), s.area()), THREADS, s, call.in<T>(0), call.out<T>(0));
}

// inputs dy; outputs dx; integers as above
JSEG_CUDA_KERNEL(jseg_psa_mask_backward) {
    const Shape s(call);
    if (work.measuring()) return;
    JSEG_LAUNCH((make_relative<T>), Place::blocks(s.n, s.channels(), s.area()), THREADS, s, call.in<T>(0),
                call.out<T>(0));
}
