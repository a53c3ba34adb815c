"""Kill a conversion at every line of the code that writes files, the first and the last time it is reached,
and look at what is left.

    python tests/convert/kill_everywhere.py IN.pth OTHER.pth FOLDER        prints {"kills": n, "wrong": [...]}

Each kill is a child of its own. The name of the result must lead to nothing or to the old content, until it leads to
the new content; both are tried. test_convert_checkpoint.py runs this.
"""

import json
import os
import pathlib
import signal
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from jseg.convert.checkpoint import convert_checkpoint  # noqa: E402

WRITERS = {str(ROOT / "jseg" / name) for name in ("files.py", "weights_file.py", "convert/weights_file.py")}


def traced(source: pathlib.Path, out: pathlib.Path, at_line) -> None:
    """Convert; `at_line(file, line)` is called before every line of the writers."""
    def local(frame, event, _):
        if event == "line":
            at_line(frame.f_code.co_filename, frame.f_lineno)
        return local

    sys.settrace(lambda frame, *_: local if frame.f_code.co_filename in WRITERS else None)
    try:
        convert_checkpoint(source, out)
    finally:
        sys.settrace(None)


def moments(source: pathlib.Path, out: pathlib.Path) -> list[int]:
    """How many lines have run where each line is reached first and last."""
    seen: list[tuple] = []
    traced(source, out, lambda *place: seen.append(place))
    first = {place: i for i, place in reversed(list(enumerate(seen)))}
    last = {place: i for i, place in enumerate(seen)}
    return sorted({*first.values(), *last.values()})


def killed(source: pathlib.Path, out: pathlib.Path, moment: int) -> bool:
    """Convert in a child that kills itself after so many lines; whether it did."""
    pid = os.fork()
    if pid == 0:
        left = [moment]

        def at_line(*_):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

        traced(source, out, at_line)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def main(source: pathlib.Path, other: pathlib.Path, folder: pathlib.Path) -> dict:
    """Try every moment, without and with an old file of that name."""
    out = folder / "x.safetensors"
    convert_checkpoint(other, out)
    old = out.read_bytes()
    places = moments(source, out)
    new = out.read_bytes()
    kills, wrong = 0, []
    for moment in places:
        for before in (None, old):
            out.unlink(missing_ok=True)
            if before is not None:
                out.write_bytes(before)
            kills += killed(source, out, moment)
            found = out.read_bytes() if out.exists() else None
            if found not in (before, new):
                wrong.append([moment, before is not None, None if found is None else len(found)])
    convert_checkpoint(source, out)  # clears what the killed left
    return {"kills": kills, "moments": len(places), "wrong": wrong,
            "left": sorted(path.name for path in folder.iterdir())}


if __name__ == "__main__":
    print(json.dumps(main(*map(pathlib.Path, sys.argv[1:4]))))
