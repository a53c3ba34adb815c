"""The converters' shared helpers: archives, processes, tiles, tables, manifest,
MATLAB and NIfTI files, run lengths, command line.
"""

from __future__ import annotations

import io
import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from fake_encode import encode, mat, nifti, pack, rle, write_tree

from jseg.data.prepare import (ColorTable, IndexTable, Item, Job, Settings, Source, Tiling, convert_pair,
                               natural, pair_items)
from jseg.data.prepare.matfile import matrix, read_mat
from jseg.data.prepare.nifti import read_nifti
from jseg.data.prepare.parallel import map_items
from jseg.data.prepare.shapes import decode_rle, fill_polygons
from jseg.data.prepare.tiles import Box, pad_to, starts
from jseg.errors import ConvertError, DataError

QUIET = Settings(workers=1, progress=False)
ROOT = pathlib.Path(__file__).resolve().parents[3]


# ---- archives --------------------------------------------------------------------------------------------------------


def source(path, tmp_path, **options) -> Source:
    return Source([path], tmp_path / "scratch", **options)


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "tar.gz"])
def test_archives_read_alike(kind, tmp_path):
    members = {"b/2.txt": b"two", "a/1.txt": b"one", "__MACOSX/b/2.txt": b"junk", "a/.DS_Store": b"junk",
               f"inner.{kind}/c/3.txt": b"three"}
    (tmp_path / f"x.{kind}").write_bytes(pack(members, f"x.{kind}"))
    src = source(tmp_path / f"x.{kind}", tmp_path)
    assert src.names == [f"x.{kind}/a/1.txt", f"x.{kind}/b/2.txt", f"x.{kind}/inner.{kind}/c/3.txt"]
    assert [src.read(name) for name in src.names] == [b"one", b"two", b"three"]
    assert "x." in src.label(src.names[0]) and src.label(src.names[0]).endswith("a/1.txt")


def test_folder_and_archive_of_the_same_file(tmp_path):
    write_tree({"Train/1.png": b"plain", "Train.zip/Train/1.png": b"packed", "Train.zip/Train/2.png": b"packed"},
               tmp_path / "raw")
    src = source(tmp_path / "raw", tmp_path)
    found = src.find(r"(Train)/(\d)\.png")
    assert src.read(found["Train", "1"]) == b"plain" and src.read(found["Train", "2"]) == b"packed"


def test_same_name_in_two_archives_is_refused(tmp_path):
    write_tree({"a.zip/T/1.png": b"", "b.zip/T/1.png": b""}, tmp_path / "raw")
    with pytest.raises(ConvertError, match=r"a\.zip!T/1\.png and .*b\.zip!T/1\.png are the same picture"):
        source(tmp_path / "raw", tmp_path).find(r"T/(\d)\.png")


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png", "..\\evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_leave_the_archive(kind, name, tmp_path):
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(name), b"x")
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ConvertError, match="points outside of the archive"):
        source(path, tmp_path)
    assert not list(tmp_path.rglob("evil.png"))


def test_links_in_tar_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(ConvertError, match="a.png is a link"):
        source(tmp_path / "x.tar", tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_truncated_archives(kind, keep, tmp_path, rng):
    members = {f"{i}.bin": rng.integers(0, 256, 4000, dtype=np.uint8).tobytes() for i in range(6)}
    data = pack(members, f"x.{kind}")
    end = len(data) if kind != "tar" else 6 * 4608  # a tar is filled up with zeros after its end
    (tmp_path / f"x.{kind}").write_bytes(data[:int(end * keep)])
    with pytest.raises(ConvertError, match=rf"x\.{kind}: truncated.*download it again"):
        source(tmp_path / f"x.{kind}", tmp_path)


def test_tar_cut_between_members(tmp_path):
    data = pack({"a.bin": b"1" * 512, "b.bin": b"2" * 512}, "x.tar")
    (tmp_path / "x.tar").write_bytes(data[:1024])
    with pytest.raises(ConvertError, match="ends without its end mark"):
        source(tmp_path / "x.tar", tmp_path)


def test_damaged_zip_member(tmp_path, rng):
    data = bytearray(pack({"a/pic.png": rng.integers(0, 256, 3000, dtype=np.uint8).tobytes()}, "x.zip"))
    data[1500] ^= 255
    (tmp_path / "x.zip").write_bytes(data)
    src = source(tmp_path / "x.zip", tmp_path)
    with pytest.raises(ConvertError, match=r"x\.zip!a/pic\.png: truncated or damaged"):
        src.read(src.names[0])


def test_missing_source_and_nothing_found(tmp_path):
    with pytest.raises(ConvertError, match="does not exist: 'nowhere' is not in"):
        source(tmp_path / "nowhere", tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "readme.txt").write_text("x")
    with pytest.raises(ConvertError,
                       match=r"no pictures found; expected names like train/\*\.png \(there: readme.txt\)"):
        source(tmp_path / "raw", tmp_path).find(r"train/(\d+)\.png", "pictures")


# ---- processes -------------------------------------------------------------------------------------------------------


def slow_square(offset: int, item: Item) -> int:
    if item.values[0] == 13:
        raise ValueError("unlucky")
    if item.values[0] == 99:
        os._exit(7)
    return item.values[0] ** 2 + offset


def items(*values: int) -> list[Item]:
    return [Item(f"file{value}.png", slow_square, (), (value,)) for value in values]


@pytest.mark.parametrize("workers", [1, 2])
def test_map_keeps_the_order_and_names_the_file(workers):
    got = [result for _, result in map_items(slow_square, 5, items(*range(8)), workers=workers, progress=False)]
    assert got == [value ** 2 + 5 for value in range(8)]
    seen = []
    with pytest.raises(ConvertError, match=r"file13\.png: ValueError: unlucky"):
        for item, _ in map_items(slow_square, 5, items(1, 2, 13, *range(20, 60)), workers=workers, progress=False):
            seen.append(item.name)
    assert seen == ["file1.png", "file2.png"]


def test_killed_worker_is_one_clear_line():
    with pytest.raises(ConvertError, match=r"a worker process was killed .*file99\.png.*fewer --workers"):
        list(map_items(slow_square, 0, items(1, 99), workers=2, progress=False))


# ---- tiles -----------------------------------------------------------------------------------------------------------


def test_starts_and_boxes():
    assert starts(6000, 512, 512) == [*range(0, 5121, 512), 5488]
    # Potsdam, train
    assert len(starts(6000, 512, 512)) ** 2 * 24 == 3456 and len(starts(6000, 512, 256)) ** 2 * 24 == 12696
    assert starts(512, 512, 256) == [0] and starts(513, 512, 256) == [0, 1] and starts(100, 512, 256) == [0]
    assert list(Tiling.published(4).boxes(4, 6)) == [Box(0, 4, 0, 4), Box(0, 4, 2, 6)]
    assert list(Tiling.overlapping(2, 4, 1).boxes(3, 3)) == [Box(0, 2, 0, 3), Box(1, 3, 0, 3)]
    for overlap in (-1, 4):
        with pytest.raises(ConvertError, match="less than the smaller side"):
            Tiling.overlapping(4, 8, overlap)


def test_tiles_cover_every_pixel(rng):
    for _ in range(100):
        h, w, tile = rng.integers(1, 60, 3)
        overlap = rng.integers(0, tile)
        seen = np.zeros((h, w), int)
        for box in Tiling.overlapping(int(tile), int(tile), int(overlap)).boxes(int(h), int(w)):
            seen[box.top:box.bottom, box.left:box.right] += 1
            assert box.bottom - box.top == min(tile, h) and box.right - box.left == min(tile, w)
        assert seen.min() >= 1


def test_pad_to():
    assert np.array_equal(pad_to(np.ones((1, 2), np.uint8), 2, 2, 7), [[1, 1], [7, 7]])
    assert pad_to(np.ones((3, 2, 3)), 2, 4, 0).shape == (3, 4, 3)


WIDE = """
import sys
sys.path[:0] = [{root!r}]
import cv2, numpy as np
from jseg.data.prepare import *
img = np.zeros((5_000, 10_000, 3), np.uint8)
img[::7] = (255, 0, 0)
cv2.imwrite({folder!r} + '/mask.png', img, [cv2.IMWRITE_PNG_COMPRESSION, 1])
img[:] = 90
cv2.imwrite({folder!r} + '/pic.png', img, [cv2.IMWRITE_PNG_COMPRESSION, 1])
del img
open('/proc/self/clear_refs', 'w').write('5')  # forget the peak so far: making them took more than reading them may
with Job('wide', {folder!r}, {folder!r} + '/out', {{}}, Settings(1, progress=False)) as job:
    tiles = ('i_{{box.left}}_{{box.top}}.png', 'm_{{box.left}}_{{box.top}}.png')
    job.run(pair_items([(('pic.png', 'mask.png'), tiles)], cut_pair,
                       tiling=Tiling.published(2500), label=ColorTable({{(0, 0, 0): 0, (0, 0, 255): 1}})))
print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])
"""


def test_wide_pictures_need_little_memory(tmp_path):
    done = subprocess.run([sys.executable, "-c", WIDE.format(root=str(ROOT), folder=str(tmp_path))],
                          capture_output=True, text=True, timeout=100)
    if "clear_refs" in done.stderr:
        pytest.skip("the peak cannot be reset here")
    assert done.returncode == 0, done.stderr
    # half the height and half the memory of 10,000 x 10,000
    assert int(done.stdout) < 520_000, f"{done.stdout.strip()} KiB"
    assert len(list((tmp_path / "out").glob("m_*.png"))) == 8


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_color_table_reports_places_and_counts():
    table = ColorTable({(0, 0, 0): 0, (1, 2, 3): 7})
    rgb = np.zeros((5, 6, 3), np.uint8)
    rgb[2, 3] = (1, 2, 3)
    assert np.array_equal(np.argwhere(table(encode(rgb, "png"), "m.png") == 7), [[2, 3]])
    rgb[1, 4], rgb[4, 1:3] = (9, 9, 9), (3, 2, 1)
    with pytest.raises(DataError, match=r"m\.png: colour not in the colour map: \(3, 2, 1\) at 2 pixels, first at row "
                                        r"4, column 1; "
                                        r"\(9, 9, 9\) at 1 pixel, first at row 1, column 4\. Known are \(0, 0, 0\), "
                                        r"\(1, 2, 3\)"):
        table(encode(rgb, "png"), "m.png")
    assert ColorTable(table.colors, unknown=255)(encode(rgb, "png"), "m.png")[4, 1] == 255


def test_tables_over_several_strips(monkeypatch, rng):
    monkeypatch.setattr("jseg.data.prepare.palettes._STRIP", 40)
    mask = rng.integers(0, 4, (23, 17)).astype(np.uint8)
    assert np.array_equal(IndexTable({0: 9, 1: 8, 2: 7, 3: 6}).indices(mask, "m"), 9 - mask)
    mask[20, 16] = 200
    mask[3, 2] = 200
    with pytest.raises(DataError, match="200 at 2 pixels, first at row 3, column 2"):
        IndexTable({0: 9, 1: 8, 2: 7, 3: 6}).indices(mask, "m")


# ---- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
def test_mat_files(compress, rng):
    s = rng.integers(0, 500, (7, 5)).astype(np.uint16)
    data = mat({"S": s, "tiny": np.array([[3.0]]),
                "GTcls": {"B": [np.zeros((2, 2), np.uint8)], "Segmentation": s.astype(np.uint8)}}, compress)
    assert np.array_equal(matrix(data, "S"), s) and matrix(data, "tiny")[0, 0] == 3
    assert np.array_equal(matrix(data, "GTcls", "Segmentation"), s.astype(np.uint8))
    assert len(read_mat(data)["GTcls"]["B"]) == 1
    with pytest.raises(DataError, match=r"has no 'GTcls\.Seg' \(there: B, Segmentation\)"):
        matrix(data, "GTcls", "Seg")
    for broken in (data[:60], data[:-9], b"\x89HDF\r\n\x1a\n" + data, data[:140]):
        with pytest.raises(DataError, match="MATLAB file"):
            matrix(broken, "S")


def test_nifti(rng):
    import gzip
    volume = rng.integers(-1000, 1000, (4, 3, 2)).astype(np.int16)
    data = gzip.decompress(nifti(volume))
    assert np.array_equal(read_nifti(data, "x.nii").values(), volume)
    for broken, text in ((data[:-1], "truncated"), (data[:100], "not a NIfTI-1"), (b"\0" * 400, "not a NIfTI-1")):
        with pytest.raises(DataError, match=text):
            read_nifti(broken, "x.nii")


def test_run_lengths(rng):
    for density in (0.0, 0.02, 0.5, 1.0):
        mask = rng.random((9, 13)) < density
        assert np.array_equal(decode_rle(rle(mask), (9, 13), "x"), mask)
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    assert np.array_equal(decode_rle(plain, (2, 3), "x"), [[0, 1, 0], [1, 0, 0]])
    for broken, text in (({"size": [2, 3], "counts": [1, 2]}, "does not fit"),
                         ({"size": [3, 2], "counts": [6]}, "does not fit"),
                         ({"counts": [6]}, "not a run-length mask"),
                         ({"size": [2, 3], "counts": "\x01"}, "not a run-length mask")):
        with pytest.raises(DataError, match=text):
            decode_rle(broken, (2, 3), "x")


def test_polygons():
    assert np.array_equal(np.argwhere(fill_polygons([[(1, 1), (2, 1), (2, 2), (1, 2)]], (4, 5))),
                          [[1, 1], [1, 2], [2, 1], [2, 2]])


# ---- manifest --------------------------------------------------------------------------------------------------------


def simple_job(tmp_path, settings=QUIET, expected=None, names=("a", "b"), **options):
    with Job("simple", tmp_path / "raw", tmp_path / "out", expected or {}, settings) as job:
        table = IndexTable({0: 0, 1: options.get("one", 1)})
        return job.run(pair_items([((f"{n}.jpg", f"{n}.png"), (f"img/{n}.jpg", f"ann/{n}.png")) for n in names],
                                  convert_pair, label=table))


@pytest.fixture
def raw(tmp_path):
    """Two pictures with masks."""
    for name in "ab":
        write_tree({f"{name}.jpg": encode(np.zeros((4, 5, 3), np.uint8), "jpg"),
                    f"{name}.png": encode(np.eye(4, 5, dtype=np.uint8), "png")},
                   tmp_path / "raw")
    return tmp_path


def test_resume_skips_what_is_whole(raw):
    assert simple_job(raw).written == 2
    kept = simple_job(raw)
    assert (kept.written, kept.kept) == (0, 2)
    (raw / "out/ann/a.png").write_bytes(b"cut")
    (raw / "out/img/b.jpg").unlink()
    with open(raw / "out/.prepare-simple.jsonl", "a") as book:
        book.write('{"item": "a.p')  # a crash while writing
    assert simple_job(raw).written == 2
    assert simple_job(raw, Settings(1, overwrite=True, progress=False)).written == 2


def test_changed_source_or_options_are_done_again(raw):
    simple_job(raw)
    (raw / "raw/b.png").write_bytes(encode(np.zeros((4, 5), np.uint8), "png"))
    assert (simple_job(raw).written, simple_job(raw).kept) == (1, 2)
    assert simple_job(raw, one=3).written == 2


def test_old_tiles_do_not_stay(raw):
    simple_job(raw)
    with Job("simple", raw / "raw", raw / "out", {}, QUIET) as job:
        job.run(pair_items([(("a.jpg", "a.png"), ("img/renamed.jpg", "ann/renamed.png"))], convert_pair,
                           label=IndexTable({0: 0, 1: 1})))
    assert sorted(path.name for path in (raw / "out/img").iterdir()) == ["b.jpg", "renamed.jpg"]


def test_output_never_touches_the_source(raw):
    with pytest.raises(ConvertError, match="source and output are the same folder"):
        Job("x", raw / "raw", raw / "raw", {}, QUIET)
    with pytest.raises(ConvertError, match="would be written into the source"):
        with Job("x", raw / "raw", raw, {"raw/img": 1}, QUIET) as job:
            job.run([])
    with pytest.raises(ConvertError, match="the output must be a folder"):
        Job("x", raw / "raw", raw / "raw/a.jpg", {}, QUIET)


def test_two_items_never_write_one_file(raw):
    with pytest.raises(ConvertError, match=r"b\.png and a\.png both make img/same\.jpg"):
        with Job("x", raw / "raw", raw / "out", {}, QUIET) as job:
            job.run(pair_items([((f"{n}.jpg", f"{n}.png"), ("img/same.jpg", f"ann/{n}.png")) for n in "ab"],
                               convert_pair, label=IndexTable({0: 0, 1: 1})))


def test_counts(raw):
    with pytest.raises(ConvertError, match=r"counts are not the published ones: img 2 of 3\. .*--partial"):
        simple_job(raw, expected={"img": 3, "ann": None})
    report = simple_job(raw, Settings(1, partial=True, progress=False), expected={"img": 3, "ann": None})
    assert "img: 2 (published: 3)" in str(report) and "ann: 2\n" in str(report) + "\n"


def test_processes_give_what_one_gives(raw):
    simple_job(raw)
    one = {path.name: path.read_bytes() for path in (raw / "out").rglob("*.png")}
    simple_job(raw, Settings(2, overwrite=True, progress=False))
    assert one == {path.name: path.read_bytes() for path in (raw / "out").rglob("*.png")}


# ---- command ---------------------------------------------------------------------------------------------------------


def test_command_line_in_a_process(tmp_path):
    """Two workers, run as a user runs it: the script's own functions reach the workers."""
    from fake_raw import FAKES
    raw = FAKES["cityscapes"]()
    write_tree(raw.files, tmp_path / "raw")
    command = [sys.executable, str(ROOT / "tools/convert_datasets/cityscapes.py"), str(tmp_path / "raw"), "-o",
               str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run([*command, "--partial"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode == 0 and "cityscapes: 4 items converted" in done.stdout
            and "gtFine/train: 2 (published: 2975)" in done.stdout)
    assert "4/4" in done.stderr  # the progress bar
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert again.returncode == 2 and "gtFine/train 2 of 2975" in again.stderr and "Traceback" not in again.stderr
    shown = subprocess.run([*command[:2], "--help"], capture_output=True, text=True, timeout=60).stdout
    assert "Expected counts" in shown and shown.rstrip().splitlines()[-1].startswith(
        "example: python tools/convert_datasets/cityscapes.py")


@pytest.mark.parametrize("words, text", [([], "arguments are required"), (["x", "--workers", "-1"], "0 or more"),
                                         (["x", "--workres", "1"], "--workres")])
def test_usage_errors(words, text, capsys):
    from jseg.data.prepare import command
    assert command.run(interrupted_convert, words, out="x") == 2
    assert text in capsys.readouterr().err


def interrupted_convert(src, out, settings):
    raise KeyboardInterrupt


def test_interrupt(capsys, tmp_path):
    from jseg.data.prepare import command
    assert command.run(interrupted_convert, [str(tmp_path)], out="x") == 130
    assert "interrupted" in capsys.readouterr().err


def test_sorting():
    assert natural(["area10", "area2"]) == ["area2", "area10"]
