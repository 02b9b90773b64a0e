"""Files that are kept: replaced at once, bounded, sealed, and never reached through a link."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.base import files, hashed_json
from jaxlm.base.files import Folder, new_folder, output
from jaxlm.runs.lock import lock

SPARSE = 1 << 40
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    with Folder.open(tmp_path / "run", create=True) as folder:
        yield folder


def written(path: Path, data: bytes) -> None:
    """Writes a file at a path that a user gave."""
    with files.output(path) as file:
        file.write(data)


def in_the_way(path: Path, what: str, target: Path) -> None:
    """Puts something else than a regular file at a path."""
    if what == "a link":
        path.symlink_to(target)
    elif what == "a FIFO":
        os.mkfifo(path)
    elif what == "a directory":
        path.mkdir()
    elif what == "a socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)


def test_a_file_is_replaced_at_once_with_the_modes_of_the_umask(folder):
    old = os.umask(0o027)
    try:
        folder.write("a", b"one")
        folder.write("a", b"two")
        folder.write("b", b"three")
    finally:
        os.umask(old)
    assert (folder.read("a", 3), folder.read("b", 5)) == (b"two", b"three")
    assert [stat.S_IMODE((folder.path / name).stat().st_mode) for name in "ab"] == [0o640, 0o640]
    assert folder.names() == ["a", "b"]


def test_a_new_directory_and_those_above_it_are_durable(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor)), sync(descriptor))
    )
    for _ in range(2):  # the second time they are there
        with Folder.open(tmp_path / "a/b", create=True):
            pass
    assert len(synced) == 2
    for above in (tmp_path, tmp_path / "a"):
        assert any(os.path.samestat(above.stat(), status) for status in synced)


def test_a_failed_replacement_leaves_the_old_file_alone(folder):
    folder.write("a", b"old")
    with pytest.raises(RuntimeError), folder.replacing("a") as file:
        file.write(b"new")
        raise RuntimeError
    assert folder.read("a", 3) == b"old" and folder.names() == ["a"]


KILLED = """
import os, sys
from jaxlm.base.files import Folder
with Folder.open(sys.argv[1]) as folder, folder.replacing("a") as file:
    file.write(b"new")
    os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_leaves_the_old_file_and_a_name_that_clean_removes(folder):
    folder.write("a", b"old")
    subprocess.run(
        [sys.executable, "-c", KILLED, folder.path], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert folder.read("a", 3) == b"old" and len(folder.names()) == 2
    folder.clean()
    assert folder.names() == ["a"]


@pytest.mark.parametrize("what", ["a link", "a FIFO", "a directory", "a socket"])
@pytest.mark.parametrize(
    "use", [lambda f: f.read("x", 9), lambda f: f.append("x"), lambda f: f.reader("x")]
)
def test_only_a_regular_file_is_opened_and_none_is_waited_for(
    folder, tmp_path, what, use: Callable
):
    (tmp_path / "target").write_bytes(b"mine")
    in_the_way(folder.path / "x", what, tmp_path / "target")
    start = time.monotonic()
    with pytest.raises(OSError, match=what) as caught:
        use(folder)
    assert time.monotonic() - start < 60  # a machine may be busy; a FIFO is waited for without end
    assert caught.value.filename == str(folder.path / "x")
    assert (tmp_path / "target").read_bytes() == b"mine"


@pytest.mark.parametrize("what", ["a link", "a FIFO", "a socket"])
def test_a_write_replaces_what_is_in_the_way_and_never_follows_it(folder, tmp_path, what):
    (tmp_path / "target").write_bytes(b"mine")
    in_the_way(folder.path / "x", what, tmp_path / "target")
    folder.write("x", b"new")
    assert folder.read("x", 3) == b"new" and (tmp_path / "target").read_bytes() == b"mine"


def test_a_file_with_two_names_is_not_appended_to(folder, tmp_path):
    (tmp_path / "target").write_bytes(b"mine")
    os.link(tmp_path / "target", folder.path / "x")
    with pytest.raises(OSError, match="2 names"):
        folder.append("x")
    assert (tmp_path / "target").read_bytes() == b"mine"


def test_a_linked_folder_is_refused_and_removing_one_spares_its_target(folder, tmp_path):
    (tmp_path / "target/inner").mkdir(parents=True)
    (tmp_path / "target/mine").write_bytes(b"mine")
    (folder.path / "x").symlink_to(tmp_path / "target")
    for create in (False, True):
        with pytest.raises(OSError, match="expected a directory, found a link"):
            folder.folder("x", create=create)
    (folder.path / "tree/inner").mkdir(parents=True)
    (folder.path / "tree/inner/link").symlink_to(tmp_path / "target")
    for name in ("x", "tree", "missing"):
        folder.remove(name)
    assert folder.names() == [] and (tmp_path / "target/mine").read_bytes() == b"mine"
    with pytest.raises(OSError, match="expected a directory, found a regular file"):
        folder.write("file", b"")
        folder.folder("file")


def test_a_folder_stays_itself_while_its_path_is_replaced(folder, tmp_path):
    folder.path.rename(tmp_path / "moved")
    folder.path.symlink_to("/")
    folder.write("a", b"1")
    assert (tmp_path / "moved/a").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b"])
def test_a_name_is_one_entry(folder, name):
    for use in (
        lambda: folder.read(name, 1),
        lambda: folder.write(name, b""),
        lambda: folder.remove(name),
        lambda: folder.folder(name, create=True),
        lambda: folder.append(name),
        lambda: folder.exists(name),
        lambda: folder.rename(name, "x"),
    ):
        with pytest.raises(ValueError):
            use()
    assert folder.names() == []


@pytest.mark.parametrize(
    "name", ["a\\b", "gs:", os.fsdecode(b"\xff\xfe"), "\x1b[2J", "n\nl", "ü" * 120, "漢" * 85]
)
def test_any_other_name_works(folder, name):
    with folder.folder(name, create=True) as inner:
        inner.write(name, b"1")
        assert inner.read(name, 1) == b"1" and inner.names() == [name]
    folder.remove(name)


def test_irregular_entries_are_each_thing_that_is_no_file(folder, tmp_path):
    (folder.path / "a/b").mkdir(parents=True)
    (folder.path / "a/b/file").write_bytes(b"")
    assert folder.irregular_entries() == []
    in_the_way(folder.path / "a/b/link", "a link", tmp_path)
    in_the_way(folder.path / "fifo", "a FIFO", tmp_path)
    assert folder.irregular_entries() == [
        f"{folder.path / 'fifo'} (a FIFO)",
        f"{folder.path / 'a/b/link'} (a link)",
    ]
    (folder.path / ("d/" * 20)).mkdir(parents=True)
    assert folder.irregular_entries()[-1].endswith(
        "d/d (a directory)"
    )  # too deep for anything of ours


@pytest.mark.parametrize(
    "read",
    [
        lambda path, most: files.read_bytes(path, most),
        lambda path, most: Folder.open(path.parent).read(path.name, most),
    ],
)
def test_a_large_file_is_refused_by_its_size(tmp_path, read):
    path = tmp_path / "x"
    with open(path, "wb") as file:
        file.truncate(SPARSE)
    with pytest.raises(OSError, match="expected at most 10 bytes, found 1,099,511,627,776"):
        read(path, 10)
    os.truncate(path, 10)
    assert read(path, 10) == bytes(10)


@pytest.mark.parametrize(
    ("data", "said"), [(b"", None), (b"ten bytes.", None), (b"more than ten", "found 11")]
)
def test_a_pipe_of_the_shell_is_read_to_its_end_or_refused(data, said):
    """As `<(command)` names it."""
    end, start = os.pipe()
    try:
        os.write(start, data)
        os.close(start)
        with (
            pytest.raises(OSError, match=f"at most 10 bytes, {said}")
            if said
            else contextlib.nullcontext()
        ):
            assert files.read_bytes(f"/dev/fd/{end}", 10) == data
    finally:
        os.close(end)


def test_a_file_that_the_user_names_may_be_a_link_but_not_a_pipe(tmp_path):
    written(tmp_path / "x", b"1")
    (tmp_path / "link").symlink_to("x")
    assert files.read_bytes(tmp_path / "link", 1) == b"1"
    os.mkfifo(tmp_path / "fifo")
    for path, found in (
        (tmp_path / "fifo", "a FIFO"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a directory"),
    ):
        with pytest.raises(OSError, match=f"expected a regular file, found {found}"):
            files.read_bytes(path, 1)
    with pytest.raises(FileNotFoundError) as caught:
        files.read_bytes(tmp_path / "nowhere", 1)
    assert caught.value.filename == str(tmp_path / "nowhere")


TREES = st.dictionaries(
    st.text().filter(lambda name: name != "sha256"),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
)


@given(TREES, st.data())
@settings(max_examples=30)
def test_a_hash_shows_every_changed_byte(tree, data):
    raw = bytearray(hashed_json.to_hashed_json(tree).encode())
    assert hashed_json.from_hashed_json(bytes(raw)) == tree
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError):
        hashed_json.from_hashed_json(bytes(raw))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        "{}",
        '{"sha256": 1}',
        "[" * 100_000,
        '{"a": 1, "a": 1}',
        b"\xff",
        '{"a": %s}' % ("9" * 5000),
        json.dumps({"a": 1, "sha256": "0" * 64}, indent=1),
    ],
)
def test_what_carries_no_hash_is_refused(text):
    with pytest.raises(ValueError):
        hashed_json.from_hashed_json(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_strict_json_has_no_numbers_that_other_readers_refuse(constant):
    with pytest.raises(ValueError, match=f"{constant} is no number of JSON"):
        hashed_json.strict_json(f'{{"a": [{constant}]}}')
    kept = hashed_json.to_hashed_json({"a": float(constant)})  # as a diverged run's manifest
    assert str(hashed_json.from_hashed_json(kept.encode())["a"]) == str(float(constant))


@contextlib.contextmanager
def new_file(path: Path):
    """A file to write at a vacant path."""
    with files.vacant(path) as (parent, name), parent.replacing(name) as file:
        yield file


@pytest.mark.parametrize("make", [new_file, files.new_folder])
def test_what_is_new_appears_whole_or_not_at_all(tmp_path, make):
    def fill(made):
        assert not os.path.lexists(tmp_path / "above/new")
        made.write(b"all") if make is new_file else made.write("inside", b"all")

    with pytest.raises(KeyboardInterrupt), make(tmp_path / "above/new") as made:
        fill(made)
        raise KeyboardInterrupt
    assert list((tmp_path / "above").iterdir()) == []
    with make(tmp_path / "above/new") as made:
        fill(made)
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["new"]
    whole = tmp_path / "above/new" if make is new_file else tmp_path / "above/new/inside"
    assert whole.read_bytes() == b"all"
    with pytest.raises(OSError, match="something of this name"), make(tmp_path / "above/new"):
        raise AssertionError
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="something of this name"), make(tmp_path / "link"):
        raise AssertionError


def test_an_empty_directory_becomes_the_new_folder(tmp_path):
    (tmp_path / "new").mkdir()
    with files.new_folder(tmp_path / "new") as made:
        made.write("inside", b"")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["inside"]


def test_output_replaces_a_file_whole_and_a_links_target_while_the_link_stays(tmp_path):
    (tmp_path / "table").write_bytes(b"old")
    (tmp_path / "link").symlink_to("table")
    (tmp_path / "dangling").symlink_to("new")
    with pytest.raises(RuntimeError), files.output(tmp_path / "link") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "table").read_bytes() == b"old"
    for name, target in (("link", "table"), ("dangling", "new")):
        written(tmp_path / name, b"whole")
        assert (tmp_path / name).is_symlink() and (tmp_path / target).read_bytes() == b"whole"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "link", "new", "table"]


@pytest.mark.parametrize("through", ["itself", "a link"])
def test_output_to_a_pipe_or_a_device_is_written_through(tmp_path, through):
    """The nodes are the test's own: what was wrong replaced them by regular files."""
    os.mkfifo(tmp_path / "fifo")
    nodes = [tmp_path / "fifo"]
    with contextlib.suppress(PermissionError):  # only root may
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        nodes.append(tmp_path / "null")
    for node in nodes:
        path = node
        if through == "a link":
            path = node.with_name(f"to-{node.name}")
            path.symlink_to(node)
        before = node.lstat()
        heard = b""
        if node.name == "fifo":
            listener = os.open(node, os.O_RDONLY | os.O_NONBLOCK)
        try:
            written(path, b"said")
            heard = os.read(listener, 9) if node.name == "fifo" else b"said"
        except OSError:  # a mount without devices (nodev) opens none
            heard = b"said" if node.name == "null" else b""
        assert heard == b"said" and (node.lstat().st_ino, node.lstat().st_mode) == (
            before.st_ino,
            before.st_mode,
        )
    os.close(listener)


def test_output_to_standard_output_that_is_a_file_is_appended(tmp_path):
    with open(tmp_path / "out", "wb") as out:
        code = """
import os
from jaxlm.base import files
os.write(1, b"1")
with files.output("/dev/stdout") as file:
    file.write(b"2")
"""
        subprocess.run(
            [sys.executable, "-c", code],
            stdout=out,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
        assert os.path.samestat(os.fstat(out.fileno()), os.stat(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"12"


@pytest.mark.parametrize(
    ("mark", "name", "owner"),
    [
        ("run.json", "config.json", "run"),
        ("run.json", "run.json", "run"),
        ("run.json", "metrics.jsonl", "run"),
        ("run.json", "checkpoints/00000001/manifest.json", "run"),
        ("run.json", "checkpoints/more", "run"),
        (".claim", "study.journal", "sweep"),
        (".claim", "trials/0000/x", "sweep"),
        ("sweep.json", "sweep.csv", "sweep"),  # a copy without hidden files
        ("prepared.json", "train.ids", "corpus"),
    ],
)
def test_output_never_replaces_what_belongs_to_a_run(tmp_path, monkeypatch, mark, name, owner):
    path = tmp_path / "it" / name
    path.parent.mkdir(parents=True)
    (tmp_path / "it" / mark).write_bytes(b"")
    path.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "it")
    (tmp_path / "to").symlink_to(path)
    monkeypatch.chdir(tmp_path / "it")
    for named in (path, tmp_path / "link" / name, tmp_path / "to", Path(name)):
        with pytest.raises(OSError, match=f"belongs to the {owner} in .*: name another file"):
            written(named, b"yours")
    assert path.read_bytes() == b"mine"
    written(Path("report.html"), b"a file of one's own")
    assert Path("report.html").read_bytes() == b"a file of one's own"


@pytest.mark.parametrize("what", ["a link", "a FIFO"])
def test_output_in_a_runs_directory_follows_nothing_that_a_stranger_put_there(tmp_path, what):
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_bytes(b"")
    in_the_way(tmp_path / "run/embedding.png", what, tmp_path / "target")
    with pytest.raises(
        OSError, match=f"expected a regular file in the directory of a run, found {what}"
    ):
        written(tmp_path / "run/embedding.png", b"new")
    assert (tmp_path / "target").read_bytes() == b"mine"


@pytest.mark.parametrize("make", [files.output, new_file, files.new_folder])
def test_no_message_shows_the_name_of_an_unfinished_file(tmp_path, monkeypatch, make):
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught, make(tmp_path / "a") as made:
        made.write(b"1") if make is not files.new_folder else made.write("b", b"1")
    assert str(tmp_path / "a") in str(caught.value) and ".partial" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_an_output_outlives_a_run_that_begins_beside_it(tmp_path):
    with output(tmp_path / "x.tsv") as file:
        (tmp_path / ".partial-dead-0123456789abcdef").write_text("what a killed process left")
        with lock(tmp_path):
            assert not (tmp_path / ".partial-dead-0123456789abcdef").exists()
        file.write(b"1")
    assert (tmp_path / "x.tsv").read_bytes() == b"1"
    with new_folder(tmp_path / "adapted") as folder:
        (tmp_path / ".partial-dead-0123456789abcdef").mkdir()
        with lock(tmp_path):
            assert not (tmp_path / ".partial-dead-0123456789abcdef").exists()
        folder.write("x", b"1")
    assert (tmp_path / "adapted/x").read_bytes() == b"1"


def test_a_new_folder_survives_a_clean_that_saw_it_before_another_removed_it(tmp_path, monkeypatch):
    """Two at once: one removes the folder before its lock, the other what then has that name."""
    flock = fcntl.flock
    seen: list[str] = []

    def cleaned(descriptor, operation):
        if not seen:
            seen.extend(folder.names())
            folder.remove(seen[0])
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", cleaned)
    with Folder.open(tmp_path) as folder:
        with folder.new_folder("x") as made:
            folder.remove(seen[0])
            made.write("a", b"1")
        assert folder.names() == ["x"] and (tmp_path / "x/a").read_bytes() == b"1"


def test_a_lock_of_what_is_only_read_is_a_shared_one(tmp_path, monkeypatch):
    """NFS has no other (flock(2))."""
    flock = fcntl.flock

    def nfs(file, operation):
        writable = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and not writable:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", nfs)
    with Folder.open(tmp_path) as folder:
        with folder.replacing("x") as file:
            folder.clean()
            file.write(b"1")
        assert folder.read("x", 9) == b"1"


def test_a_signal_while_output_is_written_leaves_nothing_unfinished(tmp_path):
    """Both signals that ask a command to stop remove the unfinished file beside the output."""
    code = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
import jaxlm.__main__, jaxlm.cli
from jaxlm.base import files
from jaxlm.cli.ending import exit_code

def act():
    with files.output("out.txt") as file:
        file.write(b"half")
        print("ready", flush=True)
        time.sleep(60)

jaxlm.cli.main = lambda: exit_code(act)
jaxlm.__main__.main()
"""
    (tmp_path / "out.txt").write_text("old")
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        _, message = process.communicate(timeout=30)
        assert (process.returncode, message) == (128 + number, b"error: interrupted\n")
        assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
        assert (tmp_path / "out.txt").read_text() == "old"
