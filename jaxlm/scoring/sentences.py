"""Sentences as a model reads them: the words, their ids between two `<eos>`, and which words it does not know."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.errors import DataError, JaxlmError

Sentence = str | Sequence[str]  # a line, or its words


@dataclass(frozen=True)
class Encoded:
    """One sentence of n words."""

    words: tuple[str, ...]  # as given
    ids: np.ndarray  # int32 [n + 2], `<eos>` before and after
    oov: np.ndarray  # which words are not in the vocabulary and are read as `<unk>`, bool [n]


def encode(vocab: Vocab, words: Sequence[str], oov: str, where: str, lowercase: bool) -> Encoded:
    """The sentence of some words, which `where` names in an error, as in "stimuli.txt, line 3".

    Words outside the vocabulary are refused where `oov` is "error", else read as `<unk>`. Raises DataError where a word
    is refused, or the vocabulary has no `<unk>` or no `<eos>`.
    """
    if vocab.kind == "words" and EOS not in vocab.ids:
        raise DataError(f"the vocabulary has no {EOS}, and a sentence's first word is predicted from it")
    read = [word.lower() for word in words] if lowercase else words
    unknown = [word not in vocab.ids for word in read]
    if any(unknown) and (oov == "error" or vocab.unknown_id < 0):
        word = words[unknown.index(True)]
        why = (
            f"read it as {UNK} with oov=unk"
            if vocab.unknown_id >= 0
            else f"the vocabulary has no {UNK} to stand for it"
        )
        raise DataError(f"{where}: the word {word!r} is not among the {len(vocab):,} words of the vocabulary; {why}")
    ids = np.concatenate([[vocab.eos], vocab.encode(read), [vocab.eos]]).astype(np.int32)
    return Encoded(tuple(words), ids, np.array(unknown, bool))


def check_several(sentences: object) -> None:
    """Raises JaxlmError for one text where several are expected: it would be read letter by letter."""
    if isinstance(sentences, str | bytes):
        raise JaxlmError(f"sentences must be a list of lines; it is one text: [{sentences!r:.80}]")


def check_words(sentence: object) -> list[str]:
    """A sentence given as words. Raises JaxlmError where it is anything else."""
    words: list = list(sentence) if isinstance(sentence, Iterable) else [sentence]
    if isinstance(sentence, bytes) or not all(isinstance(word, str) for word in words):
        raise JaxlmError(f"a sentence must be a line of text or a list of words; one is {sentence!r:.80}")
    return words


def blocks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises JaxlmError where a value is not one of the choices."""
    if value not in choices:
        raise JaxlmError(f"{name} must be one of {', '.join(choices)}; it is {value!r}")
