"""A run's directory: what a stranger,
a killed process or an odd name put there leads nowhere else and never hangs.
"""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import ROOT

import jaxlm
from jaxlm.base.errors import DataError, JaxlmError, RunDirError
from jaxlm.base.files import Folder
from jaxlm.cli import main
from jaxlm.data.corpora import load_corpus
from jaxlm.runs import checkpoint, ram, state_arrays
from jaxlm.runs import directory as rundir
from jaxlm.runs.lock import lock
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.status import Status, status

GOLDEN = (
    ROOT / "tests/golden/run"
)  # the arrays, metrics and text of a run at window 23, recorded by version 0.1
CONFIG = jaxlm.preset("test").replace(
    vocab_size=31,
    embedding_size=2,
    hidden_sizes=(3, 2),
    keep_embedding=0.9,
    keep_output=0.8,
    forget_bias=0.5,
    batch_size=4,
    bptt_length=5,
    epochs=2,
    seed=3,
)
LAST = "checkpoints/00000023"
TEST_NATS = 240.00640869140625
VALID_NATS = 233.48544311523438  # of the version that wrote it
END = 18.847837102272983  # test perplexity of that version at the end of the second epoch
SECONDS = 20


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(GOLDEN / "text")


@pytest.fixture(scope="module")
def recorded(corpus, tmp_path_factory) -> Path:
    """The recorded run's directory: an epoch and a window of the next are trained."""
    template = state_arrays.shapes_of_state(CONFIG)
    metrics = (GOLDEN / "metrics.jsonl").read_bytes()
    with np.load(GOLDEN / "state.npz") as arrays:
        leaves = [arrays[name] for name in arrays]
    leaves[-1] = jax.random.wrap_key_data(jax.numpy.asarray(leaves[-1]))
    state = jax.tree.unflatten(jax.tree.structure(template), leaves)
    path = tmp_path_factory.mktemp("recorded") / "run"
    with lock(path) as held:
        rundir.begin(held.folder, CONFIG, corpus)
        held.folder.write("metrics.jsonl", metrics)
        seal = {
            "metrics_bytes": len(metrics),
            "metrics_sha256": hashlib.sha256(metrics).hexdigest(),
        }
        manifest = checkpoint.Manifest(23, 1, None, corpus.identity, **seal)
        checkpoint.save(held.folder, state, CONFIG, corpus.vocab, manifest)
    return path


@pytest.fixture
def run_dir(recorded, tmp_path) -> Path:
    """A copy of the recorded run."""
    return shutil.copytree(recorded, tmp_path / "run")


@pytest.fixture
def home(tmp_path) -> Path:
    """What is somebody's own: nothing of it may change."""
    home = tmp_path / "home"
    for name in (
        ".git/config",
        ".ssh/key",
        "20240101/photo",
        "00000001/notes",
        ".partial-00000001-mine/notes",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("mine")
    (home / ".bashrc").write_text("mine")
    return home


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def resume(run_dir: Path, corpus) -> jaxlm.TrainResult:
    return jaxlm.train(CONFIG, corpus, run_dir, resume=True, quiet=True)


@pytest.mark.slow  # to the bit, so of programs compiled as users compile them
def test_a_recorded_run_evaluates_to_the_same_digits(recorded, corpus):
    model = jaxlm.load(recorded)
    assert [model.evaluate(split, corpus=corpus).nats for split in ("test", "valid")] == [
        TEST_NATS,
        VALID_NATS,
    ]


def test_a_recorded_run_is_resumed_to_the_same_end(run_dir, corpus):
    result = resume(run_dir, corpus)
    assert result.test_perplexity == pytest.approx(END, rel=1e-6)
    lines = read_metrics(run_dir)
    assert [row["step"] for row in lines if row["kind"] == "window"] == list(range(1, 45))
    assert lines[-1]["test_perplexity"] == result.test_perplexity
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "00000023",
        "00000044",
    ]
    assert not rundir.problems(run_dir)


def test_a_link_in_place_of_the_checkpoints_deletes_nothing_behind_it(run_dir, home, corpus):
    shutil.copytree(run_dir / LAST, home / "00000023")
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").symlink_to(home)
    before = contents(home)
    with pytest.raises(RunDirError, match=r"run/checkpoints \(a link\)"):
        resume(run_dir, corpus)
    with Folder.open(run_dir) as run, pytest.raises(RunDirError, match="found a link"):
        rundir.resume(run, CONFIG, corpus)
    assert contents(home) == before


@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        "metrics.jsonl",
        "timing.jsonl",
        "run.json",
        "config.json",
        "curve.png",
        ".partial-metrics.jsonl",
        "checkpoints/.partial-00000044-0123456789abcdef",
        f"{LAST}/vocab.json",
        "checkpoints/00000022",
        "anything",
    ],
)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_anywhere_in_a_run_is_refused_by_name_and_not_written_through(
    run_dir, home, corpus, name, dangling
):
    target = home / ("nowhere" if dangling else ".bashrc")
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).symlink_to(target)
    before = contents(home)
    with pytest.raises(RunDirError) as caught:
        resume(run_dir, corpus)
    assert str(run_dir / name) in str(caught.value) or name == "config.json"
    assert contents(home) == before and (run_dir / name).is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        "metrics.jsonl",
        "timing.jsonl",
        "run.json",
        "config.json",
        f"{LAST}/manifest.json",
        "anything",
    ],
)
def test_a_pipe_anywhere_in_a_run_is_refused_by_name_and_not_waited_for(run_dir, corpus, name):
    (run_dir / name).unlink(missing_ok=True)
    os.mkfifo(run_dir / name)
    start = time.monotonic()
    with pytest.raises(RunDirError) as caught:
        resume(run_dir, corpus)
    assert str(run_dir / name) in str(caught.value) and "a FIFO" in str(caught.value)
    assert rundir.problems(run_dir)
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.jsonl", f"{LAST}/vocab.json"])
@pytest.mark.parametrize("what", ["a FIFO", "a terabyte"])
def test_what_reads_a_run_neither_waits_nor_fills_the_memory(run_dir, name, what):
    (run_dir / name).unlink()
    if what == "a FIFO":
        os.mkfifo(run_dir / name)
    else:
        with open(run_dir / name, "wb") as file:
            file.truncate(1 << 40)
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = {
        "run.json": lambda: rundir.saved_record(run_dir),
        "metrics.jsonl": lambda: read_metrics(run_dir),
        f"{LAST}/vocab.json": lambda: jaxlm.load(run_dir),
    }
    if name == "config.json":
        assert rundir.saved_config(run_dir).preset == "test"  # the checkpoint's
    else:
        with pytest.raises(JaxlmError, match=r"FIFO|at most"):
            read[name]()
    assert any(Path(name).name in line for line in rundir.problems(run_dir)) or name.startswith(
        LAST
    )
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("name", [".lock", "timing.jsonl"])
def test_a_hard_link_to_a_file_of_somebody_is_not_written_through(run_dir, home, corpus, name):
    (run_dir / name).unlink(missing_ok=True)
    os.link(home / ".bashrc", run_dir / name)
    with pytest.raises(RunDirError, match=r"2 names") if name == ".lock" else nullcontext():
        resume(run_dir, corpus)
    assert (home / ".bashrc").read_text() == "mine"


@pytest.mark.parametrize("kind", ["a link", "a directory"])
def test_the_run_directory_itself_may_be_a_link(run_dir, tmp_path, kind):
    path = run_dir
    if kind == "a link":
        path = tmp_path / "link"
        path.symlink_to(run_dir)
    with lock(path) as held:
        held.check()
        assert held.folder.names() == sorted(os.listdir(run_dir))
        run_dir.rename(tmp_path / "moved")
        with pytest.raises(RunDirError, match="removed or replaced"):
            held.check()


def test_a_holder_is_shown_without_its_control_characters(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxlm.runs.lock.SILENCE", 0.1)
    (tmp_path / ".lock").write_bytes(b"\x1b[2Jprocess 1 on \xff\x07elsewhere")
    with lock(tmp_path):
        pass
    said = capsys.readouterr().err
    assert "process 1 on" in said and "\x1b" not in said and "\x07" not in said


NAMES = [
    "x\\b",
    "gs:",
    "s3:",
    os.fsdecode(b"\xff\xfe"),
    "file:",
    "a b",
    "-x",
    "ü",
    "~",
    "%41",
    "*",
    "x?y#z",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_run_directory_of_any_name_is_read_as_it_was_written(run_dir, corpus, name):
    shutil.copytree(run_dir, run_dir.with_name("x") / "b")  # what another reader takes `x\b` for
    path = run_dir.rename(run_dir.with_name(name))
    assert jaxlm.load(path).evaluate("test", corpus=corpus).nats == TEST_NATS
    with lock(path) as held:
        found, _ = rundir.resume(held.folder, CONFIG, corpus)
        assert found
        checkpoint.save(held.folder, found.state, found.config, found.vocab, found.manifest)
    assert (path / LAST / "state.safetensors").is_file()
    assert jaxlm.load(path).evaluate("test", corpus=corpus).nats == TEST_NATS
    assert not rundir.problems(path)


@pytest.mark.parametrize("name", ["gs:", "x\\b", os.fsdecode(b"\xff\xfe")], ids=ascii)
def test_a_run_begins_in_a_directory_of_any_name(tmp_path, corpus, name):
    jaxlm.train(CONFIG, corpus, tmp_path / name, steps=1, quiet=True)
    assert checkpoint.find(tmp_path / name).name == "00000001"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_no_directory_can_have_is_refused(tmp_path, corpus, name):
    for resumed in (False, True):
        with pytest.raises(JaxlmError):
            jaxlm.train(CONFIG, corpus, tmp_path / name, steps=1, quiet=True, resume=resumed)
    with pytest.raises(JaxlmError):
        jaxlm.load(tmp_path / name)


def test_what_a_killed_process_left_is_removed_on_resume(run_dir, corpus):
    (run_dir / "checkpoints/.partial-00000044-0123456789abcdef").mkdir()
    (run_dir / "checkpoints/.partial-00000044-0123456789abcdef/state.safetensors").write_text(
        "half"
    )
    (run_dir / ".partial-run.json-0123456789abcdef").write_text("half")
    with lock(run_dir) as held:
        rundir.resume(held.folder, CONFIG, corpus)
    assert not [*run_dir.rglob(".partial*"), *run_dir.rglob(".0*")]


def test_problems_name_what_is_damaged(run_dir):
    assert rundir.problems(run_dir) == []
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    for damaged in (metrics[:1000], metrics[:100], metrics.replace(b"1", b"2", 1)):
        (run_dir / "metrics.jsonl").write_bytes(damaged)
        (problem,) = rundir.problems(run_dir)
        assert (
            "metrics.jsonl is damaged: "
            "its first 2,384 bytes are not those that the checkpoint sealed" in problem
        )
    (run_dir / "metrics.jsonl").write_bytes(metrics + b'{"kind":"window",')
    (problem,) = rundir.problems(run_dir)
    assert "metrics.jsonl ends within a line" in problem
    (run_dir / ".lock").write_text("process 1 on here\n")  # a live run's, or a killed one's
    assert rundir.problems(run_dir) == []
    (run_dir / ".lock").write_text("")
    (run_dir / "metrics.jsonl").write_bytes(metrics)
    manifest = (run_dir / LAST / "manifest.json").read_bytes()
    (run_dir / LAST / "manifest.json").write_bytes(manifest.replace(b"23", b"24", 1))
    (problem,) = rundir.problems(run_dir)
    assert f"{LAST}/manifest.json is damaged" in problem
    (run_dir / LAST / "manifest.json").write_bytes(manifest)
    for name in ("run.json", "config.json", "metrics.jsonl"):
        (run_dir / name).rename(run_dir / "aside")
        (problem,) = rundir.problems(run_dir)
        assert f"{name}" in problem and "No such file" in problem
        (run_dir / "aside").rename(run_dir / name)


def test_a_changed_config_is_found_before_there_is_a_checkpoint_and_after(tmp_path, corpus):
    config = CONFIG
    path = tmp_path / "run/config.json"
    with lock(tmp_path / "run") as held:
        rundir.begin(held.folder, config, corpus)
    text = path.read_text()
    path.write_text(text.replace('"epochs": 2', '"epochs": 6'))
    assert path.read_text() != text and "config.json" in rundir.problems(path.parent)[0]
    with pytest.raises(
        RunDirError, match=r"config\.json cannot be read: it is not what was written"
    ):
        rundir.saved_config(path.parent)
    with pytest.raises(
        RunDirError, match=r"config\.json cannot be read: it is not what was written"
    ):
        resume(path.parent, corpus)
    path.write_text(text)
    changed = config.replace(keep_last=3)  # which may change, killed between the two files
    with lock(path.parent) as held, pytest.MonkeyPatch.context() as monkeypatch:
        write = Folder.write
        monkeypatch.setattr(
            Folder,
            "write",
            lambda self, name, data: name != "config.json" and write(self, name, data),
        )
        rundir.resume(held.folder, changed, corpus)
    assert rundir.saved_config(path.parent) == config
    with lock(path.parent) as held:
        rundir.resume(held.folder, changed, corpus)
    assert rundir.saved_config(path.parent) == changed
    jaxlm.train(changed, corpus, path.parent, resume=True, quiet=True, steps=1)
    path.write_text(path.read_text().replace('"epochs": 2', '"epochs": 6'))
    assert rundir.saved_config(path.parent).train == changed.train  # the checkpoint's


def test_the_record_of_a_run_resumed_often_keeps_the_sessions_that_it_has_room_for(run_dir, corpus):
    record = rundir.saved_record(run_dir)
    first = record["sessions"][0]
    record["sessions"] += [
        {**first, "command": name} for name in ("a", "b", "c" * (rundir.MOST_BYTES // 2))
    ]
    record["sessions"][1]["command"] *= (
        rundir.MOST_BYTES - len(json.dumps(record)) + 1
    )  # a file as large as can be read
    (run_dir / "run.json").write_text(json.dumps(record))
    with lock(run_dir) as held:
        rundir.resume(held.folder, CONFIG, corpus, rundir.Setup(devices=(2, 1)))
    kept = rundir.saved_record(run_dir)["sessions"]
    assert kept[0] == first and [one["command"][0] for one in kept[1:-1]] == ["b", "c"]
    assert kept[-1]["devices"] == [2, 1]


def test_a_new_run_keeps_its_words_in_its_checkpoints_only(tmp_path, corpus):
    with lock(tmp_path / "run") as held:
        rundir.begin(held.folder, CONFIG, corpus)
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "config.json", "run.json"]


def test_small_batches_need_the_memory_of_one(monkeypatch):
    config = jaxlm.preset("test").replace(vocab_size=10, batch_size=10_000, bptt_length=100)
    monkeypatch.setattr(ram, "of_device", lambda: 10**7)
    with pytest.raises(JaxlmError, match="at least"):  # 4 * 100 * 10,000 * 14 bytes are 56 MB
        state_arrays.check_memory(config)
    state_arrays.check_memory(config.replace(small_batch=10))


def test_a_vocabulary_that_no_checkpoint_can_hold_is_refused_before_the_run(
    tmp_path, corpus, monkeypatch
):
    monkeypatch.setattr("jaxlm.data.vocab.MAX_VOCAB_BYTES", 30)
    with pytest.raises(DataError, match="bytes in a file, and one of at most 30 is read: take a"):
        jaxlm.train(CONFIG, corpus, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize("how", [{"steps": 0}, {"epochs": 0}])
def test_a_run_of_no_window_is_saved_and_evaluates_to_what_it_printed(tmp_path, corpus, how):
    config = CONFIG.replace(epochs=how.pop("epochs", 2))
    result = jaxlm.train(config, corpus, tmp_path / "run", quiet=True, **how)
    found = jaxlm.evaluate(tmp_path / "run", "test", corpus=corpus)
    assert (
        found.perplexity == result.test_perplexity
        and checkpoint.find(tmp_path / "run").name == "00000000"
    )


def test_a_kept_run_needs_no_temporary_folder(tmp_path, corpus, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary folder was made")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    jaxlm.train(CONFIG, corpus, tmp_path / "run", steps=0, quiet=True)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_sizes": (1_000_000,)}, {"hidden_sizes": (10**9, 7)}, {"embedding_size": 10**9}],
)
def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(tmp_path, corpus, changes):
    config = CONFIG.replace(**changes)
    start = time.monotonic()
    with pytest.raises(
        JaxlmError, match=r"needs at least .* GB of memory, and there is .* GB"
    ) as caught:
        jaxlm.train(config, corpus, tmp_path / "run", quiet=True)
    assert "hidden_sizes" in str(caught.value) and time.monotonic() - start < SECONDS
    assert not (tmp_path / "run").exists()


def test_the_memory_is_the_machines_or_a_smaller_limit():
    code = "from jaxlm.runs import ram; print(ram.limit())"
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -v 4000000; exec '{sys.executable}' -c '{code}'"],
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert int(limited.stdout) == min(4_000_000 * 1024, ram.limit())


def test_what_others_use_of_the_memory_is_not_there():
    assert 0 < ram.available() < ram.limit()
    with pytest.raises(JaxlmError, match=r"needs at least .* GB of memory, and there is .* GB"):
        ram.check(ram.limit(), "all of it", "take less")


def test_memory_of_a_device_is_what_counts_where_the_state_lies_there(monkeypatch):
    config = jaxlm.preset("test").replace(vocab_size=1000)
    state_arrays.check_memory(config)
    monkeypatch.setattr(ram, "of_device", lambda: 5_000)
    with pytest.raises(
        JaxlmError, match=r"training this config needs at least .* there is .* on this device: take"
    ) as e:
        state_arrays.check_memory(config)
    assert "\n" not in str(e.value)
    monkeypatch.setattr(ram, "of_device", lambda: 10**9)
    state_arrays.check_memory(config)


@pytest.mark.parametrize("verb", ["surprisal", "states", "minimal-pairs", "report"])
def test_no_verb_writes_over_a_file_of_the_run(run_dir, tmp_path, capsys, verb):
    (tmp_path / "text").write_text("a b\n")
    (tmp_path / "pairs").write_text('{"sentence_good": "a b", "sentence_bad": "b a"}\n')
    files = {"surprisal": ["text"], "states": ["text"], "minimal-pairs": ["pairs"], "report": []}[
        verb
    ]
    before = contents(run_dir)
    for name in ("config.json", f"{LAST}/state.safetensors"):
        arguments = [
            str(run_dir),
            *(str(tmp_path / file) for file in files),
            "-o",
            str(run_dir / name),
        ]
        assert main([verb, *arguments]) == 1
        assert f"it belongs to the run in {run_dir}: name another file" in capsys.readouterr().err
    assert contents(run_dir) == before


@pytest.mark.parametrize("content", [None, "{"])
def test_a_lost_run_json_is_replaced_and_told(run_dir, corpus, content):
    (run_dir / "run.json").unlink()
    if content:
        (run_dir / "run.json").write_text(content)
    with lock(run_dir) as held:
        found, notes = rundir.resume(held.folder, CONFIG, corpus)
    assert found and len(notes) == 1
    assert f"{run_dir / 'run.json'} cannot be read: " in notes[0]
    assert "a new one is written" in notes[0]
    assert rundir.saved_record(run_dir)["params"] == "unknown"


def test_how_far_a_run_has_come(run_dir):
    assert status(run_dir) == Status("stopped", 23, 44)
    assert str(status(run_dir)) == "stopped at window 23 of 44"
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_bytes()
    metrics.write_bytes(lines + b'{"kind":"diverged","corpus":"text","step":24,"epoch":2}\n')
    assert status(run_dir) == Status("diverged", 23, 44)
    metrics.write_bytes(lines)
    (run_dir / "run.json").unlink()
    assert str(status(run_dir)) == "stopped at window 23"
