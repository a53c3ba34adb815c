"""The ways of ops.conv: kept filters, accuracy in depth, the rule, the switch, and that models take them."""

import gc

import jittor as jt
import numpy as np
import pytest

from jseg import ops
from jseg.errors import KernelError
from jseg.layers import BatchNorm2d, Conv2d, conv_norm
from jseg.ops.conv import op
from jseg.ops.conv.reference import forward

pytestmark = pytest.mark.usefixtures("few_kernels")
RNG = np.random.default_rng(5)


def _values(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def _apart(got, wanted):
    """Largest difference as a share of the range of what is wanted."""
    return float(np.abs(np.asarray(got, np.float64) - wanted).max() / np.ptp(wanted))


@pytest.mark.parametrize("way", ["winograd2", "winograd4"])
def test_a_changed_weight_is_noticed_however_it_changed(way):
    layer, x = Conv2d(20, 12, 3, padding=1, bias=False), jt.array(_values(1, 20, 9, 33))

    def check():
        with jt.no_grad():
            got = ops.conv(x, layer.weight, padding=1, layer=layer, way=way).numpy()
        assert _apart(got, forward(x.numpy().astype(float), layer.weight.numpy().astype(float), padding=1)) < 2e-6

    check()
    check()
    layer.weight.update(jt.array(_values(12, 20, 3, 3)))
    check()
    layer.weight.data[3, 7, 1, 2] += 0.5  # in place, unseen by Jittor
    check()
    taps = layer.weight.numpy()
    layer.weight.assign(jt.array(np.ascontiguousarray(taps[:, ::-1])))  # the same values in another order
    check()


def test_kept_filters_belong_to_a_layer_and_go_with_it(monkeypatch):
    x, layers, closed = jt.array(_values(1, 8, 12, 12)), [Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2)], []
    address = op.kernel_address
    monkeypatch.setenv("JSEG_CONV", "winograd2")
    monkeypatch.setattr(op, "kernel_address", lambda symbol: closed.append(symbol) or address(symbol))
    with jt.no_grad():
        both = [layer(x).numpy() for layer in layers * 2]
    assert np.array_equal(both[0], both[2]) and np.array_equal(both[1], both[3]) and _apart(both[0], both[1]) > 0.1
    assert closed == ["jseg_conv_open", "jseg_conv_close"] * 2  # once for each layer
    number = op._numbers[layers[0]]
    before = len(op._numbers)
    del layers
    gc.collect()
    assert len(op._numbers) == before - 2 and number not in op._numbers.values()


@pytest.mark.parametrize("channels", [64, 1024])
def test_errors_stay_small_in_depth(channels):
    x, weight = _values(1, channels, 16, 16), _values(16, channels, 3, 3) / (3 * channels**0.5)
    wanted = forward(x.astype(float), weight.astype(float), padding=1)
    with jt.no_grad():
        errors = {way: _apart(ops.conv(jt.array(x), jt.array(weight), padding=1, way=way).numpy(), wanted)
                  for way in ("plain", "product", "winograd2", "winograd4")}
    assert errors["winograd2"] < 2e-6 and errors["winograd4"] < 4e-6, errors
    assert max(errors["plain"], errors["product"]) < 2e-6, errors


def test_norm_residual_and_relu_join_the_convolution():
    x, residual = jt.array(_values(2, 12, 10, 21)), jt.array(_values(2, 16, 10, 21))
    for options in (dict(kernel_size=3, padding=1), dict(kernel_size=1), dict(kernel_size=3, padding=2, dilation=2),
                    dict(kernel_size=5, padding=2, groups=4)):
        conv, norm = Conv2d(12, 16, **options), BatchNorm2d(16)
        norm.running_mean.update(jt.array(_values(16)))
        norm.running_var.update(jt.array(_values(16)**2 + 0.5))
        norm.weight.update(jt.array(_values(16)))
        norm.eval()
        for activation in (None, "relu", "gelu"):
            with jt.no_grad():
                fused = conv_norm(x, conv, norm, activation=activation, residual=residual).numpy()
                with ops.use("jittor"):
                    plain = conv_norm(x, conv, norm, activation=activation, residual=residual).numpy()
            assert _apart(fused, plain) < 5e-6, (options, activation)


def test_the_environment_switches_it_off(monkeypatch):
    ways = []
    monkeypatch.setattr(op, "cpu_op", lambda symbol, inputs, outputs, scalars: ways.append(scalars[17]) or [inputs[0]])
    x, layer = jt.array(_values(1, 64, 32, 32)), Conv2d(64, 64, 3, padding=1, bias=False)

    def went():
        ways.clear()
        with jt.no_grad():
            layer(x)
        return ways[0] if ways else "plain"

    assert went() == 4
    for word, code in (("winograd2", 2), ("product", 0), ("plain", "plain"), ("auto", 4)):
        monkeypatch.setenv("JSEG_CONV", word)
        assert went() == code
    monkeypatch.setenv("JSEG_CONV", "fft")
    with pytest.raises(KernelError, match="the environment says JSEG_CONV = 'fft'; accepted are auto, winograd4"):
        went()
    monkeypatch.setenv("JSEG_CONV", "winograd4")
    layer = Conv2d(64, 64, 5, stride=2, bias=False)
    assert went() == 0  # where there are no tiles, the rule goes on
    monkeypatch.delenv("JSEG_CONV")
    with ops.use("jittor"):
        assert went() == "plain"
    layer(x)
    assert went() == 0 and ways == [0]  # with gradients: not at all


def test_the_rule_follows_the_measurements():
    def chosen(c, d, side, kernel=3, stride=1, dilation=1, groups=1):
        size = -(-side // stride)
        return op.choose_way((1, c, side, side), (d, c // groups, kernel, kernel), (size, size),
                             stride=(stride, stride), dilation=(dilation, dilation), groups=groups)

    assert {chosen(64, 64, 128), chosen(18, 18, 128), chosen(256, 256, 64, dilation=2),
            chosen(512, 512, 64, dilation=4), chosen(2048, 512, 64)} == {"winograd4"}
    assert chosen(256, 256, 8) == "winograd2"  # four tiles of 4x4 would leave most of a vector empty
    assert chosen(256, 256, 64, dilation=24) == "plain"  # tiles of lattices that are hardly larger than they
    assert {chosen(3, 64, 512, kernel=7, stride=2), chosen(64, 128, 128, stride=2), chosen(1024, 256, 64, kernel=1),
            chosen(128, 128, 64, groups=32)} == {"product"}
    assert chosen(128, 128, 64, kernel=5) == "plain"


def test_arguments_that_do_not_fit_are_refused():
    x, weight = jt.array(_values(1, 4, 8, 8)), jt.array(_values(6, 4, 3, 3))
    for message, options in ((r"weight is \(6, 4, 3, 3\), expected \(any, 2, any, any\)", dict(groups=2)),
                             (r"bias is \(4,\), expected \(6\)", dict(bias=jt.array(_values(4)))),
                             (r"residual is \(1, 6, 8, 8\), expected \(1, 6, 6, 6\)",
                              dict(residual=jt.array(_values(1, 6, 8, 8)))),
                             ("there is no output", dict(dilation=4)), ("groups is 3", dict(groups=3)),
                             ("activation is 'gelu'", dict(activation="gelu")), ("way is 'fast'", dict(way="fast")),
                             ("way is 'winograd4', but filters are 3x3, stride", dict(way="winograd4", stride=2))):
        with jt.no_grad(), pytest.raises(KernelError, match=message):
            ops.conv(x, weight, **options)
