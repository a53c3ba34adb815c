// Transformed filters that outlive a call. A layer has a number; what is kept under it goes with the layer. Every call
// compares a checksum of all weights, so a changed weight is noticed however it was changed.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "vec.h"

namespace jseg {

// Of `count` values' bits; the order counts, the number of threads does not.
inline uint64_t checksum(const float* values, int64_t count) {
    constexpr int64_t RUN = 16384;
    uint64_t total = uint64_t(count);
    const int64_t runs = (count + RUN - 1) / RUN;
#pragma omp parallel for schedule(static) reduction(+ : total) if (runs > 4)
    for (int64_t r = 0; r < runs; r++) {
        VI a{}, b{};
        const int64_t end = r * RUN + RUN < count ? r * RUN + RUN : count;
        for (int64_t i = r * RUN; i < end; i += VL) {
            const V v = load_part(values + i, int(end - i < VL ? end - i : VL));
            a = ((a << 5) | ((a >> 27) & 31)) + (VI)v;
            b += a ^ (VI)v;
        }
        uint64_t sum = 0;
        for (int lane = 0; lane < VL; lane++)
            sum = (sum ^ uint32_t(a[lane]) ^ uint64_t(uint32_t(b[lane])) << 32) * 0x9e3779b97f4a7c15ull;
        total += (sum ^ sum >> 29) * (2 * uint64_t(r) + 1);
    }
    return total;
}

struct Filters {
    uint64_t mark = 0;
    int form = 0;   // how they are transformed; 0: nothing is here
    int64_t size = 0;
    std::unique_ptr<float, void (*)(void*)> data{nullptr, std::free};

    float* room(int64_t floats) {
        if (size != floats) {
            data.reset();
            data.reset(static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 4095) / 4096 * 4096)));
            if (!data) std::abort();
            size = floats;
        }
        return data.get();
    }
};

class KeptFilters {   // of all layers
    std::mutex lock_;
    std::map<int64_t, std::shared_ptr<Filters>> of_layer_;

public:
    static KeptFilters& all() {
        static KeptFilters* kept = new KeptFilters;   // never destroyed: layers may go later than static objects
        return *kept;
    }
    void open(int64_t layer) {
        std::lock_guard<std::mutex> hold(lock_);
        of_layer_[layer] = std::make_shared<Filters>();
    }
    void close(int64_t layer) {
        std::lock_guard<std::mutex> hold(lock_);
        of_layer_.erase(layer);
    }
    // null where the layer is unknown, or gone
    std::shared_ptr<Filters> find(int64_t layer) {
        std::lock_guard<std::mutex> hold(lock_);
        const auto found = of_layer_.find(layer);
        return found == of_layer_.end() ? nullptr : found->second;
    }
};

}  // namespace jseg
