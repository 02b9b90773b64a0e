"""Prepared corpora: those of the in-memory path to the byte, however the text is cut, killed or damaged; and fed to a
training without a different number."""

import os
import random
import re
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import WINDOWS, assert_same, end, kept, start

import jaxlm
from jaxlm.cli import main
from jaxlm.data import prepared as stream
from jaxlm.data.corpora import SPLITS, Corpus, load_corpus
from jaxlm.data.prepared import prepare
from jaxlm.data.vocab import Vocab
from jaxlm.data.windows import batch, num_windows
from jaxlm.errors import DataError
from jaxlm.runs.loop import load, new_state
from jaxlm.scoring.stream import stream_nats
from jaxlm.training import step as steps
from jaxlm.training.feed import feed

# Words and white space of every kind and length in UTF-8, and what could be taken for either.
WORDS = st.sampled_from(["a", "A", "bb", "é", "€uro", "𝄞", "ΟΔΟΣ", "İ", "<eos>", "<EOS>", "<unk>", "\ufeff", "\u200b"])
SPACES = st.sampled_from([" ", "  ", "\t", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u2003",
                           "\u2028", "\u3000"])
NEWLINES = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\n\r", " \r\n"])
TEXT = st.lists(WORDS | SPACES | NEWLINES | st.text(max_size=3), max_size=60).map("".join)
OPTIONS = st.fixed_dictionaries({}, optional={"max_vocab": st.integers(2, 9), "min_count": st.integers(1, 3),
                                              "lowercase": st.booleans()})


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No test here loses power; and the learning curve's own tests draw it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(sys.modules["jaxlm.runs.loop"], "learning_curve", lambda run_dir: Path(run_dir) / "curve.png")
        yield


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Gives a new folder to each example."""
    return lambda: tmp_path_factory.mktemp("stream")


def outcome(make) -> Corpus | str:
    try:
        return make()
    except DataError as error:
        assert "\n" not in str(error)
        return str(error)


def assert_equal(prepared: Corpus | str, plain: Corpus | str) -> None:
    """All that a corpus tells, but for where it was found; or the same refusal."""
    if isinstance(prepared, str) or isinstance(plain, str):
        assert prepared == plain
        return
    for name in ("name", "description", "vocab", "sha256", "floor", "notes"):
        assert getattr(prepared, name) == getattr(plain, name), name
    for split in SPLITS:
        assert isinstance(getattr(prepared, split), np.memmap)
        np.testing.assert_array_equal(getattr(prepared, split), getattr(plain, split))


@settings(max_examples=150)
@given(text=TEXT, options=OPTIONS, block=st.integers(1, 12) | st.just(50), journal=st.sampled_from([1, 50]))
def test_one_file_is_prepared_as_it_is_loaded_wherever_blocks_end(fresh, text, options, block, journal):
    path = fresh() / "text"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", block)
        patch.setattr(stream, "JOURNAL", journal)
        prepared = outcome(lambda: prepare(path, path.parent / "out", **options))
    assert_equal(prepared, outcome(lambda: load_corpus(path, **options)))
    if isinstance(prepared, Corpus):
        assert sorted(os.listdir(path.parent / "out")) == [
            "prepared.json", "test.ids", "train.ids", "valid.ids", "vocab.json"]


@settings(max_examples=75)
@given(texts=st.tuples(TEXT, TEXT, TEXT), options=OPTIONS, block=st.integers(1, 12) | st.just(50))
def test_a_folder_is_prepared_as_it_is_loaded(fresh, texts, options, block):
    folder = fresh()
    for name, text in zip(("train.txt", "dev", "wiki.test.tokens"), texts, strict=True):
        (folder / name).write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", block)
        prepared = outcome(lambda: prepare(folder, folder / "out", **options))
    assert_equal(prepared, outcome(lambda: load_corpus(folder, **options)))


@given(st.lists(st.sampled_from([b"word ", b"\xc3\xa9", b"\xc3", b"\xff", b"\0", b"\n", b"\xef\xbb\xbf"]), max_size=30),
       st.integers(1, 9))
def test_what_is_not_text_is_refused_with_the_same_byte(fresh, pieces, block):
    path = fresh() / "text"
    path.write_bytes(b"".join(pieces))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", block)
        prepared = outcome(lambda: prepare(path, path.parent / "out"))
    plain = outcome(lambda: load_corpus(path))
    if b"\0" in pieces and isinstance(prepared, str):  # of two faults it meets the other first
        prepared = plain if "not UTF-8" in prepared else prepared
    assert_equal(prepared, plain)


def test_ids_take_two_bytes_while_they_fit(tmp_path):
    for types, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.int32)):
        path = tmp_path / f"{types}"
        path.write_text("\n".join(f"w{i}" for i in range(types - 3)) + "\nw" * (types // 4))
        corpus = prepare(path, tmp_path / f"{types}.out")
        assert corpus.train.dtype == dtype and len(corpus.vocab) == types
        assert_equal(corpus, load_corpus(path))


# Killed.

# As `jaxlm prepare`, in tiny blocks; at the Nth time that it asks something of the disk it dies.
DIE = """
import os, signal, sys
from jaxlm.data import prepared as stream
stream.BLOCK, stream.JOURNAL, left = 64, 512, [int(sys.argv[3])]
def dying(action):
    def call(*args):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return action(*args)
    return call
os.fsync, os.replace, stream.corpora.decoded = map(dying, (os.fsync, os.replace, stream.corpora.decoded))
stream.prepare(sys.argv[1], sys.argv[2], lowercase=True, min_count=2)
"""


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(tmp_path):
    rng, text, out = random.Random(0), tmp_path / "text", tmp_path / "out"
    words = [rng.choice(["Der ", "schöne ", "Satz\n", "€ ", f"{rng.random():.2} "]) for _ in range(4000)]
    text.write_text("".join(words), encoding="utf-8")
    reference = prepare(text, tmp_path / "reference", lowercase=True, min_count=2)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "reference").iterdir()}
    kills, caught = 0, set()
    while not (out / stream.HEADER).exists():
        process = start(text, out, str(rng.choice([1, 3, 10, 30, 60])), code=DIE)
        end(process)
        assert process.returncode in (0, -signal.SIGKILL)
        kills += process.returncode != 0
        caught.add("reading" if not (out / "train.ids").exists() else "at the end")
        if (out / ".partial/ids").exists() and rng.random() < 0.5:  # what was not recorded may be anything
            for name in ("ids", "words"):
                with open(out / ".partial" / name, "ab") as file:
                    file.write(rng.randbytes(rng.randrange(20)))
        if not (out / stream.HEADER).exists():
            with pytest.raises(DataError, match="not a corpus that is finished: go on with the `jaxlm prepare`"):
                load_corpus(out)
    assert kills > 12
    assert_equal(prepare(text, out, lowercase=True, min_count=2), reference)  # and what a kill may have left is gone
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


@pytest.mark.slow
def test_killed_in_each_write_of_the_end_it_goes_on(tmp_path):
    text = tmp_path / "text"
    text.write_text("a b c\n" * 500)
    prepare(text, tmp_path / "reference", lowercase=True, min_count=2)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "reference").iterdir()}
    asked = 0
    while True:
        asked += 1
        process = start(text, tmp_path / f"{asked}", str(asked), code=DIE)
        end(process)
        if process.returncode == 0:
            break
        prepare(text, tmp_path / f"{asked}", lowercase=True, min_count=2)
        assert {path.name: path.read_bytes() for path in (tmp_path / f"{asked}").iterdir()} == expected
    assert asked > 50


def test_another_text_begins_anew_and_other_options_go_on(tmp_path, monkeypatch):
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_bytes(b"a b\n" * 100 + b"\xff\n")
    monkeypatch.setattr(stream, "BLOCK", 16)
    monkeypatch.setattr(stream, "JOURNAL", 16)
    with pytest.raises(DataError, match=r"byte 400 \(0xff\)"):
        prepare(text, out)
    with pytest.raises(DataError, match=r"byte 400 \(0xff\)"):
        prepare(text, out, min_count=2)
    text.write_bytes(b"c d\n" * 100)
    os.utime(text, ns=(0, 0))
    assert_equal(prepare(text, out), load_corpus(text))


@pytest.mark.parametrize("damage", ["journal.json", "ids", "words"])
def test_a_damaged_journal_or_less_than_it_speaks_of_begins_anew(tmp_path, monkeypatch, damage):
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_bytes(b"a b\n" * 100 + b"\xff\n")
    monkeypatch.setattr(stream, "BLOCK", 16)
    monkeypatch.setattr(stream, "JOURNAL", 16)
    with pytest.raises(DataError):
        prepare(text, out)
    path = out / ".partial" / damage
    path.write_bytes(path.read_bytes()[:-3])
    status = text.stat()
    text.write_bytes(b"a b\n" * 100 + b"b\n")
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns))  # so that it looks the same
    assert_equal(prepare(text, out), load_corpus(text))


def test_two_at_once_make_one(tmp_path):
    (tmp_path / "text").write_text("a b c\n" * 20_000)
    found = []
    threads = [threading.Thread(target=lambda: found.append(prepare(tmp_path / "text", tmp_path / "out")))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for corpus in found:
        assert_equal(corpus, load_corpus(tmp_path / "text"))


# What a user meets.


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """The tiny embedded corpus as a folder of text."""
    folder, corpus = tmp_path_factory.mktemp("text"), load_corpus("embedded-tiny")
    for split in SPLITS:
        words = " ".join(corpus.vocab.decode(getattr(corpus, split)))
        (folder / f"{split}.txt").write_text(words.replace(" <eos> ", "\n").replace("<eos>", "\n"))
    return folder


@pytest.fixture(scope="module")
def prepared(text, tmp_path_factory) -> Path:
    return Path(prepare(text, tmp_path_factory.mktemp("prepared") / "out", max_vocab=150).spec)


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def test_load_corpus_knows_a_prepared_folder(text, prepared):
    corpus = load_corpus(prepared, max_vocab=150)
    assert_equal(corpus, load_corpus(text, max_vocab=150))
    assert corpus.spec == str(prepared) and corpus.train.dtype == np.uint16
    assert_equal(prepare(text, prepared, max_vocab=150), corpus)  # it is there already


def test_the_command_says_how_to_go_on(text, tmp_path, capsys):
    out = tmp_path / "my corpus"
    assert main(["prepare", str(text), str(out), "--vocab-size", "150", "--lowercase"]) == 0
    assert_equal(load_corpus(out), load_corpus(text, max_vocab=150, lowercase=True))
    assert f"train on it with: jaxlm train --corpus '{out}'\n" in capsys.readouterr().out
    assert main(["prepare", str(text), str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {out} holds another corpus (max_vocab 150, not 10000; lowercase")


def test_it_keeps_the_options_that_it_was_prepared_with(text, tmp_path):
    prepare(text, tmp_path / "out", lowercase=True, min_count=2)
    config, corpus = load(jaxlm.preset("small"), tmp_path / "out")
    assert config.data.lowercase and config.data.min_count == 2 and config.model.vocab_size == len(corpus.vocab)
    assert_equal(load_corpus(tmp_path / "out", lowercase=True), corpus)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"min_count": 3}, "prepared with min_count 2, not 3: leave that out"),
        ({"max_vocab": 20}, r"with \d+ words, more than the vocabulary size 20: raise that"),
        ({"vocab": Vocab(("a",))}, "with a vocabulary of its own")]
    for options, expected in refused:
        with pytest.raises(DataError, match=expected):
            load_corpus(tmp_path / "out", **options)


@settings(max_examples=40)
@given(st.data())
def test_whatever_is_altered_is_refused_in_one_sentence(fresh, prepared, data):
    folder = fresh() / "copy"
    shutil.copytree(prepared, folder)
    path = folder / data.draw(st.sampled_from(sorted(os.listdir(prepared))))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(data.draw(st.sampled_from([
        content[:place], content[:place] + bytes([content[place] ^ 1]) + content[place + 1:], content + b"\0"])))
    with pytest.raises(DataError, match="damaged") as caught:
        load_corpus(folder)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["train.ids", "vocab.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"there is no file .*{name}"):
        load_corpus(copy)


def test_places_that_cannot_be_used_are_refused(text, copy, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thing").touch()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    refused: list[tuple[Path, Path, dict[str, Any], str]] = [
        (text, tmp_path / "full", {}, r"full is not empty \(it holds thing\): choose another folder"),
        (text, text, {}, r"is not empty \(it holds test.txt, train.txt, valid.txt\)"),
        (text, tmp_path / "file", {}, "file cannot be written: Not a directory"),
        (text, copy, {}, "holds another corpus .*max_vocab 150, not None.*choose another folder"),
        (text / "train.txt", copy, {"max_vocab": 150}, "holds another corpus"),
        (copy, tmp_path / "new", {}, "should hold one train text, and holds none"),
        (tmp_path / "nothing", tmp_path / "new", {}, "there is no file .*nothing; check the path"),
        (tmp_path / "pipe", tmp_path / "new", {}, "pipe is a pipe"),
        (text, tmp_path / "new", {"min_count": 0}, "at least 1"),
        (text, tmp_path / "new", {"max_vocab": 1}, "over 1")]
    for source, out, options, expected in refused:
        with pytest.raises(DataError, match=expected) as caught:
            prepare(source, out, **options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_text_too_large_for_memory_is_prepared_in_the_cache_and_found_again(text, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    plain = load_corpus(text)
    monkeypatch.setattr(stream, "LARGE", 1000)
    first = load_corpus(text)
    folder = re.search(r"its ids are kept in (.*), and read a piece at a time", first.notes[-1])
    assert folder and Path(folder[1], stream.HEADER).exists()
    assert_equal(replace(first, notes=plain.notes), plain)
    assert first.spec == str(text)
    monkeypatch.setattr(stream, "_make", None)  # nothing more is made
    for bound in (None, len(plain.vocab), 10**6):
        assert_equal(load_corpus(text, max_vocab=bound), first)
    with pytest.raises(TypeError):
        load_corpus(text, max_vocab=50)
    with pytest.raises(TypeError):
        load_corpus(text, min_count=2)
    assert load_corpus(text, vocab=Vocab((*plain.vocab.words, "more"))).train.dtype == np.int32


@pytest.mark.slow
def test_the_command_prepares_trains_is_stopped_and_goes_on_as_from_text(text, tmp_path):
    flags = [flag for flag in processes.FLAGS if flag not in ("--corpus", "embedded-tiny")]
    runs = {}
    code, said = end(start("prepare", text, tmp_path / "my corpus", "--vocab-size", "150"))
    assert code == 0 and f"jaxlm train --corpus '{tmp_path / 'my corpus'}'\n" in said, said
    for name, corpus in (("text", text), ("prepared", tmp_path / "my corpus")):
        runs[name] = tmp_path / name
        process = start("train", "--run-dir", runs[name], "--vocab-size", "150", "--corpus", corpus, *flags)
        if name == "prepared":
            assert processes.wait_for(lambda: processes.windows(runs["prepared"]) > WINDOWS + 5, process)
            process.send_signal(signal.SIGTERM)
            assert end(process)[0] == 128 + signal.SIGTERM
            process = start("train", "--run-dir", runs[name], "--resume")
        code, said = end(process)
        assert code == 0, said
    evaluated = [end(start("evaluate", run, "--split", "valid"))[1].replace(str(run), "RUN") for run in runs.values()]
    assert "perplexity" in evaluated[0] and evaluated[0] == evaluated[1]
    files = {name: kept(run) for name, run in runs.items()}
    for file in files["text"]:
        if not file.endswith(("config.json", "manifest.json")):  # where the corpus was found, and their hash
            assert files["text"][file] == files["prepared"][file], file


PEAK = """
import re, sys
from jaxlm.data import prepared as stream
stream.prepare(sys.argv[1], sys.argv[2])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_text(tmp_path):
    peak = {}
    for megabytes in (3, 48):
        path = tmp_path / f"{megabytes}"
        path.write_bytes(b"some words of a text that goes on\n" * (megabytes * 30_000))
        code, said = end(start(path, tmp_path / f"{megabytes}.out", code=PEAK))
        assert code == 0, said
        peak[megabytes] = int(said) / 1024
    assert peak[48] - peak[3] < 10, peak


# Feeding.


@given(N=st.integers(1, 300), B=st.integers(1, 9), data=st.data())
def test_rows_of_a_file_are_those_of_the_batch(fresh, N, B, data):
    ids = np.random.default_rng(N).integers(0, 1 << 16, N).astype(data.draw(st.sampled_from(["<u2", "<i4"])))
    ids.tofile(path := fresh() / "ids")
    start = data.draw(st.integers(0, N // B))
    stop = data.draw(st.integers(start, N // B))
    some = slice(data.draw(st.integers(0, B)), data.draw(st.integers(0, B)))
    skipped = data.draw(st.integers(0, min(3, N - 1)))
    whole, offset = np.memmap(path, ids.dtype, "r"), np.memmap(path, ids.dtype, "r", skipped * ids.itemsize)
    for found, expected in ((whole, ids), (whole[skipped:], ids[skipped:]), (offset, ids[skipped:]), (ids, ids)):
        last = len(found) // B
        read = batch(found, B, some, min(start, last), min(stop, last))
        assert read.dtype == np.int32 and read.flags.c_contiguous
        cut = expected[:last * B].reshape(B, last).T
        np.testing.assert_array_equal(read, cut[min(start, last):min(stop, last), some])
        np.testing.assert_array_equal(batch(found, B), cut)


COUNTS = jaxlm.TrainConfig(batch_size=4, bptt_length=3, windows_per_call=5)
LENGTH = 68  # of a row: 22 windows and a token that is read by none


@pytest.fixture
def ids(tmp_path) -> np.memmap:
    np.arange(4 * LENGTH + 3, dtype="<u2").tofile(tmp_path / "ids")
    return np.memmap(tmp_path / "ids", "<u2", "r")


@pytest.mark.parametrize("some", [slice(None), slice(1, 3), slice(0, 4, 2)])
def test_slabs_hold_the_windows_that_are_asked_for_in_any_order(ids, some):
    expected = batch(np.asarray(ids), 4)[:, some]

    def put(shape, read) -> jax.Array:
        assert shape[1] == 4
        return jnp.asarray(read(some))

    windows = num_windows(LENGTH, 3)
    with feed(ids, COUNTS, put) as take:
        for index, then in ((0, 5), (5, 10), (7, 20), (20, 0), (0, 21), (21, 3)):
            tokens, first = take(index, then)
            assert first == index and tokens.shape == (16, expected.shape[1]) and tokens.dtype == np.int32
            for window in range(index, min(index + 5, windows)):
                at = (window - first) * 3
                np.testing.assert_array_equal(tokens[at:at + 4], expected[window * 3:window * 3 + 4])
    with feed(np.asarray(ids), COUNTS, put) as take:
        tokens, first = take(7, 9)
        assert first == 0
        np.testing.assert_array_equal(tokens, expected)


def test_the_next_slab_is_read_while_one_is_in_use(ids):
    put, read = [], threading.Semaphore(0)

    def note(shape, find) -> jax.Array:
        slab = find(slice(0, shape[1]))
        put.append((int(slab[0, 0]), threading.current_thread() is threading.main_thread()))
        read.release()
        return jnp.asarray(slab)

    with feed(ids, COUNTS, note) as take:
        take(0, 5)
        for _ in range(2):
            assert read.acquire(timeout=60)
        assert put == [(0, False), (15, False)]  # the second though nobody has asked for it yet
        take(5, 10)
    assert [first for first, _ in put] == [0, 15, 30]  # and none is read twice


def feeders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_a_file_cut_short_in_use_is_one_sentence_and_the_reader_ends(ids):
    with pytest.raises(DataError, match="became shorter while it was in use: prepare its text again") as caught, \
            feed(ids, COUNTS) as take:
        take(0, 20)
        os.truncate(str(ids.filename), 30)
        take(20, 0)
        take(0, 5)
    assert "\n" not in str(caught.value) and not feeders()
    with pytest.raises(KeyboardInterrupt), feed(ids, COUNTS) as take:
        raise KeyboardInterrupt
    assert not feeders()
    os.unlink(str(ids.filename))
    with pytest.raises(DataError, match="cannot be read any more"):
        batch(ids, 4, stop=5)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory) -> Corpus:
    """The tiny embedded corpus with its ids in files: the same in all else."""
    folder, corpus = tmp_path_factory.mktemp("mapped"), load_corpus("embedded-tiny")
    for split in SPLITS:
        getattr(corpus, split).astype("<u2").tofile(folder / split)
    return replace(corpus, **{split: np.memmap(folder / split, "<u2", "r") for split in SPLITS})


CONFIG = processes.CONFIG.replace(epochs=2, checkpoint_every=20)


def test_a_mapped_corpus_trains_to_the_same_bytes_resumed_or_not(mapped, tmp_path):
    jaxlm.train(CONFIG, load_corpus("embedded-tiny"), tmp_path / "memory", quiet=True)
    reference = kept(tmp_path / "memory")
    jaxlm.train(CONFIG, mapped, tmp_path / "mapped", quiet=True)
    assert_same(tmp_path / "mapped", reference)
    for stop in (5, WINDOWS - 1, None):  # within an epoch, and just before its end
        jaxlm.train(CONFIG, mapped, tmp_path / "resumed", steps=stop, resume=stop != 5, quiet=True)
    assert_same(tmp_path / "resumed", reference)
    assert jaxlm.evaluate(tmp_path / "memory", corpus=mapped) == jaxlm.evaluate(tmp_path / "mapped", corpus=mapped)
    assert not feeders()


def test_slabs_compile_once(mapped, monkeypatch):
    traced = []
    step = steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda *args: (traced.append(1), step(*args))[1])
    config = CONFIG.replace(epochs=2, windows_per_call=6, checkpoint_every=4)  # as no other test here
    jaxlm.train(config, mapped, quiet=True)
    assert len(traced) == 1


def test_an_evaluation_in_slabs_is_the_evaluation(mapped, monkeypatch):
    evaluate = sys.modules["jaxlm.scoring.stream"]
    state = new_state(CONFIG.replace(vocab_size=len(mapped.vocab), init_scale=0.7))
    for B, T in ((1, 1), (7, 3)):
        monkeypatch.setattr(evaluate, "PREDICTIONS_PER_CALL", 1 << 22)
        expected = stream_nats(state.params, CONFIG.hyper, np.asarray(mapped.valid, np.int32), B, T)
        for most in (1 << 22, 3000):
            monkeypatch.setattr(evaluate, "PREDICTIONS_PER_CALL", most)
            monkeypatch.setattr(evaluate, "PREDICTIONS_PER_WINDOW", 512)  # 8 windows, in 2 calls
            nats, count = stream_nats(state.params, CONFIG.hyper, mapped.valid, B, T)
            assert count == expected[1] and nats == pytest.approx(expected[0], rel=1e-6)
