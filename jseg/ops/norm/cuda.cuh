// Normalisation on CUDA: y = act(z), z = xhat w[c] + b[c] + residual, xhat = (x - mean) rstd, rstd = 1 / sqrt(variance
// + eps).
//
// A set is what mean and variance are taken over: a channel of all pictures ("batch"), a group of channels of a picture
// ("group"), or the channels of a pixel ("position"). With dz = (dy + dy_again) act'(z) and g = w[c] dz:
//     dx = rstd (g - mean(g) - xhat mean(g xhat)) + dx_more,  dw[c] = sum dz xhat,  db[c] = sum dz,  dresidual = dz.
//
// Layout: x, y, residual and their gradients (N, C, P) of type T with P = H W pixels; w, b (C), statistics and
// gradients of w, b float. A row is the pixels of one picture's channel. Batch and group: a block holds 4096
// neighbouring values in registers and reports their mean m, sum of distances x - m and sum of squared distances; every
// block that normalises puts its set's parts together in double, so a mean that is large against the spread costs no
// digits. Both are in one launch where the device can launch blocks together. Position: 32 pixels per block, 8 threads
// each. The backward pass computes z and dz again in both of its passes
// over the maps instead of saving them.
#include "cuda_base.cuh"

namespace {
using namespace jseg;

enum Activation { NONE, RELU, GELU };
// values a thread holds for statistics; values per block
constexpr int THREADS = 256, HELD = 16, RUN = THREADS * HELD;
constexpr int EACH = 4, CHUNK = THREADS * EACH;                 // pixels of a row that a thread and a block work on
constexpr int LANES = 32, SLICES = THREADS / LANES;             // position: pixels of a block, threads per pixel
constexpr int FEW = 64;                                         // threads that put the parts of one set together

struct NormShape {
    int64_t n, c, p, groups;   // groups: 0 over the batch
    bool position;
    int act;
    float eps;
    NormShape(const Call& call, bool position)
        : n(call.integer(0)), c(call.integer(1)), p(call.integer(2)), groups(call.integer(3)), position(position),
          act(int(call.integer(4))), eps(float(call.real(5))) {}
    int64_t sets() const { return position ? n * p : groups ? n * groups : c; }
    __host__ __device__ int64_t rows_of_set() const { return groups ? c / groups : n; }
    __device__ int64_t row_of_set(int64_t set, int64_t i) const {
        return groups ? set * rows_of_set() + i : i * c + set;
    }
    int64_t cuts() const { return ceil_div(p, CHUNK); }
    // Neighbouring values of one set: a whole group, or a row of the batch.
    __host__ __device__ int64_t run_length() const { return groups ? rows_of_set() * p : p; }
    __host__ __device__ int64_t run_cuts() const { return ceil_div(run_length(), RUN); }
    __host__ __device__ int64_t runs() const { return groups ? n * groups : n * c; }
};

// What a thread needs to normalise pixels of one row.
template <class T> struct Source {
    NormShape s;
    const T *x, *residual;
    const float *weight, *bias, *mean, *variance;
};
template <class T> struct Row {
    const Source<T>& from;
    int64_t at, set;   // first pixel of the row; its statistics, or, over positions, those of its first pixel
    float weight, bias;
    __device__ Row(const Source<T>& from, int64_t row)
        : from(from), at(row * from.s.p), set(from.s.position ? row / from.s.c * from.s.p
                                              : from.s.groups ? row / from.s.rows_of_set()
                                                              : row % from.s.c),
          weight(from.weight[row % from.s.c]), bias(from.bias[row % from.s.c]) {}
    __device__ __forceinline__ int64_t statistic(int64_t p) const { return from.s.position ? set + p : set; }
    __device__ __forceinline__ float rstd(int64_t p) const {
        return 1.0f / sqrtf(from.variance[statistic(p)] + from.s.eps);
    }
    __device__ __forceinline__ float hat(int64_t p) const {
        return (to_float(from.x[at + p]) - from.mean[statistic(p)]) * rstd(p);
    }
    __device__ __forceinline__ float before(int64_t p, float hat) const {
        const float z = hat * weight + bias;
        return from.residual ? z + to_float(from.residual[at + p]) : z;
    }
};
template <class T> struct Slope {   // dz; a null gradient is zero
    const T *dy, *again;
    __device__ __forceinline__ float operator()(const Row<T>& row, int64_t p, float hat) const {
        const int64_t at = row.at + p;
        const float d = (dy ? to_float(dy[at]) : 0.0f) + (again ? to_float(again[at]) : 0.0f);
        if (row.from.s.act == NONE) return d;
        const float z = row.before(p, hat);
        if (row.from.s.act == GELU) return d * gelu_slope(z);
        return z > 0.0f ? d : z != z ? z : 0.0f;
    }
};

// ---- statistics -----------------------------------------------------------------------------------------------------

// A part of a run: parts[0..2] <- mean m, sum of x - m, sum of (x - m)^2. What it has in shared memory is free again
// after a barrier.
template <class T>
__device__ __forceinline__ void part_moments(const NormShape& s, const T* x, float* parts, int64_t part) {
    JSEG_SHARED(float, room, THREADS / WARP);
    JSEG_SHARED(float, more_room, THREADS / WARP);
    JSEG_SHARED(float, last_room, THREADS / WARP);
    JSEG_SHARED(float, shared_mean, 1);
    const int64_t cuts = s.run_cuts(), begin = part % cuts * RUN, left = s.run_length() - begin;
    const int count = int(left < RUN ? left : RUN);
    x += part / cuts * s.run_length() + begin;
    float v[HELD], total = 0;
    JSEG_UNROLL
    for (int e = 0; e < HELD; e++) {
        const int i = e * THREADS + int(threadIdx.x);
        v[e] = i < count ? to_float(x[i]) : 0.0f;
        total += v[e];
    }
    total = block_sum<THREADS>(total, room);
    if (threadIdx.x == 0) shared_mean[0] = total / float(count);
    __syncthreads();
    const float mean = shared_mean[0];
    float rest = 0, squares = 0;
    JSEG_UNROLL
    for (int e = 0; e < HELD; e++)
        if (e * THREADS + int(threadIdx.x) < count) rest += v[e] - mean, squares += (v[e] - mean) * (v[e] - mean);
    rest = block_sum<THREADS>(rest, more_room), squares = block_sum<THREADS>(squares, last_room);
    if (threadIdx.x) return;
    float* to = parts + part * 3;
    to[0] = mean, to[1] = rest, to[2] = squares;
}

// The parts of a set -> mean and variance, for all threads: found[0] and found[1], in shared memory.
__device__ __forceinline__ void finish_moments(const NormShape& s, const float* parts, int64_t set, float* found) {
    JSEG_SHARED(double, room, THREADS / WARP);
    JSEG_SHARED(double, shared_mean, 1);
    const int64_t cuts = s.run_cuts(), runs = s.groups ? 1 : s.n;
    const double all = double(s.run_length() * runs);
    for (int pass = 0; pass < 2; pass++) {
        const double mean = pass ? shared_mean[0] : 0.0;
        double total = 0;
        for (int64_t i = threadIdx.x; i < runs * cuts; i += THREADS) {
            const int64_t cut = i % cuts, left = s.run_length() - cut * RUN;
            const float* from = parts + ((s.groups ? set : i / cuts * s.c + set) * cuts + cut) * 3;
            const double count = double(left < RUN ? left : RUN), off = double(from[0]) - mean;
            total += pass ? from[2] + 2 * off * from[1] + count * off * off : count * off + from[1];
        }
        total = block_sum<THREADS>(total, room) / all;
        if (threadIdx.x == 0 && !pass) shared_mean[0] = total, found[0] = float(total);
        if (threadIdx.x == 0 && pass) found[1] = float(total);
        __syncthreads();
    }
}

// Sum over the threads of a pixel, for all of them. `room`: THREADS shared values, free again when this returns.
__device__ __forceinline__ float over_slices(float v, float* room) {
    room[threadIdx.x] = v;
    __syncthreads();
    float total = 0;
    JSEG_UNROLL
    for (int i = 0; i < SLICES; i++) total += room[i * LANES + threadIdx.x % LANES];
    __syncthreads();
    return total;
}

__device__ __forceinline__ float activate(int act, float z) {
    return act == GELU ? gelu(z) : act == RELU && z < 0.0f ? 0.0f : z;
}

// 32 pixels per block: mean and variance over the channels, and y.
template <class T> __global__ void __launch_bounds__(THREADS)
    normalise_positions(Source<T> from, float* means, float* variances, T* y) {
    JSEG_SHARED(float, room, THREADS);
    const NormShape& s = from.s;
    const int64_t tiles = ceil_div(s.p, LANES), image = blockIdx.x / tiles,
                  p = blockIdx.x % tiles * LANES + threadIdx.x % LANES;
    const bool inside = p < s.p;
    const int slice = int(threadIdx.x) / LANES;
    const T* x = from.x + image * s.c * s.p + p;
    float total = 0, squares = 0;
    for (int64_t c = slice; inside && c < s.c; c += SLICES) total += to_float(x[c * s.p]);
    const float mean = over_slices(total, room) / float(s.c);
    for (int64_t c = slice; inside && c < s.c; c += SLICES) {
        const float off = to_float(x[c * s.p]) - mean;
        squares += off * off;
    }
    squares = over_slices(squares, room) / float(s.c);
    if (inside && slice == 0) means[image * s.p + p] = mean, variances[image * s.p + p] = squares;
    const float rstd = 1.0f / sqrtf(squares + s.eps);
    for (int64_t c = slice; inside && c < s.c; c += SLICES) {
        const Row<T> row(from, image * s.c + c);
        put(y + row.at + p, activate(s.act, row.before(p, (to_float(x[c * s.p]) - mean) * rstd)));
    }
}

// Batch and group, forward: the parts of all runs, then, with them, y. `cuts`: of a row.
template <class T> struct Forward {
    Source<T> from;
    float *parts, *means, *variances;
    T* y;
    int64_t cuts;
    // Some neighbouring parts of rows; the first of a set also reports its mean and variance.
    __device__ __forceinline__ void normalise(int64_t begin, int64_t end) const {
        JSEG_SHARED(float, found, 2);
        const NormShape& s = from.s;
        int64_t known = -1;
        for (int64_t chunk = begin; chunk < end; chunk++) {
            const Row<T> row(from, chunk / cuts);
            if (row.set != known) {
                __syncthreads();   // the one before is done with what was found
                finish_moments(s, parts, row.set, found);
                known = row.set;
            }
            const float mean = found[0], rstd = 1.0f / sqrtf(found[1] + s.eps);
            if (threadIdx.x == 0 && chunk == s.row_of_set(row.set, 0) * cuts)
                means[row.set] = mean, variances[row.set] = found[1];
            const int64_t first = chunk % cuts * CHUNK + threadIdx.x;
            JSEG_UNROLL
            for (int e = 0; e < EACH; e++) {
                const int64_t p = first + e * THREADS;
                if (p >= s.p) break;
                put(y + row.at + p, activate(s.act, row.before(p, (to_float(from.x[row.at + p]) - mean) * rstd)));
            }
        }
    }
};
template <class T> __global__ void __launch_bounds__(THREADS) run_moments(Forward<T> f) {
    part_moments(f.from.s, f.from.x, f.parts, blockIdx.x);
}
template <class T> __global__ void __launch_bounds__(THREADS, 1) normalise(Forward<T> f) {
    f.normalise(blockIdx.x, blockIdx.x + 1);
}
// Both in one launch.
template <class T> __global__ void __launch_bounds__(THREADS, 1) normalise_together(Forward<T> f) {
    const NormShape& s = f.from.s;
    const int64_t all_parts = s.runs() * s.run_cuts(), chunks = s.n * s.c * f.cuts;
    for (int64_t part = blockIdx.x; part < all_parts; part += gridDim.x) {
        part_moments(s, f.from.x, f.parts, part);
        __syncthreads();
    }
    JSEG_GRID_BARRIER();
    const int64_t mine = ceil_div(chunks, gridDim.x), begin = blockIdx.x * mine;
    f.normalise(begin, begin + mine < chunks ? begin + mine : chunks);
}

// ---- the two passes backward ----------------------------------------------------------------------------------------

// A block's part of a row; body(row, pixel) for each pixel of this thread.
template <class T, class Body> __device__ __forceinline__ void each_pixel(const Source<T>& from, int64_t cuts,
                                                                          Body body) {
    const Row<T> row(from, blockIdx.x / cuts);
    const int64_t first = blockIdx.x % cuts * CHUNK + threadIdx.x;
    JSEG_UNROLL
    for (int e = 0; e < EACH; e++)
        if (first + e * THREADS < from.s.p) body(row, first + e * THREADS);
}

// parts[block] <- sums of dz and dz xhat over the block's part of a row.
template <class T> __global__ void __launch_bounds__(THREADS)
    row_parts(Source<T> from, Slope<T> slope, int64_t cuts, float2* parts) {
    JSEG_SHARED(float, room, THREADS / WARP);
    JSEG_SHARED(float, more_room, THREADS / WARP);
    float sum_z = 0, sum_x = 0;
    each_pixel(from, cuts, [&](const Row<T>& row, int64_t p) {
        const float hat = row.hat(p), dz = slope(row, p, hat);
        sum_z += dz, sum_x += dz * hat;
    });
    sum_z = block_sum<THREADS>(sum_z, room), sum_x = block_sum<THREADS>(sum_x, more_room);
    if (threadIdx.x == 0) parts[blockIdx.x] = {sum_z, sum_x};
}

// One block per channel: dw and db.
static __global__ void __launch_bounds__(FEW)
    finish_channels(NormShape s, int64_t cuts, const float2* parts, float* dweight, float* dbias) {
    JSEG_SHARED(double, room, FEW / WARP);
    JSEG_SHARED(double, more_room, FEW / WARP);
    const int64_t c = blockIdx.x;
    double sum_z = 0, sum_x = 0;
    for (int64_t i = threadIdx.x; i < s.n * cuts; i += FEW) {
        const float2 part = parts[(i / cuts * s.c + c) * cuts + i % cuts];
        sum_z += part.x, sum_x += part.y;
    }
    sum_z = block_sum<FEW>(sum_z, room), sum_x = block_sum<FEW>(sum_x, more_room);
    if (threadIdx.x == 0) dbias[c] = float(sum_z), dweight[c] = float(sum_x);
}

// One block per set: means of g and g xhat.
static __global__ void __launch_bounds__(FEW)
    finish_sets(NormShape s, int64_t cuts, const float2* parts, const float* weight, float2* means) {
    JSEG_SHARED(double, room, FEW / WARP);
    JSEG_SHARED(double, more_room, FEW / WARP);
    double sum_g = 0, sum_gx = 0;
    for (int64_t i = threadIdx.x; i < s.rows_of_set() * cuts; i += FEW) {
        const int64_t row = s.row_of_set(blockIdx.x, i / cuts);
        const float2 part = parts[row * cuts + i % cuts];
        sum_g += double(weight[row % s.c]) * part.x, sum_gx += double(weight[row % s.c]) * part.y;
    }
    sum_g = block_sum<FEW>(sum_g, room), sum_gx = block_sum<FEW>(sum_gx, more_room);
    const double count = double(s.rows_of_set() * s.p);
    if (threadIdx.x == 0) means[blockIdx.x] = {float(sum_g / count), float(sum_gx / count)};
}

// 32 pixels per block: means of g and g xhat over the channels. Few channels close together make rstd large, and with
// it the rounding of the saved mean: xhat then has a mean `off` of its own, which the means take out again.
template <class T> __global__ void __launch_bounds__(THREADS)
    position_means(Source<T> from, Slope<T> slope, float2* means) {
    JSEG_SHARED(float, room, THREADS);
    const NormShape& s = from.s;
    const int64_t tiles = ceil_div(s.p, LANES), image = blockIdx.x / tiles,
                  p = blockIdx.x % tiles * LANES + threadIdx.x % LANES;
    const bool inside = p < s.p;
    const int slice = int(threadIdx.x) / LANES;
    float sum_g = 0, sum_gx = 0, off = 0;
    for (int64_t c = slice; inside && c < s.c; c += SLICES) {
        const Row<T> row(from, image * s.c + c);
        const float hat = row.hat(p), g = row.weight * slope(row, p, hat);
        sum_g += g, sum_gx += g * hat, off += hat;
    }
    const float mean_g = over_slices(sum_g, room) / float(s.c), mean_gx = over_slices(sum_gx, room) / float(s.c);
    off = over_slices(off, room) / float(s.c);
    const float slope_x = mean_gx - off * mean_g;
    if (inside && slice == 0) means[image * s.p + p] = {mean_g - off * slope_x, slope_x};
}

template <class T>
__global__ void __launch_bounds__(THREADS) back_to_input(Source<T> from, Slope<T> slope, int64_t cuts,
                                                         const float2* means, const T* more, T* dx, T* dresidual) {
    each_pixel(from, cuts, [&](const Row<T>& row, int64_t p) {
        const float2 mean = means[row.statistic(p)];
        const float hat = row.hat(p), dz = slope(row, p, hat);
        if (dresidual) put(dresidual + row.at + p, dz);
        const float d = (row.weight * dz - mean.x - hat * mean.y) * row.rstd(p);
        put(dx + row.at + p, more ? d + to_float(more[row.at + p]) : d);
    });
}

// ---- calls ----------------------------------------------------------------------------------------------------------

template <class T> void forward(const Call& call, Workspace& work, bool position) {
    const NormShape s(call, position);
    float* parts = work.take<float>(position ? 0 : s.runs() * s.run_cuts() * 3);
    if (work.measuring()) return;
    float *mean = call.out<float>(1), *variance = call.out<float>(2);
    const Source<T> from{s, call.in<T>(0), call.in<T>(3), call.in<float>(1), call.in<float>(2), mean, variance};
    if (position) {
        JSEG_LAUNCH((normalise_positions<T>), s.n * ceil_div(s.p, LANES), THREADS, from, mean, variance,
                    call.out<T>(0));
        return;
    }
    const Forward<T> f{from, parts, mean, variance, call.out<T>(0), s.cuts()};
    const int64_t all_parts = s.runs() * s.run_cuts(), chunks = s.n * s.c * s.cuts();
    if (JSEG_LAUNCH_TOGETHER((normalise_together<T>), all_parts > chunks ? all_parts : chunks, THREADS, f)) return;
    JSEG_LAUNCH((run_moments<T>), all_parts, THREADS, f);
    JSEG_LAUNCH((normalise<T>), chunks, THREADS, f);
}

template <class T> void backward(const Call& call, Workspace& work, bool position) {
    const NormShape s(call, position);
    float2 *parts = work.take<float2>(s.n * s.c * s.cuts()), *means = work.take<float2>(s.sets());
    if (work.measuring()) return;
    const Source<T> from{
        s, call.in<T>(0), call.in<T>(3), call.in<float>(1), call.in<float>(2), call.in<float>(4), call.in<float>(5)};
    const Slope<T> slope{call.in<T>(6), call.in<T>(7)};
    JSEG_LAUNCH((row_parts<T>), s.n * s.c * s.cuts(), THREADS, from, slope, s.cuts(), parts);
    JSEG_LAUNCH(finish_channels, s.c, FEW, s, s.cuts(), parts, call.out<float>(1), call.out<float>(2));
    if (position) JSEG_LAUNCH((position_means<T>), s.n * ceil_div(s.p, LANES), THREADS, from, slope, means);
    else JSEG_LAUNCH(finish_sets, s.sets(), FEW, s, s.cuts(), parts, from.weight, means);
    JSEG_LAUNCH((back_to_input<T>), s.n * s.c * s.cuts(), THREADS, from, slope, s.cuts(), means, call.in<T>(8),
                call.out<T>(0), call.output_count > 3 ? call.out<T>(3) : nullptr);
}

}  // namespace

// inputs x, w, b, residual or None; outputs y, mean, variance (sets); numbers: N C P groups activation eps
JSEG_CUDA_KERNEL(jseg_norm_forward) { forward<T>(call, work, false); }
JSEG_CUDA_KERNEL(jseg_norm_position_forward) { forward<T>(call, work, true); }

// inputs x, w, b, residual, mean, variance, dy, dy_again, dx_more, each of the last three or None; outputs dx, dw, db
// [, dresidual]
JSEG_CUDA_KERNEL(jseg_norm_backward) { backward<T>(call, work, false); }
JSEG_CUDA_KERNEL(jseg_norm_position_backward) { backward<T>(call, work, true); }
