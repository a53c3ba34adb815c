// Convolution on the CPU, for inference:  Y = activation(scale (W * X) + shift + residual), by Winograd's way
// (winograd.h) or as an implicit matrix product (taps.h).
#include "call.h"
#include "kept.h"
#include "taps.h"
#include "winograd.h"

using namespace jseg;

namespace {

template <int OUT>
void by_tiles(const Shape& shape, const float* x, const float* weight, const Ending& end, int64_t layer) {
    const std::shared_ptr<Filters> kept = KeptFilters::all().find(layer);
    const int64_t size = filters_size<OUT>(shape.d, shape.c);
    const Winograd<OUT> way(shape, x, end);
    float *memory = scratch(round_up(way.memory_size(), 16) + (kept ? 0 : size)), *filters;
    if (kept) {
        const uint64_t mark = checksum(weight, shape.d * shape.c * 9);
        const bool known = kept->form == OUT && kept->size == size && kept->mark == mark;
        filters = kept->room(size);
        if (!known) transform_filters<OUT>(shape.d, shape.c, weight, filters);
        kept->form = OUT, kept->mark = mark;
    } else {
        filters = memory + round_up(way.memory_size(), 16);
        transform_filters<OUT>(shape.d, shape.c, weight, filters);
    }
    way.run(filters, memory);
}

// 1x1 filters at every pixel. T: what the factors are rounded to.
template <class T>
void by_pixels(const Shape& s, const float* x, const float* weight, const Ending& end) {
    const int64_t pixels = s.height * s.width, rows = round_up(packed_rows_size(s.d, s.c), 16);
    float* packed = scratch(rows + omp_get_max_threads() * panels_size(s.c));
    pack_rows<T>(s.d, s.c, weight, s.c, 1, packed);
    image_product<T>(s.images, s.d, s.c, pixels, packed, {x, s.c * pixels, pixels}, packed + rows,
                     [&s, end, pixels](int64_t image, int64_t row, int64_t p, int64_t count, V sums)
                         __attribute__((always_inline)) {
                             end.put((image * s.d + row) * pixels + p, sums * end.factor(row) + end.offset(row),
                                     count);
                         });
}

}  // namespace

// in: x (N, C, H, W), weight (D, C / groups, KH, KW), scale, shift (D), residual, each or absent; out: y, as residual;
// integers: the fields of Shape in their order, relu, way (0 product, 2 and 4 Winograd's tiles), layer (0: none), bf16
JSEG_KERNEL(jseg_conv_forward) {
    int64_t s[16];
    for (int i = 0; i < 16; i++) s[i] = call.integer(i);
    const Shape shape{s[0], s[1], s[2],  s[3],  s[4],  s[5],  s[6],  s[7],
                      s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15]};
    const Ending end{call.in<float>(2), call.in<float>(3), call.in<float>(4), call.integer(16) != 0,
                     call.out<float>(0)};
    const float *x = call.in<float>(0), *weight = call.in<float>(1);
    const int64_t way = call.integer(17), layer = call.integer(18);
    if (way == 2) by_tiles<2>(shape, x, weight, end, layer);
    else if (way == 4) by_tiles<4>(shape, x, weight, end, layer);
    else if (shape.kernel_h * shape.kernel_w * shape.stride_h * shape.stride_w * shape.groups == 1 &&
             shape.pad_h + shape.pad_w == 0) {
        if (call.integer(19)) by_pixels<BFloat16>(shape, x, weight, end);
        else by_pixels<Float32>(shape, x, weight, end);
    } else {
        const TapProduct product(shape, x, end);
        product.run(weight, scratch(product.memory_size()));
    }
}

// From now on transformed filters are kept for this layer; and no longer.
extern "C" {
__attribute__((visibility("default"))) void jseg_conv_open(int64_t layer) { KeptFilters::all().open(layer); }
__attribute__((visibility("default"))) void jseg_conv_close(int64_t layer) { KeptFilters::all().close(layer); }
}
