"""The scope in which a model's own code is traced: Jittor's functions, jseg's operators and the weights are replaced.

Every loaded file of `jseg.layers`, `jseg.ops` and `jseg.models` gets, for as long as the scope lasts, a `jt`, an `nn`
and an `ops` that answer by the tables of exporters (`framework.TABLE`, `operators.STANDINS`), so that a function
without an exporter is one error that tells its name; `pick` chooses the plain path of an operator, which is its
definition; `min`, `max` and `int` know sizes. Everything is put back at the end, whatever happens.
"""

from __future__ import annotations

import contextlib
import sys
import types
from typing import Iterator

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ExportError
from jseg.export import tables
from jseg.export.framework import TABLE
from jseg.export.graph import Graph
from jseg.export.operators import CLASSES, STANDINS
from jseg.export.sizes import integer, largest, smallest
from jseg.ops import common

__all__ = ["traced"]

_ROOMS = ("jseg.layers", "jseg.ops", "jseg.models")
_PASSED = ("flags", "no_grad", "Var", "Function", "nn")  # of Jittor, as they are
_PLAIN = ("use", "uses_plain", "KERNELS")  # of jseg.ops, as they are
_SIZES = {"min": smallest, "max": largest, "int": integer}


class Stand:
    """What a module's name for Jittor (or its `nn`) leads to in the scope."""

    def __init__(self, module: types.ModuleType, prefix: str):
        self._module, self._prefix = module, prefix

    def __getattr__(self, name: str):
        found = TABLE.get(f"{self._prefix}.{name}")
        if found is not None:
            return found
        value = getattr(self._module, name)
        if isinstance(value, types.ModuleType) and name == "nn":
            return Stand(value, "nn")
        if name in _PASSED or isinstance(value, type):
            return value
        return _missing(f"{self._prefix}.{name}")


class StandOps:
    """What a module's name for `jseg.ops` leads to in the scope."""

    def __getattr__(self, name: str):
        value = getattr(ops, name)
        return value if name in _PLAIN or isinstance(value, types.ModuleType) else STANDINS.get(value, value)


def _missing(name: str):
    def refuse(*_, **__):
        raise ExportError(f"{name} has no exporter to ONNX; add one to jseg/export/framework.py, or write the model "
                          "with what is there")
    return refuse


@contextlib.contextmanager
def traced(model: nn.Module, graph: Graph) -> Iterator[None]:
    """Let `model(tensor of the graph)` append its nodes to `graph`.

    Args:
        model: in evaluation mode; its weights become constants and come back at the end.
    """
    stand_ins = {id(function): standin for function, standin in STANDINS.items()}
    stand_ins.update({id(jt): Stand(jt, "jt"), id(nn): Stand(nn, "nn"), id(ops): StandOps(),
                      id(common.pick): lambda impl, kernel, *tensors: "jittor"})
    with contextlib.ExitStack() as undo, jt.no_grad(), graph:
        for name, module in list(sys.modules.items()):
            if name.startswith(_ROOMS) and isinstance(module, types.ModuleType):
                _swap_globals(module, stand_ins, undo)
        for owner, name, value in (*((c, "execute", f) for c, f in CLASSES.items()),
                                   *((c, n, f) for (c, n), f in tables.METHODS.items())):
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        for module in model.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, jt.Var):
                    undo.callback(vars(module).__setitem__, name, value)
                    vars(module)[name] = graph.constant(value.numpy(), str(value.dtype))
        yield


def _swap_globals(module: types.ModuleType, stand_ins: dict, undo: contextlib.ExitStack) -> None:
    names = vars(module)
    for name, value in list(names.items()):
        found = stand_ins.get(id(value))
        if found is not None:
            undo.callback(names.__setitem__, name, value)
            names[name] = found
    for name, value in _SIZES.items():
        if name not in names:
            undo.callback(names.pop, name)
            names[name] = value
