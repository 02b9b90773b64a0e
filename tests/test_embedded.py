"""The generated corpus: the same bytes everywhere,
and a floor that equals the one found by brute force.
"""

import hashlib
import itertools
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import ROOT
from exact_models import (
    Sample,
    bigram_nats,
    conditional,
    floor_nats,
    nats,
    perplexities,
    sample,
    states,
    stationary,
    unigram_nats,
)

from jaxlm.data import embedded
from jaxlm.data.embedded import BITS

SHA256 = {
    "full": "0ffd9f855b68adc96e5a63b7f2cbb5dc0953176c0eff62385f7feffd3a30c18d",
    "tiny": "3a7fedfe2900299fc6d7c4aafc82a800db132bd264812f37858d086fcb5a7d9d",
}
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def full() -> Sample:
    return sample("embedded")


@pytest.fixture(scope="module")
def tiny() -> Sample:
    return sample("embedded-tiny")


@pytest.fixture(scope="module")
def short() -> Sample:
    """A few short sentences with few topics that change often,
    so that every sequence of topics can be listed.
    """
    spec = embedded.Size.of("embedded-tiny")
    return sample(replace(spec, tokens=(60, 60, 60), topics=4, stay=128, close=400))


def brute_force(corpus: Sample, ids: np.ndarray) -> float:
    """The probability of a whole stream, summed over every sequence of topics."""
    source = corpus.source
    spec = corpus.source.spec
    sentences = [list(group) for group in np.split(ids, np.flatnonzero(ids == 0) + 1) if len(group)]
    total = 0.0
    for topics in itertools.product(range(spec.topics), repeat=len(sentences)):
        chance = 1 / spec.topics
        for before, after in pairwise(topics):
            chance *= (1 - spec.stay / 256) / spec.topics + (before == after) * spec.stay / 256
        for topic, sentence in zip(topics, sentences, strict=True):
            state = 0
            for word in sentence:
                kind = source.word_class[word]
                chance *= (
                    source.class_weight[state, kind] * source.word_weight[topic, word] / 4.0**BITS
                )
                state = source.next_state[state, kind]
        total += chance
    return total


@pytest.mark.parametrize("size", SHA256)
def test_bytes_are_pinned(size, request):
    corpus = request.getfixturevalue(size)
    digest = hashlib.sha256("\n".join(corpus.source.words).encode())
    for split in SPLITS:
        digest.update(getattr(corpus, split).astype("<i4").tobytes())
    assert digest.hexdigest() == SHA256[size]


@pytest.mark.parametrize(("size", "types"), [("full", 10_000), ("tiny", 500)])
def test_sizes_and_types(size, types, request):
    corpus = request.getfixturevalue(size)
    assert [len(getattr(corpus, split)) for split in SPLITS] == corpus.source.spec.tokens
    assert len(corpus.source.words) == len(set(corpus.source.words)) == types
    assert {"<eos>", "<unk>"} < set(corpus.source.words)
    assert all(word.split() == [word] for word in corpus.source.words)
    assert len(np.unique(corpus.train)) == types  # so that a vocabulary from train has every type
    assert all(getattr(corpus, split).dtype == np.int32 for split in SPLITS)


def test_full_has_the_size_and_sentence_length_of_penn_treebank(full):
    assert [len(getattr(full, split)) for split in SPLITS] == [929_589, 73_760, 82_430]
    assert 15 < len(full.train) / np.sum(full.train == 0) < 25  # tokens a sentence
    counts = np.sort(np.bincount(full.train))[::-1]
    ranks = np.arange(10, 1000)
    slope = np.polyfit(np.log(ranks + 1), np.log(counts[ranks]), 1)[0]
    assert -1.2 < slope < -0.8  # Zipf's law


def test_a_reader_sees_sentences_whose_words_agree_in_number(tiny):
    words = {
        category: set(embedded._words(category, 0))
        for category in ("noun_s", "noun_p", "verb_s", "verb_p")
    }
    assert {"market", "bank"} < words["noun_s"] and {"markets", "companies", "taxes"} < words[
        "noun_p"
    ]
    assert {"sells", "supplies", "purchases"} < words["verb_s"] and {
        "sell",
        "supply",
        "purchase",
    } < words["verb_p"]
    pairs = set(pairwise(tiny.source.words[i] for i in tiny.train))
    singular = {verb for before, verb in pairs if before == "he"}
    plural = {verb for before, verb in pairs if before == "they"}
    assert "sells" in singular - plural and "sell" in plural - singular
    nouns = {noun for before, noun in pairs if before == "every"}
    assert "bank" in nouns and "banks" not in nouns


def test_splits_are_different_streams(tiny):
    assert len({getattr(tiny, split)[:4000].tobytes() for split in SPLITS}) == 3


def test_tables_are_exact_draws(tiny):
    source = tiny.source
    assert np.all(source.class_weight.sum(1) == 2**BITS)
    classes = np.arange(source.class_weight.shape[1])
    in_class = source.word_class[:, None] == classes
    assert np.all(source.word_weight @ in_class == 2**BITS)
    assert source.word_weight.min() > 0


def test_nats_agree_with_a_sum_over_every_sequence_of_topics(short):
    for length in (1, 2, 5, 10, 20, 30):
        ids = short.train[:length]
        assert np.sum(ids == 0) < 7
        np.testing.assert_allclose(
            nats(short.source, ids), -np.log(brute_force(short, ids)), rtol=1e-12
        )


def test_nats_of_sentences_read_alone_are_the_sum_of_the_nats_of_each(short):
    sentences = np.split(short.train, np.flatnonzero(short.train == 0) + 1)
    apart = sum(nats(short.source, sentence) for sentence in sentences if len(sentence))
    np.testing.assert_allclose(nats(short.source, short.train, across_sentences=False), apart)


@pytest.mark.parametrize("size", SHA256)
def test_nats_agree_with_the_reference(size, request):
    corpus = request.getfixturevalue(size)
    for position in (0, 1, 3_000, 3_001, 3_999):
        chances = conditional(corpus.source, corpus.valid[:position])
        np.testing.assert_allclose(chances.sum(), 1.0, rtol=1e-12)
        before = nats(corpus.source, corpus.valid[:position]) if position else 0.0
        cost = nats(corpus.source, corpus.valid[: position + 1]) - before
        np.testing.assert_allclose(cost, -np.log(chances[corpus.valid[position]]), rtol=1e-7)


@pytest.mark.parametrize("size", SHA256)
def test_the_floors_of_the_corpus_are_the_nats_of_its_source(size, request):
    corpus = request.getfixturevalue(size)
    for split, floor in zip(SPLITS, corpus.source.spec.floor, strict=True):
        np.testing.assert_allclose(
            floor_nats(corpus.source, getattr(corpus, split)), floor, rtol=1e-13
        )


@pytest.mark.parametrize(
    "change",
    [
        {"stay": 225},
        {"stay": 254},
        {"coherence": 140},
        {"coherence": 180},
        {"boost": 30},
        {"boost": 50},
    ],
)
def test_tokens_have_the_lowest_cost_under_their_own_source(tiny, change):
    """Under any other source, even a similar one, their cost is higher."""
    other = replace(tiny, source=embedded.Generator(replace(tiny.source.spec, **change)))
    assert other.source.words == tiny.source.words
    assert floor_nats(tiny.source, tiny.train) + 3 < floor_nats(other.source, tiny.train)


def test_stationary_frequencies_are_those_of_the_text(tiny):
    source = tiny.source
    visits = np.bincount(states(source, tiny.train), minlength=len(source.class_weight))
    np.testing.assert_allclose(visits / len(tiny.train), stationary(source), atol=0.005)
    np.testing.assert_allclose(
        sum(np.exp(-unigram_nats(source, np.arange(len(source.words))))), 1.0
    )


def test_bigram_is_a_distribution_whose_mean_is_the_unigram(tiny):
    vocabulary = len(tiny.source.words)
    unigram = np.exp(-unigram_nats(tiny.source, np.arange(vocabulary)))
    # One stream holding each pair: word a at 2i, word b at 2i + 1.
    pairs = np.stack(
        np.meshgrid(np.arange(vocabulary), np.arange(vocabulary), indexing="ij"), -1
    ).reshape(-1)
    with np.errstate(divide="ignore"):  # the grammar forbids some pairs
        cost = bigram_nats(tiny.source, pairs)[1::2]
    bigram = np.exp(-cost).reshape(vocabulary, vocabulary)
    np.testing.assert_allclose(bigram.sum(1), 1.0)
    np.testing.assert_allclose(unigram @ bigram, unigram, rtol=1e-9)


@pytest.mark.parametrize("size", SHA256)
def test_each_kind_of_context_lowers_the_perplexity(size, request):
    corpus = request.getfixturevalue(size)
    floor, forgetful, bigram, unigram = perplexities(corpus, "test").values()
    assert 1.1 * floor < forgetful and 1.1 * forgetful < bigram and 2 * bigram < unigram
    name = {"full": "embedded", "tiny": "embedded-tiny"}[size]
    row = f"| {name}, test | {floor:.2f} | {forgetful:.2f} | {bigram:.2f} | {unigram:.1f} |"
    assert row in (ROOT / "docs/data.md").read_text()


def test_no_bigram_model_of_train_is_better_than_the_exact_one(tiny):
    """Even one interpolated with the unigram, and tuned on the split itself."""
    vocabulary, (before, after) = len(tiny.source.words), (tiny.test[:-1], tiny.test[1:])
    counts = np.zeros((vocabulary, vocabulary))
    np.add.at(counts, (tiny.train[:-1], tiny.train[1:]), 1)
    unigram = counts.sum(0) / counts.sum()
    backing = np.geomspace(1, 1000, 20)[:, None]  # how many counts the unigram is worth
    chance = (counts[before, after] + backing * unigram[after]) / (counts[before].sum(1) + backing)
    assert perplexities(tiny, "test")["bigram"] < np.exp(-np.log(chance).mean(1)).min()
