"""The tokenizer of Penn Treebank's files, and its inverse for people."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.tokens import WORDS
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.scoring.tokenizers import PTBTokenizer, detokenized, is_tokenised

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
# Words that the files have; there is no %, no comma, no quote and no fraction.
SEEN = r"""
    N n't 's ' $ # c$ us$ hk$ & s&p \* 1\/2-year mgm\/ua 1980s mid-1980s 10-year '80s
    from to the of a on rose oct. oct inc. inc corp. corp p.m. p.m n.j. n.j u.s. mr. s.p a. j. f.
    j.p. no. no say we met at can not dogs million acquired said over-the-counter rate 19th cents
    u.s.-soviet """
FILES = Vocab((EOS, UNK, *SEEN.split()))
CASED = Vocab((EOS, UNK, "The", "the", "dog", ",", ".", "?", "''", "``", "(", ")", "'s", "12"))


def joined(vocab: Vocab, text: str) -> str:
    return " ".join(piece for word in PTBTokenizer(vocab)(text) for piece in word)


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
        ("We met at the Inc.", "we met at the inc."),
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
        ("...?", ""),
        ("the dog --, it", "the dog it"),
    ],
)
def test_ordinary_english_becomes_mikolovs_words(text, expected):
    assert joined(MIKOLOV, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog, the dog.", "The dog , the dog ."),
        ('"The dog?"', "`` The dog ? ''"),
        ("(dog's)", "( dog 's )"),
        ("12 the", "12 the"),
        ("12, the dog", "12 , the dog"),
        ("12,000, the", "12,000 , the"),
        ('")', "`` )"),
        ("13", "13"),
        ("Dog", "Dog"),
        ("don't", "don't"),
    ],
)
def test_a_vocabulary_keeps_what_it_has(text, expected):
    assert joined(CASED, text) == expected


@pytest.mark.parametrize(
    ("words", "text", "expected"),
    [
        (
            'the dog -- ... "',
            "\u201cthe dog\u201d \u2014 the dog\u2026 a",
            '" the dog " -- the dog ... a',
        ),
        ("we say no no. .", "We say no.", "we say no ."),
        ("the dog \u2019s bone", "the dog\u2019s bone", "the dog \u2019s bone"),
        ("the dog 's o\u2019brien", "the dog\u2019s dog", "the dog 's dog"),
        ("l\u2019homme", "zebra l\u2019homme", "zebra l\u2019homme"),
        (
            "\u0643\u062a\u0627\u0628 \u060c x",
            "\u0643\u062a\u0627\u0628\u060c x y",
            "\u0643\u062a\u0627\u0628 \u060c x y",
        ),
    ],
)
def test_marks_become_the_vocabulary_s_own(words, text, expected):
    assert joined(Vocab((EOS, UNK, *words.split())), text) == expected


@given(st.lists(st.sampled_from(list(MIKOLOV.words))))
def test_text_that_is_tokenised_already_stays(words):
    assert joined(MIKOLOV, " ".join(words)).split() == words


@given(st.text(max_size=30))
def test_any_text_has_pieces_without_white_space(text):
    for vocab in (MIKOLOV, CASED):
        found = PTBTokenizer(vocab)(text)
        assert len(found) == len(text.split()) and all(
            piece.split() == [piece] for word in found for piece in word
        )


def test_penn_treebanks_own_test_text_stays(ptb_dir):
    lines = (ptb_dir / "ptb.test.txt").read_text().split("\n")
    vocab = Vocab.build((ptb_dir / "ptb.train.txt").read_text().replace("\n", " <eos> ").split())
    tokenizer = PTBTokenizer(vocab)
    assert all(
        [piece for word in tokenizer(line) for piece in word] == line.split() for line in lines
    )
    assert is_tokenised(vocab)


@pytest.mark.parametrize(
    "word", ["hand,", "end.", "what?", "\u0643\u062a\u0627\u0628\u060c", "\u4f60\u597d\u3002"]
)
def test_punctuation_at_a_word_shows_that_a_text_is_not_tokenised(word):
    assert not is_tokenised(Vocab((word, "the", "end"))) and is_tokenised(
        Vocab(("inc.", "the", "end", ","))
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rose 3.5% to 4%", "rose N N to N N"),  # "from N N to N N": 4,174 lines
        ("rose 3.5 % a", "rose N N a"),
        ("the rate of 10 1/2%", "the rate of N N N"),  # "prime rate N N N"
        ("at $1.5 million", "at $ N million"),
        ("C$2.25 US$3 HK$4 to", "c$ N us$ N hk$ N to"),
        ("at £1,000 a", "at # N a"),  # "valued at over # N billion"
        ("We met at 7:30 p.m. the 19th", "we met at N p.m. the 19th"),
        ("on Oct. 19, 1987, the", "on oct. N N the"),
        ("10/19/87 a", "N a"),
        (
            "the 1980s, the mid-1980s, the '80s, the '90s a",
            "the 1980s the mid-1980s the '80s the '90s a",
        ),
        ("the 10-year 1/2-year MGM/UA", "the 10-year 1\\/2-year mgm\\/ua"),
        ("Mr. J. F. J.P. Dogs", "mr. j. f. j.p. dogs"),
        ("the U.S.-Soviet over-the-counter", "the u.s.-soviet over-the-counter"),
        ("S&P said", "s&p said"),
        ("S.p.A. said", "s.p a. said"),  # "fiat s.p a."
        ("* a", "\\* a"),
        ("we cannot", "we can not"),
        ("'The dogs' said", "the dogs ' said"),
        # The last word of a sentence has lost its period: 285 lines end in "inc", 3 in "inc.";
        # "u.s." has kept it.
        ("We acquired the Inc.", "we acquired the inc"),
        ("We acquired the Inc. a", "we acquired the inc. a"),
        ('We met at 5 "p.m."', "we met at N p.m"),
        ("We say no.", "we say no"),
        ("We met No. 5", "we met no. N"),
        ("From the U.S.", "from the u.s."),
        ("from the corp.", "from the corp."),  # tokenised already: left as it is
    ],
)
def test_every_class_of_token_that_the_files_show(text, expected):
    assert joined(FILES, text) == expected


@pytest.mark.parametrize(
    "word", [".", "'s", "(", "...", "can't", "1", "a", "-", "$'", '"(', "1's", "n't.", "''"]
)
def test_the_time_grows_with_the_length_of_a_word_not_its_square(word):
    def seconds(times: int) -> float:
        start = time.process_time()
        PTBTokenizer(MIKOLOV)("x" + word * times)
        PTBTokenizer(MIKOLOV)(word * times + "x")
        return time.process_time() - start

    assert seconds(40_000) < 0.5 + 24 * seconds(5_000)  # a square would be 64 times


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ca n't the dog 's $ N N % <eos> it", "can't the dog's $N N%\nit"),
        ("`` the dog , '' it said -lrb- N -rrb- .", '" the dog," it said (N).'),
        ("cities\\/abc", "cities/abc"),
        ("the dog \u2019s bone", "the dog\u2019s bone"),
        ("a \u060c b", "a\u060c b"),
        ("<eos> <eos> a", "\n\na"),
        ("", ""),
    ],
)
def test_words_as_people_write_them(words, expected):
    assert "".join(detokenized(words.split())) == expected.replace('" the', '"the')
    assert "".join(WORDS.pieces(words.split())).replace("\n", " <eos> ").split() == words.split()
