"""Every converter on a fake of its publisher's download:
exact files, exact pixels, resuming, and whatever can be broken.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent),
                str(pathlib.Path(__file__).resolve().parents[3] / "tools" / "convert_datasets")]

import fake_more
import fake_raw
import fake_tiles
from fake_encode import decode, write_tree

from jseg.data.prepare import Settings, command

FAKES = {**fake_raw.FAKES, **fake_tiles.FAKES, **fake_more.FAKES}
QUIET = Settings(workers=1, partial=True, progress=False)
# All scripts meet all faults (missing split, truncated archive, unreadable picture in three ways, unknown value, mask
# of another size, full disk), but for unknown values where every value has a meaning.
NO_UNKNOWN = {**dict.fromkeys(("chase_db1", "drive", "hrf", "stare"), "masks are grey values, cut at 128"),
              "nyu": "depth: every value is a length"}
SCRIPTS = sorted(path.stem
                 for path in (pathlib.Path(__file__).resolve().parents[3] / "tools" / "convert_datasets").glob("*.py"))


def script(name: str):
    """The converter of a fake."""
    return importlib.import_module(name.replace("_json", "") if name == "pascal_context_json" else name)


def listing(folder: pathlib.Path) -> dict[str, str]:
    """Relative path -> hash and modification time of every file."""
    return {str(path.relative_to(folder)): f"{hashlib.md5(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
            for path in sorted(folder.rglob("*")) if path.is_file()}


def compare(out: pathlib.Path, want: dict) -> None:
    """Assert that `out` holds the wanted files and nothing else but the manifest."""
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()
             and not path.name.startswith(".prepare-")}
    assert there == set(want), f"missing {sorted(set(want) - there)[:5]}, too many {sorted(there - set(want))[:5]}"
    for name, value in want.items():
        data = (out / name).read_bytes()
        if isinstance(value, bytes):
            assert data == value, f"{name}: the bytes differ"
        elif isinstance(value, list):
            assert data.decode().splitlines() == value, name
        else:
            got = decode(data)
            assert got.shape == value.shape and got.dtype == value.dtype, (
                f"{name}: {got.shape} {got.dtype}, wanted {value.shape} {value.dtype}")
            bad = np.argwhere(got != value)
            assert not len(bad), (f"{name}: {len(bad)} values differ, first at {bad[0]}: {got[tuple(bad[0])]}, wanted "
                                  f"{value[tuple(bad[0])]}")


def run(name: str, src, out, raw, capfd, *words: str) -> tuple[int, str]:
    """Run the command line; return exit status and what it said on stderr."""
    module = script(name)
    convert = lambda sources, out, settings, **options: module.convert(sources, out, settings,
                                                                       **{**options, **raw.options})  # noqa: E731
    convert.__module__ = module.__name__
    status = command.run(convert, [str(src), "--out", str(out), "--workers", "1", "--quiet", *words], out="x")
    return status, capfd.readouterr().err


def failure(name: str, raw, tmp_path, capfd, *words: str) -> str:
    """Run on a broken download: one line, status 2, source untouched; return the line."""
    before = listing(tmp_path / "raw")
    status, text = run(name, tmp_path / "raw", tmp_path / "out", raw, capfd, *words)
    assert status == 2, text
    assert len(text.strip().splitlines()) == 1 and "Traceback" not in text, text
    assert listing(tmp_path / "raw") == before
    return text


def heal(name: str, tmp_path, capfd) -> None:
    """Put the whole download in place and run again."""
    raw = FAKES[name]()
    write_tree(raw.files, tmp_path / "raw")
    status, text = run(name, tmp_path / "raw", tmp_path / "out", raw, capfd, "--partial")
    assert status == 0, text
    compare(tmp_path / "out", raw.want)


def test_every_script_has_a_fake():
    assert {script(name).__name__ for name in FAKES} == set(SCRIPTS)


@pytest.mark.parametrize("name", FAKES)
def test_exact_pixels_and_untouched_source(name, tmp_path):
    raw = FAKES[name]()
    write_tree(raw.files, tmp_path / "raw")
    before = listing(tmp_path / "raw")
    report = script(name).convert(tmp_path / "raw", tmp_path / "out",
                                  Settings(1, partial=not raw.whole, progress=False), **raw.options)
    compare(tmp_path / "out", raw.want)
    assert listing(tmp_path / "raw") == before
    again = script(name).convert(tmp_path / "raw", tmp_path / "out", QUIET, **raw.options)
    assert again.written == 0 and again.kept == report.written


@pytest.mark.parametrize("name", FAKES)
def test_unpacked_download_gives_the_same(name, tmp_path):
    """The tree with every archive unpacked into a folder of the archive's stem."""
    raw = FAKES[name]()
    plain = {"/".join(part.split(".")[0] if part.endswith((".zip", ".tar", ".tgz", ".tar.gz")) else part
                      for part in path.split("/")): data
             for path, data in raw.files.items()}
    write_tree(plain, tmp_path / "raw")
    script(name).convert(tmp_path / "raw", tmp_path / "out", QUIET, **raw.options)
    compare(tmp_path / "out", raw.want)


@pytest.mark.parametrize("name", FAKES)
def test_counts_are_checked(name, tmp_path, capfd):
    raw = FAKES[name]()
    if raw.whole or name in ("labelme", "coco_json"):
        pytest.skip("the fake is complete")
    raw.options = {key: value for key, value in raw.options.items()
                   if key not in ("size", "width", "height", "overlap")}
    write_tree(raw.files, tmp_path / "raw")
    text = failure(name, raw, tmp_path, capfd)
    assert "--partial" in text and "published" in text


@pytest.mark.parametrize("name", FAKES)
def test_missing_split(name, tmp_path, capfd):
    raw = FAKES[name]()
    write_tree(raw.without_split and raw.files | raw.without_split
               or {path: data for path, data in raw.files.items() if raw.split not in path},
               tmp_path / "raw")
    text = failure(name, raw, tmp_path, capfd)
    assert any(word in text for word in ("no files of", "are missing", "have no mask", "have no second",
                                         "is neither beside", "nor", "no mask", "--partial")), text
    heal(name, tmp_path, capfd)


@pytest.mark.parametrize("name", FAKES)
def test_truncated_archive(name, tmp_path, capfd):
    raw = FAKES[name]()
    archives = [path.split("/")[0]
                for path in raw.files if path.split("/")[0].endswith((".zip", ".tar", ".tgz", ".tar.gz"))]
    if not archives:  # the publisher has none: people pack such folders themselves
        raw.files = {f"all.zip/{path}": data for path, data in raw.files.items()}
        archives = ["all.zip"]
    write_tree(raw.files, tmp_path / "raw")
    path = tmp_path / "raw" / archives[-1]
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 2 // 5])
    text = failure(name, raw, tmp_path, capfd, "--partial")
    assert archives[-1] in text and "truncated" in text, text
    assert not list((tmp_path / "out").glob(".scratch*"))
    path.unlink()
    heal(name, tmp_path, capfd)


@pytest.mark.parametrize("name", FAKES)
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_unreadable_image(name, damage, tmp_path, capfd):
    raw = FAKES[name]()
    data = raw.files[raw.picture]
    raw.files[raw.picture] = {"truncated": data[:len(data) // 2], "garbage": b"<html>404</html>" * 40,
                              "empty": b""}[damage]
    write_tree(raw.files, tmp_path / "raw")
    text = failure(name, raw, tmp_path, capfd, "--partial")
    assert raw.picture.rsplit("/", 1)[-1] in text, text
    if damage == "truncated":
        heal(name, tmp_path, capfd)


@pytest.mark.parametrize("name", FAKES)
@pytest.mark.parametrize("fault", ["unknown", "resized"])
def test_wrong_masks(name, fault, tmp_path, capfd):
    raw = FAKES[name]()
    bad = getattr(raw, fault)
    if fault == "unknown" and name in NO_UNKNOWN:
        assert not bad
        pytest.skip(NO_UNKNOWN[name])
    raw.files[raw.mask] = bad
    write_tree(raw.files, tmp_path / "raw")
    text = failure(name, raw, tmp_path, capfd, "--partial")
    assert raw.mask.rsplit("/", 1)[-1] in text, text
    if fault == "unknown" and name not in ("labelme", "coco_json", "synapse", "pascal_context", "pascal_context_json"):
        assert "1 pixel, first at row 3, column 5" in text
    heal(name, tmp_path, capfd)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of four pages, and how to enlarge it."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place],
                                           capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place, lambda: subprocess.run(["mount", "-o", "remount,size=16m", place], check=True)
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("name", FAKES)
def test_no_space_left(name, tmp_path, capfd, tiny_disk):
    raw = FAKES[name]()
    write_tree(raw.files, tmp_path / "raw")
    place, enlarge = tiny_disk
    before = listing(tmp_path / "raw")
    status, text = run(name, tmp_path / "raw", place / "out", raw, capfd, "--partial")
    assert status == 2 and "no space left" in text.lower() and len(text.strip().splitlines()) == 1, text
    enlarge()
    status, text = run(name, tmp_path / "raw", place / "out", raw, capfd, "--partial")
    assert status == 0, text
    compare(place / "out", raw.want)
    assert listing(tmp_path / "raw") == before
