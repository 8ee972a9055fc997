"""The page in a real browser: it opens, sorts, filters, resolves, and asks nobody for anything."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from experiments.claims import CLAIMS
from experiments.reporting.browser import chromium, find_chromium

EXECUTABLE = find_chromium()
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None and not os.environ.get("CI"), reason="no Chromium or Chrome is installed"
)
SCHEMES = {"light": (253, 253, 251), "dark": (20, 23, 27)}


@pytest.fixture
def folder(written):
    return written


@pytest.fixture(scope="module")
def browser():
    assert EXECUTABLE is not None, "CI needs a Chromium"
    with chromium(EXECUTABLE) as started:
        yield started


@pytest.fixture
def tab(browser, folder):
    """A page with everything that it complained of or asked for; nothing but its own file is allowed."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto((folder / "index.html").as_uri())
    yield page
    assert page.complaints == []
    assert {url for url in page.asked if not url.startswith("data:")} == {(folder / "index.html").as_uri()}
    page.close()


def shown(tab):
    return tab.eval_on_selector_all("#claims-table > tbody:not([hidden])", "all => all.map(x => x.id)")


def test_it_opens_with_every_claim(tab):
    assert tab.title().startswith("Which parts")
    assert shown(tab) == [claim.key for claim in CLAIMS]
    assert tab.inner_text("#shown") == f"{len(CLAIMS)} of {len(CLAIMS)} claims shown"


def test_a_header_sorts_by_keyboard_and_says_so(tab):
    button = tab.locator("#claims-table > thead button", has_text="Verdict")
    button.focus()
    tab.keyboard.press("Enter")
    ranks = "all => all.map(x => Number(x.dataset.rank))"
    first = tab.eval_on_selector_all("#claims-table > tbody", ranks)
    assert first == sorted(first) and len(set(first)) > 2
    assert button.locator("xpath=..").get_attribute("aria-sort") == "ascending"
    tab.keyboard.press("Enter")
    assert tab.eval_on_selector_all("#claims-table > tbody", ranks) == sorted(first, reverse=True)
    assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"


def test_text_and_verdicts_filter(tab):
    everything = shown(tab)
    tab.fill("#search", "halting")
    found = shown(tab)
    assert "halting-at-once-when-blind" in found and "pythagoras" not in found
    tab.fill("#search", "")
    tab.uncheck("input[value='supported']")
    without = shown(tab)
    verdicts = tab.eval_on_selector_all("#claims-table > tbody:not([hidden])", "all => all.map(x => x.dataset.verdict)")
    assert without and "supported" not in verdicts
    tab.check("input[value='supported']")
    assert shown(tab) == everything


def test_a_row_opens_its_numbers_and_figure(tab):
    row = tab.locator("#radial-blind")
    row.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert row.locator("details").get_attribute("open") is not None
    assert row.locator("table.small tbody tr").count() == 6
    box = row.locator("svg[role=img] use").bounding_box()
    assert box["width"] > 300 and box["height"] > 100


def test_every_link_and_figure_resolves(tab, folder):
    for link in tab.eval_on_selector_all(
        "a[href], use", "all => all.map(a => a.getAttribute('href') || a.getAttribute('xlink:href'))"
    ):
        if link.startswith("#"):
            assert tab.evaluate("id => document.getElementById(id) !== null", unquote(link[1:])), link
        else:
            assert (folder / urlparse(link).path).is_file(), link
    inside = "all => all.map(x => x.getAttribute('xlink:href')).filter(Boolean)"
    for link in tab.eval_on_selector_all("figure svg use", inside):
        assert tab.evaluate("id => document.getElementById(id) !== null", link[1:]), link
    sizes = tab.eval_on_selector_all("figure svg", "all => all.map(x => x.getBoundingClientRect().height)")
    assert len(sizes) >= 15 and min(sizes) > 100


def test_light_dark_and_phone(tab):
    for width, scheme in itertools.product([1200, 360], SCHEMES):
        tab.set_viewport_size({"width": width, "height": 780})
        tab.emulate_media(color_scheme=scheme)
        red, green, blue = SCHEMES[scheme]
        style = "getComputedStyle(document.body).backgroundColor"
        assert tab.evaluate(style) == f"rgb({red}, {green}, {blue})", (width, scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, (width, scheme)
        for selector in ("body", ".soft", ".verdict", "summary", "figure svg text"):
            assert tab.evaluate(CONTRAST, selector) >= 4.5, (width, scheme, selector)


CONTRAST = """selector => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const ratios = [...document.querySelectorAll(selector)].map((element) => {
    const style = getComputedStyle(element);
    const fill = element instanceof SVGElement && style.fill.startsWith("rgb") ? style.fill : style.color;
    const [a, b] = [light(rgb(fill)), light(ground(element))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
  return Math.min(...ratios);
}"""


def test_headings_names_and_scopes(tab):
    levels = tab.eval_on_selector_all("h1, h2, h3", "all => all.map(x => Number(x.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert tab.eval_on_selector_all("th:not([scope])", "all => all.length") == 0
    unnamed = "all => all.filter(x => !x.getAttribute('aria-label')).length"
    assert tab.eval_on_selector_all("[role=img], [role=group]", unnamed) == 0


def test_the_screenshot_is_a_png(folder):
    """In a process of its own: playwright allows one browser a thread, and the tests above hold it."""
    script = Path(__file__).parents[3] / "experiments" / "screenshot.py"
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert (folder / "screenshot.png").read_bytes().startswith(b"\x89PNG")
