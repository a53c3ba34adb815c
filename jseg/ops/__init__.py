"""jseg's own operations, each with a plain-Jittor path and compiled kernels behind one checked function.

Every folder here with an `op.py` is one operation: `jseg.ops.msca` is the function `msca` of `jseg/ops/msca/op.py`.
A new folder needs no edit here. What a folder holds: see `jseg.ops.common`.
"""

import importlib
import pathlib

__all__ = sorted(path.parent.name for path in pathlib.Path(__file__).parent.glob("*/op.py"))

for _name in __all__:  # the function takes the place of the folder's module as attribute of this package
    globals()[_name] = getattr(importlib.import_module(f"{__name__}.{_name}.op"), _name)
