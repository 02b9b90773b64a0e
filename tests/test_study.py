"""The study's journal and storage: torn, damaged, removed, full, linked, secret;
and who waits for whom.
"""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.base.terminal import scrubbed, without_password
from jaxlm.report.sweep_files import write_sweep
from jaxlm.report.sweep_results import MemberResult
from jaxlm.runs import directory as rundir
from jaxlm.sweeps import worker as worker_module
from jaxlm.sweeps.plan import make_plan
from jaxlm.sweeps.storage import SILENCE, Journal, database_errors, open_storage
from jaxlm.sweeps.study import NAME, Study
from jaxlm.sweeps.supervisor import _Session, _where, saved_options
from jaxlm.sweeps.worker import Worker

TINY = jaxlm.preset("small").replace(
    corpus="embedded-tiny",
    vocab_size=100,
    hidden_sizes=(8,),
    embedding_size=4,
    batch_size=20,
    epochs=2,
)
PLAN = make_plan(TINY, {"learning_rate": [0.5, 1.0, 2.0]}, "grid", None, 1, None, {"name": "x"})
NAN = float("nan")
INF = float("inf")
URL = "postgresql://me:hun%40ter2@nowhere.invalid/db?sslpassword=swordfish"


def open_study(folder: Path, plan=PLAN, storage: str | None = None) -> Study:
    return Study(plan, folder, storage or str(folder / "study.journal"))


def finish(study: Study) -> None:
    """Ends every trial that can be claimed, as if its members were trained."""
    while point := study.claim():
        for record in list(point.records.values()):
            if record.status == "running":
                study.note(
                    point,
                    MemberResult(
                        record.number, record.values, record.seed, "done", (3.0, 2.0), 2.5
                    ),
                )
        study.end(point)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A sweep's directory: one trial done, one running."""
    folder = tmp_path_factory.mktemp("written")
    study = open_study(folder)
    point = study.claim()
    assert point
    study.note(point, MemberResult(0, {}, 0, "done", (3.0, 2.0), 2.5))
    study.end(point)
    point = study.claim()
    assert point
    study.note(point, MemberResult(1, {}, 0, "running", (3.5,)))
    study.release(point)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(written, tmp_path / "sweep"))


def outcome(folder: Path) -> list[tuple]:
    finish(study := open_study(folder))
    assert study.ended
    return [(one.number, one.values, one.status, one.valid_perplexities) for one in study.records()]


def test_a_journal_is_one_that_optuna_itself_reads(folder):
    kept = JournalFileBackend(str(folder / "study.journal"))
    study = optuna.load_study(study_name=NAME, storage=optuna.storages.JournalStorage(kept))
    assert [trial.params for trial in study.trials] == [
        {"learning_rate": 0.5},
        {"learning_rate": 1.0},
    ]
    assert [trial.value for trial in study.trials] == [2.0, None]


def test_seeds_train_a_point_again_and_tpe_optimises_their_mean(tmp_path):
    plan = make_plan(
        TINY, {"learning_rate": "log:0.1:10", "clip_norm": "range:1:5:2"}, "tpe", 12, 2, False, {}
    )
    study = open_study(tmp_path, plan)
    while claim := study.claim():
        assert sorted(claim.records) == [0, 1]
        for seed, record in claim.records.items():
            rate = record.values["learning_rate"] + seed
            study.note(claim, replace(record, status="done", valid_perplexities=(2 * rate, rate)))
            assert not study.to_prune(claim)
        study.end(claim)
    assert study.ended and len(study.records()) == 24
    kept = JournalFileBackend(str(tmp_path / "study.journal"))
    trials = optuna.load_study(study_name=NAME, storage=optuna.storages.JournalStorage(kept)).trials
    assert len(trials) == 12 and len({trial.params["learning_rate"] for trial in trials}) == 12
    for trial in trials:
        rate = trial.params["learning_rate"] + 0.5
        assert trial.value == pytest.approx(rate)
        assert trial.intermediate_values == pytest.approx({1: 2 * rate, 2: rate})


def test_a_diverged_member_counts_as_infinite_from_then_on(tmp_path):
    plan = make_plan(TINY, {"learning_rate": [0.5, 1.0, 2.0, 4.0]}, "grid", None, 2, None, {})
    study = open_study(tmp_path, plan)
    # One member diverges in its second epoch or at that one's validation, beside one that ends, or
    # both do.
    for first, second in (
        ((3.0,), (5.0, 4.0)),
        ((3.0,), ()),
        ((3.0, NAN), (5.0, 4.0)),
        ((3.0, INF), (5.0, NAN)),
    ):
        claim = study.claim()
        assert claim
        for seed, epochs in ((0, first), (1, second)):
            status = "done" if epochs == (5.0, 4.0) else "diverged"
            study.note(
                claim, replace(claim.records[seed], status=status, valid_perplexities=epochs)
            )
        study.end(claim)
    kept = JournalFileBackend(str(tmp_path / "study.journal"))
    trials = optuna.load_study(study_name=NAME, storage=optuna.storages.JournalStorage(kept)).trials
    assert [trial.state.name for trial in trials] == ["PRUNED"] * 4
    found = [trial.intermediate_values for trial in trials]
    assert found == [{1: 4.0, 2: INF}, {1: INF, 2: INF}, {1: 4.0, 2: INF}, {1: 4.0, 2: INF}]


def test_a_torn_line_at_the_end_is_cut_wherever_it_is_torn(folder):
    path = folder / "study.journal"
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for end in {last + 1, last + 5, last + 40, len(whole) - 20, len(whole) - 1}:
        for zeros in (b"", b"\0" * 300):
            path.write_bytes(whole[:end] + zeros)
            assert [one[2] for one in outcome(folder)] == ["done"] * 3
            assert path.read_bytes().startswith(whole[:last])
            assert [*Journal(path).read_logs(0)]


def test_a_torn_first_line_is_cut_and_another_file_is_left_alone(tmp_path):
    path = tmp_path / "journal"
    for torn in (b'{"op', b'{"op_code":0,"worker', b"\0\0\0", b'{"op_co\0\0\0\0\0'):
        path.write_bytes(torn)
        assert [*Journal(path).read_logs(0)] == []
        Journal(path).append_logs([{"op_code": 0}])
        assert [*Journal(path).read_logs(0)] == [{"op_code": 0}] and path.read_bytes().count(
            b"\n"
        ) == 1
    for other in (b"my notes\nand more", b"[1, 2]\n", b'{"op_code":0}\n'):
        path.write_bytes(other)
        with pytest.raises(JaxlmError, match="journal"):
            open_study(tmp_path, storage=str(path))
        assert path.read_bytes() == other


def test_records_are_on_the_disk_before_the_append_returns(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal")
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (synced.append(os.fstat(int_of(file)).st_size), fsync(file))
    )
    journal.append_logs([{"op_code": 0}, {"op_code": 1}])
    assert synced == [os.path.getsize(tmp_path / "journal")]


def int_of(file) -> int:
    if isinstance(file, int):
        return file
    return file.fileno()


def test_a_damaged_line_is_named_and_nothing_is_cut(folder):
    path = folder / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"0.5", b"0.6").replace(b"0", b"1", 1)
    path.write_bytes(b"".join(lines))
    with pytest.raises(JaxlmError, match=r"study\.journal line 4 is damaged"):
        open_study(folder)
    assert path.read_bytes() == b"".join(lines)


def test_flips_are_found_or_harmless(written, tmp_path):
    """200 flipped bits: one sentence, or the same sweep."""
    name = "study.journal"
    expected = outcome(Path(shutil.copytree(written, tmp_path / "whole")))
    whole = (written / name).read_bytes()
    chosen = random.Random(7)
    for number in range(200):
        folder = Path(shutil.copytree(written, tmp_path / str(number)))
        place = chosen.randrange(len(whole))
        flipped = bytes([whole[place] ^ 1 << chosen.randrange(8)])
        (folder / name).write_bytes(whole[:place] + flipped + whole[place + 1 :])
        try:
            saved_options(folder, {}, {})
            found = outcome(folder)
        except JaxlmError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            assert found == expected
        shutil.rmtree(folder)


@pytest.mark.parametrize("small_disk", ["8k"], indirect=True)
def test_a_disk_that_fills_leaves_whole_lines_and_the_sweep_resumes(small_disk, tmp_path):
    """A real ENOSPC in the middle of an append, and a line that another writer left torn."""
    plan = make_plan(
        TINY, {"learning_rate": [0.1 * n for n in range(1, 20)]}, "grid", None, 1, None, {}
    )
    path = small_disk / "j.log"
    study = open_study(tmp_path, plan, storage=str(path))
    with pytest.raises(JaxlmError, match="No space left on device") as caught:
        finish(study)
    for point in list(study.held.values()):  # as a worker does when it ends
        study.release(point)
    assert "\n" not in str(caught.value)
    moved = tmp_path / "j.log"
    moved.write_bytes(path.read_bytes() + b'{"op_code":8,"worker_id":"')
    finish(study := open_study(tmp_path, plan, storage=str(moved)))
    assert study.ended and [record.number for record in study.records()] == list(range(19))
    assert len({record.values["learning_rate"] for record in study.records()}) == 19


@pytest.mark.parametrize("storage", ["journal", "database"])
def test_a_study_that_is_removed_in_the_middle_is_one_sentence(tmp_path, storage):
    path = tmp_path / "study"
    study = open_study(tmp_path, storage=str(path) if storage == "journal" else f"sqlite:///{path}")
    point = study.claim()
    assert point
    path.unlink()
    refused = []
    for call in (
        lambda: study.note(point, point.records[0]),
        study.claim,
        lambda: study.end(point),
        study.records,
        lambda: study.to_prune(point),
    ):
        point.records[0] = MemberResult(0, {}, 0, "done", (2.0,))
        try:
            call()
        except JaxlmError as error:
            assert (
                "\n" not in str(error)
                and "the study in" in str(error)
                and "[SQL:" not in str(error)
            )
            assert "expected" not in str(error) and str(error).endswith("resume with --resume")
            refused.append(call)
    assert len(refused) == 5 or (
        storage == "database" and refused
    )  # SQLite still reads the file that it has open
    for held in list(study.held.values()):
        study.release(held)
    assert storage == "database" or not path.exists()


def test_a_journal_that_becomes_shorter_is_one_sentence(folder):
    study = open_study(folder)
    (folder / "study.journal").write_bytes(b"")
    with pytest.raises(JaxlmError, match="became shorter"):
        study.records()


@pytest.mark.parametrize("name", ["study.journal", ".claim", "trials", "trials/0001", "sweep.csv"])
def test_nothing_is_opened_through_a_link(folder, tmp_path, name):
    victim = tmp_path / "victim"
    if name.startswith("trials"):
        shutil.move(folder / name, victim)
    else:
        shutil.copy(folder / ("study.journal" if name == "sweep.csv" else name), victim)
        (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    before = {path: path.read_bytes() for path in [victim, *victim.rglob("*")] if path.is_file()}
    if name == "sweep.csv":  # replaced, and not written through
        write_sweep(jaxlm.Sweep(TINY), folder, {})
        assert not (folder / name).is_symlink()
    else:
        with pytest.raises(JaxlmError, match=f"{Path(name).name}.*(link|directory)") as caught:
            saved_options(folder, {}, {})
            finish(open_study(folder))
        assert "\n" not in str(caught.value)
    assert before == {
        path: path.read_bytes() for path in [victim, *victim.rglob("*")] if path.is_file()
    }


@pytest.mark.parametrize("name", ["study.journal", ".claim", "trials/0001/config.json"])
def test_a_fifo_in_a_file_s_place_hangs_nobody(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(JaxlmError, match=f"{name}.*FIFO"):
        saved_options(folder, {}, {})
        finish(open_study(folder))


@pytest.mark.parametrize("append", [False, True])
def test_a_sparse_journal_is_refused_and_not_read_to_its_beginning(folder, append):
    with open(folder / "study.journal", "ab" if append else "wb") as file:
        file.truncate(1 << 40)
    start = time.monotonic()
    with pytest.raises(JaxlmError, match=r"study.journal .*put an intact copy"):
        finish(open_study(folder))
    assert time.monotonic() - start < 60
    assert os.path.getsize(folder / "study.journal") == 1 << 40


def test_a_study_outside_the_directory_is_named_again(tmp_path, monkeypatch):
    """Nothing in a directory, which may be a stranger's, names a file or a database."""
    monkeypatch.delenv("JAXLM_STORAGE", raising=False)
    with pytest.raises(
        JaxlmError, match=r"holds no sweep that can be resumed.*--storage or \$JAXLM_STORAGE"
    ):
        saved_options(tmp_path, {}, {})
    where = f"sqlite:///{tmp_path / 'db'}"
    optuna.create_study(
        storage=where, study_name=NAME
    )  # as a process that is killed before it writes the plan
    with pytest.raises(JaxlmError, match="holds no sweep that can be resumed"):
        saved_options(tmp_path, {}, {"storage": where})
    open_study(tmp_path, storage=where)
    assert saved_options(tmp_path, {}, {"storage": where})[1] == PLAN.space
    monkeypatch.setenv("JAXLM_STORAGE", where)
    assert saved_options(tmp_path, {}, {})[1] == PLAN.space
    open_study(tmp_path, make_plan(TINY, {"clip_norm": [1, 5]}, "grid", None, 1, None, {}))
    assert list(saved_options(tmp_path, {}, {})[1]) == ["clip_norm"]  # its own journal comes first
    with pytest.raises(JaxlmError, match="leave --storage out"):
        saved_options(tmp_path, {}, {"storage": where})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "postgresql://me:***@nowhere.invalid/db?sslpassword=***"),
        ("mysql+pymysql://u:p/w@x:y@host:3306/db", "mysql+pymysql://u:***@host:3306/db"),
        ("sqlite:////home/a:b@c/study.db", "sqlite:////home/a:b@c/study.db"),
        (
            "postgresql://host/db?user=u&password=a%26b&x=1",
            "postgresql://host/db?user=u&password=***&x=1",
        ),
        (
            "--storage=sqlite+pysqlcipher://:secret@/x.db",
            "--storage=sqlite+pysqlcipher://:***@/x.db",
        ),
        ("/a/path", "/a/path"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    assert without_password(url) == shown == without_password(shown)


def test_a_password_appears_nowhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jaxlm", "sweep", "--storage", URL])
    said = rundir.session()["command"]
    with pytest.raises(JaxlmError) as caught:
        jaxlm.sweep(TINY, {"learning_rate": [1.0]}, run_dir=tmp_path / "sweep", storage=URL)
    said += str(caught.value)
    with pytest.raises(JaxlmError) as caught:
        saved_options(tmp_path, {}, {"storage": URL})
    said += str(caught.value) + "".join(capsys.readouterr())
    assert said.count("me:***@nowhere.invalid") >= 3
    for secret in ("hun%40ter2", "hun@ter2", "swordfish"):
        assert secret not in said
    assert (
        scrubbed("cannot log in with hun@ter2 or hun%40ter2", URL)
        == "cannot log in with *** or ***"
    )


def test_a_sweep_with_a_database_keeps_no_password(tmp_path, capsys, monkeypatch):
    """SQLite ignores what the query names:
    so the whole path is walked, with a worker process of its own.
    """
    url = f"sqlite:///{tmp_path / 'study.db'}?password=swordfish"
    config = TINY.replace(epochs=1)
    space = {"learning_rate": [1.0, 2.0]}
    run_dir = tmp_path / "sweep"
    commands = []
    popen = subprocess.Popen

    def start(command: Any, *arguments: Any, **options: Any) -> subprocess.Popen:
        commands.append(command)
        return popen(command, *arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    try:
        jaxlm.sweep(config, space, storage=url, run_dir=run_dir, workers=2)
    except JaxlmError as error:  # this driver refuses the name
        assert "swordfish" not in str(error)
    else:
        with pytest.raises(JaxlmError, match="with the password, by --storage"):
            jaxlm.sweep(config, space, run_dir=run_dir, resume=True)
        jaxlm.sweep(config, space, run_dir=run_dir, resume=True, storage=url)
        assert commands and "--as-worker" in str(commands)
    for path in run_dir.rglob("*"):
        assert not path.is_file() or b"swordfish" not in path.read_bytes(), path
    assert "swordfish" not in "".join(capsys.readouterr()) + str(commands)


def test_a_worker_that_waits_says_so_once(folder, monkeypatch):
    monkeypatch.setattr(worker_module, "POLL", 0.01)
    said = []
    looks = []
    holder = open_study(folder)
    other = open_study(folder)
    held = holder.claim()
    assert held and held.trial.number == 1
    finish(other)
    stop = lambda: 15 if len(looks) == 20 else None  # noqa: E731
    show = lambda: looks.append(0)  # noqa: E731
    Worker(other, None, None, None, None, stopped=stop, show=show, say=said.append).run()
    assert len(said) == 1 and said[0].startswith("waiting for trials") and not other.ended
    holder.release(held)
    finish(other)
    assert other.ended


def test_a_directory_may_be_copied_without_its_hidden_files(folder):
    (folder / ".claim").unlink()
    finish(study := open_study(folder))
    assert study.ended and all(record.run_dir for record in study.records())


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two directories that share a database."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    return folders, {"storage": f"sqlite:///{tmp_path / 'db'}"}


def pass_silently(options) -> None:
    """Makes each sign of life in the database older, as if time passed without another one."""
    path = options["storage"].removeprefix("sqlite:///")
    older = "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, ?)"
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(older, [f"-{SILENCE + 100} seconds"]).rowcount > 0


def test_a_worker_of_a_database_that_is_killed_before_its_first_beat_is_replaced(two, monkeypatch):
    """At once in its own directory, and in another after the silence."""
    folders, options = two
    dead = open_study(folders[0], **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(*_):
            raise KeyboardInterrupt

        patch.setattr("jaxlm.sweeps.study.Study._show_life", killed)
        dead.claim()
    study = open_study(folders[0], **options)
    claim = study.claim()
    assert claim and claim.trial.number == 0
    study.release(claim)
    other = open_study(folders[1], **options)
    for number in (1, 2):
        claim = other.claim()
        assert claim and claim.trial.number == number
        other.note(claim, MemberResult(number, {}, 0, "done", (2.0,)))
        other.end(claim)
    assert other.claim() is None and not other.ended
    pass_silently(options)
    claim = other.claim()
    assert claim and claim.trial.number == 3 and claim.trial.params == PLAN.point(0)
    other.note(claim, MemberResult(3, {}, 0, "done", (2.0,)))
    other.end(claim)
    assert other.ended and [one.number for one in other.records()] == [1, 2, 3]


def test_a_trial_that_waits_in_a_living_directory_is_not_lost(two, monkeypatch):
    """One that no worker has room for, as after a resume with fewer workers."""
    folders, options = two
    one, other = (open_study(folder, **options) for folder in folders)
    monkeypatch.setattr("jaxlm.sweeps.storage.BEAT", 0)
    held = one.claim()
    waiting = one.claim()
    assert held and waiting
    one.release(waiting)
    other.claim()  # it has seen the trial that waits
    for _ in range(2):
        pass_silently(options)
        one.beat()
        other.beat()
    other.claim()
    assert waiting.trial.number in [record.number for record in one.records()]


def test_directories_with_a_damaged_trial_each_do_not_wait_for_one_another(two):
    folders, options = two
    studies = [open_study(folder, **options) for folder in folders]
    for study in studies:
        claim = study.claim()
        assert claim
        study.note(claim, MemberResult(claim.trial.number, {}, 0, "damaged"))
        study.end(claim)
    finish(studies[0])
    assert all(study.claim() is None and study.ended for study in studies)


def test_a_trial_that_another_directory_trains_on_is_waited_for(two):
    """One member of it is damaged, the other trains."""
    folders, options = two
    plan = make_plan(TINY, {"learning_rate": [0.5, 1.0]}, "grid", None, 2, None, {})
    one, other = (open_study(folder, plan, **options) for folder in folders)
    claim = one.claim()
    assert claim
    one.note(claim, MemberResult(claim.trial.number, {}, 0, "damaged"))
    one.note(claim, MemberResult(claim.trial.number, {}, 1, "running"))
    finish(other)
    assert not other.ended


def test_auto_is_what_the_machine_took_that_began_the_sweep(tmp_path, monkeypatch):
    how: Any = dict(workers=1, quiet=True, storage=f"sqlite:///{tmp_path / 'db'}")
    for name, rate in (("one", 9.0), ("two", 0.1)):
        monkeypatch.setattr(
            "jaxlm.runs.precision.measured_rates",
            lambda _, rate=rate: {"float32": 1.0, "bfloat16": rate},
        )
        config = TINY.replace(epochs=1, compute_dtype="auto")
        found = jaxlm.sweep(config, {"learning_rate": [0.5]}, run_dir=tmp_path / name, **how)
        assert found.config.model.compute_dtype == "bfloat16"


def test_two_directories_of_a_database_begin_no_point_twice(two):
    """Also when both look at the same moment: the storage gives each trial a number of its own."""
    folders, options = two
    one, other = (open_study(folder, **options) for folder in folders)
    first = one.claim()
    assert first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other, "_trials", list)  # the other's trial is not there yet
        claim = other.claim()
    assert claim and claim.trial.params == PLAN.point(1)
    for study, held in ((one, first), (other, claim)):
        study.release(held)


def test_fifty_directories_that_look_at_the_same_moment_lose_at_most_fifty_begins(
    tmp_path, monkeypatch
):
    where = f"sqlite:///{tmp_path / 'db'}"
    opened = open_storage(where)
    monkeypatch.setattr("jaxlm.sweeps.study.open_storage", lambda _: opened)
    plan = make_plan(TINY, {"batch_size": list(range(1, 61))}, "grid", None, 1, None, {})
    studies = []
    for number in range(50):
        (tmp_path / str(number)).mkdir()
        studies.append(open_study(tmp_path / str(number), plan, where))
    monkeypatch.setattr("jaxlm.sweeps.study.Study._show_life", lambda *_: None)  # which is slow
    looked = studies[0]._trials()
    while not all(trial.state.is_finished() for trial in looked) or len(looked) < 60:
        looked = list(studies[0]._trials())
        for study in studies:
            claim = study._begin(looked)
            if claim:
                study.note(claim, MemberResult(claim.trial.number, {}, 0, "done", (2.0,)))
                study.end(claim)
    states = [trial.state.name for trial in studies[0]._trials()]
    assert states.count("COMPLETE") == 60 and states.count("FAIL") <= 50


def test_a_lost_point_is_begun_again_by_one_of_two_directories(two):
    folders, options = two
    one, other = (open_study(folder, **options) for folder in folders)
    for _ in range(3):
        claim = one.claim()
        assert claim
        claim.held.close()
    for number in (0, 2):
        one._study.tell(number, state=optuna.trial.TrialState.FAIL)
    looked = one._trials()
    claims = [study._begin(list(looked)) for study in (one, other, one, other)]
    points = sorted(claim.trial.params["learning_rate"] for claim in claims if claim)
    while points != [0.5, 2.0]:  # they may have begun the same point
        assert set(points) < {0.5, 2.0} and len(points) == 1
        claims = [study._begin(study._trials()) for study in (one, other)]
        points += [claim.trial.params["learning_rate"] for claim in claims if claim]
        points.sort()
    assert len(one.records()) == 3


def test_a_password_in_a_drivers_error_is_not_shown():
    with pytest.raises(JaxlmError, match=r"me:\*\*\*@nowhere") as caught, database_errors(URL):
        raise RuntimeError(f"bad dsn {URL}, user me, passwords hun@ter2, hun%40ter2, swordfish")
    for secret in ("hun%40ter2", "hun@ter2", "swordfish"):
        assert secret not in str(caught.value)


def test_a_shared_study_is_shown_at_most_every_thirty_seconds(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("jaxlm.sweeps.supervisor.time.monotonic", lambda: clock[0])
    for shared, looks in ((True, 2), (False, 5)):
        shown: list[Any] = []
        study: Any = SimpleNamespace(shared=shared, records=list, plan=PLAN, folder=tmp_path)
        view: Any = SimpleNamespace(show=shown.append)
        session = _Session(study, True, view, None)
        for seconds in (0, 1, 28, 2, 5):
            clock[0] += seconds
            session.look_when_due()
        assert len(shown) == looks


def test_a_database_s_sweep_does_not_begin_where_a_journal_lies(folder, monkeypatch):
    monkeypatch.delenv("JAXLM_STORAGE", raising=False)
    shutil.rmtree(folder / "trials")
    assert _where(folder, None, resume=False) == str(folder / "study.journal")
    with pytest.raises(JaxlmError, match=r"not empty \(it holds study\.journal\)"):
        _where(folder, f"sqlite:///{folder / 'db'}", resume=False)


def test_a_file_system_without_locks_is_noticed(tmp_path, monkeypatch):
    study = open_study(tmp_path)
    assert study.locks_work()
    monkeypatch.setattr("jaxlm.sweeps.study.fcntl.flock", lambda *_: None)  # as on such a system
    assert not study.locks_work()


def test_halving_ends_all_but_the_best_quarter(tmp_path):
    space = {"learning_rate": [0.1 * place for place in range(1, 9)]}
    plan = make_plan(TINY, space, "grid", None, 1, "halving", {})
    study = open_study(tmp_path, plan)
    pruned = []
    for value in range(1, 9):
        claim = study.claim()
        assert claim
        study.note(claim, replace(claim.records[0], valid_perplexities=(float(value),)))
        pruned.append(study.to_prune(claim))
    assert pruned == [False] + [True] * 7  # the first is the best, and of so few only one is
    for claim in list(study.held.values()):
        study.release(claim)


def test_importances_name_the_field_that_counts(tmp_path):
    space = {"learning_rate": [0.5, 1.0, 2.0, 4.0], "clip_norm": [1.0, 5.0, 9.0]}
    study = open_study(tmp_path, make_plan(TINY, space, "grid", None, 1, None, {}))
    assert study.importances() == {}
    while claim := study.claim():
        value = claim.records[0].values["learning_rate"]
        study.note(claim, replace(claim.records[0], status="done", valid_perplexities=(value,)))
        study.end(claim)
    shares = study.importances()
    assert list(shares) == ["learning_rate", "clip_norm"] and shares["learning_rate"] > 0.9
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.ensemble", None)
        assert isinstance(study.importances(), dict)


def test_a_database_is_asked_ever_less_while_there_is_nothing_to_claim(monkeypatch):
    slept = []
    worker = Worker(SimpleNamespace(shared=True), None, None, None, None)  # pyright: ignore[reportArgumentType]
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        slept.append(seconds)

    monkeypatch.setattr(worker_module.time, "sleep", sleep)
    monkeypatch.setattr(worker_module.time, "monotonic", lambda: clock[0])
    for looks in range(1, 12):
        slept.clear()
        worker._sleep(looks)
        assert min(15, 0.5 * 2**looks) <= sum(slept) <= 30 and max(slept) <= 1
    slept.clear()
    worker.study.shared = False
    worker._sleep(9)
    assert sum(slept) == pytest.approx(1)


def test_a_damaged_member_waits_for_a_resumed_sweep(tmp_path):
    plan = make_plan(TINY, {"learning_rate": [0.5, 1.0]}, "grid", None, 2, None, {})
    study = open_study(tmp_path, plan)
    point = study.claim()
    assert point
    study.note(point, MemberResult(0, {}, 0, "damaged", (3.0,), note="no checkpoint is intact"))
    study.note(point, MemberResult(0, {}, 1, "done", (3.0, 2.0), 2.5))
    study.end(point)
    assert not study.held and not study.ended
    finish(study)
    assert study.ended and study.claim() is None
    found = jaxlm.Sweep(TINY, study.records())
    assert [(one.number, one.seed) for one in found.damaged] == [(0, 0)]
    assert found.best and found.best.number == 1
    other = open_study(tmp_path, plan)
    assert not other.ended
    point = other.claim()
    assert point and {seed: one.status for seed, one in point.records.items()} == {
        0: "running",
        1: "done",
    }
    assert point.records[0].valid_perplexities == (3.0,) and point.records[0].note is None
    study.note(point, MemberResult(0, {}, 0, "done", (3.0, 2.0), 2.5))
    other.end(point)
    assert other.ended


def test_optuna_is_needed_for_sweeps_alone(tmp_path):
    """Where it cannot be imported: everything else works,
    and a sweep names the line that installs it.
    """
    code = """
import sys
sys.modules["optuna"] = None
import jaxlm
for name in jaxlm.__all__:
    getattr(jaxlm, name)
tiny = jaxlm.preset("small").replace(
    corpus="embedded-tiny", hidden_sizes=(4,), embedding_size=4, batch_size=20
)
jaxlm.train(tiny, run_dir=sys.argv[1] + "/run", steps=1, quiet=True)
try:
    jaxlm.sweep(tiny, {"learning_rate": [1.0]}, run_dir=sys.argv[1] + "/sweep", quiet=True)
except jaxlm.JaxlmError as error:
    assert "pip install 'jaxlm[sweep]'" in str(error), error
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["cli", "sweeps.supervisor"])
def test_optuna_is_imported_at_its_first_use(module):
    code = f"import sys, jaxlm.{module}; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_directory_resumes_its_own_trials_after_any_silence(two):
    folders, options = two
    study = open_study(folders[0], **options)
    claim = study.claim()
    assert claim
    study.note(claim, replace(claim.records[0], valid_perplexities=(3.0,)))
    study.release(claim)  # as a stopped worker does
    pass_silently(options)
    claim = open_study(folders[0], **options).claim()
    assert claim and claim.trial.number == 0 and claim.records[0].valid_perplexities == (3.0,)
