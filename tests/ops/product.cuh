// A product C = A B by cuda_gemm.cuh alone, for tests: A and B by rows or by columns, C by rows.
// inputs A, B of type T, then the same A as float; output C (m, n) of type T;
// integers: batches m n k, A by rows, B by rows, whether to take the float A, splits (C then float)
#include "cuda_gemm.cuh"

JSEG_CUDA_KERNEL(jseg_product) {
    using namespace jseg;
    const int64_t batches = call.integer(0), m = call.integer(1), n = call.integer(2), k = call.integer(3),
                  splits = call.integer(7);
    const GemmSize size{batches, m, n, k, splits, ceil_div(ceil_div(k, splits), 32) * 32};
    float* parts = work.take<float>(splits > 1 ? reduction_floats(size) : 0);
    if (work.measuring()) return;
    T* out = call.out<T>(0);
    const auto run = [&](auto a, auto b) {
        run_gemm(size, a, b, Store<T>{rows_of(out, m * n, n), nullptr, false, false});
    };
    const auto a_rows = rows_of(call.in<T>(0), m * k, k);
    const auto a_columns = columns_of(call.in<T>(0), m * k, m);
    const auto b_rows = rows_of(call.in<T>(1), k * n, n);
    const auto b_columns = columns_of(call.in<T>(1), k * n, k);
    if (splits > 1) run_reduction(size, a_columns, b_rows, false, false, parts, reinterpret_cast<float*>(out));
    else if (call.integer(6)) run(rows_of(call.in<float>(2), m * k, k), b_rows);
    else if (call.integer(4) && call.integer(5)) run(a_rows, b_rows);
    else if (call.integer(4)) run(a_rows, b_columns);
    else if (call.integer(5)) run(a_columns, b_rows);
    else run(a_columns, b_columns);
}
