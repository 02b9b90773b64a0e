"""Surprisal: the numbers by definition, alone and in batches, in tables that others read;
mistakes in one sentence.
"""

import csv
import io
import json
import math
import os
import re
import stat
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import KINDS, WORDS, log_probs, next_word, small_lm

import jaxlm
from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.cli import main
from jaxlm.cli.using import say_unknown
from jaxlm.data.text import lines_of
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.runs.loading import keep_model, unread_corpus
from jaxlm.scoring import reading, token_scores
from jaxlm.scoring.minimal_pairs import Pair
from jaxlm.scoring.stimuli import read_table
from jaxlm.scoring.stream import stream_nats
from jaxlm.scoring.token_scores import Detail, score_logits

SENTENCES = [
    "the dogs run",
    "a dog",
    "the dog of the dogs runs of a dog n't run the dogs",
    "zebra runs",
]
LINES = st.lists(
    st.lists(st.sampled_from([*WORDS[1:], "zebra"]), min_size=1, max_size=14),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize(
    ("kind", "tied"), [*((kind, False) for kind in KINDS), ("lstm", True)]
)  # (how logits are made does not depend on the kind)
def test_surprisal_entropy_and_rank_are_what_their_definitions_say(kind, tied):
    lm = small_lm(kind, tied)
    found = lm.surprisal(SENTENCES, top_k=3, unit="nats")
    row = 0
    for number, sentence in enumerate(SENTENCES, 1):
        words = sentence.split()
        log_p = log_probs(lm, words)
        entropies = -(np.exp(log_p) * log_p).sum(1)
        for place, word in enumerate(words):
            token = lm.vocab.ids.get(word, lm.vocab.unknown_id)
            assert (found.sentence_id[row], found.token_id[row], found.word[row]) == (
                number,
                place + 1,
                word,
            )
            assert found.token[row] == lm.vocab.words[token]
            assert found.oov[row] == (word == "zebra")
            np.testing.assert_allclose(found.surprisal[row], -log_p[place, token], atol=1e-5)
            np.testing.assert_allclose(found.entropy[row], entropies[place], atol=1e-5)
            np.testing.assert_allclose(
                found.entropy_reduction[row],
                max(0, entropies[max(place - 1, 0)] - entropies[place]),
                atol=2e-5,
            )
            assert found.rank[row] == 1 + (log_p[place] > log_p[place, token]).sum()
            likeliest = np.argsort(-log_p[place])[:3]
            assert found.top[row] == [lm.vocab.words[one] for one in likeliest]
            np.testing.assert_allclose(
                found.top_surprisal[row], -log_p[place, likeliest], atol=1e-5
            )
            row += 1
    assert row == len(found)
    np.testing.assert_allclose(
        lm.surprisal(SENTENCES, top_k=3).surprisal * np.log(2), found.surprisal, rtol=1e-12
    )


@pytest.mark.parametrize("shift", [0.0, 15.0, -15.0, 500.0, -500.0])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_logits_need_not_be_normalised_nor_near_0(shift, scale):
    rng = np.random.default_rng(0)
    shifts = shift * (np.arange(7) > 0)[:, None]  # the first row is not far beside others that are
    logits = (scale * rng.normal(size=(7, 50)) + shifts).astype(np.float32)
    targets = rng.integers(0, 50, 7)
    nats, entropy, rank, top, top_nats, _ = jax.jit(token_scores.score_logits, static_argnums=2)(
        logits, targets, token_scores.Detail(top=4)
    )
    wide = logits.astype(np.float64)
    log_p = (
        wide
        - np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1, keepdims=True))
        - wide.max(1, keepdims=True)
    )
    expected = -log_p[np.arange(7), targets]
    np.testing.assert_allclose(nats, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, -(np.exp(log_p) * log_p).sum(1), rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(
        rank, 1 + (logits > logits[np.arange(7), targets][:, None]).sum(1)
    )
    np.testing.assert_array_equal(top, np.argsort(-logits, 1)[:, :4])
    np.testing.assert_allclose(top_nats, -np.sort(log_p, 1)[:, :-5:-1], rtol=1e-5, atol=1e-4)


def test_a_boundary_that_cannot_be_has_large_nats_and_not_infinite_ones():
    logits = jnp.array([[0.0, -300.0]])
    begins = jnp.array([False, True])
    scores = token_scores.score_logits(logits, jnp.array([0]), token_scores.NATS_ALONE, begins)
    assert float(scores.boundary[0]) == pytest.approx(-math.log(token_scores.TINY))


@settings(max_examples=25)
@given(lines=LINES, kind=st.sampled_from(KINDS))
def test_sentences_in_a_batch_have_the_numbers_that_they_have_alone(lines, kind):
    lm = small_lm(kind)
    together = lm.surprisal(lines, top_k=3)
    alone = [lm.surprisal([line], top_k=3) for line in lines]
    tolerance = (
        3e-4 if kind == "mlstm" else 1e-5
    )  # its layer norm over few units magnifies a rounding some 500 times
    for name in ("surprisal", "entropy", "entropy_reduction"):
        np.testing.assert_allclose(
            getattr(together, name),
            np.concatenate([getattr(one, name) for one in alone]),
            atol=tolerance,
        )
    assert together.word == [word for line in lines for word in line]


def test_sentences_longer_than_a_call_and_more_than_a_batch(monkeypatch):
    monkeypatch.setattr(reading, "SEGMENT", 16)
    monkeypatch.setattr(reading, "SEGMENTS_OF_CALLS", (2, 1))
    lm = small_lm(
        "gru", words=(*WORDS, "more")
    )  # a shape of its own, so that nothing compiled before is used
    line = ["the", "dogs", "of", "a", "dog", "run"] * 5
    expected = -log_probs(lm, line)[np.arange(30), lm.vocab.encode(line)]
    found = lm.surprisal([line, *[["a", "dog"]] * 70], unit="nats")
    np.testing.assert_allclose(found.surprisal[:30], expected, atol=1e-5)
    assert len(found) == 30 + 140 and np.ptp(found.surprisal[30::2]) < 1e-6
    streamed = lm.surprisal([line[:13], line[13:]], context="stream", unit="nats", eos=True)
    text = [*line[:13], EOS, *line[13:], EOS]
    expected = -log_probs(lm, text)[np.arange(32), lm.vocab.encode(text)]
    np.testing.assert_allclose(streamed.surprisal, expected, atol=1e-5)


@pytest.mark.parametrize(  # three shapes of a carry
    "kind", ["lstm", "attention", pytest.param("hawk", marks=pytest.mark.slow)]
)
def test_a_stream_with_its_ends_of_lines_sums_to_what_evaluation_finds(kind):
    lm = small_lm(kind)
    ids = lm.vocab.encode(" <eos> ".join(["", *SENTENCES, ""]).split())
    nats, count = stream_nats(lm.config.model, lm.params, ids)
    found = lm.surprisal(SENTENCES, context="stream", unit="nats", eos=True)
    assert len(found) == count
    np.testing.assert_allclose(found.surprisal.sum(), nats, rtol=1e-6)
    parts = list(
        lm.surprisal_stream(iter(SENTENCES), context="stream", unit="nats", eos=True, block=1)
    )
    np.testing.assert_allclose(
        np.concatenate([part.surprisal for part in parts]), found.surprisal, atol=1e-5
    )
    assert [part.sentence_id[0] for part in parts] == [1, 2, 3, 4]


def test_a_stream_reads_no_further_than_it_writes():
    def endless():
        while True:
            read.append(1)
            yield "the dog"

    read: list[int] = []
    tables = small_lm().surprisal_stream(endless(), block=4)
    for done in (4, 8, 12):
        assert len(next(tables)) == 8 and len(read) == done


def test_unknown_words_are_read_as_unk_refused_or_left_without_a_number():
    lm = small_lm()
    as_unk, nan = (lm.surprisal(["zebra runs"], oov=oov) for oov in ("unk", "nan"))
    assert as_unk.oov.tolist() == [True, False] and as_unk.token == ["<unk>", "runs"]
    assert (
        np.isnan(nan.surprisal).tolist() == [True, False]
        and nan.surprisal[1] == as_unk.surprisal[1]
    )
    assert lm.surprisal(["<unk> runs"]).oov.tolist() == [False, False]
    with pytest.raises(DataError, match=r"sentence 2.*'zebra'.*17 words"):
        lm.surprisal(["the dog", "zebra runs"], oov="error")
    without = small_lm(words=tuple(word for word in WORDS if word != "<unk>"))
    with pytest.raises(DataError, match=r"'zebra'.*no <unk>"):
        without.surprisal(["zebra"])


@pytest.mark.parametrize(
    ("scale", "sentences", "clips"),
    [
        (1.0, ["the dogs run", "a dog runs", "the dogs run"], True),
        (0.01, [" ".join(WORDS[2:])] * 3, False),
    ],
)
def test_adaptation_is_nesterov_sgd_on_the_mean_nats_of_each_sentence(scale, sentences, clips):
    lm = small_lm()
    params = jax.tree.map(lambda leaf: np.float32(scale) * leaf, jax.device_get(lm.params))
    lm = replace(lm, params=params)
    rate = 0.5
    momentum = jax.tree.map(np.zeros_like, params)

    @jax.jit
    @jax.grad
    def gradient(params, ids):
        return -jnp.take_along_axis(
            next_word(lm.config.model, params, ids[:-1]), ids[1:, None], 1
        ).mean()

    expected = []
    for sentence in sentences:
        words = sentence.split()
        expected += (
            -log_probs(lm, words, params)[np.arange(len(words)), lm.vocab.encode(words)]
        ).tolist()
        grads = jax.device_get(gradient(params, lm.vocab.encode([EOS, *words, EOS])))
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(grads)))
        assert (norm > 0.25) == clips
        grads = jax.tree.map(lambda g, n=norm: g * np.minimum(1, 0.25 / n), grads)
        momentum = jax.tree.map(lambda m, g: np.float32(0.9) * m + g, momentum, grads)
        params = jax.tree.map(
            lambda p, m, g: p - np.float32(rate) * (g + np.float32(0.9) * m),
            params,
            momentum,
            grads,
        )
    scoring = lm.adaptive(rate)
    found = [
        table.surprisal
        for table in lm.surprisal_stream(sentences, unit="nats", scoring=scoring, block=2)
    ]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scoring.params, params)
    again = replace(lm, params=scoring.params).surprisal([sentences[0]])
    assert again.surprisal.sum() < lm.surprisal([sentences[0]]).surprisal.sum()


@pytest.mark.parametrize("kind", ["lstm", pytest.param("mlstm", marks=pytest.mark.slow)])
def test_adaptation_at_no_rate_scores_a_stream_as_the_plain_model(kind):
    lm = small_lm(kind)
    options = {"context": "stream", "unit": "nats", "eos": True}
    plain, adapted = (
        lm.surprisal([*SENTENCES, "a " * 20], scoring=scoring, **options)
        for scoring in (lm.scorer("stream"), lm.adaptive(1e-30, context="stream"))
    )
    np.testing.assert_allclose(adapted.surprisal, plain.surprisal, atol=1e-4)


@pytest.mark.parametrize(  # whose output is a part of the state
    "kind",
    [
        "lstm",
        "gru",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mingru", "mogrifier")),
    ],
)
def test_the_states_are_those_that_predict_the_next_word(kind):
    from jaxlm.models import heads, stack
    from jaxlm.models.noise import Noise

    lm = small_lm(kind, layers=2)
    words = ["the", "dogs", "of", "zebra"] * 40
    found = lm.states(words)
    assert {name: array.shape for name, array in found.items() if name.endswith("h")} == {
        f"{kind}.0.h": (160, 6),
        f"{kind}.1.h": (160, 4),
    }
    assert (f"{kind}.0.c" in found) == (kind in ("lstm", "mogrifier"))
    features = jnp.asarray(found[f"{kind}.1.h"])
    log_p = jax.nn.log_softmax(heads.logits(lm.config.model, lm.params, features))
    np.testing.assert_allclose(log_p, log_probs(lm, words)[1:], atol=1e-5)
    model = lm.config.model
    tokens = jnp.asarray(lm.vocab.encode([EOS, *words]))[:, None]

    @jax.jit
    def read(params, tokens):
        x = stack.embed(params, tokens)
        return stack.features(model, params, Noise(), x, stack.zero_carry(model, 1))

    _, carry = read(lm.params, tokens)
    jax.tree.map(
        lambda leaf, name: np.testing.assert_allclose(leaf[0], found[name][-1], atol=1e-6),
        jax.tree.leaves(carry),
        list(found),
    )


def test_a_displayed_word_sums_its_pieces():
    lm = small_lm()
    sentence = "The dog's dogs \"can't\" run -- $12,000.50 of Inc.!"
    words = lm.word_surprisal([sentence, "dogs run."])
    assert words.word == [*sentence.split(), "dogs", "run."]
    assert words.tokens == [
        "the",
        "dog 's",
        "dogs",
        "ca n't",
        "run",
        "",
        "$ N",
        "of",
        "inc.",
        "dogs",
        "run",
    ]
    pieces = lm.surprisal([" ".join(words.tokens[:9]), "dogs run"])
    np.testing.assert_allclose(
        words.surprisal[[1, 3, 6]],
        [pieces.surprisal[[a, a + 1]].sum() for a in (1, 4, 7)],
        atol=1e-5,
    )
    assert np.isnan(words.surprisal[5]) and not words.oov.any()
    np.testing.assert_allclose(words.entropy[[1, 3, 6]], pieces.entropy[[1, 4, 7]], atol=1e-5)
    np.testing.assert_allclose(np.nansum(words.surprisal), pieces.surprisal.sum(), atol=1e-4)
    assert words.sentence_id.tolist() == [1] * 9 + [2] * 2 and words.word_id.tolist()[-3:] == [
        9,
        1,
        2,
    ]


def test_lines_come_as_a_pipe_has_them():
    read, write = os.pipe()
    blocks = lines_of(f"/dev/fd/{read}")
    os.write(write, b"the dog\r\nthe do")
    assert next(blocks) == ["the dog\r\n"]
    os.write(write, b"gs\na\nb")
    assert next(blocks) == ["the dogs\n", "a\n"]
    os.write(write, b" c\rd\r")
    os.write(write, b"\ne\r\rf")
    assert next(blocks) == ["b c\r", "d\r\n", "e\r", "\r"]
    os.close(write)
    assert list(blocks) == [["f"]]
    os.close(read)


def test_lines_that_end_with_cr_alone_are_not_one_long_line(tmp_path):
    (tmp_path / "f").write_bytes(b"the dog\r" * 100_000)
    blocks = [*lines_of(tmp_path / "f", 1 << 17)]
    assert [line for block in blocks for line in block] == ["the dog\r"] * 100_000 and len(
        blocks
    ) > 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "f is empty"),
        (b"a\n\xff\n", "f, line 2 is not UTF-8: byte 0 "),
        (b"a\nb\0\n", "f, line 2 is not text"),
        (b"a" * (1 << 24) + b"bc", "line 1 is longer than"),
    ],
)
def test_text_that_cannot_be_read_is_refused_with_its_line(tmp_path, data, message):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(lines_of(tmp_path / "f"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": "document"}, "context must be sentence or stream; it is 'document'"),
        ({"oov": "skip"}, "oov must be unk, error or nan; it is 'skip'"),
        ({"unit": "hartleys"}, "unit must be bits or nats"),
        ({"tokenizer": "bpe"}, "tokenizer must be none or ptb; it is 'bpe'"),
        ({"top_k": -1}, "top_k must be at least 0 and at most .*; it is -1"),
        ({"block": 0}, "block must be at least 1 and at most .*; it is 0"),
    ],
)
def test_arguments_that_are_none_of_the_choices(options, message):
    with pytest.raises(JaxlmError, match=message):
        small_lm().surprisal(["the dog"], **options)


@pytest.mark.parametrize(
    "given", ["the dog", b"the dog", [b"the dog"], [None], [["the", 3]], None, 5]
)
def test_what_are_no_sentences(given):
    with pytest.raises(JaxlmError, match="must be a"):
        small_lm().surprisal(given)


def test_a_text_in_lower_case_keeps_its_own_case_in_the_table():
    lm = replace(small_lm(), config=small_lm().config.replace(lowercase=True))
    table = lm.surprisal(["The DOG"])
    assert table.word == ["The", "DOG"] and table.token == ["the", "dog"]
    assert lm.surprisal(["The DOG"], punctuation="own").word == ["The", "DOG"]
    assert lm.neighbors("DOG", 2) == lm.neighbors("dog", 2)
    assert "the" not in lm.generate("The", words=20, ban=["THE"])[0].words


def test_sentences_without_words():
    with pytest.raises(DataError, match="sentence 2 has no words"):
        small_lm().surprisal(["the dog", "  "])
    with pytest.raises(DataError, match="no sentences"):
        small_lm().surprisal([])
    with pytest.raises(JaxlmError, match=r"must be above 0; it is -0\.1"):
        small_lm().adaptive(-0.1)
    with pytest.raises(JaxlmError, match="leave the protocol out"):
        small_lm().adaptive(0.1, protocol="cache")


# The command line


@pytest.fixture(scope="module")
def run(tiny_run):
    return str(tiny_run[0].run_dir)


@pytest.fixture
def text(tmp_path, tiny_run):
    import jaxlm

    words = jaxlm.load(tiny_run[0].run_dir).vocab.words
    path = tmp_path / "text.txt"
    path.write_text(f"{words[5]} zebra\x1b[31m {words[7]}\n{words[9]}\n")
    return path


def printed(capsys, *arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


def test_the_table_has_its_columns_and_no_control_character(run, text, capsys):
    rows = [
        line.split("\t")
        for line in printed(capsys, "surprisal", run, text, "--top-k", 2).splitlines()
    ]
    assert rows[0] == [
        "sentence_id",
        "token_id",
        "word",
        "token",
        "oov",
        "surprisal",
        "entropy",
        "entropy_reduction",
        "rank",
        "top_1",
        "top_1_surprisal",
        "top_2",
        "top_2_surprisal",
    ]
    assert [row[:2] for row in rows[1:]] == [["1", "1"], ["1", "2"], ["1", "3"], ["2", "1"]]
    assert rows[2][2:5] == [r"zebra\x1b[31m", "<unk>", "True"]
    assert float(rows[1][10]) <= float(rows[1][5])


def test_the_layouts_of_other_tools(run, text, capsys):
    own = [line.split("\t") for line in printed(capsys, "surprisal", run, text).splitlines()[1:]]
    zoo = [
        line.split("\t")
        for line in printed(capsys, "surprisal", run, text, "--layout", "lm-zoo").splitlines()
    ]
    assert zoo[0] == ["sentence_id", "token_id", "token", "surprisal"]
    assert zoo[1:] == [[*row[:3], row[5]] for row in own]
    lines = printed(capsys, "surprisal", run, text, "--layout", "neural-complexity").splitlines()
    assert lines[0] == "word sentid sentpos wlen surp entropy entred"
    for line, row in zip(lines[1:], own, strict=True):
        word, sentence, place, length, *numbers = line.split(" ")
        assert (word, sentence, place) == (row[3], str(int(row[0]) - 1), str(int(row[1]) - 1))
        assert int(length) == len(word)
        np.testing.assert_allclose(list(map(float, numbers)), list(map(float, row[5:8])), atol=1e-6)


def test_json_lines_and_a_file_that_appears_whole(run, text, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert (
        printed(
            capsys, "surprisal", run, text, "--format", "jsonl", "--oov", "nan", "--output", out
        )
        == ""
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert (
        rows[1]["word"] == "zebra\x1b[31m"
        and rows[1]["oov"] is True
        and rows[1]["surprisal"] is None
    )
    text.write_text("the\n\nthe\n")
    out.write_text("before")
    printed(capsys, "surprisal", run, text, "--output", out, code=1)
    assert (
        out.read_text() == "before"
        and [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    )


def test_stimuli_keep_their_columns(run, tmp_path, capsys):
    stimuli = tmp_path / "stimuli.csv"
    stimuli.write_text('Item,Sentence,Note\n1,"the bank, lends","a ""b"", c"\n2,the,\n')
    rows = list(
        csv.reader(
            io.StringIO(printed(capsys, "surprisal", run, "--csv", stimuli, "--tokenizer", "none"))
        )
    )
    assert rows[0] == [
        "Item",
        "Note",
        "sentence_id",
        "word_id",
        "word",
        "tokens",
        "oov",
        "surprisal",
        "entropy",
        "entropy_reduction",
    ]
    assert [row[:5] for row in rows[1:]] == [
        ["1", 'a "b", c', "1", "1", "the"],
        ["1", 'a "b", c', "1", "2", "bank,"],
        ["1", 'a "b", c', "1", "3", "lends"],
        ["2", "", "2", "1", "the"],
    ]
    assert [row[6] for row in rows[1:]] == ["False", "True", "False", "False"]
    rows = list(csv.reader(io.StringIO(printed(capsys, "surprisal", run, "--csv", stimuli))))
    assert [row[5] for row in rows[1:]] == [
        "the",
        "bank",
        "lends",
        "the",
    ]  # ptb: the comma is not in the vocabulary


def test_other_columns_are_kept_to_the_byte_where_there_is_no_terminal(run, tmp_path, capsys):
    stimuli = tmp_path / "stimuli.csv"
    stimuli.write_bytes(b'Note,Sentence\n"a\tb\r\nc",the\n')
    out = printed(capsys, "surprisal", run, "--csv", stimuli, "--tokenizer", "none")
    (_, row) = csv.reader(io.StringIO(out, newline=""))
    assert row[0] == "a\tb\r\nc"


def test_several_runs_have_columns_of_their_own(run, text, tmp_path, capsys):
    adapted = tmp_path / "adapted"
    once = printed(capsys, "surprisal", run, text, "--adapt", 0.1, "--save-adapted", adapted)
    first, plain = (
        table.splitlines()[1].split("\t")
        for table in (once, printed(capsys, "surprisal", run, text))
    )
    assert first[:5] == plain[:5] and float(first[5]) == pytest.approx(float(plain[5]), abs=1e-5)
    both = [
        line.split("\t") for line in printed(capsys, "surprisal", run, adapted, text).splitlines()
    ]
    assert both[0][:3] == ["sentence_id", "token_id", "word"]
    first = both[0].index(f"surprisal.{Path(run).name}")
    second = both[0].index("surprisal.adapted")
    assert float(both[1][second]) < float(both[1][first])
    alone = printed(capsys, "surprisal", adapted, text).splitlines()[1].split("\t")
    assert alone[5] == both[1][second]


def test_an_adapted_model_is_kept_without_the_text_that_it_was_trained_on(text, tmp_path, capsys):
    lm = small_lm()
    sha256 = "0" * 64
    source = tmp_path / "run"
    keep_model(source, lm.config, lm.params, unread_corpus("imported:x", sha256, lm.vocab))
    printed(
        capsys, "surprisal", source, text, "--adapt", 0.1, "--save-adapted", tmp_path / "adapted"
    )
    kept = jaxlm.load(tmp_path / "adapted")
    assert (kept.corpus, kept.vocab) == (jaxlm.load(source).corpus, lm.vocab) and kept.corpus[
        "sha256"
    ] == sha256
    assert not np.array_equal(kept.params["embedding"], lm.params["embedding"])


def test_the_states_of_a_text(run, text, tmp_path, capsys):
    out = tmp_path / "out.npz"
    printed(capsys, "states", run, text, "--output", out)
    found = np.load(out)
    assert {*found.files} == {"words", "sentence_id", "lstm.0.h", "lstm.0.c"}  # not savez's flags
    assert found["words"].tolist()[1] == "zebra\x1b[31m" and found["sentence_id"].tolist() == [
        1,
        1,
        1,
        2,
    ]
    assert found["lstm.0.h"].shape == found["lstm.0.c"].shape == (4, 48)


@pytest.mark.parametrize(
    ("verb", "flags", "problem"),
    [
        *(
            (verb, ["-o"], "{} cannot be written")
            for verb in ("surprisal", "states", "minimal-pairs", "syntaxgym")
        ),
        ("surprisal", ["--adapt", "0.1", "--save-adapted"], "cannot make the run {}"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_a_text_is_read(
    verb, flags, problem, run, tmp_path, capsys
):
    (tmp_path / "file").touch()
    out = tmp_path / "file/out"
    assert main([verb, run, str(tmp_path / "missing.txt"), *flags, str(out)]) == 1
    assert problem.format(out) in capsys.readouterr().err


def test_an_adapted_model_appears_whole_or_not_at_all(run, text, tmp_path, capsys):
    flags = ["surprisal", run, str(text), "--adapt", "0.1", "--oov", "error", "--save-adapted"]
    assert main([*flags, str(tmp_path)]) == 1 and "of this name already" in capsys.readouterr().err
    before = sorted(tmp_path.iterdir())
    assert main([*flags, str(tmp_path / "adapted")]) == 1 and "zebra" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_the_states_of_a_mixed_stack_have_their_own_layer_s_kind():
    names = {"gru.0.h", "attention.1.keys", "attention.1.values", "attention.1.held"}
    assert {*small_lm("gru,attention").states(["the"])} == names


def test_the_words_of_states_are_as_the_text_has_them(tmp_path, capsys):
    lm = small_lm(layers=2)
    corpus = unread_corpus("x", "0" * 64, lm.vocab)
    run = tmp_path / "run"
    keep_model(run, lm.config.replace(lowercase=True), lm.params, corpus)
    (tmp_path / "text.txt").write_text("The DOG \n")
    out = tmp_path / "states.npz"
    printed(capsys, "states", run, tmp_path / "text.txt", "--tokenizer", "none", "--output", out)
    found = np.load(out)
    states = {f"lstm.{layer}.{part}" for layer in (0, 1) for part in "hc"}
    assert {*found.files} == {"words", "sentence_id", *states}  # not savez's flags
    assert found["words"].tolist() == ["The", "DOG"]
    np.testing.assert_array_equal(found["lstm.1.h"], lm.states(["the", "dog"])["lstm.1.h"])


def test_the_states_of_a_text_may_go_to_a_device(run, text, tmp_path, capsys):
    """A device says that it is at its start wherever it is: an archive's writer may not ask."""
    null = tmp_path / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:  # only root may
        null = os.devnull
    printed(capsys, "states", run, text, "--output", null)
    assert stat.S_ISCHR(os.stat(null).st_mode)


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("", [], "is empty"),
        ("a\n \nb\n", [], "line 2 has no words"),
        ("zebra\n", ["--oov", "error"], "line 1.*'zebra'"),
        ("a\n", ["--layout", "lm-zoo", "--format", "csv"], "leave --format out"),
        ("a\n", ["--layout", "lm-zoo", "--unit", "nats"], "in bits"),
        ("a\n", ["--column", "x"], "--csv"),
        ("a\n", ["--save-adapted", "x"], "--adapt"),
        ("a\n", ["--adapt", "0"], "must be above 0"),
        ("a\n", ["--adapt", "1e39"], "must be above 0; .* inf in float32"),
        ("a\n", ["--adapt", "0", "--save-adapted", "x"], "must be above 0"),
        ("a\n", ["--csv", "x.csv"], "leave .*text.txt out"),
        ("a\n", ["--adapt", "0.1", "--save-adapted", "x", "--output", "x"], "is --output too"),
        (
            "a\n",
            ["--adapt", "0.1", "--protocol", "cache"],
            "--adapt learns .*: leave --protocol out",
        ),
        ("a\n", [".", "--adapt", "0.1", "--save-adapted", "x"], "keeps one model: leave . out"),
        ("a\n", [".", "--layout", "lm-zoo", "--predictors"], "leave --predictors, . out"),
        (
            "a\n",
            ["--layout", "lm-zoo", "--punctuation", "word"],
            "rows of displayed words: leave it out",
        ),
        ("a\n", ["--top-k", "2", "--punctuation", "own"], "rows of displayed words: leave it out"),
        ("a\n", [".", "./."], "a run is named twice"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, capsys, content, flags, message):
    path = tmp_path / "text.txt"
    path.write_text(content)
    assert main(["surprisal", run, str(path), *flags]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert re.search(message, said.err)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Item,Text\n1,a\n", "no column 'Sentence': its columns are 'Item', 'Text'"),
        ("Item,Sentence\n1,a,b\n", "line 2: expected 2 cells, as in the header, found 3"),
        ('Item,Sentence\n1,"a"b\n', "line 2 is not CSV"),
        ("Item,Sentence\n", "there are no sentences: give at least one"),
        ("Item,Sentence\n1,\n", "line 2 has no words"),
        ("Sentence\n" + "\0" * 100, "line 2 is not text: byte 0 is zero"),
        ("Sentence,Sentence\n1,a\n", "twice"),
        ("", "is empty"),
    ],
)
def test_stimuli_that_cannot_be_read(run, tmp_path, capsys, content, message):
    path = tmp_path / "stimuli.csv"
    path.write_text(content)
    assert main(["surprisal", run, "--csv", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and len(said.err.splitlines()) == 1


def test_stimuli_between_tabs_or_semicolons_with_a_column_of_the_result_s_name(
    run, tmp_path, capsys
):
    for delimiter in (";", "\t", ","):
        (tmp_path / "stimuli.txt").write_text(f"word{delimiter}Sentence\nno. 1{delimiter}the\n")
        (row,) = csv.DictReader(
            io.StringIO(printed(capsys, "surprisal", run, "--csv", tmp_path / "stimuli.txt"))
        )
        assert row["stimulus.word"] == "no. 1" and row["word"] == "the"
    (tmp_path / "stimuli.txt").write_text("word;x\nthe bank;1\n")
    out = printed(capsys, "surprisal", run, "--csv", tmp_path / "stimuli.txt", "--column", "word")
    assert [row["word"] for row in csv.DictReader(io.StringIO(out))] == ["the", "bank"]


def test_a_model_of_the_hub_needs_transformers(run, text, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["surprisal", run, str(text), "--hub", "gpt2"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert "needs transformers and PyTorch" in said.err and "jaxlm[hub]" in said.err
    for flags in (["--punctuation", "own"], ["--eos"], ["--layout", "lm-zoo"], ["--top-k", "2"]):
        assert main(["surprisal", run, str(text), "--hub", "gpt2", *flags]) == 1
        assert f"leave {' '.join(flags[:1])}" in capsys.readouterr().err


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiters_of_a_header_count_outside_quotes(delimiter, tmp_path):
    path = tmp_path / "stimuli.csv"
    others = "".join({",", ";", "\t"} - {delimiter})
    path.write_text(f'"{others * 3}"{delimiter}Sentence\n"1{others}"{delimiter}the bank\n')
    table = read_table(path, "Sentence")
    assert table.sentences == ["the bank"] and table.columns == {others * 3: [f"1{others}"]}


def test_a_sparse_file_is_refused_without_reading_it_whole(run, tmp_path, capsys):
    with open(tmp_path / "stimuli.csv", "wb") as file:
        file.truncate(900 << 20)
    assert main(["surprisal", run, "--csv", str(tmp_path / "stimuli.csv")]) == 1
    assert "line 1 is longer than 16,777,216 bytes" in capsys.readouterr().err


def test_a_table_is_not_scored_as_lines(run, tmp_path, capsys):
    for name in ("stimuli.csv", "stimuli.TSV"):
        (tmp_path / name).write_text("Sentence\nthe\n")
        assert main(["surprisal", run, str(tmp_path / name)]) == 1
        said = capsys.readouterr()
        assert said.out == "" and f"--csv {tmp_path / name}" in said.err


def test_a_mistake_in_the_last_text_is_told_before_the_first_is_scored(run, text, tmp_path, capsys):
    (tmp_path / "stimuli.csv").write_text("Sentence\nthe\n")
    for last, message in (
        ("none.txt", "there is no file"),
        ("stimuli.csv", "jaxlm surprisal takes it as --csv"),
    ):
        assert main(["surprisal", run, str(text), str(tmp_path / last)]) == 1
        said = capsys.readouterr()
        assert said.out == "" and message in said.err


def test_pipes_that_the_shell_opened_are_read(run, monkeypatch, capsys):
    def piped(text: bytes) -> str:
        read, write = os.pipe()
        os.write(write, text)
        os.close(write)
        return f"/dev/fd/{read}"

    expected = printed(capsys, "surprisal", run, piped(b"the bank\n"))
    assert len(expected.splitlines()) == 3
    table = list(
        csv.DictReader(
            io.StringIO(printed(capsys, "surprisal", run, "--csv", piped(b"Sentence\nthe\n")))
        )
    )
    assert [row["word"] for row in table] == ["the"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Sentence\nthe\n")))
    assert (
        list(csv.DictReader(io.StringIO(printed(capsys, "surprisal", run, "--csv", "-")))) == table
    )
    assert "2 predictions" in printed(capsys, "evaluate", run, "--text", piped(b"the bank lends"))


def test_the_share_of_unknown_words_stands_beside_every_result(run, tmp_path, capsys):
    """A text in another language must not look superb: almost all of its tokens are `<unk>`."""
    text = tmp_path / "german.txt"
    text.write_text("der hund lief the nach haus und\n")

    def said(*arguments) -> tuple[str, str]:
        assert main([str(argument) for argument in arguments]) == 0
        return tuple(capsys.readouterr())

    out, error = said("evaluate", run, "--text", text)
    assert "predictions, 75% <unk>;" in out and f"warning: 75.0% of {text}" in error
    told = (
        "warning: 6 of 7 words are outside the vocabulary, read as <unk> (85.7%): "
        "der, hund, lief, nach, haus, und\n"
    )
    for verb, flags in (
        ("perplexity", [text.read_text().strip()]),
        ("predict", [text.read_text().strip()]),
    ):
        out, error = said(verb, run, *flags)
        assert "warning" not in out and told in error
    assert said("surprisal", run, text)[1] == told
    assert said("evaluate", run)[1] == ""
    known = tmp_path / "known.txt"
    known.write_text("the bank " * 30 + "hund\n")
    told = "note: 1 of 61 words are outside the vocabulary, read as <unk> (1.6%): hund\n"
    assert said("surprisal", run, known)[1] == told
    assert said("evaluate", run, "--text", known)[1] == ""


def test_all_verbs_split_a_text_as_the_text_of_training_is():
    lm = small_lm()
    none = small_lm(words=("<eos>", "<unk>", "can't", "the", "dog's,"))
    assert lm.tokenizer() == lm.tokenizer("ptb") != none.tokenizer() == none.tokenizer("none")
    text = "The dog's, can't"
    pieces = ["the", "dog", "'s", "ca", "n't"]
    assert lm.tokens(text) == lm.surprisal([text]).token == pieces
    assert lm.tokens(text, "none") == text.split() and none.tokens(text) == text.split()
    assert (
        lm.perplexity(text)
        == lm.perplexity(" ".join(pieces), tokenizer="none")
        != lm.perplexity(text, tokenizer="none")
    )
    assert lm.predict(text, 3) == lm.predict(" ".join(pieces), 3)
    assert (
        lm.generate(text, words=5, seed=1)[0].words == lm.generate(pieces, words=5, seed=1)[0].words
    )
    assert not {*lm.tokens(text)} - {*lm.vocab.words} and not {*lm.tokens(text, "none")} & {
        *lm.vocab.words
    }
    assert lm.word_surprisal([text]).tokens == ["the", "dog 's", "ca n't"]
    np.testing.assert_array_equal(lm.states(text)["lstm.0.h"], lm.states(pieces)["lstm.0.h"])


def test_what_a_notebook_shows_is_short():
    lm = small_lm()
    shown = [
        lm,
        lm.surprisal(SENTENCES),
        lm.word_surprisal(SENTENCES),
        lm.generate("the", words=50)[0],
        lm.vocab,
    ]
    shown += [lm.minimal_pairs([Pair("the dog", "dog the")])]
    assert all(len(repr(one)) < 250 and "array" not in repr(one) for one in shown), shown
    assert repr(lm).startswith("LanguageModel(lstm, ") and "17 words" in repr(lm)


def test_a_fifo_is_no_text(run, tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    assert main(["surprisal", run, str(tmp_path / "fifo")]) == 1
    assert main(["surprisal", run, "--csv", str(tmp_path / "fifo")]) == 1
    assert "FIFO" in capsys.readouterr().err


def test_a_vocabulary_needs_its_eos():
    lm = small_lm(words=("a", "b"))
    with pytest.raises(DataError, match="no <eos>"):
        lm.surprisal(["a"])
    assert Vocab(WORDS).eos == 0


def test_unknown_words_are_named_in_brief(capsys):
    say_unknown(Counter({"z" * 100_000: 2, **{str(place): 1 for place in range(1000)}}), 10_000)
    assert "z" * 40 in (said := capsys.readouterr().err) and len(said) < 300


def test_far_logits_lose_no_digit():
    """A common shift of 60, by which float32 would round sums of odds to 4e-6."""
    rng = np.random.default_rng(0)
    logits = (60 + rng.normal(size=(64, 9))).astype(np.float32)
    targets = rng.integers(0, 9, 64)
    exact = logits.astype(np.float64)
    expected = np.log(np.exp(exact).sum(1)) - exact[np.arange(64), targets]
    found = score_logits(jnp.asarray(logits), jnp.asarray(targets), Detail()).nats
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
