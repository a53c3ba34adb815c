// A cooperative launch with faults to choose from, for tests of the emulator: every block writes a number of its own,
// and after a barrier of the grid reads its neighbour's.
// integers: blocks, fault: 0 none, 1 more blocks than are resident, 2 a block that is gone, 3 a thread that is gone,
// 4 a launch that is not cooperative, 5 no barrier, 6 a thread at another barrier
#include "cuda_base.cuh"

namespace {
struct Meeting {
    float *numbers, *out;
    int64_t fault;
};
__global__ void meet(Meeting m) {
    const unsigned block = blockIdx.x;
    if (m.fault == 2 && block == 1) return;
    if (m.fault == 3 && block == 1 && threadIdx.x == 3) return;
    if (threadIdx.x == 0) m.numbers[block] = float(block) + 1.0f;
    if (m.fault == 6 && threadIdx.x == 5) __syncthreads();
    if (m.fault != 5) JSEG_GRID_BARRIER();
    if (threadIdx.x == 0) m.out[block] = m.numbers[(block + 1) % gridDim.x];
}
}  // namespace

JSEG_CUDA_KERNEL(jseg_together_meet) {
    const int64_t blocks = call.integer(0), fault = call.integer(1);
    float* numbers = work.take<float>(blocks);
    if (work.measuring()) return;
    const Meeting m{numbers, call.out<float>(0), fault};
    if (fault == 4) JSEG_LAUNCH(meet, blocks, 64, m);
    else if (fault == 1) emu::launch_together("meet", meet, blocks, 64, m);
    else if (!JSEG_LAUNCH_TOGETHER(meet, blocks, 64, m)) call.out<float>(0)[0] = -1;
}
