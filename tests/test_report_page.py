"""The report page: what is on it, nothing of a stranger's obeyed,
nothing loaded, whole or not there.
"""

import base64
import hashlib
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from page_parts import HOSTILE, hostile_contents, model_view, run_record, sweep_record

import jaxlm
from jaxlm.base.hashed_json import to_hashed_json
from jaxlm.base.terminal import printable
from jaxlm.cli import main
from jaxlm.data.corpora import load_corpus
from jaxlm.interop import export_html
from jaxlm.interop.exporting import export_model
from jaxlm.interop.importing import import_model
from jaxlm.report.page import SweepRecord, colour, groups, published, render, rounded, speeds
from jaxlm.report.sweep_files import write_sweep
from jaxlm.report.sweep_results import MemberResult, Trial
from jaxlm.report.word_map import map_words
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.ngram_models import ngram
from jaxlm.scoring.language_model import NgramModel
from jaxlm.sweeps import report_file
from jaxlm.sweeps.report_file import write_report

VOID = {"meta", "input", "br"}
TINY = jaxlm.preset("small").replace(
    corpus="embedded-tiny", hidden_sizes=(8,), embedding_size=4, batch_size=50, epochs=1
)


class Page(HTMLParser):
    """The elements of a page, every one closed in its turn."""

    def __init__(self, text: str):
        super().__init__()
        self.open = []
        self.tags = []
        self.attributes = []
        self.scripts = []
        self.words = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        else:
            self.words.append(data)


def page(*runs, **others) -> Page:
    return Page(render("Report", runs, **others))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory of two runs that differ in their seed, and a sweep."""
    folder = tmp_path_factory.mktemp("report")
    for seed in (0, 1):
        jaxlm.train(TINY.replace(seed=seed), run_dir=folder / f"seed-{seed}", quiet=True)
    jaxlm.sweep(TINY, {"learning_rate": [0.5, 1.0]}, run_dir=folder / "sweep", quiet=True)
    return folder


@pytest.fixture
def small_maps(monkeypatch):
    """Maps of 50 words in place of 500, which take seconds."""
    assert signature(map_words).parameters["count"].default == 500

    def fewer(*arguments, **options):
        return map_words(*arguments, count=50, **options)

    monkeypatch.setattr(report_file, "map_words", fewer)


@pytest.fixture
def no_charts(monkeypatch):
    """Pages whose charts are empty, for tests that read the tables beside them."""
    monkeypatch.setattr("jaxlm.report.page.svg", lambda drawn, name: "<svg></svg>")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run, to be damaged."""
    return shutil.copytree(trained / "seed-0", tmp_path / "run")


def test_every_part_is_there_with_a_table_beside_each_chart():
    sweeps = [sweep_record(model=model_view())]
    found = page(run_record("a"), run_record("b", 1), models=[model_view("a")], sweeps=sweeps)
    text = " ".join(found.words)
    for part in (
        "Results",
        "Learning curves",
        "Gradient norm",
        "Learning rate",
        "Words per second",
        "Map of the words",
        "colours: 3 clusters",
        "Surprisal",
        "Samples",
        "Parallel coordinates",
        "What was run",
        "jaxlm train --seed 1",
        "published",
    ):
        assert part in text, part
    payload = json.loads(found.scripts[0])
    assert [part["kind"] for part in payload] == ["map", "sweep", "map"]
    assert found.tags.count("svg") == 4 + 2 + 2 + 3 and found.tags.count("table") > 8
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {part["id"] for part in payload} <= set(ids)
    used = {value[1:] for tag, name, value in found.attributes if tag == "use" and name == "href"}
    assert used and used <= set(ids)


def test_no_text_of_a_file_becomes_markup_or_script():
    """The elements and attributes, in name, of a page of harmless text."""
    text = render(HOSTILE[0], **hostile_contents())
    text.encode()
    found = Page(text)
    assert (
        found.tags.count("script") == 2
        and not {"img", "image"} & set(found.tags)
        and "b" in found.tags
    )
    assert not {name for _, name, _ in found.attributes if name.startswith("on")}
    for tag, name, value in found.attributes:
        assert name not in ("src", "href") or value.startswith("#"), (tag, name, value)
    payload = found.scripts[0]
    assert not set("<>&\u2028\u2029") & set(payload)
    assert json.loads(payload)[0]["words"] == [*map(printable, HOSTILE)]
    assert "<script>alert(1)</script>" in " ".join(found.words)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202e\ud800]", text)


def test_the_page_loads_nothing_and_runs_its_own_script_alone():
    found = page(run_record())
    assert not {"link", "img", "iframe", "object", "base"} & set(found.tags)
    assert not [value for _, name, value in found.attributes if "://" in value]
    policy = next(
        value for _, name, value in found.attributes if name == "content" and "default-src" in value
    )
    digest = base64.b64encode(hashlib.sha256(found.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}';" in policy
    style = (Path(jaxlm.__path__[0]) / "report/page.css").read_text()
    assert "url(" not in style and "@import" not in style
    assert all("url(" not in re.sub(r"url\(#\w+\)", "", value) for _, _, value in found.attributes)


def test_the_pictures_have_the_pages_colours_and_say_their_numbers():
    found = page(run_record("a"))
    words = " ".join(found.words)
    assert "a train, epoch 1: 300.00" in words and "a validation, epoch 2: 155.00" in words
    styles = " ".join(value for tag, name, value in found.attributes if name == "style")
    assert "var(--c0)" in styles and "var(--c1)" in styles and "#2563eb" not in styles


def test_each_trial_has_its_key_in_every_chart_and_in_the_table():
    found = page(sweeps=[sweep_record()])
    keys = [(tag, value) for tag, name, value in found.attributes if name == "data-key"]
    for trial in range(8):
        charts = keys.count(("g", str(trial))) + keys.count(("use", str(trial)))
        assert charts == 2 + 3 and keys.count(("tr", str(trial))) == 1
    rate, sizes, nesterov, perplexity = json.loads(found.scripts[0])[0]["axes"]
    assert rate["choices"] == [] and rate["values"]["3"] == 4 and perplexity["values"]["1"] == 120
    assert rate["ends"] == [0.5, 4] and perplexity["ends"] == [100, 240]
    assert sizes["choices"] == ["16x8", "8"] and nesterov["values"]["0"] == "False"


def test_unknown_tokens_and_estimates_are_said():
    epochs = [
        {"epoch": 1, "train_perplexity": 90.0, "valid_perplexity": 118.0, "unknown_valid": 0.01}
    ]
    few = run_record(
        "few",
        epochs=epochs,
        tests=[{"test_perplexity": 117.0, "test_bits_per_byte": 1.625, "unknown_test": 0.02}],
    )
    text = " ".join(" ".join(page(few).words).split())
    assert "test bits per byte per character" in text and "117.00 1.625 valid 1.0%" in text
    assert (
        "valid 1.0%, test 2.0%" in text
        and "Many tokens are unknown" not in text
        and "estimate" not in text
    )
    many = run_record("many", tests=[{"test_perplexity": 117.0, "unknown_test": 0.9}])
    assert "Many tokens are unknown (<unk>) to the vocabulary of many: test 90.0%" in " ".join(
        " ".join(page(few, many).words).split()
    )
    estimate = run_record(epochs=[{**epochs[0], "train_estimated": True}])
    text = " ".join(" ".join(page(estimate).words).split())
    assert "90.00 (estimate)" in text and "train, estimated from the words drawn" in text


def test_the_bits_of_a_run_are_of_the_last_parameters_as_the_perplexity_is(no_charts):
    tests = [
        {"checkpoint": which, "test_perplexity": value, "test_bits_per_byte": bits}
        for which, value, bits in (("last", 117.0, 1.625), ("best", 116.0, 1.5))
    ]
    assert "117.00 116.00 1.625" in " ".join(" ".join(page(run_record(tests=tests)).words).split())


def test_a_run_of_characters_is_told_in_bits_per_character():
    epochs = [
        {"epoch": 1, "train_perplexity": 16.0, "valid_perplexity": 8.0, "floor_valid": 4.0},
        {"epoch": 2, "train_perplexity": 8.0, "valid_perplexity": 4.0, "floor_valid": 4.0},
    ]
    test = [{"checkpoint": "last", "test_perplexity": 2**1.5}]
    characters = jaxlm.preset("zaremba-small").replace(tokens="characters")
    found = page(run_record("a", epochs=epochs, tests=test, config=characters))
    text = " ".join(" ".join(found.words).split())
    for part in (
        "validation bits per character test bits per character",
        "Bits per character of each epoch",
        "2.0000",  # validation
        "1.5000",  # test
        "floor of valid 2.0000",
        "characters per second",
        "The floor is the result of the true source",
    ):
        assert part in text, part
    assert not re.search("words (a|per) second|(validation|test) perplexity (?!per word)", text)


def test_a_sweep_of_characters_is_told_in_bits_per_character():
    trials = [
        Trial(
            number,
            {"seed": number},
            "done",
            1,
            (0.9, math.nan),
            (0.8, math.nan),
            [0.9],
            measure="bits per character",
        )
        for number in (0, 1)
    ]
    found = page(sweeps=[SweepRecord("s", {}, trials)])
    text = " ".join(" ".join(found.words).split())
    assert "validation bits per character test bits per character" in text
    assert "0.9000" in text and "0.8000" in text and "perplexity" not in text
    assert json.loads(found.scripts[0])[0]["axes"][-1]["ends"] == [0.9, 0.9]


def test_a_run_with_a_test_and_no_epoch_has_its_page():
    text = " ".join(page(run_record("a", epochs=[], timing={})).words)
    assert "118.00" in text and "a test, epoch 2: 118.00" in text


def test_a_thousand_trials_are_drawn_with_a_key_each():
    found = page(sweeps=[sweep_record(1000, importances={"learning_rate": 0.75, "hidden": 0.25})])
    keys = {value for tag, name, value in found.attributes if name == "data-key" and tag != "tr"}
    assert len(keys) == 1000
    assert "75.0%" in " ".join(found.words)


def test_the_speeds_of_an_epoch_are_of_its_own_windows():
    rows = speeds(run_record())
    assert [(row["windows"], row["mean"], row["largest"]) for row in rows] == [(6, 2.0, 3.0)] * 2
    assert [row.get("seconds") for row in rows] == [2.0, None]


def test_colours_end_with_their_scale():
    assert [colour(bits) for bits in (-1.0, 0.0, 8.0, 16.0, 99.0)] == [
        "--s:0%",
        "--s:0%",
        "--s:50%",
        "--s:100%",
        "--s:100%",
    ]
    assert colour(float("inf")) == colour(float("nan")) == ""


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_mean_and_deviation():
    other = run_record("c", config=jaxlm.preset("zaremba-small").replace(init_scale=0.2))
    found = groups([run_record("a", 0), run_record("b", 2), other])
    pair = next(group for group in found if len(group.runs) == 2)
    assert pair.test == (119.0, pytest.approx(2**0.5)) and pair.settings == {"init_scale": "0.1"}
    alone = next(group for group in found if len(group.runs) == 1)
    assert alone.test[0] == 118 and np.isnan(alone.test[1])


def test_a_seed_that_has_not_finished_is_a_group_of_its_own():
    found = groups([run_record("a", 0), run_record("b", 1), run_record("c", 2, tests=[])])
    assert [([run.name for run in group.runs], group.settings["finished"]) for group in found] == [
        (["a", "b"], "yes"),
        (["c"], "no"),
    ]


def test_published_numbers_stand_beside_runs_on_penn_treebank_alone():
    assert [value for _, value in published([run_record(), run_record("b", 1)])] == [115.5]
    assert published([run_record(config=jaxlm.preset("small"))]) == []  # nobody's published model
    assert [
        value for _, value in published([run_record(config=jaxlm.preset("zaremba-large"))])
    ] == [78.5]
    assert (
        published([run_record(corpus="other"), run_record(config=jaxlm.Config(preset="mine"))])
        == []
    )


def test_runs_on_several_corpora_are_kept_apart_and_it_is_said():
    found = page(run_record("a", corpus="one", sha="1"), run_record("b", corpus="two", sha="2"))
    text = " ".join(found.words)
    assert "Runs on one" in text and "Runs on two" in text and "2 corpora" in text
    assert (
        text.index("a train, epoch 1")
        < text.index("Runs on two", text.index("Results"))
        < text.index("b train, ep")
    )


def test_the_page_of_three_long_runs_is_small():
    """15 epochs of Penn Treebank at the preset small's batch: 11,610 windows each."""
    windows = [
        {
            "step": step,
            "epoch": 1 + step // 774,
            "cost": 91.2,
            "learning_rate": 0.5,
            "grad_norm": 1.2345678 + step % 7,
        }
        for step in range(11610)
    ]
    epochs = [
        {"epoch": epoch, "train_perplexity": 99.9, "valid_perplexity": 110.1}
        for epoch in range(1, 16)
    ]
    runs = [
        run_record(name, seed, windows=windows, epochs=epochs) for seed, name in enumerate("abc")
    ]
    words = [f"word{place:06d}" for place in range(500)]
    assert len(render("Report", runs, [model_view("a", words)])) < 1_500_000


def test_an_epoch_whose_first_window_alone_draws_words_is_an_estimate(tmp_path):
    """0.6 in float32 times 45 windows is above 27, in float64 it is 27."""
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text("abc\n" * 10)
    sizes = dict(embedding_size=4, hidden_sizes=(4,), batch_size=2, bptt_length=2, epochs=5)
    config = TINY.replace(
        corpus=str(tmp_path), tokens="bytes", sampled_words=50, sampled_share=0.6, **sizes
    )
    epochs = jaxlm.train(config, quiet=True).epochs
    assert [epoch.train_estimated for epoch in epochs] == [True] * 4 + [False]


def test_a_runs_metrics_name_unknown_tokens_and_estimated_perplexities(tmp_path, capsys):
    """Words are drawn in the first of two epochs.
    Where all would be drawn the perplexity is exact.
    """
    assert not jaxlm.train(TINY.replace(sampled_words=500), quiet=True).epochs[0].train_estimated
    config = TINY.replace(sampled_words=50, sampled_share=0.5, epochs=2)
    result = jaxlm.train(config, run_dir=tmp_path / "run")
    assert [epoch.train_estimated for epoch in result.epochs] == [True, False]
    said = capsys.readouterr().out
    assert said.count("(an estimate)") == 2 and re.search(
        r"unknown tokens +valid 4\.\d%  test 4\.\d%", said
    )
    assert result.run_dir
    epochs, (test,) = (
        [row for row in read_metrics(result.run_dir) if row["kind"] == kind]
        for kind in ("epoch", "test")
    )
    assert [row.get("train_estimated") for row in epochs] == [True, None]
    shares = jaxlm.load_corpus("embedded-tiny").unknown_shares()
    assert (
        epochs[0]["unknown_valid"] == shares["valid"] > 0
        and test["unknown_test"] == shares["test"] > 0
    )
    for split, row in (
        ("valid", epochs[1]),
        ("test", test),
    ):  # in the rows and windows of training, and as evaluated
        found = jaxlm.evaluate(result.run_dir, split)
        for name in ("bits_per_byte", "bits_per_character", "word_perplexity"):
            assert row[f"{split}_{name}"] == pytest.approx(getattr(found, name), rel=1e-9)
        assert found.word_perplexity == pytest.approx(found.perplexity)


@pytest.mark.parametrize(
    "value", [0.0, -1.5, 1e-9, 1e300, float("inf"), float("nan"), None, 12345.678]
)
def test_numbers_of_every_size_have_a_text(value):
    assert isinstance(rounded(value), str) and "\n" not in rounded(value)


def test_the_command_writes_runs_and_a_sweep_to_one_page(trained, tmp_path, capsys, small_maps):
    out = tmp_path / "report.html"
    runs = [str(trained / name) for name in ("seed-0", "seed-1", "sweep")]
    assert (
        main(["report", *runs, runs[0], "-o", str(out), "--text", "this <script>x</script>"]) == 0
    )
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text()
    found = Page(text)
    words = " ".join(found.words)
    assert (
        "2 runs and 1 sweep" in words
        and "0, 1" in words
        and "The beginning of the test split" in words
    )
    assert "Text 1" in words and "There is no" not in words and found.tags.count("script") == 2
    assert words.count("embedded-tiny test, 5-gram model: ") == 2  # of the runs, of the sweep
    assert len(text) < 2_000_000
    maps = [part for part in json.loads(found.scripts[0]) if part["kind"] == "map"]
    assert len(maps) == 2 and len(maps[0]["words"]) == 50


def test_a_live_page_is_offered_or_the_kind_is_refused_by_name(
    run, capsys, monkeypatch, small_maps, no_charts
):
    assert main(["report", str(run), "--live"]) == 0
    assert (run / "report.html").read_text().count("<iframe") == 1
    monkeypatch.setattr(export_html, "KINDS", (jaxlm.GRU,))
    assert main(["report", str(run), "--live", "-o", str(run / "other.html")]) == 1
    assert "a page runs models of the kinds gru, and this model is lstm" in capsys.readouterr().err
    assert not (run / "other.html").exists()


def test_one_run_has_its_report_in_its_directory_and_train_writes_it(tmp_path, capsys, small_maps):
    run = tmp_path / "a run"
    flags = [
        "--corpus",
        "embedded-tiny",
        "--hidden-sizes",
        "8",
        "--embedding-size",
        "4",
        "--batch-size",
        "50",
        "--epochs",
        "1",
    ]
    assert main(["train", *flags, "--run-dir", str(run), "--report", "--data-dir", "my ptb"]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"report: {run}" in said
    first = (run / "report.html").read_bytes()
    assert main(["report", str(run)]) == 0
    assert Page(first.decode()).tags == Page((run / "report.html").read_text()).tags


def damage(run: Path, how: str) -> None:
    if how == "config":
        shutil.rmtree(run / "checkpoints")
        (run / "config.json").write_text("{")
    elif how == "record":
        (run / "run.json").write_text("[]")
    elif how == "metrics":
        (run / "metrics.jsonl").write_text('{"kind":"window"\n')
    elif how == "fifo":
        (run / "metrics.jsonl").unlink()
        os.mkfifo(run / "metrics.jsonl")
    elif how == "sparse":
        with open(run / "run.json", "wb") as file:
            file.truncate(1 << 40)
    elif how == "arrays":
        for path in sorted((run / "checkpoints").rglob("*")):
            if (
                path.is_file()
                and path.stat().st_size > 1000
                and path.suffix not in (".json", ".jsonl")
            ):
                path.write_bytes(path.read_bytes()[:-1])
    elif how == "no epoch":
        shutil.rmtree(run / "checkpoints")
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(line for line in lines if '"window"' in line))


@pytest.mark.parametrize(
    "how", ["config", "record", "metrics", "fifo", "sparse", "arrays", "no epoch"]
)
def test_a_damaged_run_is_one_sentence_and_no_page(run, trained, tmp_path, capsys, how):
    damage(run, how)
    out = tmp_path / "report.html"
    out.write_text("the old page")
    before = sorted(tmp_path.iterdir())
    assert main(["report", str(trained / "seed-1"), str(run), "-o", str(out)]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("error: ")
        and said.count("\n") == 1
        and "Traceback" not in said
        and str(run) in said
    )
    assert out.read_text() == "the old page" and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"members":[]}', '{"members":[{"number":1}]}', '{"members":7}']
)
def test_a_sweep_without_results_or_with_damaged_ones_is_one_sentence(
    trained, tmp_path, capsys, text
):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "trials").mkdir()
    if text is not None:
        (sweep / "sweep.json").write_text(
            to_hashed_json(json.loads(text)) if '"number":1' in text else text
        )
    assert main(["report", str(sweep)]) == 1
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "sweep.json cannot be read" in said
        and "--resume` writes it" in said
    )
    assert not (sweep / "report.html").exists()


def test_a_trial_that_is_a_link_is_not_read(trained, tmp_path, capsys):
    sweep = shutil.copytree(trained / "sweep", tmp_path / "sweep")
    for trial in (sweep / "trials").iterdir():
        trial.rename(tmp_path / trial.name)
        trial.symlink_to(tmp_path / trial.name)
    assert main(["report", str(sweep)]) == 1
    assert (
        "expected a directory, found a link" in capsys.readouterr().err
        and not (sweep / "report.html").exists()
    )


def test_a_sweep_whose_best_run_is_on_another_machine_has_its_charts(trained, tmp_path):
    (tmp_path / "sweep").mkdir()
    shutil.copy(trained / "sweep/sweep.json", tmp_path / "sweep")
    words = " ".join(Page(write_report([tmp_path / "sweep"]).read_text()).words)
    assert "Parallel coordinates" in words and "Best model of" not in words


def test_a_sweep_whose_trials_all_failed_has_its_table(tmp_path):
    (tmp_path / "trials").mkdir()
    failed = MemberResult(0, {"learning_rate": 0.5}, 0, "failed", note="the batch is too large")
    write_sweep(jaxlm.Sweep(TINY, [failed]), tmp_path, {"name": "x", "sha256": "0"})
    words = Page(write_report([tmp_path]).read_text()).words
    assert "failed" in words and "Parallel coordinates" not in words


def test_results_that_were_changed_by_hand_are_one_sentence(trained, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    (sweep / "trials").mkdir(parents=True)
    text = (trained / "sweep/sweep.json").read_text()
    (sweep / "sweep.json").write_text(text.replace('"status": "done"', '"status": "good"'))
    assert main(["report", str(sweep)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "sweep.json cannot be read: it is not what was written" in said


def test_arguments_that_cannot_be_are_one_sentence(
    trained, tmp_path, capsys, small_maps, no_charts
):
    runs = [str(trained / "seed-0"), str(trained / "seed-1")]
    for arguments, message in (
        ([*runs], "-o FILE"),
        ([runs[0], "-o", str(tmp_path)], "is a directory"),
        ([runs[0], "-o", str(tmp_path / "gone/page.html")], "cannot write"),
        ([str(tmp_path / "none")], "there is no directory"),
        ([str(tmp_path)], "no run"),
        ([runs[0], "--checkpoint", "77"], "77"),
    ):
        assert main(["report", *arguments]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and message in said, said


def test_a_corpus_that_is_gone_leaves_a_note_and_the_rest(tmp_path, small_maps, no_charts):
    text = tmp_path / "text"
    text.write_text("a b c d e <script>alert(1)</script>\n" * 4000)
    jaxlm.train(TINY.replace(corpus=str(text)), run_dir=tmp_path / "run", quiet=True)
    text.unlink()
    found = Page(write_report([tmp_path / "run"]).read_text())
    words = " ".join(found.words)
    assert (
        "There is no text of the test split" in words
        and "Samples" in words
        and "Map of the words" in words
    )
    assert found.tags.count("script") == 2


def test_a_run_that_began_from_another_ones_parameters_shows_its_own_test_text(
    trained, tmp_path, small_maps, no_charts
):
    """Its vocabulary is the other run's, not that of its text."""
    text = tmp_path / "text"
    text.write_text("a b c d e f\n" * 4000)
    flags = [
        "--corpus",
        str(text),
        "--epochs",
        "1",
        "--batch-size",
        "50",
        "--run-dir",
        str(tmp_path / "tuned"),
    ]
    assert main(["train", "--init", str(trained / "seed-0"), *flags]) == 0
    words = " ".join(Page(write_report([tmp_path / "tuned"]).read_text()).words)
    assert "The beginning of the test split of text" in words and "There is no" not in words
    assert "bits a word over 400 words" in words  # and no end of the line that is cut


def test_the_beginning_of_a_text_of_pieces_ends_with_a_whole_word(tmp_path, monkeypatch):
    (text := tmp_path / "text").write_text("abcdefghi jklmnopqr\n" * 1200)
    options = dict(corpus=str(text), tokens="characters", epochs=1)
    jaxlm.train(TINY.replace(**options), run_dir=tmp_path / "run", steps=1, quiet=True)
    monkeypatch.setattr(report_file, "TEST_WORDS", 405)
    lm = jaxlm.load(tmp_path / "run")
    (scored,) = report_file._test_text(lm, lm.find_corpus()).values()
    assert {word for word, _ in scored} <= {"abcdefghi", "jklmnopqr", "<eos>"} and len(scored) > 40


def test_a_timing_that_is_damaged_is_passed_over(run):
    with open(run / "timing.jsonl", "a") as file:
        file.write('{"epoch":1,"sec\n[]\n{"epoch":2,"seconds":"nan","words_per_second":1}\n')
    assert [*report_file.run_record(run, "run").timing] == [1]


def test_runs_that_ended_elsewhere_are_no_seeds_of_one_config():
    """`--steps` is in no config."""
    of = {"kind": "test", "checkpoint": "last", "test_perplexity": 118.0}
    found = groups(
        [
            run_record("a", 0, tests=[of | {"step": 12}]),
            run_record("b", 1, tests=[of | {"step": 7}]),
        ]
    )
    assert [len(group.runs) for group in found] == [1, 1]
    assert {group.settings["finished"] for group in found} == {
        "after 12 windows",
        "after 7 windows",
    }
    whole = jaxlm.preset("small").replace(epochs=2)
    found = groups(
        [
            run_record(
                str(rows), config=whole.replace(batch_size=rows), tests=[of | {"step": rows}]
            )
            for rows in (5, 6)
        ]
    )
    assert len(found) == 2 and "finished" not in found[0].settings


def test_numbers_of_a_table_have_four_digits_and_no_powers_below_a_million():
    assert [rounded(value) for value in (84022.1, 116.4512, 1e-9)] == ["84,020", "116.5", "1e-09"]
    assert rounded(12345.6, 5) == "12,346"


@pytest.fixture(scope="module")
def trigrams(trained):
    """An n-gram model of the runs' text, in a directory."""
    ngram(load_corpus("embedded-tiny"), 3, trained / "trigrams")
    return trained / "trigrams"


def test_an_n_gram_model_has_a_row_and_no_curve(trained, trigrams, small_maps, tmp_path):
    lm = jaxlm.load(trigrams)
    assert isinstance(lm, NgramModel)
    valid, test = (lm.evaluate(split).perplexity for split in ("valid", "test"))
    title = f"3-gram model of {lm.ngram.grams:,} n-grams"
    alone = " ".join(" ".join(Page(write_report([trigrams]).read_text()).words).split())
    assert f"{title} {valid:.2f} {test:.2f} trigrams" in alone and "bits a word over" in alone
    for absent in ("Learning curves", "Training", "versions", "Checkpoints", "Map of", "There is"):
        assert absent not in alone
    paths = [trigrams, trained / "seed-0"]
    both = Page(write_report(paths, tmp_path / "both.html").read_text()).words
    assert f"trigrams {test:.2f}" in both and "Learning curves" in both
    both = " ".join(" ".join(both).split())
    assert f"{title} ngram {valid:.2f}" in both and f"{TINY.title} lstm 0" in both
    assert "Model of seed-0" in both and "Model of trigrams" not in both  # though it is worse


def test_an_n_gram_model_without_its_text_has_no_perplexity(trigrams, tmp_path):
    export_model(trigrams, "arpa", tmp_path / "lm.arpa")
    import_model(tmp_path / "lm.arpa", run_dir=tmp_path / "copy")
    words = " ".join(Page(write_report([tmp_path / "copy"]).read_text()).words)
    assert "3-gram model" in words and "There is no text of the test split" in words


def test_no_page_runs_an_n_gram_model(trigrams, tmp_path, capsys):
    assert main(["report", str(trigrams), "--live", "-o", str(tmp_path / "page.html")]) == 1
    assert "no network, which a page that runs it needs" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
