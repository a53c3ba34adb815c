"""attention, linear and layer_norm: argument checks, masked rows, masks of windows."""

import jittor as jt
import numpy as np
import pytest

from jseg.errors import KernelError
from jseg.ops import attention, layer_norm, linear

IMPLS = ("jittor", "cpu")


def _random(*shape):
    return jt.array(np.random.default_rng(5).standard_normal(shape).astype(np.float32))


def test_arguments_that_do_not_fit_are_named():
    q, k = _random(4, 5, 2, 8), _random(4, 7, 2, 8)
    for arguments, message in (
            ((q,), r"attention: q \(no k and v are given\) is \(4, 5, 2, 8\), expected \(any, any, 3, any, any\)"),
            ((q, k), r"attention: k \(no v is given\) is \(4, 7, 2, 8\), expected \(4, any, 2, 2, 8\)"),
            ((q, None, k), "attention: v is given without k"),
            ((q, k, _random(4, 6, 2, 8)), r"attention: v is \(4, 6, 2, 8\), expected \(4, 7, 2, any\)")):
        with pytest.raises(KernelError, match=message):
            attention(*arguments)
    for name, shape, message in (
            ("bias", (2, 7, 5), r"attention: bias is \(2, 7, 5\), expected \(2, 5, 7\)"),
            ("bias", (1, 2, 5, 7), r"attention: bias is \(1, 2, 5, 7\), expected \(4, 2, 5, 7\)"),
            ("mask", (2, 2, 7), r"attention: mask is \(2, 2, 7\), expected \(any, 5, 7\)"),
            ("mask", (3, 1, 7), r"attention: mask is \(3, 1, 7\): 3 masks do not divide 4 pictures")):
        with pytest.raises(KernelError, match=message):
            attention(q, k, k, **{name: _random(*shape)})


@pytest.mark.parametrize("impl", IMPLS)
def test_a_query_without_keys_gets_zeros_and_no_gradient(impl):
    q, k, v = _random(1, 20, 1, 8), _random(1, 30, 1, 8), _random(1, 30, 1, 8)
    mask = np.zeros((1, 20, 30), np.float32)
    mask[:, 3::4] = -np.inf
    y = attention(q, k, v, mask=jt.array(mask), impl=impl)
    dq, dk, dv = (g.numpy() for g in jt.grad((y * _random(*y.shape)).sum(), [q, k, v]))
    assert np.abs(y.numpy()[:, 3::4]).max() == 0 and np.abs(dq[:, 3::4]).max() < 1e-30
    assert np.abs(y.numpy()[:, ::4]).min() > 0 and np.isfinite(dk).all() and np.isfinite(dv).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_the_lowest_number_is_no_infinity(impl):
    """Where every key has float32's lowest number added, all weigh the same."""
    q, k, v = _random(1, 3, 1, 8), _random(1, 30, 1, 8), _random(1, 30, 1, 8)
    mask = jt.array(np.full((1, 3, 30), np.finfo(np.float32).min, np.float32))
    y = attention(q, k, v, mask=mask, impl=impl).numpy()
    assert np.abs(y - v.numpy().mean(1, keepdims=True)).max() < 1e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_the_mask_has_no_gradient_and_a_picture_takes_its_own(impl):
    q, mask = _random(6, 5, 3, 2, 4), _random(3, 5, 5)
    y = attention(q, mask=mask, impl=impl)
    one = attention(q[4:5], mask=mask[1:2], impl=impl)
    assert np.array_equal(y.numpy()[4:5], one.numpy())
    assert np.abs(jt.grad(y.sum(), mask).numpy()).max() == 0


def test_tokens_that_do_not_fit_are_named():
    x = _random(2, 5, 8)
    for run, message in (
            (lambda: linear(x, _random(4, 7)), r"linear: weight is \(4, 7\), expected \(any, 8\)"),
            (lambda: linear(x, _random(4, 8), _random(8)), r"linear: bias is \(8,\), expected \(4\)"),
            (lambda: linear(x, _random(4, 8), shortcut=x), r"linear: shortcut is \(2, 5, 8\), expected \(2, 5, 4\)"),
            (lambda: linear(x, _random(8, 8), activation="relu"), "activation is 'relu'; accepted: None, 'gelu'"),
            (lambda: linear(x, _random(8, 8), activation="gelu", shortcut=x), "activation does not go together"),
            (lambda: layer_norm(x, _random(5), _random(8)), r"layer_norm: weight is \(5,\), expected \(8\)"),
            (lambda: layer_norm(_random(8), _random(8), _random(8)), r"layer_norm: x is \(8,\); accepted")):
        with pytest.raises(KernelError, match=message):
            run()
