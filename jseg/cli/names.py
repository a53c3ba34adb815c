"""List every model, loss, sampler, dataset, transform, optimizer and schedule a config may name."""

from __future__ import annotations

import pathlib

from jseg.errors import DataError
from jseg.files import write_atomically
from jseg.text import fill_prose

EXAMPLE = "jseg names"
KINDS = (("models", "MODELS"), ("losses", "LOSSES"), ("samplers", "SAMPLERS"), ("datasets", "DATASETS"),
         ("transforms", "TRANSFORMS"), ("optimizers", "OPTIMIZERS"), ("schedules", "SCHEDULES"))


MARKS = ("<!-- jseg names -->\n", "<!-- end -->")  # around the list in a document


def add_arguments(parser) -> None:
    """Options of `jseg names`."""
    parser.add_argument("--write", nargs="+", default=[], metavar="FILE",
                        help="put the list into these Markdown files, between the lines <!-- jseg names --> and <!-- "
                             "end -->")


def run(args) -> int:
    """Print the list that the README shows, or write it there."""
    names = supported()
    if not args.write:
        print(names)
    for path in map(pathlib.Path, args.write):
        text = path.read_text(encoding="utf-8")
        before, start, rest = text.partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        if not (start and end):
            raise DataError(f"{path}: has no list to replace; put the lines {MARKS[0].strip()} and {MARKS[1]} where it "
                            "belongs")
        write_atomically(path, f"{before}{start}{names}\n{end}{after}".encode())
    return 0


def supported() -> str:
    """One Markdown list item for each kind, names in alphabetical order."""
    import jseg.data  # noqa: F401  (importing a room enters its classes)
    import jseg.engine.optim  # noqa: F401
    import jseg.engine.schedules  # noqa: F401
    import jseg.losses  # noqa: F401
    import jseg.models  # noqa: F401
    from jseg import registry
    lists = ((title, ", ".join(getattr(registry, name).names())) for title, name in KINDS)
    return fill_prose("\n".join(f"- **{title}**: {names}" for title, names in lists))
