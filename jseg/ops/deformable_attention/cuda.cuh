// Weighted sums of values at points of several maps on CUDA, see op.py for the meaning.
//
// Layout: value (N, S, G, D), y (N, Q, G, D) of type T; points (N, Q, G, M, P, 2), weights (N, Q, G, M, P) float. The
// pixel of one head is D values in a row, and so is what a warp reads.
//   forward                a thread per value of y, through the points of its query and head
//   dpoints, dweights      a warp per query and head: the products dy . value of a point's pixels, summed over lanes
//   dvalue                 a thread per value, which adds up what the points of the four cells around its pixel give,
//                          in their order (include/cuda_points.cuh); a list of points per picture and head
// No atomics: results repeat bit by bit. Sums are float.
#include "cuda_points.cuh"

namespace {
using namespace jseg;

constexpr int MAPS = 16, THREADS = 256, WARPS = THREADS / WARP;
constexpr int64_t MOST_KEYS = 1 << 22;   // sorted at once, unless one picture has more: 64 MiB of memory

struct Sizes {
    int64_t n, cells, heads, width, queries, maps, count;
    int h[MAPS], w[MAPS];
    int64_t first[MAPS], first_cell[MAPS], all_cells;   // of each map: its first pixel, its first cell

    explicit Sizes(const Call& call)
        : n(call.integer(0)), cells(call.integer(1)), heads(call.integer(2)), width(call.integer(3)),
          queries(call.integer(4)), maps(call.integer(5)), count(call.integer(6)), all_cells(0) {
        int64_t at = 0;
        for (int64_t m = 0; m < MAPS; m++) {
            h[m] = m < maps ? int(call.integer(7 + int(2 * m))) : 0;
            w[m] = m < maps ? int(call.integer(8 + int(2 * m))) : 0;
            first[m] = at, first_cell[m] = all_cells;
            at += int64_t(h[m]) * w[m], all_cells += m < maps ? int64_t(h[m] + 1) * (w[m] + 1) : 0;
        }
    }
    __host__ __device__ int64_t each() const { return maps * count; }   // points of a query and head
    __host__ __device__ int64_t list() const { return queries * each(); }
};

// A point on its map, in pixels. NaN lies outside; in the factors it stays.
struct Point {
    float x, y;
    int64_t left, top;
    __device__ Point(const Sizes& s, int64_t map, const float* point)
        : x(position(point[0], s.w[map], false)), y(position(point[1], s.h[map], false)), left(int64_t(floorf(x))),
          top(int64_t(floorf(y))) {
        if (point[0] != point[0]) x = point[0];
        if (point[1] != point[1]) y = point[1];
    }
};

// One of the four pixels of a point: its factor, and how that changes along x and y.
struct Tap {
    int64_t pixel;   // in the picture, -1 outside
    float factor, along_x, along_y;
    __device__ Tap(const Sizes& s, int64_t map, const Point& p, int k) {
        const int64_t row = p.top + k / 2, column = p.left + k % 2, h = s.h[map], w = s.w[map];
        const float right = p.x - float(p.left), down = p.y - float(p.top), share_x = k % 2 ? right : 1.0f - right,
                    share_y = k / 2 ? down : 1.0f - down;
        pixel = row >= 0 && row < h && column >= 0 && column < w ? s.first[map] + row * w + column : -1;
        factor = share_x * share_y;
        along_x = (k % 2 ? share_y : -share_y) * float(w), along_y = (k / 2 ? share_x : -share_x) * float(h);
    }
};

template <class T>
__global__ void __launch_bounds__(THREADS)
    attend(Sizes s, const T* value, const float* points, const float* weights, T* y) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x, job = at / s.width;
    if (at >= s.n * s.queries * s.heads * s.width) return;
    const int64_t step = s.heads * s.width;
    value += job / (s.queries * s.heads) * s.cells * step + job % s.heads * s.width + at % s.width;
    float sum = 0.0f;
    for (int64_t i = 0; i < s.each(); i++) {
        const int64_t here = job * s.each() + i, map = i / s.count;
        const Point point(s, map, points + 2 * here);
        JSEG_UNROLL
        for (int k = 0; k < 4; k++) {
            const Tap tap(s, map, point, k);
            const float factor = weights[here] * tap.factor;
            if (tap.pixel >= 0) sum += factor * to_float(value[tap.pixel * step]);
            else if (factor != factor) sum = factor;
        }
    }
    put(y + at, sum);
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    point_slopes(Sizes s, const T* value, const float* points, const float* weights, const T* dy, float* dpoints,
                 float* dweights) {
    const int64_t job = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP, step = s.heads * s.width;
    const bool inside = job < s.n * s.queries * s.heads;
    const int lane = int(threadIdx.x) % WARP;
    value += job / (s.queries * s.heads) * s.cells * step + job % s.heads * s.width;
    for (int64_t i = 0; i < s.each(); i++) {
        const int64_t here = job * s.each() + i, map = i / s.count;
        float total = 0.0f, x = 0.0f, y = 0.0f;
        if (inside) {
            const Point point(s, map, points + 2 * here);
            JSEG_UNROLL
            for (int k = 0; k < 4; k++) {
                const Tap tap(s, map, point, k);
                float product = 0.0f;
                for (int64_t d = lane; tap.pixel >= 0 && d < s.width; d += WARP)
                    product += to_float(dy[job * s.width + d]) * to_float(value[tap.pixel * step + d]);
                total += tap.factor * product, x += tap.along_x * product, y += tap.along_y * product;
            }
        }
        total = warp_sum(total), x = warp_sum(x), y = warp_sum(y);
        if (!inside || lane) continue;
        dweights[here] = total;
        dpoints[2 * here] = weights[here] * x, dpoints[2 * here + 1] = weights[here] * y;
    }
}

// The lists of a group of pictures, the first of which is `picture`; one for each of their heads.
struct Lists {
    Sizes s;
    const float* points;
    int64_t picture;
    // Where point `number` of a list is in `points` and `weights`.
    __device__ int64_t place(int64_t list, int64_t number) const {
        const int64_t query = number / s.each(), n = picture + list / s.heads;
        return ((n * s.queries + query) * s.heads + list % s.heads) * s.each() + number % s.each();
    }
    __device__ int64_t operator()(int64_t list, int64_t number) const {
        const int64_t map = number % s.each() / s.count;
        const Point point(s, map, points + 2 * place(list, number));
        const int64_t cell = cell_of(point.top, point.left, s.h[map], s.w[map], -1);
        return cell < 0 ? s.all_cells : s.first_cell[map] + cell;
    }
};

template <class T>
__global__ void __launch_bounds__(THREADS)
    gather(Lists lists, int64_t pictures, Order order, const float* weights, const T* dy, T* dvalue) {
    const Sizes& s = lists.s;
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x, d = at % s.width, head = at / s.width % s.heads,
                  pixel = at / (s.width * s.heads) % s.cells, n = at / (s.width * s.heads * s.cells);
    if (n >= pictures) return;
    int64_t map = 0;
    while (map + 1 < s.maps && pixel >= s.first[map + 1]) map++;
    const int64_t h = s.h[map], w = s.w[map], row = (pixel - s.first[map]) / w, column = (pixel - s.first[map]) % w,
                  list = n * s.heads + head;
    float sum = 0.0f;
    for (int k = 0; k < 4; k++)
        order.each(list, s.first_cell[map] + cell_of(row - k / 2, column - k % 2, h, w, 0), [&](int64_t number) {
            const int64_t here = lists.place(list, number);
            const Point point(s, map, lists.points + 2 * here);
            sum += weights[here] * share_of(column, point.x) * share_of(row, point.y) *
                   to_float(dy[here / s.each() * s.width + d]);
        });
    put(dvalue + lists.picture * s.cells * s.heads * s.width + at, sum);
}

}  // namespace

// inputs value, points, weights; outputs y; integers: N S G D Q M P, then H W of each map
JSEG_CUDA_KERNEL(jseg_deformable_attention_forward) {
    const Sizes s(call);
    if (work.measuring()) return;
    JSEG_LAUNCH((attend<T>), ceil_div(s.n * s.queries * s.heads * s.width, THREADS), THREADS, s, call.in<T>(0),
                call.in<float>(1), call.in<float>(2), call.out<T>(0));
}

// inputs value, points, weights, dy; outputs gradients of the first three; integers as above
JSEG_CUDA_KERNEL(jseg_deformable_attention_backward) {
    const Sizes s(call);
    const int64_t most = MOST_KEYS / (s.heads * s.list()), group = most < 1 ? 1 : most < s.n ? most : s.n;
    const Sorter sorter(group * s.heads, s.list(), s.all_cells, work);
    if (work.measuring()) return;
    const T *value = call.in<T>(0), *dy = call.in<T>(3);
    const float *points = call.in<float>(1), *weights = call.in<float>(2);
    JSEG_LAUNCH((point_slopes<T>), ceil_div(s.n * s.queries * s.heads, WARPS), THREADS, s, value, points, weights, dy,
                call.out<float>(1), call.out<float>(2));
    for (int64_t picture = 0; picture < s.n; picture += group) {
        const int64_t pictures = s.n - picture < group ? s.n - picture : group;
        const Lists lists{s, points, picture};
        const Order order = sorter.run(pictures * s.heads, lists);
        JSEG_LAUNCH((gather<T>), ceil_div(pictures * s.cells * s.heads * s.width, THREADS), THREADS, lists, pictures,
                    order, weights, dy, call.out<T>(0));
    }
}
