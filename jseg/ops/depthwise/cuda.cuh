// Depthwise convolution with optional bias and GELU on CUDA, forward and backward.
//
//   z[y][x] = bias + sum_{i,j} w[i][j] x[y sy + i dh - ph][x sx + j dw - pw]         y = z or gelu(z)
//   g = dy or dy gelu'(z);    dx[r][q] = sum over (y, x, i, j) that read (r, q) of w[i][j] g[y][x]
//   dw[i][j] = sum_{n,y,x} g[y][x] x[y sy + i dh - ph][x sx + j dw - pw];    db = sum_{n,y,x} g
//
// Layout: x (N, C, H, W), y and dy (N, C, H', W') of type T; w (C, kh kw), bias (C), dw, db float.
// One block (3x3 and 5x5, stride 1, "same" padding): a tile of 32 x 32 pixels (16 x 16 on small planes) of one plane;
// the tile and its halo go to shared memory once, a thread computes 4 pixels of a column from registers. Backward
// computes z and g on the tile and its halo again, so x and dy are read once and g is never stored; every tile's weight
// sums go to the workspace and are added in tile order. All other filters: a thread per pixel, a block per weight; with
// GELU, g is stored as float. Nothing is atomic: results repeat bit by bit.
#include "cuda_depthwise.cuh"

namespace {

jseg::DepthwiseShape depthwise_shape(const jseg::Call& call) {
    int v[12];
    for (int i = 0; i < 12; i++) v[i] = int(call.integer(2 + i));
    return {call.integer(0), call.integer(1),      v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10],
            v[11],           call.integer(14) != 0};
}

}  // namespace

// inputs x, w, bias or None; output y; integers: N C H W H' W' kh kw sy sx ph pw dh dw gelu
JSEG_CUDA_KERNEL(jseg_depthwise_forward) {
    if (work.measuring()) return;
    jseg::run_depthwise(depthwise_shape(call), call.in<T>(0), call.in<float>(1), call.in<float>(2), call.out<T>(0));
}

// inputs x, w, bias or None, dy; outputs dx, dw, db
JSEG_CUDA_KERNEL(jseg_depthwise_backward) {
    const jseg::DepthwiseShape s = depthwise_shape(call);
    float* scratch = jseg::take_depthwise_backward(s, work);
    if (work.measuring()) return;
    jseg::run_depthwise_backward(s, call.in<T>(0), call.in<float>(1), call.in<float>(2), call.in<T>(3), call.out<T>(0),
                                 call.out<float>(1), call.out<float>(2), scratch);
}
