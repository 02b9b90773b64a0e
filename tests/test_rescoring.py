"""N-best lists: weights beside a search by brute force; lists that are none."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from language_models import small_lm

from jaxlm.base.errors import DataError
from jaxlm.cli import main
from jaxlm.scoring.rescoring import (
    MOST,
    Hypothesis,
    best,
    costs_of,
    errors_of,
    read_nbest,
    tuned,
    word_errors,
)


def drawn(seed, utterances=15, hypotheses=6, extra=1):
    """Random costs and errors of hypotheses."""
    rng = np.random.default_rng(seed)
    names = [f"u{place // hypotheses}" for place in range(utterances * hypotheses)]
    listed = [Hypothesis(name, (), "") for name in names]
    costs = np.round(rng.normal(10, 3, (len(names), 2 + extra)), 1)
    return listed, costs, rng.integers(0, 5, len(names))


@given(seed=st.integers(0, 10_000))
@example(seed=133)  # three lines meet at one point, but for rounding
def test_a_weight_has_as_few_errors_as_any(seed):
    listed, costs, errors = drawn(seed)
    costs[:, 2] = 0
    found = tuned(listed, costs, errors, np.array([1.0, 0.0, 0.0]))
    count = errors[best(listed, costs @ found)].sum()
    # No weight is a ratio of the costs' tenths, where two hypotheses would be equal.
    grid = np.concatenate([np.linspace(0, 12, 400) + np.pi / 1000, [20, 50, MOST]])
    fewest = min(errors[best(listed, costs @ [1, weight, 0])].sum() for weight in grid)
    assert count <= fewest and 0 <= found[1] <= MOST and found[0] == 1


def test_every_weight_is_tuned():
    listed, costs, errors = drawn(1, extra=2)
    start = np.array([1.0, 0.0, 0.0, 0.0])
    found = tuned(listed, costs, errors, start)
    count = errors[best(listed, costs @ found)].sum()
    assert count < errors[best(listed, costs @ start)].sum()
    # No single weight can be changed for fewer errors.
    for place in range(1, 4):
        for weight in np.linspace(-5 if place == 3 else 0, 12, 200):
            other = found.copy()
            other[place] = weight
            assert errors[best(listed, costs @ other)].sum() >= count


def edits(words, reference):
    """Levenshtein's distance by its definition."""
    if not words or not reference:
        return len(words) + len(reference)
    change = edits(words[1:], reference[1:]) + (words[0] != reference[0])
    return min(change, edits(words[1:], reference) + 1, edits(words, reference[1:]) + 1)


def test_word_errors_are_edits():
    for first, second in itertools.product(itertools.product("ab", repeat=3), repeat=2):
        for length in range(4):
            assert word_errors(first[:length], second) == edits(first[:length], second)


def test_models_give_the_nats_of_whole_sentences(tmp_path):
    path = tmp_path / "nbest"
    path.write_text("u-1-1 2.5 3 the dog runs\nu-1-2 1 4\nu-2-1 0 0 a zebra\n")
    listed = read_nbest(path, 2)
    assert [one.utterance for one in listed] == ["u-1", "u-1", "u-2"] and listed[1].text == ""
    lm = small_lm()
    costs = costs_of(listed, [lm, lm])
    np.testing.assert_array_equal(costs[:, :2], [[2.5, 3], [1, 4], [0, 0]])
    np.testing.assert_array_equal(costs[:, 4], [3, 0, 2])
    nats = lm.surprisal(["the dog runs"], eos=True, unit="nats").surprisal.sum()
    np.testing.assert_allclose(costs[0, 2:4], nats, rtol=1e-5)
    assert best(listed, costs[:, 0]) == [1, 2] and best(listed, costs[:, 1]) == [0, 2]


BAD = ["", "u1 1 2 a", "u-1 1 b", "u-1 1", "u-1 nan 2 a", "u-1 1 2 a\nu-1 1 2 b", "u-x 1 2 a"]


@pytest.mark.parametrize("text", [*BAD, "\0\0"])
def test_a_damaged_list_is_one_sentence(tmp_path, text):
    (tmp_path / "nbest").write_text(text)
    with pytest.raises(DataError) as error:
        read_nbest(tmp_path / "nbest", 2)
    assert "\n" not in str(error.value)


def test_the_command_line(tiny_run, tmp_path, capsys):
    run = str(tiny_run[0].run_dir)
    nbest = tmp_path / "nbest"
    nbest.write_text("a-1 1 0 Ashton ship the\na-2 1.5 0 Ashton steers the ship.\nb-1 1 1\n")
    reference = tmp_path / "text"
    reference.write_text("a Ashton steers the ship.\nb\n")
    given = ["rescore", run, str(nbest)]
    assert main([*given, "--tune", str(nbest), "--reference", str(reference)]) == 0
    out, err = capsys.readouterr()
    assert out == "a Ashton steers the ship.\nb\n"
    assert "2 word errors become 0 in 2 utterances" in err
    assert main([*given, "--weights", "1", "1", "0", "0"]) == 0
    assert capsys.readouterr().out == "a Ashton ship the\nb\n"
    for mistake, said in (
        (["--weights", "1"], "takes 4 finite numbers"),
        (["--weights", "1", "1", "nan", "0"], "takes 4 finite numbers"),
        (["--tune", str(nbest)], "give both"),
        (["--tune", str(nbest), "--reference", str(nbest)], "lacks 2 utterances"),
    ):
        assert main([*given, *mistake]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(DataError, match="lacks"):
        errors_of(read_nbest(nbest, 2), nbest)
    reference.write_text("a Ashton\nb\na the ship.\n")
    with pytest.raises(DataError, match="an utterance twice"):
        errors_of(read_nbest(nbest, 2), reference)
