"""Words made of subwords, characters or bytes: their probabilities sum to one, however words and punctuation are cut.

The model is a bigram: an LSTM whose state is the last token, so that all words that can follow are few enough to list.
"""

from collections import Counter
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from language_models import lm_of, log_probs

import jaxlm
from jaxlm.data.tokens import Bytes, Characters, Subwords
from jaxlm.data.vocab import Vocab
from jaxlm.scoring.sentences import Boundaries

TEXT = "ab, a b.\n"
NEXT = {  # the weights of what comes after a letter, a mark, a space and a newline
    "a": {"b": 3, ",": 1, " ": 4, "\n": 1},
    "b": {",": 2, " ": 5, "\n": 4},
    ",": {" ": 3, "\n": 1},
    " ": {"a": 3, "b": 2},
    "\n": {"a": 1, "b": 4},
}
CHANCE = {before: {after: p / sum(row.values()) for after, p in row.items()} for before, row in NEXT.items()}
KINDS = ["characters", "bytes", "subwords"]


@cache
def bigram(kind: str) -> jaxlm.LanguageModel:
    tokens = {
        "characters": Characters,
        "bytes": Bytes,
        "subwords": lambda: Subwords.train(
            Counter({" a": 50, " b": 40, " ab": 30, " a,": 20, "a": 20, "b": 20}), 264, "bpe"
        ),
    }[kind]()
    vocab = Vocab(tokens.names, tokens) if tokens.names else Vocab.build(TEXT, kind=tokens)
    V, texts = len(vocab), [data.decode("utf-8", "replace") for data in vocab.token_bytes]
    lm = lm_of(vocab)
    config = lm.config.replace(embedding_size=V, hidden_sizes=(V,))
    weights = np.full((V, V), 1e-20)
    for before, text in enumerate(texts):
        for after, found in enumerate(texts):
            p, last = 1.0, text[-1:]
            for letter in found:
                p, last = p * CHANCE.get(last, {}).get(letter, 0), letter
            if kind == "subwords" and (found == " " or vocab.words[after][0] == "<"):  # other ways to write the text
                p = 0
            weights[before, after] = p or 1e-20
    kernel, bias = np.zeros((2 * V, 4 * V)), np.zeros(4 * V)
    kernel[:V, V : 2 * V] = 30 * np.eye(V)  # the candidate is the token read
    bias[:V], bias[2 * V : 3 * V], bias[3 * V :] = 30, -60, 30  # gates: in, none is kept, out
    params = {
        "embedding": np.eye(V),
        "layers": [{"kernel": kernel, "bias": bias}],
        "softmax": {"kernel": np.log(weights) / np.tanh(1), "bias": np.zeros(V)},
    }
    params = {name: _float32(tree) for name, tree in params.items()}
    return jaxlm.LanguageModel(params, config, vocab, {})


def _float32(tree):
    if isinstance(tree, dict):
        return {name: _float32(one) for name, one in tree.items()}
    return [*map(_float32, tree)] if isinstance(tree, list) else jnp.asarray(tree, jnp.float32)


def words_after(lm, context: list[str], punctuation: str) -> list[list[str]]:
    """Every word that can follow, as the names of its tokens."""
    found, parts = [], [[]]
    boundaries = Boundaries.of(lm.vocab, punctuation)
    while parts:
        part = parts.pop()
        p = np.exp(log_probs(lm, [*context, *part])[-1])
        for place in np.flatnonzero(p > 1e-9):
            name = lm.vocab.words[place]
            if place == lm.vocab.eos:
                continue
            ids = lm.vocab.encode([*context, *part, name, "a"])
            starts, _ = boundaries.split(ids)
            begins = len(context) + len(part) in starts
            if begins == bool(part):  # the first token of the word begins one, the others none
                continue
            parts.append([*part, name])
            if lm.vocab.token_bytes[place].strip():
                found.append(parts[-1])
    return found


def sum_over_words(lm, context: str, boundary: str, punctuation: str) -> float:
    names = lm.vocab.tokenize(context)
    options = {"unit": "nats", "boundary": boundary, "punctuation": punctuation}
    table = lm.word_surprisal([[*names, *word] for word in words_after(lm, names, punctuation)], **options)
    last = np.append(np.diff(table.sentence_id) > 0, True)
    total = np.exp(-table.surprisal[last]).sum()
    return total + (np.exp(-lm.word_surprisal([names], eos=True, **options).surprisal[-1]) if names else 0.0)


@pytest.mark.parametrize("punctuation", ["word", "own"])
@pytest.mark.parametrize("context", ["", "ab", "b, ab a", "a,"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_words_of_a_place_have_together_a_probability_of_one(kind, context, punctuation):
    lm = bigram(kind)
    assert sum_over_words(lm, context, "corrected", punctuation) == pytest.approx(1, abs=1e-6)
    assert abs(sum_over_words(lm, context, "published", punctuation) - 1) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_words_probability_is_that_of_its_pieces_and_of_a_boundary(kind):
    lm = bigram(kind)
    found = lm.word_surprisal(["b ab, a"], unit="nats", eos=True)
    assert found.word == ["b", "ab,", "a", "<eos>"] and found.word_id.tolist() == [1, 2, 3, 4]
    begins = {before: CHANCE[before].get(" ", 0) + CHANCE[before]["\n"] for before in "ab,"}
    after = {before: CHANCE[before][" "] / begins[before] for before in "ab,"}
    p = [
        CHANCE["\n"]["b"] * begins["b"],
        after["b"] * CHANCE[" "]["a"] * CHANCE["a"]["b"] * CHANCE["b"][","],
        after[","] * CHANCE[" "]["a"] * begins["a"],
        CHANCE["a"]["\n"] / begins["a"],
    ]
    np.testing.assert_allclose(found.surprisal, -np.log(p), atol=1e-5)


@pytest.mark.parametrize("protocol", [None, "mc", "cache", "dynamic"])
@pytest.mark.parametrize("punctuation", ["word", "own"])
def test_corrections_cancel_over_a_line(punctuation, protocol):
    lm = lm_of(Vocab.build("the dogs, run.\n", kind=Characters()))
    if protocol == "dynamic":
        protocol = jaxlm.Dynamic(rule="sgd", learning_rate=0.1)
    lines = ["the dogs, run.", "run", "the the, the"]
    options = {"unit": "nats", "eos": True, "punctuation": punctuation, "protocol": protocol}
    words = lm.word_surprisal(lines, **options)
    pieces = {boundary: lm.surprisal(lines, boundary=boundary, **options) for boundary in ("corrected", "published")}
    for line in (1, 2, 3):
        expected = pieces["published"].surprisal[pieces["published"].sentence_id == line].sum()
        for table in (words, pieces["corrected"]):
            np.testing.assert_allclose(table.surprisal[table.sentence_id == line].sum(), expected, rtol=1e-5)
    assert np.abs(pieces["corrected"].surprisal - pieces["published"].surprisal).max() > 0.1
    assert len(words) == (10 if punctuation == "word" else 13)
