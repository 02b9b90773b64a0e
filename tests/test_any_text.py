"""Corpora of every kind of tokens: texts in many scripts, in files, folders, patterns and parts of
files; and runs.
"""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

import jaxlm
from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.cli import main
from jaxlm.config.settings import DataConfig
from jaxlm.data import encoding
from jaxlm.data import text as texts
from jaxlm.data.corpora import reload_corpus
from jaxlm.data.corpus import Corpus
from jaxlm.data.text import SPLITS
from jaxlm.data.vocab import UNK
from jaxlm.runs.reproduction import reproduce

BOM = b"\xef\xbb\xbf"
TEXTS = {
    "german": "Der Hund, der bellt, beißt nicht.\n"
    "Ein alter Mann und das Meer; ein Lied über Bäume.\n\n" * 30,
    "chinese": "你好世界。今天天气很好。我们去公园散步吧。明天也许会下雨。" * 60,  # one line
    "arabic": "مرحبا بالعالم، كيف حالك اليوم؟ الكتاب على الطاولة.\n" * 40,
    "emoji": "🙂🙃 hello 👨‍👩‍👧 family 🇩🇪 flag e\u0301\n" * 40,
    "code": "def f(x):\n\tif x > 0:\n\t    return x\n\n    \r\n\treturn -x  # \u2581 note  \n" * 30,
    "one line": "the cat sat on the mat and the dog saw it " * 60 + "\n",
}
KINDS = {
    "characters": {"tokens": "characters", "normalize": "none"},
    "bytes": {"tokens": "bytes"},
    "bpe": {"tokens": "subwords", "pieces": 300},
    "unigram": {"tokens": "subwords", "pieces": 290, "piece_model": "unigram"},
}


def whole(corpus: Corpus) -> str:
    return corpus.vocab.decode_text(np.concatenate([getattr(corpus, split) for split in SPLITS]))


def file(folder: Path, text: str | bytes, name: str = "text") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", TEXTS)
def test_a_corpus_is_exactly_its_text(tmp_path, monkeypatch, language, kind):
    """In one block and in many, in memory and prepared; and its vocabulary knows no more than
    train.
    """
    path = file(tmp_path, TEXTS[language])
    options = KINDS[kind]
    if kind == "unigram" and language != "german":
        options = {**options, "piece_model": "bpe", "pieces": 285}
    corpus = jaxlm.load_corpus(path, **options)
    assert whole(corpus) == TEXTS[language]
    assert all(share == 0 for share in corpus.unknown_shares().values())
    assert np.array_equal(
        corpus.vocab.encode_text(corpus.vocab.decode_text(corpus.valid)), corpus.valid
    )
    monkeypatch.setattr(texts, "BLOCK", 64)
    monkeypatch.setattr(encoding, "UNITS_AT_ONCE", 100)
    prepared = jaxlm.prepare(path, tmp_path / "out", **options)
    assert (prepared.sha256, prepared.vocab, prepared.name) == (
        corpus.sha256,
        corpus.vocab,
        corpus.name,
    )
    assert (
        prepared.options["tokens"] == options["tokens"]
        and prepared.description == corpus.description
    )
    bound = None if kind == "characters" else 200  # which bytes and subwords do not have
    assert jaxlm.load_corpus(tmp_path / "out", max_vocab=bound).sha256 == corpus.sha256
    with pytest.raises(DataError, match="prepared with lines eos, not unwrap"):
        jaxlm.load_corpus(tmp_path / "out", lines="unwrap")


def test_characters_are_composed_unless_asked(tmp_path):
    path = file(tmp_path, TEXTS["emoji"])
    corpus = jaxlm.load_corpus(path, tokens="characters")
    assert "é" in corpus.vocab.ids and whole(corpus) == unicodedata.normalize("NFC", TEXTS["emoji"])


def test_subwords_come_from_train_alone(tmp_path):
    (tmp_path / "a").mkdir()
    for split, text in zip(
        SPLITS, ("abab cdcd\n" * 50, "efef ghgh\n" * 50, "ijij\n" * 9), strict=True
    ):
        file(tmp_path / "a", text, f"{split}.txt")
    corpus = jaxlm.load_corpus(tmp_path / "a", tokens="subwords", pieces=270)
    assert "abab" in corpus.vocab.ids and not any(
        "e" in name or "i" in name for name in corpus.vocab.words[300:]
    )
    assert not {"ef", "ij"} & corpus.vocab.ids.keys() and whole(corpus).startswith(
        "abab cdcd\nabab"
    )


def test_a_rare_character_is_refused_or_learned(tmp_path):
    path = file(tmp_path, "abc\n" * 98 + "abd\n" + "abx\n")
    with pytest.raises(
        DataError, match=r"character 'd' is not in the vocabulary, .*min_count of 2"
    ):
        jaxlm.load_corpus(path, tokens="characters")
    learned = file(tmp_path, "é" + "abc\n" * 98 + "abx\n", "learned")
    corpus = jaxlm.load_corpus(learned, tokens="characters", min_count=2)
    assert (
        UNK in corpus.vocab.ids
        and corpus.unknown_shares()["train"] > 0
        and "é" not in corpus.vocab.ids
    )
    bounded = jaxlm.load_corpus(learned, tokens="characters", max_vocab=4)
    assert len(bounded.vocab) == 4 and UNK in bounded.vocab.ids and "max_vocab=4" in bounded.name


def test_bytes_take_what_is_not_utf8_and_characters_refuse_it(tmp_path):
    data = b"caf\xe9 au lait\n" * 30
    path = file(tmp_path, data)
    corpus = jaxlm.load_corpus(path, tokens="bytes")
    ids = np.concatenate([getattr(corpus, split) for split in SPLITS])
    assert b"".join(corpus.vocab.token_bytes[place] for place in ids) == data
    for tokens in ("characters", "subwords", "words"):
        with pytest.raises(DataError, match="text is not UTF-8: byte 3 "):
            jaxlm.load_corpus(path, tokens=tokens)


def test_whole_texts_of_a_folder_are_held_out(tmp_path):
    folder = tmp_path / "novels"
    (folder / "deep").mkdir(parents=True)
    names = [f"{place:02}" for place in range(39)] + ["deep/1"]
    for name in names:
        file(folder, f"text {name} ends\nwithout a line", name)
    file(folder, "", "empty")
    file(folder, b"\0", ".hidden")
    corpus = jaxlm.load_corpus(folder, tokens="bytes")
    decoded = {split: corpus.vocab.decode_text(getattr(corpus, split)) for split in SPLITS}
    assert decoded["valid"] == "".join(
        f"text {names[place]} ends\nwithout a line\n" for place in (18, 38)
    )
    assert decoded["test"].count("text") == 2 and decoded["train"].count("without a line\n") == 36
    assert corpus.notes == ("41 texts are split by texts: 2 for valid and 2 for test",)
    renamed = folder / "00"
    renamed.rename(folder / "zz")
    assert jaxlm.load_corpus(folder, tokens="bytes").sha256 != corpus.sha256


def test_a_few_texts_are_split_by_lines(tmp_path):
    for name in ("b.txt", "a.txt", "c.md"):
        file(tmp_path, f"{name}\n" * 10, name)
    for tokens in ("words", "characters"):
        corpus = jaxlm.load_corpus(f"{tmp_path}/*.txt", tokens=tokens)
        assert whole(corpus).startswith("a.txt\n" * 10 + "b.txt\n" * 9) and "c.md" not in whole(
            corpus
        )
        assert "a.txt with 1 more is split 90/5/5 by lines: 18 / 1 / 1" in corpus.notes[0]
        assert jaxlm.load_corpus(corpus.spec, tokens=tokens).sha256 == corpus.sha256
        out = jaxlm.prepare(f"{tmp_path}/*.txt", tmp_path / f"{tokens}.out", tokens=tokens)
        assert out.sha256 == corpus.sha256
    with pytest.raises(DataError, match=r"no file .*\*\.csv"):
        jaxlm.load_corpus(f"{tmp_path}/*.csv")


@pytest.mark.parametrize("name", ["test", "dev.txt", "train", "run.json", "sweep.json"])
def test_a_text_may_have_any_name(tmp_path, name):
    """One of 25 texts is no split; and a file that a run has too makes no run of texts beside
    it.
    """
    for place in range(24):
        file(tmp_path, f"{place} a\nb\n", f"{place:02}")
    plain = jaxlm.load_corpus(tmp_path, tokens="bytes")
    file(tmp_path, "another\n", name)
    corpus = jaxlm.load_corpus(tmp_path, tokens="bytes")
    if name.endswith(".json"):  # it is left out, as what a run has
        assert corpus.sha256 == plain.sha256
    else:
        assert whole(corpus).count("another\n") == 1
        assert corpus.notes == ("25 texts are split by texts: 1 for valid and 1 for test",)


def test_bytes_keep_a_byte_order_mark(tmp_path):
    path = file(tmp_path, "\ufeffa b\n" * 30)
    for tokens in ("bytes", "characters"):
        text = whole(jaxlm.load_corpus(path, tokens=tokens))
        assert text.encode() == path.read_bytes().removeprefix(b"" if tokens == "bytes" else BOM)


def test_a_small_text_has_as_many_pieces_as_it_allows(tmp_path, german):
    corpus = jaxlm.load_corpus(german, tokens="subwords")
    count = len(corpus.vocab)
    assert 256 < count < 8000
    assert f"subwords: {count:,} pieces, the most that this text allows" in corpus.notes[-1]
    again = reload_corpus(german, corpus.vocab, **corpus.options)
    assert again.sha256 == corpus.sha256 and again.options["pieces"] is None
    with pytest.raises(DataError, match=f"at most {count}"):
        jaxlm.load_corpus(german, tokens="subwords", pieces=count + 1)


def test_a_prepared_text_tells_how_its_letters_are_composed(tmp_path):
    """Each option is part of what a folder is known by, in the cache and where the user names
    it.
    """
    path = file(tmp_path, TEXTS["emoji"])
    options: dict[str, Any] = {"tokens": "characters", "normalize": "nfc"}
    composed = jaxlm.load_corpus(path, **options)
    assert jaxlm.prepare(path, tmp_path / "out", **options).sha256 == composed.sha256
    options["normalize"] = "none"
    assert whole(jaxlm.load_corpus(path, **options)) == TEXTS["emoji"]
    with pytest.raises(DataError, match=r"another corpus .*normalize nfc, not none"):
        jaxlm.prepare(path, tmp_path / "out", **options)


def test_texts_that_end_with_spaces_are_joined_by_newlines(tmp_path):
    for name in ("a", "b"):
        file(tmp_path, "one two\n" * 9 + "three \t", name)
    assert whole(jaxlm.load_corpus(tmp_path)) == ("one two\n" * 9 + "three\n") * 2


@pytest.mark.parametrize(
    "last", ["a ab  ", "a" * 30]
)  # spaces, and a word, that go on behind a segment's end
def test_texts_that_end_within_a_segment_are_joined_by_newlines(tmp_path, monkeypatch, last):
    monkeypatch.setattr(texts, "BLOCK", 4)
    for name in ("a", "b"):
        file(tmp_path, "a b\n" * 9 + last, name)
    file(tmp_path, "", "c")
    assert whole(jaxlm.load_corpus(tmp_path)) == ("a b\n" * 9 + last.rstrip() + "\n") * 2


def test_runs_below_a_folder_of_texts_are_no_text(tmp_path):
    """As where one trains with `--corpus .`: else the run could not be resumed, for its own
    files.
    """
    for name in ("a", "b"):
        file(tmp_path, "one two\n" * 9, name)
    corpus = jaxlm.load_corpus(tmp_path)
    jaxlm.prepare(tmp_path / "a", tmp_path / "prepared")
    (tmp_path / ".partial-prepared-0123456789abcdef").mkdir()
    file(tmp_path / ".partial-prepared-0123456789abcdef", b"\0", "train.ids")
    run = tmp_path / "runs" / "small"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("run.json", "checkpoints/state.safetensors"):
        file(run, b"\0", name)
    assert jaxlm.load_corpus(tmp_path).sha256 == corpus.sha256


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_large_text_compression_files_are_split_by_bytes(tmp_path, name):
    text = ("one two three " * 80)[:1000] if name == "text8" else "中文\n" * 143
    path = file(tmp_path, text, name)
    corpus = jaxlm.load_corpus(path, tokens="bytes")
    data = text.encode()
    cut = [len(data) * 90 // 100, len(data) * 95 // 100]
    cut = [
        next(at for at in range(at, at + 4) if data[at] & 0xC0 != 0x80) for at in cut
    ]  # not within a character
    sizes = [len(getattr(corpus, split)) for split in SPLITS]
    assert sizes == [cut[0], cut[1] - cut[0], len(data) - cut[1]] and whole(corpus) == text
    assert whole(jaxlm.load_corpus(path, tokens="characters")) == text


def test_a_stretch_without_a_word_is_named(tmp_path):
    with pytest.raises(DataError, match=r"the valid split of .*text8 is empty"):
        jaxlm.load_corpus(file(tmp_path, "a b c d e f g h i j", "text8"))


def test_paragraphs_are_unwrapped(tmp_path, monkeypatch):
    text = "a novel\nthat is\r\n  wrapped.\n\n\nAnother \nparagraph.\n \n" * 30 + "a novel\n"
    expected = "a novel that is wrapped.\nAnother paragraph.\n" * 30 + "a novel\n"
    path = file(tmp_path, text)
    for block in (1 << 20, 8):
        monkeypatch.setattr(texts, "BLOCK", block)
        for tokens in ("characters", "bytes"):
            corpus = jaxlm.load_corpus(path, tokens=tokens, lines="unwrap")
            assert whole(corpus) == expected and "unwrap" in corpus.name
        assert whole(jaxlm.load_corpus(path, lines="unwrap", lowercase=True)) == expected.lower()


def test_the_generated_corpus_has_every_kind():
    words = jaxlm.load_corpus("embedded-tiny")
    corpus = jaxlm.load_corpus("embedded-tiny", tokens="characters")
    sentences = [line.strip() for line in whole(corpus).split("\n")]
    assert sentences == whole(words).split("\n") and corpus.floor is None


def test_subwords_of_a_run_are_not_found_anew(tmp_path):
    given: dict[str, Any] = {"tokens": "subwords", "tokenizer_file": str(given_tokenizer(tmp_path))}
    corpus = jaxlm.load_corpus("embedded-tiny", **given)
    Path(given["tokenizer_file"]).unlink()
    again = reload_corpus("embedded-tiny", corpus.vocab, **given)
    assert (again.sha256, again.name) == (corpus.sha256, corpus.name)


def test_characters_of_penn_treebank_are_those_published(ptb_dir):
    corpus = jaxlm.load_corpus("ptb-char", data_dir=ptb_dir)
    assert [len(getattr(corpus, split)) for split in SPLITS] == [5_017_482, 393_042, 442_423]
    assert (
        len(corpus.vocab) == 50
        and corpus.name == "ptb-char"
        and corpus.options["tokens"] == "characters"
    )
    lines = (ptb_dir / "ptb.valid.txt").read_text().split("\n")
    assert corpus.vocab.decode_text(corpus.valid) == "\n".join(map(str.strip, lines))


def given_tokenizer(folder: Path, model_type: str = "unigram") -> Path:
    lines = iter(TEXTS["german"].splitlines())
    name = str(folder / "given")
    options = {
        "model_type": model_type,
        "vocab_size": 60,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=lines, model_prefix=name, **options)
    return Path(f"{name}.model")


@pytest.fixture(scope="module")
def german(tmp_path_factory) -> Path:
    return file(tmp_path_factory.mktemp("german"), TEXTS["german"])


def test_a_sweep_reads_a_text_prepared_with_a_tokenizer_s_file(tmp_path, german, monkeypatch):
    monkeypatch.chdir(given_tokenizer(tmp_path).parent)
    jaxlm.prepare(german, "out", tokens="subwords", tokenizer_file="given.model")
    sizes: Any = dict(embedding_size=4, hidden_sizes=(4,), batch_size=2, bptt_length=8, epochs=1)
    config = jaxlm.preset("small").replace(corpus="out", **sizes)
    assert jaxlm.sweep(
        config, {"learning_rate": [0.1]}, run_dir=tmp_path / "sweep", quiet=True
    ).best


def test_a_text_in_a_given_vocabulary_is_found_again(tmp_path, monkeypatch):
    """Also where its training split lacks a character, and without preparing it with its own
    words.
    """
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    given = jaxlm.load_corpus(file(tmp_path, "abcd\n" * 99, "a"), tokens="characters").vocab
    data = DataConfig(str(file(tmp_path, "abc\n" * 98 + "abd\n" * 2, "b")), tokens="characters")
    corpus = jaxlm.load_corpus(data.corpus, vocab=given, max_vocab=len(given), **data.options)
    again = reload_corpus(data.corpus, given, **data.options)
    assert (again.sha256, again.name, again.vocab) == (corpus.sha256, corpus.name, given)
    assert len(list((tmp_path / "cache/texts").glob("*-b"))) == 1


def test_lines_are_stripped_where_files_are_joined(tmp_path):
    (folder := tmp_path / "texts").mkdir()
    for name, text in (("1", "x\n y\n"), ("2", "  title\n z\n")):
        file(folder, text * 30 if name == "1" else text + "w\n" * 30, name)
    corpus = jaxlm.load_corpus(folder, tokens="characters", lines="stripped")
    whole = "".join(
        corpus.vocab.decode_text(part) for part in (corpus.train, corpus.valid, corpus.test)
    )
    assert "\n " not in whole and "title" in whole


def test_another_tokenizer_file_of_one_name_has_another_corpus_in_the_cache(
    tmp_path, german, monkeypatch
):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    given: dict[str, Any] = {
        "tokens": "subwords",
        "tokenizer_file": str(given_tokenizer(tmp_path)),
        "max_vocab": 60,
    }
    first = jaxlm.load_corpus(german, **given)
    assert isinstance(first.train, np.memmap)
    given_tokenizer(tmp_path, "char")
    assert jaxlm.load_corpus(german, **given).vocab != first.vocab


@pytest.mark.parametrize("given", [False, True])
def test_subwords_are_read_from_the_cache_again(tmp_path, german, given, monkeypatch):
    """As a resumed run and an evaluation read them: with the model of the checkpoint, whose file
    may be gone.
    """
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    model = given_tokenizer(tmp_path) if given else None
    data = DataConfig(str(german), tokens="subwords", pieces=300, tokenizer_file=str(model or ""))
    corpus = jaxlm.load_corpus(data.corpus, max_vocab=10_000, **data.options)
    again = [
        reload_corpus(data.corpus, corpus.vocab, **data.options),
        jaxlm.load_corpus(german, vocab=corpus.vocab, **data.options),
    ]
    assert len(list((tmp_path / "cache/texts").glob("*-text"))) == 1
    if model:
        model.unlink()
        again.append(reload_corpus(data.corpus, corpus.vocab, **data.options))
    for found in again:
        assert isinstance(found.train, np.memmap) and found.options == data.options
        assert (found.sha256, found.name, found.spec) == (corpus.sha256, corpus.name, corpus.spec)


def test_a_sweep_finds_its_tokenizer_s_file_from_another_directory(tmp_path, german, monkeypatch):
    monkeypatch.chdir(given_tokenizer(tmp_path).parent)
    sizes = dict(embedding_size=4, hidden_sizes=(4,), batch_size=2, bptt_length=8, epochs=1)
    tokens = dict(tokens="subwords", tokenizer_file="given.model")
    config = jaxlm.preset("small").replace(corpus=str(german), **tokens, **sizes)
    jaxlm.sweep(config, {"learning_rate": [0.1]}, run_dir=tmp_path / "sweep", quiet=True)
    monkeypatch.chdir(german.parent)
    assert main(["sweep", "--run-dir", str(tmp_path / "sweep"), "--resume"]) == 0


@pytest.mark.parametrize(
    "kind",
    [
        "characters",
        "given",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bytes", "bpe")),
    ],
)
def test_a_run_is_trained_resumed_and_used(tmp_path, german, kind, capsys):
    options = (
        {"tokens": "subwords", "tokenizer_file": str(given_tokenizer(tmp_path))}
        if kind == "given"
        else KINDS[kind]
    )
    sizes = dict(embedding_size=4, hidden_sizes=(4,), batch_size=2, bptt_length=8, epochs=2)
    config = jaxlm.preset("small").replace(corpus=str(german), **options, **sizes)
    alone = jaxlm.train(config, run_dir=tmp_path / "alone", quiet=True)
    jaxlm.train(config, run_dir=tmp_path / "run", steps=5, quiet=True)
    if kind == "given":
        Path(options["tokenizer_file"]).unlink()  # the checkpoint has it
    saved = json.loads((tmp_path / "run/config.json").read_text())
    del saved["sha256"]
    jaxlm.train(
        jaxlm.Config.from_json(json.dumps(saved)), run_dir=tmp_path / "run", resume=True, quiet=True
    )
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("alone", "run")]
    assert (
        metrics[0] == metrics[1]
        and f'"corpus":"text:text+{options["tokens"]}"'.encode() in metrics[0]
    )
    lm = jaxlm.load(tmp_path / "run")
    assert lm.vocab.kind == options["tokens"] and lm.config.model.vocab_size == len(lm.vocab)
    assert lm.evaluate("test").perplexity == pytest.approx(alone.test_perplexity)
    found = lm.evaluate(text=german)
    assert found.predictions == len(lm.vocab.encode_text(TEXTS["german"])) - 1
    assert np.isfinite(lm.perplexity("Der Hund\n\nbellt  "))
    (text,) = lm.generate("Der Hund", words=20, seed=3)
    streamed = "".join(
        lm.vocab.tokens.pieces(word for word, _ in lm.stream("Der Hund", words=20, seed=3))
    )
    assert str(text) == lm.vocab.decode_text(lm.vocab.encode(text.words)) == streamed
    capsys.readouterr()
    assert (
        main(["generate", str(tmp_path / "run"), "Der Hund", "--words", "20", "--seed", "3"]) == 0
    )
    assert capsys.readouterr().out == "Der Hund" + str(text) + "\n" * (not str(text).endswith("\n"))
    assert (
        main(["info", str(tmp_path / "run")]) == 0 and options["tokens"] in capsys.readouterr().out
    )
    if kind == "given":
        assert not reproduce(tmp_path / "alone", quiet=True).results


def test_a_tokenizer_of_another_size_is_another_models(tmp_path, german):
    config = jaxlm.preset("small").replace(
        corpus=str(german),
        tokens="bytes",
        embedding_size=2,
        hidden_sizes=(2,),
        batch_size=2,
        bptt_length=8,
        epochs=1,
    )
    result = jaxlm.train(config, steps=1, quiet=True)
    assert result.config.model.vocab_size == 256
    other = jaxlm.load_corpus(german, tokens="characters")
    with pytest.raises(JaxlmError, match="params do not have the config's shapes"):
        jaxlm.train(config, replace(other, notes=()), params=result.params, quiet=True)


def test_unknown_tokens_of_a_run_s_own_text_are_warned_of(tmp_path, german, capsys):
    config = jaxlm.preset("small").replace(
        corpus=str(german),
        vocab_size=8,
        embedding_size=2,
        hidden_sizes=(2,),
        batch_size=2,
        bptt_length=8,
        epochs=1,
    )
    jaxlm.train(config, run_dir=tmp_path / "run", steps=1, quiet=True)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "% of text:text+max_vocab=8 test are tokens that the model does not know" in said.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tokens": "letters"}, "tokens must be words, characters, bytes or subwords"),
        (
            {"tokens": "subwords", "pieces": 8000},
            r"pieces 8,000 is more than this text allows: at most \d+",
        ),
        (
            {"tokens": "subwords", "pieces": 10},
            r"pieces 10 is fewer than this text's characters need: at least \d+",
        ),
        (
            {"tokenizer_file": __file__},
            "is for tokens subwords, and tokens is words: leave one out",
        ),
        (
            {"tokens": "subwords", "tokenizer_file": "missing.model"},
            "there is no file missing.model",
        ),
        (
            {"tokens": "subwords", "tokenizer_file": __file__},
            "no SentencePiece model or tokenizer.json",
        ),
        ({"normalize": "nfd"}, "normalize must be nfc or none"),
        ({"min_count": 0}, "min_count must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_sentence(german, tmp_path, options, expected):
    for read in (
        jaxlm.load_corpus,
        lambda text, **given: jaxlm.prepare(text, tmp_path / "out", **given),
    ):
        with pytest.raises(JaxlmError, match=expected) as caught:
            read(german, **options)
        assert "\n" not in str(caught.value)


def test_flags_and_presets_take_the_fields(tmp_path, german, capsys):
    tiny = [
        "--embedding-size",
        "2",
        "--hidden-sizes",
        "2",
        "--batch-size",
        "2",
        "--bptt-length",
        "8",
        "--epochs",
        "1",
    ]
    out = str(tmp_path / "out")
    assert (
        main(
            [
                "prepare",
                str(german),
                out,
                "--tokens",
                "subwords",
                "--pieces",
                "300",
                "--lines",
                "unwrap",
            ]
        )
        == 0
    )
    assert (
        main(["train", "--corpus", out, *tiny, "--run-dir", str(tmp_path / "run"), "--steps", "1"])
        == 0
    )
    assert jaxlm.load(tmp_path / "run").config.data.pieces == 300
    assert (
        jaxlm.preset("char-small").data.corpus
        == jaxlm.preset("awd-lstm-char").data.corpus
        == "ptb-char"
    )
    rates = [
        float(jaxlm.preset("awd-lstm-char").schedule.factor(0, epoch, 1))
        for epoch in (0, 299, 300, 399, 400)
    ]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("name", ["embedded-tiny", "ptb-char"])
def test_a_text_without_paragraphs_is_not_unwrapped(request, name):
    place = request.getfixturevalue("ptb_dir") if name == "ptb-char" else None
    plain, asked = (
        jaxlm.load_corpus(name, data_dir=place, lines=lines) for lines in ("eos", "unwrap")
    )
    lines = "stripped" if name == "ptb-char" else "eos"
    assert (asked.sha256, asked.name, asked.options["lines"]) == (plain.sha256, plain.name, lines)
