"""MSCA's depthwise part in NumPy float64, forward and backward. See op.py for the meaning.

Weights travel by name: w0, b0 and, for strip pair i, row{i}, row_bias{i}, column{i}, column_bias{i}.
"""

from jseg.ops.depthwise import reference as depthwise


def forward(x, w0, b0, **strips):
    """x (N, C, H, W) -> (N, C, H, W)."""
    a = _same(x, w0, b0)
    y = a.copy()
    for row, row_bias, column, column_bias in _pairs(strips):
        y += _same(_same(a, row, row_bias), column, column_bias)
    return y


def backward(dout, x, w0, b0, **strips) -> dict:
    """Gradients of sum(dout * forward(...)) by input name."""
    a, da, grads = _same(x, w0, b0), dout.copy(), {}
    for i, (row, row_bias, column, column_bias) in enumerate(_pairs(strips)):
        back = _back(dout, _same(a, row, row_bias), column, column_bias)
        grads[f"column{i}"], grads[f"column_bias{i}"] = back["weight"], back["bias"]
        back = _back(back["x"], a, row, row_bias)
        grads[f"row{i}"], grads[f"row_bias{i}"] = back["weight"], back["bias"]
        da += back["x"]
    back = _back(da, x, w0, b0)
    return {"x": back["x"], "w0": back["weight"], "b0": back["bias"], **grads}


def _pairs(strips):
    for i in range(len(strips) // 4):
        yield strips[f"row{i}"], strips[f"row_bias{i}"], strips[f"column{i}"], strips[f"column_bias{i}"]


def _half(weight):
    return weight.shape[2] // 2, weight.shape[3] // 2


def _same(x, weight, bias):
    return depthwise.forward(x, weight, bias, padding=_half(weight))


def _back(dout, x, weight, bias):
    return depthwise.backward(dout, x, weight, bias, padding=_half(weight))
