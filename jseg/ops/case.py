"""The named sizes at which a kernel is tested and timed: support for tests and `jseg bench`, imported by no model."""

from __future__ import annotations

import dataclasses

__all__ = ["Case"]


@dataclasses.dataclass(frozen=True, init=False, eq=False)
class Case:
    """One named set of sizes and options of a kernel, for tests and benchmarks.

    Every `ops/<kernel>/cases.py` has
        CASES: list[Case];
        make(case, rng) -> dict: name -> float64/int array of every tensor argument, or a plain option;
        call(inputs, impl) -> Var or tuple: runs the op on the dict `make` gave (arrays replaced by float32/int32 Vars);
        GRADS: names of the inputs that have a gradient;
        FLOOR: absolute error, relative to the largest reference value, that is always accepted;
    and `reference.py` has `forward(**inputs)` and `backward(dout, **inputs) -> dict name -> gradient`, in float64.
    A kernel with several outputs differentiates the first.
    """

    name: str
    options: dict
    bench: bool

    def __init__(self, name: str, *, bench: bool = False, **options):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "bench", bench)

    def __getattr__(self, key: str):
        try:
            return object.__getattribute__(self, "options")[key]
        except KeyError:
            raise AttributeError(f"case {self.name!r} has no option {key!r}; it has {sorted(self.options)}") from None
