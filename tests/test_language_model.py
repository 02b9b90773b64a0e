"""language_model.py and the whole way to it:
a run on the tiny corpus learns, and answers when it is restored.
"""

import inspect
from typing import Any

import numpy as np
import pytest
from exact_models import perplexities, sample

import jaxlm
from jaxlm.base.errors import CheckpointError, DataError, JaxlmError
from jaxlm.scoring import next_token, reading


@pytest.fixture(scope="module")
def lm(tiny_run):
    return jaxlm.load(tiny_run[0].run_dir)


def test_training_comes_near_the_floor_and_beats_the_exact_unigram_and_bigram(tiny_run):
    """After 5 epochs within 1.8 of the true source's perplexity;
    the best bigram is at 2.2, the best unigram at 10.
    """
    result, printed = tiny_run
    exact = perplexities(sample("embedded-tiny"), "test")
    assert exact["floor"] < result.test_perplexity < 1.8 * exact["floor"]
    assert result.test_perplexity < exact["bigram"] < exact["unigram"]
    assert [row.epoch for row in result.epochs] == list(range(1, 6))
    assert f"{exact['floor']:.2f}" in printed  # the floor stands beside the model's number
    for line in printed.splitlines():
        if "perplexity" in line and "epoch" in line:
            assert "embedded-tiny" in line


def test_evaluation_gives_exactly_what_training_printed(tiny_run):
    result, printed = tiny_run
    again = jaxlm.evaluate(result.run_dir)
    assert again.perplexity == result.test_perplexity
    assert again.predictions == 3_999
    assert f"{again.perplexity:.2f}" in printed
    assert jaxlm.evaluate(result.run_dir, "valid").perplexity == result.epochs[-1].valid_perplexity
    best = min(row.valid_perplexity for row in result.epochs)
    assert jaxlm.evaluate(result.run_dir, "valid", which="best").perplexity == best


def test_a_text_file_of_the_same_words_gives_the_same_perplexity(tiny_run, lm, tmp_path):
    corpus = jaxlm.load_corpus("embedded-tiny")
    text = " ".join(lm.vocab.decode(corpus.test)).replace(" <eos> ", "\n").removesuffix(" <eos>")
    (tmp_path / "text.txt").write_text(text)
    if lm.vocab.decode(corpus.test)[-1] == "<eos>":
        (tmp_path / "text.txt").write_text(text + "\n")
    assert lm.evaluate(text=tmp_path / "text.txt").perplexity == tiny_run[0].test_perplexity
    assert lm.perplexity((tmp_path / "text.txt").read_text()) == pytest.approx(
        tiny_run[0].test_perplexity, rel=1e-6
    )


def test_predictions_are_probabilities_and_depend_on_what_came_before(lm):
    words = lm.vocab.words
    told = lm.predict(" ".join(words[:3]), k=len(words))
    assert sum(p for _, p in told) == pytest.approx(1, abs=1e-4)
    assert [p for _, p in told] == sorted((p for _, p in told), reverse=True)
    assert sorted(word for word, _ in told) == sorted(words)
    assert lm.predict(words[5], 3) != lm.predict(words[9], 3)
    assert len(lm.predict(words[5], 10**6)) == len(words)


def test_a_prediction_is_what_perplexity_sums(lm):
    a, b, c = lm.vocab.words[3:6]
    first = dict(lm.predict(a, 10**6))[b]
    second = dict(lm.predict(f"{a} {b}", 10**6))[c]
    assert lm.perplexity(f"{a} {b} {c}") == pytest.approx((first * second) ** -0.5, rel=1e-4)


def test_a_perplexity_from_eos_is_that_of_the_mean_surprisal(lm):
    lines = [" ".join(lm.vocab.words[3:6]), " ".join(lm.vocab.words[6:9])]
    for line in (lines[0], lm.vocab.words[5]):
        nats = lm.surprisal([line], unit="nats").surprisal
        assert lm.perplexity(line, from_eos=True) == pytest.approx(np.exp(nats.mean()), rel=1e-5)
    nats = lm.surprisal(lines, unit="nats", context="stream", eos=True).surprisal[:-1]
    assert lm.perplexity("\n".join(lines), from_eos=True) == pytest.approx(
        np.exp(nats.mean()), rel=1e-5
    )


def test_models_texts_and_tables_are_equal_only_if_they_are_one(lm, tiny_run):
    again = jaxlm.load(tiny_run[0].run_dir)
    text = lm.generate(words=2)[0]
    table = lm.surprisal(["the"])
    for one, other in (
        (lm, again),
        (text, lm.generate(words=2)[0]),
        (table, lm.surprisal(["the"])),
        (lm.word_surprisal(["the"]), lm.word_surprisal(["the"])),
    ):
        assert one == one and one != other and len({one, other, one}) == 2


def test_texts_of_many_lengths_share_a_few_compiled_programs(lm):
    programs: list[Any] = [next_token._carry_after, reading._read]
    before = [program._cache_size() for program in programs]
    for length in range(2, 42):
        text = " ".join([lm.vocab.words[3]] * length)
        lm.predict(text, 1)
        lm.perplexity(text)
    assert all(
        program._cache_size() <= had + 6 for program, had in zip(programs, before, strict=True)
    )


def test_neighbors_are_sorted_cosines_without_the_word_itself(lm):
    word = lm.vocab.words[7]
    told = lm.neighbors(word, 20)
    cosines = [cosine for _, cosine in told]
    assert cosines == sorted(cosines, reverse=True) and all(
        -1.001 <= cosine <= 1.001 for cosine in cosines
    )
    assert word not in [other for other, _ in told]
    a, b = (np.asarray(lm.params["embedding"][lm.vocab.ids[w]]) for w in (word, told[0][0]))
    assert cosines[0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-4)


def test_a_model_made_of_the_exported_parameters_trains_on(tiny_run):
    result, _ = tiny_run
    params = jaxlm.from_tensorflow(jaxlm.to_tensorflow(result.params))
    again = jaxlm.train(result.config.replace(epochs=0), params=params, quiet=True)
    assert again.test_perplexity == result.test_perplexity


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (
            lambda lm: lm.neighbors("no-such-word"),
            DataError,
            "'no-such-word' is not among the 500 words",
        ),
        (lambda lm: lm.predict("  "), DataError, "no word to predict from"),
        (lambda lm: lm.predict("a", 0), JaxlmError, "k must be at least 1; it is 0"),
        (lambda lm: lm.predict("a", 2.5), JaxlmError, "k takes a whole number; it is 2.5"),
        (lambda lm: lm.perplexity("one"), DataError, "too few to evaluate"),
        (
            lambda lm: lm.evaluate("dev"),
            JaxlmError,
            "split must be train, valid or test; it is 'dev'",
        ),
        (
            lambda lm: jaxlm.compare(lm, lm, "dev"),
            JaxlmError,
            "split must be train, valid or test; it is 'dev'",
        ),
        (
            lambda lm: jaxlm.compare(*["runs/a", "runs/b"]),  # pyright: ignore
            JaxlmError,
            "compare takes models, .*; one is 'runs/a'",
        ),
        (lambda lm: lm.evaluate(text="/no/such/file"), DataError, "there is no file /no/such/file"),
        (lambda lm: lm.evaluate(text=["a line"]), JaxlmError, "text takes a path; it is "),
        (lambda lm: lm.evaluate(corpus=5), JaxlmError, "corpus takes a path; it is 5"),
        (lambda lm: lm.neighbors(["the"]), JaxlmError, "word takes a text; it is "),
        (
            lambda lm: lm.minimal_pairs([("good", "bad")]),
            JaxlmError,
            "a file of lines takes a path; it is ",
        ),
        (lambda lm: jaxlm.load(None), JaxlmError, "run_dir takes a path; it is None"),  # pyright: ignore
        (lambda lm: jaxlm.load_corpus(None), JaxlmError, "corpus takes a path; it is None"),  # pyright: ignore
        (lambda lm: jaxlm.preset(None), JaxlmError, "preset takes a text; it is None"),  # pyright: ignore
        (lambda lm: jaxlm.train("small"), JaxlmError, "config takes a Config, .*; it is 'small'"),  # pyright: ignore
        (
            lambda lm: jaxlm.train(lm.config, steps=1.5),  # pyright: ignore
            JaxlmError,
            "steps takes a whole number or none",
        ),
        (
            lambda lm: jaxlm.train(lm.config, devices="2"),  # pyright: ignore
            JaxlmError,
            "devices takes a whole number",
        ),
        (lambda lm: jaxlm.train(lm.config, run_dir=5), JaxlmError, "run_dir takes a path"),  # pyright: ignore
        (lambda lm: jaxlm.train(lm.config, resume=True), JaxlmError, "give run_dir"),
        (
            lambda lm: lm.evaluate(text="x", corpus="embedded-tiny"),
            JaxlmError,
            "in place of a corpus",
        ),
        (lambda lm: lm.evaluate(tokenizer="ptb"), JaxlmError, "splits a text"),
        (lambda lm: jaxlm.evaluate(lm, which="best"), JaxlmError, "a model is given"),
        (
            lambda lm: lm.evaluate(corpus=jaxlm.load_corpus("embedded-tiny", max_vocab=99)),
            DataError,
            "trained on embedded-tiny",
        ),
    ],
)
def test_questions_that_cannot_be_answered(lm, ask, error, message):
    with pytest.raises(error, match=message):
        ask(lm)


def test_functions_of_a_run_take_the_arguments_of_a_model_s_methods():
    model = jaxlm.LanguageModel
    for own, method in ((jaxlm.evaluate, model.evaluate), (jaxlm.tune_protocol, model.tune)):
        names = inspect.signature(own).parameters.keys() - {"run", "which"}
        assert names == inspect.signature(method).parameters.keys() - {"model"}


def test_a_text_is_refused_before_dynamic_evaluation_reads_train(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "jaxlm.scoring.model.gradient_statistics", lambda *_: pytest.fail("train was read")
    )
    (tmp_path / "text").write_text("word")
    with pytest.raises(DataError, match="too few to evaluate"):
        lm.evaluate(text=tmp_path / "text", protocol="dynamic")


def test_there_is_nothing_to_load_in_another_directory(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        jaxlm.load(tmp_path)


def test_params_of_other_shapes_are_refused_by_name(tiny_run):
    params = jaxlm.from_tensorflow(jaxlm.to_tensorflow(tiny_run[0].params))
    params["softmax"]["bias"] = params["softmax"]["bias"][:-1]
    with pytest.raises(JaxlmError, match=r"softmax.bias: \(500,\) -> \(499,\)"):
        jaxlm.train(tiny_run[0].config, params=params, quiet=True)
