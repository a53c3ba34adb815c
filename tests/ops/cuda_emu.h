// Runs the device code of jseg/ops/*/cuda.cuh on the CPU, one block at a time, every thread a fiber of its own.
//
// A thread runs until it reaches a barrier or a warp operation; then the next one runs, in an order chosen by the
// schedule (0 ascending, 1 descending, above: shuffled anew at every round by that seed). What is found:
//   - threads of a block at different barriers, or some at a barrier and others gone; warp operations whose lanes
//     differ in place or mask, or have exited; a block that cannot go on;
//   - missing barriers: shared memory starts as NaN in every block, and some schedule reads it before it is written, or
//     after it is overwritten: the result is wrong;
//   - writes around a shared array (guard zones); reads there give NaN. The caller puts guard zones around global
//     memory;
//   - launches that a device would refuse (grid, block, shared memory);
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
enum State { READY, AT_BARRIER, AT_WARP, DONE };

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
    std::vector<Launch> launches;
    std::function<void()> body;
    jmp_buf scheduler;
    ucontext_t scheduler_start;
    unsigned current = 0, threads = 0, schedule = 0;
    Index block{0, 0, 0}, block_size{1, 1, 1}, grid{1, 1, 1};
    bool dry = false;                       // record launches, run nothing
    unsigned epoch = 0;                     // barriers of this block so far
    int capability = 80;                    // of the device, 75, 80, ...
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

inline void run_block(std::mt19937& random) {
    Device& d = device();
    d.shared.clear();
    d.epoch = 0;
    while (d.fibers.size() < d.threads) d.fibers.emplace_back(new Fiber);
    std::vector<unsigned> order(d.threads);
    std::iota(order.begin(), order.end(), 0u);
    if (d.schedule == 1) std::reverse(order.begin(), order.end());
    for (unsigned i : order) {
        Fiber& f = *d.fibers[i];
        f.state = READY, f.turn = f.orders = f.group = 0, f.copies.clear();
    }
    while (d.error.empty()) {
        if (d.schedule > 1) std::shuffle(order.begin(), order.end(), random);
        for (unsigned i : order)
            if (d.fibers[i]->state == READY) run_fiber(i);
        bool released = false;
        for (unsigned w = 0; w < d.threads; w += 32) released |= release_warp(w, std::min(d.threads, w + 32));
        if (released || !d.error.empty()) continue;
        unsigned waiting = 0, done = 0;
        for (unsigned i = 0; i < d.threads; i++)
            waiting += d.fibers[i]->state == AT_BARRIER, done += d.fibers[i]->state == DONE;
        if (done == d.threads) {
            for (unsigned i = 0; i < d.threads; i++)
                if (!d.fibers[i]->copies.empty()) fail("an asynchronous copy that nobody waited for");
            return check_shared();
        }
        d.epoch++;
        if (waiting != d.threads)
            return fail(std::to_string(waiting) + " threads wait at a barrier, " + std::to_string(done) +
                        " have exited, of " + std::to_string(d.threads));
        for (unsigned i = 0; i < d.threads; i++) {
            if (d.fibers[i]->site != d.fibers[0]->site)
                return fail(std::string("divergent barriers ") + d.fibers[0]->site + " and " + d.fibers[i]->site);
            d.fibers[i]->state = READY;
        }
    }
}

template <class K, class... A> void launch(const char* name, K kernel, int64_t blocks, int64_t threads,
                                           A... arguments) {
    Device& d = device();
    d.kernel = name;
    d.block = {0, 0, 0};
    d.launches.push_back({name, blocks, threads, 0});
    if (blocks < 1 || blocks > 0x7fffffffLL || threads < 1 || threads > 1024)
        return fail("a grid of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads");
    if (d.dry || !d.error.empty()) return;
    d.body = [=] { kernel(arguments...); };
    d.block_size.x = d.threads = unsigned(threads), d.grid.x = unsigned(blocks);
    std::mt19937 random(d.schedule);
    for (int64_t b = 0; b < blocks && d.error.empty(); b++) {
        d.block.x = unsigned(d.schedule == 1 ? blocks - 1 - b : b);
        run_block(random);
    }
    if (!d.error.empty()) d.fibers.clear();   // their stacks are in the middle of something
}

template <class T> T shuffle(T value, unsigned source, unsigned mask, const char* site) {
    static_assert(sizeof(T) <= 8, "one shuffle moves at most 8 bytes");
    const unsigned first = device().current / 32 * 32;
    std::memcpy(&me().slot, &value, sizeof value);
    wait(AT_WARP, site, mask);
    T result;
    if (!(mask >> (source & 31) & 1)) fail(std::string("a shuffle reads a lane outside the mask, at ") + site);
    std::memcpy(&result, &device().fibers[first + (source & 31)]->slot, sizeof result);
    wait(AT_WARP, site, mask);
    return result;
}
inline unsigned lane() { return device().current & 31; }

// ---- shared memory that is watched ----------------------------------------------------------------------------------
inline Word* word_at(const void* p) {
    for (SharedArray& s : device().shared) {
        const int64_t at = static_cast<const char*>(p) - (s.memory.data() + GUARD);
        if (at >= 0 && at < s.size) return &s.words[size_t(at / 4)];
    }
    return nullptr;                         // a guard zone will tell
}
// Whether what thread `other` did in an epoch, at its order, may still be under way for the present thread.
inline bool unordered(int other, unsigned epoch, unsigned order) {
    const int mine = int(device().current);
    if (other < 0 || other == mine || epoch != device().epoch) return false;
    return other / 32 != mine / 32 || order >= me().orders;
}
inline void note_read(const void* p, int bytes, const char* site) {
    for (int i = 0; i < bytes; i += 4) {
        Word* w = word_at(static_cast<const char*>(p) + i);
        if (!w) return fail(std::string("a read beside shared memory, at ") + site);
        if (w->pending) return fail(std::string("a read before the copy was waited for, at ") + site);
        if (w->writer < 0) return fail(std::string("a read of shared memory that nothing wrote, at ") + site);
        if (unordered(w->writer, w->write_epoch, w->write_order))
            return fail(std::string("a read of what another thread writes, no barrier between, at ") + site);
        const bool again = w->reader >= 0 && w->read_epoch == device().epoch;
        w->more_readers = again && (w->more_readers || w->reader / 32 != int(device().current) / 32);
        w->reader = int(device().current), w->read_epoch = device().epoch, w->read_order = me().orders;
    }
}
inline void note_write(const void* p, int bytes, const char* site, bool pending = false) {
    for (int i = 0; i < bytes; i += 4) {
        Word* w = word_at(static_cast<const char*>(p) + i);
        if (!w) return fail(std::string("a write beside shared memory, at ") + site);
        if (w->pending || unordered(w->writer, w->write_epoch, w->write_order) ||
            (w->more_readers && w->read_epoch == device().epoch) ||
            unordered(w->reader, w->read_epoch, w->read_order))
            return fail(std::string("a write of what another thread reads or writes, no barrier between, at ") + site);
        w->writer = int(device().current), w->write_epoch = device().epoch, w->write_order = me().orders;
        w->pending = pending;
    }
}

// ---- asynchronous copies: what they fill is NaN until the thread that asked for them waits --------------------------
inline void copy_async(void* to, const void* from, int bytes, int valid, const char* site) {
    if (uintptr_t(to) % unsigned(bytes) || (valid && uintptr_t(from) % unsigned(bytes)))
        return fail(std::string("a misaligned asynchronous copy, at ") + site);
    note_write(to, bytes, site, true);
    std::memset(to, 0xff, size_t(bytes));
    me().copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, valid, me().group});
}
inline void copies_commit() { me().group++; }
// Lands all copies but those of the last `left` committed groups and of the group that is still open.
inline void copies_wait(unsigned left) {
    Fiber& f = me();
    size_t kept = 0;
    for (const Copy& c : f.copies) {
        if (c.group + left >= f.group) {
            f.copies[kept++] = c;
            continue;
        }
        if (c.valid) std::memcpy(c.to, c.from, size_t(c.valid));
        std::memset(c.to + c.valid, 0, size_t(c.bytes - c.valid));
        for (int i = 0; i < c.bytes; i += 4) {
            Word* w = word_at(c.to + i);
            if (w) w->pending = false, w->write_epoch = device().epoch, w->write_order = f.orders;
        }
    }
    f.copies.resize(kept);
}

// ---- operations of a whole warp -------------------------------------------------------------------------------------
inline void sync_warp(const char* site) {
    wait(AT_WARP, site, 0xffffffffu);
    me().orders++;
}
// Offers some words to the other lanes and waits for theirs; `offer_of` reads them until the next such operation.
inline unsigned offer(const void* words, size_t bytes, const char* site) {
    const unsigned turn = me().turn++ & 1;
    std::memcpy(me().offers[turn], words, bytes);
    wait(AT_WARP, site, 0xffffffffu);
    return turn;
}
inline const uint32_t* offer_of(unsigned other, unsigned turn) {
    return device().fibers[device().current / 32 * 32 + other]->offers[turn];
}
// ldmatrix.x4: lane i names the row i % 8 of matrix i / 8, of 16 bytes; register i of a lane gets words of matrix i.
inline void load_matrices(uint32_t (&to)[4], const void* row, bool turned, const char* site) {
    if (uintptr_t(row) % 16) return fail(std::string("a misaligned row of ldmatrix, at ") + site);
    const unsigned turn = offer(&row, sizeof row, site);
    for (unsigned i = 0; i < 4; i++) {
        const char* rows[8];
        for (unsigned r = 0; r < 8; r++) std::memcpy(&rows[r], offer_of(i * 8 + r, turn), sizeof(char*));
        const unsigned line = lane() / 4, pair = lane() % 4;
        for (unsigned h = 0; h < 2; h++) {
            const char* from = turned ? rows[2 * pair + h] + 2 * line : rows[line] + 4 * pair + 2 * h;
            note_read(from - uintptr_t(from) % 4, 4, site);
            std::memcpy(reinterpret_cast<char*>(&to[i]) + 2 * h, from, 2);
        }
    }
}
// cvt.rna.tf32.f32: 10 bits behind the point, halves away from zero.
inline uint32_t to_tf32(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}
inline double from_tf32(uint32_t bits) {   // the hardware does not look at the last 13 bits
    bits &= ~0x1fffu;
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}
template <class T> double half_of(uint32_t word, unsigned which) {
    T v;
    const uint16_t bits = uint16_t(word >> 16 * which);
    std::memcpy(&v, &bits, 2);
    if constexpr (std::is_same<T, __half>::value) return __half2float(v);
    else return __bfloat162float(v);
}
// To float as tensor cores do it: what does not fit is cut off.
inline float cut_off(double v) {
    const float f = float(v);
    return std::fabs(double(f)) > std::fabs(v) ? std::nextafterf(f, 0.0f) : f;
}
// mma.sync m16n8k8 (T = float: TF32) and m16n8k16 (T = __half, __nv_bfloat16), row.col, float sums. Whose registers
// hold which elements is as the PTX ISA has it ("Matrix Fragments for mma.m16n8k8" and "mma.m16n8k16").
template <class T> void multiply_tiles(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b, const char* site) {
    constexpr bool TF32 = std::is_same<T, float>::value;
    constexpr unsigned K = TF32 ? 8 : 16;
    device().products++;
    uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned turn = offer(words, sizeof words, site), group = lane() / 4, in_group = lane() % 4;
    // Element k of a line (a row of A, a column of B); its registers begin at `first`, `step` apart.
    const auto element = [&](unsigned line, unsigned k, unsigned first, unsigned step) {
        if constexpr (TF32) return from_tf32(offer_of(line * 4 + k % 4, turn)[first + k / 4 * step]);
        else return half_of<T>(offer_of(line * 4 + k % 8 / 2, turn)[first + k / 8 * step], k % 2);
    };
    for (unsigned i = 0; i < 4; i++) {
        double sum = c[i];
        for (unsigned k = 0; k < K; k++) sum += element(group, k, i / 2, 2) * element(in_group * 2 + i % 2, k, 4, 1);
        c[i] = cut_off(sum);
    }
}

}  // namespace emu

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
    d.schedule = unsigned(schedule), d.dry = dry, d.error.clear(), d.launches.clear(), d.products = 0;
}
__attribute__((visibility("default"))) void emu_capability(int capability) { emu::device().capability = capability; }
__attribute__((visibility("default"))) const char* emu_error() { return emu::device().error.c_str(); }
__attribute__((visibility("default"))) int64_t emu_products() { return emu::device().products / 32; }
__attribute__((visibility("default"))) int64_t emu_launches() { return int64_t(emu::device().launches.size()); }
__attribute__((visibility("default"))) const char* emu_launch(int64_t i, int64_t* numbers) {
    const emu::Launch& l = emu::device().launches[size_t(i)];
    numbers[0] = l.blocks, numbers[1] = l.threads, numbers[2] = l.shared;
    return l.kernel;
}
}
