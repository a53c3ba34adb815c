"""Fixtures every test may use."""

import os
import pathlib

import numpy as np
import pytest

import jseg  # noqa: F401  (prepares the process before any test imports Jittor)

SHARED = pathlib.Path(os.environ.get("JSEG_TEST_DATA", pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def shared_data() -> pathlib.Path:
    """The folder of real photographs with labels; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real photographs: {SHARED} is absent (set JSEG_TEST_DATA to a folder that holds camvid/ and raw/)")
    return SHARED
