"""experiments/walkthrough: source and notebook are one, it runs, exercises can be solved,
and its outputs may be published.
"""

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from importlib import import_module
from itertools import chain
from typing import Any

import nbformat
import pytest
from walkthrough_notebook import NOTEBOOK, SOURCE, cell_texts, code_cells, read_source, run

from jaxlm.data.tokens import WORDS

MAX_BYTES = 400 * 1024
MAX_CPU_SECONDS = 2 * 180  # three minutes of two cores
WRONG = {  # an answer that each exercise's check must refuse
    1: "answer_1 = float(V)",
    2: "def cell_2(x_t, kernel, bias, state):\n    return lstm_cell(x_t, kernel, bias, state)",
    3: "def dropout(key, x, keep):\n"
    "    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x, 0)",
    4: "answer_4 = 19_775_201",
    5: "answer_5 = 0.8 ** 5",
    6: "def greedy():\n    return [vocab.eos] * 10",
}


@pytest.fixture(scope="module")
def published() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def output_text(cell: Any) -> str:
    """All that a cell printed or showed as text."""
    parts = [output.get("text", "") for output in cell.get("outputs", [])]
    shown = [output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", [])]
    return "\n".join(chain(parts, shown))


def all_text(notebook: Any) -> str:
    return "\n".join(output_text(cell) for cell in notebook.cells)


def exercises(notebook: Any) -> dict[int, tuple[str, str]]:
    """{number: (solution, its check)}: the folded solution, and the code cell's check below it."""
    found = {}
    for task, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if match := re.match(r"\*\*Exercise (\d+)\.", task.source):
            solution = re.search(r"```python\n(.*?)```", task.source, re.DOTALL)
            assert solution, f"exercise {match[1]} has no solution"
            checks = [line for line in cell.source.splitlines() if line.startswith("check")]
            found[int(match[1])] = solution[1], "\n".join(checks)
    return found


def test_source_and_notebook_are_one(published):
    nbformat.validate(published)
    source = read_source(SOURCE.read_text(encoding="utf-8"))
    assert cell_texts(published) == cell_texts(source), (
        "write it anew: python tests/walkthrough_notebook.py"
    )


def test_the_notebook_was_run_from_top_to_bottom_without_an_error(published):
    code = code_cells(published)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {(output.output_type, output.get("name")) for cell in code for output in cell.outputs}
    assert kinds <= {("stream", "stdout"), ("display_data", None)}
    pictures = [
        output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4


def test_the_notebook_is_small():
    assert NOTEBOOK.stat().st_size < MAX_BYTES


def test_no_output_names_a_place_of_the_machine_that_ran_it(published):
    text = all_text(published)
    assert not re.findall(r"(?:^|[\s'\"(=:])~?(?:/[\w.-]+){2,}", text)
    for place in (tempfile.gettempdir(), os.path.expanduser("~"), str(SOURCE.parent), sys.prefix):
        assert place not in text
    assert set(published.metadata) == {"kernelspec", "language_info"}
    assert all(not cell.metadata for cell in published.cells)


def test_the_outputs_are_of_the_generated_corpus(published):
    first = next(text for cell in published.cells if (text := output_text(cell)))
    assert first.startswith("embedded corpus (a generated language)")


def test_no_output_holds_text_of_penn_treebank(published, ptb_dir):
    """No five tokens in a row: four common words,
    such as "<unk> by <unk> of", are in any English.
    """
    split = {
        name: WORDS.units((ptb_dir / f"ptb.{name}.txt").read_text())
        for name in ("train", "valid", "test")
    }
    theirs = set(
        chain.from_iterable(
            zip(*(words[n:] for n in range(5)), strict=False) for words in split.values()
        )
    )
    ours = all_text(published).replace("\n", " <eos> ").split()
    assert not theirs & set(zip(*(ours[n:] for n in range(5)), strict=False))
    assert not set(split["train"][:24]) & set(
        ours
    )  # rare words that the tutorial's first ids stand for


def test_every_name_in_its_text_exists(published):
    text = "\n".join(cell.source for cell in published.cells if cell.cell_type == "markdown")
    names = set(re.findall(r"`(jaxlm(?:\.\w+)+)", text))
    assert len(names) > 15
    for name in names - {"jaxlm.load_corpus"}:
        parts = name.split(".")
        module = next(n for n in range(len(parts), 0, -1) if _is_module(".".join(parts[:n])))
        found: Any = import_module(".".join(parts[:module]))
        for part in parts[module:]:
            found = getattr(found, part)


def _is_module(name: str) -> bool:
    try:
        import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def test_every_section_that_its_table_names_is_there(published):
    text = "\n".join(cell.source for cell in published.cells if cell.cell_type == "markdown")
    sections = {int(number) for number in re.findall(r"^## (\d+)\.", text, re.MULTILINE)}
    assert sections == set(range(1, 23))
    table = text[text.index("## 21.") : text.index("## 22.")]
    rows = [
        re.split(r"(?<!\\)\|", row)
        for row in table.splitlines()
        if row.startswith("| ") and "---" not in row
    ]
    assert len(rows) > 40
    for row in rows[1:]:
        assert len(row) == 5 and row[1].strip() and row[2].strip()
        known = set(exercises(published)) if "exercise" in row[3] else sections
        assert {int(number) for number in re.findall(r"\d+", row[3])} <= known


@pytest.mark.slow
def test_it_runs_in_three_minutes_and_its_exercises_take_right_answers_only(tmp_path):
    notebook = read_source(SOURCE.read_text(encoding="utf-8"))
    solutions = exercises(notebook)
    assert set(solutions) == set(WRONG)
    own = len(notebook.cells)
    new_cell = nbformat.v4.new_code_cell
    notebook.cells.append(new_cell("import time; print(time.process_time())"))
    for number, (solution, check) in solutions.items():
        wrong = textwrap.indent(f"{WRONG[number]}\n{check}", "    ")
        notebook.cells.append(new_cell(f"{solution}\n{check}"))
        notebook.cells.append(
            new_cell(
                f"try:\n{wrong}\nexcept AssertionError as error:\n    print('refused:', error)"
            )
        )
    done = run(notebook, "embedded-tiny", tmp_path)

    printed = all_text(nbformat.from_dict({**done, "cells": done.cells[:own]}))
    assert printed.count(": to do") == len(solutions)
    answers = [output_text(cell) for cell in done.cells[own + 1 :]]
    for number, right, wrong in zip(solutions, answers[::2], answers[1::2], strict=True):
        assert right.strip() == f"exercise {number}: correct"
        assert (
            wrong.startswith("refused:")
            and f"exercise {number}" in wrong
            and "correct" not in wrong
        )
    assert float(output_text(done.cells[own])) < MAX_CPU_SECONDS
    assert not list(tmp_path.iterdir())  # it leaves nothing where it is run


@pytest.mark.slow
def test_with_penn_treebank_it_shows_the_tutorials_ids(ptb_dir, tmp_path):
    source = SOURCE.read_text(encoding="utf-8")
    stations = tmp_path / "stations.py"
    stations.write_text(source[: source.index("# %% [markdown]\n# ## 15. Train")], encoding="utf-8")
    environment = {**os.environ, "JAXLM_DATA": str(ptb_dir), "MPLBACKEND": "agg"}
    environment.pop("JAXLM_WALKTHROUGH", None)  # Penn Treebank is the default where it is found
    found = subprocess.run(
        [sys.executable, stations], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "[9970 9971 9972 9974 9975 9976 9980 9981 9982 9983" in found.stdout
    assert "row 1 inputs  [901, 33, 3361, 8, 1279, 437, 597, " in found.stdout
    cost = re.search(r"^cost ([\d.]+)", found.stdout, re.MULTILINE)
    assert cost and float(cost[1]) == pytest.approx(184.2, abs=0.5)
