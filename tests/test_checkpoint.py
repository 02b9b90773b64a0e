"""Checkpoints: every damage is found and named, nothing unfinished is read,
and a stranger's is only data.
"""

import dataclasses
import errno
import hashlib
import json
import os
import random
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import CONFIG
from safetensors.numpy import load as arrays_of
from safetensors.numpy import save as bytes_of

import jaxlm
from jaxlm.base.errors import CheckpointError
from jaxlm.base.files import Folder
from jaxlm.base.hashed_json import to_hashed_json
from jaxlm.data.vocab import Vocab
from jaxlm.runs import checkpoint, ram, state_arrays
from jaxlm.runs.checkpoint import Manifest
from jaxlm.runs.trainer import new_state

SMALL = CONFIG.replace(vocab_size=5)
VOCAB = Vocab(("<unk>", "<eos>", "a", "b", "c"))


def save(
    run_dir: Path,
    step: int = 1,
    valid: float | None = None,
    epoch: int = 0,
    config=SMALL,
    vocab=VOCAB,
):
    run_dir.mkdir(exist_ok=True)
    state = dataclasses.replace(new_state(config), step=jax.numpy.int32(step))
    with Folder.open(run_dir) as run:
        checkpoint.save(
            run, state, config, vocab, Manifest(step, epoch, valid, {"name": "none", "sha256": "0"})
        )
    return run_dir / f"checkpoints/{step:08d}"


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
    assert state_arrays.encoded(found.state) == state_arrays.encoded(state)
    assert (found.config, found.vocab, found.manifest.step) == (SMALL, VOCAB, 1)


def test_the_best_is_the_earliest_of_the_lowest():
    of = {3: 120.0, 5: 100.0, 7: None, 9: 100.0, 11: float("nan")}
    assert (
        checkpoint.best_step({step: Manifest(step, 1, valid, {}) for step, valid in of.items()})
        == 5
    )


def test_equal_states_give_equal_bytes(original, tmp_path):
    again = save(tmp_path / "run")
    assert [file.read_bytes() for file in files(again)] == [
        file.read_bytes() for file in files(original)
    ]


def test_the_arrays_are_one_file_that_others_open(original):
    """PyTorch and any other reader of safetensors;
    PRNG keys are their bits, and shapes are the config's.
    """
    found = arrays_of((original / "state.safetensors").read_bytes())
    state = checkpoint.read(original).state
    expected = state_arrays.shapes(state_arrays._without_keys(state))
    assert {name: array.shape for name, array in found.items()} == expected and expected["key"] == (
        2,
    )
    assert np.array_equal(found["params.layers.0.kernel"], state.params["layers"][0]["kernel"])


def test_any_tree_of_arrays_is_saved_by_its_names(tmp_path):
    """Also scalars, bfloat16, empty arrays, and arrays in another order of memory."""
    tree = {
        "a": [np.zeros((2, 3), np.float32).T, jax.numpy.ones(3, "bfloat16")],
        "key": jax.random.key(1),
        "count": np.int32(7),
        "empty": np.zeros((0, 4)),
    }
    with Folder.open(tmp_path) as run:
        checkpoint.save(
            run, tree, SMALL, VOCAB, Manifest(1, 0, None, {"name": "none", "sha256": "0"})
        )
    header = str((tmp_path / "checkpoints/00000001/state.safetensors").read_bytes())
    names = re.findall('"([^"]+)":{"dtype":"([A-Z0-9]+)","shape":(.*?),"data', header)
    assert sorted(names) == [
        ("a.0", "F32", "[3,2]"),
        ("a.1", "BF16", "[3]"),
        ("count", "I32", "[]"),
        ("empty", "F64", "[0,4]"),
        ("key", "U32", "[2]"),
    ]


def test_every_flipped_bit_is_found(path):
    rng = random.Random(0)
    found = 0
    everywhere = files(path)
    for trial in range(100):
        file = (
            everywhere[trial % len(everywhere)]
            if trial < 50
            else rng.choices(everywhere, [file.stat().st_size for file in everywhere])[0]
        )
        data = file.read_bytes()
        at = rng.randrange(len(data))
        bit = 1 << rng.randrange(8)
        file.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        found += str(file) in refused(path, "is damaged")
        file.write_bytes(data)
    assert found == 100
    checkpoint.read(path)


@pytest.mark.parametrize(
    "damage", ["removed", "emptied", "shortened", "lengthened", "a folder", "a link"]
)
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
            file.write_bytes(
                {"emptied": b"", "shortened": data[:-1], "lengthened": data + b"\n"}[damage]
            )
        assert str(file) in refused(path, "is damaged"), file
        shutil.rmtree(file) if damage == "a folder" else file.unlink(missing_ok=True)
        file.write_bytes(data)
    checkpoint.read(path)


def test_a_damaged_checkpoint_is_refused_and_the_newest_intact_one_offered(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, config=SMALL.replace(keep_last=3))
    (tmp_path / "checkpoints/00000003/vocab.json").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"00000003/vocab.json is damaged.* newest intact one is 2: name it with",
    ):
        jaxlm.load(tmp_path)
    assert checkpoint.load(tmp_path, "2").manifest.step == 2
    found, problems = checkpoint.newest_intact(tmp_path)
    assert found and found.manifest.step == 2 and len(problems) == 1


def test_one_that_there_is_no_memory_for_now_is_not_taken_for_damaged(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)
    room = iter([0])
    monkeypatch.setattr(ram, "available", lambda: next(room, 2**40))
    with pytest.raises(
        CheckpointError, match=r"00000002 cannot be read: its config needs at least .* of memory"
    ):
        checkpoint.newest_intact(tmp_path)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(state_arrays, "decoded", full)
    with pytest.raises(
        CheckpointError,
        match=r"00000002/state\.safetensors cannot be read: there is not enough memory",
    ):
        checkpoint.newest_intact(tmp_path)


@pytest.mark.parametrize("name", ["00000002", "manifest.json", "vocab.json"])
def test_one_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch, name):
    for step in (1, 2):
        save(tmp_path, step)
    opened = os.open

    def refusing(path, flags, mode=0o777, *, dir_fd=None):  # (the superuser may read everything)
        if os.path.basename(path) == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: Permission denied"):
        checkpoint.newest_intact(tmp_path)


def test_labels_and_the_policy(tmp_path):
    config = SMALL.replace(keep_last=2, keep_every=4)
    for step, valid in enumerate([9.0, 5.0, 7.0, 8.0, float("nan"), 6.0, None, 9.5, None], 1):
        save(tmp_path, step, valid, epoch=step, config=config)
        assert checkpoint.find(tmp_path).name == f"{step:08d}"
    assert list(checkpoint.manifests(tmp_path)) == [2, 4, 8, 9]
    assert checkpoint.find(tmp_path, "best").name == checkpoint.find(tmp_path, 2).name == "00000002"
    with pytest.raises(CheckpointError, match="has no checkpoint '3'; it has 2, 4, 8, 9"):
        checkpoint.find(tmp_path, "3")
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        checkpoint.find(tmp_path / "nowhere")


def test_what_is_unfinished_is_never_read_and_is_cleaned_up(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "00000001", folder / ".partial-00000009-0123456789abcdef")
    assert checkpoint.find(tmp_path).name == "00000001"
    assert list(checkpoint.manifests(tmp_path)) == [1]
    save(tmp_path, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["00000001", "00000002"]


def test_cleaning_up_removes_only_names_of_ours(tmp_path):
    save(tmp_path, 1)
    mine = [
        "checkpoints/.git",
        "checkpoints/.config",
        "checkpoints/.partial-1",
        "checkpoints/notes",
        ".partial-dir",
    ]
    for name in mine:
        (tmp_path / name / "inner").mkdir(parents=True)
    for name in (".partial-a-0123456789abcdef", "checkpoints/.partial-00000003-0123456789abcdef"):
        (tmp_path / name).write_text("x")
    save(tmp_path, 2)
    with Folder.open(tmp_path) as run:
        run.clean()
    assert [name for name in mine if not (tmp_path / name / "inner").is_dir()] == []
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and "00000" not in str(path.parent)
    ]


def test_a_later_damaged_one_does_not_outlive_the_resumed_run(tmp_path):
    for step in (1, 5, 6):
        save(tmp_path, step, 2.0, config=SMALL.replace(keep_last=3))
    for step in (5, 6):
        (tmp_path / f"checkpoints/{step:08d}/state.safetensors").write_bytes(b"....")
    with Folder.open(tmp_path) as run:
        checkpoint.set_aside_later(run, 1)
    save(tmp_path, 2)
    assert list(checkpoint.manifests(tmp_path)) == [1, 2]
    assert checkpoint.find(tmp_path).name == "00000002"
    assert (tmp_path / "checkpoints/00000006.damaged/state.safetensors").read_bytes() == b"...."


def test_an_earlier_one_that_cannot_be_read_is_left_to_its_owner(tmp_path):
    """It may be one that is kept for good, and what damaged it may be taken away again."""
    save(tmp_path, 1)
    manifest = tmp_path / "checkpoints/00000001/manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(b"x" + whole[1:])
    for step in (2, 3, 4):
        save(tmp_path, step)
    manifest.write_bytes(whole)
    assert list(checkpoint.manifests(tmp_path)) == [1, 3, 4]
    save(tmp_path, 5)
    assert list(checkpoint.manifests(tmp_path)) == [4, 5]


def test_one_of_the_same_step_is_replaced(tmp_path):
    for _ in range(2):
        (save(tmp_path, 3) / "vocab.json").write_text("[]")
    assert checkpoint.read(save(tmp_path, 3)).manifest.step == 3


def forge(path: Path, **changes) -> None:
    """Seals a checkpoint anew, with its files as they are now, as a stranger could."""
    tree = json.loads((path / "manifest.json").read_text())
    del tree["sha256"]
    named = {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files(path)
        if file.name != "manifest.json"
    }
    (path / "manifest.json").write_text(to_hashed_json({**tree, "files": named, **changes}))


def config_of(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    config["model"].update(changes)
    (path / "config.json").write_text(json.dumps(config))


def state_of(path: Path, change: Callable[[dict], object]) -> None:
    arrays = arrays_of((path / "state.safetensors").read_bytes())
    change(arrays)
    (path / "state.safetensors").write_bytes(bytes_of(arrays))


def header_of(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = (path / "state.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = change(data[8 : 8 + size])
    (path / "state.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + data[8 + size :]
    )


def swap(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(header: bytes) -> bytes:
        assert old in header
        return header.replace(old, new, 1)

    return lambda path: header_of(path, change)


CONFIGS = {
    "a config of a terabyte": (
        lambda p: config_of(p, embedding_size=2**30, hidden_sizes=[2**20]),
        "needs at least .* of memory",
    ),
    "a config beyond all numbers": (
        lambda p: config_of(p, embedding_size=2**200),
        "embedding_size",
    ),
    "a config of many layers": (lambda p: config_of(p, hidden_sizes=[1] * 90_000), "layers"),
    "a config that is none": (
        lambda p: (p / "config.json").write_text("[]"),
        "expected a JSON object",
    ),
    "a huge config": (
        lambda p: (p / "config.json").write_text(" " * (2 << 20)),
        "at most 1,048,576 bytes",
    ),
    "another vocabulary": (
        lambda p: (p / "vocab.json").write_text('["a"]'),
        "1 words for a model of",
    ),
    "a vocabulary that is none": (
        lambda p: (p / "vocab.json").write_text('{"a": 1}'),
        "no vocabulary that jaxlm wrote",
    ),
    "one file more": (lambda p: (p / "state2").write_bytes(b"\x80\x04."), "state2 does not belong"),
    "a file in a folder more": (
        lambda p: (p / "more").mkdir() or (p / "more/x").write_bytes(b""),
        "does not belong",
    ),
    "a pickle": (lambda p: (p / "1.pkl").write_bytes(b"\x80\x04."), "does not belong"),
}
FORGERIES = {
    "wider layers": (
        lambda p: config_of(p, hidden_sizes=[5]),
        "'carry.0.c'.* .50, 5., found float32 .50, 4.",
    ),
    "another shape": (
        lambda p: state_of(p, lambda a: a.update(step=np.zeros(1, np.int32))),
        "'step'.*int32 .1.",
    ),
    "another type": (
        lambda p: state_of(p, lambda a: a.update(step=np.array(1, np.float32))),
        "'step'.* float32",
    ),
    "an array less": (lambda p: state_of(p, lambda a: a.pop("key")), "'key'.*found none"),
    "an array more": (
        lambda p: state_of(p, lambda a: a.update(more=np.zeros(1))),
        "'more'.* to be none",
    ),
    "a terabyte's shape": (
        swap(b'"shape":[5,4]', b'"shape":[1048576,1048576]'),
        "not a file of safetensors",
    ),
    "a shape that is a text": (
        swap(b'"shape":[5,4]', b'"shape":["x",99999999999999]'),
        "not a file of safetensors",
    ),
    "a type unknown": (swap(b'"F32"', b'"X99"'), "not a file of safetensors"),
    "a type that is little used": (swap(b'"dtype":"F32"', b'"dtype":"F8_E5M2"'), "safetensors"),
    "offsets outside": (
        swap(b'"data_offsets":[0,', b'"data_offsets":[99999999,'),
        "not a file of safetensors",
    ),
    "negative offsets": (
        swap(b'"data_offsets":[0,', b'"data_offsets":[-1,'),
        "not a file of safetensors",
    ),
    "no JSON": (lambda p: header_of(p, lambda h: b"x" * len(h)), "not a file of safetensors"),
    "deep JSON": (lambda p: header_of(p, lambda h: b"[" * 3000), "not a file of safetensors"),
    "a header of a terabyte": (
        lambda p: (p / "state.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}"),
        "not a file of safetensors",
    ),
    "an empty file": (
        lambda p: (p / "state.safetensors").write_bytes(b""),
        "not a file of safetensors",
    ),
    "a tail": (
        lambda p: (p / "state.safetensors").open("ab").write(b"x") and None,
        "not a file of safetensors",
    ),
    "a longer tail": (lambda p: os.truncate(p / "state.safetensors", 1 << 40), "expected at most"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_strangers_checkpoint_is_only_data(path, name):
    change, message = CONFIGS[name]
    forge(path)
    checkpoint.read(path)
    change(path)
    forge(path)
    refused(path, message)


@pytest.mark.parametrize("name", FORGERIES)
def test_a_strangers_arrays_are_those_of_its_config(path, name):
    change, message = FORGERIES[name]
    files_before = json.loads((path / "manifest.json").read_text())["files"]
    change(path)
    if (path / "state.safetensors").stat().st_size < 1 << 20:
        forge(path)
    else:
        forge_without_state(path, files_before)
    refused(path, message)


def forge_without_state(path: Path, named: dict[str, str]) -> None:
    tree = json.loads((path / "manifest.json").read_text())
    del tree["sha256"]
    (path / "manifest.json").write_text(to_hashed_json({**tree, "files": named}))


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "state/../../outside", "."])
def test_a_manifest_names_no_file_outside(path, tmp_path, name):
    (tmp_path / "run/outside").write_text("x")
    tree = json.loads((path / "manifest.json").read_text())
    forge(path, files={**tree["files"], name: "0" * 64})
    refused(path, re.escape(name) + " does not belong|cannot be read")


def test_a_link_in_place_of_the_checkpoints_is_refused(path, tmp_path):
    """Whatever is behind it: nothing below a run's directory is opened through a link."""
    run_dir = path.parents[1]
    path.rename(tmp_path / "one")
    path.symlink_to(tmp_path / "one")
    with pytest.raises(CheckpointError, match="found a link"):
        checkpoint.load(run_dir)
    (run_dir / "checkpoints").rename(tmp_path / "aside")
    (run_dir / "checkpoints").symlink_to(tmp_path / "aside")
    for use in (checkpoint.load, checkpoint.find, checkpoint.manifests, checkpoint.newest_intact):
        with pytest.raises(
            CheckpointError,
            match=r"checkpoints cannot be read: expected a directory, found a link$",
        ):
            use(run_dir)


def test_a_pipe_or_a_sparse_file_is_not_waited_for(path, tmp_path):
    for name in ("manifest.json", "config.json", "vocab.json", "state.safetensors"):
        (path / name).rename(tmp_path / "aside")
        os.mkfifo(path / name)
        refused(path, "is damaged")
        (path / name).unlink()
        with open(path / name, "wb") as sparse:
            sparse.truncate(1 << 42)
        refused(path, "is damaged")
        (tmp_path / "aside").rename(path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": "1"},
        {"step": 2**40},
        {"epoch": None},
        {"files": []},
        {"corpus": {"name": 1}},
        {"valid_perplexity": "low"},
        {"metrics_bytes": -1},
        {"metrics_bytes": 1.5},
        {"format": 2},
        {"format": 4},
        {"format": True},
        {"format": [3]},
        {"corpus": ["name"]},
        {"corpus": None},
        {"corpus": {}},
        {"more": 1},
        {"step": 2},
    ],
)
def test_a_sealed_manifest_of_nonsense_is_refused(path, change):
    forge(path, **change)
    refused(path, "manifest.json is damaged")


@pytest.mark.slow
def test_a_checkpoint_of_small_costs_less_than_a_hundredth_of_its_epoch(tmp_path, capsys):
    """An epoch of `small` takes 100 s on two cores, so a checkpoint may take one."""
    config = jaxlm.preset("small")
    vocab = Vocab(tuple(f"word{i}" for i in range(config.model.vocab_size)))
    state = new_state(config)
    seconds = []
    for step in range(6):
        start = time.process_time()
        with Folder.open(tmp_path) as run:
            checkpoint.save(
                run,
                state,
                config,
                vocab,
                Manifest(step, step, 100.0 - step, {"name": "none", "sha256": "0"}),
            )
        seconds.append(time.process_time() - start)
    with capsys.disabled():
        size = sum(file.stat().st_size for file in files(checkpoint.find(tmp_path)))
        print(
            f"\na checkpoint of {size / 1e6:.1f} MB: "
            f"median {sorted(seconds)[3]:.2f} s, worst {max(seconds):.2f} s"
        )
    assert sorted(seconds)[3] < 1


def test_a_checkpoint_that_a_run_removes_meanwhile_is_not_called_damaged(tmp_path, monkeypatch):
    save(tmp_path / "run", 1)
    last = save(tmp_path / "run", 2)
    read = checkpoint.read

    def removed(path, part):
        shutil.rmtree(last, ignore_errors=True)
        return read(path, part)

    monkeypatch.setattr(checkpoint, "read", removed)
    assert checkpoint.load(tmp_path / "run", "last").manifest.step == 1


AVERAGED = SMALL.replace(optimizer="adamw", average_decay=0.9)


@pytest.mark.parametrize("config", [SMALL, AVERAGED], ids=["sgd", "adamw with an average"])
def test_a_model_takes_the_memory_of_its_parameters_alone(tmp_path, monkeypatch, config):
    """Eight times less than the whole state of Adam with an average and the file's bytes."""
    state = dataclasses.replace(new_state(config), step=jax.numpy.int32(1))
    path = save(tmp_path, 1, config=config)
    asked = []
    placed = []
    put = jax.device_put
    monkeypatch.setattr(ram, "check", lambda needed, *_: asked.append(needed))
    monkeypatch.setattr(jax, "device_put", lambda array: placed.append(array.nbytes) or put(array))
    found = checkpoint.load(tmp_path, part=state_arrays.evaluated).state
    size = state_arrays.bytes_of(state.params)
    assert asked == [size] and sum(placed) == size
    assert state_arrays.encoded(found) == state_arrays.encoded(state.evaluated)
    jaxlm.load(tmp_path)
    assert asked == [size, size]
    data = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for part in (state_arrays.evaluated, state_arrays.nothing):  # what is not decoded is verified
        with pytest.raises(
            CheckpointError, match=r"state\.safetensors is damaged: expected sha256"
        ):
            checkpoint.read(path, part)
