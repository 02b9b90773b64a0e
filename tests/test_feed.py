"""Feeding: a memory-mapped corpus is read ahead in slabs,
and trains and evaluates as one in memory does.
"""

import os
import signal
import threading
import weakref
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from processes import WINDOWS, assert_same, end, kept, start

import jaxlm
from jaxlm.base.errors import DataError
from jaxlm.data.corpora import load_corpus, prepare
from jaxlm.data.corpus import Corpus
from jaxlm.data.text import SPLITS
from jaxlm.data.windows import batch, num_windows
from jaxlm.models.stack import init_params
from jaxlm.runs.loop import feed
from jaxlm.scoring import stream as scoring
from jaxlm.training import step as steps

COUNTS = jaxlm.TrainConfig(batch_size=4, bptt_length=3, windows_per_call=5)
LENGTH = 68  # of a row: 22 windows, and a token that no window reads


@pytest.fixture(autouse=True)
def as_if_large(monkeypatch):
    """No file is small enough to be put on the device whole."""
    monkeypatch.setattr("jaxlm.runs.loop.WHOLE_TOKENS", 0)


@pytest.fixture
def ids(tmp_path) -> np.memmap:
    np.arange(4 * LENGTH + 3, dtype="<u2").tofile(tmp_path / "ids")
    return np.memmap(tmp_path / "ids", "<u2", "r")


@pytest.mark.parametrize("some", [slice(None), slice(1, 3), slice(0, 4, 2)])
def test_slabs_hold_the_requested_windows_in_any_order(ids, some, monkeypatch):
    expected = batch(np.asarray(ids), 4)[:, some]

    def put(mesh, shape, read) -> jax.Array:
        assert shape[1] == 4
        return jnp.asarray(read(some))

    monkeypatch.setattr("jaxlm.runs.loop.put_rows", put)
    windows = num_windows(LENGTH, 3)
    with feed(ids, COUNTS) as take:
        for index, then in ((0, 5), (5, 10), (7, 20), (20, 0), (0, 21), (21, 3)):
            tokens, first = take(index * 3, then * 3)
            assert (
                first == index * 3
                and tokens.shape == (16, expected.shape[1])
                and tokens.dtype == np.int32
            )
            for window in range(index, min(index + 5, windows)):
                at = window * 3 - first
                np.testing.assert_array_equal(
                    tokens[at : at + 4], expected[window * 3 : window * 3 + 4]
                )
    with feed(np.asarray(ids), COUNTS) as take:
        tokens, first = take(21, 27)
        assert first == 0
        np.testing.assert_array_equal(tokens, expected)


def test_the_next_slab_is_read_while_one_is_in_use(ids, monkeypatch):
    put = []
    read = threading.Semaphore(0)

    def note(mesh, shape, find) -> jax.Array:
        slab = find(slice(0, shape[1]))
        put.append((int(slab[0, 0]), threading.current_thread() is threading.main_thread()))
        read.release()
        return jnp.asarray(slab)

    monkeypatch.setattr("jaxlm.runs.loop.put_rows", note)
    with feed(ids, COUNTS) as take:
        take(0, 15)
        for _ in range(2):
            assert read.acquire(timeout=60)
        assert put == [(0, False), (15, False)]  # the second was not requested yet
        take(15, 30)
    assert [first for first, _ in put] == [0, 15, 30]  # and none is read twice


def test_slabs_that_were_not_asked_for_are_let_go(ids, monkeypatch):
    slabs = []

    def note(mesh, shape, find) -> jax.Array:
        slab = jnp.asarray(find(slice(0, shape[1])))
        slabs.append(weakref.ref(slab))
        return slab

    monkeypatch.setattr("jaxlm.runs.loop.put_rows", note)
    with feed(ids, COUNTS) as take:
        for row in (0, 9, 18, 27, 36, 45):
            take(row, row + 3)
        take(48, 51)  # the last one that was read ahead: all before it are there
        assert len(slabs) >= 12 and sum(slab() is not None for slab in slabs) <= 3


def feeders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_a_file_that_is_shortened_in_use_is_refused_and_the_reader_ends(ids):
    with (
        pytest.raises(
            DataError, match="became shorter while it was in use: prepare its text again"
        ) as caught,
        feed(ids, COUNTS) as take,
    ):
        take(0, 60)
        os.truncate(str(ids.filename), 30)
        take(60, 0)
        take(0, 15)
    assert "\n" not in str(caught.value) and not feeders()
    with pytest.raises(KeyboardInterrupt), feed(ids, COUNTS) as take:
        raise KeyboardInterrupt
    assert not feeders()
    os.unlink(str(ids.filename))
    with pytest.raises(DataError, match="cannot be read any more"):
        batch(ids, 4, stop=5)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory) -> Corpus:
    """The generated corpus with its ids in files, and equal in all else."""
    folder = tmp_path_factory.mktemp("mapped")
    corpus = processes.load_text()
    for split in SPLITS:
        getattr(corpus, split).astype("<u2").tofile(folder / split)
    return replace(corpus, **{split: np.memmap(folder / split, "<u2", "r") for split in SPLITS})


CONFIG = processes.CONFIG.replace(epochs=2, checkpoint_every=20)


def test_a_mapped_corpus_trains_to_the_same_bytes_resumed_or_not(mapped, tmp_path):
    jaxlm.train(CONFIG, processes.load_text(), tmp_path / "memory", quiet=True)
    reference = kept(tmp_path / "memory")
    jaxlm.train(CONFIG, mapped, tmp_path / "mapped", quiet=True)
    assert_same(tmp_path / "mapped", reference)
    for stop in (5, WINDOWS - 1, None):  # within an epoch, and just before its end
        jaxlm.train(CONFIG, mapped, tmp_path / "resumed", steps=stop, resume=stop != 5, quiet=True)
    assert_same(tmp_path / "resumed", reference)
    assert jaxlm.evaluate(tmp_path / "memory") == jaxlm.evaluate(tmp_path / "mapped", corpus=mapped)
    assert not feeders()


def test_slabs_compile_once(mapped, monkeypatch):
    traced = []
    step = steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda *args: (traced.append(1), step(*args))[1])
    config = CONFIG.replace(
        epochs=2, windows_per_call=6, checkpoint_every=4
    )  # as no other test here
    jaxlm.train(config, mapped, quiet=True)
    assert len(traced) == 1


def test_an_evaluation_in_slabs_equals_the_whole(mapped, monkeypatch):
    model = CONFIG.replace(vocab_size=len(mapped.vocab), init_scale=0.7).model
    params = jax.jit(init_params)(model, jax.random.key(0))
    for B, T in ((1, 1), (7, 3)):
        monkeypatch.setattr(scoring, "PREDICTIONS_PER_CALL", 1 << 22)
        expected = scoring.stream_nats(model, params, np.asarray(mapped.valid, np.int32), B, T)
        for most in (1 << 22, 3000):
            monkeypatch.setattr(scoring, "PREDICTIONS_PER_CALL", most)
            monkeypatch.setattr(scoring, "PREDICTIONS_PER_WINDOW", 512)  # 8 windows, in 2 calls
            nats, count = scoring.stream_nats(model, params, mapped.valid, B, T)
            assert count == expected[1] and nats == pytest.approx(expected[0], rel=1e-6)


# Prepared corpora at the command line.


def test_the_command_prepares_and_names_the_next_command(text, tmp_path, capsys):
    from jaxlm.cli import main

    out = tmp_path / "my corpus"
    assert main(["prepare", str(text), str(out), "--vocab-size", "150", "--lowercase"]) == 0
    assert load_corpus(out).sha256 == load_corpus(text, max_vocab=150, lowercase=True).sha256
    assert f"jaxlm train --corpus '{out}'\n" in capsys.readouterr().out
    assert main(["prepare", str(text), str(out)]) == 1
    assert (
        f"{out} holds another corpus (max_vocab 150, not 10000; lowercase"
        in capsys.readouterr().err
    )


def test_a_run_takes_the_options_that_its_corpus_was_prepared_with(text, tmp_path):
    corpus = prepare(text, tmp_path / "out", lowercase=True, min_count=2)
    config = CONFIG.replace(corpus=str(tmp_path / "out"), vocab_size=10_000)
    result = jaxlm.train(config, steps=1, quiet=True)
    assert result.config.data.lowercase and result.config.data.min_count == 2
    assert result.config.model.vocab_size == len(corpus.vocab)


@pytest.mark.slow
def test_a_prepared_corpus_is_trained_stopped_and_resumed_as_its_text_is(text, tmp_path):
    flags = [flag for flag in processes.FLAGS if flag not in ("--corpus", "embedded-tiny")]
    runs = {}
    code, said = end(start("prepare", text, tmp_path / "my corpus", "--vocab-size", "100"))
    assert code == 0 and f"jaxlm train --corpus '{tmp_path / 'my corpus'}'\n" in said, said
    for name, corpus in (("text", text), ("prepared", tmp_path / "my corpus")):
        runs[name] = tmp_path / name
        process = start("train", "--run-dir", runs[name], "--corpus", corpus, *flags)
        if name == "prepared":
            assert processes.wait_for(
                lambda: processes.windows(runs["prepared"]) > WINDOWS + 5, process
            )
            process.send_signal(signal.SIGTERM)
            assert end(process)[0] == 128 + signal.SIGTERM
            process = start("train", "--run-dir", runs[name], "--resume")
        code, said = end(process)
        assert code == 0, said
    evaluated = [
        end(start("evaluate", run, "--split", "valid"))[1].replace(str(run), "RUN")
        for run in runs.values()
    ]
    assert "perplexity" in evaluated[0] and evaluated[0] == evaluated[1]
    files = {name: kept(run) for name, run in runs.items()}
    for file in files["text"]:
        if not file.endswith(
            ("config.json", "manifest.json")
        ):  # where the corpus was found, and their hash
            assert files["text"][file] == files["prepared"][file], file
