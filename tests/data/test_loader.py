"""The loader: the same batches whatever the number of workers, ranks and restarts;
faults that reach the user; nothing left behind.
"""

import gc
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from jseg.data import Loader, SegDataPreProcessor, build_loader
from jseg.data.datasets import FolderDataset
from jseg.data.loader import permutation
from jseg.data.transforms.base import Transform
from jseg.errors import ConfigError, DataError

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
PIPELINE = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"},
            {"type": "RandomResize", "scale": [40, 32], "ratio_range": [0.5, 2.0], "keep_ratio": True},
            {"type": "RandomCrop", "crop_size": [24, 24]}, {"type": "RandomFlip", "prob": 0.5},
            {"type": "PhotoMetricDistortion"}]


class Spy(Transform):
    """Notes what the process has imported and its threads."""

    def apply(self, sample, params):
        return {**sample, "spied": {"jittor": "jittor" in sys.modules, "torch": "torch" in sys.modules,
                                    "threads": os.environ.get("OMP_NUM_THREADS"), "pid": os.getpid()}}


class Slow(Transform):
    """Takes its time."""

    def apply(self, sample, params):
        time.sleep(0.3)
        return sample


@pytest.fixture
def root(tmp_path, rng):
    """Eleven pictures of different sizes with masks of 3 classes and the ignored label."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(11):
        h, w = 28 + i, 36 - i
        cv2.imwrite(str(tmp_path / "images" / f"{i:02d}.png"), rng.integers(256, size=(h, w, 3), dtype=np.uint8))
        cv2.imwrite(str(tmp_path / "masks" / f"{i:02d}.png"),
                    rng.choice(np.array([0, 1, 2, 255], np.uint8), size=(h, w)))
    return tmp_path


def make(root, pipeline=PIPELINE, *, training=True, workers=0, size=4, **options):
    dataset = FolderDataset(data_root=str(root), metainfo={"classes": ["a", "b", "c"]}, pipeline=pipeline)
    preprocessor = SegDataPreProcessor(MEAN, STD, bgr_to_rgb=True, size=[24, 24], test_cfg={"size_divisor": 16})
    return Loader(dataset, preprocessor, batch_size=size, num_workers=workers, seed=3, training=training, **options)


def take(loader, count):
    stream = iter(loader)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def assert_same(a, b):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.metas == b.metas


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_resume_change_nothing(root, workers):
    alone = take(make(root), 9)
    # all seven are held at once: memory must not be used again
    shared = take(make(root, workers=workers, start_iter=2), 7)
    for a, b in zip(alone[2:], shared):
        assert_same(a, b)
    seen = [(meta["epoch"], meta["index"]) for batch in alone for meta in batch.metas][:33]
    assert seen == [(e, i) for e in range(3) for i in permutation(11, 3, e).tolist()]
    repeats = [b.images[0].tobytes() for b in alone]
    assert len(set(repeats)) == len(repeats)


def test_batches_are_views_of_shared_memory_until_too_many_are_held(root):
    stream = iter(make(root, workers=1))
    first = next(stream)
    copy = first.images.copy()
    part = first.images[0, :, 2:4]
    del first
    for _ in range(12):
        next(stream)
    np.testing.assert_array_equal(part, copy[0, :, 2:4])
    stream.close()
    np.testing.assert_array_equal(part, copy[0, :, 2:4])


def test_mosaic_draws_its_samples_from_the_same_generator(root):
    pipeline = [*PIPELINE[:2], {"type": "RandomMosaic", "prob": 0.7, "img_scale": [20, 20]}, *PIPELINE[2:]]
    for a, b in zip(take(make(root, pipeline), 3), take(make(root, pipeline, workers=2), 3)):
        assert_same(a, b)


def test_ranks_share_each_batch(root):
    whole = take(make(root), 3)
    parts = [take(make(root, rank=rank, world_size=2), 3) for rank in range(2)]
    for step in range(3):
        for rank in range(2):
            np.testing.assert_array_equal(whole[step].images[rank::2], parts[rank][step].images)
    thirds = [take(make(root, rank=rank, world_size=3), 1)[0].images for rank in range(3)]  # 2 + 1 + 1 pictures
    for rank in range(3):
        np.testing.assert_array_equal(whole[0].images[rank::3], thirds[rank])
    with pytest.raises(ValueError, match="batch_size is 4 .* 5 ranks; .* at least 5, or start at most 4 ranks"):
        make(root, rank=0, world_size=5)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_every_picture_once_in_order(root, workers):
    loader = make(root, PIPELINE[:2], training=False, workers=workers)
    batches = list(loader)
    assert [meta["index"] for batch in batches for meta in batch.metas] == list(range(11))
    assert len(loader) == len(batches) == 3 and loader.wait_seconds > 0
    batch, meta = batches[0], batches[0].metas[1]
    assert batch.images.shape == (4, 3, 32, 48) and batch.labels.shape == (4, 31, 36)
    assert meta["ori_shape"] == meta["label_shape"] == meta["img_shape"] == (29, 35) and meta["pad_shape"] == (32, 48)
    assert (batch.labels[1, 29:] == 255).all() and (batch.images[1, :, :, 35:] == 0).all()
    halves = [make(root, PIPELINE[:2], training=False, rank=rank, world_size=2) for rank in range(2)]
    assert [[m["index"] for b in half for m in b.metas] for half in halves] == [[0, 1, 2, 3, 8, 9, 10], [4, 5, 6, 7]]
    assert [len(half) for half in halves] == [2, 1]
    # more ranks than batches
    assert not list(make(root, PIPELINE[:2], training=False, workers=workers, rank=3, world_size=4))


def test_workers_import_no_framework_and_use_one_thread(root):
    batch, = take(make(root, [*PIPELINE[:2], Spy(), *PIPELINE[2:]], workers=1), 1)
    spied = batch.metas[0]["spied"]
    assert spied.pop("pid") != os.getpid()
    assert spied == {"jittor": False, "torch": False, "threads": "1"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_stops_the_stream_at_its_batch_and_is_named(root, workers):
    bad = root / "images" / "09.png"
    bad.write_bytes(bad.read_bytes()[:300])
    stream = iter(make(root, PIPELINE[:2], training=False, workers=workers))
    assert len(next(stream)) == len(next(stream)) == 4
    with pytest.raises(DataError, match=r"images/09\.png"):
        next(stream)


def test_training_without_masks_is_refused(root):
    with pytest.raises(DataError, match=r"\.png: no mask to learn from; set data_prefix\.seg_map_path"):
        take(make(root, PIPELINE[:1]), 1)


def test_a_killed_worker_is_reported_and_nothing_hangs(root):
    stream = iter(make(root, [*PIPELINE[:2], Slow(), Spy(), *PIPELINE[2:]], workers=2, size=2))
    os.kill(next(stream).metas[0]["spied"]["pid"], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"data worker \d \(process \d+\) was killed by SIGKILL; .*batch \d+ \(.*\.png"):
        for _ in range(20):
            next(stream)
    assert time.monotonic() - began < 5


def children(parent):
    """Ids of a process's living children."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                state, ppid = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(ppid) == parent and state != "Z":
            found.add(int(pid))
    return found


def test_a_forgotten_iterator_ends_its_workers(root):
    gc.collect()
    before, files = children(os.getpid()), len(os.listdir("/proc/self/fd"))
    stream = iter(make(root, workers=2))
    next(stream)
    assert len(children(os.getpid()) - before) == 2
    del stream
    gc.collect()
    assert children(os.getpid()) == before and len(os.listdir("/proc/self/fd")) == files


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background ignores it
from jseg.data import Loader, SegDataPreProcessor
from jseg.data.datasets import FolderDataset
{extra}
dataset = FolderDataset(data_root=sys.argv[1], metainfo={{"classes": ["a", "b", "c"]}},
                        pipeline=[{{"type": "LoadImageFromFile"}}, {{"type": "LoadAnnotations"}}, *EXTRA])
for batch in Loader(dataset, SegDataPreProcessor(size=[64, 64]), batch_size=2, num_workers=2, seed=0, training=True):
    print("ready", flush=True)
    time.sleep(60)
"""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_end_of_the_parent_is_the_end_of_the_workers(root, how):
    with subprocess.Popen([sys.executable, "-c", SCRIPT.format(extra="EXTRA = []"), str(root)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        pids = children(process.pid)
        assert len(pids) == 2
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)  # Ctrl-C reaches the workers too
        errors = process.communicate(timeout=30)[1]  # until the workers, who share it, are gone too
    assert errors.count("Traceback") <= (how == signal.SIGINT)
    deadline = time.monotonic() + 5
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))


def test_a_transform_of_the_main_script_is_refused_with_a_cure(root):
    extra = ("from jseg.data.transforms.base import Transform\nclass Mine(Transform):\n"
             "    def apply(self, sample, params):\n        return sample\nEXTRA = [Mine()]")
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(extra=extra), str(root)], text=True,
                          capture_output=True, timeout=60)
    assert "ConfigError: Mine is defined in the main script" in done.stderr  # Python 3.14 adds where it was serializing


def test_preprocessor_is_the_formula(rng):
    img = rng.integers(256, size=(5, 7, 3), dtype=np.uint8)
    label = rng.integers(3, size=(5, 7), dtype=np.uint8)
    pre = SegDataPreProcessor(MEAN, STD, bgr_to_rgb=True, size=[8, 9], pad_val=0.5, seg_pad_val=254,
                              test_cfg={"resize_divisor": 4})
    batch = pre.batch([{"img": img, "gt_seg_map": label, "img_path": "a", "ori_shape": (5, 7)}], True)
    expected = (img[..., ::-1].astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_array_equal(batch.images[0, :, :5, :7], expected.transpose(2, 0, 1))
    assert batch.images.shape == (1, 3, 8, 9) and batch.images.flags.c_contiguous and batch.images.dtype == np.float32
    assert (batch.images[0, :, 5:] == 0.5).all() and (batch.images[0, :, :, 7:] == 0.5).all()
    np.testing.assert_array_equal(batch.labels[0], np.pad(label, ((0, 3), (0, 2)), constant_values=254))
    assert batch.metas[0]["padding_size"] == (0, 2, 0, 3) and batch.metas[0]["pad_shape"] == (8, 9)
    test = pre.batch([{"img": img, "gt_seg_map": label, "img_path": "a", "ori_shape": (5, 7)}], False)
    resized = cv2.resize(img, (8, 8), interpolation=cv2.INTER_LINEAR)[..., ::-1].astype(np.float32)
    np.testing.assert_array_equal(test.images[0], ((resized - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1))
    assert (test.labels.shape == (1, 5, 7) and test.metas[0]["img_shape"] == (8, 8)
            and test.metas[0]["padding_size"] == (0, 0, 0, 0))
    with pytest.raises(ValueError, match="unknown key 'size_divisior' in test_cfg; did you mean 'size_divisor'"):
        SegDataPreProcessor(test_cfg={"size_divisior": 32})


def test_build_loader_reads_the_config_and_names_its_mistakes(root):
    block = {"batch_size": 2, "num_workers": 0,
             "dataset": {"type": "FolderDataset", "data_root": str(root), "pipeline": PIPELINE[:2],
                         "metainfo": {"classes": ["a", "b", "c"]}}}
    cfg = {"model": {"decode_head": {"num_classes": 3}},
           "data_preprocessor": {"type": "SegDataPreProcessor", "size": [64, 64]},
           "train_dataloader": block, "val_dataloader": block, "seed": 5}
    loader = build_loader(cfg, "train", start_iter=4)
    assert (loader.training, loader.start_iter, loader.seed, loader.dataset.test_mode) == (True, 4, 5, False)
    assert next(iter(loader)).images.shape == (2, 3, 64, 64)
    assert build_loader(cfg, "test").dataset.test_mode and len(build_loader(cfg, "test")) == 6
    cfg["model"]["decode_head"]["num_classes"] = 4
    with pytest.raises(ConfigError,
                       match=r"num_classes is 4, but FolderDataset of val_dataloader has 3 classes \(a, b, c"):
        build_loader(cfg, "val")
    with pytest.raises(ConfigError, match="train_dataloader: unknown key 'batchsize'; did you mean 'batch_size'"):
        build_loader({**cfg, "train_dataloader": {**block, "batchsize": 2}}, "train")
