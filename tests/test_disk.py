"""Disks that are full, read-only or gone:
training says so in one sentence, and what was saved stays valid.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from processes import CONFIG, assert_same, kept, load_text, training, wait_for, windows

import jaxlm
from jaxlm.base.errors import DataError, RunDirError
from jaxlm.data.corpora import load_corpus
from jaxlm.runs import checkpoint


@pytest.fixture(scope="module")
def corpus():
    return load_text()


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory):
    result = jaxlm.train(CONFIG, corpus, tmp_path_factory.mktemp("disk") / "run", quiet=True)
    assert result.run_dir
    return kept(result.run_dir)


def fill(folder: Path, but: int) -> None:
    """Leaves so many bytes free."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(b"x" * (free - but))


def assert_whole(run_dir: Path) -> int:
    found = [path for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit()]
    for path in found:
        checkpoint.read(path)
    assert not list((run_dir / "checkpoints").glob(".*")) and not list(run_dir.glob(".partial-*"))
    return len(found)


@pytest.mark.parametrize("free", [0, pytest.param(10_000, marks=pytest.mark.slow), 60_000])
def test_a_full_disk_stops_it_clearly_and_it_goes_on_once_there_is_room(
    small_disk, corpus, reference, free
):
    run_dir = small_disk / "run"
    jaxlm.train(CONFIG, corpus, run_dir, quiet=True, steps=14)
    had = checkpoint.find(run_dir).name
    fill(small_disk, but=free)
    with pytest.raises(RunDirError, match=r"No space left on device|cannot save") as caught:
        for _ in range(2):
            jaxlm.train(CONFIG, corpus, run_dir, quiet=True, resume=True)
            fill(small_disk, but=0)
    assert "\n" not in str(caught.value) and re.search("fix that, ", str(caught.value))
    assert assert_whole(run_dir) and checkpoint.find(run_dir).name >= had
    (small_disk / "filler").unlink()
    jaxlm.train(CONFIG, corpus, run_dir, quiet=True, resume=True)
    assert_same(run_dir, reference)


def test_a_full_disk_has_no_place_for_a_new_run(small_disk, corpus):
    fill(small_disk, but=0)
    with pytest.raises(RunDirError, match="No space left on device"):
        jaxlm.train(CONFIG, corpus, small_disk / "run", quiet=True)
    (small_disk / "filler").unlink()
    jaxlm.train(CONFIG, corpus, small_disk / "run", quiet=True, steps=1)


@pytest.mark.parametrize("free", [0, 30_000, 300_000, 700_000])
def test_a_full_disk_stops_a_preparation_and_it_goes_on_once_there_is_room(
    small_disk, tmp_path, free
):
    text = tmp_path / "text"
    out = small_disk / "out"
    text.write_text("some words of a text\n" * 20_000)  # 480 kB of provisional ids, then 240 kB
    fill(small_disk, but=free)
    with pytest.raises(
        DataError, match=r"out.* cannot be written: No space left on device; fix that and run"
    ) as caught:
        jaxlm.prepare(text, out)
    assert "\n" not in str(caught.value)
    (small_disk / "filler").unlink()
    assert jaxlm.prepare(text, out).sha256 == load_corpus(text).sha256
    assert not list(small_disk.glob(".partial*"))


def test_a_read_only_disk(small_disk, corpus):
    run_dir = small_disk / "run"
    trained = jaxlm.train(CONFIG, corpus, run_dir, quiet=True, steps=7)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for folder, resume in ((run_dir, True), (small_disk / "another", False)):
        with pytest.raises(
            RunDirError, match=r"Read-only file system; .* choose another --run-dir"
        ):
            jaxlm.train(CONFIG, corpus, folder, quiet=True, resume=resume)
    loaded = jaxlm.load(run_dir)  # reading needs no lock
    assert loaded.evaluate("test", corpus=corpus).perplexity == trained.test_perplexity


def test_a_limit_on_the_size_of_files(server, tmp_path):
    """A real EFBIG in a real process, in the metrics and in the checkpoint's arrays."""
    run_dir = tmp_path / "run"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))"
    code, _, said = server.start(*training(run_dir), before=limit).end()
    assert code == 1 and re.search("error: .*(File too large|cannot save)", said), said
    assert said.count("error:") == 1
    assert_whole(run_dir)


def test_a_directory_that_vanishes(server, tmp_path):
    run_dir = tmp_path / "run"
    process = server.start(*training(run_dir))
    assert wait_for(lambda: windows(run_dir) > 8, process)
    os.rename(run_dir, tmp_path / "moved")
    code, _, said = process.end()
    assert code == 1 and f"error: {run_dir} was removed or replaced" in said, said
    assert not run_dir.exists() and assert_whole(tmp_path / "moved")


def test_where_a_file_is_in_the_way(tmp_path, corpus):
    (tmp_path / "run").write_text("a file")
    for resume in (False, True):
        with pytest.raises(RunDirError):
            jaxlm.train(CONFIG, corpus, tmp_path / "run", quiet=True, resume=resume)
    assert (tmp_path / "run").read_text() == "a file"
