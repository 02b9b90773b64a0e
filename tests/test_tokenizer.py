"""The tokenizer of Penn Treebank's files, and its inverse for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.scoring.detokenizer import detokenized, spaced
from jaxlm.scoring.ptb_tokenizer import PTBTokenizer

MIKOLOV = Vocab(
    (
        EOS,
        UNK,
        "N",
        "n't",
        "'s",
        "'re",
        "'ll",
        "'",
        "$",
        "%",
        "&",
        "ca",
        "wo",
        "do",
        "inc.",
        "u.s.",
        "mr.",
        "can",
        "not",
        "the",
        "dogs",
        "dog",
        "it",
        "and",
        "cities\\/abc",
        "N\\/N",
        "500-stock",
        "o'brien",
        "gon",
        "na",
        "horse",
        "raced",
        "fell",
        "'80s",
        "10-year",
    )
)
CASED = Vocab((EOS, UNK, "The", "the", "dog", ",", ".", "?", "''", "``", "(", ")", "'s", "12"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The horse raced, fell.", "the horse raced fell"),
        ("Can't", "ca n't"),
        ("won\u2019t", "wo n't"),
        ("the dog's", "the dog 's"),
        ("the dogs' dog", "the dogs ' dog"),
        ("It\u2019ll", "it 'll"),
        ("cannot", "can not"),
        ("GONNA!", "gon na"),
        ("$1,000.50", "$ N"),
        ("5%", "N %"),
        ("12", "N"),
        ("-3.5", "N"),
        (".5", "N"),
        ("1/2", "N\\/N"),
        ("cities/abc", "cities\\/abc"),
        ("500-stock", "500-stock"),
        ("the 10-year", "the 10-year"),
        ("'80s", "'80s"),
        ("Inc.", "inc."),
        ("u.s.,", "u.s."),
        ("Mr. O'Brien's", "mr. o'brien 's"),
        ('"the dog," (it)', "the dog it"),
        ("dog -- it", "dog it"),
        ("dog—", "dog"),
        ("-", "-"),
        ("zebra's?", "zebra 's"),
        ("the zebra-dog", "the zebra-dog"),
        ("N <unk> <eos>", "N <unk> <eos>"),
        ("and/or", "and/or"),
        ("(", ""),
        ("...", ""),
    ],
)
def test_ordinary_english_becomes_mikolovs_words(text, expected):
    assert " ".join(PTBTokenizer(MIKOLOV)(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog, the dog.", "The dog , the dog ."),
        ('"The dog?"', "`` The dog ? ''"),
        ("(dog's)", "( dog 's )"),
        ("12 the", "12 the"),
        ("13", "13"),
        ("Dog", "Dog"),
        ("don't", "don't"),
    ],
)
def test_a_vocabulary_keeps_what_it_has(text, expected):
    assert " ".join(PTBTokenizer(CASED)(text)) == expected


@given(st.lists(st.sampled_from([word for word in MIKOLOV.words])))
def test_text_that_is_tokenised_already_stays(words):
    assert PTBTokenizer(MIKOLOV)(" ".join(words)) == words


@given(st.text(max_size=30))
def test_any_text_has_pieces_without_white_space(text):
    for vocab in (MIKOLOV, CASED):
        assert all(piece.split() == [piece] for piece in PTBTokenizer(vocab)(text))


def test_penn_treebanks_own_test_text_stays(ptb_dir):
    words = (ptb_dir / "ptb.test.txt").read_text().split()[:20_000]
    vocab = Vocab.build((ptb_dir / "ptb.train.txt").read_text().replace("\n", " <eos> ").split())
    assert PTBTokenizer(vocab)(" ".join(words)) == words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ca n't the dog 's $ N N % <eos> it", "can't the dog's $N N%\nit"),
        ("`` the dog , '' it said -lrb- N -rrb- .", '" the dog," it said (N).'),
        ("cities\\/abc", "cities/abc"),
        ("<eos> <eos> a", "\n\na"),
        ("", ""),
    ],
)
def test_words_as_people_write_them(words, expected):
    assert "".join(detokenized(words.split())) == expected.replace('" the', '"the')
    assert "".join(spaced(words.split())).replace("\n", " <eos> ").split() == words.split()
