"""Numbers that compare between vocabularies, by hand,
and for texts read in any rows and windows.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from language_models import WORDS, lm_of, small_lm

import jaxlm
from jaxlm.base.units import TextSize, comparable, comparable_text
from jaxlm.data import vocab as vocabularies
from jaxlm.data.tokens import Bytes, Characters, Words
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.runs.run import Run, window_plan


def uniform(lm):
    return jaxlm.LanguageModel(
        jax.tree.map(lambda leaf: 0 * leaf, lm.params), lm.config, lm.vocab, {}
    )


def test_a_uniform_model_has_the_numbers_of_a_pencil(tmp_path):
    lm = uniform(small_lm(words=(EOS, "<unk>", "naïve", "dogs", "run", "the", "x", "y")))
    (tmp_path / "text.txt").write_text("the naïve dogs\nrun zebräs\n")
    found = lm.evaluate(text=tmp_path / "text.txt")
    # Predicted: " naïve dogs\nrun zebräs\n": 23 characters, two of them of two bytes; 4 words, 2
    # ends of lines.
    assert found.predictions == 6 and found.nats == pytest.approx(6 * math.log(8))
    assert found.bits_per_byte == pytest.approx(6 * 3 / 25)
    assert found.bits_per_character == pytest.approx(6 * 3 / 23)
    assert found.word_perplexity == pytest.approx(8) == pytest.approx(found.perplexity)


@given(
    ids=st.lists(st.integers(0, len(WORDS) - 1), min_size=6, max_size=60),
    rows=st.integers(1, 3),
    window=st.integers(1, 3),
    block=st.integers(1, 70),
)
def test_the_size_is_of_the_text_that_the_predicted_tokens_add(ids, rows, window, block):
    vocab, ids, length = Vocab(WORDS), np.array(ids), len(ids) // rows
    expected = np.zeros(4, int)
    for row in range(rows):
        part = ids[row * length : (row + 1) * length]
        part = part[: (len(part) - 1) // window * window + 1]
        for before, after in pairwise(part):
            word = "\n" if after == 0 else WORDS[after] if before == 0 else f" {WORDS[after]}"
            expected += (1, len(word.encode()), len(word), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabularies, "BLOCK", block)
        assert vocab.text_size(ids, rows, window) == tuple(expected)


@pytest.mark.parametrize("kind", [Words(), Characters(), Bytes()])
def test_checkpoints_by_words_know_the_words_of_a_text_of_any_tokens(kind):
    vocab = Vocab(kind.names, kind) if kind.names else Vocab.build(kind.units("ab c\n"), kind=kind)
    train = vocab.encode_text("ab c\n" * 2400)
    words = 7200 * 1.0 / len(train)  # of a token; an end of a line counts as one
    config = jaxlm.preset("small").replace(
        batch_size=10, bptt_length=20, epochs=1, keep_checkpoints="words=3k"
    )
    plan = window_plan(config, len(train) // 10)
    corpus = SimpleNamespace(train=train, vocab=vocab)
    (step,) = Run._milestones.func(SimpleNamespace(config=config, corpus=corpus, plan=plan))
    assert step == pytest.approx(3000 / (200 * words), abs=1)


@pytest.mark.parametrize("kind", [Characters(), Bytes()])
def test_other_tokens_of_the_text_have_other_numbers_that_compare(kind, tmp_path):
    text = "the naïve dogs\nrun\n"
    vocab = Vocab(kind.names, kind) if kind.names else Vocab.build(text, kind=kind)
    (tmp_path / "text.txt").write_text(text)
    found = uniform(lm_of(vocab)).evaluate(text=tmp_path / "text.txt")
    V = len(vocab)
    predicted = (
        18 if kind.kind == "characters" else 19
    )  # all tokens but the first; the ï has two bytes
    assert found.predictions == predicted and len(vocab) == (
        15 if kind.kind == "characters" else 256
    )
    assert found.bits_per_byte == pytest.approx(predicted * math.log2(V) / 19)
    assert found.bits_per_character == pytest.approx(predicted * math.log2(V) / 18)
    assert found.word_perplexity == pytest.approx(
        V ** (predicted / 5), rel=1e-4
    )  # naïve dogs <eos> run <eos>: "the" has begun


def test_what_is_empty_has_no_number():
    assert all(map(math.isnan, comparable(1.0, TextSize()).values()))


def test_a_text_without_spaces_has_no_perplexity_per_word():
    """Chinese has a newline in 31 characters; were these its words, each would have e^45."""
    lines = "你好世界今天天气很好我们去公园散步吧明天也许会下雨的话就在家\n" * 20
    chinese = Vocab.build(lines, kind=Characters())
    words = Vocab.build(["the", "cat", "Donaudampfschifffahrtsgesellschaft", EOS])
    for vocab, text, has_words in ((chinese, lines, False), (words, "the cat\n" * 20, True)):
        numbers = comparable(1000.0, vocab.text_size(vocab.encode_text(text)))
        assert math.isnan(numbers["word_perplexity"]) != has_words
        assert ("hardly any white space" in comparable_text(numbers)) != has_words


def test_unknown_white_space_parts_words():
    vocab = Vocab.build("a b c\n" * 2 + "q", kind=Characters(), min_count=2)
    tokens = vocab.tokenize("a\tb c\n")
    assert vocab.text_size(vocab.encode(tokens), tokens=tokens) == (5, 5, 5, 3)
