"""Optimizers, parameter groups and schedules give PyTorch's and MMEngine's numbers (optim_golden.json)."""

import json
import pathlib

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jseg.engine.optim import EMA, SGD, Adam, AdamW, ParamGroup, build_optimizer, param_groups
from jseg.engine.schedules import LearningRate, build_schedules
from jseg.errors import ConfigError
from jseg.layers import BatchNorm2d, Conv2d, GroupNorm, LayerNorm

GOLDEN = json.loads(pathlib.Path(__file__).with_name("optim_golden.json").read_text())
START = [[0.5, -1.0, 2.0], [0.25, -0.125, 4.0, 1.5]]


def gradients(step):
    """The same simple gradients as in make_optim_golden.py: exact in float32."""
    return [[(step + 1) * 0.125, -0.5, 0.25 * (step % 3)], [1.0, 0.0, -2.0 / (step + 1), 0.0625]]


class Net(nn.Module):
    """The toy of make_optim_golden.py under the same parameter names."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(Conv2d(3, 4, 1), BatchNorm2d(4), Conv2d(4, 4, 3, groups=4))
        self.decode_head = nn.Sequential(Conv2d(4, 4, 1), GroupNorm(2, 4))
        self.norm1 = LayerNorm(4)
        self.scale = jt.ones(4)


def two_groups(case):
    lr, decay = case["options"]["lr"], case["options"].get("weight_decay", 0.01 if case["kind"] == "AdamW" else 0.0)
    params = [jt.array(np.array(v, np.float32)) for v in START]
    groups = [ParamGroup(lr, decay, ["a"], params[:1]), ParamGroup(lr * 10, 0.0, ["b"], params[1:])]
    for group in groups:
        group.lay_out()
    optimizer = {"Adam": Adam, "AdamW": AdamW, "SGD": SGD}[case["kind"]](groups, **{"lr": lr, **case["options"]})
    return params, optimizer


def give(optimizer, params, step, share=1.0):
    optimizer.accumulate(sum((p * jt.array(np.array(g, np.float32))).sum()
                             for p, g in zip(params, gradients(step))) * share)


@pytest.mark.parametrize("case", GOLDEN["optimizers"], ids=lambda c: f"{c['kind']}-{len(c['options'])}-{c['max_norm']}")
def test_optimizers_follow_torch(case):
    params, optimizer = two_groups(case)
    for step, expected in enumerate(case["weights"]):
        give(optimizer, params, step)
        norm = optimizer.step(optimizer.lrs, max_norm=case["max_norm"])
        got = np.concatenate([p.numpy() for p in params])
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-7, err_msg=f"step {step}")
        if case["norms"]:
            np.testing.assert_allclose(float(norm.item()), case["norms"][step], rtol=1e-6)


def test_adamw_follows_float64_reference(rng):
    """200 random steps with changing rates against the paper's formulas in float64."""
    start = rng.standard_normal((7, 5)).astype(np.float32)
    w, m, v = start.astype(np.float64), np.zeros((7, 5)), np.zeros((7, 5))
    param = jt.array(start)
    group = ParamGroup(1e-2, 0.1, ["w"], [param])
    group.lay_out()
    optimizer = AdamW([group])
    for t in range(1, 201):
        g, lr = rng.standard_normal((7, 5)).astype(np.float32), 1e-2 * t / 200
        optimizer.accumulate((param * jt.array(g)).sum())
        optimizer.step([lr])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.astype(np.float64) ** 2
        w = w * (1 - lr * 0.1) - lr * (m / (1 - 0.9 ** t)) / (np.sqrt(v / (1 - 0.999 ** t)) + 1e-8)
    np.testing.assert_allclose(param.numpy(), w, atol=3e-6)


def test_accumulated_halves_equal_one_whole():
    case = GOLDEN["optimizers"][0]
    params, optimizer = two_groups(case)
    for step, expected in enumerate(case["weights"]):
        give(optimizer, params, step, 0.25)
        give(optimizer, params, step, 0.75)
        optimizer.step(optimizer.lrs)
    np.testing.assert_allclose(np.concatenate([p.numpy() for p in params]), expected, rtol=1e-5, atol=1e-6)


def test_state_round_trip_is_exact_even_with_an_open_sum():
    case = GOLDEN["optimizers"][0]
    params, optimizer = two_groups(case)
    for step in range(3):
        give(optimizer, params, step)
        optimizer.step(optimizer.lrs)
    give(optimizer, params, 3)
    state = optimizer.state_dict()
    assert state["exp_avg.a"].shape == (3,) and "grad.b" in state
    others, twin = two_groups(case)
    for param, other in zip(params, others):
        other.update(jt.array(param.numpy()))
    twin.load_state_dict(state, optimizer.steps)
    for o in (optimizer, twin):
        o.step(o.lrs)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(params, others))


def test_memory_and_kernels_stay_flat():
    net = Net()
    optimizer = build_optimizer(net, {"type": "AdamW", "lr": 1e-3})
    alive = []
    for step in range(12):
        optimizer.accumulate(sum((p * p).sum() for group in optimizer.groups for p in group.params))
        optimizer.step([1e-3 * step] * len(optimizer.groups), max_norm=1.0)
        jt.sync_all(True)
        alive.append((jt.number_of_lived_vars(), jt.number_of_lived_ops()))
    assert alive[2] == alive[-1], alive


def test_ema_follows_mmengine():
    case = GOLDEN["optimizers"][2]
    params, optimizer = two_groups(case)
    ema, expected = EMA(optimizer, decay=0.75), None
    for step in range(5):
        give(optimizer, params, step)
        optimizer.step(optimizer.lrs)
        ema.update()
        now = np.concatenate([p.numpy() for p in params]).astype(np.float64)
        expected = now if expected is None else expected + 0.25 * (now - expected)
    optimizer.put(ema.weights)
    np.testing.assert_allclose(np.concatenate([p.numpy() for p in params]), expected, rtol=1e-6)
    before = now.astype(np.float32)
    optimizer.put(optimizer.weights)
    assert np.array_equal(np.concatenate([p.numpy() for p in params]), before)


@pytest.mark.parametrize("case", GOLDEN["groups"], ids=range(len(GOLDEN["groups"])))
def test_groups_follow_mmengine(case):
    groups = param_groups(Net(), lr=0.01, weight_decay=0.1, paramwise_cfg=case["paramwise"])
    got = {name: [g.lr, g.weight_decay] for g in groups for name in g.names}
    assert set(got) == set(case["groups"])
    for name, pair in case["groups"].items():
        assert got[name] == pytest.approx(pair), name


@pytest.mark.parametrize("case", GOLDEN["schedules"], ids=lambda c: c["name"])
def test_schedules_follow_mmengine(case):
    rates = LearningRate(build_schedules(case["blocks"]), [0.01, 0.1], case["iters"], case["epoch_length"])
    got = [rates.at(i) for i in range(case["iters"])]
    np.testing.assert_allclose(got, case["rates"], rtol=1e-10, atol=1e-15)
    fresh = LearningRate(build_schedules(case["blocks"]), [0.01, 0.1], case["iters"], case["epoch_length"])
    assert fresh.at(17) == got[17] and fresh.at(3) == got[3]  # a resumed run, and going back


def test_a_schedule_of_the_backbone_alone():
    """EoMT's two warm-ups: the backbone waits until the others are warm."""
    blocks = [{"type": "LinearLR", "part": "others", "start_factor": 0.1, "by_epoch": False, "end": 10},
              {"type": "ConstantLR", "part": "backbone", "factor": 1e-9, "by_epoch": False, "end": 10},
              {"type": "LinearLR", "part": "backbone", "start_factor": 0.1, "by_epoch": False, "begin": 10, "end": 20},
              {"type": "PolyLR", "part": "others", "by_epoch": False, "begin": 10, "end": 30}]
    rates = LearningRate(build_schedules(blocks), [1.0, 2.0], 30, 30, ["backbone"])
    assert rates.at(5) == pytest.approx([1e-9, 1.2]) and rates.at(10) == pytest.approx([0.1, 2.0])
    assert rates.at(19) == pytest.approx([1.0, 2.0 * 10 / 19]) and rates.at(29) == pytest.approx([1.0, 0.0])
    model = nn.Module()
    model.backbone, model.head = nn.Linear(2, 3), nn.Linear(2, 2)
    groups = param_groups(model, lr=1.0, by_part=True)
    assert {group.part: sorted(group.names) for group in groups} == {
        "backbone": ["backbone.bias", "backbone.weight"], "others": ["head.bias", "head.weight"]}
    with pytest.raises(ConfigError, match=r"param_scheduler\[0\].part: got 'neck', expected backbone or others"):
        build_schedules([{"type": "PolyLR", "part": "neck"}])


def test_open_end_is_the_end_of_the_run():
    rates = LearningRate(build_schedules([{"type": "PolyLR", "by_epoch": False}]), [1.0], 11, 5)
    assert rates.at(10) == [0.0] and rates.at(5)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("cfg, paramwise, text", [
    ({"type": "AdamWW"}, None, "did you mean 'AdamW'"),
    ({"type": "AdamW", "beta": [0.9, 0.99]}, None, "unknown key 'beta' for AdamW"),
    ({"type": "AdamW", "lr": -1.0}, None, "lr >= 0"),
    ({"type": "SGD", "nesterov": True}, None, "nesterov needs momentum"),
    ({"type": "SGD"}, {"custom_key": {}}, "did you mean 'custom_keys'"),
    ({"type": "SGD"}, {"custom_keys": {"norm": {"decay": 0.0}}}, "custom_keys.norm.decay: unknown key 'decay'"),
])
def test_optimizer_errors_say_what_to_do(cfg, paramwise, text):
    with pytest.raises(ConfigError, match=text):
        build_optimizer(Net(), cfg, paramwise)


@pytest.mark.parametrize("block, text", [
    ({"type": "PolyLr"}, "did you mean 'PolyLR'"), ({"type": "LinearLR", "begin": 5, "end": 5}, "begin < end"),
    ({"type": "LinearLR", "start_factor": 0}, "0 < start_factor"), ({"type": "StepLR"}, "needs 'step_size'"),
])
def test_schedule_errors_name_the_entry(block, text):
    with pytest.raises(ConfigError, match=rf"param_scheduler\[0\].*{text}"):
        build_schedules([block])
