"""Prepared corpora: equal to the in-memory ones to the byte, however the text is cut or the process
killed; and safe to load when they come from a stranger.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config.settings import DataConfig
from jaxlm.data import encoding
from jaxlm.data import prepared as preparing
from jaxlm.data import text as texts
from jaxlm.data.corpora import load_corpus
from jaxlm.data.corpus import Corpus
from jaxlm.data.prepared import prepare
from jaxlm.data.text import SPLITS
from jaxlm.data.tokens import Words
from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.files import Folder

ROOT = Path(__file__).resolve().parents[1]

# Words and white space of every kind and length in UTF-8, and what could be taken for either.
WORDS = st.sampled_from(
    ["a", "A", "bb", "é", "€uro", "𝄞", "ΟΔΟΣ", "İ", "<eos>", "<EOS>", "<unk>", "\ufeff", "\u200b"]
)
SPACES = st.sampled_from(
    [" ", "  ", "\t", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u2003", "\u2028", "\u3000"]
)
NEWLINES = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\n\r", " \r\n"])
TEXT = st.lists(WORDS | SPACES | NEWLINES | st.text(max_size=3), max_size=60).map("".join)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_vocab": st.integers(2, 9),
        "min_count": st.integers(1, 3),
        "lowercase": st.booleans(),
    },
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No test here loses power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Makes a new folder for each example."""
    return lambda: tmp_path_factory.mktemp("prepared")


@pytest.fixture
def tiny_blocks(monkeypatch):
    """A block, and a segment, every few bytes."""
    monkeypatch.setattr(texts, "BLOCK", 16)
    monkeypatch.setattr(encoding, "SEGMENT", 16)


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        text=True,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def outcome(make) -> Corpus | str:
    try:
        return make()
    except DataError as error:
        assert "\n" not in str(error)
        return str(error)


def assert_equal(prepared: Corpus | str, plain: Corpus | str) -> None:
    """Two corpora are equal but for where they were found, or two refusals are."""
    if isinstance(prepared, str) or isinstance(plain, str):
        assert prepared == plain
        return
    for name in ("name", "description", "vocab", "sha256", "floor", "notes"):
        assert getattr(prepared, name) == getattr(plain, name), name
    for split in SPLITS:
        assert isinstance(getattr(prepared, split), np.memmap)
        np.testing.assert_array_equal(getattr(prepared, split), getattr(plain, split))


def assert_is(
    corpus: Corpus | str, texts: dict[str, str], max_vocab=None, min_count=1, lowercase=False
) -> None:
    """A corpus is what a few lines make of its text."""
    if isinstance(corpus, str):
        return
    splits = {}
    for split, text in texts.items():
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        splits[split] = (text.lower() if lowercase else text).replace("\n", " <eos> ").split()
    if "all" in splits:
        words = splits.pop("all")
        ends = [place for place, word in enumerate(words, 1) if word == "<eos>"]
        ends += [] if words[-1] == "<eos>" else [len(words)]
        held_out = max(1, len(ends) // 20)
        train = ends[-2 * held_out - 1]
        valid = ends[-held_out - 1]
        splits = {"train": words[:train], "valid": words[train:valid], "test": words[valid:]}
    vocab = Vocab.build(splits["train"], max_size=max_vocab, min_count=min_count)
    digest = hashlib.sha256(vocab.sha256.encode())
    assert corpus.vocab == vocab
    dropped = max_vocab is not None and max_vocab < len(
        Vocab.build(splits["train"], min_count=min_count)
    )
    assert (f"+max_vocab={max_vocab}" in corpus.name) == dropped
    for split in SPLITS:
        ids = np.array([vocab.ids.get(word, vocab.unknown_id) for word in splits[split]], "<i4")
        np.testing.assert_array_equal(getattr(corpus, split), ids)
        digest.update(f" {split} {len(ids)} ".encode() + ids.tobytes())
    assert corpus.sha256 == digest.hexdigest()


@settings(max_examples=150)
@given(
    text=TEXT,
    options=OPTIONS,
    block=st.integers(1, 12) | st.just(50),
    segment=st.sampled_from([1, 50]),
)
def test_one_file_is_prepared_as_it_is_loaded_wherever_blocks_end(
    fresh, text, options, block, segment
):
    path = fresh() / "text"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "BLOCK", block)
        patch.setattr(encoding, "SEGMENT", segment)
        prepared = outcome(lambda: prepare(path, path.parent / "out", **options))
    assert_equal(prepared, outcome(lambda: load_corpus(path, **options)))
    assert_is(prepared, {"all": text}, **options)
    if isinstance(prepared, Corpus):
        assert sorted(os.listdir(path.parent / "out")) == [
            "prepared.json",
            "test.ids",
            "train.ids",
            "valid.ids",
            "vocab.json",
        ]


@settings(max_examples=75)
@given(
    contents=st.tuples(TEXT, TEXT, TEXT), options=OPTIONS, block=st.integers(1, 12) | st.just(50)
)
def test_a_folder_is_prepared_as_it_is_loaded(fresh, contents, options, block):
    folder = fresh()
    for name, text in zip(("train.txt", "dev", "wiki.test.tokens"), contents, strict=True):
        (folder / name).write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "BLOCK", block)
        prepared = outcome(lambda: prepare(folder, folder / "out", **options))
    assert_equal(prepared, outcome(lambda: load_corpus(folder, **options)))
    assert_is(prepared, dict(zip(SPLITS, contents, strict=True)), **options)


@given(
    st.lists(
        st.sampled_from([b"word ", b"\xc3\xa9", b"\xc3", b"\xff", b"\0", b"\n", b"\xef\xbb\xbf"]),
        max_size=30,
    ),
    st.integers(1, 9),
)
def test_a_binary_file_is_refused_with_the_same_byte(fresh, pieces, block):
    path = fresh() / "text"
    path.write_bytes(b"".join(pieces))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "BLOCK", block)
        prepared = outcome(lambda: prepare(path, path.parent / "out"))
    plain = outcome(lambda: load_corpus(path))
    if b"\0" in pieces and isinstance(prepared, str):  # of two faults it may meet the other first
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


def killed_at(call: int, text: Path, out: Path) -> int:
    """A process that prepares in tiny segments,
    and is killed at the Nth call that reaches the disk: its exit code.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [call]

    def dying(action):
        def act(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return action(*args, **options)

        return act

    try:
        texts.BLOCK = 64
        encoding.SEGMENT = 512
        os.fsync, os.replace, Words.units = map(dying, (os.fsync, os.replace, Words.units))
        prepare(text, out, lowercase=True, min_count=2)
        os._exit(0)
    finally:
        os._exit(1)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_any_moment_it_resumes_and_ends_with_the_same_bytes(tmp_path):
    rng = random.Random(0)
    text = tmp_path / "text"
    out = tmp_path / "out"
    words = [
        rng.choice(["Der ", "schöne ", "Satz\n", "€ ", f"{rng.random():.2} "]) for _ in range(8000)
    ]
    text.write_text("".join(words), encoding="utf-8")
    reference = prepare(text, tmp_path / "reference", lowercase=True, min_count=2)
    kills = 0
    while not (out / preparing.HEADER).exists():
        code = killed_at(rng.choice([3, 10, 25]), text, out)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        assert kills < 300, "it does not advance"
        segments = sorted(out.glob(".partial/segment-*"))
        if segments and rng.random() < 0.2:  # a damaged segment is made again
            flip(rng.choice(segments))
        if not (out / preparing.HEADER).exists():
            with pytest.raises(DataError, match=r"out is not a finished corpus: .*jaxlm prepare"):
                load_corpus(out)
    assert kills >= 12
    assert_equal(
        prepare(text, out, lowercase=True, min_count=2), reference
    )  # it also removes what a kill left
    assert content(out) == content(tmp_path / "reference")


def test_killed_in_each_write_it_resumes(tmp_path):
    text = tmp_path / "text"
    text.write_text("a b c\n" * 300)
    prepare(text, tmp_path / "reference", lowercase=True, min_count=2)
    asked = 0
    while True:
        asked += 1
        if killed_at(asked, text, tmp_path / f"{asked}") == 0:
            break
        prepare(text, tmp_path / f"{asked}", lowercase=True, min_count=2)
        assert content(tmp_path / f"{asked}") == content(tmp_path / "reference")
    assert asked > 40


def interrupted(text: Path, out: Path) -> None:
    """A preparation that stopped at byte 400 of the text,
    which is then what it should have been.
    """
    text.write_bytes(b"a b\n" * 100 + b"\xff\n")
    with pytest.raises(DataError, match=r"byte 400 \(0xff\)"):
        prepare(text, out)
    status = text.stat()
    text.write_bytes(b"a b\n" * 100 + b"b\n")
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns))  # so that it looks the same


def test_an_interrupted_preparation_is_resumed_where_it_was(tmp_path, monkeypatch, tiny_blocks):
    text = tmp_path / "text"
    out = tmp_path / "out"
    interrupted(text, out)
    read = []
    read_blocks = texts.read_blocks
    monkeypatch.setattr(
        texts, "read_blocks", lambda *args: (read.append(args), read_blocks(*args))[1]
    )
    prepared = prepare(text, out)
    assert read[0][1] > 350
    assert_equal(prepared, load_corpus(text))


def test_another_text_starts_over_and_other_options_resume(tmp_path, tiny_blocks):
    text = tmp_path / "text"
    out = tmp_path / "out"
    interrupted(text, out)
    assert_equal(prepare(text, out, min_count=2), load_corpus(text, min_count=2))
    interrupted(text, tmp_path / "other")
    text.write_bytes(b"c d\n" * 100)
    os.utime(text, ns=(0, 0))
    assert_equal(prepare(text, tmp_path / "other"), load_corpus(text))


@pytest.mark.parametrize("change", ["appended", "replaced", "touched"])
@pytest.mark.parametrize("where", ["text", "folder"])
def test_a_text_that_changes_while_it_is_prepared_is_refused(
    tmp_path, monkeypatch, tiny_blocks, change, where
):
    """In its first segment or its last;
    and the same command then prepares what the text has become.
    """
    text = tmp_path / "text"
    units = Words.units
    calls = []
    if where == "folder":
        text.mkdir()
        for split in SPLITS:
            (text / f"{split}.txt").write_bytes(b"a b c d\n" * 20)
        path = text / "valid.txt"
    else:
        path = text
        path.write_bytes(b"a b c d\n" * 20)
    prepare(text, tmp_path / "unchanged")

    def changing(words: Words, block: str) -> list[str]:
        calls.append(block)
        if len(calls) == moment:
            if change == "appended":
                path.write_bytes(path.read_bytes() + b"e\n")
            elif change == "replaced":
                path.write_bytes(b"b a d c\n" * 20)
            os.utime(path, ns=(len(calls), len(calls)))
        return units(words, block)

    monkeypatch.setattr(Words, "units", changing)
    first = 1 if where == "text" else 11
    for moment in (first, first + 9):
        calls.clear()
        out = tmp_path / f"out-{moment}"
        with pytest.raises(
            DataError, match=rf"{path} changed while it was read: start the same command again"
        ):
            prepare(text, out)
        assert not (out / preparing.HEADER).exists()
        assert_equal(prepare(text, out), load_corpus(text))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    "change", [shorten, flip, os.unlink, sparse, lambda path: path.write_bytes(b"[" * 100_000)]
)
@pytest.mark.parametrize("number", [0, 3])
def test_a_damaged_segment_is_made_again_at_once(tmp_path, tiny_blocks, number, change):
    text = tmp_path / "text"
    out = tmp_path / "out"
    interrupted(text, out)
    change(out / f".partial/segment-{number}")
    started = time.monotonic()
    assert_equal(prepare(text, out), load_corpus(text))
    assert time.monotonic() - started < 20


def test_a_text_of_one_line_is_resumed_too(tmp_path, monkeypatch, tiny_blocks):
    """It is read once to find its lines, and again in stretches."""
    text = tmp_path / "text"
    out = tmp_path / "out"
    text.write_bytes(b"a b " * 100)
    expected = load_corpus(text)
    made = []
    segment = encoding._segment

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "Encoder", full)
        with pytest.raises(DataError, match="No space"):
            prepare(text, out)
    monkeypatch.setattr(encoding, "_segment", lambda *args: (made.append(args), segment(*args))[1])
    assert_equal(prepare(text, out), expected)
    assert not made


def test_a_segment_that_is_altered_while_it_is_in_use_is_named(tmp_path, monkeypatch):
    text = tmp_path / "text"
    out = tmp_path / "out"
    text.write_bytes(b"a b\n" * 100)
    build = encoding.TextOptions.build

    def altered(options: encoding.TextOptions, counts: dict[str, int]) -> Vocab:
        for path in out.glob(".partial/segment-*"):
            flip(path)
        return build(options, counts)

    monkeypatch.setattr(encoding.TextOptions, "build", altered)
    with pytest.raises(
        DataError,
        match=r"out/.partial was altered while it was in use: start the same command again",
    ):
        prepare(text, out)
    monkeypatch.setattr(encoding.TextOptions, "build", build)
    assert_equal(prepare(text, out), load_corpus(text))


def test_two_at_once_make_one(tmp_path):
    (tmp_path / "text").write_text("a b c\n" * 20_000)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(prepare(tmp_path / "text", tmp_path / "out")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for corpus in found:
        assert_equal(corpus, load_corpus(tmp_path / "text"))


# In use.


@pytest.fixture(scope="module")
def prepared(text, tmp_path_factory) -> Path:
    return Path(prepare(text, tmp_path_factory.mktemp("prepared") / "out", max_vocab=150).spec)


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def test_load_corpus_recognizes_a_prepared_folder(text, prepared):
    corpus = load_corpus(prepared, max_vocab=150)
    assert_equal(corpus, load_corpus(text, max_vocab=150))
    assert corpus.spec == str(prepared) and corpus.train.dtype == np.uint16
    assert_equal(prepare(text, prepared, max_vocab=150), corpus)  # it is there already


def test_it_keeps_the_options_that_it_was_prepared_with(text, tmp_path):
    prepare(text, tmp_path / "out", lowercase=True, min_count=2)
    corpus = load_corpus(tmp_path / "out")
    assert corpus.options == {**DataConfig().options, "min_count": 2, "lowercase": True}
    assert_equal(load_corpus(tmp_path / "out", lowercase=True), corpus)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"min_count": 3}, "prepared with min_count 2, not 3: leave that out"),
        ({"max_vocab": 20}, r"with \d+ words, more than the vocabulary size 20: raise that"),
        ({"vocab": Vocab(("a",))}, "with a vocabulary of its own"),
    ]
    for options, expected in refused:
        with pytest.raises(DataError, match=expected):
            load_corpus(tmp_path / "out", **options)


@settings(max_examples=40)
@given(st.data())
def test_an_altered_file_is_refused_in_one_sentence(fresh, prepared, data):
    folder = fresh() / "copy"
    shutil.copytree(prepared, folder)
    path = folder / data.draw(st.sampled_from(sorted(os.listdir(prepared))))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(
        data.draw(
            st.sampled_from(
                [
                    content[:place],
                    content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
                    content + b"\0",
                ]
            )
        )
    )
    with pytest.raises(DataError, match="damaged") as caught:
        load_corpus(folder)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["train.ids", "vocab.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(
        DataError, match=f"{name} is damaged: No such file or directory; remove .* and prepare"
    ):
        load_corpus(copy)


def test_places_that_cannot_be_used_are_refused(text, copy, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thing").touch()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    refused: list[tuple[Path, Path, dict[str, Any], str]] = [
        (
            text,
            tmp_path / "full",
            {},
            r"full is not empty \(it holds thing\): choose another folder",
        ),
        (text, text, {}, r"is not empty \(it holds test.txt, train.txt, valid.txt\)"),
        (text, tmp_path / "file", {}, "file cannot be written: Not a directory"),
        (text, copy, {}, "holds another corpus .*max_vocab 150, not None.*choose another folder"),
        (text / "train.txt", copy, {"max_vocab": 150}, "holds another corpus"),
        (copy, tmp_path / "new", {}, "copy is prepared already: train on it"),
        (tmp_path / "nothing", tmp_path / "new", {}, "there is no file .*nothing; check the path"),
        (
            tmp_path / "pipe",
            tmp_path / "new",
            {},
            "pipe cannot be read: expected a regular file, found a FIFO",
        ),
        (text, tmp_path / "new", {"min_count": 0}, "at least 1"),
        (text, tmp_path / "new", {"max_vocab": 1}, "max_vocab must be at least 2"),
    ]
    for source, out, options, expected in refused:
        with pytest.raises(JaxlmError, match=expected) as caught:
            prepare(source, out, **options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_text_too_large_for_memory_is_prepared_in_the_cache_and_found_again(
    text, tmp_path, monkeypatch
):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    plain = load_corpus(text)
    other = load_corpus(text, vocab=Vocab((*plain.vocab.words, "more")))
    monkeypatch.setattr(preparing, "LARGE", 1000)
    first = load_corpus(text)
    folder = re.search(r"its ids are kept in (.*), and read a piece at a time", first.notes[-1])
    assert folder and Path(folder[1], preparing.HEADER).exists()
    assert_equal(replace(first, notes=plain.notes), plain)
    encoded = load_corpus(text, vocab=other.vocab)
    assert_equal(replace(encoded, notes=other.notes), other)
    assert first.spec == str(text)
    monkeypatch.setattr(preparing, "_make", None)  # nothing more is made
    loaded = []
    load = preparing.load_prepared
    monkeypatch.setattr(
        preparing, "load_prepared", lambda *args: (loaded.append(args), load(*args))[1]
    )
    load_corpus(text)
    assert len(loaded) == 1  # which hashes all ids
    for bound in (None, len(plain.vocab), 10**6):
        assert_equal(load_corpus(text, max_vocab=bound), first)
    with pytest.raises(TypeError):
        load_corpus(text, max_vocab=50)
    with pytest.raises(TypeError):
        load_corpus(text, min_count=2)
    assert_equal(load_corpus(text, vocab=plain.vocab), first)
    assert_equal(load_corpus(text, vocab=other.vocab), encoded)


# From strangers.


def link_to_copy(path: Path) -> None:
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    os.replace(path, elsewhere)
    path.symlink_to(elsewhere)


def other_kind(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace_file(path: Path) -> None:
        path.unlink()
        make(path)

    return replace_file


STRANGE = {
    "a link": link_to_copy,
    "a FIFO": other_kind(os.mkfifo),
    "a directory": other_kind(os.mkdir),
    "a link to a device": other_kind(lambda path: path.symlink_to("/dev/zero")),
    "a sparse terabyte": sparse,
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize(
    "name", ["prepared.json", "vocab.json", "train.ids", "valid.ids", "test.ids"]
)
def test_only_regular_files_of_the_right_size_are_opened(copy, name, change):
    change(copy / name)
    started = time.monotonic()
    with pytest.raises(DataError, match=name) as caught:
        load_corpus(copy)
    assert time.monotonic() - started < 5 and "\n" not in str(caught.value)


def resealed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the header as a stranger would, with a right seal."""
    path = folder / "prepared.json"
    tree = json.loads(path.read_text())
    del tree["sha256"]
    change(tree)
    path.write_text(preparing._sealed(tree))


def put(folder: Path, name: str, data: bytes) -> None:
    """Replaces a file, and its size and hash in the header."""
    (folder / name).write_bytes(data)
    resealed(
        folder,
        lambda tree: tree["files"].update({name: [len(data), hashlib.sha256(data).hexdigest()]}),
    )


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "files": lambda tree: tree["files"].update({"../../secret": [1, "0" * 64]}),
    "files (fewer)": lambda tree: tree["files"].pop("valid.ids"),
    "files (list)": lambda tree: tree.update(files=[]),
    "train.ids": lambda tree: tree["files"].update({"train.ids": [-2, "0" * 64]}),
    "valid.ids": lambda tree: tree["files"].update({"valid.ids": [0, "0" * 64]}),
    "test.ids": lambda tree: tree["files"].update({"test.ids": [7, "0" * 64]}),
    "test.ids (hash)": lambda tree: tree["files"].update({"test.ids": [8, "x"]}),
    "vocab.json": lambda tree: tree["files"].update({"vocab.json": [1 << 40, "0" * 64]}),
    "dtype": lambda tree: tree.update(dtype="|O"),
    "dtype (list)": lambda tree: tree.update(dtype=["<u2"]),
    "words": lambda tree: tree.update(words=10**400),
    "words (beyond the dtype and the vocabulary)": lambda tree: tree.update(words=(1 << 16) + 1),
    "words (float)": lambda tree: tree.update(words=1e300),
    "min_count": lambda tree: tree.update(min_count="\x1b[2J"),
    "lowercase": lambda tree: tree.update(lowercase=1),
    "notes": lambda tree: tree.update(notes="abc"),
    "name": lambda tree: tree.update(name=None),
    "format": lambda tree: tree.update(format=2),
    "unknown": lambda tree: tree.update(unknown=2),
    "limited": lambda tree: tree.pop("limited"),
}


@pytest.mark.parametrize("expected", FORGED)
def test_a_forged_header_is_refused_with_the_field(copy, expected):
    resealed(copy, FORGED[expected])
    with pytest.raises(DataError, match=expected.partition(" ")[0]) as caught:
        load_corpus(copy)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        b'{"words": ' + b"9" * 400 + b"}",
        b"\xff",
        b'{"format": 1, "format": 1}',
        b'{"format": "\\ud800"}',
        b"1e999",
    ],
)
def test_any_json_in_place_of_a_header_is_refused_in_one_sentence(copy, data):
    (copy / "prepared.json").write_bytes(data)
    with pytest.raises(DataError, match=r"prepared.json is damaged") as caught:
        load_corpus(copy)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_header_that_names_many_texts_is_read(copy):
    resealed(copy, lambda tree: tree["text"].extend([["/a/long/path" * 100, 1, 1]] * 1000))
    assert (copy / "prepared.json").stat().st_size > 1 << 20 and len(load_corpus(copy).train)


def test_a_vocabulary_of_another_size_is_refused(copy):
    put(copy, "vocab.json", Vocab(("a", "b", "<unk>")).to_json().encode())
    with pytest.raises(DataError, match=r"vocab.json is damaged: it has 3 words, not 150"):
        load_corpus(copy)
    put(copy, "vocab.json", b"[" * 100_000)
    with pytest.raises(DataError, match="not valid JSON"):
        load_corpus(copy)
    put(copy, "vocab.json", b"\xff")
    with pytest.raises(DataError, match=r"vocab.json is damaged: .*can't decode byte 0xff"):
        load_corpus(copy)


@pytest.mark.parametrize(
    ("dtype", "wrong"), [("<u2", 150), ("<u2", 65535), ("<i4", -1), ("<i4", 150)]
)
def test_ids_outside_the_vocabulary_are_refused_though_their_hash_is_right(copy, dtype, wrong):
    for split in SPLITS:
        ids = np.arange(1000).astype(dtype) % 150
        put(copy, f"{split}.ids", ids.tobytes())
    resealed(copy, lambda tree: tree.update(dtype=dtype))
    assert len(load_corpus(copy).train) == 1000
    ids[700] = wrong
    put(copy, "test.ids", ids.tobytes())
    with pytest.raises(DataError, match=rf"test.ids holds the id {wrong}, .* 0 to 149"):
        load_corpus(copy)


@pytest.mark.parametrize(
    ("text", "options"), [(b"a \xff b\n", {}), (b"a b\n", {"tokens": "subwords", "pieces": 400})]
)
def test_a_text_or_options_that_cannot_be_used_leave_nothing_behind(tmp_path, text, options):
    (tmp_path / "text").write_bytes(text)
    with pytest.raises(DataError):
        prepare(tmp_path / "text", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["segment-0", "lock"])
@pytest.mark.parametrize("kind", ["a link", "a hard link", "a FIFO", "a directory"])
def test_nothing_outside_the_working_folder_is_written(tmp_path, name, kind):
    text = tmp_path / "text"
    victim = tmp_path / "victim"
    path = tmp_path / "out/.partial" / name
    text.write_text("a b\n" * 10)
    victim.write_text("all of it")
    path.parent.mkdir(parents=True)
    {
        "a link": lambda: path.symlink_to(victim),
        "a hard link": lambda: os.link(victim, path),
        "a FIFO": lambda: os.mkfifo(path),
        "a directory": path.mkdir,
    }[kind]()
    try:
        prepare(text, tmp_path / "out")
    except DataError as error:
        assert name in str(error)
    assert victim.read_text() == "all of it"


def test_a_working_folder_that_is_a_link_is_refused(tmp_path):
    text = tmp_path / "text"
    victim = tmp_path / "victim"
    text.write_text("a b\n" * 10)
    victim.mkdir()
    (victim / "segment-0").write_text("all of it")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.partial").symlink_to(victim)
    with pytest.raises(DataError, match="expected a directory, found a link"):
        prepare(text, tmp_path / "out")
    assert content(victim) == {"segment-0": b"all of it"}


def test_a_sparse_text_is_refused_at_its_first_zero(tmp_path):
    for path in (tmp_path / "text", tmp_path / "holes"):
        sparse(path)
    with open(tmp_path / "holes", "r+b") as file:
        file.write(b"word " * 300_000)
    started = time.monotonic()
    for path, byte in ((tmp_path / "text", 0), (tmp_path / "holes", 1_500_000)):
        for read in (
            lambda path=path: prepare(path, tmp_path / "out"),
            lambda path=path: texts.read_string(path),
        ):
            with pytest.raises(DataError, match=f"byte {byte} is zero"):
                read()
    assert time.monotonic() - started < 20


# As format 1 was first written.
OLD = {
    "train.ids": b"\2\0\0\0\4\0\1\0\0\0\0\0\3\0\1\0",
    "valid.ids": b"\2\0\1\0",
    "test.ids": b"\5\0\1\0",
    "vocab.json": b'[\n"b",\n"<eos>",\n"a",\n"c",\n"\\u00e9",\n"<unk>"\n]\n',
    "prepared.json": rb"""{
 "format": 1,
 "name": "text:text",
 "notes": [
  "text is split 90/5/5 by lines: 2 / 1 / 1"
 ],
 "text": [
  [
   "/tmp/oldfix/text",
   17,
   1000000000000
  ]
 ],
 "max_vocab": null,
 "min_count": 1,
 "lowercase": false,
 "limited": false,
 "description": "text in text: 8 / 2 / 2 tokens, of which 0.0% / 0.0% / 50.0% <unk>; 6 types",
 "words": 6,
 "dtype": "<u2",
 "files": {
  "train.ids": [
   16,
   "5221c5c7fd613bae813737bd899857f2e8e19da86002195738873bf81e525c4a"
  ],
  "valid.ids": [
   4,
   "7dc4096fa4ca962ffe7ba24f3cb48480065a7714e6a4a27588185d3d86a8dde8"
  ],
  "test.ids": [
   4,
   "aeb6173737ae1c3b6a1c89ffa5a3d560dfde74f48bf9763d2b882515e61da20c"
  ],
  "vocab.json": [
   46,
   "5c3dba031882dd96fd923f783ecf7cf115c0882bfb1d492aa796979ba25e6805"
  ]
 },
 "corpus_sha256": "4a6a5fc0944dcc8f53c71b6ac0c23dd67fc6cbf535a7f23d7b4b400aa57efe4e",
 "sha256": "16aa1909f57481b7ce9c2a579662d69c01c242cdc7d9c27ac978986f9db35587"
}
""",
}


def test_a_folder_that_was_prepared_before_still_loads(tmp_path):
    for name, data in OLD.items():
        (tmp_path / name).write_bytes(data)
    corpus = load_corpus(tmp_path)
    assert corpus.sha256 == "4a6a5fc0944dcc8f53c71b6ac0c23dd67fc6cbf535a7f23d7b4b400aa57efe4e"
    assert corpus.vocab.decode(corpus.train) == ["a", "b", "é", "<eos>", "b", "b", "c", "<eos>"]
    with Folder.open(tmp_path) as folder:
        assert preparing._sealed(preparing.read_header(folder)).encode() == OLD["prepared.json"]


# Memory.

PEAK = """
import re, sys
from jaxlm.data import encoding
from jaxlm.data.prepared import prepare
encoding.SEGMENT >>= 2
prepare(sys.argv[1], sys.argv[2])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_text(tmp_path):
    peak = {}
    for megabytes in (6, 24):
        path = tmp_path / f"{megabytes}"
        path.write_bytes(b"some words of a text that is long\n" * (megabytes * 30_000))
        done = python(PEAK, path, tmp_path / f"{megabytes}.out")
        assert done.returncode == 0, done.stderr
        peak[megabytes] = int(done.stdout) / 1024
    assert peak[24] - peak[6] < 10, peak  # the ids of the text that is longer would take 17 MB
