// What every CUDA kernel of jseg shares: how it is called, where its temporary memory lies, types, sums over a block.
//
// A `cuda.cuh` is compiled by nvcc into the library of jseg/ops/cuda_library.py, and by a host compiler together with
// the emulator of tests/ops/cuda_emu.h. A few macros hide the difference: JSEG_LAUNCH, JSEG_SHARED, JSEG_UNROLL.
//
// Conventions: blocks and grids have one dimension; T is the type of the large tensors (float, __half, __nv_bfloat16),
// parameters and every sum are float; nothing uses atomics, so a second run gives the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include "call.h"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define JSEG_LAUNCH(kernel, blocks, threads, ...) kernel<<<jseg::checked_blocks(blocks), (threads)>>>(__VA_ARGS__)
#define JSEG_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define JSEG_UNROLL _Pragma("unroll")
#define JSEG_ROLL _Pragma("unroll 1")
#define JSEG_EITHER_SIDE _Pragma("nv_exec_check_disable")   // before a template that host or device code fills in
#define JSEG_GRID_BARRIER() cooperative_groups::this_grid().sync()   // in kernels of `launch_together` alone
#else
#include "cuda_emu.h"
#define JSEG_LAUNCH(kernel, blocks, threads, ...) emu::launch(#kernel, kernel, blocks, threads, __VA_ARGS__)
#define JSEG_SHARED(type, name, count)  \
    static char name##_site;            \
    type* const name = emu::shared_array<type>(&name##_site, count)
#define JSEG_UNROLL
#define JSEG_ROLL
#define JSEG_EITHER_SIDE
#define JSEG_GRID_BARRIER() emu::wait(emu::AT_GRID, EMU_SITE)
#endif

namespace jseg {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

#ifdef __CUDACC__
// Grids beyond 2^31 - 1 blocks cannot be launched; 0 makes the launch fail with an error that the caller reports.
inline unsigned checked_blocks(int64_t blocks) { return blocks > 0x7fffffffLL ? 0u : static_cast<unsigned>(blocks); }
#endif

// ---- all blocks at once: kernels with barriers of the whole grid ----------------------------------------------------
// How many blocks of a kernel are on the device at once; 0 where it cannot launch them together.
template <class Kernel> int64_t resident_blocks(Kernel kernel, int threads) {
#ifdef __CUDACC__
    int device = 0, able = 0, processors = 0, each = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&able, cudaDevAttrCooperativeLaunch, device) != cudaSuccess || !able ||
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0) != cudaSuccess)
        return (void)cudaGetLastError(), 0;
    return int64_t(processors) * each;
#else
    return emu::resident_blocks();
#endif
}
// Launches at most `blocks` blocks, as many as are on the device at once. False, and nothing is launched, where the
// device does not: it cannot, or refuses.
template <class Plan>
bool launch_together(const char* name, void (*kernel)(Plan), int64_t blocks, int threads, Plan plan) {
    const int64_t most = resident_blocks(kernel, threads), grid = blocks < most ? blocks : most;
    if (!grid) return false;
#ifdef __CUDACC__
    (void)name;
    void* arguments[] = {&plan};
    if (cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(grid)),
                                    dim3(unsigned(threads)), arguments, 0, nullptr) == cudaSuccess)
        return true;
    return (void)cudaGetLastError(), false;
#else
    return emu::launch_together(name, kernel, grid, threads, plan);
#endif
}
#define JSEG_LAUNCH_TOGETHER(kernel, blocks, threads, plan) \
    jseg::launch_together(#kernel, kernel, blocks, threads, plan)

// ---- element types --------------------------------------------------------------------------------------------------
__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ void put(float* p, float v) { *p = v; }
__device__ __forceinline__ void put(__half* p, float v) { *p = __float2half_rn(v); }
__device__ __forceinline__ void put(__nv_bfloat16* p, float v) { *p = __float2bfloat16_rn(v); }

// W values in a row; 4 or more are aligned to four of them.
template <class T> struct alignas(4 * sizeof(T)) Four {
    T v[4];
};
template <int W, class T> __device__ __forceinline__ void load_run(const T* p, float (&v)[W]) {
    if constexpr (W == 1) {
        v[0] = to_float(*p);
    } else {
        JSEG_UNROLL
        for (int g = 0; g < W; g += 4) {
            const Four<T> four = *reinterpret_cast<const Four<T>*>(p + g);
            JSEG_UNROLL
            for (int i = 0; i < 4; i++) v[g + i] = to_float(four.v[i]);
        }
    }
}
template <int W, class T> __device__ __forceinline__ void store_run(T* p, const float (&v)[W]) {
    if constexpr (W == 1) {
        put(p, v[0]);
    } else {
        JSEG_UNROLL
        for (int g = 0; g < W; g += 4) {
            Four<T> four;
            JSEG_UNROLL
            for (int i = 0; i < 4; i++) put(&four.v[i], v[g + i]);
            *reinterpret_cast<Four<T>*>(p + g) = four;
        }
    }
}
// Whether p can be read in fours; null can.
template <class T> __host__ __device__ inline bool in_fours(const T* p) {
    return reinterpret_cast<uintptr_t>(p) % sizeof(Four<T>) == 0;
}

// ---- GELU, exact (erf) ----------------------------------------------------------------------------------------------
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
__device__ __forceinline__ float gelu_slope(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.39894228040143268f * expf(-0.5f * x * x);
}

// ---- sums -----------------------------------------------------------------------------------------------------------
template <class V> __device__ __forceinline__ V warp_sum(V v) {
    JSEG_UNROLL
    for (int step = WARP / 2; step; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

// Sums 32 values over the lanes of a warp in 31 shuffles: at each step a lane hands half of its values to its partner
// and keeps the other half. Afterwards lane i returns the sum of value i. Destroys `v`.
template <int HALF = WARP / 2> __device__ __forceinline__ float warp_sum_each(float (&v)[WARP]) {
    const bool high = threadIdx.x & HALF;
    JSEG_UNROLL
    for (int i = 0; i < HALF; i++) {
        const float keep = high ? v[i + HALF] : v[i], give = high ? v[i] : v[i + HALF];
        v[i] = keep + __shfl_xor_sync(ALL_LANES, give, HALF);
    }
    if constexpr (HALF > 1) return warp_sum_each<HALF / 2>(v);
    else return v[0];
}

// Sum of `v` over a block of THREADS; valid in thread 0. `room`: THREADS / 32 shared values, free again after a
// barrier.
template <int THREADS, class V> __device__ __forceinline__ V block_sum(V v, V* room) {
    v = warp_sum(v);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
    __syncthreads();
    V total = V(0);
    if (threadIdx.x == 0)
        for (int i = 0; i < THREADS / WARP; i++) total += room[i];
    return total;
}

// parts (rows, count, columns) -> out[row, column] = (add ? out : 0) + sum over count, in order and in double.
// One thread a result; `out` is laid out (rows, columns).
template <class Part, class Out>
__global__ void sum_parts(const Part* parts, int64_t rows, int64_t count, int64_t columns, bool add, Out* out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= rows * columns) return;
    const Part* p = parts + at / columns * count * columns + at % columns;
    double total = add ? double(to_float(out[at])) : 0.0;
    for (int64_t i = 0; i < count; i++) total += double(p[i * columns]);
    put(out + at, float(total));
}

// ---- calls ----------------------------------------------------------------------------------------------------------
// Temporary memory, laid out by `take` in a first, measuring call and used in a second one with the same scalars.
class Workspace {
public:
    explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
    template <class V> V* take(int64_t count) {
        char* at = base_ ? base_ + used_ : nullptr;
        used_ += ceil_div(count * int64_t(sizeof(V)), 256) * 256;
        return reinterpret_cast<V*>(at);
    }
    bool measuring() const { return !base_; }
    int64_t used() const { return used_; }

private:
    char* base_;
    int64_t used_ = 0;
};

// Whether the caller passed input `i`; holds in the measuring call too, where all addresses are null.
inline bool given(const Call& call, int i) { return i < call.input_count && call.input_sizes[i] > 0; }

// Whether products of float32 maps may round their factors to TF32; said anew by each call. Products of half-precision
// maps always take what their type allows.
inline thread_local bool tf32_allowed = false;

template <class Body> int64_t run_call(const Call& call, void* memory, bool tf32, Body body) {
    Workspace work(memory);
    tf32_allowed = tf32;
    body(call, work);
    if (work.measuring()) return work.used();
#ifdef __CUDACC__
    return -int64_t(cudaGetLastError());
#else
    return 0;
#endif
}

}  // namespace jseg

// Defines `template <class T> void name(call, work)` and exports it for the three element types, float32 also as
// `tf32`: with products on tensor cores. With memory == nullptr it returns the bytes of workspace it wants (its body
// must return after the last `take` when `work.measuring()`), else 0 or minus a cudaError_t. Kernels run on the
// default stream, as Jittor's do.
#define JSEG_CUDA_EXPORT(name, suffix, type, tf32)                                                                    \
    extern "C" __attribute__((visibility("default"))) int64_t name##_##suffix(const jseg::Call& call, void* memory) { \
        return jseg::run_call(call, memory, tf32, name##_body<type>);                                                 \
    }
#define JSEG_CUDA_KERNEL(name)                                                          \
    template <class T> static void name##_body(const jseg::Call&, jseg::Workspace&);   \
    JSEG_CUDA_EXPORT(name, float32, float, false)                                       \
    JSEG_CUDA_EXPORT(name, tf32, float, true)                                           \
    JSEG_CUDA_EXPORT(name, float16, __half, true)                                       \
    JSEG_CUDA_EXPORT(name, bfloat16, __nv_bfloat16, true)                               \
    template <class T> static void name##_body(const jseg::Call& call, jseg::Workspace& work)
