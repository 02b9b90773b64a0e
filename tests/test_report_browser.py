"""The report page in a real browser, Debian's Chromium: no error, and what a reader does works."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_parts import hostile_contents, model_view, run_record, sweep_record

from jaxlm.report.page.contents import Contents
from jaxlm.report.page.page import render

sync_api = pytest.importorskip("playwright.sync_api", exc_type=ImportError)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = [(1440, 900), (800, 1000), (375, 800)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A page of two runs, a model and a sweep."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    contents = Contents([run_record("a"), run_record("b", 1)], [model_view("a")], [sweep_record()])
    path.write_text(render(contents, "Report"))
    return path


@pytest.fixture
def visit(browser) -> Iterator[Any]:
    """Opens a file, and holds it in the end to have said nothing and asked for nothing."""
    said, opened = [], []

    def open_(path: Path, width: int = 1200, height: int = 900, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        opened.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith("file:") or said.append(request.url))
        page.goto(path.resolve().as_uri())
        page.wait_for_function("document.documentElement.dataset.ready", timeout=60_000)
        return page

    yield open_
    for page in opened:
        page.close()
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", SIZES)
def test_it_fits_every_size_in_light_and_dark(visit, file, width, height, scheme):
    page = visit(file, width, height, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator(".chart svg")
    assert charts.count() == 4 + 1 + 1 + 1 + 3
    for chart in charts.all():
        box = chart.bounding_box()
        assert 200 < box["width"] <= width and box["height"] > 100
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    light = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")


def test_hovering_shows_the_numbers_of_a_point(visit, file):
    page = visit(file)
    page.locator("#charts-0 .mark-symbol path[aria-label*='perplexity']").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    tip = page.locator("#vg-tooltip-element").inner_text()
    assert "epoch" in tip and "perplexity" in tip and "300.00" in tip


def test_zooming_by_button_by_wheel_and_back(visit, file):
    page = visit(file)
    ticks = page.locator("#charts-0 .role-axis-label text")
    before = sorted(ticks.all_text_contents())
    page.locator("[data-chart='charts-0'][data-zoom=in]").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => document.querySelectorAll('#charts-0 .role-axis-label text').length !== before", arg=len(before)
    )
    page.locator("[data-chart='charts-0'][data-zoom=reset]").click()
    page.wait_for_function(
        "before => document.querySelectorAll('#charts-0 .role-axis-label text').length === before", arg=len(before)
    )
    assert sorted(ticks.all_text_contents()) == before
    page.locator("#charts-0 svg").hover()
    page.mouse.wheel(0, 300)  # without Ctrl the page scrolls
    page.wait_for_function("scrollY > 0")
    assert sorted(ticks.all_text_contents()) == before


def test_a_word_that_is_searched_or_clicked_lights_up_its_neighbours(visit, file):
    page = visit(file)
    found, box = page.locator("#maps-0-found"), page.locator("[data-search='maps-0']")
    box.focus()
    page.keyboard.type("word7")
    page.keyboard.press("Enter")
    assert "Nearest to word7" in found.inner_text()
    assert found.locator("button").all_inner_texts() == ["word8 0.90", "word9 0.80", "word10 0.70"]
    shown = page.locator("#maps-0 .mark-text text[opacity='1']")
    assert sorted(shown.all_text_contents()) == ["word10", "word7", "word8", "word9"]
    found.locator("button").first.press("Enter")
    assert "Nearest to word8" in found.inner_text()
    box.fill("nothing")
    page.locator("[data-form='maps-0'] button[type=submit]").click()
    assert "There is no nothing" in found.inner_text()
    page.locator("[data-clear='maps-0']").click()
    assert "Choose a word" in found.inner_text()
    page.locator("#maps-0 .mark-symbol path").nth(12).click(force=True)
    assert "Nearest to word12" in found.inner_text()


def test_a_sweep_is_filtered_by_fields_by_brushes_and_back(visit, file):
    page = visit(file)
    count, rows = page.locator("#sweeps-0-count"), page.locator("tr[data-of='sweeps-0']:visible")
    assert rows.count() == 8
    page.locator("[data-sweep='sweeps-0'][value='8']").uncheck()
    assert rows.count() == 4 and "4 of 8" in count.inner_text()
    page.locator("[data-sweep='sweeps-0'][data-axis='0'][data-bound=from]").fill("2")
    assert rows.count() == 2
    page.locator("[data-all='sweeps-0']").click()
    assert rows.count() == 8
    axis = page.locator("#sweeps-0-parallel .hit path").last  # that of the perplexity, from 100 to 240
    axis.scroll_into_view_if_needed()
    box = axis.bounding_box()
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + box["height"] * 0.7)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] - 1, steps=4)
    page.mouse.up()
    page.wait_for_function("document.querySelectorAll('tr[data-of]:not([hidden])').length < 8")
    assert 1 <= rows.count() <= 3
    axis.dblclick(force=True)
    page.wait_for_function("document.querySelectorAll('tr[data-of]:not([hidden])').length === 8")
    part = page.locator("#sweeps-0-slice-0 svg")
    part.scroll_into_view_if_needed()
    box = part.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 15)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 190, steps=4)
    page.mouse.up()
    page.wait_for_function("document.querySelectorAll('tr[data-of]:not([hidden])').length < 8")
    assert rows.count() >= 1


def test_hostile_words_are_words(visit, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(hostile_contents(), "Report"))
    page = visit(path)
    page.locator("[data-search='maps-0']").fill("<script>alert(1)</script>")
    page.keyboard.press("Enter")
    assert "<script>alert(1)</script>" in page.locator("#maps-0-found").inner_text()
    page.locator("#maps-0 .mark-symbol path").first.hover(force=True)
    assert page.locator("script").count() == 3 and page.locator("img").count() == 0


def test_it_prints_with_the_facts_of_each_run_and_on_white(visit, file, tmp_path):
    page = visit(file, color_scheme="dark")
    data = page.pdf(format="A4")
    assert data.startswith(b"%PDF") and 50_000 < len(data) < 5_000_000
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav, .tools").first.is_visible()
