"""Models of other programs as runs:
made whole or not at all, used by every verb, and trained further.
"""

import hashlib
import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from interop_files import ROOT, Storages, golden, recorded, torch_answers, weights, zip_file
from language_models import small_lm

import jaxlm
from jaxlm.base.errors import CheckpointError, DataError, JaxlmError, RunDirError
from jaxlm.cli import main
from jaxlm.runs import checkpoint, directory
from jaxlm.runs.loading import init_config, keep_model, unread_corpus

FILES = recorded("torch_import", "files")
CHECKPOINTS = recorded("tf1_ckpt", "checkpoints")
WORDS = ("<eos>", "<unk>", "a", "b", "c", "d", "e")
TUNE = ["--epochs", "2", "--batch-size", "4", "--bptt-length", "5", "--learning-rate", "0.1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model of PyTorch, its words, a text with a word more,
    and the run that was imported.
    """
    folder = tmp_path_factory.mktemp("imported")
    arrays = weights(sizes=(3, 5))
    storages = Storages()
    value = {name: storages.tensor(array) for name, array in arrays.items()}
    (folder / "model.pt").write_bytes(zip_file(value, storages))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    random = np.random.default_rng(0)
    (folder / "text.txt").write_text(
        "".join(f"{' '.join(random.choice(list('edcbaz'), 5))}\n" for _ in range(200))
    )
    assert (
        main(
            [
                "import",
                str(folder / "model.pt"),
                "--vocab",
                str(folder / "vocab.txt"),
                str(folder / "run"),
            ]
        )
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def tuned(place) -> Path:
    """The imported run, trained two epochs further."""
    assert (
        main(
            [
                "train",
                "--init",
                str(place / "run"),
                "--corpus",
                str(place / "text.txt"),
                *TUNE,
                "--run-dir",
                str(place / "tuned"),
            ]
        )
        == 0
    )
    return place / "tuned"


def refused(capsys, arguments, *parts):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for part in parts:
        assert part in error, error


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_published_models_score_a_text_as_their_own_code(name):
    case = FILES[name]
    folder = golden("torch_import")
    lm = jaxlm.import_model(folder / name, folder / case["vocab"])
    expected = np.exp(-np.mean(case["logprob"]))
    text = " ".join(case["words"])
    np.testing.assert_allclose(lm.perplexity(text.replace("<eos>", "\n")), expected, rtol=1e-5)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_tensorflow_become_runs(tmp_path, name):
    pytest.importorskip("tensorflow")
    case = CHECKPOINTS[name]
    folder = golden("tf1_ckpt")
    jaxlm.import_model(folder / case["checkpoint"], folder / "vocab.txt", tmp_path / "run")
    expected = np.exp(-np.mean(case["logprob_tensorflow_float32"]))
    text = " ".join(case["words"]).replace("<eos>", "\n")
    np.testing.assert_allclose(jaxlm.load(tmp_path / "run").perplexity(text), expected, rtol=1e-5)


def test_the_run_holds_the_model_and_names_its_file(place, capsys):
    found = checkpoint.load(place / "run")
    assert found.manifest.step == 0 and found.vocab.words == WORDS
    assert found.manifest.corpus["name"] == "imported:model.pt"
    assert (
        found.manifest.corpus["sha256"]
        == hashlib.sha256((place / "model.pt").read_bytes()).hexdigest()
    )
    tokens = [0, 3, 6, 1, 1, 5, 2]
    expected = np.exp(-torch_answers(weights(sizes=(3, 5)), tokens).mean())
    lm = jaxlm.load(place / "run")
    np.testing.assert_allclose(lm.perplexity("\n b e <unk> <unk> d a"), expected, rtol=1e-5)
    assert directory.problems(place / "run") == []
    assert directory.saved_record(place / "run")["params"] == "given"
    assert main(["info", str(place / "run")]) == 0
    assert "two biases" in capsys.readouterr().out


def test_every_verb_uses_an_imported_run(place, capsys):
    run = str(place / "run")
    text = str(place / "text.txt")
    for arguments, part in (
        (["evaluate", run, "--text", text], "perplexity"),
        (["evaluate", run, "--corpus", text, "--split", "valid"], "text:text.txt valid"),
        (["perplexity", run, "a b c"], ""),
        (["predict", run, "a", "-k", "2"], "0."),
        (["neighbors", run, "a", "-k", "2"], "0."),
        (["plot", run, "--method", "pca"], "embedd"),
    ):
        assert main(arguments) == 0, arguments
        assert part in capsys.readouterr().out
    (place / "run/embedding.png").unlink()
    refused(capsys, ["evaluate", run], "unknown", "--corpus", "--text")
    refused(capsys, ["evaluate", run, "--text", text, "--corpus", text], "--text", "--corpus")
    refused(capsys, ["train", "--resume", "--run-dir", run], "--init")
    refused(capsys, ["reproduce", run], "parameters were given")


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        ("file", "cut short"),
        ("vocab", "6 words"),
        ("missing", "No such file"),
        ("there", "something of this name"),
    ],
)
def test_a_failed_import_makes_nothing(place, tmp_path, capsys, damage, part):
    file = tmp_path / "in/model.pt"
    vocab = tmp_path / "in/vocab.txt"
    file.parent.mkdir()
    data = (place / "model.pt").read_bytes()
    if damage != "missing":
        file.write_bytes(data[:-200] if damage == "file" else data)
    vocab.write_text("\n".join(WORDS[:-1] if damage == "vocab" else WORDS))
    if damage == "there":
        (tmp_path / "run").mkdir()
        (tmp_path / "run/mine").touch()
    refused(capsys, ["import", file, "--vocab", vocab, tmp_path / "run"], part)
    assert entries(tmp_path) == (["in", "run"] if damage == "there" else ["in"])
    assert damage != "there" or entries(tmp_path / "run") == ["mine"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_import_that_is_interrupted_leaves_nothing(place, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint, "save", fail)
    with pytest.raises((RunDirError, KeyboardInterrupt)):
        jaxlm.import_model(place / "model.pt", place / "vocab.txt", tmp_path / "run")
    assert entries(tmp_path) == []


def test_parameters_of_other_shapes_are_not_kept(place, tmp_path):
    lm = jaxlm.load(place / "run")
    corpus = unread_corpus("x", "0" * 64, lm.vocab)
    with pytest.raises(JaxlmError, match=r"layers\.0\.bias: \(8,\) -> \(12,\)"):
        keep_model(tmp_path / "run", lm.config.replace(hidden_sizes=(2, 5)), lm.params, corpus)
    assert entries(tmp_path) == []


def test_fine_tuning_begins_from_the_parameters_in_their_vocabulary(place, tuned):
    before = checkpoint.load(place / "run")
    end = checkpoint.load(tuned)
    assert end.vocab.words == WORDS and end.config.model == before.config.model
    assert (end.config.train.batch_size, end.config.optimizer.learning_rate) == (4, 0.1)
    text = place / "text.txt"
    assert jaxlm.evaluate(tuned).perplexity < jaxlm.evaluate(place / "run", corpus=text).perplexity
    assert any("begins from" in note for note in directory.saved_record(tuned)["corpus"]["notes"])


def test_fine_tuning_of_no_window_is_the_model_itself(place, tmp_path):
    assert (
        main(
            [
                "train",
                "--init",
                str(place / "run"),
                "--corpus",
                str(place / "text.txt"),
                *TUNE,
                "--steps",
                "0",
                "--run-dir",
                str(tmp_path / "same"),
            ]
        )
        == 0
    )
    ours, theirs = (checkpoint.load(run).state.params for run in (tmp_path / "same", place / "run"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("lost", [False, True])
def test_a_fine_tuned_run_stopped_and_resumed_is_the_same_run(place, tuned, tmp_path, lost):
    """Also without its record, which says that the parameters were given."""
    run = tmp_path / "stopped"
    assert (
        main(
            [
                "train",
                "--init",
                str(place / "run"),
                "--corpus",
                str(place / "text.txt"),
                *TUNE,
                "--steps",
                "30",
                "--run-dir",
                str(run),
            ]
        )
        == 0
    )
    if lost:
        (run / "run.json").unlink()
    assert main(["train", "--resume", "--run-dir", str(run)]) == 0
    ours, theirs = (checkpoint.load(one).manifest.files[checkpoint.STATE] for one in (run, tuned))
    assert ours == theirs


def test_a_fine_tuned_run_is_not_resumed_on_a_changed_text(place, tmp_path, capsys):
    text = tmp_path / "text.txt"
    run = tmp_path / "run"
    shutil.copy(place / "text.txt", text)
    assert (
        main(
            [
                "train",
                "--init",
                str(place / "run"),
                "--corpus",
                str(text),
                *TUNE,
                "--steps",
                "30",
                "--run-dir",
                str(run),
            ]
        )
        == 0
    )
    text.write_text(text.read_text().replace("b", "a"))
    refused(capsys, ["train", "--resume", "--run-dir", run], "corpus sha256")
    with pytest.raises(DataError, match="was trained on"):
        jaxlm.evaluate(run)


def test_a_tuned_model_is_tuned_again_on_its_own_text(tuned, tmp_path):
    assert (
        main(
            [
                "train",
                "--init",
                str(tuned),
                *TUNE,
                "--steps",
                "1",
                "--run-dir",
                str(tmp_path / "again"),
            ]
        )
        == 0
    )
    assert (
        checkpoint.load(tmp_path / "again").manifest.corpus
        == checkpoint.load(tuned).manifest.corpus
    )


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--hidden-sizes", "3,6"], "model.hidden_sizes: (3, 5) -> (3, 6)"),
        (["--embedding-size", "9"], "model.embedding_size: 4 -> 9"),
        (["--vocab-size", "9"], "model.vocab_size: 7 -> 9"),
        (["--forget-bias", "1"], "model.forget_bias: 0.0 -> 1.0"),
        (["--model", "gru"], "model.kind: 'lstm' -> 'gru'"),
        (["--tokens", "bytes"], "data.tokens: 'words' -> 'bytes'"),
        (["--resume"], "leave --init out"),
    ],
)
def test_fields_that_contradict_the_parameters(place, tmp_path, capsys, flags, part):
    refused(
        capsys,
        [
            "train",
            "--init",
            place / "run",
            "--corpus",
            place / "text.txt",
            "--run-dir",
            tmp_path / "run",
            *flags,
        ],
        part,
    )
    assert entries(tmp_path) == []


def test_dropout_may_be_added_and_a_config_s_own_model_must_fit(place):
    lm = jaxlm.load(place / "run")
    config = init_config(lm, jaxlm.preset("zaremba-medium"), {"keep_output": 0.5})
    assert (
        config.model == lm.config.replace(keep_output=0.5).model and config.train.bptt_length == 35
    )
    fits = jaxlm.Config().replace(hidden_sizes=(3, 5), embedding_size=4, keep_embedding=0.9)
    assert init_config(lm, fits, {}, own_model=True).model.keep_embedding == 0.9
    with pytest.raises(JaxlmError, match=r"hidden_sizes: \(3, 5\) -> \(256, 128\)"):
        init_config(lm, jaxlm.Config(), {}, own_model=True)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("hgrn2", {"heads": 1}),
        ("lstm", {"scale_embedding": True}),
        ("mogrifier", {"input_gate": "capped"}),
    ],
)
def test_parameters_are_not_read_as_another_function(kind, changes):
    lm = small_lm(kind)
    with pytest.raises(JaxlmError, match=f"{next(iter(changes))}: "):
        init_config(lm, lm.config, changes)


def test_there_must_be_a_run_to_begin_from(place, tmp_path, capsys):
    refused(
        capsys,
        ["train", "--init", tmp_path / "no", "--run-dir", tmp_path / "run"],
        "there is no directory",
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        jaxlm.load(tmp_path / "empty")
    refused(
        capsys,
        ["train", "--init", tmp_path / "empty", "--run-dir", tmp_path / "run"],
        "no checkpoints",
    )
    refused(
        capsys,
        ["train", "--init", place / "run", "--run-dir", tmp_path / "run"],
        "unknown",
        "--corpus",
    )
    assert entries(tmp_path) == ["empty"]


@pytest.mark.parametrize(("name", "words"), [("colorless", 9), ("neural_complexity", 11)])
def test_the_page_on_published_models_runs_on_files_of_their_layout(
    tmp_path, monkeypatch, capsys, name, words
):
    """Its commands but for the downloads,
    with a small model of the code that made the published one.
    """
    page = (ROOT / "docs/published-lstm.md").read_text()
    block = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)[name == "neural_complexity"]
    import_, surprisal = (shlex.split(line)[1:] for line in re.findall(r"jaxlm .*", block))
    monkeypatch.chdir(tmp_path)
    Path(import_[1]).parent.mkdir(exist_ok=True)
    shutil.copy(golden("torch_import") / f"{name}.pt", import_[1])
    shutil.copy(golden("torch_import") / f"{name}.vocab.txt", import_[3])
    case = FILES[f"{name}.pt"]
    Path("text.txt").write_text(
        " ".join(case["words"][1:-1] if words == 11 else ["zebra"] * words) + "\n"
    )
    assert main(import_) == 0
    capsys.readouterr()
    assert main([*surprisal, "text.txt"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()][1:]
    assert len(rows) == words
    if words == 11:  # recorded from `<eos>` on
        column = [float(row[4]) for row in rows]
        np.testing.assert_allclose(column, -np.array(case["logprob"][:-1]) / np.log(2), atol=1e-5)
