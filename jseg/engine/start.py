"""The weights a training starts from: `load_from` of a config.

A `.safetensors` of jseg is read as it is. Files of other homes (`.pth`, `.pt`, `.pkl`, or another library's
`.safetensors`) go through `jseg.convert` in memory, fitted to the backbone of the config; nothing is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import numpy as np

from jseg.engine.checkpoint import load_weights, weights_path
from jseg.errors import CheckpointError

__all__ = ["starting_state"]

_PICKLES = (".pth", ".pt", ".pkl", ".bin", ".tar")


def starting_state(config: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str] | None, list[str]]:
    """What `load_from` holds for the model of a config.

    Args:
        config: a whole config with `load_from`; of the values those that begin with its `load_only`, if it has one.
    Returns:
        parameter name -> array, the names of the weights' classes where the file has them, and what is worth telling.
    Raises:
        CheckpointError: the file is missing, damaged, has values that are not finite, or nothing of `load_only`.
        ConvertError: a file of another home that no guesser knows, or that does not fit the config's backbone.
    """
    state, names, told = _whole_state(config)
    part = config.get("load_only")
    if not part:
        return state, names, told
    chosen = {key: value for key, value in state.items() if key.startswith(f"{part}.")}
    if not chosen:
        raise CheckpointError(f"{config['load_from']}: none of its {len(state)} keys begin with {part!r}, the part "
                              "that load_only names")
    return chosen, names, [*told, f"load_only: {part}: {len(chosen)} of {len(state)} values"]


def _whole_state(config: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str] | None, list[str]]:
    path = weights_path(config["load_from"])
    if path.suffix in _PICKLES and path.is_file():
        return _foreign(path, config)
    state, meta = load_weights(path)
    if "config" not in meta and _is_known(state):
        return _foreign(path, config)
    return state, meta.get("classes") if isinstance(meta.get("classes"), list) else None, []


def _is_known(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a guesser knows these keys as those of a release that moves them."""
    from jseg.convert.guess import find_guesser
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    found = find_guesser(shapes, {})
    return found is not None and found.guess(shapes, numpy_values=False, meta={}, where="").translate is not None


def _foreign(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], None, list[str]]:
    from jseg.convert.checkpoint import starting_weights
    state, told = starting_weights(path, config.get("model"))
    return state, None, [told]
