"""Weights of other homes: keys of a release whose guesser moves them, and the config that a backbone's weights take.

The tables are the guessers' (`jseg.convert.guess`), in the terms of `jseg.convert.layout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping

from jseg.convert.pickle_data import brief
from jseg.errors import ConvertError

if TYPE_CHECKING:
    from jseg.convert.guess import Guess
    from jseg.convert.state import Contents
    from jseg.models.made import Made

__all__ = ["COUNTS", "backbone_settings", "release_keys"]

COUNTS = "counts of batches, which nothing reads"


def release_keys(contents: Contents, settings: Mapping[str, Any], found: Guess,
                 where: str) -> tuple[dict[str, Made], dict[str, str], dict[str, str]]:
    """Where each key goes in the model of `settings`.

    Returns:
        our key -> keys of `contents` it is made of; key of the file -> why it is dropped; beginning of our keys that
        the release has nothing of -> why.
    Raises:
        ConvertError: keys that are none of the release, or shapes that are not its.
    """
    counts = [key for key in contents.state if key.endswith("num_batches_tracked")]
    shapes = {key: shape for key, shape in contents.shapes.items() if key not in counts}
    try:
        moved = found.translate(shapes, settings["model"])
    except ConvertError as error:
        raise ConvertError(f"{where}: {error}") from error
    except (KeyError, IndexError, ValueError) as error:
        raise ConvertError(f"{where}: an incomplete or other {found.release}: {error} is missing or has an odd "
                           "shape") from error
    prefix, names = "backbone." if found.backbone_only else "", contents.source_keys
    dropped = {names[key]: why for key, why in moved.dropped.items()}
    dropped.update({names[key]: COUNTS for key in counts})
    return ({f"{prefix}{key}": made for key, made in moved.made.items()}, dropped,
            {f"{prefix}{start}": why for start, why in moved.absent.items()})


def backbone_settings(found: Guess, model: Any, where: str) -> dict[str, Any]:
    """The config of a backbone's weights: the block of `model`, or the guessed one where there is none.

    Raises:
        ConvertError: `model` has another backbone.
    """
    if model is None:
        return found.config
    block = model.get("backbone") if isinstance(model, Mapping) else None
    targets = found.targets or (found.config["model"]["backbone"]["type"],)
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind not in targets:
        raise ConvertError(f"{where}: weights of {found.release}, which fit {' or '.join(targets)}; the config's "
                           f"backbone is {brief(kind)}. Give the right weights or config")
    return {"model": {"backbone": dict(block)}}
