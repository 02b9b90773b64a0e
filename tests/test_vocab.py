"""Laws of the vocabulary: its order, round trips, and nothing but `DataError` for wrong input."""

import contextlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.base.errors import DataError
from jaxlm.data.tokens import Characters
from jaxlm.data.vocab import EOS, UNK, Vocab

WORD = st.text(st.characters(exclude_categories=("Cs", "Z", "Cc")), min_size=1, max_size=4)
TOKENS = st.lists(
    st.one_of(WORD, st.sampled_from(["a", "b", "c", UNK, EOS])), min_size=1, max_size=60
)


@given(TOKENS)
def test_words_come_back_from_their_ids(tokens):
    vocab = Vocab.build(tokens)
    ids = vocab.encode(tokens)
    assert ids.dtype == np.int32 and ids.shape == (len(tokens),)
    assert vocab.decode(ids) == tokens
    assert Vocab.from_json(vocab.to_json()) == vocab


@given(TOKENS, st.integers(3, 9), st.integers(1, 4))
def test_order_is_by_count_then_alphabet(tokens, max_size, min_count):
    vocab = Vocab.build(tokens, max_size=max_size, min_count=min_count)
    counts = Counter(vocab.decode(vocab.encode(tokens)))
    assert list(vocab.words) == sorted(vocab.words, key=lambda word: (-counts[word], word))
    assert len(vocab) <= max_size and UNK in vocab.words and (EOS in vocab.words) == (EOS in tokens)
    assert all(counts[word] >= min_count for word in vocab.words if word not in (UNK, EOS))
    dropped = [count for word, count in Counter(tokens).items() if word not in vocab.ids]
    room = len(vocab) < max_size  # then whatever was dropped was too rare
    assert all(count < min_count for count in dropped) or not room


def test_dropped_words_count_as_unknown():
    vocab = Vocab.build(list("aaaabbbcde"), min_count=2)
    assert vocab.words == ("a", UNK, "b")
    assert vocab.encode(["a", "c", "never seen"]).tolist() == [0, 1, 1]
    assert Vocab.build("aa\n", max_size=2, kind=Characters()).words == ("a", "\n")  # none to drop


def test_a_text_is_not_encoded_letter_by_letter():
    with pytest.raises(DataError, match="goes to encode_text"):
        Vocab(("the", UNK)).encode("the cat")


def test_unknown_word_is_added_last():
    vocab = Vocab.build(["b", "a", EOS])
    assert vocab.words == (EOS, "a", "b", UNK)
    assert (vocab.eos, vocab.unknown_id) == (0, 3)


def test_the_share_of_unknown_words():
    vocab = Vocab(("a", UNK, "b"))
    assert vocab.unknown_share(vocab.encode(["a", "c", "b", UNK, "d"])) == 3 / 5
    assert (
        vocab.unknown_share(np.zeros(0, np.int32))
        == Vocab(("a", "b")).unknown_share(np.array([0, 1]))
        == 0.0
    )


def test_a_vocabulary_is_shown_in_short():
    assert repr(Vocab(("a", "b'"))) == """Vocab('a', "b'")"""
    assert (
        repr(Vocab(tuple(f"w{i}" for i in range(10_000))))
        == "Vocab('w0', 'w1', 'w2', ...: 10,000 words)"
    )


def test_words_are_sealed_as_ever():
    """Existing runs and corpora compare their hash with this one."""
    vocab = Vocab(("the", EOS))
    assert vocab.sha256 == "bb34beff9990afa9106be48ddce46ade504532458607e445693608c258657a1c"
    assert vocab.to_json() == '[\n"the",\n"<eos>"\n]\n'


def test_the_hash_depends_on_the_order_and_on_each_word():
    assert (
        len({Vocab(words).sha256 for words in [("a", "b"), ("b", "a"), ("ab",), ("a", "b", "c")]})
        == 4
    )


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda: Vocab(()), "empty"),
        (lambda: Vocab(("a", "b", "a")), "'a' twice"),
        (lambda: Vocab(("a", "b c")), "word 1 .* white space"),
        (lambda: Vocab(("",)), "word 0"),
        (lambda: Vocab(("a\u2028b",)), "white space"),
        (lambda: Vocab(("\ud800",)), "word 0"),
        (lambda: Vocab(("a",)).encode(["a", "zebra"]), "'zebra'"),
        (lambda: Vocab(("a",)).eos, EOS),
        (lambda: Vocab(("a", "b")).decode([0, 2]), "id 2, .* 0 to 1"),
        (lambda: Vocab(("a", "b")).decode([-1]), "id -1"),
        (lambda: Vocab.build(["a", EOS], max_size=2), "over 2"),
        (lambda: Vocab.from_json(""), "JSON"),
        (lambda: Vocab.from_json('{"a": 0}'), "no vocabulary that jaxlm wrote"),
        (lambda: Vocab.from_json('["a", 3]'), "word 1 .* a int"),
        (lambda: Vocab.from_json('["a", ["b"]]'), "a list"),
        (lambda: Vocab.from_json("[" * 100_000), "JSON"),
        (lambda: Vocab.from_json("[" + "9" * 400 + "]"), "word 0 .* a int"),
        (lambda: Vocab.from_json("9" * 5000), "JSON"),
        (lambda: Vocab(("\x1b[2J" * 10**6, "\x1b[2J" * 10**6)), r"x1b\[2J"),
    ],
)
def test_wrong_words_and_ids_are_refused_in_one_sentence(action, expected):
    with pytest.raises(DataError, match=expected) as caught:
        action()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@given(st.data())
def test_changed_json_is_read_or_refused(data):
    text = Vocab(("the", UNK, EOS, "N", "naïve")).to_json()
    place = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 8))
    insert = data.draw(st.text(max_size=8))
    try:
        vocab = Vocab.from_json(text[:place] + insert + text[place + length :])
    except DataError:
        return
    assert len(vocab) and vocab.sha256 and len(set(vocab.words)) == len(vocab)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists, max_leaves=8
)


@given(st.one_of(JSON, st.lists(JSON), st.dictionaries(st.text(), JSON)))
def test_any_json_is_read_or_refused(value):
    with contextlib.suppress(DataError):
        assert list(Vocab.from_json(json.dumps(value)).words) == value


def test_a_vocabulary_of_a_list_is_the_one_that_is_read_back():
    assert Vocab(["the", "cat"]) == Vocab.from_json(Vocab(["the", "cat"]).to_json())  # pyright: ignore
