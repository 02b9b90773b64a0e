"""Ordinary English as the words of Mikolov's Penn Treebank files: punctuation and clitics split, numbers as `N`.

Guided by the vocabulary: what it has is kept whole, and its own habits are followed. Mikolov's files are lower-case and
have no punctuation, so that "Can't cost $1,000." is read as "ca n't cost $ N"; a vocabulary with commas keeps commas.
"""

import re

from jaxlm.data.vocab import Vocab

NUMBER = re.compile(r"[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
CLITIC = re.compile(r"(.+?)(n't|'s|'re|'ve|'ll|'m|'d)", re.IGNORECASE)
JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
DOUBLE, SINGLE, DASHES = '"\u201c\u201d', "'\u2018\u2019", "\u2014\u2013"  # as people type quotes and dashes
MARKS = r"``|''|\.\.\.|--|"  # those of more than one letter
LEADING = re.compile(MARKS + rf"[{DOUBLE}{SINGLE}{DASHES}`(\[{{<$#£€*¿¡]")
TRAILING = re.compile(MARKS + rf"[{DOUBLE}{SINGLE}{DASHES}`)\]}}>%,.;:?!*…]")


class PTBTokenizer:
    """Splits one displayed word at a time. `vocab` is the model's."""

    def __init__(self, vocab: Vocab):
        self._known = vocab.ids
        self._lower = all(word == word.lower() for word in (known.replace("N", "") for known in vocab.words))
        self._number = "N" if "N" in vocab.ids else None

    def __call__(self, text: str) -> list[str]:
        """The pieces of a text, in the order of its words."""
        return [piece for word in text.split() for piece in self.pieces(word)]

    def pieces(self, word: str) -> list[str]:
        """The pieces of one displayed word; none where it is punctuation that the vocabulary does not have."""
        if word in self._known:
            return [word]
        word = word.translate({ord(quote): "'" for quote in SINGLE})
        if self._lower:
            word = word.lower()
        if word in self._known:
            return [word]
        if LEADING.fullmatch(word):
            return self._mark(word, opening=True)
        before: list[str] = []
        while (found := LEADING.match(word)) and found.end() < len(word) and not self._stands(word):
            before += self._mark(found[0], opening=True)
            word = word[found.end() :]
        after: list[str] = []
        while (mark := self._last_mark(word)) and not self._stands(word):
            word = word[: -len(mark)]
            after = self._mark(mark, opening=False) + after
        return [*before, *(self._core(word) if word else []), *after]

    def _stands(self, word: str) -> bool:
        """Whether a word is left as it is: `inc.`, `'s`, `n't`, or a number such as .5."""
        return word in self._known or bool(NUMBER.fullmatch(word))

    def _last_mark(self, word: str) -> str:
        matches = [found[0] for length in (3, 2, 1) if (found := TRAILING.fullmatch(word[-length:]))]
        return matches[0] if matches else ""

    def _mark(self, mark: str, opening: bool) -> list[str]:
        """The mark in the vocabulary's own writing, if it has any."""
        quote = "``" if opening else "''"
        names = [mark, BRACKETS.get(mark, mark)] + ([quote] if mark in DOUBLE else [])
        return [name for name in dict.fromkeys(names) if name in self._known][:1]

    def _core(self, word: str) -> list[str]:
        if word in self._known:
            return [word]
        if self._number and NUMBER.fullmatch(word):
            return [self._number]
        if (found := CLITIC.fullmatch(word)) and found[2] in self._known:
            return [*self._core(found[1]), found[2]]
        if (parts := JOINED.get(word.lower())) and all(part in self._known for part in parts):
            return list(parts)
        escaped = word.replace("/", "\\/")
        if escaped in self._known:
            return [escaped]
        if self._number and re.fullmatch(r"\d+/\d+", word) and "N\\/N" in self._known:
            return ["N\\/N"]
        return [word]
