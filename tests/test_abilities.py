"""experiments/abilities.py: the answers are exact, and what is counted is what was right."""

import csv
import sys
from importlib import import_module
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from terminals import run

from jaxlm.cli.ending import exit_code
from jaxlm.runs.lock import lock


@pytest.fixture(scope="module")
def abilities():
    sys.path.insert(0, str(ROOT / "experiments"))
    yield import_module("abilities")
    sys.path.remove(str(ROOT / "experiments"))


def closed(words):
    """The brackets that close a word, by removing pairs of neighbours until none is left."""
    text = "".join(words)
    while "()" in text or "[]" in text:
        text = text.replace("()", "").replace("[]", "")
    return [{"(": ")", "[": "]"}[bracket] for bracket in reversed(text)] or ["none"]


def ordered(words, items):
    """The order after swaps, by a product of matrices."""
    order = np.eye(items, dtype=int)
    for word in words:
        swap = np.eye(items, dtype=int)
        if word != "stay":
            place = int(word.removeprefix("swap"))
            swap[[place, place + 1]] = swap[[place + 1, place]]
        order = swap @ order
    return [f"item{row.argmax()}" for row in order]


SOLUTIONS = {
    "parity": lambda words: ["even", "odd"][words.count("1") % 2 :][:1],
    "modulo5": lambda words: [f"mod{words.count('1') - words.count('1') // 5 * 5}"],
    "s3": lambda words: ordered(words, 3),
    "s5": lambda words: ordered(words, 5),
    "dyck2": closed,
    "copy": list,
}


@pytest.mark.parametrize("name", SOLUTIONS)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 60))
def test_answers_are_those_of_another_solution(abilities, name, seed, length):
    line = abilities.TASKS[name].draw(Random(seed), length)
    question, answer = line.words[:length], line.words[length + 1 :]
    assert line.words[length] == "="
    assert answer == SOLUTIONS[name](question)
    told = [word for start, stop in line.answers for word in line.words[start:stop]]
    assert told == answer
    assert len(line.answers) == (length if name == "copy" else 1)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 160))
def test_values_are_recalled_by_keys_that_occur_once(abilities, seed, length):
    line = abilities.TASKS["recall8"].draw(Random(seed), length)
    sign = line.words.index("=")
    keys = line.words[:sign:2]
    values = dict(zip(keys, line.words[1:sign:2], strict=True))
    assert len(values) == len(keys) == max(1, round(length / 5))
    assert len(line.answers) == 4
    for start, stop in line.answers:
        assert stop == start + 1
        assert values[line.words[start - 1]] == line.words[start]


def test_brackets_are_at_most_eight_deep_and_chance_falls_with_depth(abilities):
    lines = [abilities.TASKS["dyck2"].draw(Random(seed), 160) for seed in range(50)]
    depths = [len(closed(line.words[:160])) for line in lines if "none" not in line.words]
    assert max(depths) <= 8
    chances = [line.chance for line in lines if "none" not in line.words]
    assert chances == [0.5**depth for depth in depths]


def test_an_answer_is_right_where_each_of_its_words_is_the_likeliest(abilities):
    lines = [
        abilities.Line(["a", "=", "b", "c"], [(2, 4)], 1 / 2),
        abilities.Line(["a", "=", "b", "c"], [(2, 4)], 1 / 2),
        abilities.Line(["k", "=", "v", "w"], [(2, 3), (3, 4)], 1 / 2),
    ]
    rank = np.array([5, 5, 1, 1, 1, 1, 1, 2, 9, 9, 2, 1])
    given_lines = []

    def surprisal(sentences, context):
        assert context == "stream"  # a state of zeros was in no line of training but the first
        given_lines.extend(sentences)
        return SimpleNamespace(rank=rank)

    lm = SimpleNamespace(surprisal=surprisal)
    assert abilities.accuracy(lm, lines) == 2 / 4
    assert given_lines == ["a = b c", "a = b c", "k = v w"]


def test_a_text_is_the_same_for_every_cell_and_lasts_as_long_as_asked(abilities, tmp_path):
    abilities.write_text("s3", tmp_path, 5)
    words = (tmp_path / "train.txt").read_text().replace("\n", " <eos> ").split()
    assert len(words) >= abilities.ROWS * (5 * abilities.STEPS + 1)
    for split, lengths in (("train", range(1, 41)), ("valid", [40]), ("test", [40])):
        lines = (tmp_path / f"{split}.txt").read_text().splitlines()
        assert {line.split().index("=") for line in lines} <= set(lengths)
    before = (tmp_path / "train.txt").read_bytes()
    abilities.write_text("s3", tmp_path / "again", 5)
    assert (tmp_path / "again" / "train.txt").read_bytes() == before
    assert (tmp_path / "valid.txt").read_bytes() != (tmp_path / "test.txt").read_bytes()


def test_the_page_s_table_is_of_the_runs(abilities):
    with (ROOT / "docs/lab/abilities.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    results = []
    for row in rows:
        words = {name: row.pop(name) for name in ("task", "cell")}
        whole = {name: int(row.pop(name)) for name in ("seed", "length", "parameters", "windows")}
        shares = {name: float(value) for name, value in row.items()}
        results.append(abilities.Result(**words, **whole, **shares))
    assert abilities.table(results) in (ROOT / "docs/lab/abilities.md").read_text()


@pytest.mark.slow
def test_results_are_written_and_a_second_start_trains_nothing(
    abilities, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    line = "abilities.py --tasks parity copy --cells lstm --windows 20 --seeds 2 --rates 0.01"
    monkeypatch.setattr(sys, "argv", line.split())
    abilities.main()
    path = tmp_path / "runs/abilities/abilities.csv"
    rows = list(csv.DictReader(path.open()))
    assert [(row["task"], row["seed"], row["length"]) for row in rows] == [
        (task, seed, length)
        for task in ("parity", "copy")
        for seed in "01"
        for length in ("40", "160")
    ]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    before = path.read_bytes()
    monkeypatch.setattr(abilities.jaxlm, "sweep", lambda *_, **__: pytest.fail("it is there"))
    abilities.main()
    assert path.read_bytes() == before
    assert "| parity | 40 | 50 |" in capsys.readouterr().out
    with lock(tmp_path / "runs/abilities/lstm"):  # as if another process trained it
        abilities.main()
    assert path.read_bytes() == before
    assert "lstm: another process has it" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*line.replace("lstm", "gru").split()])
    with lock(tmp_path / "runs/abilities/gru"), pytest.raises(SystemExit, match="no results yet"):
        abilities.main()
    monkeypatch.setattr(sys, "argv", [*line.split(), "--width", "8"])
    code, _, err = run(None, lambda _: exit_code(abilities.main))
    assert code in (1, 2) or "name another --run-dir" in str(code) + err
