"""Generation: the same text from the same seed, the distribution that was asked for,
and flags that contradict.
"""

import io
import itertools
import json
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import WORDS, lm_of, log_probs, small_lm

from jaxlm.base.errors import JaxlmError
from jaxlm.cli import main
from jaxlm.data.tokens import Characters
from jaxlm.data.vocab import Vocab
from jaxlm.scoring import beam_search
from jaxlm.scoring.generation import advance, begin
from jaxlm.scoring.sampling import Sampling, adjusted, draw, filtered, pick

ODDS = st.lists(
    st.sampled_from([0.0, 1e-30, 0.1, 0.25, 0.5, 0.7, 0.999]) | st.floats(0, 1, width=32),
    min_size=1,
    max_size=8,
).map(lambda odds: np.array([*odds, 1.0], np.float32))


def batched(odds):
    """One row of a fixed shape, so that one program serves all examples."""
    row = np.zeros((1, 9), np.float32)
    row[0, : len(odds)] = odds
    return row


@settings(max_examples=60)
@given(odds=ODDS, k=st.integers(1, 9))
def test_top_k_keeps_the_k_likeliest_and_their_ties(odds, k):
    found = np.asarray(jax.jit(filtered)(Sampling(top_k=k), batched(odds)))[0, : len(odds)]
    least = np.sort(odds)[::-1][min(k, len(odds)) - 1]
    np.testing.assert_array_equal(found, np.where(odds >= least, odds, 0))


@settings(max_examples=60)
@given(odds=ODDS, p=st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_words_of_that_mass(odds, p):
    found = np.asarray(jax.jit(filtered)(Sampling(top_p=p), batched(odds)))[0, : len(odds)]
    mass = p * odds.sum(dtype=np.float64)
    assert (found == odds)[found > 0].all() and found.sum(dtype=np.float64) >= mass * (1 - 1e-5)
    least = found[found > 0].min()
    assert (odds[odds < least] == 0).all() or odds[odds > least].sum(dtype=np.float64) < mass * (
        1 + 1e-5
    )
    assert (found[odds >= least] > 0).all()


@settings(max_examples=60)
@given(odds=ODDS, p=st.floats(0, 1))
def test_min_p_keeps_words_at_least_that_share_as_probable(odds, p):
    found = np.asarray(jax.jit(filtered)(Sampling(min_p=p), batched(odds)))[0, : len(odds)]
    np.testing.assert_array_equal(found, np.where(odds >= np.float32(p), odds, 0))


def test_top_p_counts_the_mass_that_top_k_leaves():
    """Of 0.4, 0.3, 0.2, 0.1 the two likeliest have 0.7:
    0.55 of it needs one word, 0.55 of all would need two.
    """
    odds = np.array([[1.0, 0.75, 0.5, 0.25]], np.float32)
    keep = jax.jit(filtered)
    both = keep(Sampling(top_k=2, top_p=0.55), odds)
    assert np.flatnonzero(both[0]).tolist() == [0]
    assert np.flatnonzero(keep(Sampling(top_p=0.55), odds)[0]).tolist() == [0, 1]


def test_words_are_picked_in_proportion_to_their_odds():
    odds = np.zeros(300, np.float32)
    odds[[3, 130, 131, 299]] = [1, 2, 0.5, 4]
    uniform = (np.arange(4000) + 0.5) / 4000
    words, shares = map(
        np.asarray,
        jax.jit(pick)(jnp.broadcast_to(odds, (4000, 300)), jnp.asarray(uniform, jnp.float32)),
    )
    found = np.bincount(words, minlength=300) / 4000
    np.testing.assert_allclose(found, odds / odds.sum(), atol=1e-3)
    assert set(words) == {3, 130, 131, 299}
    np.testing.assert_allclose(shares, odds[words] / odds.sum(), rtol=1e-6)


def test_no_uniform_number_picks_a_word_without_odds():
    generator = np.random.default_rng(0)
    odds = np.where(generator.random((500, 260)) < 0.02, generator.random((500, 260)), 0).astype(
        np.float32
    )
    odds[:, 7] = 1e-3
    picked = jax.jit(pick)
    for uniform in (0.0, 1 - 2**-24, 0.5):
        words = np.asarray(picked(odds, np.full(500, uniform, np.float32))[0])
        assert (odds[np.arange(500), words] > 0).all()


def test_temperature_divides_and_the_penalty_and_the_ban_change_logits():
    drawn = jax.jit(draw)
    logits = np.array([[2.0, -1.0, 0.5, 1.9]], np.float32)
    seen = np.array([[True, True, False, False]])
    banned = np.array([False, False, False, True])
    least = np.zeros(1, np.float32)
    greedy = Sampling(temperature=None)
    assert drawn(greedy, logits, None, least)[0] == 0
    penalised = Sampling(temperature=None, repetition_penalty=1.5)
    assert drawn(penalised, logits, seen, least)[0] == 3
    assert drawn(replace(penalised, banned=banned), logits, seen, least)[0] == 0
    uniform = ((np.arange(2000) + 0.5) / 2000).astype(np.float32)
    words, _ = drawn(Sampling(temperature=2.0), np.tile(logits, (2000, 1)), None, uniform)
    odds = np.exp(logits[0] / 2)
    np.testing.assert_allclose(np.bincount(np.asarray(words)) / 2000, odds / odds.sum(), atol=2e-3)


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones():
    seen = np.array([[True, True, False, False]])
    banned = jnp.array([False, False, False, True])
    found = jax.jit(adjusted)(
        Sampling(repetition_penalty=2.0, banned=banned),
        np.array([[2.0, -1.0, 0.5, 1.9]], np.float32),
        seen,
    )
    np.testing.assert_array_equal(found, [[1.0, -2.0, 0.5, -np.inf]])


@pytest.mark.parametrize(
    "sampling", [{"repetition_penalty": 1.5}, {"banned": jnp.array([True, False, False])}]
)
def test_the_greedy_word_has_the_log_probability_of_the_logits_themselves(sampling):
    logits = np.array([[2.0, 1.9, -1.0]], np.float32)
    ids, log_p = jax.jit(draw)(
        Sampling(temperature=None, **sampling),
        logits,
        np.array([[True, False, False]]),
        np.zeros(1, np.float32),
    )
    assert ids.tolist() == [1] and float(log_p[0]) == pytest.approx(
        float(jax.nn.log_softmax(logits)[0, 1]), abs=1e-6
    )


def test_words_that_reach_the_probability_exactly_are_enough():
    odds = np.array([[1.0, 0.5, 0.25, 0.25]], np.float32)
    keep = jax.jit(filtered)
    np.testing.assert_array_equal(keep(Sampling(top_p=0.75), odds), [[1.0, 0.5, 0, 0]])
    np.testing.assert_array_equal(keep(Sampling(top_p=0.5), odds), [[1.0, 0, 0, 0]])


def test_the_penalty_counts_the_words_of_the_prompt_and_not_the_eos_before_it():
    lm = small_lm()
    ids = lm.vocab.encode(["<eos>", "the", "dogs"])
    seen = begin(lm.network, Sampling(repetition_penalty=1.5), ids, 2).seen
    assert (
        seen is not None
        and np.flatnonzero(seen[0]).tolist() == sorted(ids[1:])
        and (seen[0] == seen[1]).all()
    )


def test_a_beam_searches_as_many_words_as_it_returns(monkeypatch):
    """The likeliest single word begins no likely pair:
    a search of one word more would begin with another.
    """
    lm = small_lm(words=(*WORDS, "one", "more"))
    log_p = np.full((19, 19), -9.0)
    log_p[0, [2, 3]] = np.log([0.6, 0.4])  # after <eos>
    log_p[3, 4] = 0.0
    table = jnp.asarray(log_p - np.log(np.exp(log_p).sum(1, keepdims=True)), jnp.float32)
    monkeypatch.setattr(
        beam_search, "next_logits", lambda network, token, carry: (table[token], carry)
    )
    found = {words: lm.generate(words=words, beam=5)[0].words for words in (1, 2)}
    assert found == {1: [lm.vocab.words[2]], 2: [lm.vocab.words[3], lm.vocab.words[4]]}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=None),
        Sampling(top_k=3),
        Sampling(top_p=0.8),
        Sampling(min_p=0.1),
        Sampling(repetition_penalty=1.5),
        Sampling(banned=jnp.arange(300) < 200),
    ],
)  # pyright: ignore[reportArgumentType]
def test_the_log_probability_is_that_of_the_logits_themselves(sampling):
    logits = 5 * jax.random.normal(jax.random.key(0), (50, 300))
    uniform = jax.random.uniform(jax.random.key(1), (50,))
    words, log_p = map(
        np.asarray, jax.jit(draw)(sampling, logits, jnp.zeros((50, 300), bool), uniform)
    )
    np.testing.assert_allclose(
        log_p, np.asarray(jax.nn.log_softmax(logits))[np.arange(50), words], atol=1e-5
    )


@pytest.mark.parametrize(  # three shapes of a carry
    "kind", ["lstm", "attention", pytest.param("hawk", marks=pytest.mark.slow)]
)
def test_a_text_is_the_same_alone_among_many_and_as_a_stream(kind):
    lm = small_lm(kind)
    options: dict[str, Any] = {"words": 70, "seed": 3, "top_p": 0.95, "temperature": 0.9}
    many = lm.generate("the dogs", samples=4, **options)
    (alone,) = lm.generate("the dogs", **options)
    streamed = list(lm.stream("the dogs", **options))
    assert alone.words == many[0].words == [word for word, _ in streamed] and len(alone.words) == 70
    np.testing.assert_allclose(alone.log_probs, [nats for _, nats in streamed], atol=1e-5)
    assert len({tuple(text.words) for text in many}) == 4
    options["seed"] = 4
    assert lm.generate("the dogs", **options)[0].words != alone.words
    expected = log_probs(lm, ["the", "dogs", *alone.words])[2:-1]
    np.testing.assert_allclose(
        alone.log_probs, expected[np.arange(70), lm.vocab.encode(alone.words)], atol=1e-4
    )


@pytest.mark.parametrize("length", [1, 255, 256, 600])
def test_a_prompt_of_any_length_is_read_whole(length):
    lm = small_lm()
    words = (WORDS[2:7] * 120)[:length]
    p = np.exp(log_probs(lm, list(words))[-1])
    best = lm.vocab.words[int(p.argmax())]
    ((word, found),) = lm.predict(" ".join(["<eos>", *words]), 1, tokenizer="none")
    assert word == best and found == pytest.approx(p.max(), abs=1e-5)


def test_temperature_0_takes_the_likeliest_word():
    lm = small_lm()
    words = ["the"]
    for _ in range(6):
        words.append(lm.vocab.words[int(log_probs(lm, words)[-1].argmax())])
    assert lm.generate("the", words=6, temperature=0)[0].words == words[1:]
    assert lm.generate("the", words=6, top_k=1)[0].words == words[1:]
    assert lm.generate("the", words=6, beam=1)[0].words == words[1:]


def test_samples_follow_the_models_distribution():
    lm = small_lm()
    texts = lm.generate("a dog", words=1, samples=4000, seed=1)
    found = (
        np.bincount([lm.vocab.ids[text.words[0]] for text in texts], minlength=len(lm.vocab)) / 4000
    )
    expected = np.exp(log_probs(lm, ["a", "dog"])[-1])
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / 4000)


def test_another_number_compiles_nothing_and_the_state_does_not_grow():
    lm = small_lm()
    options = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "ban": ["the"],
    }
    lm.generate("a dog", words=2, **options)
    before = advance._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    lm.generate(
        "the dogs run",
        words=9,
        seed=5,
        **{**options, "temperature": 2, "top_k": 7, "ban": ["a", "dog"]},
    )
    assert advance._cache_size() == before  # pyright: ignore[reportAttributeAccessIssue]
    words = lm.stream("a", seed=9)
    assert len([word for word, _ in itertools.islice(words, 300)]) == 300


def test_words_that_are_banned_never_come_and_eos_ends_a_text():
    lm = small_lm()
    texts = lm.generate(words=100, samples=8, ban=["the", "dogs"], no_unk=True)
    drawn = {word for text in texts for word in text.words}
    assert not drawn & {"the", "dogs", "<unk>"} and "<eos>" in drawn
    ended = lm.generate(words=100, samples=8, ban=["the", "dogs"], no_unk=True, stop="eos")
    for text, longer in zip(ended, texts, strict=True):
        end = longer.words.index("<eos>") + 1 if "<eos>" in longer.words else 100
        assert text.words == longer.words[:end] and len(text.log_probs) == end
    assert str(longer).count("\n") == longer.words.count("<eos>") and " \n" not in str(longer)


@pytest.mark.parametrize("stop", ["none", "eos"])
def test_a_wide_beam_finds_the_most_probable_text(stop):
    lm = small_lm(seed=2)
    ids = range(len(lm.vocab))
    V = len(lm.vocab)
    best = (-np.inf, ())
    first = log_probs(lm, ["the"])[-1]
    for a in ids:
        if stop == "eos" and a == lm.vocab.eos:
            best = max(best, (first[a], (a,)))
            continue
        second = log_probs(lm, ["the", lm.vocab.words[a]])[-1]
        best = max(best, *((first[a] + second[b], (a, b)) for b in ids))
    (found,) = lm.generate("the", words=2, beam=V, stop=stop)
    assert lm.vocab.encode(found.words).tolist() == list(best[1])
    assert found.log_probs.sum() == pytest.approx(best[0], abs=1e-4)
    (without,) = lm.generate("the", words=5, beam=3, ban=found.words[:1], no_unk=True)
    assert found.words[0] not in without.words and "<unk>" not in without.words


def test_a_seed_has_63_bits():
    lm = small_lm()
    texts = {
        seed: tuple(lm.generate("the", words=30, seed=seed)[0].words)
        for seed in (0, 1, 2**32, 2**32 + 1, 2**62)
    }
    assert len(set(texts.values())) == len(texts)
    assert tuple(word for word, _ in lm.stream("the", words=30, seed=2**62)) == texts[2**62]


def test_numbers_beyond_a_float32_are_what_they_tend_to():
    def words(**options) -> list[str]:
        return small_lm().generate("the", words=9, **options)[0].words

    assert words(temperature=1e-40) == words(temperature=0) and words(top_k=10**12) == words(
        top_k=17
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"seed": 2**63},
            "seed must be at least 0 and at most 9,223,372,036,854,775,807; "
            "it is 9223372036854775808",
        ),
        ({"seed": -1}, "seed must"),
        ({"seed": 1.5}, "seed takes a whole number; it is 1.5"),
        ({"temperature": 1e39}, "temperature must be at least 0; it is 1e\\+39, inf in float32"),
        ({"top_k": 2.5}, "top_k takes a whole number or none; it is 2.5"),
        ({"temperature": -1}, "temperature must be at least 0; it is -1"),
        ({"top_k": 0}, "top_k must be at least 1; it is 0"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1; it is 0"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 2e-38}, "repetition_penalty must be at least 1e-06; it is 2e-38"),
        ({"words": 0}, "words must be at least 1; it is 0"),
        ({"words": 2.5}, "words takes a whole number; it is 2.5"),
        ({"tokens": 0}, "tokens must be at least 1; it is 0"),
        ({"words": 5, "tokens": 5}, "so many words or so many tokens: leave one out"),
        ({"samples": 0}, "samples must be at least 1; it is 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0; it is nan"),
        ({"temperature": 0, "top_k": 3}, "temperature 0.*top_k is given"),
        ({"beam": 2, "samples": 2}, "samples is given"),
        ({"beam": 2, "temperature": 0.5}, "temperature is given"),
        ({"beam": 2, "top_p": 0.5}, "top_p is given"),
        ({"beam": 0}, "beam must be at least 1; it is 0"),
        ({"beam": 99}, "beam must be at most 17"),
        ({"ban": ["zebra"]}, "banned word 'zebra' is not among the 17"),
        ({"ban": "zebra"}, "banned word 'zebra' is not among the 17"),
        ({"beam": 2, "seed": 1}, "seed is given"),
        ({"stop": "dot"}, "stop must be eos or none; it is 'dot'"),
        ({"ban": list(small_lm().vocab.words)}, "every word of the vocabulary is banned"),
    ],
)
def test_flags_outside_their_limits_or_that_contradict(options, message):
    with pytest.raises(JaxlmError, match=message):
        small_lm().generate("the", **options)


@pytest.fixture(scope="module")
def run(tiny_run):
    return str(tiny_run[0].run_dir)


def test_the_command_line_prints_text_or_json_lines(run, tmp_path, capsys, monkeypatch):
    prompt = ["the", "bank"]
    (tmp_path / "prompt.txt").write_text("the bank\n")

    def generated(*arguments, drawn=("--seed", "2"), code=0):
        assert main(["generate", run, "--words", "20", *drawn, *arguments]) == code
        return capsys.readouterr().out

    text = generated(" ".join(prompt))
    assert generated("--prompt-file", str(tmp_path / "prompt.txt")) == text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the bank\n")))
    assert generated("-") == text
    rows = [
        json.loads(line)
        for line in generated("the bank", "--samples", "2", "--format", "jsonl").splitlines()
    ]
    first = [row["word"] for row in rows if row["sample"] == 1]
    after = "".join("\n" if word == "<eos>" else f" {word}" for word in first).split()
    assert [*prompt, *after] == text.split()
    assert generated("the bank", "--words", "5", "--tokens", "5", code=1) == ""
    assert [row["position"] for row in rows] == [*range(1, 21)] * 2 and all(
        row["log_prob"] < 0 for row in rows
    )
    assert len(generated("--beam", "2", "--detokenize", drawn=()).split()) <= 20


def test_a_text_of_a_model_that_knows_no_newline_is_not_ended_at_a_space():
    lm = lm_of(Vocab.build("ab a", kind=Characters()))
    assert len(lm.generate(tokens=20)[0].words) == 20
    with pytest.raises(JaxlmError, match="this model's training text had none"):
        lm.generate(tokens=20, stop="eos")


def test_unknown_words_of_a_prompt_are_named_without_control_characters(run, capsys):
    assert main(["generate", run, "the \x1b[31mzebra okapi", "--words", "3"]) == 0
    said = capsys.readouterr()
    assert r"zebra, okapi" in said.err and "\x1b" not in said.err + said.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature=-0.5"], "temperature must be at least 0"),
        (["--top-k", "0"], "top_k must be at least 1"),
        (["--temperature", "0", "--top-p", "0.5"], "leave one out"),
        (["--beam", "2", "--samples", "2"], "leave one out"),
        (["--seed=-1"], "seed must be at least 0"),
        (["a", "--prompt-file", "x"], "given twice"),
        (["--prompt-file", "/none"], "there is no file /none"),
        (["--detokenize", "--format", "jsonl"], "leave one out"),
        (["--ban", "zebra"], "banned word 'zebra'"),
        (["--words", "0"], "words must be at least 1; it is 0"),
    ],
)
def test_mistakes_are_one_sentence(run, capsys, flags, message):
    assert main(["generate", run, *flags]) == 1
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and len(said.err.splitlines()) == 1
