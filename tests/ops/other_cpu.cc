// Calls the CPU kernels for a process of another machine's kind: reads calls from standard input, answers on standard
// output (other_cpu.py holds the other end). Linked with the kernels' objects, exported to dlsym. Around a tensor lie
// guard bytes, and one that has changed after a call ends the program.
#include <dlfcn.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#include "call.h"

namespace {

constexpr size_t GUARD = 4096;
constexpr unsigned char MARK = 0xa5;

void read_exactly(void* to, size_t bytes) {
    if (bytes && std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);   // the other end has closed
}

int64_t read_number() {
    int64_t number;
    read_exactly(&number, sizeof number);
    return number;
}

// One tensor between its guards, aligned as Jittor's are.
struct Tensor {
    int64_t elements = read_number(), bytes = read_number();   // bytes < 0: absent
    unsigned char* memory = nullptr;

    Tensor() {
        if (bytes < 0) return;
        memory = static_cast<unsigned char*>(std::aligned_alloc(64, (bytes + 2 * GUARD + 63) / 64 * 64));
        if (!memory) std::abort();
        std::memset(memory, MARK, bytes + 2 * GUARD);
    }
    void* data() const { return memory ? memory + GUARD : nullptr; }
    bool intact() const {
        for (size_t i = 0; memory && i < GUARD; i++)
            if (memory[i] != MARK || memory[GUARD + bytes + i] != MARK) return false;
        return true;
    }
};

std::vector<void*> addresses(const std::vector<Tensor>& tensors) {
    std::vector<void*> found;
    for (const Tensor& tensor : tensors) found.push_back(tensor.data());
    return found;
}

std::vector<int64_t> sizes(const std::vector<Tensor>& tensors) {
    std::vector<int64_t> found;
    for (const Tensor& tensor : tensors) found.push_back(tensor.memory ? tensor.elements : 0);
    return found;
}

void call_kernel(void* kernel) {
    std::vector<Tensor> inputs(read_number());
    for (const Tensor& tensor : inputs)
        if (tensor.memory) read_exactly(tensor.data(), tensor.bytes);
    std::vector<Tensor> outputs(read_number());
    std::vector<double> scalars(read_number());
    read_exactly(scalars.data(), scalars.size() * sizeof(double));
    const auto in = addresses(inputs), out = addresses(outputs);
    const auto in_sizes = sizes(inputs), out_sizes = sizes(outputs);
    const jseg::Call call{in.data(), in_sizes.data(), int64_t(in.size()), out.data(), out_sizes.data(),
                          int64_t(out.size()), scalars.data(), int64_t(scalars.size())};
    reinterpret_cast<void (*)(const jseg::Call&)>(kernel)(call);
    int64_t status = 0;
    for (const auto* tensors : {&inputs, &outputs})
        for (const Tensor& tensor : *tensors)
            if (!tensor.intact()) status = 2;
    std::fwrite(&status, sizeof status, 1, stdout);
    for (const Tensor& tensor : outputs) std::fwrite(tensor.data(), 1, tensor.bytes, stdout);
    for (auto* tensors : {&inputs, &outputs})
        for (Tensor& tensor : *tensors) std::free(tensor.memory);
}

}  // namespace

int main() {
    for (;;) {
        const int64_t kind = read_number();   // 0: a Call, 1: one number
        std::string symbol(read_number(), ' ');
        read_exactly(&symbol[0], symbol.size());
        void* function = dlsym(RTLD_DEFAULT, symbol.c_str());
        if (!function) {
            std::fprintf(stderr, "no function %s\n", symbol.c_str());
            return 1;
        }
        if (kind == 0) call_kernel(function);
        else reinterpret_cast<void (*)(int64_t)>(function)(read_number());
        std::fflush(stdout);
    }
}
