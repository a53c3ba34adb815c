"""Find published models by words as people write them: `segformer-b0`, `SegFormer B0`, `segformerb0`, `resnet50`.

Case and separators do not count. Each word must be found in a model: as a word of it (or several run together), else as
the beginning of one, else inside one, else as two such words run together. Of the models that have all words, those
stay that have them best, so that `deeplabv3` does not bring DeepLabV3+, and `r50` not R-50b.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jseg.convert.model_index import MIOU, PublishedModel, file_stem, split_words
from jseg.errors import ConvertError
from jseg.registry import nearest

__all__ = ["search_models"]

LONGEST_RUN = 4  # words run together: "pascalvoc2012" is three
_SPOKEN = {"r": "resnet", "s": "resnest", "m": "mobilenet"}  # how architectures abbreviate backbones ("R-50-D8")


def search_models(models: Mapping[str, PublishedModel], like: Sequence[str] = (),
                  data: Sequence[str] = ()) -> list[PublishedModel]:
    """The models that fit all words, best published mIoU first, those without one last.

    Args:
        like: words of name, method, backbone, dataset or size.
        data: words of the dataset alone.
    Raises:
        ConvertError: no model fits; names the word that is found nowhere and the nearest that is, or the datasets left.
    """
    found = _fitting(list(models.values()), like, _model_texts, "--like")
    narrowed = _fitting(found, data, _data_texts, "--data")
    return sorted(narrowed, key=lambda model: (-model.metrics.get(MIOU, float("-inf")), model.name))


def _model_texts(model: PublishedModel) -> list[list[str]]:
    """What a model may be called, in words."""
    kinds = [block["type"] for key in ("backbone", "neck", "decode_head")
             for block in _as_blocks(model.block.get(key)) if "type" in block]
    backbone = split_words(model.architecture[0])
    spoken = [[_SPOKEN[backbone[0]], *backbone[1:]]] if backbone[0] in _SPOKEN else []
    folder = model.config.split("/")[1]
    texts = (model.name, file_stem(model.url), model.family, *model.architecture, *kinds, folder)
    return [*map(split_words, texts), *spoken, *_data_texts(model)]


def _data_texts(model: PublishedModel) -> list[list[str]]:
    """What its dataset may be called: the published name, the class, and as in the config's name ("voc12aug")."""
    in_name = re.sub(r"-\d+x\d+$", "", model.name.rpartition("_")[2])
    return [split_words(model.dataset), split_words(model.dataset_type), split_words(in_name)]


def _as_blocks(value: Any) -> list:
    return value if isinstance(value, list) else [value] if value else []


def _fitting(models: list[PublishedModel], asked: Sequence[str], texts_of: Callable,
             option: str) -> list[PublishedModel]:
    """The models that have all words of `asked` best."""
    words, said = [word for text in asked for word in split_words(text)], f"{option} {' '.join(asked)}"
    if not words and asked:
        raise ConvertError(f"{said}: no letter or digit in it; give words of a name, for example segformer-b0")
    if not words:
        return models
    runs_of = {model.name: _word_runs(texts_of(model)) for model in models}
    fits = {name: [_fit_level(word, *runs) for word in words] for name, runs in runs_of.items()}
    whole = {name: sum(levels) for name, levels in fits.items() if all(levels)}
    if whole:
        return [model for model in models if whole.get(model.name) == max(whole.values())]
    for i, word in enumerate(words):
        if not any(levels[i] for levels in fits.values()):
            known = sorted({run for runs, _ in runs_of.values() for run in runs if len(run) >= len(word)})
            datasets = ", ".join(sorted({model.dataset for model in models}))
            hint = nearest(word, known) or f"; known datasets here: {datasets}" * (option == "--data")
            raise ConvertError(f"{said}: {word!r} is in none of the {len(models)} models{hint}")
    raise ConvertError(f"{said}: each word is in some of the {len(models)} models, but no model has all; leave one out")


def _word_runs(texts: list[list[str]]) -> tuple[set[str], list[str]]:
    """(every run of up to LONGEST_RUN words, every rest of a text from a word on)."""
    runs = {"".join(words[i:i + n]) for words in texts for i in range(len(words)) for n in range(1, LONGEST_RUN + 1)}
    return runs, ["".join(words[i:]) for words in texts for i in range(len(words))]


def _fit_level(word: str, runs: set[str], rests: list[str]) -> int:
    """How well a word is found: 4 whole, 3 beginning, 2 inside, 1 two words run together, 0 not at all."""
    if word in runs:
        return 4
    if len(word) == 1:  # a size such as the T of Swin-T
        return 0
    if any(rest.startswith(word) for rest in rests):
        return 3
    if any(word in rest for rest in rests):
        return 2
    cuts = range(2, len(word) - 1)
    return int(any(word[:i] in runs and any(rest.startswith(word[i:]) for rest in rests) for i in cuts))
