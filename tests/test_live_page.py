"""The page that runs a model: its surprisals are those of Python, and it asks for nothing."""

import base64
import csv
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from page_parts import model_view, run_record
from recipes import drawn_params

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.cli.tables import table_text
from jaxlm.data.subwords import Subwords
from jaxlm.data.tokens import Bytes, Characters
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.interop import export_html
from jaxlm.interop.export_html import to_html
from jaxlm.interop.exporting import export_model
from jaxlm.report.page import render
from jaxlm.runs import state_arrays

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
WORDS = Vocab((EOS, UNK, "the", "old", "man", "N", "<b>bold</b>", "</script>", "sat", "down"))
MODELS = {
    "lstm": {"forget_bias": 1.0},
    "gru": {"torch_init": True},
    "mingru": {},
    "minlstm": {},
    "mogrifier": {"rank": 3, "layer_norm": True, "cell_clip": 0.5},
    "mogrifier-coupled": {"model": "mogrifier", "input_gate": "coupled", "rounds": 3},
    "mogrifier-capped": {"model": "mogrifier", "input_gate": "capped"},
    "tied": {"model": "lstm", "tied": True, "scale_embedding": True},
    "projected": {"model": "lstm", "tied": True, "projection": True, "hidden_sizes": (8, 7)},
    "skip": {"model": "gru", "skip": True},
    "running sum": {"model": "lstm", "running_sum": True, "hidden_sizes": (6, 6, 6)},
    "mixture": {"model": "lstm", "experts": 3, "latent_size": 5, "mixture_epsilon": 1e-8},
}


def random_model(vocab: Vocab = WORDS, **fields: Any) -> jaxlm.LanguageModel:
    """A model of random parameters, large enough that its probabilities differ."""
    sizes = {"embedding_size": 6, "hidden_sizes": (6, 6), "init_scale": 0.7}
    config = jaxlm.Config().replace(vocab_size=len(vocab), **{**sizes, **fields})
    params = drawn_params(config.model)
    corpus = {"name": "a <text>", "sha256": "0"}
    return jaxlm.LanguageModel(params, config, vocab, corpus)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"model": "hawk"}, "hawk"),
        ({"model": "lstm", "block": "residual"}, "lstm in residual blocks"),
        ({"model": "attention"}, "attention"),
    ],
)
def test_a_kind_that_no_function_of_the_page_runs_is_refused_by_name(fields, name):
    remedy = "export it --to hub or stablehlo"
    with pytest.raises(JaxlmError, match=rf"lstm, gru, .*and this model is {name}: {remedy}$"):
        to_html(random_model(**fields))


def test_a_page_is_one_file_that_asks_for_nothing(tmp_path):
    model = random_model()
    export_model(model, "html", tmp_path / "model.html")
    page = (tmp_path / "model.html").read_text()
    assert "default-src 'none'" in page and "unsafe" not in page
    assert not re.search(r"(src|href)=|https?://|@import|\bimport ", page)
    assert page.count("</script>") == 3  # those of the page itself, and none of the vocabulary
    assert "<b>bold" not in page


def test_a_report_has_the_page_of_its_best_model_and_names_its_script():
    page = to_html(random_model())[0].decode()
    shown = replace(model_view(), live=page)
    report = render("Report", [run_record()], [shown])
    (srcdoc,) = re.findall(r'<iframe [^>]*srcdoc="([^"]*)"', report)
    assert html.unescape(srcdoc) == page
    policy, inner = (re.findall(r"'(sha256-[^']+)'", text)[:2] for text in (report, page))
    assert policy[1] == inner[0]  # of the script; the page's own is the first


def arrays_of(page: bytes) -> dict[str, np.ndarray]:
    """The arrays of a page by name, unpacked in another way than its script does."""
    text = page.decode()
    config = json.loads(re.findall(r'id="config">(.*)</script>', text)[0])
    weights = base64.b64decode(re.findall(r'id="weights">(.*)</script>', text)[0])
    arrays = {}
    places = jax.tree_util.tree_leaves_with_path(
        config["params"], is_leaf=lambda tree: "offset" in tree
    )
    for path, place in places:
        start = place["offset"]
        if "size" in place:
            values = np.frombuffer(weights, "<f4", place["size"], start)
        else:
            rows, columns, bits, inputs = map(place.get, ("rows", "columns", "bits", "inputs"))
            scales = np.frombuffer(weights, "<f4", rows * -(-columns // inputs), start)
            stream = int.from_bytes(weights[start + 4 * scales.size :], "little")
            codes = [(stream >> (place * bits)) % 2**bits for place in range(rows * columns)]
            numbers = np.array([code - 2**bits * (code >> (bits - 1)) for code in codes])
            each = np.repeat(scales.reshape(rows, -1), inputs, axis=1)[:, :columns]
            values = numbers.reshape(rows, columns) * each
        arrays[jax.tree_util.keystr(path, simple=True, separator=".")] = values
    return arrays


@pytest.mark.parametrize("bits", [8, 11, 16])
def test_weights_take_as_many_bits_as_the_page_has_room_for(bits, monkeypatch):
    monkeypatch.setattr(export_html, "INPUTS", 4)  # the last block of a row is not whole
    model = random_model()
    monkeypatch.setattr(export_html, "MOST_BITS", bits)
    page, (note,) = to_html(model)
    monkeypatch.setattr(export_html, "MOST_BITS", 16)
    monkeypatch.setattr(export_html, "MOST_BYTES", len(page) + 50)  # a bit takes 100 bytes
    assert to_html(model)[0] == page and f" {bits} bits" in note
    monkeypatch.setattr(export_html, "MOST_BYTES", len(page) - 50)
    assert (to_html(model)[0] == page) == (bits == 8)
    arrays = arrays_of(page)
    layer = model.params["layers"][0]
    np.testing.assert_array_equal(arrays["layers.0.bias"], layer["bias"])
    for values, read in (
        (model.params["embedding"], arrays["embedding"]),
        (np.transpose(layer["kernel"]), arrays["layers.0.kernel"]),
    ):
        for start in range(0, values.shape[1], 4):
            block = values[:, start : start + 4]
            half_step = np.abs(block).max(1, keepdims=True) / (2**bits - 2)
            assert (np.abs(read[:, start : start + 4] - block) <= 1.001 * half_step).all()


def test_weights_that_were_rounded_before_are_the_same_on_the_page():
    model = random_model(embedding_size=64)
    once = state_arrays.rounded(model.params)
    embedding = once["params"]["embedding"]
    scales = once["scales"]["embedding"][:, None]
    values = np.reshape(embedding.reshape(-1, state_arrays.SHARING) * scales, embedding.shape)
    model.params["embedding"] = jnp.asarray(values)
    page = to_html(model)[0]
    assert page.count(b'"bits": 8') == 1
    np.testing.assert_allclose(arrays_of(page)["embedding"], values, rtol=1e-6)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module", params=["chromium", "firefox"])
def browser(request, downloads) -> Iterator[Any]:
    """Debian's Chromium, and its Firefox: the latter by WebDriver BiDi, as it is."""
    sync_api = pytest.importorskip("playwright.sync_api", exc_type=ImportError)
    if CHROMIUM is None and request.param == "chromium":
        pytest.skip("no Chromium: apt-get install chromium")
    if FIREFOX is None and request.param == "firefox":
        pytest.skip("no Firefox: apt-get install firefox-esr")
    with sync_api.sync_playwright() as playwright:
        if request.param == "chromium":
            opened = playwright.chromium.launch(
                executable_path=CHROMIUM, args=FLAGS, downloads_path=downloads
            )
        else:
            opened = playwright.firefox.launch(
                executable_path=FIREFOX, channel="moz-firefox", downloads_path=downloads
            )
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, tmp_path) -> Iterator[Any]:
    """Opens a model's page; in the end it has said nothing and asked for nothing."""
    said: list[str] = []
    pages = []

    def open_(model: jaxlm.LanguageModel, **options: Any) -> Any:
        return open_page(to_html(model)[0].decode(), "() => !!window.surprisals", **options)

    def open_page(text: str, ready: str, **options: Any) -> Any:
        file = tmp_path / "model.html"
        file.write_text(text)
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_function(ready)
        return page

    open_.page = open_page
    yield open_
    for page in pages:
        page.close()
    assert [text for text in said if not text.startswith("file:")] == []


def surprisals(page: Any, line: str) -> np.ndarray:
    return np.array(page.evaluate("line => window.surprisals(line)", line))


def saved(page: Any, downloads: Path) -> str:
    """The table that the page saves; Firefox's own events of a download do not reach Playwright."""
    before = set(downloads.rglob("*"))
    page.click("#save")
    for _ in range(100):
        page.wait_for_timeout(100)
        for file in set(downloads.rglob("*")) - before:
            if file.is_file() and file.read_text().endswith("\n"):
                return file.read_text()
    raise AssertionError("no table was saved within ten seconds")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_surprisals_are_those_of_python(name, visit, monkeypatch):
    monkeypatch.setattr(export_html, "MOST_BITS", 13)  # no whole bytes
    monkeypatch.setattr(export_html, "INPUTS", 4)
    model = random_model(**{"model": name, **MODELS[name]})
    page = visit(model)
    for line in ("the old man sat down", "man zebra the the the N sat", "</script> <b>bold</b>"):
        expected = model.surprisal([line]).surprisal
        np.testing.assert_allclose(surprisals(page, line), expected, rtol=0, atol=0.003)


@pytest.mark.slow
def test_english_fits_its_page_and_is_as_good_there(visit):
    model = jaxlm.load("english")
    assert len(to_html(model)[0]) <= 8_000_000
    page = visit(model)
    lines = ["The keys to the old house were on the table.", "It was naïve, he said -- to hope."]
    expected = model.word_surprisal(lines).columns()["surprisal"]
    shown = np.concatenate([surprisals(page, line) for line in lines])
    np.testing.assert_allclose(shown, expected, rtol=0, atol=0.01)


def trained_subwords(algorithm: str) -> Vocab:
    counts = {"the": 40, " old": 20, " man": 20, " sat": 9, " oldest": 5, " mansion": 4, "\n": 20}
    tokens = Subwords.train(counts, 272, algorithm)
    return Vocab(tokens.names, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe", "unigram"])
def test_pieces_are_those_of_python(kind, visit):
    if kind == "characters":
        letters = Characters()
        vocab = Vocab.build([*"the old mansion sat down\n" * 3], kind=letters)
    elif kind == "bytes":
        vocab = Vocab(Bytes().names, Bytes())
    else:
        vocab = trained_subwords(kind)
    model = random_model(vocab)
    page = visit(model)
    lines = ["the old man sat", "the oldest mansion sat old", "  the  old man "]
    if kind != "characters":  # which lack these letters
        lines += ["the <unk> <0x41>", "the\told\u2581man a\ufeffb \u2581"]
    for line in lines:
        expected = model.word_surprisal([line]).columns()["surprisal"]
        np.testing.assert_allclose(surprisals(page, line), expected, rtol=0, atol=0.002)


@pytest.mark.slow
def test_words_are_cut_as_those_of_penn_treebank(visit):
    pieces = (
        "the company 's wo n't ca '80s N % $ `` '' -- mr. inc. corp N\\/N and\\/or not . gon na"
    )
    model = random_model(Vocab((EOS, UNK, *pieces.split())))
    assert model.tokenizer() is model.tokenizer("ptb")
    page = visit(model)
    for line in (
        "The company's Inc. can't -- \u201cwon\u2019t\u201d. Corp.",
        "cannot gonna 3.5% US$7,000.50 (1/2 of '80s) and/or \"'the'\". \u0663%",
        "the company 's constructor -- .",
    ):
        expected = model.surprisal([line]).surprisal
        np.testing.assert_allclose(surprisals(page, line), expected, rtol=0, atol=0.002)


@pytest.mark.slow
def test_punctuation_that_stands_at_words_is_unknown_where_python_says_so(visit):
    model = random_model(Vocab((EOS, UNK, "The", "man", "man.", "old,", "N")))
    page = visit(model)
    for line in ("The man, the man. 3.5", "THE man"):
        expected = model.surprisal([line]).surprisal
        np.testing.assert_allclose(surprisals(page, line), expected, rtol=0, atol=0.002)


@pytest.mark.slow
def test_the_words_expected_are_those_of_predict(visit):
    model = random_model(Vocab.build([*"the old\nman" * 3], kind=Characters()))
    page = visit(model)
    page.fill("#text", "the old man")
    page.locator(".word").nth(2).focus()
    page.wait_for_function("() => document.querySelectorAll('#expected li').length == 10")
    shown = [item.rsplit(" ", 1) for item in page.locator("#expected li").all_inner_texts()]
    for (word, share), (expected, p) in zip(shown, model.predict("\nthe old", 10), strict=True):
        assert word == expected
        assert float(share[:-1]) == pytest.approx(100 * p, abs=0.06)


@pytest.mark.slow
def test_a_letter_that_no_token_stands_for_ends_the_reading(visit):
    page = visit(random_model(Vocab.build([*"the old man\n" * 3], kind=Characters())))
    page.fill("#text", "the zoo man")
    page.wait_for_selector("text=no token for a part of “zoo”")
    assert page.locator("#result .word").count() == 2


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [WORDS, None])
def test_the_table_is_that_of_surprisal(vocab, visit, downloads):
    model = random_model(vocab or trained_subwords("bpe"))
    page = visit(model)
    lines = ['the =1+1 "old", man', "the man"]
    page.fill("#text", "\r\n".join(lines))
    page.wait_for_function("() => document.querySelectorAll('#result section').length == 2")
    table = saved(page, downloads)
    of_lines = model.surprisal if vocab else model.word_surprisal
    text = table_text(of_lines(lines).columns(), True, "csv", str)
    expected = list(csv.reader(io.StringIO(text)))
    rows = list(csv.reader(table.splitlines()))
    assert rows[0] == expected[0] and len(rows) == len(expected)
    for row, expected_row in zip(rows[1:], expected[1:], strict=True):
        assert row[:5] == expected_row[:5]
        numbers, expected_numbers = (np.array(cells[5:], float) for cells in (row, expected_row))
        np.testing.assert_allclose(numbers, expected_numbers, rtol=0, atol=0.003)


@pytest.mark.slow
def test_a_reader_types_compares_and_generates(visit, downloads):
    page = visit(random_model(), viewport={"width": 375, "height": 800})
    page.fill("#text", "the old man\nthe old <b>bold</b>")
    page.wait_for_function("() => document.getElementById('pair').textContent.includes('likelier')")
    assert page.locator("#result section").count() == 2
    assert re.fullmatch(
        r"The (first|second) is likelier by [\d.]+ bits \(.*\)\.", page.inner_text("#pair")
    )
    assert page.locator("#result b").count() == 0
    page.locator(".word").nth(1).focus()
    assert page.locator("#expected li").count() == 10
    assert "old" in page.inner_text("#expected-title")
    gates = page.inner_text("#gates")
    page.select_option("#layer", "1")
    assert "after “old”" in page.inner_text("#gates") != gates
    heights = (
        "() => [...document.querySelectorAll('.controls label')].map((one) => one.offsetHeight)"
    )
    assert max(page.evaluate(heights)) < 50  # Each name stands beside its field.
    page.fill("#length", "5")
    page.click("#generate")
    page.wait_for_function("() => document.getElementById('generated').textContent.length > 20")
    first = page.inner_text("#generated")
    page.click("#generate")
    page.wait_for_timeout(300)
    assert page.inner_text("#generated") == first  # the same seed
    assert len(saved(page, downloads).splitlines()) == 7
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375


@pytest.mark.slow
def test_a_report_runs_its_best_model(visit):
    model = random_model()
    shown = replace(model_view(), live=to_html(model)[0].decode())
    report = render("Report", [run_record()], [shown])
    page = visit.page(report, "document.documentElement.dataset.ready")
    page.locator("iframe").scroll_into_view_if_needed()
    frame = page.frame_locator("iframe")
    frame.locator("#text").fill("the old man")
    frame.locator("h3", has_text="3 words").wait_for()
    assert frame.locator("#result .word").count() == 3
