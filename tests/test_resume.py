"""Runs killed and stopped as real processes:
the disk holds only whole checkpoints, and a resumed run ends the same.
"""

import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from forked import Server
from processes import ROOT, assert_same, kept, training, wait_for, windows

from jaxlm.base.errors import RunDirError
from jaxlm.runs import checkpoint
from jaxlm.runs import directory as rundir
from jaxlm.runs import lock as locking
from jaxlm.runs.lock import lock


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory) -> dict[str, bytes]:
    """The bytes of the undisturbed run."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    finish(server, run_dir)
    return kept(run_dir)


def finish(server: Server, run_dir: Path, *arguments: str) -> None:
    """Begins the run, or resumes it, and waits for its end."""
    code, out, err = server.start(*training(run_dir), *arguments).end()
    assert (code, err) == (0, ""), out + err


def assert_whole(run_dir: Path) -> int:
    """Every checkpoint that has a name verifies; how many there are."""
    found = [path for path in (run_dir / "checkpoints").glob("*") if path.name[0] != "."]
    for path in found:
        checkpoint.read(path)
    return len(found)


def hidden(checkpoints: Path, removed: bool) -> bool:
    """Whether a checkpoint is half written, or half removed: then there is a newer one."""
    names = os.listdir(checkpoints) if checkpoints.exists() else []
    newest = max((int(name) for name in names if name[0] != "."), default=-1)
    return any((int(name.split("-")[1]) < newest) == removed for name in names if name[0] == ".")


def kill_at_a_random_moment(server: Server, run_dir: Path, rng: random.Random) -> str:
    """Starts or resumes the run and kills it; where it was caught.
    Where it was too late, "finished".
    """
    checkpoints = run_dir / "checkpoints"
    how = rng.choice(("anywhere", "in training", "in a save", "in a removal"))
    begun_with = windows(run_dir)
    process = server.start(*training(run_dir))
    if how == "anywhere":
        time.sleep(rng.uniform(0, 3))
    else:
        sight = {
            "in training": lambda: windows(run_dir) not in (0, begun_with),
            "in a save": lambda: hidden(checkpoints, removed=False),
            "in a removal": lambda: hidden(checkpoints, removed=True),
        }[how]
        wait_for(sight, process)
        time.sleep(rng.uniform(0, 0.2 if how == "in training" else 0.03))
    process.kill()
    if process.end()[0] == -signal.SIGKILL:
        return how
    return "finished"


def survive(
    server: Server, tmp_path: Path, reference: dict[str, bytes], kills: int, seed: int
) -> dict[str, int]:
    """Kills a run so many times at random moments, a new one each time that one finishes;
    the end is the reference.
    """
    rng = random.Random(seed)
    caught = {}
    run_dir = tmp_path / "0"
    unfinished = 0
    while sum(caught.values()) < kills:
        where = kill_at_a_random_moment(server, run_dir, rng)
        had = assert_whole(run_dir)
        assert had or not any(path.name[0] != "." for path in run_dir.glob("checkpoints/*"))
        if where == "finished":
            assert_same(run_dir, reference)
            run_dir = run_dir.with_name(str(int(run_dir.name) + 1))
        else:
            caught[where] = caught.get(where, 0) + 1
            unfinished += any(run_dir.glob("checkpoints/.*"))
    finish(server, run_dir)
    assert_same(run_dir, reference)
    assert not any(run_dir.glob("checkpoints/.*"))
    return {**caught, "half-written or half-removed checkpoints left": unfinished}


@pytest.mark.slow
def test_many_kills_change_nothing(server, tmp_path, reference, capsys):
    caught = survive(server, tmp_path, reference, kills=60, seed=2)
    with capsys.disabled():
        print(f"\nsurvived SIGKILL: {caught}")


def test_killed_before_there_is_a_run_it_begins_again(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("run.json", ".partial-config.json", ".lock"):
        (run_dir / name).write_text("half")
    rundir.check_vacant(run_dir)
    with pytest.raises(RunDirError, match="train one there, without --resume"):
        rundir.saved_config(run_dir)


def test_a_signal_saves_and_says_how_to_resume(server, tmp_path, reference):
    run_dir = tmp_path / "run"
    texts = tmp_path / "my texts"
    texts.mkdir()
    command = [*training(run_dir), "--data-dir", texts]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        had = windows(run_dir)
        process = server.start(*command)
        assert wait_for(lambda had=had: windows(run_dir) > had + 8, process)
        process.send_signal(number)
        code, said, err = process.end()
        assert (code, err) == (128 + number, ""), said + err
        stopped = re.search(
            rf"stopped by {number.name} after window (\d+): saved; resume with jaxlm (train .*)",
            said,
        )
        assert stopped, said
        assert checkpoint.find(run_dir).name == f"{int(stopped[1]):08d}"
        assert windows(run_dir) <= int(stopped[1]) + 2  # its windows, and the results of epochs
        assert assert_whole(run_dir)
        command = shlex.split(stopped[2])
        assert command == [
            "train",
            "--run-dir",
            str(run_dir),
            "--data-dir",
            str(texts),
            "--resume",
        ]
    code, said, err = server.start(*command).end()
    assert (code, err) == (0, ""), said + err
    assert_same(run_dir, reference)


SLOW_TEST = """
import time
from jaxlm.runs import trainer
def slow(run, *_):
    (run.folder.path / "testing").touch()
    time.sleep(60)
trainer._test = slow
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_in_the_test_says_how_to_resume(server, tmp_path, reference, number):
    run_dir = tmp_path / "run"
    process = server.start(*training(run_dir), before=SLOW_TEST)
    assert wait_for((run_dir / "testing").exists, process)
    process.send_signal(number)
    code, said, err = process.end()
    assert (code, err) == (128 + number, "error: interrupted\n"), said + err
    stopped = re.search(rf"stopped by {number.name} after .*: saved; resume with jaxlm (.*)", said)
    assert stopped, said
    code, said, err = server.start(*shlex.split(stopped[1])).end()
    assert (code, err) == (0, ""), said + err
    (run_dir / "testing").unlink()
    assert_same(run_dir, reference)


SLOW_SAVE = """
import time
from jaxlm.base.files import Folder
write = Folder.write
def slow(folder, name, data):
    write(folder, name, data)
    time.sleep(60 if name == "manifest.json" and ".partial-00000014" in str(folder.path) else 0)
Folder.write = slow
"""


# as `2>&1 | tee` after Ctrl-C
UNREAD = "\nimport os\nend, pipe = os.pipe()\nos.dup2(pipe, 2)\nos.close(end)\n"


@pytest.mark.parametrize("unread", ["", UNREAD])
def test_a_second_signal_ends_at_once_in_the_middle_of_a_save(server, tmp_path, reference, unread):
    run_dir = tmp_path / "run"
    process = server.start(*training(run_dir), before=SLOW_SAVE + unread)
    assert wait_for(
        lambda: any(run_dir.glob("checkpoints/.partial-00000014-*/manifest.json")), process
    )
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, _, err = process.end()
    assert code == 128 + signal.SIGTERM and ("stopped at once" in err) == (not unread)
    assert time.monotonic() - sent < 30
    assert assert_whole(run_dir) == 1
    finish(server, run_dir)
    assert_same(run_dir, reference)


HOLD = """
import sys, time
from jaxlm.runs.lock import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_second_process_is_refused_and_a_dead_one_is_taken_over(tmp_path):
    run_dir = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, run_dir]
    holder = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        expected = re.escape(
            f"in use by process {holder.pid} on {socket.gethostname()}: wait for it, or choose"
        )
        with pytest.raises(RunDirError, match=expected), lock(run_dir):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert f"process {holder.pid}" in (run_dir / ".lock").read_text()
    with lock(run_dir):
        assert f"process {os.getpid()} on" in (run_dir / ".lock").read_text()
    assert (run_dir / ".lock").read_text() == ""


@pytest.mark.parametrize("lives", [True, False])
def test_a_lock_of_another_host_is_taken_over_only_if_nobody_touches_it(
    tmp_path, monkeypatch, lives, capfd
):
    """As on a file system that does not carry the kernel's locks from host to host."""
    monkeypatch.setattr(locking, "SILENCE", 1.0)
    (tmp_path / ".lock").write_text("process 12 on else\x1bwhere\n")
    done = threading.Event()

    def touch() -> None:
        while lives and not done.wait(0.1):
            os.utime(tmp_path / ".lock")

    holder = threading.Thread(target=touch)
    holder.start()
    try:
        if lives:
            with (
                pytest.raises(RunDirError, match=r"in use by process 12 on else\\x1bwhere"),
                lock(tmp_path),
            ):
                pass
        else:
            with lock(tmp_path):
                pass
    finally:
        done.set()
        holder.join()
    assert r"was left by process 12 on else\x1bwhere: waiting up to" in capfd.readouterr().err


def test_a_holder_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "BEAT", 0.05)
    monkeypatch.setattr(locking, "SILENCE", 20.0)
    with lock(tmp_path) as held:
        assert locking._touched(held.folder)


def test_a_failed_beat_is_not_the_last(tmp_path, monkeypatch):
    """As of a file server that starts again."""
    failed = []
    touch = os.utime

    def utime(*arguments):
        if len(failed) < 3:
            failed.append(arguments)
            raise OSError(116, os.strerror(116))
        touch(*arguments)

    monkeypatch.setattr(locking, "BEAT", 0.05)
    monkeypatch.setattr(locking, "SILENCE", 20.0)
    monkeypatch.setattr(os, "utime", utime)
    with lock(tmp_path) as held:
        assert locking._touched(held.folder) and len(failed) == 3


@pytest.mark.slow
def test_a_run_is_reproduced_byte_for_byte(server, tmp_path):
    run_dir = tmp_path / "run"
    finish(server, run_dir, "--steps", "45")
    code, said, err = server.start("reproduce", run_dir, "--run-dir", tmp_path / "again").end()
    assert (
        code == 0 and f"{run_dir} and {tmp_path / 'again'} are the same, byte for byte" in said
    ), said + err
    assert kept(run_dir) == kept(tmp_path / "again")


def test_a_damaged_entry_of_the_compilation_cache_is_compiled_again_without_a_warning(
    server, tmp_path
):
    folder = tmp_path / "programs"
    own = (
        f"import os, jax; os.environ['JAX_COMPILATION_CACHE_DIR'] = {str(folder)!r}; "
        f"jax.config.update('jax_compilation_cache_dir', {str(folder)!r})"
    )

    def train(run_dir):
        code, out, err = server.start(*training(run_dir), "--steps", "1", before=own).end()
        assert (code, err) == (0, ""), out + err

    train(tmp_path / "run")
    entries = {path: path.stat().st_size for path in folder.glob("jit_*-cache")}
    assert entries
    for path, size in entries.items():
        os.truncate(path, size // 2)
    train(tmp_path / "again")  # asserts that nothing was said
    read = [
        path
        for path, size in entries.items()
        if not path.exists() or path.stat().st_size > size // 2
    ]
    assert read
    train(tmp_path / "once more")


NOTED = """
import time
from jaxlm.runs import signals
with signals.noted(together=1.0) as stop:
    print("ready", flush=True)
    while stop.signal is None:
        time.sleep(0.01)
    time.sleep(0.6)  # it saves
"""


def test_a_signal_that_comes_twice_is_one():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", NOTED], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.wait(30) == 0


def test_a_holder_whose_lock_was_taken_over_notices_and_leaves_it(tmp_path):
    with lock(tmp_path) as held:
        (tmp_path / ".lock").write_text(
            "process 12 on elsewhere\n"
        )  # as the other host writes into the same file
        with pytest.raises(RunDirError, match="taken over"):
            held.check()
    assert "elsewhere" in (tmp_path / ".lock").read_text()
