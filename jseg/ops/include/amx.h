// The tile unit of newer Intel processors (AMX-BF16): pairs of bfloat16 of 8 rows and 16 steps of the depth times those
// of 16 columns, in one instruction with sums in single precision. bfloat.h keeps pairs of two neighbours along the
// depth in a lane of 32 bits, which is the unit's own order. With JSEG_EMULATE_AMX the five instructions used here are
// functions that also check the configuration: the tests of machines without the unit.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__AMX_BF16__) || defined(JSEG_EMULATE_AMX)
#define JSEG_TILES 1
#endif

#ifdef JSEG_TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace jseg {

constexpr int TILE_ROWS = 8, TILE_STEPS = 16;   // rows of sums; steps of the depth in a tile
constexpr int TILE_SUMS = 0, TILE_A = 3, TILE_B = 4;   // registers: three of sums, one of a, one of b

struct alignas(64) TileConfig {   // the layout that LDTILECFG reads
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
    TileConfig() {
        for (int tile = 0; tile <= TILE_B; tile++) row_bytes[tile] = 64, rows[tile] = TILE_ROWS;
        rows[TILE_B] = TILE_STEPS;
    }
};

#ifdef JSEG_EMULATE_AMX
struct EmulatedTiles {
    TileConfig config;
    bool configured = false;
    uint32_t data[8][16][16];
    void require(int tile) const {
        if (configured && config.rows[tile] && config.row_bytes[tile] == 64) return;
        std::fprintf(stderr, "AMX: tile %d is used without a configuration\n", tile);
        std::abort();
    }
};
inline thread_local EmulatedTiles emulated_tiles;

inline bool tiles_allowed() { return true; }
inline void configure_tiles(const TileConfig& config) {
    emulated_tiles.config = config, emulated_tiles.configured = true;
}
inline void release_tiles() { emulated_tiles.configured = false; }
template <int TILE> inline void zero_tile() {
    emulated_tiles.require(TILE);
    std::memset(emulated_tiles.data[TILE], 0, sizeof emulated_tiles.data[TILE]);
}
template <int TILE> inline void load_tile(const void* from, int64_t step_bytes) {
    emulated_tiles.require(TILE);
    for (int row = 0; row < emulated_tiles.config.rows[TILE]; row++)
        std::memcpy(emulated_tiles.data[TILE][row], static_cast<const char*>(from) + row * step_bytes, 64);
}
template <int TILE> inline void store_tile(void* to, int64_t step_bytes) {
    emulated_tiles.require(TILE);
    for (int row = 0; row < emulated_tiles.config.rows[TILE]; row++)
        std::memcpy(static_cast<char*>(to) + row * step_bytes, emulated_tiles.data[TILE][row], 64);
}
template <int C, int A, int B> inline void multiply_tiles() {
    EmulatedTiles& tiles = emulated_tiles;
    tiles.require(C), tiles.require(A), tiles.require(B);
    const auto number = [](uint32_t bits) {
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    };
    for (int row = 0; row < tiles.config.rows[C]; row++)
        for (int step = 0; step < tiles.config.rows[B]; step++)
            for (int column = 0; column < 16; column++) {
                const uint32_t a = tiles.data[A][row][step], b = tiles.data[B][step][column];
                float sum = number(tiles.data[C][row][column]);
                sum += number(a << 16) * number(b << 16);
                sum += number(a & 0xffff0000u) * number(b & 0xffff0000u);
                std::memcpy(&tiles.data[C][row][column], &sum, 4);
            }
}
#else
// Linux keeps the tiles of a process only when asked to; elsewhere, and where it refuses, the vector unit computes.
inline bool tiles_allowed() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    static const bool allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return allowed;
}
inline void configure_tiles(const TileConfig& config) { _tile_loadconfig(&config); }
inline void release_tiles() { _tile_release(); }
// The intrinsics are macros that want a number written out.
template <int TILE> inline void zero_tile() {
    static_assert(TILE >= 0 && TILE < 3, "a tile of sums");
    if constexpr (TILE == 0) _tile_zero(0);
    else if constexpr (TILE == 1) _tile_zero(1);
    else _tile_zero(2);
}
template <int TILE> inline void load_tile(const void* from, int64_t step_bytes) {
    static_assert(TILE == TILE_A || TILE == TILE_B, "a factor");
    if constexpr (TILE == 3) _tile_loadd(3, from, step_bytes);
    else _tile_loadd(4, from, step_bytes);
}
template <int TILE> inline void store_tile(void* to, int64_t step_bytes) {
    static_assert(TILE >= 0 && TILE < 3, "a tile of sums");
    if constexpr (TILE == 0) _tile_stored(0, to, step_bytes);
    else if constexpr (TILE == 1) _tile_stored(1, to, step_bytes);
    else _tile_stored(2, to, step_bytes);
}
template <int C, int A, int B> inline void multiply_tiles() {
    static_assert(C >= 0 && C < 3 && A == TILE_A && B == TILE_B, "sums, a, b");
    if constexpr (C == 0) _tile_dpbf16ps(0, 3, 4);
    else if constexpr (C == 1) _tile_dpbf16ps(1, 3, 4);
    else _tile_dpbf16ps(2, 3, 4);
}
#endif

// While one lives, its thread may use tiles.
class TileScope {
public:
    TileScope() {
        if (tiles_allowed()) configure_tiles(TileConfig());
    }
    ~TileScope() {
        if (tiles_allowed()) release_tiles();
    }
    TileScope(const TileScope&) = delete;
};

// to[v][row][column] = sum over `blocks` of 16 steps of a, rows of 16 pairs, times vector v of b, rows of `b_step`
// floats.
template <int VECTORS>
inline void tile_products(int64_t blocks, const float* a, const float* b, int64_t b_step,
                          float (&to)[VECTORS][TILE_ROWS][16]) {
    static_assert(VECTORS >= 1 && VECTORS <= 3, "three tiles of sums");
    asm volatile("" ::: "memory");   // GCC's intrinsics do not say that they read memory
    zero_tile<0>();
    if constexpr (VECTORS > 1) zero_tile<1>();
    if constexpr (VECTORS > 2) zero_tile<2>();
    for (int64_t block = 0; block < blocks; block++) {
        const float* from = b + block * TILE_STEPS * b_step;
        load_tile<TILE_A>(a + block * TILE_ROWS * TILE_STEPS, 64);
        load_tile<TILE_B>(from, b_step * 4);
        multiply_tiles<0, TILE_A, TILE_B>();
        if constexpr (VECTORS > 1) {
            load_tile<TILE_B>(from + 16, b_step * 4);
            multiply_tiles<1, TILE_A, TILE_B>();
        }
        if constexpr (VECTORS > 2) {
            load_tile<TILE_B>(from + 32, b_step * 4);
            multiply_tiles<2, TILE_A, TILE_B>();
        }
    }
    store_tile<0>(to[0], 64);
    if constexpr (VECTORS > 1) store_tile<1>(to[1], 64);
    if constexpr (VECTORS > 2) store_tile<2>(to[2], 64);
}

}  // namespace jseg
#endif
