"""Sweeps that share a real PostgreSQL: no trial is lost when workers die and the server stops."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import pytest
from processes import wait_for

import jaxlm
from jaxlm.report.sweep_results import MemberResult
from jaxlm.sweeps.plan import make_plan
from jaxlm.sweeps.study import NAME, Study

INITDB = shutil.which("initdb") or next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(INITDB is None, reason="no PostgreSQL: apt-get install postgresql"),
    pytest.mark.skipif(
        find_spec("psycopg2") is None, reason="no psycopg2: pip install psycopg2-binary"
    ),
]
TINY = jaxlm.preset("small").replace(
    hidden_sizes=(8,), embedding_size=4, batch_size=20, epochs=2, corpus="embedded-tiny"
)
SETTINGS = ["--set", "learning_rate=0.25,0.5,1,2", "--set", "clip_norm=1,5"]
FLAGS = ["--corpus", "embedded-tiny", "--hidden-sizes", "8", "--embedding-size", "4"]
FLAGS += ["--batch-size", "20", "--epochs", "4", "--group", "2"]


class Server:
    """A PostgreSQL of its own in a folder. Its programs refuse to run as root."""

    def __init__(self, folder: Path):
        self.folder = folder / "database"
        self.folder.mkdir()
        self.user: dict[str, Any] = {}
        if os.getuid() == 0:
            shutil.chown(self.folder, "nobody")
            for parent in self.folder.parents:
                if parent.stat().st_uid == 0 and parent != Path("/tmp") and parent.stem != "":
                    parent.chmod(parent.stat().st_mode | 0o011)
            self.user = {"user": "nobody"}
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg2://jaxlm@localhost:{self.port}/postgres"
        self.run("initdb", "-U", "jaxlm", "--auth=trust", "-N", "-D", str(self.folder))

    def run(self, name: str, *arguments: str) -> None:
        program = str(Path(str(INITDB)).resolve().with_name(name))
        out = subprocess.DEVNULL
        subprocess.run(
            [program, *arguments], check=True, cwd="/", stdout=out, stderr=out, **self.user
        )

    def start(self) -> None:
        options = f"-p {self.port} -k '' -c listen_addresses=localhost"
        log = str(self.folder / "log")
        self.run("pg_ctl", "-w", "-D", str(self.folder), "-o", options, "-l", log, "start")

    def stop(self, how: str) -> None:
        self.run("pg_ctl", "-w", "-D", str(self.folder), "-m", how, "stop")


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    """In no folder of pytest's, which every session of it closes to other users."""
    with TemporaryDirectory(prefix="jaxlm-postgresql-") as folder:
        server = Server(Path(folder))
        server.start()
        yield server
        server.stop("immediate")


@pytest.fixture
def empty(database) -> Server:
    """The server without the study of another test."""
    for name in optuna.get_all_study_names(database.url):
        optuna.delete_study(study_name=name, storage=database.url)
    return database


def work(folder: Path, plan: Any, url: str, failures: list[Exception]) -> None:
    """A simulated directory: it claims trials, and ends each at once."""
    try:
        study = Study(plan, folder, url)
        while not study.ended:
            claim = study.claim()
            if claim:
                record = MemberResult(claim.trial.number, {}, 0, "done", (2.0,))
                study.note(claim, record)
                study.end(claim)
    except Exception as error:
        failures.append(error)


def test_fifty_directories_lose_at_most_fifty_begins(empty, tmp_path):
    rates = [round(0.01 * place, 2) for place in range(1, 201)]
    plan = make_plan(TINY, {"learning_rate": rates}, "grid", None, 1, None, {"name": "x"})
    failures: list[Exception] = []
    folders = [tmp_path / str(number) for number in range(50)]
    for folder in folders:
        folder.mkdir()
    Study(plan, folders[0], empty.url)
    threads = [
        threading.Thread(target=work, args=(folder, plan, empty.url, failures))
        for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(500)
    assert not failures and not any(thread.is_alive() for thread in threads)
    trials = optuna.load_study(study_name=NAME, storage=empty.url).trials
    states = Counter(trial.state.name for trial in trials)
    assert states["COMPLETE"] == 200 and states["FAIL"] <= 50
    done = [trial.params["learning_rate"] for trial in trials if trial.state.name == "COMPLETE"]
    assert sorted(done) == rates


def test_no_trial_is_lost_when_workers_are_killed_and_the_server_stops(server, empty, tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "three")]
    storage = ["--storage", empty.url]

    def begin(folder: Path, *more: str) -> Any:
        return server.start("sweep", *more, *storage, "--run-dir", folder, "--workers", "1")

    def saved() -> list[Path]:
        return list(tmp_path.glob("*/trials/*/checkpoints/0*"))

    running = [begin(folder, *FLAGS, *SETTINGS) for folder in folders]
    assert wait_for(lambda: len(saved()) >= 2, running[0])
    os.kill(running[0].pid, signal.SIGKILL)
    running[0].end()
    empty.stop("immediate")
    empty.start()
    for command in running[1:]:
        code, _, wrong = command.end()  # the server was back, or the error is one sentence
        assert code == 0 or (wrong.startswith("error: ") and wrong.count("\n") == 1), wrong
    resumed = [begin(folder, "--resume") for folder in folders]
    for command in resumed:
        code, _, wrong = command.end()
        assert code == 0, wrong
    trials = optuna.load_study(study_name=NAME, storage=empty.url).trials
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(done) == len({tuple(trial.params.items()) for trial in done}) == 8
