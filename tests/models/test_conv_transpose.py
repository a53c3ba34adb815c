"""The transposed convolution against its definition, in NumPy."""

import jittor as jt
import numpy as np
import pytest

from jseg.layers.conv_transpose import ConvTranspose2d


@pytest.mark.parametrize(("kernel", "stride", "padding", "more"),
                         [(3, 2, 1, 1), (4, 2, 1, 0), (2, 2, 0, 0), (3, 1, 1, 0), (5, 3, 0, 2), (3, 2, 2, 0),
                          (1, 2, 0, 1)])
def test_values_and_gradients(kernel, stride, padding, more, rng):
    layer = ConvTranspose2d(3, 2, kernel, stride=stride, padding=padding, output_padding=more)
    layer.bias.assign(jt.array(rng.standard_normal(2).astype(np.float32)))
    x, weight = rng.standard_normal((2, 3, 4, 5)).astype(np.float32), layer.weight.numpy().astype(np.float64)
    full = np.zeros((2, 2, 3 * stride + kernel + more + stride, 4 * stride + kernel + more + stride))
    for i, j in np.ndindex(4, 5):
        full[:, :, i * stride:i * stride + kernel, j * stride:j * stride + kernel] += np.einsum(
            "nc,cdhw->ndhw", x[:, :, i, j], weight)
    height, width = (3 * stride - 2 * padding + kernel + more, 4 * stride - 2 * padding + kernel + more)
    expected = full[:, :, padding:padding + height, padding:padding + width] + layer.bias.numpy()[None, :, None, None]
    given = jt.array(x)
    found = layer(given)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    push = rng.standard_normal(expected.shape)
    gradients = jt.grad((found * jt.array(push.astype(np.float32))).sum(), [given, layer.weight, layer.bias])
    spread = np.zeros_like(full)
    spread[:, :, padding:padding + height, padding:padding + width] = push
    dx, dw = np.zeros(x.shape), np.zeros(weight.shape)
    for i, j in np.ndindex(4, 5):
        part = spread[:, :, i * stride:i * stride + kernel, j * stride:j * stride + kernel]
        dx[:, :, i, j] = np.einsum("ndhw,cdhw->nc", part, weight)
        dw += np.einsum("ndhw,nc->cdhw", part, x[:, :, i, j])
    for value, reference in zip(gradients, (dx, dw, push.sum((0, 2, 3)))):
        np.testing.assert_allclose(value.numpy(), reference, atol=1e-4)


def test_mistakes():
    with pytest.raises(ValueError, match="output_padding 2 below stride"):
        ConvTranspose2d(3, 2, 3, stride=2, output_padding=2)
