// The products inside a block of attention, 64 x 64 scores at a time, by plain multiply-adds or by tensor cores.
//
// A thread has 4 x 4 scores, rows row_of_thread() .. + 3 and columns column_of_thread() .. + 3 of the 64; what it has
// of the sums that scores are multiplied into is the way's own affair.
#pragma once
#include "cuda_gemm.cuh"

namespace jseg {
namespace attention {

constexpr int SIDE = 64, DEPTH = 16, THREADS = 256, LD = SIDE + 4, ACROSS = SIDE / 4, WIDEST = 128;

// Row `row` of picture `image` and head `head` starts at p + image * image_step + row * step + head * width.
template <class T> struct Tokens {
    T* p;
    int64_t image_step, step, width, rows;
    __device__ __forceinline__ T* at(int64_t image, int64_t head) const {
        return p + image * image_step + head * width;
    }
};
// Part `part` of `parts` that lie side by side in each of `rows` tokens.
template <class T> Tokens<T> tokens(T* p, int64_t rows, int64_t heads, int64_t width, int64_t parts, int64_t part) {
    return {p + part * heads * width, rows * parts * heads * width, parts * heads * width, width, rows};
}

__device__ __forceinline__ int row_of_thread() { return int(threadIdx.x) / ACROSS * 4; }
__device__ __forceinline__ int column_of_thread() { return int(threadIdx.x) % ACROSS * 4; }

// ---- the products of a block, in two ways ---------------------------------------------------------------------------
// A way has room in shared memory, `Sums<GROUPS>` (a thread's share of 64 rows by 64 GROUPS channels), and
//   dot_products: products[i][j] = a[a0 + row + i] . b[b0 + column + j] over `width` channels of two sets of tokens of
//     one picture and head;
//   store_turned: a thread's 4 x 4 values, turned, as the left factor of the next `add_product`;
//   add_product: sums[row][channel] += sum over r of values[r][row] b[b0 + r][first + channel], zero beyond the ends;
//   scale_rows, put_rows: of sums, by a factor for each of a thread's four rows; to[first_row + row][first + channel].

// By plain multiply-adds: a thread has sums of its own four rows, [i][g * 4 + j] of channel g * SIDE + column + j.
struct Plain {
    static constexpr bool CORES = false;
    template <int GROUPS> using Sums = float[4][4 * GROUPS];
    template <int GROUPS> static constexpr int BYTES = (DEPTH * LD + DEPTH * (SIDE * GROUPS + 4) + SIDE * LD) * 4;
    float *as, *bs, *tile;   // two slices of DEPTH rows; a tile of SIDE x LD

    template <int GROUPS> __device__ __forceinline__ void lay_out(unsigned char* room) {
        as = reinterpret_cast<float*>(room), bs = as + DEPTH * LD, tile = bs + DEPTH * (SIDE * GROUPS + 4);
    }
    template <class T>
    __device__ __forceinline__ void dot_products(const T* a, const Tokens<const T>& at, int64_t a0, const T* b,
                                                 const Tokens<const T>& bt, int64_t b0, float (&products)[4][4]) const {
        Slice<SIDE, DEPTH, THREADS> next_a, next_b;
        JSEG_UNROLL
        for (int i = 0; i < 4; i++) JSEG_UNROLL
        for (int j = 0; j < 4; j++) products[i][j] = 0.0f;
        next_a.read(a, at.step, 1, a0, at.rows, 0, at.width);
        next_b.read(b, bt.step, 1, b0, bt.rows, 0, bt.width);
        for (int64_t d0 = 0; d0 < at.width; d0 += DEPTH) {
            next_a.write(true, as);
            next_b.write(true, bs);
            __syncthreads();
            if (d0 + DEPTH < at.width) {
                next_a.read(a, at.step, 1, a0, at.rows, d0 + DEPTH, at.width);
                next_b.read(b, bt.step, 1, b0, bt.rows, d0 + DEPTH, bt.width);
            }
            JSEG_UNROLL
            for (int k = 0; k < DEPTH; k++) {
                const float4 u = *reinterpret_cast<const float4*>(as + k * LD + row_of_thread());
                const float4 v = *reinterpret_cast<const float4*>(bs + k * LD + column_of_thread());
                const float av[4] = {u.x, u.y, u.z, u.w}, bv[4] = {v.x, v.y, v.z, v.w};
                JSEG_UNROLL
                for (int i = 0; i < 4; i++) JSEG_UNROLL
                for (int j = 0; j < 4; j++) products[i][j] += av[i] * bv[j];
            }
            __syncthreads();
        }
    }
    __device__ __forceinline__ void store_turned(const float (&values)[4][4]) const {
        JSEG_UNROLL
        for (int j = 0; j < 4; j++)
            *reinterpret_cast<float4*>(tile + (column_of_thread() + j) * LD + row_of_thread()) =
                float4{values[0][j], values[1][j], values[2][j], values[3][j]};
    }
    template <int GROUPS, class T>
    __device__ __forceinline__ void add_product(const T* b, const Tokens<const T>& bt, int64_t b0, int64_t first,
                                                float (&sums)[4][4 * GROUPS]) const {
        constexpr int BL = SIDE * GROUPS + 4;
        Slice<SIDE * GROUPS, DEPTH, THREADS> next;
        const bool narrow = bt.step == 1;   // one head of width 1: `Slice` then takes the tokens for the near side
        next.read(b, 1, bt.step, first, bt.width, b0, bt.rows);
        for (int r0 = 0; r0 < SIDE && b0 + r0 < bt.rows; r0 += DEPTH) {
            next.write(narrow, bs);
            __syncthreads();
            if (r0 + DEPTH < SIDE) next.read(b, 1, bt.step, first, bt.width, b0 + r0 + DEPTH, bt.rows);
            JSEG_UNROLL
            for (int r = 0; r < DEPTH; r++) {
                const float4 u = *reinterpret_cast<const float4*>(tile + (r0 + r) * LD + row_of_thread());
                const float av[4] = {u.x, u.y, u.z, u.w};
                JSEG_UNROLL
                for (int g = 0; g < GROUPS; g++) {
                    const float4 v = *reinterpret_cast<const float4*>(bs + r * BL + g * SIDE + column_of_thread());
                    const float bv[4] = {v.x, v.y, v.z, v.w};
                    JSEG_UNROLL
                    for (int i = 0; i < 4; i++) JSEG_UNROLL
                    for (int j = 0; j < 4; j++) sums[i][g * 4 + j] += av[i] * bv[j];
                }
            }
            __syncthreads();
        }
    }
    template <int GROUPS>
    __device__ __forceinline__ void scale_rows(float (&sums)[4][4 * GROUPS], const float (&factor)[4]) const {
        JSEG_UNROLL
        for (int i = 0; i < 4; i++) JSEG_UNROLL
        for (int j = 0; j < 4 * GROUPS; j++) sums[i][j] *= factor[i];
    }
    template <int GROUPS, class T>
    __device__ __forceinline__ void put_rows(const float (&sums)[4][4 * GROUPS], const float (&factor)[4], T* to,
                                             const Tokens<T>& tt, int64_t first_row, int64_t first) const {
        JSEG_UNROLL
        for (int i = 0; i < 4; i++) JSEG_UNROLL
        for (int j = 0; j < 4 * GROUPS; j++) {
            const int64_t row = first_row + row_of_thread() + i,
                          channel = first + j / 4 * SIDE + column_of_thread() + j % 4;
            if (row < tt.rows && channel < tt.width) put(to + row * tt.step + channel, sums[i][j] * factor[i]);
        }
    }
};

// By tensor cores, factors rounded to M: warp w has rows w / 2 * 16 .. + 15 of the 64, and half of the columns.
template <class M> struct Cores {
    static constexpr bool CORES = true;
    template <int GROUPS> using Sums = float[1][4 * GROUPS][4];
    static constexpr int DEEP = 64 / int(sizeof(M)), STAGES = 2;
    using Tile = Operand<M, SIDE, SIDE, false>;
    template <class T, int WIDTH, bool ALONG> using FeedOf = Feed<M, T, WIDTH, DEEP, ALONG, THREADS>;
    static constexpr int DOT = 2 * Operand<M, SIDE, DEEP, true>::SIZE, WIDE_LD = SIDE + 8;
    template <int GROUPS> static constexpr int SLICES =
        STAGES * int(sizeof(M)) * larger(DOT, Operand<M, SIDE * GROUPS, DEEP, false>::SIZE);
    template <int GROUPS> static constexpr int BYTES = SLICES<GROUPS> + (SIDE * WIDE_LD + SIDE) * 4;
    M *stages, *tile;   // slices; a tile of M on its way into a product, and before that of floats out of one
    float* factors;     // of each row

    template <int GROUPS> __device__ __forceinline__ void lay_out(unsigned char* room) {
        stages = reinterpret_cast<M*>(room), tile = reinterpret_cast<M*>(room + SLICES<GROUPS>),
        factors = reinterpret_cast<float*>(room + SLICES<GROUPS>) + SIDE * WIDE_LD;
    }
    __device__ static __forceinline__ int warp_row() { return int(threadIdx.x) / (2 * WARP) * 16; }
    template <int GROUPS> __device__ static __forceinline__ int warp_column() {
        return int(threadIdx.x) / WARP % 2 * 32 * GROUPS;
    }
    template <class T> static __device__ __forceinline__ bool in_chunks(const T* p, const Tokens<const T>& t) {
        constexpr int EACH = EACH_CHUNK<M>;
        return t.step % EACH == 0 && reinterpret_cast<uintptr_t>(p) % (EACH * sizeof(T)) == 0;
    }
    template <class T>
    __device__ __forceinline__ void dot_products(const T* a, const Tokens<const T>& at, int64_t a0, const T* b,
                                                 const Tokens<const T>& bt, int64_t b0, float (&products)[4][4]) const {
        float sums[1][4][4] = {};
        __syncthreads();   // whatever was in the slices is done with
        multiply_slices<M, STAGES>(FeedOf<T, SIDE, true>(a, at.step, 1, a0, at.rows, 0, in_chunks(a, at)),
                                   FeedOf<T, SIDE, true>(b, bt.step, 1, b0, bt.rows, 0, in_chunks(b, bt)),
                                   int(at.width), stages, warp_row(), warp_column<1>(), sums);
        float* const out = reinterpret_cast<float*>(tile);
        const int lane = int(threadIdx.x) % WARP;
        JSEG_UNROLL
        for (int j = 0; j < 4; j++)
            JSEG_UNROLL
            for (int h = 0; h < 2; h++)
                store_shared_as(out + (warp_row() + lane / 4 + h * 8) * WIDE_LD + warp_column<1>() + j * 8 +
                                    lane % 4 * 2,
                                float2{sums[0][j][2 * h], sums[0][j][2 * h + 1]});
        __syncthreads();
        JSEG_UNROLL
        for (int i = 0; i < 4; i++) {
            const float4 v = load_shared_as<float4>(out + (row_of_thread() + i) * WIDE_LD + column_of_thread());
            products[i][0] = v.x, products[i][1] = v.y, products[i][2] = v.z, products[i][3] = v.w;
        }
        __syncthreads();   // the tile is free again
    }
    __device__ __forceinline__ void store_turned(const float (&values)[4][4]) const {
        JSEG_UNROLL
        for (int j = 0; j < 4; j++) {
            Four<M> four;
            JSEG_UNROLL
            for (int i = 0; i < 4; i++) put(&four.v[i], values[i][j]);
            store_shared_as(tile + (column_of_thread() + j) * Tile::LD + row_of_thread(), four);
        }
    }
    template <int GROUPS, class T>
    __device__ __forceinline__ void add_product(const T* b, const Tokens<const T>& bt, int64_t b0, int64_t first,
                                                float (&sums)[1][4 * GROUPS][4]) const {
        using FeedB = FeedOf<T, SIDE * GROUPS, false>;
        const FeedB feed(b, 1, bt.step, first, bt.width, b0, in_chunks(b, bt) && first % EACH_CHUNK<M> == 0);
        const int rows = bt.rows - b0 < SIDE ? int(bt.rows - b0) : SIDE, slices = int(ceil_div(rows, DEEP));
        __syncthreads();   // the tile is whole, and whatever was in the slices done with
        feed.copy(0, rows < DEEP ? rows : DEEP, stages);
        copies_commit();
        for (int slice = 0; slice < slices; slice++) {
            copies_wait<0>();
            __syncthreads();
            const int next = (slice + 1) * DEEP, left = rows - next;
            if (left > 0) feed.copy(next, left < DEEP ? left : DEEP, stages + (slice + 1) % 2 * FeedB::Lay::SIZE);
            copies_commit();
            JSEG_UNROLL
            for (int k = 0; k < DEEP; k += Tile::K) {
                uint32_t values[4], right[2 * GROUPS][4];
                Tile::left(tile, warp_row(), slice * DEEP + k, values);
                JSEG_UNROLL
                for (int j = 0; j < 2 * GROUPS; j++)
                    FeedB::Lay::right(stages + slice % 2 * FeedB::Lay::SIZE, warp_column<GROUPS>() + j * 16, k,
                                      right[j]);
                JSEG_UNROLL
                for (int j = 0; j < 4 * GROUPS; j++)
                    multiply_tiles<M>(sums[0][j], values, right[j / 2] + j % 2 * 2);
            }
        }
    }
    // A factor of rows lane / 4 and lane / 4 + 8 of the warp's.
    __device__ __forceinline__ void share_factors(const float (&factor)[4], float (&mine)[2]) const {
        __syncthreads();
        if (column_of_thread() == 0)
            store_shared_as(factors + row_of_thread(), float4{factor[0], factor[1], factor[2], factor[3]});
        __syncthreads();
        JSEG_UNROLL
        for (int h = 0; h < 2; h++)
            mine[h] = load_shared_as<float>(factors + warp_row() + int(threadIdx.x) % WARP / 4 + h * 8);
    }
    template <int GROUPS>
    __device__ __forceinline__ void scale_rows(float (&sums)[1][4 * GROUPS][4], const float (&factor)[4]) const {
        float mine[2];
        share_factors(factor, mine);
        JSEG_UNROLL
        for (int j = 0; j < 4 * GROUPS; j++)
            JSEG_UNROLL
            for (int i = 0; i < 4; i++) sums[0][j][i] *= mine[i / 2];
    }
    template <int GROUPS, class T>
    __device__ __forceinline__ void put_rows(const float (&sums)[1][4 * GROUPS][4], const float (&factor)[4], T* to,
                                             const Tokens<T>& tt, int64_t first_row, int64_t first) const {
        float mine[2];
        share_factors(factor, mine);
        const int lane = int(threadIdx.x) % WARP;
        JSEG_UNROLL
        for (int j = 0; j < 4 * GROUPS; j++)
            JSEG_UNROLL
            for (int i = 0; i < 4; i++) {
                const int64_t row = first_row + warp_row() + lane / 4 + i / 2 * 8,
                              channel = first + warp_column<GROUPS>() + j * 8 + lane % 4 * 2 + i % 2;
                if (row < tt.rows && channel < tt.width) put(to + row * tt.step + channel, sums[0][j][i] * mine[i / 2]);
            }
    }
};
// Float tokens have both ways on sm_80 and newer, all others one.
template <class Way, class T> __device__ constexpr bool has_code() {
#ifdef __CUDA_ARCH__
    return Way::CORES ? JSEG_TENSOR_CORES : is_float<T> || __CUDA_ARCH__ < 800;
#else
    return true;
#endif
}
#define JSEG_ATTENTION_BEGIN(groups)                                 \
    if constexpr (!has_code<Way, T>()) return;                       \
    JSEG_SHARED(unsigned char, memory, Way::template BYTES<groups>); \
    Way room;                                                        \
    room.template lay_out<groups>(memory)

}  // namespace attention
}  // namespace jseg
