"""The report page in a real browser, Debian's Chromium: no error, and what a reader does works."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_parts import hostile_contents, model_view, run_record, sweep_record

from jaxlm.report.page import render

sync_api = pytest.importorskip("playwright.sync_api", exc_type=ImportError)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
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
    path.write_text(
        render("Report", [run_record("a"), run_record("b", 1)], [model_view("a")], [sweep_record()])
    )
    return path


@pytest.fixture
def visit(browser) -> Iterator[Any]:
    """Opens a file, and holds it in the end to have said nothing and asked for nothing."""
    said = []
    opened = []

    def open_(path: Path, width: int = 1200, height: int = 900, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        opened.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda request: request.url.startswith("file:") or said.append(request.url)
        )
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
    assert charts.count() == 4 + 1 + 2 + 3
    for chart in charts.all():
        box = chart.bounding_box()
        assert box["width"] > 200 and box["height"] > 100
    assert (
        page.locator("text[style*='font']").first.evaluate(
            "one => one.getBoundingClientRect().height"
        )
        > 6
    )
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    light = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")


def test_a_point_says_its_numbers(visit, file):
    page = visit(file)
    titles = page.locator(".chart use > title").all_text_contents()
    assert "a train, epoch 1: 300.00" in titles and "b validation, epoch 2: 155.50" in titles


def test_the_map_is_zoomed_by_its_buttons(visit, file):
    page = visit(file, 375, 800)
    svg = page.locator("#map-0 svg")
    before = svg.bounding_box()["width"]
    page.locator("[data-map='map-0'] [aria-label='zoom in']").press("Enter")
    assert svg.bounding_box()["width"] == pytest.approx(1.5 * before, rel=0.01)
    page.locator("[data-map='map-0'] [aria-label='zoom out']").click()
    assert svg.bounding_box()["width"] == pytest.approx(before, rel=0.01)


def test_a_word_that_is_searched_or_clicked_lights_up_its_neighbours(visit, file):
    page = visit(file)
    found = page.locator("#map-0-found")
    box = page.locator("[data-map='map-0'] input")
    box.focus()
    page.keyboard.type("word7")
    page.keyboard.press("Enter")
    assert "Nearest to word7" in found.inner_text()
    assert found.locator("button").all_inner_texts() == ["word8 0.90", "word9 0.80", "word10 0.70"]
    assert page.locator("#map-0 .picked text").text_content() == "word7"
    assert sorted(page.locator("#map-0 .near text").all_text_contents()) == [
        "word10",
        "word8",
        "word9",
    ]
    opacity = "getComputedStyle(document.querySelector('#map-0 [data-key=\"20\"]')).opacity"
    assert float(page.evaluate(opacity)) < 0.5
    found.locator("button").first.press("Enter")
    assert "Nearest to word8" in found.inner_text()
    box.fill("nothing")
    page.locator("[data-map='map-0'] button[type=submit]").click()
    assert "There is no nothing" in found.inner_text()
    page.locator("[data-map='map-0'] button[type=reset]").click()
    assert "Choose a word" in found.inner_text() and float(page.evaluate(opacity)) == 1
    page.locator("#map-0 [data-key='12']").click()
    assert "Nearest to word12" in found.inner_text()


def test_a_sweep_is_filtered_by_fields_by_brushes_and_back(visit, file):
    page = visit(file)
    sweep = page.locator("#sweep-0")
    count = sweep.locator("output")
    rows = sweep.locator("tbody tr:visible")
    assert rows.count() == 8
    sweep.locator("input[value='8']").uncheck()
    assert rows.count() == 4 and "4 of 8" in count.inner_text()
    assert sweep.locator("svg .faint").count() == 4 * 5
    sweep.locator("[data-axis='0'] input").first.fill("2")
    assert rows.count() == 2
    sweep.locator("button[type=reset]").click()
    rows.nth(7).wait_for()

    def drag(chart, start, end):
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        for place, move in (
            (start, page.mouse.move),
            (end, lambda x, y: page.mouse.move(x, y, steps=4)),
        ):
            move(box["x"] + box["width"] * place[0], box["y"] + box["height"] * place[1])
            if place is start:
                page.mouse.down()
        page.mouse.up()

    parallel = sweep.locator("[data-axis='all'] svg")
    drag(
        parallel, (0.88, 0.95), (0.88, 0.6)
    )  # along the axis of the perplexity, from 100 to 240: its lower part
    assert 1 <= rows.count() <= 5 and rows.first.locator("th").inner_text() == "0"
    assert sweep.locator("fieldset").last.locator("input").first.input_value() == "100"
    parallel.dblclick(position={"x": parallel.bounding_box()["width"] * 0.88, "y": 20})
    assert rows.count() == 8
    drag(sweep.locator("[data-axis='0'].chart svg"), (0.7, 0.02), (0.99, 0.9))
    assert (
        1 <= rows.count() < 8 and sweep.locator("[data-axis='0'] input").first.input_value() == "4"
    )


def test_hostile_words_are_words(visit, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render("Report", **hostile_contents()))
    page = visit(path)
    page.locator("[data-map='map-0'] input").fill("<script>alert(1)</script>")
    page.keyboard.press("Enter")
    assert "<script>alert(1)</script>" in page.locator("#map-0-found").inner_text()
    assert page.locator("script").count() == 2 and page.locator("img").count() == 0


def test_it_prints_with_the_facts_of_each_run_and_on_white(visit, file, tmp_path):
    page = visit(file, color_scheme="dark")
    data = page.pdf(format="A4")
    assert data.startswith(b"%PDF") and 50_000 < len(data) < 5_000_000
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav, .tools").first.is_visible()
