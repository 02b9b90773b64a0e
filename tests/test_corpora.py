"""Corpora: any text in, ids out; downloads from a local server;
bad input gives one clear sentence.
"""

import hashlib
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from exact_models import floor_nats, sample
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.base.errors import DataError
from jaxlm.data import embedded, known_texts
from jaxlm.data.corpora import load_corpus, prepare
from jaxlm.data.corpus import Corpus
from jaxlm.data.text import SPLITS, read_string
from jaxlm.data.tokens import WORDS
from jaxlm.data.vocab import EOS, UNK, Vocab

FAKE = {split: f" a small {split} of <unk> words \n the end \n".encode() for split in SPLITS}
tokenize = WORDS.units
FAKE_TOKENS = tokenize(FAKE["train"].decode())


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No test sees the user's data and cache, or the network."""
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXLM_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    for text in (known_texts.PENN_TREEBANK, known_texts.SHAKESPEARE):
        monkeypatch.setattr(text, "mirrors", ())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def fake_ptb(monkeypatch):
    """Puts the hashes of three tiny files in place of Penn Treebank's."""
    for split, data in FAKE.items():
        monkeypatch.setitem(
            known_texts.PENN_TREEBANK.sha256, split, hashlib.sha256(data).hexdigest()
        )


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def irregular(path: Path, change: str, target: Path = Path("/dev/zero")) -> None:
    """Replaces a file by a FIFO, a link to a device, a sparse file of 1 TB,
    or a link to `target`.
    """
    path.unlink(missing_ok=True)
    if change == "FIFO":
        os.mkfifo(path)
    elif change == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to("/dev/zero" if change == "device" else target)


@contextmanager
def quick_refusal(match: str):
    """The block raises one sentence that matches, within seconds."""
    started = time.monotonic()
    with pytest.raises(DataError, match=match) as caught:
        yield
    assert time.monotonic() - started < 20 and "\n" not in str(caught.value)


# Text.


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_newlines_of_every_system_are_eos(tmp_path, newline):
    (tmp_path / "text").write_bytes(f"\ufeffOne two{newline}{newline} three".encode())
    assert tokenize(read_string(tmp_path / "text")) == ["One", "two", EOS, EOS, "three"]


@given(st.text())
def test_tokens_are_separated_by_white_space(text):
    tokens = tokenize(text)
    joined = text.replace("\r\n", "\n").replace("\r", "\n")
    assert tokens == joined.replace("\n", f" {EOS} ").split()
    if set(tokens):
        assert Vocab.build(tokens).decode(Vocab.build(tokens).encode(tokens)) == tokens


@given(st.data())
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, data):
    original = "ein schöner Satz\nund noch ein Wort €\n".encode()
    place = data.draw(st.integers(0, len(original)))
    path = tmp_path_factory.getbasetemp() / "damaged.txt"
    path.write_bytes(original[:place] + data.draw(st.binary(max_size=8)) + original[place + 2 :])
    try:
        tokens = tokenize(read_string(path))
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert Vocab.build(tokens).decode(Vocab.build(tokens).encode(tokens)) == tokens


@pytest.mark.parametrize(
    ("files", "spec", "expected"),
    [
        (
            {},
            "missing.txt",
            "no corpus or file 'missing.txt'; expected auto, ptb, ptb-char, embedded",
        ),
        ({"a": b""}, "a", "a is empty"),
        ({"a": b"\xef\xbb\xbf \n\n"}, "a", "a is empty"),
        ({"a": b"word \x00 word\n"}, "a", "a is not text: byte 5 is zero"),
        ({"a": "word\n".encode("utf-16")}, "a", "a is not text"),
        ({"a": b"caf\xc3\xa9 caf\xe9\n"}, "a", r"a is not UTF-8: byte 9 \(0xe9\)"),
        ({"a": b"\xef\xbb\xbfcaf\xe9\n"}, "a", r"a is not UTF-8: byte 6 \(0xe9\)"),
        ({"a": b"one line\n"}, "a", "at least 3 lines"),
        ({}, ".", "one train text, and holds none; add one, such as train.txt"),
        ({"train.txt": b"x\n", "test.txt": b"x\n"}, ".", "one valid text, and holds none"),
        (
            {"train.txt": b"x\n", "ptb.train.txt": b"x\n"},
            ".",
            "ptb.train.txt and train.txt; keep one",
        ),
        ({"train.txt": b"x\n", "dev": b"x\n", "valid": b"x\n"}, ".", "dev and valid; keep one"),
        ({"train.txt": b"x\n", "valid.txt": b"", "test.txt": b"x\n"}, ".", "valid.txt is empty"),
        ({}, "a\0b", "no corpus or file"),
        ({"a": b"x\ny\nz\n"}, "", "no corpus or file ''"),
    ],
)
def test_unusable_text_is_refused_in_one_sentence(files, spec, expected):
    write(Path(), files)
    with pytest.raises(DataError, match=expected) as caught:
        load_corpus(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("missing", "no file missing"),
        (".", "expected a regular file, found a directory"),
        ("file/inside", "cannot be read"),
        ("\0", "cannot be read"),
    ],
)
def test_unreadable_file_is_refused_in_one_sentence(path, expected):
    write(Path(), {"file": b"text"})
    with pytest.raises(DataError, match=expected):
        read_string(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("FIFO", "expected a regular file, found a FIFO"),
        ("device", "expected a regular file, found a device"),
        ("sparse", "byte 0 is zero"),
    ],
)
def test_text_is_read_from_regular_files(change, expected):
    write(Path("mine"), {f"{split}.txt": b"a b\n" * 3 for split in SPLITS})
    for path, spec in ((Path("alone"), "alone"), (Path("mine/valid.txt"), "mine")):
        irregular(path, change)
        for read in (
            lambda path=path: read_string(path),
            lambda spec=spec: load_corpus(spec),
            lambda spec=spec: load_corpus(spec, vocab=Vocab(("a", UNK))),
        ):
            with quick_refusal(match=rf"{path} .*{expected}"):
                read()


def test_a_warning_where_valid_has_far_more_unknown_words_than_train(tmp_path):
    files = {
        "train.txt": "一二三\n四五六\n" * 5,
        "valid.txt": "七八九\n四五六\n",
        "test.txt": "十\n",
    }  # a word a line
    folder = write(tmp_path / "mine", {name: text.encode() for name, text in files.items()})
    (note,) = load_corpus(folder).notes
    assert note.startswith(
        "25.0% of the tokens of valid are <unk>, against 0.0% of those of train: "
    )
    assert "such as subwords or bytes" in note and "min_count (2 or more)" in note
    assert prepare(folder, tmp_path / "out").notes == load_corpus(tmp_path / "out").notes == (note,)
    (note,) = load_corpus(folder, min_count=6).notes  # every word of train is unknown too
    assert note.startswith("warning: 50.0% of valid are tokens that the model does not know")
    assert load_corpus("embedded-tiny").notes == ()


@pytest.mark.parametrize("pattern", ["{}.txt", "ptb.{}.txt", "wiki.{}.tokens", "{}"])
@pytest.mark.parametrize("valid", ["valid", "validation", "dev"])
def test_folder_of_text(tmp_path, pattern, valid):
    files = {pattern.format(name): f"{name} b b\n".encode() for name in ("train", valid, "test")}
    corpus = load_corpus(write(tmp_path / "mine", {**files, "README": b"\0"}))
    assert corpus.name == "text:mine" and corpus.floor is None
    assert corpus.vocab.words == ("b", EOS, "train", UNK)
    assert corpus.train.tolist() == [2, 0, 0, 1] and corpus.valid.tolist() == [3, 0, 0, 1]


def test_the_share_of_unknown_tokens_of_each_split(tmp_path, monkeypatch):
    files = {"train.txt": b"a a b c\n", "valid.txt": b"a b c d\n", "test.txt": b"d d d"}
    corpus = load_corpus(write(tmp_path / "mine", files))
    assert corpus.unknown_shares() == {"train": 0.0, "valid": 1 / 5, "test": 1.0}
    monkeypatch.setattr("jaxlm.data.vocab.BLOCK", 2)
    for made in (corpus, prepare(tmp_path / "mine", tmp_path / "out")):
        assert made.unknown_shares() == pytest.approx({"train": 0.0, "valid": 1 / 5, "test": 1.0})


def test_options_change_text_vocabulary_and_name(tmp_path):
    files = {f"{split}.txt": b"B b b c A a\n" for split in SPLITS}
    folder = str(write(tmp_path / "mine", files))
    corpus = load_corpus(folder, lowercase=True, max_vocab=4, min_count=2)
    assert (
        corpus.name == "text:mine+lowercase+min_count=2"
    )  # four types: the bound of four dropped none
    assert (
        load_corpus(folder, lowercase=True, max_vocab=3).name == "text:mine+lowercase+max_vocab=3"
    )
    assert corpus.vocab.words == ("b", "a", EOS, UNK)  # "c" is the one <unk>
    assert load_corpus(folder).sha256 not in (
        corpus.sha256,
        load_corpus(folder, min_count=2).sha256,
    )
    rare_end = str(
        write(tmp_path / "rare", {f"{split}.txt": b"a a b b\n" for split in SPLITS})
    )  # `<eos>` is kept
    assert (
        load_corpus(rare_end, max_vocab=3, min_count=2).name == "text:rare+max_vocab=3+min_count=2"
    )
    again = load_corpus(folder, lowercase=True, vocab=Vocab(("c", UNK)))
    assert again.train.tolist() == [1, 1, 1, 0, 1, 1, 1]


@given(st.integers(3, 130), st.booleans())
def test_one_file_is_split_by_lines(tmp_path_factory, lines, ended):
    path = tmp_path_factory.getbasetemp() / "one.txt"
    path.write_text("\n".join(f"line {i}" for i in range(lines)) + "\n" * ended)
    corpus = load_corpus(path)
    held = max(1, lines // 20)
    assert (
        corpus.notes[0] == f"{path} is split 90/5/5 by lines: {lines - 2 * held} / {held} / {held}"
    )
    assert sum(getattr(corpus, split).size for split in SPLITS) == len(tokenize(path.read_text()))
    assert corpus.valid.size == 3 * held
    assert corpus.test.size == 3 * held - (not ended)


# Penn Treebank.


def test_penn_treebank_has_the_known_sizes_and_ids(ptb_dir):
    corpus = load_corpus("ptb", data_dir=ptb_dir, download=False)
    assert corpus.name == "ptb" and corpus.floor is None and not corpus.notes
    assert [getattr(corpus, split).size for split in SPLITS] == [929_589, 73_760, 82_430]
    assert corpus.vocab.words[:5] == ("the", UNK, EOS, "N", "of") and len(corpus.vocab) == 10_000
    assert corpus.train[:10].tolist() == [
        9970,
        9971,
        9972,
        9974,
        9975,
        9976,
        9980,
        9981,
        9982,
        9983,
    ]
    assert corpus.train[929_589 // 60 :][:7].tolist() == [901, 33, 3361, 8, 1279, 437, 597]
    assert load_corpus("ptb", data_dir=ptb_dir, download=False).sha256 == corpus.sha256


@pytest.mark.parametrize(
    "pattern", ["ptb.{}.txt", "{}.txt", "ptb.{}", "simple-examples/data/ptb.{}.txt"]
)
@pytest.mark.parametrize("place", ["data_dir", "$JAXLM_DATA", "here", "cache"])
def test_penn_treebank_is_found(tmp_path, monkeypatch, fake_ptb, pattern, place):
    folder = {"here": Path("data/ptb"), "cache": tmp_path / "cache/ptb"}.get(
        place, tmp_path / "elsewhere"
    )
    write(
        (folder / pattern).parent,
        {Path(pattern.format(split)).name: FAKE[split] for split in SPLITS},
    )
    if place == "$JAXLM_DATA":
        monkeypatch.setenv("JAXLM_DATA", str(folder))
    corpus = load_corpus("auto", data_dir=folder if place == "data_dir" else None, download=False)
    assert corpus.name == "ptb" and corpus.vocab.decode(corpus.train) == FAKE_TOKENS


@pytest.mark.parametrize("spec", ["auto", "ptb"])
def test_other_bytes_are_refused_naming_both_hashes(fake_ptb, spec):
    write(Path("data/ptb"), {f"ptb.{split}.txt": FAKE[split] for split in SPLITS})
    write(Path("data/ptb"), {"ptb.valid.txt": b"changed"})
    hashes = (
        f"{hashlib.sha256(b'changed').hexdigest()}, not {known_texts.PENN_TREEBANK.sha256['valid']}"
    )
    with pytest.raises(DataError, match=f"data/ptb/ptb.valid.txt is not .* {hashes}"):
        load_corpus(spec)


def test_without_penn_treebank_auto_says_so_and_ptb_fails(monkeypatch, tmp_path):
    monkeypatch.setitem(
        embedded.language()["sizes"], "embedded", embedded.language()["sizes"]["embedded-tiny"]
    )
    corpus = load_corpus("auto", download=False)
    assert corpus.name == "embedded" and "EMBEDDED CORPUS, NOT PENN TREEBANK" in corpus.notes[0]
    with pytest.raises(
        DataError, match=r"no Penn Treebank in data/ptb, .*cache/ptb, and .*--data-dir or"
    ):
        load_corpus("ptb", download=False)
    with pytest.raises(DataError, match="data directory nowhere is not a folder"):
        load_corpus("auto", data_dir="nowhere")


@pytest.mark.parametrize("change", ["FIFO", "device", "sparse"])
def test_penn_treebank_is_read_from_regular_files_of_a_bounded_size(fake_ptb, change):
    folder = write(Path("data/ptb"), {f"ptb.{split}.txt": FAKE[split] for split in SPLITS})
    irregular(folder / "ptb.valid.txt", change)
    for spec in ("auto", "ptb"):
        with quick_refusal(
            match=r"ptb.valid.txt cannot be read: expected (a regular file|at most)"
        ):
            load_corpus(spec, download=False)


def test_shakespeare_is_split_as_nanogpt_splits_it(monkeypatch, tmp_path):
    """Its `data[: int(0.9 * n)]` for train and the rest for validation, which is also the test."""
    text = "".join(f"ROMEO: line {place}\n" for place in range(99))
    write(Path("data/shakespeare"), {"input.txt": text.encode()})
    with pytest.raises(DataError, match=r"input.txt is not tiny Shakespeare's input file: its sha"):
        load_corpus("shakespeare")
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setitem(known_texts.SHAKESPEARE.sha256, "input", sha256)
    corpus = load_corpus("shakespeare", tokens="characters", download=False)
    border = int(0.9 * len(text))
    assert corpus.vocab.decode_text(corpus.train) == text[:border]
    assert corpus.vocab.decode_text(corpus.valid) == text[border:]
    np.testing.assert_array_equal(corpus.valid, corpus.test)
    assert (corpus.name, corpus.spec) == ("shakespeare+characters", "shakespeare")
    Path("data/shakespeare/input.txt").unlink()
    with pytest.raises(DataError, match=r"no tiny Shakespeare in .* put input.txt into a folder"):
        load_corpus("shakespeare")


# Downloads, from a local server.


class Handler(BaseHTTPRequestHandler):
    """The first part of the path is how to answer: good, wrong, short, hang, stall or absent."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        _, manner, name = self.path.split("/")
        data = b"other" if manner == "wrong" else FAKE[name.split(".")[1]]
        if manner == "hang" or (manner == "stall" and self.command == "GET"):
            self.server.released.wait(20)  # type: ignore[attr-defined]
            return
        self.send_response(404 if manner == "absent" else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if manner == "short" else data)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def mirrors(monkeypatch, fake_ptb):
    """A function that sets the mirrors to folders of a local server,
    each named by how it answers.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.released = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def use(*names: str) -> None:
        seconds = 1.0 if any(name.startswith(("hang", "stall")) for name in names) else 20.0
        monkeypatch.setattr(known_texts, "PROBE_SECONDS", seconds)
        monkeypatch.setattr(known_texts, "STALL_SECONDS", seconds)
        urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in names]
        monkeypatch.setattr(known_texts.PENN_TREEBANK, "mirrors", tuple(urls))

    yield use
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


GOOD = "good/ptb.{}.txt"
BAD = {
    "wrong/ptb.{}.txt": "has the sha256 .*, not ",
    "short/ptb.{}.txt": "broken",
    "absent/ptb.{}.txt": "404 Client Error: Not Found",
    "hang/ptb.{}.txt": "no answer",
    "stall/ptb.{}.txt": "no answer",
}


def test_a_download_is_kept_in_the_cache(tmp_path, mirrors):
    mirrors(GOOD)
    first = load_corpus("ptb")
    mirrors()
    corpus = load_corpus("ptb")
    assert corpus.name == "ptb" and corpus.notes == first.notes
    assert "20.0% of valid are tokens that the model does not know" in first.notes[0]
    assert corpus.vocab.decode(corpus.train) == FAKE_TOKENS
    assert sorted(os.listdir(tmp_path / "cache/ptb")) == [
        "ptb.test.txt",
        "ptb.train.txt",
        "ptb.valid.txt",
    ]


@pytest.mark.parametrize("bad", BAD)
def test_the_next_mirror_is_used_when_one_fails(tmp_path, mirrors, bad):
    mirrors(bad, GOOD)
    assert load_corpus("ptb").vocab.decode([0]) == [Vocab.build(FAKE_TOKENS).words[0]]


@pytest.mark.parametrize(("bad", "reason"), BAD.items())
def test_a_failed_download_is_explained_and_leaves_nothing(tmp_path, mirrors, bad, reason):
    mirrors(bad)
    start = time.monotonic()
    with pytest.raises(DataError, match=f"127.0.0.1:.*{reason}") as caught:
        load_corpus("ptb")
    assert time.monotonic() - start < 15 and "\n" not in str(caught.value)
    assert not (tmp_path / "cache/ptb").exists()


def test_dead_network_costs_one_time_out_whatever_the_mirrors(monkeypatch, mirrors):
    mirrors(*["hang/ptb.{}.txt"] * 40)
    monkeypatch.setitem(
        embedded.language()["sizes"], "embedded", embedded.language()["sizes"]["embedded-tiny"]
    )
    start = time.monotonic()
    assert load_corpus("auto").name == "embedded"
    assert time.monotonic() - start < 30  # forty in turn would take forty


def test_oversized_download_is_cut_off(monkeypatch, mirrors):
    monkeypatch.setattr(known_texts, "MAX_BYTES", 10)
    mirrors(GOOD)
    with pytest.raises(DataError, match="more than 10 bytes"):
        load_corpus("ptb")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, mirrors):
    mirrors(GOOD)
    write(tmp_path, {"cache": b"a file where the folder should be"})
    with pytest.raises(DataError, match=r"cannot be stored in .*cache/ptb"):
        load_corpus("ptb")


# The generated corpus and the cache.


def test_the_generated_corpus_keeps_its_text_and_its_floor():
    corpus = load_corpus("embedded-tiny")
    generated = sample("embedded-tiny")
    source = generated.source
    assert corpus.name == "embedded-tiny" and set(corpus.vocab.words) == set(source.words)
    assert corpus.vocab.decode(corpus.valid) == [source.words[i] for i in generated.valid]
    counts = np.bincount(corpus.train, minlength=len(corpus.vocab))
    assert (np.diff(counts) <= 0).all()
    assert corpus.floor == pytest.approx(
        {split: floor_nats(source, getattr(generated, split)) for split in SPLITS}, 1e-12
    )
    assert load_corpus("embedded-tiny", max_vocab=100).floor is None


@pytest.mark.parametrize("change", ["FIFO", "device", "sparse", "link"])
def test_cached_ids_are_read_from_a_regular_file_of_a_bounded_size(tmp_path, change):
    first = load_corpus("embedded-tiny")
    (folder,) = (tmp_path / "cache/texts").glob("*-embedded-tiny")
    path = folder / "train.ids"
    good = path.read_bytes()
    (tmp_path / "victim").write_text("all of it")
    irregular(path, change, tmp_path / "victim")
    assert load_corpus("embedded-tiny").sha256 == first.sha256
    assert path.read_bytes() == good and not path.is_symlink()
    assert (tmp_path / "victim").read_text() == "all of it"


def test_the_generated_corpus_is_generated_once_unless_it_is_changed(monkeypatch):
    first = load_corpus("embedded-tiny")
    with monkeypatch.context() as patch:
        patch.delattr(embedded.Generator, "draw")
        again = load_corpus("embedded-tiny")
    assert again.floor == first.floor and again.sha256 == first.sha256
    monkeypatch.setitem(embedded.language()["sizes"]["embedded-tiny"], "seed", 99)
    assert load_corpus("embedded-tiny").sha256 != first.sha256


def test_given_vocabulary_is_used():
    own = load_corpus("embedded-tiny")
    other = Vocab((UNK, EOS))
    same = load_corpus("embedded-tiny", vocab=own.vocab)
    assert (same.name, same.sha256, same.floor) == (own.name, own.sha256, own.floor)
    changed = load_corpus("embedded-tiny", vocab=other)
    assert (changed.name, changed.vocab, changed.floor) == (
        "embedded-tiny",
        other,
        None,
    )
    assert load_corpus("embedded-tiny", lowercase=True, vocab=own.vocab).floor is None


# The Corpus object.


@given(st.sampled_from(["u1", "u2", "i4", "i8"]), st.lists(st.integers(0, 255), max_size=9))
def test_ids_in_memory_must_be_those_of_the_vocabulary(dtype, values):
    ids = np.array(values, dtype)
    good = np.zeros(3, np.int32)
    vocab = Vocab(tuple(f"w{i}" for i in range(100)))

    def make() -> Corpus:
        return Corpus("mine", "", vocab, train=good, valid=good, test=ids, sha256="")

    if max(values, default=0) < 100:
        assert make().test is ids
    else:
        found = int(ids.max())
        with pytest.raises(
            DataError, match=rf"the test split of mine holds the id {found}, .* 0 to 99"
        ):
            make()


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array([0, -1]), "the valid split of embedded-tiny holds the id -1"),
        (np.array([0.0]), r"valid must be a one-dimensional array of integers, not float64 \[1\]"),
        (np.zeros((2, 2), np.int32), r"not int32 \[2, 2\]"),
        (np.array([True]), "not bool"),
        (np.array([None]), "not object"),
        ([0, 1], "not a list"),
    ],
)
def test_a_corpus_of_other_arrays_is_refused(ids, expected):
    with pytest.raises(DataError, match=expected):
        replace(load_corpus("embedded-tiny"), valid=ids)
