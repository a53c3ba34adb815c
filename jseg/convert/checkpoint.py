"""A checkpoint of MMSegmentation, of a paper's authors or of original JSeg becomes a jseg weights file.

    .pth/.pkl -> torch_file (data, no code) -> state (which weights, which config) -> the config translated, or guessed
    where there is none -> remap_keys of its classes -> the model built from the config, every key accounted for ->
    .safetensors with config, classes, palette, origin

Every key of the source ends as loaded, renamed or dropped with its reason; anything else stops the conversion before a
file is written. The result depends on the source file, the config and jseg's version alone: converting twice gives
equal bytes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any, Callable, Iterable, Mapping

import numpy as np

from jseg.config import is_classifier, last_head
from jseg.convert import guess
from jseg.convert.checkpoint_meta import class_list, origin_of
from jseg.convert.classifier import classifier_guess, classifier_model
from jseg.convert.layout import CLASSIFIER
from jseg.convert.pickle_data import brief
from jseg.convert.release import COUNTS, backbone_settings, release_keys
from jseg.convert.state import Contents, find_contents
from jseg.convert.torch_file import SPARE_BYTES, Tensor, read_torch_file
from jseg.convert.weights_file import write_weights_file, write_whole
from jseg.errors import CheckpointError, ConvertError
from jseg.text import printable
from jseg.weights_file import nonfinite_text, read_weights_file

if TYPE_CHECKING:
    from jseg.models.made import Made

__all__ = ["Conversion", "checked_shapes", "convert_checkpoint", "convert_config", "output_file", "starting_weights",
           "write_conversion"]


@dataclasses.dataclass
class Conversion:
    """What a conversion did; `text()` tells it.

    `loaded`: keys taken as they are; `renamed`: source key -> ours; `dropped`: source key -> why; `filled`: our keys
    that the release does not hold -> what they are.
    """

    out: pathlib.Path
    origin: dict[str, Any]
    loaded: list[str]
    renamed: dict[str, str]
    dropped: dict[str, str]
    notes: list[str]
    sha256: str
    filled: dict[str, str] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """The account in words."""
        o = self.origin
        lines = [f"{o['file']} ({o['family']}, sha256 {o['sha256'][:8]}) -> {self.out}",
                 f"  {len(self.loaded)} keys loaded, {len(self.renamed)} renamed, {len(self.dropped)} dropped; weights "
                 f"from {o['weights']}, config from {o['config_from']}"]
        if "num_classes" in o:
            rules = f"MD_R {o['md_r']}, gradient {o['gradient']}, " if "md_r" in o else ""
            lines.append(f"  rules: {rules}test pictures {o['test_size']}; {o['num_classes']} classes from "
                         f"{o['classes_from']}")
        for word, told in (("dropped", self.dropped), ("not in the file", self.filled)):
            reasons: dict[str, list[str]] = {}
            for key, reason in told.items():
                reasons.setdefault(reason, []).append(key)
            lines += [f"  {word}, {reason}: {', '.join(keys[:3])}"
                      f"{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}" for reason, keys in reasons.items()]
        if self.renamed:
            old, new = next(iter(self.renamed.items()))
            lines.append(f"  renamed, for example: {old} -> {new}")
        return printable("\n".join(lines + [f"  note: {note}" for note in self.notes]), keep="\n")


def convert_checkpoint(source: str | os.PathLike, out: str | os.PathLike, *, config: str | os.PathLike | None = None,
                       weights: str = "default", classes: str | None = None,
                       allow_nonfinite: bool = False) -> Conversion:
    """Convert one checkpoint.

    Args:
        source: a .pth, .pt or .pkl file, a .safetensors file of another library, or a model folder of Hugging Face
            (see `jseg.convert.hf`).
        out: the .safetensors file to write; its folder is made.
        config: an mmsegmentation or JSeg config (.py) or a jseg config (.yaml) to use instead of the one inside the
            file.
        weights: "default", "averaged" or "raw", see `state.find_contents`.
        classes: name of a dataset type (`CityscapesDataset`) whose class names to use. Names come from the registry, so
            the caller imports `jseg.data.datasets` first; without it files that carry no class names get numbers.
        allow_nonfinite: convert weights that hold NaN or inf all the same.
    Returns:
        the account.
    Raises:
        ConvertError: the file cannot be read, is of another family, does not fit its config, or holds weights that
            are not finite; no file is written then.
        ConfigError: the config names what jseg does not have.
    """
    from jseg.convert import hf
    source, out = pathlib.Path(source), output_file(out)
    where = str(source)
    folder = hf.find_folder(source)
    if folder is not None and (backbone := hf.backbone_file(*folder)) is not None:
        source, folder = backbone, None
    if folder is not None:
        if config is not None or weights != "default":
            raise ConvertError(f"{where}: a model folder of Hugging Face has its config and one set of weights in it; "
                               "leave out --config and --weights")
        return hf.convert_folder(folder[0], out, weights_file=folder[1], classes=classes,
                                 allow_nonfinite=allow_nonfinite)
    if out.exists() and source.exists() and out.samefile(source):
        raise ConvertError(f"{out}: would replace what it is made of; give the result another name")
    contents = find_contents(_read(source, where), where, weights)
    settings, config_from, found, notes = _settings(contents, config, where)
    renames, dropped, absent = _moves(contents, settings, found, where)
    shapes = checked_shapes(contents, renames, settings, file_bytes=source.stat().st_size, config_from=config_from,
                            where=where, allow_nonfinite=allow_nonfinite, backbone_only=found.backbone_only,
                            absent=absent)
    names, palette, classes_from = ([], [], "") if found.backbone_only else class_list(
        settings, contents, classes, where, notes)
    origin = origin_of(source, contents, found, settings, config_from, classes_from)
    meta = {"config": settings, "classes": names, "palette": palette, "origin": origin}
    done = write_conversion(out, contents, renames, shapes, dropped, meta, contents.notes + notes, where)
    done.filled.update({f"{start}*": why for start, why in absent.items()})
    return done


def starting_weights(source: str | os.PathLike, model: Mapping | None = None) -> tuple[dict[str, np.ndarray], str]:
    """What a foreign checkpoint gives a model to start training from, without a file in between.

    Args:
        source: as `convert_checkpoint` takes it.
        model: the model block of a config, whose backbone a backbone's weights are fitted to: tables and positions of
            other sizes are resized.
    Returns:
        parameter name -> array, and what was found, in words.
    Raises:
        ConvertError: as `convert_checkpoint`.
    """
    source, where = pathlib.Path(source), str(source)
    contents = find_contents(_read(source, where), where)
    settings, config_from, found, notes = _settings(contents, None, where, model)
    renames, dropped, absent = _moves(contents, settings, found, where)
    shapes = checked_shapes(contents, renames, settings, file_bytes=source.stat().st_size, config_from=config_from,
                            where=where, allow_nonfinite=False, backbone_only=found.backbone_only, absent=absent)
    state = {key: _value(contents, renames[key], f"{where}: {key}").reshape(shape) for key, shape in shapes.items()}
    filled = sum(not made.parts for made in renames.values())
    return state, "; ".join([
        f"{where}: {found.release}: {len(shapes) - filled} values taken, {filled} not in the file, "
        f"{len(contents.dropped) + len(dropped)} keys dropped", *contents.notes, *notes])


def _read(source: pathlib.Path, where: str) -> Any:
    """What a file holds: a checkpoint's tree, or the tensors of another library's .safetensors."""
    if source.suffix != ".safetensors":
        return read_torch_file(source)
    try:
        state, metadata = read_weights_file(source)
    except CheckpointError as error:
        raise ConvertError(str(error)) from error
    if "config" in metadata:
        raise ConvertError(f"{where}: is a .safetensors file of jseg already; one that lacks class names gets them "
                           f"with 'jseg export {where} OUT.safetensors --config CONFIG.yaml'")
    return state


def output_file(out: str | os.PathLike) -> pathlib.Path:
    """The file to write.

    Raises:
        ConvertError: its name does not end in .safetensors, or it is a folder.
    """
    out = pathlib.Path(out)
    if out.suffix != ".safetensors":
        raise ConvertError(f"{out}: the result is a .safetensors file; give a name that ends so")
    if out.is_dir():
        raise ConvertError(f"{out}: is a folder; give the name of a file")
    return out


def checked_shapes(contents: Contents, renames: Mapping[str, Made], settings: Mapping, *, file_bytes: int,
                   config_from: str, where: str, allow_nonfinite: bool, backbone_only: bool = False,
                   absent: Iterable[str] = ()) -> dict[str, tuple]:
    """The shape of each of our keys, after every check of keys, sizes and values against the model of `settings`.

    Args:
        contents: the file's weights.
        renames: our key -> what it is made of.
        file_bytes: bytes of the file, or files.
        config_from, where: where `settings` come from and the file's name, for messages.
        allow_nonfinite, backbone_only: see `convert_checkpoint`; the weights are a backbone's alone.
        absent: beginnings of our keys that may be missing.
    Raises:
        ConvertError: something does not fit.
    """
    _check_sizes(contents, file_bytes, where)
    shapes = _shapes(contents, renames, where)
    _refuse_absurd(settings, shapes, config_from, where)
    wanted = _model_shapes(settings, backbone_only, where)
    derived = _derived(settings, shapes)
    _account(shapes, {key: shape for key, shape in wanted.items()
                      if key not in derived and not key.startswith(tuple(absent))}, where)
    if not allow_nonfinite:
        _refuse_nonfinite(contents, renames, where)
    return shapes


def write_conversion(out: pathlib.Path, contents: Contents, renames: Mapping[str, Made], shapes: Mapping[str, tuple],
                     dropped: Mapping[str, str], meta: Mapping[str, Any], notes: list[str], where: str) -> Conversion:
    """Write the weights file with `meta` (config, classes, palette, origin), and account for every key.

    Raises:
        ConvertError: it cannot be written.
    """
    def value(key: str) -> np.ndarray:
        if key in computed:
            return computed[key]
        return _value(contents, renames[key], f"{where}: {key}").reshape(shapes[key])

    computed: dict[str, np.ndarray] = {}
    for prefix in sorted(set(_derived(meta["config"], shapes).values())):
        computed.update(_derived_values(meta["config"], prefix, shapes, value))
    shapes = {**shapes, **{key: array.shape for key, array in computed.items()}}
    digest = write_weights_file(out, shapes, value, {**meta, "jseg_version": _jseg_version()})
    sources = {contents.source_keys[old]: new for new, made in renames.items() for old in made.parts}
    return Conversion(out, meta["origin"], [new for old, new in sources.items() if new == old],
                      {old: new for old, new in sources.items() if new != old},
                      {**contents.dropped, **dropped}, notes, digest,
                      {new: made.why for new, made in renames.items() if made.why})


def convert_config(source: str | os.PathLike, out: str | os.PathLike) -> list[str]:
    """Translate a config alone: `.py` of mmsegmentation or original JSeg to jseg's YAML.
    Returns what has no counterpart.

    Raises:
        ConvertError: it cannot be read, or `out` is no .yaml file.
    """
    from jseg.config import dump_config
    out = pathlib.Path(out)
    if out.suffix not in (".yaml", ".yml"):
        raise ConvertError(f"{out}: the result is a .yaml file; give a name that ends so")
    settings, notes = _translated(source)
    write_whole(out, [dump_config(settings).encode()])
    return notes


# -- keys --------------------------------------------------------------------------------------------------------------


def _check_sizes(contents: Contents, file_bytes: int, where: str) -> None:
    """Tied tensors count twice; a file that unfolds beyond that is forged."""
    total = sum(value.nbytes for value in contents.state.values())
    if total > 4 * file_bytes + SPARE_BYTES:
        raise ConvertError(f"{where}: its tensors unfold to {total} bytes, the file has {file_bytes}; it is damaged or "
                           "forged")


def _shapes(contents: Contents, renames: Mapping[str, Made], where: str) -> dict[str, tuple]:
    """Shape of each value of ours."""
    try:
        shapes = {new: made.shape(lambda old: contents.state[old].shape) for new, made in renames.items()}
    except ValueError as error:
        raise ConvertError(f"{where}: {error}; the file is damaged or of another model") from error
    return {new: shape or (1,) for new, shape in shapes.items()}  # Jittor has no scalars


def _renames(contents: Contents, settings: Mapping, backbone_only: bool) -> tuple[dict[str, Made], dict[str, str]]:
    """(our key -> keys of `contents` it is made of, key of the file -> why it is dropped)."""
    from jseg.models import remap_keys
    from jseg.models.made import Made
    kept, dropped = {}, {}
    for key in contents.state:
        if key.endswith("num_batches_tracked"):
            dropped[contents.source_keys[key]] = COUNTS
        elif backbone_only and key.startswith("head."):
            dropped[contents.source_keys[key]] = CLASSIFIER
        elif key.startswith("auxiliary_head.") and not settings["model"].get("auxiliary_head"):
            dropped[contents.source_keys[key]] = "an auxiliary head, used in training only; the config has none"
        elif key.startswith("data_preprocessor."):
            dropped[contents.source_keys[key]] = "mean and std, which stand in the config"
        else:
            kept[f"backbone.{key}" if backbone_only and not key.startswith("backbone.") else key] = key
    renamed = {new: Made.of(value) for new, value in remap_keys(kept, settings).items()}
    names, state, sources = {key: name for name, key in kept.items()}, contents.state, contents.source_keys
    lost = sorted(set(names) - {old for made in renamed.values() for old in made.parts})
    others = sorted(set(names) - set(lost))
    twins = {key: _holder(renamed, remap_keys({names[key]: key}, settings)) or _equal_key(key, others, state)
             for key in lost}
    differ = [key for key, twin in twins.items() if twin is None or not _same(state[key], state[twin])]
    if differ:
        raise ConvertError(f"two keys become one when renamed: {differ[:4]}; the file mixes two releases")
    dropped.update({sources[key]: f"a copy of {sources[twin]}" for key, twin in twins.items()})
    return renamed, dropped


def _holder(renamed: Mapping[str, Made], alone: Mapping) -> str | None:
    """The key whose value took the place of one that was renamed alone, if it is a single one."""
    made = renamed.get(next(iter(alone), None))
    return made.parts[0] if made is not None and len(made.parts) == 1 else None


def _equal_key(key: str, others: list[str], state: Mapping[str, Any]) -> str | None:
    """The first of `others` with the same last two names and the same numbers as a key that its class left out."""
    tail = "." + ".".join(key.split(".")[-2:])
    return next((other for other in others if other.endswith(tail) and state[other].shape == state[key].shape
                 and _same(state[other], state[key])), None)


def _same(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> bool:
    """Whether two weights hold the same numbers."""
    return np.array_equal(*(value if isinstance(value, np.ndarray) else value.numpy() for value in (a, b)))


def _refuse_absurd(settings: Mapping, shapes: Mapping[str, tuple], config_from: str, where: str) -> None:
    """ConvertError before a model is built from numbers that nobody can mean,
    or of far more values than the weights have.
    """
    from jseg.engine.limits import absurd, model_values
    faults = absurd(settings)
    planned, held = model_values(settings), sum(math.prod(shape) for shape in shapes.values())
    if not faults and planned > 2 * held + 10_000_000:
        faults = [f"describes a model of about {planned:.2g} values, the file holds {held:.2g}"]
    if faults:
        raise ConvertError(f"{where}: the config ({config_from}): {'; '.join(faults[:3])}; give the right one with "
                           f"--config")


def _model_shapes(settings: Mapping, backbone_only: bool, where: str) -> dict[str, tuple]:
    """Shape of each parameter and statistic of the model that the config describes."""
    from jseg.engine.limits import without_files
    from jseg.layers.init import without_values
    from jseg.models import build_model
    from jseg.registry import MODELS
    block = without_files(settings["model"])
    try:
        with without_values():
            model = MODELS.build(block["backbone"], "model.backbone") if backbone_only else build_model(block)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise ConvertError(f"{where}: its config does not describe a model jseg can build: {error}") from error
    prefix = "backbone." if backbone_only else ""
    return {f"{prefix}{key}": tuple(value.shape) for key, value in model.state_dict().items()}


def _account(shapes: Mapping[str, tuple], wanted: Mapping[str, tuple], where: str) -> None:
    """Every key on both sides has a partner of its shape, or ConvertError."""
    faults = [("missing in the file", [key for key in wanted if key not in shapes]),
              ("unknown to the model", [key for key in shapes if key not in wanted]),
              ("of another shape", [f"{key} (file {shapes[key]}, model {wanted[key]})"
                                    for key in shapes if key in wanted and shapes[key] != wanted[key]])]
    if any(keys for _, keys in faults):
        words = [f"{len(keys)} {title}: {', '.join(keys[:4])}{'...' if len(keys) > 4 else ''}"
                 for title, keys in faults if keys]
        raise ConvertError(f"{where}: does not fit the model its config describes; {'; '.join(words)}. Give the right "
                           "config with --config")


def _derived(settings: Mapping, shapes: Mapping) -> dict[str, str]:
    """Keys which follow from other weights and that `shapes` lacks -> prefix of the part that computes them."""
    from jseg.models import derived_parts
    return {prefix + name: prefix for prefix, (_, names) in derived_parts(settings).items() for name in names
            if "decode_head" in settings["model"] and prefix + name not in shapes}


def _derived_values(settings: Mapping, prefix: str, shapes: Mapping, value: Callable[[str], np.ndarray]) -> dict[
    str, np.ndarray]:
    """What follows from the other weights of one part of the model, by key."""
    from jseg.engine.checkpoint import load_into
    from jseg.layers.init import without_values
    from jseg.models import derived_parts
    from jseg.registry import MODELS
    block, names = derived_parts(settings)[prefix]
    with without_values():
        part = MODELS.build(block, prefix)
    load_into(part, {key[len(prefix):]: value(key) for key in shapes if key.startswith(prefix)}, strict=False)
    part.derive()
    return {prefix + name: getattr(part, name).numpy() for name in names}


def _refuse_nonfinite(contents: Contents, renames: Mapping[str, Made], where: str) -> None:
    """ConvertError with the names of tensors that are not finite as float32; one tensor is in memory at a time."""
    bad = []
    for key in (old for made in renames.values() for old in made.parts):
        text = nonfinite_text({contents.source_keys[key]: _array(contents.state[key], f"{where}: {key}")})
        bad += [text] if text else []
    if bad:
        shown = ", ".join(text.partition(": ")[2] for text in bad[:3])
        raise ConvertError(f"{where}: NaN or inf in {len(bad)} of {len(renames)} tensors: "
                           f"{shown}{', ...' if len(bad) > 3 else ''}; such weights "
                           "give one class everywhere. Take an older checkpoint of the run, or --allow-nonfinite to "
                           "convert it all the same")


def _value(contents: Contents, made: Made, where: str) -> np.ndarray:
    """A weight of ours as float32."""
    return made.array(lambda old: _array(contents.state[old], where))


def _array(value: Tensor | np.ndarray, where: str) -> np.ndarray:
    """A weight as contiguous float32, a scalar as one value."""
    array = value if isinstance(value, np.ndarray) else value.numpy()
    if array.dtype.kind not in "biuf":
        raise ConvertError(f"{where}: values of type {array.dtype}; weights are numbers")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which `_refuse_nonfinite` tells
        return np.ascontiguousarray(array, np.float32).reshape(array.shape or (1,))


# -- config ------------------------------------------------------------------------------------------------------------


def _moves(contents: Contents, settings: Mapping, found: guess.Guess,
           where: str) -> tuple[dict[str, Made], dict[str, str], dict[str, str]]:
    """What `_renames` gives, or the layout of a release with keys of its own; and what the release has nothing of."""
    if found.translate is not None:
        return release_keys(contents, settings, found, where)
    return (*_renames(contents, settings, found.backbone_only), {})


def _settings(contents: Contents, given, where: str,
              model: Mapping | None = None) -> tuple[dict, str, guess.Guess, list[str]]:
    """(config, where it came from, what the weights are, notes):
    the config given, else the one in the file, else one made from shapes.
    """
    shapes, meta = contents.shapes, contents.meta
    guesser = guess.find_guesser(shapes, meta)
    found = guesser and guesser.guess(shapes,
                                      numpy_values=all(isinstance(v, np.ndarray) for v in contents.state.values()),
                                      meta=meta, where=where)
    if found is not None and found.backbone_only:
        origin = "the shapes of the weights" if model is None else "the config"
        whole: dict = {}
        if given is not None:
            whole, origin = _translated(given)[0], pathlib.Path(given).name
            model = whole.get("model")
        if is_classifier({"model": model}):
            settings = {**whole, "model": classifier_model(found, model, where)}
            return settings, origin, classifier_guess(found), list(found.notes)
        return backbone_settings(found, model, where), origin, found, list(found.notes)
    inside = meta.get("cfg") or meta.get("config")
    stored = meta.get("dataset_meta") if isinstance(meta.get("dataset_meta"), dict) else {
        "classes": meta.get("CLASSES"), "palette": meta.get("PALETTE")}
    metainfo = {key: value for key, value in stored.items() if key in ("classes", "palette")
                and value is not None} or None
    if given is not None:
        settings, notes = _translated(given, metainfo=metainfo)
        origin = pathlib.Path(given).name
    elif inside:
        settings, notes = _translated(inside, f"{where}: the config inside", metainfo)
        origin = "inside the file"
    elif found is None:
        raise ConvertError(f"{where}: the file carries no config, and {guess.looks_like(shapes)}. Give its config with "
                           "--config")
    else:
        note = (f"the file carries no config: model from the shapes of its weights, rules of {found.release}; mean, "
                "std and the test size (2048, 512) are the usual ones. --config gives the real one")
        return found.config, "the shapes of the weights", found, [note]
    model = settings.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("backbone"), dict) or not isinstance(
        model.get("decode_head"), (dict, list)):
        raise ConvertError(f"{where}: config ({origin}): no model with backbone and decode_head in it")
    if found is not None:
        return guesser.complete(settings, found, origin=origin, where=where, notes=notes), origin, found, notes
    name = f"{model['backbone'].get('type')} with {last_head(model).get('type')}"
    return settings, origin, guess.Guess(name, settings), notes


def _translated(source: Any, name: str | None = None, metainfo: Mapping | None = None) -> tuple[dict, list[str]]:
    """(jseg config, what has no counterpart) of a config file;
    with a `name` for messages, of config text or settings as a dict.
    """
    from jseg.config import load_config
    from jseg.convert.mmseg_config import translate_config
    from jseg.convert.py_config import parse_py_config, read_py_config
    if name is None:
        name = os.fspath(source)
        if name.endswith((".yaml", ".yml")):
            return load_config(name), []
        settings = read_py_config(name)
    elif isinstance(source, str):
        settings = parse_py_config(source, name)
    elif isinstance(source, dict):
        settings = source
    else:
        raise ConvertError(f"{name} is {brief(source)}, neither text nor settings; give the config with --config")
    found = translate_config(settings, source=name, metainfo=metainfo)
    return found.config, list(found.notes)


def _jseg_version() -> str:
    import jseg
    return jseg.__version__
