"""Loss of power: bytes are synced before they get their name,
and names before an older file is removed.

Kills cannot show this: the kernel keeps what a killed process wrote. So the calls themselves are
recorded.
"""

import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import jax.numpy as jnp
import pytest
from processes import CONFIG

from jaxlm.base.files import Folder
from jaxlm.data.corpora import load_corpus
from jaxlm.runs import checkpoint, directory
from jaxlm.runs.lock import lock
from jaxlm.runs.run import Run
from jaxlm.runs.trainer import new_state
from jaxlm.training.step import Metrics


class Recorder:
    """Notes what each fsync put on the disk, and every rename or removal that came too early."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._synced: dict[int, object] = {}  # inode -> a file's bytes, or a directory's names
        self.problems: list[str] = []
        self.renamed: list[str] = []
        self._real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "unlink")}
        self._rmtree = shutil.rmtree
        monkeypatch.setattr(os, "fsync", self._fsync)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._renaming(self._real[name]))
        monkeypatch.setattr(os, "unlink", self._unlink)
        monkeypatch.setattr(shutil, "rmtree", self._remove_tree)

    def unsynced(self, path: Path) -> list[str]:
        """The files and directories, at or below a path, whose present content was not synced."""
        below = [path, *path.rglob("*")] if path.is_dir() else [path]
        return [str(one) for one in below if not self._is_synced(one)]

    def _is_synced(self, path: Path) -> bool:
        found = self._synced.get(path.stat().st_ino)
        if path.is_dir():  # names that have gone since may come back
            return (
                isinstance(found, set)
                and {name for name in os.listdir(path) if name[0] != "."} <= found
            )
        return found == path.read_bytes()

    def _fsync(self, descriptor: int) -> None:
        self._real["fsync"](descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._synced[path.stat().st_ino] = (
            set(os.listdir(path)) if path.is_dir() else path.read_bytes()
        )

    def _renaming(self, rename):
        def call(source, target, *, src_dir_fd=None, dst_dir_fd=None):
            path = _path(source, src_dir_fd)
            if target.startswith("."):
                self._leaves(path)
            else:
                self.problems += [
                    f"{one} is not on the disk when {path} becomes {target}"
                    for one in self.unsynced(path)
                ]
            rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            self.renamed.append(target)

        return call

    def _unlink(self, name, *, dir_fd=None):
        self._leaves(_path(name, dir_fd))
        self._real["unlink"](name, dir_fd=dir_fd)

    def _remove_tree(self, name, *, dir_fd=None):
        self._leaves(_path(name, dir_fd))
        self._rmtree(_path(name, dir_fd))

    def _leaves(self, path: Path) -> None:
        if not self._is_synced(path.parent):
            self.problems.append(
                f"{path} leaves before the new names in {path.parent} are on the disk"
            )


def _path(name: str, folder: int | None) -> Path:
    if folder is not None:
        return Path(os.readlink(f"/proc/self/fd/{folder}"), name)
    return Path(name)


def test_a_checkpoint_its_metrics_and_its_directory_are_on_the_disk_before_an_older_one_goes(
    tmp_path, monkeypatch
):
    corpus = load_corpus("embedded-tiny")
    config = CONFIG.replace(vocab_size=len(corpus.vocab), keep_last=1)
    state = new_state(config)
    recorder = Recorder(monkeypatch)
    unsynced = []
    save = checkpoint.save

    def saving(run, *rest):
        unsynced.append(recorder.unsynced(run.path / "metrics.jsonl"))
        return save(run, *rest)

    monkeypatch.setattr(checkpoint, "save", saving)
    with ExitStack() as stack:
        held = stack.enter_context(lock(tmp_path / "run"))
        directory.begin(held.folder, config, corpus)
        run = Run(config, corpus, held, stack)
        for _ in range(3):
            some = jnp.ones(4)
            run.trained(Metrics(cost=some, grad_norm=some, learning_rate=some, finite=some > 0), 4)
            run.save(state)
            sealed = checkpoint.manifests(tmp_path / "run")[run.step].metrics
            assert sealed.bytes == (tmp_path / "run/metrics.jsonl").stat().st_size
            assert not recorder.unsynced(tmp_path / "run/checkpoints")
        assert not recorder.unsynced(tmp_path / "run/config.json") + recorder.unsynced(
            tmp_path / "run/run.json"
        )
    assert recorder.problems == [] and unsynced == [[], [], []]
    steps = [
        (name[0] == ".", found[1])
        for name in recorder.renamed
        if (found := re.fullmatch(r"(?:.partial-)?(0000.*?)(?:-[0-9a-f]{16})?", name))
    ]
    shown = False
    hidden = True
    assert steps == [
        (shown, "00000004"),
        (shown, "00000008"),
        (hidden, "00000004"),
        (shown, "00000012"),
        (hidden, "00000008"),
    ]


def test_a_replaced_file_and_its_name_are_on_the_disk(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    with Folder.open(tmp_path / "a/b", create=True) as folder:
        folder.write("x", b"1")
        folder.write("x", b"22")
        with folder.folder("c", create=True) as inner:
            inner.write("y", b"3")
    assert recorder.problems == [] and recorder.unsynced(tmp_path / "a") == []
