"""The page in a real browser: a picture goes in, mask, areas and downloads come out; at desktop and phone width."""

import json
import pathlib

import cv2
import numpy as np
import pytest
from browser import Browser, find_browser

from jseg.data.io import read_mask

PANEL = "!document.getElementById('panel').hidden"
FAULT = "document.getElementById('fault').textContent"
MASK = "document.getElementById('mask')"
PAINTED = (f"{MASK}.getContext('2d').getImageData(0, 0, {MASK}.width, {MASK}.height)"
           ".data.filter((value, i) => i % 4 === 3 && value === 255).length")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory, pictures):
    """A picture as a PNG and as a TIFF file, which browsers do not show, and a file that is none."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "street.png").write_bytes(pictures[0])
    cv2.imwrite(str(folder / "street.tif"), cv2.imdecode(np.frombuffer(pictures[0], np.uint8), cv2.IMREAD_COLOR))
    (folder / "cut.png").write_bytes(pictures[0][:-300])
    return folder


@pytest.mark.parametrize("width, height, dark", [(1280, 800, False), (390, 844, True)])
def test_a_picture_gives_mask_and_areas(server, browser, files, segmentor, tmp_path, width, height, dark):
    browser.open(server.address, width, height, dark=dark)
    browser.wait_for("document.getElementById('model').textContent")
    browser.choose_file("#file", files / "street.png")
    browser.wait_for(PANEL)
    labels = segmentor.infer(files / "street.png")
    counts = np.bincount(labels.ravel(), minlength=11)
    order = np.argsort(-counts, kind="stable")[:np.count_nonzero(counts)]
    rows = browser.value("[...document.querySelectorAll('#areas tr')].map((row) => row.innerText.split(/\\s*\\t\\s*/))")
    assert [(row[0].strip(), row[2]) for row in rows] == [(segmentor.classes[k], f"{counts[k]:,}") for k in order]
    assert browser.value(PAINTED) == labels.size
    browser.value("document.querySelector('#areas input').click()")
    assert browser.value(PAINTED) == labels.size - counts[order[0]], "a class that is switched off is not painted"
    browser.value("(() => { const slider = document.getElementById('opacity'); slider.value = 20;"
                  " slider.dispatchEvent(new Event('input')); })()")
    assert browser.value(f"getComputedStyle({MASK}).opacity") == "0.2"
    assert browser.value("document.documentElement.scrollWidth") <= width, "nothing may be cut off at the right"
    dark_paper = browser.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 100")
    assert dark_paper is dark
    browser.screenshot(tmp_path / "page.png")
    assert cv2.imread(str(tmp_path / "page.png")).shape[1] == width
    assert browser.faults() == []
    own = (server.address, "blob:", "data:", "about:")
    assert all(address.startswith(own) for address in browser.addresses()), "no other address is asked for anything"


def test_downloads_are_the_answers_of_the_api(server, browser, files, segmentor):
    browser.open(server.address, 1280, 800)
    browser.wait_for("document.getElementById('model').textContent")
    browser.choose_file("#file", files / "street.png")
    browser.wait_for(PANEL)
    for what, name in (("labels", "street_labels.png"), ("polygons", "street_polygons.geojson")):
        browser.value(f"document.querySelector('[data-what={what}]').click()")
        wait_for_file(browser, browser.folder / name)
    mask = read_mask(browser.folder / "street_labels.png")
    np.testing.assert_array_equal(mask, segmentor.infer(files / "street.png"))
    shapes = json.loads((browser.folder / "street_polygons.geojson").read_text())
    assert sum(shape["properties"]["pixels"] for shape in shapes["features"]) == shapes["width"] * shapes["height"]


def wait_for_file(browser, path: pathlib.Path) -> None:
    """The browser gives a download its name when it is whole; the page is asked meanwhile, so that time passes."""
    for _ in range(200):
        if path.is_file():
            return
        browser.value("new Promise((done) => setTimeout(done, 50))")
    raise AssertionError(f"{path.name} did not come; there are {sorted(p.name for p in path.parent.iterdir())}")


def test_what_the_browser_cannot_show_the_server_does_and_damage_is_told(server, browser, files):
    browser.open(server.address, 1280, 800)
    browser.wait_for("document.getElementById('model').textContent")
    browser.choose_file("#file", files / "street.tif")
    browser.wait_for(PANEL)
    assert browser.value("document.getElementById('picture').naturalWidth") == 120
    browser.choose_file("#file", files / "cut.png")
    browser.wait_for(FAULT)
    assert "cut.png" in browser.value(FAULT) and "truncated" in browser.value(FAULT)
    assert browser.value("document.getElementById('panel').hidden")
