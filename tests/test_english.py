"""The model that comes with jaxlm: small enough, found by its name, and better than a guess."""

import csv
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.base import packaged
from jaxlm.base.errors import CheckpointError
from jaxlm.cli import main
from jaxlm.runs import checkpoint, state_arrays
from jaxlm.runs.loading import keep_model, load, unread_corpus

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 8_000_000
PAIRS = (  # the first sentence of each is the grammatical one
    ("The keys were on the table.", "The keys was on the table."),
    ("She had seen him before.", "She had saw him before."),
    ("He told himself that it was late.", "He told themselves that it was late."),
    ("The children have gone to bed.", "The children has gone to bed."),
    ("There was nobody in the room.", "There was everybody in the room."),
    ("Nobody has ever seen it.", "Somebody has ever seen it."),
)


@pytest.fixture(scope="module")
def english() -> jaxlm.LanguageModel:
    return jaxlm.load("english")


@pytest.fixture
def script(monkeypatch) -> Any:
    """experiments/english.py."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return import_module("english")


def small_run(folder: Path) -> tuple[Path, jaxlm.LanguageModel]:
    """A run of step 0, and its model."""
    config = jaxlm.preset("test").replace(vocab_size=40, embedding_size=16, hidden_sizes=(16,))
    vocab = jaxlm.Vocab((*(f"w{place}" for place in range(39)), "<eos>"))
    params = jax.jit(jaxlm.init_params)(config.model, jax.random.key(0))
    keep_model(folder, config, params, unread_corpus("a text", "0", vocab))
    return folder, load(folder)


@pytest.fixture
def rounded(tmp_path) -> tuple[Path, jaxlm.LanguageModel]:
    """A run whose checkpoint has rounded parameters alone, and the model that was rounded."""
    run, model = small_run(tmp_path / "run")
    (path,) = (run / "checkpoints").iterdir()
    saved = checkpoint.read(path)
    with checkpoint.Folder.open(run) as folder:
        checkpoint.save(
            folder,
            state_arrays.rounded(model.params),
            saved.config,
            saved.vocab,
            checkpoint.Manifest(1, 0, None, saved.manifest.corpus),
        )
    return run, model


def test_rounded_parameters_are_within_half_a_step_and_vectors_are_the_same(rounded):
    run, model = rounded
    read = state_arrays.flat(load(run).params)
    for name, values in state_arrays.flat(model.params).items():
        if values.ndim == 1:
            np.testing.assert_array_equal(read[name], values)
            continue
        largest = np.abs(np.reshape(values, (-1, state_arrays.SHARING))).max(1, keepdims=True)
        off = np.abs(np.reshape(read[name] - values, (-1, state_arrays.SHARING)))
        assert (off <= 0.5001 * largest / 127).all() and off.max() > 0


def test_rounded_parameters_are_for_use_alone(rounded):
    run, _ = rounded
    with pytest.raises(CheckpointError, match="to use and not to train further"):
        checkpoint.load(run)
    assert main(["info", str(run)]) == 0
    damaged = run / "checkpoints/00000001/state.safetensors"
    contents = bytearray(damaged.read_bytes())
    contents[-1] ^= 1
    damaged.write_bytes(contents)
    with pytest.raises(CheckpointError, match="sha256"):
        load(run)


def test_a_directory_of_the_name_wins_with_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert packaged.resolved("english") == packaged.DIRECTORY
    assert packaged.resolved("other") == Path("other")
    small_run(tmp_path / "english")
    assert packaged.resolved("english") == Path("english")
    assert main(["predict", "english", "w1", "-k", "1"]) == 0
    assert "note: english is the directory here" in capsys.readouterr().err


def test_the_weights_are_small_and_whole():
    paths = [path for path in packaged.DIRECTORY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) <= MOST_BYTES
    assert not [path for path in paths if path.suffix not in (".json", ".jsonl", ".safetensors")]


def test_it_knows_some_grammar(english):
    for good, bad in PAIRS:
        bits = english.word_surprisal([good, bad], boundary="published").columns()
        sums = np.bincount(bits["sentence_id"], bits["surprisal"])
        assert sums[1] < sums[2], (good, bad)


def test_no_letter_is_unknown(english):
    assert english.vocab.unknown_id < 0 or np.isfinite(english.perplexity("Ωμέγα: 敏捷, naïve 🙂"))


def test_verbs_take_it_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stimuli.txt").write_text("The old man sat down.\n")
    words = ["the", "old", "man", "sat", "down", "on", "the", "chair"]
    rows = [
        f"{item},{zone},{word},{300 + (7 * item + zone) % 40},{zone}"
        for item in range(20)
        for zone, word in enumerate(words, 1)
    ]
    (tmp_path / "times.csv").write_text("\n".join(["item,zone,word,RT,count", *rows]))
    (tmp_path / "nbest").write_text("u1-1 0.1 0.2 The old man\nu1-2 0.1 0.2 The old men\n")
    os.chmod(tmp_path, 0o500)  # nothing is written where it is used
    try:
        for verb in (
            ["predict", "english", "The old", "-k", "2"],
            ["surprisal", "english", "stimuli.txt"],
            ["generate", "english", "It was", "--words", "3"],
            ["evaluate", "english", "--text", "stimuli.txt"],
            ["humanlike", "english", "--times", "times.csv", "--frequency", "count"],
            ["rescore", "english", "nbest"],
            ["info", "english"],
            ["reproduce", "english"],
        ):
            assert main(verb) == 0, verb
        assert main(["humanlike", "english", "--times", "times.csv"]) == 1
    finally:
        os.chmod(tmp_path, 0o700)
    said = capsys.readouterr()
    assert "python experiments/english.py corpus" in said.out
    assert "the training text of english is unknown: name a column" in said.err
    assert "--corpus" not in said.err
    assert str(packaged.DIRECTORY) not in said.out + said.err


def test_a_message_names_it_as_its_user_does():
    folder = packaged.DIRECTORY
    assert packaged.as_named(f"{folder} and {folder}: no") == "english and english: no"
    assert packaged.as_named(f"{folder}/run.json is cut short") == f"{folder}/run.json is cut short"


BOOK = """\ufeffThe Project Gutenberg EBook of A Book

*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***

Produced by a volunteer, whose name stands here.

CHAPTER I.

“It was _late_,” he said—
and went on [1] reading.

[Illustration: a man who
reads]

So did   she.

Too short.

*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***

You may copy it, give it away or re-use it.
"""


def test_a_book_is_cleaned_to_paragraphs(script):
    cleaned = list(script.paragraphs(BOOK.replace("\n", "\r\n").encode()))
    assert cleaned == ['"It was late," he said -- and went on reading.']
    with pytest.raises(ValueError, match="START OF THIS"):
        list(script.paragraphs(b"A text of another kind."))


def test_each_book_is_named_by_number_commit_and_hash(script, tmp_path):
    with script.BOOKS.open(encoding="utf-8") as file:
        books = list(csv.DictReader(file))
    assert len({book["number"] for book in books}) == len(books) == 113
    for book in books:
        place = rf"/GITenberg/[^/]+_{book['number']}/[0-9a-f]{{40}}/{book['number']}(-[08])?\.txt"
        assert re.search(place, book["url"]) and re.fullmatch("[0-9a-f]{64}", book["sha256"])
        assert book["split"] in script.SPLITS and int(book["year"]) < 1929
    (tmp_path / f"{books[0]['number']}.txt").write_text("another text")
    with pytest.raises(ValueError, match="another file than english_books"):
        script.fetched(books[0], tmp_path)
