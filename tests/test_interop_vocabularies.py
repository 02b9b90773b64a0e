"""The words of other people's models."""

import subprocess
import sys

import pytest

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.interop.importing import model_vocabulary, vocabulary_of_corpus


@pytest.mark.parametrize(
    "content",
    [
        b"the\ncaf\xc3\xa9\n<eos>",
        b"the\ncaf\xc3\xa9\n<eos>\n",
        b"the\r\ncaf\xc3\xa9\r\n<eos>\r\n",
        b"\xef\xbb\xbfthe\ncaf\xc3\xa9\n<eos>\n",
    ],
)
def test_a_word_a_line_with_or_without_a_newline_at_the_end(tmp_path, content):
    (tmp_path / "vocab.txt").write_bytes(content)
    assert model_vocabulary(tmp_path / "vocab.txt", 3).words == ("the", "café", "<eos>")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a\nb\n", "2 words, and the model has 3"),
        (b"a\nb\nc\nd", "4 words, and the model has 3"),
        (b"", "1 words"),
        (b"a\nb\na\n", "'a' twice"),
        (b"a\n\nc\n", "word 1"),
        (b"a\nb\xff\nc\n", "not UTF-8: byte 3 .0xff"),
        (b"a\nb c\nd\n", "word 1"),
        (b"a\nb\x1b[0m\nb\x1b[0m\n", r"\\x1b"),
    ],
)
def test_a_vocabulary_that_cannot_be_the_models(tmp_path, content, problem):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(DataError, match=problem) as error:
        model_vocabulary(tmp_path / "vocab.txt", 3)
    assert "vocab.txt" in str(error.value) and str(error.value).isprintable()


def test_words_of_a_line_as_colorless_green_rnns_splits_them(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\u00a0c\nd")
    assert model_vocabulary(tmp_path / "vocab.txt", 4).words == ("a", "b", "c", "d")


def test_a_vocabulary_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="none"):
        model_vocabulary(tmp_path / "none", 3)


def corpus(folder) -> None:
    (folder / "train.txt").write_text(" the cat \n\nsat on the mat", encoding="utf8")
    (folder / "valid.txt").write_text("a\u3000caf\u00e9 sat\r\n", encoding="utf8")
    (folder / "test.txt").write_text("dog\n", encoding="utf8")


def test_words_of_a_corpus_in_the_order_of_first_appearance(tmp_path):
    corpus(tmp_path)
    assert vocabulary_of_corpus(tmp_path) == (
        "the",
        "cat",
        "<eos>",
        "sat",
        "on",
        "mat",
        "a",
        "café",
        "dog",
    )
    (tmp_path / "valid.txt").unlink()
    with pytest.raises(DataError, match=r"valid\.txt"):
        vocabulary_of_corpus(tmp_path)


def test_the_words_of_a_model_are_a_file_s_or_a_corpus_s(tmp_path):
    corpus(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(f"word{place}" for place in range(9)))
    assert model_vocabulary(tmp_path / "vocab.txt", 9).words[8] == "word8"
    assert model_vocabulary(tmp_path, 9).words[7] == "café"
    (tmp_path / "test.txt").write_text("dog bird\n")
    with pytest.raises(JaxlmError, match="10 words, and the model has 9"):
        model_vocabulary(tmp_path, 9)


def test_no_other_framework_is_needed_to_read_a_model():
    code = (
        "import sys, jaxlm.interop.importing; sys.exit(any(name in sys.modules for name in "
        "('torch', 'tensorflow', 'flax')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
