"""jseg's own operations, each with a plain-Jittor path and compiled kernels behind one checked function.

Every folder here with an `op.py` is one operation: `jseg.ops.msca` is the function `msca` of `jseg/ops/msca/op.py`.
A new folder needs no edit here. What a folder holds: see `jseg.ops.common`. `use` chooses the implementation for a
stretch of code.
"""

import importlib
import pathlib

from jseg.ops.common import use, uses_plain

KERNELS = sorted(path.parent.name for path in pathlib.Path(__file__).parent.glob("*/op.py"))
__all__ = [*KERNELS, "KERNELS", "use", "uses_plain"]

for _name in KERNELS:  # the function takes the place of the folder's module as attribute of this package
    globals()[_name] = getattr(importlib.import_module(f"{__name__}.{_name}.op"), _name)
