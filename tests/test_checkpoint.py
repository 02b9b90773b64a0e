"""Checkpoints: every damage is found and named, nothing unfinished is read, and a stranger's is only data."""

import dataclasses
import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import CONFIG

import jaxlm
from jaxlm.data.vocab import Vocab
from jaxlm.errors import CheckpointError
from jaxlm.runs import checkpoint
from jaxlm.runs import manifest as sealed
from jaxlm.runs.loop import new_state
from jaxlm.runs.manifest import Manifest

SMALL = CONFIG.replace(vocab_size=5)
VOCAB = Vocab(("<unk>", "<eos>", "a", "b", "c"))


def save(run_dir: Path, step: int = 1, valid: float | None = None, epoch: int = 0, config=SMALL, vocab=VOCAB):
    run_dir.mkdir(exist_ok=True)
    (run_dir / "metrics.jsonl").write_text('{"kind":"note"}\n' * step)
    state = dataclasses.replace(new_state(config), step=jax.numpy.int32(step))
    return checkpoint.save(run_dir, state, config, vocab, Manifest(step, epoch, valid, {"name": "none"}))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint") / "run")


@pytest.fixture
def path(original, tmp_path):
    """A copy of a checkpoint, to be damaged."""
    return shutil.copytree(original, tmp_path / "run/checkpoints" / original.name)


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def refused(path: Path, message: str) -> str:
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_read_is_what_was_saved(original):
    found = checkpoint.read(original)
    state = dataclasses.replace(new_state(SMALL), step=jax.numpy.int32(1))
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    for (name, old), (_, new) in zip(*(checkpoint._named_leaves(checkpoint._without_keys(tree))
                                       for tree in (state, found.state)), strict=True):
        assert old.dtype == new.dtype and np.array_equal(old, new), name
    assert (found.config, found.vocab, found.manifest.step) == (SMALL, VOCAB, 1)


def test_equal_states_give_equal_bytes(original, tmp_path):
    again = save(tmp_path / "run")
    assert [file.read_bytes() for file in files(again)] == [file.read_bytes() for file in files(original)]


def test_every_flipped_bit_is_found(path):
    rng, found = random.Random(0), 0
    everywhere = files(path)
    for trial in range(100):
        file = everywhere[trial % len(everywhere)] if trial < 50 else rng.choices(
            everywhere, [file.stat().st_size for file in everywhere])[0]
        data = file.read_bytes()
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        file.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1:])
        found += str(file) in refused(path, "is damaged")
        file.write_bytes(data)
    assert found == 100
    checkpoint.read(path)


@pytest.mark.parametrize("damage", ["removed", "emptied", "shortened", "lengthened", "a folder", "a link"])
def test_every_file_is_held_to_its_bytes(path, tmp_path, damage):
    for file in files(path):
        data = file.read_bytes()
        file.unlink()
        if damage == "a folder":
            file.mkdir()
        elif damage == "a link":
            (tmp_path / "elsewhere").write_bytes(data)
            file.symlink_to(tmp_path / "elsewhere")
        elif damage != "removed":
            file.write_bytes({"emptied": b"", "shortened": data[:-1], "lengthened": data + b"\n"}[damage])
        assert str(file) in refused(path, "is damaged"), file
        shutil.rmtree(file) if damage == "a folder" else file.unlink(missing_ok=True)
        file.write_bytes(data)
    checkpoint.read(path)


def test_a_damaged_checkpoint_is_refused_and_the_newest_intact_one_offered(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, config=SMALL.replace(keep_last=3))
    (tmp_path / "checkpoints/00000003/vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"00000003/vocab.json is damaged.* newest intact one is 2: name it with"):
        jaxlm.load(tmp_path)
    assert jaxlm.load(tmp_path, "2").manifest.step == 2
    found, problems = checkpoint.newest_intact(tmp_path)
    assert found and found.manifest.step == 2 and len(problems) == 1


def test_labels_and_the_policy(tmp_path):
    config = SMALL.replace(keep_last=2, keep_every=4)
    for step, valid in enumerate([9.0, 5.0, 7.0, 8.0, float("nan"), 6.0, None, 9.5, None], 1):
        save(tmp_path, step, valid, epoch=step, config=config)
        assert checkpoint.find(tmp_path).name == f"{step:08d}"
    assert list(checkpoint.manifests(tmp_path)) == [2, 4, 8, 9]
    assert checkpoint.find(tmp_path, "best").name == "00000002"
    with pytest.raises(CheckpointError, match="has no checkpoint '3'; it has 2, 4, 8, 9"):
        checkpoint.find(tmp_path, "3")
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        checkpoint.find(tmp_path / "nowhere")


def test_what_is_unfinished_is_never_read_and_is_cleaned_up(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "00000001", folder / ".00000009.partial")
    shutil.copytree(folder / "00000001", folder / ".00000008.removed")
    assert checkpoint.find(tmp_path).name == "00000001"
    assert list(checkpoint.manifests(tmp_path)) == [1]
    save(tmp_path, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["00000001", "00000002"]


def test_a_later_damaged_one_does_not_outlive_the_resumed_run(tmp_path):
    for step in (1, 5, 6):
        save(tmp_path, step, 2.0, config=SMALL.replace(keep_last=3))
    for step in (5, 6):
        (tmp_path / f"checkpoints/{step:08d}/state/step/0").write_bytes(b"....")
    save(tmp_path, 2)
    assert list(checkpoint.manifests(tmp_path)) == [1, 2]
    assert checkpoint.find(tmp_path).name == "00000002"


def test_one_of_the_same_step_is_replaced(tmp_path):
    for _ in range(2):
        (save(tmp_path, 3) / "vocab.json").write_text("[]")
    assert checkpoint.read(save(tmp_path, 3)).manifest.step == 3


def forge(path: Path, **changes) -> None:
    """Seals a checkpoint anew, with its files as they are now, as a stranger could."""
    sealed.write(path, dataclasses.replace(MANIFEST, **changes))


MANIFEST = Manifest(1, 0, None, {"name": "none"})


def rewrite(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def huge_config(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    config["model"].update(changes)
    (path / "config.json").write_text(json.dumps(config))


FORGERIES = {
    "compressed": (lambda p: rewrite(p / "state/step/.zarray", compressor={"id": "zlib", "level": 9}), "plain"),
    "filtered": (lambda p: rewrite(p / "state/step/.zarray", filters=[{"id": "delta"}]), "plain"),
    "a terabyte's shape": (lambda p: rewrite(p / "state/params.embedding/.zarray", shape=[2**20, 2**18]), "plain"),
    "a terabyte's chunk": (lambda p: rewrite(p / "state/step/.zarray", chunks=[2**40]), "plain"),
    "a terabyte's type": (lambda p: rewrite(p / "state/step/.zarray", dtype="|S1000000000000"), "plain"),
    "two shapes": (lambda p: (p / "state/step/.zarray").write_text(
        (p / "state/step/.zarray").read_text().replace("{", '{"shape":[1099511627776],', 1)), "plain"),
    "deep JSON": (lambda p: (p / "state/step/.zarray").write_text("[" * 100_000), "plain"),
    "another format": (lambda p: rewrite(p / "state/_METADATA", use_ocdbt=True), "plain"),
    "zarr 3": (lambda p: rewrite(p / "state/_METADATA", use_zarr3=True), "plain"),
    "another tree": (lambda p: rewrite(p / "state/_METADATA", tree_metadata={}), "plain"),
    "a string for an array": (lambda p: (p / "state/_METADATA").write_text(
        (p / "state/_METADATA").read_text().replace("np.ndarray", "string", 1)), "plain"),
    "a key that leads out": (lambda p: (p / "state/_METADATA").write_text(
        (p / "state/_METADATA").read_text().replace('"key": "step"', '"key": "../../../etc"', 1)), "plain"),
    "a config of a terabyte": (lambda p: huge_config(p, embedding_size=2**38), "asks for"),
    "a config beyond all numbers": (lambda p: huge_config(p, embedding_size=2**200), "asks for|cannot be read"),
    "a config of many layers": (lambda p: huge_config(p, hidden_sizes=[1] * 90_000), "layers"),
    "a config of wider layers": (lambda p: huge_config(p, hidden_sizes=[8, 7]), "expected 28 bytes|is damaged"),
    "a config that is none": (lambda p: (p / "config.json").write_text("[]"), "expected a JSON object"),
    "a huge config": (lambda p: (p / "config.json").write_text(" " * (2 << 20)), "at most 1,048,576 bytes"),
    "a huge layout": (lambda p: (p / "state/_METADATA").write_text(" " * (2 << 20)), "at most 1,048,576 bytes"),
    "another vocabulary": (lambda p: (p / "vocab.json").write_text('["a"]'), "1 words for a model of 5"),
    "a vocabulary that is none": (lambda p: (p / "vocab.json").write_text('{"a": 1}'), "should be a JSON list"),
    "one file more": (lambda p: (p / "state/checkpoint").write_bytes(b"\x80\x04."), "does not belong"),
    "a pickle": (lambda p: (p / "state/step/1.pkl").write_bytes(b"\x80\x04."), "does not belong"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_strangers_checkpoint_is_only_data(path, name):
    change, message = FORGERIES[name]
    forge(path)
    checkpoint.read(path)
    change(path)
    forge(path)
    refused(path, message)


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "state/../../outside"])
def test_a_manifest_names_no_file_outside(path, tmp_path, name):
    (tmp_path / "run/outside").write_text("x")
    tree = json.loads((path / "manifest.json").read_text())
    del tree["sha256"]
    tree["files"][name] = "0" * 64
    (path / "manifest.json").write_text(sealed._seal(tree))
    refused(path, re.escape(name) + " does not belong")


def test_a_linked_folder_is_refused(path, tmp_path):
    shutil.move(path / "state/params.embedding", tmp_path / "elsewhere")
    (path / "state/params.embedding").symlink_to(tmp_path / "elsewhere")
    refused(path, "does not belong|is damaged")


def test_a_pipe_or_a_device_is_not_waited_for(path):
    for name in ("manifest.json", "config.json", "state/step/0"):
        (path / name).rename(path / "aside")
        os.mkfifo(path / name)
        refused(path, "is damaged")
        (path / name).unlink()
        (path / "aside").rename(path / name)


@pytest.mark.parametrize("change", [{"step": -1}, {"step": "1"}, {"step": 2**40}, {"epoch": None}, {"files": []},
                                    {"corpus": {"name": 1}}, {"valid_perplexity": "low"}, {"format": 2},
                                    {"more": 1}, {"step": 2}])
def test_a_sealed_manifest_of_nonsense_is_refused(path, change):
    tree = json.loads((path / "manifest.json").read_text())
    del tree["sha256"]
    (path / "manifest.json").write_text(sealed._seal({**tree, **change}))
    refused(path, "manifest.json is damaged")


@pytest.mark.slow
def test_a_checkpoint_of_small_costs_less_than_a_hundredth_of_its_epoch(tmp_path, capsys):
    """An epoch of `small` takes 100 s on two cores, so a checkpoint may take one."""
    config = jaxlm.preset("small")
    vocab = Vocab(tuple(f"word{i}" for i in range(config.model.vocab_size)))
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind":"note"}\n' * 60_000)
    state, seconds = new_state(config), []
    for step in range(6):
        start = time.perf_counter()
        checkpoint.save(tmp_path, state, config, vocab, Manifest(step, step, 100.0 - step, {"name": "none"}))
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        size = sum(file.stat().st_size for file in files(checkpoint.find(tmp_path)))
        print(f"\na checkpoint of {size / 1e6:.1f} MB: median {sorted(seconds)[3]:.2f} s, worst {max(seconds):.2f} s")
    assert sorted(seconds)[3] < 1
