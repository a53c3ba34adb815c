// Attention on CUDA, forward and backward, by tiles of 64 queries and 64 keys; the scores never leave the block.
//
//   S = scale Q K^T + bias + mask,  P = softmax of rows,  y = P V,  logsum = log of the sum of exp(S) by rows
//   P = exp(S - logsum),  dS = P (dy V^T - delta),  delta = dy . y by rows
//   dV = P^T dy,  dK = scale dS^T Q,  dQ = scale dS K,  dbias = dS, summed over the pictures that share it
//
// Layout: q, y, dy (N, L, G, D or E), k, v (N, M, G, D or E) of type T, or parts of one tensor, read through their
// steps; bias (1 or N, G, L, M), mask (P, L or 1, M), logsum, delta (N, G, L) float. Forward and dQ: a block takes 64
// queries of a picture and head through all keys, with a running maximum and sum; dK and dV: 64 keys through all
// queries; dbias: a tile of 64 x 64 through a run of pictures. A thread holds 4 x 4 scores and 4 rows of up to 128
// channels of the result; wider heads take several blocks. Everything that is added up comes in fixed order: results
// repeat bit by bit.
#include "cuda_attention.cuh"

namespace {
using namespace jseg;
using namespace jseg::attention;

constexpr float LOWEST = -3.4028235e38f;

struct AttentionShape {
    int64_t n, l, m, heads, d, e, packed;   // packed: 0 no, 2 keys and values, 3 all in one tensor
    float scale;
    int64_t biases, masks, mask_rows;   // biases: 0, 1 shared or N; masks: 0 or P; rows of one: 1 or L
    explicit AttentionShape(const Call& call)
        : n(call.integer(0)), l(call.integer(1)), m(call.integer(2)), heads(call.integer(3)), d(call.integer(4)),
          e(call.integer(5)), packed(call.integer(6)), scale(float(call.real(7))), biases(call.integer(8)),
          masks(call.integer(9)), mask_rows(call.integer(10)) {}
    int64_t query_tiles() const { return ceil_div(l, SIDE); }
    int64_t key_tiles() const { return ceil_div(m, SIDE); }
    int64_t chunks(int64_t width) const { return ceil_div(width, WIDEST); }
    // Runs of pictures that dbias is added up over, each by blocks of its own.
    int64_t bias_runs() const {
        if (biases != 1) return biases;
        const int64_t wanted = ceil_div(512, heads * query_tiles() * key_tiles());
        return wanted < n ? wanted : n;
    }
};

template <class T> struct Parts {
    Tokens<T> q, k, v;
};
template <class T> Parts<T> parts_of(const AttentionShape& s, T* p0, T* p1, T* p2) {
    T* keys = s.packed == 3 ? p0 : p1;
    const int64_t first = s.packed == 3 ? 1 : 0, together = s.packed ? s.packed : 1;
    return {tokens(p0, s.l, s.heads, s.d, s.packed == 3 ? 3 : 1, 0), tokens(keys, s.m, s.heads, s.d, together, first),
            tokens(s.packed ? keys : p2, s.m, s.heads, s.e, together, s.packed ? first + 1 : 0)};
}

// What a backward block needs to compute P and dS again.
template <class T> struct Source {
    AttentionShape s;
    Parts<const T> in;
    Tokens<const T> dy;
    const float *bias, *mask, *logsum, *delta;

    __device__ __forceinline__ float score(int64_t image, int64_t head, int64_t i, int64_t j, float product) const {
        float sum = product * s.scale;
        if (bias) sum += bias[(((s.biases > 1 ? image : 0) * s.heads + head) * s.l + i) * s.m + j];
        if (mask) sum += mask[(image % s.masks * s.mask_rows + (s.mask_rows > 1 ? i : 0)) * s.m + j];
        return sum;
    }
    __device__ __forceinline__ float weight(int64_t image, int64_t head, int64_t i, int64_t j, float product) const {
        if (i >= s.l || j >= s.m) return 0.0f;
        return expf(score(image, head, i, j, product) - logsum[(image * s.heads + head) * s.l + i]);
    }
    __device__ __forceinline__ float delta_of(int64_t image, int64_t head, int64_t i) const {
        return i < s.l ? delta[(image * s.heads + head) * s.l + i] : 0.0f;
    }
};

// Over the 16 threads that share a row.
__device__ __forceinline__ float row_max(float v) {
    JSEG_UNROLL
    for (int step = ACROSS / 2; step; step /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}
__device__ __forceinline__ float row_sum(float v) {
    JSEG_UNROLL
    for (int step = ACROSS / 2; step; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

// ---- forward ----------------------------------------------------------------------------------------------

template <int GROUPS, class Way, class T>
__global__ void __launch_bounds__(THREADS, 1) attend(Source<T> from, int64_t chunks, Tokens<T> y, float* logsum) {
    JSEG_ATTENTION_BEGIN(GROUPS);
    const AttentionShape& s = from.s;
    const int64_t tiles = ceil_div(s.l, SIDE), q0 = blockIdx.x % tiles * SIDE,
                  first = blockIdx.x / tiles % chunks * WIDEST;
    const int64_t set = blockIdx.x / tiles / chunks, image = set / s.heads, head = set % s.heads,
                  row = q0 + row_of_thread();
    typename Way::template Sums<GROUPS> sums = {};
    float top[4] = {LOWEST, LOWEST, LOWEST, LOWEST}, total[4] = {};
    for (int64_t k0 = 0; k0 < s.m; k0 += SIDE) {
        float p[4][4], fade[4];
        room.dot_products(from.in.q.at(image, head), from.in.q, q0, from.in.k.at(image, head), from.in.k, k0, p);
        JSEG_UNROLL
        for (int i = 0; i < 4; i++) {
            float most = top[i];
            JSEG_UNROLL
            for (int j = 0; j < 4; j++) {
                const int64_t key = k0 + column_of_thread() + j;
                p[i][j] = row + i < s.l && key < s.m ? from.score(image, head, row + i, key, p[i][j]) : -INFINITY;
                most = fmaxf(most, p[i][j]);
            }
            most = row_max(most);
            fade[i] = expf(top[i] - most);
            float more = 0.0f;
            JSEG_UNROLL
            for (int j = 0; j < 4; j++) more += p[i][j] = expf(p[i][j] - most);
            total[i] = total[i] * fade[i] + row_sum(more);
            top[i] = most;
        }
        room.template scale_rows<GROUPS>(sums, fade);
        room.store_turned(p);
        room.template add_product<GROUPS>(from.in.v.at(image, head), from.in.v, k0, first, sums);
    }
    float share[4];
    JSEG_UNROLL
    for (int i = 0; i < 4; i++) {
        share[i] = total[i] == 0.0f ? 0.0f : 1.0f / total[i];   // 0: every score is at -infinity
        if (logsum && first == 0 && column_of_thread() == 0 && row + i < s.l)
            logsum[set * s.l + row + i] = total[i] == 0.0f ? -LOWEST : top[i] + logf(total[i]);
    }
    room.template put_rows<GROUPS>(sums, share, y.at(image, head), y, q0, first);
}

// ---- backward ---------------------------------------------------------------------------------------------

// delta of one row per warp
template <class T>
__global__ void __launch_bounds__(THREADS)
    row_deltas(Tokens<const T> y, Tokens<const T> dy, int64_t heads, int64_t rows, float* delta) {
    const int64_t at = int64_t(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    const int64_t l = y.rows, image = at / l / heads, head = at / l % heads, row = at % l;
    float sum = 0.0f;
    if (at < rows)
        for (int64_t e = threadIdx.x % WARP; e < y.width; e += WARP)
            sum += to_float(y.at(image, head)[row * y.step + e]) * to_float(dy.at(image, head)[row * dy.step + e]);
    sum = warp_sum(sum);
    if (at < rows && threadIdx.x % WARP == 0) delta[at] = sum;
}

// p <- P and dp <- dS of queries q0 + row + i and keys k0 + column + j.
template <class Way, class T>
__device__ __forceinline__ void score_slopes(const Source<T>& from, int64_t image, int64_t head, int64_t q0, int64_t k0,
                                             const Way& room, float (&ds)[4][4]) {
    float p[4][4];
    room.dot_products(from.in.q.at(image, head), from.in.q, q0, from.in.k.at(image, head), from.in.k, k0, p);
    room.dot_products(from.dy.at(image, head), from.dy, q0, from.in.v.at(image, head), from.in.v, k0, ds);
    JSEG_UNROLL
    for (int i = 0; i < 4; i++) {
        const int64_t row = q0 + row_of_thread() + i;
        const float delta = from.delta_of(image, head, row);
        JSEG_UNROLL
        for (int j = 0; j < 4; j++)
            ds[i][j] = from.weight(image, head, row, k0 + column_of_thread() + j, p[i][j]) * (ds[i][j] - delta);
    }
}

template <int GROUPS, class Way, class T>
__global__ void __launch_bounds__(THREADS, 1) back_to_queries(Source<T> from, int64_t chunks, Tokens<T> dq) {
    JSEG_ATTENTION_BEGIN(GROUPS);
    const AttentionShape& s = from.s;
    const int64_t tiles = ceil_div(s.l, SIDE), q0 = blockIdx.x % tiles * SIDE,
                  first = blockIdx.x / tiles % chunks * WIDEST;
    const int64_t set = blockIdx.x / tiles / chunks, image = set / s.heads, head = set % s.heads;
    typename Way::template Sums<GROUPS> sums = {};
    for (int64_t k0 = 0; k0 < s.m; k0 += SIDE) {
        float ds[4][4];
        score_slopes(from, image, head, q0, k0, room, ds);
        room.store_turned(ds);
        room.template add_product<GROUPS>(from.in.k.at(image, head), from.in.k, k0, first, sums);
    }
    const float factor[4] = {s.scale, s.scale, s.scale, s.scale};
    room.template put_rows<GROUPS>(sums, factor, dq.at(image, head), dq, q0, first);
}

template <int GROUPS, class Way, class T>
__global__ void __launch_bounds__(THREADS, 1) back_to_keys(Source<T> from, int64_t chunks, Tokens<T> dk, Tokens<T> dv) {
    JSEG_ATTENTION_BEGIN(GROUPS);
    const AttentionShape& s = from.s;
    const int64_t tiles = ceil_div(s.m, SIDE), k0 = blockIdx.x % tiles * SIDE,
                  first = blockIdx.x / tiles % chunks * WIDEST;
    const int64_t set = blockIdx.x / tiles / chunks, image = set / s.heads, head = set % s.heads;
    typename Way::template Sums<GROUPS> to_k = {}, to_v = {};
    for (int64_t q0 = 0; q0 < s.l; q0 += SIDE) {
        float p[4][4], ds[4][4];   // [key][query]
        room.dot_products(from.in.k.at(image, head), from.in.k, k0, from.in.q.at(image, head), from.in.q, q0, p);
        JSEG_UNROLL
        for (int i = 0; i < 4; i++) JSEG_UNROLL
        for (int j = 0; j < 4; j++)
            p[i][j] = from.weight(image, head, q0 + column_of_thread() + j, k0 + row_of_thread() + i, p[i][j]);
        room.store_turned(p);
        room.template add_product<GROUPS>(from.dy.at(image, head), from.dy, q0, first, to_v);
        room.dot_products(from.in.v.at(image, head), from.in.v, k0, from.dy.at(image, head), from.dy, q0, ds);
        JSEG_UNROLL
        for (int j = 0; j < 4; j++) {
            const float delta = from.delta_of(image, head, q0 + column_of_thread() + j);
            JSEG_UNROLL
            for (int i = 0; i < 4; i++) ds[i][j] = p[i][j] * (ds[i][j] - delta);
        }
        room.store_turned(ds);
        room.template add_product<GROUPS>(from.in.q.at(image, head), from.in.q, q0, first, to_k);
    }
    const float scale[4] = {s.scale, s.scale, s.scale, s.scale}, one[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    room.template put_rows<GROUPS>(to_k, scale, dk.at(image, head), dk, k0, first);
    room.template put_rows<GROUPS>(to_v, one, dv.at(image, head), dv, k0, first);
}

// parts (runs, heads, L, M) <- dS added up over a run of pictures
template <class Way, class T>
__global__ void __launch_bounds__(THREADS, 1) back_to_bias(Source<T> from, int64_t runs, float* parts) {
    JSEG_ATTENTION_BEGIN(1);
    const AttentionShape& s = from.s;
    const int64_t down = ceil_div(s.l, SIDE), across = ceil_div(s.m, SIDE);
    const int64_t q0 = blockIdx.x % down * SIDE, k0 = blockIdx.x / down % across * SIDE,
                  head = blockIdx.x / down / across % s.heads, run = blockIdx.x / down / across / s.heads;
    float sums[4][4] = {};
    for (int64_t image = s.n * run / runs; image < s.n * (run + 1) / runs; image++) {
        float ds[4][4];
        score_slopes(from, image, head, q0, k0, room, ds);
        JSEG_UNROLL
        for (int i = 0; i < 4; i++) JSEG_UNROLL
        for (int j = 0; j < 4; j++) sums[i][j] += ds[i][j];
    }
    JSEG_UNROLL
    for (int i = 0; i < 4; i++) JSEG_UNROLL
    for (int j = 0; j < 4; j++) {
        const int64_t row = q0 + row_of_thread() + i, key = k0 + column_of_thread() + j;
        if (row < s.l && key < s.m) parts[((run * s.heads + head) * s.l + row) * s.m + key] = sums[i][j];
    }
}

// Calls body(Plain()) or body(Cores<T>()).
template <class T, class Body> void in_best_way(Body body) {
    if (tf32_allowed && has_tensor_cores(attend<1, Cores<T>, T>)) body(Cores<T>());
    else body(Plain());
}

}  // namespace

// inputs q, k, v as `packed` says, bias, mask, each of the two or None; outputs y and, if wanted, logsum
// numbers: N L M G D E packed scale biases masks mask_rows
JSEG_CUDA_KERNEL(jseg_attention_forward) {
    const AttentionShape s(call);
    if (work.measuring()) return;
    const Source<T> from{s,
                         parts_of(s, call.in<T>(0), call.in<T>(1), call.in<T>(2)),
                         {},
                         call.in<float>(3),
                         call.in<float>(4),
                         nullptr,
                         nullptr};
    const Tokens<T> y = tokens(call.out<T>(0), s.l, s.heads, s.e, 1, 0);
    float* logsum = call.output_count > 1 ? call.out<float>(1) : nullptr;
    const int64_t chunks = s.chunks(s.e), blocks = s.n * s.heads * chunks * s.query_tiles();
    in_best_way<T>([&](auto way) {
        using Way = decltype(way);
        if (s.e <= SIDE) JSEG_LAUNCH((attend<1, Way, T>), blocks, THREADS, from, chunks, y, logsum);
        else JSEG_LAUNCH((attend<2, Way, T>), blocks, THREADS, from, chunks, y, logsum);
    });
}

// inputs q, k, v, bias, mask as forward, y, logsum, dy; outputs gradients of q, k, v as `packed` says and, with a bias,
// dbias
JSEG_CUDA_KERNEL(jseg_attention_backward) {
    const AttentionShape s(call);
    const int64_t runs = s.bias_runs(), rows = s.n * s.heads * s.l,
                  outputs = s.packed == 3   ? 1
                            : s.packed == 2 ? 2
                                            : 3,
                  bias_size = s.heads * s.l * s.m;
    const bool in_parts = s.biases == 1 && runs > 1;
    float *delta = work.take<float>(rows), *parts = work.take<float>(in_parts ? runs * bias_size : 0);
    if (work.measuring()) return;
    const Tokens<const T> y = tokens(call.in<T>(5), s.l, s.heads, s.e, 1, 0),
                          dy = tokens(call.in<T>(7), s.l, s.heads, s.e, 1, 0);
    const Source<T> from{s,
                         parts_of(s, call.in<T>(0), call.in<T>(1), call.in<T>(2)),
                         dy,
                         call.in<float>(3),
                         call.in<float>(4),
                         call.in<float>(6),
                         delta};
    const Parts<T> to =
        parts_of(s, call.out<T>(0), outputs > 1 ? call.out<T>(1) : nullptr, outputs > 2 ? call.out<T>(2) : nullptr);
    JSEG_LAUNCH((row_deltas<T>), ceil_div(rows, THREADS / WARP), THREADS, y, dy, s.heads, rows, delta);
    const int64_t query_blocks = s.n * s.heads * s.query_tiles(), key_blocks = s.n * s.heads * s.key_tiles(),
                  of_d = s.chunks(s.d), of_both = s.chunks(s.d > s.e ? s.d : s.e);
    float* const dbias = s.biases ? call.out<float>(int(outputs)) : nullptr;
    in_best_way<T>([&](auto way) {
        using Way = decltype(way);
        if (s.d <= SIDE) JSEG_LAUNCH((back_to_queries<1, Way, T>), query_blocks * of_d, THREADS, from, of_d, to.q);
        else JSEG_LAUNCH((back_to_queries<2, Way, T>), query_blocks * of_d, THREADS, from, of_d, to.q);
        if (s.d <= SIDE && s.e <= SIDE)
            JSEG_LAUNCH((back_to_keys<1, Way, T>), key_blocks * of_both, THREADS, from, of_both, to.k, to.v);
        else JSEG_LAUNCH((back_to_keys<2, Way, T>), key_blocks * of_both, THREADS, from, of_both, to.k, to.v);
        if (dbias)
            JSEG_LAUNCH((back_to_bias<Way, T>), runs * s.heads * s.query_tiles() * s.key_tiles(), THREADS, from, runs,
                        in_parts ? parts : dbias);
    });
    if (in_parts)
        JSEG_LAUNCH((sum_parts<float, float>), ceil_div(bias_size, 256), 256, static_cast<const float*>(parts),
                    int64_t(1), runs, bias_size, false, dbias);
}
