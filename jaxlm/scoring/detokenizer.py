"""Words of a corpus as text that people read: clitics and punctuation joined to their words, a newline for `<eos>`."""

from collections.abc import Iterable, Iterator

from jaxlm.data.vocab import EOS
from jaxlm.scoring.tokenizers import BRACKETS

CLITICS = {"n't", "'s", "'re", "'ve", "'ll", "'m", "'d", "'"}
CLOSING = {".", ",", ";", ":", "?", "!", "%", ")", "]", "}", "''", "-rrb-", "-rsb-", "-rcb-", "..."}
OPENING = {"(", "[", "{", "``", "$", "#", "£", "€", "-lrb-", "-lsb-", "-lcb-"}
READABLE = {**{code: bracket for bracket, code in BRACKETS.items()}, "``": '"', "''": '"', EOS: "\n"}


def detokenized(words: Iterable[str]) -> Iterator[str]:
    """Pieces of text as they come, each with the space before it, if any; together they are the text."""
    joined = True
    for word in words:
        shown = READABLE.get(word, word.replace("\\/", "/"))
        attached = joined or word == EOS or word.lower() in CLITICS or word.lower() in CLOSING
        yield shown if attached else " " + shown
        joined = word == EOS or word.lower() in OPENING
