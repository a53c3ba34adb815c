"""jseg: semantic segmentation for Jittor. `from jseg import InferenceSegmentor` is the short way in.

Importing this package prepares the process for Jittor (see `runtime`) but does not import Jittor itself: data loading,
conversion and reports work without it. docs/python.md shows the names below at work, docs/api.md describes them.
"""

from jseg import runtime_signals

runtime_signals.take_over()  # before anything else: Ctrl-C may come while this is imported

from jseg import runtime  # noqa: E402

runtime.prepare()

__version__ = "0.1.0"

_HOMES = {"InferenceSegmentor": "jseg.engine.predict", "train": "jseg.engine.train", "steps": "jseg.engine.train",
          "evaluate": "jseg.engine.evaluate", "load_config": "jseg.config", "check_config": "jseg.engine.check",
          "configs_folder": "jseg.config", "build_model": "jseg.models", "build_dataset": "jseg.data.build",
          "build_loader": "jseg.data.build", "build_optimizer": "jseg.engine.optim",
          "save_model": "jseg.engine.model_file"}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    """Import what is asked for when it is asked for."""
    import importlib
    if name not in _HOMES:
        from jseg.registry import nearest
        raise AttributeError(f"module 'jseg' has no attribute {name!r}{nearest(name, _HOMES)} (it has "
                             f"{', '.join(_HOMES)})")
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
