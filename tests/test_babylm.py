"""BabyLM's tests: scores as the evaluation pipeline has them, and files that are none of its."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from babylm_data import MILESTONES, at_milestone, model, write_data
from language_models import log_probs

from jaxlm.base.errors import DataError
from jaxlm.cli import main
from jaxlm.scoring import babylm
from jaxlm.scoring.babylm import Completion, Completions, Score

RECORDED = json.loads((Path(__file__).parent / "golden/published/babylm.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("babylm"))


@pytest.mark.parametrize("kind", RECORDED)
def test_scores_are_the_pipeline_s(data, kind):
    """Of its own code on a hub's folder of the model, by transformers."""
    checkpoints = ((words, at_milestone(kind, words)) for words in MILESTONES)
    results = list(babylm.babylm(model(kind), data, checkpoints if kind == "words" else ()))
    scores = {result.test: result for result in results if isinstance(result, Score)}
    assert [*scores] == [*RECORDED[kind]]
    for test, expected in RECORDED[kind].items():
        assert scores[test].score == pytest.approx(expected["score"], abs=1e-6), test
        for group, of_group in expected.get("groups", {}).items():
            assert scores[test].groups[group] == pytest.approx(of_group, abs=1e-6)


def test_the_first_of_equal_choices_is_taken(data, tmp_path):
    """As torch.max takes it: a pair that differs in unknown words alone is right."""
    folder = tmp_path / "blimp_fast"
    folder.mkdir()
    same = {"sentence_good": "the qqq runs", "sentence_bad": "the www runs"}
    (folder / "same.jsonl").write_text(json.dumps(same))
    first, *skipped = babylm.babylm(model("words"), tmp_path)
    assert isinstance(first, Score)
    assert first.score == 100 and first.groups["UID"] == {"same": 100}
    assert len(skipped) == 8 and all(isinstance(text, str) for text in skipped)
    assert [str(text).partition(":")[0] for text in skipped[:2]] == ["supplement", "ewok"]


def test_a_completion_is_scored_from_the_token_in_which_it_begins():
    lm = model("words")
    words = ["the", "dog", "runs"]
    ids = lm.vocab.encode(words)
    # Without <eos> before the text.
    alone = Completions(lm).end_log_probabilities([ids[:2]], [1])[0]
    score = Completions(lm).log_probabilities
    text = "the dog runs"
    lengths = range(1, len(text) + 1)
    found = score(Completion(text, length) for length in lengths)
    last = found[0]
    whole = last + alone
    expected = [*[last] * 5, *[whole] * 7]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.isclose(whole, log_probs(lm, words)[[0, 1, 2], ids].sum())


HOSTILE = [
    ("blimp_filtered/agreement.jsonl", b'{"sentence_good": "a"}', "an item of blimp"),
    (
        "blimp_filtered/agreement.jsonl",
        b'{"sentence_good": 1, "sentence_bad": "a"}',
        "line 1: expected",
    ),
    ("blimp_filtered/agreement.jsonl", b"\x00\xff\x00binary", "binary"),
    ("blimp_filtered/agreement.jsonl", b"[" * 100_000, "JSON"),
    ("ewok_filtered/social.jsonl", b'{"Target1": "a", "Target2": ["b"]}', "item of ewok"),
    (
        "entity_tracking/regular.jsonl",
        b'{"numops": 1, "input_prefix": "a", "options": [1]}',
        "entity",
    ),
    (
        "entity_tracking/regular.jsonl",
        b'{"numops": 1, "input_prefix": "a", "options": []}',
        "entity",
    ),
    (
        "wug_past_tense/wug_past_tense.jsonl",
        b'{"sentences": "a\\tb", "ratio": "x"}',
        "item of wug_past",
    ),
    ("wug_past_tense/wug_past_tense.jsonl", b'{"sentences": "a", "ratio": 1}', "item of wug_past"),
    ("comps/comps_base.jsonl", b"", "empty"),
    ("reading/reading_data.csv", b"word,item\na,b\n", "Subtlex_log10"),
    ("reading/reading_data.csv", b"word,Subtlex_log10\na,high\n", "'high'"),
    ("aoa/cdi_human.csv", b"word,age\na,1\n", "month"),
    ("aoa/cdi_childes.json", b'{"the": {"context": "a"}}', "'the'"),
]


@pytest.mark.parametrize(("name", "content", "said"), HOSTILE)
def test_a_damaged_file_is_one_sentence(data, tmp_path, name, content, said):
    part = Path(name).parts[0]
    shutil.copytree(data / part, tmp_path / part)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        list(babylm.babylm(model("words"), tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("prev_item", "", "too few rows with self_paced"),
        ("self_paced_reading_time", "300", "too few rows with self_paced"),
        ("RTgopast", "NA", "too few rows with RTgopast"),
    ],
)
def test_reading_without_times_is_one_sentence(data, tmp_path, column, value, said):
    name = "reading/reading_data.csv"
    rows = [*csv.DictReader(data.joinpath(name).read_text().splitlines())]
    tmp_path.joinpath("reading").mkdir()
    with tmp_path.joinpath(name).open("w") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows({**row, column: value} for row in rows)
    with pytest.raises(DataError, match=said):
        list(babylm.babylm(model("words"), tmp_path))


def test_a_folder_without_tests_is_refused(tmp_path):
    with pytest.raises(DataError, match="full_eval"):
        list(babylm.babylm(model("words"), tmp_path / "nothing"))
    (tmp_path / "comps").mkdir()
    with pytest.raises(DataError, match=r"NAME\.jsonl"):
        list(babylm.babylm(model("words"), tmp_path))


def test_the_command_line(data, tiny_run, tmp_path, capsys):
    shutil.copytree(data / "wug_past_tense", tmp_path / "full_eval" / "wug_past_tense")
    shutil.copytree(data / "blimp_filtered", tmp_path / "full_eval" / "blimp_filtered")
    run = str(tiny_run[0].run_dir)
    assert main(["babylm", run, str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    titles = [line.split("\t")[0] for line in out.splitlines()]
    assert titles == ["BLIMP", "WUG PAST"] and "note: skipped ewok: there is no" in err
    assert main(["babylm", run, str(tmp_path), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [*tree["scores"]] == ["blimp", "wug_past"] and len(tree["skipped"]) == 7
    assert set(tree["groups"]["blimp"]["field"]) == {"syntax", "syntax/semantics"}
    assert f"BLIMP\t{tree['scores']['blimp']:.2f}" in out
