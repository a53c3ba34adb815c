// One vector of floats as wide as the compile target allows, in GCC's vector extensions: AVX-512 16, AVX 8, else 4
// lanes. NaN goes in, NaN comes out, in every function here. Also: denormals off inside a scope, and scratch memory per
// thread.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace jseg {

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float V __attribute__((vector_size(VL * 4)));
typedef int32_t VI __attribute__((vector_size(VL * 4)));
typedef float VLoose __attribute__((vector_size(VL * 4), aligned(4), may_alias));

#define JSEG_INLINE static inline __attribute__((always_inline))

JSEG_INLINE V load(const float* p) { return *reinterpret_cast<const VLoose*>(p); }
JSEG_INLINE void store(float* p, V v) { *reinterpret_cast<VLoose*>(p) = v; }
JSEG_INLINE V splat(float s) { return s - V{}; }
JSEG_INLINE V pick(VI mask, V yes, V no) { return mask ? yes : no; }
// NaN of `a` survives. With AVX-512, GCC makes two instructions of the plain form.
#if defined(__AVX512F__)
JSEG_INLINE V vmax(V a, V b) { return (V)_mm512_max_ps((__m512)b, (__m512)a); }
JSEG_INLINE V vmin(V a, V b) { return (V)_mm512_min_ps((__m512)b, (__m512)a); }
#else
JSEG_INLINE V vmax(V a, V b) { return b > a ? b : a; }
JSEG_INLINE V vmin(V a, V b) { return b < a ? b : a; }
#endif
JSEG_INLINE V vabs(V x) { return (V)((VI)x & 0x7fffffff); }
JSEG_INLINE VI lane_index() {
    VI r;
    for (int i = 0; i < VL; i++) r[i] = i;
    return r;
}
// All bits set in the first n lanes.
JSEG_INLINE VI first_lanes(int n) { return lane_index() < (VI{} + n); }
JSEG_INLINE V keep_first(V v, int n) { return (V)((VI)v & first_lanes(n)); }
// The first n <= VL floats; the other lanes are zero. Touches no memory beyond.
JSEG_INLINE V load_part(const float* p, int n) {
    if (n >= VL) return load(p);
    V r{};
    std::memcpy(&r, p, n * sizeof(float));
    return r;
}
JSEG_INLINE void store_part(float* p, V v, int n) {
    if (n >= VL) store(p, v);
    else std::memcpy(p, &v, n * sizeof(float));
}
JSEG_INLINE float sum(V v) {
    float s[VL];
    std::memcpy(s, &v, sizeof s);
    for (int half = VL / 2; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}
JSEG_INLINE float largest(V v) {
    float m = v[0];
    for (int i = 1; i < VL; i++) m = (v[i] > m || v[i] != v[i]) ? v[i] : m;
    return m;
}

// e^clamped for values in -87.3 ... 88.8 in the form 2^n p: n stands in the low bits of `rounded` (taken as an
// integer).
JSEG_INLINE V exp_parts(V clamped, V& rounded) {
    const V shift = splat(12582912.0f);                       // 1.5 * 2^23: adding it rounds to an integer
    rounded = clamped * 1.44269504f + shift;
    V whole = rounded - shift;
    V r = clamped - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;                           // ln 2 in two parts
    V p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * (r * r) + r + 1.0f;
}
// e^x, relative error below 2e-7; below -87.3 it stays at 1.2e-38, so that no denormal appears; above 88.7 infinity.
JSEG_INLINE V vexp(V x) {
    V rounded, p = exp_parts(vmin(vmax(x, splat(-87.3f)), splat(88.8f)), rounded);
    VI n = (VI)rounded - 0x4b400000, half = n >> 1;           // 2^n in two factors: n reaches 128
    return p * (V)((half + 127) << 23) * (V)((n - half + 127) << 23);
}
// The same for x <= 0, where one factor will do.
JSEG_INLINE V vexp_falling(V x) {
    V rounded, p = exp_parts(vmax(x, splat(-87.3f)), rounded);
    return p * (V)(((VI)rounded << 23) + 0x3f800000);
}

// Normal distribution: `density` = exp(-x^2 / 2), returns Phi(x). Phi(-|x|) = density * polynomial(1 / (1 + 0.35 |x|)),
// fitted here to 3e-8 relative on |x| <= 14.
JSEG_INLINE V normal_cdf(V x, V& density) {
    V a = vmin(vabs(x), splat(14.0f));
    density = vexp_falling(a * a * -0.5f);
    V t = 1.0f / (1.0f + 0.35f * a);
    V p = splat(-2.804548245e-02f);
    p = p * t + 1.382573463e-01f;
    p = p * t - 2.429436092e-01f;
    p = p * t + 1.431013351e-01f;
    p = p * t - 1.059555763e-02f;
    p = p * t + 9.927772913e-02f;
    p = p * t + 1.218097462e-01f;
    p = p * t + 1.394775080e-01f;
    p = p * t + 1.396628580e-01f;
    p = p * t - 1.886851686e-06f;
    V tail = p * density;
    return x > 0.0f ? 1.0f - tail : tail;
}
// x Phi(x) = max(x, 0) - |x| Phi(-|x|), and Phi(-a) = polynomial(a)^8, fitted here to 4e-9 absolute on a <= 6 (beyond,
// a Phi(-a) stays at 6e-9): no exponential, no division, no select, and in float32 at most 2.4e-7 from the exact value,
// where a correctly rounded erf gives 4.5e-7.
JSEG_INLINE V gelu(V x) {
    V a = vmin(vabs(x), splat(6.0f));
    V p = splat(-2.958799428e-7f);
    p = p * a + 7.479527085e-6f;
    p = p * a - 6.025749462e-5f;
    p = p * a + 3.429463322e-5f;
    p = p * a + 1.504363026e-3f;
    p = p * a - 6.719562807e-4f;
    p = p * a - 3.192807734e-2f;
    p = p * a - 9.145741165e-2f;
    p = p * a + 9.170039892e-1f;
    p *= p;
    p *= p;
    p *= p;
    return vmax(x, V{}) - a * p;
}
// gelu(x) = x Phi(x) and its derivative Phi(x) + x * density / sqrt(2 pi) from one exponential.
JSEG_INLINE V gelu_with_slope(V x, V& slope) {
    V density, cdf = normal_cdf(x, density);
    slope = cdf + vmin(vmax(x, splat(-14.0f)), splat(14.0f)) * density * 0.39894228f;
    return x * cdf;
}
JSEG_INLINE V gelu_slope(V x) {
    V slope;
    gelu_with_slope(x, slope);
    return slope;
}

// While one lives, its thread flushes denormals to zero: sums of vanishing values run 100 times slower otherwise.
// Every parallel region of a kernel opens with one.
class NoDenormals {
#if defined(__x86_64__)
    unsigned saved_ = _mm_getcsr();
public:
    NoDenormals() { _mm_setcsr(saved_ | 0x8040); }
    ~NoDenormals() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
    uint64_t saved_;
public:
    NoDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
    }
    ~NoDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
public:
    NoDenormals() {}
    ~NoDenormals() {}
#endif
    NoDenormals(const NoDenormals&) = delete;
};

// Memory of this thread that only grows; 64-byte aligned. Its contents are undefined at each call, and one call gives
// one block: a kernel asks once and cuts the block up itself.
inline float* scratch(int64_t floats) {
    struct Block {
        float* data = nullptr;
        int64_t size = 0;
        ~Block() { std::free(data); }
    };
    static thread_local Block block;
    if (block.size < floats) {
        std::free(block.data);
        int64_t bytes = (floats * 4 + 4095) / 4096 * 4096;
        block.data = static_cast<float*>(std::aligned_alloc(64, bytes));
        block.size = block.data ? bytes / 4 : 0;
        if (!block.data) std::abort();
    }
    return block.data;
}

JSEG_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace jseg
