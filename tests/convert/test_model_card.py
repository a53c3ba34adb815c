"""Cards of published models: what they say of data and speed is what the scripts and the measurements say."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

from jseg.cli import main
from jseg.convert.model_card import DATA_LICENCES, SPEEDS
from jseg.convert.model_index import read_models

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("dataset", DATA_LICENCES)
def test_licences_are_those_of_the_scripts(dataset):
    script, licence = DATA_LICENCES[dataset]
    words = " ".join(ast.get_docstring(ast.parse((ROOT / "tools" / "convert_datasets" / f"{script}.py").read_text()))
                     .split())
    assert re.search(rf"Licence: {re.escape(licence)}\.", words), words


def test_every_published_model_has_a_licence_of_its_data_or_says_so():
    lacking = {model.dataset for model in read_models().values()} - set(DATA_LICENCES)
    assert lacking == {"Mapillary Vistas v1.2"}


def test_speeds_are_rows_of_the_performance_page():
    page, models = (ROOT / "docs" / "performance.md").read_text(), read_models()
    for name, speed in SPEEDS.items():
        assert name in models and f"| {speed.row} | {speed.milliseconds:g} (" in page, name


def test_a_card_as_a_page(capsys):
    name = "segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512"
    assert main(["models", name, "--markdown"]) == 0
    page = capsys.readouterr().out
    for part in (f"# {name}\n", "| licence | weights Apache-2.0; data: annotations BSD-3-Clause",
                 "| parameters | 4,263,414",
                 "| operations | 6.61 G for one picture of 512x512", "| speed | 47.1 ms a picture of 512x512",
                 "mIoU(ms+flip): mean of six scales", "| file | sha256 begins with 05bd8466",
                 f"    jseg weights get {name}\n"):
        assert part in page, page
    assert main(["models", "--markdown"]) == 2 and "goes with the name of one model" in capsys.readouterr().err
