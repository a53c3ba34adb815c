"""From the values or colours in masks to classes: which are classes, what they are called, and which count nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable, Sequence

from jseg.data.colours import spread_colours
from jseg.data.own.annotations import BACKGROUND
from jseg.data.own.names import Names, known_palette
from jseg.data.own.survey import Survey
from jseg.errors import ConfigError

__all__ = ["Labels", "propose_labels"]

IGNORED = 255
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_BORDER = (224, 224, 192)  # Pascal VOC's colour for edges without a label
_RARE = 2e-5               # of the pixels: a colour below it is a slip of the pen rather than a class


@dataclass
class Labels:
    """How masks become classes.

    Attributes:
        values: the value, or (r, g, b), of each class in the masks.
        names, colours: of each class.
        ignored: values or colours that count nowhere.
        source: where the names come from, in words; made_up: whether they are `class_1`, `class_2`, ...
        notes: what was assumed, one sentence each.
    """

    values: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    colours: list[tuple[int, int, int]] = field(default_factory=list)
    ignored: list[Any] = field(default_factory=list)
    source: str = ""
    made_up: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def reduce_zero_label(self) -> bool:
        """Whether classes are 1, 2, ... and 0 counts nowhere."""
        plain = [value for value in self.ignored if value != IGNORED]
        return plain == [0] and self.values == list(range(1, len(self.values) + 1))

    @property
    def label_map(self) -> dict[int, int]:
        """Value of an index mask -> label, where they differ and `reduce_zero_label` does not say it."""
        if self.reduce_zero_label or any(isinstance(value, tuple) for value in self.values):
            return {}
        wanted = {**dict(zip(self.values, range(len(self.values)))), **{value: IGNORED for value in self.ignored}}
        return {old: new for old, new in wanted.items() if old != new}


def propose_labels(survey: Survey, given: Names | None, ignore: Iterable[Any] = ()) -> Labels:
    """Decide which values are classes.

    Args:
        survey: of the masks.
        given: a list of names; None where there is none.
        ignore: values or colours that the user wants ignored; without any, they are proposed.
    Raises:
        ConfigError: fewer than two classes, or names that do not fit the masks.
    """
    ignore = list(ignore)
    wrong = [value for value in ignore if isinstance(value, tuple) != (survey.kind == "rgb")]
    if wrong:
        raise ConfigError(f"--ignore {_spelled(wrong[0])}: the masks hold "
                          + ("colours: give red,green,blue" if survey.kind == "rgb" else "numbers: give a number"))
    labels = _by_colour(survey, given, ignore) if survey.kind == "rgb" else _by_value(survey, given, ignore)
    if len(labels.values) < 2:
        raise ConfigError(f"the masks hold {len(labels.values)} class(es) ({', '.join(map(_spelled, survey.pixels))}"
                          f"{f'; ignored: {_spelled(labels.ignored[0])}' if labels.ignored else ''}); segmentation "
                          "needs two or more, one of which may be the background. --ignore VALUE says what to ignore")
    if len(labels.values) > 254:
        raise ConfigError(f"the masks hold {len(labels.values)} classes; at most 254 are written by this command")
    empty = [name for name, value in zip(labels.names, labels.values) if not survey.pixels.get(value)]
    if empty:
        labels.notes.append(f"{', '.join(empty)}: in no mask")
    return labels


# --- masks of numbers ------------------------------------------------------------------------------------------------
def _by_value(survey: Survey, given: Names | None, ignore: list[int]) -> Labels:
    found = sorted(survey.pixels)
    labels = Labels(ignored=[value for value in ignore])
    rest = [value for value in found if value not in ignore]
    if given is not None:
        labels.names, labels.source = list(given.names), given.source
        rest = _named_values(rest, given, labels, bool(ignore))
    elif not ignore and IGNORED in rest and len(rest) > 2 and not _evenly_spread(rest):
        rest.remove(IGNORED)
        labels.ignored.append(IGNORED)
        labels.notes.append("255 counts nowhere, as usual; if it is a class: --ignore with another value")
    labels.values = rest
    palette = {value: survey.palette.get(value) for value in rest}
    if given is None:
        _name_values(labels, palette)
    colours = given.colours if given is not None and given.colours else [palette.get(value) for value in rest]
    made = spread_colours(len(rest))
    labels.colours = [colour or made[i] for i, colour in enumerate(colours)]
    if len(set(labels.colours)) < len(rest):
        labels.colours = list(made)
    return labels


def _evenly_spread(values: Sequence[int]) -> bool:
    """0, 85, 170, 255: class numbers spread over the grey values for the eye."""
    steps = [b - a for a, b in zip(values, values[1:])]
    return values[0] == 0 and min(steps) > 2 and max(steps) - min(steps) <= 1


def _named_values(rest: list[int], given: Names, labels: Labels, chosen: bool) -> list[int]:
    """The values that the names stand for: 0, 1, ... or 1, 2, ...; others count nowhere."""
    count = len(given.names)
    if len(rest) == count == 2 and rest[0] == 0:
        return rest  # a mask of 0 and 255, say
    if 0 in rest and count in rest and 0 not in labels.ignored and count not in labels.ignored:
        raise ConfigError(f"{given.source}: {count} names, but the masks hold 0 and {count}: say which of the two "
                          f"counts nowhere (--ignore 0 where classes are 1 to {count}, --ignore {count} where they are "
                          f"0 to {count - 1}), or give the name that is missing")
    values = list(range(1, count + 1)) if count in rest else list(range(count))
    others = [value for value in rest if value not in values]
    if len(others) > 2 or chosen and others not in ([], [IGNORED]):
        raise ConfigError(f"{given.source}: {count} names, but the masks hold {len(rest)} values ({_some(rest)}); "
                          "give a name for each, in the order of the values, or --ignore VALUE for those that are no "
                          "class")
    labels.notes += [f"{_some(others)} has no name and counts nowhere"] if others else []
    labels.ignored += others
    return values


def _name_values(labels: Labels, palette: dict) -> None:
    known = known_palette([colour for colour in palette.values() if colour]) if all(palette.values()) else None
    if known is not None:
        names = dict(zip(known[1].colours, known[1].names))
        labels.names = [names.get(palette[value]) or _made_name(value, labels.values) for value in labels.values]
        labels.source = known[1].source
        if len(set(labels.names)) == len(labels.names):
            return
    labels.names = [_made_name(value, labels.values) for value in labels.values]
    labels.source, labels.made_up = "nothing names them", True


def _made_name(value: int, values: Sequence[int]) -> str:
    if value == 0:
        return BACKGROUND
    return f"class_{value}" if max(values) < 255 or len(values) > 2 else "class_1"


# --- masks of colours ------------------------------------------------------------------------------------------------
def _by_colour(survey: Survey, given: Names | None, ignore: list[tuple]) -> Labels:
    labels = Labels(ignored=list(ignore))
    rest = {colour: count for colour, count in survey.pixels.items() if colour not in ignore}
    named = _coloured_names(rest, given)
    if named is not None:
        names = dict(zip(named.colours, named.names))
        strangers = [colour for colour in rest if colour not in names]
        if len(strangers) > 2:
            raise ConfigError(f"{named.source}: lacks {len(strangers)} colours of the masks ({_some(strangers)}); add "
                              "them with their names, or --ignore R,G,B for those that are no class")
        labels.values = [colour for colour in named.colours
                         if colour not in ignore and (colour in rest or given is not None)]
        labels.names, labels.source = [names[colour] for colour in labels.values], named.source
        labels.ignored += strangers
        labels.notes += [f"{_some(strangers)} is none of these colours and counts nowhere"] if strangers else []
    else:
        rare = [colour for colour, count in rest.items() if not ignore and colour not in (BLACK, WHITE)
                and (count < _RARE * sum(rest.values()) or colour == _BORDER)]
        labels.values = sorted(set(rest) - set(rare), key=lambda colour: (colour != BLACK, -rest[colour], colour))
        labels.ignored += rare
        labels.notes += [f"{_some(rare)}: the colour of edges, or of less than 0.002 % of the pixels; counts nowhere"
                         ] if rare else []
        _name_colours(labels, given)
    labels.colours = list(labels.values)
    return labels


def _coloured_names(rest: dict, given: Names | None) -> Names | None:
    """Names with colours: those given, or a known dataset's; where names are given without colours, they must be its
    own."""
    if given is not None and given.colours:
        return given
    known = known_palette(rest)
    if known is None or given is None:
        return known[1] if known else None
    colours = dict(zip(known[1].names, known[1].colours))
    if not set(given.names) <= set(colours):
        return None
    return Names(list(given.names), [colours[name] for name in given.names], f"{given.source} and {known[1].source}")


def _name_colours(labels: Labels, given: Names | None) -> None:
    black = BLACK in labels.values
    if given is not None and not (black and len(given.names) == len(labels.values) == 2):
        raise ConfigError(f"{given.source}: names without colours, but the masks are painted: write the colour beside "
                          f"each name, name,red,green,blue (found: {_some(labels.values)})")
    if given is not None:
        labels.names, labels.source = list(given.names), given.source
        return
    labels.names = [BACKGROUND if colour == BLACK else f"class_{number}"
                    for number, colour in enumerate(labels.values, 0 if black else 1)]
    labels.source, labels.made_up = "nothing names them", True
    labels.notes += ["black is a class; if it means no label: --ignore 0,0,0"] if black else []


def _some(values: Sequence[Any]) -> str:
    more = f" and {len(values) - 8} more" if len(values) > 8 else ""
    return ", ".join(map(_spelled, list(values)[:8])) + more


def _spelled(value: Any) -> str:
    return f"({', '.join(map(str, value))})" if isinstance(value, tuple) else str(value)
