// Runs the device code of jseg/ops/*/cuda.cuh on the CPU, one block at a time, every thread a fiber of its own. The
// blocks of a cooperative launch are alive together, and take turns at the barriers of the grid.
//
// A thread runs until it reaches a barrier or a warp operation; then the next one runs, in an order chosen by the
// schedule (0 ascending, 1 descending, above: shuffled anew at every round by that seed). What is found:
//   - threads of a block at different barriers, or some at a barrier and others gone; warp operations whose lanes
//     differ in place or mask, or have exited; a block that cannot go on;
//   - missing barriers: shared memory starts as NaN in every block, and some schedule reads it before it is written, or
//     after it is overwritten: the result is wrong;
//   - writes around a shared array (guard zones); reads there give NaN. The caller puts guard zones around global
//     memory;
//   - launches that a device would refuse (grid, block, shared memory; more blocks than are resident in a cooperative
//     one);
//   - a barrier of the grid that some block or thread does not come to; a missing one: a block runs on to the next as
//     far as it can, before or after the others by the schedule, so it reads what is not there yet or no longer;
//   - of code that uses the words at the end (asynchronous copies, tensor cores, `note_read`, `note_write`): shared
//     memory that is read before it is written or before its copy was waited for, reads and writes of two threads with
//     no barrier between them, whatever the schedule; misaligned addresses; copies that nobody waits for.
// It does not find: other races inside one warp between two warp operations, what a real memory model allows.
#pragma once
#include <immintrin.h>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __restrict__ __restrict
#define __forceinline__ inline
#define __launch_bounds__(...)

#if __GNUC__ >= 12
struct __half {
    _Float16 value;
};
inline float __half2float(__half h) { return float(h.value); }
inline __half __float2half_rn(float f) { return {_Float16(f)}; }
#else  // no _Float16 in C++ yet: the processor's own conversions
struct __half {
    uint16_t bits;
};
__attribute__((target("f16c"))) inline float __half2float(__half h) { return _cvtsh_ss(h.bits); }
__attribute__((target("f16c"))) inline __half __float2half_rn(float f) {
    return {uint16_t(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT))};
}
#endif
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 b) {
    uint32_t bits = uint32_t(b.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (f != f) return {uint16_t(bits >> 16 | 64)};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emu {

constexpr int GUARD = 8192;                 // bytes around each shared array
constexpr size_t STACK = 128 << 10;
constexpr int64_t MAX_STATIC_SHARED = 48 << 10;
enum State { READY, AT_BARRIER, AT_WARP, AT_GRID, DONE };

struct Copy {
    char* to;
    const char* from;
    int bytes, valid;
    unsigned group;
};
struct Word {                               // 4 bytes of shared memory: who wrote and read them last
    int writer = -1, reader = -1;
    unsigned write_epoch = 0, read_epoch = 0, write_order = 0, read_order = 0;
    bool pending = false, more_readers = false;
};
struct Fiber {
    ucontext_t start;
    jmp_buf at;
    bool started = false;
    State state = READY;
    const char* site = "";
    unsigned mask = 0;
    uint64_t slot = 0;                      // what this lane offers in a shuffle
    uint32_t offers[2][6];                  // and in an operation of the whole warp, by turns
    unsigned turn = 0, orders = 0;          // operations of the whole warp so far, and those that order memory
    std::vector<Copy> copies;               // asynchronous, not landed yet
    unsigned group = 0;                     // that the next copy belongs to
    std::unique_ptr<char[]> stack;
};
struct SharedArray {
    const void* key;
    int64_t size;
    std::vector<char> memory;
    std::vector<Word> words;
};
struct Block {                              // what is a block's own while others of its launch run
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<SharedArray> shared;
    unsigned epoch = 0;
    State state = READY;
};
struct Launch {
    const char* kernel;
    int64_t blocks, threads, shared;
};
struct Index {
    unsigned x, y, z;
};

struct Device {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<SharedArray> shared;
    std::vector<Block> together;            // the blocks of a cooperative launch that are not running now
    std::vector<Launch> launches;
    std::function<void()> body;
    jmp_buf scheduler;
    ucontext_t scheduler_start;
    unsigned current = 0, threads = 0, schedule = 0;
    Index block{0, 0, 0}, block_size{1, 1, 1}, grid{1, 1, 1};
    bool dry = false;                       // record launches, run nothing
    unsigned epoch = 0;                     // barriers of this block so far
    int capability = 80;                    // of the device, 75, 80, ...
    int64_t resident = 0;                   // blocks that it takes in a cooperative launch; negative: and refuses them
    bool cooperative = false;               // the present launch
    int64_t barriers = 0;                   // of whole grids
    int64_t products = 0;                   // of tiles on tensor cores, by lanes
    std::string error;
    const char* kernel = "";
};
inline Device& device() {
    static Device d;
    return d;
}
inline Fiber& me() { return *device().fibers[device().current]; }
inline Index thread_index() { return {device().current, 0, 0}; }

inline void to_scheduler() {
    if (!_setjmp(me().at)) _longjmp(device().scheduler, 1);
}
inline void fiber_main() {
    for (;;) {
        device().body();
        me().state = DONE;
        to_scheduler();
    }
}
inline void wait(State state, const char* site, unsigned mask = 0) {
    me().state = state, me().site = site, me().mask = mask;
    to_scheduler();
}
inline void run_fiber(unsigned i) {
    Device& d = device();
    d.current = i;
    Fiber& f = *d.fibers[i];
    if (_setjmp(d.scheduler)) return;
    if (f.started) _longjmp(f.at, 1);
    f.started = true;
    if (!f.stack) f.stack.reset(new char[STACK]);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.get();
    f.start.uc_stack.ss_size = STACK;
    f.start.uc_link = nullptr;
    makecontext(&f.start, fiber_main, 0);
    swapcontext(&d.scheduler_start, &f.start);
}

inline void fail(const std::string& what) {
    Device& d = device();
    if (d.error.empty()) d.error = std::string(d.kernel) + ", block " + std::to_string(d.block.x) + ": " + what;
}

template <class T> T* shared_array(const void* key, int64_t count) {
    Device& d = device();
    for (SharedArray& s : d.shared)
        if (s.key == key) return reinterpret_cast<T*>(s.memory.data() + GUARD);
    d.shared.push_back({key, count * int64_t(sizeof(T)), {}, {}});
    d.shared.back().words.resize(size_t(count * int64_t(sizeof(T)) + 3) / 4);
    d.shared.back().memory.assign(count * sizeof(T) + 2 * GUARD, char(0xff));   // NaN in every floating-point type
    return reinterpret_cast<T*>(d.shared.back().memory.data() + GUARD);
}
inline void check_shared() {
    int64_t total = 0;
    for (const SharedArray& s : device().shared) {
        total += s.size;
        for (int i = 0; i < GUARD; i++)
            if (s.memory[i] != char(0xff) || s.memory[GUARD + s.size + i] != char(0xff))
                return fail("a write beside a shared array of " + std::to_string(s.size) + " bytes");
    }
    if (total > MAX_STATIC_SHARED) fail(std::to_string(total) + " bytes of shared memory, 49152 are allowed");
    device().launches.back().shared = std::max(device().launches.back().shared, total);
}

// Lets the lanes of one warp go on whose whole mask has arrived; true if any did.
inline bool release_warp(unsigned first, unsigned end) {
    Device& d = device();
    for (unsigned i = first; i < end; i++) {
        Fiber& f = *d.fibers[i];
        if (f.state != AT_WARP) continue;
        bool all = true;
        for (unsigned j = first; j < first + 32; j++) {
            if (!(f.mask >> (j - first) & 1)) continue;
            if (j >= end || d.fibers[j]->state == DONE)
                return fail(std::string("a warp operation waits for a lane that is gone, at ") + f.site), false;
            const Fiber& g = *d.fibers[j];
            if (g.state != AT_WARP) all = false;
            else if (g.mask != f.mask || g.site != f.site)
                return fail(std::string("lanes of one warp at different operations, ") + f.site + " and " + g.site),
                       false;
        }
        if (!(f.mask >> (i - first) & 1)) return fail(std::string("a lane outside its own mask, at ") + f.site), false;
        if (!all) continue;
        for (unsigned j = first; j < end; j++)
            if (f.mask >> (j - first) & 1) d.fibers[j]->state = READY;
        return true;
    }
    return false;
}

inline std::vector<unsigned> order_of(unsigned count) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (device().schedule == 1) std::reverse(order.begin(), order.end());
    return order;
}
inline void begin_block() {
    Device& d = device();
    d.shared.clear();
    d.epoch = 0;
    while (d.fibers.size() < d.threads) d.fibers.emplace_back(new Fiber);
    for (unsigned i = 0; i < d.threads; i++) {
        Fiber& f = *d.fibers[i];
        f.state = READY, f.turn = f.orders = f.group = 0, f.copies.clear();
    }
}
// Runs the present block until all its threads are at the grid's barrier, or gone: AT_GRID or DONE.
inline State run_on(std::mt19937& random) {
    Device& d = device();
    std::vector<unsigned> order = order_of(d.threads);
    while (d.error.empty()) {
        if (d.schedule > 1) std::shuffle(order.begin(), order.end(), random);
        for (unsigned i : order)
            if (d.fibers[i]->state == READY) run_fiber(i);
        bool released = false;
        for (unsigned w = 0; w < d.threads; w += 32) released |= release_warp(w, std::min(d.threads, w + 32));
        if (released || !d.error.empty()) continue;
        unsigned waiting = 0, done = 0, at_grid = 0;
        for (unsigned i = 0; i < d.threads; i++)
            waiting += d.fibers[i]->state == AT_BARRIER, done += d.fibers[i]->state == DONE,
                at_grid += d.fibers[i]->state == AT_GRID;
        if (done == d.threads) {
            for (unsigned i = 0; i < d.threads; i++)
                if (!d.fibers[i]->copies.empty()) fail("an asynchronous copy that nobody waited for");
            check_shared();
            return DONE;
        }
        d.epoch++;
        if (waiting != d.threads && at_grid != d.threads) {
            fail(std::to_string(waiting) + " threads wait at a barrier, " + std::to_string(done) + " have exited" +
                 (at_grid ? ", " + std::to_string(at_grid) + " wait for the grid" : "") + ", of " +
                 std::to_string(d.threads));
            break;
        }
        for (unsigned i = 0; i < d.threads; i++) {
            if (d.fibers[i]->site != d.fibers[0]->site)
                fail(std::string("divergent barriers ") + d.fibers[0]->site + " and " + d.fibers[i]->site);
            d.fibers[i]->state = READY;
        }
        if (at_grid && !d.cooperative) fail("a barrier of the grid in a launch that is not cooperative");
        if (at_grid) return AT_GRID;
    }
    return DONE;
}
inline void swap_block(unsigned index) {
    Device& d = device();
    Block& other = d.together[index];
    d.fibers.swap(other.fibers), d.shared.swap(other.shared), std::swap(d.epoch, other.epoch);
    d.block.x = index;
}
// All blocks, in turns from one barrier of the grid to the next.
inline void run_blocks_together(std::mt19937& random) {
    Device& d = device();
    std::vector<unsigned> order = order_of(d.grid.x);
    if (d.together.size() < d.grid.x) d.together.resize(d.grid.x);
    for (unsigned b : order) swap_block(b), begin_block(), swap_block(b), d.together[b].state = READY;
    while (d.error.empty()) {
        if (d.schedule > 1) std::shuffle(order.begin(), order.end(), random);
        unsigned gone = 0;
        for (unsigned b : order) {
            if (d.together[b].state == DONE || !d.error.empty()) continue;
            swap_block(b);
            d.together[b].state = run_on(random);
            gone += d.together[b].state == DONE;
            swap_block(b);
        }
        if (gone == d.grid.x) return;
        d.barriers++;
        if (gone && d.error.empty())
            fail("a deadlock: " + std::to_string(gone) + " blocks have exited, " + std::to_string(d.grid.x - gone) +
                 " wait for the grid");
    }
}

inline bool begin_launch(const char* name, int64_t blocks, int64_t threads) {
    Device& d = device();
    d.kernel = name;
    d.block = {0, 0, 0};
    d.launches.push_back({name, blocks, threads, 0});
    if (blocks < 1 || blocks > 0x7fffffffLL || threads < 1 || threads > 1024)
        fail("a grid of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads");
    d.block_size.x = d.threads = unsigned(threads), d.grid.x = unsigned(blocks);
    return !d.dry && d.error.empty();
}
inline void end_launch() {
    Device& d = device();
    if (!d.error.empty()) d.fibers.clear(), d.together.clear();   // their stacks are in the middle of something
}
template <class K, class... A> void launch(const char* name, K kernel, int64_t blocks, int64_t threads,
                                           A... arguments) {
    Device& d = device();
    if (!begin_launch(name, blocks, threads)) return;
    d.body = [=] { kernel(arguments...); };
    d.cooperative = false;
    std::mt19937 random(d.schedule);
    for (int64_t b = 0; b < blocks && d.error.empty(); b++) {
        d.block.x = unsigned(d.schedule == 1 ? blocks - 1 - b : b);
        begin_block();
        run_on(random);
    }
    end_launch();
}
inline int64_t resident_blocks() { return std::abs(device().resident); }
// False where the device refuses although it could.
template <class K, class P> bool launch_together(const char* name, K kernel, int64_t blocks, int64_t threads,
                                                 const P& plan) {
    Device& d = device();
    if (d.resident < 0) return false;
    const bool good = begin_launch(name, blocks, threads);
    if (blocks > d.resident)
        fail("a cooperative grid of " + std::to_string(blocks) + " blocks, of which " + std::to_string(d.resident) +
             " are resident");
    if (!good || !d.error.empty()) return true;
    d.body = [=] { kernel(plan); };
    d.cooperative = true;
    std::mt19937 random(d.schedule);
    run_blocks_together(random);
    end_launch();
    return true;
}

}  // namespace emu

#include "cuda_emu_warp.h"

#define EMU_TEXT_(x) #x
#define EMU_TEXT(x) EMU_TEXT_(x)
#define EMU_SITE __FILE__ ":" EMU_TEXT(__LINE__)
#define threadIdx (emu::thread_index())
#define blockIdx (emu::device().block)
#define blockDim (emu::device().block_size)
#define gridDim (emu::device().grid)
#define __syncthreads() emu::wait(emu::AT_BARRIER, EMU_SITE)
#define __syncwarp() emu::sync_warp(EMU_SITE)
#define __shfl_xor_sync(mask, value, step) emu::shuffle(value, emu::lane() ^ (step), mask, EMU_SITE)
#define __shfl_sync(mask, value, source) emu::shuffle(value, source, mask, EMU_SITE)
#define __shfl_down_sync(mask, value, step) \
    emu::shuffle(value, emu::lane() + (step) > 31 ? emu::lane() : emu::lane() + (step), mask, EMU_SITE)

template <class T> T atomicAdd(T* at, T value) {
    T before = *at;
    *at += value;
    return before;
}

// What the tests call.
extern "C" {
__attribute__((visibility("default"))) void emu_set(int schedule, int dry) {
    emu::Device& d = emu::device();
    d.schedule = unsigned(schedule), d.dry = dry, d.error.clear(), d.launches.clear(), d.products = d.barriers = 0;
}
__attribute__((visibility("default"))) void emu_capability(int capability) { emu::device().capability = capability; }
__attribute__((visibility("default"))) void emu_resident(int64_t blocks) { emu::device().resident = blocks; }
__attribute__((visibility("default"))) const char* emu_error() { return emu::device().error.c_str(); }
__attribute__((visibility("default"))) int64_t emu_products() { return emu::device().products / 32; }
__attribute__((visibility("default"))) int64_t emu_barriers() { return emu::device().barriers; }
__attribute__((visibility("default"))) int64_t emu_launches() { return int64_t(emu::device().launches.size()); }
__attribute__((visibility("default"))) const char* emu_launch(int64_t i, int64_t* numbers) {
    const emu::Launch& l = emu::device().launches[size_t(i)];
    numbers[0] = l.blocks, numbers[1] = l.threads, numbers[2] = l.shared;
    return l.kernel;
}
}
