"""jseg: semantic segmentation for Jittor. `from jseg import InferenceSegmentor` is the short way in.

Importing this package prepares the process for Jittor (see `runtime`) but does not import Jittor itself: data loading,
conversion and reports work without it.
"""

from jseg import runtime_signals

runtime_signals.take_over()  # before anything else: Ctrl-C may come while this is imported

from jseg import runtime  # noqa: E402

runtime.prepare()

__version__ = "0.1.0"
__all__ = ["InferenceSegmentor", "load_config", "train", "evaluate", "configs_folder", "__version__"]

_HOMES = {"InferenceSegmentor": "jseg.engine.predict", "load_config": "jseg.config", "train": "jseg.engine.train",
          "evaluate": "jseg.engine.evaluate", "configs_folder": "jseg.config"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jseg' has no attribute {name!r}")
    import importlib
    return getattr(importlib.import_module(_HOMES[name]), name)
