"""jaxlm compare: the difference between two runs on one text,
with the interval of a paired bootstrap over lines.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from language_models import WORDS, lm_of, small_lm
from processes import TINY

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.cli import main
from jaxlm.data.tokens import Characters
from jaxlm.data.vocab import Vocab
from jaxlm.scoring import comparison
from jaxlm.scoring.comparison import compare
from jaxlm.scoring.language_model import LanguageModel


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("compare") / "text.txt"
    lines = [
        " ".join(rng.choice(["the", "dogs", "dog", "runs", "of"], rng.integers(1, 9)))
        for _ in range(400)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def nats_of_lines(lm, text):
    """By surprisal, which reads each line from the state after the line before."""
    lines = text.read_text().splitlines()
    table = lm.surprisal(lines, context="stream", unit="nats", eos=True)
    return np.bincount(table.sentence_id - 1, table.surprisal)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of two runs of different seeds, "0" and "1"."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in "01":
        assert main(["train", *TINY, "--seed", seed, "--run-dir", str(folder / seed)]) == 0
    return folder


def test_nats_of_lines_and_the_interval_of_their_paired_difference(text):
    first = small_lm("lstm", seed=1)
    other = small_lm("gru", seed=2)
    found = compare(first, other, text=text)
    a, b = (nats_of_lines(lm, text) for lm in (first, other))
    np.testing.assert_allclose((found.nats, found.other_nats), (a.mean(), b.mean()), rtol=1e-5)
    np.testing.assert_allclose(found.difference, (b - a).mean(), rtol=1e-4)
    half = 1.96 * (b - a).std() / np.sqrt(len(a))  # by the central limit theorem
    np.testing.assert_allclose(
        (found.low_95, found.high_95),
        (found.difference - half, found.difference + half),
        atol=0.05 * half,
    )
    assert half < 0.8 * 1.96 * np.hypot(a.std(), b.std()) / np.sqrt(
        len(a)
    )  # unpaired it would be wider
    back = compare(other, first, text=text)
    np.testing.assert_allclose(
        (back.difference, back.low_95), (-found.difference, -found.high_95), rtol=1e-5
    )
    same = compare(first, first, text=text)
    assert (same.lines, same.difference, same.low_95, same.high_95) == (400, 0, 0, 0)


def test_other_tokens_of_one_text_compare_and_another_text_is_refused(text, tmp_path, monkeypatch):
    words = small_lm()
    content = text.read_text()
    kind = Characters()
    characters = lm_of(Vocab.build(kind.units(content), kind=kind))
    spaced = characters.vocab.encode_text(content.replace(" ", "  "))
    read = {"words": words.vocab.encode(words.tokens(content)), "characters": spaced}
    monkeypatch.setattr(
        LanguageModel, "read", lambda lm, *_, **__: ("the text", read[lm.vocab.kind])
    )
    found = compare(words, characters)
    assert found.lines == 400 and found.other_nats > found.nats > 0
    read["characters"] = characters.vocab.encode_text(content.replace("runs", "run", 1))
    with pytest.raises(DataError, match=r"do not read one text: line 1 is .*runs"):
        compare(words, characters)
    read["characters"] = characters.vocab.encode_text(content + "the\n")
    with pytest.raises(DataError, match="line 401 is None"):
        compare(words, characters)
    monkeypatch.undo()
    fewer = small_lm(words=tuple(word for word in WORDS if word != "runs"))
    with pytest.raises(DataError, match="leaves the same words unknown"):
        compare(words, fewer, text=text)
    (tmp_path / "cased.txt").write_text("the dogs\nThe dogs\n")
    cased = small_lm(words=(*WORDS, "The"))
    lower = replace(words, config=words.config.replace(lowercase=True))
    with pytest.raises(
        DataError, match=r"line 2 is 'Thedogs' .* a text in lower case, as one of them reads"
    ):
        compare(cased, lower, text=tmp_path / "cased.txt")
    (tmp_path / "wrapped.txt").write_text("the\ndogs\n\nthe dog\n")
    unwrapped = replace(words, config=words.config.replace(lines="unwrap"))
    with pytest.raises(DataError, match="that both read alike"):
        compare(words, unwrapped, text=tmp_path / "wrapped.txt")


@pytest.mark.parametrize(("content", "lines"), [("the dogs", 1), ("the dogs\n", 1), ("", 0)])
def test_one_line_shows_no_difference_and_is_refused(content, lines, monkeypatch):
    lm = small_lm()
    monkeypatch.setattr(
        LanguageModel, "read", lambda lm, *_, **__: ("text8", lm.vocab.encode(lm.tokens(content)))
    )
    with pytest.raises(DataError, match=f"at least 2 lines to draw from, found {lines} in text8"):
        compare(lm, lm)


def test_a_text_whose_newlines_are_no_tokens_has_no_lines(tmp_path):
    (path := tmp_path / "text.txt").write_text("ab a b")
    lm = lm_of(Vocab.build("ab a", kind=Characters()))
    with pytest.raises(DataError, match="found 0"):
        compare(lm, lm, text=path)


def test_letters_that_one_run_composes_are_one_text(tmp_path):
    (path := tmp_path / "text.txt").write_text(content := "be\u0301\nbe\u0301 b\n")
    kinds = Characters(), Characters("none")
    composed, apart = (lm_of(Vocab.build(kind.units(content), kind=kind)) for kind in kinds)
    assert compare(composed, apart, text=path).lines == 2


@pytest.fixture
def seeded(monkeypatch):
    """Makes models whose nats of lines are given, each of a seed of its own."""
    nats = {}

    def read(lm, *_):
        given = nats[lm.config.train.seed, lm.config.preset]
        return comparison._Lines("the text", ["a line"] * len(given), given)

    def group(name, seeds, rows):
        models = []
        for seed, row in zip(seeds, rows, strict=True):
            nats[seed, name] = row
            models.append(replace(model, config=model.config.replace(seed=seed, preset=name)))
        return models

    model = small_lm()
    monkeypatch.setattr(comparison, "_lines_of", read)
    return group


def test_groups_are_paired_over_lines_and_seeds(seeded):
    """The interval has the variance of independent seeds and lines, without what they share."""
    rng = np.random.default_rng(0)
    of_line = rng.normal(size=150)
    of_seed = 3 * rng.normal(size=(3, 1))
    noise = rng.normal(size=(2, 3, 150))
    first = of_line + of_seed + 0.5 * noise[0]
    other = of_line + of_seed + 0.5 * noise[1] + np.array([[0.1], [0.2], [0.6]])
    found = compare(seeded("a", (0, 1, 2), first), seeded("b", (0, 1, 2), other))
    difference = other - first
    np.testing.assert_allclose(found.nats, first.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.difference, difference.mean(), rtol=1e-6)
    width = found.high_95 - found.low_95
    samples = comparison._differences(first, other, paired=True)
    of_lines = difference.mean(0).var() + difference.var(0, ddof=1).mean() / 2  # of two seeds drawn
    expected = np.sqrt(difference.mean(1).var(ddof=1) / 3 + of_lines / 150)
    np.testing.assert_allclose(np.std(samples), expected, rtol=0.08)
    assert found.seeds_paired and 0.8 < width / (2 * 1.96 * expected) < 1.1
    # The order in which runs are named does not count, nor which group is named first.
    shuffled = compare(seeded("a", (2, 0, 1), first[[2, 0, 1]]), seeded("b", (0, 1, 2), other))
    assert shuffled == found
    back = compare(seeded("b", (0, 1, 2), other), seeded("a", (0, 1, 2), first))
    np.testing.assert_allclose(
        (back.difference, back.low_95), (-found.difference, -found.high_95), rtol=1e-6
    )
    # Other seeds, or one twice: each group is drawn by itself, and what the seeds share is not
    # taken off.
    for seeds in ((0, 1, 3), (0, 1, 1)):
        alone = compare(seeded("a", (0, 1, 2), first), seeded("b", seeds, other))
        assert not alone.seeds_paired and alone.high_95 - alone.low_95 > 3 * width
    repeated = compare(seeded("a", (0, 0), first[:2]), seeded("b", (0, 0), other[:2]))
    assert not repeated.seeds_paired
    one = compare(seeded("a", (0,), first[:1]), seeded("b", (0,), other[:1]))
    assert one == compare(seeded("a", (0,), first[:1])[0], seeded("b", (0,), other[:1])[0])
    with pytest.raises(JaxlmError, match="at least one model"):
        compare([], seeded("b", (0,), other[:1]))


def test_the_verb(capsys, runs):
    capsys.readouterr()
    command = ["compare", str(runs / "0"), str(runs / "1")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert main([*command, "--json", "--split", "valid"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["protocol"] == {"name": "plain"}
    assert (
        found["text"] == "embedded-tiny valid"
        and found["low_95"] < found["difference"] < found["high_95"]
    )
    first, difference = out.splitlines()
    assert (
        first.startswith("embedded-tiny test: ")
        and "lines from -" in difference
        and difference.endswith("/1 is better")
    )
    assert main([command[0], *reversed(command[1:])]) == 0
    assert capsys.readouterr().out.endswith("/1 is better\n")
    assert main([*command[:2], command[1]]) == 0
    assert capsys.readouterr().out.endswith("+0.000 to +0.000: neither is shown to be better\n")
    assert main([*command, "--text", "/no/such", "--split", "valid"]) == 1
    assert "leave it or --split out" in capsys.readouterr().err
    groups = ["compare", *command[1:], "--", *command[1:], "--json"]  # flags may follow
    assert main(groups) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == found["others"] == command[1:]
    assert found["seeds_paired"] and found["difference"] == found["high_95"] == 0
    assert main([*command, "--", command[1]]) == 0
    assert " lines and 2 and 1 seeds from " in capsys.readouterr().out
    for wrong in (command[:2], [*command, command[1]], [*command, "--"], ["compare", "--"]):
        assert main(wrong) == 1
        assert "compare runs/a-* -- runs/b-*" in capsys.readouterr().err


def test_an_unfinished_run_is_refused_and_named_and_so_is_one_named_twice(tmp_path, runs, capsys):
    """Of the run that was stopped no verdict stands without a word."""
    stopped = str(tmp_path / "stopped")
    assert main(["train", *TINY, "--steps", "2", "--run-dir", stopped]) == 0
    capsys.readouterr()
    command = ["compare", str(runs / "0"), stopped]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert re.search(
        r"/stopped is stopped at window 2 of \d+: resume it with .*--unfinished", error
    )
    assert main([*command, "--unfinished"]) == 0
    assert re.search(r"note: .*/stopped is stopped at window 2 of \d+\n", capsys.readouterr().out)
    assert main([*command[:2], command[1]]) == 0
    assert "are one run" in capsys.readouterr().err
    record = json.loads((tmp_path / "stopped/run.json").read_text())
    record["corpus"]["tokens"]["train"] = 0  # as of a model that was trained elsewhere
    (tmp_path / "stopped/run.json").write_text(json.dumps(record))
    assert main(command) == 0
    assert re.search(r"note: .*/stopped is imported\n", capsys.readouterr().out)
