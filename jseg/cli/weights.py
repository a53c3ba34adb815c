"""List published weights, or fetch one by name, check its hash and convert it.

    jseg weights list              every name, what it was trained on, its published mIoU, and whether it is here;
                                   `jseg models` searches those of MMSegmentation and says which build here
    jseg weights get NAME          download (an interrupted one goes on), check, convert to <dir>/NAME.safetensors

A file that is already in the folder is used; without a connection the command says what to fetch by hand and where to
put it. A SHA-256 that begins as published proves a file. One that does not is said, and proves nothing (mmsegmentation
takes the digits in its file names before it publishes): the server's length and MD5 and the conversion of every key
decide then. The hash of a file that was converted is kept beside it (FILE.json) and compared from then on; a download
that is no checkpoint becomes FILE.rejected.
"""

from __future__ import annotations

import pathlib

from jseg.cli._progress import told_progress

EXAMPLE = "jseg weights get segnext_tiny_ade20k_mmseg"


def add_arguments(parser) -> None:
    """Options of `jseg weights`."""
    parser.add_argument("what", choices=("list", "get"))
    parser.add_argument("name", nargs="?", help="of the weights, with get")
    parser.add_argument("--dir", default="weights",
                        help="folder for the fetched and the converted file (default: %(default)s)")
    parser.add_argument("--index", metavar="FILE", help="another index of the form of jseg/convert/weights_index.yaml, "
                                                        "for example of a lab's own files")


def run(args) -> int:
    """List, or fetch and convert."""
    from jseg.convert.model_index import read_weights, refuse_unbuildable
    from jseg.convert.weights_index import find_entry, read_index
    from jseg.errors import ConvertError
    index = read_index(args.index) if args.index else read_weights()
    folder = pathlib.Path(args.dir)
    if args.what == "list":
        print(table(index, folder))
        return 0
    if args.name is None:
        raise ConvertError("jseg weights get: give a name; `jseg weights list` shows all")
    entry = find_entry(args.name, index)
    refuse_unbuildable(entry)
    get(entry, folder)
    return 0


def find_weights(given: str, folder: pathlib.Path = pathlib.Path("weights")) -> pathlib.Path:
    """The weights that a user means: a file, a run's folder, NAME.safetensors in `weights/` (here or beside jseg), or a
    published name, whose file is fetched and converted.

    Raises:
        CheckpointError: nothing of that name is here or published. ConvertError: it cannot be fetched.
    """
    import jseg
    from jseg.convert.model_index import read_weights, refuse_unbuildable
    from jseg.engine.checkpoint import weights_path
    from jseg.errors import CheckpointError
    from jseg.registry import nearest
    if pathlib.Path(given).exists():
        return weights_path(given)
    beside = pathlib.Path(jseg.__file__).resolve().parents[1] / "weights"
    here = [place / f"{given.removesuffix('.safetensors')}.safetensors" for place in (folder, beside)]
    found = next((path for path in here if path.is_file()), None)
    if found is not None:
        return found
    index = read_weights()
    if given not in index:
        local = [path.stem for place in (folder, beside) for path in place.glob("*.safetensors")]
        raise CheckpointError(f"--weights {given}: no such file, and no published weights have this name"
                              f"{nearest(given, [*index, *local])}; `jseg models --like WORDS` searches them")
    refuse_unbuildable(index[given])
    return get(index[given], folder)


def table(index: dict, folder: pathlib.Path) -> str:
    """One line for each entry."""
    rows = [("name", "mIoU ss/ms", "sha256", "licence", "source", "here")]
    for entry in index.values():
        here = ("converted" if (folder / f"{entry.name}.safetensors").exists() else "fetched"
                if (folder / entry.file).exists() else
                "in part" if (folder / f"{entry.file}.part").exists() else "")
        rows.append((entry.name, "/".join("-" if value is None else f"{value:g}" for value in entry.miou or [None]),
                     entry.sha256 or "not published", entry.licence or "not stated", entry.source, here))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows)


def get(entry, folder: pathlib.Path) -> pathlib.Path:
    """Fetch, check and convert one entry, saying so; the converted file."""
    import jseg.data.datasets  # noqa: F401  (registers the datasets, whose class names a file may need)
    from jseg.convert.checkpoint import convert_checkpoint
    from jseg.convert.weights_index import fetch, record_hash, reject
    from jseg.errors import ConvertError
    with told_progress(desc=entry.file, unit="B", unit_scale=True, disable=None) as progress:
        found = fetch(entry, folder, progress=progress)
    print(f"{found.path}: {found.came_from}; {entry.source}, licence {entry.licence or 'not stated by the publisher'}\n"
          f"  sha256 {found.sha256}, {found.proof}")
    try:
        done = convert_checkpoint(found.path, folder / f"{entry.name}.safetensors", classes=entry.classes)
    except ConvertError as error:
        if not found.fresh or found.proven:
            raise
        aside = reject(found.path, found.path)
        raise ConvertError(f"{error}. The download is kept as {aside}; give it a config of your own with 'jseg "
                           f"convert {aside} {entry.name}.safetensors --config FILE'") from error
    record_hash(found, entry)
    print(done.text())
    return done.out
