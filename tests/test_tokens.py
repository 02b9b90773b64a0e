"""Kinds of tokens: every text comes back from its ids,
and nothing but `DataError` for a file that is no tokenizer.
"""

import base64
import io
import json
import pickle
import time
from collections import Counter
from functools import cache

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from language_models import lm_of

from jaxlm.base.errors import DataError
from jaxlm.base.units import TextSize
from jaxlm.cli.using import _say_unknown_in
from jaxlm.data.subwords import Subwords
from jaxlm.data.tokens import Bytes, Characters, stripped, unwrapped
from jaxlm.data.vocab import UNK, Vocab

TEXT = (
    "Der Hund bellt,\n  und if (x > 0):\n\treturn x\n你好世界。\n"
    "\u0645\u0631\u062d\u0628\u0627 \u0639\n🙂 e\u0301 the cat sat on the mat\n"
)
ANY = st.text(st.characters(exclude_categories=("Cs",)))
NEAR = st.text(st.sampled_from(" \n\r\t\u2581\u3000\0<0x41>Ġaé中🙂\u0301"), max_size=40)


@cache
def byte_level() -> bytes:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT], tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    return made.to_str().encode()


@cache
def sentencepiece_model(**options) -> bytes:
    """A model as others make one: with SentencePiece's own settings."""
    out = io.BytesIO()
    lines = iter(TEXT.splitlines())
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=lines, model_writer=out, hard_vocab_limit=False, minloglevel=2, **options
    )
    return out.getvalue()


@cache
def vocab(kind: str) -> Vocab:
    tokens = {
        "characters": lambda: Characters("none"),
        "bytes": Bytes,
        "bpe": lambda: Subwords.train(
            Counter(Bytes().units(TEXT)) + Counter(_words(TEXT)), 330, "bpe"
        ),
        "unigram": lambda: Subwords.train(Counter(_words(TEXT)), 297, "unigram"),
        "json": lambda: Subwords.read(byte_level(), "tokenizer.json"),
        "other": lambda: Subwords.read(
            sentencepiece_model(
                byte_fallback=True, vocab_size=400, normalization_rule_name="identity"
            ),
            "a.model",
        ),
    }[kind]()
    if tokens.names:
        return Vocab(tokens.names, tokens)
    return Vocab.build(TEXT, kind=tokens)


def _words(text: str) -> list[str]:
    return [f" {word}" for word in text.split()]


KINDS = ["bytes", "bpe", "unigram", "json", "other"]


@pytest.mark.parametrize("kind", KINDS)
@given(text=ANY | NEAR)
@example(text=TEXT)
@example(text=" a\r\n\r b  \n\n\n")
def test_every_text_comes_back_exactly(kind, text):
    made = vocab(kind)
    ids = made.encode_text(text)
    assert made.decode_text(ids) == text
    assert made.unknown_share(ids) == 0
    assert b"".join(made.token_bytes[place] for place in ids) == text.encode()


@given(text=ANY | NEAR)
def test_characters_come_back_exactly(text):
    made = Vocab.build(text + "\n", kind=Characters("none"))
    assert made.decode_text(made.encode_text(text)) == text and UNK not in made.ids
    composed = Vocab.build(Characters().units(text + "\n"), kind=Characters())
    assert composed.decode_text(composed.encode_text("\n")) == "\n"


@pytest.mark.parametrize("kind", ["characters", *KINDS])
def test_a_vocabulary_is_sealed_and_read_back(kind):
    made = vocab(kind)
    ids = made.encode_text(TEXT).tolist()
    for again in (Vocab.from_json(made.to_json()), pickle.loads(pickle.dumps(made))):
        assert again == made and again.sha256 == made.sha256 and again.words == made.words
        assert again.encode_text(TEXT).tolist() == ids
    assert made.token_bytes[made.eos] == b"\n"


@pytest.mark.parametrize("kind", ["characters", *KINDS])
@given(cut=st.integers(0, 60))
def test_sizes_are_those_of_the_text(kind, cut):
    made = vocab(kind)
    ids = made.encode_text("x" + TEXT)
    whole = made.text_size(ids)
    words = len(TEXT.split()) + TEXT.count("\n") - (TEXT[0] != " ")
    assert whole == TextSize(len(ids) - 1, len(TEXT.encode()), len(TEXT), words)
    parts = made.text_size(ids[: cut + 1]), made.text_size(ids[cut:])
    assert TextSize(*np.add(*parts).tolist()) == whole


def test_sizes_of_words():
    made = Vocab.build(["a", "b", "<eos>", "<eos>", "cd", "<eos>"])
    ids = made.encode(["<eos>", "a", "b", "<eos>", "<eos>", "cd", "<eos>"])
    assert made.text_size(ids)[1:] == (len("a b\n\ncd\n"), 8, 6)
    assert made.decode_text(ids) == "\na b\n\ncd\n"


def test_bytes_that_are_no_text_are_shown_and_read():
    made = vocab("bytes")
    assert made.decode_text(np.array([0xE4, 0xB8, 65])) == "\ufffdA"
    assert made.encode_text(b"\xff\x41".decode(errors="surrogateescape")).tolist() == [0xFF, 0x41]


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_refused(kind):
    """As in an argument of the command line that is not UTF-8, but of bytes, which take it."""
    with pytest.raises(DataError, match="not Unicode"):
        vocab(kind).encode_text("caf\ud800")


def test_rare_characters_are_one_symbol_that_training_sees():
    made = Vocab.build("aaabbbcd\n", kind=Characters(), min_count=2)
    assert (
        made.words == ("a", "b", UNK, "\n")
        and made.decode_text(made.encode_text("ax")) == "a\ufffd"
    )
    with pytest.raises(DataError, match=r"character 'x' is not in the vocabulary.*min_count"):
        Vocab.build("aabb\n", kind=Characters(), min_count=2).encode_text("x")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (b"", "no SentencePiece model"),
        (b"junk" * 99, "no SentencePiece model"),
        (b"{", "no tokenizer.json"),
        (b"[1]", "no SentencePiece model"),
        (b'{"model": {"type": "BPE"}}', "tokenizer.json that can be read"),
        (b'{"model": 3}', "no tokenizer.json"),
        (b'{"a":' * 100_000, "no tokenizer.json"),
    ],
)
def test_damaged_tokenizers_are_refused(file, expected):
    with pytest.raises(DataError, match=expected):
        Subwords.read(file, "a file")


def test_a_tokenizer_s_byte_order_mark_does_not_count():
    assert Subwords.read(b"\xef\xbb\xbf" + byte_level(), "a file") == Subwords.read(
        byte_level(), "a file"
    )


def test_cut_tokenizers_are_refused():
    for whole in (sentencepiece_model(vocab_size=60), byte_level()):
        with pytest.raises(DataError, match="a file"):
            Subwords.read(whole[: len(whole) // 2], "a file")


def test_tokenizers_that_lose_spaces_are_refused():
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2, "\n": 3}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match="gives back 'aba'"):
        Subwords.read(made.to_str().encode(), "a file")


def test_a_newline_is_neither_an_unknown_token_nor_a_letter():
    with pytest.raises(DataError, match="a file has no token for the end of a line"):
        Subwords.read(sentencepiece_model(vocab_size=60, eos_id=-1), "a file")
    maltese = Subwords.read(
        sentencepiece_model(vocab_size=400, byte_fallback=True, user_defined_symbols="Ċ"), "a file"
    )
    made = Vocab(maltese.names, maltese)
    assert "Ċ" in made.ids and made.decode_text(made.encode_text("Ċ\nĊ a\n")) == "Ċ\nĊ a\n"
    assert made.words[made.eos] == "<0x0A>"


def test_tokenizers_without_a_token_for_unknown_letters_are_refused():
    tokenizers = pytest.importorskip("tokenizers")
    for model, expected in (
        (
            tokenizers.models.BPE({"a": 0, "b": 1, " ": 2, "\n": 3}, []),
            "a file drops unknown letters",
        ),
        (
            tokenizers.models.Unigram([("a", -1.0), ("b", -1.0), (" ", -1.0), ("\n", -1.0)]),
            "token for unknown letters",
        ),
    ):
        with pytest.raises(DataError, match=expected):
            Subwords.read(tokenizers.Tokenizer(model).to_str().encode(), "a file")


def test_a_panic_of_the_library_is_one_sentence(capfd):
    """Of a map of characters that is empty: it is looked up at the first letter, and
    `PanicException` is no error.
    """
    damaged = {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}
    model = json.dumps({**json.loads(byte_level()), "normalizer": damaged}).encode()
    with pytest.raises(
        DataError, match=r"a file is no SentencePiece model or .* restore"
    ) as caught:
        Subwords.read(model, "a file")
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""


@pytest.mark.parametrize("prefix", ["\n", "##", "\u2581"])
def test_a_prefix_that_the_library_stumbles_over_is_one_sentence(prefix, capfd):
    tree = json.loads(byte_level())
    tree["model"]["continuing_subword_prefix"] = prefix
    with pytest.raises(DataError, match=r"a file is no SentencePiece model or .* restore"):
        Subwords.read(json.dumps(tree).encode(), "a file")
    assert capfd.readouterr().err == ""


def test_a_tokenizer_that_ends_its_process_is_one_sentence(capfd):
    """The library cuts a merged piece within a letter, and aborts as it says so."""
    tree = json.loads(byte_level())
    tree["model"] |= {"continuing_subword_prefix": "\n", "merges": [["a", "\u00e4"]]}
    with pytest.raises(DataError, match=r"a file is no .* \(it ends the process that loads it\)"):
        Subwords.read(json.dumps(tree).encode(), "a file")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("among_added_only", [False, True])
def test_a_text_spells_no_byte(among_added_only):
    """Neither where the names of bytes are among a tokenizer.json's added tokens, nor a
    newline's.
    """
    tokenizers = pytest.importorskip("tokenizers")
    letters = ["<unk>", "\u2581", *"abx0ABEF<>12986/s", "<0xE2>", "<0x96>", "<0x81>"]
    names = letters if among_added_only else [*letters, "<0x0A>"]
    ids = {name: place for place, name in enumerate(names)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ids, [], unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    made.add_tokens(["<0x0A>", "</s>"])
    read = Subwords.read(made.to_str().encode(), "a file")
    found = Vocab(read.names, read)
    text = "a<0x0A>b\n</s> <0x96>\n"
    ids = found.encode_text(text)
    assert found.decode_text(ids) == text and (ids == found.newline_id).sum() == 2
    assert found.text_size(np.concatenate([ids[:1], ids])).bytes == len(text)
    assert len(found) == len(made.get_vocab()) and found.words[found.newline_id] == "<0x0A>"
    assert Vocab.from_json(found.to_json()) == found


def test_a_space_that_a_normalizer_adds_is_left_out():
    tokenizers = pytest.importorskip("tokenizers")
    ids = {name: place for place, name in enumerate(["<unk>", "<0x0A>", "▁", "a", "b", "▁b"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ids, [("▁", "b")], unk_token="<unk>"))
    steps = (
        tokenizers.normalizers.Prepend("▁"),
        tokenizers.normalizers.Replace(" ", "▁"),
    )  # as Llama 2's
    made.normalizer = tokenizers.normalizers.Sequence([*steps])
    tokens = Subwords.read(made.to_str().encode(), "a file")
    found = Vocab(tokens.names, tokens)
    assert found.tokenize("a b\n a") == ["a", "▁b", "<0x0A>", "▁", "a"]
    assert found.decode_text(found.encode_text("a b\n a")) == "a b\n a"


def few_letters() -> Vocab:
    """Of a tokenizer that falls back on no bytes."""
    out = io.BytesIO()
    lines = iter(["你好 a 世界 a 你好"] * 9)
    options = {"vocab_size": 20, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=lines, model_writer=out, **options)
    made = Subwords.read(out.getvalue(), "a file")
    return Vocab(made.names, made)


def test_of_a_tokenizer_that_knows_few_letters_the_others_are_unknown():
    found = few_letters()
    text = "a 你好 b\U00013000\n"  # an unknown piece has its own length, but in the ids of a split
    ids = found.encode_text(text)
    tokens = found.tokenize(text)
    assert "a" in tokens and tokens[-2] not in found.ids and found.unknown_share(ids) > 0
    assert found.text_size(ids, tokens=tokens).bytes == len(text.encode()) - 1


def test_more_pieces_than_the_text_allows_is_one_sentence():
    with pytest.raises(DataError, match=r"pieces 8,000 is more than this text allows: at most \d+"):
        Subwords.train(Counter(_words(TEXT)), 8000, "bpe")
    assert len(Subwords.train(Counter(_words(TEXT)), None, "bpe").names) > 300
    with pytest.raises(DataError, match="pieces 10"):
        Subwords.train(Counter(_words(TEXT)), 10, "unigram")


@pytest.mark.parametrize(
    "tree",
    [
        {"tokens": "characters", "normalize": "nfd", "words": ["a"]},
        {"tokens": "characters", "words": ["a"]},
        {"tokens": "bytes", "more": 1},
        {"tokens": "subwords", "model": "!"},
        {"tokens": "subwords", "model": 3},
        {"tokens": ["x"]},
        {"tokens": "runes", "words": ["a"]},
        {"tokens": "characters", "normalize": "nfc", "words": [3]},
        {"tokens": "characters", "normalize": "nfc", "words": 3},
        {"tokens": "characters", "normalize": "nfc"},
        {"tokens": "characters", "normalize": "nfc", "words": "abc"},
        "abc",
        {"a": 0, "b": 1},
    ],
)
def test_damaged_vocabularies_are_refused(tree):
    with pytest.raises(DataError):
        Vocab.from_json(json.dumps(tree))


def test_a_damaged_tokenizer_in_a_vocabulary_is_not_called_bad_json():
    tree = {"tokens": "subwords", "model": base64.b64encode(b"junk").decode()}
    with pytest.raises(DataError, match=r"^the vocabulary is no SentencePiece model"):
        Vocab.from_json(json.dumps(tree))


def test_the_unknown_token_of_a_unigram_tokenizer_is_known_by_its_place(capsys):
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [("[UNK]", 0.0), ("a", -1.0), ("b", -1.0), ("\u2581", -1.0), ("\n", -1.0)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    tokens = Subwords.read(made.to_str().encode(), "a file")
    found = Vocab(tokens.names, tokens)
    assert found.unknown_id == 0 and found.unknown_share(found.encode_text("ax")) == 0.5
    assert found.decode_text([0]) == "\ufffd"
    _say_unknown_in(lm_of(found), "ax")
    assert "1 of 2 subwords are outside the vocabulary" in capsys.readouterr().err


def test_a_long_run_of_blanks_is_unwrapped_in_linear_time():
    started = time.monotonic()
    text = "a" + " \t" * 500_000 + "b"
    assert unwrapped(text) == text and unwrapped(text + " \n c") == text + " c"
    assert stripped(text) == text and stripped(text + " \r\n c") == text + "\nc"
    assert time.monotonic() - started < 20
