// Operations of many small steps, each a few products or a pass over the rows of small factors: written once, as a
// function of a crew, and run in one launch with barriers of the whole grid (OneLaunch), or step by step with a launch
// for each part (EachLaunch), where the device cannot launch blocks together. Both give the same bits.
//
// A crew has
//   to_rank(size, a, {b, end}, {b, end})   products by the same A with few columns; the second may be empty
//   product(size, a, b, end)               a product with many columns
//   rows(body)                             a pass over rows of R values (see RowShape)
//   barrier()                              everything before it is done before anything after it
// What lies between two barriers may happen in any order.
#pragma once
#include <initializer_list>
#include "cuda_gemm.cuh"

namespace jseg {

// ---- parts of sums --------------------------------------------------------------------------------------------------
// (batches, count, results), to be added over count, in order and in double.
struct Parts {
    const float* p;
    int64_t count, results;
    __device__ __forceinline__ double sum(int64_t batch, int64_t at) const {
        const float* from = p + batch * count * results + at;
        double total = 0;
        for (int64_t i = 0; i < count; i++) total += double(from[i * results]);
        return total;
    }
};
__host__ __device__ inline Parts parts_of(const GemmSize& s, const float* p) { return {p, s.splits, s.m * s.n}; }

// ---- products -------------------------------------------------------------------------------------------------------
template <class B, class End> struct Task {
    B b;
    End end;
    bool wanted;
};
template <class B, class End> __host__ __device__ Task<B, End> task(B b, End end, bool wanted = true) {
    return {b, end, wanted};
}

// How the blocks of one launch make products of float factors, or of other types that TF32 holds whole: by plain
// multiply-adds, or by tensor cores in TF32; THIN: at most 16 columns to a product of `to_rank`.
struct PlainTiles {
    static constexpr int THREADS = 256, BYTES = GEMM_ROOM<64, 64, 16> * int(sizeof(float));
    template <class TA, class TB> static constexpr bool WANTED = PLAIN_WANTED<TA, TB>;
    template <bool RANK, class TA, bool RA, class TB, bool RB, class End>
    __device__ static __forceinline__ void make(int64_t tile, const GemmSize& s, const Matrix<const TA, RA>& a,
                                                const Matrix<const TB, RB>& b, const End& end, unsigned char* room) {
        make_gemm_tile<64, 64, 16, 4, 4>(TilePlace<64, 64>(s, tile), s, a, b, end, reinterpret_cast<float*>(room));
    }
    template <bool RANK> __host__ __device__ static int64_t count(const GemmSize& s) {
        return s.batches * s.splits * ceil_div(s.m, 64) * ceil_div(s.n, 64);
    }
};
template <bool THIN> struct CoresTiles {
    template <bool RANK> static constexpr int BM = THIN && RANK ? 128 : 64;
    template <bool RANK> static constexpr int BN = THIN && RANK ? 16 : 64;
    template <bool RANK, class TA, bool RA, class TB, bool RB>
    using Tile = TensorTile<float, BM<RANK>, BN<RANK>, 32, smaller(BN<RANK>, 32), 4, TA, RA, TB, RB>;
    static constexpr int THREADS = 128,
                         BYTES = larger(Tile<false, float, true, float, false>::BYTES,
                                        larger(Tile<true, float, true, float, true>::BYTES,
                                               Tile<true, float, false, float, true>::BYTES));
    template <class TA, class TB> static constexpr bool WANTED = JSEG_TENSOR_CORES;
    template <bool RANK, class TA, bool RA, class TB, bool RB, class End>
    __device__ static __forceinline__ void make(int64_t tile, const GemmSize& s, const Matrix<const TA, RA>& a,
                                                const Matrix<const TB, RB>& b, const End& end, unsigned char* room) {
        using Made = Tile<RANK, TA, RA, TB, RB>;
        static_assert(Made::BYTES <= BYTES, "a layout that is not thought of above");
        Made::make(TilePlace<BM<RANK>, BN<RANK>>(s, tile), s, a, b, a.aligned(EACH_CHUNK<float>),
                   b.aligned(EACH_CHUNK<float>), end.wide(), end, room);
    }
    template <bool RANK> __host__ __device__ static int64_t count(const GemmSize& s) {
        return s.batches * s.splits * ceil_div(s.m, BM<RANK>) * ceil_div(s.n, BN<RANK>);
    }
};

// ---- passes over rows -----------------------------------------------------------------------------------------------
// A factor (batches, rows, R), with fewer than 2^31 rows. A body has its shape as `shape`, ROOM shared floats,
// `load(batch, room)`, which brings there what its rows share (once for neighbouring rows of a batch), and `run(batch,
// first, stop, room)` for some rows. Both are called by all threads of a block.
struct RowShape {
    int batches, rows, r;
    __host__ __device__ int rows_each(int threads) const { return threads > r ? threads / r : 1; }
    __host__ __device__ int chunks_each(int threads) const { return int(ceil_div(rows, rows_each(threads))); }
    int64_t chunks(int threads) const { return int64_t(batches) * chunks_each(threads); }
    __host__ __device__ int64_t size() const { return int64_t(rows) * r; }   // of a batch
};
template <class Body> __device__ __forceinline__ void share_rows(const Body& body, float* room) {
    const RowShape s = body.shape;
    const int each = s.rows_each(int(blockDim.x)), per_batch = s.chunks_each(int(blockDim.x)),
              chunks = per_batch * s.batches, mine = (chunks - 1) / int(gridDim.x) + 1, begin = int(blockIdx.x) * mine;
    int loaded = -1;
    for (int chunk = begin; chunk < begin + mine && chunk < chunks; chunk++) {
        const int batch = chunk / per_batch, first = chunk % per_batch * each;
        if (batch != loaded) {
            __syncthreads();   // the room is free again
            body.load(batch, room);
            __syncthreads();
            loaded = batch;
        }
        body.run(batch, first, first + each < s.rows ? first + each : s.rows, room);
    }
    __syncthreads();
}
template <class Body> __global__ void __launch_bounds__(256, 1) each_row(Body body) {
    JSEG_SHARED(float, room, Body::ROOM);
    share_rows(body, room);
}

// ---- crews ----------------------------------------------------------------------------------------------------------
// The blocks of one launch. `room`: shared memory, BYTES of the tiles and ROOM floats of every body.
template <class Tiles> struct OneLaunch {
    unsigned char* room;
    unsigned turn = 0;   // tiles given out since the last barrier: the next ones are for other blocks

    __device__ explicit OneLaunch(unsigned char* shared) : room(shared) {}
    template <class A, class B, class End>
    __device__ __forceinline__ void to_rank(const GemmSize& s, const A& a, const Task<B, End>& one,
                                            const Task<B, End>& two) {
        share<true>(s, a, one, two);
    }
    template <class A, class B, class End>
    __device__ __forceinline__ void to_rank(const GemmSize& s, const A& a, const Task<B, End>& one) {
        share<true>(s, a, one, Task<B, End>{one.b, one.end, false});
    }
    template <class A, class B, class End>
    __device__ __forceinline__ void product(const GemmSize& s, const A& a, const B& b, const End& end) {
        share<false>(s, a, task(b, end), Task<B, End>{b, end, false});
    }
    template <class Body> __device__ __forceinline__ void rows(const Body& body) {
        share_rows(body, reinterpret_cast<float*>(room));
    }
    __device__ __forceinline__ void barrier() {
        turn = 0;
        JSEG_GRID_BARRIER();
    }

private:
    template <bool RANK, class A, class B, class End>
    __device__ __forceinline__ void share(const GemmSize& s, const A& a, const Task<B, End>& one,
                                          const Task<B, End>& two) {
        const unsigned tiles = unsigned(Tiles::template count<RANK>(s)), all = tiles * (two.wanted ? 2 : 1),
                       first = (blockIdx.x + gridDim.x - turn % gridDim.x) % gridDim.x;
        for (unsigned tile = first; tile < all; tile += gridDim.x) {
            Task<B, End> mine = one;
            if (tile >= tiles) mine = two;
            Tiles::template make<RANK>(tile < tiles ? tile : tile - tiles, s, a, mine.b, mine.end, room);
            __syncthreads();
        }
        turn += all;
    }
};

// A launch for each part, on the host's side.
struct EachLaunch {
    template <class A, class B, class End>
    void to_rank(const GemmSize& s, const A& a, const Task<B, End>& one, const Task<B, End>& two) {
        run_gemm_as<float>(s, a, one.b, one.end);
        if (two.wanted) run_gemm_as<float>(s, a, two.b, two.end);
    }
    template <class A, class B, class End> void to_rank(const GemmSize& s, const A& a, const Task<B, End>& one) {
        run_gemm_as<float>(s, a, one.b, one.end);
    }
    template <class A, class B, class End>
    void product(const GemmSize& s, const A& a, const B& b, const End& end) {
        run_gemm_as<float>(s, a, b, end);
    }
    template <class Body> void rows(const Body& body) {
        const int64_t chunks = body.shape.chunks(256);
        JSEG_LAUNCH((each_row<Body>), chunks < 2048 ? chunks : 2048, 256, body);
    }
    void barrier() {}
};

// ---- host side ------------------------------------------------------------------------------------------------------
inline int64_t most_of(std::initializer_list<int64_t> values) {
    int64_t most = 0;
    for (int64_t v : values) most = v > most ? v : most;
    return most;
}

template <class Tiles, class T, class Steps>
__global__ void __launch_bounds__(Tiles::THREADS, 1) run_steps(Steps steps) {
    if constexpr (!Tiles::template WANTED<T, float>) return;
    JSEG_SHARED(unsigned char, room, larger(Tiles::BYTES, Steps::ROOM * int(sizeof(float))));
    OneLaunch<Tiles> crew(room);
    steps.run(crew);
}

// Steps of maps of type T: `run(crew)`, ROOM, the shared floats that its passes want, and `most_blocks<Tiles>()`, what
// a launch can keep busy. In one launch, or in many where the device does not launch blocks together.
template <class Tiles, class T, class Steps> bool run_as_one(const Steps& steps) {
    return JSEG_LAUNCH_TOGETHER((run_steps<Tiles, T, Steps>), steps.template most_blocks<Tiles>(), Tiles::THREADS,
                                steps);
}
template <class T, class Steps> void run_steps_of(const Steps& steps, bool thin) {
    const bool cores = tf32_allowed && has_tensor_cores(run_steps<CoresTiles<true>, T, Steps>);
    const bool done = !cores ? run_as_one<PlainTiles, T>(steps) : thin ? run_as_one<CoresTiles<true>, T>(steps)
                                                                       : run_as_one<CoresTiles<false>, T>(steps);
    EachLaunch crew;
    if (!done) steps.run(crew);
}

}  // namespace jseg
