"""n-gram models: Kneser-Ney's probabilities are KenLM's, sum to one, and survive an ARPA file."""

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

import jaxlm
from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.cli import main
from jaxlm.config.protocols import (
    Cache,
    Dynamic,
    Interpolation,
    MCDropout,
    Plain,
    Temperature,
    protocol_of,
)
from jaxlm.data.corpora import load_corpus
from jaxlm.data.vocab import EOS, UNK
from jaxlm.interop.exporting import export_model
from jaxlm.interop.importing import import_model
from jaxlm.ngrams import arpa, backoff
from jaxlm.ngrams.backoff import BackoffModel
from jaxlm.ngrams.kneser_ney import estimate
from jaxlm.runs import ram
from jaxlm.runs.loading import keep_model
from jaxlm.runs.ngram_models import baseline, ngram
from jaxlm.scoring.interpolation import likeliest_weights
from jaxlm.scoring.language_model import LanguageModel, NgramModel
from jaxlm.scoring.reading import OneStream
from jaxlm.scoring.token_scores import NATS_ALONE, Detail

RECORDED = json.loads(
    Path(__file__).with_name("golden").joinpath("published/kenlm.json").read_text()
)


def training_lines(case: dict) -> list[str]:
    """The text that KenLM's model was made of."""
    if "train" in case:
        return case["train"]
    corpus = load_corpus("embedded-tiny")
    words = " ".join(corpus.vocab.decode(corpus.train)).split(f" {EOS}")
    lines = [line.strip().replace(UNK, "rareword") for line in words]
    return [line for line in lines if line][: case["lines"]]


def ids_of(lines: list[str], words: dict[str | None, int]) -> np.ndarray:
    tokens = [token for line in lines for token in (*line.split(), EOS)]
    return np.array([words.get(token, words[UNK]) for token in tokens])


@pytest.mark.parametrize("name", ["small", "repeated", "generated"])
def test_probabilities_are_those_of_kenlm(name):
    case = RECORDED[name]
    lines = training_lines(case)
    names = [UNK, *dict.fromkeys(token for line in lines for token in (*line.split(), EOS))]
    words: dict[str | None, int] = {word: place for place, word in enumerate(names)}
    model = estimate(ids_of(lines, words), len(names), case["order"], words[EOS])
    scores = model.log_probabilities(ids_of(case["test"], words))
    expected = [score for line in case["log10"] for score in line]
    np.testing.assert_allclose(scores / math.log(10), expected, rtol=0, atol=1e-6)


texts = st.lists(st.integers(0, 4), min_size=2, max_size=60)


def model_of(text: list[int], order: int) -> BackoffModel:
    return estimate(np.array(text), vocab_size=6, order=order, end=0)


@settings(max_examples=50)
@given(texts, st.integers(1, 5))
def test_probabilities_sum_to_one_after_every_context(text, order):
    model = model_of(text, order)
    contexts = [np.array([model.begin]), np.array([model.begin, *text]), np.array([5, 5, 1])]
    contexts += [np.array(text[start : start + 4]) for start in range(0, len(text), 7)]
    for context in contexts:
        assert math.isclose(np.exp(model.next_log_probabilities(context)).sum(), 1, rel_tol=1e-9)


@settings(max_examples=50)
@given(texts, st.integers(1, 5), texts)
def test_a_token_s_probability_is_that_of_the_distribution(text, order, read):
    model = model_of(text, order)
    scores = model.log_probabilities(np.array(read))
    context = np.array([model.begin])
    for token, score in zip(read, scores, strict=True):
        assert math.isclose(model.next_log_probabilities(context)[token], score, abs_tol=1e-9)
        context = np.append(context, token)
        if token == model.end:
            context = np.array([model.begin])


@settings(max_examples=30)
@given(texts, st.integers(2, 5), texts, st.integers(1, 9))
def test_a_text_read_in_pieces_has_the_scores_of_one(text, order, read, most):
    model = model_of(text, order)
    tokens = np.array(read)
    whole = model.log_probabilities(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backoff, "_POSITIONS_AT_ONCE", most)
        np.testing.assert_allclose(model.log_probabilities(tokens), whole, atol=1e-12)
    after = []
    for place in range(len(read)):
        context = np.array([model.begin] * order + read[:place])[-order:]
        ends = np.flatnonzero(context == model.end)
        context[: ends[-1] + 1 if len(ends) else 0] = model.begin
        after.append(context)
    scores = model.log_probabilities_after(np.array(after), tokens)
    np.testing.assert_allclose(scores, whole, atol=1e-12)


NAMES = [EOS, "a", "b", "c", "d", UNK]


def written(model: BackoffModel, names: list[str] = NAMES) -> bytes:
    file = io.BytesIO()
    arpa.write(file, model, names)
    return file.getvalue()


@settings(max_examples=20, deadline=None)
@given(texts, st.integers(1, 4), texts)
def test_an_arpa_file_holds_the_model(tmp_path_factory, text, order, read):
    path = tmp_path_factory.mktemp("arpa") / "lm.arpa"
    model = model_of(text, order)
    path.write_bytes(written(model))
    copy, names = arpa.read(path)
    places = {name: place for place, name in enumerate(names)}
    ids = np.array([places[NAMES[token].replace(EOS, "</s>")] for token in read])
    scores = copy.log_probabilities(ids)
    expected = model.log_probabilities(np.array(read))
    np.testing.assert_allclose(scores, expected, atol=1e-6)


WHOLE = written(estimate(np.array([1, 2, 0, 2, 1, 3, 0]), 6, 3, 0))


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\\data\\\n",
        WHOLE[: len(WHOLE) // 2],
        WHOLE.replace(b"\\end\\", b""),
        WHOLE.replace(b"ngram 2=", b"ngram 2=9"),
        WHOLE.replace(b"\n\\2-grams", b"\n\\3-grams"),
        WHOLE.replace(b"\ta b", b"\ta zebra"),
        WHOLE.replace(b"\ta b", b"\ta"),
        WHOLE.replace(b"\ta b", b"\tb a"),
        WHOLE.replace(b"-", b"", 40),
        WHOLE.replace(b"\ta\t", b"\tb\t"),
        WHOLE.replace(b"\ta\t", b"\t\xff\t"),
        WHOLE.replace(b"ngram 1=", b"ngram 1=999999999999"),
        b"x" * 200_000,
        bytes(range(256)) * 50,
    ],
)
def test_a_damaged_arpa_file_is_one_sentence(damaged, tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"lm\.arpa") as error:
        arpa.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changed",
    [
        b"# a toolkit's comment\nof two lines\n" + WHOLE,
        b"\n  " + WHOLE,
        WHOLE.replace(b"\n", b"\r\n"),
        WHOLE.replace(b"\t", b" "),
        WHOLE.replace(b"ngram 1=", b"\nngram  1=   "),
        WHOLE.replace(b"\n-99\t<s>", b"\n-inf\t<s>").replace(b"<unk>", b"<UNK>"),
    ],
)
def test_other_programs_forms_of_an_arpa_file_are_read(changed, tmp_path):
    path = tmp_path / "lm.arpa"
    expected = []
    for data in (WHOLE, changed):
        path.write_bytes(data)
        model = import_model(path)
        assert isinstance(model, NgramModel)
        expected.append(model.ngram.log_probabilities(model.vocab.encode(["a", "zebra", "b"])))
    np.testing.assert_array_equal(*expected)


def test_a_pruned_model_may_lack_the_end_of_an_n_gram(tmp_path):
    # KenLM writes -inf as the weight after a context without a discount.
    (tmp_path / "lm.arpa").write_text(
        "\\data\\\nngram 1=5\nngram 2=1\nngram 3=1\nngram 4=1\n"
        "\\1-grams:\n-99 <s>\n-1 </s>\n-1 a -0.3\n-1 b -inf\n-1 c\n"
        "\\2-grams:\n-0.5 a b -0.2\n\\3-grams:\n-0.4 a b c -0.1\n"
        "\\4-grams:\n-0.25 a b c a\n\\end\\\n"
    )
    model, names = arpa.read(tmp_path / "lm.arpa")
    text = np.array([names.index(word) for word in ["a", "b", "c", "a"]])
    for length, log10 in enumerate([-1, -0.5, -0.4, -0.25]):
        after = model.next_log_probabilities(text[:length])[text[length]]
        assert after / math.log(10) == pytest.approx(log10, rel=1e-9)
    assert model.next_log_probabilities(text[1:2])[0] / math.log(10) == pytest.approx(-100)


def test_names_that_an_arpa_file_cannot_hold_are_refused():
    model = model_of([1, 2, 0, 1], 2)
    with pytest.raises(DataError, match="white space"):
        written(model, [EOS, "a b", "b", "c", "d", UNK])
    with pytest.raises(DataError, match="keeps <s>"):
        written(model, [EOS, "<s>", "b", "c", "d", UNK])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An n-gram model of the tiny generated corpus, in a directory."""
    path = tmp_path_factory.mktemp("ngrams") / "bigrams"
    ngram(load_corpus("embedded-tiny"), 3, path)
    return path


def loaded(folder: Path) -> NgramModel:
    model = jaxlm.load(folder)
    assert isinstance(model, NgramModel)
    return model


def test_a_kept_model_is_loaded_as_a_run_is(folder):
    model = loaded(folder)
    corpus = load_corpus("embedded-tiny")
    evaluation = model.evaluate("test", corpus=corpus)
    nats = -model.ngram.log_probabilities(np.asarray(corpus.test))[1:].sum()
    assert evaluation.nats == pytest.approx(nats, rel=1e-5)
    assert evaluation.perplexity < 60 < len(corpus.vocab)


def test_surprisal_generation_and_prediction_are_of_the_tables(folder):
    model = loaded(folder)
    line = "the farmer lends the book"
    ids = model.vocab.encode(line.split())
    expected = -model.ngram.log_probabilities(ids) / math.log(2)
    table = model.surprisal([line, "the book"])
    np.testing.assert_allclose(table.surprisal[: len(ids)], expected, rtol=1e-4)
    distribution = np.exp(model.ngram.next_log_probabilities(np.array([model.ngram.begin])))
    entropy = -(distribution * np.log2(distribution)).sum()
    assert table.entropy[0] == pytest.approx(entropy, rel=1e-4)
    word, p = model.predict("the farmer", k=1)[0]
    context = np.array([model.ngram.begin, *model.vocab.encode(["the", "farmer"])])
    best = model.ngram.next_log_probabilities(context)
    assert (model.vocab.words[int(best.argmax())], p) == (word, pytest.approx(np.exp(best.max())))
    texts = model.generate("the", words=8, samples=2)
    assert [len(text.words) for text in texts] == [8, 8]


@pytest.mark.parametrize("protocol", ["cache", "dynamic", "mc"])
def test_what_needs_a_network_is_refused(folder, protocol):
    model = loaded(folder)
    with pytest.raises(JaxlmError, match="an n-gram model has no network"):
        model.evaluate(corpus=load_corpus("embedded-tiny"), protocol=protocol)
    with pytest.raises(JaxlmError, match="an n-gram model has no network"):
        model.states("the farmer")


@pytest.mark.parametrize("name", ["ngram.json", "vocab.json", "tables.safetensors"])
def test_a_damaged_folder_is_one_sentence(folder, tmp_path, name):
    damaged = tmp_path / "copy"
    shutil.copytree(folder, damaged)
    data = bytearray((damaged / name).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / name).write_bytes(data)
    with pytest.raises(DataError, match="copy is damaged"):
        jaxlm.load(damaged)


def test_an_arpa_file_goes_out_and_in(folder, tmp_path):
    export_model(folder, "arpa", tmp_path / "lm.arpa")
    copy = import_model(tmp_path / "lm.arpa", run_dir=tmp_path / "copy")
    line = ["the farmer lends the book"]
    expected = jaxlm.load(folder).surprisal(line).surprisal
    np.testing.assert_allclose(copy.surprisal(line).surprisal, expected, rtol=1e-4)
    assert main(["import", str(tmp_path / "lm.arpa"), str(tmp_path / "again")]) == 0
    again = jaxlm.load(tmp_path / "again")
    np.testing.assert_allclose(again.surprisal(line).surprisal, expected, rtol=1e-4)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("alike", [False, True])
def test_weights_by_expectation_maximisation_are_the_likeliest(models, alike):
    rng = np.random.default_rng(0)
    nats = rng.exponential(3, (models, 400))
    if alike:
        nats[1] = nats[0] + rng.normal(0.02, 0.1, 400)
    p = np.exp(-nats)
    best = likeliest_weights(nats)
    assert best.min() >= 0 and best.sum() == pytest.approx(1)
    others = rng.dirichlet(np.ones(models), 1000)
    totals = [np.log(weights @ p).sum() for weights in (best, *others, *np.eye(models))]
    assert totals[0] >= max(totals) - 1e-6 * abs(totals[0])


@pytest.fixture(scope="module")
def other_run(tiny_run, tmp_path_factory) -> Path:
    """A run of the same tokens as the tiny one, with other parameters."""
    model = jaxlm.load(tiny_run[0].run_dir)
    path = tmp_path_factory.mktemp("runs") / "other"
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[..., ::-1], model.params)
    keep_model(path, model.config, params, load_corpus("embedded-tiny"))
    return path


@pytest.mark.parametrize("with_run", [False, True])
def test_interpolation_is_never_worse_on_valid_than_the_best_model(
    folder, tiny_run, other_run, with_run
):
    run, _ = tiny_run
    model = jaxlm.load(run.run_dir)
    corpus = load_corpus("embedded-tiny")
    others = [folder, other_run][: 1 + with_run]
    tuned: Any = model.tune(Interpolation(with_=",".join(map(str, others))), corpus=corpus)
    alone = [tried for protocol, tried in tuned.tried if {*protocol.weight} <= {0, 1}]
    assert len(alone) == 1 + len(others) and tuned.valid <= min(alone)
    weights = np.array([1 - sum(tuned.protocol.weight), *tuned.protocol.weight])
    assert weights.min() >= 0 and 0 < weights[1] < 1
    words = ["the farmer lends the book"]
    scores = [jaxlm.load(path).surprisal(words).surprisal for path in (run.run_dir, *others)]
    expected = -np.log2(weights @ 2 ** -np.stack(scores))
    mixed = model.surprisal(words, protocol=tuned.protocol).surprisal
    np.testing.assert_allclose(mixed, expected, rtol=1e-4)
    again = model.evaluate("valid", corpus=corpus, protocol=tuned.protocol)
    assert again.perplexity == pytest.approx(tuned.valid, rel=1e-5)


def test_a_command_line_names_models_and_weights(folder, tiny_run, other_run, capsys):
    run = str(tiny_run[0].run_dir)
    words = ["evaluate", run, "--protocol", "interpolation", "--with", f"{folder},{other_run}"]
    assert main([*words, "--json", "--tune"]) == 0
    tuned = json.loads(capsys.readouterr().out)
    weights = ",".join(map(str, tuned["protocol"]["weight"]))
    assert main([*words, "--json", "--weight", weights, "--split", "valid"]) == 0
    valid = json.loads(capsys.readouterr().out)
    assert valid["perplexity"] == pytest.approx(tuned["tuned_valid_perplexity"], rel=1e-5)
    with pytest.raises(SystemExit):
        main([*words, "--weight", "0.3,some"])
    assert "expected numbers with commas between" in capsys.readouterr().err


CACHE = Cache(cache_window=20, lambda_=0.3)
LEARNING = Dynamic(rule="sgd", learning_rate=0.3, segment_length=7)
LEARNING_BY_RMS = Dynamic(
    learning_rate=0.01, segment_length=7, statistics_rows=20, statistics_windows=2
)


@pytest.mark.parametrize("detail", [NATS_ALONE, Detail(2)], ids=["nats", "all"])
@pytest.mark.parametrize(
    "protocol",
    [CACHE, LEARNING, LEARNING_BY_RMS, MCDropout(samples=2), Temperature()],
    ids=["cache", "sgd", "rms", "mc", "temperature"],
)
def test_other_models_join_a_protocol_that_goes_on_as_before(
    folder, tiny_run, other_run, protocol, detail
):
    run = jaxlm.load(tiny_run[0].run_dir)
    model = replace(run, config=run.config.replace(keep_output=0.6, bptt_length=7))
    ids = load_corpus("embedded-tiny").valid[:50]

    def probabilities(model, protocol):
        return np.exp(-OneStream(model.reader_of(protocol), detail)([ids]).nats)

    counted = probabilities(jaxlm.load(folder), Plain())
    learns = protocol in (LEARNING, LEARNING_BY_RMS)
    other = probabilities(jaxlm.load(other_run), protocol if learns else Plain())
    counted = (3 * counted + other) / 4
    alone = probabilities(model, protocol)
    expected = 0.6 * alone + 0.4 * counted
    if protocol is CACHE:  # the cache has its share of the whole
        network = probabilities(model, Plain())
        expected = alone + 0.4 * 0.7 * (counted - network)
        expected[0] = 0.6 * alone[0] + 0.4 * counted[0]  # the cache is silent
    others = {"with_": f"{folder},{other_run}", "weight": (0.3, 0.1)}
    joined = probabilities(model, replace(protocol, **others))
    np.testing.assert_allclose(joined, expected, rtol=2e-4)


def test_a_run_that_has_ended_does_not_fail_for_want_of_memory(monkeypatch):
    corpus = load_corpus("embedded-tiny")
    evaluated = ngram(corpus, 3).evaluate("test", corpus=corpus).perplexity
    assert baseline(corpus, 3) == pytest.approx(evaluated, rel=2e-6)
    assert baseline(corpus, 0) is None
    monkeypatch.setattr(ram, "available", lambda: 1)
    assert baseline(corpus, 2) is None


def test_interpolation_needs_an_n_gram_model_of_the_same_vocabulary(folder, tiny_run, tmp_path):
    model = jaxlm.load(tiny_run[0].run_dir)
    with pytest.raises(JaxlmError, match="make an n-gram model with `jaxlm ngram`"):
        model.surprisal(["the"], protocol="interpolation")
    with pytest.raises(JaxlmError, match="weight is that of another model"):
        protocol_of("dynamic", weight=0.5)
    with pytest.raises(JaxlmError, match=r"sum to 1\.1: at most 1"):
        protocol_of("cache", with_="a,b", weight=(0.5, 0.6))
    with pytest.raises(JaxlmError, match=r"each other model needs a weight, and a, b have 0\.2"):
        model.surprisal(["the"], protocol=Interpolation(with_="a,b"))
    with pytest.raises(JaxlmError, match="has opened: write this one"):
        LanguageModel(model.params, model.config, model.vocab, model.corpus).surprisal(
            ["the"], protocol=Interpolation(with_="a")
        )
    mixed = Dynamic(compatibility="lamb", with_=str(tiny_run[0].run_dir))
    with pytest.raises(JaxlmError, match="repeats a code that mixes no networks"):
        model.surprisal(["the"], protocol=mixed)
    ngram(load_corpus("embedded-tiny", max_vocab=50), 2, tmp_path / "other")
    with pytest.raises(JaxlmError, match=r"the vocabulary of .* is not the run's"):
        model.surprisal(["the"], protocol=Interpolation(with_=str(tmp_path / "other")))
