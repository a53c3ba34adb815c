// Part of cuda_emu.h: what the threads of a warp do together (shuffles, tensor cores), shared memory that is watched,
// and asynchronous copies to it.
#pragma once

namespace emu {

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
