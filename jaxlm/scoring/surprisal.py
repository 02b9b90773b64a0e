"""Surprisal word by word: -log p of each word given those before it, with the entropy of what predicted it.

Surprisal: Hale 2001, Levy 2008. Entropy and its reduction are defined as in neural-complexity (van Schijndel and Linzen
2018): the entropy of the distribution that predicts a word, and by how much it fell since the word before.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np

from jaxlm.data.vocab import EOS, Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.scoring.sentences import OOV, Encoded, Sentence, blocks, check_choice, encode, split
from jaxlm.scoring.token_scores import Scoring

UNITS = {"bits": math.log(2), "nats": 1.0}  # how many nats one is
CONTEXTS = ("sentence", "stream")
BLOCK = 1024  # sentences that are read together
COLUMNS = ("sentence_id", "token_id", "word", "token", "oov", "surprisal", "entropy", "entropy_reduction", "rank")


@dataclass(frozen=True)
class Surprisals:
    """A row for each of N tokens: its attributes are columns, named as in the table that `jaxlm surprisal` prints.

    Attributes:
        sentence_id, token_id: the sentence's and the token's place in it, from 1, int [N].
        word: as given.
        token: as the model reads it: `<unk>` where the word is unknown.
        vocabulary_id: the token's id, int32 [N].
        oov: whether the word is unknown, bool [N].
        surprisal: -log p of the token, float [N]; nan for unknown words where that is asked.
        entropy: of the distribution that predicts the token, float [N].
        entropy_reduction: how much the entropy fell since the sentence's token before, at least 0, float [N].
        rank: 1 where no word is more probable, int [N].
        top, top_surprisal: the K likeliest words [N][K], and their surprisals [N, K].
        unit: of surprisal and entropy, bits or nats.
    """

    sentence_id: np.ndarray
    token_id: np.ndarray
    word: list[str]
    token: list[str]
    vocabulary_id: np.ndarray
    oov: np.ndarray
    surprisal: np.ndarray
    entropy: np.ndarray
    entropy_reduction: np.ndarray
    rank: np.ndarray
    top: list[list[str]]
    top_surprisal: np.ndarray
    unit: str

    def __len__(self) -> int:
        return len(self.word)

    def columns(self) -> dict[str, Sequence[Any]]:
        """The table: each column by its name; K pairs of columns top_1, top_1_surprisal and so on at the end."""
        table: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS}
        for k in range(self.top_surprisal.shape[1]):
            table[f"top_{k + 1}"] = [words[k] for words in self.top]
            table[f"top_{k + 1}_surprisal"] = self.top_surprisal[:, k]
        return table

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame. Raises JaxlmError where pandas is not installed."""
        return data_frame(self.columns())

    def sentence_sums(self) -> np.ndarray:
        """The surprisal of each sentence, float [S], from the first that has a row on; 0 where one has none."""
        ids = self.sentence_id - self.sentence_id[0] if len(self) else self.sentence_id
        return np.bincount(ids, self.surprisal)

    @staticmethod
    def joined(parts: Sequence["Surprisals"]) -> "Surprisals":
        """One after the other."""
        fields: dict[str, Any] = {}
        for name in Surprisals.__dataclass_fields__:
            values = [getattr(part, name) for part in parts]
            fields[name] = (
                values[0]
                if name == "unit"
                else np.concatenate(values)
                if isinstance(values[0], np.ndarray)
                else [item for value in values for item in value]
            )
        return Surprisals(**fields)


def data_frame(columns: Mapping[str, Sequence[Any]]) -> Any:
    """A pandas DataFrame. Raises JaxlmError where pandas is not installed."""
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise JaxlmError(
            "a data frame needs pandas: pip install pandas (columns() is the same table without it)"
        ) from None
    return pandas.DataFrame(dict(columns))


def surprisals(
    scoring: Scoring,
    vocab: Vocab,
    sentences: Sequence[Encoded],
    first: int = 1,
    *,
    oov: str = "unk",
    unit: str = "bits",
    eos: bool = False,
) -> Surprisals:
    """The table of some sentences.

    Args:
        scoring: how sentences become scores.
        vocab: the model's.
        sentences: S of them; those without words have no row, and are still read.
        first: number of the first one.
        oov: "nan" leaves the surprisal of unknown words out.
        unit: bits or nats.
        eos: whether the `<eos>` that ends each sentence has a row too.
    """
    lengths = np.array([len(sentence.ids) - 1 for sentence in sentences])  # tokens predicted, `<eos>` among them
    scores = scoring([sentence.ids for sentence in sentences])
    sentence_id = np.repeat(np.arange(len(sentences)), lengths)
    starts = np.cumsum(lengths) - lengths
    token_id = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    ids = np.concatenate([sentence.ids[1:] for sentence in sentences])
    unknown = np.concatenate([np.append(sentence.oov, False) for sentence in sentences])
    nats, entropy = scores.nats.astype(float), scores.entropy.astype(float)
    before = np.where(token_id > 0, np.roll(entropy, 1), entropy)
    if oov == "nan":
        nats[unknown] = math.nan
    kept = np.flatnonzero(token_id + 1 < np.repeat(lengths + eos, lengths))
    words = [word for sentence in sentences for word in (*sentence.words, EOS)]
    one = UNITS[unit]
    return Surprisals(
        sentence_id[kept] + first,
        token_id[kept] + 1,
        [words[place] for place in kept.tolist()],
        vocab.decode(ids[kept]),
        ids[kept],
        unknown[kept],
        nats[kept] / one,
        entropy[kept] / one,
        np.maximum(0, before - entropy)[kept] / one,
        scores.rank[kept],
        [vocab.decode(row) for row in scores.top[kept]] if scores.top.size else [[] for _ in kept],
        scores.top_nats[kept].astype(float) / one,
        unit,
    )


def surprisal_stream(
    scoring: Scoring,
    vocab: Vocab,
    sentences: Iterable[Sentence],
    *,
    context: str = "sentence",
    oov: str = "unk",
    unit: str = "bits",
    eos: bool = False,
    lowercase: bool = False,
    block: int = BLOCK,
    first: int = 1,
    where: Callable[[int], str] = "sentence {}".format,
) -> Iterator[Surprisals]:
    """The tables of one block of sentences after the other, from an iterator of any length, in constant memory.

    Args:
        scoring: how sentences become scores.
        vocab: the model's.
        sentences: lines, or lists of words.
        context: "sentence" needs words in each; "stream" may have empty ones, which are an `<eos>` only.
        oov, unit, eos: as `surprisals` takes them; "error" refuses unknown words.
        lowercase: whether words become lower-case first.
        block: sentences of a table.
        first: number of the first sentence.
        where: names a sentence, given its number, in an error.

    Raises:
        DataError: a sentence has no words, or an unknown word is refused.
    """
    check_choice("context", context, CONTEXTS)
    check_choice("oov", oov, OOV)
    check_choice("unit", unit, list(UNITS))
    for part in blocks(sentences, block):
        encoded = []
        for number, sentence in enumerate(part, first):
            given = split(sentence)
            if not given and context == "sentence":
                raise DataError(f"{where(number)} has no words: remove it")
            words = [word.lower() for word in given] if lowercase else given
            encoded.append(replace(encode(vocab, words, oov, where(number)), words=tuple(given)))
        yield surprisals(scoring, vocab, encoded, first, oov=oov, unit=unit, eos=eos)
        first += len(part)
