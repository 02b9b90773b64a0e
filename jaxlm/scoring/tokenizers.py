"""From text to the words that a model reads.

It is split at white space, or as the words of Mikolov's Penn Treebank files. In these punctuation
and clitics are split off, numbers and `%` are `N`, and the last word of a sentence has lost its
period: "The price of Acme Inc.'s stock can't rise 3.5% at Widget Corp." becomes "the price of acme
inc. 's stock ca n't rise N N at widget corp". The tokenizer is guided by the vocabulary: a word
that it has stays whole, and a mark that it lacks is dropped, so that a vocabulary with commas keeps
commas. `detokenized` is the way back, for people.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxlm.data.vocab import EOS, Vocab

# Also 1/2, 7:30 and 10/19/87.
NUMBER = re.compile(r"[+-]?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:[:/]\d+)*")
DECADE = re.compile(r"'\d0s")
CLITICS = ("n't", "'re", "'ve", "'ll", "'s", "'m", "'d")
PAIRS = ("can", "not"), ("gon", "na"), ("got", "ta"), ("wan", "na"), ("gim", "me"), ("lem", "me")
# One word, as people write the pieces.
JOINED = {
    **{"".join(pair): pair for pair in PAIRS},
    "s.p.a.": ("s.p", "a."),
}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
WRITTEN = {**BRACKETS, "£": "#", "*": "\\*", "\u2014": "--", "\u2013": "--", "…": "..."}
# Marks after a word, also Arabic, Hindi and Chinese ones.
ENDS = ",;!?\u060c\u061b\u061f\u0964\u3001\u3002\uff01\uff0c\uff1b\uff1f"
# Quotes and dashes, as people type them.
DOUBLE = '"\u201c\u201d'
SINGLE = "'\u2018\u2019"
DASHES = "\u2014\u2013"
MARKS = r"``|''|\.\.\.|--|"  # marks of more than one letter
LEADING = re.compile(MARKS + rf"[A-Za-z]{{1,2}}\$|[{DOUBLE}{SINGLE}{DASHES}`(\[{{<$#£€*¿¡]")
TRAILING = re.compile(rf"(?:{MARKS}[{DOUBLE}{SINGLE}{DASHES}`)\]}}>%.:*…{ENDS}])\Z")
CLITIC = re.compile(rf"(?:{'|'.join(CLITICS)})\Z".replace("'", "['\u2019]"), re.IGNORECASE)
LONGEST_NUMBER = 40  # characters
# Joined to the word before them.
ATTACHED = {*CLITICS, "'", *".:%)]}", *ENDS, "''", "-rrb-", "-rsb-", "-rcb-", "..."}
OPENING = {*"([{$#£€", "``", "-lrb-", "-lsb-", "-lcb-"}  # joined to the word after them
READABLE = {
    **{code: bracket for bracket, code in BRACKETS.items()},
    "``": '"',
    "''": '"',
    EOS: "\n",
}

Tokenizer = Callable[[str], list[list[str]]]  # from a line to the pieces of each displayed word


def at_white_space(line: str) -> list[list[str]]:
    """Every displayed word as its only piece."""
    return [[word] for word in line.split()]


def is_tokenised(vocab: Vocab) -> bool:
    """Whether a vocabulary is of text whose punctuation stands apart, or was removed.

    Then few words end in a mark. Abbreviations keep their periods; of Penn Treebank's words 0.4%
    are there with a period and without.
    """
    marks = sum(len(word) > 1 and word[-1] in ENDS for word in vocab.words)
    periods = sum(word.endswith(".") and word[:-1] in vocab.ids for word in vocab.words)
    return marks <= len(vocab) / 1000 and periods <= len(vocab) / 100


class PTBTokenizer:
    """Splits the displayed words of a line into pieces, in linear time; a `Tokenizer`.

    Args:
        vocab: The vocabulary that guides it.
    """

    def __init__(self, vocab: Vocab):
        self._known = vocab.ids
        self._longest = max(LONGEST_NUMBER, *map(len, vocab.words))
        without_number = [word.replace("N", "") for word in vocab.words]
        self._lower = all(word == word.lower() for word in without_number)
        self._number = "N" if "N" in vocab.ids else None
        typed = []
        if "'s" not in vocab.ids:
            typed = [mark for mark in SINGLE if any(mark in word for word in vocab.words)]
        self._quotes = {ord(mark): "'" for mark in SINGLE if mark not in typed}

    def __call__(self, line: str) -> list[list[str]]:
        """The pieces of each displayed word; none for punctuation that the vocabulary lacks."""
        words = line.split()
        if all(word in self._known for word in words):  # it is tokenised already
            return [[word] for word in words]
        return [self._pieces(word, place == len(words)) for place, word in enumerate(words, 1)]

    def rules(self) -> dict[str, Any]:
        """What `tokenizers.js` repeats this class by, as JSON has it."""
        return {
            "patterns": [one.pattern for one in (NUMBER, DECADE, LEADING, TRAILING, CLITIC)],
            "joined": JOINED,
            "written": WRITTEN,
            "double": DOUBLE,
            "quotes": [chr(mark) for mark in self._quotes],
            "lower": self._lower,
            "number": self._number,
            "longest": self._longest,
            "longest_number": LONGEST_NUMBER,
        }

    def _pieces(self, word: str, last: bool) -> list[str]:
        if word in self._known and not (last and word.endswith(".")):
            return [word]
        word = word.translate(self._quotes)
        if self._lower:
            word = word.lower()
        start = 0
        end = len(word)
        before = []
        after = []
        while not self._stands(word, start, end):
            mark = TRAILING.search(word, max(start, end - 3), end)
            if mark is None:
                break
            after += self._mark(mark[0], opening=False)
            end = mark.start()
        marks = end == 0 and LEADING.match(word)
        if marks:  # nothing but marks, of which the first ones open
            end = len(word)
            after = []
        while not self._stands(word, start, end):
            mark = LEADING.match(word, start, end)
            if mark is None:
                break
            before += self._mark(mark[0], opening=True)
            start = mark.end()
        if marks and not self._stands(word, start, end):
            return [*before, *self._pieces(word[start:], last)]  # it begins with no opening mark
        if last and word.endswith(".", start, end) and word[start : end - 1] in self._known:
            end -= 1  # "inc." ends a sentence as "inc"
            after += self._mark(".", opening=False)
        while not self._stands(word, start, end):
            clitic = CLITIC.search(word, max(start + 1, end - 3), end)
            if clitic is None or clitic[0] not in self._known:
                break
            after.append(clitic[0])
            end = clitic.start()
        if start < end:
            before += self._unmarked(word[start:end])
        return [*before, *reversed(after)]

    def _stands(
        self,
        word: str,
        start: int,
        end: int,
    ) -> bool:
        """Whether a part of a word stays as it is: `inc.`, `'s`, `n't`, or a number such as .5."""
        if not 0 < end - start <= self._longest:
            return False
        part = word[start:end]
        if part in self._known or part in JOINED:
            return True
        return bool(NUMBER.fullmatch(part) or DECADE.fullmatch(part))

    def _mark(self, mark: str, opening: bool) -> list[str]:
        """The mark in the vocabulary's own writing, if it has any."""
        if mark == "%" and mark not in self._known and self._number:
            return [self._number]
        names = [mark, WRITTEN.get(mark, mark)]
        if mark == "'" and opening:
            names = ["`"]
        if mark in DOUBLE:
            names += ["``" if opening else "''", '"']
        known = [name for name in names if name in self._known]
        if not known and mark[1:] == "$":
            return [mark]
        return known[:1]

    def _unmarked(self, part: str) -> list[str]:
        """The pieces of a part without marks and clitics, as the vocabulary writes them."""
        for written in (part, part.replace("/", "\\/").replace("*", "\\*")):
            if written in self._known:
                return [written]
        if self._number and len(part) <= LONGEST_NUMBER and NUMBER.fullmatch(part):
            if "/" in part and "N\\/N" in self._known:
                return ["N\\/N"]
            return [self._number]
        pieces = JOINED.get(part.lower(), ())
        if pieces and all(piece in self._known for piece in pieces):
            return list(pieces)
        return [part]


def detokenized(words: Iterable[str]) -> Iterator[str]:
    """Text that people read: clitics and marks at their words, a newline for `<eos>`."""
    joined = True
    for word in words:
        shown = READABLE.get(word, word.replace("\\/", "/"))
        joined = joined or word == EOS or word.lower().replace("\u2019", "'") in ATTACHED
        yield shown if joined else " " + shown
        joined = word == EOS or word.lower() in OPENING
