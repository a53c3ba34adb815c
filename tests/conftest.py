"""Fixtures every test may use."""

import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

import jseg  # noqa: F401  (prepares the process before any test imports Jittor)

SHARED = pathlib.Path(os.environ.get("JSEG_TEST_DATA", pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"))


def pytest_addoption(parser):
    """`--slow` also runs the tests marked slow, `--zoo` those of all models."""
    parser.addoption("--slow", action="store_true", help="also run tests marked slow (minutes each)")
    parser.addoption("--zoo", action="store_true", help="run the contract of every model, not of one of each kind")


def pytest_configure(config):
    """Register the markers; a warning from jseg's own code is an error.

    A shell's background job begins with Ctrl-C ignored, and so would every process that a test interrupts: the tests
    begin as in the foreground.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow")
    config.addinivalue_line("markers", "zoo: a model beyond one of each kind; runs with --zoo (make test-zoo)")
    config.addinivalue_line("markers", "cuda: needs a GPU that Jittor can use")
    config.addinivalue_line("markers", "mpi: starts ranks")
    config.addinivalue_line("filterwarnings", "error:::jseg")


def pytest_collection_modifyitems(config, items):
    """Skip what this machine or this call leaves out, with the reason. Markers, not keywords: these hold the names of
    folders too, and a checkout may lie in one called "zoo".
    """
    import jseg.runtime
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if item.get_closest_marker("zoo") and not config.getoption("--zoo"):
            item.add_marker(pytest.mark.skip(reason="a model beyond one of each kind; run with --zoo"))
        if item.get_closest_marker("cuda") and not jseg.runtime.gpus():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
        if item.get_closest_marker("mpi") and not (shutil.which("mpirun") and shutil.which("mpicc")):
            item.add_marker(pytest.mark.skip(reason="no mpirun or mpicc here: apt-get install -y openmpi-bin "
                                                    "libopenmpi-dev"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def few_kernels():
    """Operations of Jittor run one by one: without fusion a model needs far fewer distinct kernels."""
    import jittor as jt
    with jt.flag_scope(lazy_execution=0):
        yield


@pytest.fixture
def plain_children():
    """Jittor's SIGCHLD handler would end this process when a child is killed."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


@pytest.fixture
def shared_data() -> pathlib.Path:
    """The folder of real photographs with labels; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real photographs: {SHARED} is absent (set JSEG_TEST_DATA to a folder that holds camvid/ and "
                    "raw/)")
    return SHARED
