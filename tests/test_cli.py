"""cli.py as a user meets it: every mistake is one clear sentence and a non-zero exit, and nothing is overwritten."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.cli import main
from jaxlm.runs.lock import lock

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--corpus", "embedded-tiny", "--hidden-sizes", "8", "--embedding-size", "4", "--batch-size", "20",
        "--epochs", "1"]
WORDS = "a b c d e\n" * 4000


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


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


@pytest.mark.parametrize(("data", "message"), [
    (None, "there is no corpus or file"),
    (b"", "is empty"),
    (b" \n \n", "is empty"),
    (b"one two\n", "needs at least 3 lines"),
    (b"a b\nc d\ne f\n", "fewer than one window of batch_size 20"),
    (b"text\n" * 9 + b"\xff\xfe more\n", "byte 45 (0xff)"),
    (b"text\n\0\0\0", "byte 5 is zero"),
])
def test_text_that_cannot_be_used(capsys, tmp_path, data, message):
    path = tmp_path / "text.txt"
    if data is not None:
        path.write_bytes(data)
    refused(capsys, ["train", *TINY, "--corpus", str(path), "--run-dir", str(tmp_path / "run")], message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("arguments", "message", "code"), [
    (["--preset", "smal"], "invalid choice: 'smal'", 2),
    (["--learning-rte", "1"], "unrecognized arguments: --learning-rte", 2),
    (["--epochs", "many"], "argument --epochs: invalid int value: 'many'", 2),
    (["--hidden-sizes", "8;8"], "whole numbers with commas between", 2),
    (["--hidden-sizes", ","], "hidden_sizes needs at least one", 1),
    (["--hidden-sizes", "0"], "hidden_sizes must be at least 1", 1),
    (["--keep-output", "0"], "keep_output must be above 0 and at most 1", 1),
    (["--keep-output", "0.5", "--no-dropout"], "need dropout=True", 1),
    (["--learning-rate", "-1"], "learning_rate must be above 0; it is -1", 1),
    (["--learning-rate", "nan"], "learning_rate must be above 0; it is nan", 1),
    (["--decay", "inf"], "decay must be above 0 and at most 1", 1),
    (["--batch-size", "0"], "batch_size must be at least 1", 1),
    (["--batch-size", "4000"], "lower batch_size or bptt_length", 1),
    (["--bptt-length", "1000000"], "lower batch_size or bptt_length", 1),
    (["--vocab-size", "1"], "vocab_size must be at least 2", 1),
    (["--steps", "-1"], "--steps must be at least 0", 1),
    (["--config", "/no/such.json"], "/no/such.json cannot be read", 1),
    (["--corpus", "ptb", "--data-dir", "/no/such"], "/no/such is not a folder", 1),
])
def test_arguments_that_cannot_be_used(capsys, tmp_path, arguments, message, code):
    refused(capsys, ["train", *TINY, "--run-dir", str(tmp_path / "run"), *arguments], message, code)
    assert not (tmp_path / "run").exists()


def test_a_directory_with_something_in_it_is_left_alone(capsys, tmp_path, run):
    before = content(run)
    refused(capsys, ["train", *TINY, "--run-dir", str(run)], "is not empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    refused(capsys, ["train", *TINY, "--run-dir", str(tmp_path / "mine")], "is not empty (it holds thesis.txt)")
    refused(capsys, ["train", *TINY, "--run-dir", str(tmp_path / "mine" / "thesis.txt")], "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    assert {name: sha for name, sha in content(run).items() if name != ".lock"} == {
        name: sha for name, sha in before.items() if name != ".lock"}


def test_a_run_directory_in_use_is_refused_with_its_holder(capsys, tmp_path):
    with lock(tmp_path / "run"):
        refused(capsys, ["train", *TINY, "--run-dir", str(tmp_path / "run")], f"in use by process {os.getpid()} on")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--hidden-sizes", "9"], "model.hidden_sizes: (8,) -> (9,)"),
    (["--learning-rate", "0.3"], "hyper.learning_rate: 1.0 -> 0.3"),
    (["--seed", "5"], "train.seed: 0 -> 5"),
    (["--config", "x.json"], "--resume takes the run's own config"),
])
def test_a_run_is_not_resumed_as_another(capsys, run, arguments, message):
    before = content(run / "checkpoints")
    refused(capsys, ["train", "--run-dir", str(run), "--resume", *arguments], message)
    assert content(run / "checkpoints") == before


def test_a_run_is_not_resumed_on_another_corpus(capsys, run, tmp_path):
    (tmp_path / "other.txt").write_text(WORDS)
    refused(capsys, ["train", "--run-dir", str(run), "--resume", "--corpus", str(tmp_path / "other.txt")],
            "another config or corpus")


def test_there_must_be_something_to_resume(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["train", "--resume"], "there is no run of small in runs/")
    refused(capsys, ["train", "--resume", "--run-dir", str(tmp_path / "none")], "holds no run that can be resumed")
    assert not (tmp_path / "none").exists()


def damage(run: Path, how: str) -> None:
    newest = sorted((run / "checkpoints").glob("[0-9]*"))[-1]
    array = newest / "state.safetensors"
    if how == "flip":
        data = bytearray(array.read_bytes())
        data[len(data) // 2] ^= 4
        array.write_bytes(data)
    elif how == "truncate":
        os.truncate(array, array.stat().st_size // 2)
    elif how == "remove":
        array.unlink()
    elif how == "manifest":
        (newest / "manifest.json").write_text("{}")
    elif how == "vocab":
        (newest / "vocab.json").write_text('["a", "b"]')
    elif how == "all":
        shutil.rmtree(run / "checkpoints")


@pytest.mark.parametrize(("how", "message"), [
    ("flip", "state.safetensors"), ("truncate", "state.safetensors"), ("remove", "state.safetensors"),
    ("manifest", "manifest.json"), ("vocab", "vocab.json"), ("all", "holds no checkpoints"),
])
def test_a_damaged_checkpoint_is_refused_by_every_verb(capsys, run, how, message):
    damage(run, how)
    for verb in (["evaluate", str(run)], ["predict", str(run), "a"], ["neighbors", str(run), "a"],
                 ["perplexity", str(run), "a b"], ["plot", str(run)]):
        refused(capsys, verb, message)


@pytest.mark.parametrize(("arguments", "message", "code"), [
    (["--checkpoint", "7"], "has no checkpoint '7'; it has", 1),
    (["--checkpoint", "../x"], "has no checkpoint '../x'", 1),
    (["--text", "/no/such"], "there is no file /no/such", 1),
    (["--split", "dev"], "invalid choice: 'dev'", 2),
])
def test_evaluations_that_cannot_be(capsys, run, arguments, message, code):
    refused(capsys, ["evaluate", str(run), *arguments], message, code)


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
    assert "best" in said("info", str(run))
    for path in said("plot", str(run), "--method", "pca", "--words", "50").split():
        assert Path(path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", ["ptb_small.py", "zaremba.py"])
def test_the_scripts_run(script, tmp_path):
    """As a user starts them: a short run on the tiny corpus, in a process of its own."""
    size = ["small"] if script == "zaremba.py" else []
    done = subprocess.run([sys.executable, ROOT / "experiments" / script, *size, *TINY, "--steps", "3", "--run-dir",
                           tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "embedded-tiny" in done.stdout and "test, last checkpoint" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_script_that_sweeps_runs(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "experiments/ptb_sweep.py", *TINY, "--clip-norm", "1", "--run-dir",
                           tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 points, best first" in done.stdout and "jaxlm train --preset small" in done.stdout
    assert "Traceback" not in done.stderr


def test_without_penn_treebank_auto_goes_on_loudly_with_the_embedded_corpus(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXLM_DATA", raising=False)
    monkeypatch.setattr("jaxlm.data.download.MIRRORS", ())
    assert main(["train", *TINY, "--corpus", "auto", "--steps", "1", "--run-dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "!! EMBEDDED CORPUS, NOT PENN TREEBANK" in out and "floor of test" in out
    results = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if "perplexity" in line]
    assert results and all('"corpus":"embedded"' in line for line in results)
    assert '"name": "embedded"' in (tmp_path / "run" / "run.json").read_text()
