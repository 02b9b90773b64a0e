"""Prepared corpora: equal to the in-memory ones to the byte, however the text is cut or the process
killed; and safe to load when they come from a stranger.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.base.files import Folder
from jaxlm.config.settings import DataConfig
from jaxlm.data import encoding
from jaxlm.data import prepared as preparing
from jaxlm.data import text as texts
from jaxlm.data.corpora import load_corpus, prepare
from jaxlm.data.corpus import Corpus
from jaxlm.data.text import SPLITS
from jaxlm.data.tokens import Words
from jaxlm.data.vocab import Vocab

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
    """A block every few bytes, and a piece every few units."""
    monkeypatch.setattr(texts, "BLOCK", 16)
    monkeypatch.setattr(encoding, "UNITS_AT_ONCE", 5)


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
    units=st.sampled_from([1, 50]),
)
def test_one_file_is_prepared_as_it_is_loaded_wherever_blocks_end(
    fresh, text, options, block, units
):
    path = fresh() / "text"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "BLOCK", block)
        patch.setattr(encoding, "UNITS_AT_ONCE", units)
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
    """Forks a process that prepares in tiny blocks and is killed at the Nth call that works on the
    text or the disk.

    Returns its exit code.
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
        texts.BLOCK = 256
        encoding.UNITS_AT_ONCE = 100
        os.fsync, os.rename, Words.units = map(dying, (os.fsync, os.rename, Words.units))
        prepare(text, out, lowercase=True, min_count=2)
        os._exit(0)
    finally:
        os._exit(1)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["out", "é" * 60])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(tmp_path, name):
    """A folder is there whole or not at all; what a kill left beside it is removed, and nothing
    else.
    """
    text = tmp_path / "text"
    out = tmp_path / "made" / name
    text.write_text("A b c\n" * 300)
    reference = prepare(text, tmp_path / "reference", lowercase=True, min_count=2)
    kills = 0
    while killed_at(kills + 1, text, out) != 0:
        kills += 1
        if out.exists():
            assert content(out) == content(tmp_path / "reference")
            shutil.rmtree(out)
    assert kills > 15
    (tmp_path / "made/.partial-mine-0123456789abcdef").touch()
    assert_equal(prepare(text, out, lowercase=True, min_count=2), reference)
    assert content(out) == content(tmp_path / "reference")
    shutil.rmtree(out)
    assert_equal(prepare(text, out, lowercase=True, min_count=2), reference)
    left = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert left == sorted([".partial-mine-0123456789abcdef", name])


@pytest.mark.parametrize("change", ["appended", "replaced", "touched"])
@pytest.mark.parametrize("where", ["text", "folder"])
def test_a_text_that_changes_while_it_is_prepared_is_refused(
    tmp_path, monkeypatch, tiny_blocks, change, where
):
    """In its first block or its last; and the same command then prepares what the text has
    become.
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
        assert not out.exists()
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


def test_several_at_once_make_one(tmp_path):
    """Each removes what a killed one left, and none what another is writing."""
    (tmp_path / "text").write_text("a b c\n" * 20_000)
    for place in range(5):
        out = tmp_path / f"{place}"
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(prepare, [tmp_path / "text"] * 4, [out] * 4))
        for corpus in made:
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


def test_the_seal_covers_each_field_and_each_option(copy):
    path = copy / "prepared.json"
    header = json.loads(path.read_text())
    for part in (header, header["options"]):
        for name in part.keys() - {"sha256"}:
            kept = part[name]
            part[name] = [kept]
            path.write_text(json.dumps(header, indent=1) + "\n")
            part[name] = kept
            with pytest.raises(DataError, match="its sha256 is another"):
                load_corpus(copy)


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
        (tmp_path / "nothing", tmp_path / "new", {}, "there is no corpus or file .*nothing"),
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


def test_a_link_to_a_place_keeps_its_target(text, tmp_path):
    for name in ("empty", "missing"):
        (tmp_path / name).symlink_to(tmp_path / f"{name}-target")
    (tmp_path / "empty-target").mkdir()
    for name in ("empty", "missing"):
        prepare(text, tmp_path / name)
        assert (tmp_path / name).is_symlink() and (
            tmp_path / f"{name}-target" / "train.ids"
        ).exists()


# In the cache.


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/texts"


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir() and not path.is_symlink()]


def test_a_text_is_read_once_for_all_who_ask_alike(text, cache, monkeypatch):
    """Whatever bound that drops no word, and with the vocabulary that it has, as a resumed run
    asks.
    """
    first = load_corpus(text)
    limited = load_corpus(text, max_vocab=50)
    bounds = (None, len(first.vocab), 10**6)
    for bound in bounds:
        assert_equal(load_corpus(text, max_vocab=bound), first)
    other = load_corpus(text, vocab=Vocab((*first.vocab.words, "more")))
    assert other.sha256 != first.sha256 and first.spec == str(text)
    assert len(folders(cache)) == 3
    assert not [path for path in cache.iterdir() if ".partial" in path.name]
    monkeypatch.setattr(encoding, "number_units", None)  # no text is read any more
    for bound in bounds:
        assert_equal(load_corpus(text, max_vocab=bound), first)
    assert_equal(load_corpus(text, max_vocab=50), limited)
    assert_equal(load_corpus(text, max_vocab=50, vocab=limited.vocab), limited)
    assert_equal(load_corpus(text, max_vocab=len(first.vocab), vocab=first.vocab), first)
    assert_equal(load_corpus(text, vocab=other.vocab), other)
    with pytest.raises(TypeError):
        load_corpus(text, min_count=2)


def test_a_changed_text_is_read_again(tmp_path, cache):
    """Also where size and time of modification stay, as `cp -p` may leave them."""
    path = tmp_path / "text"
    path.write_text("a b\n" * 9)
    first = load_corpus(path)
    os.utime(path)
    assert load_corpus(path).sha256 == first.sha256 and len(folders(cache)) == 1
    status = path.stat()
    path.write_text("a c\n" * 9)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load_corpus(path).vocab.words == ("<eos>", "a", "c", "<unk>")


def test_equal_ids_of_other_options_are_another_corpus(tmp_path, cache):
    """The name tells the options, though no word is rare enough for them to matter."""
    path = tmp_path / "text"
    path.write_text("a b\n" * 99)
    names = [load_corpus(path, min_count=count).name for count in (1, 2, 1)]
    assert names == ["text:text", "text:text+min_count=2", "text:text"]
    assert len(folders(cache)) == 2


def test_a_text_that_is_split_elsewhere_is_another_corpus(tmp_path, cache):
    """Though its tokens are the same, one after another."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for lines in ((3, 1, 1), (2, 2, 1)):
        for split, count in zip(SPLITS, lines, strict=True):
            (folder / f"{split}.txt").write_text("a\n" * count)
        corpus = load_corpus(folder)
        assert [len(getattr(corpus, split)) for split in SPLITS] == [2 * n for n in lines]


@pytest.mark.parametrize("change", [shorten, flip, os.unlink, sparse])
@pytest.mark.parametrize("name", ["prepared.json", "vocab.json", "train.ids"])
def test_a_damaged_folder_of_the_cache_is_made_again(tmp_path, cache, change, name):
    path = tmp_path / "text"
    path.write_text("a b\n" * 99)
    load_corpus(path)
    (folder,) = folders(cache)
    whole = content(folder)
    change(folder / name)
    load_corpus(path)
    assert folders(cache) == [folder] and content(folder) == whole


def test_what_a_kill_left_in_the_cache_is_removed(tmp_path, cache):
    path = tmp_path / "text"
    path.write_text("a b\n" * 99)
    (cache / ".partial-x-0123456789abcdef").mkdir(parents=True)
    load_corpus(path)
    assert not (cache / ".partial-x-0123456789abcdef").exists()


@pytest.mark.parametrize("size", [1000, 6 << 20])
def test_a_stream_of_any_size_is_read_once(tmp_path, cache, monkeypatch, size):
    """`--corpus <(zcat text.gz)`; its spec is the folder that it became, so that a run is
    resumed.
    """
    data = b"some words of a long text\n" * (size // 26)
    (tmp_path / "text").write_bytes(data)
    plain = load_corpus(tmp_path / "text")

    def stream() -> str:
        read, write = os.pipe()
        threading.Thread(target=lambda: (os.write(write, data), os.close(write))).start()
        return f"/dev/fd/{read}"

    first = load_corpus(stream())
    assert first.sha256 == plain.sha256 and first.name.startswith("text:")
    assert Path(first.spec).parent == cache and first.spec in map(str, folders(cache))
    again = load_corpus(first.spec, max_vocab=len(first.vocab), vocab=first.vocab)
    assert_equal(again, first)
    assert_equal(prepare(stream(), tmp_path / "out"), load_corpus(tmp_path / "out"))
    assert load_corpus(tmp_path / "out").sha256 == plain.sha256


def test_a_cache_that_cannot_be_written_is_told(text, tmp_path, cache):
    expected = load_corpus(text)
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    corpus = load_corpus(text)
    assert corpus.notes[-1].startswith("ids are in a temporary folder: ")
    assert "File exists" in corpus.notes[-1]
    assert_equal(replace(corpus, notes=corpus.notes[:-1]), expected)
    assert corpus.spec == expected.spec


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
    path.write_text(preparing._seal(tree))


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
    "files (no hash)": lambda tree: tree["files"].update({"test.ids": [8]}),
    "files (no size)": lambda tree: tree["files"].update({"test.ids": [["8"], "0" * 64]}),
    "options": lambda tree: tree["options"].update({"\x1b[2J": 1}),
    "options (none)": lambda tree: tree.pop("options"),  # as 0.1 wrote it
    "floor": lambda tree: tree.update(floor=[1.0]),
    "max_vocab": lambda tree: tree.update(max_vocab=1e300),
    "notes": lambda tree: tree.update(notes="abc"),
    "name": lambda tree: tree.update(name=None),
    "format": lambda tree: tree.update(format=2),
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
    with pytest.raises(DataError, match=r"train.ids holds the id \d+, outside the vocabulary"):
        load_corpus(copy)
    put(copy, "vocab.json", b"[" * 100_000)
    with pytest.raises(DataError, match="not valid JSON"):
        load_corpus(copy)
    put(copy, "vocab.json", b"\xff")
    with pytest.raises(DataError, match=r"vocab.json is damaged: .*can't decode byte 0xff"):
        load_corpus(copy)


@pytest.mark.parametrize("wrong", [150, 65535])
def test_ids_outside_the_vocabulary_are_refused_though_their_hash_is_right(copy, wrong):
    for split in SPLITS:
        ids = np.arange(1000).astype("<u2") % 150
        put(copy, f"{split}.ids", ids.tobytes())
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


# As 0.2 wrote it.
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
 "options": {
  "tokens": "words",
  "lowercase": false,
  "min_count": 1
 },
 "floor": null,
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
 "sha256": "cfef5a4a1da3ba92a81c9a2f9582ba4ea3caf9051d6b1980eaf1d4d6a2d03858"
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
        header = preparing.read_header(folder)
    assert header["options"] == DataConfig().options


# Memory.

PEAK = """
import re, sys
from jaxlm.data.corpora import prepare
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
