"""Initial values of parameters.

They are drawn from NumPy's global generator, which `jt.set_global_seed(seed)` seeds: the same seed gives the same
weights whatever the device, and building a large model compiles no kernel.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import Iterator

import jittor as jt
import numpy as np
from jittor import nn

__all__ = ["normal", "trunc_normal", "uniform", "xavier_uniform", "start_with_xavier", "constant", "zeros", "ones",
           "without_values"]

_without_values: contextvars.ContextVar[bool] = contextvars.ContextVar("jseg_without_values", default=False)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Within it parameters have a shape and no memory (zeros that nobody computes):
    for models that are only looked at.
    """
    token = _without_values.set(True)
    try:
        yield
    finally:
        _without_values.reset(token)


def normal(shape, std: float) -> jt.Var:
    """A float32 Var of `shape` with values from N(0, std^2)."""
    if _without_values.get():
        return _shaped(shape)
    return jt.array((np.random.standard_normal(shape) * std).astype(np.float32))


def trunc_normal(shape, std: float = 0.02, limit: float = 2.0) -> jt.Var:
    """A float32 Var of `shape` from N(0, std^2), values beyond +-`limit` (absolute,
    as in timm and MMEngine) redrawn.
    """
    if _without_values.get():
        return _shaped(shape)
    values = np.random.standard_normal(shape) * std
    while (far := np.abs(values) > limit).any():
        values[far] = np.random.standard_normal(int(far.sum())) * std
    return jt.array(values.astype(np.float32))


def uniform(shape, low: float, high: float) -> jt.Var:
    """A float32 Var of `shape` with values spread evenly over [low, high)."""
    if _without_values.get():
        return _shaped(shape)
    return jt.array(np.random.uniform(low, high, shape).astype(np.float32))


def xavier_uniform(shape) -> jt.Var:
    """A float32 Var for a weight (out, in, ...), uniform within sqrt(6 / (fan_in + fan_out))
    of 0 (Glorot & Bengio, AISTATS 2010).
    """
    if _without_values.get():
        return _shaped(shape)
    cells = int(np.prod(shape[2:]))
    limit = np.sqrt(6.0 / (cells * (shape[0] + shape[1])))
    return jt.array(np.random.uniform(-limit, limit, tuple(shape)).astype(np.float32))


def start_with_xavier(module: nn.Module, *, uniform: bool = True) -> None:
    """Give every weight of two or more axes in a module new values of variance 2 / (fan_in + fan_out), as DETR's
    transformers start.
    """
    for value in module.state_dict().values():
        if value.ndim > 1:
            std = float(np.sqrt(2.0 / (np.prod(value.shape[2:]) * (value.shape[0] + value.shape[1]))))
            value.assign(xavier_uniform(tuple(value.shape)) if uniform else normal(tuple(value.shape), std))


def constant(shape, value: float) -> jt.Var:
    """A float32 Var of `shape`, every element `value`."""
    if _without_values.get():
        return _shaped(shape)
    return jt.array(np.full(shape, value, np.float32))


def zeros(shape) -> jt.Var:
    """A float32 Var of zeros."""
    return constant(shape, 0.0)


def ones(shape) -> jt.Var:
    """A float32 Var of ones."""
    return constant(shape, 1.0)


def _shaped(shape) -> jt.Var:
    """A Var of `shape` that is an operation not yet run."""
    return jt.zeros((shape,) if isinstance(shape, int) else tuple(shape))
