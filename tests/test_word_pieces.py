"""Words made of subwords, characters or bytes:
their probabilities sum to one, however words and punctuation are cut.

The model is a bigram: an LSTM whose state is the last token, so that all words that can follow are
few enough to list.
"""

import csv
import io
import re
import time
from collections import Counter
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from language_models import WORDS, lm_of, log_probs, small_lm
from test_tokens import few_letters

import jaxlm
from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.cli import main
from jaxlm.cli.using import _say_unknown_in
from jaxlm.data.corpus import Corpus
from jaxlm.data.subwords import Subwords
from jaxlm.data.tokens import Bytes, Characters
from jaxlm.data.vocab import Vocab
from jaxlm.runs.loading import keep_model, unread_corpus
from jaxlm.scoring import reading, reading_times
from jaxlm.scoring.displayed_words import _cut
from jaxlm.scoring.generation import first_words
from jaxlm.scoring.minimal_pairs import Pair
from jaxlm.scoring.reading_times import span_surprisal
from jaxlm.scoring.sentences import Boundaries
from jaxlm.scoring.syntaxgym import Item, Suite

TEXT = "ab, a b,c.\n"
NEXT = {  # the weights of what comes after a letter, a mark, a space and a newline
    "a": {"b": 3, ",": 1, " ": 4, "\n": 1},
    "b": {",": 2, " ": 5, "\n": 4},
    ",": {" ": 3, "\n": 1, "c": 2},
    "c": {" ": 1, "\n": 1},
    " ": {"a": 3, "b": 2},
    "\n": {"a": 1, "b": 4},
}
CHANCE = {
    before: {after: p / sum(row.values()) for after, p in row.items()}
    for before, row in NEXT.items()
}
KINDS = ["characters", "bytes", "subwords"]


@pytest.fixture(autouse=True)
def one_size_of_call(monkeypatch):
    """A model reads few sentences and many by one program; `test_surprisal.py` has several."""
    monkeypatch.setattr(reading, "SENTENCES_OF_CALLS", (64,))


@cache
def of_letters() -> jaxlm.LanguageModel:
    """A model of the letters of many tests, whose programs they share."""
    return lm_of(Vocab.build("th\u00e9 dogs, be run at it.\n", kind=Characters()))


@cache
def bigram(kind: str) -> jaxlm.LanguageModel:
    tokens = {
        "characters": Characters,
        "bytes": Bytes,
        "subwords": lambda: Subwords.train(
            Counter({" a": 50, " b": 40, " ab": 30, " a,": 20, "a": 20, "b": 20, "c": 20}),
            265,
            "bpe",
        ),
    }[kind]()
    vocab = Vocab(tokens.names, tokens) if tokens.names else Vocab.build(TEXT, kind=tokens)
    V = len(vocab)
    texts = [data.decode("utf-8", "replace") for data in vocab.token_bytes]
    lm = lm_of(vocab)
    config = lm.config.replace(embedding_size=V, hidden_sizes=(V,))
    weights = np.full((V, V), 1e-20)
    for before, text in enumerate(texts):
        for after, found in enumerate(texts):
            p = 1.0
            last = text[-1:]
            for letter in found:
                p = p * CHANCE.get(last, {}).get(letter, 0)
                last = letter
            if kind == "subwords" and (
                found == " " or vocab.words[after][0] == "<"
            ):  # other ways to write the text
                p = 0
            weights[before, after] = p or 1e-20
    kernel = np.zeros((2 * V, 4 * V))
    bias = np.zeros(4 * V)
    kernel[:V, V : 2 * V] = 30 * np.eye(V)  # the candidate is the token read
    bias[:V] = 30
    bias[2 * V : 3 * V] = -60
    bias[3 * V :] = 30  # gates: in, none is kept, out
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
    if isinstance(tree, list):
        return [*map(_float32, tree)]
    return jax.device_put(np.asarray(tree, np.float32))


@cache
def words_after(kind: str, context: tuple[str, ...], punctuation: str) -> list[list[str]]:
    """Every word that can follow, as the names of its tokens."""
    lm = bigram(kind)
    found = []
    parts = [[]]
    boundaries = Boundaries.of(lm.vocab, punctuation)
    assert boundaries
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


def sum_over_words(kind: str, context: str, boundary: str, punctuation: str) -> float:
    lm = bigram(kind)
    names = lm.vocab.tokenize(context)
    options = {"unit": "nats", "boundary": boundary, "punctuation": punctuation}
    table = lm.word_surprisal(
        [[*names, *word] for word in words_after(kind, tuple(names), punctuation)], **options
    )
    last = np.append(np.diff(table.sentence_id) > 0, True)
    total = np.exp(-table.surprisal[last]).sum()
    return total + (
        np.exp(-lm.word_surprisal([names], eos=True, **options).surprisal[-1]) if names else 0.0
    )


PLACES = [  # each kind after each context, and with either punctuation
    (kind, context, "own" if (row + column) % 2 else "word")
    for row, kind in enumerate(KINDS)
    for column, context in enumerate(["", "b, ab a", "a,"])
]


@pytest.mark.parametrize(  # by default each kind, each context and either punctuation
    ("kind", "context", "punctuation"),
    [
        pytest.param(*place, marks=[] if number % 4 in (0, 1) else pytest.mark.slow)
        for number, place in enumerate(PLACES)
    ],
)
def test_the_words_of_a_place_have_together_a_probability_of_one(kind, context, punctuation):
    assert sum_over_words(kind, context, "corrected", punctuation) == pytest.approx(1, abs=1e-6)
    assert abs(sum_over_words(kind, context, "published", punctuation) - 1) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_words_probability_is_that_of_its_pieces_and_of_a_boundary(kind):
    lm = bigram(kind)
    found = lm.word_surprisal(["b ab, a"], unit="nats", eos=True)
    assert found.word == ["b", "ab,", "a", "<eos>"] and found.word_id.tolist() == [1, 2, 3, 4]
    begins = {before: CHANCE[before].get(" ", 0) + CHANCE[before]["\n"] for before in "ab,"}
    after = {before: CHANCE[before][" "] / begins[before] for before in "ab,"}
    p = [
        CHANCE["\n"]["b"] * begins["b"],
        after["b"] * CHANCE[" "]["a"] * CHANCE["a"]["b"] * CHANCE["b"][","] * begins[","],
        after[","] * CHANCE[" "]["a"] * begins["a"],
        CHANCE["a"]["\n"] / begins["a"],
    ]
    np.testing.assert_allclose(found.surprisal, -np.log(p), atol=1e-5)


@pytest.mark.parametrize(
    ("punctuation", "protocol"),
    [
        ("word", None),
        ("own", None),
        pytest.param("own", "mc", marks=pytest.mark.slow),
        ("word", "cache"),
        ("own", "dynamic"),
    ],
)
def test_corrections_cancel_over_a_line(punctuation, protocol):
    lm = of_letters()
    if protocol == "mc":
        lm = type(lm)(lm.params, lm.config.replace(keep_output=0.8), lm.vocab, {})
    if protocol == "dynamic":
        protocol = jaxlm.Dynamic(rule="sgd", learning_rate=0.1)
    lines = ["the dogs, run.", "run", "  the  the, the "]
    options = {"unit": "nats", "eos": True, "punctuation": punctuation, "protocol": protocol}
    words = lm.word_surprisal(lines, **options)
    pieces = {
        boundary: lm.surprisal(lines, boundary=boundary, **options)
        for boundary in ("corrected", "published")
    }
    for line in (1, 2, 3):
        expected = pieces["published"].surprisal[pieces["published"].sentence_id == line].sum()
        for table in (words, pieces["corrected"]):
            np.testing.assert_allclose(
                table.surprisal[table.sentence_id == line].sum(), expected, rtol=1e-5
            )
    assert np.abs(pieces["corrected"].surprisal - pieces["published"].surprisal).max() > 0.1
    assert len(words) == (10 if punctuation == "word" else 13)
    assert words.word[-2:] == ["the", "<eos>"] and not {"", " "} & {*words.word}
    how = {"punctuation": punctuation, "protocol": protocol}
    (pair,) = lm.minimal_pairs([Pair(lines[0], lines[2])], **how).results
    sums = [words.surprisal[words.sentence_id == line][:-1].sum() for line in (1, 3)]
    np.testing.assert_allclose([pair.good, pair.bad], np.negative(sums), rtol=1e-5)
    if protocol is None:
        adapted = lm.word_surprisal(
            lines, scoring=lm.adaptive(1e-9, punctuation=punctuation), **options
        )
        np.testing.assert_allclose(adapted.surprisal, words.surprisal, atol=1e-5)
        named = lm.word_surprisal([["r", "u", "n", " "]], **options)
        assert named.word == ["run", "", "<eos>"] and np.isfinite(named.surprisal).all()


def test_every_verb_has_the_probabilities_of_words():
    lm = bigram("subwords")
    table = lm.word_surprisal(["b ab, a", "a"], unit="nats")
    sums = [table.surprisal[table.sentence_id == line].sum() for line in (1, 2)]
    (pair,) = lm.minimal_pairs([Pair("a", "b ab, a")]).results
    np.testing.assert_allclose([pair.bad, pair.good], np.negative(sums), rtol=1e-5)
    formula = "(1;%x%) > 0 & (2;%x%) > 0"
    item = Item(1, {"x": {1: "b", 2: "ab, a"}})
    (found,) = lm.syntaxgym(Suite("s", [formula], [item])).items
    expected = table.surprisal[[0, 1]] / np.log(2), table.surprisal[2] / np.log(2)
    np.testing.assert_allclose(found.surprisals["x", 1], expected[0][0], rtol=1e-5)
    np.testing.assert_allclose(found.surprisals["x", 2], expected[0][1] + expected[1], rtol=1e-5)
    spaced = Item(2, {"x": {3: "", 1: "b ", 4: " ", 2: " ab, a", 5: ""}})
    assert lm.syntaxgym(Suite("s", [formula], [spaced])).items[0].surprisals == {
        **found.surprisals,
        **dict.fromkeys((("x", empty) for empty in (3, 4, 5)), 0.0),
    }


def test_a_region_may_hold_a_no_break_space():
    lm = bigram("bytes")
    regions = ["a\u00a0b", "ab"]
    found = lm.word_surprisal([" ".join(regions)], regions=[regions])
    assert (
        found.word == regions
        and found.surprisal.sum() == lm.word_surprisal([" ".join(regions)]).surprisal.sum()
    )
    assert lm.word_surprisal(["a\u00a0b ,a"], punctuation="own").word == ["a\u00a0b", ",", "a"]


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_prefix_probabilities_wherever_they_cut(kind):
    lm = bigram(kind)
    text = "b ab, a"
    letters = "\n" + text
    expected = [
        -np.log(CHANCE[before][after]) for before, after in zip(letters, text, strict=False)
    ]  # of each character
    spans = [(start, end) for start in range(7) for end in range(start + 1, 8)]
    found = span_surprisal(lm, [text] * len(spans), spans, unit="nats")
    np.testing.assert_allclose(found.surprisal, [sum(expected[a:b]) for a, b in spans], atol=1e-5)
    assert found.word == [text[a:b] for a, b in spans]


def test_spans_of_words():
    lm = small_lm()
    text = "the dogs can't run"
    whole = lm.word_surprisal(["the dogs ca n't run"], tokenizer="none")
    found = span_surprisal(lm, [text] * 4, [(0, 3), (3, 8), (9, 14), (0, 18)], tokenizer="ptb")
    np.testing.assert_allclose(
        found.surprisal,
        [whole.surprisal[part].sum() for part in ([0], [1], [2, 3], range(5))],
        rtol=1e-5,
    )
    assert found.tokens == ["the", "dogs", "ca n't", "the dogs ca n't run"]
    for span, message in (
        ((4, 7), "cuts a word"),
        ((5, 8), "cuts a word"),
        ((0, 19), "not within"),
        ((3, 3), "not within"),
    ):
        with pytest.raises(DataError, match=f"sentence 1: the span .* {message}"):
            span_surprisal(lm, [text], [span], tokenizer="ptb")


def test_spans_may_begin_after_a_mark_that_the_vocabulary_lacks():
    lm = small_lm()
    whole = lm.word_surprisal(["the dogs run"])
    found = span_surprisal(
        lm, ["the \u2014 dogs run"] * 3, [(6, 10), (0, 5), (4, 5)], tokenizer="ptb"
    )
    np.testing.assert_allclose(
        found.surprisal, [whole.surprisal[1], whole.surprisal[0], np.nan], rtol=1e-5
    )
    assert found.tokens == ["dogs", "the", ""] and np.isnan(found.entropy).tolist() == [
        False,
        False,
        True,
    ]


def test_spans_are_of_the_characters_given_however_they_are_read():
    lm = of_letters()
    composed = span_surprisal(lm, ["b\u00e9 a"] * 2, [(1, 2), (3, 4)])
    found = span_surprisal(lm, ["be\u0301 a"] * 2, [(1, 3), (4, 5)])
    assert found.word == ["e\u0301", "a"] and found.tokens == composed.tokens == ["\u00e9", "a"]
    np.testing.assert_array_equal(found.surprisal, composed.surprisal)
    logs = reading_times.predictors(lm, lm.word_surprisal(["be\u0301 a"]), {"b\u00e9": 1, "a": 2})[
        "log_frequency"
    ]
    np.testing.assert_allclose(logs, np.log([2, 3]))


def test_spans_behind_an_unknown_piece_of_many_letters_keep_their_place():
    lm = lm_of(few_letters())
    many = span_surprisal(lm, ["a \U00013000\U00013001\U00013002 a"], [(5, 7)])
    one = span_surprisal(lm, ["a \U00013000 a"], [(3, 5)])
    assert many.word == one.word == [" a"] and many.surprisal == one.surprisal


def test_a_span_may_cut_an_unknown_piece_of_many_letters():
    found = span_surprisal(
        lm_of(few_letters()), ["a \U00013000\U00013001 a"] * 3, [(3, 6), (0, 3), (0, 6)]
    )
    assert (found.surprisal >= 0).all() and found.surprisal.max() < 100
    assert found.surprisal[:2].sum() == pytest.approx(found.surprisal[2])


def test_an_unknown_letter_is_no_punctuation_and_its_word_has_no_frequency():
    lm = lm_of(Vocab.build("naive, cafe.\n" * 2 + "q", kind=Characters(), min_count=2))
    table = lm.word_surprisal(["na\u00efve cafe"], punctuation="own")
    assert table.word == ["na\u00efve", "cafe"]
    logs = reading_times.predictors(lm, table, {"cafe": 2})["log_frequency"]
    np.testing.assert_allclose(logs, [np.nan, np.log(3)])


def test_punctuation_of_words_is_a_row_where_it_is_asked():
    brackets = small_lm(words=(*WORDS[:-1], "-lrb-"))
    assert brackets.word_surprisal(["the (dog"], punctuation="own", tokenizer="ptb").word == [
        "the",
        "(",
        "dog",
    ]
    lm = small_lm(words=(*WORDS[:-1], ","))
    found = lm.word_surprisal(["the dog, can't run", "the"], punctuation="own", tokenizer="ptb")
    assert found.word == ["the", "dog", ",", "can't", "run", "the"]
    assert found.tokens == ["the", "dog", ",", "ca n't", "run", "the"]
    together = lm.word_surprisal(["the dog, can't run"], tokenizer="ptb")
    assert together.surprisal[1] == pytest.approx(found.surprisal[1] + found.surprisal[2])
    priced = lm.word_surprisal(["The $5, dog,)"], punctuation="own", tokenizer="ptb")
    assert priced.word == ["The", "$", "5", ",", "dog", ",)"]
    assert priced.tokens == ["the", "$", "N", ",", "dog", ","]
    regions = ["The $", "5, dog"]
    found = lm.word_surprisal(
        ["The $5, dog"], punctuation="own", tokenizer="ptb", regions=[regions]
    )
    assert found.word == regions


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of words and one of subwords, of a text that is known."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text").mkdir()
    for split in ("train", "valid", "test"):
        (folder / "text" / f"{split}.txt").write_text("b ab, a a\nthe ab\n")
    words = jaxlm.load_corpus(folder / "text")
    lm = lm_of(words.vocab)
    keep_model(folder / "words", lm.config, lm.params, words)
    pieces = bigram("subwords")
    keep_model(
        folder / "pieces", pieces.config, pieces.params, unread_corpus("x", "0" * 64, pieces.vocab)
    )
    return folder


def rows(capsys, *arguments):
    assert main(["surprisal", *map(str, arguments)]) == 0
    said = capsys.readouterr()
    return [
        *csv.DictReader(io.StringIO(said.out), delimiter="," if "--csv" in arguments else "\t")
    ], said.err


def test_the_command_prints_words_of_pieces_beside_those_of_words(runs, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("b ab, a\n\u00df a\n")
    found, error = rows(capsys, runs / "pieces", tmp_path / "text.txt")
    assert [row["word"] for row in found] == ["b", "ab,", "a", "\u00df", "a"] and found[1][
        "tokens"
    ] == "\u2581a b ,"
    assert "vocabulary" not in error  # bytes stand for the rest
    found, error = rows(capsys, runs / "pieces", runs / "words", tmp_path / "text.txt")
    assert [row["tokens.words"] for row in found] == [
        "b",
        "ab,",
        "a",
        "<unk>",
        "a",
    ] and "surprisal.pieces" in found[0]
    assert (
        error == "warning: 1 of 5 words are outside the vocabulary of words, "
        "read as <unk> (20.0%): \u00df\n"
    )
    published, _ = rows(
        capsys, runs / "pieces", tmp_path / "text.txt", "--boundary", "published", "--eos"
    )
    assert (
        published[0]["surprisal"] != found[0]["surprisal.pieces"]
        and published[3]["word"] == "<eos>"
    )
    found, error = rows(capsys, runs / "words", tmp_path / "text.txt", "--predictors")
    assert [row["length"] for row in found] == ["1", "3", "1", "1", "1"] and error.endswith(
        ": \u00df\n"
    )
    assert [row["log_frequency"] for row in found] == [
        "0.693147",
        "1.098612",
        "1.098612",
        "NaN",
        "1.098612",
    ]
    _, error = rows(capsys, runs / "pieces", tmp_path / "text.txt", "--predictors")
    assert (
        error == "note: no log frequencies of pieces: the training text of this model is unknown\n"
    )


def test_unknown_characters_are_not_called_words(capsys):
    _say_unknown_in(lm_of(Vocab.build(TEXT, kind=Characters(), min_count=2)), "ab\u2603")
    assert "1 of 3 characters are outside the vocabulary" in capsys.readouterr().err
    _say_unknown_in(bigram("characters"), "ab\u2603")  # which has nothing to read it as
    assert capsys.readouterr().err == ""


def test_the_name_of_a_byte_keeps_its_case_in_a_model_of_lower_case():
    lm = replace(bigram("bytes"), config=bigram("bytes").config.replace(lowercase=True))
    assert lm.neighbors("<0x0A>", 2) == bigram("bytes").neighbors("<0x0A>", 2)
    assert "<0x0A>" not in lm.generate("ab", words=20, ban=["<0x0A>"])[0].words
    prompt = "\u00c9\nab"
    plain = bigram("bytes").generate("\u00e9\nab", words=5)
    assert [str(text) for text in lm.generate(prompt, words=5)] == [*map(str, plain)]


def test_counts_of_words_in_pieces_are_those_in_words(runs):
    text = jaxlm.load_corpus(runs / "text")
    vocab = (lm := bigram("subwords")).vocab
    ids = vocab.encode_text((runs / "text/train.txt").read_text())
    pieces = Corpus("x", "x", vocab, ids, ids, ids, "0")
    with pytest.MonkeyPatch.context() as patch:
        for block in (1, 3, 100):
            patch.setattr("jaxlm.data.corpus.BLOCK", block)
            counts = reading_times.word_counts(pieces)
            assert {k: v for k, v in counts.items() if v} == {
                "b": 1,
                "ab": 2,
                "a": 2,
                "the": 1,
                "<eos>": 2,
            }
            table = lm.word_surprisal(
                ["a ab, the", "zz ,"], regions=[["a ab,", "the"], ["zz", ","]]
            )
            logs = reading_times.predictors(lm, table, counts)["log_frequency"]
            np.testing.assert_allclose(logs, [np.log(3), np.log(2), 0, np.nan])
            assert reading_times.word_counts(text)["a"] == 2


def test_words_of_a_training_text_are_counted_apart_at_any_white_space():
    vocab = Vocab.build(text := "ab\u00a0, a\u3000ab\n", kind=Characters())
    ids = vocab.encode_text(text)
    counts = reading_times.word_counts(Corpus("x", "x", vocab, ids, ids, ids, "0"))
    assert {k: v for k, v in counts.items() if v} == {"ab": 2, ",": 1, "a": 1, "<eos>": 1}


def test_regions_and_spans_of_stimuli(runs, tmp_path, capsys):
    path = tmp_path / "stimuli.csv"
    path.write_text("Item;Sentence;Parts;start;end\n1;b ab, a;b ab,| a;2;4\n2;a ab;a|ab;0;1\n")
    words, _ = rows(capsys, runs / "pieces", "--csv", path)
    regions, _ = rows(capsys, runs / "pieces", "--csv", path, "--regions", "Parts")
    assert [row["words"] for row in regions] == ["b ab,", "a", "a", "ab"]
    assert regions[1]["Item"] == "1" and "Parts" not in regions[0]
    assert [row["word_count"] for row in regions] == ["2", "1", "1", "1"]
    assert [row["entropy_of"] for row in regions] == ["b", "a", "a", "ab"]
    assert float(regions[0]["surprisal_per_word"]) == pytest.approx(
        float(regions[0]["surprisal"]) / 2, abs=1e-6
    )
    bits = [float(row["surprisal"]) for row in words]
    np.testing.assert_allclose(
        [float(row["surprisal"]) for row in regions], [bits[0] + bits[1], *bits[2:]], atol=3e-6
    )
    path.write_text("Sentence;Parts;start;end\nb zz, a;b zz,|a;2;5\na ab;a|ab;0;1\n")
    told = "outside the vocabulary, read as <unk>"
    unknown = (
        f": 1 of 5 words are {told} (20.0%): zz,\n",
        f": 1 of 2 critical spans have words {told} ",
    )
    for flags, expected in zip(
        (["--regions", "Parts"], ["--spans", "characters"]), unknown, strict=True
    ):
        assert expected in rows(capsys, runs / "words", "--csv", path, *flags)[1]
    path.write_text("Item;Sentence;Parts;start;end\n1;b ab, a;b ab,| a;2;4\n2;a ab;a|ab;0;1\n")
    spans, _ = rows(capsys, runs / "pieces", "--csv", path, "--spans", "characters", "--predictors")
    assert [row["word"] for row in spans] == ["ab", "a"] and [row["Item"] for row in spans] == [
        "1",
        "2",
    ]
    assert float(spans[0]["surprisal"]) == pytest.approx(
        -np.log2(CHANCE[" "]["a"] * CHANCE["a"]["b"]), abs=1e-5
    )


def test_regions_have_names_of_their_own_or_of_a_column(runs, tmp_path, capsys):
    path = tmp_path / "stimuli.csv"
    path.write_text(
        "Sentence;Parts;Plain;Names\n"
        "b ab, a;first:b ab,|last: a;b ab,|a;first|last\n"
        "a: ab;a:|ab;a:|ab;one|two\n"
    )
    named, _ = rows(capsys, runs / "words", "--csv", path, "--regions", "Parts")
    assert [row["region"] for row in named] == ["first", "last", "", ""]
    assert [row["region_id"] for row in named] == ["1", "2", "1", "2"]
    assert [row["words"] for row in named] == ["b ab,", "a", "a:", "ab"]
    flags = ("--csv", path, "--regions", "Plain", "--region-names", "Names")
    column, _ = rows(capsys, runs / "words", *flags)
    assert [row["region"] for row in column] == ["first", "last", "one", "two"]
    assert [row["surprisal"] for row in column] == [row["surprisal"] for row in named]
    path.write_text("Sentence;Plain;Names\nb ab, a;b ab,|a;first\n")
    assert main(["surprisal", str(runs / "words"), *map(str, flags)]) == 1
    assert "column 'Names' has 1 names for 2 regions" in capsys.readouterr().err


def test_several_runs_are_rows_or_have_a_mean(runs, tmp_path, capsys):
    lm = jaxlm.load(runs / "words")
    other = jax.tree.map(lambda leaf: 0.5 * leaf, lm.params)
    keep_model(tmp_path / "other", lm.config, other, unread_corpus("x", "0" * 64, lm.vocab))
    path = tmp_path / "stimuli.csv"
    path.write_text("Item;Sentence\n1;b ab, a\n2;a zz\n")
    flags = (tmp_path / "other", "--csv", path)
    wide, _ = rows(capsys, runs / "words", *flags)
    long, _ = rows(capsys, runs / "words", *flags, "--long")
    mean, _ = rows(capsys, runs / "words", *flags, "--mean")
    pairs = [[float(row[f"surprisal.{run}"]) for run in ("words", "other")] for row in wide]
    assert [row["run"] for row in long] == ["words"] * 5 + ["other"] * 5
    assert [row["Item"] for row in long] == ["1", "1", "1", "2", "2"] * 2
    np.testing.assert_allclose(
        [float(row["surprisal"]) for row in long], np.transpose(pairs).ravel(), atol=1e-6
    )
    np.testing.assert_allclose(
        [float(row["surprisal"]) for row in mean], np.mean(pairs, 1), atol=1e-6
    )
    assert [row["oov"] for row in mean] == ["False"] * 4 + ["True"]
    assert main(["surprisal", str(runs / "words"), "--csv", str(path), "--mean"]) == 1
    assert "--mean is about several runs" in capsys.readouterr().err


def test_frequencies_of_a_table_stand_in_for_a_text_that_is_unknown(runs, tmp_path, capsys):
    path = tmp_path / "stimuli.csv"
    path.write_text("Item;Sentence\n1;b ab, a\n")
    (tmp_path / "counts.csv").write_text('word,count\nb,7\n"ab,",2\n')
    flags = ("--csv", path, "--predictors", "--frequencies", tmp_path / "counts.csv")
    found, _ = rows(capsys, runs / "words", *flags)
    np.testing.assert_allclose(
        [float(row["log_frequency"]) for row in found], np.log1p([7, 2, 0]), atol=1e-6
    )


def test_a_word_of_many_marks_is_cut_in_linear_time():
    marks = "!?" * 20_000
    started = time.perf_counter()
    assert _cut("Dog" + marks, ["dog", *marks]) == ["Dog", *marks]
    assert time.perf_counter() - started < 2


@given(st.text("aB-", min_size=1, max_size=6), st.lists(st.text("ab-", min_size=1, max_size=3)))
def test_a_word_is_cut_as_one_expression_a_part_would_cut_it(word, texts):
    expected = texts
    for other in range(len(texts)):
        parts = [re.escape(text) for text in texts]
        parts[other] = ".+"
        cut = re.fullmatch("".join(f"({part})" for part in parts), word, re.IGNORECASE)
        expected = list(cut.groups()) if cut else expected
    assert _cut(word, texts) == expected


def test_words_of_pieces_are_generated_and_tokens(runs):
    lm = jaxlm.load(runs / "pieces")
    tokens = lm.generate("a b", tokens=30, samples=3, seed=5)
    assert [len(text.words) for text in tokens] == [30] * 3
    texts = lm.generate("a b", words=4, samples=3, seed=5)
    for text, longer in zip(texts, tokens, strict=True):
        assert str(longer).startswith(str(text)) or str(text).startswith(str(longer))
        assert len(("a b" + str(text)).split()) <= 6
    (alone,) = lm.generate("a b", words=4, seed=5)
    assert alone.words == texts[0].words
    assert [word for word, _ in lm.stream("a b", words=4, seed=5)] == alone.words
    with pytest.raises(JaxlmError, match="so many words or so many tokens"):
        lm.generate(words=4, tokens=4)


def test_a_generated_word_begins_after_white_space_or_goes_on_with_the_prompt_s():
    """The tokens are a space, " a", "b" and a newline."""
    begins, blank = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], bool)
    boundaries = Boundaries(begins, blank, np.zeros(4, bool))
    ids = np.array([[2], [2], [1], [2]])

    def cut(last, words):
        (chunk,) = first_words([(ids, np.zeros((4, 1)))], boundaries, last, words)
        return chunk[0][:, 0].tolist()

    assert cut(last=3, words=1) == cut(last=0, words=1) == [2, 2, -1, -1]
    assert cut(last=2, words=1) == [2, 2, 1, 2]


def test_a_space_among_characters_leaves_neural_complexity_s_columns_whole(tmp_path, capsys):
    lm = bigram("characters")
    keep_model(tmp_path / "run", lm.config, lm.params, unread_corpus("x", "0" * 64, lm.vocab))
    (tmp_path / "text.txt").write_text("b a\n")
    assert (
        main(
            [
                "surprisal",
                *map(str, (tmp_path / "run", tmp_path / "text.txt")),
                "--layout",
                "neural-complexity",
            ]
        )
        == 0
    )
    cells = [line.split(" ") for line in capsys.readouterr().out.splitlines()]
    assert {*map(len, cells)} == {7} and [row[0] for row in cells[1:]] == ["b", "\u2581", "a"]


def test_regions_tile_a_sentence_that_is_read_in_lower_case_and_composed():
    lm = of_letters()
    lm = replace(lm, config=lm.config.replace(lowercase=True))
    line = "The\u0301 dogs, run."
    regions = ["The\u0301 dogs,", "run."]
    words = lm.word_surprisal([line], punctuation="own")
    found = lm.word_surprisal([line], punctuation="own", regions=[regions])
    assert found.word == regions and len(words) == 5
    np.testing.assert_allclose(
        found.surprisal, [words.surprisal[:3].sum(), words.surprisal[3:].sum()]
    )
    with pytest.raises(DataError, match="sentence 2: the regions '' do not tile the words"):
        lm.word_surprisal([line, "the\u0301 dogs"], regions=[regions])
    with pytest.raises(DataError, match="regions has 2 lists more than sentences has lines"):
        lm.word_surprisal([line], regions=[regions, regions, []])


@pytest.mark.parametrize(
    ("cells", "flags", "message"),
    [
        (
            "b ab;b|a;0;1",
            ["--regions", "Parts"],
            "stimuli.csv, line 2: the regions 'b | a' do not tile the words",
        ),
        ("b ab;b a|b;0;1", ["--regions", "Parts"], "do not tile the words of the sentence 'b ab'"),
        (
            "b ab;b|ab;0;1",
            ["--regions", "Region"],
            "has no column 'Region' beside that of sentences",
        ),
        (
            "b ab;b|ab;0;9",
            ["--spans", "characters"],
            "line 2: the span 0 to 9 is not within the 4 characters",
        ),
        (
            "b ab;b|ab;x;1",
            ["--spans", "characters"],
            "line 2: expected a whole number in column 'start', found 'x'",
        ),
        ("b ab;b|ab;0;1", ["--spans", "characters", "--regions", "Parts"], "leave --regions out"),
        (
            "b ab;b|ab;0;1",
            ["--spans", "characters", "--context", "stream"],
            "by themselves: leave --context out",
        ),
        (
            "b ab;b|ab;0;1",
            ["--spans", "characters", "--punctuation", "own"],
            "by themselves: leave --punctuation out",
        ),
        (
            "b ab;b|ab;0;1",
            ["--spans", "characters", "--boundary", "published"],
            "by themselves: leave --boundary out",
        ),
    ],
)
def test_mistakes_in_stimuli_are_one_sentence(runs, tmp_path, capsys, cells, flags, message):
    path = tmp_path / "stimuli.csv"
    path.write_text(f"Sentence;Parts;start;end\n{cells}\n")
    assert main(["surprisal", str(runs / "pieces"), "--csv", str(path), *flags]) in (1, 2)
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and len(said.err.splitlines()) == 1


def test_a_character_outside_the_vocabulary_is_refused_by_name():
    lm = of_letters()
    with pytest.raises(
        DataError,
        match="sentence 1: the character 'x' is not among the 18 characters of the vocabulary",
    ):
        lm.word_surprisal(["the x"])


@pytest.mark.parametrize("context", ["b, ab a", "ab,", "b\n"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_likeliest_words_are_those_of_the_list(kind, context):
    lm = bigram(kind)
    names = lm.vocab.tokenize(context)
    start = [] if context.endswith("\n") else names
    table = lm.word_surprisal(
        [[*start, *word] for word in words_after(kind, tuple(start), "word")], unit="nats"
    )
    last = np.append(np.diff(table.sentence_id) > 0, True)
    expected = {table.word[row]: np.exp(-table.surprisal[row]) for row in np.flatnonzero(last)}
    if start:
        expected["<eos>"] = np.exp(-lm.word_surprisal([names], unit="nats", eos=True).surprisal[-1])
    found = dict(lm.predict(context, 50))
    assert found == pytest.approx(expected, abs=1e-6) and sum(found.values()) == pytest.approx(
        1, abs=1e-5
    )
    assert [*lm.predict(context, 2)] == [*found.items()][:2] and [*found.values()] == sorted(
        found.values()
    )[::-1]
    assert {*map(type, found.values())} == {float}


def test_a_word_that_pieces_write_in_two_ways_is_predicted_once():
    lm = lm_of(Vocab.build("ab \n", kind=Characters()))
    found = lm.predict("a", 20)  # a line's end comes at once, or after a space
    assert len(dict(found)) == len(found) == 20 and "<eos>" in dict(found)
    assert found == sorted(found, key=lambda one: -one[1])


def test_words_are_predicted_by_a_model_that_knows_no_newline():
    found = dict(lm_of(Vocab.build("ab a", kind=Characters())).predict("a", 20))
    assert len(found) == 20 and "<eos>" not in found and "" not in found


@pytest.mark.parametrize("options", [{"lines": "unwrap"}, {"lines": "stripped"}])
def test_a_line_is_read_without_indentation_where_training_left_it_out(options):
    lm = of_letters()
    kept = [lm.word_surprisal([line]).surprisal for line in ("the dogs", "   the dogs")]
    assert (kept[0] != kept[1]).any()
    lm = replace(lm, config=lm.config.replace(**options))
    one, other = (lm.word_surprisal([line]).surprisal for line in ("the dogs", "   the dogs"))
    np.testing.assert_array_equal(one, other)
    of_dogs = span_surprisal(lm, ["the dogs", "   the dogs"], [(3, 8), (6, 11)]).surprisal
    np.testing.assert_allclose(of_dogs[0], of_dogs[1], rtol=1e-6)


def test_lines_are_stripped_in_every_text_of_a_run(tmp_path):
    lm = of_letters()
    lm = replace(lm, config=lm.config.replace(lines="stripped", tokens="characters"))
    assert "".join(lm.tokens(" no it \n no \n")).strip() == "no it\nno"
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(" no it \n no \n")
    assert lm.vocab.decode_text(lm.find_corpus(tmp_path).test).strip() == "no it\nno"


def test_a_text_without_spaces_and_newlines_has_no_boundaries():
    lm = lm_of(Vocab.build("AACGT", kind=Characters()))
    corrected, published = (
        lm.word_surprisal(["GAT"], boundary=one) for one in ("corrected", "published")
    )
    assert corrected.word == ["GAT"] and corrected.surprisal == pytest.approx(published.surprisal)
    assert len(lm.predict("G", 4)) == 4


def test_pieces_have_no_frequency_as_words(runs, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("b ab\n")
    flags = ["--top-k", "2", "--predictors"]
    assert main(["surprisal", str(runs / "pieces"), str(tmp_path / "text.txt"), *flags]) == 1
    said = capsys.readouterr().err
    assert "leave one out" in said and "frequencies" not in said  # and no text was counted before
