// How a kernel is called: arrays of tensors and scalars, the C++ side of `cpu_op` in jseg/ops/cpu_library.py.
#pragma once
#include <cstdint>

namespace jseg {

struct Call {
    void* const* inputs;
    const int64_t* input_sizes;   // elements; 0 where None was passed
    int64_t input_count;
    void* const* outputs;
    const int64_t* output_sizes;
    int64_t output_count;
    const double* scalars;
    int64_t scalar_count;

    // null: absent
    template <class T> const T* in(int i) const { return i < input_count ? static_cast<const T*>(inputs[i]) : nullptr; }
    template <class T> T* out(int i) const { return static_cast<T*>(outputs[i]); }
    int64_t integer(int i) const { return static_cast<int64_t>(scalars[i]); }
    double real(int i) const { return scalars[i]; }
};

}  // namespace jseg

// Defines an exported kernel; its body sees `call`.
#define JSEG_KERNEL(name) extern "C" __attribute__((visibility("default"))) void name(const jseg::Call& call)
