"""The nats of words that are made of pieces: those of their pieces and of their boundaries."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from jaxlm.scoring.sentences import Encoded
from jaxlm.scoring.token_scores import Scoring, TokenScores


def word_nats(
    scores: TokenScores,
    sentences: Sequence[Encoded],
    lengths: Sequence[int],
) -> np.ndarray:
    """The nats of every token that was predicted, which sum to the nats of their words.

    The P(B) of a word is added to its last token and to the last token before it.

    Args:
        scores: Scores of the sentences, one after the other.
        sentences: The sentences.
        lengths: How many tokens of each sentence are scored.

    Returns:
        Nats, float64.
    """
    nats = scores.nats.astype(float)
    starts = accumulate(lengths, initial=0)
    cuts = np.concatenate(
        [start + sentence.cuts for start, sentence in zip(starts, sentences, strict=False)]
    )
    nats[cuts] -= scores.boundary[cuts]
    nats[cuts - 1] += scores.boundary[cuts]
    return nats


def sentence_nats(
    scoring: Scoring,
    sentences: Sequence[Encoded],
    eos: bool = False,
) -> list[np.ndarray]:
    """`word_nats` of the tokens [n] of each sentence.

    Equal sentences are read once, so that they get equal numbers.

    Args:
        scoring: Scores the sentences.
        sentences: The sentences.
        eos: Whether the `<eos>` after the tokens is scored too.
    """
    unique = {sentence.ids.tobytes(): sentence for sentence in sentences}
    ids_read = []
    for sentence in unique.values():
        # The boundary after the last word is scored at the `<eos>`.
        reads_eos = eos or len(sentence.cuts) > 0
        ids_read.append(sentence.ids if reads_eos else sentence.ids[:-1])
    lengths = [len(ids) - 1 for ids in ids_read]
    nats = word_nats(scoring(ids_read), [*unique.values()], lengths)
    nats_by_ids = dict(zip(unique, np.split(nats, np.cumsum(lengths)[:-1]), strict=True))
    return [
        nats_by_ids[sentence.ids.tobytes()][: len(sentence.tokens) + eos] for sentence in sentences
    ]
