// The tensor cores of sm_80 and newer, a warp at a time: products of small tiles (mma.sync) and the ways of their
// operands, from global to shared memory (cp.async) and from there to registers (ldmatrix).
//
// Which element lies in which register of which lane is laid down in the PTX ISA, "Matrix Fragments for mma.m16n8k8"
// (TF32) and "mma.m16n8k16" (float16, bfloat16). Sums are float. tests/ops/cuda_emu.h does the same on the CPU and
// watches shared memory. In code for older GPUs JSEG_TENSOR_CORES is 0 and the single instructions do nothing.
#pragma once
#include <type_traits>
#include "cuda_base.cuh"

#if defined(__CUDACC__) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800)
#define JSEG_TENSOR_CORES 0
#define JSEG_PTX(...) (void)0
#else
#define JSEG_TENSOR_CORES 1
#define JSEG_PTX(...) asm volatile(__VA_ARGS__)
#endif

namespace jseg {

template <class T> constexpr bool is_float = std::is_same<T, float>::value;

// ---- single instructions --------------------------------------------------------------------------------------------
#ifdef __CUDACC__
__device__ __forceinline__ unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }
// Copies BYTES (4 or 16), of which the first `valid` come from global memory and the others are 0.
template <int BYTES> __device__ __forceinline__ void copy_async(void* to, const void* from, int valid) {
    if constexpr (BYTES == 16)
        JSEG_PTX("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid)
                     : "memory");
    else
        JSEG_PTX("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES),
                     "r"(valid)
                     : "memory");
}
__device__ __forceinline__ void copies_commit() { JSEG_PTX("cp.async.commit_group;" ::: "memory"); }
// Waits for the copies of this thread, but those of the last LEFT groups.
template <int LEFT> __device__ __forceinline__ void copies_wait() {
    JSEG_PTX("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
template <bool TURNED> __device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
    if constexpr (TURNED)
        JSEG_PTX("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared_address(row))
                     : "memory");
    else
        JSEG_PTX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared_address(row))
                     : "memory");
}
__device__ __forceinline__ uint32_t to_tf32(float v) {
    uint32_t bits = 0;
    JSEG_PTX("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return bits;
}
#define JSEG_MMA(shape, type)                                                                                     \
    JSEG_PTX("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, "              \
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                                  \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
// c (16 x 8) += a (16 x K) b (K x 8), K = 8 for float (TF32), else 16.
template <class M>
__device__ __forceinline__ void multiply_tiles(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
    if constexpr (is_float<M>) JSEG_MMA("m16n8k8", "tf32");
    else if constexpr (std::is_same<M, __half>::value) JSEG_MMA("m16n8k16", "f16");
    else JSEG_MMA("m16n8k16", "bf16");
}
template <class V> __device__ __forceinline__ V load_shared_as(const void* p) { return *static_cast<const V*>(p); }
template <class V> __device__ __forceinline__ void store_shared_as(void* p, const V& v) { *static_cast<V*>(p) = v; }
#else
template <int BYTES> void copy_async(void* to, const void* from, int valid) {
    emu::copy_async(to, from, BYTES, valid, EMU_SITE);
}
inline void copies_commit() { emu::copies_commit(); }
template <int LEFT> void copies_wait() { emu::copies_wait(LEFT); }
template <bool TURNED> void load_matrices(uint32_t (&to)[4], const void* row) {
    emu::load_matrices(to, row, TURNED, EMU_SITE);
}
inline uint32_t to_tf32(float v) { return emu::to_tf32(v); }
template <class M> void multiply_tiles(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
    emu::multiply_tiles<M>(c, a, b, EMU_SITE);
}
template <class V> V load_shared_as(const void* p) {
    emu::note_read(p, sizeof(V), EMU_SITE);
    return *static_cast<const V*>(p);
}
template <class V> void store_shared_as(void* p, const V& v) {
    emu::note_write(p, sizeof(V), EMU_SITE);
    *static_cast<V*>(p) = v;
}
#endif

// ---- several values in 16 bytes -------------------------------------------------------------------------------------
template <class M> constexpr int EACH_CHUNK = 16 / int(sizeof(M));

struct alignas(16) Chunk {
    uint32_t words[4];
};
template <class M> __device__ __forceinline__ Chunk pack_chunk(const float (&v)[EACH_CHUNK<M>]) {
    union {
        Chunk chunk;
        M values[EACH_CHUNK<M>];
    } both;
    JSEG_UNROLL
    for (int i = 0; i < EACH_CHUNK<M>; i++) put(&both.values[i], v[i]);
    return both.chunk;
}

// ---- operands -------------------------------------------------------------------------------------------------------
// How a slice of an operand lies in shared memory, SIDE rows of A (columns of B) by DEPTH, along the depth or along
// the side, as in global memory. The gaps keep the eight rows of a matrix, or what a warp reads at once, in different
// banks.
template <class M, int SIDE, int DEPTH, bool ALONG_DEPTH> struct Operand {
    static constexpr int LINE = ALONG_DEPTH ? DEPTH : SIDE, LINES = ALONG_DEPTH ? SIDE : DEPTH,
                         LD = LINE + (ALONG_DEPTH ? EACH_CHUNK<M> : 8), SIZE = LINES * LD, K = 32 / int(sizeof(M)),
                         DEEP = DEPTH;

    // The fragment of rows row .. row + 15 of A, depths k .. k + K - 1.
    __device__ static __forceinline__ void left(const M* p, int row, int k, uint32_t (&a)[4]) {
        const int lane = int(threadIdx.x) % WARP;
        if constexpr (ALONG_DEPTH) {
            load_matrices<false>(a, p + (row + lane % 16) * LD + k + lane / 16 * EACH_CHUNK<M>);
            if constexpr (is_float<M>) round_all(a);
        } else if constexpr (is_float<M>) {
            JSEG_UNROLL
            for (int i = 0; i < 4; i++) a[i] = single(p, row + lane / 4 + i % 2 * 8, k + lane % 4 + i / 2 * 4);
        } else {
            load_matrices<true>(a, p + (k + lane % 8 + lane / 16 * 8) * LD + row + lane / 8 % 2 * 8);
        }
    }
    // The fragments of columns column .. column + 7 and column + 8 .. column + 15 of B, two registers each.
    __device__ static __forceinline__ void right(const M* p, int column, int k, uint32_t (&b)[4]) {
        const int lane = int(threadIdx.x) % WARP;
        if constexpr (ALONG_DEPTH) {
            load_matrices<false>(b, p + (column + lane % 8 + lane / 16 * 8) * LD + k + lane / 8 % 2 * EACH_CHUNK<M>);
            if constexpr (is_float<M>) round_all(b);
        } else if constexpr (is_float<M>) {
            JSEG_UNROLL
            for (int i = 0; i < 4; i++) b[i] = single(p, column + lane / 4 + i / 2 * 8, k + lane % 4 + i % 2 * 4);
        } else {
            load_matrices<true>(b, p + (k + lane % 8 + lane / 8 % 2 * 8) * LD + column + lane / 16 * 8);
        }
    }

private:
    __device__ static __forceinline__ uint32_t single(const float* p, int side, int depth) {
        return to_tf32(load_shared_as<float>(p + depth * LD + side));
    }
    __device__ static __forceinline__ void round_all(uint32_t (&words)[4]) {
        JSEG_UNROLL
        for (int i = 0; i < 4; i++) {
            float v;
            memcpy(&v, &words[i], 4);
            words[i] = to_tf32(v);
        }
    }
};

// The way of an operand of type T through slices of `Lay`, an Operand<M, ...>: by asynchronous copies where the types
// are the same, else through registers, converted: `read` while a slice is multiplied, `write` after it. Zero outside
// [0, side) and beyond the end of the depth.
template <class M, class T, int SIDE, int DEPTH, bool ALONG_DEPTH, int THREADS> struct Feed {
    using Lay = Operand<M, SIDE, DEPTH, ALONG_DEPTH>;
    static constexpr int E = EACH_CHUNK<M>, ACROSS = Lay::LINE / E, CHUNKS = Lay::LINES * ACROSS,
                         EACH = (CHUNKS + THREADS - 1) / THREADS, JUMP = THREADS / ACROSS;
    static constexpr bool COPIED = std::is_same<M, T>::value;
    static_assert(THREADS % ACROSS == 0, "a thread's chunks lie below each other");

    const T* at;                 // this thread's first element, at the first depth
    int step, line_step;         // to the next element of a chunk, and to the next line
    int line, first, side_left;  // line: of this thread's first chunk; first: of its elements; side_left: from there
    bool wide;                   // chunks are aligned runs of memory

    // Sides from `from` on, depths from `begin` on.
    __device__ __forceinline__ Feed(const T* p, int64_t side_step, int64_t depth_step, int64_t from, int64_t side,
                                    int64_t begin, bool aligned)
        : step(int(ALONG_DEPTH ? depth_step : side_step)), line_step(int(ALONG_DEPTH ? side_step : depth_step)),
          line(int(threadIdx.x) / ACROSS), first(int(threadIdx.x) % ACROSS * E), wide(aligned) {
        at = p + from * side_step + begin * depth_step + int64_t(line) * line_step + int64_t(first) * step;
        const int64_t left = side - from - (ALONG_DEPTH ? line : first);
        side_left = left < SIDE ? int(left) : SIDE;
    }
    // How many elements of chunk e of the slice that begins `depth_left` before the end exist.
    __device__ __forceinline__ int valid(int e, int depth_left) const {
        const int lines = (ALONG_DEPTH ? side_left : depth_left - line) - e * JUMP,
                  run = ALONG_DEPTH ? depth_left - first : side_left;
        if (lines <= 0 || run <= 0 || (CHUNKS % THREADS && line + e * JUMP >= Lay::LINES)) return 0;
        return run < E ? run : E;
    }
    __device__ __forceinline__ const T* source(int e, int depth) const {
        return at + (ALONG_DEPTH ? int64_t(depth) * step + int64_t(e * JUMP) * line_step
                                 : int64_t(depth + e * JUMP) * line_step);
    }
    __device__ __forceinline__ bool exists(int e) const {
        return CHUNKS % THREADS == 0 || line + e * JUMP < Lay::LINES;
    }
    __device__ __forceinline__ M* place(int e, M* shared) const {
        return shared + (line + e * JUMP) * Lay::LD + first;
    }
    // What does not exist is not read: its address is of no account.
    __device__ __forceinline__ void copy(int depth, int depth_left, M* shared) const {
        JSEG_UNROLL
        for (int e = 0; e < EACH; e++) {
            if (!exists(e)) break;
            const int count = valid(e, depth_left);
            const T* from = source(e, depth);
            M* to = place(e, shared);
            if (wide) {
                copy_async<16>(to, from, count * int(sizeof(M)));
            } else if constexpr (is_float<M>) {
                JSEG_UNROLL
                for (int i = 0; i < E; i++)
                    copy_async<4>(to + i, from + i * step, i < count ? 4 : 0);
            } else {
                float v[E];
                JSEG_UNROLL
                for (int i = 0; i < E; i++) v[i] = i < count ? to_float(from[i * step]) : 0.0f;
                store_shared_as(to, pack_chunk<M>(v));
            }
        }
    }
    __device__ __forceinline__ void read(int depth, int depth_left, float (&v)[EACH][E]) const {
        JSEG_UNROLL
        for (int e = 0; e < EACH; e++) {
            const int count = valid(e, depth_left);
            const T* from = source(e, depth);
            if (wide && count == E) {
                load_run<E>(from, v[e]);
            } else {
                JSEG_UNROLL
                for (int i = 0; i < E; i++) v[e][i] = i < count ? to_float(from[i * step]) : 0.0f;
            }
        }
    }
    __device__ __forceinline__ void write(const float (&v)[EACH][E], M* shared) const {
        JSEG_UNROLL
        for (int e = 0; e < EACH; e++)
            if (exists(e)) store_shared_as(place(e, shared), pack_chunk<M>(v[e]));
    }
};

// The feeds of a product together. `ask` for a slice, multiply another one, then call `finish` for the first: what
// comes through registers is written there.
template <class M, class FeedA, class FeedB> struct Feeds {
    static constexpr int STAGE = FeedA::Lay::SIZE + FeedB::Lay::SIZE;   // elements of a slice of both
    const FeedA& a;
    const FeedB& b;
    float va[FeedA::COPIED ? 1 : FeedA::EACH][FeedA::E], vb[FeedB::COPIED ? 1 : FeedB::EACH][FeedB::E];
    __device__ __forceinline__ Feeds(const FeedA& feed_a, const FeedB& feed_b) : a(feed_a), b(feed_b) {}
    __device__ __forceinline__ void ask(int depth, int left, M* to) {
        if constexpr (FeedA::COPIED) a.copy(depth, left, to);
        else a.read(depth, left, va);
        if constexpr (FeedB::COPIED) b.copy(depth, left, to + FeedA::Lay::SIZE);
        else b.read(depth, left, vb);
    }
    __device__ __forceinline__ void finish(M* to) const {
        if constexpr (!FeedA::COPIED) a.write(va, to);
        if constexpr (!FeedB::COPIED) b.write(vb, to + FeedA::Lay::SIZE);
    }
};

// sums += A B over `count` depths: for the 16 MT rows from `row` and the 8 NT columns from `column` of a
// block's tile, by each warp for its own. `stages`: STAGES slices of shared memory, in nobody's use.
template <class M, int STAGES, int MT, int NT, class FeedA, class FeedB>
__device__ __forceinline__ void multiply_slices(const FeedA& feed_a, const FeedB& feed_b, int count, M* stages, int row,
                                                int column, float (&sums)[MT][NT][4]) {
    using LayA = typename FeedA::Lay;
    using LayB = typename FeedB::Lay;
    constexpr int DEPTH = LayA::DEEP, STAGE = LayA::SIZE + LayB::SIZE;
    static_assert(DEPTH == LayB::DEEP, "slices of one depth");
    Feeds<M, FeedA, FeedB> feeds(feed_a, feed_b);
    const int slices = (count + DEPTH - 1) / DEPTH;
    const auto ask = [&](int slice) {
        const int depth = slice * DEPTH;
        feeds.ask(depth, count - depth < DEPTH ? count - depth : DEPTH, stages + slice % STAGES * STAGE);
    };
    JSEG_UNROLL
    for (int slice = 0; slice < STAGES - 1; slice++) {
        if (slice < slices) ask(slice), feeds.finish(stages + slice % STAGES * STAGE);
        copies_commit();
    }
    for (int slice = 0; slice < slices; slice++) {
        const int next = slice + STAGES - 1;
        copies_wait<STAGES - 2>();
        __syncthreads();   // the slice is here, and the one before it is done with
        if (next < slices) ask(next);
        copies_commit();
        const M *const as = stages + slice % STAGES * STAGE, *const bs = as + LayA::SIZE;
        JSEG_UNROLL
        for (int k = 0; k < DEPTH; k += LayA::K) {
            uint32_t left[MT][4], right[NT / 2][4];
            JSEG_UNROLL
            for (int i = 0; i < MT; i++) LayA::left(as, row + i * 16, k, left[i]);
            JSEG_UNROLL
            for (int j = 0; j < NT / 2; j++) LayB::right(bs, column + j * 16, k, right[j]);
            JSEG_UNROLL
            for (int i = 0; i < MT; i++)
                JSEG_UNROLL
                for (int j = 0; j < NT; j++) multiply_tiles<M>(sums[i][j], left[i], right[j / 2] + j % 2 * 2);
        }
        if (next < slices) feeds.finish(stages + next % STAGES * STAGE);
    }
}

}  // namespace jseg
