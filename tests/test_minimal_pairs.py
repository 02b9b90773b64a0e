"""Minimal pairs: which sentence is likelier, what is counted, and lines that are no pairs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from language_models import log_probs, small_lm

from jaxlm.base.errors import DataError
from jaxlm.cli import main
from jaxlm.scoring.minimal_pairs import Pair, wilson_interval
from jaxlm.scoring.syntaxgym import Suite

PAIRS = [
    Pair("the dog runs", "the dog run", "agreement", "syntax"),
    Pair("the dogs run", "the dogs runs", "agreement"),
    Pair("a dog", "a dog", "same"),
    Pair("a zebra", "a okapi", "unknown"),
    Pair("a zebra", "a dog", "unknown"),
]


def log_p(lm, text):
    words = text.split()
    return log_probs(lm, words)[np.arange(len(words)), lm.vocab.encode(words)].sum()


def test_pairs_are_scored_by_log_probability_and_ties_are_not_correct():
    lm = small_lm()
    found = lm.minimal_pairs(PAIRS)
    for result in found.results:
        np.testing.assert_allclose(
            [result.good, result.bad],
            [log_p(lm, result.pair.good), log_p(lm, result.pair.bad)],
            atol=1e-4,
        )
        assert result.correct == (result.good > result.bad)
    assert [result.good == result.bad for result in found.results] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert [result.alike for result in found.results] == [False, False, False, True, False]
    assert [
        (row.UID, row.pairs, row.ties, row.oov_only, row.left_out)
        for row in [*found.by_uid, found.total]
    ] == [
        ("agreement", 2, 0, 0, 0),
        ("same", 1, 1, 0, 0),
        ("unknown", 2, 1, 1, 0),
        ("all", 5, 2, 1, 0),
    ]
    assert found.by_uid[0].linguistics_term == "syntax" and found.by_uid[1].accuracy == 0
    assert found.total.accuracy == sum(result.correct for result in found.results) / 5


def test_pairs_that_differ_in_unknown_words_only_are_left_out_on_request():
    found = small_lm().minimal_pairs(PAIRS, oov="filter")
    assert (found.total.pairs, found.total.oov_only, found.total.left_out, found.total.ties) == (
        4,
        1,
        1,
        1,
    )
    with pytest.raises(DataError, match="'zebra'"):
        small_lm().minimal_pairs(PAIRS, oov="error")
    lower = replace(small_lm(), config=small_lm().config.replace(lowercase=True))
    (pair,) = lower.minimal_pairs(
        [Pair("The dog", "the dog")], tokenizer="none", oov="filter"
    ).results
    assert (
        pair.good == pair.bad and not pair.alike
    )  # they differ in case, which this model does not read


def test_a_mirrored_pair_is_correct_one_way_only():
    lm = small_lm("gru")
    found = lm.minimal_pairs([*PAIRS, *(Pair(pair.bad, pair.good) for pair in PAIRS)])
    ways = [result.correct for result in found.results]
    assert [a + b for a, b in zip(ways[:5], ways[5:], strict=True)] == [1, 1, 0, 0, 1]


@given(n=st.integers(0, 10_000), share=st.floats(0, 1))
def test_wilsons_interval_solves_its_equation(n, share):
    successes = round(n * share)
    low, high = wilson_interval(successes, n)
    assert (
        0 <= low <= (successes / n if n else 0) + 1e-12
        and (successes / n if n else 1) - 1e-12 <= high <= 1
    )
    for bound in (low, high):
        if 1e-9 < bound < 1 - 1e-9:
            z = abs(successes / n - bound) / (bound * (1 - bound) / n) ** 0.5
            assert z == pytest.approx(1.959964, rel=1e-4)


def test_wilsons_published_values():
    assert wilson_interval(0, 0) == (0, 1)
    np.testing.assert_allclose(
        wilson_interval(8, 10), (0.4901625, 0.9433178), atol=1e-6
    )  # R: prop.test, no correction


@pytest.fixture(scope="module")
def run(tiny_run):
    return str(tiny_run[0].run_dir)


def test_the_table_of_the_command_line(run, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    lines = [
        {
            "sentence_good": "Ashton steers the ship.",
            "sentence_bad": "the the Ashton steers",
            "UID": "order",
            "linguistics_term": "made_up",
            "field": "x",
        },
        {"sentence_good": "lends zebra", "sentence_bad": "lends okapi", "UID": "unknown\x1b[1m"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert main(["minimal-pairs", run, str(path), "--oov", "filter"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == [
        "UID",
        "linguistics_term",
        "pairs",
        "accuracy",
        "low_95",
        "high_95",
        "ties",
        "oov_only",
        "left_out",
    ]
    assert [(row[0], row[2], row[8]) for row in rows[1:]] == [
        ("order", "1", "0"),
        (r"unknown\x1b[1m", "0", "1"),
        ("all", "1", "1"),
    ]
    assert rows[2][3:6] == ["NaN", "0.000000", "1.000000"]
    assert main(["minimal-pairs", run, str(path), "--oov", "filter", "--format", "jsonl"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["pairs"] for row in objects] == [1, 0, 1] and objects[1]["accuracy"] is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sentence_good": a}', "line 2 is not JSON to be read: Expecting value: column 19"),
        ("[1]", "line 2: expected a JSON object"),
        (
            '{"sentence_good": "a"}',
            "line 2: expected text in 'sentence_good' and 'sentence_bad', found 'a' and ''",
        ),
        ('{"sentence_good": "a", "sentence_bad": 3}', "'sentence_bad', found 'a' and 3"),
        ('{"sentence_good": " ", "sentence_bad": "b"}', "'sentence_bad', found ' ' and 'b'"),
        ("[" * 10_000, "not JSON"),
        ('{"sentence_good": "a", "sentence_bad": "b", "UID": "\\ud800"}', "surrogates not allowed"),
        ('{"sentence_good": "...", "sentence_bad": "a"}', "line 2, '...' has no words"),
    ],
)
def test_malformed_lines_are_named(run, tmp_path, capsys, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"sentence_good": "bank", "sentence_bad": "lends"}\n' + line + "\n")
    assert main(["minimal-pairs", run, str(path)]) == 1
    said = capsys.readouterr()
    assert (
        said.out == ""
        and f"{path}, " in said.err
        and message in said.err
        and len(said.err.splitlines()) == 1
    )


def test_files_without_pairs(run, tmp_path, capsys):
    (tmp_path / "empty").write_text("")
    (tmp_path / "blank").write_text("\n\n")
    for name, message in (("empty", "is empty"), ("blank", "no pairs"), ("none", "no file")):
        assert main(["minimal-pairs", run, str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err


def test_pairs_and_suites_have_no_context():
    with pytest.raises(TypeError, match="context"):
        small_lm().minimal_pairs(PAIRS, context="stream")
    with pytest.raises(TypeError, match="context"):
        small_lm().syntaxgym(Suite("", [], []), context="stream")
