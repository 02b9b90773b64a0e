"""`jaxlm` as a user meets it: every mistake is one clear sentence and a non-zero exit,
and nothing is overwritten.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import TINY

import jaxlm
from jaxlm.base.fields import either
from jaxlm.cli import main
from jaxlm.cli.dated_runs import new_run, newest_unfinished
from jaxlm.cli.info import _lines, contents_of_run
from jaxlm.cli.tables import json_text
from jaxlm.config.config import KINDS, preset
from jaxlm.data import embedded
from jaxlm.data.known_texts import PENN_TREEBANK
from jaxlm.runs import checkpoint
from jaxlm.runs import directory as rundir
from jaxlm.runs.lock import lock

WORDS = "a b c d e\n" * 4000
ESCAPE = "\x1b]0;x\x07"  # sets a terminal's title


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, to be copied or read only."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", *TINY, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def refused(capsys, arguments, message, code=1):
    """The command fails with this sentence alone on stderr."""
    capsys.readouterr()
    try:
        assert main(arguments) == code
    except SystemExit as stop:
        assert stop.code == code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert message in err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "there is no corpus or file"),
        (b"", "is empty"),
        (b" \n \n", "is empty"),
        (b"one two\n", "at least 3 lines"),
        (b"a b\nc d\ne f\n", "fewer than one window of batch_size 20"),
        (b"text\n" * 9 + b"\xff\xfe more\n", "byte 45"),
        (b"text\n\0\0\0", "byte 5"),
    ],
)
def test_text_that_cannot_be_used(capsys, tmp_path, data, message):
    path = tmp_path / "text.txt"
    if data is not None:
        path.write_bytes(data)
    refused(
        capsys, ["train", *TINY, "--corpus", str(path), "--run-dir", str(tmp_path / "run")], message
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--preset", "smal"], "'small'", 1),
        (["--learning-rte", "1"], "--learning-rte", 2),
        (["--epochs", "many"], "'many'", 2),
        (["--epochs", "²"], "'²'", 2),
        (["--hidden-sizes", "8;8"], "'8;8'", 2),
        (["--hidden-sizes", "9" * 5000], "characters)", 2),
        (["--hidden-sizes", "9" * 19], "hidden_sizes must be at least 1 and at most", 1),
        (["--hidden-sizes", ","], "hidden_sizes needs at least one", 1),
        (["--hidden-sizes", "0"], "hidden_sizes must be at least 1", 1),
        (["--keep-output", "0"], "keep_output must be above 0 and at most 1", 1),
        (["--learning-rate", "-1"], "learning_rate must be above 0; it is -1", 1),
        (["--learning-rate", "nan"], "learning_rate must be above 0; it is nan", 1),
        (["--learning-rate", "9" * 400], "learning_rate must be above 0; it is inf", 1),
        (["--learning-rate", "none"], "learning_rate takes a number; it is None", 1),
        (["--decay", "inf"], "decay must be above 0 and at most 1", 1),
        (["--batch-size", "0"], "batch_size must be at least 1", 1),
        (["--batch-size", "4000"], "lower batch_size or bptt_length", 1),
        (["--bptt-length", "1000000"], "lower batch_size or bptt_length", 1),
        (
            ["--windows-per-call", "1000000000"],
            "windows_per_call must be at least 1 and at most 1,048,576",
            1,
        ),
        (["--vocab-size", "1"], "vocab_size must be at least 2", 1),
        (["--vocab-size", "2000000000"], "vocab_size must be at least 2 and at most 16,777,216", 1),
        (["--steps", "-1"], "at least 0, found '-1'", 2),
        (["--steps", "3000000000"], "at most 2,147,483,647", 2),
        (["--steps=--"], "--steps", 2),
        (["--devices", "0"], "at least 1, found '0'", 2),
        (["--config", "/no/such.json"], "/no/such.json cannot be read", 1),
        (["--config", "/dev/zero"], "/dev/zero cannot be read", 1),
        (["--config", "x.json", "--preset", "test"], "leave --preset or --config out", 1),
        (["--run-dir", ""], "an empty text", 2),
        (["--corpus", "ptb", "--data-dir", "/no/such"], "/no/such", 1),
        (["--model", "gpt"], f"model must be {either([*KINDS['model']])}; it is 'gpt'", 1),
        (
            ["--optimizer", "adam"],
            f"optimizer must be {either([*KINDS['optimizer']])}; it is 'adam'",
            1,
        ),
        (
            ["--schedule", "step"],
            "schedule must be piecewise, cosine, linear or plateau; it is 'step'",
            1,
        ),
        (["--model", "gru", "--forget-bias", "1"], "forget_bias is a field of the model lstm", 1),
        (["--beta1", "0.9"], "and the optimizer is sgd, whose fields are", 1),
        (["--optimizer", "muon", "--momentum", "none"], "momentum takes a number; it is None", 1),
        (["--tied"], "hidden_sizes is 8, embedding_size is 4", 1),
    ],
)
def test_arguments_that_cannot_be_used(capsys, tmp_path, arguments, message, code):
    refused(capsys, ["train", *TINY, "--run-dir", str(tmp_path / "run"), *arguments], message, code)
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_is_no_config_is_refused_by_its_name(capsys, tmp_path):
    for number, text in enumerate(
        (
            "",
            "[" * 100_000,
            '{"format": 2, "train": {"epochs": ' + "9" * 400 + "}}",
            "\x1b[2J",
            '{"format": 9}',
        )
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        refused(capsys, ["train", "--config", str(path)], str(path))
    os.mkfifo(tmp_path / "fifo")
    refused(capsys, ["train", "--config", str(tmp_path / "fifo")], "a FIFO")


def test_a_directory_with_something_in_it_is_left_alone(capsys, tmp_path, run):
    before = content(run)
    refused(capsys, ["train", *TINY, "--run-dir", str(run)], "is not empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    refused(
        capsys,
        ["train", *TINY, "--run-dir", str(tmp_path / "mine")],
        "is not empty (it holds thesis.txt)",
    )
    refused(
        capsys, ["train", *TINY, "--run-dir", str(tmp_path / "mine" / "thesis.txt")], "thesis.txt"
    )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    assert {name: sha for name, sha in content(run).items() if name != ".lock"} == {
        name: sha for name, sha in before.items() if name != ".lock"
    }


def test_a_run_directory_in_use_is_refused_with_its_holder(capsys, tmp_path):
    with lock(tmp_path / "run"):
        refused(
            capsys,
            ["train", *TINY, "--run-dir", str(tmp_path / "run")],
            f"in use by process {os.getpid()} on",
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden-sizes", "9"], "model.hidden_sizes: (8,) -> (9,)"),
        (["--learning-rate", "0.3"], "optimizer.learning_rate: 1.0 -> 0.3"),
        (["--model", "gru"], "model.kind: 'lstm' -> 'gru'"),
        (["--seed", "5"], "train.seed: 0 -> 5"),
        (["--config", "x.json"], "leave --config out"),
        (["--preset", "fast-72"], "holds a run of small, not of fast-72: leave --preset out"),
    ],
)
def test_a_run_is_not_resumed_as_another(capsys, run, arguments, message):
    before = content(run / "checkpoints")
    refused(capsys, ["train", "--run-dir", str(run), "--resume", *arguments], message)
    assert content(run / "checkpoints") == before


def test_a_run_is_not_resumed_on_another_corpus(capsys, run, tmp_path):
    (tmp_path / "other.txt").write_text(WORDS)
    refused(
        capsys,
        ["train", "--run-dir", str(run), "--resume", "--corpus", str(tmp_path / "other.txt")],
        "another config or corpus",
    )


def test_there_must_be_something_to_resume(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["train", "--resume"], "there is no dated run in runs/")
    refused(
        capsys,
        ["train", "--resume", "--run-dir", str(tmp_path / "none")],
        "holds no run (config.json",
    )
    refused(capsys, ["info", str(tmp_path)], "holds no run (config.json")
    assert not (tmp_path / "none").exists()


def test_resume_takes_the_newest_run_that_has_not_finished(tmp_path, monkeypatch, capsys):
    """Of the preset where one is named;
    a run under a name of its own, or finished, is never taken.
    """
    monkeypatch.chdir(tmp_path)
    finished = {"kind": "test", "corpus": "x", "test_perplexity": 2.0}
    for name, rows in (
        ("awd-lstm-20260101-000000", []),
        ("awd-lstm-20260101-000000-2", []),
        ("awd-lstm-20260101-000000-10", []),
        ("awd-lstm-20260101-000000-11", [finished]),
        ("awd-lstm-wide", []),
        ("awd-lstm-20250101-000000", []),
        ("awd-lstm-mos-20270101-000000", []),
        ("small-20280101-000000", [finished]),
    ):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").touch()
        (tmp_path / "runs" / name / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    assert newest_unfinished("awd-lstm").name == "awd-lstm-20260101-000000-10"
    assert newest_unfinished(None).name == "awd-lstm-mos-20270101-000000"
    assert "resuming runs/awd-lstm-mos-20270101-000000" in capsys.readouterr().out
    refused(
        capsys,
        ["train", "--resume", "--preset", "small"],
        "has finished, the newest is runs/small-20280101-000000",
    )
    refused(
        capsys,
        ["train", "--resume", "--preset", "tied-fast"],
        "there is no dated run of tied-fast in runs/",
    )


def test_runs_that_begin_in_one_second_have_directories_of_their_own(tmp_path, monkeypatch, capsys):
    """A run takes its own before it reads a text, which may take minutes; a mistake leaves none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    with new_run("small") as first, new_run("small") as second, new_run("small") as third:
        third.joinpath("config.json").touch()
        assert [path.name[-9:] for path in (first, second, third)] == [
            "01-000000",
            "-000000-2",
            "-000000-3",
        ]
    assert [*Path("runs").iterdir()] == [third]
    for arguments in (["train"], ["sweep", "--set", "seed=1"]):
        refused(
            capsys, [*arguments, "--corpus", "none.txt"], "there is no corpus or file 'none.txt'"
        )
    assert [*Path("runs").iterdir()] == [third]
    Path("none").symlink_to("missing")
    monkeypatch.setattr("jaxlm.cli.dated_runs.RUNS", Path("none"))
    refused(capsys, ["train"], "no run can begin in none: ")


def test_a_report_of_no_epoch_is_a_note(tmp_path, capsys):
    assert (
        main(["train", *TINY, "--steps", "1", "--report", "--run-dir", str(tmp_path / "my run")])
        == 0
    )
    assert "there is no report: no epoch has ended" in capsys.readouterr().out


def test_fewer_epochs_than_are_trained_are_refused(capsys, run):
    refused(
        capsys,
        ["train", "--run-dir", str(run), "--resume", "--epochs", "0"],
        "train.epochs: 1 are begun -> 0",
    )


def test_the_version(capsys):
    assert main(["--version"]) == 0 and re.fullmatch(r"jaxlm [0-9.a-z]+\n", capsys.readouterr().out)


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("[0-9]*"))[-1]


def damage(run: Path, how: str) -> None:
    array = newest(run) / "state.safetensors"
    if how == "flip":
        data = bytearray(array.read_bytes())
        data[len(data) // 2] ^= 4
        array.write_bytes(data)
    elif how == "truncate":
        os.truncate(array, array.stat().st_size // 2)
    elif how == "remove":
        array.unlink()
    elif how == "manifest":
        (newest(run) / "manifest.json").write_text("{}")
    elif how == "vocab":
        (newest(run) / "vocab.json").write_text('["a", "b"]')
    elif how == "all":
        shutil.rmtree(run / "checkpoints")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flip", "state.safetensors"),
        ("truncate", "state.safetensors"),
        ("remove", "state.safetensors"),
        ("manifest", "manifest.json"),
        ("vocab", "vocab.json"),
        ("all", "holds no checkpoints"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_every_verb(capsys, run, how, message):
    damage(run, how)
    for verb in (
        ["evaluate", str(run)],
        ["predict", str(run), "a"],
        ["neighbors", str(run), "a"],
        ["perplexity", str(run), "a b"],
        ["plot", str(run)],
    ):
        refused(capsys, verb, message)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--checkpoint", "7"], "has no checkpoint '7'; it has", 1),
        (["--checkpoint", "../x"], "has no checkpoint '../x'", 1),
        (["--text", "/no/such"], "/no/such", 1),
        (["--text", "/no/such", "--split", "test"], "leave it or --split out", 1),
        (["--tokenizer", "none"], "give --text, or leave it out", 1),
        (["--split", "dev"], "'dev'", 2),
    ],
)
def test_evaluations_that_cannot_be(capsys, run, arguments, message, code):
    refused(capsys, ["evaluate", str(run), *arguments], message, code)


def test_a_path_without_a_run_is_refused_with_what_to_do(capsys, tmp_path):
    (tmp_path / "trials").mkdir()
    for verb in ("evaluate", "info", "reproduce", "plot"):
        refused(capsys, [verb, str(tmp_path / "none")], "jaxlm train --run-dir")
        refused(capsys, [verb, str(tmp_path)], "trials")  # of a sweep


def test_the_verbs(capsys, run):
    def said(*arguments):
        capsys.readouterr()
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    word = said("predict", str(run), "the", "-k", "1").split()[1]
    assert len(said("predict", str(run), "the").splitlines()) == 10
    assert len(said("neighbors", str(run), word, "-k", "3").splitlines()) == 3
    assert "embedded-tiny test: perplexity" in said("evaluate", str(run))
    assert float(said("perplexity", str(run), f"{word} {word} {word}")) > 1
    for path in said("plot", str(run), "--method", "pca", "--words", "50").split():
        assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_finished_epoch_has_a_map_and_no_curve(capsys, tmp_path):
    assert main(["train", *TINY, "--steps", "1", "--run-dir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["plot", str(tmp_path / "run"), "--method", "pca", "--words", "50"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "there is no learning curve: no epoch has ended",
        str(tmp_path / "run" / "embedding.png"),
    ]


@pytest.mark.parametrize(
    "extent", [["--epochs", "0"], ["--steps", "0"], ["--steps", "0", "--init-scale", "50"]]
)
def test_a_run_of_no_window_can_be_evaluated(capsys, tmp_path, extent):
    assert main(["train", *TINY, *extent, "--run-dir", str(tmp_path / "run")]) == 0
    printed = next(
        line for line in capsys.readouterr().out.splitlines() if "test, last checkpoint" in line
    )
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert f"perplexity {printed.split()[-1]} " in capsys.readouterr().out


def test_keep_output_alone_turns_dropout_on(tmp_path):
    assert (
        main(
            [
                "train",
                *TINY,
                "--steps",
                "0",
                "--keep-output",
                "0.5",
                "--run-dir",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    model = rundir.saved_config(tmp_path / "run").model
    assert (model.keep_output, model.keep_embedding) == (0.5, None)


def test_info_shows_fields_with_units_and_the_same_as_json(capsys, finished):
    assert main(["info", str(finished), "--all"]) == 0
    text = capsys.readouterr().out
    config = rundir.saved_config(finished)
    rows = [line.split() for line in text.splitlines()]
    for _, name, spec, _ in config.every_field():
        row = next(row for row in rows if row and row[0] == name)
        assert spec.unit.split() == row[len(row) - len(spec.unit.split()) :]
    assert all(f"{slot} {kind}" in text for slot, kind in config.kinds.items())
    assert "last best" in text and "problems: none" in text
    first = [
        text.index(part)
        for part in ("parameters\n", "windows trained, ", "perplexity of each test", "\nfields\n")
    ]
    assert (
        first == sorted(first)
        and text.index("\nfields at their defaults") > text.index("\n  hidden_sizes") > first[-1]
    )
    sizes = (leaf.size for leaf in jax.tree.leaves(jaxlm.load(finished).params))
    assert f"  {sum(sizes):,} parameters" in text
    assert main(["info", str(finished), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert {row["field"]: row["value"] for row in tree["config"]}["hidden_sizes"] == [8]
    assert (
        tree["kinds"] == config.kinds
        and tree["corpus"]["name"] == "embedded-tiny"
        and tree["problems"] == []
    )
    assert [row["kind"] for row in tree["results"]] == ["epoch", "test"]
    assert [found["labels"] for found in tree["checkpoints"]] == [["last", "best"]]


@pytest.mark.parametrize("width", [40, 72])
def test_info_is_no_wider_than_the_terminal_and_leaves_nothing_out(
    capsys, finished, monkeypatch, width
):
    main(["info", str(finished)])
    _, *lines = capsys.readouterr().out.splitlines()
    assert any("(--all)" in line for line in lines) and "keep_embedding" not in "".join(lines)
    letters = Counter("".join("".join(lines).split()))
    monkeypatch.setattr("jaxlm.cli.info.is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", str(width))
    main(["info", str(finished)])
    narrow = capsys.readouterr().out.splitlines()
    assert max(map(len, narrow)) <= width
    assert not letters - Counter("".join(narrow))


def test_info_of_characters_is_in_bits_and_names_what_a_preset_is_changed_in(finished):
    contents = contents_of_run(finished)
    text = "\n".join(_lines({**contents, "tokens": "characters"}, 200, defaults=False))
    assert "bits per character of each test" in text and "perplexity of each" not in text
    tested = contents["results"][-1]["test_perplexity"]
    assert f"{math.log2(tested):.6g}" in text
    assert contents["title"].startswith("small, changed: ") and contents["title"] in text


def test_info_names_what_is_damaged(capsys, run):
    os.symlink("/", run / f"x{ESCAPE}")
    (newest(run) / "manifest.json").write_text("{}")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "win\n')
    (run / "run.json").write_text("{")
    for how in ([], ["--json"]):
        assert main(["info", str(run), *how]) == 1
        out = capsys.readouterr().out
        assert all(name in out for name in ("metrics.jsonl", "run.json", "manifest.json", "a link"))
        assert "\x1b" not in out


def test_info_shows_a_row_that_only_looks_like_a_perplexity(capsys, run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind":"epoch","epoch":9,"perplexity_note":"low"}\n')
    main(["info", str(run)])
    assert "low" in capsys.readouterr().out


def test_what_comes_from_files_cannot_command_a_terminal(capsys, run, monkeypatch):
    """Words, metrics, corpus names, manifests and messages that quote them."""
    words = ("<unk>", "<eos>", *(f"{ESCAPE}\x9b2J\x7f{place}" for place in range(498)))
    found = checkpoint.load(run)
    lm = jaxlm.LanguageModel(
        found.state.evaluated, found.config, type(found.vocab)(words), found.manifest.corpus
    )
    monkeypatch.setattr("jaxlm.runs.loading.load", lambda *_: lm)
    row = {"kind": "test", "corpus": ESCAPE, f"x{ESCAPE}": f"{ESCAPE}\x7f"}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    record = json.loads((run / "run.json").read_text())
    record["corpus"] |= {"name": ESCAPE, "notes": [ESCAPE]}
    (run / "run.json").write_text(json.dumps(record))
    for arguments in (
        ["predict", str(run), "x"],
        ["neighbors", str(run), words[3]],
        ["neighbors", str(run), ESCAPE],
        ["info", str(run)],
        ["info", str(run), "--json"],
        ["evaluate", f"{run}{ESCAPE}"],
    ):
        main(arguments)
        out, err = capsys.readouterr()
        assert r"\x1b" in out + err or r"\u001b" in out
        assert not set(out + err) & {"\x1b", "\x07", "\x7f", "\x9b"}
        if "--json" in arguments:
            assert json.loads(out)["corpus"]["name"] == ESCAPE


def test_json_has_no_control_character_and_no_number_that_json_lacks():
    text = json_text({"\x7f": ["\x1b\x7f\n", float("inf")]})
    assert (
        text.isascii() and text.isprintable() and json.loads(text) == {"\x7f": ["\x1b\x7f\n", None]}
    )


def test_standard_input_is_read_as_utf_8(capsys, finished, monkeypatch):
    word = jaxlm.load(finished).vocab.words[5]
    for data, code, message in (
        (f"{word} {word}".encode(), 0, ""),
        (b"a \xff", 1, "line 1 is not UTF-8: byte 2 (0xff)"),
        (b"", 1, "standard input is empty"),
        (word.encode(), 1, "at least 2"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["perplexity", str(finished)]) == code
        assert message in capsys.readouterr().err


def test_standard_input_without_an_end_is_refused(capsys, finished, monkeypatch):
    monkeypatch.setattr("jaxlm.cli.using.MOST_TEXT", 8)
    for data, message in (
        (b"a b\na b\na b\n", "standard input has more than 8 characters"),
        (b"a b c d e", "line 1 is longer than 8 bytes"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        refused(capsys, ["perplexity", str(finished)], message)


@pytest.mark.parametrize(
    "data", ["{a} {b}\r\n{b} {a}\r\n", "{a} {b}\r{b} {a}\r", "\ufeff{a} {b}\n{b} {a}\n"]
)
def test_text_given_here_is_read_as_files_are(capsys, finished, tmp_path, monkeypatch, data):
    a, b = jaxlm.load(finished).vocab.words[5:7]
    plain = []
    found = []
    for text, told in ((f"{a} {b}\n{b} {a}\n", plain), (data.format(a=a, b=b), found)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert main(["perplexity", str(finished)]) == 0
        (tmp_path / "text").write_bytes(text.encode())
        assert (
            main(
                ["generate", str(finished), "--prompt-file", str(tmp_path / "text"), "--words", "9"]
            )
            == 0
        )
        assert main(["surprisal", str(finished), str(tmp_path / "text")]) == 0
        told += capsys.readouterr()
    assert plain == found
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a \0 b")))
    refused(
        capsys, ["perplexity", str(finished)], "standard input, line 1 is not text: byte 2 is zero"
    )


def test_flags_change_a_config_as_replace_does(tmp_path):
    flags = [
        "--model",
        "gru",
        "--optimizer",
        "adamw",
        "--schedule",
        "linear",
        "--tied",
        "--embedding-size",
        "8",
        "--clip-norm",
        "none",
        "--keep-embedding",
        "0.5",
        "--beta2",
        "0.99",
        "--lowercase",
    ]
    assert main(["train", *TINY, *flags, "--steps", "0", "--run-dir", str(tmp_path / "run")]) == 0
    expected = preset("small").replace(
        model="gru",
        optimizer="adamw",
        schedule="linear",
        tied=True,
        embedding_size=8,
        hidden_sizes=(8,),
        epochs=1,
        clip_norm=None,
        keep_embedding=0.5,
        beta2=0.99,
        lowercase=True,
        batch_size=20,
        corpus="embedded-tiny",
    )
    saved = rundir.saved_config(tmp_path / "run")
    assert saved.replace(vocab_size=10_000, lowercase=True) == expected
    assert np.isfinite(checkpoint.load(tmp_path / "run").state.params["embedding"]).all()


def test_without_penn_treebank_auto_uses_the_embedded_corpus_and_says_so(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXLM_DATA", raising=False)
    monkeypatch.setattr(PENN_TREEBANK, "mirrors", ())
    monkeypatch.setitem(
        embedded.language()["sizes"], "embedded", embedded.language()["sizes"]["embedded-tiny"]
    )
    assert (
        main(
            ["train", *TINY, "--corpus", "auto", "--steps", "1", "--run-dir", str(tmp_path / "run")]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "!! EMBEDDED CORPUS, NOT PENN TREEBANK" in out and "floor of test" in out
    results = [
        line
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if "perplexity" in line
    ]
    assert results and all('"corpus":"embedded"' in line for line in results)
    assert '"name": "embedded"' in (tmp_path / "run" / "run.json").read_text()


@pytest.mark.parametrize(("own", "level"), [(None, "3"), ("0", "0")])
def test_alarms_of_xla_about_slow_compilation_stay_out_of_the_terminal(monkeypatch, own, level):
    """They are logged as errors (2), so fatal ones (3) alone are shown; unless a user asks."""
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if own is not None:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", own)
    assert main(["--version"]) == 0 and main(["info", "no-such-run"]) == 1
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == level


@pytest.mark.slow
def test_an_alarm_of_xla_reaches_a_script_and_no_command():
    """It takes seconds to fold this constant, and XLA says so after one."""
    compile_slowly = """
import jax, jax.numpy as jnp
def fold():
    return jax.lax.reduce_window(jnp.arange(3000.0), 0.0, jax.lax.max, (1500,), (1,), "SAME")
jax.jit(fold).lower().compile()
"""
    command = "from jaxlm.cli import main; main(['info', 'no-such-run'])"
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=Path(jaxlm.__path__[0]).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for code in (compile_slowly, command + compile_slowly)
    ]
    assert "slow_operation_alarm" in said[0]
    assert said[1].startswith("error: there is no directory") and said[1].count("\n") == 1
