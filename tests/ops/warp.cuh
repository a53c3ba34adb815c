// Single operations of tensor cores and asynchronous copies by one block, for tests of the emulator itself.
#include "cuda_mma.cuh"

namespace {
using namespace jseg;

template <class T> __global__ void multiply(const uint32_t* a, const uint32_t* b, float* c) {
    const int lane = int(threadIdx.x);
    uint32_t left[4], right[2];
    float sums[4];
    for (int i = 0; i < 4; i++) left[i] = a[lane * 4 + i], sums[i] = c[lane * 4 + i];
    for (int i = 0; i < 2; i++) right[i] = b[lane * 2 + i];
    multiply_tiles<T>(sums, left, right);
    for (int i = 0; i < 4; i++) c[lane * 4 + i] = sums[i];
}
// Four matrices of 8 rows of 16 bytes, one after the other.
template <bool TURNED> __global__ void move(const uint32_t* from, uint32_t* to) {
    JSEG_SHARED(uint32_t, room, 128);
    store_shared_as(room + threadIdx.x * 4, reinterpret_cast<const Chunk*>(from)[threadIdx.x]);
    __syncwarp();
    uint32_t words[4];
    load_matrices<TURNED>(words, room + threadIdx.x * 4);
    for (int i = 0; i < 4; i++) to[threadIdx.x * 4 + i] = words[i];
}
// out[i] = in[i ^ 32] through two stages of shared memory; 64 threads.
__global__ void pass_on(const float* in, float* out) {
    JSEG_SHARED(float, room, 512);
    float* const second = room + 256;
    copy_async<16>(room + threadIdx.x * 4, in + threadIdx.x * 4, 16);
    copies_commit();
    copy_async<16>(second + threadIdx.x * 4, in + 256 + threadIdx.x * 4, 12);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    store_run<4>(out + threadIdx.x * 4, load_shared_as<Four<float>>(room + (threadIdx.x ^ 32) * 4).v);
    copies_wait<0>();
    __syncthreads();
    store_run<4>(out + 256 + threadIdx.x * 4, load_shared_as<Four<float>>(second + (threadIdx.x ^ 32) * 4).v);
    __syncthreads();
    store_shared_as(room + (threadIdx.x ^ 32) * 4, Chunk{});
}
__global__ void round_to_tf32(const float* in, uint32_t* out) { out[threadIdx.x] = to_tf32(in[threadIdx.x]); }
}  // namespace

JSEG_CUDA_KERNEL(jseg_warp_multiply) {
    if (work.measuring()) return;
    JSEG_LAUNCH((multiply<T>), 1, 32, call.in<uint32_t>(0), call.in<uint32_t>(1), call.out<float>(0));
}
JSEG_CUDA_KERNEL(jseg_warp_move) {
    if (work.measuring()) return;
    if (call.integer(0)) JSEG_LAUNCH((move<true>), 1, 32, call.in<uint32_t>(0), call.out<uint32_t>(0));
    else JSEG_LAUNCH((move<false>), 1, 32, call.in<uint32_t>(0), call.out<uint32_t>(0));
}
JSEG_CUDA_KERNEL(jseg_warp_pass) {
    if (work.measuring()) return;
    JSEG_LAUNCH(pass_on, 1, 64, call.in<float>(0), call.out<float>(0));
}
JSEG_CUDA_KERNEL(jseg_warp_round) {
    if (work.measuring()) return;
    JSEG_LAUNCH(round_to_tf32, 1, 32, call.in<float>(0), call.out<uint32_t>(0));
}
